"""The accuracy predictor of the paper (section 3.4): one-hot choices, three hidden layers of 400."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau
from torch import nn

from onceforall.architecture import Architecture
from onceforall.cost.analytic import macs
from onceforall.errors import InvalidConfiguration, OutOfDomain
from onceforall.space import Rows, SearchSpace


class AccuracyPredictor(Protocol):
    """Learns top-1 (percent) from labelled architectures and predicts it for others of the same space."""

    space: SearchSpace

    def fit(self, architectures: Sequence[Architecture], accuracies: Sequence[float]) -> Self: ...

    def predict(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]: ...

    def predict_rows(self, rows: Rows) -> NDArray[np.float64]: ...


class MLPPredictor:
    """A multi-layer perceptron on one-hot encodings, trained with Adam; inference in numpy.

    Raises OutOfDomain where it predicts before `fit`; InvalidArchitecture for what its space does not have.
    """

    def __init__(self, space: SearchSpace, *, hidden: int = 400, epochs: int = 300, seed: int = 0) -> None:
        self.space = space
        self.hidden, self.epochs, self.seed = hidden, epochs, seed
        self.layers: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []

    def fit(self, architectures: Sequence[Architecture], accuracies: Sequence[float]) -> Self:
        """Learn from labelled architectures; accuracies in percent. Raises InvalidConfiguration below 10 labels."""
        if len(architectures) < 10 or len(architectures) != len(accuracies):
            raise InvalidConfiguration(
                f"{len(architectures)} architectures and {len(accuracies)} accuracies: at least 10 of each are needed"
            )
        x = torch.from_numpy(self.space.encode(architectures))
        y = torch.tensor(accuracies, dtype=torch.float32) / 100
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = nn.Sequential(
                nn.Linear(x.shape[1], self.hidden),
                nn.ReLU(),
                nn.Linear(self.hidden, self.hidden),
                nn.ReLU(),
                nn.Linear(self.hidden, self.hidden),
                nn.ReLU(),
                nn.Linear(self.hidden, 1),
            )
            nn.init.constant_(network[-1].bias, float(y.mean()))  # type: ignore[arg-type]
            optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=1e-4)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)
            for _ in range(self.epochs):
                for chosen in torch.randperm(len(x)).split(64):
                    optimizer.zero_grad()
                    nn.functional.mse_loss(network(x[chosen])[:, 0], y[chosen]).backward()
                    optimizer.step()
                schedule.step()
        self.layers = [
            (layer.weight.detach().numpy().T.copy(), layer.bias.detach().numpy().copy())
            for layer in network
            if isinstance(layer, nn.Linear)
        ]
        return self

    def predict(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Predicted top-1 (percent), shape [n]."""
        return self.predict_rows(self.space.to_rows(architectures))

    def predict_rows(self, rows: Rows) -> NDArray[np.float64]:
        """Predicted top-1 (percent) of rows of the space, shape [n]."""
        if not self.layers:
            raise OutOfDomain("this predictor has learnt nothing yet: call fit with labelled architectures")
        x = self.space.encode_rows(rows)
        for weight, bias in self.layers[:-1]:
            x = np.maximum(x @ weight + bias, 0)
        weight, bias = self.layers[-1]
        return np.asarray(100 * (x @ weight + bias)[:, 0], np.float64)


@dataclass(frozen=True)
class PredictorQuality:
    """Errors on held-out architectures: RMSE in points of top-1, Kendall's tau; the same of MACs alone.

    MACs predict through a straight line in log(MACs), fitted on the same training rows.
    """

    train: int
    held_out: int
    rmse: float
    kendall_tau: float
    macs_rmse: float
    macs_kendall_tau: float

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


def assess(
    predictor: AccuracyPredictor,
    space: SearchSpace,
    architectures: Sequence[Architecture],
    accuracies: Sequence[float],
    *,
    held_out: float = 0.1,
    seed: int = 0,
) -> PredictorQuality:
    """Fit on part of the labels and measure on the rest (a random share `held_out`)."""
    order = np.random.default_rng(seed).permutation(len(architectures))
    test = order[: round(held_out * len(order))]
    train = order[len(test) :]
    if len(test) < 2:
        raise InvalidConfiguration(f"{len(architectures)} labels: too few to hold {held_out:.0%} out")
    y = np.asarray(accuracies, float)
    predicted = predictor.fit([architectures[i] for i in train], y[train].tolist()).predict(
        [architectures[i] for i in test]
    )
    log_macs = np.log([macs(space.lower(arch)) for arch in architectures])
    line = np.polyfit(log_macs[train], y[train], 1)
    by_macs = np.polyval(line, log_macs[test])
    return PredictorQuality(
        len(train),
        len(test),
        float(np.sqrt(np.mean((predicted - y[test]) ** 2))),
        float(kendalltau(predicted, y[test]).statistic),
        float(np.sqrt(np.mean((by_macs - y[test]) ** 2))),
        float(kendalltau(by_macs, y[test]).statistic),
    )
