"""Forward and backward passes of one training step, for all its sub-networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from onceforall.architecture import Architecture
from onceforall.nn.supernet import Trainable
from onceforall.training.losses import DISTILLATION, hard_cross_entropy
from onceforall.training.recipe import Phase


def backward(
    net: Trainable,
    archs: Sequence[Architecture],
    phase: Phase,
    images: Tensor,
    labels: Tensor,
    *,
    teacher: nn.Module | None = None,
    label_smoothing: float = 0.0,
    share: float = 1.0,
    ramp: float = 1.0,
    bf16: bool = False,
) -> Tensor:
    """Add the gradients of all sub-networks on images [n, 3, r, r]: of each loss times `share`.

    The teacher, frozen or the first sub-network, runs once. `ramp` weighs all sub-networks but the
    first. Returns the mean over the sub-networks of loss and cross entropy, [2].
    """
    precision = torch.autocast(images.device.type, torch.bfloat16, enabled=bf16)
    total = torch.zeros(2, device=images.device)
    taught = None
    if teacher is not None:
        with torch.no_grad(), precision:
            taught = teacher(images)
    for index, arch in enumerate(archs):
        with precision:
            logits = net(images, arch)
        if taught is None:
            loss = hard_cross_entropy(logits, labels, label_smoothing)
        else:
            loss = phase.distill * DISTILLATION[phase.loss](logits, taught)
            if phase.hard:
                loss = loss + phase.hard * hard_cross_entropy(logits, labels, label_smoothing)
        if phase.teacher == "in_place" and index == 0:
            taught = logits.detach()
        (loss * (share * ramp if index else share)).backward()
        with torch.no_grad():
            total += torch.stack([loss.detach(), hard_cross_entropy(logits, labels)]) / len(archs)
    return total
