from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onceforall.data.batches import Batch, BatchPlan

RESOLUTIONS = (128, 160, 192, 224)

plans = st.builds(
    BatchPlan,
    images=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    resolutions=st.lists(st.sampled_from(RESOLUTIONS), min_size=1, unique=True),
    seed=st.integers(0, 2**32),
    phase=st.integers(0, 5),
).filter(lambda plan: plan.steps_per_epoch > 0)


def same(first: Sequence[Batch], second: Sequence[Batch]) -> bool:
    return len(first) == len(second) and all(
        np.array_equal(a.positions, b.positions) and (a.resolution, a.seed, a.part) == (b.resolution, b.seed, b.part)
        for a, b in zip(first, second, strict=True)
    )


def plan_of(**changes: Any) -> BatchPlan:
    return replace(BatchPlan(100, 8, RESOLUTIONS, seed=3, phase=1), **changes)


@settings(deadline=None)
@given(plan=plans, epoch=st.integers(0, 3))
def test_an_epoch_shows_each_image_at_most_once_and_leaves_out_less_than_a_batch(plan: BatchPlan, epoch: int) -> None:
    steps = plan.steps_per_epoch
    shown = np.concatenate([batch.positions for batch in plan.batches(epoch * steps, (epoch + 1) * steps)])
    assert len(set(shown.tolist())) == len(shown) == steps * plan.batch_size
    assert plan.images - len(shown) < plan.batch_size
    assert set(shown.tolist()) <= set(range(plan.images))


def test_an_epoch_that_batches_fill_is_a_permutation_of_its_own() -> None:
    plan = plan_of(images=96)
    first, second = (
        np.concatenate([batch.positions for batch in plan.batches(12 * epoch, 12 * (epoch + 1))]) for epoch in (0, 1)
    )
    assert sorted(first) == sorted(second) == list(range(96))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, np.arange(96))


def test_images_that_one_epoch_leaves_out_come_in_others() -> None:
    plan = plan_of(images=15)  # one batch of 8 an epoch
    assert set(np.concatenate([batch.positions for batch in plan.batches(0, 20)]).tolist()) == set(range(15))


@settings(deadline=None)
@given(plan=plans, first=st.integers(0, 20), length=st.integers(0, 20))
def test_a_plan_goes_on_at_any_step(plan: BatchPlan, first: int, length: int) -> None:
    whole = list(plan.batches(0, first + length))
    assert same(whole[first:], list(plan.batches(first, first + length)))


@settings(deadline=None)
@given(plan=plans, world=st.integers(1, 4))
def test_the_parts_of_all_processes_are_the_batch(plan: BatchPlan, world: int) -> None:
    plan = replace(plan, images=plan.images * world, batch_size=plan.batch_size * world)
    alone = list(plan.batches(0, 5))
    ranks = [list(replace(plan, rank=rank, world=world).batches(0, 5)) for rank in range(world)]
    for whole, *shares in zip(alone, *ranks, strict=True):
        parts = [share.positions[share.part] for share in shares]
        assert {len(part) for part in parts} == {plan.batch_size // world}
        assert np.array_equal(np.concatenate(parts), whole.positions[whole.part])
        assert {(share.resolution, share.seed) for share in shares} == {(whole.resolution, whole.seed)}


def test_a_single_process_takes_the_whole_batch() -> None:
    batch = next(plan_of().batches(0, 1))
    assert np.array_equal(batch.positions[batch.part], batch.positions)


def test_each_resolution_comes_about_as_often() -> None:
    drawn = [batch.resolution for batch in plan_of().batches(0, 800)]
    assert {type(resolution) for resolution in drawn} == {int}
    counts = np.array([drawn.count(resolution) for resolution in RESOLUTIONS])
    assert counts.sum() == 800
    assert (abs(counts - 200) < 60).all()


def test_batches_have_seeds_of_their_own() -> None:
    assert len({batch.seed for batch in plan_of().batches(0, 200)}) == 200


@pytest.mark.parametrize("changes", [{"seed": 4}, {"phase": 2}], ids=["seed", "phase"])
def test_seed_and_phase_change_order_resolutions_and_augmentation(changes: dict[str, int]) -> None:
    first, second = list(plan_of().batches(0, 24)), list(plan_of(**changes).batches(0, 24))
    assert [batch.positions.tolist() for batch in first] != [batch.positions.tolist() for batch in second]
    assert [batch.resolution for batch in first] != [batch.resolution for batch in second]
    assert not {batch.seed for batch in first} & {batch.seed for batch in second}
    assert same(first, list(plan_of().batches(0, 24)))
