"""The latency of exported files on their devices, and the export to use that follows from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from onceforall.cost.latency import Timing
from onceforall.deploy.call import Call, LabelScores
from onceforall.deploy.exporting import read_files
from onceforall.deploy.exports import Export
from onceforall.deploy.manifest import Exported, Number, Specialized, value_of
from onceforall.deploy.precision import Precisions
from onceforall.devices.device import Device
from onceforall.devices.timing import time_turns
from onceforall.profiling.measuring import WHOLE, image_shape, summarise
from onceforall.tasks import CLASSIFICATION, Score

Targets = Mapping[tuple[str, str], Export]  # by name and precision
TimedExport = tuple[Specialized, Exported, Device]


def device_of(export: Exported, targets: Targets) -> Device | None:
    """What runs and times an export; None where nothing here does."""
    return targets[export.device, export.precision].device


def with_latencies(
    call: Call,
    scores: LabelScores,
    networks: Sequence[Specialized],
    targets: Targets,
    chosen: Callable[[Exported], bool] = lambda export: True,
) -> list[Specialized]:
    """The networks with the latency of their exports, or of the chosen ones: interleaved timings of all of these."""
    timed = [
        (network, export, device)
        for network in networks
        for export in network.exports
        if chosen(export) and (device := device_of(export, targets)) is not None
    ]
    timings = time_exports(call, scores, timed)
    found = {id(export): timing for (_, export, _), timing in zip(timed, timings, strict=True)}
    return [
        replace(network, exports=tuple(_timed(export, found.get(id(export))) for export in network.exports))
        for network in networks
    ]


def _timed(export: Exported, timing: Timing | None) -> Exported:
    if timing is None:
        return export
    latency, spread = Number(timing.median, "ms", "measured"), Number(timing.spread, "ms", "measured")
    return replace(export, latency=latency, latency_spread=spread)


def time_exports(call: Call, scores: LabelScores, exports: Sequence[TimedExport]) -> list[Timing]:
    """Latency of exported files, interleaved (ms): on devices that are all here, or on one of another machine.

    Raises MeasurementPending where that is to measure first.
    """
    if all(device.is_here for *_, device in exports):
        loads = [
            device.loader(read_files(call.out, export.files), image_shape(network.architecture))
            for network, export, device in exports
        ]
        step = "timing on the device"
        ms = time_turns(loads, WHOLE, report=lambda done, total: call.report(step, done, total)) if loads else ()
    else:  # a plan for the other machine, or its results; weights make no difference to it
        archs, device = [network.architecture for network, *_ in exports], exports[0][2]
        ms = device.time([(scores.exporter.plain(arch), image_shape(arch)) for arch in archs], WHOLE)
    return [summarise(row) for row in ms]


def export_to_use(
    network: Specialized, precisions: Precisions, max_drop: float, score: Score = CLASSIFICATION.score
) -> int:
    """Within the budget and accurate enough, the fastest; else the best within the budget. The place of the export."""
    if precisions.target is None:
        return 0
    exports, bound = network.exports, network.latency_budget_ms or math.inf
    own = [index for index, export in enumerate(exports) if export.device == precisions.target.name]
    if precisions.low is None:
        return own[0]
    within = [index for index in own if exports[index].latency_ms <= bound]
    if not within:
        return min(own, key=lambda index: exports[index].latency_ms)
    worth = {index: score.goal(value_of(exports[index].label_score)) for index in own}
    fp32 = next(worth[index] for index in own if exports[index].precision == "fp32")
    accurate = [index for index in within if worth[index] >= fp32 - max_drop]
    if accurate:
        return min(accurate, key=lambda index: exports[index].latency_ms)
    return max(within, key=worth.__getitem__)
