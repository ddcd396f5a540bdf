"""Losses on logits [n, classes]; each returns the mean over the batch, in nats."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def hard_cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Cross entropy with smoothed labels [n]."""
    return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)


def soft_cross_entropy(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross entropy with the teacher's softmax (paper, section 3.3: knowledge distillation)."""
    return F.cross_entropy(logits.float(), teacher_logits.float().softmax(1))
