"""Tables of bundles for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def tables(manifest: Mapping[str, Any]) -> tuple[Table, Table]:
    """One row a sub-network and runtime, and one row a runtime: shared against a file for each."""
    runtimes = manifest["measured"]["runtimes"]
    each = _table("Sub-networks (measured)", "", "runtime", "test %", "switch ms", "switch back ms", "own file KiB")
    for name in manifest["networks"]:
        for runtime, found in runtimes.items():
            row = found["networks"][name]
            figures = (f"{row['top1']:.2f}", f"{row['switch_ms']:.2f}", f"{row['ready_switch_ms']:.2f}")
            each.add_row(name, runtime, *figures, _kib(row["separate_bytes"]))
    together = _table(
        "All of them (measured)",
        "",
        "files KiB",
        "separate files KiB",
        "memory KiB, one kept",
        "all kept",
        "separate loads",
    )
    keys = ("bytes", "separate_bytes", "resident_bytes", "resident_bytes_all_kept", "separate_resident_bytes")
    for runtime, found in runtimes.items():
        together.add_row(runtime, *(_kib(found[key]) for key in keys))
    return each, together


def _table(title: str, *headers: str) -> Table:
    table = Table(title=title)
    for header in headers:
        table.add_column(header, justify="left" if header in ("", "runtime") else "right")
    return table


def _kib(count: int | None) -> str:
    return "-" if count is None else f"{count / 1024:.0f}"
