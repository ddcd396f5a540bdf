"""Local search under bounds: a few choices are exchanged for others at once, as long as that improves.

At a tight budget no single choice can be improved on its own: a larger kernel here has to be paid
for by a smaller one there. So all changes of one choice are scored, allowed or not, and their gains
and costs added up suggest sets of changes that fit the budget together (a beam search over a
knapsack). Only the most promising sets are scored as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onceforall.rows import Rows
from onceforall.search.limits import Limits, first_of_each
from onceforall.search.neighbours import Neighbours

Score = Callable[[Rows], NDArray[np.float64]]


class _Sets(NamedTuple):
    """Sets of changes of one network: the results, estimated gains and costs, and what may not be added."""

    rows: Rows
    gains: NDArray[np.float64]
    costs: NDArray[np.float64]
    clashes: NDArray[np.bool_]

    def only(self, index: NDArray[np.int64]) -> _Sets:
        return _Sets(self.rows[index], self.gains[index], self.costs[index], self.clashes[index])


class Exchange:
    """Improves networks of a space by exchanges of up to `changes` choices at once.

    score: what to maximise, for rows; beam: how many sets of changes are extended by another;
    tries: how many sets of each size are scored.
    """

    def __init__(self, limits: Limits, score: Score, *, changes: int = 3, beam: int = 64, tries: int = 24) -> None:
        self.limits, self.score = limits, score
        self.changes, self.beam, self.tries = changes, beam, tries
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
        """For each size, the sets of changes of the largest estimated gain whose estimated costs fit the slack."""
        if not len(singles):
            return []
        changed = singles != row
        overlap = changed.astype(np.float32)
        clashes = (overlap @ overlap.T) > 0
        saving = np.minimum(costs.min(axis=0), 0)  # what one more change can save at best
        sets = _Sets(singles, gains, costs, clashes)
        result = []
        for size in range(1, self.changes + 1):
            result.append(sets.only(_best(sets.gains, np.asarray((sets.costs <= slack).all(axis=1)), self.tries)).rows)
            if size == self.changes:
                break
            rest = (self.changes - size) * saving
            sets = sets.only(_best(sets.gains, np.asarray((sets.costs + rest <= slack).all(axis=1)), self.beam))
            totals = (sets.gains[:, None] + gains).ravel()
            sums = (sets.costs[:, None] + costs).reshape(len(totals), costs.shape[1])
            fits = np.asarray((sums + rest - saving <= slack).all(axis=1)) & ~sets.clashes.ravel()
            picked = _best(totals, fits, 4 * self.beam)
            picked = picked[np.unique(totals[picked].round(9), return_index=True)[1]]  # one order of the same changes
            first, second = np.divmod(picked, len(singles))
            sets = _Sets(
                np.where(changed[second], singles[second], sets.rows[first]),
                totals[picked],
                sums[picked],
                sets.clashes[first] | clashes[second],
            )
        return result


def _best(values: NDArray[np.float64], allowed: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """Indices of the largest allowed values, `count` at most."""
    indices = np.flatnonzero(allowed)
    if len(indices) <= count:
        return indices
    return indices[np.argpartition(-values[indices], count)[:count]]
