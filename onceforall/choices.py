"""The elastic choices of a space: what each unit may be, which architectures are members, sub-spaces.

A choice has a name: "depth" and "width_multiplier" belong to every unit, others ("kernel", "expand",
"heads", ...) to the blocks of the units that declare them. Units and blocks count from 0 in code and
from 1 in messages.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from onceforall.architecture import Architecture, Gene, Named
from onceforall.checks import check_integer, is_positive
from onceforall.errors import InvalidArchitecture, InvalidConfiguration
from onceforall.sizes import Size, height_width, pixels, size_of

DEPTH, WIDTH = "depth", "width_multiplier"
EVERY_OTHER = "*"  # in `largest_choices`: each name that is not mentioned

DEEPEST = 1000  # blocks of a unit

_TAKEN = (DEPTH, WIDTH, "resolution", "resolutions")

Values = tuple[int | float, ...]  # as JSON has them: a whole number stays one
Options = Mapping[str, Values]


@dataclass(frozen=True)
class BaseUnit(ABC):
    """The elastic choices of one unit, each in ascending order: its depth, its blocks' choices, its width.

    `width_multipliers` scale the output channels of all blocks of the unit. A subclass says what its
    blocks choose from (`choices`), and which of its fields hold that (`having`).
    """

    depths: tuple[int, ...]
    width_multipliers: Values = field(default=(1.0,), kw_only=True)

    def __post_init__(self) -> None:
        depths = ascending("depths", self.depths, lambda n: isinstance(n, int) and n >= 0, "integers of at least 0")
        if depths[-1] > DEEPEST:
            raise InvalidConfiguration(f"depths {depths}: expected at most {DEEPEST} blocks")
        object.__setattr__(self, "depths", depths)  # JSON has lists
        multipliers = ascending("width_multipliers", self.width_multipliers, is_positive, "positive numbers")
        object.__setattr__(self, "width_multipliers", multipliers)
        for name in self.tied_choices:
            if len(self.choices[name]) != len(self.depths):
                raise InvalidConfiguration(
                    f"depths {self.depths} and {name} {self.choices[name]}: tied choices must be equally many"
                )

    # What a subclass says

    if TYPE_CHECKING:  # a property, or a field, which a property here would stand in the way of

        @property
        def choices(self) -> Options:
            """What every block chooses from, by name."""

    @property
    def tied_choices(self) -> tuple[str, ...]:
        """Names of choices whose n-th value goes with the n-th depth in every block."""
        return ()

    @abstractmethod
    def having(self, choices: Options) -> dict[str, Any]:
        """The fields that hold these choices, for `replace`."""

    # What follows

    @property
    def options(self) -> dict[str, Values]:
        """All that is elastic: depth, the blocks' choices, width multiplier."""
        return {DEPTH: self.depths, **self.choices, WIDTH: self.width_multipliers}

    def only(self, options: Options) -> Self:
        """The unit with these options."""
        own: dict[str, Any] = {"depths": options[DEPTH], "width_multipliers": options[WIDTH]}
        return replace(self, **own, **self.having({name: options[name] for name in self.choices}))

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        """Every gene of a block; the last choice varies first."""
        return tuple(Gene(zip_names(self.choices, values)) for values in itertools.product(*self.choices.values()))

    @cached_property
    def genes_of_depth(self) -> tuple[tuple[int, ...], ...]:
        """For each depth, which of `genes` its blocks may have: all, unless choices are tied to it."""

        def allowed(depth: int, gene: Gene) -> bool:
            return all(gene[name] == self.choices[name][depth] for name in self.tied_choices)

        return tuple(
            tuple(number for number, gene in enumerate(self.genes) if allowed(depth, gene))
            for depth in range(len(self.depths))
        )

    def genes_of_block(self, index: int) -> list[int]:
        """Which of `genes` block `index` may have, at any depth that it is part of."""
        deep = [own for depth, own in zip(self.depths, self.genes_of_depth, strict=True) if depth > index]
        return sorted(set().union(*deep))

    @property
    def size(self) -> int:
        """Number of distinct forms of the unit."""
        blocks: int = sum(len(own) ** depth for own, depth in zip(self.genes_of_depth, self.depths, strict=True))
        return len(self.width_multipliers) * blocks


@dataclass(frozen=True)
class Unit(BaseUnit):
    """A unit whose blocks choose from any named values: `Unit((2, 3), {"kernel": (3, 5), "expand": (3, 6)})`.

    `tied` names choices whose n-th value goes with the n-th depth in every block, so that a unit is
    small or large as a whole.
    """

    choices: Options = field(default_factory=Named)  # read-only in the base
    tied: tuple[str, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        for name in self.choices:
            if not isinstance(name, str) or not name.isidentifier() or name in _TAKEN or hasattr(Gene, name):
                raise InvalidConfiguration(
                    f"choice {name!r}: expected a name such as 'heads', none of every unit's and of a gene's methods"
                )
        choices = {
            name: ascending(name, values, math.isfinite, "finite numbers") for name, values in self.choices.items()
        }
        object.__setattr__(self, "choices", Named(choices))
        object.__setattr__(self, "tied", tuple(self.tied))
        if not set(self.tied) <= choices.keys():
            raise InvalidConfiguration(f"tied {listed(self.tied)}: the choices are {listed(choices)}")
        super().__post_init__()

    @property
    def tied_choices(self) -> tuple[str, ...]:
        return self.tied

    def having(self, choices: Options) -> dict[str, Any]:
        return {"choices": choices}


@dataclass(frozen=True)
class Choices:
    """Input resolutions (px; a pair is height and width) and units: the members of a family of networks."""

    resolutions: tuple[Size, ...]
    units: tuple[BaseUnit, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "resolutions", tuple(map(size_of, self.resolutions)))
        object.__setattr__(self, "units", tuple(self.units))
        sizes = [(pixels(size), height_width(size)) for size in self.resolutions]
        if not sizes or sizes != sorted(set(sizes)) or min(min(pair) for _, pair in sizes) < 1:
            raise InvalidConfiguration(
                f"resolutions {self.resolutions}: expected distinct positive integers, or pairs of them, ascending"
            )
        if not self.units:
            raise InvalidConfiguration("a search space needs at least one unit")

    @cached_property
    def block_indices(self) -> tuple[tuple[int, int], ...]:
        """(unit, index in the unit) of every block, each unit holding as many as its largest depth."""
        return tuple((u, b) for u, unit in enumerate(self.units) for b in range(unit.depths[-1]))

    @cached_property
    def choice_names(self) -> tuple[str, ...]:
        """Everything that is elastic beside the resolution: "depth", the blocks' choices, "width_multiplier"."""
        of_blocks = dict.fromkeys(name for unit in self.units for name in unit.choices)
        return (DEPTH, *of_blocks, WIDTH)

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
            _check(DEPTH, len(genes), unit.depths, f" at unit {u}")
            _check(WIDTH, multiplier, unit.width_multipliers, f" at unit {u}")
            for b, gene in enumerate(genes, 1):
                _check_gene(unit, gene, f" at unit {u}, block {b}", len(genes))

    def smallest(self) -> Architecture:
        """The architecture with the least of every choice."""
        return self._extreme(0)

    def largest(self) -> Architecture:
        """The architecture with the most of every choice."""
        return self._extreme(-1)

    def _extreme(self, end: int) -> Architecture:
        units = tuple((unit.genes[end],) * unit.depths[end] for unit in self.units)
        return Architecture(self.resolutions[end], units, tuple(unit.width_multipliers[end] for unit in self.units))

    def uniform(self, *, resolution: Size, depth: int, **choices: float) -> Architecture:
        """The network that makes the same choices everywhere: `uniform(resolution=32, depth=2, kernel=3, expand=6)`.

        A unit that has only one choice keeps it; the width multiplier is 1 unless it is given.
        Raises InvalidArchitecture, and InvalidConfiguration for a name that the space does not have.
        """
        widths = self.values_of(WIDTH)
        wanted = {DEPTH: depth, WIDTH: widths[0] if len(widths) == 1 else 1, **choices}
        for name in self.choice_names:
            if name not in wanted:
                raise InvalidArchitecture(f"a uniform network needs {name}: choices are {listed(self.values_of(name))}")
        for name, value in wanted.items():
            _check(name, value, self.values_of(name))

        def chosen(unit: BaseUnit) -> dict[str, float]:
            return {name: values[0] if len(values) == 1 else wanted[name] for name, values in unit.options.items()}

        own = [chosen(unit) for unit in self.units]
        genes = (
            (Gene({name: values[name] for name in unit.choices}),) * int(values[DEPTH])
            for unit, values in zip(self.units, own, strict=True)
        )
        architecture = Architecture(resolution, tuple(genes), tuple(values[WIDTH] for values in own))
        self.validate(architecture)
        return architecture

    def uniforms(self) -> list[Architecture]:
        """Every network that takes the choice of the same rank everywhere.

        A unit with fewer choices than others takes the one that comes nearest.
        """
        names = self.choice_names
        counts = {name: max(len(unit.options.get(name, (0,))) for unit in self.units) for name in names}

        def ranked(unit: BaseUnit, ranks: Mapping[str, int]) -> BaseUnit:
            return _choose(
                unit,
                {
                    name: [round(ranks[name] * (len(values) - 1) / max(counts[name] - 1, 1))]
                    for name, values in unit.options.items()
                },
            )

        members = []
        for resolution in self.resolutions:
            for ranks in itertools.product(*(range(counts[name]) for name in names)):
                try:
                    units = tuple(ranked(unit, dict(zip(names, ranks, strict=True))) for unit in self.units)
                except InvalidConfiguration:  # a depth and another choice that are not tied to each other
                    continue
                members.append(replace(self, resolutions=(resolution,), units=units).smallest())
        return list(dict.fromkeys(members))  # depth 0 makes all genes one network

    def values_of(self, name: str) -> Values:
        """What at least one unit may choose under a name, in ascending order. Raises InvalidConfiguration."""
        if name not in self.choice_names:
            raise InvalidConfiguration(f"choice {name!r}: this space has {listed(self.choice_names)}")
        return tuple(sorted({value for unit in self.units for value in unit.options.get(name, ())}))

    # Sub-spaces

    def _singular(self, name: str) -> str:
        return name if name in self.choice_names else name.removesuffix("s")

    def check_contains(self, part: Choices) -> None:
        """Raises InvalidArchitecture where `part` has a choice that this space does not have."""
        if len(part.units) != len(self.units):
            raise InvalidArchitecture(f"{len(part.units)} units: this space has {len(self.units)}")
        if not set(part.resolutions) <= set(self.resolutions):
            raise InvalidArchitecture(f"resolution {part.resolutions}: choices are {self.resolutions}")
        for u, (own, other) in enumerate(zip(self.units, part.units, strict=True), 1):
            if own.options.keys() != other.options.keys():
                raise InvalidArchitecture(
                    f"choices {listed(other.options)} at unit {u}: this space has {listed(own.options)}"
                )
            for name, values in other.options.items():
                if not set(values) <= set(own.options[name]):
                    raise InvalidArchitecture(f"{_words(name)} {values} at unit {u}: choices are {own.options[name]}")
            theirs = _pairs_of_tied(other, own.tied_choices)
            if not theirs <= (tied := _pairs_of_tied(own, own.tied_choices)):
                names = " and ".join((DEPTH, *own.tied_choices))
                raise InvalidArchitecture(f"{names} are tied at unit {u}: choices are {sorted(tied)}")

    def restrict(self, *, resolutions: Iterable[Size] | None = None, **choices: Iterable[float] | None) -> Self:
        """The sub-space with only the given choices, by name or its plural: `restrict(resolutions=[32], kernels=[3])`.

        A unit that has only one choice keeps it. Raises InvalidConfiguration where none is left, or
        the space has no choice of that name.
        """
        wanted = {self._singular(name): tuple(values) for name, values in choices.items() if values is not None}

        def part(unit: BaseUnit) -> BaseUnit:
            return _choose(
                unit,
                {
                    name: _kept(name, have, wanted.get(name) if len(have) > 1 else None)
                    for name, have in unit.options.items()
                },
            )

        for name, want in wanted.items():  # what no unit at all has is a mistake
            _kept(name, self.values_of(name), want)
        sizes = _kept("resolutions", self.resolutions, None if resolutions is None else [*map(size_of, resolutions)])
        return replace(self, resolutions=tuple(self.resolutions[i] for i in sizes), units=tuple(map(part, self.units)))

    def largest_choices(self, counts: Mapping[str, int]) -> Self:
        """The sub-space with only the n largest choices of each name in each unit; `"*"`: of every other name (1).

        Of tied choices the fewest are left. Raises InvalidConfiguration for a name that the space does not have.
        """
        for name, count in counts.items():
            if name != EVERY_OTHER:
                self.values_of(name)  # which refuses a name that there is not
            check_integer(f"largest choices of {name}", count, 1)

        def part(unit: BaseUnit) -> BaseUnit:
            rest = counts.get(EVERY_OTHER, 1)
            sizes = {name: len(values) for name, values in unit.options.items()}
            return _choose(unit, {name: list(range(size))[-counts.get(name, rest) :] for name, size in sizes.items()})

        return replace(self, units=tuple(map(part, self.units)))


def ascending(name: str, values: Iterable[float], allowed: Callable[[Any], bool], expected: str) -> tuple[Any, ...]:
    """The values as a tuple. Raises InvalidConfiguration unless they are allowed, distinct, and in ascending order."""
    found: tuple[Any, ...] = ()
    try:
        found = tuple(values)
        right = bool(found) and all(map(allowed, found)) and list(found) == sorted(set(found))
    except (TypeError, OverflowError):  # no numbers
        right = False
    if not right:
        raise InvalidConfiguration(f"{name} {found!s:.200}: expected distinct {expected}, ascending")
    return found


def zip_names(choices: Options, values: Sequence[float]) -> dict[str, float]:
    """One value for each name."""
    return dict(zip(choices, values, strict=True))


def listed(values: Iterable[object]) -> str:
    """The values, for a message."""
    return ", ".join(map(str, values))


def _kept(name: str, have: Sequence[Any], want: Sequence[Any] | None) -> list[int]:
    """The places of what is wanted (None: all of it) among what there is. Raises InvalidConfiguration for none."""
    left = [index for index, value in enumerate(have) if want is None or value in want]
    if not left:
        raise InvalidConfiguration(f"{_words(name)} {listed(want or ())}: this space has {listed(have)}")
    return left


def _choose(unit: BaseUnit, indices: dict[str, list[int]]) -> BaseUnit:
    """The unit with only the choices of the given indices."""
    if unit.tied_choices:
        together = (DEPTH, *unit.tied_choices)
        common = sorted(set.intersection(*(set(indices[name]) for name in together)))
        if not common:
            tied = "; ".join(f"{name} {unit.options[name]}" for name in together)
            raise InvalidConfiguration(f"tied choices have nothing in common left: {tied}, in this order")
        indices = {**indices, **dict.fromkeys(together, common)}
    return unit.only({name: tuple(values[i] for i in indices[name]) for name, values in unit.options.items()})


def _pairs_of_tied(unit: BaseUnit, names: Sequence[str]) -> set[Values]:
    """The combinations of depth and some choices that the blocks of a unit may have."""
    return {
        (depth, *(unit.genes[number][name] for name in names))
        for depth, own in zip(unit.depths, unit.genes_of_depth, strict=True)
        for number in own
    }


def _check_gene(unit: BaseUnit, gene: Gene, place: str, depth: int) -> None:
    if gene.keys() != unit.choices.keys():
        raise InvalidArchitecture(f"gene {gene!r}{place}: its choices are {listed(unit.choices)}")
    for name, values in unit.choices.items():
        _check(name, gene[name], values, place)
    for name in unit.tied_choices:
        tied = unit.choices[name][unit.depths.index(depth)]
        if gene[name] != tied:
            raise InvalidArchitecture(f"{name} {gene[name]}{place}: depth {depth} is tied to {name} {tied}")


def _check(name: str, value: object, choices: Iterable[object], place: str = "") -> None:
    if value not in choices:
        raise InvalidArchitecture(f"{_words(name)} {value}{place}: choices are {listed(choices)}")


def _words(name: str) -> str:
    return name.replace("_", " ")
