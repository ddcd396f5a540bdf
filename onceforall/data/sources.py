"""Data sets by the text that a command or a script names them with."""

from __future__ import annotations

from pathlib import Path

from onceforall.data.cifar10 import cifar10
from onceforall.data.dataset import Data, Notify
from onceforall.data.folder import image_folder
from onceforall.errors import InvalidConfiguration


def lasting(text: str) -> str:
    """The text that names the same data from wherever it is used: folders in full."""
    name, colon, folder = text.partition(":")
    if name == "cifar10":
        return f"{name}{colon}{Path(folder).resolve()}" if folder else name
    return str(Path(text).resolve())


def open_data(text: str, notify: Notify = lambda message: None, workers: int | None = None) -> Data:
    """The data set that `text` names: "cifar10", "cifar10:FOLDER", or a folder of pictures (`image_folder`).

    `notify` receives one line on what takes long; `workers` decode pictures in files (`PictureData`).
    A folder that is itself called cifar10 is ./cifar10. Raises InvalidConfiguration for any other text,
    DataUnavailable where there is no such data.
    """
    name, _, folder = text.partition(":")
    if name == "cifar10":
        return cifar10(folder or None, notify)
    if not text or not Path(text).is_dir():
        raise InvalidConfiguration(
            f"data {text!r}: expected cifar10, cifar10:FOLDER with the official binary batches, or a folder that "
            "exists: with one folder of pictures a class, or with train/ and val/ of such folders"
        )
    notify(f"{text}: looking for pictures")
    return image_folder(text, workers, notify)
