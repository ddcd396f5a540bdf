"""One loop for all recipes: elastic sampling, distillation, exact resume.

Everything random in a step (order of images, augmentation, resolution, architectures, dropout)
is drawn from generators seeded by (seed, phase, step), so that a run stopped at any step and
resumed from its last checkpoint ends with the weights of an undisturbed one.

A run is a folder:

    space.json, recipe.json   what is trained, and how; run.json: seed, data splits, versions
    checkpoint.safetensors    weights, momentum, phase and step: where to go on
    teacher.safetensors       the supernet as the first phase left it
    log.jsonl                 losses, learning rates, speed; top-1 of largest and smallest (label images)
    supernet.safetensors      the result
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from onceforall.checkpoint import load_supernet, read_tensors, restore, save_supernet, write_tensors
from onceforall.choices import ELASTIC
from onceforall.data.augment import flip_and_shift
from onceforall.data.dataset import ImageData
from onceforall.errors import InvalidConfiguration, TrainingDiverged
from onceforall.evaluate import measure_top1, specialised
from onceforall.files import append_jsonl, as_json, read_json, read_jsonl, write_json, write_jsonl
from onceforall.nn.fast_cpu import keep_freed_memory
from onceforall.nn.subnet import channels_last
from onceforall.nn.supernet import Supernet
from onceforall.space import SearchSpace
from onceforall.training.losses import hard_cross_entropy, soft_cross_entropy
from onceforall.training.recipe import Phase, Recipe

Record = dict[str, Any]
Precision = Literal["fp32", "bf16"]

LOG_EVERY = 50


def train(
    supernet: Supernet,
    data: ImageData,
    recipe: Recipe,
    run: str | Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    precision: Precision = "fp32",
    checkpoint_every: int = 500,
    evaluate_every: int = 5,
    report: Callable[[Record], None] = lambda record: None,
    stop_after: int | None = None,
) -> Supernet:
    """Train `supernet` in place and write the run folder; a folder with a checkpoint is resumed.

    checkpoint_every: steps; evaluate_every: epochs. `report` receives each log record, and after
    every step one with `"step"`. `stop_after` ends the call after that many steps (a checkpoint is
    written). Raises InvalidConfiguration where the folder belongs to another run, TrainingDiverged
    where the loss is no longer finite, UnwritableOutput where the folder cannot be written.
    """
    return _Run(supernet, data, recipe, Path(run), seed, device, precision).go(
        checkpoint_every, evaluate_every, report, stop_after
    )


class _Run:
    def __init__(
        self,
        supernet: Supernet,
        data: ImageData,
        recipe: Recipe,
        folder: Path,
        seed: int,
        device: str,
        precision: Precision,
    ) -> None:
        if recipe.batch_size > len(data.indices["train"]):
            raise InvalidConfiguration(
                f"batch_size {recipe.batch_size}: the training split has {len(data.indices['train'])} images"
            )
        keep_freed_memory()
        self.data, self.recipe, self.folder, self.seed = data, recipe, folder, seed
        self.device, self.precision = torch.device(device), precision
        self.supernet = channels_last(supernet.to(self.device))
        self.train_images = data.train_images[data.indices["train"]].to(self.device)
        self.train_labels = data.labels("train").to(self.device)
        self.steps_per_epoch = len(self.train_images) // recipe.batch_size
        self.phase = self.step = 0
        self.teachers: dict[int, nn.Module] = {}
        self.began = time.perf_counter()

    def go(
        self,
        checkpoint_every: int,
        evaluate_every: int,
        report: Callable[[Record], None],
        stop_after: int | None,
    ) -> Supernet:
        momentum = self._begin_or_resume()

        def log(record: Record) -> None:
            record = {"phase": self.phase, "name": phase.name, "step": self.step, **record}
            append_jsonl(self.folder / "log.jsonl", record)
            report(record)

        budget = math.inf if stop_after is None else stop_after
        while self.phase < len(self.recipe.phases):
            phase = self.recipe.phases[self.phase]
            if self.step == 0 and phase.sort_channels and budget > 0:
                self.supernet.sort_channels(self._trained())
            optimizer = self._optimizer(momentum)
            momentum = {}
            steps = phase.epochs * self.steps_per_epoch
            losses: list[Tensor] = []
            since = time.perf_counter()
            while self.step < steps:
                if budget <= 0:
                    self._checkpoint(optimizer)
                    return self.supernet
                losses.append(self._train_step(phase, optimizer, steps))
                self.step += 1
                budget -= 1
                report({"phase": self.phase, "name": phase.name, "step": self.step, "steps": steps})
                if self.step % LOG_EVERY == 0 or self.step == steps:
                    loss = float(torch.stack(losses).mean())
                    if not math.isfinite(loss):
                        raise self._diverged(f"loss {loss}")
                    images = len(losses) * self.recipe.batch_size
                    speed = images / (time.perf_counter() - since)
                    rate = optimizer.param_groups[0]["lr"]
                    log({"loss": loss, "learning_rate": rate, "images_per_s": speed, "seconds": self._seconds()})
                    losses, since = [], time.perf_counter()
                if self.step % checkpoint_every == 0:
                    self._checkpoint(optimizer)
                if self.step % (evaluate_every * self.steps_per_epoch) == 0 or self.step == steps:
                    log(self._evaluate())
                    since = time.perf_counter()
            self._check_weights()
            if self.phase == 0:
                save_supernet(self.folder / "teacher.safetensors", self.supernet)
            self.phase, self.step = self.phase + 1, 0
            self._checkpoint(None)
        save_supernet(self.folder / "supernet.safetensors", self.supernet)
        return self.supernet

    def _train_step(self, phase: Phase, optimizer: torch.optim.Optimizer, steps: int) -> Tensor:
        rng = np.random.default_rng([self.seed, self.phase, self.step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        dropout_seed = int(rng.integers(2**62))
        images, labels = self._batch(generator)
        space = self.supernet.space
        resolution = int(rng.choice(space.resolutions))
        images = self.data.prepare(images, resolution)
        options = phase.opened(space).restrict(resolutions=[resolution])
        for group in optimizer.param_groups:
            group["lr"] = self._learning_rate(phase, steps)
        self.supernet.train()
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            soft = self._teach(images, resolution) if phase.distill else None
        torch.manual_seed(dropout_seed)  # after the teacher, whose construction draws as well
        for _ in range(phase.subnets):
            arch = options.sample(rng)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                logits = self.supernet(images, arch)
            loss = hard_cross_entropy(logits, labels, self.recipe.label_smoothing)
            if soft is not None:
                loss = loss + phase.distill * soft_cross_entropy(logits, soft)
            loss.backward()
            total += loss.detach() / phase.subnets
        optimizer.step()
        return total

    def _batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        epoch, position = divmod(self.step, self.steps_per_epoch)
        rng = np.random.default_rng([self.seed, self.phase, 10**9 + epoch])
        order = rng.permutation(len(self.train_images))
        start = position * self.recipe.batch_size
        chosen = torch.from_numpy(order[start : start + self.recipe.batch_size]).to(self.device)
        return flip_and_shift(self.train_images[chosen], generator), self.train_labels[chosen]

    def _learning_rate(self, phase: Phase, steps: int) -> float:
        warmup = phase.warmup_epochs * self.steps_per_epoch
        if self.step < warmup:
            return phase.learning_rate * (self.step + 1) / warmup
        progress = (self.step - warmup) / max(steps - warmup, 1)
        return phase.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))

    def _optimizer(self, momentum: dict[str, Tensor]) -> torch.optim.Optimizer:
        """SGD without weight decay on vectors (batch norm, biases), its momentum restored."""
        named = dict(self.supernet.named_parameters())
        decayed = [p for p in named.values() if p.ndim > 1]
        free = [p for p in named.values() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": self.recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
        optimizer = torch.optim.SGD(groups, lr=1.0, momentum=self.recipe.momentum, nesterov=True)
        for name, buffer in momentum.items():
            # Same memory format as the parameter: the update then runs in the same order of additions.
            optimizer.state[named[name]]["momentum_buffer"] = torch.empty_like(named[name]).copy_(buffer).detach()
        return optimizer

    @torch.no_grad()
    def _teach(self, images: Tensor, resolution: int) -> Tensor:
        """Logits of the largest network of the first phase, calibrated at this resolution, batch norm folded."""
        if resolution not in self.teachers:
            supernet = load_supernet(self.folder / "teacher.safetensors")
            largest = self.supernet.space.restrict(resolutions=[resolution]).largest()
            self.teachers[resolution] = specialised(supernet, largest, self.data).to(self.device)
        logits: Tensor = self.teachers[resolution](images)
        return logits

    def _trained(self) -> SearchSpace:
        """The sub-space that the phases so far trained."""
        phases = self.recipe.phases[: max(self.phase, 1)]
        opened = {name: max(getattr(phase, name) for phase in phases) for name in ELASTIC}
        return self.supernet.space.largest_choices(**opened)

    def _evaluate(self) -> Record:
        space = self.supernet.space
        phase = self.recipe.phases[self.phase]
        smallest = phase.opened(space).smallest()
        copy = self.supernet if self.device.type == "cpu" else Supernet(space)
        if copy is not self.supernet:
            copy.load_state_dict(self.supernet.state_dict())
        return {
            "largest_top1": measure_top1(copy, space.largest(), self.data, "label"),
            "smallest_open_top1": measure_top1(copy, smallest, self.data, "label"),
            "seconds": self._seconds(),
        }

    def _begin_or_resume(self) -> dict[str, Tensor]:
        described = {
            "seed": self.seed,
            "precision": self.precision,
            "data": self.data.describe(),
        }
        identity = {
            "space.json": self.supernet.space.to_json(),
            "recipe.json": self.recipe.to_json(),
            "run.json": described,
        }
        checkpoint = self.folder / "checkpoint.safetensors"
        if not checkpoint.exists():
            for name, value in identity.items():
                write_json(self.folder / name, value)
            write_jsonl(self.folder / "log.jsonl", [])
            versions = {"python": platform.python_version(), "torch": torch.__version__, "device": str(self.device)}
            append_jsonl(self.folder / "log.jsonl", {"event": "start", "threads": torch.get_num_threads(), **versions})
            return {}
        for name, value in identity.items():
            # Compare as JSON: tuples were written as lists.
            if read_json(self.folder / name) != as_json(value):
                raise InvalidConfiguration(
                    f"{self.folder / name} is of another run: choose a new folder, or repeat the settings in it"
                )
        tensors, metadata = read_tensors(checkpoint)
        prefix = "momentum."
        momentum = {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
        restore(self.supernet, tensors, str(checkpoint))
        self.phase, self.step = int(metadata["phase"]), int(metadata["step"])
        self.began -= float(metadata["seconds"])
        log = self.folder / "log.jsonl"
        place = (self.phase, self.step)
        kept = [line for line in read_jsonl(log) if (line.get("phase", -1), line.get("step", 0)) <= place]
        write_jsonl(log, kept)
        append_jsonl(log, {"event": "resume", "phase": self.phase, "step": self.step})
        return momentum

    def _check_weights(self) -> None:
        """A checkpoint must never replace good weights by what has diverged."""
        for name, parameter in self.supernet.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise self._diverged(f"{name} is not finite")

    def _diverged(self, what: str) -> TrainingDiverged:
        phase = self.recipe.phases[self.phase]
        return TrainingDiverged(
            f"{what} in phase {phase.name}, step {self.step}, at a peak learning rate of {phase.learning_rate:g}: "
            f"train in a new folder with a lower one; {self.folder} keeps its last good checkpoint"
        )

    def _checkpoint(self, optimizer: torch.optim.Optimizer | None) -> None:
        self._check_weights()
        tensors = dict(self.supernet.state_dict())
        if optimizer is not None:
            for name, parameter in self.supernet.named_parameters():
                buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
                if buffer is not None:
                    tensors[f"momentum.{name}"] = buffer
        metadata = {"phase": str(self.phase), "step": str(self.step), "seconds": str(self._seconds())}
        write_tensors(self.folder / "checkpoint.safetensors", tensors, metadata)

    def _seconds(self) -> float:
        return time.perf_counter() - self.began
