"""Training on pictures: worker processes decode, crop and colour them; the device normalises (`PictureData`)."""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from onceforall.data.augment import augment_picture, centre_crop
from onceforall.data.batches import Batch
from onceforall.data.dataset import BATCH, Classified, Split, normalise, split_positions
from onceforall.errors import DataUnavailable, InvalidConfiguration, OFAError
from onceforall.sizes import Size, height_width

MOST_WORKERS = 8

# Pictures that one worker decodes in one go: long enough (20 ms and more) to make sending them cheap, short
# enough that all workers share one batch and little lies decoded beyond it.
CHUNK = 16


class Pictures(Protocol):
    """Any map-style data set of pictures and their classes, torchvision's among them.

    One that also has `files` and `labels`, a name and a class for each position, is described by them
    (`ImageFolder` has both).
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Image.Image, int]: ...


Augment = Callable[[Image.Image, Size, np.random.Generator], Image.Image]


def rgb(picture: Image.Image) -> Image.Image:
    """A picture of any mode, decoded, in RGB: transparency is dropped, 16 bits of grey become 8."""
    if picture.mode == "RGB":
        picture.load()
        return picture
    if picture.mode.startswith("I"):
        # Pillow would cut off at 255, and most of the picture would be white.
        return Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # else Pillow warns
    return picture.convert("RGB")


@dataclass(frozen=True, eq=False)
class PictureData(Classified):
    """Pictures for training and for the test, decoded anew each time that they are needed and were not kept.

    `split_positions` says which training pictures train, calibrate and label; the test set is the test
    split and selects nothing. `augment(picture, resolution, rng)` makes an RGB picture of resolution x
    resolution px out of an RGB picture; all its randomness comes from `rng`. What comes out does not
    depend on `workers`, the number of decoding processes (None: the processor's cores, at most 8; 0:
    decode in this process).

    On Linux workers are forked: they start in 0.1 s, share the file names, and need neither
    `if __name__ == "__main__"` in a script nor pictures and augmentation that can be pickled. Elsewhere,
    and with the `start_method` "forkserver" or "spawn", they do. Choose one of these where decoding or
    augmentation uses a library with threads of its own, which a fork does not survive. What is decoded
    ahead, one batch and a little more, lies in shared memory, 0.15 MB a picture of 224 px: a Docker
    container with large batches needs --shm-size or --ipc=host.
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
    start_method: Literal["fork", "forkserver", "spawn"] | None = None
    _prepared: dict[tuple[Split, Size], tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    dtype = torch.uint8

    def __post_init__(self) -> None:
        if not len(self.test):
            raise InvalidConfiguration(f"{self.name}: no test pictures")
        for value, least in (("num_classes", 1), ("calibration_images", 1), ("workers", 0)):
            given = getattr(self, value)
            if given is not None and given < least:
                raise InvalidConfiguration(f"{value} {given}: at least {least}")
        split_positions(len(self.train))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, where the pictures have such."""
        return tuple(getattr(self.train, "classes", ()))

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
        for images, labels in self._decoded(self.train, works, self.augment, device):
            yield self._normalised(images), labels

    def batches(self, split: Split, resolution: Size, batch_size: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
        """As in `Data`: the centres of the pictures, on the processor. Raises as `training` does."""
        for images, labels in super().batches(split, resolution, batch_size):
            yield self._normalised(images), labels

    def _made(self, split: Split, resolution: Size, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        positions = self.positions[split]
        parts = (positions[start : start + batch_size] for start in range(0, len(positions), batch_size))
        works = (_Work(part, range(len(part)), resolution) for part in parts)
        return self._decoded(self.test if split == "test" else self.train, works, _centre, torch.device("cpu"))

    def _normalised(self, images: Tensor) -> Tensor:
        return normalise(images, self.mean, self.std)

    def _decoded(
        self, source: Pictures, works: Iterator[_Work], change: Augment, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each work its pictures, uint8 [n, 3, resolution, resolution], and their classes, on the device."""
        first = next(works, None)
        if first is None:
            return
        chunks = itertools.chain.from_iterable(map(_Work.chunks, itertools.chain([first], works)))
        loader = self._loader(_Decoder(source, change, self.num_classes), chunks, len(first.positions), device)
        with warnings.catch_warnings():
            # From Python 3.12 on; why it is safe here is said in `_loader`.
            warnings.filterwarnings("ignore", r"This process .* is multi-threaded", DeprecationWarning)
            decoded = iter(loader)
        try:
            for found in decoded:
                if isinstance(found, OFAError):
                    raise found
                pixels, classes, start, total = found
                if start == 0:
                    images = torch.empty((total, *pixels.shape[1:]), dtype=torch.uint8, device=device)
                    labels: list[int] = []
                # Copied at once, which frees the memory that workers share.
                images[start : start + len(pixels)].copy_(pixels, non_blocking=True)
                labels += classes
                if len(labels) == total:
                    yield images.permute(0, 3, 1, 2), torch.tensor(labels, dtype=torch.int64).to(device)
        finally:
            del decoded  # the only reference, and its end is that of the workers; a traceback would keep it alive

    def _loader(
        self, decoder: _Decoder, chunks: Iterator[_Work], ahead: int, device: torch.device
    ) -> DataLoader[_Found]:
        """Chunks in order, `ahead` pictures and a few more decoded before they are asked for."""
        workers = min(_cores(), MOST_WORKERS) if self.workers is None else self.workers
        options: dict[str, Any] = {}
        if workers:
            # Torch limits each worker to one thread of its own before anything else is done there: the
            # forked child never waits for threads of the parent that did not come with it. 300 starts beside
            # a thread that trained all the time took 0.12 s each, none hung; "forkserver" took 0.15 s each,
            # 4 s the first time, "spawn" 4 s each.
            method = self.start_method or ("fork" if sys.platform == "linux" else None)
            options = {"multiprocessing_context": method, "prefetch_factor": -(-ahead // (CHUNK * workers)) + 1}
        return DataLoader(
            decoder,
            batch_size=None,
            sampler=chunks,
            num_workers=workers,
            collate_fn=_unchanged,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # what it draws for the workers is not used: leave the global one alone
            **options,
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


_Found = tuple[Tensor, list[int], int, int] | OFAError


@dataclass(frozen=True)
class _Decoder(Dataset[_Found]):
    """What runs in the workers: `decoder[work]` is its pixels [n, resolution, resolution, 3], classes, start and total.

    An error of ours is returned, not raised: torch would make a worker's traceback its message.
    """

    source: Pictures
    change: Augment
    num_classes: int

    def __getitem__(self, work: _Work) -> _Found:
        height, width = height_width(work.resolution)
        pixels, labels = np.empty((len(work.positions), height, width, 3), np.uint8), []
        try:
            for index, (position, place) in enumerate(zip(work.positions.tolist(), work.places, strict=True)):
                picture, label = self._read(position)
                picture = self.change(picture, work.resolution, np.random.default_rng([work.seed, place]))
                if picture.size != (width, height):
                    given = f"{picture.width} x {picture.height}"
                    raise InvalidConfiguration(f"augmentation made a picture of {given} px, not {width} x {height}")
                pixels[index] = np.asarray(rgb(picture))
                labels.append(label)
        except OFAError as error:
            return error
        return torch.from_numpy(pixels), labels, work.start, work.total

    def _read(self, position: int) -> tuple[Image.Image, int]:
        try:
            picture, label = self.source[position]
            picture, label = rgb(picture), int(label)
        except Exception as error:  # on damaged files, decoders raise almost anything
            unreadable = DataUnavailable(f"{self._name(position)} cannot be decoded: {error}; replace or remove it")
            unreadable.add_note(traceback.format_exc())  # a cause would not come back from a worker
            raise unreadable from None
        if not 0 <= label < self.num_classes:
            raise DataUnavailable(
                f"{self._name(position)} is of class {label}; with {self.num_classes} classes, 0 to "
                f"{self.num_classes - 1} are allowed"
            )
        return picture, label

    def _name(self, position: int) -> str:
        files = _files(self.source)
        return f"picture {position}" if files is None else str(Path(getattr(self.source, "root", ""), files[position]))


def _centre(picture: Image.Image, resolution: Size, rng: np.random.Generator) -> Image.Image:
    """`centre_crop` in the form of an augmentation; nothing is drawn."""
    return centre_crop(picture, resolution)


def _unchanged(found: Any) -> Any:
    """Keeps torch from turning what a worker sends into something else."""
    return found


def _files(source: Pictures) -> Sequence[str] | None:
    """File names of a data set by position, where it has them."""
    return getattr(source, "files", None)


def _cores() -> int:
    """Cores that this process may use; processes that torchrun started on this machine share them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
