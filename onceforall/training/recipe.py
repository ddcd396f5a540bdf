"""Recipes: what is elastic when, for how long, with which learning rate, sub-networks, teacher and loss.

A recipe is a value made of phases. The functions return the named ones; each says what it claims.
`epochs` is the one number that scales a schedule, learning rates are the paper's for a batch of
2,048 images and scale with the batch size (and `learning_rate_scale`), and `settings` are those of
`Recipe`: weight_decay, clip_norm, ...
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, TypedDict, TypeVar, Unpack

from onceforall.choices import Choices
from onceforall.errors import InvalidConfiguration
from onceforall.training.losses import DISTILLATION
from onceforall.training.sampler import SAMPLERS

S = TypeVar("S", bound=Choices)

Teacher = Literal["none", "frozen", "in_place"]
TEACHERS = ("none", "frozen", "in_place")

ALL = 99  # more choices than any unit has
ELASTIC = {"depths": "depth", "kernels": "kernel", "expands": "expand", "width_multipliers": "width_multiplier"}
OPEN: dict[str, Any] = dict.fromkeys(ELASTIC, ALL)

PAPER_BATCH = 2048
PAPER_EPOCHS = (180, 125, 25, 125, 25, 125)
PAPER_WARMUP = 5


@dataclass(frozen=True)
class Phase:
    """One stage of a schedule. Resolution is elastic in every phase, one size a batch.

    depths, kernels, expands, width_multipliers: how many of each unit's largest choices are open.
    learning_rate: the peak, after a linear warm-up. It falls along a cosine; `cosine` is the part of
    one that this phase runs through, from (0, 1), which is a whole one.
    sampler, subnets: which sub-networks a step runs and how many (`training/sampler.py`); their
    gradients add up.
    teacher: "none"; "frozen", the largest network as the first phase left it; or "in_place", the
    first sub-network of the same step, which learns from labels alone.
    loss, distill, hard: what a taught sub-network minimises, `distill` times the distillation loss
    (`training/losses.py`) plus `hard` times the cross entropy with labels.
    ramp_epochs: all sub-networks of a step but the first begin with weight 0, which rises linearly
    to 1 over these epochs.
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
    sampler: str = "uniform"
    subnets: int = 1
    teacher: Teacher = "none"
    loss: str = "cross_entropy"
    distill: float = 1.0
    hard: float = 1.0
    ramp_epochs: int = 0
    sort_channels: bool = False
    cosine: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cosine", tuple(self.cosine))  # JSON has lists
        for name in ("epochs", "warmup_epochs", "ramp_epochs"):
            _integer(f"phase {self.name}: {name}", getattr(self, name), 0)
        for name in (*ELASTIC, "subnets"):
            _integer(f"phase {self.name}: {name}", getattr(self, name), 1)
        for name, known in (("sampler", SAMPLERS), ("teacher", TEACHERS), ("loss", DISTILLATION)):
            if getattr(self, name) not in known:
                raise InvalidConfiguration(
                    f"phase {self.name}: {name} {getattr(self, name)!r}: choices are {', '.join(known)}"
                )
        if not 0 < self.learning_rate < math.inf:
            raise InvalidConfiguration(
                f"phase {self.name}: learning_rate {self.learning_rate}: expected a positive number"
            )
        for name in ("distill", "hard"):
            if not getattr(self, name) >= 0:
                raise InvalidConfiguration(
                    f"phase {self.name}: {name} {getattr(self, name)}: expected a weight of at least 0"
                )
        if len(self.cosine) != 2 or not 0 <= self.cosine[0] < self.cosine[1] <= 1:
            raise InvalidConfiguration(f"phase {self.name}: cosine {self.cosine}: expected a part of (0, 1)")

    def opened(self, space: S) -> S:
        """The sub-space that this phase trains."""
        return space.largest_choices({name: getattr(self, field) for field, name in ELASTIC.items()})

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step of this phase, counted from 0."""
        steps, warmup = self.epochs * steps_per_epoch, self.warmup_epochs * steps_per_epoch
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        begin, end = self.cosine
        progress = begin + (end - begin) * (step - warmup) / max(steps - warmup, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))

    def ramp_at(self, step: int, steps_per_epoch: int) -> float:
        """The weight of all sub-networks of a step but the first."""
        ramp = self.ramp_epochs * steps_per_epoch
        return min(1.0, (step + 1) / ramp) if ramp else 1.0


@dataclass(frozen=True)
class Recipe:
    """A schedule with the settings that all its phases share (SGD with Nesterov momentum).

    batch_size: images a step, over all processes. batch_norm_size: images over which batch norm
    takes its statistics in training; a step runs its batch in chunks of so many, whatever the number
    of processes (0: the share of each process at once). clip_norm: bound on the norm of a step's
    gradient (0: none).
    """

    name: str
    phases: tuple[Phase, ...]
    batch_size: int
    momentum: float = 0.9
    weight_decay: float = 3e-5
    label_smoothing: float = 0.1
    clip_norm: float = 0.0
    batch_norm_size: int = 0

    def __post_init__(self) -> None:
        _integer("batch_size", self.batch_size, 2)
        if not self.phases:
            raise InvalidConfiguration(f"recipe {self.name} has no phases")
        if self.phases[0].teacher == "frozen":
            raise InvalidConfiguration(
                f"recipe {self.name}: teacher 'frozen' in phase {self.phases[0].name}: the first phase makes that "
                "teacher; choose 'none' or 'in_place'"
            )
        for name, most in (("momentum", 1.0), ("label_smoothing", 1.0), ("weight_decay", math.inf)):
            if not 0 <= getattr(self, name) < most:
                raise InvalidConfiguration(f"{name} {getattr(self, name)}: expected at least 0 and less than {most:g}")
        if not self.clip_norm >= 0:
            raise InvalidConfiguration(f"clip_norm {self.clip_norm}: expected a norm, or 0 for none")
        if self.batch_norm_size and (self.batch_norm_size < 2 or self.batch_size % self.batch_norm_size):
            raise InvalidConfiguration(
                f"batch_norm_size {self.batch_norm_size}: expected a divisor of batch_size {self.batch_size} "
                "of at least 2, or 0"
            )

    @property
    def subnet_epochs(self) -> int:
        """Epochs times sub-networks a step: what the schedule costs, teachers not counted."""
        return sum(phase.epochs * phase.subnets for phase in self.phases)

    def opened_before(self, number: int, space: S) -> S:
        """The sub-space that the phases before phase `number` train; for the first, what it trains itself."""
        phases = self.phases[: max(number, 1)]
        return space.largest_choices(
            {name: max(getattr(phase, field) for phase in phases) for field, name in ELASTIC.items()}
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


class Settings(TypedDict, total=False):
    """What every recipe shares: fields of `Recipe`."""

    momentum: float
    weight_decay: float
    label_smoothing: float
    clip_norm: float
    batch_norm_size: int


def progressive_shrinking(
    epochs: float | Sequence[int] = sum(PAPER_EPOCHS),
    batch_size: int = PAPER_BATCH,
    learning_rate_scale: float = 1.0,
    **settings: Unpack[Settings],
) -> Recipe:
    """Progressive shrinking: full, kernel, depth 1, depth 2, width 1, width 2 (paper, section 3.3 and appendix B).

    Claim: small sub-networks fine-tuned from large ones, with the large one as teacher, disturb it
    least, so that all become as good as if trained alone.

    The default is the paper's schedule for ImageNet: 605 epochs, batch 2,048 (its 32 x 64 images are
    `batch_norm_size` 64). `epochs` is the length of all six phases together, which keep their
    proportions (each has at least one epoch), or the six lengths. Warm-up takes 5 of 180 or 125
    epochs, rounded, in the long phases. Width multipliers, which the paper's spaces do not have, open
    with the expand ratios; what a space has beyond the paper's three choices, in the last phase of its kind.
    """
    if isinstance(epochs, Sequence):
        lengths = tuple(epochs)
        if len(lengths) != 6:
            raise InvalidConfiguration(
                f"epochs {lengths}: give one number, or six (full, kernel, depth 1, depth 2, width 1, width 2)"
            )
    else:
        if not epochs >= 1:
            raise InvalidConfiguration(f"epochs {epochs}: expected at least 1")
        lengths = tuple(max(1, round(length * epochs / sum(PAPER_EPOCHS))) for length in PAPER_EPOCHS)
    rate = partial(_rate, batch_size=batch_size, scale=learning_rate_scale)
    full, kernel, depth1, depth2, width1, width2 = lengths
    taught: dict[str, Any] = {"teacher": "frozen", "kernels": ALL}
    wide: dict[str, Any] = {**taught, "depths": ALL, "subnets": 4, "sort_channels": True}
    phases = (
        Phase("full", full, rate(2.6), _warmup(full, 180)),
        Phase("kernel", kernel, rate(0.96), _warmup(kernel, 125), **taught),
        Phase("depth 1", depth1, rate(0.08), depths=2, subnets=2, **taught),
        Phase("depth 2", depth2, rate(0.24), _warmup(depth2, 125), depths=ALL, subnets=2, **taught),
        Phase("width 1", width1, rate(0.08), expands=2, width_multipliers=2, **wide),
        Phase("width 2", width2, rate(0.24), _warmup(width2, 125), **{**wide, **OPEN}),
    )
    return Recipe("progressive_shrinking", phases, batch_size, **settings)


def sandwich(
    epochs: int = 180,
    batch_size: int = PAPER_BATCH,
    learning_rate_scale: float = 1.0,
    loss: str = "kl",
    subnets: int = 4,
    **settings: Unpack[Settings],
) -> Recipe:
    """Sandwich rule with in-place distillation, in a single stage (Yu and Huang, 2019; Yu et al., "BigNAS", 2020).

    Claim: training the largest, the smallest and two random sub-networks in every step lifts all of
    them together, and the largest is teacher enough while it learns. It learns from labels, the
    others from its softmax alone. `loss` "alpha" is the adaptive alpha-divergence (Wang et al.,
    2021), which punishes a student that is too sure as well as one that is too unsure. Gradients are
    clipped at norm 1 unless `clip_norm` says otherwise.
    """
    _integer("subnets", subnets, 2)
    settings.setdefault("clip_norm", 1.0)
    rate = _rate(2.6, batch_size, learning_rate_scale)
    phase = Phase(
        "sandwich",
        epochs,
        rate,
        _warmup(epochs, 180),
        **OPEN,
        sampler="sandwich",
        subnets=subnets,
        teacher="in_place",
        loss=loss,
        hard=0.0,
    )
    return Recipe("sandwich", (phase,), batch_size, **settings)


def random_order(
    epochs: int = 180,
    batch_size: int = PAPER_BATCH,
    learning_rate_scale: float = 1.0,
    subnets: int = 4,
    **settings: Unpack[Settings],
) -> Recipe:
    """Every choice open from the first step, random sub-networks, labels alone (paper, section 4.2: its baseline).

    Claim: none; it is what the other recipes have to beat. In 40 sub-network-epochs on CIFAR-10 none of
    them did (`benchmarks/shrinking.py`).
    """
    rate = _rate(2.6, batch_size, learning_rate_scale)
    phase = Phase("random", epochs, rate, _warmup(epochs, 180), **OPEN, subnets=subnets)
    return Recipe("random_order", (phase,), batch_size, **settings)


def delayed_shrinking(
    epochs: int = 180,
    batch_size: int = PAPER_BATCH,
    learning_rate_scale: float = 1.0,
    loss: str = "kl",
    subnets: int = 4,
    **settings: Unpack[Settings],
) -> Recipe:
    """Shrink when the largest network is half trained (Annavajjala et al., "Delayed epsilon-shrinking", 2024).

    Claim: sub-networks inherit from a network that already knows something, yet can still move; so
    they need fewer steps than from the start, and better shared weights than after its end. One
    cosine spans both phases: the largest network alone through its first half, then the sandwich,
    whose smaller sub-networks begin with a rate of 0 that rises over a fifth of the second phase.
    """
    _integer("epochs", epochs, 2)
    alone, shared = epochs - epochs // 2, epochs // 2
    second = sandwich(shared, batch_size, learning_rate_scale, loss, subnets, **settings)
    shrink = replace(
        second.phases[0],
        name="shrink",
        warmup_epochs=0,
        ramp_epochs=max(1, round(shared / 5)),
        cosine=(0.5, 1.0),
        sort_channels=True,
    )
    full = Phase("full", alone, shrink.learning_rate, _warmup(alone, 180), cosine=(0.0, 0.5))
    return replace(second, name="delayed_shrinking", phases=(full, shrink))


def standalone(
    epochs: int = 180, batch_size: int = PAPER_BATCH, learning_rate_scale: float = 1.0, **settings: Unpack[Settings]
) -> Recipe:
    """The first phase of progressive shrinking by itself: for a `Network`, one architecture that shares nothing.

    Claim: none; it is what a sub-network of a supernet should reach. Of a supernet it trains the
    largest network.
    """
    first = progressive_shrinking((epochs, 0, 0, 0, 0, 0), batch_size, learning_rate_scale, **settings)
    return replace(first, name="standalone", phases=(replace(first.phases[0], name="alone"),))


def finetune(
    epochs: int = 25, batch_size: int = PAPER_BATCH, learning_rate_scale: float = 1.0, **settings: Unpack[Settings]
) -> Recipe:
    """Go on with an extracted network, on labels alone: 25 or 75 epochs (paper, table 2: "#25" and "#75").

    Claim: what sharing weights cost a network comes back in a few epochs. The paper does not give
    the rate; this is that of the last phase of shrinking, 0.24 for 2,048 images, along a cosine.
    """
    phase = Phase("finetune", epochs, _rate(0.24, batch_size, learning_rate_scale))
    return Recipe("finetune", (phase,), batch_size, **settings)


BY_NAME = {
    recipe.__name__: recipe
    for recipe in (progressive_shrinking, sandwich, random_order, delayed_shrinking, standalone, finetune)
}


def by_name(name: str, **given: Any) -> Recipe:
    """The named recipe. Raises InvalidConfiguration where there is none, or it does not take what is given."""
    if name not in BY_NAME:
        raise InvalidConfiguration(f"recipe {name!r}: choices are {', '.join(BY_NAME)}")
    if name != "progressive_shrinking" and not isinstance(given.get("epochs", 0), int):
        raise InvalidConfiguration(f"epochs {given['epochs']}: recipe {name} takes one whole number")
    try:
        return BY_NAME[name](**given)
    except TypeError as error:
        raise InvalidConfiguration(f"recipe {name} does not take that: {error}") from error


def _rate(paper: float, batch_size: int, scale: float) -> float:
    """A learning rate of the paper, in proportion to the batch."""
    _integer("batch_size", batch_size, 2)
    return paper * scale * batch_size / PAPER_BATCH


def _warmup(length: int, paper: int) -> int:
    return min(length, round(PAPER_WARMUP * length / paper))


def _integer(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise InvalidConfiguration(f"{name} {value}: expected an integer of at least {least}")
