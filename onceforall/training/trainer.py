"""One loop for all recipes: elastic sampling, distillation, exact resume, one process or many.

Everything random in a step (order of images, augmentation, resolution, architectures, dropout)
is drawn from generators seeded by (seed, phase, step), so that a run stopped at any step and
resumed from its last checkpoint ends with the weights of an undisturbed one, and every process of
a distributed run makes the same draws.

Read `run.py` (what a run is) and `step.py` (what a step does) first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, get_args

import torch
from torch import nn

from onceforall.checkpoint import load_supernet, save_network, save_supernet
from onceforall.data.dataset import Data
from onceforall.errors import InvalidConfiguration, TrainingDiverged
from onceforall.evaluate import measure, ready
from onceforall.nn.fast_cpu import keep_freed_memory
from onceforall.nn.supernet import Network, Supernet
from onceforall.sizes import Size
from onceforall.training import guard
from onceforall.training.checkpoints import Checkpoints, Memory, diverged
from onceforall.training.distributed import Processes
from onceforall.training.guard import OnDivergence
from onceforall.training.journal import Journal
from onceforall.training.run import Precision, Run, size_of
from onceforall.training.run_folder import Record, RunFolder, State
from onceforall.training.schedule import Phase, Recipe
from onceforall.training.step import train_step
from onceforall.training.window import Window

N = TypeVar("N", bound=Supernet | Network)
LOG_EVERY = 50  # steps


def train(
    net: N,
    data: Data,
    recipe: Recipe,
    run: str | Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    precision: Precision = "fp32",
    checkpoint_every: int = 500,
    keep: int = 2,
    evaluate_every: int = 5,
    on_divergence: OnDivergence = "rollback",
    report: Callable[[Record], None] = lambda record: None,
    stop_after: int | None = None,
    origin: str | None = None,
) -> N:
    """Train a supernet, or a single network, in place and write the run folder; one with a checkpoint is resumed.

    checkpoint_every: steps, of which the last `keep` stay; evaluate_every: epochs. `report` receives
    each log record, and after every step one with `"steps"`. `stop_after` ends the call after that
    many steps (a checkpoint is written). `on_divergence`: "rollback" goes on from the last checkpoint
    with half the learning rate for the rest of the phase, three times at most; "stop" raises at once.
    `origin`: where the weights come from that training begins with, such as a checksum; a run folder
    of another origin is refused, for it would be resumed with weights that have nothing to do with `net`.

    Started by `torchrun`, all processes take part; the folder must be one that all of them see.

    Raises InvalidConfiguration where the folder belongs to another run or the recipe does not suit
    the network, TrainingDiverged, UnwritableOutput where the folder cannot be written.
    """
    for name, value, least in (
        ("checkpoint_every", checkpoint_every, 1),
        ("keep", keep, 1),
        ("evaluate_every", evaluate_every, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise InvalidConfiguration(f"{name} {value}: expected at least {least}")
    for name, text, choices in (
        ("precision", precision, get_args(Precision)),
        ("on_divergence", on_divergence, get_args(OnDivergence)),
    ):
        if text not in choices:
            raise InvalidConfiguration(f"{name} {text!r}: choices are {', '.join(choices)}")
    with Processes(device) as processes:
        keep_freed_memory()
        run_ = Run(net, data, recipe, processes, seed, precision)
        folder = RunFolder(Path(run), run_.identity(origin), keep, run_.renew())
        _Trainer(run_, folder, checkpoint_every, evaluate_every, on_divergence).go(
            report, math.inf if stop_after is None else stop_after
        )
    return net


class _Trainer:
    """The loop over phases and steps. What changes on the way is the `State` that its methods hand on."""

    def __init__(
        self, run: Run, folder: RunFolder, checkpoint_every: int, evaluate_every: int, on_divergence: OnDivergence
    ) -> None:
        self.run, self.folder, self.checkpoints = run, folder, Checkpoints(run, folder)
        self.checkpoint_every, self.evaluate_every, self.on_divergence = checkpoint_every, evaluate_every, on_divergence
        self.teachers = _Teachers(run, folder.path / "teacher.safetensors")

    def go(self, report: Callable[[Record], None], budget: float) -> None:
        """Begin, or go on from the newest checkpoint, for so many steps."""
        processes, phases = self.run.processes, self.run.recipe.phases
        state, memory = self._begin_or_resume()
        journal, steps = Journal(self.run, self.folder, report, state.seconds), _Budget(budget)
        while state.phase < len(phases):
            if steps.left <= 0:
                return  # what comes next is in the folder
            try:
                state, memory = self._phase(state, memory, journal, steps), {}
            except TrainingDiverged as error:
                if self.on_divergence == "stop" or state.rollbacks >= guard.ROLLBACKS:
                    raise TrainingDiverged(
                        f"{error}: train in a new folder with a lower one; "
                        f"{self.folder.path} keeps its last good checkpoint"
                    ) from error
                state, memory = self._roll_back(state, journal, error)
        if processes.first:
            self._save_result()
        processes.wait()

    def _begin_or_resume(self) -> tuple[State, Memory]:
        """Where to go on, with the weights of that place: at the newest checkpoint, or at the start of a new folder."""
        run, processes = self.run, self.run.processes
        about = {"device": str(processes.device), "processes": processes.world, "threads": torch.get_num_threads()}
        found = self.checkpoints.find()
        if found is None:
            if processes.first:
                self.folder.begin(about, run.data.held_out())
            self.checkpoints.save(State(), 0.0)
            processes.wait()
            return State(), {}
        self.folder.check_identity()
        state, memory = self.checkpoints.take(*found)
        processes.check_equal(run.parameters)
        if processes.first:
            self.folder.forget_after(state)
            self.folder.log({"event": "resume", "phase": state.phase, "step": state.step, **about})
        return state, memory

    def _phase(self, state: State, memory: Memory, journal: Journal, budget: _Budget) -> State:
        """The rest of a phase, or as many steps as the budget allows. Returns where to go on.

        `state` is kept up to date on the way, and says how far it came where this raises TrainingDiverged.
        """
        run, phase, steps = self.run, self.run.phase(state), self.run.steps(state)
        if state.step == 0 and phase.sort_channels and isinstance(run.net, Supernet):
            run.net.sort_channels(run.recipe.opened_before(state.phase, run.net.space))
        optimizer = run.recipe.optimizer.of(run.net, memory)
        last = int(min(steps, state.step + budget.left))
        window = Window()
        for images, targets in run.data.training(run.plan(state).batches(state.step, last), run.processes.device):
            teacher = self.teachers.at(size_of(images)) if phase.teacher == "frozen" else None
            window.add(train_step(run, state, optimizer, images, targets, teacher), run.recipe.batch_size)
            state.step += 1
            budget.left -= 1
            journal.step(state)
            log = state.step % LOG_EVERY == 0 or state.step == steps
            checkpoint = state.step % self.checkpoint_every == 0 or state.step == last
            if log or checkpoint:
                means = self._checked(state, window)
            if log:
                rate = optimizer.param_groups[0]["lr"]
                journal.log(state, {**means, "learning_rate": rate, "images_per_s": window.speed})
                window = Window()
            began = time.perf_counter()
            if state.step % (self.evaluate_every * run.steps_per_epoch) == 0 or state.step == steps:
                self._evaluate(state, phase, journal)
            if checkpoint and state.step < steps:
                self.checkpoints.save(state, journal.seconds, optimizer)
            window.since += time.perf_counter() - began  # neither is training
        return state if state.step < steps else self._end_phase(state, journal)

    def _end_phase(self, state: State, journal: Journal) -> State:
        """Keep what later phases need, and the checkpoint that the next one begins with."""
        run, processes = self.run, self.run.processes
        self.checkpoints.check_weights(state)  # while this is the phase to go back in
        taught = any(later.teacher == "frozen" for later in run.recipe.phases)
        if state.phase == 0 and taught and processes.first and isinstance(run.net, Supernet):
            save_supernet(self.teachers.path, run.net)
        following = State(phase=state.phase + 1, rollbacks=state.rollbacks)
        self.checkpoints.save(following, journal.seconds)
        processes.wait()  # for the teacher
        return following

    def _checked(self, state: State, window: Window) -> Record:
        """Mean losses of the window over all processes. Raises TrainingDiverged where they are hopeless."""
        task = self.run.task
        objective, plain = self.run.processes.sum(window.means()).tolist()
        problem = guard.trouble(task.loss_name.replace("_", " "), plain, state, task.chance_loss(self.run.data))
        if problem:
            raise diverged(self.run, state, problem)
        return {"loss": objective, task.loss_name: plain}

    def _evaluate(self, state: State, phase: Phase, journal: Journal) -> None:
        """Log the scores of the largest and the smallest open sub-network on the label images."""
        net, key = self.run.net, self.run.task.score.key
        if not self.run.processes.first:
            return
        if isinstance(net, Network):
            ends = {f"largest_{key}": net.architecture}
        else:
            smallest = phase.opened(net.space).smallest()
            ends = {f"largest_{key}": net.space.largest(), f"smallest_open_{key}": smallest}
        journal.log(state, {name: measure(net, arch, self.run.data, "label") for name, arch in ends.items()})

    def _roll_back(self, state: State, journal: Journal, error: TrainingDiverged) -> tuple[State, Memory]:
        """Go back to the last checkpoint, with half the learning rate from there to the end of the phase."""
        found = self.checkpoints.load()
        assert found is not None  # each phase begins with a checkpoint
        good, memory = found
        good = replace(good, rate_scale=state.rate_scale * guard.RATE_FACTOR, rollbacks=state.rollbacks + 1)
        if self.run.processes.first:
            self.folder.forget_after(good)
        self.checkpoints.write(good, journal.seconds, memory)  # so that a resumed run has the lower rate, too
        journal.log(good, {"event": "rollback", "reason": str(error), "rate_scale": good.rate_scale})
        return good, memory

    def _save_result(self) -> None:
        net = self.run.net
        if isinstance(net, Network):
            save_network(self.folder.path / "network.safetensors", net)
        else:
            save_supernet(self.folder.path / "supernet.safetensors", net)


class _Budget:
    """Steps that a call may still do."""

    def __init__(self, left: float) -> None:
        self.left = left


class _Teachers:
    """The largest network as the first phase left it, at each resolution that is asked for."""

    def __init__(self, run: Run, path: Path) -> None:
        self._run, self.path = run, path
        self._built: dict[Size, nn.Module] = {}

    def at(self, resolution: Size) -> nn.Module:
        """Calibrated at this resolution, batch norm folded."""
        if resolution not in self._built:
            supernet = load_supernet(self.path).to(self._run.processes.device)
            largest = supernet.space.restrict(resolutions=[resolution]).largest()
            self._built[resolution] = ready(supernet, largest, self._run.data)
        return self._built[resolution]
