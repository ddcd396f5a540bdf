"""Which sub-networks a predictor learns from: drawn from a declared distribution.

"random" draws every choice uniformly (the paper's), which crowds around the middle of the space.
"spread" gives each architecture its own preference for each choice, so that networks near the
corners come up as well. "macs" is uniform over MACs. "uniform" are the networks with one depth,
kernel and expand ratio everywhere, which stay apart as what a search has to beat.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from onceforall.architecture import Architecture
from onceforall.cost.analytic import macs
from onceforall.errors import InvalidConfiguration
from onceforall.rows import RESOLUTION
from onceforall.space import SearchSpace

Kind = Literal["random", "spread", "macs", "uniform"]

# Which kinds take turns, under the name of the distribution.
DISTRIBUTIONS: dict[str, tuple[Kind, ...]] = {
    "mixed": ("random", "spread"),
    "random": ("random",),
    "spread": ("spread",),
    "macs": ("macs",),
}
TRIES = 32  # draws, from which the one with MACs nearest to a target is taken


def plan(
    space: SearchSpace,
    count: int,
    seed: int,
    uniform: bool = False,
    distribution: str = "mixed",
    most_uniform: int | None = None,
) -> list[tuple[Kind, Architecture]]:
    """Which architectures to label: `count` distinct ones of a distribution, then the uniform ones.

    most_uniform: so many of the uniform ones at most, evenly chosen in their order; None for all of them.
    """
    if count < 0 or count > space.size:
        raise InvalidConfiguration(f"{count} labels: this space has {space.size} architectures")
    if distribution not in DISTRIBUTIONS:
        raise InvalidConfiguration(f"distribution {distribution!r}: choices are {', '.join(DISTRIBUTIONS)}")
    kinds, rng = DISTRIBUTIONS[distribution], np.random.default_rng(seed)
    draw: dict[Kind, Callable[[SearchSpace, np.random.Generator], Architecture]] = {
        "random": lambda space, rng: space.sample(rng),
        "spread": spread_sample,
        "macs": macs_sample,
    }
    chosen: dict[Architecture, Kind] = {}
    while len(chosen) < count:
        kind = kinds[len(chosen) % len(kinds)]
        chosen.setdefault(draw[kind](space, rng), kind)
    result = [(kind, arch) for arch, kind in chosen.items()]
    if not uniform:
        return result
    uniforms = space.uniforms()
    if most_uniform is not None and most_uniform < len(uniforms):
        places = np.linspace(0, len(uniforms) - 1, most_uniform).round().astype(int)
        uniforms = [uniforms[place] for place in places]
    return [*result, *(("uniform", arch) for arch in uniforms)]


def macs_sample(space: SearchSpace, rng: np.random.Generator) -> Architecture:
    """One architecture whose MACs are nearly uniform between those of the smallest and the largest network."""
    ends = [space.smallest(), space.largest()]
    least, most = (macs(space.lower(arch)) for arch in ends)
    target = rng.uniform(least, most)
    found = [*ends, *(spread_sample(space, rng) for _ in range(TRIES))]
    return min(found, key=lambda arch: abs(macs(space.lower(arch)) - target))


def spread_sample(space: SearchSpace, rng: np.random.Generator) -> Architecture:
    """One architecture whose choices follow its own random preferences: corners are as likely as the middle."""
    counts = space.choice_counts
    row = np.empty((1, len(counts)), np.int16)
    groups = [space.columns_of(name) for name in (RESOLUTION, *space.choice_names)]
    for group in filter(None, groups):
        preference = rng.dirichlet(np.ones(max(int(counts[c]) for c in group)))
        for column in group:
            weights = preference[: counts[column]]
            row[0, column] = rng.choice(len(weights), p=weights / weights.sum())
    return space.from_rows(space.canonical(row))[0]
