"""Populations of choices as arrays.

`Architecture` is for people and files. A *row* is for populations: an int16 vector of choice indices
with -1 for whatever depth cuts off,

    [resolution, depth of each unit, then for each named choice ("kernel", "expand", ...) that of each
     block which has it, width multiplier of each unit that has several]

so that equal networks are equal rows, and mutation, crossover, encoding and cost are array
operations. Blocks are numbered unit by unit, each unit holding as many as its largest depth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onceforall.architecture import Architecture
from onceforall.choices import DEPTH, WIDTH, Choices
from onceforall.errors import InvalidArchitecture

Rows = NDArray[np.int16]
Column = tuple[str, int, int]  # what, unit, index in the unit

RESOLUTION = "resolution"


@dataclass(frozen=True)
class Populations(Choices):
    """Choices whose members can be sampled, changed and encoded, many at once."""

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

    # Rows

    @cached_property
    def columns(self) -> dict[Column, tuple[Any, ...]]:
        """The choices of each column of a row, under (what, unit, index in the unit)."""
        units, blocks = self.units, self.block_indices
        return (
            {(RESOLUTION, 0, 0): self.resolutions}
            | {(DEPTH, u, 0): unit.depths for u, unit in enumerate(units)}
            | {
                (name, u, b): units[u].choices[name]
                for name in self.choice_names[1:-1]
                for u, b in blocks
                if name in units[u].choices
            }
            | {(WIDTH, u, 0): unit.width_multipliers for u, unit in enumerate(units) if len(unit.width_multipliers) > 1}
        )

    @cached_property
    def choice_counts(self) -> NDArray[np.int64]:
        """Number of choices in each column of a row."""
        return np.array([len(choices) for choices in self.columns.values()])

    def columns_of(self, name: str) -> list[int]:
        """The columns of a row that hold "resolution", "depth", "width_multiplier", or a choice of the blocks."""
        return self._places[name]

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        places: dict[str, list[int]] = {name: [] for name in (RESOLUTION, *self.choice_names)}
        for column, (what, _, _) in enumerate(self.columns):
            places[what].append(column)
        return places

    @cached_property
    def depth_columns(self) -> slice:
        """Where a row has the depth of each unit."""
        return slice(1, 1 + len(self.units))

    @cached_property
    def gene_columns(self) -> slice:
        """Where a row has all choices of blocks."""
        return slice(1 + len(self.units), len(self.columns) - len(self._places[WIDTH]))

    @cached_property
    def block_columns(self) -> tuple[tuple[int, ...], ...]:
        """For each block the columns of its choices, in the order of its unit's names."""
        places = {key: column for column, key in enumerate(self.columns)}
        return tuple(tuple(places[name, u, b] for name in self.units[u].choices) for u, b in self.block_indices)

    @cached_property
    def _units_of_blocks(self) -> NDArray[np.int64]:
        return np.array([u for u, _ in self.block_indices], np.int64)

    @cached_property
    def _blocks_of_genes(self) -> NDArray[np.int64]:
        """The block that each of the gene columns belongs to."""
        numbers = {place: block for block, place in enumerate(self.block_indices)}
        return np.array([numbers[u, b] for _, u, b in list(self.columns)[self.gene_columns]], np.int64)

    @cached_property
    def _gene_steps(self) -> NDArray[np.int64]:
        """By how much one step in each of the gene columns moves the number of the gene in `unit.genes`."""
        steps = np.empty(len(self._blocks_of_genes), np.int64)
        for columns in self.block_columns:
            step = 1
            for column in reversed(columns):
                steps[column - self.gene_columns.start] = step
                step *= int(self.choice_counts[column])
        return steps

    def gene_numbers(self, rows: Rows) -> NDArray[np.int64]:
        """For each block 1 + the number of its gene in `unit.genes`, 0 where depth cuts it off, shape [n, blocks]."""
        active = self.active_blocks(rows)
        numbers = np.ones(active.shape, np.int64)
        genes = rows[:, self.gene_columns].astype(np.int64) * self._gene_steps
        for columns in self._columns_of_names:
            numbers[:, self._blocks_of_genes[columns]] += genes[:, columns]
        return np.where(active, numbers, 0)

    @cached_property
    def _columns_of_names(self) -> list[slice]:
        """Where each name has its part of the gene columns."""
        names = [self._places[name] for name in self.choice_names[1:-1] if self._places[name]]
        start = self.gene_columns.start
        return [slice(columns[0] - start, columns[-1] + 1 - start) for columns in names]

    def set_genes(self, rows: Rows, block: int, numbers: NDArray[np.int64] | int) -> None:
        """Give a block of all rows the gene of these numbers in `unit.genes`, in place."""
        for column in self.block_columns[block]:
            step = int(self._gene_steps[column - self.gene_columns.start])
            rows[:, column] = numbers // step % self.choice_counts[column]

    def to_rows(self, architectures: Sequence[Architecture]) -> Rows:
        """Rows of architectures, shape [n, columns]. Raises InvalidArchitecture."""
        rows = np.full((len(architectures), len(self.columns)), -1, np.int16)
        for row, architecture in zip(rows, architectures, strict=True):
            self.validate(architecture)
            for column, ((what, u, b), choices) in enumerate(self.columns.items()):
                if what == RESOLUTION:
                    row[column] = choices.index(architecture.resolution)
                elif what == DEPTH:
                    row[column] = choices.index(len(architecture.units[u]))
                elif what == WIDTH:
                    row[column] = choices.index(architecture.multipliers[u])
                elif b < len(architecture.units[u]):
                    row[column] = choices.index(architecture.units[u][b][what])
        return rows

    def from_rows(self, rows: Rows) -> list[Architecture]:
        """Architectures of rows: the inverse of `to_rows`."""
        genes = self.gene_numbers(rows)
        multipliers = self.multiplier_indices(rows)
        starts = np.cumsum([0] + [unit.depths[-1] for unit in self.units]).tolist()
        return [
            Architecture(
                self.resolutions[row[0]],
                tuple(
                    tuple(unit.genes[number - 1] for number in own[start : start + unit.depths[row[1 + u]]])
                    for u, (unit, start) in enumerate(zip(self.units, starts, strict=False))
                ),
                tuple(unit.width_multipliers[index] for unit, index in zip(self.units, indices, strict=True)),
            )
            for row, own, indices in zip(rows.tolist(), genes.tolist(), multipliers.tolist(), strict=True)
        ]

    def adopt_rows(self, rows: Rows, origin: Populations) -> Rows:
        """Rows of a space with fewer choices as rows of this one.

        Raises InvalidArchitecture where `origin` has a choice that this space does not have.
        """
        return self.adopting(origin)(rows)

    def adopting(self, origin: Populations) -> Callable[[Rows], Rows]:
        """`adopt_rows` for many populations of one space: what depends on the space alone is done once."""
        self.check_contains(origin)
        positions = {key: column for column, key in enumerate(origin.columns)}
        from_columns: list[tuple[int, int, Rows]] = []
        constant = np.full(len(self.columns), -1, np.int16)  # blocks that no member of the smaller space has
        for column, ((what, u, b), choices) in enumerate(self.columns.items()):
            if (what, u, b) in positions:
                indices = [*map(choices.index, origin.columns[what, u, b]), -1]
                from_columns.append((column, positions[what, u, b], np.array(indices, np.int16)))
            elif what == WIDTH:  # the one that it has
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
        depths = self._depths[np.arange(len(self.units)), rows[:, self.depth_columns]]
        return np.asarray(depths[:, self._units_of_blocks] > [index for _, index in self.block_indices])

    @cached_property
    def _depths(self) -> NDArray[np.int64]:
        """The depths of each unit, shape [units, most depths]."""
        most = max(len(unit.depths) for unit in self.units)
        return np.array([(*unit.depths, *[0] * (most - len(unit.depths))) for unit in self.units], np.int64)

    def multiplier_indices(self, rows: Rows) -> Rows:
        """The index of each unit's width multiplier, shape [n, units]."""
        result = np.zeros((len(rows), len(self.units)), np.int16)
        keys = list(self.columns)
        for column in self._places[WIDTH]:
            result[:, keys[column][1]] = rows[:, column]
        return result

    def canonical(self, rows: Rows) -> Rows:
        """The rows with tied choices as depth has them, and no genes for the blocks that depth cuts off."""
        result = rows.copy()
        for column, depth in self._tied_columns:
            result[:, column] = rows[:, depth]
        genes = result[:, self.gene_columns]
        genes[~self.active_blocks(rows)[:, self._blocks_of_genes]] = -1
        return result

    @cached_property
    def _tied_columns(self) -> list[tuple[int, int]]:
        """(column of a block's choice, column of the depth that it is tied to)."""
        return [
            (column, 1 + u)
            for column, (name, u, _) in enumerate(self.columns)
            if self.gene_columns.start <= column < self.gene_columns.stop and name in self.units[u].tied_choices
        ]

    # Encodings

    @cached_property
    def _encoded_columns(self) -> list[int]:
        """The blocks' choices, the depths of units whose blocks have none to tell them, widths, resolution."""
        silent = [1 + u for u, unit in enumerate(self.units) if len(unit.depths) > 1 and not unit.choices]
        return [*range(self.gene_columns.start, self.gene_columns.stop), *silent, *self._places[WIDTH], 0]

    @cached_property
    def encoded_choices(self) -> tuple[tuple[str, int, int, Any], ...]:
        """What each feature of an encoding stands for: (what, unit, index in the unit, the choice)."""
        keys = list(self.columns)
        return tuple((*keys[c], choice) for c in self._encoded_columns for choice in self.columns[keys[c]])

    def encode_rows(self, rows: Rows) -> NDArray[np.float32]:
        """One-hot choices of blocks, widths and resolution; zeros where a block is skipped (paper, section 3.4)."""
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
        for u, unit in enumerate(self.units):
            if not unit.choices:  # its depth has a feature of its own, unless there is only one
                rows[:, 1 + u] = np.maximum(rows[:, 1 + u], 0)
                continue
            blocks = zip(self.block_columns, self.block_indices, strict=True)
            first = [columns[0] for columns, (v, _) in blocks if v == u]
            for row, depth in zip(rows, (rows[:, first] >= 0).sum(axis=1).tolist(), strict=True):
                if depth not in unit.depths:
                    raise InvalidArchitecture(f"depth {depth} at unit {u + 1}: choices are {unit.depths}")
                row[1 + u] = unit.depths.index(depth)
        architectures = self.from_rows(rows)
        if not np.array_equal(self.encode(architectures), features):
            raise InvalidArchitecture(f"not encodings of this space: expected one-hot rows of {expected} features")
        return architectures
