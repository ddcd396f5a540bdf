"""Batch-norm statistics of one network, exact over a set of images however they are batched.

A sub-network's running statistics are wrong until they are recalibrated. Averaging per-batch
variances, or normalising each batch by itself, gives numbers that depend on the batching. Here all
batches advance through the network together, operation by operation, and each batch norm sees the moments
of all of them pooled: the result is that of one pass over all images as a single batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from onceforall.errors import InvalidConfiguration

S = TypeVar("S", bound=nn.Sequential)


@torch.no_grad()
def calibrate(network: S, batches: Sequence[Tensor]) -> S:
    """Set the batch-norm statistics of a plain network from image batches [n, 3, h, w], in place.

    The running variance is the unbiased one, as torch keeps it. The network is returned in
    evaluation mode. Raises InvalidConfiguration where there are no images.
    """
    advance(network, batches)
    return network


@torch.no_grad()
def advance(network: nn.Sequential, batches: Sequence[Tensor]) -> list[Tensor]:
    """As `calibrate`; returns what becomes of the batches, so that the rest of a network can go on from there."""
    parts = [batch for batch in batches if len(batch)]
    if not parts:
        raise InvalidConfiguration("calibration needs at least one batch of images")
    for layer in network.eval():
        parts = _advance(layer, parts)
    return parts


def _advance(layer: nn.Module, parts: list[Tensor]) -> list[Tensor]:
    """Run all batches through one layer, setting the statistics of each batch norm on the way."""
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in layer.modules()):
        return [layer(part) for part in parts]
    try:
        return _parts(layer(_Batches(parts)))
    except _Ragged:  # the layer asks for a number that differs between the batches
        return _parts(layer(_Batches([torch.cat(parts)])))


def _parts(batches: Any) -> list[Tensor]:
    assert isinstance(batches, _Batches)
    return batches.parts


class _Ragged(Exception):
    """Batches have no common answer."""


class _Batches:
    """Several batches that a module takes for one tensor: torch's operations apply to each of them in turn.

    Batch norm alone looks at all of them.
    """

    def __init__(self, parts: list[Tensor]) -> None:
        self.parts = parts

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if function is F.batch_norm:
            return cls(_batch_norm(*args, **(kwargs or {})))
        given, form = tree_flatten((args, kwargs or {}))
        count = next(len(item.parts) for item in given if isinstance(item, cls))
        results = []
        for index in range(count):
            own = [item.parts[index] if isinstance(item, cls) else item for item in given]
            positional, named = tree_unflatten(own, form)
            results.append(function(*positional, **named))
        return tree_map(_joined, *results)

    def __getattr__(self, name: str) -> Any:
        found = [getattr(part, name) for part in self.parts]
        if not callable(found[0]):
            return tree_map(_joined, *found)
        return lambda *args, **kwargs: self.__torch_function__(
            lambda tensor, *args, **kwargs: getattr(tensor, name)(*args, **kwargs), (), (self, *args), kwargs
        )


def _operator(name: str) -> Callable[..., Any]:
    return lambda self, *args: _Batches.__getattr__(self, name)(*args)


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "matmul", "neg", "pow", "getitem", "len"):
    setattr(_Batches, f"__{_name}__", _operator(f"__{_name}__"))


def _joined(*found: Any) -> Any:
    """What each of the batches answered, as one answer."""
    if isinstance(found[0], Tensor):
        return _Batches(list(found))
    if any(one != found[0] for one in found):
        raise _Ragged
    return found[0]


def _batch_norm(
    batches: _Batches,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> list[Tensor]:
    """Set the running statistics to those of all batches, and normalise by them."""
    mean, variance, count = pooled(map(moments, batches.parts))
    running_mean.copy_(mean)
    running_var.copy_(variance * (count / max(count - 1, 1)))
    return [F.batch_norm(x, mean, variance, weight, bias, eps=eps) for x in batches.parts]


class Moments(NamedTuple):
    """Of each channel of one batch: mean and biased variance over so many values."""

    mean: Tensor
    variance: Tensor
    values: int


def pooled(parts: Iterable[Moments]) -> Moments:
    """Moments of all batches together, from each batch's own two-pass moments."""
    parts = list(parts)
    counts = torch.tensor([part.values for part in parts], dtype=torch.float64)
    weights = (counts / counts.sum()).to(parts[0].mean.device)[:, None]
    means = torch.stack([part.mean for part in parts]).double()
    variances = torch.stack([part.variance for part in parts]).double()
    mean = (weights * means).sum(0)
    variance = (weights * (variances + (means - mean) ** 2)).sum(0)
    return Moments(mean.float(), variance.float(), sum(part.values for part in parts))


def moments(x: Tensor) -> Moments:
    """Of one batch [n, channels, height, width].

    By way of batch norm with momentum 1, whose kernel is up to ten times faster than var_mean.
    """
    count, channels = x.numel() // x.shape[1], x.shape[1]
    if count == 1:
        return Moments(x.flatten().float(), torch.zeros(channels, device=x.device), 1)
    mean, unbiased = torch.zeros(channels, device=x.device), torch.zeros(channels, device=x.device)
    F.batch_norm(x.float(), mean, unbiased, training=True, momentum=1.0)
    return Moments(mean, unbiased * ((count - 1) / count), count)
