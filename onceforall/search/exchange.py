"""Local search under bounds: a few choices are exchanged for others at once, as long as that improves.

At a tight budget no single choice can be improved on its own: a larger kernel here has to be paid
for by a smaller one there. So all changes of one choice are scored, allowed or not, and their gains
and costs added up suggest sets of changes that fit the budget together (a beam search over a
knapsack). Only the most promising sets are scored as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onceforall.rows import Rows
from onceforall.search.limits import Limits, first_of_each
from onceforall.search.neighbours import Neighbours

CHANGES = 3  # choices that are exchanged at once, at most
BEAM = 64  # sets of changes that are extended by another
TRIES = 24  # sets of each size that are scored

Score = Callable[[Rows], NDArray[np.float64]]


class Exchange:
    """Improves networks of a space by exchanges of choices. score: what to maximise, for rows."""

    def __init__(self, limits: Limits, score: Score) -> None:
        self.limits, self.score = limits, score
        self._neighbours = Neighbours(limits.space)

    def improve(
        self, rows: Rows, scores: NDArray[np.float64], bounds: NDArray[np.float64]
    ) -> tuple[Rows, NDArray[np.float64]]:
        """Rows from which no exchange that is tried improves further, and their scores.

        bounds: upper bounds of the limits' costs, for each row its own, shape [n, constraints]; the
        rows must meet them.
        """
        rows, scores = rows.copy(), scores.copy()
        active = np.arange(len(rows))
        while len(active):
            candidates, owners = self._candidates(rows[active], scores[active], bounds[active])
            found = self.score(candidates)
            best = first_of_each(owners, -found)
            best = best[found[best] > scores[active[owners[best]]]]
            active = active[owners[best]]
            rows[active], scores[active] = candidates[best], found[best]
        return rows, scores

    def _candidates(
        self, rows: Rows, scores: NDArray[np.float64], bounds: NDArray[np.float64]
    ) -> tuple[Rows, NDArray[np.int64]]:
        """Sets of changes worth scoring, all within bounds, and the index of the row that each belongs to."""
        singles, owners = self._neighbours.of(rows)
        present = self.limits.costs(rows)
        gains, costs = self.score(singles) - scores[owners], self.limits.costs(singles) - present[owners]
        ends = np.searchsorted(owners, np.arange(len(rows) + 1))
        chosen, chosen_owners = [singles[:0]], [owners[:0]]
        for index, (start, end) in enumerate(itertools.pairwise(ends)):
            part = slice(start, end)
            for suggested in self._sets(
                rows[index], singles[part], gains[part], costs[part], bounds[index] - present[index]
            ):
                chosen.append(suggested)
                chosen_owners.append(np.full(len(suggested), index))
        candidates, owners = self.limits.space.canonical(np.concatenate(chosen)), np.concatenate(chosen_owners)
        within = (self.limits.costs(candidates) <= bounds[owners]).all(axis=1)
        return candidates[within], owners[within]

    def _sets(
        self,
        row: Rows,
        singles: Rows,
        gains: NDArray[np.float64],
        costs: NDArray[np.float64],
        slack: NDArray[np.float64],
    ) -> list[Rows]:
        """For each size, the sets of changes of the largest estimated gain whose estimated costs fit the slack.

        singles: the network after one change, each of the changes in turn, shape [changes, columns], with their
        gains [changes] and costs [changes, constraints]. Those of a set are taken to add up.
        """
        if not len(singles):
            return []
        changed = singles != row
        clashes = (changed.astype(np.float32) @ changed.T.astype(np.float32)) > 0  # [changes, changes]
        saving = np.minimum(costs.min(axis=0), 0)  # what one more change can save at best
        sets = np.arange(len(singles))[:, None]  # indices of changes, [sets, size]
        result = []
        for left in reversed(range(CHANGES)):  # how many changes may still be added
            gain, cost = gains[sets].sum(axis=1), costs[sets].sum(axis=1)
            complete = sets[_best(gain, (cost <= slack).all(axis=1), TRIES)]
            result.append(_applied(row, singles, changed, complete))
            if not left:
                break
            kept = _best(gain, (cost + left * saving <= slack).all(axis=1), BEAM)
            sets, gain, cost = sets[kept], gain[kept], cost[kept]
            gain, cost = gain[:, None] + gains, cost[:, None] + costs  # of each set with each change, [sets, changes]
            fits = (cost + (left - 1) * saving <= slack).all(axis=2) & ~clashes[sets].any(axis=1)
            extended, added = np.divmod(_best(gain.ravel(), fits.ravel(), 4 * BEAM), len(singles))
            sets = np.sort(np.column_stack([sets[extended], added]), axis=1)
            # The same changes in another order are one set: each once, by a number that has the changes as its digits.
            number = sets @ len(singles) ** np.arange(sets.shape[1])
            sets = sets[np.unique(number, return_index=True)[1]]
        return result


def _applied(row: Rows, singles: Rows, changed: NDArray[np.bool_], sets: NDArray[np.int64]) -> Rows:
    """The network after all changes of each set, shape [sets, columns]."""
    rows = np.tile(row, (len(sets), 1))
    for change in sets.T:
        rows = np.where(changed[change], singles[change], rows)
    return rows


def _best(values: NDArray[np.float64], allowed: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """Indices of the largest allowed values, `count` at most."""
    indices = np.flatnonzero(allowed)
    if len(indices) <= count:
        return indices
    return indices[np.argpartition(-values[indices], count)[:count]]
