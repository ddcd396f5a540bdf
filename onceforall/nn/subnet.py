"""Plain networks from layer specs: ordinary torch modules with nothing elastic in them.

The module names are the contract with `nn/blocks.py`, which slices tensors under these names.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from onceforall.layers import (
    Activation,
    BottleneckSpec,
    ConvSpec,
    LayerSpec,
    LinearSpec,
    MaxPoolSpec,
    MBConvSpec,
    PoolSpec,
)
from onceforall.nn.network import SubNetwork, classifier

M = TypeVar("M", bound=nn.Module)


def build(specs: Sequence[LayerSpec]) -> SubNetwork:
    """The network of the given layers, in order, with torch's default initial weights."""
    return SubNetwork(map(build_layer, specs), specs)


def build_layer(spec: LayerSpec) -> nn.Module:
    """One layer as a plain module: input [n, c, h, w], or [n, c, 1, 1] for a linear layer."""
    match spec:
        case ConvSpec():
            return _conv(
                spec.in_channels,
                spec.out_channels,
                spec.kernel,
                spec.stride,
                spec.activation,
                spec.bn_eps if spec.batch_norm else None,
                shortcut=spec.shortcut,
            )
        case MBConvSpec():
            return InvertedResidual(spec)
        case BottleneckSpec():
            return Bottleneck(spec)
        case MaxPoolSpec():
            return nn.MaxPool2d(spec.kernel, spec.stride, spec.kernel // 2)
        case PoolSpec():
            return nn.AdaptiveAvgPool2d(1)
        case LinearSpec():
            return Classifier(
                OrderedDict(flatten=nn.Flatten(), dropout=nn.Dropout(spec.dropout), linear=classifier(spec))
            )


class Classifier(nn.Sequential):
    """Flatten, dropout, linear."""

    linear: nn.Linear


class Residual(nn.Sequential):
    """Its children in order, plus the input where `shortcut`."""

    shortcut = False

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return x + y if self.shortcut else y


class ConvNormAct(Residual):
    """A convolution called `conv`, then where there is one a batch norm `bn`, then an activation `act`."""

    conv: nn.Conv2d
    bn: nn.BatchNorm2d


class InvertedResidual(Residual):
    """Expand, depthwise, squeeze-excite and project, plus the input where there is a shortcut."""

    expand: ConvNormAct
    depthwise: ConvNormAct
    se: SqueezeExcite
    project: ConvNormAct

    def __init__(self, spec: MBConvSpec) -> None:
        mid, activation, eps = spec.mid_channels, spec.activation, spec.bn_eps
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if spec.expanded:
            parts["expand"] = _conv(spec.in_channels, mid, 1, 1, activation, eps)
        parts["depthwise"] = _conv(mid, mid, spec.kernel, spec.stride, activation, eps, groups=mid)
        if spec.se_channels:
            parts["se"] = SqueezeExcite(mid, spec.se_channels)
        parts["project"] = _conv(mid, spec.out_channels, 1, 1, "none", eps)
        super().__init__(parts)
        self.shortcut = spec.shortcut


class BottleneckMain(nn.Sequential):
    """The three convolutions of a bottleneck."""

    reduce: ConvNormAct
    conv: ConvNormAct
    restore: ConvNormAct


class BottleneckShortcut(nn.Sequential):
    """Average pooling and a 1x1 convolution, or nothing at all: the identity."""

    conv: ConvNormAct


class Bottleneck(nn.Module):
    """`main` (reduce, conv, restore) plus `downsample` of the input, then the activation."""

    def __init__(self, spec: BottleneckSpec) -> None:
        super().__init__()
        mid, activation, eps = spec.mid_channels, spec.activation, spec.bn_eps
        self.main = BottleneckMain(
            OrderedDict(
                reduce=_conv(spec.in_channels, mid, 1, 1, activation, eps),
                conv=_conv(mid, mid, spec.kernel, spec.stride, activation, eps),
                restore=_conv(mid, spec.out_channels, 1, 1, "none", eps),
            )
        )
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if spec.downsample:
            if spec.stride > 1:
                # There is no padding to count, but ncnn counts it at the border of odd maps unless told.
                parts["pool"] = nn.AvgPool2d(spec.stride, ceil_mode=True, count_include_pad=False)
            parts["conv"] = _conv(spec.in_channels, spec.out_channels, 1, 1, "none", eps)
        self.downsample = BottleneckShortcut(parts)
        self.act = _activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.act(self.main(x) + self.downsample(x))
        return result


class SqueezeExcite(nn.Module):
    """Scale each channel by a hard sigmoid of a two-layer network of the channel means."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = nn.functional.adaptive_avg_pool2d(x, 1)
        scale = self.expand(nn.functional.relu(self.reduce(scale)))
        return x * nn.functional.hardsigmoid(scale)


def channels_last(module: M) -> M:
    """The module with its convolution weights in torch's channels_last memory format, in place."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def fold_batch_norm(network: M) -> M:
    """Fold every batch norm into the convolution before it, in place. For evaluation only."""
    for module in network.modules():
        if isinstance(module, ConvNormAct) and hasattr(module, "bn"):
            module.conv = fuse_conv_bn_eval(module.conv.eval(), module.bn.eval())
            del module.bn
    return network.eval()


def _conv(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int,
    activation: Activation,
    bn_eps: float | None,
    groups: int = 1,
    shortcut: bool = False,
) -> ConvNormAct:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv"] = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    if bn_eps is not None:
        parts["bn"] = nn.BatchNorm2d(out_channels, eps=bn_eps)
    if activation != "none":
        parts["act"] = _activation(activation)
    layer = ConvNormAct(parts)
    layer.shortcut = shortcut
    return layer


def _activation(activation: Activation) -> nn.Module:
    match activation:
        case "relu":
            return nn.ReLU(inplace=True)
        case "relu6":
            return nn.ReLU6(inplace=True)
        case "h_swish":
            return nn.Hardswish(inplace=True)
        case "none":
            return nn.Identity()


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """He initialisation by fan-out for convolutions, N(0, 0.01) for linear layers, zero biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, 0.0, (2.0 / fan_out) ** 0.5, generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            continue
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
