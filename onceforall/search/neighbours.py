"""All networks one choice away from others, as rows."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from onceforall.space import Rows, SearchSpace


class Neighbours:
    """The changes of one choice in a space: a kernel, an expand ratio, a depth, a width multiplier.

    A unit that gets deeper has one neighbour for each gene that its new blocks may all have. The
    resolution stays: networks of two resolutions differ too much for what is learnt about one to
    hold for the other.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        moves: list[tuple[int, int, tuple[int, int] | None]] = []  # column, its new value, gene of new blocks
        for column, ((what, u, _), choices) in enumerate(space.columns.items()):
            unit = space.units[u]
            if what == "resolution" or (what == "expand" and unit.tied):
                continue
            genes: list[tuple[int, int] | None] = [None]
            if what == "depth":
                expands = 1 if unit.tied else len(unit.expands)
                genes = list(itertools.product(range(len(unit.kernels)), range(expands)))
            moves += [(column, value, gene) for value in range(len(choices)) for gene in genes]
        self._columns = np.array([column for column, _, _ in moves])
        self._values = np.array([value for _, value, _ in moves])
        self._repeats = np.array([gene not in (None, (0, 0)) for _, _, gene in moves])  # for units that get no deeper
        self._fills = np.full((len(moves), len(space.columns)), -1, np.int16)
        _, kernels, expands_, _ = space.slices
        blocks = np.array([u for u, _ in space.block_indices])
        for fill, (column, _, gene) in zip(self._fills, moves, strict=True):
            if gene is not None:
                fill[kernels][blocks == column - 1], fill[expands_][blocks == column - 1] = gene

    def of(self, rows: Rows) -> tuple[Rows, NDArray[np.int64]]:
        """The neighbours of all rows, and the index of the row that each belongs to."""
        present = rows[:, self._columns]
        possible = (present >= 0) & (present != self._values) & ~(self._repeats & (self._values < present))
        owners, moves = np.nonzero(possible)
        result = rows[owners]
        result[np.arange(len(result)), self._columns[moves]] = self._values[moves]
        return self.space.canonical(np.where(result < 0, self._fills[moves], result)), owners
