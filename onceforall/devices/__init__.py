"""Runtimes that can time and run a network, one file each."""

from onceforall.devices.device import Device, Session
from onceforall.devices.registry import NAMES, Status, by_name, names, register, status

__all__ = ["NAMES", "Device", "Session", "Status", "by_name", "names", "register", "status"]
