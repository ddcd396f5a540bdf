import numpy as np
import pytest

from onceforall.architecture import Gene
from onceforall.space import SearchSpace
from onceforall.training.samplers import Only, Random, Sampler, Sandwich

counts = pytest.mark.parametrize("count", [1, 2, 4])
samplers = pytest.mark.parametrize("sampler", [Random(), Sandwich()], ids=str)


@counts
@samplers
def test_a_sampler_draws_as_many_members_as_asked_for(
    sampler: Sampler, count: int, space: SearchSpace, rng: np.random.Generator
) -> None:
    drawn = sampler(space, count, rng)
    assert len(drawn) == count
    for arch in drawn:
        space.validate(arch)


@samplers
def test_draws_follow_the_generator(sampler: Sampler, tiny_space: SearchSpace) -> None:
    first, again, other = (sampler(tiny_space, 4, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_random_draws_are_independent_and_reach_every_choice(tiny_space: SearchSpace, rng: np.random.Generator) -> None:
    drawn = Random()(tiny_space, 200, rng)
    assert len(set(drawn)) > 190  # of 1.6 million
    assert {arch.depths for arch in drawn} == {(1, 2), (1, 3), (2, 2), (2, 3)}
    assert {gene for arch in drawn for unit in arch.units for gene in unit} == {
        Gene(kernel=kernel, expand=expand) for kernel in (3, 5, 7) for expand in (3, 4, 6)
    }


@counts
def test_a_sandwich_is_the_largest_then_the_smallest_then_random_draws(tiny_space: SearchSpace, count: int) -> None:
    drawn = Sandwich()(tiny_space, count, np.random.default_rng(3))
    ends = [tiny_space.largest(), tiny_space.smallest()]
    between = Random()(tiny_space, max(count - 2, 0), np.random.default_rng(3))
    assert drawn == (ends + between)[:count]


def test_a_sandwich_has_the_ends_of_what_is_open(tiny_space: SearchSpace, rng: np.random.Generator) -> None:
    part = tiny_space.restrict(resolutions=[16], kernels=[5, 7], depths=[1, 2])
    first, second, *_ = Sandwich()(part, 4, rng)
    assert (first, second) == (part.largest(), part.smallest())
    assert (first.resolution, second.resolution) == (16, 16)


@counts
@samplers
def test_of_a_single_network_every_draw_is_that_network(
    sampler: Sampler, count: int, tiny_space: SearchSpace, rng: np.random.Generator
) -> None:
    arch = tiny_space.sample(rng)
    assert sampler(Only(arch), count, rng) == [arch] * count
