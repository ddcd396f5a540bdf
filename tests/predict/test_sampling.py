from __future__ import annotations

import numpy as np
import pytest

from onceforall import spaces
from onceforall.cost.analytic import macs
from onceforall.errors import InvalidConfiguration
from onceforall.predict.sampling import DISTRIBUTIONS, macs_sample, plan, spread_sample
from onceforall.space import SearchSpace
from onceforall.spaces import mobilenet_v3_small_images


def test_a_plan_has_distinct_architectures_and_every_uniform_one(space: SearchSpace) -> None:
    planned = plan(space, 30, seed=0, uniform=True)
    random = [arch for kind, arch in planned if kind != "uniform"]
    assert len(random) == len(set(random)) == 30
    assert [arch for kind, arch in planned if kind == "uniform"] == space.uniforms()
    assert {kind for kind, _ in planned} == {"random", "spread", "uniform"}
    assert plan(space, 30, seed=0) == planned[:30]
    assert plan(space, 30, seed=1) != planned[:30]


def test_so_many_uniform_ones_at_most_spread_over_all_that_there_are() -> None:
    space = spaces.vit_small_images()
    every = space.uniforms()
    assert len(every) == 540
    planned = plan(space, 8, seed=0, uniform=True, most_uniform=140)
    chosen = [arch for kind, arch in planned if kind == "uniform"]
    assert len(set(chosen)) == 140
    assert [chosen[0], chosen[-1]] == [every[0], every[-1]]
    shown, possible = (
        [set(column) for column in space.to_rows(archs).T.tolist()] for archs in (chosen, every)
    )  # each choice has its networks
    assert shown == possible
    assert plan(space, 8, seed=0, uniform=True, most_uniform=600)[8:] == [("uniform", arch) for arch in every]


def test_spread_sampling_reaches_further_than_uniform_sampling() -> None:
    space, rng = mobilenet_v3_small_images(), np.random.default_rng(0)
    spread = [macs(space.lower(spread_sample(space, rng))) for _ in range(300)]
    uniform = [macs(space.lower(space.sample(rng))) for _ in range(300)]
    assert np.std(np.log(spread)) > np.std(np.log(uniform))


def test_more_labels_than_architectures_are_refused(tiny_space: SearchSpace) -> None:
    with pytest.raises(InvalidConfiguration, match=f"this space has {tiny_space.size}"):
        plan(tiny_space, tiny_space.size + 1, seed=0)


def test_sampling_by_macs_is_nearly_uniform_over_them() -> None:
    space, rng = mobilenet_v3_small_images(), np.random.default_rng(0)
    ends = np.array([macs(space.lower(arch)) for arch in (space.smallest(), space.largest())])

    def quarters(sample: object) -> list[int]:
        found = np.array([macs(space.lower(sample(space, rng))) for _ in range(200)])  # type: ignore[operator]
        return np.histogram(found, bins=np.linspace(*ends, 5))[0].tolist()

    assert min(quarters(macs_sample)) > 25  # of 50
    assert min(quarters(lambda space, rng: space.sample(rng))) < 10


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_every_distribution_gives_distinct_networks_of_its_kinds(distribution: str, tiny_space: SearchSpace) -> None:
    planned = plan(tiny_space, 12, seed=3, distribution=distribution)
    assert len({arch for _, arch in planned}) == 12
    assert {kind for kind, _ in planned} == set(DISTRIBUTIONS[distribution])
    assert planned == plan(tiny_space, 12, seed=3, distribution=distribution)


def test_an_unknown_distribution_is_refused(tiny_space: SearchSpace) -> None:
    with pytest.raises(InvalidConfiguration, match="'normal': choices are mixed, random, spread, macs"):
        plan(tiny_space, 1, seed=0, distribution="normal")
