"""Latency models and their files; the latency table: milliseconds a layer, summed, with one correction. No torch."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from onceforall import serial
from onceforall.checks import check_integer, check_positive, expect, is_number
from onceforall.cost.model import AdditiveCost, CostModel, input_size
from onceforall.cost.validation import Validation
from onceforall.errors import InvalidConfiguration, OutOfDomain
from onceforall.files import read_json_object, write_json
from onceforall.layers import LayerSpec
from onceforall.sizes import Size, parsed, said, side
from onceforall.space import SearchSpace


class LatencyModel(CostModel):
    """Milliseconds of a network, learnt from measurements on a device, with a file of its own.

    format: what its files say that they are; what: a word for messages.
    """

    name = "latency"
    unit = "ms"
    kind = "predicted"
    format: ClassVar[str]
    what: ClassVar[str]

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` makes an equal model."""

    def save(self, path: str | Path) -> None:
        """Write as JSON. Raises UnwritableOutput."""
        write_json(Path(path), self.to_json())

    @classmethod
    def _fields(cls, value: Any) -> dict[str, Any]:
        """What an object of such a file holds beside its format and unit. Raises InvalidConfiguration."""
        given = value if isinstance(value, Mapping) else {}
        if given.get("format") != cls.format:
            raise InvalidConfiguration(f"{cls.what} of format {given.get('format')!r}: expected {cls.format!r}")
        return {name: content for name, content in given.items() if name not in ("format", "unit")}


MOST_BELOW = 3  # of the slowest layer's latency, by which the constant of a table may be below 0


@dataclass(frozen=True)
class Timing:
    """One measurement: median and spread (half the interquartile range) of `count` turns, in ms."""

    median: float
    spread: float
    count: int

    def __post_init__(self) -> None:
        for name, value in (("median", self.median), ("spread", self.spread)):
            expect(name, value, is_number(value) and 0 <= value < math.inf, "a finite time of at least 0 ms")
        check_integer("count", self.count, 0)


@dataclass(frozen=True)
class LatencyTable(LatencyModel, AdditiveCost):
    """Latency of every layer of a space on one device, and what was measured of whole networks.

    Predicted latency (ms) = constant + scale * sum over layers. `device` says what was measured.
    """

    device: Mapping[str, Any]
    entries: Mapping[str, Timing]
    scale: float = 1.0
    constant: float = 0.0
    validation: Validation | None = None
    format = "onceforall.latency/1"
    what = "latency table"

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)
        # A fitted constant may be below 0, but not so far that networks would take less than no time.
        least = -MOST_BELOW * self.scale * max((entry.median for entry in self.entries.values()), default=0.0)
        right = is_number(self.constant) and least <= self.constant < math.inf
        expect("constant", self.constant, right, f"a finite time of at least {least:.3g} ms")

    def layer_cost(self, layer: LayerSpec) -> float:
        """Scaled milliseconds of a layer. Raises OutOfDomain where the table has no such layer."""
        try:
            return self.scale * self.entries[layer.key].median
        except KeyError:
            raise OutOfDomain(
                f"layer {layer.key} is not in the latency table of {self.device.get('name', 'this device')} "
                f"({len(self.entries)} layers): profile the space that it belongs to"
            ) from None

    def corrected(self, networks: Sequence[Sequence[LayerSpec]], measured: Sequence[float]) -> LatencyTable:
        """The table with scale and constant fitted to measured networks (ms), relative errors least squares.

        The scale is above 0: a table that ranks networks the wrong way round is left with hardly any.
        """
        if len(networks) < 3:
            raise InvalidConfiguration(f"{len(networks)} networks: a correction needs at least 3")
        plain = replace(self, scale=1.0, constant=0.0)
        scale, constant = fit_line([plain.cost(layers) for layers in networks], measured)
        return replace(self, scale=scale, constant=constant)

    def to_json(self) -> dict[str, Any]:
        value = serial.to_json(self)
        entries = value.pop("entries")  # last, as there are hundreds
        return {"format": self.format, "unit": self.unit, **value, "entries": entries}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LatencyTable:
        """The inverse of `to_json`. Raises InvalidConfiguration."""
        return serial.from_json(cls, cls._fields(value), "a latency table")

    def summary(self) -> dict[str, Any]:
        """What it is made of, for a manifest."""
        return {"kind": "table", "layers": len(self.entries), "scale": self.scale, "constant_ms": self.constant}

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read what `save` wrote. Raises InvalidConfiguration."""
        return cls.from_json(read_json_object(Path(path)))

    @classmethod
    def synthetic(cls, space: SearchSpace, macs_per_ms: float = 1e6, overhead_ms: float = 0.01) -> LatencyTable:
        """A made-up device, for tests and examples: so many MACs a millisecond and a cost per layer."""
        entries = {layer.key: Timing(layer.macs / macs_per_ms + overhead_ms, 0.0, 1) for layer in unique_layers(space)}
        return cls({"name": "synthetic", "macs_per_ms": macs_per_ms, "overhead_ms": overhead_ms}, entries)


@dataclass(frozen=True)
class LatencyTables(LatencyModel):
    """One latency table for each input resolution (px), as some devices were measured."""

    tables: Mapping[Size, LatencyTable]
    format = "onceforall.latency-by-resolution/1"
    what = "latency tables"

    def __post_init__(self) -> None:
        if not self.tables:
            raise InvalidConfiguration("latency tables by resolution: expected at least one")

    def at(self, resolution: Size) -> LatencyTable:
        """The table of a resolution. Raises OutOfDomain where there is none."""
        if resolution not in self.tables:
            known = ", ".join(map(said, sorted(self.tables, key=side)))
            raise OutOfDomain(f"no latency table for {said(resolution)} px: there are tables for {known} px")
        return self.tables[resolution]

    def cost(self, layers: Sequence[LayerSpec]) -> float:
        """Milliseconds of a network, whose resolution is what its first layer reads. Raises OutOfDomain."""
        return self.at(input_size(layers)).cost(layers)

    def to_json(self) -> dict[str, Any]:
        tables = {said(resolution): table.to_json() for resolution, table in self.tables.items()}
        return {"format": self.format, "tables": tables}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LatencyTables:
        """The inverse of `to_json`. Raises InvalidConfiguration."""
        given = cls._fields(value)
        try:
            return cls({parsed(size): LatencyTable.from_json(table) for size, table in given["tables"].items()})
        except (KeyError, ValueError, AttributeError) as error:
            raise InvalidConfiguration(f"not latency tables: {error}") from error


def read_table(value: Any) -> LatencyTable | LatencyTables:
    """What `to_json` of either kind of table made. Raises InvalidConfiguration."""
    by_resolution = isinstance(value, Mapping) and value.get("format") == LatencyTables.format
    return (LatencyTables if by_resolution else LatencyTable).from_json(value)


def fit_line(
    sums: Sequence[float] | NDArray[np.float64],
    measured: Sequence[float] | NDArray[np.float64],
    least_constant: float = -np.inf,
) -> tuple[float, float]:
    """Scale (above 0) and constant (ms) that bring sums closest to what was measured, in relative squared error."""
    truth = np.asarray(measured, float)
    design = np.stack([np.asarray(sums, float), np.ones_like(truth)], axis=1) / truth[:, None]
    scale, constant = lsq_linear(design, np.ones_like(truth), bounds=([1e-9, least_constant], np.inf)).x
    return float(scale), float(constant)


def unique_layers(space: SearchSpace) -> list[LayerSpec]:
    """Every different layer that some architecture of the space has, one a key, in order of appearance."""
    layers: dict[str, LayerSpec] = {}
    for resolution in space.resolutions:
        for layer in space.layers(resolution):
            layers.setdefault(layer.key, layer)
    return list(layers.values())
