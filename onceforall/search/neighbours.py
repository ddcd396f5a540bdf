"""All networks one choice away from others, as rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onceforall.choices import DEPTH
from onceforall.rows import RESOLUTION, Rows
from onceforall.space import SearchSpace


class Neighbours:
    """The changes of one choice in a space: of a block's gene, of a unit's depth or width multiplier.

    A unit that gets deeper has one neighbour for each gene that its new blocks may all have. The
    resolution stays: networks of two resolutions differ too much for what is learnt about one to
    hold for the other.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        moves: list[tuple[int, int, int | None]] = []  # column, its new value, gene of new blocks
        for column, ((what, u, _), choices) in enumerate(space.columns.items()):
            unit = space.units[u]
            if what == RESOLUTION or what in unit.tied_choices:
                continue
            # Tied choices of new blocks follow from the depth: one gene stands for all that differ in those.
            genes: Sequence[int | None] = unit.genes_of_depth[0] if what == DEPTH else [None]
            moves += [(column, value, gene) for value in range(len(choices)) for gene in genes]
        self._columns = np.array([column for column, _, _ in moves])
        self._values = np.array([value for _, value, _ in moves])
        self._repeats = np.array([gene not in (None, 0) for _, _, gene in moves])  # for units that get no deeper
        self._fills = np.full((len(moves), len(space.columns)), -1, np.int16)
        for number, (column, _, gene) in enumerate(moves):
            for block, (u, _) in enumerate(space.block_indices):
                if gene is not None and u == column - space.depth_columns.start:
                    space.set_genes(self._fills[number : number + 1], block, gene)

    def of(self, rows: Rows) -> tuple[Rows, NDArray[np.int64]]:
        """The neighbours of all rows, and the index of the row that each belongs to."""
        present = rows[:, self._columns]
        possible = (present >= 0) & (present != self._values) & ~(self._repeats & (self._values < present))
        owners, moves = np.nonzero(possible)
        result = rows[owners]
        result[np.arange(len(result)), self._columns[moves]] = self._values[moves]
        return self.space.canonical(np.where(result < 0, self._fills[moves], result)), owners
