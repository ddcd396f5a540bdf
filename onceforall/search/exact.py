"""The true optimum, where accuracy is linear in the choices: a yardstick for what searches by trial.

Where every choice adds its own share to the accuracy, and every constraint bounds a sum or a peak
over layers, the best network of a resolution is an integer program: each unit takes one form
(depth and width multipliers), each of its active blocks one gene. The
published predictor is not linear, so there a search has no such yardstick.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from onceforall.choices import DEPTH, WIDTH
from onceforall.cost.model import Constraint
from onceforall.errors import OutOfDomain
from onceforall.rows import Column, Rows
from onceforall.search.limits import Limits
from onceforall.search.pricing import PriceTable
from onceforall.search.result import SearchResult
from onceforall.search.scoring import RowPredictor, Scorer
from onceforall.space import SearchSpace

TOLERANCE = 1e-3  # points of accuracy that a linear model may be off before it is refused

Form = tuple[int, int, int]  # a unit's input multiplier, multiplier and depth, as indices
Block = tuple[int, int, int]  # a block's input multiplier and multiplier, as indices, and the number of its gene


def optimum(space: SearchSpace, accuracy: RowPredictor, constraints: Sequence[Constraint]) -> SearchResult:
    """The best network under constraints for a predictor that is linear in the choices, proven to be so.

    Raises OutOfDomain where the predictor is not linear or a cost is neither a sum nor a peak over
    layers, InfeasibleConstraint where nothing meets the constraints.
    """
    began = time.perf_counter()
    limits, scorer = Limits(space, constraints), Scorer(space, accuracy)
    for price, constraint in zip(limits.pricers, constraints, strict=True):
        if not isinstance(price, PriceTable):
            raise OutOfDomain(f"{constraint.model.name} is neither a sum nor a peak over layers: no exact optimum")
    weights = linear_weights(space, scorer)
    rows = [_Program(limits, weights, resolution).solve() for resolution in limits.resolutions]
    found = np.concatenate([row for row in rows if row is not None])
    scores = scorer(found)
    best = found[[scores.argmax()]]
    return SearchResult(
        space.from_rows(best)[0],
        float(scores.max()),
        limits.named(limits.costs(best)[0]),
        (),
        scorer.evaluations,
        time.perf_counter() - began,
        seed=0,
    )


def linear_weights(space: SearchSpace, scorer: Scorer, seed: int = 0) -> NDArray[np.float64]:
    """What each feature of an encoding adds to the accuracy (points), shape [features]; the constant is left out.

    Fitted to answers of the predictor, and checked on others. Raises OutOfDomain where it is not linear.
    """
    features = space.encode_rows(space.sample_rows(1, np.random.default_rng(seed))).shape[1]
    rows = space.sample_rows(4 * features, np.random.default_rng(seed))
    answers = scorer(rows)
    design = np.concatenate([np.ones((len(rows), 1)), space.encode_rows(rows)], axis=1)
    fit = len(rows) * 3 // 4
    weights = np.linalg.lstsq(design[:fit], answers[:fit])[0]
    error = float(np.abs(design[fit:] @ weights - answers[fit:]).max())
    if error > TOLERANCE:
        raise OutOfDomain(
            f"the accuracy predictor is not linear in the choices (off by {error:.3g} points, at most {TOLERANCE:g} "
            "allowed): search for the best network instead"
        )
    return np.asarray(weights[1:], np.float64)


class _Program:
    """The integer program of one resolution. Its variables, all 0 or 1, are forms of units and of blocks."""

    def __init__(self, limits: Limits, weights: NDArray[np.float64], resolution: int) -> None:
        self.space, self.limits, self.resolution = limits.space, limits, resolution
        self._shares: dict[Column, dict[Any, float]] = {}  # what each choice of a column adds
        for (*column, choice), weight in zip(self.space.encoded_choices, weights.tolist(), strict=True):
            self._shares.setdefault(tuple(column), {})[choice] = weight  # type: ignore[arg-type]
        self.gains: list[float] = []
        self.costs: list[list[float]] = []  # in each constraint
        self.forms: dict[tuple[int, Form], int] = {}  # variables, by unit
        self.blocks: dict[tuple[int, Block], int] = {}  # by block
        self.equations: list[tuple[dict[int, float], float]] = []  # coefficients and their sum
        for u in range(len(self.space.units)):
            self._add_unit(u)
        for block in range(len(self.space.block_indices)):
            self._add_block(block)

    def solve(self) -> Rows | None:
        """The best row, or None where none meets the constraints."""
        sums = [i for i, price in enumerate(self.limits.pricers) if isinstance(price, PriceTable) and not price.peak]
        lines = [list(coefficients.items()) for coefficients, _ in self.equations]
        lines += [[(index, cost[i]) for index, cost in enumerate(self.costs)] for i in sums]
        totals = np.array([total for _, total in self.equations])
        entries = [(line, index, value) for line, items in enumerate(lines) for index, value in items]
        at, index, values = (np.array(part) for part in zip(*entries, strict=True))
        result = milp(
            -np.array(self.gains),
            integrality=np.ones(len(self.gains)),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(
                csr_array((values, (at, index)), shape=(len(lines), len(self.gains))),
                np.concatenate([totals, np.full(len(sums), -np.inf)]),
                np.concatenate([totals, self.limits.bounds[sums]]),
            ),
            options={"mip_rel_gap": 0.0},
        )
        return None if result.x is None else self._row(result.x > 0.5)

    def _add(self, gain: float, costs: list[float]) -> int:
        self.gains.append(gain)
        self.costs.append(costs)
        return len(self.gains) - 1

    def _add_unit(self, u: int) -> None:
        """The forms of a unit: one of them, and it reads what the unit before makes."""
        unit, units = self.space.units[u], self.space.units
        before = range(len(units[u - 1].width_multipliers)) if u else range(1)
        for i in before:
            for m in range(len(unit.width_multipliers)):
                gain = self._share(WIDTH, u, 0, unit.width_multipliers[m])
                ends = np.zeros((2, len(self.limits.pricers)))
                if u == 0:
                    ends[0] = [price.stem[self.resolution, m] for price in self._tables]
                if u == len(units) - 1:
                    ends[1] = [price.head[self.resolution, m] for price in self._tables]
                costs = [combine(end) for combine, end in zip(self._combine, ends.T, strict=True)]
                if self._allowed(costs):
                    for d, depth in enumerate(unit.depths):
                        self.forms[u, (i, m, d)] = self._add(gain + self._share(DEPTH, u, 0, depth), costs)
        own = {form: index for (v, form), index in self.forms.items() if v == u}
        if u == 0:
            self.equations.append((dict.fromkeys(own.values(), 1.0), 1.0))
        else:
            previous = {form: index for (v, form), index in self.forms.items() if v == u - 1}
            for i in before:
                made = {index: 1.0 for form, index in previous.items() if form[1] == i}
                read = {index: -1.0 for form, index in own.items() if form[0] == i}
                self.equations.append((made | read, 0.0))

    def _add_block(self, block: int) -> None:
        """The forms of a block: as many as its unit's form asks for, that is one or none."""
        u, b = self.space.block_indices[block]
        unit = self.space.units[u]
        gains = [sum(self._share(name, u, b, value) for name, value in gene.items()) for gene in unit.genes]
        demands: dict[tuple[int, int, int], dict[int, float]] = {}
        for (v, (i, m, d)), index in self.forms.items():
            if v == u and unit.depths[d] > b:
                # Inside a unit a block reads its own; where choices are tied, its genes follow from the depth.
                demands.setdefault((i if b == 0 else m, m, d if unit.tied_choices else 0), {})[index] = -1.0
        for (i, m, d), equation in demands.items():
            for gene in unit.genes_of_depth[d]:
                costs = [float(table.blocks[self.resolution, block, i, m, 1 + gene]) for table in self._tables]
                if self._allowed(costs):
                    index = self._add(gains[gene], costs)
                    self.blocks[block, (i, m, gene)] = index
                    equation[index] = 1.0
            self.equations.append((equation, 0.0))

    def _share(self, what: str, u: int, b: int, choice: Any) -> float:
        """What a choice adds to the accuracy (points): nothing where there is no other, or other columns tell it."""
        return self._shares.get((what, u, b), {}).get(choice, 0.0)

    @cached_property
    def _tables(self) -> list[PriceTable]:
        return [price for price in self.limits.pricers if isinstance(price, PriceTable)]

    @cached_property
    def _combine(self) -> list[Callable[[NDArray[np.float64]], float]]:
        return [np.max if table.peak else np.sum for table in self._tables]

    def _allowed(self, costs: list[float]) -> bool:
        """Whether a part keeps the peaks: what exceeds one is no variable at all."""
        bounds = self.limits.bounds
        return all(not t.peak or cost <= bound for t, cost, bound in zip(self._tables, costs, bounds, strict=True))

    def _row(self, chosen: NDArray[np.bool_]) -> Rows:
        space = self.space
        row = np.full((1, len(space.columns)), -1, np.int16)
        row[0, 0] = self.resolution
        places = {key: column for column, key in enumerate(space.columns)}
        for (u, (_, m, d)), index in self.forms.items():
            if chosen[index]:
                row[0, places[DEPTH, u, 0]] = d
                if (WIDTH, u, 0) in places:
                    row[0, places[WIDTH, u, 0]] = m
        for (block, (_, _, gene)), index in self.blocks.items():
            if chosen[index]:
                space.set_genes(row, block, gene)
        return space.canonical(row)
