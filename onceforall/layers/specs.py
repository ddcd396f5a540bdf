"""The layers of MobileNets, ProxylessNAS and ResNets: each a value, and its entry.

MACs count convolutions and linear layers (squeeze-excite included; biases, batch norm, activations and pooling
not). Parameters count weights, biases, batch-norm scale and shift.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onceforall.layers.layer import Activation, KeepsChannels, Layer, register
from onceforall.layers.operation import Operation, addition, convolution
from onceforall.sizes import Size, said, strided_size


@dataclass(frozen=True, slots=True)
class ConvSpec(Layer):
    """A dense convolution, then batch norm if `batch_norm`, then the activation. It has no bias.

    `shortcut` adds the input after the activation.
    """

    in_size: Size
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    activation: Activation
    batch_norm: bool = True
    bn_eps: float = 1e-5
    shortcut: bool = False

    @property
    def out_size(self) -> Size:
        return strided_size(self.in_size, self.stride)

    @property
    def operations(self) -> tuple[Operation, ...]:
        conv = convolution(
            self.in_channels,
            self.out_channels,
            self.in_size,
            self.kernel,
            self.stride,
            vectors=None if self.batch_norm else 0,
            activation=self.activation,
        )
        return (conv, addition(self.out_channels, self.out_size, held=conv.inputs)) if self.shortcut else (conv,)

    @property
    def key(self) -> str:
        norm = "bn" if self.batch_norm else "plain"
        return (
            f"conv:{said(self.in_size)}:{self.in_channels}>{self.out_channels}"
            f":k{self.kernel}:s{self.stride}:{self.activation}:{norm}{':skip' if self.shortcut else ''}"
        )


@dataclass(frozen=True, slots=True)
class MBConvSpec(Layer):
    """An inverted residual block: 1x1 expand, k x k depthwise, squeeze-excite, 1x1 project.

    `expanded=False` leaves the 1x1 expansion out (expand ratio 1: `mid_channels == in_channels`).
    `se_channels` is the inner width of squeeze-excite, 0 for none. `shortcut` adds the input.
    """

    in_size: Size
    in_channels: int
    mid_channels: int
    out_channels: int
    kernel: int
    stride: int
    activation: Activation
    se_channels: int
    shortcut: bool
    expanded: bool = True
    bn_eps: float = 1e-5

    @property
    def out_size(self) -> Size:
        return strided_size(self.in_size, self.stride)

    @property
    def operations(self) -> tuple[Operation, ...]:
        mid, size, act = self.mid_channels, self.out_size, self.activation
        expand = convolution(self.in_channels, mid, self.in_size, activation=act)
        held = expand.inputs if self.shortcut else 0
        # Without an expansion the depthwise convolution reads the block input itself: count it once.
        depthwise = convolution(
            mid, mid, self.in_size, self.kernel, self.stride, groups=mid, activation=act, held=held * self.expanded
        )
        squeeze = Operation(
            "squeeze-excite",
            mid,
            mid,
            size,
            size,
            weights=2 * mid * self.se_channels,
            vectors=mid + self.se_channels,
            macs=2 * mid * self.se_channels,
            held=held,
            in_place=True,
        )
        project = convolution(mid, self.out_channels, size, held=held)
        return (
            *((expand,) if self.expanded else ()),
            depthwise,
            *((squeeze,) if self.se_channels else ()),
            project,
            *((addition(self.out_channels, size, held),) if self.shortcut else ()),
        )

    @property
    def key(self) -> str:
        expansion = f"{self.in_channels}>{self.mid_channels}>" if self.expanded else f"{self.in_channels}>"
        return (
            f"mbconv:{said(self.in_size)}:{expansion}{self.out_channels}:k{self.kernel}:s{self.stride}"
            f":{self.activation}:se{self.se_channels}:{'skip' if self.shortcut else 'noskip'}"
        )


@dataclass(frozen=True, slots=True)
class BottleneckSpec(Layer):
    """A residual bottleneck block of ResNet-D: 1x1 reduce, 3x3, 1x1 restore, the sum, then the activation.

    `downsample`: the shortcut averages `stride` x `stride` pixels and has a 1x1 convolution with
    batch norm; otherwise it is the input itself.
    """

    in_size: Size
    in_channels: int
    mid_channels: int
    out_channels: int
    stride: int
    activation: Activation
    downsample: bool
    kernel: int = 3
    bn_eps: float = 1e-5

    @property
    def out_size(self) -> Size:
        return strided_size(self.in_size, self.stride)

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The three convolutions, those of the shortcut, while the block's input or result is held, and the sum."""
        source, mid, size, act = self.in_channels, self.mid_channels, self.out_size, self.activation
        reduce = convolution(source, mid, self.in_size, activation=act)
        held = reduce.inputs
        conv = convolution(mid, mid, self.in_size, self.kernel, self.stride, activation=act, held=held)
        restore = convolution(mid, self.out_channels, size, held=held)
        result = restore.outputs
        pool = Operation("average pool", source, source, self.in_size, size, self.stride, self.stride, held=result)
        shortcut = convolution(source, self.out_channels, size, held=result)
        return (
            reduce,
            conv,
            restore,
            *((pool,) if self.downsample and self.stride > 1 else ()),
            *((shortcut,) if self.downsample else ()),
            addition(self.out_channels, size, result, act),
        )

    @property
    def key(self) -> str:
        return (
            f"bottleneck:{said(self.in_size)}:{self.in_channels}>{self.mid_channels}>{self.out_channels}"
            f":k{self.kernel}:s{self.stride}:{self.activation}:{'downsample' if self.downsample else 'skip'}"
        )


@dataclass(frozen=True, slots=True)
class MaxPoolSpec(KeepsChannels):
    """Same-padded maximum over `kernel` x `kernel` pixels."""

    kernel: int = 3
    stride: int = 2

    @property
    def out_size(self) -> Size:
        return strided_size(self.in_size, self.stride)

    @property
    def operations(self) -> tuple[Operation, ...]:
        maps = self.channels, self.channels, self.in_size, self.out_size
        return (Operation("max pool", *maps, self.kernel, self.stride),)

    @property
    def key(self) -> str:
        return f"maxpool:{said(self.in_size)}:{self.channels}:k{self.kernel}:s{self.stride}"


@dataclass(frozen=True, slots=True)
class PoolSpec(KeepsChannels):
    """Global average pooling to 1 x 1."""

    pools: ClassVar[bool] = True

    @property
    def out_size(self) -> Size:
        return 1

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (Operation("global pool", self.channels, self.channels, self.in_size, 1, self.in_size, self.in_size),)

    @property
    def key(self) -> str:
        return f"pool:{said(self.in_size)}:{self.channels}"


@dataclass(frozen=True, slots=True)
class LinearSpec(Layer):
    """Flatten, dropout (in training), and a linear layer with bias; `out_features` 0: none, the input flattened."""

    in_features: int
    out_features: int
    dropout: float = 0.0

    @property
    def in_size(self) -> Size:
        return 1

    @property
    def in_channels(self) -> int:
        return self.in_features

    @property
    def out_channels(self) -> int:
        return self.out_features

    @property
    def out_size(self) -> Size:
        return 1

    @property
    def operations(self) -> tuple[Operation, ...]:
        weights = self.in_features * self.out_features
        maps = self.in_features, self.out_features, 1, 1
        return (Operation("linear", *maps, weights=weights, vectors=self.out_features, macs=weights),)

    @property
    def key(self) -> str:
        return f"linear:{self.in_features}>{self.out_features}"


register("conv", ConvSpec, module="onceforall.nn.plain:ConvNormAct")
register("mbconv", MBConvSpec, "onceforall.nn.plain:InvertedResidual", "onceforall.nn.elastic:ElasticMBConv")
register("bottleneck", BottleneckSpec, "onceforall.nn.plain:Bottleneck", "onceforall.nn.elastic:ElasticBottleneck")
register("maxpool", MaxPoolSpec, module="onceforall.nn.plain:max_pool")
register("pool", PoolSpec, module="onceforall.nn.plain:global_pool")
register("linear", LinearSpec, module="onceforall.nn.plain:Classifier")
