"""Recipes: what is elastic when, for how long, with which learning rate, teacher and number of sub-networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from onceforall.choices import ELASTIC, Choices
from onceforall.errors import InvalidConfiguration

S = TypeVar("S", bound=Choices)


@dataclass(frozen=True)
class Phase:
    """One stage of a schedule. Resolution is elastic in every phase, one size a batch.

    depths, kernels, expands, width_multipliers: how many of each unit's largest choices are open.
    learning_rate: the peak, after a linear warm-up; it falls to 0 along a cosine.
    subnets: sub-networks whose gradients add up in one step.
    distill: weight of the soft cross entropy with the teacher, the largest network as the first
    phase left it (0: no teacher).
    sort_channels: sort middle channels by importance before the phase begins.
    """

    name: str
    epochs: int
    learning_rate: float
    warmup_epochs: int = 0
    depths: int = 1
    kernels: int = 1
    expands: int = 1
    width_multipliers: int = 1
    subnets: int = 1
    distill: float = 1.0
    sort_channels: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "warmup_epochs"):
            _at_least(f"phase {self.name}: {name}", getattr(self, name), 0)
        for name in (*ELASTIC, "subnets"):
            _at_least(f"phase {self.name}: {name}", getattr(self, name), 1)
        if not self.learning_rate > 0 or self.distill < 0:
            raise InvalidConfiguration(
                f"phase {self.name}: learning_rate {self.learning_rate}, distill {self.distill}: "
                "expected a positive rate and a weight of at least 0"
            )

    def opened(self, space: S) -> S:
        """The sub-space that this phase trains."""
        return space.largest_choices(**{name: getattr(self, name) for name in ELASTIC})


@dataclass(frozen=True)
class Recipe:
    """A schedule with the settings that all its phases share (SGD with Nesterov momentum)."""

    name: str
    phases: tuple[Phase, ...]
    batch_size: int
    momentum: float = 0.9
    weight_decay: float = 3e-5
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        _at_least("batch_size", self.batch_size, 2)
        if not self.phases:
            raise InvalidConfiguration(f"recipe {self.name} has no phases")
        if self.phases[0].distill:
            raise InvalidConfiguration(
                f"recipe {self.name}: distill {self.phases[0].distill} in phase {self.phases[0].name}: the first phase "
                "makes the teacher, so its distill must be 0"
            )

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` makes an equal recipe."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_json`. Raises InvalidConfiguration."""
        try:
            return cls(**{**value, "phases": tuple(Phase(**phase) for phase in value["phases"])})
        except (KeyError, TypeError) as error:
            raise InvalidConfiguration(f"not a recipe: {error}") from error


PAPER_EPOCHS = (180, 125, 25, 125, 25, 125)


def progressive_shrinking(
    epochs: Sequence[int] = PAPER_EPOCHS,
    batch_size: int = 2048,
    weight_decay: float = 3e-5,
    learning_rate_scale: float = 1.0,
) -> Recipe:
    """Progressive shrinking: full, kernel, depth 1, depth 2, width 1, width 2 (paper, section 3.3 and appendix B).

    The defaults are the paper's for ImageNet: 605 epochs, batch 2048. `epochs` gives the length of
    the six phases; learning rates scale with the batch size (and with `learning_rate_scale`), and
    warm-up takes 5 of 180 or 125 epochs, rounded, in the long phases. Width multipliers, which the
    paper's spaces do not have, open with the expand ratios.
    """
    if len(epochs) != 6:
        raise InvalidConfiguration(
            f"epochs {tuple(epochs)}: give six (full, kernel, depth 1, depth 2, width 1, width 2)"
        )
    scale = learning_rate_scale * batch_size / 2048
    full, kernel, depth1, depth2, width1, width2 = epochs

    def warmup(length: int, paper: int) -> int:
        return min(length, round(5 * length / paper))

    opened: dict[str, Any] = {"kernels": 3, "depths": 3, "subnets": 4, "sort_channels": True}
    phases = (
        Phase("full", full, 2.6 * scale, warmup(full, 180), distill=0.0),
        Phase("kernel", kernel, 0.96 * scale, warmup(kernel, 125), kernels=3),
        Phase("depth 1", depth1, 0.08 * scale, kernels=3, depths=2, subnets=2),
        Phase("depth 2", depth2, 0.24 * scale, warmup(depth2, 125), kernels=3, depths=3, subnets=2),
        Phase("width 1", width1, 0.08 * scale, expands=2, width_multipliers=2, **opened),
        Phase("width 2", width2, 0.24 * scale, warmup(width2, 125), expands=3, width_multipliers=4, **opened),
    )
    return Recipe("progressive_shrinking", phases, batch_size, weight_decay=weight_decay)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise InvalidConfiguration(f"{name} {value}: expected at least {least}")
