"""Runtimes that can time and run a network, one file each."""

from onceforall.devices.device import Device
from onceforall.devices.onnxruntime import OnnxRuntimeDevice
from onceforall.errors import InvalidConfiguration

__all__ = ["Device", "OnnxRuntimeDevice", "by_name"]


def by_name(name: str, threads: int = 1, precision: str = "fp32") -> Device:
    """The device called `name`. Raises InvalidConfiguration."""
    if name == "onnxruntime":
        return OnnxRuntimeDevice(threads, precision)
    raise InvalidConfiguration(f"device {name!r}: choices are onnxruntime")
