from __future__ import annotations

import json
import math

import pytest

from onceforall.cost.validation import Errors, Validation
from onceforall.errors import InvalidConfiguration


def test_errors_are_in_percent_of_what_was_measured() -> None:
    found = Errors.of([1.2, 2.0, 2.76, 4.8], [1.0, 2.0, 3.0, 4.0])
    assert found.networks == 4
    assert found.mape == pytest.approx((20 + 0 + 8 + 20) / 4)
    assert found.bias == pytest.approx((20 + 0 - 8 + 20) / 4)
    assert found.worst == pytest.approx(20)
    assert (found.within_5, found.within_10) == (25, 50)
    assert found.spearman == pytest.approx(1.0)


def test_each_kind_of_network_is_judged_by_itself_and_all_together() -> None:
    found = Validation.of(
        ["random", "uniform", "random", "uniform"], [1.0, 2.2, 3.0, 4.4], [1.0, 2.0, 3.0, 4.0], 0.5, 2.0
    )
    assert {kind: errors.mape for kind, errors in found.kinds.items()} == pytest.approx(
        {"all": 5.0, "random": 0.0, "uniform": 10.0}
    )
    assert found.all == found.kinds["all"]
    assert (found.noise, found.drift) == (0.5, 2.0)
    assert Validation.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_kind_with_one_network_or_with_all_has_no_line_of_its_own() -> None:
    assert set(Validation.of(["a", "b", "b"], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).kinds) == {"all", "b"}
    assert set(Validation.of(["b", "b"], [1.0, 2.0], [1.0, 2.0]).kinds) == {"all"}


@pytest.mark.parametrize(("predicted", "measured"), [([1.0], [1.0]), ([1.0, 2.0], [1.0])])
def test_too_little_to_compare_is_refused(predicted: list[float], measured: list[float]) -> None:
    with pytest.raises(InvalidConfiguration, match="two or more"):
        Errors.of(predicted, measured)


def test_errors_read_as_a_sentence() -> None:
    text = str(Errors(30, 1.23, 0.1, 4.0, 97.0, 100.0, 0.9951))
    assert text == "mean error 1.2 %, 97 % within 5 %, worst 4.0 %, Spearman 0.995"
    assert not math.isnan(Errors.of([1, 2], [1, 2]).spearman)
