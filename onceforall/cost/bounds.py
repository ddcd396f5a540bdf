"""Bounds as people write them: "0.5 ms", "5 M", "200 KiB", or "60%" of what the largest network needs."""

from __future__ import annotations

import math
import re

from onceforall.cost import by_name, names
from onceforall.cost.model import Constraint
from onceforall.errors import InvalidConfiguration
from onceforall.space import SearchSpace

NUMBER = r"\+?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
FACTORS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 1024.0, "Mi": 1024.0**2, "Gi": 1024.0**3}
SHORT = {"bytes": "B"}  # what units are called behind a factor
WORDS = {"ms": 'milliseconds ("0.5 ms")', "bytes": 'bytes ("200 KiB")'}


def parse_bound(text: str, unit: str, largest: float, what: str = "bound") -> float:
    """A bound in `unit`: a number with that unit or with a factor (M, Ki, ...), or a share of `largest`.

    Raises InvalidConfiguration, which calls it `what`.
    """
    match = re.fullmatch(rf"\s*({NUMBER})\s*([A-Za-z%][\w%/]*)\s*", text)
    number, factor = (float(match[1]), _factor(match[2], unit)) if match else (0.0, None)
    if factor is None or not 0 < number < math.inf:
        units = WORDS.get(unit, f'{unit} ("5 {unit}" or "5 M")')
        raise InvalidConfiguration(f'{what} {text!r}: give {units} or a share of the largest network ("60%"), above 0')
    return number / 100 * largest if match and match[2] == "%" else number * factor


def _factor(said: str, unit: str) -> float | None:
    """What a number with these words behind it is to be multiplied by; None where they are not of the unit."""
    if said == "%":
        return 0.01
    bare = said.removesuffix(unit).removesuffix(SHORT.get(unit, unit))
    if unit == "ms" and bare:  # of a millisecond nobody says that there are a million
        return None
    return FACTORS.get(bare)


def parse_limit(text: str, space: SearchSpace) -> Constraint:
    """A constraint on any registered cost, as "macs <= 5 M" or "memory <= 200 KiB". Raises InvalidConfiguration."""
    name, sign, bound = (part.strip() for part in text.partition("<="))
    if not sign:
        raise InvalidConfiguration(
            f'limit {text!r}: expected COST <= BOUND, as "macs <= 5 M"; costs: {", ".join(names())}'
        )
    model = by_name(name)
    return model.at_most(parse_bound(bound, model.unit, model.cost(space.lower(space.largest())), f"limit {name} <="))
