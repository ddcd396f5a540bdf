"""Operations that torch computes slowly, most in their gradients, on x86 processors, and the allocator's settings.

Measured on one AVX2 core, batch 128, channels_last (torch 2.13): the weight gradient of a 7x7
depthwise convolution on 480 x 4 x 4 maps took 58 ms, here 2 ms; the gradient of average pooling
came back in another memory format and made everything behind it up to ten times slower. On a core
with AMX: 144 x 32 x 32 maps, batch 32, 57 ms, here 24; in bfloat16, where dense convolutions are
3 to 5 times as fast, torch has no fast depthwise gradients: of 240 x 8 x 8 maps with stride 2, batch
128, the input's took 185 ms (here 3), the 7x7 weight's 48 ms (here 2.5).
`benchmarks/training_speed.py` measures what all this does to a step. All agree with torch's own gradients (tests).
"""

from __future__ import annotations

import ctypes
import math
import sys
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Size = tuple[int, int]

# Up to so many (input pixel, output pixel) pairs a channel, matrix products of them are the fastest weight gradient.
_MAX_PIXEL_PAIRS = 1500
_MAX_PIXEL_PAIRS_BF16 = 16384
# Kernels of so few columns, and so few rows of padding, have a fast weight gradient in torch.
_FAST_WIDTH = 3
_FAST_PADDING = 2


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


def run(module: nn.Module, x: Tensor) -> Tensor:
    """The module's output; a module that trains computes it by the fastest operations that give it.

    In evaluation, in graphs that torch exports or compiles, and of modules that are not exactly torch's own, it
    is the module itself that runs.
    """
    fast = _FAST.get(type(module)) if module.training else None
    if fast is None or torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        fast = _itself
    result: Tensor = fast(module, x)
    return result


class Sequential(nn.Sequential):
    """Torch's, whose parts compute by `run`. Standalone files say torch's in its place."""

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = run(module, x)
        return x


def depthwise_conv(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Same-padded depthwise convolution, [n, c, h, w] by [c, 1, k, k]."""
    if x.device.type == "cpu" and torch.is_grad_enabled():
        result: Tensor = _DepthwiseConv.apply(x, weight, stride)  # type: ignore[no-untyped-call]
        return result
    return _forward(x, weight, stride)


def pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """1x1 convolution, [n, c, h, w] by [d, c, 1, 1] -> [n, d, h, w]; from channels_last it is one matrix product."""
    if x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last):
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias)


def global_pool(x: Tensor) -> Tensor:
    """Mean over all pixels, [n, c, h, w] -> [n, c, 1, 1]; its gradient keeps the memory format of `x`."""
    if x.device.type == "cpu" and torch.is_grad_enabled():
        result: Tensor = _GlobalPool.apply(x)  # type: ignore[no-untyped-call]
        return result
    return F.adaptive_avg_pool2d(x, 1)


def _forward(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, x.shape[1])


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return _forward(x, weight, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, _ = ctx.needs_input_grad
        return (
            _grad_input(grad, x, weight, ctx.stride).to(x.dtype) if wants_x else None,
            _grad_weight(grad, x, weight, ctx.stride).to(weight.dtype) if wants_weight else None,
            None,
        )


def _grad_input(grad: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    if stride == 1:  # a convolution with the mirrored kernel, for which torch has faster code
        return _forward(grad, weight.flip(2, 3).to(grad.dtype), 1)
    dtype = torch.promote_types(grad.dtype, torch.float32)  # in bfloat16 torch takes 50 times as long
    return _torch_gradients(grad.to(dtype), torch.empty_like(x, dtype=dtype), weight.to(dtype), stride, input=True)


def _grad_weight(grad: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    x, kernel = x.to(grad.dtype), weight.shape[-1]
    if kernel <= _FAST_WIDTH:
        return _torch_gradients(grad, x, torch.empty_like(weight, dtype=grad.dtype), stride, input=False)
    most = _MAX_PIXEL_PAIRS_BF16 if grad.dtype == torch.bfloat16 else _MAX_PIXEL_PAIRS
    few = math.prod((*x.shape[2:], *grad.shape[2:])) <= most
    return (_grad_weight_by_pairs if few else _grad_weight_by_columns)(grad, x, kernel, stride)


def _grad_weight_by_pairs(grad: Tensor, x: Tensor, kernel: int, stride: int) -> Tensor:
    """For small maps: every input pixel times every output pixel, summed over the batch, is one small matrix product
    a channel. Then the pairs that share a kernel tap are added up.
    """
    in_size, out_size = (x.shape[2], x.shape[3]), (grad.shape[2], grad.shape[3])
    pairs = torch.bmm(_by_channel(x).transpose(1, 2), _by_channel(grad))
    taps = _taps(in_size, out_size, kernel, stride, grad.dtype)
    return (pairs.flatten(1) @ taps).view(-1, 1, kernel, kernel)


def _grad_weight_by_columns(grad: Tensor, x: Tensor, kernel: int, stride: int) -> Tensor:
    """For large maps: the gradients of kernels three columns wide, of images moved to the left or right.

    Rows lie one after the other, with zeros between them, so that a moved image is the same memory some
    pixels further on.
    """
    n, channels, height, width = x.shape
    margin = kernel // 2
    above = min(margin, _FAST_PADDING)
    edge = margin - above
    rows, pitch = height + 2 * edge, width + margin
    pixels = x.new_zeros(margin + n * rows * pitch + margin, channels)
    image = pixels[margin:-margin].view(n, rows, pitch, channels)[:, edge : edge + height, :width]
    image.copy_(x.permute(0, 2, 3, 1))
    grad = F.pad(grad, (0, (pitch - _FAST_WIDTH) // stride + 1 - grad.shape[3]))
    weight = grad.new_empty(channels, 1, kernel, kernel)
    for left in range(0, kernel - _FAST_WIDTH + 1, _FAST_WIDTH - 1):
        moved = pixels[left : left + n * rows * pitch].view(n, rows, pitch, channels).permute(0, 3, 1, 2)
        columns = weight[..., left : left + _FAST_WIDTH]
        columns.copy_(_torch_gradients(grad, moved, columns, stride, input=False, padding=(above, 0)))
    return weight


def _torch_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, *, input: bool, padding: tuple[int, int] | None = None
) -> Tensor:
    """Torch's gradient of the input, or of the weight: of that one only the shape is read."""
    channels, _, height, width = weight.shape
    around = list(padding or (height // 2, width // 2))
    mask = [input, not input, False]
    gradients: list[Tensor] = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, around, [1, 1], False, [0, 0], channels, mask
    )
    return gradients[0 if input else 1]


def _by_channel(x: Tensor) -> Tensor:
    """[n, c, h, w] -> [c, n, h * w], contiguous; from channels_last it is the transpose of a matrix, which is fast."""
    n, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(-1, channels).t().contiguous().view(channels, n, height * width)


@lru_cache(maxsize=256)
def _taps(in_size: Size, out_size: Size, kernel: int, stride: int, dtype: torch.dtype) -> Tensor:
    """0/1 matrix [input pixels * output pixels, kernel * kernel]: which tap joins which pair."""

    def offsets(dim: int) -> Tensor:
        inputs, outputs = torch.arange(in_size[dim]), torch.arange(out_size[dim])
        offset = inputs[:, None] - outputs[None, :] * stride + kernel // 2
        return F.one_hot(offset.clamp(-1, kernel) + 1, kernel + 2)[..., 1:-1].to(dtype)  # [in, out, k]

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


def _itself(module: nn.Module, x: Tensor) -> Any:
    return module(x)


def _conv(conv: nn.Conv2d, x: Tensor) -> Any:
    kernel, stride = conv.kernel_size, conv.stride
    plain = conv.padding_mode == "zeros" and conv.dilation == (1, 1)
    if plain and conv.groups == 1 and kernel == stride == (1, 1) and conv.padding == (0, 0):
        return pointwise_conv(x, conv.weight, conv.bias)
    square = kernel[0] == kernel[1] and stride[0] == stride[1] and conv.padding == (kernel[0] // 2,) * 2
    if plain and square and conv.bias is None and conv.groups == conv.in_channels == conv.out_channels:
        return depthwise_conv(x, conv.weight, stride[0])
    return conv(x)


def _pool(pool: nn.AdaptiveAvgPool2d, x: Tensor) -> Any:
    return global_pool(x) if pool.output_size in (1, (1, 1)) else pool(x)


_FAST: dict[type[nn.Module], Any] = {
    nn.Conv2d: _conv,
    nn.AdaptiveAvgPool2d: _pool,
    nn.Hardswish: lambda _, x: F.hardswish(x),  # in place, autograd would copy its input
}
