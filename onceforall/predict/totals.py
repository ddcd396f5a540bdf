"""What the choices of a unit add up to: few numbers, each a linear map of the one-hot encoding.

A few hundred labels say little about each of a hundred one-hot features, but much about how deep,
how wide and how large in kernels a unit is. Totals let a predictor share between blocks what the
labels show of any.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onceforall.choices import DEPTH
from onceforall.rows import RESOLUTION
from onceforall.sizes import side
from onceforall.space import SearchSpace


def totals(space: SearchSpace) -> NDArray[np.float64]:
    """The matrix, shape [features, totals], from encodings to totals.

    For each unit the number of its blocks, each of their choices added up (kernel sizes in px, expand
    ratios, ...), and its width multiplier where it has several; last the logarithm of the resolution.
    """
    features = space.encoded_choices
    # A block has one value of its unit's first choice where it is there, and none where it is not.
    counting = {(name, u) for u, unit in enumerate(space.units) for name in list(unit.choices)[:1]}
    columns: dict[tuple[str, int], int] = {}
    for what, unit, _, _ in features:
        for key in [(DEPTH, unit)] * ((what, unit) in counting) + [(what, unit)]:
            columns.setdefault(key, len(columns))
    matrix = np.zeros((len(features), len(columns)))
    for feature, (what, unit, _, choice) in enumerate(features):
        matrix[feature, columns[what, unit]] = np.log(side(choice)) if what == RESOLUTION else choice
        if (what, unit) in counting:
            matrix[feature, columns[DEPTH, unit]] = 1
    return matrix


class Standard(NamedTuple):
    """Totals with mean 0 and standard deviation 1 on labelled encodings: `encoded @ scale - centre`.

    A total that is the same in all of them is 0 everywhere.
    """

    scale: NDArray[np.float64]  # [features, totals]
    centre: NDArray[np.float64]  # [totals]

    def __call__(self, encoded: NDArray[np.floating]) -> NDArray[np.float64]:
        return np.asarray(encoded @ self.scale - self.centre, np.float64)


def standardised(space: SearchSpace, encoded: NDArray[np.floating]) -> Standard:
    """Standardised totals of a space, by labelled encodings, shape [n, features]."""
    matrix = totals(space)
    values = encoded @ matrix
    spread = values.std(axis=0)
    spread[spread < 1e-9 * np.abs(values).max(axis=0, initial=1.0)] = np.inf
    return Standard(matrix / spread, values.mean(axis=0) / spread)
