"""What networks are written as: the files of a runtime, Python code, and what others register.

An export may be able to run and time what it wrote, with its `device`. One that is not (Python code, an
array in C, a script for another machine) says why, and so does the manifest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

from onceforall import devices
from onceforall.deploy.manifest import PYTHON
from onceforall.deploy.standalone import write_standalone
from onceforall.devices.device import Device, Images, Shape
from onceforall.errors import InvalidConfiguration
from onceforall.files import write_atomically
from onceforall.nn.network import SubNetwork
from onceforall.registry import Registry


class Export(ABC):
    """One kind of files in one precision.

    Raises InvalidConfiguration for a precision that it does not have.
    """

    name: str
    title: str = ""  # what it is, in a few words
    runtime: str = ""  # what runs the files, with its version where that is known
    precisions: tuple[str, ...] = ("fp32",)
    kept: tuple[int, ...] = ()  # layers that stay in floating point where others are quantised
    device: Device | None = None  # runs and times the files; None where nothing here can
    problem: str = "nothing on this machine runs it"  # why, where there is no device

    def __init__(self, threads: int = 1, precision: str = "fp32") -> None:
        if precision not in self.precisions:
            raise InvalidConfiguration(
                f"precision {precision!r}: choices of export {self.name} are {', '.join(self.precisions)}"
            )
        self.threads, self.precision = threads, precision

    @abstractmethod
    def write(
        self, network: SubNetwork, folder: Path, input_shape: Shape, calibration: Images | None = None
    ) -> Sequence[Path]:
        """Write the files of a plain network, batch norm folded, into a folder: each whole or not at all.

        `calibration` [n, channels, height, width] are images for the ranges of an int8 network. Raises
        UnwritableOutput, and InvalidConfiguration for a network that this export cannot express.
        """


class DeviceExport(Export):
    """The files that a device loads."""

    device: Device

    def __init__(self, device: Device) -> None:
        self.name, self.title, self.device, self.kept = device.name, device.title, device, device.kept
        self.precisions = device.precisions
        super().__init__(device.threads, device.precision)

    @property
    def runtime(self) -> str:  # type: ignore[override]
        """Of another machine this is known when it has measured."""
        return str(self.device.describe()["runtime"])

    def write(
        self, network: SubNetwork, folder: Path, input_shape: Shape, calibration: Images | None = None
    ) -> Sequence[Path]:
        files = self.device.convert_keeping(network, input_shape, calibration)
        paths = [folder / f"{self.name.partition('@')[0]}-{self.precision}{suffix}" for suffix in files]
        for path, content in zip(paths, files.values(), strict=True):
            write_atomically(path, content)
        return paths


class PythonExport(Export):
    """Python code and weights that need torch and safetensors alone, nothing of this package."""

    name = PYTHON
    title = "Python code and weights for torch alone"
    runtime = "torch"
    problem = "its outputs were compared with torch's as it was written; it is not timed"

    def write(
        self, network: SubNetwork, folder: Path, input_shape: Shape, calibration: Images | None = None
    ) -> Sequence[Path]:
        found = write_standalone(network, folder / "network", input_shape)
        return [found.code, found.weights]


Factory = Callable[[int, str], Export]  # of threads and precision

# What people call the files, and the runtime that they are verified in.
FORMATS = {"onnx": "onnxruntime", "tflite": "litert", "pte": "executorch", "pt2": "torch", "ir": "openvino"}

EXPORTS: Registry[Factory] = Registry("export", "onceforall.exports", {PYTHON: PythonExport})  # beside the devices'


def register(name: str, factory: Factory) -> None:
    """Make an export known to `by_name` and the command line: an Export class, or anything that makes one.

    Raises InvalidConfiguration where the name is taken or cannot be one.
    """
    if not name or {"@", ":"} & set(name) or name in (*FORMATS, *devices.names()):
        raise InvalidConfiguration(f"export {name!r}: expected a name without '@' and ':', of no device and no format")
    EXPORTS.register(name, factory)


def names() -> tuple[str, ...]:
    """Every known export: those of the devices, their formats, and those that need no device."""
    return (*devices.names(), *FORMATS, *EXPORTS.names())


def by_name(name: str, threads: int = 1, precision: str = "fp32") -> Export:
    """The export called `name`: a device's, a file format's, or a registered one. Raises InvalidConfiguration."""
    factory = EXPORTS.find(name)
    if factory is not None:
        return factory(threads, precision)
    runtime = FORMATS.get(name, name)
    if "@" not in runtime and runtime not in devices.names():
        raise InvalidConfiguration(f"export {name!r}: choices are {', '.join(names())}")
    return DeviceExport(devices.by_name(runtime, threads, precision))


def parse(text: str, threads: int = 1) -> Export:
    """An export as people write it, NAME or NAME:PRECISION. Raises InvalidConfiguration."""
    name, _, precision = text.partition(":")
    return by_name(name, threads, precision or "fp32")
