"""An architecture is a value: immutable, hashable, and holding only what is active."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from onceforall import serial
from onceforall.checks import is_number
from onceforall.errors import InvalidArchitecture
from onceforall.sizes import Size, said

V = TypeVar("V")
FORM = '{"resolution": 32, "units": [[{"kernel": 5, "expand": 6}, ...], ...], "width_multipliers": []}'


class Named(Mapping[str, V]):
    """An immutable, hashable mapping of names to values, which are attributes as well. Order does not matter."""

    __slots__ = ("_hash", "_values")
    _hash: int
    _values: dict[str, V]

    def __init__(self, /, *given: Mapping[str, V], **values: V) -> None:
        for more in given:
            values = {**more, **values}
        object.__setattr__(self, "_values", values)
        object.__setattr__(self, "_hash", hash(frozenset(values.items())))

    def __getitem__(self, name: str) -> V:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"{name}: this {type(self).__name__} has {', '.join(self._values)}") from None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name}: a {type(self).__name__} is immutable; make another with replace({name}=...)")

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Named) and self._values == other._values)

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._values,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.items())})"

    def replace(self, **changes: V) -> Self:
        """The same with some values changed."""
        return type(self)({**self._values, **changes})

    def to_json(self) -> dict[str, V]:
        """A JSON object."""
        return dict(self._values)


class Gene(Named[float]):
    """The choices made for one block, by name: `Gene(kernel=5, expand=6).kernel` is 5."""

    __slots__ = ()

    @classmethod
    def from_json(cls, value: Any) -> Gene:
        """A JSON object of names and numbers; or the pair [kernel, expand], as older files have it.

        Raises InvalidArchitecture.
        """
        if isinstance(value, list | tuple) and len(value) == 2:
            value = dict(zip(("kernel", "expand"), value, strict=True))
        if not isinstance(value, dict) or not all(is_number(item) for item in value.values()):
            raise InvalidArchitecture(f"{value!r} is no gene: expected names and numbers")
        return cls(value)

    def __str__(self) -> str:
        return "".join(f"{name[0]}{value:g}" for name, value in self.items())


@dataclass(frozen=True, slots=True)
class Architecture:
    """One sub-network: an input resolution (px) and, for each unit, the genes of its active blocks.

    A unit's depth is the number of its genes. Blocks that depth cuts off have no gene, so two
    equal networks are two equal objects. `width_multipliers` scale the output channels of each
    unit, where a space lets them; none stand for 1 everywhere. `resolution` is a number where images
    are square, else (height, width).
    """

    resolution: Size
    units: tuple[tuple[Gene, ...], ...]
    width_multipliers: tuple[int | float, ...] = ()

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
        """A JSON object, as `FORM` shows."""
        value: dict[str, Any] = serial.to_json(self)
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Architecture:
        """The inverse of `to_json`; also of older files. Raises InvalidArchitecture where the form is wrong."""
        try:
            return serial.from_json(cls, value, "an architecture", InvalidArchitecture)
        except InvalidArchitecture as problem:
            raise InvalidArchitecture(f"{problem}; expected {FORM}") from problem

    def __str__(self) -> str:
        units = ["-".join(map(str, unit)) or "none" for unit in self.units]
        if self.width_multipliers:
            multipliers = [f"(x{m:g})" for m in self.width_multipliers]
            units = ["".join(pair) for pair in itertools.zip_longest(units, multipliers, fillvalue="")]
        return f"{said(self.resolution)}px {' '.join(units)}"
