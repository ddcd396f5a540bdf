from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from onceforall import spaces
from onceforall.architecture import Architecture
from onceforall.cost.analytic import macs
from onceforall.errors import IncompatibleCheckpoint, InvalidArchitecture, InvalidConfiguration, OutOfDomain
from onceforall.predict.accuracy import (
    EnsemblePredictor,
    MACsPredictor,
    MLPPredictor,
    Predictor,
    RidgePredictor,
    assess,
    load_predictor,
    save_predictor,
)
from onceforall.predict.ridge import ridge, standardised, totals
from onceforall.space import SearchSpace
from onceforall.testing import example_labels

Labels = tuple[list[Architecture], list[float]]

SMALL = {"hidden": 16, "epochs": 5}
MAKERS: dict[str, Callable[[SearchSpace], Predictor]] = {
    "ridge": RidgePredictor,
    "interactions": lambda space: RidgePredictor(space, interactions=True),
    "mlp": lambda space: MLPPredictor(space, **SMALL, seed=3),
    "ensemble": lambda space: EnsemblePredictor(space, members=3, options=SMALL, seed=3),
    "ridge ensemble": lambda space: EnsemblePredictor(space, members=3, of="ridge"),
}


def examples(space: SearchSpace, count: int, noise: float = 0.05) -> Labels:
    """Architectures with an accuracy that grows with MACs, kernels counting extra, and some noise."""
    rng = np.random.default_rng(0)
    archs = [space.sample(rng) for _ in range(count)]
    kernels = [np.mean([gene.kernel for unit in arch.units for gene in unit]) for arch in archs]
    size = [np.log(macs(space.lower(arch))) for arch in archs]
    return archs, [float(60 + 2 * s - 1.5 * k + noise * rng.normal()) for s, k in zip(size, kernels, strict=True)]


@pytest.fixture(params=MAKERS)
def predictor(request: pytest.FixtureRequest, tiny_space: SearchSpace) -> Predictor:
    return MAKERS[request.param](tiny_space)


# What is learnt


@pytest.mark.parametrize(
    "make", [RidgePredictor, lambda space: MLPPredictor(space, hidden=64, epochs=20)], ids=["ridge", "mlp"]
)
def test_learns_what_macs_alone_cannot_tell(make: Callable[[SearchSpace], Predictor]) -> None:
    space = spaces.mobilenet_v3_small_images()
    quality = assess(make(space), space, *examples(space, 200), held_out=0.2)
    assert (quality.train, quality.held_out) == (160, 40)
    assert quality.rmse < 0.5 * quality.macs_rmse
    assert quality.kendall_tau > 0.8 > quality.macs_kendall_tau


def test_a_ridge_predictor_finds_a_linear_truth_and_says_its_weights(tiny_space: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    archs = [tiny_space.sample(rng) for _ in range(200)]
    encoded = tiny_space.encode(archs).astype(float)
    truth = encoded @ rng.normal(size=encoded.shape[1]) + 70
    predictor = RidgePredictor(tiny_space).fit(archs[:150], truth[:150].tolist())
    assert predictor.predict(archs[150:]) == pytest.approx(truth[150:], abs=0.05)
    weights, intercept = predictor.linear()
    assert len(weights) == len(tiny_space.encoded_choices)
    assert encoded @ weights + intercept == pytest.approx(predictor.predict(archs), abs=1e-9)


def test_interactions_find_what_no_weight_a_choice_can(tiny_space: SearchSpace) -> None:
    """That depth helps at one resolution and harms at the other."""
    rng = np.random.default_rng(0)
    archs = list(dict.fromkeys(tiny_space.sample(rng) for _ in range(300)))
    sign = {resolution: (-1, 1)[i] for i, resolution in enumerate(tiny_space.resolutions)}
    truth = np.array([60 + sign[arch.resolution] * sum(arch.depths) for arch in archs], float)
    error = {
        wanted: np.abs(
            RidgePredictor(tiny_space, interactions=wanted).fit(archs[:200], truth[:200].tolist()).predict(archs[200:])
            - truth[200:]
        ).mean()
        for wanted in (False, True)
    }
    assert error[False] > 0.5
    assert error[True] < 0.05


def test_the_leave_one_out_residuals_are_those_of_fits_without_each_sample() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 5))
    targets = features @ rng.normal(size=5) + rng.normal(size=30)
    found = ridge(features, targets)
    # The penalty that was chosen, from the normal equations: (X'X + penalty) w = X'y.
    x, y = features - features.mean(axis=0), targets - targets.mean()
    gap = x.T @ (y - x @ found.weights)
    penalty = float(gap @ found.weights / (found.weights @ found.weights))
    assert penalty > 0
    for left_out in (0, 7, 29):
        used = np.arange(30) != left_out
        centre, mean = features[used].mean(axis=0), targets[used].mean()
        x, y = features[used] - centre, targets[used] - mean
        weights = np.linalg.solve(x.T @ x + penalty * np.eye(5), x.T @ y)
        expected = targets[left_out] - mean - (features[left_out] - centre) @ weights
        assert found.residuals[left_out] == pytest.approx(expected, abs=1e-9)


def test_totals_spelled_out(tiny_space: SearchSpace) -> None:
    """Depth, kernels and expand ratios of each of two units, and the resolution."""
    arch = Architecture.from_json({"resolution": 20, "units": [[[3, 4], [7, 6]], [[5, 3], [5, 3], [3, 6]]]})
    (found,) = tiny_space.encode([arch]) @ totals(tiny_space)
    assert sorted(found) == pytest.approx(sorted([2, 10, 10, 3, 13, 12, np.log(20)]))


def test_totals_that_never_change_are_nothing(tiny_space: SearchSpace) -> None:
    part = tiny_space.restrict(resolutions=[20], depths=[2])
    encoded = part.encode([part.smallest(), part.largest()])
    values = standardised(part, encoded)(encoded)
    assert np.isfinite(values).all()
    assert not values[:, -1].any()  # the resolution
    assert np.abs(values).max() == pytest.approx(1)


def test_prediction_in_numpy_equals_the_network_in_torch(tiny_space: SearchSpace) -> None:
    archs, accuracies = examples(tiny_space, 40)
    predictor = MLPPredictor(tiny_space, epochs=1).fit(archs, accuracies)
    encoded = x = torch.from_numpy(tiny_space.encode(archs))
    for index, (weight, bias) in enumerate(predictor.layers):
        x = x @ torch.from_numpy(weight) + torch.from_numpy(bias)
        x = torch.relu(x) if index < 3 else x
    weights, intercept = predictor.arrays["linear.weights"], float(predictor.arrays["linear.intercept"])
    linear = encoded @ torch.from_numpy(weights) + intercept
    np.testing.assert_allclose(predictor.predict(archs), (x[:, 0] + linear).numpy(), rtol=1e-5)
    assert [weight.shape[1] for weight, _ in predictor.layers] == [400, 400, 400, 1]
    assert {array.dtype for name, array in predictor.arrays.items() if name != "seen"} == {np.dtype("float32")}


@pytest.mark.parametrize("scale", [-1.0, 10.0])
def test_scores_need_not_be_percent(predictor: Predictor, scale: float, tiny_space: SearchSpace) -> None:
    """Errors, of which a search maximises the negative; or what has no upper end."""
    archs, accuracies = example_labels(tiny_space)
    scores = [scale * accuracy for accuracy in accuracies]
    found = predictor.fit(archs, scores).predict(archs)
    assert np.abs(found - scores).max() < 5 * abs(scale)


def test_repeated_measurements_of_a_network_are_averaged(tiny_space: SearchSpace) -> None:
    archs, accuracies = examples(tiny_space, 40)
    archs, accuracies = list(dict.fromkeys(archs)), accuracies[: len(set(archs))]
    twice = [a + d for d in (-1, 1) for a in accuracies]
    once = RidgePredictor(tiny_space).fit(archs, accuracies)
    again = RidgePredictor(tiny_space).fit(archs * 2, twice)
    np.testing.assert_allclose(once.predict(archs), again.predict(archs))


# Uncertainty


def test_the_uncertainty_of_an_ensemble_is_about_as_large_as_its_errors() -> None:
    space = spaces.mobilenet_v3_small_images()
    archs, accuracies = examples(space, 300, noise=0.5)
    ensemble = EnsemblePredictor(space, of="ridge").fit(archs[:150], accuracies[:150])
    mean, deviation = ensemble.predict_with_uncertainty(archs[150:])
    errors = np.abs(mean - accuracies[150:]) / deviation
    assert 0.5 < (errors <= 1).mean() < 0.85  # 0.68 of a normal distribution
    assert (errors <= 2).mean() > 0.88


def test_errors_are_larger_where_members_differ_and_the_uncertainty_says_so(tiny_space: SearchSpace) -> None:
    """One resolution is worth 20 points and has two labels of 120: who saw one of them alone is wrong there."""
    ratios = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        rows = tiny_space.sample_rows(2000, rng)
        encoded, rare = tiny_space.encode_rows(rows), rows[:, 0] == 1
        truth = 60 + encoded @ rng.normal(0, 0.3, encoded.shape[1]) + 20 * rare
        used = np.concatenate([np.flatnonzero(~rare)[:118], np.flatnonzero(rare)[:2]])
        ensemble = EnsemblePredictor(tiny_space, of="ridge", options={"interactions": False}, seed=seed)
        ensemble.fit(tiny_space.from_rows(rows[used]), truth[used].tolist())
        deviation = ensemble.predict_rows_with_uncertainty(rows)[1]
        ratios.append(deviation[rare].mean() / deviation[~rare].mean())
    assert np.mean(ratios) > 2.5


def test_every_member_of_an_ensemble_begins_elsewhere(tiny_space: SearchSpace) -> None:
    ensembles = [EnsemblePredictor(tiny_space, members=3, seed=seed) for seed in (0, 1)]
    assert len({member.settings()["seed"] for ensemble in ensembles for member in ensemble.members}) == 6


def test_each_label_is_unknown_to_one_member_and_its_surprise_counts(tiny_space: SearchSpace) -> None:
    archs, accuracies = example_labels(tiny_space)
    clean = EnsemblePredictor(tiny_space, of="ridge").fit(archs, accuracies)
    spoilt = EnsemblePredictor(tiny_space, of="ridge").fit(archs, [accuracies[0] - 30, *accuracies[1:]])
    unmoved = [
        np.array_equal(first.predict(archs), second.predict(archs))
        for first, second in zip(clean.members, spoilt.members, strict=True)
    ]
    assert sorted(unmoved) == [False] * 7 + [True]
    before, after = (ensemble.predict_with_uncertainty(archs)[1].mean() for ensemble in (clean, spoilt))
    assert after > 3 * before


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"members": 1}, "1 members"), ({"members": 11}, "11 members"), ({"of": "tree"}, "'tree'")],
)
def test_ensembles_that_cannot_be_are_refused(settings: dict[str, int], message: str, tiny_space: SearchSpace) -> None:
    with pytest.raises(InvalidConfiguration, match=message):
        EnsemblePredictor(tiny_space, **settings)  # type: ignore[arg-type]


# What is refused


def test_a_choice_that_no_label_had_is_refused_with_those_that_they_had(tiny_space: SearchSpace) -> None:
    predictor = RidgePredictor(tiny_space).fit(*example_labels(tiny_space.restrict(kernels=[3, 5], depths=[1, 2])))
    arch, message = (
        tiny_space.uniform(depth=2, kernel=7, expand=4, resolution=16),
        r"kernel 7 at unit 1, block 1: .*labelled: 3, 5\)",
    )
    with pytest.raises(OutOfDomain, match=message):
        predictor.predict([arch])
    with pytest.raises(OutOfDomain, match=message):
        predictor.predict_rows(tiny_space.to_rows([tiny_space.smallest(), arch]))
    with pytest.raises(OutOfDomain, match=r"depth 3 at unit 2: .*labelled: 2\)"):
        predictor.predict([tiny_space.restrict(kernels=[3]).largest()])


def test_rows_of_another_space_are_refused(tiny_space: SearchSpace) -> None:
    predictor = RidgePredictor(tiny_space).fit(*example_labels(tiny_space))
    for other in (spaces.mobilenet_v3(), spaces.mobilenet_v3_small_images()):
        with pytest.raises(OutOfDomain, match="are of another space"):
            predictor.predict_rows(other.to_rows([other.largest()]))
    rows = tiny_space.to_rows([tiny_space.largest()])
    rows[0, 0] = 2  # a third resolution
    with pytest.raises(OutOfDomain, match="another space"):
        predictor.predict_rows(rows)


def test_labels_that_cannot_be_learnt_from_are_refused(tiny_space: SearchSpace) -> None:
    archs, accuracies = examples(tiny_space, 10)
    for wrong_archs, wrong, message in (
        (archs[:9], accuracies[:9], "9 labelled architectures: at least 10"),
        (archs[:1] * 10, accuracies, "1 labelled architectures: at least 10"),
        (archs, accuracies[:9], "10 architectures and 9 accuracies"),
        (archs, [*accuracies[:9], float("nan")], "accuracy nan: expected a finite number"),
        (archs, [*accuracies[:9], float("-inf")], "accuracy -inf: expected a finite number"),
    ):
        with pytest.raises(InvalidConfiguration, match=message):
            RidgePredictor(tiny_space).fit(wrong_archs, wrong)
    with pytest.raises(InvalidArchitecture, match="resolution 224"):
        RidgePredictor(tiny_space).fit([*archs, spaces.mobilenet_v3().largest()], [*accuracies, 50.0])


def test_only_a_linear_predictor_has_weights(tiny_space: SearchSpace) -> None:
    with pytest.raises(InvalidConfiguration, match="not linear"):
        RidgePredictor(tiny_space, interactions=True).linear()
    with pytest.raises(OutOfDomain, match="call fit"):
        RidgePredictor(tiny_space).linear()


def test_macs_alone_know_nothing_before_they_learnt(tiny_space: SearchSpace) -> None:
    with pytest.raises(OutOfDomain, match="call fit"):
        MACsPredictor(tiny_space).predict([tiny_space.largest()])


def test_networks_measured_twice_are_held_out_as_a_whole(tiny_space: SearchSpace) -> None:
    archs, accuracies = example_labels(tiny_space)
    quality = assess(RidgePredictor(tiny_space), tiny_space, archs * 2, accuracies * 2, held_out=0.25)
    assert quality.held_out == 2 * round(0.25 * len(archs))
    assert quality.train + quality.held_out == 2 * len(archs)
    with pytest.raises(InvalidConfiguration, match="too few to hold 1% out"):
        assess(RidgePredictor(tiny_space), tiny_space, archs, accuracies, held_out=0.01)


def test_what_alone_shows_a_choice_is_not_held_out(tiny_space: SearchSpace) -> None:
    archs, accuracies = example_labels(tiny_space.restrict(resolutions=[16]))
    only = Architecture(20, archs[0].units)
    for seed in range(5):  # held out, the predictor would refuse its resolution
        quality = assess(
            RidgePredictor(tiny_space), tiny_space, [*archs, only], [*accuracies, 60.0], held_out=0.5, seed=seed
        )
        assert quality.held_out == round(0.5 * (len(archs) + 1))


# Files


def test_read_again_it_predicts_the_same(predictor: Predictor, tiny_space: SearchSpace, tmp_path: Path) -> None:
    labels = example_labels(tiny_space.restrict(resolutions=[16]))
    save_predictor(tmp_path / "predictor.safetensors", predictor.fit(*labels))
    again = load_predictor(tmp_path / "predictor.safetensors")
    assert type(again) is type(predictor)
    assert (again.space, again.settings()) == (tiny_space, predictor.settings())
    np.testing.assert_array_equal(again.predict(labels[0]), predictor.predict(labels[0]))
    with pytest.raises(OutOfDomain, match="resolution 20"):  # what the labels showed goes with it
        again.predict([tiny_space.largest()])
    if isinstance(predictor, EnsemblePredictor):
        assert isinstance(again, EnsemblePredictor)
        for found, expected in zip(*(p.predict_with_uncertainty(labels[0]) for p in (again, predictor)), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_what_learnt_nothing_is_not_saved(tiny_space: SearchSpace, tmp_path: Path) -> None:
    with pytest.raises(OutOfDomain, match="call fit"):
        save_predictor(tmp_path / "predictor.safetensors", RidgePredictor(tiny_space))


def test_foreign_and_truncated_files_are_refused(tiny_space: SearchSpace, tmp_path: Path) -> None:
    path, other = tmp_path / "predictor.safetensors", tmp_path / "other.safetensors"
    save_predictor(path, RidgePredictor(tiny_space).fit(*example_labels(tiny_space)))
    other.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(IncompatibleCheckpoint, match="not a whole safetensors file"):
        load_predictor(other)
    tensors = load_file(path)
    about = {
        "format": "onceforall.accuracy_predictor/1",
        "kind": "ridge",
        "settings": "{}",
        "space": json.dumps(tiny_space.to_json()),
    }
    without = {name: tensor for name, tensor in tensors.items() if name != "weights"}
    for changed, changes, message in (
        (tensors, {"format": "onceforall.supernet/1"}, "format 'onceforall.supernet/1', expected"),
        (tensors, {"kind": "forest"}, "(settings|space) cannot be read: 'forest'"),
        (tensors, {"settings": '{"trees": 3}'}, "(settings|space) cannot be read"),
        (tensors, {"space": "{}"}, "(settings|space) cannot be read"),
        (without, {}, "missing: weights"),
        ({**tensors, "more": torch.zeros(1)}, {}, "1 extra: more"),
        ({**tensors, "weights": torch.zeros(3)}, {}, r"of wrong shape: weights \(3,\) instead of"),
    ):
        save_file(changed, other, {**about, **changes})
        with pytest.raises(IncompatibleCheckpoint, match=message):
            load_predictor(other)


def test_ridge_survives_a_decomposition_that_does_not_converge(
    tiny_space: SearchSpace, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    archs = tiny_space.from_rows(tiny_space.sample_rows(60, rng))
    accuracies = [50 + rng.normal() for _ in archs]
    expected = RidgePredictor(tiny_space, interactions=True).fit(archs, accuracies).predict(archs)

    def fail(*given: object, **options: object) -> None:
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(np.linalg, "svd", fail)
    found = RidgePredictor(tiny_space, interactions=True).fit(archs, accuracies).predict(archs)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", [MLPPredictor, RidgePredictor, EnsemblePredictor])
def test_what_is_predicted_of_an_easy_problem_can_be(
    kind: type[MLPPredictor | RidgePredictor | EnsemblePredictor], tiny_space: SearchSpace
) -> None:
    """Labels of 94 to 100 %, which a straight line leads beyond."""
    archs = [tiny_space.sample(np.random.default_rng(seed)) for seed in range(60)]
    size = np.log([macs(tiny_space.lower(arch)) for arch in archs])
    measured = np.minimum(94 + 12 * (size - size.min()) / np.ptp(size), 100)
    predictor = kind(tiny_space).fit(archs, measured.tolist())
    rows = tiny_space.sample_rows(2000, np.random.default_rng(1))
    assert (predictor.raw_rows(rows) > 100).any()
    predicted = predictor.predict_rows(rows)
    assert predicted.min() >= 0
    assert predicted.max() <= 100
    order = predictor.raw_rows(rows).argsort()
    assert (np.diff(predicted[order]) >= 0).all()


def test_predictions_near_the_labels_are_not_bent(tiny_space: SearchSpace) -> None:
    archs = [tiny_space.sample(np.random.default_rng(seed)) for seed in range(60)]
    measured = np.random.default_rng(0).uniform(60, 80, len(archs))
    predictor = RidgePredictor(tiny_space).fit(archs, measured.tolist())
    values = np.linspace(31, 89, 50)
    np.testing.assert_array_equal(predictor.bounded(values), values)
    assert predictor.bounded(np.array([1e9, -1e9])).tolist() == [100, 0]


def test_scores_that_are_no_percentages_are_not_bounded(tiny_space: SearchSpace) -> None:
    archs = [tiny_space.sample(np.random.default_rng(seed)) for seed in range(60)]
    predictor = RidgePredictor(tiny_space).fit(archs, (-np.linspace(0.1, 3, 60)).tolist())
    assert predictor.bounded(np.array([-500.0, 700.0])).tolist() == [-500, 700]
