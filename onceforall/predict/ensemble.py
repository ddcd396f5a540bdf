"""An ensemble: several predictors, each of which never saw some of the labels; their spread tells what is uncertain.

The labels are split into as many parts as there are members; each member, with a seed of its own, learns
from all parts but one. So for every label there is a member that did not see it, and what that member is
wrong by calibrates the uncertainty: variance = floor + factor x spread^2, fitted on those errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from onceforall.architecture import Architecture
from onceforall.errors import InvalidConfiguration
from onceforall.predict.mlp import MLPPredictor
from onceforall.predict.predictor import LEAST_LABELS, Arrays, FittedPredictor
from onceforall.predict.ridge import RidgePredictor
from onceforall.rows import Rows
from onceforall.space import SearchSpace

Pair = tuple[NDArray[np.float64], NDArray[np.float64]]
MEMBERS = ("mlp", "ridge")


class EnsemblePredictor(FittedPredictor):
    """The mean of several predictors, and the standard deviation of its error, calibrated on labels left out.

    members: how many, at least 2 and at most 10 (each leaves out one label in so many). of: "mlp", or
    "ridge" for ridge regressions with interactions. options: further settings of each member.
    """

    kind = "ensemble"

    def __init__(
        self,
        space: SearchSpace,
        *,
        members: int = 8,
        of: str = "mlp",
        options: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        options = dict(options or {})
        super().__init__(space, members=members, of=of, options=options, seed=seed)
        if not 2 <= members <= LEAST_LABELS:
            raise InvalidConfiguration(f"{members} members: expected 2 to {LEAST_LABELS}")
        if of not in MEMBERS:
            raise InvalidConfiguration(f"an ensemble of {of!r}: choices are {', '.join(MEMBERS)}")
        self.of, self.options, self.seed = of, options, seed
        self.members: list[FittedPredictor] = [self._member(number) for number in range(members)]

    def _member(self, number: int) -> FittedPredictor:
        if self.of == "mlp":
            return MLPPredictor(self.space, **{**self.options, "seed": 1000 * self.seed + number})
        return RidgePredictor(self.space, **{"interactions": True, **self.options})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        of_members = {
            f"member{number}.{name}": shape
            for number, member in enumerate(self.members)
            for name, shape in member.shapes().items()
        }
        return {**of_members, "calibration": (2,)}

    def learn(self, encoded: NDArray[np.float32], accuracies: NDArray[np.float64]) -> Arrays:
        arrays: Arrays = {}
        parts = np.array_split(np.random.default_rng(self.seed).permutation(len(encoded)), len(self.members))
        answers = np.empty((len(self.members), len(encoded)))
        for number, (member, left_out) in enumerate(zip(self.members, parts, strict=True)):
            used = np.ones(len(encoded), bool)
            used[left_out] = False
            learnt = member.learn(encoded[used], accuracies[used])
            arrays |= {f"member{number}.{name}": array for name, array in learnt.items()}
            member.arrays = learnt
            answers[number] = member.answer(encoded)
        errors = np.concatenate([answers[n, part] - accuracies[part] for n, part in enumerate(parts)])
        spread = answers.var(axis=0, ddof=1)[np.concatenate(parts)]
        arrays["calibration"] = nnls(np.stack([np.ones_like(spread), spread], axis=1), errors**2)[0]
        return arrays

    def adopt(self, arrays: Arrays) -> None:
        super().adopt(arrays)
        for number, member in enumerate(self.members):
            prefix = f"member{number}."
            own = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
            member.adopt({**own, "seen": arrays["seen"]})

    def answer(self, encoded: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray(self._answers(encoded).mean(axis=0))

    def _answers(self, encoded: NDArray[np.float32]) -> NDArray[np.float64]:
        """What each member predicts, shape [members, n]."""
        return np.stack([member.answer(encoded) for member in self.members])

    def predict_with_uncertainty(self, architectures: Sequence[Architecture]) -> Pair:
        """Predicted top-1 and the standard deviation of its error (percent, points), each of shape [n]."""
        return self.predict_rows_with_uncertainty(self.to_rows(architectures))

    def predict_rows_with_uncertainty(self, rows: Rows) -> Pair:
        """The same for rows of the space."""
        self.check(rows)
        answers = self._answers(self.space.encode_rows(rows))
        floor, factor = self.arrays["calibration"]
        return self.bounded(answers.mean(axis=0)), np.sqrt(floor + factor * answers.var(axis=0, ddof=1))
