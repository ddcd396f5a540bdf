"""One training step: forward and backward passes of all its sub-networks, and the update of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from onceforall.architecture import Architecture
from onceforall.training.run import Run
from onceforall.training.run_folder import State


def train_step(
    run: Run,
    state: State,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Any,
    teacher: nn.Module | None = None,
) -> Tensor:
    """Update the weights once, from this process's part of the batch; `state` says which step it is.

    Returns objective and plain loss [2], as this part's share of their means over the whole batch.
    """
    phase, recipe, processes = run.phase(state), run.recipe, run.processes
    rng = np.random.default_rng([run.seed, state.phase, state.step, 2])
    archs = phase.sampler(run.members(phase, images), phase.subnets, rng)
    dropout_seed = int(rng.integers(2**62))
    for group in optimizer.param_groups:
        group["lr"] = run.learning_rate(state)
    run.net.train()
    optimizer.zero_grad(set_to_none=True)
    means = torch.zeros(2, device=processes.device)
    before = processes.rank * len(images) // run.chunk  # chunks of the processes before this one
    chunks = zip(images.split(run.chunk), run.task.split(targets, run.chunk), strict=True)
    for index, (chunk, wanted) in enumerate(chunks, before):
        torch.manual_seed(dropout_seed + index)
        means += _backward(run, state, archs, chunk, wanted, teacher)
    processes.sum_gradients(run.parameters)
    if recipe.clip_norm:
        nn.utils.clip_grad_norm_(run.parameters, recipe.clip_norm)
    optimizer.step()
    return means


def _backward(
    run: Run, state: State, archs: Sequence[Architecture], images: Tensor, targets: Any, teacher: nn.Module | None
) -> Tensor:
    """Add the gradients of all sub-networks on a chunk of the batch, images [n, 3, height, width].

    The teacher, frozen or the first sub-network, runs once. Returns objective and plain loss [2], mean
    over the sub-networks, as this chunk's share of their means over the whole batch.
    """
    phase, recipe, task = run.phase(state), run.recipe, run.task
    share = len(images) / recipe.batch_size
    ramp = phase.ramp_at(state.step, run.steps_per_epoch)  # the weight of all sub-networks but the first
    precision = torch.autocast(images.device.type, torch.bfloat16, enabled=run.precision == "bf16")
    total = torch.zeros(2, device=images.device)
    taught = None
    if teacher is not None:
        with torch.no_grad(), precision:
            taught = teacher(images)
    for index, arch in enumerate(archs):
        with precision:
            outputs = run.net(images, arch)
        if taught is None:
            loss = task.loss(outputs, targets, recipe.label_smoothing)
        else:
            loss = phase.distill * phase.loss(outputs, taught)
            if phase.hard:
                loss = loss + phase.hard * task.loss(outputs, targets, recipe.label_smoothing)
        if phase.teacher == "in_place" and index == 0:
            taught = tree_map(Tensor.detach, outputs)
        (loss * (share * ramp if index else share)).backward()
        with torch.no_grad():
            total += torch.stack([loss.detach(), task.loss(outputs, targets)]) / len(archs)
    return share * total
