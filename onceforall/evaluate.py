"""Top-1 of a sub-network: extracted, recalibrated, folded, measured on a named split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onceforall.architecture import Architecture
from onceforall.data.dataset import Data, Split
from onceforall.errors import InvalidConfiguration
from onceforall.nn.calibrate import advance, calibrate
from onceforall.nn.network import SubNetwork
from onceforall.nn.subnet import channels_last, fold_batch_norm
from onceforall.nn.supernet import Supernet, Trainable

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def device_of(module: nn.Module) -> torch.device:
    """Where a module's tensors are; the processor for one that has none."""
    return next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))


@torch.inference_mode()
def top1(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share of images whose class has the largest logit, in percent."""
    correct = count = 0
    device = device_of(network)
    for images, labels in batches:
        correct += int((network(images.to(device)).argmax(1).cpu() == labels).sum())
        count += len(labels)
    return 100.0 * correct / count


def check_classes(net: Trainable, data: Data) -> None:
    """Raises InvalidConfiguration where the classes of a network are not those of the data."""
    if net.num_classes != data.num_classes:
        raise InvalidConfiguration(
            f"{data.name} has {data.num_classes} classes, and the network tells {net.num_classes} apart: give the data "
            "that it is for"
        )


def specialised(supernet: Trainable, arch: Architecture, data: Data) -> SubNetwork:
    """The extracted network with batch norm recalibrated on the calibration images and folded away.

    In evaluation mode and channels_last: for measuring and exporting, not for training.
    """
    check_classes(supernet, data)
    device = device_of(supernet)
    images = [batch.to(device) for batch in data.calibration(arch.resolution)]
    return channels_last(fold_batch_norm(calibrate(supernet.extract(arch), images)))


def measure_top1(supernet: Trainable, arch: Architecture, data: Data, split: Split) -> float:
    """Measured top-1 (percent) of a sub-network on a split, after recalibration."""
    return top1(specialised(supernet, arch, data), data.batches(split, arch.resolution))


class Evaluator:
    """Measures many sub-networks of one supernet on one split; what they share is computed once.

    Images are decoded and resized once a resolution (by the data), and all sub-networks of one
    resolution share the fixed layers before the first unit: their outputs for the calibration images
    and for the split are kept, up to `memory` bytes, those of the resolution that was asked for
    longest ago making room. So ask for one resolution after the other.

    precision: "fp32", or "bf16" for the measured network; batch norm is calibrated in fp32 either way.
    """

    def __init__(
        self, supernet: Supernet, data: Data, split: Split, precision: str = "fp32", memory: int = 2 << 30
    ) -> None:
        if precision not in PRECISIONS:
            raise InvalidConfiguration(f"precision {precision!r}: choices are {', '.join(PRECISIONS)}")
        check_classes(supernet, data)
        self.supernet, self.data, self.split, self.memory = supernet, data, split, memory
        self.dtype = PRECISIONS[precision]
        self._shared: dict[tuple[int, float], _Shared] = {}

    @torch.inference_mode()
    def top1(self, arch: Architecture) -> float:
        """Measured top-1 (percent) of a sub-network, after recalibration: in fp32 that of `measure_top1`."""
        layers = list(self.supernet.extract(arch))
        key = (arch.resolution, arch.multipliers[0])
        fixed = len(self.supernet.space.stem(*key))
        stem, rest = nn.Sequential(*layers[:fixed]), nn.Sequential(*layers[fixed:])
        shared = self._shared.pop(key, None) or self._share(stem, arch.resolution)
        self._shared[key] = shared  # the newest last
        while len(self._shared) > 1 and sum(item.bytes for item in self._shared.values()) > self.memory:
            del self._shared[next(iter(self._shared))]
        advance(rest, shared.calibration)
        return top1(channels_last(fold_batch_norm(rest)).to(self.dtype), shared.measured)

    def _share(self, stem: nn.Sequential, resolution: int) -> _Shared:
        device = device_of(self.supernet)
        calibration = [batch.to(device) for batch in self.data.calibration(resolution)]
        if len(stem):
            calibration = advance(stem, calibration)
        stem = channels_last(fold_batch_norm(stem)).to(self.dtype)
        batches = self.data.batches(self.split, resolution)
        return _Shared(calibration, [(stem(images.to(device, self.dtype)), labels) for images, labels in batches])


@dataclass(frozen=True)
class _Shared:
    """Outputs of the layers that all sub-networks of a resolution begin with, and the classes."""

    calibration: list[Tensor]
    measured: list[tuple[Tensor, Tensor]]

    @property
    def bytes(self) -> int:
        """What it keeps."""
        tensors = [*self.calibration, *(outputs for outputs, _ in self.measured)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
