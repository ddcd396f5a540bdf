"""A search space: how a choice is lowered to layers, and populations of choices as arrays.

Two forms of an architecture live here. `Architecture` is for people and files. A *row* is for
populations: an int16 vector of choice indices with -1 for whatever depth cuts off,

    [resolution, depth of each unit, kernel of each block, expand of each block,
     width multiplier of each unit that has several]

so that equal networks are equal rows, and mutation, crossover, encoding and cost are array
operations. Blocks are numbered unit by unit, each unit holding as many as its largest depth.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from onceforall.architecture import Architecture, Gene
from onceforall.choices import Choices
from onceforall.errors import InvalidArchitecture, InvalidConfiguration
from onceforall.layers import LayerSpec

Rows = NDArray[np.int16]

FEWEST_CLASSES = 2


class BlockForm(NamedTuple):
    """One form of an elastic block: the indices of its choices, and the layer that they make."""

    in_multiplier: int
    multiplier: int
    kernel: int
    expand: int
    layer: LayerSpec


@dataclass(frozen=True)
class SearchSpace(Choices, ABC):
    """The choices of a family of networks. A subclass adds its stage table, `stem`, `block` and `head`.

    A block depends on its own gene, the width multiplier of its unit, and, if it is the first of its
    unit, that of the unit before; the stem on the multiplier of the first unit, the head on that of
    the last. That locality is what lets a search price whole populations from tables.
    """

    # What a subclass says

    @abstractmethod
    def stem(self, resolution: int, multiplier: float = 1) -> tuple[LayerSpec, ...]:
        """The fixed layers before the first unit, whose width multiplier is given."""

    @abstractmethod
    def block(
        self, resolution: int, unit: int, index: int, gene: Gene, multiplier: float = 1, in_multiplier: float = 1
    ) -> LayerSpec:
        """Block `index` of unit `unit` (both from 0), with its choices made.

        `in_multiplier` belongs to what the block reads: the unit before, or the same unit inside it.
        """

    @abstractmethod
    def head(self, resolution: int, multiplier: float = 1) -> tuple[LayerSpec, ...]:
        """The fixed layers after the last unit, whose width multiplier is given."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `onceforall.spaces.from_json` makes an equal space."""

    def with_classes(self, num_classes: int) -> Self:
        """The same space for another number of classes.

        Raises InvalidConfiguration for fewer than two, and where the space has no field `num_classes`.
        """
        check_num_classes(num_classes)
        if not hasattr(self, "num_classes"):
            raise InvalidConfiguration(f"num_classes {num_classes}: this space has no field of that name to change")
        changes: dict[str, Any] = {"num_classes": num_classes}
        return replace(self, **changes)

    # Lowering

    def lower(self, architecture: Architecture) -> tuple[LayerSpec, ...]:
        """The layers of an architecture, in order. Raises InvalidArchitecture."""
        return _lower(self, architecture)

    def block_forms(self, resolution: int, unit: int, index: int) -> Iterator[BlockForm]:
        """Every form of a block at a resolution."""
        own = self.units[unit]
        before = self.units[unit - 1].width_multipliers if unit > 0 else (1.0,)
        for m, multiplier in enumerate(own.width_multipliers):
            for i, in_multiplier in enumerate(before) if index == 0 else [(m, multiplier)]:
                for k, kernel in enumerate(own.kernels):
                    for e in own.expands_at(index):
                        gene = Gene(kernel, own.expands[e])
                        layer = self.block(resolution, unit, index, gene, multiplier, in_multiplier)
                        yield BlockForm(i, m, k, e, layer)

    def layers(self, resolution: int) -> Iterator[LayerSpec]:
        """Every form of every layer at a resolution: stems, blocks, heads."""
        for multiplier in self.units[0].width_multipliers:
            yield from self.stem(resolution, multiplier)
        for unit, index in self.block_indices:
            for form in self.block_forms(resolution, unit, index):
                yield form.layer
        for multiplier in self.units[-1].width_multipliers:
            yield from self.head(resolution, multiplier)

    def check_contains(self, part: Choices) -> None:
        """Raises InvalidArchitecture where `part` has a choice that this space does not have.

        Or where the same choices make other layers there, the last one (the classifier) apart.
        """
        super().check_contains(part)
        if isinstance(part, SearchSpace):
            for arch in (part.smallest(), part.largest()):
                if self.lower(arch)[:-1] != part.lower(arch)[:-1]:
                    raise InvalidArchitecture(f"another space: the same choices make other layers there ({arch})")

    # Single architectures

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

    # Populations

    @cached_property
    def columns(self) -> dict[tuple[str, int, int], tuple[float, ...]]:
        """The choices of each column of a row, under (what, unit, index in the unit)."""
        units, blocks = self.units, self.block_indices
        return (
            {("resolution", 0, 0): self.resolutions}
            | {("depth", u, 0): unit.depths for u, unit in enumerate(units)}
            | {("kernel", u, b): units[u].kernels for u, b in blocks}
            | {("expand", u, b): units[u].expands for u, b in blocks}
            | {("width multiplier", u, 0): units[u].width_multipliers for u in self._elastic_widths}
        )

    @cached_property
    def _elastic_widths(self) -> list[int]:
        """The units that have several width multipliers."""
        return [u for u, unit in enumerate(self.units) if len(unit.width_multipliers) > 1]

    @cached_property
    def choice_counts(self) -> NDArray[np.int64]:
        """Number of choices in each column of a row."""
        return np.array([len(choices) for choices in self.columns.values()])

    @cached_property
    def slices(self) -> tuple[slice, slice, slice, slice]:
        """Where a row has its depths, kernels, expands and width multipliers."""
        units, blocks = len(self.units), len(self.block_indices)
        ends = np.cumsum([1, units, blocks, blocks, len(self.columns)]).tolist()
        return slice(ends[0], ends[1]), slice(ends[1], ends[2]), slice(ends[2], ends[3]), slice(ends[3], None)

    def to_rows(self, architectures: Sequence[Architecture]) -> Rows:
        """Rows of architectures, shape [n, columns]. Raises InvalidArchitecture."""
        rows = np.full((len(architectures), len(self.columns)), -1, np.int16)
        _, kernels, expands, _ = self.slices
        for row, architecture in zip(rows, architectures, strict=True):
            self.validate(architecture)
            row[0] = self.resolutions.index(architecture.resolution)
            for u, genes in enumerate(architecture.units):
                row[1 + u] = self.units[u].depths.index(len(genes))
            for block, (u, b) in enumerate(self.block_indices):
                if b < len(architecture.units[u]):
                    gene = architecture.units[u][b]
                    row[kernels.start + block] = self.units[u].kernels.index(gene.kernel)
                    row[expands.start + block] = self.units[u].expands.index(gene.expand)
            for column, u in enumerate(self._elastic_widths, expands.stop):
                row[column] = self.units[u].width_multipliers.index(architecture.multipliers[u])
        return rows

    def from_rows(self, rows: Rows) -> list[Architecture]:
        """Architectures of rows: the inverse of `to_rows`."""
        depths, kernels, expands, _ = self.slices
        starts = np.cumsum([0] + [unit.depths[-1] for unit in self.units])
        multipliers = self.multiplier_indices(rows).tolist()
        result = []
        for row, indices in zip(rows.tolist(), multipliers, strict=True):
            k, e = row[kernels], row[expands]
            result.append(
                Architecture(
                    self.resolutions[row[0]],
                    tuple(
                        tuple(
                            Gene(unit.kernels[k[i]], unit.expands[e[i]])
                            for i in range(start, start + unit.depths[depth])
                        )
                        for unit, depth, start in zip(self.units, row[depths], starts, strict=False)
                    ),
                    tuple(unit.width_multipliers[m] for unit, m in zip(self.units, indices, strict=True)),
                )
            )
        return result

    def adopt_rows(self, rows: Rows, origin: SearchSpace) -> Rows:
        """Rows of a space with fewer choices as rows of this one.

        Raises InvalidArchitecture where `origin` has a choice that this space does not have.
        """
        return self.adopting(origin)(rows)

    def adopting(self, origin: SearchSpace) -> Callable[[Rows], Rows]:
        """`adopt_rows` for many populations of one space: what depends on the space alone is done once."""
        self.check_contains(origin)
        positions = {key: column for column, key in enumerate(origin.columns)}
        from_columns: list[tuple[int, int, Rows]] = []
        constant = np.full(len(self.columns), -1, np.int16)  # blocks that no member of the smaller space has
        for column, ((what, u, b), choices) in enumerate(self.columns.items()):
            if (what, u, b) in positions:
                indices = [*map(choices.index, origin.columns[what, u, b]), -1]
                from_columns.append((column, positions[what, u, b], np.array(indices, np.int16)))
            elif what == "width multiplier":  # the one that it has
                constant[column] = choices.index(origin.units[u].width_multipliers[0])

        def adopt(rows: Rows) -> Rows:
            result = np.tile(constant, (len(rows), 1))
            for column, position, indices in from_columns:
                result[:, column] = indices[rows[:, position]]
            return result

        return adopt

    def sample_rows(self, count: int, rng: np.random.Generator) -> Rows:
        """Uniformly drawn rows, shape [count, columns]."""
        counts = self.choice_counts
        return self.canonical(rng.integers(0, counts, (count, len(counts))).astype(np.int16))

    def mutate_rows(self, rows: Rows, rng: np.random.Generator, probability: float) -> Rows:
        """Redraw each choice with the given probability; newly active blocks get random genes."""
        fresh = rng.integers(0, self.choice_counts, rows.shape).astype(np.int16)
        redraw = rng.random(rows.shape) < probability
        return self.canonical(np.where(redraw | (rows < 0), fresh, rows))

    def crossover_rows(self, first: Rows, second: Rows, rng: np.random.Generator, share: float = 0.5) -> Rows:
        """Take each choice from the second parent with probability `share`, else from the first.

        Where only one parent has a block, its gene is taken.
        """
        mixed = np.where(rng.random(first.shape) < share, second, first)
        other = np.maximum(first, second)
        # A block that neither parent has cannot become active: its unit's depth comes from a parent.
        return self.canonical(np.where(mixed < 0, other, mixed))

    def active_blocks(self, rows: Rows) -> NDArray[np.bool_]:
        """Which blocks are active, shape [n, blocks]."""
        columns = [index < np.asarray(self.units[u].depths)[rows[:, 1 + u]] for u, index in self.block_indices]
        return np.stack(columns, axis=1)

    def multiplier_indices(self, rows: Rows) -> Rows:
        """The index of each unit's width multiplier, shape [n, units]."""
        result = np.zeros((len(rows), len(self.units)), np.int16)
        result[:, self._elastic_widths] = rows[:, self.slices[3]]
        return result

    def canonical(self, rows: Rows) -> Rows:
        """Give tied blocks their expand ratio, and remove the genes of blocks that depth cuts off."""
        _, kernels, expands, _ = self.slices
        for block, u in self._tied_blocks:
            rows[:, expands.start + block] = rows[:, 1 + u]
        inactive = ~self.active_blocks(rows)
        rows[:, kernels][inactive] = -1
        rows[:, expands][inactive] = -1
        return rows

    @cached_property
    def _tied_blocks(self) -> list[tuple[int, int]]:
        """(block, unit) of the blocks whose depth and expand ratio are tied."""
        return [(block, u) for block, (u, _) in enumerate(self.block_indices) if self.units[u].tied]

    # Encodings

    @cached_property
    def _encoded_columns(self) -> list[int]:
        """Kernels, expands, width multipliers, resolution."""
        return [*range(1 + len(self.units), len(self.columns)), 0]

    @cached_property
    def encoded_choices(self) -> tuple[tuple[str, int, int, float], ...]:
        """What each feature of an encoding stands for: (what, unit, index in the unit, the choice)."""
        keys = list(self.columns)
        return tuple((*keys[c], choice) for c in self._encoded_columns for choice in self.columns[keys[c]])

    def encode_rows(self, rows: Rows) -> NDArray[np.float32]:
        """One-hot kernels, expands and resolution; zeros where a block is skipped (paper, section 3.4)."""
        return np.concatenate(
            [np.eye(self.choice_counts[c] + 1, dtype=np.float32)[rows[:, c]][:, :-1] for c in self._encoded_columns],
            axis=1,
        )

    def encode(self, architectures: Sequence[Architecture]) -> NDArray[np.float32]:
        """The predictor's input, shape [n, features]. Raises InvalidArchitecture."""
        return self.encode_rows(self.to_rows(architectures))

    def decode(self, features: NDArray[np.float32]) -> list[Architecture]:
        """The inverse of `encode`. Raises InvalidArchitecture where a row encodes no member."""
        expected = len(self.encoded_choices)
        if features.ndim != 2 or features.shape[1] != expected:
            raise InvalidArchitecture(f"features of shape {features.shape}: expected [n, {expected}]")
        rows = np.full((len(features), len(self.columns)), -1, np.int16)
        start = 0
        for column in self._encoded_columns:
            one_hot = features[:, start : start + self.choice_counts[column]]
            rows[:, column] = np.where(one_hot.any(axis=1), one_hot.argmax(axis=1), -1)
            start += int(self.choice_counts[column])
        active = rows[:, self.slices[1]] >= 0
        for u, unit in enumerate(self.units):
            depths = active[:, [unit_ == u for unit_, _ in self.block_indices]].sum(axis=1).tolist()
            for row, depth in zip(rows, depths, strict=True):
                if depth not in unit.depths:
                    raise InvalidArchitecture(f"depth {depth} at unit {u + 1}: choices are {unit.depths}")
                row[1 + u] = unit.depths.index(depth)
        architectures = self.from_rows(rows)
        if not np.array_equal(self.encode(architectures), features):
            raise InvalidArchitecture(f"not encodings of this space: expected one-hot rows of {expected} features")
        return architectures


@lru_cache(maxsize=4096)
def _lower(space: SearchSpace, architecture: Architecture) -> tuple[LayerSpec, ...]:
    space.validate(architecture)
    resolution, multipliers = architecture.resolution, architecture.multipliers
    blocks = (
        space.block(resolution, u, b, gene, multipliers[u], multipliers[u] if b else before)
        for u, (genes, before) in enumerate(zip(architecture.units, (1, *multipliers[:-1]), strict=True))
        for b, gene in enumerate(genes)
    )
    return (*space.stem(resolution, multipliers[0]), *blocks, *space.head(resolution, multipliers[-1]))


def check_num_classes(num_classes: int) -> None:
    """Raises InvalidConfiguration where there is nothing to tell apart."""
    if not isinstance(num_classes, int) or num_classes < FEWEST_CLASSES:
        raise InvalidConfiguration(f"num_classes {num_classes}: expected at least {FEWEST_CLASSES}")
