"""Checkpoints of a run: weights, what the optimiser remembers, and the place; the same in all processes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from onceforall.checkpoint import restore
from onceforall.errors import InvalidConfiguration, TrainingDiverged
from onceforall.training.optimizers import is_state, state_of
from onceforall.training.run import Run
from onceforall.training.run_folder import Record, RunFolder, State

# What an optimiser remembers, by the names of checkpoints.
Memory = dict[str, Tensor]


class Checkpoints:
    """Reads and writes the checkpoints in a run's folder."""

    def __init__(self, run: Run, folder: RunFolder) -> None:
        self._run, self._folder = run, folder

    def load(self) -> tuple[State, Memory] | None:
        """Put the weights of the newest checkpoint into the network, if there is one.

        Raises InvalidConfiguration where it is not the same for all processes, IncompatibleCheckpoint.
        """
        found = self.find()
        return None if found is None else self.take(*found)

    def find(self) -> tuple[Memory, State] | None:
        """The tensors and the place of the newest checkpoint. Raises as `load` does."""
        processes = self._run.processes
        processes.wait()  # the first may be about to write it
        found = self._folder.load()
        place = (found[1].phase, found[1].step) if found else (-1, -1)
        if not processes.agree(torch.tensor(place, device=processes.device)):
            raise InvalidConfiguration(
                f"{self._folder.path}: the processes find different checkpoints: give a folder that all of them see"
            )
        return found

    def take(self, tensors: Memory, state: State) -> tuple[State, Memory]:
        """Put the weights among the tensors into the network; the others are the optimiser's."""
        memory = {name: tensor for name, tensor in tensors.items() if is_state(name)}
        weights = {name: tensor for name, tensor in tensors.items() if not is_state(name)}
        restore(self._run.net, weights, str(self._folder.path / "checkpoints"))
        return state, memory

    def save(self, state: State, seconds: float, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Write one of these weights. Raises TrainingDiverged, UnwritableOutput."""
        self.check_weights(state)
        self.write(state, seconds, state_of(self._run.net, optimizer) if optimizer else {})

    def write(self, state: State, seconds: float, memory: Memory) -> None:
        """Write one without looking at the weights, which are those of another one."""
        if self._run.processes.first:
            tensors = {**self._run.net.state_dict(), **memory}
            self._folder.save(tensors, replace(state, seconds=seconds), _following(self._run, state))

    def check_weights(self, state: State) -> None:
        """Raises TrainingDiverged: a checkpoint must never replace good weights by what has diverged."""
        self._run.processes.check_equal(self._run.parameters)  # first: what follows is then the same for all
        for name, parameter in self._run.net.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise diverged(self._run, state, f"{name} is not finite")


def diverged(run: Run, state: State, what: str) -> TrainingDiverged:
    """The error, which names the place and the learning rate."""
    phase = run.phase(state)
    rate = phase.learning_rate * state.rate_scale
    return TrainingDiverged(f"{what} in phase {phase.name}, step {state.step}, at a peak learning rate of {rate:g}")


def _following(run: Run, state: State) -> Record:
    """What comes next, for people."""
    phases = run.recipe.phases
    if state.phase == len(phases):
        return {"next": "nothing: the run is complete"}
    phase = phases[state.phase]
    return {
        "next": f"phase {state.phase + 1} of {len(phases)}, {phase.name}",
        "epoch": f"{state.step // run.steps_per_epoch + 1} of {phase.epochs}",
        "steps": run.steps(state),
        "learning_rate": run.learning_rate(state),
    }
