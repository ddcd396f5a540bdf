"""What a layer *is*: shapes, kernel, stride, activation. Costs follow from that and from nothing else.

Every consumer of an architecture reads these values: the builder of the static network, the
analytic costs, the latency table, the exporter. All feature maps are square; sizes are in px.
MACs count convolutions and linear layers (squeeze-excite included; biases, batch norm,
activations and pooling not). Parameters count weights, biases, batch-norm scale and shift.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["relu", "relu6", "h_swish", "none"]


def make_divisible(value: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `value`, at least `divisor` and at least 0.9 of `value`."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def strided_size(size: int, stride: int) -> int:
    """Output size of a same-padded convolution."""
    return (size - 1) // stride + 1


@dataclass(frozen=True, slots=True)
class ConvSpec:
    """A dense convolution, then batch norm if `batch_norm`, then the activation. It has no bias."""

    in_size: int
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    activation: Activation
    batch_norm: bool = True
    bn_eps: float = 1e-5

    @property
    def out_size(self) -> int:
        return strided_size(self.in_size, self.stride)

    @property
    def macs(self) -> int:
        return self.kernel**2 * self.in_channels * self.out_channels * self.out_size**2

    @property
    def params(self) -> int:
        return self.kernel**2 * self.in_channels * self.out_channels + 2 * self.out_channels * self.batch_norm

    @property
    def live_elements(self) -> tuple[int, ...]:
        """Elements of the tensors alive together, for each operation in turn."""
        return (self.in_channels * self.in_size**2 + self.out_channels * self.out_size**2,)

    @property
    def key(self) -> str:
        norm = "bn" if self.batch_norm else "plain"
        return (
            f"conv:{self.in_size}:{self.in_channels}>{self.out_channels}"
            f":k{self.kernel}:s{self.stride}:{self.activation}:{norm}"
        )


@dataclass(frozen=True, slots=True)
class MBConvSpec:
    """An inverted residual block: 1x1 expand, k x k depthwise, squeeze-excite, 1x1 project.

    `expanded=False` leaves the 1x1 expansion out (expand ratio 1: `mid_channels == in_channels`).
    `se_channels` is the inner width of squeeze-excite, 0 for none. `shortcut` adds the input.
    """

    in_size: int
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
    def out_size(self) -> int:
        return strided_size(self.in_size, self.stride)

    @property
    def macs(self) -> int:
        expand = self.in_channels * self.mid_channels * self.in_size**2 if self.expanded else 0
        depthwise = self.kernel**2 * self.mid_channels * self.out_size**2
        project = self.mid_channels * self.out_channels * self.out_size**2
        return expand + depthwise + 2 * self.mid_channels * self.se_channels + project

    @property
    def params(self) -> int:
        expand = (self.in_channels + 2) * self.mid_channels if self.expanded else 0
        depthwise = (self.kernel**2 + 2) * self.mid_channels
        squeeze = 2 * self.mid_channels * self.se_channels + self.mid_channels + self.se_channels
        project = (self.mid_channels + 2) * self.out_channels
        return expand + depthwise + (squeeze if self.se_channels else 0) + project

    @property
    def live_elements(self) -> tuple[int, ...]:
        """Elements of the tensors alive together, for each convolution in turn (block input held for a shortcut)."""
        source = self.in_channels * self.in_size**2
        expanded = self.mid_channels * self.in_size**2
        filtered = self.mid_channels * self.out_size**2
        result = self.out_channels * self.out_size**2
        held = source if self.shortcut else 0
        first = (source + expanded,) if self.expanded else ()
        # Without an expansion the depthwise convolution reads the block input itself: count it once.
        return (*first, expanded + filtered + (held if self.expanded else 0), filtered + result + held)

    @property
    def key(self) -> str:
        expansion = f"{self.in_channels}>{self.mid_channels}>" if self.expanded else f"{self.in_channels}>"
        return (
            f"mbconv:{self.in_size}:{expansion}{self.out_channels}:k{self.kernel}:s{self.stride}"
            f":{self.activation}:se{self.se_channels}:{'skip' if self.shortcut else 'noskip'}"
        )


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """Global average pooling to 1 x 1."""

    in_size: int
    channels: int

    @property
    def out_size(self) -> int:
        return 1

    @property
    def macs(self) -> int:
        return 0

    @property
    def params(self) -> int:
        return 0

    @property
    def live_elements(self) -> tuple[int, ...]:
        return (self.channels * self.in_size**2 + self.channels,)

    @property
    def key(self) -> str:
        return f"pool:{self.in_size}:{self.channels}"


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """Flatten, dropout (in training), and a linear layer with bias."""

    in_features: int
    out_features: int
    dropout: float = 0.0

    @property
    def out_size(self) -> int:
        return 1

    @property
    def macs(self) -> int:
        return self.in_features * self.out_features

    @property
    def params(self) -> int:
        return (self.in_features + 1) * self.out_features

    @property
    def live_elements(self) -> tuple[int, ...]:
        return (self.in_features + self.out_features,)

    @property
    def key(self) -> str:
        return f"linear:{self.in_features}>{self.out_features}"


LayerSpec = ConvSpec | MBConvSpec | PoolSpec | LinearSpec
