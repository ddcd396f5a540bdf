from __future__ import annotations

import numpy as np
import pytest

from onceforall.errors import InvalidConfiguration, OutOfDomain
from onceforall.predict.corrected import CorrectedPredictor
from onceforall.predict.ridge import RidgePredictor
from onceforall.space import SearchSpace


@pytest.fixture
def base(tiny_space: SearchSpace, rng: np.random.Generator) -> RidgePredictor:
    archs = tiny_space.from_rows(tiny_space.sample_rows(200, rng))
    return RidgePredictor(tiny_space).fit(archs, [60 + 0.1 * arch.resolution for arch in archs])


def test_a_change_that_depends_on_choices_is_learnt(
    base: RidgePredictor, tiny_space: SearchSpace, rng: np.random.Generator
) -> None:
    archs = tiny_space.from_rows(tiny_space.sample_rows(120, rng))
    changes = -0.3 - 0.05 * np.array([arch.resolution - 20 for arch in archs])
    corrected = CorrectedPredictor(base).fit(archs[:40], changes[:40])
    found = corrected.predict(archs[40:]) - base.predict(archs[40:])
    assert np.abs(found - changes[40:]).max() < 0.1
    assert corrected.space == tiny_space


def test_noise_leaves_the_mean(base: RidgePredictor, tiny_space: SearchSpace, rng: np.random.Generator) -> None:
    archs = tiny_space.from_rows(tiny_space.sample_rows(100, rng))
    corrected = CorrectedPredictor(base).fit(archs[:40], -0.5 + rng.normal(0, 0.3, 40))
    found = corrected.predict(archs[40:]) - base.predict(archs[40:])
    assert found.mean() == pytest.approx(-0.5, abs=0.15)
    assert found.std() < 0.2


def test_too_little_is_refused(base: RidgePredictor, tiny_space: SearchSpace) -> None:
    with pytest.raises(OutOfDomain, match="learnt nothing yet"):
        CorrectedPredictor(base).predict([tiny_space.largest()])
    for archs, changes in (([tiny_space.largest()] * 4, [0.1] * 4), ([tiny_space.largest()] * 6, [0.1] * 5 + [np.nan])):
        with pytest.raises(InvalidConfiguration, match="expected 5 of each or more, finite"):
            CorrectedPredictor(base).fit(archs, changes)
