"""Frozen dataclasses to JSON values and back, by their annotations (msgspec). What a type says of itself comes first.

A class that has `to_json` and the class method `from_json`, and is no dataclass, is written and read by those.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar, get_origin

import msgspec
import numpy as np

from onceforall.errors import InvalidConfiguration, OFAError

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """The JSON value of a dataclass and of all that it holds: dictionaries, sequences, numbers, strings."""
    return msgspec.to_builtins(value, enc_hook=_encode, str_keys=True)


def from_json(kind: type[T], value: Any, what: str, error: type[OFAError] = InvalidConfiguration) -> T:
    """The inverse of `to_json`: an instance of `kind`, whose annotations say what is allowed where.

    Raises `error`, which calls it by `what` ("a search result") and names the place that is wrong.
    """
    try:
        found = msgspec.convert(value, kind, dec_hook=_decode)
    except (msgspec.ValidationError, RecursionError, OverflowError) as problem:
        raise error(f"not {what}: {problem!s:.400}") from problem
    for place in _ignored(value, to_json(found), "$"):
        raise error(f"not {what}: unknown field `{place:.100}`")
    return found


def _ignored(given: Any, taken: Any, place: str) -> Iterator[str]:
    """Where an object has a field that none was made of."""
    if isinstance(given, dict) and isinstance(taken, dict):
        for key, value in given.items():
            if key in taken:
                yield from _ignored(value, taken[key], f"{place}.{key}")
            else:
                yield f"{place}.{key}"
    elif isinstance(given, list | tuple) and isinstance(taken, list | tuple):
        for index, pair in enumerate(zip(given, taken, strict=False)):
            yield from _ignored(*pair, f"{place}[{index}]")


def _encode(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if hasattr(value, "to_json"):
        return value.to_json()
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def _decode(kind: Any, value: Any) -> Any:
    if get_origin(kind) is np.ndarray:
        return np.array(value, float)
    try:
        return kind.from_json(value)
    except OFAError as problem:  # msgspec adds the place to errors of its own kind alone
        raise ValueError(str(problem)) from problem
