"""The folder of a training run: what it is, where it goes on, what was measured.

space.json, recipe.json   what is trained, and how; run.json: seed, precision, data
splits.json               the images held out for labels and calibration
checkpoints/              the last few states: weights, momentum, phase, step, learning-rate scale
state.json                for people: which phase, step and learning rate come next
log.jsonl                 losses, learning rates, speed; scores of largest and smallest (label images)
teacher.safetensors       the supernet as the first phase left it, where a later phase needs it
supernet.safetensors      the result (network.safetensors where one architecture is trained)
"""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onceforall import serial
from onceforall.checkpoint import read_tensors, write_tensors
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration
from onceforall.files import (
    append_jsonl,
    as_json,
    differing,
    finite,
    owned,
    parse_json,
    read_json,
    read_json_object,
    read_jsonl,
    write_json,
    write_jsonl,
)

Record = dict[str, Any]
Tensors = dict[str, Tensor]
RESULTS = ("supernet.safetensors", "network.safetensors")


@dataclass
class State:
    """Where a run is: `step` steps of phase number `phase` are done.

    rate_scale: what the guard against divergence made of the phase's learning rate; rollbacks: how
    often it had to; best: the lowest loss of the phase (the task's, without smoothing); seconds: time spent training.
    """

    phase: int = 0
    step: int = 0
    rate_scale: float = 1.0
    rollbacks: int = 0
    best: float | None = None
    seconds: float = 0.0


def about_run(folder: Path) -> dict[str, Any]:
    """What run.json says of the run in a folder; nothing where there is none that can be read."""
    try:
        return read_json_object(folder / "run.json")
    except InvalidConfiguration:
        return {}


def began_with(folder: Path) -> int:
    """The chunk (`Run.chunk`) of the run in a folder, 0 where there is none."""
    chunk = about_run(folder).get("batch_norm_size", 0)
    return chunk if isinstance(chunk, int) and chunk > 0 and any((folder / "checkpoints").glob("*")) else 0


class RunFolder:
    """Reads and writes the folder. `identity` is the content of the files that say which run this is.

    renewed(name, content): the content of such a file, whichever version wrote it, in comparable form.
    """

    def __init__(
        self,
        path: Path,
        identity: dict[str, Any],
        keep: int,
        renewed: Callable[[str, Any], Any] = lambda name, content: content,
    ) -> None:
        self.path, self.identity, self.keep, self.renewed = path, identity, keep, renewed
        self.teacher = path / "teacher.safetensors"
        self._ownership = contextlib.ExitStack()

    def own(self) -> None:
        """Keep other runs out until `release`, or the end of this process. Raises UnwritableOutput."""
        self._ownership.enter_context(owned(self.path, "run"))

    def release(self) -> None:
        """Let others in."""
        self._ownership.close()

    def begin(self, about: Record, splits: Record) -> None:
        """Start afresh: own the folder, write what the run is, and an empty log.

        Raises InvalidConfiguration where there is a run in it already.
        """
        self.own()
        for found in (*self.checkpoints[:1], *(self.path / name for name in RESULTS)):
            if found.exists():
                raise InvalidConfiguration(
                    f"{self.path} holds a run already ({found.name}), which would be lost: choose a new folder"
                )
        for name, value in self.identity.items():
            write_json(self.path / name, value)
        write_json(self.path / "splits.json", splits)
        write_jsonl(self.path / "log.jsonl", [])
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        self.log({"event": "start", **versions, **about})

    def check_identity(self) -> None:
        """Raises InvalidConfiguration where the folder belongs to another run."""
        for name, value in self.identity.items():
            theirs, ours = (self.renewed(name, content) for content in (read_json(self.path / name), value))
            if different := differing(as_json(theirs), as_json(ours)):  # as JSON: tuples were written as lists
                raise InvalidConfiguration(
                    f"{self.path / name} is of another run ({different}): choose a new folder, or repeat the settings "
                    "in it"
                )

    def log(self, record: Record) -> None:
        """Add a record to log.jsonl. It is for people: a number that is none stands there as null."""
        append_jsonl(self.path / "log.jsonl", {key: finite(value) for key, value in record.items()})

    def forget_after(self, state: State) -> None:
        """Drop the records of steps that will be repeated."""
        log, place = self.path / "log.jsonl", (state.phase, state.step)
        problems: list[str] = []
        with contextlib.suppress(InvalidConfiguration):  # a log stops no run
            lines = read_jsonl(log, damaged=problems.append)
            write_jsonl(log, [line for line in lines if _place(line) <= place])
        if problems:
            self.log({"event": "damage", "lines": len(problems), "first": problems[0]})

    # Checkpoints

    @property
    def checkpoints(self) -> list[Path]:
        """Oldest first. A name says phase and step."""
        return sorted((self.path / "checkpoints").glob("[0-9]*-[0-9]*.safetensors"))

    def save(self, tensors: dict[str, Tensor], state: State, following: Record) -> None:
        """Write a checkpoint, then state.json, and only then drop older ones beyond `keep`, and later ones.

        A later one could not be read, or the run would have gone on from there.
        Raises UnwritableOutput; what was there is still there then.
        """
        path = self.path / "checkpoints" / f"{state.phase:02d}-{state.step:09d}.safetensors"
        write_tensors(path, tensors, {"state": json.dumps(asdict(state))})
        write_json(self.path / "state.json", {**following, **asdict(state), "checkpoint": path.name})
        found = self.checkpoints
        end = found.index(path) + 1
        for old in (*found[: max(end - self.keep, 0)], *found[end:]):
            old.unlink(missing_ok=True)

    def load(
        self, check: Callable[[Tensors, State], None] = lambda tensors, state: None
    ) -> tuple[Tensors, State] | None:
        """The newest checkpoint that can be read and that `check` takes, or None where there is none at all.

        Raises IncompatibleCheckpoint, as `check` does, where there are some and none is good.
        """
        problems = []
        for path in reversed(self.checkpoints):
            try:
                tensors, metadata = read_tensors(path)
                said = parse_json(metadata.get("state", ""), "its state", IncompatibleCheckpoint)
                state = serial.from_json(State, said, "a state", IncompatibleCheckpoint)
                check(tensors, state)
                return tensors, state
            except IncompatibleCheckpoint as error:
                problems.append(f"{path.name}: {error}")
        if problems:
            raise IncompatibleCheckpoint(
                f"no checkpoint in {self.path / 'checkpoints'} can be read ({'; '.join(problems)}): "
                "copy the folder again, or start in a new one"
            )
        return None


def _place(line: Record) -> tuple[int, int]:
    """Phase and step of a record, as far as it says them."""
    phase, step = line.get("phase", -1), line.get("step", 0)
    return (phase, step) if isinstance(phase, int) and isinstance(step, int) else (-1, 0)
