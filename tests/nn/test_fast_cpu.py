from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from onceforall.nn import fast_cpu
from onceforall.nn.fast_cpu import depthwise_conv, global_pool, pointwise_conv

FORMATS = [torch.contiguous_format, torch.channels_last]


def reference_conv(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, x.shape[1])


def inputs(size: tuple[int, int], kernel: int, memory_format: torch.memory_format) -> tuple[Tensor, Tensor]:
    """Images and a kernel in double precision, six channels."""
    torch.manual_seed(0)
    x = torch.randn(3, 6, *size, dtype=torch.double).contiguous(memory_format=memory_format)
    return x.requires_grad_(), torch.randn(6, 1, kernel, kernel, dtype=torch.double, requires_grad=True)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 4), (5, 7), (8, 8)], ids=str)
def test_depthwise_gradients_equal_those_of_torch(
    size: tuple[int, int], stride: int, kernel: int, memory_format: torch.memory_format
) -> None:
    x, weight = inputs(size, kernel, memory_format)
    output, expected = depthwise_conv(x, weight, stride), reference_conv(x, weight, stride)
    assert_close(output, expected)
    grad = torch.randn_like(output)
    for mine, theirs in zip(
        torch.autograd.grad(output, (x, weight), grad), torch.autograd.grad(expected, (x, weight), grad), strict=True
    ):
        assert_close(mine, theirs)


@pytest.mark.parametrize("kernel", [5, 7, 9])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(7, 7), (12, 7), (6, 17), (16, 16)], ids=str)
def test_weight_gradients_of_large_maps_equal_those_of_torch(
    size: tuple[int, int], stride: int, kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_cpu, "_MAX_PIXEL_PAIRS", 0)
    for memory_format in FORMATS:
        x, weight = inputs(size, kernel, memory_format)
        output, expected = depthwise_conv(x, weight, stride), reference_conv(x, weight, stride)
        grad = torch.randn_like(output)
        (mine,), (theirs,) = (torch.autograd.grad(y, weight, grad) for y in (output, expected))
        assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("size", "stride", "dtype", "few"),
    [
        (6, 1, "float", True),
        (7, 1, "float", False),
        (8, 2, "float", True),
        (11, 1, "bfloat16", True),
        (12, 1, "bfloat16", False),
    ],
)
def test_weight_gradients_are_computed_in_the_faster_way(
    size: int, stride: int, dtype: str, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = (tensor.detach().to(getattr(torch, dtype)) for tensor in inputs((size, size), 5, torch.channels_last))
    spies = [mock.Mock(wraps=getattr(fast_cpu, f"_grad_weight_by_{way}")) for way in ("pairs", "columns")]
    for way, spy in zip(("pairs", "columns"), spies, strict=True):
        monkeypatch.setattr(fast_cpu, f"_grad_weight_by_{way}", spy)
    depthwise_conv(x, weight.requires_grad_(), stride).sum().backward()
    assert [spy.called for spy in spies] == [few, not few]


def test_depthwise_gradient_of_frozen_images_and_of_a_frozen_kernel() -> None:
    x, weight = inputs((4, 4), 5, torch.contiguous_format)
    for frozen, other in ((x, weight), (weight, x)):
        frozen.requires_grad_(False)
        (mine,), (theirs,) = (
            torch.autograd.grad(conv(x, weight, 1).square().sum(), other) for conv in (depthwise_conv, reference_conv)
        )
        frozen.requires_grad_(True)
        assert_close(mine, theirs)


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [4, 18])
def test_depthwise_gradients_under_bfloat16_autocast(size: int, stride: int, kernel: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 6, size, size, requires_grad=True), torch.randn(6, 1, kernel, kernel, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = depthwise_conv(x, weight, stride)
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    expected = torch.autograd.grad(reference_conv(x, weight, stride).square().sum(), (x, weight))
    for mine, theirs in zip((x.grad, weight.grad), expected, strict=True):
        assert mine is not None
        assert mine.dtype == torch.float32
        assert_close(mine, theirs, rtol=0, atol=0.03 * float(theirs.abs().max()))


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (4, 5)], ids=str)
def test_pointwise_convolution_equals_that_of_torch(
    size: tuple[int, int], biased: bool, memory_format: torch.memory_format
) -> None:
    x, _ = inputs(size, 1, memory_format)
    weight = torch.randn(4, 6, 1, 1, dtype=torch.double, requires_grad=True)
    bias = torch.randn(4, dtype=torch.double) if biased else None
    output, expected = pointwise_conv(x, weight, bias), F.conv2d(x, weight, bias)
    assert_close(output, expected)
    assert output.is_contiguous(memory_format=memory_format)
    grad = torch.randn_like(output)
    for mine, theirs in zip(
        torch.autograd.grad(output, (x, weight), grad), torch.autograd.grad(expected, (x, weight), grad), strict=True
    ):
        assert_close(mine, theirs)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_without_gradients_torch_computes_both(memory_format: torch.memory_format) -> None:
    x, weight = inputs((4, 4), 5, memory_format)
    with torch.inference_mode():
        assert_close(depthwise_conv(x, weight, 1), reference_conv(x, weight, 1))
        assert_close(global_pool(x), x.mean(dim=(2, 3), keepdim=True))


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 7)], ids=str)
def test_pooling_gradient_equals_that_of_torch(size: tuple[int, int], memory_format: torch.memory_format) -> None:
    x, _ = inputs(size, 3, memory_format)
    output = global_pool(x)
    assert_close(output, x.mean(dim=(2, 3), keepdim=True))
    grad = torch.randn_like(output)
    (mine,), (theirs,) = (torch.autograd.grad(y, x, grad) for y in (output, F.adaptive_avg_pool2d(x, 1)))
    assert_close(mine, theirs)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_pooling_gradient_keeps_the_memory_format(memory_format: torch.memory_format) -> None:
    x, _ = inputs((4, 4), 3, memory_format)
    (grad,) = torch.autograd.grad(global_pool(x).sum(), x)
    assert grad.is_contiguous(memory_format=memory_format)
