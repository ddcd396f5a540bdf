import itertools
from dataclasses import replace

import numpy as np
import pytest

from onceforall.architecture import Architecture, Gene
from onceforall.errors import InvalidArchitecture, InvalidConfiguration
from onceforall.space import SearchSpace, Unit
from onceforall.spaces import mobilenet_v3
from onceforall.spaces.inverted_residual import InvertedResidualSpace

V3 = mobilenet_v3(resolutions=(192, 224))


def with_gene(architecture: Architecture, unit: int, block: int, gene: Gene) -> Architecture:
    """The architecture with one gene replaced (unit and block count from 1)."""
    genes = list(architecture.units[unit - 1])
    genes[block - 1] = gene
    units = list(architecture.units)
    units[unit - 1] = tuple(genes)
    return replace(architecture, units=tuple(units))


def every_architecture(space: SearchSpace) -> list[Architecture]:
    """All members of a space, by brute force."""

    def forms(unit: Unit) -> list[tuple[Gene, ...]]:
        genes = [Gene(*gene) for gene in itertools.product(unit.kernels, unit.expands)]
        return [form for depth in unit.depths for form in itertools.product(genes, repeat=depth)]

    units = list(itertools.product(*map(forms, space.units)))
    return [Architecture(resolution, form) for resolution in space.resolutions for form in units]


# Choices


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        ("depths", (), r"depths \(\): expected distinct positive integers, ascending"),
        ("depths", (3, 2), r"depths \(3, 2\): expected distinct"),
        ("kernels", (3, 3), r"kernels \(3, 3\): expected distinct"),
        ("expands", (0, 3), r"expands \(0, 3\): expected distinct"),
        ("kernels", (3, 4), r"kernels \(3, 4\): expected odd sizes"),
    ],
)
def test_a_unit_refuses_choices_that_make_no_sense(field: str, values: tuple[int, ...], message: str) -> None:
    with pytest.raises(InvalidConfiguration, match=message):
        Unit(**{"depths": (2,), "kernels": (3,), "expands": (4,), field: values})


@pytest.mark.parametrize("resolutions", [(), (224, 192), (192, 192), (0, 192)])
def test_a_space_refuses_resolutions_that_make_no_sense(resolutions: tuple[int, ...]) -> None:
    with pytest.raises(InvalidConfiguration, match=r"resolutions .*: expected distinct positive integers, ascending"):
        mobilenet_v3(resolutions=resolutions)


def test_a_space_without_units_is_refused(tiny_space: InvertedResidualSpace) -> None:
    with pytest.raises(InvalidConfiguration, match="at least one unit"):
        replace(tiny_space, units=())


# Membership


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (replace(V3.largest(), resolution=100), "resolution 100: choices are 192, 224"),
        (replace(V3.largest(), units=V3.largest().units[:4]), "4 units: this space has 5"),
        (replace(V3.largest(), units=(V3.largest().units[0][:1], *V3.largest().units[1:])),
         "depth 1 at unit 1: choices are 2, 3, 4"),
        (with_gene(V3.largest(), 2, 4, Gene(9, 6)), "kernel 9 at unit 2, block 4: choices are 3, 5, 7"),
        (with_gene(V3.largest(), 3, 2, Gene(7, 5)), "expand 5 at unit 3, block 2: choices are 3, 4, 6"),
    ],
)  # fmt: skip
def test_a_foreign_architecture_is_refused_with_its_first_wrong_choice(
    architecture: Architecture, message: str
) -> None:
    for consume in (V3.validate, V3.lower, lambda arch: V3.to_rows([arch]), lambda arch: V3.encode([arch])):
        with pytest.raises(InvalidArchitecture) as error:
            consume(architecture)
        assert str(error.value) == message


def test_size_is_that_of_a_full_enumeration(tiny_space: InvertedResidualSpace) -> None:
    part = tiny_space.restrict(kernels=(3, 7), expands=(3, 4))
    members = every_architecture(part)
    assert part.size == len(set(members)) == 2 * (4 + 16) * (16 + 64)
    for member in members:
        part.validate(member)


def test_smallest_and_largest_have_the_extreme_costs_of_all_members(tiny_space: InvertedResidualSpace) -> None:
    part = tiny_space.restrict(kernels=(3, 7), expands=(3, 6), depths=(1, 2))
    macs = {arch: sum(layer.macs for layer in part.lower(arch)) for arch in every_architecture(part)}
    assert macs[part.smallest()] == min(macs.values())
    assert macs[part.largest()] == max(macs.values())


def test_uniform_has_one_choice_everywhere() -> None:
    assert V3.uniform(3, 5, 4, 192) == Architecture(192, ((Gene(5, 4),) * 3,) * 5)


def test_uniform_refuses_a_choice_that_the_space_has_not() -> None:
    with pytest.raises(InvalidArchitecture, match="depth 5 at unit 1: choices are 2, 3, 4"):
        V3.uniform(5, 3, 3, 192)


def test_uniforms_are_the_members_with_one_choice_everywhere(tiny_space: InvertedResidualSpace) -> None:
    part = tiny_space.restrict(kernels=(3, 7), expands=(3, 4))
    flat = {
        arch
        for arch in every_architecture(part)
        if len(set(arch.depths)) == 1 and len({gene for unit in arch.units for gene in unit}) == 1
    }
    assert len(part.uniforms()) == len(flat)
    assert set(part.uniforms()) == flat


def test_lowering_goes_stem_blocks_head_and_shapes_join(space: SearchSpace, rng: np.random.Generator) -> None:
    for arch in [space.smallest(), space.largest(), *(space.sample(rng) for _ in range(20))]:
        layers = space.lower(arch)
        resolution = arch.resolution
        assert len(layers) == len(space.stem(resolution)) + sum(arch.depths) + len(space.head(resolution))
        assert layers[0].in_size == resolution  # type: ignore[union-attr]
        convolutions = layers[: -len(space.head(resolution)) + 1]
        for before, after in itertools.pairwise(convolutions):
            assert before.out_size == after.in_size  # type: ignore[union-attr]
            assert before.out_channels == after.in_channels  # type: ignore[union-attr]


def test_blocks_lists_every_form_of_every_block(space: SearchSpace) -> None:
    resolution = space.resolutions[0]
    listed = list(space.blocks(resolution))
    assert len(listed) == sum(unit.depths[-1] * len(unit.kernels) * len(unit.expands) for unit in space.units)
    inner = slice(len(space.stem(resolution)), -len(space.head(resolution)))
    used = {layer for arch in space.uniforms() if arch.resolution == resolution for layer in space.lower(arch)[inner]}
    assert used <= set(listed)


# Rows and encodings


def test_rows_round_trip(space: SearchSpace, rng: np.random.Generator) -> None:
    architectures = [space.smallest(), space.largest(), *(space.sample(rng) for _ in range(50))]
    assert space.from_rows(space.to_rows(architectures)) == architectures


def test_rows_have_one_column_a_choice_and_minus_one_where_depth_cuts_off(tiny_space: InvertedResidualSpace) -> None:
    arch = Architecture(20, ((Gene(7, 3),), (Gene(3, 4), Gene(5, 6))))
    #                                           res depths kernels           expands
    assert tiny_space.to_rows([arch]).tolist() == [[1, 0, 0, 2, -1, 0, 1, -1, 0, -1, 1, 2, -1]]
    assert tiny_space.active_blocks(tiny_space.to_rows([arch])).tolist() == [[True, False, True, True, False]]


def test_encoding_is_one_hot_kernels_expands_and_resolution(tiny_space: InvertedResidualSpace) -> None:
    arch = Architecture(20, ((Gene(7, 3),), (Gene(3, 4), Gene(5, 6))))
    kernels = [0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0]
    expands = [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
    assert tiny_space.encode([arch]).tolist() == [[*kernels, *expands, 0, 1]]


def test_the_paper_encoding_has_the_paper_number_of_inputs() -> None:
    assert mobilenet_v3(resolutions=range(112, 225, 16)).encode([]).shape == (0, 128)


def test_encoding_round_trip(space: SearchSpace, rng: np.random.Generator) -> None:
    architectures = [space.smallest(), space.largest(), *(space.sample(rng) for _ in range(50))]
    assert space.decode(space.encode(architectures)) == architectures


def test_distinct_architectures_have_distinct_encodings(tiny_space: InvertedResidualSpace) -> None:
    members = every_architecture(tiny_space.restrict(kernels=(3, 5), expands=(3, 4)))
    assert len(np.unique(tiny_space.encode(members), axis=0)) == len(members)


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


@pytest.mark.parametrize("width", [0, 10, 31, 33])
def test_decode_refuses_rows_of_another_width(tiny_space: InvertedResidualSpace, width: int) -> None:
    features = np.pad(tiny_space.encode([tiny_space.largest()]), ((0, 0), (0, 1)))
    with pytest.raises(InvalidArchitecture):
        tiny_space.decode(features[:, :width])


# Sampling, mutation, crossover


def canonical(space: SearchSpace, rows: np.ndarray) -> bool:
    """Valid, and the very row that the architecture has."""
    architectures = space.from_rows(rows)
    for architecture in architectures:
        space.validate(architecture)
    return np.array_equal(space.to_rows(architectures), rows)


def test_sampled_rows_are_valid_and_canonical(space: SearchSpace, rng: np.random.Generator) -> None:
    assert canonical(space, space.sample_rows(200, rng))


def test_sampling_is_uniform_over_every_choice(tiny_space: InvertedResidualSpace, rng: np.random.Generator) -> None:
    rows = tiny_space.sample_rows(10_000, rng)
    for column, count in enumerate(tiny_space.choice_counts):
        active = rows[:, column][rows[:, column] >= 0]
        # Five standard deviations of the least frequent column (half of the rows, three choices).
        np.testing.assert_allclose(np.bincount(active, minlength=count) / len(active), 1 / count, atol=0.035)


def test_sampling_follows_its_generator(space: SearchSpace) -> None:
    first, again, other = (space.sample(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("probability", [0.1, 0.5, 1.0])
def test_mutants_are_valid_and_canonical(space: SearchSpace, rng: np.random.Generator, probability: float) -> None:
    assert canonical(space, space.mutate_rows(space.sample_rows(200, rng), rng, probability))


def test_mutation_with_probability_zero_is_the_identity(space: SearchSpace, rng: np.random.Generator) -> None:
    rows = space.sample_rows(100, rng)
    assert np.array_equal(space.mutate_rows(rows, rng, 0.0), rows)


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


def test_mutation_leaves_its_parents_alone(space: SearchSpace, rng: np.random.Generator) -> None:
    rows = space.sample_rows(50, rng)
    before = rows.copy()
    space.mutate_rows(rows, rng, 1.0)
    assert np.array_equal(rows, before)


def test_children_are_valid_and_canonical(space: SearchSpace, rng: np.random.Generator) -> None:
    first, second = space.sample_rows(200, rng), space.sample_rows(200, rng)
    assert canonical(space, space.crossover_rows(first, second, rng))


def test_every_gene_of_a_child_comes_from_a_parent(space: SearchSpace, rng: np.random.Generator) -> None:
    first, second = space.sample_rows(200, rng), space.sample_rows(200, rng)
    child = space.crossover_rows(first, second, rng)
    active = child >= 0
    assert ((child == first) | (child == second))[active].all()


def test_a_child_takes_from_both_parents(space: SearchSpace, rng: np.random.Generator) -> None:
    first, second = (np.repeat(space.to_rows([arch]), 500, axis=0) for arch in (space.smallest(), space.largest()))
    child = space.crossover_rows(first, second, rng)
    depths = child[:, 1 : 1 + len(space.units)]
    assert (depths == 0).mean() == pytest.approx(0.5, abs=0.1)


def test_a_child_of_twins_is_their_twin(space: SearchSpace, rng: np.random.Generator) -> None:
    arch = space.sample(rng)
    assert space.crossover(arch, arch, rng) == arch


def test_single_mutation_and_crossover_agree_with_those_of_rows(space: SearchSpace) -> None:
    first, second = space.sample(np.random.default_rng(1)), space.sample(np.random.default_rng(2))
    rows = space.to_rows([first, second])
    mutant = space.mutate_rows(rows[:1], np.random.default_rng(3), 0.4)
    assert space.mutate(first, np.random.default_rng(3), 0.4) == space.from_rows(mutant)[0]
    child = space.crossover_rows(rows[:1], rows[1:], np.random.default_rng(3))
    assert space.crossover(first, second, np.random.default_rng(3)) == space.from_rows(child)[0]


# Sub-spaces


def test_restrict_keeps_only_the_given_choices() -> None:
    part = V3.restrict(resolutions=[224], depths=[4, 2], kernels=[5], expands=[3, 6])
    assert part.resolutions == (224,)
    assert {(unit.depths, unit.kernels, unit.expands) for unit in part.units} == {((2, 4), (5,), (3, 6))}


def test_members_of_a_sub_space_are_the_same_networks(rng: np.random.Generator) -> None:
    part = V3.restrict(depths=[2, 3], kernels=[3, 5], expands=[4])
    for _ in range(20):
        arch = part.sample(rng)
        assert part.lower(arch) == V3.lower(arch)


def test_restrict_names_the_choices_where_none_is_left() -> None:
    with pytest.raises(InvalidConfiguration, match=r"^kernels 9, 11: this space has 3, 5, 7$"):
        V3.restrict(kernels=[9, 11])


def test_largest_choices_opens_the_largest_first() -> None:
    part = V3.largest_choices(depths=1, kernels=3, expands=2)
    assert {(unit.depths, unit.kernels, unit.expands) for unit in part.units} == {((4,), (3, 5, 7), (4, 6))}
    assert part.resolutions == V3.resolutions
