import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onceforall.architecture import Architecture, Gene
from onceforall.errors import InvalidArchitecture, InvalidConfiguration
from onceforall.space import SearchSpace
from onceforall.spaces import mobilenet_v3, proxyless
from onceforall.spaces.inverted_residual import InvertedResidualSpace
from onceforall.spaces.units import ConvUnit
from onceforall.testing import members

# What every space must do is tested by the suite in test_conformance.py; here are messages, numbers, small examples.

V3 = mobilenet_v3(resolutions=(192, 224))
TIED = mobilenet_v3(resolutions=(192, 224), tied=True)
WIDE = mobilenet_v3(resolutions=(192, 224), width_multipliers=(0.5, 0.75, 1))


def with_gene(architecture: Architecture, unit: int, block: int, gene: Gene) -> Architecture:
    """The architecture with one gene replaced (unit and block count from 1)."""
    genes = list(architecture.units[unit - 1])
    genes[block - 1] = gene
    units = list(architecture.units)
    units[unit - 1] = tuple(genes)
    return replace(architecture, units=tuple(units))


# Choices


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        ("depths", (), r"depths \(\): expected distinct integers of at least 0, ascending"),
        ("depths", (3, 2), r"depths \(3, 2\): expected distinct integers of at least 0, ascending"),
        ("depths", (-1, 2), r"depths \(-1, 2\): expected distinct integers of at least 0, ascending"),
        ("depths", (1.5,), r"depths \(1.5,\): expected distinct integers of at least 0, ascending"),
        ("kernels", (3, 3), r"kernels \(3, 3\): expected distinct odd positive integers, ascending"),
        ("kernels", (3, 4), r"kernels \(3, 4\): expected distinct odd positive integers, ascending"),
        ("kernels", (-1, 3), r"kernels \(-1, 3\): expected distinct odd positive integers, ascending"),
        ("expands", (0, 3), r"expands \(0, 3\): expected distinct positive numbers, ascending"),
        ("width_multipliers", (1, 0.5), r"width_multipliers \(1, 0.5\): expected distinct positive numbers, ascending"),
        ("width_multipliers", (0,), r"width_multipliers \(0,\): expected distinct positive numbers, ascending"),
    ],
)
def test_a_unit_refuses_choices_that_make_no_sense(field: str, values: tuple[int, ...], message: str) -> None:
    with pytest.raises(InvalidConfiguration, match=f"^{message}$"):
        ConvUnit(**{"depths": (2,), "kernels": (3,), "expands": (4,), field: values})


def test_a_tied_unit_needs_as_many_depths_as_expands() -> None:
    message = r"^depths \(2, 3\) and expand \(3, 4, 6\): tied choices must be equally many$"
    with pytest.raises(InvalidConfiguration, match=message):
        ConvUnit((2, 3), (3,), (3, 4, 6), tied=True)


@pytest.mark.parametrize("resolutions", [(), (224, 192), (192, 192), (0, 192)])
def test_a_space_refuses_resolutions_that_make_no_sense(resolutions: tuple[int, ...]) -> None:
    with pytest.raises(InvalidConfiguration, match=r"resolutions .*: expected distinct positive integers, or pairs"):
        mobilenet_v3(resolutions=resolutions)


def test_resolutions_and_classes_are_whole_numbers() -> None:
    space = mobilenet_v3(resolutions=np.arange(128, 225, 32))  # type: ignore[arg-type]
    assert json.dumps(space.to_json())
    assert space == mobilenet_v3(resolutions=(128, 160, 192, 224))
    with pytest.raises(InvalidConfiguration, match=r"resolution 20\.5: expected an integer"):
        mobilenet_v3(resolutions=(20.5, 32))  # type: ignore[arg-type]
    for classes in (0, 1, 2.0):
        with pytest.raises(InvalidConfiguration, match=f"num_classes {classes}: expected an integer of at least 2"):
            mobilenet_v3(num_classes=classes)  # type: ignore[arg-type]


def test_a_space_without_units_is_refused(tiny_space: InvertedResidualSpace) -> None:
    with pytest.raises(InvalidConfiguration, match="at least one unit"):
        replace(tiny_space, units=())


# Membership


@pytest.mark.parametrize(
    ("space", "architecture", "message"),
    [
        (V3, replace(V3.largest(), resolution=100), "resolution 100: choices are 192, 224"),
        (V3, replace(V3.largest(), units=V3.largest().units[:4]), "4 units: this space has 5"),
        (V3, replace(V3.largest(), units=(V3.largest().units[0][:1], *V3.largest().units[1:])),
         "depth 1 at unit 1: choices are 2, 3, 4"),
        (V3, with_gene(V3.largest(), 2, 4, Gene(kernel=9, expand=6)),
         "kernel 9 at unit 2, block 4: choices are 3, 5, 7"),
        (V3, with_gene(V3.largest(), 3, 2, Gene(kernel=7, expand=5)),
         "expand 5 at unit 3, block 2: choices are 3, 4, 6"),
        (V3, replace(V3.largest(), width_multipliers=(1, 1, 0.5, 1, 1)),
         "width multiplier 0.5 at unit 3: choices are 1.0"),
        (WIDE, replace(WIDE.largest(), width_multipliers=(1, 1, 1, 1, 0.25)),
         "width multiplier 0.25 at unit 5: choices are 0.5, 0.75, 1"),
        (WIDE, replace(WIDE.largest(), width_multipliers=(1, 0.5)), "2 width multipliers: this space has 5 units"),
        (TIED, with_gene(TIED.largest(), 2, 4, Gene(kernel=7, expand=4)),
         "expand 4 at unit 2, block 4: depth 4 is tied to expand 6"),
        (TIED, replace(TIED.largest(), units=(TIED.largest().units[0][:2], *TIED.largest().units[1:])),
         "expand 6 at unit 1, block 1: depth 2 is tied to expand 3"),
    ],
)  # fmt: skip
def test_a_foreign_architecture_is_refused_with_its_first_wrong_choice(
    space: SearchSpace, architecture: Architecture, message: str
) -> None:
    for consume in (space.validate, space.lower, lambda arch: space.to_rows([arch]), lambda arch: space.encode([arch])):
        with pytest.raises(InvalidArchitecture) as error:
            consume(architecture)
        assert str(error.value) == message


def test_size_counts_depths_genes_and_width_multipliers(tiny_space: InvertedResidualSpace) -> None:
    part = tiny_space.restrict(kernels=(3, 7), expands=(3, 4))
    assert part.size == len(set(members(part))) == 2 * (4 + 16) * (16 + 64)
    wide = replace(part, units=tuple(replace(unit, width_multipliers=(0.5, 0.75, 1)) for unit in part.units))
    assert wide.size == 9 * part.size


def test_a_tied_unit_has_one_expand_ratio_a_depth() -> None:
    assert ConvUnit((2, 3, 4), (3, 5, 7), (3, 4, 6), tied=True).size == 3**2 + 3**3 + 3**4
    one_kernel = TIED.restrict(kernels=[5], resolutions=[192])
    found = {tuple((len(unit), {gene.expand for gene in unit}.pop()) for unit in arch.units) for arch in
             members(one_kernel)}  # fmt: skip
    assert found == set(itertools.product([(2, 3), (3, 4), (4, 6)], repeat=5))


def test_smallest_and_largest_have_the_extreme_costs_of_all_members(tiny_space: InvertedResidualSpace) -> None:
    part = tiny_space.restrict(kernels=(3, 7), expands=(3, 6), depths=(1, 2))
    macs = {arch: sum(layer.macs for layer in part.lower(arch)) for arch in members(part)}
    assert macs[part.smallest()] == min(macs.values())
    assert macs[part.largest()] == max(macs.values())


def test_uniform_has_one_choice_everywhere() -> None:
    assert V3.uniform(depth=3, kernel=5, expand=4, resolution=192) == Architecture(
        192, ((Gene(kernel=5, expand=4),) * 3,) * 5
    )
    assert WIDE.uniform(depth=3, kernel=5, expand=4, resolution=192, width_multiplier=0.75) == Architecture(
        192, ((Gene(kernel=5, expand=4),) * 3,) * 5, (0.75,) * 5
    )


def test_uniform_keeps_the_choice_of_a_unit_that_has_only_one() -> None:
    units = proxyless(resolutions=(192,)).uniform(depth=3, kernel=5, expand=4, resolution=192).units
    assert units == ((Gene(kernel=5, expand=4),) * 3,) * 5 + ((Gene(kernel=5, expand=4),),)


@pytest.mark.parametrize(
    ("space", "choices", "message"),
    [
        (V3, {"depth": 5, "kernel": 3, "expand": 3, "resolution": 192}, "depth 5: choices are 2, 3, 4"),
        (V3, {"depth": 2, "kernel": 9, "expand": 3, "resolution": 192}, "kernel 9: choices are 3, 5, 7"),
        (V3, {"depth": 2, "kernel": 3, "expand": 5, "resolution": 192}, "expand 5: choices are 3, 4, 6"),
        (V3, {"depth": 2, "kernel": 3, "expand": 3, "resolution": 100}, "resolution 100: choices are 192, 224"),
        (V3, {"depth": 2, "kernel": 3, "expand": 3, "resolution": 192, "width_multiplier": 0.5},
         "width multiplier 0.5: choices are 1.0"),
        (WIDE, {"depth": 2, "kernel": 3, "expand": 3, "resolution": 192, "width_multiplier": 0.25},
         "width multiplier 0.25: choices are 0.5, 0.75, 1"),
        (proxyless(resolutions=(192,)), {"depth": 5, "kernel": 3, "expand": 3, "resolution": 192},
         "depth 5: choices are 1, 2, 3, 4"),
        (proxyless(resolutions=(192,)), {"depth": 1, "kernel": 3, "expand": 3, "resolution": 192},
         "depth 1 at unit 1: choices are 2, 3, 4"),
        (TIED, {"depth": 3, "kernel": 5, "expand": 6, "resolution": 192},
         "expand 6 at unit 1, block 1: depth 3 is tied to expand 4"),
    ],
)  # fmt: skip
def test_uniform_refuses_a_choice_that_the_space_has_not(
    space: SearchSpace, choices: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArchitecture) as error:
        space.uniform(**choices)
    assert str(error.value) == message


def test_uniforms_are_the_members_with_one_choice_everywhere(tiny_space: InvertedResidualSpace) -> None:
    part = tiny_space.restrict(kernels=(3, 7), expands=(3, 4))
    wide = replace(part, units=tuple(replace(unit, width_multipliers=(0.5, 1)) for unit in part.units))
    tied = replace(part, units=tuple(replace(unit, tied=True) for unit in part.restrict(depths=(1, 2, 3)).units))
    for space in (part, wide, tied):
        flat = {
            arch
            for arch in members(space)
            if len({tuple(unit.depths).index(len(genes)) for unit, genes in zip(space.units, arch.units, strict=True)})
            == len({gene for unit in arch.units for gene in unit})
            == len(set(arch.multipliers))
            == 1
        }
        assert len(space.uniforms()) == len(flat) == {part: 16, wide: 32, tied: 8}[space]
        assert set(space.uniforms()) == flat


def test_uniforms_keep_the_choice_of_a_unit_that_has_only_one() -> None:
    space = proxyless(resolutions=(192,))
    found = space.uniforms()
    assert len(found) == len(set(found)) == 27
    for arch in found:
        assert len(set(arch.units[:5])) == 1
        assert arch.units[5] == arch.units[0][:1]


# Rows and encodings


def test_rows_have_one_column_a_choice_and_minus_one_where_depth_cuts_off(tiny_space: InvertedResidualSpace) -> None:
    arch = Architecture(20, ((Gene(kernel=7, expand=3),), (Gene(kernel=3, expand=4), Gene(kernel=5, expand=6))))
    #                                           res depths kernels           expands
    assert tiny_space.to_rows([arch]).tolist() == [[1, 0, 0, 2, -1, 0, 1, -1, 0, -1, 1, 2, -1]]
    assert tiny_space.active_blocks(tiny_space.to_rows([arch])).tolist() == [[True, False, True, True, False]]


def test_rows_end_with_the_multipliers_of_units_that_have_several(tiny_space: InvertedResidualSpace) -> None:
    first, second = tiny_space.units
    space = replace(tiny_space, units=(first, replace(second, width_multipliers=(0.25, 0.5, 1))))
    arch = Architecture(
        20, ((Gene(kernel=7, expand=3),), (Gene(kernel=3, expand=4), Gene(kernel=5, expand=6))), (1, 0.5)
    )
    rows = space.to_rows([arch, replace(arch, width_multipliers=())])
    assert rows[:, :-1].tolist() == 2 * tiny_space.to_rows([replace(arch, width_multipliers=())]).tolist()
    assert rows[:, -1].tolist() == [1, 2]
    assert space.multiplier_indices(rows).tolist() == [[0, 1], [0, 2]]


def test_encoding_is_one_hot_kernels_expands_and_resolution(tiny_space: InvertedResidualSpace) -> None:
    arch = Architecture(20, ((Gene(kernel=7, expand=3),), (Gene(kernel=3, expand=4), Gene(kernel=5, expand=6))))
    kernels = [0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0]
    expands = [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
    assert tiny_space.encode([arch]).tolist() == [[*kernels, *expands, 0, 1]]
    wide = replace(tiny_space, units=tuple(replace(unit, width_multipliers=(0.5, 1)) for unit in tiny_space.units))
    arch = replace(arch, width_multipliers=(0.5, 1))
    assert wide.encode([arch]).tolist() == [[*kernels, *expands, 1, 0, 0, 1, 0, 1]]


def test_the_paper_encoding_has_the_paper_number_of_inputs() -> None:
    assert mobilenet_v3(resolutions=range(112, 225, 16)).encode([]).shape == (0, 128)


# Columns of the tiny space: 15 kernels (3 a block), 15 expand ratios, 2 resolutions; the largest network has the
# last choice of each set.
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({2: 0.0}, id="an expand ratio without a kernel"),
        pytest.param({17: 0.0}, id="a kernel without an expand ratio"),
        pytest.param({0: 1.0, 1: 1.0}, id="three kernels in one block"),
        pytest.param({2: 0.5}, id="half a kernel"),
        pytest.param({2: -1.0}, id="a negative kernel"),
        pytest.param({2: np.nan}, id="a kernel that is no number"),
        pytest.param({8: 0.0, 23: 0.0}, id="a gap before the last block"),
        pytest.param({31: 0.0}, id="no resolution"),
        pytest.param({30: 1.0}, id="two resolutions"),
        pytest.param(dict.fromkeys(range(31), 0.0), id="no blocks"),
    ],
)
def test_decode_refuses_rows_that_encode_no_member(tiny_space: InvertedResidualSpace, change: dict[int, float]) -> None:
    features = tiny_space.encode([tiny_space.largest()])
    features[:, list(change)] = list(change.values())
    with pytest.raises(InvalidArchitecture):
        tiny_space.decode(features)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({-2: 0.0}, id="no multiplier"),
        pytest.param({-3: 1.0}, id="two multipliers"),
        pytest.param({-2: 0.5}, id="half a multiplier"),
    ],
)
def test_decode_refuses_what_is_no_width_multiplier(change: dict[int, float]) -> None:
    space = WIDE.restrict(resolutions=[192])
    features = space.encode([space.largest()])
    assert features[0, -4:].tolist() == [0, 0, 1, 1]  # the multiplier of the last unit, the resolution
    features[:, list(change)] = list(change.values())
    with pytest.raises(InvalidArchitecture):
        space.decode(features)


def test_decode_refuses_an_expand_ratio_that_is_not_tied_to_the_depth() -> None:
    member = TIED.largest()
    foreign = V3.encode([with_gene(member, 2, 4, Gene(kernel=7, expand=4))])
    assert TIED.decode(V3.encode([member])) == [member]
    with pytest.raises(InvalidArchitecture, match="expand 4 at unit 2, block 4: depth 4 is tied to expand 6"):
        TIED.decode(foreign)


@pytest.mark.parametrize("width", [0, 10, 31, 33])
def test_decode_refuses_rows_of_another_width(tiny_space: InvertedResidualSpace, width: int) -> None:
    features = np.pad(tiny_space.encode([tiny_space.largest()]), ((0, 0), (0, 1)))
    with pytest.raises(InvalidArchitecture):
        tiny_space.decode(features[:, :width])


# Sampling, mutation, crossover


@pytest.mark.parametrize("multipliers", [(1.0,), (0.5, 0.75, 1)], ids=str)
def test_sampling_is_uniform_over_every_choice(
    tiny_space: InvertedResidualSpace, rng: np.random.Generator, multipliers: tuple[float, ...]
) -> None:
    units = tuple(replace(unit, width_multipliers=multipliers) for unit in tiny_space.units)
    space = replace(tiny_space, units=units)
    rows = space.sample_rows(10_000, rng)
    for column, count in enumerate(space.choice_counts):
        active = rows[:, column][rows[:, column] >= 0]
        # Five standard deviations of the least frequent column (half of the rows, three choices).
        np.testing.assert_allclose(np.bincount(active, minlength=count) / len(active), 1 / count, atol=0.035)


def test_tied_expand_ratios_follow_the_depths(rng: np.random.Generator) -> None:
    rows = TIED.sample_rows(200, rng)
    for changed in (rows, TIED.mutate_rows(rows, rng, 0.5), TIED.crossover_rows(rows, rows[::-1], rng)):
        depths, expands = (changed[:, TIED.columns_of(name)] for name in ("depth", "expand"))
        tied = depths[:, [u for u, _ in TIED.block_indices]]
        assert np.array_equal(expands, np.where(TIED.active_blocks(changed), tied, -1))
        assert {*np.unique(depths)} == {0, 1, 2}


def test_mutation_with_probability_one_redraws_every_choice(
    tiny_space: InvertedResidualSpace, rng: np.random.Generator
) -> None:
    rows = np.repeat(tiny_space.to_rows([tiny_space.largest()]), 5000, axis=0)
    mutants = tiny_space.mutate_rows(rows, rng, 1.0)
    for column, count in enumerate(tiny_space.choice_counts):
        active = mutants[:, column][mutants[:, column] >= 0]
        np.testing.assert_allclose((active == count - 1).mean(), 1 / count, atol=0.05)


def test_mutation_redraws_about_its_share_of_choices(
    tiny_space: InvertedResidualSpace, rng: np.random.Generator
) -> None:
    rows = np.repeat(tiny_space.to_rows([tiny_space.largest()]), 5000, axis=0)
    changed = (tiny_space.mutate_rows(rows, rng, 0.3) != rows)[:, 0].mean()  # two resolutions: half of the redraws
    assert changed == pytest.approx(0.15, abs=0.03)


def test_a_child_takes_from_both_parents(space: SearchSpace, rng: np.random.Generator) -> None:
    first, second = (np.repeat(space.to_rows([arch]), 500, axis=0) for arch in (space.smallest(), space.largest()))
    child = space.crossover_rows(first, second, rng)
    # Genes of blocks that only one parent has are not free.
    for part in map(space.columns_of, ("resolution", "depth", "width_multiplier")):
        free = (first != second)[:, part]
        if free.any():
            assert (child == first)[:, part][free].mean() == pytest.approx(0.5, abs=0.1)


def test_single_mutation_and_crossover_agree_with_those_of_rows(space: SearchSpace) -> None:
    first, second = space.sample(np.random.default_rng(1)), space.sample(np.random.default_rng(2))
    rows = space.to_rows([first, second])
    mutant = space.mutate_rows(rows[:1], np.random.default_rng(3), 0.4)
    assert space.mutate(first, np.random.default_rng(3), 0.4) == space.from_rows(mutant)[0]
    child = space.crossover_rows(rows[:1], rows[1:], np.random.default_rng(3))
    assert space.crossover(first, second, np.random.default_rng(3)) == space.from_rows(child)[0]


# Sub-spaces


def choices(space: SearchSpace) -> set[tuple[tuple[float, ...], ...]]:
    return {(unit.depths, unit.kernels, unit.expands, unit.width_multipliers) for unit in space.units}


def test_restrict_keeps_only_the_given_choices() -> None:
    part = WIDE.restrict(resolutions=[224], depths=[4, 2], kernels=[5], expands=[3, 6], width_multipliers=[1, 0.5])
    assert part.resolutions == (224,)
    assert choices(part) == {((2, 4), (5,), (3, 6), (0.5, 1))}


def test_restrict_leaves_a_unit_with_one_choice_alone() -> None:
    part = proxyless(resolutions=(192,)).restrict(depths=[3, 4])
    assert [unit.depths for unit in part.units] == [(3, 4)] * 5 + [(1,)]


def test_members_of_a_sub_space_are_the_same_networks(rng: np.random.Generator) -> None:
    part = WIDE.restrict(depths=[2, 3], kernels=[3, 5], expands=[4], width_multipliers=[0.5, 1])
    for _ in range(20):
        arch = part.sample(rng)
        assert part.lower(arch) == WIDE.lower(arch)


@pytest.mark.parametrize(
    ("space", "wanted", "message"),
    [
        (V3, {"resolutions": [100]}, "resolutions 100: this space has 192, 224"),
        (V3, {"depths": [5]}, "depth 5: this space has 2, 3, 4"),
        (V3, {"kernels": [9, 11]}, "kernel 9, 11: this space has 3, 5, 7"),
        (V3, {"expands": []}, "expand : this space has 3, 4, 6"),
        (V3, {"width_multipliers": [0.5]}, "width multiplier 0.5: this space has 1.0"),
        (WIDE, {"width_multipliers": [0.25]}, "width multiplier 0.25: this space has 0.5, 0.75, 1"),
        (proxyless(), {"depths": [1]}, "depth 1: this space has 2, 3, 4"),  # only its last unit, which has no choice
        (TIED, {"depths": [2], "expands": [4, 6]},
         "tied choices have nothing in common left: depth (2, 3, 4); expand (3, 4, 6), in this order"),
    ],
)  # fmt: skip
def test_restrict_names_the_choices_where_none_is_left(
    space: SearchSpace, wanted: dict[str, list[float]], message: str
) -> None:
    with pytest.raises(InvalidConfiguration) as error:
        space.restrict(**wanted)  # type: ignore[arg-type]
    assert str(error.value) == message


def test_restricting_a_tied_space_takes_depth_and_expand_together() -> None:
    for part in (
        TIED.restrict(depths=[2, 4]),
        TIED.restrict(expands=[3, 6]),
        TIED.restrict(depths=[2, 4], expands=[6, 3, 4]),
    ):
        assert choices(part) == {((2, 4), (3, 5, 7), (3, 6), (1.0,))}
        assert all(unit.tied for unit in part.units)


def test_largest_choices_opens_the_largest_first() -> None:
    part = WIDE.largest_choices({"kernel": 3, "expand": 2, "width_multiplier": 2})
    assert choices(part) == {((4,), (3, 5, 7), (4, 6), (0.75, 1))}
    assert part.resolutions == WIDE.resolutions


@pytest.mark.parametrize(("depths", "expands", "both"), [(1, 3, 1), (3, 1, 1), (2, 3, 2), (2, 2, 2), (3, 9, 3)])
def test_largest_choices_of_a_tied_space_are_the_fewer_of_depths_and_expands(
    depths: int, expands: int, both: int
) -> None:
    part = TIED.largest_choices({"depth": depths, "expand": expands})
    assert choices(part) == {((2, 3, 4)[-both:], (7,), (3, 4, 6)[-both:], (1.0,))}


# Rows of one space in another


@pytest.mark.parametrize(
    ("whole", "part"),
    [
        (V3, V3.restrict(resolutions=[224], depths=[2, 3], kernels=[5, 7], expands=[4])),
        (WIDE, V3),
        (WIDE, WIDE.restrict(width_multipliers=[0.5])),
        (WIDE, WIDE.restrict(width_multipliers=[0.75, 1], depths=[2, 4])),
        (V3, TIED),
        (TIED, TIED.restrict(depths=[3, 4])),
        (V3, mobilenet_v3(resolutions=(192,), num_classes=10)),  # the classifier is its own
    ],
)
def test_adopted_rows_are_those_of_the_same_architectures(
    whole: SearchSpace, part: SearchSpace, rng: np.random.Generator
) -> None:
    rows = np.concatenate([part.to_rows([part.smallest(), part.largest()]), part.sample_rows(50, rng)])
    adopted = whole.adopt_rows(rows, part)
    assert adopted.dtype == rows.dtype
    assert np.array_equal(adopted, whole.to_rows(part.from_rows(rows)))


@pytest.mark.parametrize(
    ("whole", "part", "message"),
    [
        (V3, mobilenet_v3(resolutions=(100, 192)), r"resolution \(100, 192\): choices are \(192, 224\)"),
        (V3, mobilenet_v3(resolutions=(192,), depths=(1, 2)), r"depth \(1, 2\) at unit 1: choices are \(2, 3, 4\)"),
        (V3, mobilenet_v3(resolutions=(192,), depths=(4, 5)), r"depth \(4, 5\) at unit 1: choices are \(2, 3, 4\)"),
        (V3, mobilenet_v3(resolutions=(192,), kernels=(9,)), r"kernel \(9,\) at unit 1: choices are \(3, 5, 7\)"),
        (V3, mobilenet_v3(resolutions=(192,), expands=(5,)), r"expand \(5,\) at unit 1: choices are \(3, 4, 6\)"),
        (WIDE, mobilenet_v3(resolutions=(192,), width_multipliers=(0.25, 1)),
         r"width multiplier \(0.25, 1\) at unit 1: choices are \(0.5, 0.75, 1\)"),
        (WIDE, mobilenet_v3(resolutions=(192,), width_multipliers=(0.25,)),
         r"width multiplier \(0.25,\) at unit 1: choices are \(0.5, 0.75, 1\)"),
        (V3, WIDE, r"width multiplier \(0.5, 0.75, 1\) at unit 1: choices are \(1.0,\)"),
        (V3, WIDE.restrict(width_multipliers=[0.5]), r"width multiplier \(0.5,\) at unit 1: choices are \(1.0,\)"),
        (proxyless(resolutions=(192, 224)), V3, "5 units: this space has 6"),
        (V3, proxyless(resolutions=(192, 224)), "6 units: this space has 5"),
        (TIED, V3, r"depth and expand are tied at unit 1: choices are \[\(2, 3\), \(3, 4\), \(4, 6\)\]"),
        (V3, mobilenet_v3(1.2, resolutions=(192,)), "another space: the same choices make other layers there"),
    ],
)  # fmt: skip
def test_rows_of_a_space_with_other_choices_are_refused(whole: SearchSpace, part: SearchSpace, message: str) -> None:
    with pytest.raises(InvalidArchitecture, match=message):
        whole.adopt_rows(part.to_rows([part.smallest()]), part)
