"""What a layer *is*: shapes, kernel, stride, activation. Costs follow from that and from nothing else.

Every consumer of an architecture reads these values: the builder of the static network, the
analytic costs, the latency table, the exporter. All feature maps are square; sizes are in px.
MACs count convolutions and linear layers (squeeze-excite included; biases, batch norm,
activations and pooling not). Parameters count weights, biases, batch-norm scale and shift. Every
layer has `in_size`, `out_size`, `in_channels`, `out_channels`, `macs`, `params`, `operations`, and a
`key` that is equal for layers that take the same time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from onceforall.errors import InvalidConfiguration

Activation = Literal["relu", "relu6", "h_swish", "none"]


def make_divisible(value: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `value`, at least `divisor` and at least 0.9 of `value`."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def scaled(channels: int, multiplier: float) -> int:
    """Channels times a width multiplier, rounded as `make_divisible` does; untouched by a multiplier of 1."""
    return channels if multiplier == 1 else make_divisible(channels * multiplier)


def strided_size(size: int, stride: int) -> int:
    """Output size of a same-padded convolution."""
    return (size - 1) // stride + 1


class Operation(NamedTuple):
    """One convolution, pooling or linear operation of a layer: elements of the tensors that it needs at once.

    `held` are elements of other tensors that must stay alive meanwhile, as an input that a shortcut waits for.
    """

    inputs: int
    outputs: int
    weights: int = 0
    held: int = 0

    @property
    def live(self) -> int:
        """Elements of the feature maps alive together."""
        return self.inputs + self.outputs + self.held


@dataclass(frozen=True, slots=True)
class ConvSpec:
    """A dense convolution, then batch norm if `batch_norm`, then the activation. It has no bias.

    `shortcut` adds the input after the activation.
    """

    in_size: int
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    activation: Activation
    batch_norm: bool = True
    bn_eps: float = 1e-5
    shortcut: bool = False

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
    def operations(self) -> tuple[Operation, ...]:
        source = self.in_channels * self.in_size**2
        result = self.out_channels * self.out_size**2
        return (Operation(source, result, self.kernel**2 * self.in_channels * self.out_channels),)

    @property
    def key(self) -> str:
        norm = "bn" if self.batch_norm else "plain"
        return (
            f"conv:{self.in_size}:{self.in_channels}>{self.out_channels}"
            f":k{self.kernel}:s{self.stride}:{self.activation}:{norm}{':skip' if self.shortcut else ''}"
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
    def operations(self) -> tuple[Operation, ...]:
        """The convolutions in turn; squeeze-excite's vectors are left out."""
        source = self.in_channels * self.in_size**2
        expanded = self.mid_channels * self.in_size**2
        filtered = self.mid_channels * self.out_size**2
        result = self.out_channels * self.out_size**2
        held = source if self.shortcut else 0
        depthwise, project = self.kernel**2 * self.mid_channels, self.mid_channels * self.out_channels
        return (
            *((Operation(source, expanded, self.in_channels * self.mid_channels),) if self.expanded else ()),
            # Without an expansion the depthwise convolution reads the block input itself: count it once.
            Operation(expanded, filtered, depthwise, held if self.expanded else 0),
            Operation(filtered, result, project, held),
        )

    @property
    def key(self) -> str:
        expansion = f"{self.in_channels}>{self.mid_channels}>" if self.expanded else f"{self.in_channels}>"
        return (
            f"mbconv:{self.in_size}:{expansion}{self.out_channels}:k{self.kernel}:s{self.stride}"
            f":{self.activation}:se{self.se_channels}:{'skip' if self.shortcut else 'noskip'}"
        )


@dataclass(frozen=True, slots=True)
class BottleneckSpec:
    """A residual bottleneck block of ResNet-D: 1x1 reduce, 3x3, 1x1 restore, the sum, then the activation.

    `downsample`: the shortcut averages `stride` x `stride` pixels and has a 1x1 convolution with
    batch norm; otherwise it is the input itself.
    """

    in_size: int
    in_channels: int
    mid_channels: int
    out_channels: int
    stride: int
    activation: Activation
    downsample: bool
    kernel: int = 3
    bn_eps: float = 1e-5

    @property
    def out_size(self) -> int:
        return strided_size(self.in_size, self.stride)

    @property
    def macs(self) -> int:
        reduce = self.in_channels * self.mid_channels * self.in_size**2
        conv = self.kernel**2 * self.mid_channels**2 * self.out_size**2
        restore = self.mid_channels * self.out_channels * self.out_size**2
        shortcut = self.in_channels * self.out_channels * self.out_size**2 if self.downsample else 0
        return reduce + conv + restore + shortcut

    @property
    def params(self) -> int:
        reduce = (self.in_channels + 2) * self.mid_channels
        conv = (self.kernel**2 * self.mid_channels + 2) * self.mid_channels
        restore = (self.mid_channels + 2) * self.out_channels
        shortcut = (self.in_channels + 2) * self.out_channels if self.downsample else 0
        return reduce + conv + restore + shortcut

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The three convolutions, and then those of the shortcut, while the block's input or result is held."""
        source = self.in_channels * self.in_size**2
        reduced = self.mid_channels * self.in_size**2
        filtered = self.mid_channels * self.out_size**2
        result = self.out_channels * self.out_size**2
        pooled = self.in_channels * self.out_size**2
        main = (
            Operation(source, reduced, self.in_channels * self.mid_channels),
            Operation(reduced, filtered, self.kernel**2 * self.mid_channels**2, source),
            Operation(filtered, result, self.mid_channels * self.out_channels, source),
        )
        pool = (Operation(source, pooled, 0, result),) if self.stride > 1 else ()
        shortcut = (*pool, Operation(pooled, result, self.in_channels * self.out_channels, result))
        return main + (shortcut if self.downsample else ())

    @property
    def key(self) -> str:
        return (
            f"bottleneck:{self.in_size}:{self.in_channels}>{self.mid_channels}>{self.out_channels}:k{self.kernel}"
            f":s{self.stride}:{self.activation}:{'downsample' if self.downsample else 'skip'}"
        )


@dataclass(frozen=True, slots=True)
class _Pooling:
    """What both poolings share: nothing to learn, and no MACs."""

    in_size: int
    channels: int

    @property
    def in_channels(self) -> int:
        return self.channels

    @property
    def out_channels(self) -> int:
        return self.channels

    @property
    def macs(self) -> int:
        return 0

    @property
    def params(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class MaxPoolSpec(_Pooling):
    """Same-padded maximum over `kernel` x `kernel` pixels."""

    kernel: int = 3
    stride: int = 2

    @property
    def out_size(self) -> int:
        return strided_size(self.in_size, self.stride)

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (Operation(self.channels * self.in_size**2, self.channels * self.out_size**2),)

    @property
    def key(self) -> str:
        return f"maxpool:{self.in_size}:{self.channels}:k{self.kernel}:s{self.stride}"


@dataclass(frozen=True, slots=True)
class PoolSpec(_Pooling):
    """Global average pooling to 1 x 1."""

    @property
    def out_size(self) -> int:
        return 1

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (Operation(self.channels * self.in_size**2, self.channels),)

    @property
    def key(self) -> str:
        return f"pool:{self.in_size}:{self.channels}"


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """Flatten, dropout (in training), and a linear layer with bias; `out_features` 0: none, the input flattened."""

    in_features: int
    out_features: int
    dropout: float = 0.0

    @property
    def in_size(self) -> int:
        return 1

    @property
    def in_channels(self) -> int:
        return self.in_features

    @property
    def out_channels(self) -> int:
        return self.out_features

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
    def operations(self) -> tuple[Operation, ...]:
        return (Operation(self.in_features, self.out_features, self.in_features * self.out_features),)

    @property
    def key(self) -> str:
        return f"linear:{self.in_features}>{self.out_features}"


LayerSpec = ConvSpec | MBConvSpec | BottleneckSpec | MaxPoolSpec | PoolSpec | LinearSpec

_KINDS: dict[str, type[LayerSpec]] = {
    "conv": ConvSpec,
    "mbconv": MBConvSpec,
    "bottleneck": BottleneckSpec,
    "maxpool": MaxPoolSpec,
    "pool": PoolSpec,
    "linear": LinearSpec,
}


def layer_to_json(spec: LayerSpec) -> dict[str, Any]:
    """A JSON object."""
    kind = next(name for name, form in _KINDS.items() if type(spec) is form)
    return {"layer": kind, **asdict(spec)}


def layer_from_json(value: Mapping[str, Any]) -> LayerSpec:
    """The inverse of `layer_to_json`. Raises InvalidConfiguration where the form is wrong."""
    fields = {name: item for name, item in value.items() if name != "layer"}
    try:
        return _KINDS[value["layer"]](**fields)
    except (KeyError, TypeError) as error:
        raise InvalidConfiguration(f"{dict(value)} is no layer: {error}; layers are {', '.join(_KINDS)}") from error
