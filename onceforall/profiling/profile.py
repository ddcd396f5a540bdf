"""Builds the latency model of a device: times layers and whole networks, corrects, chooses, validates.

Every unique layer of a space is timed as a network of its own. The cost of calling a network at
all, measured on an empty one, is taken off each layer and counted once. What remains of bias (a
layer inside a network fuses and caches differently) is one scale and one constant, fitted to
measured whole networks. Where their sum is still wrong, because layers overlap or a delegate cuts
networks elsewhere, more networks are measured and a learned latency takes over.

Layers and networks take turns at the same moments, as a table is only as good as its agreement with
the networks it is for, and a shared machine drifts by several percent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn

from onceforall.architecture import Architecture
from onceforall.cost.latency import LatencyTable, LatencyTables, unique_layers
from onceforall.cost.learned import LearnedLatency
from onceforall.cost.validation import Errors, Validation
from onceforall.devices.device import Device
from onceforall.devices.timing import Turn, Turns
from onceforall.errors import InvalidConfiguration
from onceforall.layers import LayerSpec
from onceforall.profiling.measuring import (
    BURSTS,
    Measured,
    Progress,
    Timed,
    single_layer,
    steady,
    summarise,
    whole_network,
)
from onceforall.profiling.sampling import (
    FEWEST,
    FEWEST_JUDGES,
    counts_within,
    fitting_networks,
    judging_networks,
    random_networks,
)
from onceforall.space import SearchSpace

Layers = Sequence[LayerSpec]
Report = Callable[[str, int, int], None]

EMPTY: Timed = (nn.Identity(), (1, 8, 1, 1))
FLOOR_MS = 1e-4  # ms; a layer never costs less, whatever the noise of a difference says
FEWEST_ADAPTING = 5
ANCHORS = 8  # calibrating networks that are timed again beside those of a learned latency
EXTREMES = 4  # of the calibrating networks, which come first
FOLDS = 6
GOOD = 1.5  # percent: a mean error with which a sum over layers is kept,
ENOUGH = 3.0  # and one with which nothing more is measured
BETTER = 0.8  # a learned latency takes over where its error is less than so much of the sum's


def profile(
    space: SearchSpace,
    device: Device,
    *,
    calibrating: int = 48,
    validating: int = 32,
    learning: int = 100,
    given: Sequence[Architecture] = (),
    turns: int = 9,
    burst_seconds: float = 0.01,
    seed: int = 0,
    progress: str | Path | None = None,
    report: Report = lambda step, done, total: None,
) -> LatencyTable | LearnedLatency:
    """The latency of a space on a device, batch 1, with its validation: a table of layers, or what beats it.

    calibrating: networks that fit the correction (extremes and random ones); validating: others, half
    of them random and half uniform, which only judge it, as do the `given` ones; learning: further
    networks that are measured for a learned latency where those that calibrate leave an error of more
    than 3 % and twice the noise (0: a table it stays). Networks carry random weights: latency does not depend on them.
    A space that has not so many networks gives fewer. `progress` is a file that keeps each finished
    turn, so that an interrupted call goes on.
    """
    if calibrating < FEWEST or validating < FEWEST_JUDGES or turns < 2 or learning < 0:
        raise InvalidConfiguration(
            f"calibrating {calibrating}, validating {validating}, turns {turns}, learning {learning}: "
            f"expected at least {FEWEST}, {FEWEST_JUDGES}, 2 and 0"
        )
    calibrating, validating = counts_within(space, calibrating, validating)
    plan = Turns(turns, burst_seconds, seed)
    identity: dict[str, Any] = {"space": space.to_json(), "device": device.identity(), "turns": asdict(plan)}
    identity |= {"networks": [calibrating, validating, learning], "bursts": BURSTS, "anchors": ANCHORS}
    identity["given"] = [arch.to_json() for arch in given]
    log = Progress(progress, identity)
    rng = np.random.default_rng(seed)
    fitting = fitting_networks(space, calibrating, rng)
    kinds = judging_networks(space, validating, rng, fitting) | dict.fromkeys(given, "given")
    judging = {arch: kind for arch, kind in kinds.items() if arch not in fitting}
    networks = [*fitting, *judging]
    layers = unique_layers(space)

    jobs = [EMPTY, *map(single_layer, layers), *BURSTS * [whole_network(space, arch) for arch in networks]]
    times = device.time(jobs, plan, done=log.turns("table"), keep=log.keeper("table"), report=report)
    ms, drift = steady(times)
    of_empty, of_layers, of_networks = np.split(ms, [1, 1 + len(layers)])
    call = float(np.median(of_empty))
    entries = {}
    for layer, row in zip(layers, of_layers, strict=True):
        timing = summarise(row)
        entries[layer.key] = replace(timing, median=max(timing.median - call, FLOOR_MS))
    plain = LatencyTable(device.describe(), entries, constant=call)
    whole = Measured.pooled(networks, of_networks, drift)

    known, truth = [space.lower(arch) for arch in fitting], whole.of(fitting).medians
    model, error = _choose(plain, known, truth, GOOD if learning else math.inf)
    learning = min(learning, space.size - len(networks))
    if learning and error > max(ENOUGH, 2 * whole.noise):
        anchors, more = fitting[:ANCHORS], random_networks(space, learning, rng, networks)
        times = device.time(
            BURSTS * [whole_network(space, arch) for arch in [*anchors, *more]],
            plan,
            done=log.turns("learning"),
            keep=log.keeper("learning"),
            report=lambda step, done, total: report(f"{step} for a learned latency", done, total),
        )
        later = Measured.pooled([*anchors, *more], *steady(times))
        # By how much the machine is slower at this moment than at that of the table.
        pace = float(np.median(later.of(anchors).medians / whole.of(anchors).medians))
        known += [space.lower(arch) for arch in more]
        model, _ = _choose(plain, known, np.concatenate([truth, later.of(more).medians / pace]), GOOD)
    result = _validated(model, space, judging, whole)
    log.remove()
    return result


def adapt(
    base: LatencyTable | LatencyTables | LearnedLatency,
    space: SearchSpace,
    device: Device,
    *,
    calibrating: int = 10,
    validating: int = 32,
    turns: int = 9,
    burst_seconds: float = 0.02,
    seed: int = 0,
    progress: str | Path | None = None,
    report: Report = lambda step, done, total: None,
) -> LearnedLatency:
    """The latency of a space on a new device, from the table of another and a few measured whole networks.

    Arguments as in `profile`: `calibrating` networks adapt the table, `validating` others judge that. Of a
    learned latency it takes the table that this was learned on; raises InvalidConfiguration where there is none,
    OutOfDomain where it is a table of another space.
    """
    if calibrating < FEWEST_ADAPTING or validating < FEWEST_JUDGES:
        raise InvalidConfiguration(
            f"calibrating {calibrating}, validating {validating}: expected at least {FEWEST_ADAPTING} and "
            f"{FEWEST_JUDGES}"
        )
    table = base.base if isinstance(base, LearnedLatency) else base
    if table is None:
        raise InvalidConfiguration("a latency that was learned without a table: adapt from a table of layers")
    rng = np.random.default_rng(seed)
    fitting = fitting_networks(space, calibrating, rng)
    judging = judging_networks(space, validating, rng, fitting)
    networks = [*fitting, *judging]
    for arch in networks:
        table.cost(space.lower(arch))  # raises now, not after the measurement, where it is of another space
    plan = Turns(turns, burst_seconds, seed)
    identity = {"space": space.to_json(), "device": device.identity(), "turns": asdict(plan)}
    log = Progress(progress, {**identity, "networks": [calibrating, validating]})
    jobs = [whole_network(space, arch) for arch in networks]
    times = device.time(jobs, plan, done=log.turns("networks"), keep=log.keeper("networks"), report=report)
    whole = Measured(networks, *steady(times))
    known = [space.lower(arch) for arch in fitting]
    model = LearnedLatency.fit(known, whole.of(fitting).medians, device.describe(), table)
    result = _validated(model, space, judging, whole)
    log.remove()
    return result


M = TypeVar("M", bound=LatencyTable | LearnedLatency)
Fit = Callable[[Sequence[Layers], Turn], LatencyTable | LearnedLatency]


def _choose(
    plain: LatencyTable, networks: Sequence[Layers], truth: Turn, enough: float
) -> tuple[LatencyTable | LearnedLatency, float]:
    """The corrected table, and its error in cross-validation (percent); if not good enough, what is better."""
    fits: list[Fit] = [
        lambda specs, ms: plain.corrected(specs, ms.tolist()),
        lambda specs, ms: LearnedLatency.fit(specs, ms, plain.device, plain),
        lambda specs, ms: LearnedLatency.fit(specs, ms, plain.device),
    ]
    table = _cross_validated(fits[0], networks, truth)
    if table <= enough:
        return fits[0](networks, truth), table
    rivals = [_cross_validated(fit, networks, truth) for fit in fits[1:]]
    best = int(np.argmin(rivals))
    if rivals[best] < BETTER * table:
        return fits[1 + best](networks, truth), rivals[best]
    return fits[0](networks, truth), table


def _cross_validated(fit: Fit, networks: Sequence[Layers], truth: Turn) -> float:
    """Mean absolute error (percent) on networks that were left out, a few at a time; the extremes are never."""
    middle = np.arange(EXTREMES, len(networks))
    predicted = np.empty_like(truth)
    for out in np.array_split(middle, min(FOLDS, len(middle))):
        kept = np.setdiff1d(np.arange(len(networks)), out)
        model = fit([networks[index] for index in kept], truth[kept])
        predicted[out] = [model.cost(networks[index]) for index in out]
    return Errors.of(predicted[middle], truth[middle]).mape


def _validated(model: M, space: SearchSpace, judging: Mapping[Architecture, str], whole: Measured) -> M:
    """The model with its errors on networks that took no part in it, by their kind."""
    measured = whole.of(list(judging))
    predicted = [model.cost(space.lower(arch)) for arch in judging]
    found = Validation.of(list(judging.values()), predicted, measured.medians, measured.noise, measured.drift)
    return replace(model, validation=found)
