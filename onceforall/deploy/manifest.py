"""What a specialisation promised and measured: the manifest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from onceforall.architecture import Architecture
from onceforall.cost.latency import LatencyTable
from onceforall.cost.learned import LearnedLatency
from onceforall.predict.accuracy import PredictorQuality
from onceforall.predict.labels import Label

Role = Literal["largest", "searched", "uniform", "given"]

FORMAT = "onceforall.manifest/1"


@dataclass
class Network:
    """One exported network with what was promised and what was measured.

    Latency in ms at batch 1 on the device; top-1 in percent. `predicted_top1` and `label_top1` are
    about the label images, `test_top1` about the test images, by the exported file in its runtime.
    """

    role: Role
    budget: str | None
    budget_ms: float | None
    architecture: Architecture
    macs: int
    params: int
    predicted_latency_ms: float
    predicted_top1: float
    label_top1: float | None = None
    measured_latency_ms: float = math.nan
    latency_spread_ms: float = math.nan
    test_top1: float = math.nan
    parity: float = math.nan
    file: str = ""
    bytes: int = 0
    sha256: str = ""
    attempts: list[str] = field(default_factory=list)

    @property
    def budget_met(self) -> bool | None:
        """Whether the measured latency is within the budget; None where there is none."""
        return None if self.budget_ms is None else self.measured_latency_ms <= self.budget_ms

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {**asdict(self), "architecture": self.architecture.to_json(), "budget_met": self.budget_met}


@dataclass
class Specialization:
    """Everything a specialisation found; `to_json` is the manifest."""

    networks: list[Network]
    device: dict[str, Any]  # what the networks were measured on; the table says what it was built on
    table: LatencyTable | LearnedLatency
    quality: PredictorQuality
    labels: Sequence[Label]
    about: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The manifest without the latency table's entries, which have a file of their own."""
        return {
            "format": FORMAT,
            **self.about,
            "device": self.device,
            "latency_table": {
                "file": "latency.json",
                "device": dict(self.table.device),
                **self.table.summary(),
                "validation": self.table.validation.to_json() if self.table.validation else None,
            },
            "predictor": self.quality.to_json(),
            "networks": [network.to_json() for network in self.networks],
            "units": {
                "latency": "ms, batch 1, median of interleaved turns",
                "top1": "percent",
                "parity": "largest difference of logits, relative to the largest logit",
            },
        }

    def summary(self) -> dict[str, Any]:
        """The numbers of the table that people read, for one line of JSON."""
        keys = (
            "role",
            "budget",
            "budget_ms",
            "predicted_latency_ms",
            "measured_latency_ms",
            "predicted_top1",
            "test_top1",
            "macs",
            "params",
        )
        rounded = [
            {key: round(value, 4) if isinstance(value := getattr(network, key), float) else value for key in keys}
            for network in self.networks
        ]
        validation = self.table.validation
        return {
            "networks": rounded,
            "table": {k: round(v, 3) for k, v in asdict(validation.all).items()} if validation else None,
            "predictor": {k: round(v, 3) for k, v in self.quality.to_json().items()},
        }
