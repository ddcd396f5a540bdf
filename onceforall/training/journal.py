"""What a run says of itself: records with their place and time, to log.jsonl and to whoever listens."""

from __future__ import annotations

import time
from collections.abc import Callable

from onceforall.training.run import Run
from onceforall.training.run_folder import Record, RunFolder, State


class Journal:
    """Writes and reports in the first process; in the others it does nothing.

    before: seconds of training before this call.
    """

    def __init__(self, run: Run, folder: RunFolder, report: Callable[[Record], None], before: float = 0.0) -> None:
        self._run, self._folder = run, folder
        self._report, self._before, self._began = report, before, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time spent training so far, in all calls."""
        return self._before + time.perf_counter() - self._began

    def step(self, state: State) -> None:
        """A step was done: reported, not written."""
        if self._run.processes.first:
            self._report({**self._place(state), "steps": self._run.steps(state)})

    def log(self, state: State, record: Record) -> None:
        """Write and report a record."""
        if self._run.processes.first:
            record = {**self._place(state), **record, "seconds": self.seconds}
            self._folder.log(record)
            self._report(record)

    def _place(self, state: State) -> Record:
        return {"phase": state.phase, "name": self._run.phase(state).name, "step": state.step}
