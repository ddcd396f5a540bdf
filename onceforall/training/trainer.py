"""One loop for all recipes: elastic sampling, distillation, exact resume, one process or many.

Everything random in a step (order of images, augmentation, resolution, architectures, dropout)
is drawn from generators seeded by (seed, phase, step), so that a run stopped at any step and
resumed from its last checkpoint ends with the weights of an undisturbed one, and every process of
a distributed run makes the same draws.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, nn

from onceforall.checkpoint import load_supernet, restore, save_network, save_supernet
from onceforall.data.batches import BatchPlan
from onceforall.data.dataset import Data
from onceforall.errors import InvalidConfiguration, TrainingDiverged
from onceforall.evaluate import check_classes, measure_top1, specialised
from onceforall.nn.fast_cpu import keep_freed_memory
from onceforall.nn.subnet import channels_last
from onceforall.nn.supernet import Network, Supernet
from onceforall.training import guard
from onceforall.training.distributed import Processes
from onceforall.training.guard import OnDivergence
from onceforall.training.optimizer import momentum_of, sgd
from onceforall.training.recipe import Phase, Recipe
from onceforall.training.run_folder import Record, RunFolder, State
from onceforall.training.sampler import SAMPLERS, Members, Only
from onceforall.training.step import backward
from onceforall.training.window import Window

N = TypeVar("N", bound=Supernet | Network)
Precision = Literal["fp32", "bf16"]

LOG_EVERY = 50
MOMENTUM = "momentum."


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
        _Run(net, data, recipe, Path(run), processes, seed, precision, keep, origin).go(
            checkpoint_every, evaluate_every, on_divergence, report, math.inf if stop_after is None else stop_after
        )
    return net


class _Run:
    def __init__(
        self,
        net: Supernet | Network,
        data: Data,
        recipe: Recipe,
        folder: Path,
        processes: Processes,
        seed: int,
        precision: Precision,
        keep: int,
        origin: str | None,
    ) -> None:
        images = data.size("train")
        if recipe.batch_size > images:
            raise InvalidConfiguration(f"batch_size {recipe.batch_size}: the training split has {images} images")
        check_classes(net, data)
        processes.check_batch(recipe.batch_size, recipe.batch_norm_size)
        if isinstance(net, Network) and any(p.teacher != "none" or p.subnets > 1 for p in recipe.phases):
            raise InvalidConfiguration(
                f"recipe {recipe.name}: it trains sub-networks together, and this is a single network; "
                "choose standalone or finetune"
            )
        keep_freed_memory()
        self.data, self.recipe, self.seed, self.processes = data, recipe, seed, processes
        self.device, self.precision = processes.device, precision
        self.net = channels_last(net.to(self.device))
        self.parameters = list(net.parameters())
        self.steps_per_epoch = images // recipe.batch_size
        self.chunk = recipe.batch_norm_size or recipe.batch_size // processes.world
        self.state = State()
        self.teachers: dict[int, nn.Module] = {}
        described: dict[str, Any] = {
            "seed": seed,
            "precision": precision,
            "batch_norm_size": self.chunk,
            "data": data.describe(),
        }
        if origin is not None:
            described["origin"] = origin
        identity = {"space.json": net.space.to_json(), "recipe.json": recipe.to_json(), "run.json": described}
        if isinstance(net, Network):
            identity["architecture.json"] = net.architecture.to_json()
        self.folder = RunFolder(folder, identity, keep)

    def go(
        self,
        checkpoint_every: int,
        evaluate_every: int,
        on_divergence: OnDivergence,
        report: Callable[[Record], None],
        budget: float,
    ) -> None:
        self.report, self.budget = report if self.processes.first else lambda record: None, budget
        self.checkpoint_every, self.evaluate_every = checkpoint_every, evaluate_every
        momentum = self._begin_or_resume()
        phases = self.recipe.phases
        while self.state.phase < len(phases):
            if self.budget <= 0:
                return  # what comes next is in the folder
            phase = phases[self.state.phase]
            if self.state.step == 0 and phase.sort_channels and isinstance(self.net, Supernet):
                self.net.sort_channels(self.recipe.opened_before(self.state.phase, self.net.space))
            optimizer = sgd(self.net, self.recipe, momentum)
            try:
                self._run_phase(phase, optimizer)
            except TrainingDiverged as error:
                if on_divergence == "stop" or self.state.rollbacks >= guard.ROLLBACKS:
                    raise TrainingDiverged(
                        f"{error}: train in a new folder with a lower one; "
                        f"{self.folder.path} keeps its last good checkpoint"
                    ) from error
                momentum = self._roll_back(error)
                continue
            momentum = {}
        if self.processes.first:
            self._save_result()
        self.processes.wait()

    def _run_phase(self, phase: Phase, optimizer: torch.optim.SGD) -> None:
        """The rest of a phase, or as many steps as the budget allows."""
        state, steps = self.state, phase.epochs * self.steps_per_epoch
        last = int(min(steps, state.step + self.budget))
        plan = BatchPlan(
            self.data.size("train"),
            self.recipe.batch_size,
            self.net.resolutions,
            self.seed,
            state.phase,
            self.processes.rank,
            self.processes.world,
        )
        window = Window()
        for images, labels in self.data.training(plan.batches(state.step, last), self.device):
            window.add(self._train_step(phase, optimizer, images, labels), self.recipe.batch_size)
            state.step += 1
            self.budget -= 1
            self.report({**self._place(), "steps": steps})
            log = state.step % LOG_EVERY == 0 or state.step == steps
            checkpoint = state.step % self.checkpoint_every == 0 or state.step == last
            if log or checkpoint:
                means = self._checked(window)
            if log:
                rate = optimizer.param_groups[0]["lr"]
                self._log({**means, "learning_rate": rate, "images_per_s": window.speed})
                window = Window()
            began = time.perf_counter()
            if state.step % (self.evaluate_every * self.steps_per_epoch) == 0 or state.step == steps:
                self._evaluate(phase)
            if checkpoint and state.step < steps:
                self._checkpoint(optimizer)
            window.since += time.perf_counter() - began  # neither is training
        if state.step == steps:
            self._check_weights()  # while this is the phase to go back in
            taught = any(later.teacher == "frozen" for later in self.recipe.phases)
            if state.phase == 0 and taught and self.processes.first and isinstance(self.net, Supernet):
                save_supernet(self.folder.path / "teacher.safetensors", self.net)
            self.state = State(phase=state.phase + 1, rollbacks=state.rollbacks, seconds=state.seconds)
            self._checkpoint(None)
            self.processes.wait()  # for the teacher

    # One step

    def _train_step(self, phase: Phase, optimizer: torch.optim.SGD, images: Tensor, labels: Tensor) -> Tensor:
        """Loss and cross entropy [2] of this process's part of the batch, as its share of the mean."""
        resolution = images.shape[-1]
        rng = np.random.default_rng([self.seed, self.state.phase, self.state.step, 2])
        archs = SAMPLERS[phase.sampler](self._members(phase, resolution), phase.subnets, rng)
        dropout_seed = int(rng.integers(2**62))
        teacher = self._teacher(resolution) if phase.teacher == "frozen" else None
        for group in optimizer.param_groups:
            group["lr"] = self._learning_rate(phase)
        self.net.train()
        optimizer.zero_grad(set_to_none=True)
        means = torch.zeros(2, device=self.device)
        before = self.processes.rank * len(images) // self.chunk  # chunks of the processes before this one
        for index, (chunk, classes) in enumerate(
            zip(images.split(self.chunk), labels.split(self.chunk), strict=True), before
        ):
            torch.manual_seed(dropout_seed + index)
            share = len(chunk) / self.recipe.batch_size
            means += share * backward(
                self.net,
                archs,
                phase,
                chunk,
                classes,
                teacher=teacher,
                label_smoothing=self.recipe.label_smoothing,
                share=share,
                ramp=phase.ramp_at(self.state.step, self.steps_per_epoch),
                bf16=self.precision == "bf16",
            )
        self.processes.sum_gradients(self.parameters)
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_norm)
        optimizer.step()
        return means

    def _learning_rate(self, phase: Phase) -> float:
        return self.state.rate_scale * phase.learning_rate_at(self.state.step, self.steps_per_epoch)

    def _members(self, phase: Phase, resolution: int) -> Members:
        if isinstance(self.net, Network):
            return Only(self.net.architecture)
        return phase.opened(self.net.space).restrict(resolutions=[resolution])

    def _teacher(self, resolution: int) -> nn.Module:
        """The largest network of the first phase, calibrated at this resolution, batch norm folded."""
        if resolution not in self.teachers:
            supernet = load_supernet(self.folder.path / "teacher.safetensors").to(self.device)
            largest = supernet.space.restrict(resolutions=[resolution]).largest()
            self.teachers[resolution] = specialised(supernet, largest, self.data)
        return self.teachers[resolution]

    # Logs and measurements

    def _place(self) -> Record:
        return {
            "phase": self.state.phase,
            "name": self.recipe.phases[self.state.phase].name,
            "step": self.state.step,
        }

    def _log(self, record: Record) -> None:
        if self.processes.first:
            record = {**self._place(), **record, "seconds": self._seconds()}
            self.folder.log(record)
            self.report(record)

    def _checked(self, window: Window) -> Record:
        """Mean losses of the window over all processes. Raises TrainingDiverged where they are hopeless."""
        loss, cross_entropy = self.processes.sum(window.means()).tolist()
        problem = guard.trouble(cross_entropy, self.state, self.data.num_classes)
        if problem:
            raise self._diverged(problem)
        return {"loss": loss, "cross_entropy": cross_entropy}

    def _evaluate(self, phase: Phase) -> None:
        """Log top-1 of the largest and the smallest open sub-network on the label images."""
        if not self.processes.first:
            return
        if isinstance(self.net, Network):
            self._log({"largest_top1": measure_top1(self.net, self.net.architecture, self.data, "label")})
            return
        ends = {"largest_top1": self.net.space.largest(), "smallest_open_top1": phase.opened(self.net.space).smallest()}
        self._log({name: measure_top1(self.net, arch, self.data, "label") for name, arch in ends.items()})

    def _seconds(self) -> float:
        return self.state.seconds + time.perf_counter() - self.began

    # The run folder

    def _begin_or_resume(self) -> dict[str, Tensor]:
        """Weights and place of the newest checkpoint, and its momentum; a new folder where there is none."""
        self.began = time.perf_counter()
        about = {"device": str(self.device), "processes": self.processes.world, "threads": torch.get_num_threads()}
        found = self._load()
        if found is None:
            if self.processes.first:
                self.folder.begin(about, self.data.held_out())
            self._checkpoint(None)
            self.processes.wait()
            return {}
        self.folder.check_identity()
        momentum = self._restore(*found)
        self.processes.check_equal(self.parameters)
        if self.processes.first:
            self.folder.forget_after(self.state)
            place = {"phase": self.state.phase, "step": self.state.step}
            self.folder.log({"event": "resume", **place, **about})
        return momentum

    def _load(self) -> tuple[dict[str, Tensor], State] | None:
        """The newest checkpoint. Raises InvalidConfiguration where it is not the same for all processes."""
        self.processes.wait()  # the first may be about to write it
        found = self.folder.load()
        place = (found[1].phase, found[1].step) if found else (-1, -1)
        if not self.processes.agree(torch.tensor(place, device=self.device)):
            raise InvalidConfiguration(
                f"{self.folder.path}: the processes find different checkpoints: give a folder that all of them see"
            )
        return found

    def _restore(self, tensors: dict[str, Tensor], state: State) -> dict[str, Tensor]:
        momentum = {name.removeprefix(MOMENTUM): tensors.pop(name) for name in list(tensors) if _is_momentum(name)}
        restore(self.net, tensors, str(self.folder.path / "checkpoints"))
        self.state, self.began = state, time.perf_counter()
        return momentum

    def _roll_back(self, error: TrainingDiverged) -> dict[str, Tensor]:
        """Go back to the last checkpoint, with half the learning rate from there to the end of the phase."""
        diverged, seconds = self.state, self._seconds()
        found = self._load()
        assert found is not None  # each phase begins with a checkpoint
        momentum = self._restore(*found)
        self.state = replace(
            self.state,
            rate_scale=diverged.rate_scale * guard.RATE_FACTOR,
            rollbacks=diverged.rollbacks + 1,
            seconds=seconds,
        )
        if self.processes.first:
            self.folder.forget_after(self.state)
        self._write_checkpoint(momentum)  # so that a resumed run has the lower rate, too
        self._log({"event": "rollback", "reason": str(error), "rate_scale": self.state.rate_scale})
        return momentum

    def _check_weights(self) -> None:
        """A checkpoint must never replace good weights by what has diverged."""
        self.processes.check_equal(self.parameters)  # first: what follows is then the same for all
        for name, parameter in self.net.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise self._diverged(f"{name} is not finite")

    def _diverged(self, what: str) -> TrainingDiverged:
        phase = self.recipe.phases[self.state.phase]
        rate = phase.learning_rate * self.state.rate_scale
        return TrainingDiverged(
            f"{what} in phase {phase.name}, step {self.state.step}, at a peak learning rate of {rate:g}"
        )

    def _checkpoint(self, optimizer: torch.optim.SGD | None) -> None:
        self._check_weights()
        self._write_checkpoint(momentum_of(self.net, optimizer) if optimizer else {})

    def _write_checkpoint(self, momentum: dict[str, Tensor]) -> None:
        if self.processes.first:
            tensors = {**self.net.state_dict(), **{MOMENTUM + name: buffer for name, buffer in momentum.items()}}
            self.folder.save(tensors, replace(self.state, seconds=self._seconds()), self._following())

    def _following(self) -> Record:
        """What comes next, for people."""
        phases = self.recipe.phases
        if self.state.phase == len(phases):
            return {"next": "nothing: the run is complete"}
        phase = phases[self.state.phase]
        steps = phase.epochs * self.steps_per_epoch
        return {
            "next": f"phase {self.state.phase + 1} of {len(phases)}, {phase.name}",
            "epoch": f"{self.state.step // self.steps_per_epoch + 1} of {phase.epochs}",
            "steps": steps,
            "learning_rate": self._learning_rate(phase),
        }

    def _save_result(self) -> None:
        if isinstance(self.net, Network):
            save_network(self.folder.path / "network.safetensors", self.net)
        else:
            save_supernet(self.folder.path / "supernet.safetensors", self.net)


def _is_momentum(name: str) -> bool:
    return name.startswith(MOMENTUM)
