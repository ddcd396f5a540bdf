"""Distillation losses: what a sub-network that has a teacher minimises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from onceforall.training.parts import Part

# The adaptive alpha-divergence's two orders, and the bound on its importance weights (Wang et al., 2021, section 4).
ALPHA_MIN, ALPHA_MAX, WEIGHT_BOUND = -1.0, 1.0, 5.0


class DistillationLoss(Part, ABC):
    """Compares a student's outputs with its teacher's. One of your own is a frozen dataclass derived from this.

    `task`: the name of the task whose outputs it compares; empty where any will do.
    """

    task: ClassVar[str] = ""

    @abstractmethod
    def __call__(self, outputs: Any, teacher: Any) -> Tensor:
        """The mean over the batch, a scalar, of what two networks return for the same images [n, 3, h, w].

        For classification both are logits [n, classes]. Its gradient is that of `outputs`: the
        teacher's are constants.
        """


class LogitLoss(DistillationLoss):
    """A loss of logits [n, classes] of student and teacher, in nats."""

    task = "classification"

    def __call__(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        return self.of(outputs.float(), teacher.detach().float())

    @abstractmethod
    def of(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """The loss of float32 logits."""


@dataclass(frozen=True)
class SoftCrossEntropy(LogitLoss):
    """Cross entropy with the teacher's softmax (paper, section 3.3: knowledge distillation)."""

    name = "cross_entropy"

    def of(self, logits: Tensor, teacher: Tensor) -> Tensor:
        return F.cross_entropy(logits, teacher.softmax(1))


@dataclass(frozen=True)
class KLDivergence(LogitLoss):
    """KL(teacher || student): soft cross entropy less the teacher's entropy, so its gradient and 0 where both agree."""

    name = "kl"

    def of(self, logits: Tensor, teacher: Tensor) -> Tensor:
        return F.kl_div(logits.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True)


@dataclass(frozen=True)
class AlphaDivergence(LogitLoss):
    """Adaptive alpha-divergence (Wang et al., "AlphaNet", ICML 2021, equations 6 to 8).

    For each image the larger of the divergences of order -1 (large where the student is sure of what
    the teacher rules out) and 1 (KL: large where it misses what the teacher holds possible). In the
    gradient the importance weights (p / q)^alpha are clipped at 5; the value is that of the
    divergence itself.
    """

    name = "alpha"

    def of(self, logits: Tensor, teacher: Tensor) -> Tensor:
        log_p, log_q = teacher.log_softmax(1), logits.log_softmax(1)
        fixed = log_q.detach()
        q, log_ratio = fixed.exp(), log_p - fixed

        def surrogate(alpha: float) -> Tensor:
            """Has the gradient -1/alpha E_q[min((p / q)^alpha, bound) grad log q]."""
            weights = (alpha * log_ratio).exp().clamp(max=WEIGHT_BOUND)
            return -(q * weights * log_q).sum(1) / alpha

        # The divergence of order -1; bounded, as logits 90 apart would be beyond fp32.
        chi_square = 0.5 * ((2 * fixed - log_p).clamp(max=50).exp().sum(1) - 1)
        kl = (log_p.exp() * log_ratio).sum(1)  # its limit at order 1
        chosen = torch.where(chi_square > kl, surrogate(ALPHA_MIN), surrogate(ALPHA_MAX))
        value = torch.maximum(chi_square, kl)
        return (chosen + (value - chosen).detach()).mean()
