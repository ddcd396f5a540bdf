"""Latency models in files, whichever kind they are of."""

from __future__ import annotations

from pathlib import Path

from onceforall.cost import learned
from onceforall.cost.latency import LatencyTable, LatencyTables, read_table
from onceforall.cost.learned import LearnedLatency
from onceforall.files import read_json_object


def load_latency(path: str | Path) -> LatencyTable | LatencyTables | LearnedLatency:
    """What `save` of any of them wrote. Raises InvalidConfiguration."""
    value = read_json_object(Path(path))
    return LearnedLatency.from_json(value) if value.get("format") == learned.FORMAT else read_table(value)
