"""The true optimum, where accuracy is linear in the choices: a yardstick for what searches by trial.

Where every choice adds its own share to the accuracy, and every constraint bounds a sum or a peak
over layers, the best network of a resolution is an integer program: each unit takes one form
(depth and width multipliers), each of its active blocks one gene. The
published predictor is not linear, so there a search has no such yardstick.
"""

from __future__ import annotations

import itertools
import time
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

TOLERANCE = 1e-3  # points of accuracy that a linear model may be off before it is refused

Shares = dict[tuple[str, int, int, Any], float]  # what each choice of a unit or block adds to the accuracy (points)
Form = tuple[int, int, int]  # a unit's input multiplier, multiplier and depth, as indices
Block = tuple[int, int, int]  # a block's input multiplier and multiplier, as indices, and the number of its gene


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
    rows = [_Program(space, tables, limits.bounds, shares, resolution).solve() for resolution in limits.resolutions]
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
    return dict(zip(space.encoded_choices, weights[1:].tolist(), strict=True))


class _Program:
    """The integer program of one resolution. Its variables, all 0 or 1, are forms of units and of blocks."""

    def __init__(
        self,
        space: SearchSpace,
        tables: Sequence[PriceTable],
        bounds: NDArray[np.float64],
        shares: Shares,
        resolution: int,
    ) -> None:
        self.space, self.tables, self.bounds, self.shares = space, tables, bounds, shares
        self.resolution = resolution
        self.gains: list[float] = []
        self.costs: list[list[float]] = []  # in each constraint
        self.forms: list[dict[Form, int]] = []  # variables of each unit
        self.blocks: list[dict[Block, int]] = []  # of each block
        self.equations: list[tuple[dict[int, float], float]] = []  # coefficients and their sum
        for u in range(len(space.units)):
            self._add_unit(u)
        for block in range(len(space.block_indices)):
            self._add_block(block)

    def solve(self) -> Rows | None:
        """The best row, or None where none meets the constraints."""
        sums = [i for i, table in enumerate(self.tables) if not table.peak]
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
                np.concatenate([totals, self.bounds[sums]]),
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
        unit, r = self.space.units[u], self.resolution
        begins, ends = u == 0, u == len(self.space.units) - 1
        before = range(1 if begins else len(self.space.units[u - 1].width_multipliers))
        own: dict[Form, int] = {}
        for i, (m, multiplier) in itertools.product(before, enumerate(unit.width_multipliers)):
            # The stem and the head go with the multiplier of the unit that is next to them.
            costs = [t.total([begins * t.stem[r, m], ends * t.head[r, m]]) for t in self.tables]
            if self._allowed(costs):
                gain = self._share(WIDTH, u, 0, multiplier)
                for d, depth in enumerate(unit.depths):
                    own[i, m, d] = self._add(gain + self._share(DEPTH, u, 0, depth), costs)
        self.forms.append(own)
        if begins:
            self.equations.append((dict.fromkeys(own.values(), 1.0), 1.0))
        for i in () if begins else before:
            made = {index: 1.0 for form, index in self.forms[u - 1].items() if form[1] == i}
            read = {index: -1.0 for form, index in own.items() if form[0] == i}
            self.equations.append((made | read, 0.0))

    def _add_block(self, block: int) -> None:
        """The forms of a block: as many as its unit's form asks for, that is one or none."""
        u, b = self.space.block_indices[block]
        unit = self.space.units[u]
        gains = [sum(self._share(name, u, b, value) for name, value in gene.items()) for gene in unit.genes]
        demands: dict[tuple[int, int, int], dict[int, float]] = {}
        for (i, m, d), index in self.forms[u].items():
            if unit.depths[d] > b:
                # Inside a unit a block reads its own; where choices are tied, its genes follow from the depth.
                demands.setdefault((i if b == 0 else m, m, d if unit.tied_choices else 0), {})[index] = -1.0
        own: dict[Block, int] = {}
        for (i, m, d), equation in demands.items():
            for gene in unit.genes_of_depth[d]:
                costs = [float(table.blocks[self.resolution, block, i, m, 1 + gene]) for table in self.tables]
                if self._allowed(costs):
                    own[i, m, gene] = self._add(gains[gene], costs)
                    equation[own[i, m, gene]] = 1.0
            self.equations.append((equation, 0.0))
        self.blocks.append(own)

    def _share(self, what: str, u: int, b: int, choice: Any) -> float:
        """What a choice adds to the accuracy (points): nothing where there is no other, or other columns tell it."""
        return self.shares.get((what, u, b, choice), 0.0)

    def _allowed(self, costs: list[float]) -> bool:
        """Whether a part keeps the peaks: what exceeds one is no variable at all."""
        return all(not t.peak or cost <= bound for t, cost, bound in zip(self.tables, costs, self.bounds, strict=True))

    def _row(self, chosen: NDArray[np.bool_]) -> Rows:
        space = self.space
        row = np.full((1, len(space.columns)), -1, np.int16)
        row[0, 0] = self.resolution
        places = {key: column for column, key in enumerate(space.columns)}
        for u, forms in enumerate(self.forms):
            ((_, m, d),) = (form for form, index in forms.items() if chosen[index])
            row[0, places[DEPTH, u, 0]] = d
            if (WIDTH, u, 0) in places:
                row[0, places[WIDTH, u, 0]] = m
        for block, own in enumerate(self.blocks):
            for (_, _, gene), index in own.items():
                if chosen[index]:
                    space.set_genes(row, block, gene)
        return space.canonical(row)
