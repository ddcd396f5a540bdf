from __future__ import annotations

import numpy as np
import pytest

from onceforall.devices.timing import Turns, time_turns
from onceforall.errors import InvalidConfiguration


def test_turns_are_bursts_of_each_network_in_changing_order() -> None:
    calls: list[int] = []
    loads = [lambda i=i: lambda: calls.append(i) for i in range(3)]
    turns = time_turns(loads, Turns(4, 0.0))
    assert turns.shape == (3, 4)
    assert (turns >= 0).all()
    order = [calls[i] for i in range(0, len(calls), 5)]  # a burst without time: two to warm up, three timed
    assert len(calls) == 3 * 4 * 5
    assert all(sorted(order[i : i + 3]) == [0, 1, 2] for i in range(0, 12, 3))
    assert len({tuple(order[i : i + 3]) for i in range(0, 12, 3)}) > 1


def test_an_interrupted_measurement_goes_on_with_the_next_turn() -> None:
    calls: list[int] = []
    loads = [lambda i=i: lambda: calls.append(i) for i in range(3)]
    kept: list[np.ndarray] = []
    whole = time_turns(loads, Turns(4, 0.0), keep=kept.append)
    order, calls[:] = list(calls), []
    assert np.array_equal(np.stack(kept, axis=1), whole)
    again = time_turns(loads, Turns(4, 0.0), done=kept[:3], keep=kept.append)
    assert np.array_equal(again[:, :3], whole[:, :3])
    assert calls == order[-15:]  # the last turn alone, in its own order
    assert len(kept) == 5


@pytest.mark.parametrize("given", [(0, 0.01), (3, -1.0), (3, float("nan"))])
def test_measurements_of_no_length_are_refused(given: tuple[int, float]) -> None:
    with pytest.raises(InvalidConfiguration, match="expected at least 1 turn"):
        Turns(*given)
