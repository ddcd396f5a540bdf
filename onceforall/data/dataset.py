"""Labelled images with fixed splits: what every data set gives (`Data`), and one that lives in memory (`ImageData`)."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from onceforall.checks import check_integer, expect, is_number, is_positive
from onceforall.data.augment import flip_and_shift
from onceforall.data.batches import Batch
from onceforall.errors import InvalidConfiguration
from onceforall.sizes import Size, height_width

Split = Literal["train", "calibrate", "label", "test"]
SPLITS: tuple[Split, ...] = ("train", "calibrate", "label", "test")

Notify = Callable[[str], None]

CALIBRATION_IMAGES = 2000
LABEL_IMAGES = 10_000
FEWEST_IMAGES = 20
BATCH = 250  # images


def kept_bytes() -> int:
    """Bytes of images that a data set keeps for the next call: an eighth of the memory, from 384 MiB to 2 GiB.

    2 GiB hold 10,000 pictures of 224 px. The memory is the machine's, or that of the container around this
    process; processes that torchrun started on this machine share it.
    """
    found = []
    with contextlib.suppress(AttributeError, OSError, ValueError):  # not every system says it
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    share = min(found, default=0) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) // 8
    return min(max(share, 384 << 20), 2 << 30)


KEPT_BYTES = kept_bytes()


class Data(Protocol):
    """What training, labelling and specialisation ask of a data set.

    `ImageData` (tensors in memory) and `PictureData` (pictures decoded by worker processes) have it;
    so may a class of your own. Images are normalised float tensors [n, 3, height, width], both
    as the resolution says.
    What else a batch holds, its targets, is said by the data set's attribute `task`
    (`onceforall/tasks/`). Without one the task is classification: targets are classes, int64 [n], and
    the data set has `num_classes`. A method `check()`, where there is one, is called before a run begins,
    and raises where an image could not be read.
    """

    @property
    def name(self) -> str: ...

    def size(self, split: Split) -> int:
        """Number of images of a split."""

    def describe(self) -> dict[str, Any]:
        """JSON that tells this data set and its splits from any other; written into every result."""

    def held_out(self) -> dict[str, Any]:
        """JSON that names each label and calibration image; written into every run."""

    def training(self, plan: Iterable[Batch], device: torch.device) -> Iterator[tuple[Tensor, Any]]:
        """For each batch of the plan its part, augmented, on the device: images and targets."""

    def batches(self, split: Split, resolution: Size, batch_size: int = BATCH) -> Iterator[tuple[Tensor, Any]]:
        """Batches of a split without augmentation, in order, on the processor: images and targets."""

    def calibration(self, resolution: Size, batch_size: int = BATCH) -> list[Tensor]:
        """The images of the split "calibrate", in batches: they set batch-norm statistics at a resolution."""


def split_positions(
    count: int, calibration_images: int = CALIBRATION_IMAGES, spread: bool = False, sparse: bool = False
) -> dict[Split, NDArray[np.int64]]:
    """The splits of `count` training images; they depend on nothing but an image's position.

    * label: every tenth image (positions 9, 19, ...), or so many times fewer that there are at most
      10,000. Held out from training; measures sub-networks for the accuracy predictor.
    * train: all others.
    * calibrate: training images that set batch-norm statistics. Every twentieth image (0, 20, ...), the first
      `calibration_images` of them, or with `spread` as many from first to last, for images that are sorted by
      class. Where every twentieth is too few, `calibration_images` of the training images, evenly spread, or
      all of them; with `sparse` every twentieth even then, as version 0.1.0 had it.

    Raises InvalidConfiguration for fewer than 20 images.
    """
    if count < FEWEST_IMAGES:
        raise InvalidConfiguration(f"{count} training images: at least {FEWEST_IMAGES} are needed")
    every = _label_period(count)
    positions = np.arange(count)
    label = positions % every == every - 1
    train, calibrate = positions[~label], positions[::20]
    if len(calibrate) < calibration_images and not sparse:
        calibrate = _spread(train, calibration_images)
    elif spread:
        calibrate = _spread(calibrate, calibration_images)
    return {"train": train, "calibrate": calibrate[:calibration_images], "label": positions[label]}


def split_rule(
    count: int, calibration_images: int = CALIBRATION_IMAGES, spread: bool = False, sparse: bool = False
) -> str:
    """`split_positions` in words."""
    every = _label_period(count)
    calibrate = f"{calibration_images}, evenly spread," if spread else f"the first {calibration_images}"
    calibrate += " with p % 20 == 0"
    if -(-count // 20) < calibration_images and not sparse:
        few = calibration_images < count - count // every
        calibrate = f"{calibration_images} of train, evenly spread" if few else "all of train"
    return (
        f"training position p: label if p % {every} == {every - 1}, else train; calibrate: {calibrate}; "
        "test: the test set"
    )


def identity(data: Data) -> dict[str, Any]:
    """JSON by which results know their data again: `describe`, names of the classes, a digest of the content.

    The last two as far as the data set has them (`classes`, `digest`).
    """
    classes, digest = getattr(data, "classes", ()), getattr(data, "digest", None)
    named = {"class_names": list(classes)} if classes else {}
    return data.describe() | named | ({"digest": digest} if digest else {})


def completed(theirs: Any, ours: Mapping[str, Any]) -> Any:
    """The identity that a file holds, which may be of a version that said less: with what only `ours` says."""
    known = {key: ours[key] for key in ("class_names", "digest") if key in ours}
    return {**known, **theirs} if isinstance(theirs, Mapping) else theirs


def _spread(positions: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`count` of the positions from first to last, all where they are fewer."""
    count = min(count, len(positions))
    return positions[np.arange(count) * len(positions) // count]


def as_described(data: Data, described: Any) -> Data:
    """The data set with the splits of its description in a file, which an earlier version may have written.

    Where no such splits are known it is the data set itself, and the description remains another.
    """
    if not isinstance(data, Classified) or not isinstance(described, dict) or _same_splits(data, described):
        return data
    older: Any = replace(cast(Any, data), sparse=True)
    return cast(Data, older if _same_splits(older, described) else data)


def _same_splits(data: Classified, described: Mapping[str, Any]) -> bool:
    own = Classified.describe(data)  # without checksums of names, which take long for many files
    return all(described.get(key) == own[key] for key in ("splits", "rule"))


def described_input(data: Data) -> dict[str, Any]:
    """JSON of what a network for these data takes and gives, as far as the data set knows it."""
    found = {name: list(getattr(data, name)) for name in ("mean", "std", "classes") if hasattr(data, name)}
    return {"shape": "[1, 3, resolution, resolution]", "pixels": "(value / 255 - mean) / std, RGB", **found}


def normalise(images: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Tensor:
    """Pixels 0 to 255, [n, 3, h, w] -> normalised float, channels last; `mean` and `std` are of pixels 0 to 1."""
    means, stds = (torch.tensor(values, device=images.device).view(3, 1, 1) * 255 for values in (mean, std))
    return ((images.float() - means) / stds).contiguous(memory_format=torch.channels_last)


def _label_period(count: int) -> int:
    """Even, so that no calibration image is a label image."""
    return 10 * max(1, -(-count // (10 * LABEL_IMAGES)))


class Classified(ABC):
    """What data sets of classes share: fixed splits, and images of a split that are kept for the next call."""

    name: str
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    sparse: bool  # as in `split_positions`: files of version 0.1.0 need it (`as_described`)
    _prepared: dict[tuple[Split, Size], tuple[Tensor, Tensor]]  # images and their classes, the newest last
    dtype: ClassVar[torch.dtype]  # of the images that are kept

    def __post_init__(self) -> None:
        """Raises InvalidConfiguration for what would fail, or be left out in silence, in the middle of a run."""
        object.__setattr__(self, "_prepared", {})  # what `replace` hands on is of other images
        tests, images, *_ = self._counts
        if not tests:
            raise InvalidConfiguration(f"{self.name}: no test images")
        split_positions(images)
        check_integer("num_classes", self.num_classes, 1)
        names: tuple[str, ...] = getattr(self, "classes", ())
        if names and len(names) != self.num_classes:
            raise InvalidConfiguration(f"{self.name}: {len(names)} names of classes for {self.num_classes} classes")
        for what, values, right, allowed in (
            ("mean", self.mean, lambda value: is_number(value) and 0 <= value <= 1, "numbers from 0 to 1"),
            ("std", self.std, is_positive, "finite numbers above 0"),
        ):
            of_pixels = isinstance(values, tuple | list) and len(values) == 3 and all(map(right, values))
            expect(what, values, of_pixels, f"three {allowed}, of pixels from 0 to 1")

    def _check_labels(self, split: str, labels: NDArray[np.int64]) -> None:
        """Raises InvalidConfiguration for classes out of range."""
        wrong = np.flatnonzero((labels < 0) | (labels >= self.num_classes))
        if len(wrong):
            raise InvalidConfiguration(
                f"{self.name}: {split} image {wrong[0]} is of class {labels[wrong[0]]}, and {len(wrong) - 1} more are "
                f"out of range; with {self.num_classes} classes, 0 to {self.num_classes - 1} are allowed"
            )

    @property
    @abstractmethod
    def digest(self) -> str | None:
        """SHA-256 of the images and all that a network is given with them, or None where they are not known."""

    @property
    @abstractmethod
    def _counts(self) -> tuple[int, int, int, bool]:
        """Test images; then training and calibration images and `spread`, as `split_positions` takes them."""

    @abstractmethod
    def _made(self, split: Split, resolution: Size, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images [n, 3, height, width] of `dtype` and their classes, read or computed anew."""

    @cached_property
    def positions(self) -> dict[Split, NDArray[np.int64]]:
        """Positions of each split: in the test set for "test", in the training set for the others."""
        return split_positions(*self._counts[1:], self.sparse) | {"test": np.arange(self._counts[0])}

    def size(self, split: Split) -> int:
        """Number of images of a split."""
        return len(self.positions[split])

    def describe(self) -> dict[str, Any]:
        """The splits as they are written into every result."""
        splits = {split: self.size(split) for split in SPLITS}
        return {"name": self.name, "splits": splits, "rule": split_rule(*self._counts[1:], self.sparse)}

    def held_out(self) -> dict[str, Any]:
        """Positions in the training set of the label and calibration images."""
        return {split: self.positions[split].tolist() for split in ("label", "calibrate")}

    def batches(self, split: Split, resolution: Size, batch_size: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
        """As in `Data`; a split too large to be kept is made on the way."""
        if self._bytes(split, resolution) > KEPT_BYTES:
            yield from self._made(split, resolution, batch_size)
        else:
            yield from zip(*(tensor.split(batch_size) for tensor in self._whole(split, resolution)), strict=True)

    def calibration(self, resolution: Size, batch_size: int = BATCH) -> list[Tensor]:
        """As in `Data`."""
        return [images for images, _ in self.batches("calibrate", resolution, batch_size)]

    def _bytes(self, split: Split, resolution: Size) -> int:
        return self.size(split) * 3 * math.prod(height_width(resolution)) * self.dtype.itemsize

    def _whole(self, split: Split, resolution: Size) -> tuple[Tensor, Tensor]:
        """A split, kept for the next call as far as `KEPT_BYTES` go, those asked for longest ago making room."""
        key, size, kept = (split, resolution), self._bytes(split, resolution), self._prepared
        found = kept.pop(key, None)
        if found is None:
            while kept and size + sum(images.nbytes for images, _ in kept.values()) > KEPT_BYTES:
                del kept[next(iter(kept))]
            with torch.inference_mode(False):  # what is kept must be fit for training, too
                shape = (self.size(split), 3, *height_width(resolution))
                images = torch.empty(shape, dtype=self.dtype, memory_format=torch.channels_last)
                classes = []
                for place, (made, labels) in zip(images.split(BATCH), self._made(*key, BATCH), strict=True):
                    place.copy_(made)
                    classes.append(labels)
                found = images, torch.cat(classes)
        if size <= KEPT_BYTES:
            kept[key] = found
        return found


@dataclass(frozen=True, eq=False)
class ImageData(Classified):
    """Images [n, 3, h, w] uint8 and classes [n] int64, for training and for the test.

    `split_positions` says which training images train, calibrate and label; the test set is the test
    split and selects nothing; `spread` and `sparse` are its, for images that may be sorted by class and for
    files of version 0.1.0. `classes`: their names, where known. `mean` and `std` are of pixels from 0 to 1.
    Augmentation mirrors and shifts whole batches on the device.

    Raises InvalidConfiguration for images, classes, mean and std that do not fit.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    spread: bool = True
    classes: tuple[str, ...] = ()
    sparse: bool = False
    _prepared: dict[tuple[Split, Size], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    dtype = torch.float32

    def __post_init__(self) -> None:
        for images, labels in self._sets.values():
            if (
                (images.dtype, images.ndim, images.shape[1:2]) != (torch.uint8, 4, (3,))
                or not all(images.shape[2:])
                or (labels.dtype, labels.shape) != (torch.int64, images.shape[:1])
            ):
                raise InvalidConfiguration(
                    f"{self.name}: images {tuple(images.shape)} {images.dtype}, labels {tuple(labels.shape)} "
                    f"{labels.dtype}: expected uint8 [n, 3, h, w] and n labels int64"
                )
        super().__post_init__()
        for split, (_, labels) in self._sets.items():
            self._check_labels(split, labels.cpu().numpy())

    @property
    def _sets(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {
            "training": (self.train_images, self.train_labels),
            "test": (self.test_images, self.test_labels),
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all images and their classes, how many of these there are, mean and std."""
        found = hashlib.sha256(repr((self.num_classes, *map(float, (*self.mean, *self.std)))).encode())
        for tensor in itertools.chain.from_iterable(self._sets.values()):
            found.update(f"{tuple(tensor.shape)}".encode())
            found.update(tensor.contiguous().cpu().numpy().data)
        return found.hexdigest()

    @property
    def _counts(self) -> tuple[int, int, int, bool]:
        return len(self.test_images), len(self.train_images), CALIBRATION_IMAGES, self.spread

    @property
    def indices(self) -> dict[Split, Tensor]:
        """`positions` as tensors."""
        return {split: torch.from_numpy(positions) for split, positions in self.positions.items()}

    def training(self, plan: Iterable[Batch], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """As in `Data`: mirrored and shifted on the device, which keeps all training images."""
        images, labels = self.train_images[self.positions["train"]].to(device), self.labels("train").to(device)
        for batch in plan:
            chosen = torch.from_numpy(batch.positions).to(device)
            augmented = flip_and_shift(images[chosen], torch.Generator().manual_seed(batch.seed))
            yield self.prepare(augmented[batch.part], batch.resolution), labels[chosen][batch.part]

    def labels(self, split: Split) -> Tensor:
        """Classes of a split, [n] int64."""
        source = self.test_labels if split == "test" else self.train_labels
        return source[self.positions[split]]

    def images(self, split: Split, resolution: Size) -> Tensor:
        """All images of a split, normalised and resized, [n, 3, height, width]; kept as `batches` keeps them."""
        return self._whole(split, resolution)[0]

    def _made(self, split: Split, resolution: Size, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        source = self.test_images if split == "test" else self.train_images
        for chosen, labels in zip(
            self.indices[split].split(batch_size), self.labels(split).split(batch_size), strict=True
        ):
            yield self.prepare(source[chosen], resolution), labels

    def prepare(self, images: Tensor, resolution: Size) -> Tensor:
        """uint8 [n, 3, h, w] -> normalised float [n, 3, height, width], channels last."""
        x = images.float()
        size = height_width(resolution)
        if images.shape[-2:] != size:
            x = F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)
        return normalise(x, self.mean, self.std)
