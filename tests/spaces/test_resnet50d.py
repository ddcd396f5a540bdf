from dataclasses import replace

import pytest

from onceforall import spaces
from onceforall.architecture import Architecture, Gene
from onceforall.cost.analytic import macs, params
from onceforall.errors import InvalidConfiguration
from onceforall.layers import BottleneckSpec, ConvSpec, MaxPoolSpec
from onceforall.nn.supernet import Supernet
from onceforall.spaces.resnet50d import ResNetSpace
from onceforall.spaces.units import ConvUnit

R50 = spaces.resnet50d()


def network(depths: tuple[int, ...], expand: float, multiplier: float, resolution: int = 224) -> Architecture:
    """Depths of the stem's residual convolution and of the four stages."""
    stem, *stages = depths
    units = (
        (Gene(kernel=3, expand=1),) * stem,
        (Gene(kernel=3, expand=1),) * 2,
        *((Gene(kernel=3, expand=expand),) * depth for depth in stages),
    )
    return Architecture(resolution, units, (multiplier,) * 6)


def test_resnet_50d_is_a_member_with_its_published_costs() -> None:
    layers = R50.lower(network((1, 3, 4, 6, 3), 0.25, 1))
    # ResNet-50 has 25,557,032 parameters and takes 4,089,184,256 MACs; here three 3x3 convolutions are its stem.
    stem, deep = 49 * 3 * 64, 9 * (3 * 32 + 32 * 32 + 32 * 64)
    assert params(layers) == 25_557_032 + deep - stem + 2 * (32 + 32) == 25_576_264
    assert macs(layers) == 4_089_184_256 + (deep - stem) * 112**2


def test_supernet_holds_the_parameters_of_its_largest_network_and_no_more() -> None:
    supernet = Supernet(R50)
    found = sum(parameter.numel() for parameter in supernet.parameters())
    assert found == params(R50.lower(R50.largest())) == 48_105_992


def test_size_counts_stem_stages_and_multipliers() -> None:
    # Three multipliers for each of six units; with or without the stem's residual convolution.
    small, large = 3**2 + 3**3 + 3**4, 3**4 + 3**5 + 3**6
    assert R50.size == 9 * 3**6 * 2 * small**3 * large


def test_stage_table_is_the_published_one() -> None:
    assert [(stage.depths, stage.width, stage.stride) for stage in R50.stages] == [
        ((2, 3, 4), 256, 1),
        ((2, 3, 4), 512, 2),
        ((4, 5, 6), 1024, 2),
        ((2, 3, 4), 2048, 2),
    ]


@pytest.mark.parametrize(
    ("multiplier", "stem", "widths"),
    [
        (1, (32, 64), (256, 512, 1024, 2048)),
        (0.8, (24, 48), (208, 408, 816, 1640)),
        (0.65, (24, 40), (168, 336, 664, 1328)),
    ],
)
def test_width_multipliers_scale_and_round_every_width(
    multiplier: float, stem: tuple[int, int], widths: tuple[int, ...]
) -> None:
    layers = R50.lower(network((1, 2, 2, 4, 2), 0.25, multiplier))
    convolutions = [layer for layer in layers if isinstance(layer, ConvSpec)]
    assert [(layer.out_channels, layer.stride, layer.shortcut) for layer in convolutions] == [
        (stem[0], 2, False), (stem[0], 1, True), (stem[1], 1, False)
    ]  # fmt: skip
    blocks = [layer for layer in layers if isinstance(layer, BottleneckSpec)]
    assert [block.out_channels for block in blocks if block.downsample] == list(widths)


def test_the_middle_of_a_bottleneck_is_a_share_of_its_output() -> None:
    blocks = [layer for layer in R50.lower(network((1, 2, 2, 4, 2), 0.35, 0.65)) if isinstance(layer, BottleneckSpec)]
    assert [block.mid_channels for block in blocks if block.downsample] == [56, 120, 232, 464]


def test_a_multiplier_belongs_to_its_unit_alone() -> None:
    plain = network((1, 2, 2, 4, 2), 0.25, 1)
    before = R50.lower(plain)
    for unit in range(6):
        multipliers = tuple(0.65 if u == unit else 1 for u in range(6))
        changed = [
            a != b for a, b in zip(R50.lower(replace(plain, width_multipliers=multipliers)), before, strict=True)
        ]
        #        stem 1  stem 2            stages              pool  classifier
        ranges = [(0, 3), (2, 5), (4, 7), (6, 9), (8, 13), (12, 16)]
        assert changed == [ranges[unit][0] <= index < ranges[unit][1] for index in range(16)], f"unit {unit + 1}"


def test_only_the_first_block_of_a_stage_strides_and_has_a_shortcut_of_its_own() -> None:
    blocks = [layer for layer in R50.lower(network((1, 2, 2, 4, 2), 0.25, 1)) if isinstance(layer, BottleneckSpec)]
    assert [(block.stride, block.downsample) for block in blocks] == [
        (1, True), (1, False), (2, True), (1, False), (2, True), *[(1, False)] * 3, (2, True), (1, False)
    ]  # fmt: skip


def test_feature_maps_halve_from_224_to_7() -> None:
    layers = R50.lower(network((0, 2, 2, 4, 2), 0.25, 1))
    kept = [layer for layer in layers if isinstance(layer, ConvSpec | MaxPoolSpec | BottleneckSpec)]
    assert [layer.out_size for layer in kept] == [112, 112, 56, 56, 56, 28, 28, 14, 14, 14, 14, 7, 7]


def test_without_a_stem_skip_the_stem_is_whole() -> None:
    assert spaces.resnet50d(stem_skip=False).units[0].depths == (1,)


# What makes no sense


def test_a_space_without_stages_is_refused() -> None:
    with pytest.raises(InvalidConfiguration, match="two units of the stem, and then stages"):
        replace(R50, units=R50.units[:2])


def test_a_stage_in_place_of_the_stem_is_refused() -> None:
    with pytest.raises(InvalidConfiguration, match="two units of the stem, and then stages"):
        replace(R50, units=(*R50.units[:3], ConvUnit((2,), (3,), (1,))))


@pytest.mark.parametrize("stem", [((1, 2), (2,)), ((0, 1), (1,)), ((0, 1), (1, 2))], ids=str)
def test_a_stem_of_other_depths_is_refused(stem: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    units = tuple(ConvUnit(depths, (3,), (1,)) for depths in stem)
    with pytest.raises(InvalidConfiguration, match="of the stem's units: expected 0 or 1, and 2"):
        replace(R50, units=(*units, *R50.units[2:]))


def test_a_stage_that_depth_can_take_away_is_refused() -> None:
    with pytest.raises(InvalidConfiguration, match=r"^depths \(0, 4\): a unit that changes width or size"):
        spaces.resnet50d(lost_blocks=(0, 4))


def test_kernels_that_a_bottleneck_does_not_have_are_refused(tiny_resnet_space: ResNetSpace) -> None:
    *units, last = tiny_resnet_space.units
    with pytest.raises(InvalidConfiguration, match=r"^kernels of a ResNet space: 3 everywhere, as \(3,\)$"):
        replace(tiny_resnet_space, units=(*units, replace(last, kernels=(3, 5))))
