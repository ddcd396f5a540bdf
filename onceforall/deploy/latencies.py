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

Targets = Mapping[tuple[str, str], Export]  # by name and precision
Pairs = Sequence[tuple[Specialized, Exported]]


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
    pairs = [
        (network, export)
        for network in networks
        for export in network.exports
        if chosen(export) and device_of(export, targets)
    ]
    timings = time_exports(call, scores, pairs, targets)
    found = {id(export): timing for (_, export), timing in zip(pairs, timings, strict=True)}
    return [
        replace(network, exports=tuple(_timed(export, found.get(id(export))) for export in network.exports))
        for network in networks
    ]


def _timed(export: Exported, timing: Timing | None) -> Exported:
    if timing is None:
        return export
    latency, spread = Number(timing.median, "ms", "measured"), Number(timing.spread, "ms", "measured")
    return replace(export, latency=latency, latency_spread=spread)


def time_exports(call: Call, scores: LabelScores, exports: Pairs, targets: Targets) -> list[Timing]:
    """Latency of exported files, interleaved (ms). Raises MeasurementPending where another machine is to measure."""
    devices = [device_of(export, targets) for _, export in exports]
    here = [index for index, device in enumerate(devices) if device and device.is_here]
    away = [index for index, device in enumerate(devices) if device and not device.is_here]
    found: dict[int, Timing] = {}
    if here:
        loads = []
        for index in here:
            network, export = exports[index]
            device = devices[index]
            assert device is not None
            loads.append(device.loader(read_files(call.out, export.files), image_shape(network.architecture)))
        ms = time_turns(loads, WHOLE, report=lambda done, total: call.report("timing on the device", done, total))
        found |= dict(zip(here, map(summarise, ms), strict=True))
    if away:  # a plan for another machine, or its results; weights make no difference to it
        archs = [exports[index][0].architecture for index in away]
        device = devices[away[0]]
        assert device is not None
        ms = device.time([(scores.exporter.plain(arch), image_shape(arch)) for arch in archs], WHOLE)
        found |= dict(zip(away, map(summarise, ms), strict=True))
    return [found[index] for index in range(len(exports))]


def export_to_use(network: Specialized, precisions: Precisions, max_drop: float, higher_is_better: bool = True) -> int:
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
    sign = 1 if higher_is_better else -1
    worth = {index: sign * value_of(exports[index].label_score) for index in own}
    fp32 = next(worth[index] for index in own if exports[index].precision == "fp32")
    accurate = [index for index in within if worth[index] >= fp32 - max_drop]
    if accurate:
        return min(accurate, key=lambda index: exports[index].latency_ms)
    return max(within, key=worth.__getitem__)
