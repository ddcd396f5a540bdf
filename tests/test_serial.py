"""Dataclasses to JSON and back, and what an error must say."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest

from onceforall import serial
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration


class Colour:
    """A type that says its own JSON."""

    def __init__(self, name: str) -> None:
        self.name = name

    def to_json(self) -> str:
        return self.name

    @classmethod
    def from_json(cls, value: object) -> Colour:
        if value not in ("red", "blue"):
            raise InvalidConfiguration(f"colour {value!r}: choices are red, blue")
        return cls(str(value))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Colour) and other.name == self.name

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Inner:
    sizes: tuple[int, ...]
    colour: Colour


@dataclass(frozen=True)
class Outer:
    parts: dict[str, Inner]
    share: float | None = None


VALUE = Outer({"a": Inner((1, 2), Colour("red"))}, 0.5)


def test_round_trip_through_the_text_of_json() -> None:
    assert serial.from_json(Outer, json.loads(json.dumps(serial.to_json(VALUE))), "an example") == VALUE


def test_numbers_of_numpy_are_numbers() -> None:
    assert serial.to_json(Outer({}, np.float64(0.25))) == {"parts": {}, "share": 0.25}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"parts": {"a": {"sizes": [1, "2"], "colour": "red"}}}, "sizes[1]"),
        ({"parts": {"a": {"sizes": [1], "colour": "grey"}}}, "colour 'grey': choices are red, blue"),
        ({"parts": {"a": {"sizes": [1], "colour": "red", "hue": 1}}}, "unknown field `$.parts.a.hue`"),
        ({"share": 1.0}, "parts"),
        ([], "object"),
        (None, "object"),
    ],
)
def test_errors_name_what_and_where(value: object, text: str) -> None:
    with pytest.raises(IncompatibleCheckpoint, match="not an example: ") as caught:
        serial.from_json(Outer, value, "an example", IncompatibleCheckpoint)
    assert text in str(caught.value)
