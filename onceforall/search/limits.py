"""Hard constraints: what meets them, whether anything does, and the repair of what does not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onceforall.cost.model import Constraint
from onceforall.errors import InfeasibleConstraint
from onceforall.rows import Rows
from onceforall.search.neighbours import Neighbours
from onceforall.search.pricing import Pricer, PriceTable, pricer
from onceforall.search.result import Cost
from onceforall.space import SearchSpace

RANDOM = 8  # networks from which a cheaper one is looked for before a constraint is refused


class Limits:
    """The constraints of a search, all of them upper bounds, and for each resolution a network that meets them.

    Raises InfeasibleConstraint where there is none. For one constraint on a sum or a peak over layers
    that is exact: the least value within reach is known. For other costs, and where constraints
    can only be met each on its own, it means that none was found by changing one choice at a time: of
    the smallest network, of the largest, and of random ones.
    """

    def __init__(self, space: SearchSpace, constraints: Sequence[Constraint]) -> None:
        self.space, self.constraints = space, tuple(constraints)
        self.bounds = np.array([constraint.bound for constraint in constraints], float)
        self._neighbours = Neighbours(space)
        self.pricers = [pricer(space, constraint.model) for constraint in constraints]
        self.anchors = self._found_anchors()
        nearest = self.anchors[[self._violation(self.anchors).argmin()]]
        if not self.met(nearest).all():
            nearest = self._best_found(self._violation, 0.0, nearest)
            self.anchors[nearest[0, 0]] = nearest[0]
        self.resolutions: list[int] = np.flatnonzero(self.met(self.anchors)).tolist()
        if not self.resolutions:
            self._refuse(nearest)

    def costs(self, rows: Rows) -> NDArray[np.float64]:
        """Cost of each row in each constraint, shape [n, constraints]."""
        return costs_of(rows, self.pricers)

    def named(self, costs: NDArray[np.float64]) -> tuple[Cost, ...]:
        """The costs of one row, [constraints], with what they are of."""
        return tuple(Cost.of(c.model, value, c.bound) for c, value in zip(self.constraints, costs, strict=True))

    def met(self, rows: Rows) -> NDArray[np.bool_]:
        """Which rows meet every constraint."""
        return np.asarray((self.costs(rows) <= self.bounds).all(axis=1))

    def repair(self, rows: Rows, rng: np.random.Generator) -> Rows:
        """Rows that meet every constraint: those that do not take choices of the anchor until they do.

        Their resolutions must be among `resolutions`.
        """
        for share in (0.1, 0.2, 0.4, 0.7, 1.0):
            broken = np.flatnonzero(~self.met(rows))
            if not len(broken):
                break
            anchors = self.anchors[rows[broken, 0]]
            rows[broken] = anchors if share == 1 else self.space.crossover_rows(rows[broken], anchors, rng, share)
        return rows

    def _found_anchors(self) -> Rows:
        """For each resolution, the network that comes nearest to meeting every constraint."""
        smallest = np.repeat(self.space.to_rows([self.space.smallest()]), len(self.space.resolutions), axis=0)
        smallest[:, 0] = np.arange(len(smallest))
        starts = [smallest]
        for constraint, price in zip(self.constraints, self.pricers, strict=True):
            starts.append(self._cheapest(constraint, price, smallest))
        additive = [price for price in self.pricers if isinstance(price, PriceTable) and not price.peak]
        if len(additive) > 1:
            bounds = [b for b, p in zip(self.bounds, self.pricers, strict=True) if p in additive]
            starts.append(PriceTable.weighted(additive, [1 / bound for bound in bounds]).cheapest()[0])
        violations = np.stack([self._violation(rows) for rows in starts])
        anchors: Rows = np.stack(starts)[violations.argmin(axis=0), np.arange(len(smallest))]
        if len(self.constraints) > 1 or not all(isinstance(price, PriceTable) for price in self.pricers):
            broken = np.flatnonzero(violations.min(axis=0) > 0)
            anchors[broken] = self._descend(anchors[broken], self._violation)
        return anchors

    def _cheapest(self, constraint: Constraint, price: Pricer, smallest: Rows) -> Rows:
        """The cheapest network at each resolution; of a cost that is no sum or peak, the smallest where they will do.

        Raises InfeasibleConstraint where none meets the constraint, or none was found that does.
        """
        if isinstance(price, PriceTable):
            rows, costs = price.cheapest()
            known = "cannot be met: the smallest sub-network needs"
        else:
            rows, costs = smallest.copy(), price(smallest)
            if costs.min() > constraint.bound:
                found = self._best_found(price, constraint.bound, rows[[costs.argmin()]])
                rows[found[0, 0]] = found[0]
                costs = price(rows)
            known = "is met by no sub-network that was tried: the cheapest that was found needs"
        if costs.min() > constraint.bound:
            architecture = self.space.from_rows(rows[[costs.argmin()]])[0]
            raise InfeasibleConstraint(
                f"{constraint} {known} {costs.min():.4g} {constraint.model.unit} ({architecture})",
                float(costs.min()),
                architecture,
            )
        return rows

    def _best_found(self, price: Pricer, bound: float, start: Rows) -> Rows:
        """The first row found whose price is within the bound, or else the cheapest, shape [1, columns].

        Found by changing one choice at a time of the row `start`; then of the largest network, at the lowest
        resolution and the highest; then of random ones.
        """
        starts = np.concatenate(
            [
                start,
                np.repeat(self.space.to_rows([self.space.largest()]), 2, axis=0),
                self.space.sample_rows(RANDOM, np.random.default_rng(0)),
            ]
        )
        starts[1, 0] = 0
        best = start
        for row in starts:
            found = self._descend(row[None], price)
            best = min(best, found, key=lambda row: float(price(row)[0]))
            if price(best)[0] <= bound:
                break
        return best

    def _violation(self, rows: Rows) -> NDArray[np.float64]:
        """By how much rows break the constraints, in shares of the bounds, summed."""
        costs = self.costs(rows)
        return np.asarray(np.where(costs > self.bounds, costs / self.bounds - 1, 0).sum(axis=1))

    def _descend(self, rows: Rows, price: Pricer) -> Rows:
        """Change one choice at a time while that makes rows cheaper."""
        rows, costs = rows.copy(), price(rows)
        active = np.flatnonzero(costs > 0)
        while len(active):
            near, owners = self._neighbours.of(rows[active])
            found = price(near)
            best = first_of_each(owners, found)
            best = best[found[best] < costs[active[owners[best]]]]
            active = active[owners[best]]
            rows[active], costs[active] = near[best], found[best]
            active = active[costs[active] > 0]
        return rows

    def _refuse(self, nearest: Rows) -> None:
        """Raise InfeasibleConstraint for constraints that may each be met, but were not met together."""
        costs = self.costs(nearest)[0]
        worst = int((costs / self.bounds).argmax())
        needed = ", ".join(f"{c} (it needs {cost:.4g})" for c, cost in zip(self.constraints, costs, strict=True))
        architecture = self.space.from_rows(nearest)[0]
        raise InfeasibleConstraint(
            f"no sub-network that was tried meets the constraints together: the nearest that was found breaks "
            f"{self.constraints[worst]}; of {needed}; raise that bound, or another ({architecture})",
            float(costs[worst]),
            architecture,
        )


def costs_of(rows: Rows, pricers: Sequence[Pricer]) -> NDArray[np.float64]:
    """Costs of rows, shape [n, pricers]."""
    return np.stack([price(rows) for price in pricers], axis=1) if pricers else np.zeros((len(rows), 0))


def first_of_each(owners: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each owner, in ascending order, the index of its least value; of equal ones the first."""
    order = np.lexsort((values, owners))
    return order[np.unique(owners[order], return_index=True)[1]]
