"""Networks as they are timed, and what is made of their times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from onceforall.architecture import Architecture
from onceforall.cost.latency import Timing
from onceforall.devices.device import Device, Report, Shape, Timed
from onceforall.devices.timing import Turn, Turns
from onceforall.errors import InvalidConfiguration
from onceforall.files import append_jsonl, as_json, read_jsonl
from onceforall.layers import LayerSpec
from onceforall.nn.subnet import build, fold_batch_norm
from onceforall.sizes import height_width
from onceforall.space import SearchSpace

WHOLE = Turns(27, 0.02)  # for whole networks alone
BURSTS = 3  # of a whole network in each turn of a profile: it is judged by its own noise, a layer by that of sums


def image_shape(arch: Architecture) -> Shape:
    """The input of an architecture at batch 1."""
    return (1, 3, *height_width(arch.resolution))


def random_network(layers: Sequence[LayerSpec]) -> nn.Module:
    """Layers with random weights, batch norm folded; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        return fold_batch_norm(build(layers))


def single_layer(layer: LayerSpec) -> Timed:
    """A layer as a network of its own, with random weights."""
    return random_network([layer]), (1, *layer.input_shape)


def whole_network(space: SearchSpace, arch: Architecture) -> Timed:
    """An architecture with random weights."""
    return random_network(space.lower(arch)), image_shape(arch)


def measure_latency(device: Device, networks: Sequence[Timed], turns: Turns = WHOLE) -> list[Timing]:
    """Measured latency of networks with their input shapes, interleaved (ms)."""
    return [summarise(row) for row in device.time(networks, turns)]


def summarise(turns: Turn) -> Timing:
    """Median, half the interquartile range, and number of the turns of one network (ms)."""
    low, median, high = np.percentile(turns, [25, 50, 75])
    return Timing(float(median), float(high - low) / 2, len(turns))


def steady(ms: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Times [networks, turns] without how much slower all networks were together in each turn; and that (percent)."""
    pace = np.median(ms / np.median(ms, axis=1, keepdims=True), axis=0)
    return ms / pace, float(50 * (pace.max() - pace.min()))


class Measured(NamedTuple):
    """Architectures and their milliseconds [architectures, bursts]; the drift that was taken out of those (percent)."""

    architectures: Sequence[Architecture]
    ms: NDArray[np.float64]
    drift: float

    @classmethod
    def pooled(cls, architectures: Sequence[Architecture], ms: NDArray[np.float64], drift: float) -> Measured:
        """Of architectures that were timed in turn, `BURSTS` times over: [BURSTS * architectures, turns]."""
        return cls(architectures, np.concatenate(np.split(ms, BURSTS), axis=1), drift)

    def of(self, architectures: Sequence[Architecture]) -> Measured:
        """Some of them."""
        places = {arch: place for place, arch in enumerate(self.architectures)}
        return Measured(architectures, self.ms[[places[arch] for arch in architectures]], self.drift)

    @property
    def medians(self) -> NDArray[np.float64]:
        """Milliseconds [architectures]."""
        return np.asarray(np.median(self.ms, axis=1))

    @property
    def noise(self) -> float:
        """How far the medians are from the truth, in percent: see `Validation`."""
        odd, even = np.median(self.ms[:, 1::2], axis=1), np.median(self.ms[:, ::2], axis=1)
        return float(50 * np.abs((odd - even) / self.medians).mean())


class Measurement:
    """Networks of a space, timed on a device by one plan; turns are kept in a file until all is complete.

    `path` is that file, where there is one, and `about` what else tells this measurement from others. An
    interrupted one goes on. Raises InvalidConfiguration where the file is of another measurement.
    """

    def __init__(
        self, space: SearchSpace, device: Device, turns: Turns, path: str | Path | None, report: Report, **about: Any
    ) -> None:
        self.device, self.turns, self.report = device, turns, report
        self.path = Path(path) if path else None
        identity = {"space": space.to_json(), "device": device.identity(), "turns": asdict(turns), **about}
        self.rows = read_jsonl(self.path) if self.path else []
        if self.rows and self.rows[0] != as_json(identity):
            raise InvalidConfiguration(
                f"{self.path} is of a measurement with other settings, of another space or device: remove it"
            )
        if not self.rows:
            self._append(identity)

    def time(self, step: str, networks: Sequence[Timed], purpose: str = "") -> NDArray[np.float64]:
        """Milliseconds a run, shape [networks, turns]; `purpose` follows what is reported."""
        return self.device.time(
            networks,
            self.turns,
            done=[np.array(row["ms"]) for row in self.rows[1:] if row["step"] == step],
            keep=lambda turn: self._append({"step": step, "ms": turn.tolist()}),
            report=lambda what, done, total: self.report(what + purpose, done, total),
        )

    def _append(self, row: dict[str, Any]) -> None:
        if self.path:
            append_jsonl(self.path, row)

    def complete(self) -> None:
        """Nothing is left to go on with."""
        if self.path:
            self.path.unlink(missing_ok=True)
