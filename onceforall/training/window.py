"""What happened since the last log record: losses and speed."""

from __future__ import annotations

import time

import torch
from torch import Tensor


class Window:
    """The losses [2] of the steps since the last record, and how fast they were."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.images = 0
        self.since = time.perf_counter()

    def add(self, losses: Tensor, images: int) -> None:
        self.losses.append(losses)
        self.images += images

    def means(self) -> Tensor:
        return torch.stack(self.losses).mean(0)

    @property
    def speed(self) -> float:
        """Images a second."""
        return self.images / (time.perf_counter() - self.since)
