"""Costs of whole populations: what is additive is gathered from arrays, the rest is computed one by one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onceforall.cost.model import AdditiveCost, CostModel
from onceforall.space import Rows, SearchSpace

Pricer = Callable[[Rows], NDArray[np.float64]]


class PriceTable:
    """An additive cost as arrays: `fixed[resolution]` and `blocks[resolution, block, kernel, expand]`.

    The last kernel and the last expand index hold 0, so that the -1 of a skipped block costs nothing.
    """

    def __init__(self, space: SearchSpace, model: AdditiveCost) -> None:
        self.space = space
        counts = [(len(unit.kernels), len(unit.expands)) for unit in space.units for _ in range(unit.depths[-1])]
        most = np.max(counts, axis=0)
        self.fixed = np.zeros(len(space.resolutions))
        self.blocks = np.zeros((len(space.resolutions), len(counts), *(most + 1)))
        for r, resolution in enumerate(space.resolutions):
            ends = (*space.stem(resolution), *space.head(resolution))
            self.fixed[r] = model.constant + sum(model.layer_cost(layer) for layer in ends)
            layers = space.blocks(resolution)
            for b, (kernels, expands) in enumerate(counts):
                for k in range(kernels):
                    for e in range(expands):
                        self.blocks[r, b, k, e] = model.layer_cost(next(layers))
        # Choices that a block does not have must never look cheap.
        self._priced = self.blocks.copy()
        for b, (kernels, expands) in enumerate(counts):
            self._priced[:, b, kernels:] = self._priced[:, b, :, expands:] = np.inf

    def __call__(self, rows: Rows) -> NDArray[np.float64]:
        """Cost of each row."""
        blocks = self.blocks.shape[1]
        first = 1 + len(self.space.units)
        kernels, expands = rows[:, first : first + blocks], rows[:, first + blocks :]
        resolutions = rows[:, 0]
        layers = self.blocks[resolutions[:, None], np.arange(blocks), kernels, expands]
        return np.asarray(self.fixed[resolutions] + layers.sum(axis=1))

    def cheapest(self) -> tuple[Rows, NDArray[np.float64]]:
        """The cheapest row at each resolution and its cost: exact, as blocks cost independently of each other."""
        space, columns = self.space, len(self.space.choice_counts)
        rows = np.full((len(space.resolutions), columns), -1, np.int16)
        first, blocks = 1 + len(space.units), self.blocks.shape[1]
        for r in range(len(space.resolutions)):
            rows[r, 0] = r
            start = 0
            for u, unit in enumerate(space.units):
                priced = self._priced[r, start : start + unit.depths[-1]]
                flat = priced.reshape(len(priced), -1)
                best = flat.min(axis=1)
                sums = np.cumsum(best)[np.array(unit.depths) - 1]
                depth = int(sums.argmin())
                rows[r, 1 + u] = depth
                for b in range(unit.depths[depth]):
                    k, e = divmod(int(flat[b].argmin()), priced.shape[2])
                    rows[r, first + start + b] = k
                    rows[r, first + blocks + start + b] = e
                start += unit.depths[-1]
        return rows, self(rows)


def pricer(space: SearchSpace, model: CostModel) -> Pricer:
    """The fastest way to cost rows of a space with a model."""
    if isinstance(model, AdditiveCost):
        return PriceTable(space, model)
    return lambda rows: np.array([model.cost(space.lower(arch)) for arch in space.from_rows(rows)], float)
