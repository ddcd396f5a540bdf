from __future__ import annotations

import numpy as np

from onceforall.search.neighbours import Neighbours
from onceforall.space import SearchSpace


def test_neighbours_are_members_one_choice_away(kind_of_space: SearchSpace, rng: np.random.Generator) -> None:
    space = kind_of_space
    rows = space.sample_rows(5, rng)
    near, owners = Neighbours(space).of(rows)
    for arch, row in zip(space.from_rows(near), near, strict=True):
        np.testing.assert_array_equal(space.to_rows([arch])[0], row)  # valid, and canonical
    depths = space.columns_of("depth") + space.columns_of("width_multiplier")
    for row, owner in zip(near, owners, strict=True):
        changed = np.flatnonzero(row != rows[owner])
        assert 0 not in changed  # the resolution
        structural = [column for column in changed if column in depths]
        # A change of depth brings or takes genes of its unit; a gene changes alone.
        assert len(structural) == 1 or (not structural and len(changed) == 1)


def test_every_network_one_choice_away_is_there_once(tiny_space: SearchSpace) -> None:
    start = tiny_space.to_rows([tiny_space.smallest()])
    near, _ = Neighbours(tiny_space).of(start)
    # 3 blocks with 2 other kernels and 2 other expand ratios; each of 2 units one deeper, the new block one of 9.
    assert len(near) == len(np.unique(near, axis=0)) == 3 * (2 + 2) + 2 * 9
    near, _ = Neighbours(tiny_space).of(tiny_space.to_rows([tiny_space.largest()]))
    assert len(near) == len(np.unique(near, axis=0)) == 5 * (2 + 2) + 2
