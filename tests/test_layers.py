import dataclasses
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from onceforall.errors import InvalidConfiguration
from onceforall.layers import (
    BottleneckSpec,
    ConvSpec,
    Layer,
    LayerSpec,
    LinearSpec,
    MaxPoolSpec,
    MBConvSpec,
    PoolSpec,
    Size,
    convolution,
    height_width,
    layer_from_json,
    layer_to_json,
    make_divisible,
    pixels,
    register,
    said,
    scaled,
    strided_size,
)
from onceforall.layers import layer as layer_room
from onceforall.nn.subnet import build_layer

CONV = ConvSpec(9, 4, 6, 3, 2, "relu")
MBCONV = MBConvSpec(9, 4, 16, 4, 5, 1, "h_swish", se_channels=8, shortcut=True)
BOTTLENECK = BottleneckSpec(9, 6, 4, 8, 2, "relu", downsample=True)
MAX_POOL = MaxPoolSpec(9, 4)
LAYERS = [
    CONV,
    dataclasses.replace(CONV, kernel=1, stride=1, batch_norm=False),
    MBCONV,
    dataclasses.replace(MBCONV, kernel=7, stride=2, shortcut=False, se_channels=0, activation="relu6"),
    dataclasses.replace(MBCONV, mid_channels=4, expanded=False, activation="relu"),
    ConvSpec(9, 4, 4, 3, 1, "relu", shortcut=True),
    BOTTLENECK,
    dataclasses.replace(BOTTLENECK, stride=1),
    dataclasses.replace(BOTTLENECK, stride=1, in_channels=8, downsample=False),
    MAX_POOL,
    MaxPoolSpec(8, 4),
    PoolSpec(9, 4),
    LinearSpec(5, 3, dropout=0.1),
]


def image_for(layer: LayerSpec) -> torch.Tensor:
    """An input on the meta device: shapes without arithmetic."""
    return torch.empty(1, layer.in_channels, *height_width(layer.in_size), device="meta")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 8), (8, 8), (11.9, 16), (12, 16), (19.2, 24), (24, 24), (28.8, 32), (72, 72), (100, 104)],
)
def test_widths_round_to_eight_and_never_lose_a_tenth(value: float, expected: int) -> None:
    assert make_divisible(value) == expected


def test_a_multiplier_of_one_leaves_any_width_alone() -> None:
    assert [scaled(20, multiplier) for multiplier in (1, 1.0, 0.5, 0.65)] == [20, 20, 16, 16]
    assert scaled(64, 0.65) == 40


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", range(1, 10))
def test_strided_size_is_that_of_a_same_padded_convolution(size: int, stride: int) -> None:
    image = torch.zeros(1, 1, size, size)
    assert strided_size(size, stride) == torch.nn.Conv2d(1, 1, 3, stride, 1)(image).shape[-1]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.key)
def test_a_layer_counts_what_its_module_does(layer: LayerSpec) -> None:
    module = build_layer(layer).to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        output = module(image_for(layer))
    assert 2 * layer.macs == counter.get_total_flops()
    assert layer.params == sum(parameter.numel() for parameter in module.parameters())
    assert layer.out_size == (output.shape[-1] if output.ndim == 4 else 1)


def summary(layer: LayerSpec) -> list[tuple[str, int, int, int, int]]:
    """Of each operation: kind, elements read, written and held, weights."""
    return [(step.kind, step.inputs, step.outputs, step.held, step.weights) for step in layer.operations]


def test_operations_of_a_block_hold_its_shortcut() -> None:
    source, middle = 4 * 81, 16 * 81
    assert summary(MBCONV) == [
        ("pointwise", source, middle, 0, 4 * 16),
        ("depthwise", middle, middle, source, 25 * 16),
        ("squeeze-excite", middle, middle, source, 2 * 16 * 8),
        ("pointwise", middle, source, source, 16 * 4),
        ("add", source, source, source, 0),
    ]
    # Squeeze-excite and the sum work in place.
    live = [source + middle, 2 * middle + source, middle + source, middle + source + source, 2 * source]
    assert [step.live for step in MBCONV.operations] == live
    assert [step.activation for step in MBCONV.operations] == ["h_swish", "h_swish", "none", "none", "none"]


def test_an_operation_says_all_of_itself() -> None:
    depthwise = MBCONV.operations[1]
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (16, 16, 16)
    assert (depthwise.in_size, depthwise.out_size, depthwise.kernel, depthwise.stride) == (9, 9, 5, 1)
    assert (depthwise.weights, depthwise.vectors, depthwise.macs) == (25 * 16, 2 * 16, 25 * 16 * 81)
    assert MBCONV.operations[2].vectors == 16 + 8


def test_operations_without_expansion_count_the_input_once() -> None:
    plain = dataclasses.replace(MBCONV, mid_channels=4, expanded=False, se_channels=0)
    assert [step.live for step in plain.operations] == [2 * 4 * 81, 3 * 4 * 81, 2 * 4 * 81]


def test_operations_of_a_bottleneck_hold_its_input_and_then_its_result() -> None:
    source, result = 6 * 81, 8 * 25
    assert summary(BOTTLENECK) == [
        ("pointwise", source, 4 * 81, 0, 6 * 4),
        ("dense", 4 * 81, 4 * 25, source, 9 * 4 * 4),
        ("pointwise", 4 * 25, result, source, 4 * 8),
        ("average pool", source, 6 * 25, result, 0),  # of the shortcut
        ("pointwise", 6 * 25, result, result, 6 * 8),
        ("add", result, result, result, 0),
    ]
    assert BOTTLENECK.operations[-1].activation == "relu"
    same = dataclasses.replace(BOTTLENECK, stride=1)
    assert summary(same)[3] == ("pointwise", source, 8 * 81, 8 * 81, 6 * 8)
    plain = dataclasses.replace(BOTTLENECK, stride=1, in_channels=8, downsample=False)
    assert [step.held for step in plain.operations] == [0, 8 * 81, 8 * 81, 8 * 81]


def test_operations_of_other_layers_are_their_own_tensors() -> None:
    assert summary(CONV) == [("dense", 4 * 81, 6 * 25, 0, 9 * 4 * 6)]
    residual = ConvSpec(9, 4, 4, 3, 1, "relu", shortcut=True)
    assert summary(residual)[1] == ("add", 4 * 81, 4 * 81, 4 * 81, 0)
    assert summary(MAX_POOL) == [("max pool", 4 * 81, 4 * 25, 0, 0)]
    assert summary(PoolSpec(9, 4)) == [("global pool", 4 * 81, 4, 0, 0)]
    assert summary(LinearSpec(5, 3)) == [("linear", 5, 3, 0, 15)]


def test_a_convolution_in_groups_is_its_own_kind() -> None:
    kinds = [convolution(8, 16, 4, 3, groups=groups).kind for groups in (1, 2, 8)]
    assert [*kinds, convolution(8, 8, 4, 3, groups=8).kind] == ["dense", "grouped", "grouped", "depthwise"]
    assert convolution(8, 16, 4, 3, groups=2).weights == 9 * 4 * 16


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.key)
def test_weights_of_operations_are_those_of_the_convolutions_and_linear_layers(layer: LayerSpec) -> None:
    weights = sum(parameter.numel() for parameter in build_layer(layer).parameters() if parameter.ndim > 1)
    assert sum(step.weights for step in layer.operations) == weights


def at(layer: LayerSpec, size: Size) -> LayerSpec:
    """The layer on a map of another size."""
    return dataclasses.replace(layer, in_size=size)  # type: ignore[type-var]


@pytest.mark.parametrize("layer", LAYERS[:-1], ids=lambda layer: layer.key)
def test_a_map_may_be_rectangular(layer: LayerSpec) -> None:
    wide = at(layer, (9, 5))
    module = build_layer(wide).to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        output = module(image_for(wide))
    assert 2 * wide.macs == counter.get_total_flops()
    assert height_width(wide.out_size) == tuple(output.shape[2:])
    assert ":9x5:" in wide.key
    assert layer_from_json(json.loads(json.dumps(layer_to_json(wide)))) == wide
    assert at(layer, (9, 9)).macs == layer.macs
    elements = [(step.inputs, step.outputs) for step in wide.operations]
    assert elements[0][0] == wide.in_channels * 45
    assert elements[-1][1] == wide.out_channels * pixels(wide.out_size)


def test_a_size_is_one_number_where_it_is_square() -> None:
    assert strided_size((224, 160), 2) == (112, 80)
    assert strided_size((2, 1), 2) == 1
    assert [height_width(size) for size in (7, (9, 5))] == [(7, 7), (9, 5)]
    assert [pixels(size) for size in (7, (9, 5))] == [49, 45]
    assert [said(size) for size in (7, (9, 5))] == ["7", "9x5"]


def test_keys_say_what_a_layer_is() -> None:
    assert BOTTLENECK.key == "bottleneck:9:6>4>8:k3:s2:relu:downsample"
    assert dataclasses.replace(BOTTLENECK, stride=1, downsample=False).key == "bottleneck:9:6>4>8:k3:s1:relu:skip"
    assert MAX_POOL.key == "maxpool:9:4:k3:s2"
    assert CONV.key == "conv:9:4>6:k3:s2:relu:bn"
    assert dataclasses.replace(CONV, shortcut=True).key == "conv:9:4>6:k3:s2:relu:bn:skip"


@pytest.mark.parametrize(
    ("layer", "field", "value"),
    [
        *((CONV, field, 8) for field in ("in_size", "in_channels", "out_channels", "kernel", "stride")),
        (CONV, "activation", "h_swish"),
        (CONV, "batch_norm", False),
        (CONV, "shortcut", True),
        *(
            (MBCONV, field, 2)
            for field in ("in_size", "in_channels", "mid_channels", "out_channels", "kernel", "stride")
        ),
        (MBCONV, "activation", "relu"),
        (MBCONV, "se_channels", 0),
        (MBCONV, "shortcut", False),
        (MBCONV, "expanded", False),
        *(
            (BOTTLENECK, field, 1)
            for field in ("in_size", "in_channels", "mid_channels", "out_channels", "kernel", "stride")
        ),
        (BOTTLENECK, "activation", "relu6"),
        (BOTTLENECK, "downsample", False),
        *((MAX_POOL, field, 1) for field in ("in_size", "channels", "kernel", "stride")),
        (PoolSpec(9, 4), "in_size", 8),
        (PoolSpec(9, 4), "channels", 8),
        (LinearSpec(5, 3), "in_features", 6),
        (LinearSpec(5, 3), "out_features", 6),
    ],
)
def test_layers_that_take_another_time_have_another_key(layer: LayerSpec, field: str, value: object) -> None:
    assert dataclasses.replace(layer, **{field: value}).key != layer.key  # type: ignore[arg-type]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_layer_survives_json(layer: LayerSpec) -> None:
    assert layer_from_json(json.loads(json.dumps(layer_to_json(layer)))) == layer


@pytest.mark.parametrize("wrong", [{}, {"layer": "lstm"}])
def test_json_of_no_layer_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidConfiguration, match=r"is no layer: layers are .*\bconv\b.*\blinear\b"):
        layer_from_json(wrong)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"layer": "pool"}, "missing required field `in_size`"),
        ({"layer": "pool", "size": 3}, "pool has no size"),
        ({"layer": "pool", "in_size": "3", "channels": 4}, r"got `str` - at `\$.in_size`"),
        ({**layer_to_json(CONV), "activation": "gelu"}, "gelu"),
    ],
)
def test_json_of_a_layer_with_other_fields_is_refused(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(InvalidConfiguration, match=text):
        layer_from_json(wrong)


def test_a_layer_derived_from_another_needs_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_room._SPECS, "_registered", dict(layer_room._SPECS._registered))
    monkeypatch.setattr(layer_room, "_ENTRIES", dict(layer_room._ENTRIES))

    @dataclasses.dataclass(frozen=True, slots=True)
    class Dilated(ConvSpec):
        dilation: int = 2

    @dataclasses.dataclass(frozen=True, slots=True)
    class Keyed(ConvSpec):
        dilation: int = 2
        key = Layer.key

    with pytest.raises(InvalidConfiguration, match=r"Dilated has the key of ConvSpec.*key = Layer\.key"):
        register("dilated", Dilated, module="torch.nn:Conv2d")
    register("keyed", Keyed, module="torch.nn:Conv2d")
    one, other = (Keyed(32, 3, 8, 3, 1, "relu", dilation=dilation) for dilation in (1, 2))
    assert len({one.key, other.key, ConvSpec(32, 3, 8, 3, 1, "relu").key}) == 3
