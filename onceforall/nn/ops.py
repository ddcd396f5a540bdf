"""Elastic operations as pure functions of tensors (paper, section 3.3 and figure 3)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onceforall.layers import Activation
from onceforall.nn.fast_cpu import depthwise_conv, global_pool, pointwise_conv

Tensors = dict[str, Tensor]


def leading(tensor: Tensor | None, *sizes: int) -> Tensor:
    """The first entries along each leading dimension: a view, or the tensor itself where nothing is cut."""
    assert tensor is not None  # torch types a bias and running statistics as optional
    for dim, size in enumerate(sizes):
        if size != tensor.shape[dim]:
            tensor = tensor.narrow(dim, 0, size)
    return tensor


def transform_kernel(weight: Tensor, kernel: int, transforms: Mapping[str, Tensor]) -> Tensor:
    """A smaller depthwise kernel: the centre of the next larger one, times a learned matrix, down to `kernel`.

    `weight` is [channels, 1, k, k]; `transforms["5"]` is [25, 25], `transforms["3"]` [9, 9].
    Each step starts from the kernel that the step before made (7 -> 5 -> 3).
    """
    for size in sorted(map(int, transforms), reverse=True):
        if weight.shape[-1] <= kernel:
            break
        margin = (weight.shape[-1] - size) // 2
        centre = weight[:, :, margin : margin + size, margin : margin + size].reshape(weight.shape[0], size * size)
        weight = F.linear(centre, transforms[str(size)]).view(-1, 1, size, size)
    return weight


def slice_batch_norm(bn: nn.BatchNorm2d, channels: int) -> Tensors:
    """Scale, shift and running statistics of the first channels; the statistics are views into `bn`."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    assert bn.num_batches_tracked is not None
    return {
        "bn.weight": leading(bn.weight, channels),
        "bn.bias": leading(bn.bias, channels),
        "bn.running_mean": leading(bn.running_mean, channels),
        "bn.running_var": leading(bn.running_var, channels),
        "bn.num_batches_tracked": bn.num_batches_tracked,
    }


def conv_norm_act(
    x: Tensor,
    tensors: Tensors,
    name: str,
    *,
    stride: int = 1,
    depthwise: bool = False,
    activation: Activation,
    training: bool,
    bn_eps: float,
) -> Tensor:
    """Convolution, batch norm (where `tensors` has one) and activation of the part called `name` ("" or "expand.")."""
    weight = tensors[f"{name}conv.weight"]
    kernel = weight.shape[-1]
    if depthwise:
        x = depthwise_conv(x, weight, stride)
    elif kernel == stride == 1:
        x = pointwise_conv(x, weight)
    else:
        x = F.conv2d(x, weight, None, stride, kernel // 2)
    if f"{name}bn.weight" in tensors:
        x = F.batch_norm(
            x,
            tensors[f"{name}bn.running_mean"],
            tensors[f"{name}bn.running_var"],
            tensors[f"{name}bn.weight"],
            tensors[f"{name}bn.bias"],
            training,
            0.1,
            bn_eps,
        )
    return activate(x, activation)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The activation; what it can, it does in place."""
    match activation:
        case "relu":
            return F.relu(x, inplace=True)
        case "relu6":
            return F.relu6(x, inplace=True)
        case "h_swish":
            return F.hardswish(x)  # in place, autograd would copy its input
        case "none":
            return x


def squeeze_excite(x: Tensor, tensors: Tensors) -> Tensor:
    """Channel attention with a hard sigmoid; its tensors are called `se.*`."""
    scale = global_pool(x)
    scale = F.relu(pointwise_conv(scale, tensors["se.reduce.weight"], tensors["se.reduce.bias"]))
    scale = pointwise_conv(scale, tensors["se.expand.weight"], tensors["se.expand.bias"])
    return x * F.hardsigmoid(scale)


def order_by_importance(importance: Tensor, boundaries: tuple[int, ...]) -> Tensor:
    """Indices that sort by descending importance inside each range between boundaries.

    Channels of an already trained smaller width stay in front of the others.
    """
    edges = [0, *boundaries, len(importance)]
    ranges = [
        start + torch.argsort(importance[start:end], descending=True, stable=True)
        for start, end in itertools.pairwise(edges)
    ]
    return torch.cat(ranges)
