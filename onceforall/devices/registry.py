"""Devices by name: ours, and those that others register."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass

from onceforall.devices.device import Device
from onceforall.errors import InvalidConfiguration
from onceforall.registry import Registry

Factory = Callable[[int, str], Device]  # of threads and precision

# Modules are imported when a device of theirs is asked for, and import the runtime's package when one is made.
_HERE = "onceforall.devices."
DEVICES: Registry[Factory] = Registry(
    "device",
    "onceforall.devices",
    {
        "onnxruntime": f"{_HERE}onnxruntime:OnnxRuntimeDevice",
        "torch": f"{_HERE}torch:TorchDevice",
        "torch-compiled": f"{_HERE}torch:CompiledTorchDevice",
        "torch-cuda": f"{_HERE}torch:CudaTorchDevice",
        "torch-cuda-compiled": f"{_HERE}torch:CompiledCudaTorchDevice",
        "openvino": f"{_HERE}openvino:OpenVinoDevice",
        "ncnn": f"{_HERE}ncnn:NcnnDevice",
        "litert": f"{_HERE}litert:LiteRtDevice",
        "litert-builtin": f"{_HERE}litert:LiteRtBuiltinDevice",
        "executorch": f"{_HERE}executorch:ExecuTorchDevice",
    },
)
NAMES = DEVICES.ours


def register(name: str, factory: Factory) -> None:
    """Make a device known to `devices.by_name` and the command line: a Device class, or anything that makes one.

    Raises InvalidConfiguration where the name is taken or cannot be one.
    """
    if not name or "@" in name:
        raise InvalidConfiguration(f"device {name!r}: expected a name without '@' beside {', '.join(names())}")
    DEVICES.register(name, factory)


def names() -> tuple[str, ...]:
    """Every known device: ours, the registered ones, those of installed packages."""
    return DEVICES.names()


def local(name: str, threads: int = 1, precision: str = "fp32") -> Device:
    """The device of this machine called `name`. Raises InvalidConfiguration."""
    make = factory(name)

    def in_precision(precision: str) -> Device:
        device = make(threads, precision)
        device.factory = in_precision
        return device

    return in_precision(precision)


def factory(name: str) -> Factory:
    """What makes the device called `name`. Raises InvalidConfiguration."""
    found = DEVICES.find(name)
    if found is None:
        raise InvalidConfiguration(
            f"device {name!r}: choices are {', '.join(names())}, and RUNTIME@FOLDER to measure elsewhere"
        )
    return found


@dataclass(frozen=True)
class Status:
    """What is known of a device on this machine; `problem` says why it or a precision does not work."""

    name: str
    title: str
    precisions: tuple[str, ...]  # all that it has
    working: tuple[str, ...]  # those that work here
    versions: tuple[str, ...]  # of its packages that are installed
    problem: str = ""


def status() -> list[Status]:
    """Every known device, tried on this machine in each precision."""
    return [_status(name) for name in names()]


def _status(name: str) -> Status:
    try:
        make = factory(name)
        kind: type[Device] = make if isinstance(make, type) else type(make(1, "fp32"))
    except InvalidConfiguration as error:  # of a factory, which alone knows what it makes, or a broken package
        return Status(name, "", (), (), (), str(error))
    problems: dict[str, str] = {}  # by precision
    for precision in kind.precisions:
        try:
            make(1, precision)
        except InvalidConfiguration as error:
            problems[precision] = str(error)
    working = tuple(precision for precision in kind.precisions if precision not in problems)
    versions = []
    for package in kind.packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return Status(name, kind.title, kind.precisions, working, tuple(versions), next(iter(problems.values()), ""))
