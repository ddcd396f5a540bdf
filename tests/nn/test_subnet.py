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
from onceforall.nn import fast_cpu
from onceforall.nn.subnet import build, build_layer, channels_last, fold_batch_norm, initialise
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


# Fast operations

EVERY_LAYER = [
    ConvSpec(8, 4, 6, 3, 2, "h_swish"),
    ConvSpec(8, 4, 4, 1, 1, "relu", shortcut=True),
    MBCONV,
    MBConvSpec(8, 4, 4, 8, 7, 2, "relu6", se_channels=0, shortcut=False, expanded=False),
    BottleneckSpec(8, 4, 8, 16, 2, "relu", downsample=True),
    PoolSpec(8, 4),
]


@pytest.mark.parametrize("layer", EVERY_LAYER, ids=lambda layer: layer.key)
def test_in_training_a_plain_layer_computes_by_fast_operations_what_torch_does(
    layer: LayerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = channels_last(build([layer]).double()).train()
    reference = copy.deepcopy(network)
    images = torch.randn(3, 4, 8, 8).double().contiguous(memory_format=torch.channels_last)
    found = []
    for module, table in ((network, fast_cpu._FAST), (reference, {})):
        monkeypatch.setattr(fast_cpu, "_FAST", table)
        x = images.clone().requires_grad_()
        y = module(x)
        y.square().sum().backward()
        found.append([y, x.grad, *(parameter.grad for parameter in module.parameters()), *module.buffers()])
    for actual, expected in zip(*found, strict=True):
        assert_close(actual, expected)


def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts of the fast operations from now on."""
    counts = {"depthwise_conv": 0, "pointwise_conv": 0, "global_pool": 0}
    for name in counts:
        own = getattr(fast_cpu, name)

        def counted(*args: object, name: str = name, own: object = own) -> object:
            counts[name] += 1
            return own(*args)  # type: ignore[operator]

        monkeypatch.setattr(fast_cpu, name, counted)
    return counts


def test_fast_operations_run_in_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    network, counts = build([MBCONV, PoolSpec(8, 4), LinearSpec(4, 3)]).train(), calls(monkeypatch)
    network(torch.randn(2, 4, 8, 8))
    assert counts == {"depthwise_conv": 1, "pointwise_conv": 4, "global_pool": 2}
    network.eval()(torch.randn(2, 4, 8, 8))
    assert sum(counts.values()) == 7


@pytest.mark.filterwarnings("ignore")  # of torch, which traces its own checks
@pytest.mark.parametrize("training", [False, True])
def test_exported_graphs_have_plain_convolutions(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    network = channels_last(build([MBCONV, PoolSpec(8, 4), LinearSpec(4, 3)])).train(training)
    x, counts = torch.randn(2, 4, 8, 8).contiguous(memory_format=torch.channels_last), calls(monkeypatch)
    traced = torch.jit.trace(network, x, check_trace=False)
    graph = str(traced.inlined_graph)
    assert (graph.count("aten::_convolution"), graph.count("aten::adaptive_avg_pool2d")) == (5, 2)
    exported = [str(node.target) for node in torch.export.export(network, (x,)).graph.nodes]
    assert sum("conv2d" in target for target in exported) == 5
    assert sum(".linear" in target for target in exported) == 1
    assert not any("permute" in target for target in exported)
    assert not any(counts.values())


def test_a_replaced_convolution_is_called_as_a_module() -> None:
    class Counts(nn.Conv2d):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Counts.calls += 1
            return super().forward(x)

    network = build([ConvSpec(8, 4, 6, 1, 1, "relu")]).train()
    network[0].conv = Counts(4, 6, 1)
    network(torch.randn(2, 4, 8, 8))
    assert Counts.calls == 1
