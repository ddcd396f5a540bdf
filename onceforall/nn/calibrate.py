"""Batch-norm statistics of one network, exact over a set of images however they are batched.

A sub-network's running statistics are wrong until they are recalibrated. Averaging per-batch
variances, or normalising each batch by itself, gives numbers that depend on the batching. Here all
batches advance through the network together, layer by layer, and each batch norm sees the moments
of all of them pooled: the result is that of one pass over all images as a single batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onceforall.errors import InvalidConfiguration
from onceforall.nn.subnet import Bottleneck, Residual

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
    batches = [batch for batch in batches if len(batch)]
    if not batches:
        raise InvalidConfiguration("calibration needs at least one batch of images")
    return _advance(network.eval(), batches)


def _advance(module: nn.Module, batches: list[Tensor]) -> list[Tensor]:
    """Run all batches through a module, setting the statistics of each batch norm on the way."""
    if isinstance(module, nn.BatchNorm2d):
        mean, variance, count = pooled(map(moments, batches))
        assert module.running_mean is not None
        assert module.running_var is not None
        module.running_mean.copy_(mean)
        module.running_var.copy_(variance * (count / max(count - 1, 1)))
        return [F.batch_norm(x, mean, variance, module.weight, module.bias, eps=module.eps) for x in batches]
    if isinstance(module, nn.Sequential):
        # Activations work in place, so a shortcut needs its own copy of what enters the block.
        inputs = [x.clone() for x in batches] if isinstance(module, Residual) and module.shortcut else None
        for child in module:
            batches = _advance(child, batches)
        return batches if inputs is None else [x.add_(y) for x, y in zip(inputs, batches, strict=True)]
    if isinstance(module, Bottleneck):
        main, shortcut = _advance(module.main, batches), _advance(module.downsample, batches)
        return [module.act(x.add_(y)) for x, y in zip(main, shortcut, strict=True)]
    if any(isinstance(child, nn.BatchNorm2d) for child in module.modules()):
        raise InvalidConfiguration(
            f"cannot calibrate a batch norm inside {type(module).__name__}: "
            f"use Sequential, {Residual.__name__} or {Bottleneck.__name__}"
        )
    return [module(x) for x in batches]


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
