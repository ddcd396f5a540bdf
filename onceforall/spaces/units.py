"""Units of convolutional blocks, which choose a kernel size and an expand ratio."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from onceforall.architecture import Named
from onceforall.checks import check_integer, is_positive
from onceforall.choices import BaseUnit, Options, Values, ascending
from onceforall.errors import InvalidConfiguration

MOST_STRIDE = 64


@dataclass(frozen=True)
class ConvUnit(BaseUnit):
    """Kernel sizes (px, odd: an even one has no middle) and expand ratios of each block.

    `tied`: the n-th depth goes with the n-th expand ratio in every block, so a unit is small or large
    as a whole.
    """

    kernels: tuple[int, ...]
    expands: Values
    tied: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        odd = "odd positive integers"
        kernels = ascending("kernels", self.kernels, lambda k: isinstance(k, int) and k > 0 and k % 2 == 1, odd)
        object.__setattr__(self, "kernels", kernels)
        object.__setattr__(self, "expands", ascending("expands", self.expands, is_positive, "positive numbers"))
        super().__post_init__()

    @cached_property
    def choices(self) -> Options:
        return Named(kernel=self.kernels, expand=self.expands)

    @property
    def tied_choices(self) -> tuple[str, ...]:
        return ("expand",) if self.tied else ()

    def having(self, choices: Options) -> dict[str, Any]:
        return {"kernels": choices["kernel"], "expands": choices["expand"]}


@dataclass(frozen=True)
class ConvStage(ConvUnit):
    """A row of a stage table: a unit of blocks `width` channels wide, the first of which has the stride."""

    width: int
    stride: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("width", self.width, 1)
        check_integer("stride", self.stride, 1, MOST_STRIDE)
        if self.depths[0] < 1:
            raise InvalidConfiguration(
                f"depths {self.depths}: a unit that changes width or size has at least one block"
            )
