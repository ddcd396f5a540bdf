"""Optimisers: how gradients change weights, and what they remember, by parameter name as checkpoints keep it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onceforall.checkpoint import check_numbers
from onceforall.checks import expect
from onceforall.errors import IncompatibleCheckpoint
from onceforall.training.parts import Part

# In a checkpoint, "momentum.NAME" is SGD's of the parameter NAME; what others remember is "optimizer.KEY.NAME".
PREFIXES = ("momentum.", "optimizer.")


class Optimizer(Part, ABC):
    """How a recipe's weights are updated. One of your own is a frozen dataclass derived from this."""

    @abstractmethod
    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Torch's optimiser of these parameter groups; training sets the learning rate of each before every step.

        Its state must be tensors, one set a parameter.
        """

    def weight_decay_of(self, parameter: nn.Parameter) -> float:
        """None on vectors (batch norm, biases)."""
        return float(getattr(self, "weight_decay", 0.0)) if parameter.ndim > 1 else 0.0

    def of(self, net: nn.Module, state: Mapping[str, Tensor]) -> torch.optim.Optimizer:
        """The optimiser of a network; `state` is what `state_of` gave before."""
        named = dict(net.named_parameters())
        groups: dict[float, dict[str, Any]] = {}
        for parameter in sorted(named.values(), key=lambda parameter: parameter.ndim <= 1):
            decay = self.weight_decay_of(parameter)
            groups.setdefault(decay, {"params": [], "weight_decay": decay})["params"].append(parameter)
        optimizer = self.build(list(groups.values()))
        for name, value in state.items():
            key, parameter_name = _key_and_parameter(name)
            parameter = named[parameter_name]
            # Same memory format as the parameter: the update then runs in the same order of additions.
            own = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value.clone()
            optimizer.state[parameter][key] = own.detach()
        return optimizer

    def check(self, net: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Raises IncompatibleCheckpoint where `state` is not what an optimiser of this network remembers."""
        named = dict(net.named_parameters())
        for name, value in state.items():
            parameter = named.get(_key_and_parameter(name)[1])
            if parameter is None or value.shape not in (parameter.shape, torch.Size()):
                raise IncompatibleCheckpoint(f"{name} {tuple(value.shape)} is no state of a parameter of this network")
            check_numbers("it", name, value, value.is_floating_point())


def _key_and_parameter(name: str) -> tuple[str, str]:
    """Torch's key of a tensor in a checkpoint, and the parameter that it is of."""
    kind, _, rest = name.partition(".")
    if kind == "momentum":
        return "momentum_buffer", rest
    key, _, parameter = rest.partition(".")
    return key, parameter


def state_of(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser remembers of each parameter that had a step so far, under the names of checkpoints."""
    return {
        f"momentum.{name}" if key == "momentum_buffer" else f"optimizer.{key}.{name}": value
        for name, parameter in net.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def is_state(name: str) -> bool:
    """Whether a tensor of a checkpoint is an optimiser's."""
    return name.startswith(PREFIXES)


def _check(name: str, value: float, most: float = math.inf) -> None:
    expect(name, value, 0 <= value < most, f"at least 0 and less than {most:g}")


@dataclass(frozen=True)
class SGD(Optimizer):
    """With Nesterov momentum (paper, appendix B)."""

    name = "sgd"

    momentum: float = 0.9
    weight_decay: float = 3e-5

    def __post_init__(self) -> None:
        _check("momentum", self.momentum, 1.0)
        _check("weight_decay", self.weight_decay)

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=1.0, momentum=self.momentum, nesterov=self.momentum > 0)


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019), as vision transformers are trained."""

    name = "adamw"

    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        for beta in self.betas:
            _check("betas", beta, 1.0)
        _check("weight_decay", self.weight_decay)

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=1.0, betas=self.betas)
