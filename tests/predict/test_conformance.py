"""Each accuracy predictor, ours and the authors', under the suite that we ship; and mistakes that it must find."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Self

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from onceforall.architecture import Architecture
from onceforall.errors import InvalidArchitecture
from onceforall.interop.predictors import PublishedPredictor, mobilenet_v3_domain
from onceforall.predict.accuracy import AccuracyPredictor, EnsemblePredictor, MLPPredictor, RidgePredictor
from onceforall.rows import Rows
from onceforall.space import SearchSpace
from onceforall.testing import AccuracyPredictorSuite, example_labels

SMALL = {"hidden": 16, "epochs": 5}
KINDS: dict[str, Callable[[SearchSpace], AccuracyPredictor]] = {
    "ridge": RidgePredictor,
    "interactions": lambda space: RidgePredictor(space, interactions=True),
    "mlp": lambda space: MLPPredictor(space, **SMALL),
    "ensemble": lambda space: EnsemblePredictor(space, members=3, options=SMALL),
    "ridge ensemble": lambda space: EnsemblePredictor(space, members=3, of="ridge"),
}


@pytest.fixture(scope="module", params=["plain", "resnet", "tied"])
def small_space(request: pytest.FixtureRequest, tiny_space: SearchSpace, tiny_resnet_space: SearchSpace) -> SearchSpace:
    if request.param == "tied":
        units = tuple(replace(unit, expands=(3, 6), tied=True) for unit in tiny_space.units)
        return replace(tiny_space, units=units)
    return tiny_space if request.param == "plain" else tiny_resnet_space


@pytest.fixture(scope="module", params=KINDS)
def make(request: pytest.FixtureRequest) -> Callable[[SearchSpace], AccuracyPredictor]:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def fitted(small_space: SearchSpace, make: Callable[[SearchSpace], AccuracyPredictor]) -> AccuracyPredictor:
    return make(small_space).fit(*example_labels(small_space))


@pytest.fixture(scope="module")
def published() -> PublishedPredictor:
    """With generated weights: what it says does not matter here."""
    domain, rng = mobilenet_v3_domain(), np.random.default_rng(0)
    layers = [
        (rng.normal(0, 0.05, (after, before)).astype(np.float32), np.zeros(after, np.float32))
        for before, after in itertools.pairwise((domain.features, 400, 400, 400, 1))
    ]
    return PublishedPredictor(domain, layers, 0.7)


class TestOurs(AccuracyPredictorSuite):
    @pytest.fixture
    def space(self, small_space: SearchSpace) -> SearchSpace:
        return small_space

    @pytest.fixture
    def predictor(self, fitted: AccuracyPredictor) -> AccuracyPredictor:
        return fitted

    @pytest.fixture
    def unfitted(self, small_space: SearchSpace, make: Callable[[SearchSpace], AccuracyPredictor]) -> AccuracyPredictor:
        return make(small_space)


class TestPublished(AccuracyPredictorSuite):
    @pytest.fixture
    def predictor(self, published: PublishedPredictor) -> PublishedPredictor:
        return published

    @pytest.fixture
    def space(self, published: PublishedPredictor) -> SearchSpace:
        return published.space

    @pytest.fixture
    def unfitted(self) -> None:
        return None


# Mistakes


class AnswersBeforeItLearnt(RidgePredictor):
    def predict(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        return super().predict(architectures) if self.arrays else np.zeros(len(architectures))


class KnowsNoLimits(RidgePredictor):
    def check(self, rows: Rows) -> None:
        if not self.arrays:
            super().check(rows)


class ComparesWithTheOthers(RidgePredictor):
    def answer(self, encoded: NDArray[np.float32]) -> NDArray[np.float64]:
        return super().answer(encoded) - super().answer(encoded).mean()


class LearnsNothing(RidgePredictor):
    def answer(self, encoded: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.full(len(encoded), 50.0)


class RemembersThePast(RidgePredictor):
    def fit(self, architectures: Sequence[Architecture], accuracies: Sequence[float]) -> Self:
        before = self.predict(architectures) if self.arrays else np.asarray(accuracies)
        return super().fit(architectures, ((before + np.asarray(accuracies)) / 2).tolist())


class NamesNothing(RidgePredictor):
    def to_rows(self, architectures: Sequence[Architecture]) -> Rows:
        return self.space.to_rows(architectures)


class IsCertain(EnsemblePredictor):
    def predict_rows_with_uncertainty(self, rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self.predict_rows(rows), np.zeros(len(rows))


@pytest.mark.parametrize(
    ("kind", "test", "message"),
    [
        (AnswersBeforeItLearnt, "test_nothing_is_predicted_before_it_learnt", "expected OutOfDomain"),
        (KnowsNoLimits, "test_a_resolution_that_no_label_had_is_refused", "expected OutOfDomain.* resolution 20"),
        (ComparesWithTheOthers, "test_one_finite_percentage_each_whoever_else_is_asked_about", "% alone, .* among"),
        (LearnsNothing, "test_the_same_labels_teach_the_same", "labels teach nothing"),
        (RemembersThePast, "test_the_same_labels_teach_the_same", "the past is not forgotten"),
        (NamesNothing, "test_architectures_of_another_space_are_refused_by_name", "resolution 21"),
        (IsCertain, "test_its_uncertainty_belongs_to_its_prediction", r"a standard deviation is 0\.0"),
    ],
)  # fmt: skip
def test_a_mistake_is_found(
    kind: type[RidgePredictor | EnsemblePredictor], test: str, message: str, tiny_space: SearchSpace
) -> None:
    new = kind(tiny_space, of="ridge") if issubclass(kind, EnsemblePredictor) else kind(tiny_space)
    takes_fitted = not ("before" in test or "same" in test or "no_label" in test)
    given = new.fit(*example_labels(tiny_space)) if takes_fitted else new
    with pytest.raises((AssertionError, InvalidArchitecture), match=message):
        getattr(AccuracyPredictorSuite(), test)(tiny_space, given)


def test_torchs_generator_is_left_alone(tiny_space: SearchSpace) -> None:
    state = torch.get_rng_state()
    MLPPredictor(tiny_space, **SMALL).fit(*example_labels(tiny_space))
    assert torch.equal(state, torch.get_rng_state())
