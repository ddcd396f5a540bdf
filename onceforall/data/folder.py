"""Pictures in folders, one folder a class: ImageNet's layout."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onceforall.data.dataset import Notify
from onceforall.data.decoding import rgb, undecoded
from onceforall.data.pictures import PictureData
from onceforall.errors import DataUnavailable

EXTENSIONS: tuple[str, ...] = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".mpo",
    ".png",
    ".apng",
    ".bmp",
    ".dib",
    ".gif",
    ".webp",
)
EXTENSIONS += (".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff", ".jp2", ".tga")
# Read where Pillow can, which for some of these needs a plugin of another package.
OPTIONAL = (".avif", ".heic", ".heif", ".jxl")
# Pictures all the same, as cameras and people keep them.
OTHERS = (
    ".arw",
    ".cr2",
    ".cr3",
    ".dng",
    ".exr",
    ".hdr",
    ".nef",
    ".orf",
    ".psd",
    ".raf",
    ".raw",
    ".rw2",
    ".svg",
    ".xcf",
)
TEST_FOLDERS = ("val", "valid", "validation", "test")


class ImageFolder:
    """The pictures below `root`, whose folders are the classes: sorted by name, they are class 0, 1, ...

    A class has the picture files anywhere below its folder; hidden files and folders (".name") are
    left out. Links are followed, but no folder is walked twice. Pictures are sorted by class, then by file.
    Held-out pictures are every tenth (or so), and counting runs through from class to class: a class gives
    its tenth, rounded up or down. Where classes have fewer than ten pictures, some give one and others none,
    and a class of one picture may be held out whole.

    * root: the folder.
    * classes: names of the classes: those given, any of which may have no pictures here, or those found.
    * files: paths relative to `root`, with slashes.
    * labels: class of each file, [n] int64.

    `notify` receives a line on pictures that are left out because they cannot be read here. Raises DataUnavailable
    where there is no such folder, no class folder, a folder for two classes, a class that is not one of those given,
    or, where none are given, a class without pictures.
    """

    def __init__(self, root: str | Path, classes: Sequence[str] = (), notify: Notify = warnings.warn) -> None:
        self.root = Path(root)
        found = _folders(self.root)
        if not found:
            raise DataUnavailable(f"{root} holds no class folders: it needs one folder of pictures a class")
        self.classes = tuple(classes) or found
        walk = _Walk(self.root, found)
        pictures = [walk.pictures(name) if name in found else [] for name in self.classes]
        for name, inside in zip(self.classes, pictures, strict=True):
            if not inside and not classes:
                raise DataUnavailable(
                    f"{self.root / name}: no pictures ({', '.join(walk.readable)}): fill or remove this class folder"
                )
        self.files = tuple(file for inside in pictures for file in inside)
        self.labels: NDArray[np.int64] = np.repeat(np.arange(len(pictures)), list(map(len, pictures)))
        if walk.left_out:
            notify(
                f"{root}: {len(walk.left_out)} pictures are left out, which cannot be read here "
                f"({_some(walk.left_out)}): convert them to JPEG or PNG, or install what lets Pillow open them "
                "(such as pillow-heif)"
            )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        with Image.open(self.root / self.files[index]) as picture:
            return rgb(picture), int(self.labels[index])

    def undecoded(self, index: int) -> tuple[Image.Image, int]:
        """The same, but a JPEG is decoded when it is used, as far as it is used (`Undecoded`)."""
        path = self.root / self.files[index]
        return undecoded(lambda: Image.open(path)), int(self.labels[index])

    def part(self, chosen: NDArray[np.bool_]) -> ImageFolder:
        """The pictures where `chosen`, [n], is true; the classes stay."""
        part = copy.copy(self)
        part.files = tuple(self.files[index] for index in np.flatnonzero(chosen))
        part.labels = self.labels[chosen]
        return part


def image_folder(path: str | Path, workers: int | None = None, notify: Notify = warnings.warn) -> PictureData:
    """The data set in a folder; `workers` as in `PictureData`, `notify` receives lines on what is missing in it.

    It holds train/ and one of val/, valid/, validation/, test/ (the first of these that is there is the test
    set, others are not looked at), each with class folders; those of train/ are the classes, and the test set may
    lack some. Or it holds the class folders
    themselves: then every tenth picture (index 9, 19, ... sorted by class, then by file) is the test
    set, and the others are the training set, whose splits see nothing of them.

    Raises DataUnavailable as `ImageFolder` does, for fewer than two classes, for classes that train/ lacks, and for
    a train/ of class folders without a test set.
    """
    path = Path(path)
    name = f"folder:{path.resolve().name}"
    tests = [path / folder for folder in TEST_FOLDERS if (path / folder).is_dir()]
    if (path / "train").is_dir() and tests:
        train = ImageFolder(path / "train", notify=notify)
        if unknown := sorted(set(_folders(tests[0])) - set(train.classes)):
            raise DataUnavailable(
                f"{tests[0]} has classes that {train.root} lacks, so that nothing would learn them: {_some(unknown)}"
            )
        test = ImageFolder(tests[0], train.classes, notify)
        if missing := [name for label, name in enumerate(train.classes) if label not in set(test.labels.tolist())]:
            notify(f"{test.root} has no pictures of {_some(missing)}: nothing will be known of how well they are told")
    else:
        _check_no_split(path)
        whole = ImageFolder(path, notify=notify)
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


def _folders(root: Path) -> tuple[str, ...]:
    """Names of the folders in `root`, sorted."""
    try:
        with os.scandir(root) as entries:
            return tuple(sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")))
    except OSError as error:
        raise DataUnavailable(f"{root} cannot be read as a folder of class folders: {error.strerror}") from error


class _Walk:
    """Finds the pictures of each class folder of `root`, `names`; each folder once, by device and inode."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = root
        openable = Image.registered_extensions()
        self.readable = (*EXTENSIONS, *(suffix for suffix in OPTIONAL if suffix in openable))
        self.left_out: list[str] = []
        # A link from one class to another, or to all of them, gives the first no pictures.
        self.seen = {_identity(root): ""}
        for name in names:
            twin = self.seen.setdefault(_identity(root / name), name)
            if twin != name:
                raise DataUnavailable(f"{root / name} is the same folder as {root / twin}: a picture has one class")

    def pictures(self, name: str) -> list[str]:
        """Picture files anywhere below the folder `name` of the root, relative to the root, sorted."""
        found: list[str] = []
        self._walk(name, found)
        return sorted(found)

    def _walk(self, folder: str, found: list[str]) -> None:
        try:
            with os.scandir(self.root / folder) as scanned:
                # Links last, so that a folder keeps its own name.
                entries = sorted(scanned, key=lambda entry: (entry.is_symlink(), entry.name))
        except OSError as error:
            raise DataUnavailable(f"{self.root / folder} cannot be read: {error.strerror}") from error
        for entry in entries:
            path = f"{folder}/{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                identity = _identity(self.root / path)
                if identity not in self.seen:
                    self.seen[identity] = path
                    self._walk(path, found)
            elif entry.name.lower().endswith(self.readable) and entry.is_file():
                found.append(path)
            elif entry.name.lower().endswith((*self.readable, *OPTIONAL, *OTHERS)):  # pipes and broken links, too
                self.left_out.append(path)


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
