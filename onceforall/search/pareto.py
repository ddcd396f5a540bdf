"""Whole fronts in one run: NSGA-II for an outline, then exchanges of choices at budgets along it. No torch.

NSGA-II is Deb et al., IEEE Transactions on Evolutionary Computation 6(2), 2002: non-dominated
sorting, crowding distance, binary tournaments; here all three work on arrays.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from onceforall.architecture import Architecture
from onceforall.checks import check_integer
from onceforall.cost.model import Constraint, CostModel
from onceforall.errors import InfeasibleConstraint, InvalidConfiguration
from onceforall.rows import Rows
from onceforall.search.evolution import MOST, check_effort
from onceforall.search.exchange import Exchange
from onceforall.search.limits import Limits
from onceforall.search.result import Cost, Found
from onceforall.search.scoring import RowPredictor, Scorer
from onceforall.space import SearchSpace
from onceforall.threads import one_thread

FORMAT = "onceforall.front/1"
NO_BOUND = sys.float_info.max / 4  # a cost that is only minimised; sums of two do not overflow
RESOLUTIONS = 3  # that are tried at each budget


@dataclass(frozen=True)
class FrontPoint(Found):
    """A network of a front: predicted accuracy (percent) and predicted costs."""

    what = "a point of a front"

    architecture: Architecture
    accuracy: float
    costs: tuple[Cost, ...]


@dataclass(frozen=True)
class Front(Found):
    """Networks of which none is both less accurate and dearer than another, cheapest (in the first cost) first."""

    what = "a front"

    points: tuple[FrontPoint, ...]
    evaluations: int
    seconds: float
    seed: int

    def within(self, bound: float) -> FrontPoint:
        """The most accurate point whose first cost is at most `bound`. Raises InfeasibleConstraint."""
        inside = [point for point in self.points if point.costs[0].value <= bound]
        if not inside:
            first = self.points[0]
            raise InfeasibleConstraint(
                f"{first.costs[0].name} <= {bound:g} {first.costs[0].unit}: the front begins at "
                f"{first.costs[0].value:.4g} ({first.architecture})",
                first.costs[0].value,
                first.architecture,
            )
        return max(inside, key=lambda point: point.accuracy)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; numbers say that they are predicted."""
        return {"format": FORMAT, **super().to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `to_json`. Raises InvalidConfiguration."""
        if value.get("format") != FORMAT:
            raise InvalidConfiguration(f"front of format {value.get('format')!r}: expected {FORMAT!r}")
        return super().from_json(value)


@one_thread()
def front(
    space: SearchSpace,
    accuracy: RowPredictor,
    costs: Sequence[CostModel],
    constraints: Sequence[Constraint] = (),
    *,
    budgets: Sequence[float] | None = None,
    points: int = 40,
    seed: int = 0,
    population: int = 200,
    generations: int = 30,
    mutation: float = 0.06,
    rounds: int = 3,
) -> Front:
    """Networks of which none is both less accurate and dearer than another, about `points` of them.

    With one cost model there is one network for each of `budgets` (in its unit; evenly spread where
    none are given), the best within it; with several, those that lie farthest apart. Constraints hold
    for all. `rounds`: how often the networks at all budgets are improved, each time from the best
    that is known. Raises InfeasibleConstraint, OutOfDomain.
    """
    if not costs:
        raise InvalidConfiguration("0 costs: a front needs one at least")
    check_integer("population", population, 2, MOST)
    check_effort(seed, mutation, points=points, generations=generations, rounds=rounds)
    if budgets is not None and (len(costs) != 1 or not len(budgets)):
        raise InvalidConfiguration(f"{len(budgets)} budgets for {len(costs)} costs: budgets need exactly one cost")
    began = time.perf_counter()
    others = [constraint for constraint in constraints if constraint.model not in costs]
    limits, known = Limits(space, [*_bounded(costs, constraints), *others]), Scorer(space, accuracy)
    task = _Task(limits, known, Exchange(limits, known), len(costs), np.random.default_rng(seed), mutation)
    if budgets is not None:
        tight = Limits(space, [costs[0].at_most(min(budgets)), *others])  # raises where the tightest cannot be met
        known(tight.anchors[tight.resolutions])  # so that something within it is known
    outline = task.outline(population, generations)
    targets = task.targets(outline, points, budgets)
    for _ in range(rounds):
        task.improve(targets)
    rows = np.unique(np.concatenate([outline, task.best_within(targets)[0]]), axis=0)
    top1, values = known(rows), limits.costs(rows)
    chosen = _steps(top1, values[:, 0], targets[:, 0]) if len(costs) == 1 else _spread(task.objectives(rows), points)
    chosen = chosen[np.argsort(values[chosen, 0], kind="stable")]
    found = tuple(
        FrontPoint(architecture, float(percent), _named(limits, cost))
        for architecture, percent, cost in zip(space.from_rows(rows[chosen]), top1[chosen], values[chosen], strict=True)
    )
    return Front(found, known.evaluations, time.perf_counter() - began, seed)


def _bounded(costs: Sequence[CostModel], constraints: Sequence[Constraint]) -> list[Constraint]:
    """What is minimised as constraints: at its tightest bound, or at none."""
    return [model.at_most(min([c.bound for c in constraints if c.model == model], default=NO_BOUND)) for model in costs]


def _named(limits: Limits, cost: NDArray[np.float64]) -> tuple[Cost, ...]:
    """The costs of one network, without bounds where there were none."""
    return tuple(replace(c, bound=None) if c.bound == NO_BOUND else c for c in limits.named(cost))


@dataclass
class _Task:
    """What the steps of `front` share. `count`: how many of the limits' costs are minimised, the first of them."""

    limits: Limits
    known: Scorer
    exchange: Exchange
    count: int
    rng: np.random.Generator
    mutation: float

    def objectives(self, rows: Rows) -> NDArray[np.float64]:
        """What is minimised, shape [n, objectives]."""
        return np.concatenate([-self.known(rows)[:, None], self.limits.costs(rows)[:, : self.count]], axis=1)

    def outline(self, population: int, generations: int) -> Rows:
        """The last population of NSGA-II on accuracy and the costs."""
        limits, rng, space = self.limits, self.rng, self.limits.space

        def sorted_best(rows: Rows) -> Rows:
            """The `population` best rows: by front, then by crowding distance."""
            rows = np.unique(rows, axis=0)
            objectives = self.objectives(rows)
            front_of = ranks(objectives)
            distances = np.zeros(len(rows))
            for rank in range(front_of.max() + 1):
                members = np.flatnonzero(front_of == rank)
                distances[members] = crowding(objectives[members])
            return rows[np.lexsort((-distances, front_of))[:population]]

        rows = space.sample_rows(population, rng)
        rows[:, 0] = rng.choice(limits.resolutions, population)
        rows = sorted_best(np.concatenate([limits.repair(rows, rng), limits.anchors[limits.resolutions]]))
        for _ in range(generations):
            # Rows are in order, so the winner of a tournament is the smaller index.
            first, second = rng.integers(0, len(rows), (2, 2, population)).min(axis=0)
            born = self._children(rows[first], rows[second])
            outside = np.flatnonzero(~np.isin(born[:, 0], limits.resolutions))
            born[outside, 0] = rng.choice(limits.resolutions, len(outside))
            rows = sorted_best(np.concatenate([rows, limits.repair(born, rng)]))
        return rows

    def targets(self, rows: Rows, points: int, budgets: Sequence[float] | None) -> NDArray[np.float64]:
        """Bounds of all costs, for each network that is wanted, shape [targets, constraints]."""
        costs, bounds = self.limits.costs(rows), self.limits.bounds
        if budgets is not None:
            first = np.sort(np.asarray(budgets, float))
        elif self.count == 1:
            first = np.linspace(costs[:, 0].min(), costs[self.known(rows).argmax(), 0], points)
        else:
            targets = costs[_spread(self.objectives(rows), points)]
            targets[:, self.count :] = bounds[self.count :]
            return targets
        targets = np.tile(bounds, (len(first), 1))
        targets[:, 0] = np.minimum(first, bounds[0])
        return targets

    def best_within(self, targets: NDArray[np.float64]) -> tuple[Rows, NDArray[np.int64]]:
        """For each target the best known network of each of its best resolutions, and whose target it is."""
        rows, accuracy = self.known.everything()
        rows = rows[np.argsort(-accuracy, kind="stable")]
        costs = self.limits.costs(rows)
        chosen, owners = [], []
        for owner, target in enumerate(targets):
            inside = np.flatnonzero((costs <= target).all(axis=1))
            leaders = np.sort(np.unique(rows[inside, 0], return_index=True)[1])[:RESOLUTIONS]
            chosen.append(inside[leaders])
            owners.append(np.full(len(leaders), owner))
        return rows[np.concatenate(chosen)], np.concatenate(owners)

    def improve(self, targets: NDArray[np.float64]) -> None:
        """Improve the best known network at every target by exchanges, then a child of each of those.

        Nothing is returned: all that was scored on the way is known from then on, and may be the best at other targets.
        """
        known, exchange = self.known, self.exchange
        best, owners = self.best_within(targets)
        parents, _ = exchange.improve(best, known(best), targets[owners])
        children = self._children(parents, parents[self.rng.permutation(len(parents))])
        children[:, 0] = parents[:, 0]
        within = (self.limits.costs(children) <= targets[owners]).all(axis=1)
        exchange.improve(children[within], known(children[within]), targets[owners[within]])

    def _children(self, first: Rows, second: Rows) -> Rows:
        space = self.limits.space
        return space.mutate_rows(space.crossover_rows(first, second, self.rng), self.rng, self.mutation)


def ranks(objectives: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number of the front that each point belongs to, 0 for the non-dominated ones.

    objectives: shape [n, objectives], all minimised. A point dominates another if it is nowhere
    worse and somewhere better, so equal points share a front.
    """
    no_worse = np.asarray((objectives[:, None] <= objectives[None]).all(axis=2))
    dominates = no_worse & ~no_worse.T
    result = np.full(len(objectives), -1, np.int64)
    for rank in range(len(objectives)):
        left = result < 0
        if not left.any():
            break
        result[left & ~dominates[left].any(axis=0)] = rank
    return result


def crowding(objectives: NDArray[np.float64]) -> NDArray[np.float64]:
    """Crowding distance of the points of one front: how far apart the neighbours of each are, the ends infinitely."""
    result = np.zeros(len(objectives))
    for values in objectives.T:
        order = np.argsort(values, kind="stable")
        span = values[order[-1]] - values[order[0]]
        result[order[[0, -1]]] = np.inf
        if span > 0:
            result[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / span
    return result


def _spread(objectives: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Indices of the non-dominated points that lie farthest apart, `count` at most."""
    members = np.flatnonzero(ranks(objectives) == 0)
    return members[np.argsort(-crowding(objectives[members]), kind="stable")[:count]]


def _steps(
    accuracy: NDArray[np.float64], costs: NDArray[np.float64], budgets: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Indices of the best within each budget, each once; of equally accurate ones the cheapest."""
    order = np.lexsort((costs, -accuracy))
    inside = costs[order][None] <= budgets[:, None]
    return np.unique(order[inside.argmax(axis=1)[inside.any(axis=1)]])
