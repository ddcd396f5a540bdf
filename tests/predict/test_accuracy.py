from __future__ import annotations

import numpy as np
import pytest
import torch

from onceforall import spaces
from onceforall.cost.analytic import macs
from onceforall.errors import InvalidArchitecture, InvalidConfiguration, OutOfDomain
from onceforall.predict.accuracy import MLPPredictor, assess
from onceforall.space import SearchSpace


def examples(space: SearchSpace, count: int, noise: float = 0.05) -> tuple[list, list[float]]:  # type: ignore[type-arg]
    """Architectures with an accuracy that grows with MACs, kernels counting extra, and some noise."""
    rng = np.random.default_rng(0)
    archs = [space.sample(rng) for _ in range(count)]
    kernels = [np.mean([gene.kernel for unit in arch.units for gene in unit]) for arch in archs]
    size = [np.log(macs(space.lower(arch))) for arch in archs]
    return archs, [float(60 + 2 * s - 1.5 * k + noise * rng.normal()) for s, k in zip(size, kernels, strict=True)]


def test_learns_what_macs_alone_cannot_tell() -> None:
    space = spaces.mobilenet_v3_small_images()
    quality = assess(MLPPredictor(space, epochs=80), space, *examples(space, 400), held_out=0.2)
    assert (quality.train, quality.held_out) == (320, 80)
    assert quality.rmse < 0.5 * quality.macs_rmse
    assert quality.kendall_tau > 0.8 > quality.macs_kendall_tau


def test_prediction_in_numpy_equals_the_network_in_torch(tiny_space: SearchSpace) -> None:
    archs, accuracies = examples(tiny_space, 40)
    predictor = MLPPredictor(tiny_space, epochs=3).fit(archs, accuracies)
    x = torch.from_numpy(tiny_space.encode(archs))
    for index, (weight, bias) in enumerate(predictor.layers):
        x = x @ torch.from_numpy(weight) + torch.from_numpy(bias)
        x = torch.relu(x) if index < 3 else x
    np.testing.assert_allclose(predictor.predict(archs), 100 * x[:, 0].numpy(), rtol=1e-5)
    assert [weight.shape[1] for weight, _ in predictor.layers] == [400, 400, 400, 1]


def test_same_seed_same_predictor_and_torchs_generator_is_left_alone(tiny_space: SearchSpace) -> None:
    archs, accuracies = examples(tiny_space, 20)
    state = torch.get_rng_state()
    first, second = (MLPPredictor(tiny_space, epochs=2, seed=3).fit(archs, accuracies) for _ in range(2))
    np.testing.assert_array_equal(first.predict(archs), second.predict(archs))
    assert torch.equal(state, torch.get_rng_state())


def test_nothing_is_predicted_before_it_learnt(tiny_space: SearchSpace) -> None:
    with pytest.raises(OutOfDomain, match="call fit"):
        MLPPredictor(tiny_space).predict([tiny_space.largest()])


def test_an_architecture_outside_the_space_is_refused(tiny_space: SearchSpace) -> None:
    predictor = MLPPredictor(tiny_space, epochs=1).fit(*examples(tiny_space, 20))
    with pytest.raises(InvalidArchitecture, match="resolution 224: choices are 16, 20"):
        predictor.predict([spaces.mobilenet_v3().largest()])


def test_too_few_labels_are_refused(tiny_space: SearchSpace) -> None:
    archs, accuracies = examples(tiny_space, 10)
    with pytest.raises(InvalidConfiguration, match="9 architectures"):
        MLPPredictor(tiny_space).fit(archs[:9], accuracies[:9])
    with pytest.raises(InvalidConfiguration, match="9 accuracies"):
        MLPPredictor(tiny_space).fit(archs, accuracies[:9])
