"""Two operations whose gradients torch computes slowly on x86 processors, and the allocator's settings.

Measured on two AVX2 cores, batch 128, channels_last (torch 2.13): the weight gradient of a 7x7
depthwise convolution on 480 x 4 x 4 maps took 58 ms, here 2 ms; the gradient of average pooling
came back in another memory format and made everything behind it up to ten times slower.
`benchmarks/training_speed.py` measures what both do to a step. Both agree with torch's own gradients (tests).
"""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Above this many (input pixel, output pixel) pairs a channel, torch's own weight gradient is faster.
_MAX_PIXEL_PAIRS = 4096


def keep_freed_memory() -> None:
    """Ask glibc to keep freed blocks instead of returning them to the system (no effect elsewhere).

    Activations are larger than glibc's threshold for a mapping of their own, so each one would be
    zeroed by the kernel at every step.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(-4, 0)  # M_MMAP_MAX: no mapping of its own for a large block
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: keep the top of the heap


def depthwise_conv(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Same-padded depthwise convolution, [n, c, h, w] by [c, 1, k, k]."""
    kernel = weight.shape[-1]
    if kernel > 3 and x.device.type == "cpu" and torch.is_grad_enabled() and weight.requires_grad:
        out_size = (x.shape[2] - 1) // stride + 1, (x.shape[3] - 1) // stride + 1
        if x.shape[2] * x.shape[3] * out_size[0] * out_size[1] <= _MAX_PIXEL_PAIRS:
            result: Tensor = _DepthwiseConv.apply(x, weight, stride)  # type: ignore[no-untyped-call]
            return result
    return F.conv2d(x, weight, None, stride, kernel // 2, 1, x.shape[1])


def global_pool(x: Tensor) -> Tensor:
    """Mean over all pixels, [n, c, h, w] -> [n, c, 1, 1]; its gradient keeps the memory format of `x`."""
    if x.device.type == "cpu" and torch.is_grad_enabled():
        result: Tensor = _GlobalPool.apply(x)  # type: ignore[no-untyped-call]
        return result
    return F.adaptive_avg_pool2d(x, 1)


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        dtypes = [tensor.dtype for tensor in ctx.saved_tensors]
        # Under autocast the gradient has the lower precision.
        x, weight = (tensor.to(grad.dtype) for tensor in ctx.saved_tensors)
        kernel, channels = weight.shape[-1], weight.shape[0]
        grad_x = None
        if ctx.needs_input_grad[0]:
            strides, padding, dilation = [ctx.stride] * 2, [kernel // 2] * 2, [1, 1]
            mask = [True, False, False]
            grad_x = torch.ops.aten.convolution_backward(
                grad, x, weight, None, strides, padding, dilation, False, [0, 0], channels, mask
            )[0].to(dtypes[0])
        # Correlate every input pixel with every output pixel over the batch: one small matrix
        # product a channel. Then add up the pairs that share a kernel tap.
        pairs = torch.bmm(_by_channel(x).transpose(1, 2), _by_channel(grad))
        taps = _taps(tuple(x.shape[2:]), tuple(grad.shape[2:]), kernel, ctx.stride).to(x.dtype)
        return grad_x, (pairs.flatten(1) @ taps).view_as(weight).to(dtypes[1]), None


def _by_channel(x: Tensor) -> Tensor:
    """[n, c, h, w] -> [c, n, h * w], a view of the contiguous form."""
    return x.contiguous().flatten(2).transpose(0, 1)


@lru_cache(maxsize=256)
def _taps(in_size: tuple[int, int], out_size: tuple[int, int], kernel: int, stride: int) -> Tensor:
    """0/1 matrix [input pixels * output pixels, kernel * kernel]: which tap joins which pair."""

    def offsets(dim: int) -> Tensor:
        inputs, outputs = torch.arange(in_size[dim]), torch.arange(out_size[dim])
        offset = inputs[:, None] - outputs[None, :] * stride + kernel // 2
        return F.one_hot(offset.clamp(-1, kernel) + 1, kernel + 2)[..., 1:-1].float()  # [in, out, k]

    taps = torch.einsum("iak,jbl->ijabkl", offsets(0), offsets(1))
    return taps.reshape(in_size[0] * in_size[1] * out_size[0] * out_size[1], kernel * kernel)


class _GlobalPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        ctx.channels_last = x.is_contiguous(memory_format=torch.channels_last)
        return F.adaptive_avg_pool2d(x, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        spread = (grad / (ctx.shape[2] * ctx.shape[3])).expand(ctx.shape)
        result: Tensor = spread.contiguous(
            memory_format=torch.channels_last if ctx.channels_last else torch.contiguous_format
        )
        return result
