"""From an architecture to the files of a runtime, and what is measured of those files in that runtime."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onceforall.architecture import Architecture
from onceforall.data.dataset import Data, Split
from onceforall.deploy.exports import Export
from onceforall.deploy.manifest import Exported, File
from onceforall.devices.device import Device, Files, Images, Session, Shape
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration
from onceforall.evaluate import ready
from onceforall.files import sha256
from onceforall.nn.network import SubNetwork
from onceforall.nn.supernet import Trainable
from onceforall.profiling.measuring import image_shape
from onceforall.tasks import task_of

PARITY = 1e-4  # largest difference of an fp32 export's logits from torch's, relative to the largest logit
CALIBRATING = 128  # calibration images that set the ranges of a quantised network
AT_ONCE = 2  # sessions that run side by side where only accuracy is measured

Outputs = NDArray[np.float32]  # of images in order, [images, classes]


class Judged(NamedTuple):
    """How the files of a network did on a split."""

    score: float  # in the unit of the data's task: percent for classification
    parity: float  # largest difference of outputs, relative to the largest
    agreement: float  # percent of images with the same class as torch


class Exporter:
    """Exports sub-networks of a supernet into a folder, and judges them.

    source: the supernet, or one network that went on training, whose weights are in the file `weights`.
    """

    def __init__(self, source: Trainable, data: Data, folder: Path, weights: File | None = None) -> None:
        self.source, self.data, self.folder, self.weights = source, data, folder, weights
        self._plain: dict[Architecture, SubNetwork] = {}
        self._outputs: dict[tuple[Architecture, Split], Outputs] = {}
        self._calibration: dict[Any, Images] = {}

    def plain(self, arch: Architecture) -> SubNetwork:
        """The network in torch on the processor, fp32: recalibrated, batch norm folded."""
        if arch not in self._plain:
            self._plain[arch] = ready(self.source, arch, self.data).cpu()
        return self._plain[arch]

    def key(self, arch: Architecture) -> str:
        """What tells a sub-network with these weights from others, in the names of steps."""
        return f"{arch}, fine-tuned {self.weights.sha256}" if self.weights else str(arch)

    def convert(self, arch: Architecture, device: Device) -> Files:
        """The files of a sub-network; a quantised one is calibrated on the calibration images."""
        return device.convert_keeping(self.plain(arch), image_shape(arch), self._images_for(arch, device.precision))

    def export(self, name: str, arch: Architecture, export: Export) -> Exported:
        """Write the files of a sub-network to the folder `name`. Raises UnwritableOutput."""
        images = self._images_for(arch, export.precision)
        paths = export.write(self.plain(arch), self.folder / name, image_shape(arch), images)
        files = tuple(File.of(path) for path in paths)
        problem = None if export.device else export.problem
        return Exported(export.name, export.precision, export.runtime, files, tuple(export.kept), not_verified=problem)

    def in_torch(self, arch: Architecture, split: Split) -> float:
        """The score of a sub-network in torch, fp32, on all images of a split."""
        return task_of(self.data).evaluate(self.plain(arch), self.data.batches(split, arch.resolution))

    def judge(self, arch: Architecture, device: Device, files: Files, split: Split) -> Judged:
        """The score of files in their runtime on all images of a split, and how they differ from torch's fp32."""
        batches = self.data.batches(split, arch.resolution)
        score, outputs = run_files(device, files, image_shape(arch), self.data, batches)
        expected = self._expected(arch, split)
        return Judged(
            score,
            float(np.abs(outputs - expected).max()) / float(np.abs(expected).max()),
            100 * float((outputs.argmax(1) == expected.argmax(1)).mean()),
        )

    def noise(self, arch: Architecture, device: Device) -> float:
        """How far an int8 sub-network's outputs are from torch's, on its calibration images: share of energy."""
        images = self._images_for(arch, "int8")
        assert images is not None
        with torch.inference_mode():
            expected = self.plain(arch)(torch.from_numpy(images)).numpy()
        session = device.load(self.convert(arch, device), image_shape(arch))
        outputs = np.concatenate([session(image[None]) for image in images])
        return float(((outputs - expected) ** 2).sum() / (expected**2).sum())

    def _expected(self, arch: Architecture, split: Split) -> Outputs:
        """torch's outputs of a split, in fp32, [images, classes]."""
        if (arch, split) not in self._outputs:
            with torch.inference_mode():
                batches = [self.plain(arch)(images).numpy() for images, _ in self.data.batches(split, arch.resolution)]
            self._outputs[arch, split] = np.concatenate(batches)
        return self._outputs[arch, split]

    def _images_for(self, arch: Architecture, precision: str) -> Images | None:
        """Calibration images for a quantised network; others need none."""
        if precision != "int8":
            return None
        resolution = arch.resolution
        if resolution not in self._calibration:
            images = torch.cat(self.data.calibration(resolution))
            chosen = np.linspace(0, len(images) - 1, min(CALIBRATING, len(images))).round().astype(int)
            self._calibration[resolution] = images[chosen].contiguous().numpy()
        return self._calibration[resolution]


def run_files(
    device: Device, files: Files, shape: Shape, data: Data, batches: Iterable[tuple[Tensor, Any]]
) -> tuple[float, Outputs]:
    """The score of files in their runtime over batches, one image at a time, and the outputs [images, ...] of all.

    Raises InvalidConfiguration where an output is not finite.
    """
    sessions = [device.load(files, shape) for _ in range(AT_ONCE)]  # here: not every runtime loads in several threads
    found: list[Outputs] = []

    def run(session: Session, images: Images) -> list[Outputs]:
        return [session(image[None])[0] for image in images]

    def forward(images: Tensor) -> Tensor:
        parts = pool.map(run, sessions, np.array_split(images.contiguous().numpy(), AT_ONCE))
        outputs = np.stack([output for part in parts for output in part])
        if not np.isfinite(outputs).all():
            raise InvalidConfiguration(
                f"{device.name} {device.precision}: logits are not finite; this runtime computes something else"
            )
        found.append(outputs)
        return torch.from_numpy(outputs)

    network = nn.Module()  # what a task evaluates
    network.forward = forward
    with ThreadPoolExecutor(AT_ONCE) as pool:
        score = task_of(data).evaluate(network, batches)
    return score, np.concatenate(found)


def read_files(folder: Path, files: Sequence[File]) -> Files:
    """Files by their suffix. Raises IncompatibleCheckpoint where one is missing or was changed."""
    found = {}
    for file in files:
        path = folder / file.path
        if not path.is_file() or path.stat().st_size != file.bytes or sha256(path) != file.sha256:
            state = "is missing" if not path.is_file() else "is not what the manifest says: truncated or changed"
            raise IncompatibleCheckpoint(f"{path} {state}; specialise again")
        found[path.suffix] = path.read_bytes()
    return found
