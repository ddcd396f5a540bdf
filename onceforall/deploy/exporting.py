"""From an architecture to the files of a runtime, and what is measured of those files in that runtime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onceforall.architecture import Architecture
from onceforall.profiling.measuring import image_shape
from onceforall.data.dataset import Data, Split
from onceforall.deploy.manifest import Export, File
from onceforall.deploy.standalone import write_standalone
from onceforall.devices.device import Device, Files, Session, Shape
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration
from onceforall.evaluate import specialised
from onceforall.files import sha256, write_atomically
from onceforall.nn.network import SubNetwork
from onceforall.nn.supernet import Trainable

PARITY = 1e-4  # largest difference of an fp32 export's logits from torch's, relative to the largest logit
CALIBRATING = 128  # calibration images that set the ranges of a quantised network
AT_ONCE = 2  # sessions that run side by side where only accuracy is measured

Logits = NDArray[np.float32]


class Judged(NamedTuple):
    """How the files of a network did on a split."""

    top1: float  # percent
    parity: float  # largest difference of logits, relative to the largest
    agreement: float  # percent of images with the same class as torch


class Exporter:
    """Exports sub-networks of a supernet into a folder, and judges them.

    source: the supernet, or one network that went on training, with weights of its own.
    """

    def __init__(self, source: Trainable, data: Data, folder: Path) -> None:
        self.source, self.data, self.folder = source, data, folder
        self._plain: dict[Architecture, SubNetwork] = {}
        self._logits: dict[tuple[Architecture, Split], Logits] = {}
        self._calibration: dict[int, NDArray[np.float32]] = {}

    def plain(self, arch: Architecture) -> SubNetwork:
        """The network in torch, fp32: recalibrated, batch norm folded."""
        if arch not in self._plain:
            self._plain[arch] = specialised(self.source, arch, self.data)
        return self._plain[arch]

    def convert(self, arch: Architecture, device: Device) -> Files:
        """The files of a sub-network; a quantised one is calibrated on the calibration images."""
        images = self._calibration_images(arch.resolution) if device.precision == "int8" else None
        return device.convert_keeping(self.plain(arch), image_shape(arch), images)

    def export(self, name: str, arch: Architecture, device: Device) -> Export:
        """Write the files of a sub-network to the folder `name`. Raises UnwritableOutput."""
        stem = f"{device.name.partition('@')[0]}-{device.precision}"
        files = []
        for suffix, content in self.convert(arch, device).items():
            path = self.folder / name / f"{stem}{suffix}"
            write_atomically(path, content)
            files.append(File(f"{name}/{path.name}", len(content), sha256(path)))
        runtime = str(device.describe()["runtime"])
        return Export(device.name, device.precision, runtime, files, list(device.kept))

    def export_standalone(self, name: str, arch: Architecture) -> list[File]:
        """Python code and weights that need torch alone, in the folder `name`: checked, then written."""
        found = write_standalone(self.plain(arch), self.folder / name / "network", image_shape(arch))
        return [File(f"{name}/{path.name}", path.stat().st_size, sha256(path)) for path in (found.code, found.weights)]

    def judge(self, arch: Architecture, device: Device, files: Files, split: Split) -> Judged:
        """Top-1 of files in their runtime on all images of a split, and how they differ from torch's fp32."""
        correct = count = same = 0
        difference = largest = 0.0
        batches = self.data.batches(split, arch.resolution)
        for labels, logits in logits_of(device, files, image_shape(arch), batches):
            expected = self._expected(arch, split)[count : count + len(labels)]
            if not np.isfinite(logits).all():
                raise InvalidConfiguration(
                    f"{device.name} {device.precision}: logits are not finite; this runtime computes something else"
                )
            difference = max(difference, float(np.abs(logits - expected).max()))
            largest = max(largest, float(np.abs(expected).max()))
            correct += int((logits.argmax(1) == labels.numpy()).sum())
            same += int((logits.argmax(1) == expected.argmax(1)).sum())
            count += len(labels)
        return Judged(100 * correct / count, difference / largest, 100 * same / count)

    def _expected(self, arch: Architecture, split: Split) -> Logits:
        """torch's logits of a split, in fp32, [images, classes]."""
        if (arch, split) not in self._logits:
            with torch.inference_mode():
                batches = [self.plain(arch)(images).numpy() for images, _ in self.data.batches(split, arch.resolution)]
            self._logits[arch, split] = np.concatenate(batches)
        return self._logits[arch, split]

    def _calibration_images(self, resolution: int) -> NDArray[np.float32]:
        if resolution not in self._calibration:
            images = torch.cat(self.data.calibration(resolution))
            chosen = np.linspace(0, len(images) - 1, min(CALIBRATING, len(images))).round().astype(int)
            self._calibration[resolution] = images[chosen].contiguous().numpy()
        return self._calibration[resolution]


def logits_of(
    device: Device, files: Files, shape: Shape, batches: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Logits]]:
    """Classes and logits [n, classes] of batches of images and classes, one image at a time, `AT_ONCE` side by side."""
    idle: SimpleQueue[Session] = SimpleQueue()
    for _ in range(AT_ONCE):  # here, one after the other: not every runtime loads in several threads
        idle.put(device.load(files, shape))

    def classify(image: Logits) -> Logits:
        session = idle.get()
        try:
            logits: Logits = session(image[None])[0]
        finally:  # else the next image would wait for it for ever
            idle.put(session)
        return logits

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for images, labels in batches:
            yield labels, np.stack(list(pool.map(classify, images.contiguous().numpy())))


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
