from dataclasses import replace

import pytest

from onceforall import spaces
from onceforall.errors import InvalidConfiguration
from onceforall.layers import ConvSpec, MBConvSpec
from onceforall.nn.supernet import Supernet

V3 = spaces.mobilenet_v3(width=1.0)

# (depth, expand, kernel) everywhere, at 224 px: parameters and MACs in millions.
CORNERS = {
    (2, 3, 3): (3.411, 121.28),
    (2, 3, 7): (3.493, 151.29),
    (2, 6, 3): (4.673, 222.60),
    (2, 6, 7): (4.838, 282.63),
    (4, 3, 3): (4.372, 226.19),
    (4, 3, 7): (4.554, 292.71),
    (4, 6, 3): (7.300, 433.14),
    (4, 6, 7): (7.665, 566.17),
}


@pytest.mark.parametrize("corner", CORNERS)
def test_corner_costs_are_those_of_the_paper(corner: tuple[int, int, int]) -> None:
    depth, expand, kernel = corner
    layers = V3.lower(V3.uniform(depth=depth, kernel=kernel, expand=expand, resolution=224))
    params, macs = CORNERS[corner]
    assert round(sum(layer.params for layer in layers) / 1e6, 3) == params
    assert round(sum(layer.macs for layer in layers) / 1e6, 2) == macs


@pytest.mark.parametrize(("width", "parameters"), [(1.0, 7_678_880), (1.2, 10_715_752)])
def test_supernet_has_the_published_number_of_parameters(width: float, parameters: int) -> None:
    supernet = Supernet(spaces.mobilenet_v3(width))
    assert sum(parameter.numel() for parameter in supernet.parameters()) == parameters
    transforms = [parameter.numel() for name, parameter in supernet.named_parameters() if "transforms" in name]
    assert (sum(transforms), len(transforms)) == (14_120, 40)


def test_size_is_that_of_the_paper_at_each_of_25_resolutions() -> None:
    assert len(V3.resolutions) == 25
    assert V3.size == 25 * 7371**5


@pytest.mark.parametrize(
    ("width", "widths", "head"),
    [(1.0, (16, 16, 24, 40, 80, 112, 160), (960, 1280)), (1.2, (24, 24, 32, 48, 96, 136, 192), (1152, 1536))],
)
def test_widths_are_the_published_ones(width: float, widths: tuple[int, ...], head: tuple[int, int]) -> None:
    space = spaces.mobilenet_v3(width)
    assert (space.stem_width, space.first.width, *(unit.width for unit in space.units)) == widths
    assert (space.final_width, space.mix_width) == head


def test_stage_table_is_the_published_one() -> None:
    assert [(unit.stride, unit.activation, unit.squeeze_excite) for unit in V3.units] == [
        (2, "relu", False),
        (2, "relu", True),
        (2, "h_swish", False),
        (1, "h_swish", True),
        (2, "h_swish", True),
    ]


def test_first_block_of_a_unit_strides_and_the_others_have_shortcuts() -> None:
    layers = V3.lower(V3.uniform(depth=3, kernel=3, expand=3, resolution=224))
    blocks = [layer for layer in layers if isinstance(layer, MBConvSpec)][1:]
    assert [(block.stride, block.shortcut) for block in blocks] == [
        pair for unit in V3.units for pair in ((unit.stride, False), (1, True), (1, True))
    ]


def test_feature_maps_halve_from_224_to_7() -> None:
    layers = V3.lower(V3.uniform(depth=2, kernel=3, expand=3, resolution=224))
    sizes = [layer.out_size for layer in layers if isinstance(layer, ConvSpec | MBConvSpec)]
    assert sizes == [112, 112, 56, 56, 28, 28, 14, 14, 14, 14, 7, 7, 7, 1]


def test_squeeze_excite_is_a_rounded_quarter_of_the_middle_channels() -> None:
    block = V3.block(224, unit=4, index=1, gene=V3.largest().units[4][1])
    assert isinstance(block, MBConvSpec)
    assert (block.mid_channels, block.se_channels) == (960, 240)


def test_small_image_space_is_large_and_spans_a_factor_of_eight() -> None:
    space = spaces.mobilenet_v3_small_images()
    smallest, largest = (sum(layer.macs for layer in space.lower(a)) for a in (space.smallest(), space.largest()))
    assert space.size >= 1e9
    assert largest >= 8 * smallest


def test_width_multipliers_scale_the_channels_of_a_unit_and_of_what_reads_them() -> None:
    space = spaces.mobilenet_v3(width_multipliers=(0.25, 0.5, 0.75, 1.0))
    plain = space.uniform(depth=2, kernel=3, expand=3, resolution=224)
    scaled = replace(plain, width_multipliers=(1, 0.5, 1, 1, 0.25))
    widths = [(layer.in_channels, layer.out_channels) for layer in space.lower(plain)[2:-3]]  # type: ignore[union-attr]
    assert widths == [
        (16, 24), (24, 24), (24, 40), (40, 40), (40, 80), (80, 80), (80, 112), (112, 112), (112, 160), (160, 160),
        (160, 960),
    ]  # fmt: skip
    widths = [(layer.in_channels, layer.out_channels) for layer in space.lower(scaled)[2:-3]]  # type: ignore[union-attr]
    assert widths == [
        (16, 24), (24, 24), (24, 24), (24, 24), (24, 80), (80, 80), (80, 112), (112, 112), (112, 40), (40, 40),
        (40, 960),
    ]  # fmt: skip
    assert space.size == 25 * (4 * 7371) ** 5


def test_a_tied_space_has_its_three_forms_of_a_unit() -> None:
    space = spaces.mobilenet_v3(resolutions=(224,), tied=True)
    assert space.size == (3**2 + 3**3 + 3**4) ** 5
    assert space.largest() == replace(V3.largest(), resolution=224)
    assert space.smallest() == V3.uniform(depth=2, kernel=3, expand=3, resolution=224)


def test_a_unit_that_depth_can_take_away_is_refused() -> None:
    message = r"^depths \(0, 2\): a unit that changes width or size has at least one block$"
    with pytest.raises(InvalidConfiguration, match=message):
        spaces.mobilenet_v3(depths=(0, 2))
