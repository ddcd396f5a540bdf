"""A labelled image set in memory, its fixed splits, and batches at one resolution."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from onceforall.errors import InvalidConfiguration

Split = Literal["train", "calibrate", "label", "test"]
SPLITS: tuple[Split, ...] = ("train", "calibrate", "label", "test")

CALIBRATION_IMAGES = 2000


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images [n, 3, h, w] uint8 and classes [n] int64, for training and for the test.

    The splits depend on nothing but an image's position in the training set:

    * label: every tenth image (positions 9, 19, ...). Held out from training; measures sub-networks
      for the accuracy predictor.
    * train: all others.
    * calibrate: every twentieth image (0, 20, ...), at most 2,000: training images that set
      batch-norm statistics.
    * test: the test set. It selects nothing.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    _prepared: dict[tuple[Split, int], Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for images, labels in ((self.train_images, self.train_labels), (self.test_images, self.test_labels)):
            if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or len(images) != len(labels):
                raise InvalidConfiguration(
                    f"images {tuple(images.shape)} {images.dtype}, labels {tuple(labels.shape)}: "
                    "expected uint8 [n, 3, h, w] and n labels"
                )
        if len(self.train_images) < 20:
            raise InvalidConfiguration(f"{len(self.train_images)} training images: at least 20 are needed")

    @cached_property
    def indices(self) -> dict[Split, Tensor]:
        """Positions of each split: in the test set for "test", in the training set for the others."""
        positions = torch.arange(len(self.train_images))
        return {
            "train": positions[positions % 10 != 9],
            "calibrate": positions[positions % 20 == 0][:CALIBRATION_IMAGES],
            "label": positions[positions % 10 == 9],
            "test": torch.arange(len(self.test_images)),
        }

    def describe(self) -> dict[str, Any]:
        """The splits as they are written into every result."""
        return {
            "name": self.name,
            "splits": {split: len(self.indices[split]) for split in SPLITS},
            "rule": "training position p: label if p % 10 == 9, else train; calibrate: the first "
            f"{CALIBRATION_IMAGES} with p % 20 == 0; test: the test set",
        }

    def labels(self, split: Split) -> Tensor:
        """Classes of a split, [n] int64."""
        source = self.test_labels if split == "test" else self.train_labels
        return source[self.indices[split]]

    def images(self, split: Split, resolution: int) -> Tensor:
        """All images of a split, normalised and resized, [n, 3, resolution, resolution]; kept for the next call."""
        key = (split, resolution)
        if key not in self._prepared:
            source = self.test_images if split == "test" else self.train_images
            chosen = source[self.indices[split]].split(1000)
            self._prepared[key] = torch.cat([self.prepare(part, resolution) for part in chosen])
        return self._prepared[key]

    def batches(self, split: Split, resolution: int, batch_size: int = 250) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images and their classes, in order."""
        images, labels = self.images(split, resolution), self.labels(split)
        yield from zip(images.split(batch_size), labels.split(batch_size), strict=True)

    def calibration(self, resolution: int, batch_size: int = 250) -> list[Tensor]:
        """The image batches that set batch-norm statistics at a resolution."""
        return list(self.images("calibrate", resolution).split(batch_size))

    def prepare(self, images: Tensor, resolution: int) -> Tensor:
        """uint8 [n, 3, h, w] -> normalised float [n, 3, resolution, resolution], channels last."""
        mean = torch.tensor(self.mean, device=images.device).view(3, 1, 1) * 255
        std = torch.tensor(self.std, device=images.device).view(3, 1, 1) * 255
        x = images.float()
        if images.shape[-2:] != (resolution, resolution):
            x = F.interpolate(x, size=(resolution, resolution), mode="bilinear", antialias=True, align_corners=False)
        return ((x - mean) / std).contiguous(memory_format=torch.channels_last)
