"""The layers of a vision transformer: patches to tokens, encoder blocks, and tokens to one vector.

Between them tokens lie as [n, tokens, channels]. Their size is that of the grid of patches, or
(tokens, 1) where a class token stands before them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onceforall.layers.layer import KeepsChannels, Layer, register
from onceforall.layers.operation import Operation, addition, convolution
from onceforall.sizes import Size, height_width, pixels, said, size_of


@dataclass(frozen=True, slots=True)
class PatchSpec(Layer):
    """A convolution as wide as its stride, `patch` px, then learnt positions; `class_token` puts one before the others.

    Positions belong to the grid of patches: those of a smaller grid are interpolated from a larger one.
    """

    in_size: Size
    out_channels: int
    patch: int
    class_token: bool
    in_channels: int = 3

    @property
    def grid(self) -> tuple[int, int]:
        """Patches, (height, width)."""
        height, width = height_width(self.in_size)
        return height // self.patch, width // self.patch

    @property
    def out_size(self) -> Size:
        return _token_size(self.grid, self.class_token)

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The convolution, with a bias, and the sum with positions, which are weights."""
        weights = self.patch**2 * self.in_channels * self.out_channels
        tokens = pixels(self.out_size)
        maps = self.in_channels, self.out_channels, self.in_size, self.grid, self.patch, self.patch
        vectors = self.out_channels * (1 + tokens + self.class_token)
        return (
            Operation("dense", *maps, weights=weights, vectors=vectors, macs=weights * pixels(self.grid)),
            addition(self.out_channels, self.out_size, 0),
        )

    @property
    def key(self) -> str:
        token = ":token" if self.class_token else ""
        return f"patch:{said(self.in_size)}:{self.in_channels}>{self.out_channels}:p{self.patch}{token}"


@dataclass(frozen=True, slots=True)
class _Tokens(KeepsChannels):
    """A layer that takes tokens [n, tokens, channels]."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        return pixels(self.in_size), self.channels


@dataclass(frozen=True, slots=True)
class EncoderSpec(_Tokens):
    """A pre-norm encoder block: attention of `heads` heads of `head_channels`, then two linear layers with a GELU.

    Each half has a layer norm before it and a shortcut around it.
    """

    heads: int
    head_channels: int
    mlp_channels: int

    @property
    def out_size(self) -> Size:
        return self.in_size

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Attention's two products have MACs of their own: of queries with keys, and of the softmax with values."""
        size, channels, inner, mlp = self.in_size, self.channels, self.heads * self.head_channels, self.mlp_channels
        held = channels * pixels(size)
        norm = Operation("norm", channels, channels, size, size, vectors=2 * channels, held=0)
        attention = Operation("attention", 3 * inner, inner, size, size, macs=2 * inner * pixels(size) ** 2, held=held)
        return (
            norm,
            convolution(channels, 3 * inner, size, vectors=3 * inner, held=held),
            attention,
            convolution(inner, channels, size, vectors=channels, held=held),
            addition(channels, size, held),
            norm,
            convolution(channels, mlp, size, vectors=mlp, activation="gelu", held=held),
            convolution(mlp, channels, size, vectors=channels, held=held),
            addition(channels, size, held),
        )

    @property
    def key(self) -> str:
        return f"encoder:{pixels(self.in_size)}:{self.channels}:h{self.heads}x{self.head_channels}:m{self.mlp_channels}"


@dataclass(frozen=True, slots=True)
class TokenPoolSpec(_Tokens):
    """Layer norm, then the class token, or else the mean of all tokens: [n, tokens, channels] -> [n, channels]."""

    pools: ClassVar[bool] = True

    class_token: bool

    @property
    def out_size(self) -> Size:
        return 1

    @property
    def operations(self) -> tuple[Operation, ...]:
        maps = self.channels, self.channels, self.in_size
        pool = () if self.class_token else (Operation("global pool", *maps, 1, self.in_size, self.in_size),)
        return (Operation("norm", *maps, self.in_size, vectors=2 * self.channels), *pool)

    @property
    def key(self) -> str:
        return f"tokens:{pixels(self.in_size)}:{self.channels}:{'first' if self.class_token else 'mean'}"


def _token_size(grid: tuple[int, int], class_token: bool) -> Size:
    return (pixels(grid) + 1, 1) if class_token else size_of(grid)


register(
    "patch", PatchSpec, "onceforall.nn.transformer:PatchEmbedding", "onceforall.nn.elastic_transformer:ElasticPatches"
)
register(
    "encoder", EncoderSpec, "onceforall.nn.transformer:Encoder", "onceforall.nn.elastic_transformer:ElasticEncoder"
)
register("tokens", TokenPoolSpec, "onceforall.nn.transformer:TokenPool")
