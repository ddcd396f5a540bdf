"""Predicted accuracy of rows, each asked for once, in batches that fit a processor's cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onceforall.errors import InvalidArchitecture, OutOfDomain
from onceforall.rows import Rows
from onceforall.space import SearchSpace

BATCH = 1024  # rows; at 20,000 a predictor with layers of 400 takes three times as long a row


class RowPredictor(Protocol):
    """Predicted accuracy of rows of its own space, percent."""

    @property
    def space(self) -> SearchSpace: ...

    def predict_rows(self, rows: Rows) -> NDArray[np.float64]: ...


class Scorer:
    """A predictor for rows of a space, with a memory of everything that it was asked.

    The predictor's space is this one, or a larger one that has all its choices; raises OutOfDomain
    where it is another.
    """

    def __init__(self, space: SearchSpace, accuracy: RowPredictor) -> None:
        self._predict = rows_of(space, accuracy)
        self._space, self._accuracy = space, accuracy
        self._known: dict[bytes, float] = {}
        self._rows = [np.empty((0, len(space.columns)), np.int16)]

    @property
    def evaluations(self) -> int:
        """How many different networks were asked for."""
        return len(self._known)

    def __call__(self, rows: Rows) -> NDArray[np.float64]:
        """Predicted accuracy (percent) of each row."""
        content = np.ascontiguousarray(rows).tobytes()
        width = rows.shape[1] * rows.itemsize
        keys = [content[start : start + width] for start in range(0, len(content), width)]
        new = {key: index for index, key in enumerate(keys) if key not in self._known}
        if new:
            fresh = rows[list(new.values())]
            answers = [self._predict(fresh[start : start + BATCH]) for start in range(0, len(fresh), BATCH)]
            self._known.update(zip(new, np.concatenate(answers).tolist(), strict=True))
            self._rows.append(fresh)
        return np.fromiter(map(self._known.__getitem__, keys), np.float64, len(keys))

    def raw(self, rows: Rows) -> NDArray[np.float64]:
        """What the predictor says of rows before it bounds that, where it does: none are remembered."""
        return rows_of(self._space, self._accuracy, getattr(self._accuracy, "raw_rows", None))(rows)

    def everything(self) -> tuple[Rows, NDArray[np.float64]]:
        """All distinct rows so far, and their predicted accuracy."""
        self._rows = [np.concatenate(self._rows)]
        return self._rows[0], np.fromiter(self._known.values(), np.float64, len(self._known))


Answer = Callable[[Rows], NDArray[np.float64]]


def rows_of(space: SearchSpace, accuracy: RowPredictor, answer: Answer | None = None) -> Answer:
    """The predictor for rows of a space, whose indices may mean something else in the predictor's own.

    answer: its method to call, `predict_rows` where None is given. Raises OutOfDomain where the predictor
    belongs to another space.
    """
    answer = answer or accuracy.predict_rows
    own = accuracy.space  # which may be equal and name its choices in another order
    if own == space and list(own.columns) == list(space.columns):
        return answer
    try:
        adopt = own.adopting(space)
    except InvalidArchitecture as error:
        raise OutOfDomain(f"the accuracy predictor belongs to another space than the search: {error}") from error
    return lambda rows: answer(adopt(rows))
