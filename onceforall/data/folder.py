"""Pictures in folders, one folder a class: ImageNet's layout."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onceforall.data.pictures import PictureData, rgb
from onceforall.errors import DataUnavailable

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff")
TEST_FOLDERS = ("val", "valid", "validation", "test")


class ImageFolder:
    """The pictures below `root`, whose folders are the classes: sorted by name, they are class 0, 1, ...

    A class has the picture files anywhere below its folder; hidden files and folders (".name") are
    left out. Pictures are sorted by class, then by file. Held-out pictures are every tenth (or so),
    and counting runs through from class to class: a class gives its tenth, rounded up or down. Where
    classes have fewer than ten pictures, some give one and others none, and a class of one picture may
    be held out whole.

    * root: the folder.
    * classes: names of the classes.
    * files: paths relative to `root`, with slashes.
    * labels: class of each file, [n] int64.

    Raises DataUnavailable where there is no such folder, no class folder, or none of a class's pictures.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.classes = _folders(self.root)
        if not self.classes:
            raise DataUnavailable(f"{root} holds no class folders: it needs one folder of pictures a class")
        files: list[str] = []
        counts = []
        for name in self.classes:
            found = sorted(_pictures(self.root, name))
            if not found:
                raise DataUnavailable(
                    f"{self.root / name}: no pictures ({', '.join(EXTENSIONS)}): fill or remove this class folder"
                )
            files += found
            counts.append(len(found))
        self.files = tuple(files)
        self.labels: NDArray[np.int64] = np.repeat(np.arange(len(counts)), counts)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        with Image.open(self.root / self.files[index]) as picture:
            return rgb(picture), int(self.labels[index])

    def part(self, chosen: NDArray[np.bool_]) -> ImageFolder:
        """The pictures where `chosen`, [n], is true; the classes stay."""
        part = copy.copy(self)
        part.files = tuple(self.files[index] for index in np.flatnonzero(chosen))
        part.labels = self.labels[chosen]
        return part


def image_folder(path: str | Path, workers: int | None = None) -> PictureData:
    """The data set in a folder; `workers` as in `PictureData`.

    It holds train/ and one of val/, valid/, validation/, test/ (the first of these that is there is the test
    set, others are not looked at), each with the same class folders. Or it holds the class folders
    themselves: then every tenth picture (index 9, 19, ... sorted by class, then by file) is the test
    set, and the others are the training set, whose splits see nothing of them.

    Raises DataUnavailable as `ImageFolder` does, for fewer than two classes, for classes that train/ or
    the test set lacks, and for a train/ of class folders without a test set.
    """
    path = Path(path)
    name = f"folder:{path.resolve().name}"
    tests = [path / folder for folder in TEST_FOLDERS if (path / folder).is_dir()]
    if (path / "train").is_dir() and tests:
        train, test = ImageFolder(path / "train"), ImageFolder(tests[0])
        _check_equal(train, test)
    else:
        _check_no_split(path)
        whole = ImageFolder(path)
        held_out = np.arange(len(whole)) % 10 == 9
        train, test = whole.part(~held_out), whole.part(held_out)
    if len(train.classes) < 2:
        raise DataUnavailable(
            f"{train.root} holds one class folder ({train.classes[0]}), which leaves nothing to tell apart: give a "
            f"folder of class folders, or one of train/ and {'/ or '.join(TEST_FOLDERS)}/"
        )
    return PictureData(name, train, test, len(train.classes), workers=workers)


def _check_no_split(path: Path) -> None:
    """Raises DataUnavailable where train/ holds folders alone: it is no class, and the test set has another name."""
    train = path / "train"
    if train.is_dir() and _folders(train) and not any(entry.is_file() for entry in os.scandir(train)):
        raise DataUnavailable(
            f"{path} holds train/ with folders in it, and no test set: name that one {'/ or '.join(TEST_FOLDERS)}/"
        )


def _check_equal(train: ImageFolder, test: ImageFolder) -> None:
    only = {
        folder.root: [name for name in folder.classes if name not in set(other.classes)]
        for folder, other in ((train, test), (test, train))
    }
    problems = [
        f"only {root} has {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        for root, names in only.items()
        if names
    ]
    if problems:
        raise DataUnavailable(f"the classes of training and test set differ: {'; '.join(problems)}")


def _folders(root: Path) -> tuple[str, ...]:
    """Names of the folders in `root`, sorted."""
    try:
        with os.scandir(root) as entries:
            return tuple(sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")))
    except OSError as error:
        raise DataUnavailable(f"{root} cannot be read as a folder of class folders: {error.strerror}") from error


def _pictures(root: Path, name: str) -> Iterator[str]:
    """Picture files anywhere below the folder `name` of `root`, relative to `root`; links are followed."""

    def refuse(error: OSError) -> None:
        raise DataUnavailable(f"{error.filename} cannot be read: {error.strerror}") from error

    start = len(os.path.join(root, ""))
    for folder, folders, files in os.walk(os.path.join(root, name), followlinks=True, onerror=refuse):
        folders[:] = [inner for inner in folders if not inner.startswith(".")]
        below = folder[start:].replace(os.sep, "/")
        for file in files:
            if file.lower().endswith(EXTENSIONS) and not file.startswith("."):
                yield f"{below}/{file}"
