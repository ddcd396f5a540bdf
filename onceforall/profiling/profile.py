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
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn

from onceforall.architecture import Architecture
from onceforall.cost.latency import LatencyTable, LatencyTables, unique_layers
from onceforall.cost.learned import LearnedLatency
from onceforall.cost.validation import Errors, Validation
from onceforall.devices.device import Device, Report, Timed
from onceforall.devices.timing import Turn, Turns
from onceforall.errors import InvalidConfiguration
from onceforall.layers import LayerSpec
from onceforall.profiling.measuring import (
    BURSTS,
    Measured,
    Measurement,
    single_layer,
    steady,
    summarise,
    whole_network,
)
from onceforall.space import SearchSpace

Layers = Sequence[LayerSpec]

EMPTY: Timed = (nn.Identity(), (1, 8, 1, 1))
FLOOR_MS = 1e-4  # ms; a layer never costs less, whatever the noise of a difference says
FEWEST = 8  # calibrating networks,
FEWEST_JUDGES = 4  # and validating ones
FEWEST_ADAPTING = 5  # of those that calibrate
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
    calibrating, validating = _counts_within(space, calibrating, validating)
    about: dict[str, Any] = {"networks": [calibrating, validating, learning], "bursts": BURSTS, "anchors": ANCHORS}
    about["given"] = [arch.to_json() for arch in given]
    run = Measurement(space, device, Turns(turns, burst_seconds, seed), progress, report, **about)
    rng = np.random.default_rng(seed)
    fitting = _fitting_networks(space, calibrating, rng)
    kinds = _judging_networks(space, validating, rng, fitting) | dict.fromkeys(given, "given")
    judging = {arch: kind for arch, kind in kinds.items() if arch not in fitting}
    networks = [*fitting, *judging]
    layers = unique_layers(space)

    jobs = [EMPTY, *map(single_layer, layers), *BURSTS * [whole_network(space, arch) for arch in networks]]
    ms, drift = steady(run.time("table", jobs))
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
        anchors, more = fitting[:ANCHORS], _random_networks(space, learning, rng, networks)
        jobs = BURSTS * [whole_network(space, arch) for arch in [*anchors, *more]]
        times = run.time("learning", jobs, " for a learned latency")
        later = Measured.pooled([*anchors, *more], *steady(times))
        # By how much the machine is slower at this moment than at that of the table.
        pace = float(np.median(later.of(anchors).medians / whole.of(anchors).medians))
        known += [space.lower(arch) for arch in more]
        model, _ = _choose(plain, known, np.concatenate([truth, later.of(more).medians / pace]), GOOD)
    result = _validated(model, space, judging, whole)
    run.complete()
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
    fitting = _fitting_networks(space, calibrating, rng)
    judging = _judging_networks(space, validating, rng, fitting)
    networks = [*fitting, *judging]
    for arch in networks:
        table.cost(space.lower(arch))  # raises now, not after the measurement, where it is of another space
    about = {"networks": [calibrating, validating]}
    run = Measurement(space, device, Turns(turns, burst_seconds, seed), progress, report, **about)
    jobs = [whole_network(space, arch) for arch in networks]
    whole = Measured(networks, *steady(run.time("networks", jobs)))
    known = [space.lower(arch) for arch in fitting]
    model = LearnedLatency.fit(known, whole.of(fitting).medians, device.describe(), table)
    result = _validated(model, space, judging, whole)
    run.complete()
    return result


def _counts_within(space: SearchSpace, calibrating: int, validating: int) -> tuple[int, int]:
    """As many networks that fit, and others that judge, as the space has. Raises InvalidConfiguration."""
    if space.size < FEWEST + FEWEST_JUDGES:
        raise InvalidConfiguration(
            f"this space has {space.size} networks, fewer than {FEWEST + FEWEST_JUDGES}: time each of them"
        )
    validating = max(FEWEST_JUDGES, min(validating, space.size * validating // (calibrating + validating)))
    return min(calibrating, space.size - validating), validating


def _fitting_networks(space: SearchSpace, count: int, rng: np.random.Generator) -> list[Architecture]:
    """The smallest and largest networks of the smallest and largest resolution first, some uniform, the rest random.

    Random networks are all much alike: those that a search ends at, or a person picks, are further out.
    """
    ends = [space.restrict(resolutions=[size]) for size in (space.resolutions[0], space.resolutions[-1])]
    extremes = list(dict.fromkeys(arch for end in ends for arch in (end.smallest(), end.largest())))
    uniforms = [arch for arch in space.uniforms() if arch not in extremes]
    chosen = rng.permutation(len(uniforms))[: min(count // 3, len(uniforms) // 2)]
    begin = [*extremes, *(uniforms[index] for index in chosen)]
    return [*begin, *_random_networks(space, count - len(begin), rng, begin)]


def _judging_networks(
    space: SearchSpace, count: int, rng: np.random.Generator, fitting: Sequence[Architecture]
) -> dict[Architecture, str]:
    """Networks that fit nothing, with their kind: half of them uniform where there are so many, the rest random."""
    uniforms = [arch for arch in space.uniforms() if arch not in fitting]
    chosen = [uniforms[index] for index in rng.permutation(len(uniforms))[: count // 2]]
    rest = _random_networks(space, count - len(chosen), rng, [*fitting, *chosen])
    return dict.fromkeys(chosen, "uniform") | dict.fromkeys(rest, "random")


def _random_networks(
    space: SearchSpace, count: int, rng: np.random.Generator, known: Sequence[Architecture]
) -> list[Architecture]:
    """So many random architectures beside the known ones. Raises InvalidConfiguration where there are not so many."""
    if len(known) + count > space.size:
        raise InvalidConfiguration(f"{len(known) + count} networks: this space has {space.size}; measure fewer")
    found = dict.fromkeys(known)
    while len(found) < len(known) + count:
        found.setdefault(space.sample(rng))
    return list(found)[len(known) :]


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
    best, error = fits[0], _cross_validated(fits[0], networks, truth)
    if error > enough:
        rivals = [_cross_validated(fit, networks, truth) for fit in fits[1:]]
        least = int(np.argmin(rivals))
        if rivals[least] < BETTER * error:
            best, error = fits[1 + least], rivals[least]
    return best(networks, truth), error


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
