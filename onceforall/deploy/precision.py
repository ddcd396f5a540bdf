"""Which of two precisions of a device is faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from onceforall.profiling.measuring import whole_network
from onceforall.deploy.manifest import number
from onceforall.devices.device import Device
from onceforall.devices.timing import Load, Turns, time_turns
from onceforall.space import SearchSpace

RANDOM = 6  # networks that are timed beside the smallest and the largest
TURNS, BURST_SECONDS = 9, 0.02


def latency_ratio(
    space: SearchSpace, low: Device, plain: Device, seed: int, report: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """How much of its time in `plain` a network takes in `low`: the median over networks, as the manifest has it."""
    rng = np.random.default_rng(seed)
    chosen = [space.smallest(), space.largest(), *(space.sample(rng) for _ in range(RANDOM))]
    loads: list[Load] = []
    for index, arch in enumerate(chosen):
        report("which precision is faster", index, len(chosen))
        network, shape = whole_network(space, arch)
        loads += [device.loader(device.convert_keeping(network, shape), shape) for device in (low, plain)]
    ms = np.median(time_turns(loads, Turns(TURNS, BURST_SECONDS, seed)), axis=1).reshape(-1, 2)
    report("which precision is faster", len(chosen), len(chosen))
    return {
        "precision": low.precision,
        "latency_ratio": number(float(np.median(ms[:, 0] / ms[:, 1])), "of fp32", "measured"),
        "networks": len(chosen),
    }
