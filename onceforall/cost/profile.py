"""Builds a latency table on a device, corrects it on whole networks, and validates it on others.

Every unique layer of a space is timed as a network of its own. The cost of calling a network at
all, measured on an empty one, is taken off each layer and counted once. What remains of bias (a
layer inside a network fuses and caches differently) is one scale and one constant, fitted to
measured whole networks. Layers and networks take turns at the same moments, as a table is only as
good as its agreement with the networks it is for, and a shared machine drifts by several percent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import nn

from onceforall.architecture import Architecture
from onceforall.cost.latency import LatencyTable, Timing, Validation, unique_layers
from onceforall.devices.device import Device, Run, summarise, time_turns
from onceforall.errors import InvalidConfiguration
from onceforall.nn.subnet import build, fold_batch_norm
from onceforall.space import SearchSpace

FLOOR_MS = 1e-4  # ms; a layer never costs less, whatever the noise of a difference says


def profile(
    space: SearchSpace,
    device: Device,
    *,
    calibrating: int = 24,
    validating: int = 16,
    turns: int = 9,
    burst_seconds: float = 0.01,
    seed: int = 0,
    report: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> LatencyTable:
    """The latency table of a space on a device, batch 1, with its validation.

    calibrating: networks that fit the correction (smallest, largest and random ones); validating:
    other random networks, which only judge it. Networks carry random weights: latency does not
    depend on them. `report` receives (step, done, total).
    """
    if calibrating < 3 or validating < 3 or turns < 2:
        raise InvalidConfiguration(
            f"calibrating {calibrating}, validating {validating}, turns {turns}: expected at least 3, 3 and 2"
        )
    rng = np.random.default_rng(seed)
    networks = [space.smallest(), space.largest()]
    while len(networks) < calibrating + validating:
        arch = space.sample(rng)
        if arch not in networks:
            networks.append(arch)
    layers = unique_layers(space)
    runs: list[Run] = [device.prepare(nn.Identity(), (1, 8, 1, 1))]
    total = len(layers) + len(networks)
    for layer in layers:
        runs.append(
            device.prepare(fold_batch_norm(build([layer])), (1, layer.in_channels, layer.in_size, layer.in_size))
        )
        report("preparing", len(runs) - 1, total)
    for arch in networks:
        runs.append(prepare_architecture(space, arch, device))
        report("preparing", len(runs) - 1, total)
    measured = time_turns(
        runs,
        turns=turns,
        burst_seconds=burst_seconds,
        seed=seed,
        report=lambda done, all_: report("timing", done, all_),
    )
    call = float(np.median(measured[0]))
    entries = {}
    for layer, row in zip(layers, measured[1:], strict=False):
        timing = summarise(row)
        entries[layer.key] = replace(timing, median=max(timing.median - call, FLOOR_MS))
    table = LatencyTable(device.describe(), entries, constant=call)
    whole = measured[1 + len(layers) :]
    medians = np.median(whole, axis=1)
    specs = [space.lower(arch) for arch in networks]
    table = table.corrected(specs[:calibrating], medians[:calibrating].tolist())
    judged = whole[calibrating:]
    validation = Validation.of(
        [table.cost(layers_) for layers_ in specs[calibrating:]],
        medians[calibrating:].tolist(),
        np.median(judged[:, ::2], axis=1).tolist(),
    )
    return replace(table, validation=validation)


def prepare_architecture(space: SearchSpace, arch: Architecture, device: Device) -> Run:
    """An architecture with random weights, ready to be timed at batch 1."""
    network = fold_batch_norm(build(space.lower(arch)))
    return device.prepare(network, (1, 3, arch.resolution, arch.resolution))


def measure_latency(runs: list[Run], *, turns: int = 9, burst_seconds: float = 0.02, seed: int = 0) -> list[Timing]:
    """Measured latency of prepared networks, interleaved (ms)."""
    return [summarise(row) for row in time_turns(runs, turns=turns, burst_seconds=burst_seconds, seed=seed)]
