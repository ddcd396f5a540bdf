"""Where the tables that others measured and published are; a test that needs one skips where it is absent."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import pytest

from onceforall.architecture import Architecture, Gene

FOLDER = Path(__file__).parents[2] / ".." / "shared" / "data" / "tables"


def path_of(name: str) -> Path:
    """A shared table, or a skip."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"{name} is not there: the tables of others are kept beside the repository, not in it")
    return path


def rows_of(name: str) -> list[dict[str, str]]:
    """The rows of a shared CSV file."""
    with path_of(name).open(newline="") as file:
        return list(csv.DictReader(file))


def architecture_in(row: Mapping[str, str]) -> Architecture:
    """The sub-network of a row with columns resolution, d1..d5, k1..k20, e1..e20."""
    units = (
        tuple(
            Gene(kernel=int(row[f"k{block}"]), expand=int(row[f"e{block}"]))
            for block in range(4 * stage + 1, 4 * stage + 1 + int(row[f"d{stage + 1}"]))
        )
        for stage in range(5)
    )
    return Architecture(int(row["resolution"]), tuple(units))
