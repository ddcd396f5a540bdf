"""Checks of settings, each of which raises InvalidConfiguration with the name, the value and what is allowed."""

from __future__ import annotations

import math
from numbers import Real
from typing import TypeGuard

from onceforall.errors import InvalidConfiguration


def expect(name: str, value: object, right: bool, expected: str) -> None:
    """That a value is right."""
    if not right:
        raise InvalidConfiguration(f"{name} {value!r:.200}: expected {expected}")


def check_integer(name: str, value: object, least: int, most: int = 2**31 - 1) -> None:
    """That a value is an integer of at least `least`, and at most `most`."""
    right = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    above = right is False and isinstance(value, int) and value > most
    expect(name, value, right, f"an integer from {least} to {most}" if above else f"an integer of at least {least}")


def check_share(name: str, value: object) -> None:
    """That a value is a number of at least 0 and below 1."""
    expect(name, value, is_number(value) and 0 <= value < 1, "a number of at least 0 and below 1")


def check_positive(name: str, value: object) -> None:
    """That a value is a finite number above 0."""
    expect(name, value, is_positive(value), "a finite number above 0")


def is_positive(value: object) -> bool:
    """Whether a value is a finite number above 0."""
    return is_number(value) and math.isfinite(value) and value > 0


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a number, which true and false are not."""
    return isinstance(value, Real) and not isinstance(value, bool)
