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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, get_args

import torch
from torch import Tensor, nn

from onceforall.checkpoint import check_fits, load_supernet, restore, save_network, save_supernet
from onceforall.checks import expect
from onceforall.data.dataset import Data, as_described
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration, TrainingDiverged
from onceforall.evaluate import measure, ready
from onceforall.nn.fast_cpu import keep_freed_memory
from onceforall.nn.supernet import Network, Supernet
from onceforall.sizes import Size, size_of
from onceforall.training import guard
from onceforall.training.distributed import Processes
from onceforall.training.guard import OnDivergence
from onceforall.training.optimizers import is_state, state_of
from onceforall.training.run import Precision, Run
from onceforall.training.run_folder import Record, RunFolder, State, about_run, began_with
from onceforall.training.schedule import Recipe
from onceforall.training.step import train_step

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
    data_source: str | None = None,
) -> N:
    """Train a supernet, or a single network, in place and write the run folder; one with a checkpoint is resumed.

    checkpoint_every: steps, of which the last `keep` stay; evaluate_every: epochs. `report` receives
    each log record, and after every step one with `"steps"`. `stop_after` ends the call after that
    many steps (a checkpoint is written). `on_divergence`: "rollback" goes on from the last checkpoint
    with half the learning rate for the rest of the phase, three times at most; "stop" raises at once.
    `origin`: where the weights come from that training begins with, such as a checksum; a run folder
    of another origin is refused, for it would be resumed with weights that have nothing to do with `net`.
    `data_source`: how `open_data` finds the data; later commands take them from there.

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
        expect(name, value, value >= least, f"at least {least}")
    for name, text, choices in (
        ("precision", precision, get_args(Precision)),
        ("on_divergence", on_divergence, get_args(OnDivergence)),
    ):
        if text not in choices:
            raise InvalidConfiguration(f"{name} {text!r}: choices are {', '.join(choices)}")
    data = as_described(data, about_run(Path(run)).get("data"))
    with Processes(device) as processes:
        keep_freed_memory()
        run_ = Run(net, data, recipe, processes, seed, precision, began_with(Path(run)))
        net.classes = tuple(getattr(data, "classes", ()))
        folder = RunFolder(Path(run), run_.identity(origin, data_source), keep, run_.renewed)
        left = math.inf if stop_after is None else stop_after
        try:
            _Trainer(run_, folder, checkpoint_every, evaluate_every, on_divergence, report, left).go()
        finally:
            folder.release()
    return net


@dataclass
class _Trainer:
    """The loop over phases and steps: `state` is where it is, `left` how many steps this call may still do.

    memory: what the optimiser remembered at the checkpoint that the phase goes on from, by the names of
    checkpoints; teachers: by the resolution at which they are calibrated; began: when training would have
    begun without interruption; trained: whether this call did a step.
    """

    run: Run
    folder: RunFolder
    checkpoint_every: int
    evaluate_every: int
    on_divergence: OnDivergence
    report: Callable[[Record], None]
    left: float
    state: State = field(default_factory=State)
    memory: dict[str, Tensor] = field(default_factory=dict)
    teachers: dict[Size, nn.Module] = field(default_factory=dict)
    began: float = 0.0
    trained: bool = False

    def go(self) -> None:
        """Begin, or go on from the newest checkpoint."""
        net, processes = self.run.net, self.run.processes
        self._begin_or_resume()
        while self.state.phase < len(self.run.recipe.phases):
            if self.left <= 0:
                return  # what comes next is in the folder
            try:
                self._phase()
            except TrainingDiverged as error:
                if self.on_divergence == "stop" or self.state.rollbacks >= guard.ROLLBACKS:
                    raise TrainingDiverged(
                        f"{error}: train in a new folder with a lower one; "
                        f"{self.folder.path} keeps its last good checkpoint"
                    ) from error
                self._roll_back(error)
        if processes.first:
            if isinstance(net, Network):
                self._finish("network.safetensors", lambda path: save_network(path, net))
            else:
                self._finish("supernet.safetensors", lambda path: save_supernet(path, net))
        processes.wait()

    def _finish(self, name: str, save: Callable[[Path], None]) -> None:
        """Write the result, unless it is there and nothing was trained: what was made of it knows it by its digest."""
        path = self.folder.path / name
        if self.trained or not path.is_file():
            save(path)

    def _begin_or_resume(self) -> None:
        """Find the place to go on, with its weights: the newest checkpoint, or the start of a new folder."""
        run, processes = self.run, self.run.processes
        about = {"device": str(processes.device), "processes": processes.world, "threads": torch.get_num_threads()}
        if self.folder.checkpoints:
            self.folder.check_identity()
        found, self.began = self._newest(), time.perf_counter()
        if found is None:
            if processes.first:
                if hasattr(run.data, "check"):
                    run.data.check()  # what is damaged can be mended or taken out as long as nothing has begun
                self.folder.begin(about, run.data.held_out())
            self._check_weights()
            self._save({})
            processes.wait()
            return
        if processes.first:
            self.folder.own()
        self._take(*found)
        processes.check_equal(run.parameters)
        self.began -= self.state.seconds
        if processes.first:
            self.folder.forget_after(self.state)
            self.folder.log({"event": "resume", "phase": self.state.phase, "step": self.state.step, **about})

    def _phase(self) -> None:
        """The rest of a phase, or as many steps as are left. Raises TrainingDiverged."""
        run, state = self.run, self.state
        phase, steps = run.phase(state), run.steps(state)
        if state.step == 0 and phase.sort_channels and isinstance(run.net, Supernet):
            run.net.sort_channels(run.recipe.opened_before(state.phase, run.net.space))
        optimizer, self.memory = run.recipe.optimizer.of(run.net, self.memory), {}
        last = int(min(steps, state.step + self.left))
        losses, since = list[Tensor](), time.perf_counter()  # since the last log record
        for images, targets in run.data.training(run.plan(state).batches(state.step, last), run.processes.device):
            teacher = self._teacher(size_of(images.shape[-2:])) if phase.teacher == "frozen" else None
            losses.append(train_step(run, state, optimizer, images, targets, teacher))
            state.step += 1
            self.left -= 1
            self.trained = True
            if run.processes.first:
                self.report({**run.place(state), "steps": steps})
            log = state.step % LOG_EVERY == 0 or state.step == steps
            checkpoint = state.step % self.checkpoint_every == 0 or state.step == last
            if log or checkpoint:
                means = self._checked(torch.stack(losses).mean(0))
            if log:
                rate = optimizer.param_groups[0]["lr"]
                speed = len(losses) * run.recipe.batch_size / (time.perf_counter() - since)
                self._log({**means, "learning_rate": rate, "images_per_s": speed})
                losses, since = [], time.perf_counter()
            began = time.perf_counter()
            if state.step % (self.evaluate_every * run.steps_per_epoch) == 0 or state.step == steps:
                self._evaluate()
            if checkpoint and state.step < steps:
                self._check_weights()
                self._save(state_of(run.net, optimizer))
            since += time.perf_counter() - began  # neither is training
        if state.step == steps:
            self._end_phase()

    def _end_phase(self) -> None:
        """Keep what later phases need, and the checkpoint that the next one begins with."""
        net, processes = self.run.net, self.run.processes
        self._check_weights()  # while this is the phase to go back in
        taught = any(later.teacher == "frozen" for later in self.run.recipe.phases)
        if self.state.phase == 0 and taught and processes.first and isinstance(net, Supernet):
            save_supernet(self.folder.teacher, net)
        self.state, self.memory = State(phase=self.state.phase + 1, rollbacks=self.state.rollbacks), {}
        self._save({})
        processes.wait()  # for the teacher

    def _teacher(self, resolution: Size) -> nn.Module:
        """The largest network as the first phase left it, calibrated at a resolution, batch norm folded."""
        if resolution not in self.teachers:
            supernet = load_supernet(self.folder.teacher).to(self.run.processes.device)
            largest = supernet.space.restrict(resolutions=[resolution]).largest()
            self.teachers[resolution] = ready(supernet, largest, self.run.data)
        return self.teachers[resolution]

    def _evaluate(self) -> None:
        """Log the scores of the largest and the smallest open sub-network on the label images."""
        net, key = self.run.net, self.run.task.score.key
        if not self.run.processes.first:
            return
        if isinstance(net, Network):
            ends = {f"largest_{key}": net.architecture}
        else:
            smallest = self.run.phase(self.state).opened(net.space).smallest()
            ends = {f"largest_{key}": net.space.largest(), f"smallest_open_{key}": smallest}
        self._log({name: measure(net, arch, self.run.data, "label") for name, arch in ends.items()})

    def _log(self, record: Record) -> None:
        """Write and report a record with its place and time: in the first process."""
        if self.run.processes.first:
            record = {**self.run.place(self.state), **record, "seconds": time.perf_counter() - self.began}
            self.folder.log(record)
            self.report(record)

    # The guard against divergence

    def _checked(self, losses: Tensor) -> Record:
        """Objective and plain loss [2], mean over all processes. Raises TrainingDiverged where they are hopeless."""
        task = self.run.task
        objective, plain = self.run.processes.sum(losses).tolist()
        problem = guard.trouble(task.loss_name.replace("_", " "), plain, self.state, task.chance_loss(self.run.data))
        if problem:
            raise self._diverged(problem)
        return {"loss": objective, task.loss_name: plain}

    def _check_weights(self) -> None:
        """Raises TrainingDiverged: a checkpoint must never replace good weights by what has diverged."""
        self.run.processes.check_equal(self.run.parameters)  # first: what follows is then the same for all
        for name, tensor in self.run.net.state_dict().items():  # running statistics, too
            if not bool(torch.isfinite(tensor).all()):
                raise self._diverged(f"{name} is not finite")

    def _diverged(self, what: str) -> TrainingDiverged:
        """The error, which names the place and the learning rate."""
        phase, step = self.run.phase(self.state), self.state.step
        rate = phase.learning_rate * self.state.rate_scale
        return TrainingDiverged(f"{what} in phase {phase.name}, step {step}, at a peak learning rate of {rate:g}")

    def _roll_back(self, error: TrainingDiverged) -> None:
        """Go back to the last checkpoint, with half the learning rate from there to the end of the phase."""
        rate_scale, rollbacks = self.state.rate_scale * guard.RATE_FACTOR, self.state.rollbacks + 1
        found = self._newest()
        assert found is not None  # each phase begins with a checkpoint
        self._take(*found)
        self.state = replace(self.state, rate_scale=rate_scale, rollbacks=rollbacks)
        if self.run.processes.first:
            self.folder.forget_after(self.state)
        self._save(self.memory)  # so that a resumed run has the lower rate, too
        self._log({"event": "rollback", "reason": str(error), "rate_scale": rate_scale})

    # Checkpoints: weights, what the optimiser remembers, and the place

    def _newest(self) -> tuple[dict[str, Tensor], State] | None:
        """The tensors and the place of the newest checkpoint, if there is one.

        Raises InvalidConfiguration where it is not the same for all processes, IncompatibleCheckpoint.
        """
        processes = self.run.processes
        processes.wait()  # the first may be about to write it
        found = self.folder.load(self._check)
        place = (found[1].phase, found[1].step) if found else (-1, -1)
        if not processes.agree(torch.tensor(place, device=processes.device)):
            raise InvalidConfiguration(
                f"{self.folder.path}: the processes find different checkpoints: give a folder that all of them see"
            )
        return found

    def _check(self, tensors: dict[str, Tensor], state: State) -> None:
        """Raises IncompatibleCheckpoint where a checkpoint is no place of this run."""
        run, phases = self.run, len(self.run.recipe.phases)
        last = run.steps(state) if 0 <= state.phase < phases else 0
        if not (0 <= state.phase <= phases and 0 <= state.step <= last and 0 < state.rate_scale <= 1):
            raise IncompatibleCheckpoint(f"{state}: this run has {phases} phases, and {last} steps in this one")
        check_fits(run.net, {name: tensor for name, tensor in tensors.items() if not is_state(name)}, "it")
        run.recipe.optimizer.check(run.net, {name: tensor for name, tensor in tensors.items() if is_state(name)})

    def _take(self, tensors: dict[str, Tensor], state: State) -> None:
        """Go to the place of a checkpoint: put its weights into the network, and keep what is the optimiser's."""
        self.state, self.memory = state, {name: tensor for name, tensor in tensors.items() if is_state(name)}
        weights = {name: tensor for name, tensor in tensors.items() if not is_state(name)}
        restore(self.run.net, weights, str(self.folder.path / "checkpoints"))

    def _save(self, memory: dict[str, Tensor]) -> None:
        """Write a checkpoint of this place, `memory` being the optimiser's: in the first process.

        Raises UnwritableOutput.
        """
        if self.run.processes.first:
            state = replace(self.state, seconds=time.perf_counter() - self.began)
            self.folder.save({**self.run.net.state_dict(), **memory}, state, self.run.following(state))
