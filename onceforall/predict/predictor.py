"""What an accuracy predictor is, and what all of ours share.

Labels are checked, and there is no answer about what no label showed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from onceforall.architecture import Architecture
from onceforall.choices import DEPTH, WIDTH, listed
from onceforall.errors import InvalidArchitecture, InvalidConfiguration, OutOfDomain
from onceforall.rows import RESOLUTION, Rows
from onceforall.search.confirm import Learner
from onceforall.space import SearchSpace
from onceforall.threads import one_thread

LEAST_LABELS = 10

PERCENT = (0.0, 100.0)  # between which predictions stay, where all labels do

Arrays = dict[str, NDArray[Any]]


class AccuracyPredictor(Learner, Protocol):
    """Learns accuracies from labelled architectures and predicts them for others of the same space.

    An accuracy is top-1 (percent) of a classifier; for another task its score, or the negative of a score
    where lower is better: what a search maximises. Raises OutOfDomain for what it cannot know: before
    `fit`, for another space, and for a choice that none of its labels had. A search calls
    `predict_rows`; one that says how far off it expects to be has `predict_with_uncertainty` as well.
    """

    def predict(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Predicted accuracies, shape [n]."""


class FittedPredictor(ABC):
    """What our predictors share. A subclass says how it learns from encodings and answers about them.

    What is learnt is a few named arrays, whose shapes follow from the space and the settings; with
    those it goes to a file and back (`predict/accuracy.py`). Predictions stay between 0 and 100 where all
    labels do (`bounded`). Raises OutOfDomain where it predicts before `fit`, for architectures of another
    space, and for a choice that no label had.
    """

    kind: str  # its name in files

    def __init__(self, space: SearchSpace, **settings: Any) -> None:
        """settings: the keyword arguments of the subclass, all of them, JSON values."""
        self.space, self._settings = space, settings
        self.arrays: Arrays = {}

    # What a subclass says

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each array that is learnt."""

    @abstractmethod
    def learn(self, encoded: NDArray[np.float32], accuracies: NDArray[np.float64]) -> Arrays:
        """Arrays learnt from encodings of distinct architectures, shape [n, features], and their top-1 (percent)."""

    @abstractmethod
    def answer(self, encoded: NDArray[np.float32]) -> NDArray[np.float64]:
        """Predicted top-1 (percent) of encodings, shape [n], without asking whether that can be known."""

    # What they share

    def settings(self) -> dict[str, Any]:
        """The keyword arguments that make an equal, unfitted predictor: JSON values."""
        return dict(self._settings)

    def fit(self, architectures: Sequence[Architecture], accuracies: Sequence[float]) -> Self:
        """Learn from labelled architectures; repeated measurements are averaged.

        Raises InvalidConfiguration below 10 distinct architectures and for accuracies that are not finite,
        InvalidArchitecture for members of another space.
        """
        if len(architectures) != len(accuracies):
            raise InvalidConfiguration(
                f"{len(architectures)} architectures and {len(accuracies)} accuracies: each needs one"
            )
        measured = np.asarray(accuracies, np.float64)
        wrong = measured[~np.isfinite(measured)]
        if len(wrong):
            raise InvalidConfiguration(f"accuracy {wrong[0]}: expected a finite number, as percent of top-1")
        every = self.space.to_rows(architectures)
        rows, inverse, counts = np.unique(every, axis=0, return_inverse=True, return_counts=True)
        if len(rows) < LEAST_LABELS:
            raise InvalidConfiguration(
                f"{len(rows)} labelled architectures: at least {LEAST_LABELS} are needed; measure more with `ofa label`"
            )
        means = np.bincount(inverse.ravel(), measured) / counts
        with one_thread():
            learnt = self.learn(self.space.encode_rows(rows), means)
        shown = {"seen": seen_choices(self.space, rows), "range": np.array([means.min(), means.max()], np.float32)}
        self.adopt({**learnt, **shown})
        return self

    def adopt(self, arrays: Arrays) -> None:
        """Take over what was learnt: `shapes`, and "seen" and "range", which say what the labels showed.

        Files of older versions have no "range".
        """
        self.arrays = arrays

    def predict(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Predicted top-1 (percent), shape [n]. Raises OutOfDomain."""
        return self.predict_rows(self.to_rows(architectures))

    def predict_rows(self, rows: Rows) -> NDArray[np.float64]:
        """Predicted top-1 (percent) of rows of the space, shape [n]. Raises OutOfDomain."""
        return self.bounded(self.raw_rows(rows))

    def raw_rows(self, rows: Rows) -> NDArray[np.float64]:
        """What `predict_rows` says before it is bounded, shape [n]. Raises OutOfDomain."""
        self.check(rows)
        return self.answer(self.space.encode_rows(rows))

    def bounded(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The values, and between 0 and 100 where all labels are: in the same order, so searches find the same.

        Up to half the way from the labels to a bound they stay as they are; from there they approach it.
        """
        low, high = self.arrays.get("range", np.array(PERCENT))
        if low < PERCENT[0] or high > PERCENT[1]:
            return values
        for bound, label, sign in ((PERCENT[1], high, 1.0), (PERCENT[0], low, -1.0)):
            room = max(abs(bound - label) / 2, 1e-12)
            beyond = np.maximum(sign * (values - bound) + room, 0.0)
            values = np.where(beyond > 0, bound - sign * room * np.exp(-beyond / room), values)
        return values.clip(*PERCENT)

    def to_rows(self, architectures: Sequence[Architecture]) -> Rows:
        """Rows of architectures. Raises OutOfDomain for members of another space."""
        try:
            return self.space.to_rows(architectures)
        except InvalidArchitecture as error:
            raise OutOfDomain(f"{error}; this predictor knows no other: fit one on labels of that space") from error

    def check(self, rows: Rows) -> None:
        """Raises OutOfDomain before `fit`, and for rows that no label tells anything about."""
        if not self.arrays:
            raise OutOfDomain("this predictor has learnt nothing yet: call fit with labelled architectures")
        counts, seen = self.space.choice_counts, self.arrays["seen"]
        if rows.ndim != 2 or rows.shape[1] != len(counts) or (rows >= counts).any():
            raise OutOfDomain(
                f"rows of shape {rows.shape} are of another space: this predictor knows {len(counts)} columns of at "
                f"most {counts.max()} choices"
            )
        known = seen[np.arange(len(counts)), 1 + rows]
        if not known.all():
            row, column = np.argwhere(~known)[0]
            raise OutOfDomain(self._unknown(int(column), int(rows[row, column])))

    def _unknown(self, column: int, index: int) -> str:
        (what, unit, block), choices = list(self.space.columns.items())[column]
        places = {RESOLUTION: "", DEPTH: f" at unit {unit + 1}", WIDTH: f" at unit {unit + 1}"}
        place = places.get(what, f" at unit {unit + 1}, block {block + 1}")
        known = [choice for choice, seen in zip(choices, self.arrays["seen"][column, 1:], strict=False) if seen]
        return (
            f"{what.replace('_', ' ')} {choices[index] if index >= 0 else 'none'}{place}: no label had "
            f"it, so the predictor cannot know it (labelled: {listed(known)}); measure networks that have it, or "
            "restrict the space of the search to what is labelled"
        )


def seen_choices(space: SearchSpace, rows: Rows) -> NDArray[np.bool_]:
    """Which choices occur in rows, shape `seen_shape`; place 0 of a column is that of a block that is cut off."""
    seen = np.zeros(seen_shape(space), bool)
    seen[np.arange(len(seen)), 1 + rows] = True
    seen[space.gene_columns, 0] = True  # what is not there: its unit's depth says whether that was seen
    return seen


def seen_shape(space: SearchSpace) -> tuple[int, int]:
    """[columns, 1 + most choices]."""
    return len(space.choice_counts), 1 + int(space.choice_counts.max())
