"""What every accuracy predictor must do."""

from __future__ import annotations

import math

import numpy as np

from onceforall.architecture import Architecture
from onceforall.cost.analytic import MACs, macs
from onceforall.errors import OutOfDomain
from onceforall.predict.predictor import AccuracyPredictor
from onceforall.rows import Rows
from onceforall.search.evolution import search
from onceforall.space import SearchSpace
from onceforall.testing.common import foreigners, raises, some

Labels = tuple[list[Architecture], list[float]]


class AccuracyPredictorSuite:
    """What every accuracy predictor must do. A subclass provides `space`, `predictor` and `unfitted`, fixtures all.

    `predictor` is ready to predict for all of `space`: one that learns has been fitted, for instance
    with `example_labels(space)`. `unfitted` is a new one like it, or None for one that does not learn.
    """

    def test_one_finite_percentage_each_whoever_else_is_asked_about(
        self, space: SearchSpace, predictor: AccuracyPredictor
    ) -> None:
        architectures = some(space, 30)
        found = predictor.predict(architectures)
        assert found.shape == (len(architectures),), f"{len(architectures)} architectures got {found.shape} answers"
        assert found.dtype == np.float64, f"answers are {found.dtype} instead of float64"
        for arch, accuracy in zip(architectures, found, strict=True):
            assert math.isfinite(accuracy), f"{arch} is predicted to reach {accuracy} %"
            alone = float(predictor.predict([arch])[0])
            assert abs(alone - accuracy) < 1e-3, f"{arch}: {alone} % alone, {accuracy} % among others"

    def test_rows_are_answered_as_their_architectures_are(
        self, space: SearchSpace, predictor: AccuracyPredictor
    ) -> None:
        assert predictor.space == space, f"the predictor is of {predictor.space}"
        rows = space.sample_rows(200, np.random.default_rng(0))
        before = rows.copy()
        found, expected = predictor.predict_rows(rows), predictor.predict(space.from_rows(rows))
        assert np.array_equal(rows, before), "predicting changed the rows"
        apart = float(np.abs(found - expected).max())
        assert apart < 1e-3, f"rows and their architectures are {apart} points apart"

    def test_architectures_of_another_space_are_refused_by_name(
        self, space: SearchSpace, predictor: AccuracyPredictor
    ) -> None:
        for arch, name in foreigners(space):
            with raises(OutOfDomain, name):
                predictor.predict([space.largest(), arch])

    def test_nothing_is_predicted_before_it_learnt(
        self, space: SearchSpace, unfitted: AccuracyPredictor | None
    ) -> None:
        if unfitted is not None:
            with raises(OutOfDomain, "fit"):
                unfitted.predict([space.largest()])
            with raises(OutOfDomain, "fit"):
                unfitted.predict_rows(space.to_rows([space.largest()]))

    def test_a_resolution_that_no_label_had_is_refused(
        self, space: SearchSpace, unfitted: AccuracyPredictor | None
    ) -> None:
        if unfitted is not None and len(space.resolutions) > 1:
            *known, unknown = space.resolutions
            fitted = unfitted.fit(*example_labels(space.restrict(resolutions=known)))
            fitted.predict([space.smallest()])
            with raises(OutOfDomain, f"resolution {unknown}"):
                fitted.predict([space.largest()])
            with raises(OutOfDomain, f"resolution {unknown}"):
                fitted.predict_rows(_row_of_largest(space))

    def test_the_same_labels_teach_the_same(self, space: SearchSpace, unfitted: AccuracyPredictor | None) -> None:
        if unfitted is not None:
            labels, other = example_labels(space), example_labels(space, slope=-3.0)
            first = unfitted.fit(*labels).predict(labels[0])
            assert not np.allclose(unfitted.fit(*other).predict(labels[0]), first), "labels teach nothing"
            assert np.allclose(unfitted.fit(*labels).predict(labels[0]), first, atol=1e-4), "the past is not forgotten"

    def test_a_search_finds_what_it_predicts_to_be_best(self, space: SearchSpace, predictor: AccuracyPredictor) -> None:
        bound = (macs(space.lower(space.smallest())) + macs(space.lower(space.largest()))) / 2
        result = search(space, predictor, [MACs().at_most(bound)], generations=10, population=40)
        expected = float(predictor.predict([result.architecture])[0])
        assert abs(result.accuracy - expected) < 1e-3, f"found with {result.accuracy} %, predicted {expected} %"
        rivals = [arch for arch in some(space, 30) if macs(space.lower(arch)) <= bound]
        best = float(predictor.predict(rivals).max())
        assert result.accuracy >= best - 1e-3, f"a search found {result.accuracy} %, 30 random networks {best} %"

    def test_its_uncertainty_belongs_to_its_prediction(self, space: SearchSpace, predictor: AccuracyPredictor) -> None:
        """Where it gives one."""
        ask = getattr(predictor, "predict_with_uncertainty", None)
        if ask is not None:
            architectures = some(space, 30)
            mean, deviation = ask(architectures)
            assert np.allclose(mean, predictor.predict(architectures), atol=1e-3), "the means are no predictions"
            assert deviation.shape == mean.shape, f"{mean.shape} means have {deviation.shape} deviations"
            assert (deviation > 0).all(), f"a standard deviation is {deviation.min()}"
            assert np.isfinite(deviation).all(), f"a standard deviation is {deviation.max()}"


def example_labels(space: SearchSpace, count: int = 40, slope: float = 2.0) -> Labels:
    """Architectures that show every choice of a space, and accuracies (percent) that follow their MACs."""
    architectures = list(dict.fromkeys([*space.uniforms(), *some(space, count)]))
    size = np.log([macs(space.lower(arch)) for arch in architectures])
    return architectures, (60 + slope * (size - size.mean())).tolist()


def _row_of_largest(space: SearchSpace) -> Rows:
    return space.to_rows([space.largest()])
