"""The score of a sub-network: extracted, recalibrated, folded, measured on a named split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onceforall.architecture import Architecture
from onceforall.cost.analytic import PeakActivationMemory
from onceforall.data.dataset import Data, Split
from onceforall.errors import InvalidConfiguration
from onceforall.nn.calibrate import advance, calibrate
from onceforall.nn.network import SubNetwork
from onceforall.nn.streaming import calibrate_streaming
from onceforall.nn.subnet import channels_last, fold_batch_norm
from onceforall.nn.supernet import Supernet, Trainable
from onceforall.sizes import Size, height_width
from onceforall.tasks import CLASSIFICATION, task_of
from onceforall.tasks.task import device_of

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

# Bytes of feature maps on the processor (`_room`): that an evaluator keeps; that are alive at once where
# calibration holds all its images, as it still does with 2,000 of 32 px; and where it does not, those between two
# layers, and those of one batch. Labels at 224 px then take less than 2 GiB, and what the data keep.
KEPT, AT_ONCE, BETWEEN, ONE_BATCH = 640 << 20, 1 << 30, 384 << 20, 256 << 20
BATCH = 250  # images, where so many fit


@torch.inference_mode()
def top1(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share of images whose class has the largest logit, in percent."""
    return CLASSIFICATION.evaluate(network, batches)


def measure(supernet: Trainable, arch: Architecture, data: Data, split: Split) -> float:
    """The measured score of a sub-network on a split, after recalibration: of the data's task, in its unit."""
    network = ready(supernet, arch, data)
    return task_of(data).evaluate(network, data.batches(split, arch.resolution, _batch_size(supernet, arch)))


def measure_top1(supernet: Trainable, arch: Architecture, data: Data, split: Split) -> float:
    """Measured top-1 (percent) of a sub-network on a split, after recalibration; of classifiers."""
    network = ready(supernet, arch, data)
    return top1(network, data.batches(split, arch.resolution, _batch_size(supernet, arch)))


def ready(supernet: Trainable, arch: Architecture, data: Data) -> SubNetwork:
    """The extracted network with batch norm recalibrated on the calibration images and folded away.

    In evaluation mode and channels_last: for measuring and exporting, not for training. Where the
    feature maps of all calibration images are too many, they pass batch by batch, which takes longer.
    """
    task_of(data).check(supernet, data)
    device, network = device_of(supernet), supernet.extract(arch)
    if _peak(supernet, arch) * data.size("calibrate") <= _room(device, AT_ONCE):
        calibrate(network, [batch.to(device) for batch in data.calibration(arch.resolution)])
    else:

        def images() -> Iterator[Tensor]:
            batches = data.batches("calibrate", arch.resolution, _batch_size(supernet, arch))
            return (batch.to(device) for batch, _ in batches)

        calibrate_streaming(network, images, data.size("calibrate"), _room(device, BETWEEN))
    return channels_last(fold_batch_norm(network))


def _peak(supernet: Trainable, arch: Architecture) -> int:
    """Bytes of the feature maps of one image that are alive at once."""
    return int(PeakActivationMemory().cost(supernet.space.lower(arch)))


def _batch_size(supernet: Trainable, arch: Architecture) -> int:
    """Images that run at once."""
    return max(1, min(BATCH, _room(device_of(supernet), ONE_BATCH) // _peak(supernet, arch)))


def _room(device: torch.device, on_the_processor: int) -> int:
    """Bytes that may be used: a tenth of an accelerator's memory where that is more."""
    if device.type != "cuda":
        return on_the_processor
    return max(on_the_processor, torch.cuda.get_device_properties(device).total_memory // 10)


class Evaluator:
    """Measures many sub-networks of one supernet on one split; what they share is computed once.

    Images are decoded and resized once a resolution (by the data, as far as it keeps them), and all
    sub-networks of one resolution and first width multiplier share the fixed layers before the first
    unit: their outputs for the calibration images and for the split are kept, for the one that was
    asked for last, where they take at most `memory` bytes (None: 640 MiB, or a tenth of an
    accelerator's). Larger ones are computed anew for each network, batch by batch. So ask for one
    resolution after the other.

    precision: "fp32", or "bf16" for the measured network; batch norm is calibrated in fp32 either way.
    """

    def __init__(
        self, supernet: Supernet, data: Data, split: Split, precision: str = "fp32", memory: int | None = None
    ) -> None:
        if precision not in PRECISIONS:
            raise InvalidConfiguration(f"precision {precision!r}: choices are {', '.join(PRECISIONS)}")
        self.task = task_of(data)
        self.task.check(supernet, data)
        self.supernet, self.data, self.split = supernet, data, split
        self.device = device_of(supernet)
        self.memory = _room(self.device, KEPT) if memory is None else memory
        self.dtype = PRECISIONS[precision]
        self._shared: _Shared | None = None

    @torch.inference_mode()
    def score(self, arch: Architecture) -> float:
        """The measured score of a sub-network, after recalibration: in fp32 that of `measure`."""
        key = (arch.resolution, arch.multipliers[0])
        if self._shared is None or self._shared.key != key:
            self._shared = None  # first, to make room
            self._shared = self._share(arch, key)
        if self._shared.outputs is None:
            network = ready(self.supernet, arch, self.data).to(self.dtype)
            return self.task.evaluate(network, self._images(arch))
        calibration, measured = self._shared.outputs
        rest = self._parts(arch)[1]
        advance(rest, calibration)
        return self.task.evaluate(channels_last(fold_batch_norm(rest)).to(self.dtype), measured)

    def _parts(self, arch: Architecture) -> tuple[nn.Sequential, nn.Sequential]:
        """The extracted network, cut where its fixed first layers end."""
        layers = list(self.supernet.extract(arch))
        fixed = len(self.supernet.space.stem(arch.resolution, arch.multipliers[0]))
        return nn.Sequential(*layers[:fixed]), nn.Sequential(*layers[fixed:])

    def _share(self, arch: Architecture, key: tuple[Size, float]) -> _Shared:
        stem = self._parts(arch)[0]
        fits = _peak(self.supernet, arch) * self.data.size("calibrate") <= _room(self.device, AT_ONCE)
        if not fits or self._shared_bytes(stem, arch) > self.memory:
            return _Shared(key, None)
        calibration = [batch.to(self.device) for batch in self.data.calibration(arch.resolution)]
        if len(stem):
            calibration = advance(stem, calibration)
        stem = channels_last(fold_batch_norm(stem)).to(self.dtype)
        return _Shared(key, (calibration, [(stem(images), targets) for images, targets in self._images(arch)]))

    def _shared_bytes(self, stem: nn.Sequential, arch: Architecture) -> int:
        """What the outputs of the stem would take."""
        one = stem(torch.zeros(1, 3, *height_width(arch.resolution), device=self.device))
        each: int = one.numel() * one.element_size()
        return each * (self.data.size("calibrate") + self.data.size(self.split))

    def _images(self, arch: Architecture) -> Iterator[tuple[Tensor, Any]]:
        """The split, for the measured network."""
        batches = self.data.batches(self.split, arch.resolution, _batch_size(self.supernet, arch))
        return ((images.to(self.device, self.dtype), targets) for images, targets in batches)


@dataclass(frozen=True)
class _Shared:
    """What sub-networks of one resolution and first width multiplier share.

    outputs: of the fixed first layers, for the calibration images, and for the split with its
    targets; None where they are too many to keep.
    """

    key: tuple[Size, float]
    outputs: tuple[list[Tensor], list[tuple[Tensor, Any]]] | None
