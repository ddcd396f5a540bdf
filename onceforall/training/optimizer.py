"""SGD with Nesterov momentum (paper, appendix B), and its momentum by parameter name, as checkpoints keep it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from onceforall.training.recipe import Recipe


def sgd(net: nn.Module, recipe: Recipe, momentum: Mapping[str, Tensor]) -> torch.optim.SGD:
    """SGD without weight decay on vectors (batch norm, biases); `momentum` is what `momentum_of` gave before."""
    named = dict(net.named_parameters())
    decayed = [p for p in named.values() if p.ndim > 1]
    free = [p for p in named.values() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
    for name, buffer in momentum.items():
        # Same memory format as the parameter: the update then runs in the same order of additions.
        optimizer.state[named[name]]["momentum_buffer"] = torch.empty_like(named[name]).copy_(buffer).detach()
    return optimizer


def momentum_of(net: nn.Module, optimizer: torch.optim.SGD) -> dict[str, Tensor]:
    """Momentum of each parameter that had a step so far."""
    buffers = {name: optimizer.state.get(p, {}).get("momentum_buffer") for name, p in net.named_parameters()}
    return {name: buffer for name, buffer in buffers.items() if buffer is not None}
