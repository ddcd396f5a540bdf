"""Budgets as people write them."""

from __future__ import annotations

import math
import re

from onceforall.errors import InvalidConfiguration


def parse_budget(text: str, largest_ms: float) -> float:
    """Milliseconds of a budget: "0.5 ms", "0.5ms", or "60%" of the largest network. Raises InvalidConfiguration."""
    match = re.fullmatch(r"\s*(\S+?)\s*(ms|%)\s*", text)
    try:
        number, unit = (float(match[1]), match[2]) if match else (math.nan, "")
    except ValueError:
        number, unit = math.nan, ""
    if not 0 < number < math.inf:
        raise InvalidConfiguration(
            f'budget {text!r}: give milliseconds ("0.5 ms") or a share of the largest network ("60%"), above 0'
        )
    return number if unit == "ms" else number / 100 * largest_ms
