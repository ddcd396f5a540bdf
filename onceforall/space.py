"""A search space: how a choice is lowered to layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, Self

from onceforall import serial
from onceforall.architecture import Architecture, Gene
from onceforall.checks import check_integer
from onceforall.choices import Choices
from onceforall.errors import InvalidArchitecture, InvalidConfiguration
from onceforall.layers import LayerSpec
from onceforall.rows import Populations
from onceforall.sizes import Size

FEWEST_CLASSES = 2


class BlockForm(NamedTuple):
    """One form of an elastic block: indices of the width multipliers that it reads and has, number of its gene in
    `unit.genes`, and the layer that they make.
    """

    in_multiplier: int
    multiplier: int
    gene: int
    layer: LayerSpec


@dataclass(frozen=True)
class SearchSpace(Populations, ABC):
    """The choices of a family of networks. A subclass adds its stage table, `stem`, `block` and `head`, and its `kind`.

    A block depends on its own gene, the width multiplier of its unit, and, if it is the first of its
    unit, that of the unit before; the stem on the multiplier of the first unit, the head on that of
    the last. That locality is what lets a search price whole populations from tables.
    """

    # What a subclass says

    kind: ClassVar[str] = ""  # the "type" in its JSON, under which `onceforall.spaces.register` knows its `from_json`

    @abstractmethod
    def stem(self, resolution: Size, multiplier: float = 1) -> tuple[LayerSpec, ...]:
        """The fixed layers before the first unit, whose width multiplier is given."""

    @abstractmethod
    def block(
        self, resolution: Size, unit: int, index: int, gene: Gene, multiplier: float = 1, in_multiplier: float = 1
    ) -> LayerSpec:
        """Block `index` of unit `unit` (both from 0), with its choices made.

        `in_multiplier` belongs to what the block reads: the unit before, or the same unit inside it.
        """

    @abstractmethod
    def head(self, resolution: Size, multiplier: float = 1) -> tuple[LayerSpec, ...]:
        """The fixed layers after the last unit, whose width multiplier is given."""

    # Files

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `onceforall.spaces.from_json` makes an equal space: its kind and its fields.

        Raises InvalidConfiguration where the class does not say its kind.
        """
        if not self.kind:
            raise InvalidConfiguration(f'{type(self).__name__} has no name: give the class a kind = "my_space"')
        return {"type": self.kind, **serial.to_json(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`. Raises InvalidConfiguration where the form is wrong."""
        fields = {key: item for key, item in value.items() if key != "type"}
        return serial.from_json(cls, fields, f"a space of the type {cls.kind!r}")

    # Another one

    def with_classes(self, num_classes: int) -> Self:
        """The same space for another number of classes.

        Raises InvalidConfiguration for fewer than two, and where the space has no field `num_classes`.
        """
        check_integer("num_classes", num_classes, FEWEST_CLASSES)
        if not hasattr(self, "num_classes"):
            raise InvalidConfiguration(f"num_classes {num_classes}: this space has no field of that name to change")
        changes: dict[str, Any] = {"num_classes": num_classes}
        return replace(self, **changes)

    # Lowering

    def lower(self, architecture: Architecture) -> tuple[LayerSpec, ...]:
        """The layers of an architecture, in order. Raises InvalidArchitecture."""
        return _lower(self, architecture)

    def block_forms(self, resolution: Size, unit: int, index: int) -> Iterator[BlockForm]:
        """Every form of a block at a resolution."""
        own = self.units[unit]
        before = self.units[unit - 1].width_multipliers if unit > 0 else (1.0,)
        for m, multiplier in enumerate(own.width_multipliers):
            for i, in_multiplier in enumerate(before) if index == 0 else [(m, multiplier)]:
                for g in own.genes_of_block(index):
                    layer = self.block(resolution, unit, index, own.genes[g], multiplier, in_multiplier)
                    yield BlockForm(i, m, g, layer)

    def layers(self, resolution: Size) -> Iterator[LayerSpec]:
        """Every form of every layer at a resolution: stems, blocks, heads."""
        for multiplier in self.units[0].width_multipliers:
            yield from self.stem(resolution, multiplier)
        for unit, index in self.block_indices:
            for form in self.block_forms(resolution, unit, index):
                yield form.layer
        for multiplier in self.units[-1].width_multipliers:
            yield from self.head(resolution, multiplier)

    def check_contains(self, part: Choices) -> None:
        """Raises InvalidArchitecture where `part` has a choice that this space does not have.

        Or where the same choices make other layers there, the last one (the classifier) apart.
        """
        super().check_contains(part)
        if isinstance(part, SearchSpace):
            for arch in (part.smallest(), part.largest()):
                if self.lower(arch)[:-1] != part.lower(arch)[:-1]:
                    raise InvalidArchitecture(f"another space: the same choices make other layers there ({arch})")


@lru_cache(maxsize=4096)
def _lower(space: SearchSpace, architecture: Architecture) -> tuple[LayerSpec, ...]:
    space.validate(architecture)
    resolution, multipliers = architecture.resolution, architecture.multipliers
    blocks = (
        space.block(resolution, u, b, gene, multipliers[u], multipliers[u] if b else before)
        for u, (genes, before) in enumerate(zip(architecture.units, (1, *multipliers[:-1]), strict=True))
        for b, gene in enumerate(genes)
    )
    return (*space.stem(resolution, multipliers[0]), *blocks, *space.head(resolution, multipliers[-1]))
