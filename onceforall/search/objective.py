"""What a search maximises: accuracy, or accuracy traded against a cost (a soft constraint).

A soft objective needs no bound, and may be used beside hard constraints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onceforall.cost.model import CostModel
from onceforall.errors import InvalidConfiguration


class Objective(Protocol):
    """A number to maximise, from predicted accuracy (percent, shape [n]) and costs of `models` (shape [n, models])."""

    @property
    def models(self) -> tuple[CostModel, ...]: ...

    def score(self, accuracy: NDArray[np.float64], costs: NDArray[np.float64]) -> NDArray[np.float64]: ...


@dataclass(frozen=True)
class Accuracy:
    """Predicted accuracy alone: what remains is left to hard constraints."""

    @property
    def models(self) -> tuple[CostModel, ...]:
        return ()

    def score(self, accuracy: NDArray[np.float64], costs: NDArray[np.float64]) -> NDArray[np.float64]:
        return accuracy


@dataclass(frozen=True)
class SoftTarget:
    """Accuracy x (cost / target)^w, the reward of MnasNet (Tan et al., CVPR 2019, equations 2 and 3).

    w is `within` where the cost is at most the target and `beyond` where it is more. The defaults are
    the authors' soft constraint, -0.07 on both sides: twice the latency is worth 5 % of the
    accuracy. `within=0, beyond=-1` is their hard one, which only punishes what exceeds the target.
    `target` is in the model's unit.
    """

    model: CostModel
    target: float
    within: float = -0.07
    beyond: float = -0.07

    def __post_init__(self) -> None:
        if not 0 < self.target < np.inf:
            raise InvalidConfiguration(f"target {self.target} {self.model.unit}: expected a positive, finite cost")
        if not (-np.inf < self.within <= 0 and -np.inf < self.beyond <= 0):
            raise InvalidConfiguration(
                f"exponents {self.within} and {self.beyond}: expected 0 or less, or the dearer of two would win"
            )

    @property
    def models(self) -> tuple[CostModel, ...]:
        return (self.model,)

    def score(self, accuracy: NDArray[np.float64], costs: NDArray[np.float64]) -> NDArray[np.float64]:
        ratio = costs[:, 0] / self.target
        return np.asarray(accuracy * ratio ** np.where(ratio <= 1, self.within, self.beyond))


@dataclass(frozen=True)
class PenalisedLoss:
    """-(loss + weight x cost), as in ProxylessNAS (Cai et al., ICLR 2019, section 3.3).

    There the loss is cross entropy on training images, and the cost an expected latency. A predictor
    knows top-1 only, so the loss here is the top-1 error in percent: `weight` is the number of points
    of top-1 that one unit of the cost (one ms) is worth.
    """

    model: CostModel
    weight: float

    def __post_init__(self) -> None:
        if not 0 <= self.weight < np.inf:
            raise InvalidConfiguration(f"weight {self.weight}: expected at least 0 points of top-1 a {self.model.unit}")

    @property
    def models(self) -> tuple[CostModel, ...]:
        return (self.model,)

    def score(self, accuracy: NDArray[np.float64], costs: NDArray[np.float64]) -> NDArray[np.float64]:
        loss = 100 - accuracy
        return np.asarray(-(loss + self.weight * costs[:, 0]))
