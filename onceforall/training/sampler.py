"""Samplers: which sub-networks one training step runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onceforall.architecture import Architecture


class Members(Protocol):
    """What a sampler draws from: a search space, or a single network."""

    def sample(self, rng: np.random.Generator) -> Architecture: ...

    def largest(self) -> Architecture: ...

    def smallest(self) -> Architecture: ...


@dataclass(frozen=True)
class Only:
    """A single network as what a sampler draws from."""

    architecture: Architecture

    def sample(self, rng: np.random.Generator) -> Architecture:
        return self.architecture

    def largest(self) -> Architecture:
        return self.architecture

    def smallest(self) -> Architecture:
        return self.architecture


def uniform(members: Members, count: int, rng: np.random.Generator) -> list[Architecture]:
    """`count` independent ones, each choice equally likely (paper, section 3.3)."""
    return [members.sample(rng) for _ in range(count)]


def sandwich(members: Members, count: int, rng: np.random.Generator) -> list[Architecture]:
    """The largest, the smallest, then random ones up to `count` (Yu and Huang, 2019, section 3.2)."""
    ends = [members.largest(), members.smallest()]
    return (ends + uniform(members, max(count - 2, 0), rng))[:count]


Sampler = Callable[[Members, int, np.random.Generator], list[Architecture]]
SAMPLERS: dict[str, Sampler] = {"uniform": uniform, "sandwich": sandwich}
