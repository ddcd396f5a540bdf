"""Runtimes that can time and run a network, one file each."""

from onceforall.devices.device import Device, Session
from onceforall.devices.registry import NAMES, Status, local, names, register, status

__all__ = ["NAMES", "Device", "Session", "Status", "by_name", "names", "register", "status"]


def by_name(name: str, threads: int = 1, precision: str = "fp32") -> Device:
    """The device called `name`, or `name@FOLDER`: that runtime on another machine, by a plan in the folder.

    Raises InvalidConfiguration where it is not known, not installed or not possible with these settings.
    """
    runtime, remote, folder = name.partition("@")
    if remote:
        from onceforall.devices.remote import RemoteDevice

        return RemoteDevice(folder, runtime, threads, precision)
    return local(name, threads, precision)
