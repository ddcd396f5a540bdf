import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from onceforall.layers import BottleneckSpec, ConvSpec, LayerSpec, LinearSpec, MaxPoolSpec, MBConvSpec, PoolSpec
from onceforall.nn import elastic as elastic_blocks
from onceforall.nn.elastic import Elastic, ElasticBottleneck, ElasticMBConv, elastic
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


def randomised(block: Elastic) -> Elastic:
    """The block with random weights and statistics, in double precision and evaluation mode."""
    torch.manual_seed(0)
    for tensor in (*block.double().parameters(), *block.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand_like(tensor) - 0.3 * (tensor.ndim > 1)
    return block.eval()


def every_form(largest: LayerSpec) -> list[LayerSpec]:
    """The forms of a block, in all kernel sizes."""
    kernels = [replace(largest, kernel=kernel) for kernel in (3, 5, 7)] if isinstance(largest, MBConvSpec) else []
    return [*kernels, largest, *FORMS[largest]]


def image_for(spec: LayerSpec) -> Tensor:
    if isinstance(spec, LinearSpec):
        return torch.randn(2, spec.in_features, 1, 1).double()
    channels = spec.channels if isinstance(spec, PoolSpec | MaxPoolSpec) else spec.in_channels
    return torch.randn(2, channels, spec.in_size, spec.in_size).double()


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.fixture
def block() -> ElasticMBConv:
    return randomised(ElasticMBConv(MBCONV, every_form(MBCONV)))  # type: ignore[return-value]


@pytest.fixture
def bottleneck() -> ElasticBottleneck:
    return randomised(ElasticBottleneck(BOTTLENECK))  # type: ignore[return-value]


# Slicing


def test_slices_fit_the_plain_layer_in_every_form(space: SearchSpace) -> None:
    largest = space.largest()
    resolution, layers = largest.resolution, space.lower(largest)
    stem = len(space.stem(resolution))
    for number, (u, b) in enumerate(space.block_indices):
        forms = [form.layer for form in space.block_forms(resolution, u, b)]
        block = elastic(layers[stem + number], forms)
        for form in forms:
            with torch.device("meta"):
                assert shapes(block.slice(form)) == shapes(build_layer(form).state_dict())
    for unit, ends in ((space.units[0], space.stem), (space.units[-1], space.head)):
        blocks = [elastic(layer) for layer in ends(resolution, unit.width_multipliers[-1])]
        for multiplier in unit.width_multipliers:
            for block, layer in zip(blocks, ends(resolution, multiplier), strict=True):
                assert shapes(block.slice(layer)) == shapes(build_layer(layer).state_dict())


@pytest.mark.parametrize("largest", FORMS, ids=lambda spec: spec.key)
@pytest.mark.parametrize("training", [False, True])
def test_every_form_is_the_plain_layer_with_its_slice(largest: LayerSpec, training: bool) -> None:
    block = randomised(elastic(largest, every_form(largest))).train(training)
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
    transforms = dict(ElasticMBConv(MBCONV, every_form(MBCONV)).transforms)
    assert transforms.keys() == {"3", "5"}
    assert torch.equal(transforms["5"], torch.eye(25))
    assert torch.equal(transforms["3"], torch.eye(9))


@pytest.mark.parametrize(
    ("spec", "kind"),
    [(MBCONV, ElasticMBConv), (BOTTLENECK, ElasticBottleneck), (CONV, Elastic), (LinearSpec(8, 4), Elastic)],
)
def test_a_layer_has_the_elastic_block_of_its_kind(spec: LayerSpec, kind: type[Elastic]) -> None:
    assert type(elastic(spec)) is kind


# Borrowed tensors


def test_a_form_leaves_no_trace(block: ElasticMBConv) -> None:
    form, before = FORMS[MBCONV][0], {name: tensor.clone() for name, tensor in block.state_dict().items()}
    block.train()(image_for(form), form).sum().backward()
    shell = elastic_blocks._shell(form, threading.get_ident())
    assert all(tensor.is_meta for tensor in (*shell.module.parameters(), *shell.module.buffers()))
    for name, tensor in block.state_dict().items():
        changed = "running" in name
        assert torch.equal(tensor, before[name]) != changed, name  # and batch norms do not count their batches
    with pytest.raises(RuntimeError):
        block(image_for(form)[:, :1], form)
    assert all(tensor.is_meta for tensor in shell.module.parameters())


def test_an_extracted_block_counts_its_batches(block: ElasticMBConv) -> None:
    plain = block.extract(MBCONV).train()
    plain(image_for(MBCONV))
    plain(image_for(MBCONV))
    assert plain.depthwise.bn.num_batches_tracked == block.full.depthwise.bn.num_batches_tracked + 2  # type: ignore[operator, union-attr]


def test_extracted_blocks_share_nothing(block: ElasticMBConv) -> None:
    first, second = block.extract(MBCONV), block.extract(MBCONV)
    seen = []
    first.depthwise.register_forward_hook(lambda *_: seen.append("hook"))  # type: ignore[operator, union-attr]
    first.depthwise.conv.weight.data.zero_()  # type: ignore[operator, union-attr]
    first.depthwise.act = nn.Identity()  # type: ignore[union-attr]
    x = image_for(MBCONV)
    assert_close(second.eval()(x), block(x, MBCONV))
    assert not seen
    assert isinstance(second.depthwise.act, nn.Hardswish)  # type: ignore[union-attr]


def test_threads_compute_forms_at_the_same_time(block: ElasticMBConv) -> None:
    other, form = copy.deepcopy(block), FORMS[MBCONV][0]
    for parameter in other.parameters():
        parameter.data.mul_(1.5)
    x = image_for(form)
    with torch.no_grad():
        expected = [one(x, form) for one in (block, other)]

    def work(index: int) -> bool:
        with torch.no_grad():
            return all(torch.equal((block, other)[index % 2](x, form), expected[index % 2]) for _ in range(30))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_forms_for_other_resolutions_share_a_module() -> None:
    small, large = (elastic_blocks._shell(replace(CONV, in_size=size), threading.get_ident()) for size in (8, 16))
    assert small is large


# Sorting channels


def test_sorting_keeps_the_function_of_the_largest_form(block: ElasticMBConv, bottleneck: ElasticBottleneck) -> None:
    for part, spec in ((block, MBCONV), (bottleneck, BOTTLENECK)):
        x = image_for(spec)
        before = part(x.clone(), spec)
        part.sort_channels()
        assert_close(part(x, spec), before)


@pytest.mark.parametrize("largest", [MBCONV, BOTTLENECK], ids=lambda spec: spec.key)
def test_sorting_keeps_the_functions_of_trained_forms_and_of_no_others(largest: LayerSpec) -> None:
    block = randomised(elastic(largest, every_form(largest)))
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
    block = randomised(elastic(largest, every_form(largest)))
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


# What slices are made of


def identities() -> dict[str, Tensor]:
    return {"5": torch.eye(25), "3": torch.eye(9)}


def test_leading_keeps_the_first_entries_as_a_view() -> None:
    tensor = torch.arange(24).view(4, 6)
    part = elastic_blocks.leading(tensor, 2, 3)
    assert part.tolist() == [[0, 1, 2], [6, 7, 8]]
    assert part.data_ptr() == tensor.data_ptr()


def test_leading_returns_the_tensor_itself_where_nothing_is_cut() -> None:
    tensor = torch.zeros(4, 6)
    assert elastic_blocks.leading(tensor, 4, 6) is tensor


@pytest.mark.parametrize(("kernel", "margin"), [(7, 0), (5, 1), (3, 2)])
def test_identity_transforms_give_the_centre_crop(kernel: int, margin: int) -> None:
    weight = torch.randn(4, 1, 7, 7)
    crop = weight[:, :, margin : 7 - margin, margin : 7 - margin]
    assert torch.equal(elastic_blocks.transform_kernel(weight, kernel, identities()), crop)


def test_the_3x3_kernel_is_made_from_the_transformed_5x5_kernel() -> None:
    weight, five, three = torch.randn(4, 1, 7, 7), torch.randn(25, 25), torch.randn(9, 9)
    for channel, small in zip(weight, elastic_blocks.transform_kernel(weight, 3, {"3": three, "5": five}), strict=True):
        middle = (five @ channel[0, 1:6, 1:6].flatten()).view(5, 5)
        assert_close(small[0], (three @ middle[1:4, 1:4].flatten()).view(3, 3), rtol=1e-4, atol=1e-4)


def test_the_largest_kernel_is_not_transformed() -> None:
    weight = torch.randn(4, 1, 7, 7)
    assert elastic_blocks.transform_kernel(weight, 7, {"5": torch.zeros(25, 25), "3": torch.zeros(9, 9)}) is weight


def test_a_missing_size_is_stepped_over() -> None:
    weight = torch.randn(4, 1, 7, 7)
    assert torch.equal(elastic_blocks.transform_kernel(weight, 3, {"3": torch.eye(9)}), weight[:, :, 2:5, 2:5])


@pytest.mark.parametrize(
    ("boundaries", "order"), [((), [1, 3, 5, 2, 4, 0]), ((2,), [1, 0, 3, 5, 2, 4]), ((2, 4), [1, 0, 3, 2, 5, 4])]
)
def test_importance_sorts_inside_each_range_and_ties_keep_their_order(
    boundaries: tuple[int, ...], order: list[int]
) -> None:
    importance = torch.tensor([0.0, 9.0, 2.0, 5.0, 1.0, 5.0])
    assert elastic_blocks.order_by_importance(importance, boundaries).tolist() == order
