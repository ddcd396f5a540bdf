"""Ridge regression on one-hot choices: the serious baseline, exact and fitted in milliseconds.

A penalised weight a choice, and, shared by the blocks of a unit, a weight a total of their choices: both
are linear in the one-hot encoding, so in the end there is one weight a choice. With interactions,
products of totals are added: how much a deeper unit brings depends on its width, and on the resolution.
The penalty has the least leave-one-out error, which has a closed form.

A few hundred labels say little about each of a hundred one-hot features, but much about how deep,
how wide and how large in kernels a unit is. Totals let a predictor share between blocks what the
labels show of any.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from onceforall.choices import DEPTH
from onceforall.errors import InvalidConfiguration, OutOfDomain
from onceforall.predict.predictor import Arrays, FittedPredictor
from onceforall.rows import RESOLUTION
from onceforall.sizes import side
from onceforall.space import SearchSpace

PENALTIES = np.logspace(-5, 1, 61)  # relative to the mean squared length of a centred feature vector
TOTALS = (0.3, 1.0, 3.0)  # how freely totals are used, relative to one-hot features
PRODUCTS = (0.03, 0.1, 0.3)  # the same of products of totals

Matrix = NDArray[np.float64]


class Solution(NamedTuple):
    """A ridge regression: `features @ weights + intercept`, and its residuals on samples left out in turn."""

    weights: Matrix  # [features]
    intercept: float
    residuals: Matrix  # [n], measured minus predicted


def ridge(features: Matrix, targets: Matrix) -> Solution:
    """Ridge regression with the penalty of least leave-one-out error; features [n, p], targets [n]."""
    centre, mean = features.mean(axis=0), float(targets.mean())
    left, singular, right = _svd(features - centre)
    power, rotated = singular**2, left.T @ (targets - mean)
    # Shape [penalties, p]: how much of each principal component is kept.
    kept = power / (power + PENALTIES[:, None] * max(power.sum() / len(targets), 1e-12))
    # Leaving a sample out changes its residual by its leverage; the mean, fitted as well, has leverage 1 / n.
    leverage = np.minimum(kept @ (left**2).T + 1 / len(targets), 1 - 1e-9)
    residuals = (targets - mean - (kept * rotated) @ left.T) / (1 - leverage)
    best = int((residuals**2).mean(axis=1).argmin())
    usable = singular > 1e-9 * singular.max(initial=0)
    weights = right.T[:, usable] @ (kept[best] * rotated / np.where(usable, singular, 1))[usable]
    return Solution(weights, mean - float(centre @ weights), residuals[best])


def _svd(matrix: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """The thin singular value decomposition; what divides and conquers fails on some matrices of low rank."""
    try:
        left, singular, right = np.linalg.svd(matrix, full_matrices=False)
    except np.linalg.LinAlgError:
        left, singular, right = linalg.svd(matrix, full_matrices=False, lapack_driver="gesvd")
    return left, singular, right


class RidgePredictor(FittedPredictor):
    """Ridge regression on one-hot encodings, with interactions of totals where they are wanted.

    Without interactions `linear` gives a weight a choice, from which a search can be exact. `residuals`
    after `fit`: measured minus predicted (points) of each labelled architecture, by a fit without it.
    """

    kind = "ridge"

    def __init__(self, space: SearchSpace, *, interactions: bool = False) -> None:
        super().__init__(space, interactions=interactions)
        self.interactions = interactions
        self.residuals: Matrix = np.zeros(0)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        features = len(self.space.encoded_choices)
        shapes: dict[str, tuple[int, ...]] = {"weights": (features,), "intercept": ()}
        if self.interactions:
            k = totals(self.space).shape[1]
            shapes |= {"scale": (features, k), "centre": (k,), "products": (k, k)}
        return shapes

    def learn(self, encoded: NDArray[np.float32], accuracies: Matrix) -> Arrays:
        standard = standardised(self.space, encoded)
        z = standard(encoded)
        first, second = np.triu_indices(z.shape[1])
        products = z[:, first] * z[:, second]
        best: tuple[float, Solution, float, float] | None = None
        for by_total in TOTALS:
            for by_product in PRODUCTS if self.interactions else (0.0,):
                parts: list[Matrix] = [encoded.astype(np.float64), by_total * z]
                parts += [by_product * products] if self.interactions else []
                found = ridge(np.concatenate(parts, axis=1), accuracies)
                error = float((found.residuals**2).mean())
                if best is None or error < best[0]:
                    best = error, found, by_total, by_product
        assert best is not None
        _, (weights, intercept, self.residuals), by_total, by_product = best
        of_choices, of_totals, of_products = np.split(weights, np.cumsum([encoded.shape[1], z.shape[1]]))
        of_totals = by_total * of_totals
        arrays: Arrays = {
            "weights": of_choices + standard.scale @ of_totals,
            "intercept": np.array(intercept - standard.centre @ of_totals),
        }
        if self.interactions:
            quadratic = np.zeros((z.shape[1],) * 2)
            quadratic[first, second] = by_product * of_products
            arrays |= {"scale": standard.scale, "centre": standard.centre, "products": quadratic}
        return arrays

    def answer(self, encoded: NDArray[np.float32]) -> Matrix:
        result = encoded @ self.arrays["weights"] + self.arrays["intercept"]
        if self.interactions:
            z = encoded @ self.arrays["scale"] - self.arrays["centre"]
            result += ((z @ self.arrays["products"]) * z).sum(axis=1)
        return np.asarray(result, np.float64)

    def linear(self) -> tuple[Matrix, float]:
        """The weight (points of top-1) of each feature of `space.encode_rows`, and the intercept (percent).

        `space.encoded_choices` names the features. Raises OutOfDomain before `fit`, InvalidConfiguration
        for a predictor with interactions, which is not linear.
        """
        if self.interactions:
            raise InvalidConfiguration(
                "a ridge predictor with interactions is not linear: fit RidgePredictor(space) without them"
            )
        if not self.arrays:
            raise OutOfDomain("this predictor has learnt nothing yet: call fit with labelled architectures")
        return self.arrays["weights"].copy(), float(self.arrays["intercept"])


def totals(space: SearchSpace) -> Matrix:
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

    scale: Matrix  # [features, totals]
    centre: Matrix  # [totals]

    def __call__(self, encoded: NDArray[np.floating]) -> Matrix:
        return np.asarray(encoded @ self.scale - self.centre, np.float64)


def standardised(space: SearchSpace, encoded: NDArray[np.floating]) -> Standard:
    """Standardised totals of a space, by labelled encodings, shape [n, features]."""
    matrix = totals(space)
    values = encoded @ matrix
    spread = values.std(axis=0)
    spread[spread < 1e-9 * np.abs(values).max(axis=0, initial=1.0)] = np.inf
    return Standard(matrix / spread, values.mean(axis=0) / spread)
