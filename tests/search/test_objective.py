from __future__ import annotations

import numpy as np
import pytest

from onceforall.cost.analytic import MACs
from onceforall.errors import InvalidConfiguration
from onceforall.search.objective import Accuracy, PenalisedLoss, SoftTarget

ACCURACY = np.array([70.0, 70.0, 70.0])
COSTS = np.array([[50.0], [100.0], [200.0]])


def test_accuracy_alone_ignores_costs() -> None:
    assert Accuracy().models == ()
    np.testing.assert_array_equal(Accuracy().score(ACCURACY, COSTS[:, :0]), ACCURACY)


def test_soft_target_is_the_reward_of_mnasnet() -> None:
    reward = SoftTarget(MACs(), 100.0).score(ACCURACY, COSTS)
    np.testing.assert_allclose(reward, 70 * np.array([0.5**-0.07, 1, 2**-0.07]))
    assert reward[2] == pytest.approx(0.95 * 70, rel=3e-3)  # "doubling the latency": about 5 % of the accuracy
    hard = SoftTarget(MACs(), 100.0, within=0, beyond=-1).score(ACCURACY, COSTS)
    np.testing.assert_allclose(hard, [70, 70, 35])


def test_penalised_loss_is_the_error_plus_lambda_times_the_cost() -> None:
    np.testing.assert_allclose(PenalisedLoss(MACs(), 0.1).score(ACCURACY, COSTS), [-35, -40, -50])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftTarget(MACs(), 0), "target 0 MACs"),
        (lambda: SoftTarget(MACs(), 1, beyond=0.07), "exponents -0.07 and 0.07"),
        (lambda: PenalisedLoss(MACs(), -1), "weight -1"),
        (lambda: PenalisedLoss(MACs(), float("nan")), "weight nan"),
    ],
)
def test_objectives_that_make_no_sense_are_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidConfiguration, match=message):
        make()
