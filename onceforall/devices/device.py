"""What a device is: something that prepares a network and runs it, and how its runs are timed."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from onceforall.cost.latency import Timing

Run = Callable[[], None]


class Device(ABC):
    """A runtime with fixed settings on one machine."""

    name: str

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Name, processor, runtime and version, threads, precision: what a measurement is of."""

    @abstractmethod
    def prepare(self, network: nn.Module, input_shape: tuple[int, ...]) -> Run:
        """Load a network (in evaluation mode); the result runs it once on a fixed input of that shape."""


def time_turns(
    runs: Sequence[Run],
    *,
    turns: int,
    burst_seconds: float,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Milliseconds a run, shape [runs, turns].

    In each turn every network gets one burst of consecutive runs, in a new random order: a burst
    measures warm caches, turns spread over time average the drift of a machine that is not ours
    alone. A burst's value is the median of its runs, after two that warm up.
    """
    rng = np.random.default_rng(seed)
    result = np.empty((len(runs), turns))
    for turn in range(turns):
        for place, index in enumerate(rng.permutation(len(runs)).tolist(), 1):
            run = runs[index]
            run()
            run()
            samples: list[float] = []
            end = time.perf_counter() + burst_seconds
            while (now := time.perf_counter()) < end or len(samples) < 3:
                run()
                samples.append(time.perf_counter() - now)
            result[index, turn] = 1e3 * float(np.median(samples))
            report(turn * len(runs) + place, turns * len(runs))
    return result


def summarise(turns: np.ndarray) -> Timing:
    """Median, half the interquartile range, and number of the turns of one network (ms)."""
    low, median, high = np.percentile(turns, [25, 50, 75])
    return Timing(float(median), float(high - low) / 2, len(turns))
