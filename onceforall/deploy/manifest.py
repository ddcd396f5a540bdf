"""What a specialisation promised and measured: the manifest.

Every number is written with its value, its unit and its kind: measured (here, on this device and
these images), predicted (by a latency model or an accuracy predictor), or given (by the labels, which were
measured before); costs say what kind they are. Scores are named by their key: "test_top1" is the top-1 on the
test images.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from onceforall import serial
from onceforall.architecture import Architecture
from onceforall.cost.latency import LatencyTable
from onceforall.cost.learned import LearnedLatency
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration
from onceforall.files import sha256
from onceforall.predict.accuracy import PredictorQuality
from onceforall.predict.labels import Label
from onceforall.tasks import Score

Role = Literal["largest", "searched", "uniform", "given"]
Kind = Literal["measured", "predicted", "given"]

FORMATS = tuple(f"onceforall.manifest/{version}" for version in range(5, 0, -1))  # what we ever wrote
FORMAT = FORMATS[0]
READ = FORMATS[:3]  # /4 does not tell given label scores from measured ones; /3 has standalone Python files
# Beside the manifest: the latency model, the accuracy predictor, what corrects it for a precision, and the card.
LATENCY, PREDICTOR, CORRECTION, CARD = "latency.json", "predictor.safetensors", "correction.json", "MODEL_CARD.md"
PYTHON = "python"
SHOWN = ("MACs", "parameters")  # costs that tables of networks have a column for, whatever the constraints are
FOLLOWS = ("budget_met", "size", "standalone")  # from the rest, or is read apart
# Records have slots: of others msgspec leaves out a field that was not given when it was read.
SCORES = ("predicted_score", "label_score", "test_score")


@dataclass(frozen=True, slots=True)
class Number:
    """A number as the manifest writes it."""

    value: float
    unit: str
    kind: Kind


def number(value: float | None, unit: str, kind: Kind) -> Number | None:
    """A number with its unit and kind; None where there is none."""
    return None if value is None or math.isnan(value) else Number(value, unit, kind)


def value_of(entry: Number | None) -> float:
    """The inverse of `number`; NaN where there is none."""
    return math.nan if entry is None else entry.value


@dataclass(frozen=True, slots=True)
class File:
    """One file of an export, by its path inside the folder of the manifest."""

    path: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if self.bytes < 0 or not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise InvalidConfiguration(f"a file of {self.bytes} bytes and sha256 {self.sha256!r:.100}")

    @classmethod
    def of(cls, path: Path) -> File:
        """A file in the folder of a network, as it is now."""
        return cls(f"{path.parent.name}/{path.name}", path.stat().st_size, sha256(path))


@dataclass(frozen=True, slots=True)
class Exported:
    """A network as the files of one export in one precision, and what was measured of them in their runtime.

    kept: layers that stay in floating point in a quantised network. parity: the largest difference
    between its outputs and torch's in fp32, relative to the largest; agreement: how many percent
    of test images both give the same class. label_score is about the label images, test_score about the
    test images. not_verified: why none of this could be measured here.
    """

    device: str
    precision: str
    runtime: str
    files: tuple[File, ...]
    kept: tuple[int, ...] = ()
    parity: Number | None = None
    agreement: Number | None = None
    label_score: Number | None = None
    test_score: Number | None = None
    latency: Number | None = None
    latency_spread: Number | None = None
    peak_memory: Number | None = None
    not_verified: str | None = None

    @property
    def bytes(self) -> int:
        """Size of its files."""
        return sum(file.bytes for file in self.files)

    @property
    def latency_ms(self) -> float:
        """NaN where it was not timed."""
        return value_of(self.latency)

    @property
    def name(self) -> str:
        """Runtime and precision, as people say it."""
        kept = f", {len(self.kept)} layers fp32" if self.kept else ""
        return f"{self.device} {self.precision}{kept}"


@dataclass(frozen=True, slots=True)
class Finetuning:
    """That a network went on training after it was chosen: for how long, and the weights that came out."""

    epochs: int
    weights: File


@dataclass(frozen=True, slots=True)
class Needed:
    """One constraint of the searches, and what a network needs of it.

    settings: those of the cost, by which `verify` finds the same one.
    """

    name: str
    bound: float
    unit: str
    value: float
    kind: str  # of the number: see CostModel
    settings: Mapping[str, Any]

    @property
    def met(self) -> bool:
        """Whether the bound holds."""
        return self.value <= self.bound


@dataclass(frozen=True, slots=True)
class Specialized:
    """One specialised network: what was promised, its exports, and which of them is the one to use.

    Latency in ms at batch 1 on the device. predicted_score and label_score (torch, fp32) are about the label
    images; predicted_score is about the supernet's weights, whatever fine-tuning made of them. test_score: of
    the network in torch, where the export to use could not be run here.
    """

    role: Role
    budget: str | None
    latency_budget_ms: float | None
    architecture: Architecture
    macs: int
    params: int
    predicted_latency: Number | None
    predicted_score: Number | None
    label_score: Number | None = None
    exports: tuple[Exported, ...] = ()
    chosen: int = 0
    test_score: Number | None = None
    constraints: tuple[Needed, ...] = ()
    attempts: tuple[str, ...] = ()
    finetuning: Finetuning | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w%+. -]*", self.budget or "") or self.name.endswith("."):
            raise InvalidConfiguration(f"budget {self.budget!r:.60}: expected what can be part of a folder's name")
        if self.exports and not 0 <= self.chosen < len(self.exports):
            raise InvalidConfiguration(
                f"chosen {self.chosen}: expected the place of one of {len(self.exports)} exports"
            )

    @property
    def files(self) -> Iterator[File]:
        """All that it was written to."""
        for export in self.exports:
            yield from export.files
        if self.finetuning:
            yield self.finetuning.weights

    @property
    def export(self) -> Exported:
        """The export to use."""
        return self.exports[self.chosen]

    @property
    def measured_latency_ms(self) -> float:
        """Of the export to use."""
        return self.export.latency_ms

    @property
    def measured_score(self) -> float:
        """On the test images: of the export to use, or in torch."""
        return value_of(self.export.test_score or self.test_score)

    @property
    def name(self) -> str:
        """Role and budget, as its folder is called."""
        return folder_name(self.role, self.budget)

    @property
    def budget_met(self) -> bool | None:
        """Whether the measured latency is within the budget; None where there is none."""
        return None if self.latency_budget_ms is None else self.measured_latency_ms <= self.latency_budget_ms

    def to_json(self, score: Score) -> dict[str, Any]:
        """A JSON object, in which scores have the name of this one."""
        value = _renamed(serial.to_json(self), score, reading=False)
        if self.test_score is None:
            del value[f"test_{score.key}"]  # its exports have theirs
        for export, entry in zip(self.exports, value["exports"], strict=True):
            entry["size"] = asdict(Number(export.bytes, "bytes", "measured"))
        return {**value, "budget_met": self.budget_met}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], score: Score) -> Specialized:
        """The inverse of `to_json`; of format 3 as well. Raises IncompatibleCheckpoint."""
        named = _renamed(value, score, reading=True)
        found = serial.from_json(cls, named, "a manifest's network", IncompatibleCheckpoint)
        if not value.get("standalone"):
            return found
        files = serial.from_json(tuple[File, ...], value["standalone"], "a list of files", IncompatibleCheckpoint)
        return replace(found, exports=(*found.exports, Exported(PYTHON, "fp32", "torch", files)))


def _renamed(value: Any, score: Score, reading: bool) -> Any:
    """A network and its exports with the names of scores as files have them, or, reading, as fields have them."""
    if not isinstance(value, Mapping):  # which is said when it is read
        return value
    names = {name: name.replace("score", score.key) for name in SCORES}
    if reading:
        names = {there: here for here, there in names.items()}
        value = {key: entry for key, entry in value.items() if key not in FOLLOWS}
    renamed = {names.get(key, key): entry for key, entry in value.items()}
    if isinstance(value.get("exports"), list | tuple):
        renamed["exports"] = [_renamed(export, score, reading) for export in value["exports"]]
    return renamed


def folder_name(role: Role, budget: str | None) -> str:
    """What the folder of a network is called."""
    return f"{role}-{budget.replace('%', 'pct').replace(' ', '')}" if budget else role


@dataclass
class Specialization:
    """Everything a specialisation found; `to_json` is the manifest."""

    networks: list[Specialized]
    device: dict[str, Any] | None  # what the networks were measured on; the table says what it was built on
    table: LatencyTable | LearnedLatency | None
    quality: PredictorQuality
    corrected: bool  # whether labels in another precision corrected the predictor
    labels: Sequence[Label]
    score: Score
    about: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The manifest without the latency model's entries, which have a file of their own."""
        return {
            "format": FORMAT,
            **self.about,
            "score": asdict(self.score),
            "device": self.device,
            "latency_model": latency_entry(self.table, self.device) if self.table else None,
            "predictor": {"file": PREDICTOR, "corrected": self.corrected, **self.quality.to_json()},
            "networks": [network.to_json(self.score) for network in self.networks],
        }

    def summary(self) -> dict[str, Any]:
        """The numbers of the table that people read, for one line of JSON."""
        validation = self.table.validation if self.table else None
        return {
            "networks": [self._row(network) for network in self.networks],
            "table": {k: round(v, 3) for k, v in asdict(validation.all).items()} if validation else None,
            "predictor": {k: round(v, 3) for k, v in self.quality.to_json().items()},
        }

    def _row(self, network: Specialized) -> dict[str, Any]:
        numbers = {
            "budget_ms": network.latency_budget_ms,
            "predicted_latency_ms": value_of(network.predicted_latency),
            "measured_latency_ms": network.measured_latency_ms,
            f"predicted_{self.score.key}": value_of(network.predicted_score),
            f"test_{self.score.key}": network.measured_score,
        }
        return {
            "role": network.role,
            "budget": network.budget,
            **{key: None if v is None or math.isnan(v) else round(v, 4) for key, v in numbers.items()},
            "budget_met": network.budget_met,
            "macs": network.macs,
            "params": network.params,
            "constraints": {needed.name: needed.value for needed in network.constraints},
            "export": network.export.name,
        }


def latency_entry(model: LatencyTable | LearnedLatency, device: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a manifest says of a latency model, which has a file of its own, beside the device that was measured on."""
    return {
        "file": LATENCY,
        "device": dict(model.device),
        "differs": differences(model.device, device) if device else [],
        **model.summary(),
        "validation": model.validation.to_json() if model.validation else None,
    }


def different_keys(made_on: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """In what the descriptions of two devices differ, of what both say (one that keeps no layers does not say so)."""
    kept: dict[str, Any] = {} if "kept" not in made_on and "kept" not in here else {"kept": []}
    one, other = {**kept, **made_on}, {**kept, **here}
    return [key for key in one if key in other and one[key] != other[key]]


def differences(made_on: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """How the device of a latency model differs from another."""
    return [f"{key}: {made_on.get(key, [])}, here {here.get(key, [])}" for key in different_keys(made_on, here)]
