"""What a disk and a system do to a program that writes: stand-ins for functions of `os`."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass
class FullDisk:
    """For `os.fsync`: the disk is full when `left` files more were written."""

    left: int

    def __call__(self, file: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")


class Killed:
    """For `os.replace`: a kill when so many files have moved; files written beside their place do not count."""

    def __init__(self, moves: int) -> None:
        self.moves, self.replace = moves, os.replace

    def __call__(self, source: Path, target: Path) -> None:
        if not source.name.endswith(".part"):
            self.moves -= 1
            if self.moves < 0:
                raise KeyboardInterrupt
        self.replace(source, target)
