"""The score that networks of a data set are judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from onceforall.data.dataset import Data
from onceforall.evaluate import top1


@dataclass(frozen=True, slots=True)
class Score:
    """key: its name in files ("top1"); name, unit: for people."""

    key: str
    name: str
    unit: str = ""
    higher_is_better: bool = True

    def goal(self, value: float) -> float:
        """What a search maximises: the value, or its negative where lower is better. It is its own inverse."""
        return value if self.higher_is_better else -value

    def text(self, value: float) -> str:
        """A value with its unit, as "61.50 %"."""
        unit = "%" if self.unit == "percent" else self.unit
        return f"{value:.2f} {unit}".rstrip()


TOP1 = Score("top1", "top-1", "percent")


def score_of(data: Data | None) -> Score:
    """What a data set's task says; top-1 where it has none."""
    return getattr(getattr(data, "task", None), "score", TOP1)


def evaluate(data: Data, network: nn.Module, batches: Iterable[tuple[Tensor, Any]]) -> float:
    """The score of a network over batches."""
    measure: Callable[..., float] = getattr(getattr(data, "task", None), "evaluate", top1)
    return measure(network, batches)
