"""The accuracy predictor of the paper (section 3.4): one-hot choices, three hidden layers of 400, Adam.

Two things differ, because labels are hundreds here and 16,000 there (benchmarks/accuracy_predictor.py):
the network learns what a ridge regression on the same choices leaves over, and it sees totals of each
unit (`ridge.py`) beside them. Both are linear in the one-hot encoding, so what is left in the end is
the paper's network with one linear connection past its hidden layers.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from onceforall.devices.torch import pinned
from onceforall.predict.predictor import Arrays, FittedPredictor
from onceforall.predict.ridge import RidgePredictor, standardised
from onceforall.space import SearchSpace

HIDDEN_LAYERS = 3
BATCH = 64


class MLPPredictor(FittedPredictor):
    """A multi-layer perceptron on one-hot encodings beside a linear term; inference in numpy, float32.

    hidden: width of each of three hidden layers. weight_decay: as Adam takes it, for targets of
    standard deviation 1. The learning rate, 1e-3, falls along a cosine over all epochs.
    """

    kind = "mlp"

    def __init__(
        self, space: SearchSpace, *, hidden: int = 400, epochs: int = 60, weight_decay: float = 0.03, seed: int = 0
    ) -> None:
        super().__init__(space, hidden=hidden, epochs=epochs, weight_decay=weight_decay, seed=seed)
        self.hidden, self.epochs, self.weight_decay, self.seed = hidden, epochs, weight_decay, seed

    @property
    def layers(self) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Weight [in, out] and bias [out] of each layer; the last gives points of top-1 beside the linear term."""
        return [(self.arrays[f"{i}.weight"], self.arrays[f"{i}.bias"]) for i in range(HIDDEN_LAYERS + 1)]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        features = len(self.space.encoded_choices)
        sizes = [features, *[self.hidden] * HIDDEN_LAYERS, 1]
        shapes: dict[str, tuple[int, ...]] = {"linear.weights": (features,), "linear.intercept": ()}
        for i, (before, after) in enumerate(itertools.pairwise(sizes)):
            shapes |= {f"{i}.weight": (before, after), f"{i}.bias": (after,)}
        return shapes

    def learn(self, encoded: NDArray[np.float32], accuracies: NDArray[np.float64]) -> Arrays:
        ridge = RidgePredictor(self.space)
        base = ridge.learn(encoded, accuracies)
        unit = max(float(ridge.residuals.std()), 1e-6)  # points that are 1 to the network
        left_over = (accuracies - encoded @ base["weights"] - base["intercept"]) / unit
        standard = standardised(self.space, encoded)
        layers = self._train(np.concatenate([encoded, standard(encoded)], axis=1), left_over)
        (weight, bias), (last_weight, last_bias) = layers[0], layers[-1]
        # Totals are a linear map of the encoding: the first layer takes them in.
        of_choices, of_totals = weight[: encoded.shape[1]], weight[encoded.shape[1] :]
        layers[0] = of_choices + standard.scale @ of_totals, bias - standard.centre @ of_totals
        layers[-1] = last_weight * unit, last_bias * unit
        arrays = {"linear.weights": base["weights"], "linear.intercept": base["intercept"]}
        for i, (weight, bias) in enumerate(layers):
            arrays |= {f"{i}.weight": weight, f"{i}.bias": bias}
        return {name: array.astype(np.float32) for name, array in arrays.items()}

    def _train(
        self, inputs: NDArray[np.float64], targets: NDArray[np.float64]
    ) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Weight [in, out] and bias [out] of each layer, trained on all labels."""
        x, y = torch.from_numpy(inputs).float(), torch.from_numpy(targets).float()
        with torch.random.fork_rng(devices=[]), pinned(1):
            torch.manual_seed(self.seed)
            sizes = [x.shape[1], *[self.hidden] * HIDDEN_LAYERS]
            hidden = [
                layer for before, after in itertools.pairwise(sizes) for layer in (nn.Linear(before, after), nn.ReLU())
            ]
            network = nn.Sequential(*hidden, nn.Linear(self.hidden, 1))
            optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=self.weight_decay)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)
            for _ in range(self.epochs):
                for chosen in torch.randperm(len(x)).split(BATCH):
                    optimizer.zero_grad()
                    nn.functional.mse_loss(network(x[chosen])[:, 0], y[chosen]).backward()
                    optimizer.step()
                schedule.step()
        return [
            (layer.weight.detach().double().numpy().T, layer.bias.detach().double().numpy())
            for layer in network
            if isinstance(layer, nn.Linear)
        ]

    def answer(self, encoded: NDArray[np.float32]) -> NDArray[np.float64]:
        x = encoded
        for weight, bias in self.layers[:-1]:
            x = np.maximum(x @ weight + bias, 0)
        weight, bias = self.layers[-1]
        linear = encoded @ self.arrays["linear.weights"] + self.arrays["linear.intercept"]
        return np.asarray((x @ weight + bias)[:, 0] + linear, np.float64)
