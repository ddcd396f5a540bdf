"""Labels: measured (architecture, score) rows on the held-out label images; resumable.

A labels file is JSONL: a header with the format, space, digest of the weights, split and seed, then one
row a sub-network: `{"kind": ..., "architecture": ..., "top1": ...}`. The last key is that of the
task's score; for another task than classification the header says the task and its score.

The kinds are those of `predict/sampling.py`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from onceforall import spaces
from onceforall.architecture import Architecture
from onceforall.checkpoint import digest
from onceforall.checks import expect, is_number
from onceforall.data.dataset import Data, Split, as_described, completed, identity
from onceforall.errors import InvalidArchitecture, InvalidConfiguration
from onceforall.evaluate import Evaluator
from onceforall.files import append_jsonl, as_json, differing, read_jsonl, write_jsonl
from onceforall.nn.fast_cpu import keep_freed_memory
from onceforall.nn.supernet import Supernet
from onceforall.predict.sampling import Kind, plan
from onceforall.serial import from_json, to_json
from onceforall.sizes import height_width
from onceforall.space import SearchSpace
from onceforall.tasks import CLASSIFICATION, Score, task_of

FORMAT = "onceforall.labels/1"

# What the headers of older files leave out; and "weights", the digest of the supernet's.
DEFAULTS = {"distribution": "mixed", "precision": "fp32"}
UNIFORM_SHARE = 4  # of as many random sub-networks one uniform one is measured: some spaces have hundreds of those
PATIENCE = 0.5  # seconds between looks at what the other processes have done


@dataclass(frozen=True)
class Label:
    """A sub-network and its measured score: for classifiers top-1 (percent), `top1` by another name."""

    kind: Kind
    architecture: Architecture
    score: float

    @property
    def top1(self) -> float:
        """The score of a classifier (percent)."""
        return self.score


def label(
    supernet: Supernet,
    data: Data,
    path: str | Path,
    *,
    count: int = 560,
    seed: int = 0,
    uniform: bool = True,
    distribution: str = "mixed",
    split: Split = "label",
    precision: str = "fp32",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Label]:
    """Measure sub-networks on a split and write them to `path`; rows already there are kept, asked for or not.

    Returns those that were asked for: `count` random ones and, with `uniform`, at most a quarter as many
    uniform ones on top, spread evenly over those of the space. Each is extracted and its batch norm
    recalibrated first. `distribution` and `precision`: `predict/sampling.py` and `Evaluator`. `report`
    receives (done, total). Started by `torchrun`, the processes share the work: each measures its part
    into a file beside `path`, and the first gathers. Raises InvalidConfiguration where the file is of
    another supernet, seed or data set.
    """
    if split == "test":
        raise InvalidConfiguration("labels on test images would let the test set select: use the label split")
    keep_freed_memory()
    task = task_of(data)
    path, rank, world = Path(path), int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    for records in filter(None, map(read_jsonl, (path, *_parts(path)))):
        data = as_described(data, records[0].get("data"))
    header = {
        "format": FORMAT,
        "space": supernet.space.to_json(),
        "data": identity(data),
        "split": split,
        "seed": seed,
        "distribution": distribution,
        "precision": precision,
        "weights": digest(supernet),
    }
    if task.name != CLASSIFICATION.name:
        header |= {"task": task.name, "score": to_json(task.score)}
    key = task.score.key
    planned = plan(supernet.space, count, seed, uniform, distribution, count // UNIFORM_SHARE)
    evaluator = Evaluator(supernet, data, split, precision)  # which checks, before anything is written
    done = _gather(path, header, supernet.space)
    own = path if world == 1 else path.with_name(f"{path.name}.{rank}-of-{world}")
    # Whole lines are written back where a kill left half a line; and a header appears at once or not at all,
    # because the other processes read it.
    before = read_jsonl(own)
    write_jsonl(own, [header, *_rows(_parsed(own, before)[1] if before else [], key)])
    # One resolution after the other: the evaluator keeps what those have in common.
    kinds = {arch: kind for kind, arch in planned[rank::world] if arch not in done}
    todo = sorted(kinds, key=lambda arch: (height_width(arch.resolution), arch.multipliers[0]))
    for number, arch in enumerate(todo, 1):
        done[arch] = Label(kinds[arch], arch, evaluator.score(arch))
        append_jsonl(own, *_rows([done[arch]], key))
        report(len(planned) - world * (len(todo) - number), len(planned))
    while not all(arch in done for _, arch in planned):  # the other processes are not there yet
        time.sleep(PATIENCE)
        done = _gather(path, header, supernet.space)
    results = [Label(kind, arch, done[arch].score) for kind, arch in planned]
    asked = {arch for _, arch in planned}
    others = [row for arch, row in done.items() if arch not in asked]
    if rank == 0:
        write_jsonl(path, [header, *_rows([*results, *others], key)])
        for part in _parts(path):
            part.unlink(missing_ok=True)
    return results


def _parts(path: Path) -> list[Path]:
    """What the processes of a distributed call measured."""
    return sorted(path.parent.glob(f"{path.name}.*-of-*"))


def _gather(path: Path, header: dict[str, Any], space: SearchSpace) -> dict[Architecture, Label]:
    """Everything that was measured. Raises InvalidConfiguration where a file is of another call."""
    found: dict[Architecture, Label] = {}
    defaults = {**DEFAULTS, "weights": header["weights"]}
    for part in (path, *_parts(path)):
        records = read_jsonl(part)
        if len(records) < 2:  # no label: a kill, a full disk, a call that failed at once; or it was just gathered
            continue
        theirs, rows = _parsed(part, records)
        theirs = {**defaults, **theirs, "data": completed(theirs.get("data"), header["data"])}
        space_is = "the supernet's" if _is_of(theirs, space) else "of another supernet"
        if different := differing({**theirs, "space": space_is}, as_json({**header, "space": "the supernet's"})):
            raise InvalidConfiguration(
                f"{part} holds labels of another supernet, seed, data set, distribution or precision "
                f"({different}): choose a new file"
            )
        found |= {row.architecture: row for row in rows}
    return found


def read_labels(path: str | Path, space: SearchSpace | None = None) -> list[Label]:
    """The rows of a labels file. Raises InvalidConfiguration where it is foreign or of another space."""
    header, labels = _read(Path(path))
    if space is not None:
        if not _is_of(header, space):
            raise InvalidConfiguration(f"{path} holds labels of another space")
        for number, row in enumerate(labels, 2):
            try:
                space.validate(row.architecture)
            except InvalidArchitecture as error:
                raise InvalidConfiguration(f"{path}, line {number}: {error!s:.200}") from error
    return labels


def score_of(path: str | Path) -> Score:
    """By which score a labels file measures, and so which direction is better. Raises as `read_labels`."""
    return _score(_read(Path(path))[0])


def training_pairs(
    labels: Iterable[Label], score: Score = CLASSIFICATION.score
) -> tuple[list[Architecture], list[float]]:
    """Architectures and scores that a predictor learns from: all but the uniform ones.

    Those stay apart as what a search has to beat. A search maximises what a predictor says: where a
    lower `score` is better, its negative is what comes out (`Score.goal`, its own inverse).
    """
    labels = list(labels)
    apart = {label.architecture for label in labels if label.kind == "uniform"}
    rows = [label for label in labels if label.architecture not in apart]
    return [row.architecture for row in rows], [score.goal(row.score) for row in rows]


def _read(path: Path) -> tuple[dict[str, Any], list[Label]]:
    return _parsed(path, read_jsonl(path))


def _parsed(path: Path, records: list[dict[str, Any]]) -> tuple[dict[str, Any], list[Label]]:
    if not records or records[0].get("format") != FORMAT:
        raise InvalidConfiguration(
            f"{path} is not a labels file ({FORMAT}): `ofa label` makes one, under a name that is free (--out)"
        )
    score = _score(records[0])
    rows = []
    for number, row in enumerate(records[1:], 2):
        try:
            rows.append(_label(row, score))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidConfiguration(f"{path}, line {number} is not a label: {error!s:.200}") from error
    return records[0], rows


def _label(row: dict[str, Any], score: Score) -> Label:
    """Raises KeyError, TypeError, ValueError, AttributeError where a record is no label."""
    kind, found = row["kind"], row[score.key]
    expect("kind", kind, kind in get_args(Kind), f"one of {', '.join(get_args(Kind))}")
    expect(score.key, found, is_number(found) and math.isfinite(found), "a finite number")
    if score.unit == "percent":
        expect(score.key, found, 0 <= found <= 100, "0 to 100 percent")
    return Label(kind, Architecture.from_json(row["architecture"]), float(found))


def _is_of(header: dict[str, Any], space: SearchSpace) -> bool:
    """Whether a labels file belongs to a space: its JSON may be of a version that said less of it."""
    try:
        return spaces.from_json(header["space"]) == space
    except (KeyError, AttributeError, InvalidConfiguration):
        return False


def _score(header: dict[str, Any]) -> Score:
    """Of a file's header, which is silent where it is of classification."""
    return from_json(Score, header["score"], "a score") if "score" in header else CLASSIFICATION.score


def _rows(labels: Iterable[Label], key: str) -> list[dict[str, Any]]:
    return [{"kind": row.kind, "architecture": row.architecture.to_json(), key: row.score} for row in labels]
