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
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from onceforall.architecture import Architecture
from onceforall.cost.latency import LatencyTable, LatencyTables, Timing, unique_layers
from onceforall.cost.learned import LearnedLatency
from onceforall.cost.validation import Errors, Validation
from onceforall.devices.device import Device, Shape
from onceforall.devices.timing import Turn, Turns, summarise
from onceforall.errors import InvalidConfiguration
from onceforall.files import append_jsonl, as_json, read_jsonl
from onceforall.layers import LayerSpec
from onceforall.nn.subnet import build, fold_batch_norm
from onceforall.space import SearchSpace

Job = tuple[nn.Module | bytes, Shape]
Layers = Sequence[LayerSpec]
Report = Callable[[str, int, int], None]

WHOLE = Turns(27, 0.02)  # for whole networks alone
BURSTS = 3  # of a whole network in each turn of a profile: it is judged by its own noise, a layer by that of sums
FLOOR_MS = 1e-4  # ms; a layer never costs less, whatever the noise of a difference says
FEWEST = 8  # calibrating networks,
FEWEST_JUDGES = 4  # and validating ones
FEWEST_ADAPTING = 5
ANCHORS = 8  # calibrating networks that are timed again beside those of a learned latency
EXTREMES = 4  # of them, which come first
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
    calibrating, validating = _within(space, calibrating, validating)
    plan = Turns(turns, burst_seconds, seed)
    identity: dict[str, Any] = {"space": space.to_json(), "device": device.identity(), "turns": asdict(plan)}
    identity |= {"networks": [calibrating, validating, learning], "bursts": BURSTS, "anchors": ANCHORS}
    identity["given"] = [arch.to_json() for arch in given]
    log = _Progress(progress, identity)
    rng = np.random.default_rng(seed)
    fitting = _fitting(space, calibrating, rng)
    judging = _judging(space, validating, rng, fitting) | dict.fromkeys(given, "given")
    networks = list(dict.fromkeys([*fitting, *judging]))
    layers = unique_layers(space)
    jobs: list[Job] = [(nn.Identity(), (1, 8, 1, 1))]
    jobs += [(random_network([layer]), (1, *layer.input_shape)) for layer in layers]
    jobs += BURSTS * [whole_network(space, arch) for arch in networks]
    found = steady(device.time(jobs, plan, done=log.turns("table"), keep=log.keeper("table"), report=report))
    call = float(np.median(found.ms[0]))
    entries = {}
    for layer, row in zip(layers, found.ms[1:], strict=False):
        timing = summarise(row)
        entries[layer.key] = replace(timing, median=max(timing.median - call, FLOOR_MS))
    plain = LatencyTable(device.describe(), entries, constant=call)
    whole = pooled(found.ms[1 + len(layers) :], found.drift)
    specs = [space.lower(arch) for arch in networks]
    known, truth = specs[:calibrating], whole.medians[:calibrating]
    model, error = _choose(plain, known, truth, GOOD if learning else math.inf)
    learning = min(learning, space.size - len(networks))
    if learning and error > max(ENOUGH, 2 * whole.noise):
        more = _random(space, len(networks) + learning, rng, networks)[len(networks) :]
        extra = device.time(
            BURSTS * [whole_network(space, arch) for arch in [*fitting[:ANCHORS], *more]],
            plan,
            done=log.turns("learning"),
            keep=log.keeper("learning"),
            report=lambda step, done, total: report(f"{step} for a learned latency", done, total),
        )
        known = [*known, *map(space.lower, more)]
        learned = steady(extra)
        medians = pooled(learned.ms, learned.drift).medians
        # By how much the machine is slower at this moment than at that of the table.
        pace = float(np.median(medians[:ANCHORS] / truth[:ANCHORS]))
        model, _ = _choose(plain, known, np.concatenate([truth, medians[ANCHORS:] / pace]), GOOD)
    kinds = [judging.get(arch, "given") for arch in networks[calibrating:]]
    result = _validated(model, kinds, specs[calibrating:], whole.of(slice(calibrating, None)))
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
    fitting = _fitting(space, calibrating, rng)
    judging = _judging(space, validating, rng, fitting)
    networks = [*fitting, *judging]
    specs = [space.lower(arch) for arch in networks]
    for layers in specs:
        table.cost(layers)  # raises now, not after the measurement, where it is of another space
    plan = Turns(turns, burst_seconds, seed)
    identity = {"space": space.to_json(), "device": device.identity(), "turns": asdict(plan)}
    log = _Progress(progress, {**identity, "networks": [calibrating, validating]})
    jobs = [whole_network(space, arch) for arch in networks]
    ms = device.time(jobs, plan, done=log.turns("networks"), keep=log.keeper("networks"), report=report)
    found = steady(ms)
    model = LearnedLatency.fit(specs[:calibrating], found.medians[:calibrating], device.describe(), table)
    result = _validated(model, list(judging.values()), specs[calibrating:], found.of(slice(calibrating, None)))
    log.remove()
    return result


def random_network(layers: Layers) -> nn.Module:
    """Layers with random weights, batch norm folded; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        return fold_batch_norm(build(layers))


def whole_network(space: SearchSpace, arch: Architecture) -> Job:
    """An architecture with random weights, and its input shape at batch 1."""
    return random_network(space.lower(arch)), image_shape(arch)


def image_shape(arch: Architecture) -> Shape:
    """The input of an architecture at batch 1."""
    return (1, 3, arch.resolution, arch.resolution)


def measure_latency(device: Device, networks: Sequence[Job], turns: Turns = WHOLE) -> list[Timing]:
    """Measured latency of networks with their input shapes, interleaved (ms)."""
    return [summarise(row) for row in device.time(networks, turns)]


class Measured(NamedTuple):
    """Milliseconds [networks, turns] with the drift of the machine taken out, and that drift (percent)."""

    ms: NDArray[np.float64]
    drift: float

    @property
    def medians(self) -> NDArray[np.float64]:
        return np.asarray(np.median(self.ms, axis=1))

    @property
    def noise(self) -> float:
        """How far the medians are from the truth, in percent: see `Validation`."""
        odd, even = np.median(self.ms[:, 1::2], axis=1), np.median(self.ms[:, ::2], axis=1)
        return float(50 * np.abs((odd - even) / self.medians).mean())

    def of(self, part: slice) -> Measured:
        """Some of the networks."""
        return Measured(self.ms[part], self.drift)


def pooled(ms: NDArray[np.float64], drift: float) -> Measured:
    """Networks that were given `BURSTS` times over, [BURSTS * networks, turns]: all bursts of each are one row."""
    bursts = ms.reshape(BURSTS, -1, ms.shape[1])
    return Measured(np.concatenate(list(bursts), axis=1), drift)


def steady(ms: NDArray[np.float64]) -> Measured:
    """Take out of a measurement [networks, turns] how much slower all networks were together in each turn."""
    pace = np.median(ms / np.median(ms, axis=1, keepdims=True), axis=0)
    return Measured(ms / pace, float(50 * (pace.max() - pace.min())))


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


def _validated(model: M, kinds: Sequence[str], networks: Sequence[Layers], measured: Measured) -> M:
    predicted = [model.cost(layers) for layers in networks]
    found = Validation.of(kinds, predicted, measured.medians, measured.noise, measured.drift)
    return replace(model, validation=found)


# Which networks are measured


def _within(space: SearchSpace, calibrating: int, validating: int) -> tuple[int, int]:
    """As many networks that fit, and others that judge, as the space has. Raises InvalidConfiguration."""
    if space.size < FEWEST + FEWEST_JUDGES:
        raise InvalidConfiguration(
            f"this space has {space.size} networks, fewer than {FEWEST + FEWEST_JUDGES}: time each of them"
        )
    validating = max(FEWEST_JUDGES, min(validating, space.size * validating // (calibrating + validating)))
    return min(calibrating, space.size - validating), validating


def _fitting(space: SearchSpace, count: int, rng: np.random.Generator) -> list[Architecture]:
    """The smallest and largest networks of the smallest and largest resolution first, some uniform, the rest random.

    Random networks are all much alike: those that a search ends at, or a person picks, are further out.
    """
    ends = [space.restrict(resolutions=[size]) for size in (space.resolutions[0], space.resolutions[-1])]
    begin = dict.fromkeys(arch for end in ends for arch in (end.smallest(), end.largest()))
    uniforms = [arch for arch in space.uniforms() if arch not in begin]
    chosen = rng.permutation(len(uniforms))[: min(count // 3, len(uniforms) // 2)]
    return _random(space, count, rng, [*begin, *(uniforms[index] for index in chosen)])


def _judging(
    space: SearchSpace, count: int, rng: np.random.Generator, fitting: Sequence[Architecture]
) -> dict[Architecture, str]:
    """Networks that fit nothing, with their kind: half of them uniform where there are so many, the rest random."""
    uniforms = [arch for arch in space.uniforms() if arch not in fitting]
    chosen = [uniforms[index] for index in rng.permutation(len(uniforms))[: count // 2]]
    kinds = dict.fromkeys(chosen, "uniform")
    for arch in _random(space, len(fitting) + count, rng, [*fitting, *chosen])[len(fitting) :]:
        kinds.setdefault(arch, "random")
    return kinds


def _random(
    space: SearchSpace, count: int, rng: np.random.Generator, begin: Sequence[Architecture]
) -> list[Architecture]:
    """`begin` and as many other random architectures as make `count`."""
    if count > space.size:
        raise InvalidConfiguration(f"{count} networks: this space has {space.size}; measure fewer")
    found = dict.fromkeys(begin)
    while len(found) < count:
        found.setdefault(space.sample(rng))
    return list(found)[:count]


class _Progress:
    """The turns of an interrupted measurement, in a file of their own until it is complete."""

    def __init__(self, path: str | Path | None, identity: dict[str, Any]) -> None:
        self.path = Path(path) if path else None
        self.rows: list[dict[str, Any]] = []
        if self.path is None:
            return
        self.rows = read_jsonl(self.path)
        if self.rows and self.rows[0] != as_json(identity):
            raise InvalidConfiguration(
                f"{self.path} is of a measurement with other settings, of another space or device: remove it"
            )
        if not self.rows:
            append_jsonl(self.path, identity)

    def turns(self, step: str) -> list[Turn]:
        return [np.array(row["ms"]) for row in self.rows[1:] if row["step"] == step]

    def keeper(self, step: str) -> Callable[[Turn], None]:
        def keep(turn: Turn) -> None:
            if self.path is not None:
                append_jsonl(self.path, {"step": step, "ms": turn.tolist()})

        return keep

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
