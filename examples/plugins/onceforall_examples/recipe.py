"""A recipe with a sampler and a distillation loss of its own.

ofa train --recipe towards_small --epochs 30 --out runs/small
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from onceforall.architecture import Architecture
from onceforall.training.losses import LogitLoss
from onceforall.training.recipe import OPEN, Phase, Recipe
from onceforall.training.samplers import Members, Sampler


@dataclass(frozen=True)
class TowardsSmall(Sampler):
    """The largest, then random sub-networks, of which each is the one with the fewest blocks of `tries`."""

    tries: int = 3

    def __call__(self, members: Members, count: int, rng: np.random.Generator) -> list[Architecture]:
        drawn = [[members.sample(rng) for _ in range(self.tries)] for _ in range(count - 1)]
        return [members.largest(), *(min(several, key=lambda arch: sum(arch.depths)) for several in drawn)]


@dataclass(frozen=True)
class JensenShannon(LogitLoss):
    """Jensen-Shannon divergence of the two softmaxes, which is bounded and symmetric."""

    def of(self, logits: Tensor, teacher: Tensor) -> Tensor:
        p, q = teacher.softmax(1), logits.softmax(1)
        middle = (0.5 * (p + q)).clamp_min(1e-12).log()
        divergence = 0.5 * (p * (p.clamp_min(1e-12).log() - middle) + q * (q.clamp_min(1e-12).log() - middle))
        return divergence.sum(1).mean()


def towards_small(epochs: int = 30, batch_size: int = 128, subnets: int = 3) -> Recipe:
    """One phase with everything open. Claim: none, it is an example.

    `ofa train` sets what every recipe has, such as `--clip-norm`, `--weight-decay` and `--learning-rate-scale`, in
    what comes back.
    """
    phase = Phase(
        "towards small",
        epochs,
        learning_rate=2.6 * batch_size / 2048,
        open=OPEN,
        sampler=TowardsSmall(),
        subnets=subnets,
        teacher="in_place",
        loss=JensenShannon(),
        hard=0.5,
    )
    return Recipe("towards_small", (phase,), batch_size, clip_norm=1.0)
