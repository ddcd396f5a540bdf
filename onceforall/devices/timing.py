"""How runs are timed: bursts of one network, several turns spread over time, medians."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onceforall.devices.measure import orders, time_turn
from onceforall.errors import InvalidConfiguration

Run = Callable[[], object]
Load = Callable[[], Run]  # a network made ready
Turn = NDArray[np.float64]  # milliseconds of each network in one turn


@dataclass(frozen=True)
class Turns:
    """How long to measure: in each turn every network gets one burst of consecutive runs, in a new random order.

    A burst measures warm caches, turns spread over time average the drift of a machine that is not
    ours alone. A burst's value is the median of its runs, at least three, after two that warm up.
    """

    count: int = 9
    burst_seconds: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or not self.burst_seconds >= 0:
            raise InvalidConfiguration(
                f"{self.count} turns of {self.burst_seconds} s: expected at least 1 turn, and seconds from 0"
            )


def time_turns(
    loads: Sequence[Load],
    turns: Turns,
    *,
    done: Sequence[Turn] = (),
    keep: Callable[[Turn], None] = lambda turn: None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float64]:
    """Milliseconds a run, shape [networks, turns], each loaded anew in each turn.

    `done` are the first turns of an interrupted measurement; `keep` receives each new turn when it
    is complete, `report` (bursts done, bursts in all).
    """
    result = list(done)
    for order in orders(len(loads), turns.count, turns.seed)[len(done) :]:

        def tell(place: int, before: int = len(result) * len(loads)) -> None:
            report(before + place, turns.count * len(loads))

        turn: Turn = np.array(time_turn(loads, order, turns.burst_seconds, tell))
        result.append(turn)
        keep(turn)
    return np.stack(result, axis=1)
