"""Evolutionary search under hard constraints (paper, section 3.4), vectorised over a population. No torch.

Each resolution is a population of its own: a single one can settle on a wrong resolution. A network
that breaks a constraint is repaired by taking more and more choices from the cheapest network, so
tight budgets cost no rejected samples, and whether a budget can be met at all is known beforehand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onceforall.architecture import Architecture
from onceforall.cost.model import Constraint
from onceforall.errors import InfeasibleConstraint, InvalidArchitecture, InvalidConfiguration, OutOfDomain
from onceforall.search.pricing import Pricer, PriceTable, pricer
from onceforall.space import Rows, SearchSpace


class RowPredictor(Protocol):
    """Predicted accuracy of rows of its own space, percent."""

    @property
    def space(self) -> SearchSpace: ...

    def predict_rows(self, rows: Rows) -> NDArray[np.float64]: ...


@dataclass(frozen=True)
class Cost:
    """A predicted cost of the chosen network, with its bound, both in `unit`."""

    name: str
    value: float
    bound: float
    unit: str


@dataclass(frozen=True)
class SearchResult:
    """What a search found. `accuracy` (percent) and `costs` are predictions, not measurements.

    `runners_up` are the next best feasible networks, best first.
    """

    architecture: Architecture
    accuracy: float
    costs: tuple[Cost, ...]
    runners_up: tuple[Architecture, ...]
    evaluations: int
    seconds: float
    seed: int

    def to_json(self) -> dict[str, Any]:
        """A JSON object; numbers say that they are predicted."""
        return {
            "architecture": self.architecture.to_json(),
            "predicted_top1": self.accuracy,
            "predicted_costs": [asdict(cost) for cost in self.costs],
            "runners_up": [arch.to_json() for arch in self.runners_up],
            "evaluations": self.evaluations,
            "seconds": self.seconds,
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SearchResult:
        """The inverse of `to_json`. Raises InvalidConfiguration."""
        try:
            return cls(
                Architecture.from_json(value["architecture"]),
                value["predicted_top1"],
                tuple(Cost(**cost) for cost in value["predicted_costs"]),
                tuple(Architecture.from_json(arch) for arch in value["runners_up"]),
                value["evaluations"],
                value["seconds"],
                value["seed"],
            )
        except (KeyError, TypeError) as error:
            raise InvalidConfiguration(f"not a search result: {error}") from error


def search(
    space: SearchSpace,
    accuracy: RowPredictor,
    constraints: Sequence[Constraint],
    *,
    seed: int = 0,
    population: int = 100,
    generations: int = 60,
    parents: float = 0.25,
    mutation: float = 0.1,
    keep: int = 10,
) -> SearchResult:
    """The network of highest predicted accuracy that meets every constraint.

    parents: share of a population that breeds; mutation: probability a choice; half of the children
    are mutations, half crossovers. `keep` is the number of networks reported, the best included.
    The predictor's space is this one, or a larger one that has all its choices.
    Raises InfeasibleConstraint at once where a bound lies below what the space can reach,
    OutOfDomain where the predictor belongs to another space.
    """
    if population < 4 or generations < 1 or keep < 1 or not 0 < parents <= 1 or not 0 < mutation <= 1:
        raise InvalidConfiguration(
            f"population {population}, generations {generations}, parents {parents}, mutation {mutation}, keep {keep}: "
            "expected at least 4, 1 and 1, and shares above 0 up to 1"
        )
    began = time.perf_counter()
    rng = np.random.default_rng(seed)
    limits = _Limits(space, constraints)
    predict = _predict_rows_of(space, accuracy)
    evaluations = 0
    found: list[tuple[NDArray[np.float64], Rows]] = []
    for resolution in limits.feasible_resolutions():
        rows = space.sample_rows(population, rng)
        rows[:, 0] = resolution
        rows = limits.repair(rows, rng)
        scores = predict(rows)
        evaluations += len(rows)
        for _ in range(generations):
            rows, scores = _best(rows, scores, max(2, round(parents * population)))
            half = population // 2
            mutants = space.mutate_rows(rows[rng.integers(0, len(rows), half)], rng, mutation)
            pairs = rng.integers(0, len(rows), (2, population - half))
            crossed = space.crossover_rows(rows[pairs[0]], rows[pairs[1]], rng)
            children = np.concatenate([mutants, crossed])
            children[:, 0] = resolution
            children = limits.repair(children, rng)
            rows = np.concatenate([rows, children])
            scores = np.concatenate([scores, predict(children)])
            evaluations += len(children)
        best_rows, best_scores = _best(rows, scores, keep)
        found.append((best_scores, best_rows))
    rows, scores = _best(np.concatenate([r for _, r in found]), np.concatenate([s for s, _ in found]), keep)
    architectures = space.from_rows(rows)
    costs = tuple(
        Cost(c.model.name, float(price(rows[:1])[0]), c.bound, c.model.unit)
        for c, price in zip(constraints, limits.pricers, strict=True)
    )
    return SearchResult(
        architectures[0],
        float(scores[0]),
        costs,
        tuple(architectures[1:]),
        evaluations,
        time.perf_counter() - began,
        seed,
    )


def _predict_rows_of(space: SearchSpace, accuracy: RowPredictor) -> Callable[[Rows], NDArray[np.float64]]:
    """The predictor for rows of a space, whose indices may mean something else in the predictor's own."""
    own = accuracy.space
    if own == space:
        return accuracy.predict_rows
    try:
        adopt = own.adopting(space)
    except InvalidArchitecture as error:
        raise OutOfDomain(f"the accuracy predictor belongs to another space than the search: {error}") from error
    return lambda rows: accuracy.predict_rows(adopt(rows))


class _Limits:
    """The constraints of a search, and the cheapest networks that repair what breaks them."""

    def __init__(self, space: SearchSpace, constraints: Sequence[Constraint]) -> None:
        self.space = space
        self.bounds = [constraint.bound for constraint in constraints]
        self.pricers: list[Pricer] = [pricer(space, constraint.model) for constraint in constraints]
        self.cheapest = self._smallest_rows()
        for constraint, price in zip(constraints, self.pricers, strict=True):
            rows, costs = price.cheapest() if isinstance(price, PriceTable) else (self.cheapest, price(self.cheapest))
            if costs.min() > constraint.bound:
                arch = space.from_rows(rows[costs.argmin()][None])[0]
                raise InfeasibleConstraint(
                    f"{constraint} cannot be met: the smallest sub-network needs {costs.min():.4g} "
                    f"{constraint.model.unit} ({arch})",
                    float(costs.min()),
                )
        if len(self.pricers) == 1 and isinstance(self.pricers[0], PriceTable):
            self.cheapest = self.pricers[0].cheapest()[0]

    def met(self, rows: Rows) -> NDArray[np.bool_]:
        """Which rows meet every constraint."""
        result = np.ones(len(rows), bool)
        for price, bound in zip(self.pricers, self.bounds, strict=True):
            result &= price(rows) <= bound
        return result

    def feasible_resolutions(self) -> list[int]:
        """Indices of the resolutions whose cheapest network meets every constraint."""
        feasible = np.flatnonzero(self.met(self.cheapest)).tolist()
        if not feasible:
            costs = [price(self.cheapest).min() for price in self.pricers]
            raise InfeasibleConstraint(
                "the constraints cannot be met together: the smallest sub-networks need "
                + ", ".join(f"{cost:.4g} (bound {bound:g})" for cost, bound in zip(costs, self.bounds, strict=True)),
                float(costs[0]),
            )
        return feasible

    def repair(self, rows: Rows, rng: np.random.Generator) -> Rows:
        """Rows that meet every constraint: those that do not take choices of the cheapest until they do."""
        for share in (0.1, 0.2, 0.4, 0.7, 1.0):
            broken = np.flatnonzero(~self.met(rows))
            if not len(broken):
                break
            cheap = self.cheapest[rows[broken, 0]]
            if share == 1.0:
                rows[broken] = cheap
                break
            rows[broken] = self.space.crossover_rows(rows[broken], cheap, rng, share)
        return rows

    def _smallest_rows(self) -> Rows:
        row = self.space.to_rows([self.space.smallest()])
        rows = np.repeat(row, len(self.space.resolutions), axis=0)
        rows[:, 0] = np.arange(len(rows))
        return rows


def _best(rows: Rows, scores: NDArray[np.float64], count: int) -> tuple[Rows, NDArray[np.float64]]:
    """The best distinct rows, best first."""
    rows, index = np.unique(rows, axis=0, return_index=True)
    scores = scores[index]
    order = np.argsort(-scores, kind="stable")[:count]
    return rows[order], scores[order]
