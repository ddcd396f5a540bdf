"""Which networks of a space are measured: those that a latency model is fitted to, and those that judge it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onceforall.architecture import Architecture
from onceforall.errors import InvalidConfiguration
from onceforall.space import SearchSpace

FEWEST = 8  # calibrating networks,
FEWEST_JUDGES = 4  # and validating ones


def counts_within(space: SearchSpace, calibrating: int, validating: int) -> tuple[int, int]:
    """As many networks that fit, and others that judge, as the space has. Raises InvalidConfiguration."""
    if space.size < FEWEST + FEWEST_JUDGES:
        raise InvalidConfiguration(
            f"this space has {space.size} networks, fewer than {FEWEST + FEWEST_JUDGES}: time each of them"
        )
    validating = max(FEWEST_JUDGES, min(validating, space.size * validating // (calibrating + validating)))
    return min(calibrating, space.size - validating), validating


def fitting_networks(space: SearchSpace, count: int, rng: np.random.Generator) -> list[Architecture]:
    """The smallest and largest networks of the smallest and largest resolution first, some uniform, the rest random.

    Random networks are all much alike: those that a search ends at, or a person picks, are further out.
    """
    ends = [space.restrict(resolutions=[size]) for size in (space.resolutions[0], space.resolutions[-1])]
    extremes = list(dict.fromkeys(arch for end in ends for arch in (end.smallest(), end.largest())))
    uniforms = [arch for arch in space.uniforms() if arch not in extremes]
    chosen = rng.permutation(len(uniforms))[: min(count // 3, len(uniforms) // 2)]
    begin = [*extremes, *(uniforms[index] for index in chosen)]
    return [*begin, *random_networks(space, count - len(begin), rng, begin)]


def judging_networks(
    space: SearchSpace, count: int, rng: np.random.Generator, fitting: Sequence[Architecture]
) -> dict[Architecture, str]:
    """Networks that fit nothing, with their kind: half of them uniform where there are so many, the rest random."""
    uniforms = [arch for arch in space.uniforms() if arch not in fitting]
    chosen = [uniforms[index] for index in rng.permutation(len(uniforms))[: count // 2]]
    rest = random_networks(space, count - len(chosen), rng, [*fitting, *chosen])
    return dict.fromkeys(chosen, "uniform") | dict.fromkeys(rest, "random")


def random_networks(
    space: SearchSpace, count: int, rng: np.random.Generator, known: Sequence[Architecture]
) -> list[Architecture]:
    """So many random architectures beside the known ones. Raises InvalidConfiguration where there are not so many."""
    if len(known) + count > space.size:
        raise InvalidConfiguration(f"{len(known) + count} networks: this space has {space.size}; measure fewer")
    found = dict.fromkeys(known)
    while len(found) < len(known) + count:
        found.setdefault(space.sample(rng))
    return list(found)[len(known) :]
