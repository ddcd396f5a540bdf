"""An architecture is a value: immutable, hashable, and holding only what is active."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from onceforall.errors import InvalidArchitecture


class Gene(NamedTuple):
    """The choice made for one block: depthwise kernel size (px) and expand ratio."""

    kernel: int
    expand: int


@dataclass(frozen=True, slots=True)
class Architecture:
    """One sub-network: an input resolution (px) and, for each unit, the genes of its active blocks.

    A unit's depth is the number of its genes. Blocks that depth cuts off have no gene, so two
    equal networks are two equal objects.
    """

    resolution: int
    units: tuple[tuple[Gene, ...], ...]

    @property
    def depths(self) -> tuple[int, ...]:
        """Number of blocks in each unit."""
        return tuple(len(unit) for unit in self.units)

    def to_json(self) -> dict[str, Any]:
        """A JSON object: `{"resolution": 32, "units": [[[kernel, expand], ...], ...]}`."""
        return {"resolution": self.resolution, "units": [[list(gene) for gene in unit] for unit in self.units]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Architecture:
        """The inverse of `to_json`. Raises InvalidArchitecture where the form is wrong."""
        try:
            units = tuple(tuple(Gene(*map(_integer, gene)) for gene in unit) for unit in value["units"])
            return cls(_integer(value["resolution"]), units)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidArchitecture(
                f"not an architecture: {json.dumps(value, default=str)[:200]}; expected "
                '{"resolution": 32, "units": [[[kernel, expand], ...], ...]}'
            ) from error

    def __str__(self) -> str:
        units = " ".join("-".join(f"k{gene.kernel}e{gene.expand}" for gene in unit) for unit in self.units)
        return f"{self.resolution}px {units}"


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not an integer")
    return value
