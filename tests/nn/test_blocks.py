from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from onceforall.layers import BottleneckSpec, ConvSpec, LayerSpec, LinearSpec, MaxPoolSpec, MBConvSpec, PoolSpec
from onceforall.nn.blocks import ElasticBlock, ElasticBottleneck, ElasticConv, ElasticLinear, ElasticMBConv, elastic
from onceforall.nn.subnet import build_layer
from onceforall.space import SearchSpace

MBCONV = MBConvSpec(8, 8, 48, 8, 7, 1, "h_swish", se_channels=16, shortcut=True)
BOTTLENECK = BottleneckSpec(8, 8, 16, 32, 2, "relu", downsample=True)
CONV = ConvSpec(8, 8, 16, 3, 1, "relu")

# Forms of the block, narrower in every way that it can be.
FORMS: dict[LayerSpec, list[LayerSpec]] = {
    MBCONV: [
        replace(MBCONV, in_channels=4, out_channels=4, mid_channels=20, se_channels=8, kernel=5),
        replace(MBCONV, mid_channels=24, se_channels=8, kernel=3),
    ],
    BOTTLENECK: [
        replace(BOTTLENECK, in_channels=4),
        replace(BOTTLENECK, mid_channels=8),
        replace(BOTTLENECK, in_channels=4, mid_channels=12, out_channels=24),
    ],
    replace(BOTTLENECK, stride=1): [replace(BOTTLENECK, stride=1, mid_channels=8, out_channels=16)],
    replace(BOTTLENECK, stride=1, in_channels=32, downsample=False): [
        replace(BOTTLENECK, stride=1, in_channels=16, mid_channels=8, out_channels=16, downsample=False)
    ],
    CONV: [replace(CONV, in_channels=4), replace(CONV, out_channels=8), replace(CONV, in_channels=4, out_channels=8)],
    replace(CONV, in_channels=16, shortcut=True): [replace(CONV, in_channels=8, out_channels=8, shortcut=True)],
    ConvSpec(1, 8, 8, 1, 1, "relu", batch_norm=False): [ConvSpec(1, 4, 6, 1, 1, "relu", batch_norm=False)],
    LinearSpec(8, 4): [LinearSpec(6, 4)],
    PoolSpec(8, 8): [PoolSpec(8, 4)],
    MaxPoolSpec(9, 8): [MaxPoolSpec(9, 4)],
}


def randomised(block: ElasticBlock) -> ElasticBlock:
    """The block with random weights and statistics, in double precision and evaluation mode."""
    torch.manual_seed(0)
    for tensor in (*block.double().parameters(), *block.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand_like(tensor) - 0.3 * (tensor.ndim > 1)
    return block.eval()


def image_for(spec: LayerSpec) -> Tensor:
    if isinstance(spec, LinearSpec):
        return torch.randn(2, spec.in_features, 1, 1).double()
    channels = spec.channels if isinstance(spec, PoolSpec | MaxPoolSpec) else spec.in_channels
    return torch.randn(2, channels, spec.in_size, spec.in_size).double()


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.fixture
def block() -> ElasticMBConv:
    return randomised(ElasticMBConv(MBCONV, (3, 5, 7)))  # type: ignore[return-value]


@pytest.fixture
def bottleneck() -> ElasticBottleneck:
    return randomised(ElasticBottleneck(BOTTLENECK))  # type: ignore[return-value]


# Slicing


def test_slices_fit_the_plain_layer_in_every_form(space: SearchSpace) -> None:
    largest = space.largest()
    resolution, layers = largest.resolution, space.lower(largest)
    stem = len(space.stem(resolution))
    for number, (u, b) in enumerate(space.block_indices):
        block = elastic(layers[stem + number], space.units[u].kernels)
        for form in space.block_forms(resolution, u, b):
            with torch.device("meta"):
                assert shapes(block.slice(form.layer)) == shapes(build_layer(form.layer).state_dict())
    for unit, ends in ((space.units[0], space.stem), (space.units[-1], space.head)):
        blocks = [elastic(layer) for layer in ends(resolution, unit.width_multipliers[-1])]
        for multiplier in unit.width_multipliers:
            for block, layer in zip(blocks, ends(resolution, multiplier), strict=True):
                assert shapes(block.slice(layer)) == shapes(build_layer(layer).state_dict())


@pytest.mark.parametrize("largest", FORMS, ids=lambda spec: spec.key)
@pytest.mark.parametrize("training", [False, True])
def test_every_form_is_the_plain_layer_with_its_slice(largest: LayerSpec, training: bool) -> None:
    block = randomised(elastic(largest, (3, 5, 7))).train(training)
    for spec in [largest, *FORMS[largest]]:
        plain = build_layer(spec).double().train(training)
        plain.load_state_dict({name: tensor.clone() for name, tensor in block.slice(spec).items()})
        x = image_for(spec)
        assert_close(block(x.clone(), spec), plain(x))


@pytest.mark.parametrize("largest", [spec for spec in FORMS if not isinstance(spec, MBConvSpec)], ids=lambda s: s.key)
def test_a_slice_is_the_leading_part_of_the_weights_without_a_copy(largest: LayerSpec) -> None:
    block = randomised(elastic(largest))
    whole = block.slice(largest)
    for spec in FORMS[largest]:
        for name, part in block.slice(spec).items():
            leading = tuple(slice(size) for size in part.shape)
            assert torch.equal(part, whole[name][leading]), name
            assert part.data_ptr() == whole[name].data_ptr(), name


def test_each_smaller_kernel_has_one_identity_transform() -> None:
    transforms = dict(ElasticMBConv(MBCONV, (3, 5, 7)).transforms)
    assert transforms.keys() == {"3", "5"}
    assert torch.equal(transforms["5"], torch.eye(25))
    assert torch.equal(transforms["3"], torch.eye(9))


@pytest.mark.parametrize(
    ("spec", "kind"),
    [(MBCONV, ElasticMBConv), (BOTTLENECK, ElasticBottleneck), (CONV, ElasticConv), (LinearSpec(8, 4), ElasticLinear)],
)
def test_a_layer_has_the_elastic_block_of_its_kind(spec: LayerSpec, kind: type[ElasticBlock]) -> None:
    assert type(elastic(spec)) is kind


# Sorting channels


def test_sorting_keeps_the_function_of_the_largest_form(block: ElasticMBConv, bottleneck: ElasticBottleneck) -> None:
    for part, spec in ((block, MBCONV), (bottleneck, BOTTLENECK)):
        x = image_for(spec)
        before = part(x.clone(), spec)
        part.sort_channels()
        assert_close(part(x, spec), before)


@pytest.mark.parametrize("largest", [MBCONV, BOTTLENECK], ids=lambda spec: spec.key)
def test_sorting_keeps_the_functions_of_trained_forms_and_of_no_others(largest: LayerSpec) -> None:
    block = randomised(elastic(largest, (3, 5, 7)))
    trained, other = FORMS[largest][-1], FORMS[largest][0]
    other = replace(other, mid_channels=4)  # type: ignore[call-arg]
    images = {spec: image_for(spec) for spec in (trained, other)}
    before = {spec: block(x.clone(), spec) for spec, x in images.items()}
    block.sort_channels([trained])
    assert_close(block(images[trained], trained), before[trained])
    assert not torch.allclose(block(images[other], other), before[other])


def test_sorting_puts_the_largest_projection_weights_first(block: ElasticMBConv) -> None:
    block.sort_channels()
    importance = block.full.project.conv.weight.abs().sum(dim=(0, 2, 3))
    assert_close(importance, importance.sort(descending=True).values)
    hidden = block.full.se.expand.weight.abs().sum(dim=(0, 2, 3))
    assert_close(hidden, hidden.sort(descending=True).values)


def test_sorting_puts_the_largest_weights_of_both_middle_layers_first(bottleneck: ElasticBottleneck) -> None:
    bottleneck.sort_channels()
    for part in (bottleneck.full.main.conv, bottleneck.full.main.restore):
        importance = part.conv.weight.abs().sum(dim=(0, 2, 3))
        assert_close(importance, importance.sort(descending=True).values)


def test_sorting_keeps_trained_middle_channels_in_front(bottleneck: ElasticBottleneck) -> None:
    main = bottleneck.full.main
    before = main.restore.conv.weight.abs().sum(dim=(0, 2, 3)).clone()
    bottleneck.sort_channels([replace(BOTTLENECK, mid_channels=8), replace(BOTTLENECK, mid_channels=12)])
    after = main.restore.conv.weight.abs().sum(dim=(0, 2, 3))
    for part in (slice(8), slice(8, 12), slice(12, None)):
        assert_close(after[part], before[part].sort(descending=True).values)


def test_sorting_leaves_the_channels_between_blocks_alone(bottleneck: ElasticBottleneck) -> None:
    before = {name: tensor.clone() for name, tensor in bottleneck.full.state_dict().items()}
    bottleneck.sort_channels()
    for name, tensor in bottleneck.full.state_dict().items():
        if name.startswith(("downsample", "main.restore.bn")):
            assert torch.equal(tensor, before[name]), name
    assert not torch.equal(bottleneck.full.main.conv.conv.weight, before["main.conv.conv.weight"])


@pytest.mark.parametrize("largest", FORMS, ids=lambda spec: spec.key)
def test_sorting_twice_changes_nothing_more(largest: LayerSpec) -> None:
    block = randomised(elastic(largest, (3, 5, 7)))
    block.sort_channels(FORMS[largest])
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    block.sort_channels(FORMS[largest])
    for name, tensor in block.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(
    "spec",
    [MBConvSpec(8, 8, 8, 8, 3, 1, "relu", 0, shortcut=True, expanded=False), CONV, LinearSpec(8, 4)],
    ids=lambda spec: spec.key,
)
def test_sorting_leaves_a_block_without_middle_channels_alone(spec: LayerSpec) -> None:
    block = randomised(elastic(spec))
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    block.sort_channels()
    for name, tensor in block.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_gradients_of_a_form_reach_its_part_only(bottleneck: ElasticBottleneck) -> None:
    spec = replace(BOTTLENECK, in_channels=4, mid_channels=8, out_channels=24)
    bottleneck.train()(image_for(spec), spec).square().sum().backward()
    main, shortcut = bottleneck.full.main, bottleneck.full.downsample.conv
    for part, outputs, inputs in (
        (main.reduce, 8, 4),
        (main.conv, 8, 8),
        (main.restore, 24, 8),
        (shortcut, 24, 4),
    ):
        grad = part.conv.weight.grad
        assert isinstance(grad, Tensor)
        assert grad[:outputs, :inputs].any()
        assert not grad[outputs:].any()
        assert not grad[:, inputs:].any()
        assert isinstance(part.bn, nn.BatchNorm2d)
        assert part.bn.weight.grad is not None
        assert not part.bn.weight.grad[outputs:].any()
