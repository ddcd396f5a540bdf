"""The winner of a search, timed on the device of its latency model and measured on the label images."""

from __future__ import annotations

from collections.abc import Sequence

from onceforall.architecture import Architecture
from onceforall.cost.latency import LatencyTable
from onceforall.cost.learned import LearnedLatency
from onceforall.cost.model import Constraint
from onceforall.data.dataset import Data
from onceforall.devices import by_name
from onceforall.devices.device import Device
from onceforall.errors import InvalidConfiguration
from onceforall.evaluate import measure
from onceforall.nn.supernet import Supernet
from onceforall.profiling.measuring import measure_latency, whole_network
from onceforall.search.confirm import Confirmation, confirm
from onceforall.search.result import SearchResult
from onceforall.search.scoring import RowPredictor
from onceforall.space import SearchSpace
from onceforall.tasks import task_of


def device_of(table: LatencyTable | LearnedLatency) -> Device:
    """The device that a latency model was measured on. Raises InvalidConfiguration where it is not here."""
    name, threads, precision = (table.device.get(key) for key in ("name", "threads", "precision"))
    device = by_name(str(name), int(threads or 1), str(precision or "fp32"))
    return device.keeping(table.device["kept"]) if table.device.get("kept") else device


def confirm_on_device(
    supernet: Supernet,
    space: SearchSpace,
    accuracy: RowPredictor,
    result: SearchResult,
    constraints: Sequence[Constraint],
    data: Data,
    *,
    top: int = 5,
) -> Confirmation:
    """`confirm` a search on the device of its first constraint, which is on a latency, and on the label images.

    Accuracies are as the search maximises them: where a lower score is better, its negative (`Score.goal`).
    space: of the search, the supernet's or a part of it. Raises InvalidConfiguration where the first constraint
    knows no device.
    """
    table = constraints[0].model if constraints else None
    if not isinstance(table, LatencyTable | LearnedLatency):
        raise InvalidConfiguration(
            "the first constraint of the search must be on a latency from `ofa profile`, whose device measures the "
            "winner: other costs, and tables by resolution, name no device"
        )
    device = device_of(table)

    def latency(architectures: Sequence[Architecture]) -> list[float]:
        return [timing.median for timing in measure_latency(device, [whole_network(space, a) for a in architectures])]

    def score(architectures: Sequence[Architecture]) -> list[float]:
        goal = task_of(data).score.goal
        return [goal(measure(supernet, architecture, data, "label")) for architecture in architectures]

    return confirm(space, accuracy, result, constraints, latency, score, top=top)
