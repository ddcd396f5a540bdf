import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from onceforall.layers import ConvSpec, LayerSpec, LinearSpec, MBConvSpec, PoolSpec, make_divisible, strided_size
from onceforall.nn.subnet import build_layer
from onceforall.nn.supernet import Supernet

CONV = ConvSpec(9, 4, 6, 3, 2, "relu")
MBCONV = MBConvSpec(9, 4, 16, 4, 5, 1, "h_swish", se_channels=8, shortcut=True)
LAYERS = [
    CONV,
    dataclasses.replace(CONV, kernel=1, stride=1, batch_norm=False),
    MBCONV,
    dataclasses.replace(MBCONV, kernel=7, stride=2, shortcut=False, se_channels=0, activation="relu6"),
    dataclasses.replace(MBCONV, mid_channels=4, expanded=False, activation="relu"),
    PoolSpec(9, 4),
    LinearSpec(5, 3, dropout=0.1),
]


def image_for(layer: LayerSpec) -> torch.Tensor:
    """An input on the meta device: shapes without arithmetic."""
    if isinstance(layer, LinearSpec):
        return torch.empty(1, layer.in_features, 1, 1, device="meta")
    channels = layer.channels if isinstance(layer, PoolSpec) else layer.in_channels
    return torch.empty(1, channels, layer.in_size, layer.in_size, device="meta")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 8), (8, 8), (11.9, 16), (12, 16), (19.2, 24), (24, 24), (28.8, 32), (72, 72), (100, 104)],
)
def test_widths_round_to_eight_and_never_lose_a_tenth(value: float, expected: int) -> None:
    assert make_divisible(value) == expected


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


def test_whole_networks_count_what_extracted_modules_do(supernet: Supernet, rng: np.random.Generator) -> None:
    for _ in range(3):
        arch = supernet.space.sample(rng)
        network = supernet.extract(arch).to("meta")
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, arch.resolution, arch.resolution, device="meta"))
        layers = supernet.space.lower(arch)
        assert 2 * sum(layer.macs for layer in layers) == counter.get_total_flops()
        assert sum(layer.params for layer in layers) == sum(parameter.numel() for parameter in network.parameters())


def test_live_elements_of_a_block_hold_its_shortcut() -> None:
    source, middle = 4 * 81, 16 * 81
    assert MBCONV.live_elements == (source + middle, 2 * middle + source, middle + source + source)


def test_live_elements_without_expansion_count_the_input_once() -> None:
    plain = dataclasses.replace(MBCONV, mid_channels=4, expanded=False, se_channels=0)
    assert plain.live_elements == (2 * 4 * 81, 3 * 4 * 81)


@pytest.mark.parametrize(
    ("layer", "field", "value"),
    [
        *((CONV, field, 8) for field in ("in_size", "in_channels", "out_channels", "kernel", "stride")),
        (CONV, "activation", "h_swish"),
        (CONV, "batch_norm", False),
        *(
            (MBCONV, field, 2)
            for field in ("in_size", "in_channels", "mid_channels", "out_channels", "kernel", "stride")
        ),
        (MBCONV, "activation", "relu"),
        (MBCONV, "se_channels", 0),
        (MBCONV, "shortcut", False),
        (MBCONV, "expanded", False),
        (PoolSpec(9, 4), "in_size", 8),
        (PoolSpec(9, 4), "channels", 8),
        (LinearSpec(5, 3), "in_features", 6),
        (LinearSpec(5, 3), "out_features", 6),
    ],
)
def test_layers_that_take_another_time_have_another_key(layer: LayerSpec, field: str, value: object) -> None:
    assert dataclasses.replace(layer, **{field: value}).key != layer.key  # type: ignore[arg-type]
