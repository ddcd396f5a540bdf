"""A search space: which choices there are, and how a choice is lowered to layers.

Two forms of an architecture live here. `Architecture` is for people and files. A *row* is for
populations: an int16 vector of choice indices with -1 for whatever depth cuts off,

    [resolution, depth of each unit, kernel of each block, expand of each block]

so that equal networks are equal rows, and mutation, crossover, encoding and cost are array
operations. Blocks are numbered unit by unit, each unit holding as many as its largest depth.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from onceforall.architecture import Architecture, Gene
from onceforall.errors import InvalidArchitecture, InvalidConfiguration
from onceforall.layers import LayerSpec

Rows = NDArray[np.int16]


@dataclass(frozen=True)
class Unit:
    """The elastic choices of one unit, each in ascending order."""

    depths: tuple[int, ...]
    kernels: tuple[int, ...]
    expands: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("depths", "kernels", "expands"):
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values)) or values[0] < 1:
                raise InvalidConfiguration(f"{name} {values}: expected distinct positive integers, ascending")
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise InvalidConfiguration(f"kernels {self.kernels}: expected odd sizes")


@dataclass(frozen=True)
class SearchSpace(ABC):
    """The choices of a family of networks. A subclass adds its stage table, `stem`, `block` and `head`."""

    resolutions: tuple[int, ...]
    units: tuple[Unit, ...]

    def __post_init__(self) -> None:
        if not self.resolutions or list(self.resolutions) != sorted(set(self.resolutions)) or self.resolutions[0] < 1:
            raise InvalidConfiguration(
                f"resolutions {self.resolutions}: expected distinct positive integers, ascending"
            )
        if not self.units:
            raise InvalidConfiguration("a search space needs at least one unit")

    # What a subclass says

    @abstractmethod
    def stem(self, resolution: int) -> tuple[LayerSpec, ...]:
        """The fixed layers before the first unit."""

    @abstractmethod
    def block(self, resolution: int, unit: int, index: int, gene: Gene) -> LayerSpec:
        """Block `index` of unit `unit` (both from 0), with its choices made."""

    @abstractmethod
    def head(self, resolution: int) -> tuple[LayerSpec, ...]:
        """The fixed layers after the last unit."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `onceforall.spaces.from_json` makes an equal space."""

    # Lowering

    def lower(self, architecture: Architecture) -> tuple[LayerSpec, ...]:
        """The layers of an architecture, in order. Raises InvalidArchitecture."""
        return _lower(self, architecture)

    def blocks(self, resolution: int) -> Iterator[LayerSpec]:
        """Every form of every elastic block at a resolution: units, blocks, kernels, expands in order."""
        for u, b in self._blocks:
            for kernel in self.units[u].kernels:
                for expand in self.units[u].expands:
                    yield self.block(resolution, u, b, Gene(kernel, expand))

    def validate(self, architecture: Architecture) -> None:
        """Raises InvalidArchitecture, naming the first wrong choice (units and blocks count from 1)."""
        if architecture.resolution not in self.resolutions:
            raise InvalidArchitecture(f"resolution {architecture.resolution}: choices are {_listed(self.resolutions)}")
        if len(architecture.units) != len(self.units):
            raise InvalidArchitecture(f"{len(architecture.units)} units: this space has {len(self.units)}")
        for u, (genes, unit) in enumerate(zip(architecture.units, self.units, strict=True), 1):
            if len(genes) not in unit.depths:
                raise InvalidArchitecture(f"depth {len(genes)} at unit {u}: choices are {_listed(unit.depths)}")
            for b, gene in enumerate(genes, 1):
                if gene.kernel not in unit.kernels:
                    raise InvalidArchitecture(
                        f"kernel {gene.kernel} at unit {u}, block {b}: choices are {_listed(unit.kernels)}"
                    )
                if gene.expand not in unit.expands:
                    raise InvalidArchitecture(
                        f"expand {gene.expand} at unit {u}, block {b}: choices are {_listed(unit.expands)}"
                    )

    # Members

    @property
    def size(self) -> int:
        """Number of distinct architectures."""
        result = len(self.resolutions)
        for unit in self.units:
            result *= sum(pow(len(unit.kernels) * len(unit.expands), depth) for depth in unit.depths)
        return result

    def uniform(self, depth: int, kernel: int, expand: int, resolution: int) -> Architecture:
        """The network with one depth, one kernel size and one expand ratio everywhere."""
        architecture = Architecture(resolution, ((Gene(kernel, expand),) * depth,) * len(self.units))
        self.validate(architecture)
        return architecture

    def uniforms(self) -> list[Architecture]:
        """Every uniform network whose choices all units allow."""

        def common(name: str) -> list[int]:
            return sorted(set.intersection(*(set(getattr(unit, name)) for unit in self.units)))

        return [
            self.uniform(depth, kernel, expand, resolution)
            for resolution in self.resolutions
            for depth in common("depths")
            for kernel in common("kernels")
            for expand in common("expands")
        ]

    def smallest(self) -> Architecture:
        """The architecture with the least of every choice."""
        return self._extreme(0)

    def largest(self) -> Architecture:
        """The architecture with the most of every choice."""
        return self._extreme(-1)

    def _extreme(self, end: int) -> Architecture:
        units = tuple((Gene(unit.kernels[end], unit.expands[end]),) * unit.depths[end] for unit in self.units)
        return Architecture(self.resolutions[end], units)

    def sample(self, rng: np.random.Generator) -> Architecture:
        """One architecture: every choice drawn uniformly, depth first."""
        return self.from_rows(self.sample_rows(1, rng))[0]

    def mutate(self, architecture: Architecture, rng: np.random.Generator, probability: float = 0.1) -> Architecture:
        """Redraw each choice with the given probability."""
        return self.from_rows(self.mutate_rows(self.to_rows([architecture]), rng, probability))[0]

    def crossover(self, first: Architecture, second: Architecture, rng: np.random.Generator) -> Architecture:
        """Take each choice from one of two parents at random."""
        rows = self.to_rows([first, second])
        return self.from_rows(self.crossover_rows(rows[:1], rows[1:], rng))[0]

    def restrict(
        self,
        *,
        resolutions: Iterable[int] | None = None,
        depths: Iterable[int] | None = None,
        kernels: Iterable[int] | None = None,
        expands: Iterable[int] | None = None,
    ) -> Self:
        """The sub-space with only the given choices. Raises InvalidConfiguration where none is left."""

        def kept(name: str, have: tuple[int, ...], want: Iterable[int] | None) -> tuple[int, ...]:
            wanted = have if want is None else tuple(want)
            left = tuple(value for value in have if value in wanted)
            if not left:
                raise InvalidConfiguration(f"{name} {_listed(wanted)}: this space has {_listed(have)}")
            return left

        units = tuple(
            replace(
                unit,
                depths=kept("depths", unit.depths, depths),
                kernels=kept("kernels", unit.kernels, kernels),
                expands=kept("expands", unit.expands, expands),
            )
            for unit in self.units
        )
        return replace(self, resolutions=kept("resolutions", self.resolutions, resolutions), units=units)

    def largest_choices(self, *, depths: int, kernels: int, expands: int) -> Self:
        """The sub-space with only the n largest depths, kernels and expand ratios of each unit."""
        units = tuple(
            replace(
                unit,
                depths=unit.depths[-depths:],
                kernels=unit.kernels[-kernels:],
                expands=unit.expands[-expands:],
            )
            for unit in self.units
        )
        return replace(self, units=units)

    # Populations

    @cached_property
    def _blocks(self) -> tuple[tuple[int, int], ...]:
        """(unit, index in the unit) of every block."""
        return tuple((u, b) for u, unit in enumerate(self.units) for b in range(unit.depths[-1]))

    @cached_property
    def choice_counts(self) -> NDArray[np.int64]:
        """Number of choices in each column of a row."""
        return np.array(
            [
                len(self.resolutions),
                *(len(unit.depths) for unit in self.units),
                *(len(self.units[u].kernels) for u, _ in self._blocks),
                *(len(self.units[u].expands) for u, _ in self._blocks),
            ]
        )

    def to_rows(self, architectures: Sequence[Architecture]) -> Rows:
        """Rows of architectures, shape [n, columns]. Raises InvalidArchitecture."""
        rows = np.full((len(architectures), len(self.choice_counts)), -1, np.int16)
        units, blocks = len(self.units), len(self._blocks)
        for row, architecture in zip(rows, architectures, strict=True):
            self.validate(architecture)
            row[0] = self.resolutions.index(architecture.resolution)
            for u, genes in enumerate(architecture.units):
                row[1 + u] = self.units[u].depths.index(len(genes))
            for column, (u, b) in enumerate(self._blocks, 1 + units):
                if b < len(architecture.units[u]):
                    gene = architecture.units[u][b]
                    row[column] = self.units[u].kernels.index(gene.kernel)
                    row[column + blocks] = self.units[u].expands.index(gene.expand)
        return rows

    def from_rows(self, rows: Rows) -> list[Architecture]:
        """Architectures of rows: the inverse of `to_rows`."""
        units, blocks = len(self.units), len(self._blocks)
        starts = np.cumsum([0] + [unit.depths[-1] for unit in self.units])
        result = []
        for row in rows.tolist():
            kernels, expands = row[1 + units : 1 + units + blocks], row[1 + units + blocks :]
            result.append(
                Architecture(
                    self.resolutions[row[0]],
                    tuple(
                        tuple(
                            Gene(unit.kernels[kernels[i]], unit.expands[expands[i]])
                            for i in range(starts[u], starts[u] + unit.depths[row[1 + u]])
                        )
                        for u, unit in enumerate(self.units)
                    ),
                )
            )
        return result

    def sample_rows(self, count: int, rng: np.random.Generator) -> Rows:
        """Uniformly drawn rows, shape [count, columns]."""
        counts = self.choice_counts
        return self._canonical(rng.integers(0, counts, (count, len(counts))).astype(np.int16))

    def mutate_rows(self, rows: Rows, rng: np.random.Generator, probability: float) -> Rows:
        """Redraw each choice with the given probability; newly active blocks get random genes."""
        fresh = rng.integers(0, self.choice_counts, rows.shape).astype(np.int16)
        redraw = rng.random(rows.shape) < probability
        return self._canonical(np.where(redraw | (rows < 0), fresh, rows))

    def crossover_rows(self, first: Rows, second: Rows, rng: np.random.Generator, share: float = 0.5) -> Rows:
        """Take each choice from the second parent with probability `share`, else from the first.

        Where only one parent has a block, its gene is taken.
        """
        mixed = np.where(rng.random(first.shape) < share, second, first)
        other = np.maximum(first, second)
        # A block that neither parent has cannot become active: its unit's depth comes from a parent.
        return self._canonical(np.where(mixed < 0, other, mixed))

    def active_blocks(self, rows: Rows) -> NDArray[np.bool_]:
        """Which blocks are active, shape [n, blocks]."""
        columns = []
        for u, b in self._blocks:
            depths = np.asarray(self.units[u].depths)
            columns.append(b < depths[rows[:, 1 + u]])
        return np.stack(columns, axis=1)

    def _canonical(self, rows: Rows) -> Rows:
        """Remove the genes of blocks that depth cuts off."""
        inactive = ~self.active_blocks(rows)
        rows[:, 1 + len(self.units) :][np.concatenate([inactive, inactive], axis=1)] = -1
        return rows

    def encode_rows(self, rows: Rows) -> NDArray[np.float32]:
        """One-hot kernels, expands and resolution; zeros where a block is skipped (paper, section 3.4)."""
        first = 1 + len(self.units)
        columns = [*range(first, rows.shape[1]), 0]
        return np.concatenate(
            [np.eye(self.choice_counts[c] + 1, dtype=np.float32)[rows[:, c]][:, :-1] for c in columns], axis=1
        )

    def encode(self, architectures: Sequence[Architecture]) -> NDArray[np.float32]:
        """The predictor's input, shape [n, features]. Raises InvalidArchitecture."""
        return self.encode_rows(self.to_rows(architectures))

    def decode(self, features: NDArray[np.float32]) -> list[Architecture]:
        """The inverse of `encode`. Raises InvalidArchitecture where a row encodes no member."""
        first, units, blocks = 1 + len(self.units), len(self.units), len(self._blocks)
        rows = np.full((len(features), len(self.choice_counts)), -1, np.int16)
        start = 0
        expected = int(self.choice_counts[[*range(first, rows.shape[1]), 0]].sum())
        if features.ndim != 2 or features.shape[1] != expected:
            raise InvalidArchitecture(f"features of shape {features.shape}: expected [n, {expected}]")
        for column in [*range(first, rows.shape[1]), 0]:
            count = int(self.choice_counts[column])
            one_hot = features[:, start : start + count]
            rows[:, column] = np.where(one_hot.any(axis=1), one_hot.argmax(axis=1), -1)
            start += count
        kernels = rows[:, first : first + blocks] >= 0
        for u in range(units):
            depth = kernels[:, [i for i, (unit, _) in enumerate(self._blocks) if unit == u]].sum(axis=1)
            for row, value in zip(rows, depth.tolist(), strict=True):
                if value not in self.units[u].depths:
                    raise InvalidArchitecture(
                        f"depth {value} at unit {u + 1}: choices are {_listed(self.units[u].depths)}"
                    )
                row[1 + u] = self.units[u].depths.index(value)
        architectures = self.from_rows(rows)
        if not np.array_equal(self.encode(architectures), features):
            raise InvalidArchitecture(f"not encodings of this space: expected one-hot rows of {expected} features")
        return architectures


@lru_cache(maxsize=65536)
def _lower(space: SearchSpace, architecture: Architecture) -> tuple[LayerSpec, ...]:
    space.validate(architecture)
    resolution = architecture.resolution
    blocks = (
        space.block(resolution, u, b, gene)
        for u, genes in enumerate(architecture.units)
        for b, gene in enumerate(genes)
    )
    return (*space.stem(resolution), *blocks, *space.head(resolution))


def _listed(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))
