"""Costs of whole populations: sums and peaks are gathered from arrays, the rest is left to the cost model."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onceforall.choices import WIDTH
from onceforall.cost.model import CostModel, PeakCost, SummedCost
from onceforall.layers import LayerSpec
from onceforall.rows import Rows
from onceforall.sizes import Size, side
from onceforall.space import SearchSpace

Pricer = Callable[[Rows], NDArray[np.float64]]
Worth = float | NDArray[np.float64]
Price = Callable[[Sequence[LayerSpec]], Any]  # the worth of some layers
_Path = tuple[float, Rows]  # what the first units cost, and a row with their choices made


class Parts:
    """What the parts of networks are worth, as arrays that the choices of rows index. A worth is a number or several.

    `stem[resolution, multiplier]` and `head[resolution, multiplier]`, the first with the constant;
    `blocks[resolution, block, input multiplier, multiplier, 1 + gene]` holds 0 for the gene 0 of a
    skipped block, and infinity for what a block cannot be.
    """

    def __init__(self, space: SearchSpace, worth: Callable[[Size], tuple[Price, Worth]]) -> None:
        """`worth(resolution)`: the worth of some layers, and the constant."""
        self.space = space
        units, resolutions = space.units, space.resolutions
        first, last = units[0].width_multipliers, units[-1].width_multipliers
        own = np.shape(worth(resolutions[0])[1])
        self.stem = np.zeros((len(resolutions), len(first), *own))
        self.head = np.zeros((len(resolutions), len(last), *own))
        multipliers = max(len(unit.width_multipliers) for unit in units)
        genes = max(len(unit.genes) for unit in units)
        shape = (len(resolutions), len(space.block_indices), multipliers, multipliers, 1 + genes)
        self.blocks = np.full((*shape, *own), np.inf)  # what a block cannot be must never look cheap
        self.blocks[:, :, :, :, 0] = 0
        for r, resolution in enumerate(resolutions):
            price, constant = worth(resolution)
            self.stem[r] = [constant + price(space.stem(resolution, m)) for m in first]
            self.head[r] = [price(space.head(resolution, m)) for m in last]
            for block, (u, b) in enumerate(space.block_indices):
                for form in space.block_forms(resolution, u, b):
                    place = r, block, form.in_multiplier, form.multiplier, 1 + form.gene
                    self.blocks[place] = price((form.layer,))
        self._units = np.array([u for u, _ in space.block_indices])
        # The unit that a block reads from; the first unit reads the stem, which has no multiplier.
        self._origins = np.array([u - (b == 0) for u, b in space.block_indices])

    def gather(self, rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Worth of the stems [n], the heads [n] and the blocks [n, blocks] of rows."""
        resolutions = rows[:, 0].astype(np.int64)
        multipliers = self.space.multiplier_indices(rows)
        before = np.where(self._origins < 0, 0, multipliers[:, self._origins])
        places = (
            resolutions[:, None],
            np.arange(len(self._units)),
            before,
            multipliers[:, self._units],
            self.space.gene_numbers(rows),
        )
        blocks = self.blocks.reshape(-1, *self.blocks.shape[5:])[np.ravel_multi_index(places, self.blocks.shape[:5])]
        return self.stem[resolutions, multipliers[:, 0]], self.head[resolutions, multipliers[:, -1]], blocks


class SumTable(Parts):
    """A cost that is a function of sums over layers."""

    def __init__(self, space: SearchSpace, model: SummedCost) -> None:
        super().__init__(space, lambda resolution: _sums_of_parts(model, resolution))
        self.model, self._sides = model, np.array(list(map(side, space.resolutions)), float)

    def __call__(self, rows: Rows) -> NDArray[np.float64]:
        """Cost of each row."""
        stem, head, blocks = self.gather(rows)
        return self.model.of_sums(stem + head + blocks.sum(axis=1), self._sides[rows[:, 0]])


class PriceTable(Parts):
    """An additive cost (`model.at` each resolution) or a peak."""

    def __init__(self, space: SearchSpace, model: CostModel) -> None:
        super().__init__(space, lambda resolution: _price_of_parts(model, resolution))
        self.peak = isinstance(model, PeakCost)
        self.total: Callable[[Iterable[float]], float] = max if self.peak else sum  # of the costs of parts

    def __call__(self, rows: Rows) -> NDArray[np.float64]:
        """Cost of each row."""
        stem, head, layers = self.gather(rows)
        if self.peak:
            return np.asarray(np.maximum(layers.max(axis=1), np.maximum(stem, head)))
        return np.asarray(stem + head + layers.sum(axis=1))

    @classmethod
    def weighted(cls, tables: Sequence[PriceTable], weights: Sequence[float]) -> PriceTable:
        """The weighted sum of additive costs."""
        total = copy.copy(tables[0])
        for name in ("stem", "head", "blocks"):
            parts = [weight * getattr(table, name) for table, weight in zip(tables, weights, strict=True)]
            setattr(total, name, sum(parts))
        return total

    def cheapest(self) -> tuple[Rows, NDArray[np.float64]]:
        """The cheapest row at each resolution and its cost.

        Exact: only the width multipliers of neighbouring units depend on each other, so this is a
        shortest path through the units.
        """
        rows = np.stack([self._cheapest_row(r) for r in range(len(self.space.resolutions))])
        return rows, self(rows)

    def _cheapest_row(self, r: int) -> Rows:
        row = np.full(len(self.space.columns), -1, np.int16)
        row[0] = r
        paths: list[_Path] = [(0.0, row)]  # the cheapest way up to the unit before, for each of its multipliers
        for u, unit in enumerate(self.space.units):
            paths = [
                min((self._extended(path, r, u, before, m) for before, path in enumerate(paths)), key=itemgetter(0))
                for m in range(len(unit.width_multipliers))
            ]
        ends = zip(self.head[r].tolist(), paths, strict=True)
        return min(((self.total((cost, head)), row) for head, (cost, row) in ends), key=itemgetter(0))[1]

    def _extended(self, path: _Path, r: int, u: int, before: int, m: int) -> _Path:
        """A path by the cheapest form of a unit with multiplier `m`, behind one with multiplier `before`."""
        space, unit, start = self.space, self.space.units[u], int(np.searchsorted(self._units, u))
        priced = self.blocks[r, start : start + unit.depths[-1], :, m, 1:]
        priced = np.concatenate([priced[:1, before], priced[1:, m]])
        fixed = float(self.stem[r, m]) if u == 0 else 0.0
        forms = []
        for d, depth in enumerate(unit.depths):
            allowed = np.array(unit.genes_of_depth[d])
            costs = priced[:depth, allowed]
            forms.append((self.total([*costs.min(axis=1).tolist(), fixed]), d, allowed[costs.argmin(axis=1)]))
        cost, d, genes = min(forms, key=itemgetter(0))
        row = path[1].copy()
        row[space.depth_columns][u] = d
        if len(unit.width_multipliers) > 1:
            row[list(space.columns).index((WIDTH, u, 0))] = m
        for block, gene in enumerate(genes.tolist(), start):
            space.set_genes(row[None], block, gene)
        return self.total((path[0], cost)), row


def _price_of_parts(model: CostModel, resolution: Size) -> tuple[Price, float]:
    """What some layers add to an additive cost, or what a peak is over them; and the constant."""
    local = model.at(resolution)
    if local is None:
        return model.cost, 0.0
    layer_cost = local.layer_cost
    return lambda layers: sum(map(layer_cost, layers)), local.constant


def _sums_of_parts(model: SummedCost, resolution: Size) -> tuple[Price, NDArray[np.float64]]:
    """What some layers add to the sums of a cost, and where those begin."""
    part, begin = model.parts_at(resolution)
    return lambda layers: np.sum([part(layer) for layer in layers], axis=0), begin


def pricer(space: SearchSpace, model: CostModel) -> Pricer:
    """The fastest way to cost rows of a space with a model."""
    if isinstance(model, PeakCost) or model.at(space.resolutions[0]) is not None:
        return PriceTable(space, model)
    if isinstance(model, SummedCost):
        return SumTable(space, model)
    return functools.partial(model.cost_rows, space)
