"""Builds a latency table on a device, corrects it on whole networks, and validates it on others.

Every unique layer of a space is timed as a network of its own. The cost of calling a network at
all, measured on an empty one, is taken off each layer and counted once. What remains of bias (a
layer inside a network fuses and caches differently) is one scale and one constant, fitted to
measured whole networks. Layers and networks take turns at the same moments, as a table is only as
good as its agreement with the networks it is for, and a shared machine drifts by several percent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from onceforall.architecture import Architecture
from onceforall.cost.latency import LatencyTable, Timing, Validation, unique_layers
from onceforall.devices.device import Device, Shape
from onceforall.devices.timing import Turns, summarise
from onceforall.errors import InvalidConfiguration
from onceforall.layers import LayerSpec
from onceforall.nn.subnet import build, fold_batch_norm
from onceforall.space import SearchSpace

Job = tuple[nn.Module | bytes, Shape]

WHOLE = Turns(9, 0.02)  # for whole networks
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
    jobs: list[Job] = [(nn.Identity(), (1, 8, 1, 1))]
    jobs += [(random_network([layer]), (1, layer.in_channels, layer.in_size, layer.in_size)) for layer in layers]
    jobs += [(random_network(space.lower(arch)), image_shape(arch)) for arch in networks]
    measured = device.time(jobs, Turns(turns, burst_seconds, seed), report=report)
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


def random_network(layers: Sequence[LayerSpec]) -> nn.Module:
    """Layers with random weights, batch norm folded: latency does not depend on the weights."""
    return fold_batch_norm(build(layers))


def image_shape(arch: Architecture) -> Shape:
    """The input of an architecture at batch 1."""
    return (1, 3, arch.resolution, arch.resolution)


def measure_latency(device: Device, networks: Sequence[Job], turns: Turns = WHOLE) -> list[Timing]:
    """Measured latency of networks with their input shapes, interleaved (ms)."""
    return [summarise(row) for row in device.time(networks, turns)]
