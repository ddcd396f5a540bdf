"""What a damaged or foreign JSON file may say: copies of a value with one place changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np

HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 10**30, "", "x", "../x", "/x", "\x00", "NaN", [], {}, [[]], {"a": 1}, ["x"],
)  # fmt: skip


def mutations(value: Any, rng: np.random.Generator, count: int) -> Iterator[Any]:
    """So many copies, in each of which one value, at a random place, is another, gone, or there twice."""
    known = list(places(value))
    for _ in range(count):
        steps = known[rng.integers(len(known))]
        changed = copy.deepcopy(value)
        parent = changed
        for step in steps[:-1]:
            parent = parent[step]
        key, choice = steps[-1], int(rng.integers(len(HOSTILE) + 2))
        if choice < len(HOSTILE):
            parent[key] = copy.deepcopy(HOSTILE[choice])
        elif choice == len(HOSTILE):
            del parent[key]
        elif isinstance(parent, list):
            parent.append(parent[key])
        else:
            parent[f"{key}2"] = parent[key]
        yield changed


def places(value: Any, steps: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of a JSON value are."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*steps, key)
        yield from places(inner, (*steps, key))
