"""Evolutionary search under hard constraints (paper, section 3.4), vectorised over a population. No torch.

Each resolution is a population of its own: a single one can settle on a wrong resolution. A network
that breaks a constraint is repaired by taking more and more choices from one that meets it, so tight
budgets cost no rejected samples, and whether a budget can be met at all is known beforehand.

Beyond the paper, every child is improved by exchanges of choices before it competes (search/exchange.py):
what competes are local optima, and a few dozen of them do what thousands of plain children do not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onceforall.checks import check_integer, expect, is_number
from onceforall.cost.model import Constraint
from onceforall.rows import Rows
from onceforall.search.exchange import Exchange
from onceforall.search.limits import Limits, costs_of
from onceforall.search.objective import Accuracy, Objective
from onceforall.search.pricing import pricer
from onceforall.search.result import Cost, SearchResult
from onceforall.search.scoring import RowPredictor, Scorer
from onceforall.space import SearchSpace
from onceforall.threads import one_thread

GENERATIONS = 14
MOST = 10_000  # of anything that a search may be told to do: more would take days
FINALISTS = 3  # resolutions that go on after the start


def check_effort(seed: int, mutation: float, **counts: int) -> None:
    """Raises InvalidConfiguration for a seed, a probability of mutation or a count that is out of range."""
    check_integer("seed", seed, 0)
    expect("mutation", mutation, is_number(mutation) and 0 < mutation <= 1, "a probability above 0")
    for name, count in counts.items():
        check_integer(name, count, 1, MOST)


@one_thread()
def search(
    space: SearchSpace,
    accuracy: RowPredictor,
    constraints: Sequence[Constraint],
    *,
    objective: Objective | None = None,
    seed: int = 0,
    population: int = 100,
    starts: int = 10,
    children: int = 6,
    generations: int = GENERATIONS,
    mutation: float = 0.06,
    keep: int = 10,
) -> SearchResult:
    """The network that meets every constraint and maximises the objective, predicted accuracy by default.

    population: random networks of each resolution; starts: how many of those are improved, the best
    of each resolution; children: new networks a generation, a crossover and a mutation each, with
    parents among the best of the three best resolutions; mutation: probability a choice. `keep` is
    the number of networks reported, the best included; of equally good ones the cheaper first.
    The predictor's space is this one, or a larger one that has all its choices.
    Raises InfeasibleConstraint at once where a bound lies below what the space can reach,
    OutOfDomain where the predictor belongs to another space.
    """
    check_integer("population", population, 1, MOST)
    check_effort(seed, mutation, starts=starts, children=children, generations=generations, keep=keep)
    began = time.perf_counter()
    scorer, limits = Scorer(space, accuracy), Limits(space, constraints)
    task = _Task(scorer, limits, objective or Accuracy(), np.random.default_rng(seed))
    rows, scores = task.start(population, starts)
    for _ in range(generations):
        born, born_scores = task.offspring(rows, scores, children, mutation)
        rows, scores = _distinct(np.concatenate([rows, born]), np.concatenate([scores, born_scores]))
    rows, found = task.best(keep)
    architectures = space.from_rows(rows)
    return SearchResult(
        architectures[0],
        float(found[0]),
        task.costs(rows[:1]),
        tuple(architectures[1:]),
        scorer.evaluations,
        time.perf_counter() - began,
        seed,
    )


@dataclass
class _Task:
    """What the steps of a search share."""

    scorer: Scorer
    limits: Limits
    objective: Objective
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.space = self.limits.space
        self._pricers = [pricer(self.space, model) for model in self.objective.models]
        self._exchange = Exchange(self.limits, self.score)

    def score(self, rows: Rows) -> NDArray[np.float64]:
        """The objective of each row."""
        return self.objective.score(self.scorer(rows), costs_of(rows, self._pricers))

    def start(self, population: int, starts: int) -> tuple[Rows, NDArray[np.float64]]:
        """Improved networks of every resolution, or of the most promising where there are more than `starts`."""
        resolutions = np.array(self.limits.resolutions, np.int16)
        rows = self.space.sample_rows(population * len(resolutions), self.rng)
        rows[:, 0] = np.repeat(resolutions, population)
        rows, scores = _distinct(*self._repaired(rows))
        ranks = _ranks_within(rows[:, 0], scores)
        chosen = np.lexsort((-scores, ranks))[: max(starts, min(len(resolutions), FINALISTS))]
        return self._improved(rows[chosen], scores[chosen])

    def offspring(
        self, rows: Rows, scores: NDArray[np.float64], count: int, mutation: float
    ) -> tuple[Rows, NDArray[np.float64]]:
        """Improved children of the best networks of the best resolutions, equally many of each of those."""
        ranks = _ranks_within(rows[:, 0], scores)
        leaders = np.flatnonzero(ranks == 0)
        leaders = leaders[np.argsort(-scores[leaders], kind="stable")][:FINALISTS]
        parents = np.flatnonzero(np.isin(rows[:, 0], rows[leaders, 0]) & (ranks < max(2, count // 2)))
        own = rows[leaders[np.arange(count) % len(leaders)], 0]
        # The first parent is of the child's own resolution, the second of any.
        first = np.array([self.rng.choice(parents[rows[parents, 0] == resolution]) for resolution in own])
        second = self.rng.choice(parents, count)
        born = self.space.mutate_rows(
            self.space.crossover_rows(rows[first], rows[second], self.rng), self.rng, mutation
        )
        born[:, 0] = own
        return self._improved(*self._repaired(born))

    def best(self, count: int) -> tuple[Rows, NDArray[np.float64]]:
        """The best feasible networks of all that were scored, and their predicted accuracy (percent)."""
        rows, accuracy = self.scorer.everything()
        scores = self.objective.score(accuracy, costs_of(rows, self._pricers))
        feasible = np.flatnonzero(self.limits.met(rows))
        costs = self.limits.costs(rows[feasible])
        order = feasible[np.lexsort((*costs.T[::-1], -scores[feasible]))][:count]
        return rows[order], accuracy[order]

    def costs(self, row: Rows) -> tuple[Cost, ...]:
        """The costs of one row that a constraint or the objective names."""
        constrained = [constraint.model for constraint in self.limits.constraints]
        free = [
            Cost.of(model, price(row)[0])
            for model, price in zip(self.objective.models, self._pricers, strict=True)
            if model not in constrained
        ]
        return (*self.limits.named(self.limits.costs(row)[0]), *free)

    def _repaired(self, rows: Rows) -> tuple[Rows, NDArray[np.float64]]:
        rows = self.limits.repair(rows, self.rng)
        return rows, self.score(rows)

    def _improved(self, rows: Rows, scores: NDArray[np.float64]) -> tuple[Rows, NDArray[np.float64]]:
        return self._exchange.improve(rows, scores, np.tile(self.limits.bounds, (len(rows), 1)))


def _ranks_within(groups: NDArray[np.int16], scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """The rank of each score in its group: 0 is the best."""
    order = np.lexsort((-scores, groups))
    starts = np.searchsorted(groups[order], groups[order])
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order)) - starts
    return ranks


def _distinct(rows: Rows, scores: NDArray[np.float64]) -> tuple[Rows, NDArray[np.float64]]:
    """Each different row once."""
    rows, index = np.unique(rows, axis=0, return_index=True)
    return rows, scores[index]
