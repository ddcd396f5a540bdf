"""The elastic choices of a space: what each unit may be, which architectures are members, sub-spaces.

Units and blocks count from 0 in code and from 1 in messages.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

from onceforall.architecture import Architecture, Gene
from onceforall.errors import InvalidArchitecture, InvalidConfiguration

# What a unit may choose, and which values make sense.
ELASTIC = {
    "depths": "integers of at least 0",
    "kernels": "odd positive integers",
    "expands": "positive numbers",
    "width_multipliers": "positive numbers",
}


@dataclass(frozen=True)
class Unit:
    """The elastic choices of one unit, each in ascending order.

    `width_multipliers` scale the output channels of all blocks of the unit. `tied`: the n-th depth
    goes with the n-th expand ratio in every block, so a unit is small or large as a whole.
    """

    depths: tuple[int, ...]
    kernels: tuple[int, ...]
    expands: tuple[float, ...]
    width_multipliers: tuple[float, ...] = field(default=(1.0,), kw_only=True)
    tied: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        for name, expected in ELASTIC.items():
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)  # JSON has lists
            if (
                not values
                or list(values) != sorted(set(values))
                or values[0] < (0 if name == "depths" else 1e-9)
                or not all(map(math.isfinite, values))
                or ("integers" in expected and not all(isinstance(value, int) for value in values))
                or (name == "kernels" and any(value % 2 == 0 for value in values))
            ):
                raise InvalidConfiguration(f"{name} {values}: expected distinct {expected}, ascending")
        if self.tied and len(self.depths) != len(self.expands):
            raise InvalidConfiguration(
                f"depths {self.depths} and expands {self.expands}: tied choices must be equally many"
            )

    @property
    def size(self) -> int:
        """Number of distinct forms of the unit."""
        genes = len(self.kernels) * (1 if self.tied else len(self.expands))
        total: int = len(self.width_multipliers) * sum(genes**depth for depth in self.depths)
        return total

    @property
    def pairs(self) -> set[tuple[int, float]]:
        """The expand ratios that go with each depth."""
        pairs = (
            zip(self.depths, self.expands, strict=True) if self.tied else itertools.product(self.depths, self.expands)
        )
        return set(pairs)

    def expands_at(self, index: int) -> range:
        """Indices of the expand ratios that block `index` may have."""
        shallower = sum(depth <= index for depth in self.depths)
        return range(shallower if self.tied else 0, len(self.expands))


@dataclass(frozen=True)
class Choices:
    """Input resolutions (px) and units: the members of a family of networks."""

    resolutions: tuple[int, ...]
    units: tuple[Unit, ...]

    def __post_init__(self) -> None:
        try:  # of lists, as JSON has, and of numpy's integers, which it has not
            object.__setattr__(self, "resolutions", tuple(map(operator.index, self.resolutions)))
        except TypeError:
            raise InvalidConfiguration(f"resolutions {self.resolutions}: expected integers (px)") from None
        object.__setattr__(self, "units", tuple(self.units))
        if not self.resolutions or list(self.resolutions) != sorted(set(self.resolutions)) or self.resolutions[0] < 1:
            raise InvalidConfiguration(
                f"resolutions {self.resolutions}: expected distinct positive integers, ascending"
            )
        if not self.units:
            raise InvalidConfiguration("a search space needs at least one unit")

    @cached_property
    def block_indices(self) -> tuple[tuple[int, int], ...]:
        """(unit, index in the unit) of every block, each unit holding as many as its largest depth."""
        return tuple((u, b) for u, unit in enumerate(self.units) for b in range(unit.depths[-1]))

    # Members

    @property
    def size(self) -> int:
        """Number of distinct architectures."""
        return len(self.resolutions) * math.prod(unit.size for unit in self.units)

    def validate(self, architecture: Architecture) -> None:
        """Raises InvalidArchitecture, naming the first wrong choice (units and blocks count from 1)."""
        _check("resolution", architecture.resolution, self.resolutions)
        multipliers = architecture.multipliers
        if len(architecture.units) != len(self.units):
            raise InvalidArchitecture(f"{len(architecture.units)} units: this space has {len(self.units)}")
        if len(multipliers) != len(self.units):
            raise InvalidArchitecture(f"{len(multipliers)} width multipliers: this space has {len(self.units)} units")
        for u, (genes, multiplier, unit) in enumerate(zip(architecture.units, multipliers, self.units, strict=True), 1):
            _check("depth", len(genes), unit.depths, f" at unit {u}")
            _check("width multiplier", multiplier, unit.width_multipliers, f" at unit {u}")
            tied = unit.expands[unit.depths.index(len(genes))] if unit.tied else None
            for b, gene in enumerate(genes, 1):
                place = f" at unit {u}, block {b}"
                _check("kernel", gene.kernel, unit.kernels, place)
                _check("expand", gene.expand, unit.expands, place)
                if tied is not None and gene.expand != tied:
                    raise InvalidArchitecture(
                        f"expand {gene.expand}{place}: depth {len(genes)} is tied to expand {tied}"
                    )

    def smallest(self) -> Architecture:
        """The architecture with the least of every choice."""
        return self._extreme(0)

    def largest(self) -> Architecture:
        """The architecture with the most of every choice."""
        return self._extreme(-1)

    def _extreme(self, end: int) -> Architecture:
        units = tuple((Gene(unit.kernels[end], unit.expands[end]),) * unit.depths[end] for unit in self.units)
        return Architecture(self.resolutions[end], units, tuple(unit.width_multipliers[end] for unit in self.units))

    def uniform(
        self, depth: int, kernel: int, expand: float, resolution: int, width_multiplier: float = 1
    ) -> Architecture:
        """The network with one depth, kernel size, expand ratio and width multiplier everywhere.

        A unit that has only one choice keeps it. Raises InvalidArchitecture.
        """
        wanted = dict(zip(ELASTIC, (depth, kernel, expand, width_multiplier), strict=True))
        for name, value in wanted.items():
            _check(_singular(name), value, self._choices_of_all(name))

        def chosen(unit: Unit, name: str) -> float:
            choices: tuple[float, ...] = getattr(unit, name)
            return choices[0] if len(choices) == 1 else wanted[name]

        def genes(unit: Unit) -> tuple[Gene, ...]:
            return (Gene(int(chosen(unit, "kernels")), chosen(unit, "expands")),) * int(chosen(unit, "depths"))

        multipliers = tuple(chosen(unit, "width_multipliers") for unit in self.units)
        architecture = Architecture(resolution, tuple(map(genes, self.units)), multipliers)
        self.validate(architecture)
        return architecture

    def uniforms(self) -> list[Architecture]:
        """Every network that takes the choice of the same rank everywhere.

        A unit with fewer choices than others takes the one that comes nearest.
        """
        counts = [max(len(getattr(unit, name)) for unit in self.units) for name in ELASTIC]

        def ranked(unit: Unit, ranks: Sequence[int]) -> Unit:
            choices = [getattr(unit, name) for name in ELASTIC]
            indices = [
                round(rank * (len(values) - 1) / max(count - 1, 1))
                for rank, count, values in zip(ranks, counts, choices, strict=True)
            ]
            return _choose(unit, {name: [index] for name, index in zip(ELASTIC, indices, strict=True)})

        members = []
        for resolution in self.resolutions:
            for ranks in itertools.product(*map(range, counts)):
                try:
                    units = tuple(ranked(unit, ranks) for unit in self.units)
                except InvalidConfiguration:  # a depth and an expand ratio that are not tied to each other
                    continue
                members.append(replace(self, resolutions=(resolution,), units=units).smallest())
        return list(dict.fromkeys(members))  # depth 0 makes all kernels one network

    def _choices_of_all(self, name: str) -> tuple[float, ...]:
        """What at least one unit may be, in ascending order."""
        return tuple(sorted({choice for unit in self.units for choice in getattr(unit, name)}))

    # Sub-spaces

    def check_contains(self, part: Choices) -> None:
        """Raises InvalidArchitecture where `part` has a choice that this space does not have."""
        if len(part.units) != len(self.units):
            raise InvalidArchitecture(f"{len(part.units)} units: this space has {len(self.units)}")
        if not set(part.resolutions) <= set(self.resolutions):
            raise InvalidArchitecture(f"resolution {part.resolutions}: choices are {self.resolutions}")
        for u, (own, other) in enumerate(zip(self.units, part.units, strict=True), 1):
            for name in ELASTIC:
                choices, values = getattr(own, name), getattr(other, name)
                if not set(values) <= set(choices):
                    raise InvalidArchitecture(f"{_singular(name)} {values} at unit {u}: choices are {choices}")
            if own.tied and not other.pairs <= own.pairs:
                raise InvalidArchitecture(f"depth and expand are tied at unit {u}: choices are {sorted(own.pairs)}")

    def restrict(
        self,
        *,
        resolutions: Iterable[int] | None = None,
        depths: Iterable[int] | None = None,
        kernels: Iterable[int] | None = None,
        expands: Iterable[float] | None = None,
        width_multipliers: Iterable[float] | None = None,
    ) -> Self:
        """The sub-space with only the given choices; a unit that has only one choice keeps it.

        Raises InvalidConfiguration where none is left.
        """
        wanted = {
            name: None if values is None else tuple(values)
            for name, values in zip(ELASTIC, (depths, kernels, expands, width_multipliers), strict=True)
        }

        def kept(name: str, have: tuple[float, ...], want: tuple[float, ...] | None) -> list[int]:
            left = [index for index, value in enumerate(have) if want is None or value in want]
            if not left:
                raise InvalidConfiguration(f"{name} {listed(want or ())}: this space has {listed(have)}")
            return left

        def part(unit: Unit) -> Unit:
            choices: dict[str, tuple[float, ...]] = {name: getattr(unit, name) for name in ELASTIC}
            return _choose(
                unit,
                {name: kept(name, have, wanted[name] if len(have) > 1 else None) for name, have in choices.items()},
            )

        for name in ELASTIC:  # what no unit at all has is a mistake
            kept(name, self._choices_of_all(name), wanted[name])
        sizes = kept("resolutions", self.resolutions, None if resolutions is None else tuple(resolutions))
        return replace(self, resolutions=tuple(self.resolutions[i] for i in sizes), units=tuple(map(part, self.units)))

    def largest_choices(self, *, depths: int, kernels: int, expands: int, width_multipliers: int) -> Self:
        """The sub-space with only the n largest choices of each unit (tied depth and expand: the fewer of both)."""
        counts = dict(zip(ELASTIC, (depths, kernels, expands, width_multipliers), strict=True))

        def part(unit: Unit) -> Unit:
            sizes = {name: len(getattr(unit, name)) for name in ELASTIC}
            return _choose(unit, {name: list(range(size)[-counts[name] :]) for name, size in sizes.items()})

        return replace(self, units=tuple(map(part, self.units)))


def _choose(unit: Unit, indices: dict[str, list[int]]) -> Unit:
    """The unit with only the choices of the given indices."""
    if unit.tied:
        both = sorted(set(indices["depths"]) & set(indices["expands"]))
        if not both:
            raise InvalidConfiguration(
                f"depths and expands have no tied pair left: {unit.depths} are tied to {unit.expands}, in this order"
            )
        indices = {**indices, "depths": both, "expands": both}
    chosen: dict[str, Any] = {name: tuple(getattr(unit, name)[i] for i in indices[name]) for name in ELASTIC}
    return replace(unit, **chosen)


def _check(name: str, value: float, choices: Iterable[float], place: str = "") -> None:
    if value not in choices:
        raise InvalidArchitecture(f"{name} {value}{place}: choices are {listed(choices)}")


def _singular(name: str) -> str:
    return name.removesuffix("s").replace("_", " ")


def listed(values: Iterable[float]) -> str:
    """The values, for a message."""
    return ", ".join(map(str, values))
