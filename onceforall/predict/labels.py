"""Labels: measured (architecture, top-1) rows on the held-out label images; resumable.

A labels file is JSONL: a header with the format, space, supernet checksum, split and seed, then one
row a sub-network: `{"kind": ..., "architecture": ..., "top1": ...}`.

Kinds: "random" draws every choice uniformly (the paper's); "spread" gives each architecture its own
preference for each choice, so that networks near the corners of the space come up as well;
"uniform" are the networks with one depth, kernel, expand ratio everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onceforall import spaces
from onceforall.architecture import Architecture
from onceforall.data.dataset import Data, Split
from onceforall.errors import InvalidConfiguration
from onceforall.evaluate import measure_top1
from onceforall.files import append_jsonl, as_json, read_jsonl, write_jsonl
from onceforall.nn.fast_cpu import keep_freed_memory
from onceforall.nn.supernet import Supernet
from onceforall.space import SearchSpace

FORMAT = "onceforall.labels/1"

Kind = Literal["random", "spread", "uniform"]


@dataclass(frozen=True)
class Label:
    """A sub-network and its measured top-1 (percent)."""

    kind: Kind
    architecture: Architecture
    top1: float


def plan(space: SearchSpace, count: int, seed: int, uniform: bool = False) -> list[tuple[Kind, Architecture]]:
    """Which architectures to label: `count` distinct ones, random and spread in turn, then the uniform ones."""
    if count < 0 or count > space.size:
        raise InvalidConfiguration(f"{count} labels: this space has {space.size} architectures")
    rng = np.random.default_rng(seed)
    chosen: dict[Architecture, Kind] = {}
    while len(chosen) < count:
        kind: Kind = "spread" if len(chosen) % 2 else "random"
        arch = spread_sample(space, rng) if kind == "spread" else space.sample(rng)
        chosen.setdefault(arch, kind)
    result = [(kind, arch) for arch, kind in chosen.items()]
    return result + [("uniform", arch) for arch in space.uniforms()] if uniform else result


def spread_sample(space: SearchSpace, rng: np.random.Generator) -> Architecture:
    """One architecture whose choices follow its own random preferences: corners are as likely as the middle."""
    counts = space.choice_counts
    row = np.empty((1, len(counts)), np.int16)
    columns = range(len(counts))
    groups = [columns[:1], *(columns[part] for part in space.slices if columns[part])]
    for group in groups:
        preference = rng.dirichlet(np.ones(max(int(counts[c]) for c in group)))
        for column in group:
            weights = preference[: counts[column]]
            row[0, column] = rng.choice(len(weights), p=weights / weights.sum())
    return space.from_rows(space.canonical(row))[0]


def label(
    supernet: Supernet,
    data: Data,
    path: str | Path,
    *,
    count: int = 560,
    seed: int = 0,
    uniform: bool = True,
    split: Split = "label",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Label]:
    """Measure sub-networks on a split and write them to `path`; rows already there are kept.

    Each is extracted and its batch norm recalibrated first. `report` receives (done, total).
    Raises InvalidConfiguration where the file is of another space, seed or data set.
    """
    if split == "test":
        raise InvalidConfiguration("labels on test images would let the test set select: use the label split")
    keep_freed_memory()
    path = Path(path)
    header = {
        "format": FORMAT,
        "space": supernet.space.to_json(),
        "data": data.describe(),
        "split": split,
        "seed": seed,
    }
    planned = plan(supernet.space, count, seed, uniform)
    done = {}
    if path.exists():
        found, labels = _read(path)
        if as_json({**found, "space": header["space"]}) != as_json(header) or not _is_of(found, supernet.space):
            raise InvalidConfiguration(f"{path} holds labels of another space, seed or data set: choose a new file")
        done = {item.architecture: item.top1 for item in labels}
        # A kill may have left half a line: write whole lines back before going on.
        write_jsonl(path, [found, *map(_row, labels)])
    else:
        append_jsonl(path, header)
    results = []
    for index, (kind, arch) in enumerate(planned):
        if arch not in done:
            done[arch] = measure_top1(supernet, arch, data, split)
            append_jsonl(path, _row(Label(kind, arch, done[arch])))
        results.append(Label(kind, arch, done[arch]))
        report(index + 1, len(planned))
    return results


def read_labels(path: str | Path, space: SearchSpace | None = None) -> list[Label]:
    """The rows of a labels file. Raises InvalidConfiguration where it is foreign or of another space."""
    header, labels = _read(Path(path))
    if space is not None and not _is_of(header, space):
        raise InvalidConfiguration(f"{path} holds labels of another space")
    return labels


def training_pairs(labels: Iterable[Label]) -> tuple[list[Architecture], list[float]]:
    """Architectures and accuracies (percent) that a predictor learns from: all but the uniform ones.

    Those stay apart as what a search has to beat.
    """
    rows = [label for label in labels if label.kind != "uniform"]
    return [row.architecture for row in rows], [row.top1 for row in rows]


def _read(path: Path) -> tuple[dict[str, Any], list[Label]]:
    records = read_jsonl(path)
    if not records or records[0].get("format") != FORMAT:
        raise InvalidConfiguration(f"{path} is not a labels file ({FORMAT}): make one with `ofa label`")
    try:
        rows = [
            Label(row["kind"], Architecture.from_json(row["architecture"]), float(row["top1"])) for row in records[1:]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidConfiguration(f"{path}: a row is not a label: {error}") from error
    return records[0], rows


def _is_of(header: dict[str, Any], space: SearchSpace) -> bool:
    """Whether a labels file belongs to a space: its JSON may be of a version that said less of it."""
    try:
        return spaces.from_json(header["space"]) == space
    except (KeyError, AttributeError, InvalidConfiguration):
        return False


def _row(item: Label) -> dict[str, Any]:
    return {"kind": item.kind, "architecture": item.architecture.to_json(), "top1": item.top1}
