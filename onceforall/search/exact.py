"""The true optimum, where accuracy is linear in the choices: a yardstick for what searches by trial.

Where every choice adds its own share to the accuracy, and every constraint bounds a sum or a peak
over layers, the best network of a resolution is an integer program: each unit takes one form
(depth and width multipliers), each of its active blocks one gene. The
published predictor is not linear, so there a search has no such yardstick.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from onceforall.choices import DEPTH, WIDTH
from onceforall.cost.model import Constraint
from onceforall.errors import OutOfDomain
from onceforall.rows import Rows
from onceforall.search.limits import Limits
from onceforall.search.pricing import PriceTable
from onceforall.search.result import SearchResult
from onceforall.search.scoring import RowPredictor, Scorer
from onceforall.space import SearchSpace
from onceforall.threads import one_thread

TOLERANCE = 1e-3  # points of accuracy that a linear model may be off before it is refused

Shares = dict[tuple[str, int, int, Any], float]  # what each choice of a unit or block adds to the accuracy (points)
Key = tuple[int, ...]  # of an equation
WHOLE: Key = ()


@one_thread()
def optimum(space: SearchSpace, accuracy: RowPredictor, constraints: Sequence[Constraint]) -> SearchResult:
    """The best network under constraints for a predictor that is linear in the choices, proven to be so.

    Raises OutOfDomain where the predictor is not linear or a cost is neither a sum nor a peak over
    layers, InfeasibleConstraint where nothing meets the constraints.
    """
    began = time.perf_counter()
    limits, scorer = Limits(space, constraints), Scorer(space, accuracy)
    tables = []
    for price, constraint in zip(limits.pricers, constraints, strict=True):
        if not isinstance(price, PriceTable):
            raise OutOfDomain(f"{constraint.model.name} is neither a sum nor a peak over layers: no exact optimum")
        tables.append(price)
    shares = linear_shares(space, scorer)
    rows = [_Program(limits, tables, shares, resolution).solve() for resolution in limits.resolutions]
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


def linear_shares(space: SearchSpace, scorer: Scorer) -> Shares:
    """What each choice that an encoding tells adds to the accuracy; the constant is left out.

    Fitted to answers of the predictor, and checked on others. Raises OutOfDomain where it is not linear.
    """
    rows = space.sample_rows(4 * len(space.encoded_choices), np.random.default_rng(0))
    answers = scorer.raw(rows)
    design = np.concatenate([np.ones((len(rows), 1)), space.encode_rows(rows)], axis=1)
    fit = len(rows) * 3 // 4
    weights = np.linalg.lstsq(design[:fit], answers[:fit])[0]
    error = float(np.abs(design[fit:] @ weights - answers[fit:]).max())
    if error > TOLERANCE:
        raise OutOfDomain(
            f"the accuracy predictor is not linear in the choices (off by {error:.3g} points, at most {TOLERANCE:g} "
            "allowed): search for the best network instead"
        )
    return dict(zip(space.encoded_choices, weights[1:].tolist(), strict=True))


class _Program:
    """The integer program of one resolution. Its variables, all 0 or 1, are forms of units and of blocks.

    A variable has coefficients in equations, whose sums are 0: +1 where it is what others ask for, -1 where it
    asks. (u, m): a form of unit u with multiplier m, for the unit that reads it. (block, i, m, d): a form of a
    block with these input multiplier and multiplier, for the unit around it; d is the depth (as an index) that
    its genes follow from where choices are tied, and else 0. In `WHOLE`, a form of the first unit, the sum is 1.
    """

    def __init__(self, limits: Limits, tables: Sequence[PriceTable], shares: Shares, resolution: int) -> None:
        self.space, self.bounds = limits.space, limits.bounds
        self.tables, self.shares, self.resolution = tables, shares, resolution
        self.chosen: list[tuple[int, ...]] = []  # by each variable: (unit, multiplier, depth) or (block, gene)
        self.gains: list[float] = []
        self.costs: list[list[float]] = []  # in each constraint
        self.equations: defaultdict[Key, list[tuple[int, float]]] = defaultdict(list, {WHOLE: []})
        for u in range(len(self.space.units)):
            self._add_unit(u)
        for block in range(len(self.space.block_indices)):
            self._add_block(block)

    def solve(self) -> Rows | None:
        """The best row, or None where none meets the constraints."""
        sums = [i for i, table in enumerate(self.tables) if not table.peak]
        lines = [*self.equations.values(), *([(index, cost[i]) for index, cost in enumerate(self.costs)] for i in sums)]
        totals = np.array([float(key == WHOLE) for key in self.equations])
        entries = [(line, index, value) for line, items in enumerate(lines) for index, value in items]
        at, index, values = (np.array(part) for part in zip(*entries, strict=True))
        result = milp(
            -np.array(self.gains),
            integrality=np.ones(len(self.gains)),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(
                csr_array((values, (at, index)), shape=(len(lines), len(self.gains))),
                np.concatenate([totals, np.full(len(sums), -np.inf)]),
                np.concatenate([totals, self.bounds[sums]]),
            ),
            options={"mip_rel_gap": 0.0},
        )
        return None if result.x is None else self._row(result.x > 0.5)

    def _add(self, chosen: tuple[int, ...], gain: float, costs: list[float], terms: dict[Key, float]) -> None:
        """Add a variable with its coefficients, unless it breaks a peak."""
        if all(not t.peak or cost <= bound for t, cost, bound in zip(self.tables, costs, self.bounds, strict=True)):
            for key, coefficient in terms.items():
                self.equations[key].append((len(self.gains), coefficient))
            self.chosen.append(chosen)
            self.gains.append(gain)
            self.costs.append(costs)

    def _add_unit(self, u: int) -> None:
        unit, r, last = self.space.units[u], self.resolution, u == len(self.space.units) - 1
        start = self.space.block_indices.index((u, 0)) if unit.depths[-1] else 0
        before = range(len(self.space.units[u - 1].width_multipliers) if u else 1)
        for i, (m, multiplier) in itertools.product(before, enumerate(unit.width_multipliers)):
            # The stem and the head go with the multiplier of the unit that is next to them.
            costs = [t.total([t.stem[r, m] if u == 0 else 0.0, t.head[r, m] if last else 0.0]) for t in self.tables]
            terms: dict[Key, float] = {(u - 1, i): -1.0} if u else {WHOLE: 1.0}
            if not last:
                terms[u, m] = 1.0
            for d, depth in enumerate(unit.depths):
                tied = d if unit.tied_choices else 0
                blocks = {(start + b, m if b else i, m, tied): -1.0 for b in range(depth)}
                gain = self._share(WIDTH, u, 0, multiplier) + self._share(DEPTH, u, 0, depth)
                self._add((u, m, d), gain, costs, terms | blocks)

    def _add_block(self, block: int) -> None:
        u, b = self.space.block_indices[block]
        unit = self.space.units[u]
        gains = [sum(self._share(name, u, b, value) for name, value in gene.items()) for gene in unit.genes]
        for key in [key for key in self.equations if len(key) == 4 and key[0] == block]:
            _, i, m, d = key
            for gene in unit.genes_of_depth[d]:
                costs = [float(table.blocks[self.resolution, block, i, m, 1 + gene]) for table in self.tables]
                self._add((block, gene), gains[gene], costs, {key: 1.0})

    def _share(self, what: str, u: int, b: int, choice: Any) -> float:
        """What a choice adds to the accuracy (points): nothing where there is no other, or other columns tell it."""
        return self.shares.get((what, u, b, choice), 0.0)

    def _row(self, taken: NDArray[np.bool_]) -> Rows:
        space = self.space
        row = np.full((1, len(space.columns)), -1, np.int16)
        row[0, 0] = self.resolution
        places = {key: column for column, key in enumerate(space.columns)}
        for index in np.flatnonzero(taken):
            match self.chosen[index]:
                case (u, m, d):
                    row[0, places[DEPTH, u, 0]] = d
                    if (WIDTH, u, 0) in places:
                        row[0, places[WIDTH, u, 0]] = m
                case (block, gene):
                    space.set_genes(row, block, gene)
        return space.canonical(row)
