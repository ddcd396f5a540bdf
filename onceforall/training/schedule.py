"""A training schedule as a value: `Recipe`, made of `Phase`s, and its JSON form (recipe.json)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

from onceforall import serial
from onceforall.checks import check_integer, expect
from onceforall.choices import Choices
from onceforall.errors import InvalidConfiguration
from onceforall.training.losses import DistillationLoss, SoftCrossEntropy
from onceforall.training.optimizers import SGD, Optimizer
from onceforall.training.parts import Part
from onceforall.training.samplers import Random, Sampler

S = TypeVar("S", bound=Choices)

Teacher = Literal["none", "frozen", "in_place"]

ALL = 99  # more choices than any unit has
OPEN = {"*": ALL}  # everything

# What older recipes called the names of choices.
OLD_NAMES = {"depths": "depth", "kernels": "kernel", "expands": "expand", "width_multipliers": "width_multiplier"}

PARTS: dict[str, type[Part]] = {"sampler": Sampler, "loss": DistillationLoss}


@dataclass(frozen=True)
class Phase:
    """One stage of a schedule. Resolution is elastic in every phase, one size a batch.

    learning_rate: the peak, after a linear warm-up. It falls along a cosine; `cosine` is the part of
    one that this phase runs through, from (0, 1), which is a whole one.
    open: of each name that the space's choices have ("depth", "kernel", ...), how many of the largest
    are open, everywhere; "*" stands for every name not mentioned, and is 1 where it is left out.
    sampler, subnets: which sub-networks a step runs and how many (`training/samplers.py`); their
    gradients add up.
    teacher: "none"; "frozen", the largest network as the first phase left it; or "in_place", the
    first sub-network of the same step, which learns from labels alone.
    loss, distill, hard: what a taught sub-network minimises, `distill` times the distillation loss
    (`training/losses.py`) plus `hard` times the task's own loss.
    ramp_epochs: all sub-networks of a step but the first begin with weight 0, which rises linearly
    to 1 over these epochs.
    sort_channels: sort middle channels by importance before the phase begins.
    """

    name: str
    epochs: int
    learning_rate: float
    warmup_epochs: int = 0
    open: Mapping[str, int] = field(default_factory=dict, hash=False)
    sampler: Sampler = field(default_factory=Random)
    subnets: int = 1
    teacher: Teacher = "none"
    loss: DistillationLoss = field(default_factory=SoftCrossEntropy)
    distill: float = 1.0
    hard: float = 1.0
    ramp_epochs: int = 0
    sort_channels: bool = False
    cosine: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        place, cosine = f"phase {self.name}:", tuple(self.cosine)
        object.__setattr__(self, "cosine", cosine)  # JSON has lists
        for name in ("epochs", "warmup_epochs", "ramp_epochs"):
            check_integer(f"{place} {name}", getattr(self, name), 0)
        check_integer(f"{place} subnets", self.subnets, 1)
        for name, count in self.open.items():
            check_integer(f"{place} open {name}", count, 1)
        object.__setattr__(self, "open", _normal(self.open))
        for name, kind in PARTS.items():
            part = getattr(self, name)
            expect(f"{place} {name}", part, isinstance(part, kind), f"a {kind.__name__}")
        if self.teacher not in get_args(Teacher):
            raise InvalidConfiguration(f"{place} teacher {self.teacher!r}: choices are {', '.join(get_args(Teacher))}")
        expect(f"{place} learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf, "a positive number")
        expect(f"{place} distill", self.distill, self.distill >= 0, "a weight of at least 0")
        expect(f"{place} hard", self.hard, self.hard >= 0, "a weight of at least 0")
        rising = len(cosine) == 2 and 0 <= cosine[0] < cosine[1] <= 1
        expect(f"{place} cosine", cosine, rising, "a part of (0, 1)")

    def opened(self, space: S) -> S:
        """The sub-space that this phase trains."""
        return space.largest_choices(self.open)

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
    """A schedule with the settings that all its phases share.

    batch_size: images a step, over all processes. batch_norm_size: images over which batch norm
    takes its statistics in training; a step runs its batch in chunks of so many, whatever the number
    of processes (0: the share of each process at once). clip_norm: bound on the norm of a step's
    gradient (0: none). label_smoothing: what the task's loss makes of it.
    """

    name: str
    phases: tuple[Phase, ...]
    batch_size: int
    optimizer: Optimizer = field(default_factory=SGD)
    label_smoothing: float = 0.1
    clip_norm: float = 0.0
    batch_norm_size: int = 0

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, 2)
        if not self.phases:
            raise InvalidConfiguration(f"recipe {self.name} has no phases")
        if self.phases[0].teacher == "frozen":
            raise InvalidConfiguration(
                f"recipe {self.name}: teacher 'frozen' in phase {self.phases[0].name}: the first phase makes that "
                "teacher; choose 'none' or 'in_place'"
            )
        optimizer, size = self.optimizer, self.batch_norm_size
        expect("optimizer", optimizer, isinstance(optimizer, Optimizer), "an Optimizer, such as SGD()")
        smoothing = self.label_smoothing
        expect("label_smoothing", smoothing, 0 <= smoothing < 1, "at least 0 and less than 1")
        expect("clip_norm", self.clip_norm, self.clip_norm >= 0, "a norm, or 0 for none")
        divisor = f"a divisor of batch_size {self.batch_size} of at least 2, or 0"
        expect("batch_norm_size", size, not size or (size >= 2 and self.batch_size % size == 0), divisor)

    @property
    def subnet_epochs(self) -> int:
        """Epochs times sub-networks a step: what the schedule costs, teachers not counted."""
        return sum(phase.epochs * phase.subnets for phase in self.phases)

    def opened_before(self, number: int, space: S) -> S:
        """The sub-space that the phases before phase `number` train; for the first, what it trains itself."""
        phases = [phase.open for phase in self.phases[: max(number, 1)]]
        return space.largest_choices({name: max(_count(p, name) for p in phases) for name in {"*"}.union(*phases)})

    def check_space(self, space: Choices) -> None:
        """Raises InvalidConfiguration where a phase opens choices that the space does not have."""
        names = space.choice_names
        for phase in self.phases:
            unknown = sorted(set(phase.open) - {"*", *names})
            if unknown:
                raise InvalidConfiguration(
                    f"phase {phase.name} opens {', '.join(unknown)}: this space has {', '.join(names)}"
                )

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` makes an equal recipe."""
        phases = [vars(p) | {name: getattr(p, name).to_json() for name in PARTS} for p in self.phases]
        return {**vars(self), "phases": phases, "optimizer": self.optimizer.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_json`; older JSON is read as well. Samplers, losses and optimisers must be imported.

        Raises InvalidConfiguration.
        """
        try:
            value = renewed(value)
            phases = tuple(
                Phase(**{**p, **{name: kind.from_json(p[name]) for name, kind in PARTS.items() if name in p}})
                for p in value["phases"]
            )
            parts = {"optimizer": Optimizer.from_json(value["optimizer"])} if "optimizer" in value else {}
            return cls(**{**value, **parts, "phases": phases})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InvalidConfiguration(f"not a recipe: {error}") from error


def identity(value: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """A recipe's JSON, new or old, with openings spelt out for a space's names: equal for equal training."""
    value = serial.to_json(renewed(value))
    phases = [p | {"open": {name: _count(p["open"], name) for name in sorted(names)}} for p in value["phases"]]
    return {**value, "phases": phases}


def renewed(value: Mapping[str, Any]) -> dict[str, Any]:
    """JSON of an older version as this one writes it; nothing is imported. KeyError, TypeError: no recipe."""
    value = {**value, "phases": [_renewed_phase(phase) for phase in value["phases"]]}
    old = {name: value.pop(name) for name in ("momentum", "weight_decay") if name in value}
    return {**value, "optimizer": SGD(**old).to_json()} if old else value


def _renewed_phase(phase: Mapping[str, Any]) -> dict[str, Any]:
    phase = dict(phase)
    old = {new: phase.pop(name) for name, new in OLD_NAMES.items() if name in phase}
    if old:
        counts = {name: old.get(name, 1) for name in OLD_NAMES.values()}
        # The recipes of then opened expand ratios and width multipliers together: what they now call "*".
        both = counts["expand"] if counts["expand"] == counts["width_multiplier"] else 1
        phase["open"] = _normal({**counts, "*": both})
    if phase.get("sampler") == "uniform":
        phase["sampler"] = Random.name
    return phase


def _count(counts: Mapping[str, int], name: str) -> int:
    return counts.get(name, counts.get("*", 1))


def _normal(counts: Mapping[str, int]) -> dict[str, int]:
    """The same counts without what goes without saying, in one order: equal openings are equal."""
    rest = counts.get("*", 1)
    kept = {name: count for name, count in sorted(counts.items()) if name != "*" and count != rest}
    return kept if rest == 1 else {"*": rest, **kept}
