"""What a specialisation promised and measured: the manifest.

Every number is written with its value, its unit and its kind: measured (here, on this device and
these images), or predicted (by a latency model or an accuracy predictor).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from onceforall.architecture import Architecture
from onceforall.cost.latency import LatencyTable
from onceforall.cost.learned import LearnedLatency
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration
from onceforall.files import read_json_object
from onceforall.predict.accuracy import PredictorQuality
from onceforall.predict.labels import Label

Role = Literal["largest", "searched", "uniform", "given"]
Kind = Literal["measured", "predicted"]

FORMAT = "onceforall.manifest/3"
LATENCY = "latency.json"  # the latency model, beside the manifest


def number(value: float | None, unit: str, kind: Kind) -> dict[str, Any] | None:
    """A number as the manifest writes it; None where there is none."""
    return None if value is None or math.isnan(value) else {"value": value, "unit": unit, "kind": kind}


def value_of(entry: Mapping[str, Any] | None) -> float:
    """The inverse of `number`; NaN where there is none."""
    return math.nan if entry is None else float(entry["value"])


@dataclass(frozen=True)
class File:
    """One file of an export, by its path inside the folder of the manifest."""

    path: str
    bytes: int
    sha256: str


@dataclass
class Export:
    """A network as the files of one runtime in one precision, and what was measured of them there.

    kept: layers that stay in floating point in a quantised network. parity: the largest difference
    between its logits and torch's in fp32, relative to the largest logit; agreement: how many percent
    of test images both give the same class. `label_top1` is about the label images, `test_top1` about the
    test images, both by these files in their runtime.
    """

    device: str
    precision: str
    runtime: str
    files: list[File]
    kept: list[int] = field(default_factory=list)
    parity: float = math.nan
    agreement: float = math.nan
    label_top1: float = math.nan
    test_top1: float = math.nan
    latency_ms: float = math.nan
    latency_spread_ms: float = math.nan
    memory_bytes: float = math.nan

    @property
    def bytes(self) -> int:
        """Size of its files."""
        return sum(file.bytes for file in self.files)

    @property
    def name(self) -> str:
        """Runtime and precision, as people say it."""
        kept = f", {len(self.kept)} layers fp32" if self.kept else ""
        return f"{self.device} {self.precision}{kept}"

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "device": self.device,
            "precision": self.precision,
            "runtime": self.runtime,
            "kept": self.kept,
            "files": [asdict(file) for file in self.files],
            "size": number(self.bytes, "bytes", "measured"),
            "parity": number(self.parity, "of the largest logit", "measured"),
            "agreement": number(self.agreement, "percent", "measured"),
            "label_top1": number(self.label_top1, "percent", "measured"),
            "test_top1": number(self.test_top1, "percent", "measured"),
            "latency": number(self.latency_ms, "ms", "measured"),
            "latency_spread": number(self.latency_spread_ms, "ms", "measured"),
            "peak_memory": number(self.memory_bytes, "bytes", "measured"),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Export:
        """The inverse of `to_json`."""
        numbers = {
            "parity": "parity",
            "agreement": "agreement",
            "label_top1": "label_top1",
            "test_top1": "test_top1",
            "latency_ms": "latency",
            "latency_spread_ms": "latency_spread",
            "memory_bytes": "peak_memory",
        }
        export = cls(value["device"], value["precision"], value["runtime"], _files(value["files"]), list(value["kept"]))
        for name, key in numbers.items():
            setattr(export, name, value_of(value[key]))
        return export


@dataclass(frozen=True)
class Finetuning:
    """That a network went on training after it was chosen: for how long, and the weights that came out."""

    epochs: int
    weights: File

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Finetuning:
        """The inverse of `asdict`."""
        return cls(int(value["epochs"]), *_files([value["weights"]]))


def _files(value: Sequence[Mapping[str, Any]]) -> list[File]:
    return [File(str(file["path"]), int(file["bytes"]), str(file["sha256"])) for file in value]


@dataclass
class Network:
    """One specialised network: what was promised, its exports, and which of them is the one to use.

    Latency in ms at batch 1 on the device; top-1 in percent: `predicted_top1` and `label_top1` (torch, fp32)
    are about the label images.
    `predicted_top1` is about the supernet's weights, whatever fine-tuning made of them.
    """

    role: Role
    budget: str | None
    budget_ms: float | None
    architecture: Architecture
    macs: int
    params: int
    predicted_latency_ms: float
    predicted_top1: float
    label_top1: float = math.nan
    exports: list[Export] = field(default_factory=list)
    chosen: int = 0
    standalone: list[File] = field(default_factory=list)  # Python code and weights that need torch alone
    attempts: list[str] = field(default_factory=list)
    finetuning: Finetuning | None = None

    @property
    def weights(self) -> File | None:
        """Its own, where it went on training; else it has the supernet's."""
        return self.finetuning.weights if self.finetuning else None

    @property
    def export(self) -> Export:
        """The export to use."""
        return self.exports[self.chosen]

    @property
    def measured_latency_ms(self) -> float:
        """Of the export to use."""
        return self.export.latency_ms

    @property
    def test_top1(self) -> float:
        """Of the export to use."""
        return self.export.test_top1

    @property
    def name(self) -> str:
        """Role and budget, as its folder is called."""
        return folder_name(self.role, self.budget)

    @property
    def budget_met(self) -> bool | None:
        """Whether the measured latency is within the budget; None where there is none."""
        return None if self.budget_ms is None else self.measured_latency_ms <= self.budget_ms

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "role": self.role,
            "budget": self.budget,
            "latency_budget_ms": self.budget_ms,
            "budget_met": self.budget_met,
            "architecture": self.architecture.to_json(),
            "macs": self.macs,
            "params": self.params,
            "predicted_latency": number(self.predicted_latency_ms, "ms", "predicted"),
            "predicted_top1": number(self.predicted_top1, "percent", "predicted"),
            "label_top1": number(self.label_top1, "percent", "measured"),
            "exports": [export.to_json() for export in self.exports],
            "chosen": self.chosen,
            "standalone": [asdict(file) for file in self.standalone],
            "attempts": self.attempts,
            "finetuning": asdict(self.finetuning) if self.finetuning else None,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Network:
        """The inverse of `to_json`."""
        return cls(
            value["role"],
            value["budget"],
            value["latency_budget_ms"],
            Architecture.from_json(value["architecture"]),
            int(value["macs"]),
            int(value["params"]),
            value_of(value["predicted_latency"]),
            value_of(value["predicted_top1"]),
            value_of(value["label_top1"]),
            [Export.from_json(export) for export in value["exports"]],
            int(value["chosen"]),
            _files(value["standalone"]),
            list(value["attempts"]),
            Finetuning.from_json(value["finetuning"]) if value["finetuning"] else None,
        )


def folder_name(role: Role, budget: str | None) -> str:
    """What the folder of a network is called."""
    return f"{role}-{budget.replace('%', 'pct').replace(' ', '')}" if budget else role


@dataclass
class Specialization:
    """Everything a specialisation found; `to_json` is the manifest."""

    networks: list[Network]
    device: dict[str, Any]  # what the networks were measured on; the table says what it was built on
    table: LatencyTable | LearnedLatency
    quality: PredictorQuality
    corrected: bool  # whether labels in another precision corrected the predictor
    labels: Sequence[Label]
    about: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The manifest without the latency model's entries, which have a file of their own."""
        return {
            "format": FORMAT,
            **self.about,
            "device": self.device,
            "latency_model": {
                "file": LATENCY,
                "device": dict(self.table.device),
                "differs": differences(self.table.device, self.device),
                **self.table.summary(),
                "validation": self.table.validation.to_json() if self.table.validation else None,
            },
            "predictor": {"file": "predictor.safetensors", "corrected": self.corrected, **self.quality.to_json()},
            "networks": [network.to_json() for network in self.networks],
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
            {
                **{key: round(v, 4) if isinstance(v := getattr(network, key), float) else v for key in keys},
                "export": network.export.name,
            }
            for network in self.networks
        ]
        validation = self.table.validation
        return {
            "networks": rounded,
            "table": {k: round(v, 3) for k, v in asdict(validation.all).items()} if validation else None,
            "predictor": {k: round(v, 3) for k, v in self.quality.to_json().items()},
        }


def differing(made_on: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """In what the descriptions of two devices differ, of what both say (one that keeps no layers does not say so)."""
    kept: dict[str, Any] = {} if "kept" not in made_on and "kept" not in here else {"kept": []}
    one, other = {**kept, **made_on}, {**kept, **here}
    return [key for key in one if key in other and one[key] != other[key]]


def differences(made_on: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """How the device of a latency model differs from another."""
    return [f"{key}: {made_on.get(key, [])}, here {here.get(key, [])}" for key in differing(made_on, here)]


def read_manifest(folder: Path) -> tuple[dict[str, Any], list[Network]]:
    """The manifest of a folder and its networks.

    Raises InvalidConfiguration where there is none, IncompatibleCheckpoint where it is foreign or not complete.
    """
    path = folder / "manifest.json"
    value = read_json_object(path)
    if value.get("state") == "running":
        raise InvalidConfiguration(f"{path} is not complete: the same `ofa specialize` command goes on with it")
    if value.get("format") != FORMAT:
        raise IncompatibleCheckpoint(f"{path}: format {value.get('format')!r}, expected {FORMAT!r}")
    try:
        networks = [Network.from_json(network) for network in value["networks"]]
        for network in networks:
            _ = network.export
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise IncompatibleCheckpoint(f"{path}: not a manifest: {error!r}; specialise again") from error
    return value, networks
