"""What a layer does, one pass over its feature maps after another: all that a cost model has to know."""

from __future__ import annotations

from typing import NamedTuple

from onceforall.sizes import Size, pixels, strided_size

CONVOLUTIONS = ("dense", "grouped", "depthwise", "pointwise")
KINDS = (
    *CONVOLUTIONS,
    "linear",  # a matrix times a vector; over tokens it is pointwise
    "attention",  # products of queries, keys and values: MACs without weights
    "squeeze-excite",  # means of the channels, two linear layers and the scaling, taken together
    "max pool",
    "average pool",
    "global pool",  # the mean of all pixels
    "add",  # of a map that was held
    "norm",  # that needs statistics of what it normalises, as layer norm does
    "activation",  # where it is a pass of its own
)


class Operation(NamedTuple):
    """One pass over feature maps: it reads a map, writes a map, and does something in between.

    Batch norm and the activation that follow a convolution are no passes of their own: the
    scale and shift of that norm are `vectors` of the convolution, and `activation` is the function
    that its result goes through. A layer of one's own may say other kinds than KINDS.

    kernel: px; groups: of channels; weights: numbers that are multiplied, vectors: those of biases, scales
    and shifts; held: elements of other maps that stay alive meanwhile, as an input that a shortcut waits
    for, or the map that is added; in_place: the result takes the memory of the input.
    """

    kind: str
    in_channels: int
    out_channels: int
    in_size: Size
    out_size: Size
    kernel: Size = 1
    stride: Size = 1
    groups: int = 1
    weights: int = 0
    vectors: int = 0
    macs: int = 0
    activation: str = "none"
    held: int = 0
    in_place: bool = False

    @property
    def inputs(self) -> int:
        """Elements of the map that it reads."""
        return self.in_channels * pixels(self.in_size)

    @property
    def outputs(self) -> int:
        """Elements of the map that it writes."""
        return self.out_channels * pixels(self.out_size)

    @property
    def params(self) -> int:
        """All that is learnt."""
        return self.weights + self.vectors

    @property
    def live(self) -> int:
        """Elements of the feature maps alive together."""
        return self.inputs + self.held + (0 if self.in_place else self.outputs)


def convolution(
    in_channels: int,
    out_channels: int,
    in_size: Size,
    kernel: int = 1,
    stride: int = 1,
    *,
    groups: int = 1,
    vectors: int | None = None,
    activation: str = "none",
    held: int = 0,
) -> Operation:
    """A same-padded convolution. `vectors`: those of the batch norm that follows, unless it says otherwise."""
    weights = pixels(kernel) * in_channels // groups * out_channels
    out_size = strided_size(in_size, stride)
    if groups > 1:
        kind = "depthwise" if groups == in_channels == out_channels else "grouped"
    else:
        kind = "pointwise" if kernel == 1 else "dense"
    return Operation(
        kind,
        in_channels,
        out_channels,
        in_size,
        out_size,
        kernel,
        stride,
        groups,
        weights,
        2 * out_channels if vectors is None else vectors,
        weights * pixels(out_size),
        activation,
        held,
    )


def addition(channels: int, size: Size, held: int, activation: str = "none") -> Operation:
    """The sum of a map and of another that was held, in the memory of the first."""
    return Operation("add", channels, channels, size, size, activation=activation, held=held, in_place=True)
