"""Samplers: which sub-networks one training step runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onceforall.architecture import Architecture
from onceforall.training.parts import Part


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


class Sampler(Part, ABC):
    """Chooses the sub-networks of a step. A sampler of your own is a frozen dataclass derived from this."""

    @abstractmethod
    def __call__(self, members: Members, count: int, rng: np.random.Generator) -> list[Architecture]:
        """`count` of the members, the first of which teaches where the phase's teacher is "in_place".

        All randomness comes from `rng`, which is the same in every process of a distributed run.
        """


@dataclass(frozen=True)
class Random(Sampler):
    """Independent ones, each choice equally likely (paper, section 3.3)."""

    name = "random"

    def __call__(self, members: Members, count: int, rng: np.random.Generator) -> list[Architecture]:
        return [members.sample(rng) for _ in range(count)]


@dataclass(frozen=True)
class Sandwich(Sampler):
    """The largest, the smallest, then random ones up to `count` (Yu and Huang, 2019, section 3.2)."""

    name = "sandwich"

    def __call__(self, members: Members, count: int, rng: np.random.Generator) -> list[Architecture]:
        ends = [members.largest(), members.smallest()]
        return (ends + Random()(members, max(count - 2, 0), rng))[:count]
