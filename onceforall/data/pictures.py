"""Training on pictures: worker processes decode, crop and colour them; the device normalises (`PictureData`)."""

from __future__ import annotations

import hashlib
import itertools
import os
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from onceforall.checks import check_integer
from onceforall.data.augment import augment_picture, centre_crop
from onceforall.data.batches import Batch
from onceforall.data.dataset import BATCH, Classified, Split, normalise
from onceforall.data.decoding import Undecodable, decoding, rgb
from onceforall.data.items import Items, class_names
from onceforall.data.workers import StartMethod, work_ahead
from onceforall.errors import DataUnavailable, InvalidConfiguration
from onceforall.sizes import Size, height_width

MOST_WORKERS = 8

# Pictures that one worker decodes in one go: long enough (20 ms and more) to make sending them cheap, short
# enough that all workers share one batch and little lies decoded beyond it.
CHUNK = 16

STAND_INS = 10  # training pictures that are tried in the place of one that cannot be decoded

# What a data set's own code raises by mistake, and a decoder hardly.
MISTAKES = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, TypeError)


class Pictures(Protocol):
    """Any map-style data set of pictures and their classes, such as torchvision's and Hugging Face's.

    `Items` says what an item may be: pairs of PIL image and number, and whatever else has one meaning. One that
    also has `files` and `labels`, a name and a class for each position, is described by them (`ImageFolder` has
    both); its method `undecoded`, where it has one, is asked for items instead, and may leave decoding to
    augmentation (`Undecoded`).
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


R = TypeVar("R")
Augment = Callable[[Image.Image, Size, np.random.Generator], Image.Image]


@dataclass(frozen=True, eq=False)
class PictureData(Classified):
    """Pictures for training and for the test, decoded anew each time that they are needed and were not kept.

    `split_positions` says which training pictures train, calibrate and label; the test set is the test
    split and selects nothing. `augment(picture, resolution, rng)` makes an RGB picture of resolution x
    resolution px out of an RGB picture; all its randomness comes from `rng`. What comes out does not
    depend on `workers`, the number of decoding processes (None: the processor's cores, at most 8; 0:
    decode in this process).

    A picture that is damaged is passed over in training and calibration, with a warning; the next in its split
    stands in for it, so that a run that is resumed does the same. In the label and test split it is an error,
    and `check` finds it before a run begins.

    On Linux workers are forked: they start in 0.1 s, share the file names, and need neither
    `if __name__ == "__main__"` in a script nor pictures and augmentation that can be pickled. Elsewhere,
    and with the `start_method` "forkserver" or "spawn", they do. Choose one of these where decoding or
    augmentation uses a library with threads of its own, which a fork does not survive. What is decoded
    ahead, one batch and a little more, lies in the workers' memory, 0.15 MB a picture of 224 px; shared memory
    is not used.
    """

    name: str
    train: Pictures
    test: Pictures
    num_classes: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    workers: int | None = None
    augment: Augment = augment_picture
    # Calibration has the feature maps of all its images in memory at once, and these images are large:
    # 96 channels of 112 x 112 px, as in a MobileNetV3 at 224 px, take 2.4 GB for 500.
    calibration_images: int = 500
    start_method: StartMethod | None = None
    sparse: bool = False
    _prepared: dict[tuple[Split, Size], tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)
    _passed_over: dict[str, str] = field(default_factory=dict, init=False, repr=False)  # names, and why

    dtype = torch.uint8

    def __post_init__(self) -> None:
        check_integer("calibration_images", self.calibration_images, 1)
        if self.workers is not None:
            check_integer("workers", self.workers, 0)
        super().__post_init__()
        for split, source in (("training", self.train), ("test", self.test)):
            if _files(source) is not None and hasattr(source, "labels"):
                self._check_labels(split, np.asarray(source.labels))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, where the pictures have such."""
        return class_names(self.train)

    @property
    def _counts(self) -> tuple[int, int, int, bool]:
        # Spread, because pictures in files are sorted by class more often than not.
        return len(self.test), len(self.train), self.calibration_images, True

    def describe(self) -> dict[str, Any]:
        """Splits, classes and, where pictures have names, a checksum of all names and their classes."""
        files = {} if self._fingerprint is None else {"files_sha256": self._fingerprint}
        return {**super().describe(), "classes": self.num_classes, **files}

    @cached_property
    def _fingerprint(self) -> str | None:
        digest = hashlib.sha256()
        for source in (self.train, self.test):
            files, labels = _files(source), getattr(source, "labels", None)
            if files is None or labels is None:
                return None
            rows = (f"{int(label)}\t{file}\n" for label, file in zip(labels, files, strict=True))
            digest.update("".join(rows).encode(errors="surrogateescape"))
        return digest.hexdigest()

    @cached_property
    def digest(self) -> str | None:
        """SHA-256 of names, classes and sizes (bytes) of all files, mean and std; None where there are no names.

        Raises DataUnavailable for a file that is not there.
        """
        if self._fingerprint is None:
            return None
        found = hashlib.sha256(repr((self._fingerprint, *map(float, (*self.mean, *self.std)))).encode())
        for source in (self.train, self.test):
            for file in _files(source) or ():
                path = os.path.join(getattr(source, "root", ""), file)
                try:
                    found.update(f"{os.stat(path).st_size}\n".encode())
                except OSError as error:
                    raise DataUnavailable(f"{path} cannot be read: {error.strerror}; put it back") from error
        return found.hexdigest()

    def check(self) -> None:
        """Decode what cannot be passed over, the label and test pictures, JPEGs as small as their decoder can.

        Raises DataUnavailable with the names of all that are damaged.
        """
        damaged: dict[str, str] = {}
        for split in ("label", "test"):
            for found in self._in_workers(_Check(self._decoder(split, _centre)), self._works(split, 1, BATCH)):
                damaged.update(found)
        if damaged:
            listed = "; ".join(f"{name} ({reason})" for name, reason in list(damaged.items())[:20])
            raise DataUnavailable(
                f"{len(damaged)} of the label and test pictures cannot be decoded: {listed}"
                f"{'; ...' * (len(damaged) > 20)}. Put whole copies in their place, or take them out of the folder"
            )

    def held_out(self) -> dict[str, Any]:
        """Label and calibration pictures: their files, or where they have no names their positions."""
        files, chosen = _files(self.train), super().held_out()
        return chosen if files is None else {split: [files[p] for p in picked] for split, picked in chosen.items()}

    def training(self, plan: Iterable[Batch], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """As in `Data`. Workers run ahead by a batch; closing the iterator ends them.

        Raises DataUnavailable for a picture that cannot be decoded, with its name.
        """
        positions = self.positions["train"]
        works = (
            _Work(positions[batch.positions[batch.part]], places[batch.part], batch.resolution, batch.seed)
            for batch, places in ((batch, range(len(batch.positions))) for batch in plan)
        )
        for images, labels in self._decoded("train", works, self.augment, device):
            yield self._normalised(images), labels

    def batches(self, split: Split, resolution: Size, batch_size: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
        """As in `Data`: the centres of the pictures, on the processor. Raises as `training` does."""
        for images, labels in super().batches(split, resolution, batch_size):
            yield self._normalised(images), labels

    def _made(self, split: Split, resolution: Size, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self._decoded(split, self._works(split, resolution, batch_size), _centre, torch.device("cpu"))

    def _works(self, split: Split, resolution: Size, batch_size: int) -> Iterator[_Work]:
        positions = self.positions[split]
        parts = (positions[start : start + batch_size] for start in range(0, len(positions), batch_size))
        return (_Work(part, range(len(part)), resolution) for part in parts)

    def _normalised(self, images: Tensor) -> Tensor:
        return normalise(images, self.mean, self.std)

    def _decoded(
        self, split: Split, works: Iterator[_Work], change: Augment, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each work its pictures, uint8 [n, 3, height, width], and their classes, on the device."""
        decoded = self._in_workers(self._decoder(split, change), works)
        try:
            for found in decoded:
                if found.start == 0:
                    shape = (found.total, *found.pixels.shape[1:])
                    images = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
                    labels: list[int] = []
                images.numpy()[found.start : found.start + len(found.pixels)] = found.pixels
                labels += found.labels
                self._say_passed_over(found.passed_over)
                if len(labels) == found.total:
                    classes = torch.tensor(labels, dtype=torch.int64)
                    yield images.permute(0, 3, 1, 2).to(device, non_blocking=True), classes.to(device)
        finally:
            decoded.close()  # a traceback may keep it alive, and its end is that of the workers

    def _decoder(self, split: Split, change: Augment) -> _Decoder:
        source = self.test if split == "test" else self.train
        stand_ins = self.positions[split] if split in ("train", "calibrate") else None
        return _Decoder(source, change, Items(self.num_classes, self.classes), stand_ins)

    def _in_workers(self, function: Callable[[_Work], R], works: Iterator[_Work]) -> Generator[R, None, None]:
        """What the workers make of each piece of the works, in order."""
        first = next(works, None)
        if first is None:
            return
        chunks = itertools.chain.from_iterable(map(_Work.chunks, itertools.chain([first], works)))
        workers = min(_cores(), MOST_WORKERS) if self.workers is None else self.workers
        ahead = len(first.positions) // CHUNK + 2 * workers
        yield from work_ahead(function, chunks, workers, ahead, self.start_method)

    def _say_passed_over(self, names: dict[str, str]) -> None:
        """Warns of training pictures that cannot be decoded. Raises DataUnavailable where they are many."""
        new = {name: reason for name, reason in names.items() if name not in self._passed_over}
        self._passed_over.update(new)
        count = len(self._passed_over)
        if count > max(10, self.size("train") // 100):
            raise DataUnavailable(
                f"{count} of {self.size('train')} training pictures cannot be decoded, "
                f"{', '.join(list(self._passed_over)[:5])} among them: is the folder whole, and its disk there?"
            )
        for name, reason in new.items():
            warnings.warn(
                f"{name} cannot be decoded ({reason}): its neighbour is trained on in its place, as for {count - 1} "
                "others so far; leave it as it is until the run is complete",
                stacklevel=2,
            )


@dataclass(frozen=True)
class _Work:
    """Pictures to decode: positions in their data set, places in their whole batch, which seed the augmentation.

    `start` and `total`: where these are among all that this process has of the batch.
    """

    positions: NDArray[np.int64]
    places: range
    resolution: Size
    seed: int = 0
    start: int = 0
    total: int = 0

    def chunks(self) -> Iterator[_Work]:
        """This work in pieces; even one without pictures is one piece."""
        total = len(self.positions)
        for start in range(0, max(total, 1), CHUNK):
            part = slice(start, start + CHUNK)
            yield replace(self, positions=self.positions[part], places=self.places[part], start=start, total=total)


@dataclass(frozen=True)
class _Found:
    """What became of a work: its place, pixels [n, height, width, 3], classes; what was passed over, and why."""

    start: int
    total: int
    pixels: NDArray[np.uint8]
    labels: list[int]
    passed_over: dict[str, str]


@dataclass(frozen=True)
class _Decoder:
    """What runs in the workers: from a work to its pictures.

    `stand_ins`: positions, sorted, the next of which is taken for a picture that cannot be decoded; None where
    that is an error.
    """

    source: Pictures
    change: Augment
    items: Items
    stand_ins: NDArray[np.int64] | None

    def __call__(self, work: _Work) -> _Found:
        height, width = height_width(work.resolution)
        pixels, labels = np.empty((len(work.positions), height, width, 3), np.uint8), []
        passed_over: dict[str, str] = {}
        for index, (position, place) in enumerate(zip(work.positions.tolist(), work.places, strict=True)):
            picture, label = self._changed(position, work, place, passed_over)
            if picture.size != (width, height):
                given = f"{picture.width} x {picture.height}"
                raise InvalidConfiguration(f"augmentation made a picture of {given} px, not {width} x {height}")
            pixels[index] = np.asarray(rgb(picture))
            labels.append(label)
        return _Found(work.start, work.total, pixels, labels, passed_over)

    def _changed(self, position: int, work: _Work, place: int, passed_over: dict[str, str]) -> tuple[Image.Image, int]:
        """A picture, augmented, and its class, or those of the first stand-in that can be decoded."""
        for candidate in self._candidates(position):
            try:
                picture, label = self.read(candidate)
                return self.change(picture, work.resolution, np.random.default_rng([work.seed, place])), label
            except Undecodable as error:
                name, reason = self.name(candidate), str(error)
                if self.stand_ins is not None:
                    passed_over[name] = reason
        if self.stand_ins is None:
            raise DataUnavailable(f"{name} cannot be decoded: {reason}; put a whole copy of it in its place")
        raise DataUnavailable(
            f"{self.name(position)} and the {STAND_INS} training pictures after it cannot be decoded, the last because "
            f"of {reason}: is the folder whole, and its disk there?"
        )

    def _candidates(self, position: int) -> list[int]:
        if self.stand_ins is None:
            return [position]
        first = int(np.searchsorted(self.stand_ins, position))
        chosen: list[int] = self.stand_ins.take(range(first, first + 1 + STAND_INS), mode="wrap").tolist()
        return chosen

    def read(self, position: int) -> tuple[Image.Image, int]:
        name, ours = self.name(position), hasattr(self.source, "undecoded")
        try:
            with decoding():
                item = self.source.undecoded(position) if ours else self.source[position]  # type: ignore[attr-defined]
        except Undecodable as error:
            cause = error.__cause__
            if isinstance(cause, MISTAKES) and not ours:
                raise InvalidConfiguration(
                    f"reading {name} raised {type(cause).__name__}: {cause}; that is a fault of the data set's own "
                    "code, or of a damaged file"
                ) from error
            if isinstance(cause, OSError) and cause.errno is not None:  # of the system, which may be right next time
                raise DataUnavailable(f"{name} cannot be read: {cause.strerror}; put it back as it was") from error
            raise
        picture, label = self.items.read(item, name)
        if not 0 <= label < self.items.num_classes:
            raise DataUnavailable(
                f"{name} is of class {label}; with {self.items.num_classes} classes, 0 to "
                f"{self.items.num_classes - 1} are allowed"
            )
        return picture, label

    def name(self, position: int) -> str:
        files = _files(self.source)
        return f"picture {position}" if files is None else str(Path(getattr(self.source, "root", ""), files[position]))


@dataclass(frozen=True)
class _Check:
    """What runs in the workers instead, to find damage: from a work to the names of damaged pictures, and why."""

    decoder: _Decoder

    def __call__(self, work: _Work) -> dict[str, str]:
        damaged = {}
        for position in work.positions.tolist():
            try:
                self.decoder.read(position)[0].resize((1, 1))
            except Undecodable as error:
                damaged[self.decoder.name(position)] = str(error)
        return damaged


def _centre(picture: Image.Image, resolution: Size, rng: np.random.Generator) -> Image.Image:
    """`centre_crop` in the form of an augmentation; nothing is drawn."""
    return centre_crop(picture, resolution)


def _files(source: Pictures) -> Sequence[str] | None:
    """File names of a data set by position, where it has them."""
    return getattr(source, "files", None)


def _cores() -> int:
    """Cores that this process may use; processes that torchrun started on this machine share them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
