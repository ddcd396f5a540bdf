"""manifest.json as it is read: every field of what `Specialization.to_json` wrote is looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import msgspec

from onceforall import serial
from onceforall.deploy.manifest import (
    CARD,
    CORRECTION,
    FORMAT,
    LATENCY,
    PREDICTOR,
    READ,
    Exported,
    Kind,
    Number,
    Specialized,
)
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration
from onceforall.files import read_json_object
from onceforall.predict.quality import PredictorQuality
from onceforall.results import MANIFEST, UNFINISHED, check_whole, inside
from onceforall.tasks import CLASSIFICATION, Score


class _Device(TypedDict):
    name: str
    runtime: str
    threads: int
    precision: str


class _LatencyModel(TypedDict):
    file: str
    device: dict[str, Any]
    differs: list[str]
    validation: dict[str, Any] | None


class _Predictor(TypedDict):
    """Beside the fields of `PredictorQuality`."""

    file: str
    corrected: bool


class _Comparison(TypedDict):
    precision: str
    latency_ratio: Number
    networks: int
    verdict: str


class _Input(TypedDict):
    shape: str
    mean: NotRequired[list[float]]
    std: NotRequired[list[float]]
    classes: NotRequired[list[str]]


class _Data(TypedDict):
    name: NotRequired[str]
    splits: NotRequired[dict[str, int]]


class _Row(TypedDict):
    kept: list[int]


class _Manifest(TypedDict):
    """What readers of a manifest rely on, beside its networks."""

    supernet: dict[str, Any]
    space: dict[str, Any]
    data: _Data
    input: _Input
    limits: list[str]
    quantize: _Comparison | None
    sensitivity: dict[str, list[_Row]]
    max_drop: float
    seed: int
    seconds: float
    versions: dict[str, str]
    device: _Device | None
    latency_model: _LatencyModel | None
    predictor: _Predictor
    networks: list[dict[str, Any]]
    machine: NotRequired[dict[str, Any]]  # as all below not in those of older formats
    data_source: NotRequired[str | None]
    losses: NotRequired[list[str]]


class _Range(NamedTuple):
    """What a number may be: its unit, where that is not the score's; its kinds; and what it lies between."""

    unit: str | None
    kinds: tuple[Kind, ...] = ("measured",)
    least: float = 0.0
    most: float = math.inf


RANGES = {
    "predicted_latency": _Range("ms", ("predicted",), -math.inf),
    "predicted_score": _Range(None, ("predicted",), -math.inf),
    "label_score": _Range(None, ("measured", "given"), -math.inf),
    "test_score": _Range(None, ("measured",), -math.inf),
    "parity": _Range("of the largest logit"),
    "agreement": _Range("percent", most=100.0),
    "latency": _Range("ms", least=math.ulp(0.0)),
    "latency_spread": _Range("ms"),
    "peak_memory": _Range("bytes"),
}


def read_manifest(folder: Path) -> tuple[dict[str, Any], list[Specialized]]:
    """The manifest of a folder and its networks, all of whose files lie in the folder.

    Raises InvalidConfiguration where there is none, IncompatibleCheckpoint where it is foreign or not complete.
    """
    check_whole(folder)
    path = folder / MANIFEST
    if not path.exists() and (folder / UNFINISHED).is_dir():
        raise InvalidConfiguration(f"{folder} is not complete: the same `ofa specialize` command goes on with it")
    value = read_json_object(path)
    if value.get("state") == "running":
        raise InvalidConfiguration(f"{path} is not complete: the same `ofa specialize` command goes on with it")
    if value.get("format") not in READ:
        raise IncompatibleCheckpoint(f"{path}: format {value.get('format')!r:.60}, expected {FORMAT!r}")
    try:
        networks = parse_networks(value)
    except IncompatibleCheckpoint as error:
        raise IncompatibleCheckpoint(f"{path}: not a manifest: {error}; specialise again") from error
    for file in (file for network in networks for file in network.files):
        inside(folder, file.path)
    return value, networks


def parse_networks(manifest: Mapping[str, Any]) -> list[Specialized]:
    """The networks of a manifest, whose every field is looked at. Raises IncompatibleCheckpoint."""
    try:
        msgspec.convert(manifest, _Manifest)
        msgspec.convert(manifest["predictor"], PredictorQuality)
    except msgspec.ValidationError as error:
        raise IncompatibleCheckpoint(str(error)) from None
    if manifest.get("format") == FORMAT and (missing := {"machine", "data_source", "score"} - manifest.keys()):
        raise IncompatibleCheckpoint(f"no {' and '.join(sorted(missing))}")
    score = score_in(manifest)
    networks = [Specialized.from_json(network, score) for network in manifest["networks"]]
    if not networks or any(not network.exports for network in networks):
        raise IncompatibleCheckpoint("expected networks, each with an export")
    if any(not export.files for network in networks for export in network.exports):
        raise IncompatibleCheckpoint("an export without a file")
    for network in networks:
        _check_numbers(network, network.name, score)
        for export in network.exports:
            _check_numbers(export, network.name, score)
        for file in network.files:
            if Path(file.path).parts[:-1] != (network.name,):
                raise IncompatibleCheckpoint(f"{file.path!r:.100} is no file in the folder of {network.name}")
    for rows in manifest["sensitivity"].values():
        for row in rows:
            serial.from_json(Number, row.get(f"label_{score.key}"), "a label score", IncompatibleCheckpoint)
    return networks


def _check_numbers(record: Specialized | Exported, name: str, score: Score) -> None:
    """Raises IncompatibleCheckpoint for a number of another unit or kind, or one that cannot be."""
    for field in fields(record):
        found = getattr(record, field.name)
        if isinstance(found, Number):
            unit, kinds, least, most = RANGES[field.name]
            unit = score.unit if unit is None else unit
            if found.unit != unit or found.kind not in kinds or not least <= found.value <= most:
                raise IncompatibleCheckpoint(
                    f"{name}: {field.name} {found.value:g} {found.unit!r:.40}, {found.kind}: expected {unit!r}, "
                    f"{' or '.join(kinds)}, a number that can be"
                )


def named_files(manifest: Mapping[str, Any]) -> list[str]:
    """The files that a manifest names. Raises IncompatibleCheckpoint."""
    networks = parse_networks(manifest)
    beside = [PREDICTOR, CARD] + [LATENCY] * bool(manifest["latency_model"])
    beside += [CORRECTION] * manifest["predictor"]["corrected"]
    return [*beside, *(file.path for network in networks for file in network.files)]


def measured_on(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The device of a manifest and the machine that it was made on, which older ones tell only of a device."""
    return {**manifest.get("machine", {}), **(manifest["device"] or {})}


def score_in(manifest: Mapping[str, Any]) -> Score:
    """What a manifest's scores are: top-1 in those of format 3. Raises IncompatibleCheckpoint."""
    said = manifest.get("score")
    return serial.from_json(Score, said, "a score", IncompatibleCheckpoint) if said else CLASSIFICATION.score
