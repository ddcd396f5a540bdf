"""What the choices of a unit add up to: few numbers, each a linear map of the one-hot encoding.

A few hundred labels say little about each of a hundred one-hot features, but much about how deep,
how wide and how large in kernels a unit is. Totals let a predictor share between blocks what the
labels show of any.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onceforall.space import SearchSpace


def totals(space: SearchSpace) -> NDArray[np.float64]:
    """The matrix, shape [features, totals], from encodings to totals.

    For each unit the number of its blocks, their kernel sizes (px) and expand ratios added up, and its
    width multiplier where it has several; last the logarithm of the resolution.
    """
    columns = list(
        dict.fromkeys(
            name
            for what, unit, _, _ in space.encoded_choices
            for name in ([("depth", unit)] if what == "kernel" else []) + [(what, unit)]
        )
    )
    matrix = np.zeros((len(space.encoded_choices), len(columns)))
    for feature, (what, unit, _, choice) in enumerate(space.encoded_choices):
        matrix[feature, columns.index((what, unit))] = np.log(choice) if what == "resolution" else choice
        if what == "kernel":  # a block has one kernel size where it is there, none where it is not
            matrix[feature, columns.index(("depth", unit))] = 1
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
