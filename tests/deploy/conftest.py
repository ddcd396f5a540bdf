from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from onceforall.cost.analytic import macs
from onceforall.cost.latency import LatencyTable, Timing
from onceforall.deploy.call import Call
from onceforall.deploy.manifest import Specialized, value_of
from onceforall.devices.device import Files
from onceforall.nn.supernet import Supernet
from onceforall.predict.labels import Label, plan
from onceforall.space import SearchSpace


@pytest.fixture(autouse=True)
def ideal_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network takes half a millisecond, whenever it is timed, and as much memory as its files."""
    make_ideal(monkeypatch)


@pytest.fixture(scope="module")
def ideal() -> Callable[[pytest.MonkeyPatch], None]:
    """The same for fixtures of a module, which come before those of a test."""
    return make_ideal


def make_ideal(patch: pytest.MonkeyPatch) -> None:
    def memory(device: object, files: Files, shape: object) -> int:
        return sum(map(len, files.values()))

    def clock(loads: Sequence[object], turns: object, **given: object) -> NDArray[np.float64]:
        return np.full((len(loads), 9), 0.5)

    for module in ("finishing", "verify"):
        patch.setattr(f"onceforall.deploy.{module}.measure_memory", memory)
    for module in ("call", "verify", "precision"):
        patch.setattr(f"onceforall.deploy.{module}.time_turns", clock)


Clock = Callable[[Call, Sequence[tuple[Specialized, object]]], list[Timing]]


@pytest.fixture(scope="module")
def supernet(tiny_space: SearchSpace) -> Supernet:
    return Supernet(tiny_space, seed=1)


@pytest.fixture(scope="module")
def labels(supernet: Supernet, made_up_labels: Callable[[SearchSpace, int], list[Label]]) -> list[Label]:
    return made_up_labels(supernet.space, 60)


@pytest.fixture(scope="module")
def table(supernet: Supernet) -> LatencyTable:
    return LatencyTable.synthetic(supernet.space)


@pytest.fixture(scope="session")
def made_up_labels() -> Callable[[SearchSpace, int], list[Label]]:
    """Made-up accuracies that grow with size: what is searched for is then known."""

    def make(space: SearchSpace, count: int) -> list[Label]:
        return [
            Label(kind, arch, 20 + 10 * float(np.log10(macs(space.lower(arch)))))
            for kind, arch in plan(space, count, seed=0, uniform=True)
        ]

    return make


@pytest.fixture(scope="session")
def slower() -> Callable[[float], Clock]:
    """A clock for tests, in the place of `call.time_exports`: so many times slower than the table says."""

    def clock(factor: float) -> Clock:
        def time(call: Call, exports: Sequence[tuple[Specialized, object]]) -> list[Timing]:
            return [Timing(factor * value_of(network.predicted_latency), 0.0, 9) for network, _ in exports]

        return time

    return clock
