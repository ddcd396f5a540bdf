"""A made-up accuracy that needs no training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from onceforall.rows import Rows
from onceforall.space import SearchSpace


class Linear:
    """A made-up accuracy: a random weight for every choice, larger choices better on average."""

    def __init__(self, space: SearchSpace, seed: int = 0) -> None:
        self.space = space
        width = space.encode([space.largest()]).shape[1]
        self.weights = np.random.default_rng(seed).normal(0.3, 0.3, width)

    def predict_rows(self, rows: Rows) -> NDArray[np.float64]:
        return np.asarray(70 + self.space.encode_rows(rows) @ self.weights, np.float64)


class Curved(Linear):
    """The same, with pairs of choices that are worth more or less together."""

    def __init__(self, space: SearchSpace, seed: int = 0) -> None:
        super().__init__(space, seed)
        rng = np.random.default_rng(seed)
        self.pairs = rng.normal(0, 0.15, (len(self.weights), len(self.weights)))

    def predict_rows(self, rows: Rows) -> NDArray[np.float64]:
        x = self.space.encode_rows(rows)
        return super().predict_rows(rows) + np.einsum("ni,ij,nj->n", x, self.pairs, x, optimize=True)


@pytest.fixture(scope="session")
def linear() -> Callable[..., Linear]:
    return Linear


@pytest.fixture(scope="session")
def curved() -> Callable[..., Linear]:
    return Curved
