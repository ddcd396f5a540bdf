"""A task: what a network is trained for, and by which number it is judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Score:
    """The number that a network is judged by.

    key: its name in files ("top1"); name, unit: for people ("top-1", "percent"; an empty unit is none).
    """

    key: str
    name: str
    unit: str = ""
    higher_is_better: bool = True

    def text(self, value: float) -> str:
        """A value with its unit, as "61.50 %"."""
        unit = "%" if self.unit == "percent" else self.unit
        return f"{value:.2f} {unit}".rstrip()

    def goal(self, value: float) -> float:
        """What a search maximises: the value, or its negative where lower is better. It is its own inverse."""
        return value if self.higher_is_better else -value


class Task(ABC):
    """Loss, score and chance level of one kind of network, and what a batch of its data is.

    A data set says its task by an attribute `task`. Its batches are pairs of images
    [n, 3, height, width] and targets; what targets are is known to the task alone: by default a
    tensor [n, ...], or a tuple of them. `outputs` below is what the network returns for the images.
    """

    name: str
    score: Score

    # What the log calls the loss without smoothing, mean over the sub-networks of a step.
    loss_name: str = "task_loss"

    @abstractmethod
    def loss(self, outputs: Any, targets: Any, smoothing: float = 0.0) -> Tensor:
        """What training minimises: the mean over the images of a batch, a scalar with a gradient.

        `smoothing`, from 0 to 1, softens targets where that means something for the task. The guard
        against divergence watches the loss without it.
        """

    @abstractmethod
    def evaluate(self, network: nn.Module, batches: Iterable[tuple[Tensor, Any]]) -> float:
        """The score of a network over all batches, which are on the processor; the network may be on any device."""

    @abstractmethod
    def chance(self, data: Any) -> float:
        """The score of a network that has learnt nothing."""

    @abstractmethod
    def chance_loss(self, data: Any) -> float:
        """The loss of such a network: one that comes back to it after learning has diverged."""

    @abstractmethod
    def check(self, net: Any, data: Any) -> None:
        """Raises InvalidConfiguration where a supernet's (or network's) outputs are not what the data ask for."""

    # What a batch is

    def move(self, targets: Any, device: torch.device) -> Any:
        """The targets on a device."""
        return tuple(part.to(device) for part in targets) if isinstance(targets, tuple) else targets.to(device)

    def split(self, targets: Any, size: int) -> list[Any]:
        """The targets of `size` images after the other, as `Tensor.split` cuts the images."""
        if isinstance(targets, tuple):
            return list(zip(*(part.split(size) for part in targets), strict=True))
        return list(targets.split(size))


def device_of(module: nn.Module) -> torch.device:
    """Where a module's tensors are; the processor for one that has none."""
    return next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))
