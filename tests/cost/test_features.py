from __future__ import annotations

import numpy as np
import pytest

from onceforall.cost.analytic import macs
from onceforall.cost.features import CONVOLUTIONAL, KINDS, NAMES, QUANTITIES, features, layer_features
from onceforall.layers import BottleneckSpec, ConvSpec, LinearSpec, MBConvSpec, PoolSpec
from onceforall.space import SearchSpace


def named(values: np.ndarray) -> dict[str, float]:
    return {name: float(value) for name, value in zip(NAMES, values, strict=True) if value}


def test_all_macs_are_somebodys(space: SearchSpace, rng: np.random.Generator) -> None:
    for arch in (space.smallest(), space.largest(), space.sample(rng)):
        layers = space.lower(arch)
        found = features(layers).reshape(len(KINDS), 4)
        assert found[:, 1].sum() == macs(layers)
        assert (found >= 0).all()


def test_a_block_is_its_operations() -> None:
    block = MBConvSpec(8, 16, 64, 16, 5, 1, "relu", se_channels=16, shortcut=True)
    assert named(layer_features(block)) == {
        "pointwise: calls": 2,
        "pointwise: MACs": 2 * 64 * 16 * 64,
        "pointwise: elements": 2 * (16 + 64) * 64,
        "pointwise: weights": 2 * 16 * 64,
        "depthwise 5: calls": 1,
        "depthwise 5: MACs": 25 * 64 * 64,
        "depthwise 5: elements": 2 * 64 * 64,
        "depthwise 5: weights": 25 * 64,
        "squeeze-excite: calls": 1,
        "squeeze-excite: MACs": 2 * 64 * 16,
        "squeeze-excite: elements": 2 * 64 * 64,
        "squeeze-excite: weights": 2 * 64 * 16,
        "sum: calls": 1,
        "sum: elements": 2 * 16 * 64,
    }


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (ConvSpec(32, 3, 16, 3, 2, "relu"), "convolution"),
        (ConvSpec(4, 16, 32, 1, 1, "relu"), "pointwise"),
        (PoolSpec(4, 32), "pooling"),
        (LinearSpec(32, 10), "linear"),
        (MBConvSpec(8, 16, 16, 16, 9, 1, "relu", 0, shortcut=False, expanded=False), "depthwise 7"),
        (BottleneckSpec(8, 16, 8, 32, 2, "relu", downsample=True), "convolution"),
    ],
)
def test_each_layer_counts_as_its_kind(layer: ConvSpec, kind: str) -> None:
    assert named(layer_features(layer))[f"{kind}: calls"] == 1


@pytest.mark.usefixtures("maps")
def test_what_convolutional_networks_do_comes_first_and_nothing_else_is_theirs(space: SearchSpace) -> None:
    found = features(space.lower(space.largest()))
    known = len(CONVOLUTIONAL) * len(QUANTITIES)
    assert NAMES[known - 4 : known] == tuple(f"linear: {quantity}" for quantity in QUANTITIES)
    assert found[:known].any()
    assert not found[known:].any()


def test_a_pooling_inside_a_block_is_part_of_the_convolution_that_reads_it() -> None:
    found = named(layer_features(BottleneckSpec(8, 16, 8, 32, 2, "relu", downsample=True)))
    assert found["pointwise: calls"] == 3
    assert found["pointwise: elements"] == (16 + 8) * 64 + (8 + 32) * 16 + 16 * 64 + 32 * 16
    assert "pooling: calls" not in found
    assert found["sum: calls"] == 1


def test_a_sum_is_part_of_a_convolution_on_its_own() -> None:
    assert "sum: calls" not in named(layer_features(ConvSpec(8, 16, 16, 3, 1, "relu", shortcut=True)))
