from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

import pytest
import torch

from onceforall import spaces
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration
from onceforall.interop.naming import by_short_name, network_names, short, supernet_names
from onceforall.layers import ConvSpec, LinearSpec, PoolSpec

if TYPE_CHECKING:
    from tests.interop.conftest import Published


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("first_conv.conv.weight", "first_conv.conv.weight"),
        ("blocks.1.mobile_inverted_conv.depth_conv.bn.bn.bias", "blocks.1.conv.depth_conv.bn.bias"),
        ("blocks.1.conv.depth_conv.conv.conv.weight", "blocks.1.conv.depth_conv.conv.weight"),
        ("blocks.1.conv.depth_conv.conv.7to5_matrix", "blocks.1.conv.depth_conv.conv.7to5_matrix"),
        ("blocks.2.conv.depth_conv.se.fc.reduce.weight", "blocks.2.conv.depth_conv.se.fc.reduce.weight"),
        ("input_stem.1.conv.conv.conv.weight", "input_stem.1.conv.weight"),
        ("classifier.linear.linear.bias", "classifier.linear.bias"),
    ],
)
def test_short_names_have_no_doubled_levels(name: str, expected: str) -> None:
    assert short(name) == expected


def test_all_key_styles_have_the_same_short_names(published: Published, plain: ModuleType) -> None:
    expected = {short(name) for name in published.weights}
    assert len(expected) == len(published.weights)
    for style in plain.STYLES:
        assert {short(name) for name in published.styled(style)} == expected, style


def test_a_supernet_has_the_names_of_the_authors_elastic_networks(published: Published) -> None:
    names = supernet_names(published.space)
    assert list(names) == list(dict.fromkeys(names))
    assert sorted(names.values()) == sorted(published.weights)
    assert set(names) == set(published.supernet.state_dict())


def test_a_tensor_in_two_key_styles_is_refused() -> None:
    state = {"blocks.1.conv.x.bn.bias": torch.ones(1), "blocks.1.mobile_inverted_conv.x.bn.bn.bias": torch.zeros(1)}
    with pytest.raises(
        IncompatibleCheckpoint,
        match=r"the file: blocks\.1\.mobile_inverted_conv\.x\.bn\.bn\.bias is there twice, in two key styles",
    ):
        by_short_name(state, "the file")


def test_a_layer_that_the_authors_do_not_have_is_refused_by_name() -> None:
    space = spaces.mobilenet_v3(resolutions=(64,))
    layers = space.lower(space.smallest())
    more = (*layers[:-1], ConvSpec(1, 1280, 1280, 1, 1, "relu"), layers[-1])
    with pytest.raises(InvalidConfiguration, match=r"no place for layer conv:1:1280>1280"):
        network_names(more)
    # One with a single convolution after the blocks is a ProxylessNAS network, whatever its stem.
    small = (*layers[:-4], ConvSpec(2, 160, 64, 1, 1, "h_swish"), PoolSpec(2, 64), LinearSpec(64, 10))
    assert "feature_mix_layer.conv.weight" in network_names(small).values()
