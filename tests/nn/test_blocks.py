import pytest
import torch
from torch import nn
from torch.testing import assert_close

from onceforall.layers import ConvSpec, LayerSpec, LinearSpec, MBConvSpec, PoolSpec
from onceforall.nn.blocks import ElasticMBConv, FixedLayer
from onceforall.nn.subnet import build_layer
from onceforall.space import SearchSpace

LARGEST = MBConvSpec(8, 8, 48, 8, 7, 1, "h_swish", se_channels=16, shortcut=True)


def shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.fixture
def block() -> ElasticMBConv:
    """A block with random weights and statistics, in double precision and evaluation mode."""
    torch.manual_seed(0)
    block = ElasticMBConv(LARGEST, (3, 5, 7)).double().eval()
    for tensor in (*block.parameters(), *block.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand_like(tensor) - 0.3 * (tensor.ndim > 1)
    return block


def test_slices_fit_the_plain_layer_in_every_form(space: SearchSpace) -> None:
    resolution = space.resolutions[-1]
    largest = space.largest()
    for u, unit in enumerate(space.units):
        elastic = ElasticMBConv(space.block(resolution, u, 1, largest.units[u][0]), unit.kernels)  # type: ignore[arg-type]
        for kernel in unit.kernels:
            for expand in unit.expands:
                spec = space.block(resolution, u, 1, largest.units[u][0]._replace(kernel=kernel, expand=expand))
                assert shapes(elastic.slice(spec)) == shapes(build_layer(spec).state_dict())


def test_each_smaller_kernel_has_one_identity_transform() -> None:
    transforms = dict(ElasticMBConv(LARGEST, (3, 5, 7)).transforms)
    assert transforms.keys() == {"3", "5"}
    assert torch.equal(transforms["5"], torch.eye(25))
    assert torch.equal(transforms["3"], torch.eye(9))


@pytest.mark.parametrize(
    "spec",
    [
        ConvSpec(8, 3, 8, 3, 2, "h_swish"),
        ConvSpec(1, 8, 8, 1, 1, "relu", batch_norm=False),
        PoolSpec(8, 3),
        LinearSpec(8, 4),
    ],
)
def test_a_fixed_layer_is_the_plain_layer(spec: LayerSpec) -> None:
    layer, plain = FixedLayer(spec), build_layer(spec)  # type: ignore[arg-type]
    plain.load_state_dict(layer.slice(spec))
    x = torch.randn(2, 8, 1, 1) if spec.key.startswith(("linear", "conv:1")) else torch.randn(2, 3, 8, 8)
    assert_close(layer(x, spec), plain(x))


def test_sorting_keeps_the_function_of_the_largest_form(block: ElasticMBConv) -> None:
    x = torch.randn(2, 8, 8, 8).double()
    before = block(x, LARGEST)
    block.sort_channels((), ())
    assert_close(block(x, LARGEST), before)


def test_sorting_puts_the_largest_projection_weights_first(block: ElasticMBConv) -> None:
    block.sort_channels((), ())
    importance = block.full.project.conv.weight.abs().sum(dim=(0, 2, 3))
    assert_close(importance, importance.sort(descending=True).values)
    hidden = block.full.se.expand.weight.abs().sum(dim=(0, 2, 3))
    assert_close(hidden, hidden.sort(descending=True).values)


def test_sorting_twice_changes_nothing_more(block: ElasticMBConv) -> None:
    block.sort_channels((32,), (8,))
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    block.sort_channels((32,), (8,))
    for name, tensor in block.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_sorting_leaves_a_block_without_expansion_alone() -> None:
    block = ElasticMBConv(MBConvSpec(8, 8, 8, 8, 3, 1, "relu", 0, shortcut=True, expanded=False), ())
    nn.init.normal_(block.full.project.conv.weight)
    before = block.full.project.conv.weight.clone()
    block.sort_channels((), ())
    assert torch.equal(block.full.project.conv.weight, before)
