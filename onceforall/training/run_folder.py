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

import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onceforall.checkpoint import read_tensors, write_tensors
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration
from onceforall.files import append_jsonl, as_json, read_json, read_jsonl, write_json, write_jsonl

Record = dict[str, Any]


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

    def begin(self, about: Record, splits: Record) -> None:
        """Start afresh: write what the run is, and an empty log."""
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
            if as_json(theirs) != as_json(ours):  # as JSON: tuples were written as lists
                raise InvalidConfiguration(
                    f"{self.path / name} is of another run: choose a new folder, or repeat the settings in it"
                )

    def log(self, record: Record) -> None:
        """Add a record to log.jsonl."""
        append_jsonl(self.path / "log.jsonl", record)

    def forget_after(self, state: State) -> None:
        """Drop the records of steps that will be repeated."""
        log, place = self.path / "log.jsonl", (state.phase, state.step)
        kept = [line for line in read_jsonl(log) if (line.get("phase", -1), line.get("step", 0)) <= place]
        write_jsonl(log, kept)

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

    def load(self) -> tuple[dict[str, Tensor], State] | None:
        """The newest checkpoint that can be read, or None where there is none at all.

        Raises IncompatibleCheckpoint where there are some and none can be read.
        """
        problems = []
        for path in reversed(self.checkpoints):
            try:
                tensors, metadata = read_tensors(path)
                return tensors, State(**json.loads(metadata["state"]))
            except (IncompatibleCheckpoint, KeyError, TypeError, ValueError) as error:
                problems.append(f"{path.name}: {error}")
        if problems:
            raise IncompatibleCheckpoint(
                f"no checkpoint in {self.path / 'checkpoints'} can be read ({'; '.join(problems)}): "
                "copy the folder again, or start in a new one"
            )
        return None
