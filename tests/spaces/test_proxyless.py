from dataclasses import replace

import pytest

from onceforall import spaces
from onceforall.layers import ConvSpec, MBConvSpec
from onceforall.nn.supernet import Supernet

PROXYLESS = spaces.proxyless()


@pytest.mark.parametrize(
    ("width", "widths", "final"),
    [(1.0, (32, 16, 24, 40, 80, 96, 192, 320), 1280), (1.3, (40, 24, 32, 56, 104, 128, 248, 416), 1664)],
)
def test_widths_are_the_published_ones(width: float, widths: tuple[int, ...], final: int) -> None:
    space = spaces.proxyless(width)
    assert (space.stem_width, space.first.width, *(unit.width for unit in space.units)) == widths
    assert (space.final_width, space.mix_width) == (final, 0)


def test_stage_table_is_the_published_one() -> None:
    assert [(unit.depths, unit.stride) for unit in PROXYLESS.units] == [
        *(((2, 3, 4), stride) for stride in (2, 2, 2, 1, 2)),
        ((1,), 1),
    ]
    assert {(unit.kernels, unit.expands) for unit in PROXYLESS.units} == {((3, 5, 7), (3, 4, 6))}


def test_size_is_that_of_five_units_and_one_block() -> None:
    assert PROXYLESS.size == 25 * 7371**5 * 9


def test_layers_have_relu6_an_own_epsilon_and_no_squeeze_excite() -> None:
    layers = PROXYLESS.lower(PROXYLESS.largest())
    blocks = [layer for layer in layers if isinstance(layer, MBConvSpec)]
    assert {block.se_channels for block in blocks} == {0}
    assert {(layer.activation, layer.bn_eps) for layer in layers if isinstance(layer, ConvSpec | MBConvSpec)} == {
        ("relu6", 1e-3)
    }
    assert [block.shortcut for block in blocks] == [False, *[False, True, True, True] * 5, False]


def test_feature_maps_halve_from_224_to_7() -> None:
    layers = PROXYLESS.lower(replace(PROXYLESS.smallest(), resolution=224))
    sizes = [layer.out_size for layer in layers if isinstance(layer, ConvSpec | MBConvSpec)]
    assert sizes == [112, 112, 56, 56, 28, 28, 14, 14, 14, 14, 7, 7, 7, 7]


def test_supernet_has_a_transform_for_each_smaller_kernel_of_each_block() -> None:
    supernet = Supernet(spaces.proxyless(1.0, num_classes=10))
    transforms = [parameter.numel() for name, parameter in supernet.named_parameters() if "transforms" in name]
    assert (sum(transforms), len(transforms)) == (21 * (25**2 + 9**2), 42)
