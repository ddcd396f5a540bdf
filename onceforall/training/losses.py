"""Losses on logits [n, classes]; each returns the mean over the batch, in nats.

A distillation loss takes the student's and the teacher's logits; no gradient reaches the teacher.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# The adaptive alpha-divergence's two orders, and the bound on its importance weights (Wang et al., 2021, section 4).
ALPHA_MIN, ALPHA_MAX, WEIGHT_BOUND = -1.0, 1.0, 5.0


def hard_cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy with smoothed labels [n]."""
    return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)


def soft_cross_entropy(logits: Tensor, teacher: Tensor) -> Tensor:
    """Cross entropy with the teacher's softmax (paper, section 3.3: knowledge distillation)."""
    return F.cross_entropy(logits.float(), teacher.detach().float().softmax(1))


def kl_divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student): soft cross entropy less the teacher's entropy, so its gradient and 0 where both agree."""
    target = teacher.detach().float().log_softmax(1)
    return F.kl_div(logits.float().log_softmax(1), target, reduction="batchmean", log_target=True)


def alpha_divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """Adaptive alpha-divergence (Wang et al., "AlphaNet", ICML 2021, equations 6 to 8).

    For each image the larger of the divergences of order -1 (large where the student is sure of what
    the teacher rules out) and 1 (KL: large where it misses what the teacher holds possible). In the
    gradient the importance weights (p / q)^alpha are clipped at 5; the value is that of the
    divergence itself.
    """
    log_p, log_q = teacher.detach().float().log_softmax(1), logits.float().log_softmax(1)
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


DistillationLoss = Callable[[Tensor, Tensor], Tensor]
DISTILLATION: dict[str, DistillationLoss] = {
    "cross_entropy": soft_cross_entropy,
    "kl": kl_divergence,
    "alpha": alpha_divergence,
}
