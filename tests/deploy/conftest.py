from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from onceforall.cost.analytic import macs
from onceforall.cost.latency import LatencyTable
from onceforall.deploy.job import Job
from onceforall.deploy.manifest import Export, Network
from onceforall.nn.supernet import Supernet
from onceforall.predict.labels import Label, plan
from onceforall.space import SearchSpace


@pytest.fixture(autouse=True)
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is what the files take: a process of its own for each export takes seconds, and never the same."""
    for module in ("job", "verify"):
        monkeypatch.setattr(
            f"onceforall.deploy.{module}.measure_memory", lambda device, files, shape: sum(map(len, files.values()))
        )


Clock = Callable[[Job, Sequence[tuple[Network, Export]]], None]


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
    """A clock for tests, in the place of `Job.time`: so many times slower than the table says."""

    def clock(factor: float) -> Clock:
        def time(job: Job, exports: Sequence[tuple[Network, Export]]) -> None:
            for network, export in exports:
                export.latency_ms, export.latency_spread_ms = factor * network.predicted_latency_ms, 0.0

        return time

    return clock


@pytest.fixture
def same_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of a machine that does nothing else."""
    import onceforall.deploy.verify as module

    monkeypatch.setattr(module, "LATENCY", 100.0)
