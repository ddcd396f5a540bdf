"""An architecture is a value: immutable, hashable, and holding only what is active."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from onceforall.errors import InvalidArchitecture


class Gene(NamedTuple):
    """The choice made for one block: kernel size (px) and expand ratio."""

    kernel: int
    expand: float


@dataclass(frozen=True, slots=True)
class Architecture:
    """One sub-network: an input resolution (px) and, for each unit, the genes of its active blocks.

    A unit's depth is the number of its genes. Blocks that depth cuts off have no gene, so two
    equal networks are two equal objects. `width_multipliers` scale the output channels of each
    unit, where a space lets them; none stand for 1 everywhere.
    """

    resolution: int
    units: tuple[tuple[Gene, ...], ...]
    width_multipliers: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if all(multiplier == 1 for multiplier in self.width_multipliers):  # one name for one network
            object.__setattr__(self, "width_multipliers", ())

    @property
    def depths(self) -> tuple[int, ...]:
        """Number of blocks in each unit."""
        return tuple(len(unit) for unit in self.units)

    @property
    def multipliers(self) -> tuple[float, ...]:
        """The width multiplier of each unit, written out."""
        return self.width_multipliers or (1,) * len(self.units)

    def to_json(self) -> dict[str, Any]:
        """A JSON object: `{"resolution": 32, "units": [[[kernel, expand], ...], ...]}`.

        Where a width multiplier is not 1, `"width_multipliers": [...]` as well.
        """
        value = {"resolution": self.resolution, "units": [[list(gene) for gene in unit] for unit in self.units]}
        return value | ({"width_multipliers": list(self.width_multipliers)} if self.width_multipliers else {})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Architecture:
        """The inverse of `to_json`. Raises InvalidArchitecture where the form is wrong."""
        try:
            units = tuple(tuple(_gene(*gene) for gene in unit) for unit in value["units"])
            multipliers = tuple(map(_number, value.get("width_multipliers", ())))
            return cls(_integer(value["resolution"]), units, multipliers)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidArchitecture(
                f"not an architecture: {json.dumps(value, default=str)[:200]}; expected "
                '{"resolution": 32, "units": [[[kernel, expand], ...], ...]}'
            ) from error

    def __str__(self) -> str:
        units = ["-".join(f"k{gene.kernel}e{gene.expand:g}" for gene in unit) or "none" for unit in self.units]
        if self.width_multipliers:
            multipliers = [f"(x{m:g})" for m in self.width_multipliers]
            units = ["".join(pair) for pair in itertools.zip_longest(units, multipliers, fillvalue="")]
        return f"{self.resolution}px {' '.join(units)}"


def _gene(kernel: object, expand: object) -> Gene:
    return Gene(_integer(kernel), _number(expand))


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not an integer")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return value
