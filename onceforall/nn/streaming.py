"""Batch-norm statistics as `calibrate` sets them, with one batch of images in memory at a time.

`calibrate` holds the feature maps of all images at once: at 224 px a few gigabytes. Here batches pass
one after the other, once for each batch norm, and what they are between two layers is kept only
where it fits: more arithmetic, the same statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from onceforall.errors import InvalidConfiguration
from onceforall.nn.calibrate import Moments, moments, pooled

S = TypeVar("S", bound=nn.Sequential)
Batches = Callable[[], Iterable[Tensor]]


@torch.no_grad()
def calibrate_streaming(network: S, batches: Batches, images: int, memory: int) -> S:
    """Set the batch-norm statistics of a plain network, in place, from the images that each call of `batches` yields.

    They are batches [n, 3, height, width] on the network's device, of so many `images` in all.
    `memory`: bytes of feature maps that may be kept between two layers. The network is returned in
    evaluation mode. Raises InvalidConfiguration where there are no images.
    """
    network.eval()
    source: Batches | list[Tensor] = batches
    before: list[nn.Module] = []  # the layers between the source and the one in hand
    counts: dict[nn.BatchNorm2d, int] = {}
    normed = [any(isinstance(module, nn.BatchNorm2d) for module in layer.modules()) for layer in network]
    for number, layer in enumerate(network):
        if not any(normed[number:]):
            break  # nothing is left to set
        path = [*before, layer]
        for norm in _norms(path, source):
            mean, variance, counts[norm] = pooled(_moments_at(norm, path, source))
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
        before = path
        one = _run(path, next(_whole(source))[:1])
        if images * one.numel() * one.element_size() <= memory:
            source, before = [_run(path, batch) for batch in _taken(source)], []
    for norm, count in counts.items():  # unbiased, as torch keeps it, now that all images have passed
        assert norm.running_var is not None
        norm.running_var.mul_(count / max(count - 1, 1))
    return network


class _Reached(Exception):
    """A batch came to the batch norm in question."""


def _norms(path: list[nn.Module], source: Batches | list[Tensor]) -> list[nn.BatchNorm2d]:
    """The batch norms of the last layer of a path, in the order in which they run."""
    found: list[nn.BatchNorm2d] = []
    hooks = [
        module.register_forward_pre_hook(lambda norm, _: found.append(norm))
        for module in path[-1].modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    if hooks:
        _run(path, next(_whole(source)))
    for hook in hooks:
        hook.remove()
    return found


def _moments_at(norm: nn.BatchNorm2d, path: list[nn.Module], source: Batches | list[Tensor]) -> Iterator[Moments]:
    """The moments of what each batch is where it comes to a batch norm."""
    seen: list[Tensor] = []

    def stop(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])
        raise _Reached

    hook = norm.register_forward_pre_hook(stop)
    try:
        for batch in _whole(source):
            try:
                _run(path, batch)
            except _Reached:
                yield moments(seen.pop())
    finally:
        hook.remove()


def _taken(source: Batches | list[Tensor]) -> Iterator[Tensor]:
    """The batches, for the last time: those that were kept make room."""
    if isinstance(source, list):
        source.reverse()
        while source:
            yield source.pop()
    else:
        yield from _whole(source)


def _whole(source: Batches | list[Tensor]) -> Iterator[Tensor]:
    """The batches that have images. Raises InvalidConfiguration where there are none."""
    empty = True
    for batch in source if isinstance(source, list) else source():
        if len(batch):
            empty = False
            yield batch
    if empty:
        raise InvalidConfiguration("calibration needs at least one batch of images")


def _run(path: list[nn.Module], batch: Tensor) -> Tensor:
    x = batch.clone()  # activations work in place, and the batch comes again
    for layer in path:
        x = layer(x)
    return x
