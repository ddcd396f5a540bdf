import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from onceforall.layers import (
    Activation,
    BottleneckSpec,
    ConvSpec,
    LayerSpec,
    LinearSpec,
    MaxPoolSpec,
    MBConvSpec,
    PoolSpec,
)
from onceforall.nn.subnet import build, build_layer, fold_batch_norm, initialise
from onceforall.nn.supernet import Supernet

MBCONV = MBConvSpec(8, 4, 16, 4, 5, 1, "relu", se_channels=8, shortcut=True)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (ConvSpec(9, 4, 6, 3, 2, "relu"), (2, 6, 5, 5)),
        (MBConvSpec(9, 4, 16, 6, 7, 2, "h_swish", se_channels=0, shortcut=False), (2, 6, 5, 5)),
        (BottleneckSpec(9, 4, 8, 16, 2, "relu", downsample=True), (2, 16, 5, 5)),
        (BottleneckSpec(9, 4, 8, 4, 1, "relu", downsample=False), (2, 4, 9, 9)),
        (MaxPoolSpec(9, 4), (2, 4, 5, 5)),
        (PoolSpec(9, 4), (2, 4, 1, 1)),
        (LinearSpec(4 * 81, 3), (2, 3)),
    ],
)
def test_a_layer_has_the_shapes_of_its_spec(layer: LayerSpec, shape: tuple[int, ...]) -> None:
    assert build_layer(layer)(torch.randn(2, 4, 9, 9)).shape == shape


@pytest.mark.parametrize(
    ("activation", "module"), [("relu", nn.ReLU), ("relu6", nn.ReLU6), ("h_swish", nn.Hardswish), ("none", type(None))]
)
def test_a_convolution_ends_with_its_activation(activation: Activation, module: type) -> None:
    layer = build_layer(ConvSpec(8, 4, 4, 3, 1, activation, bn_eps=1e-3))
    assert isinstance(getattr(layer, "act", None), module)
    assert layer.bn.eps == 1e-3  # type: ignore[union-attr]


def test_a_shortcut_adds_the_input() -> None:
    torch.manual_seed(0)
    block = build_layer(MBCONV).eval()
    x = torch.randn(2, 4, 8, 8)
    with_shortcut = block(x.clone())
    block.shortcut = False  # type: ignore[assignment]
    assert_close(with_shortcut, x + block(x.clone()))


def test_a_convolution_with_a_shortcut_adds_the_input_after_its_activation() -> None:
    layer = build_layer(ConvSpec(8, 4, 4, 3, 1, "relu", shortcut=True)).eval()
    x = torch.randn(2, 4, 8, 8)
    y = layer(x) - x
    assert (y >= -1e-6).all()
    layer.shortcut = False  # type: ignore[assignment]
    assert_close(y, layer(x))


@pytest.mark.parametrize("activation", ["relu", "none"])
def test_a_bottleneck_activates_the_sum(activation: Activation) -> None:
    block = build_layer(BottleneckSpec(8, 4, 8, 4, 1, activation, downsample=False)).eval()
    x = torch.randn(2, 4, 8, 8)
    total = block.main(x) + x  # type: ignore[operator]
    assert_close(block(x), total.clamp(min=0) if activation == "relu" else total)


def test_the_shortcut_of_a_bottleneck_averages_the_pixels_that_are_there() -> None:
    block = build_layer(BottleneckSpec(3, 1, 8, 1, 2, "none", downsample=True)).eval()
    pool = block.downsample.pool  # type: ignore[union-attr]
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert pool(x).tolist() == [[[[2.0, 3.5], [6.5, 8.0]]]]  # type: ignore[operator]


@pytest.mark.parametrize("layer", [MBCONV, BottleneckSpec(8, 4, 8, 4, 1, "relu", downsample=False)], ids=str)
def test_a_block_leaves_its_input_alone(layer: LayerSpec) -> None:
    x = torch.randn(2, 4, 8, 8)
    before = x.clone()
    build_layer(layer).eval()(x)
    assert torch.equal(x, before)


def test_dropout_works_in_training_only() -> None:
    layer = build_layer(LinearSpec(64, 8, dropout=0.5))
    x = torch.randn(4, 64, 1, 1)
    assert not torch.equal(layer.train()(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_folding_keeps_outputs_and_leaves_no_batch_norm(supernet: Supernet, rng: np.random.Generator) -> None:
    for arch in [supernet.space.largest(), supernet.space.sample(rng)]:
        network = supernet.extract(arch)
        images = torch.randn(4, 3, arch.resolution, arch.resolution)
        before = network(images)
        folded = fold_batch_norm(copy.deepcopy(network))
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        assert_close(folded(images), before, rtol=1e-4, atol=1e-4)


def test_folding_leaves_a_convolution_without_batch_norm_alone() -> None:
    network = build([ConvSpec(1, 4, 8, 1, 1, "h_swish", batch_norm=False)])
    before = copy.deepcopy(network.state_dict())
    folded = fold_batch_norm(network).state_dict()
    assert folded.keys() == before.keys()
    assert all(torch.equal(folded[name], before[name]) for name in before)


def test_initial_weights_follow_their_generator() -> None:
    first, again = (build([MBCONV, PoolSpec(8, 4), LinearSpec(4, 3)]) for _ in range(2))
    for network in (first, again):
        initialise(network, torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_initial_weights_have_the_documented_spread() -> None:
    network = build([ConvSpec(8, 64, 128, 3, 1, "relu"), PoolSpec(8, 128), LinearSpec(128, 500)])
    initialise(network, torch.Generator().manual_seed(0))
    conv, linear = network[0].conv, network[2].linear  # type: ignore[union-attr]
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)  # type: ignore[operator, union-attr]
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.02)  # type: ignore[operator, union-attr]
    assert not linear.bias.any()  # type: ignore[operator, union-attr]
