"""The blocks of networks as torch modules, with nothing elastic in them; standalone files contain this source.

Arguments have the names of what a layer's spec says (`onceforall.layers`), and the names of the parts are those
of the weights in every file.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from onceforall.nn.fast_cpu import Sequential


class Residual(Sequential):
    """Its children in order, plus the input where there is a shortcut."""

    def __init__(self, parts: OrderedDict[str, nn.Module], shortcut: bool = False) -> None:
        super().__init__(parts)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return x + y if self.shortcut else y


class ConvNormAct(Residual):
    """A same-padded convolution called `conv`, then where there is one a batch norm `bn`, then an activation `act`."""

    conv: nn.Conv2d
    bn: nn.BatchNorm2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        activation: str = "none",
        stride: int = 1,
        groups: int = 1,
        batch_norm: bool = True,
        bn_eps: float = 1e-5,
        shortcut: bool = False,
    ) -> None:
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["conv"] = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        if batch_norm:
            parts["bn"] = nn.BatchNorm2d(out_channels, eps=bn_eps)
        if activation != "none":
            parts["act"] = activate(activation)
        super().__init__(parts, shortcut)


class InvertedResidual(Residual):
    """1x1 expand, depthwise, squeeze-excite and 1x1 project, plus the input where there is a shortcut."""

    expand: ConvNormAct
    depthwise: ConvNormAct
    se: SqueezeExcite
    project: ConvNormAct

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        kernel: int,
        activation: str,
        stride: int = 1,
        se_channels: int = 0,
        shortcut: bool = False,
        expanded: bool = True,
        bn_eps: float = 1e-5,
    ) -> None:
        mid = mid_channels
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if expanded:
            parts["expand"] = ConvNormAct(in_channels, mid, 1, activation, bn_eps=bn_eps)
        parts["depthwise"] = ConvNormAct(mid, mid, kernel, activation, stride, groups=mid, bn_eps=bn_eps)
        if se_channels:
            parts["se"] = SqueezeExcite(mid, se_channels)
        parts["project"] = ConvNormAct(mid, out_channels, 1, bn_eps=bn_eps)
        super().__init__(parts, shortcut)


class SqueezeExcite(Sequential):
    """Scale each channel by a hard sigmoid of a two-layer network of the channel means."""

    reduce: nn.Conv2d
    expand: nn.Conv2d

    def __init__(self, channels: int, hidden: int) -> None:
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["pool"] = global_pool()
        parts["reduce"] = nn.Conv2d(channels, hidden, 1)
        parts["act"] = nn.ReLU()
        parts["expand"] = nn.Conv2d(hidden, channels, 1)
        parts["gate"] = nn.Hardsigmoid()
        super().__init__(parts)

    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(x)


class Bottleneck(nn.Module):
    """`main` (reduce, conv, restore) plus `downsample` of the input, which may be nothing, then the activation."""

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        kernel: int,
        activation: str,
        stride: int = 1,
        downsample: bool = False,
        bn_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        main: OrderedDict[str, nn.Module] = OrderedDict()
        main["reduce"] = ConvNormAct(in_channels, mid_channels, 1, activation, bn_eps=bn_eps)
        main["conv"] = ConvNormAct(mid_channels, mid_channels, kernel, activation, stride, bn_eps=bn_eps)
        main["restore"] = ConvNormAct(mid_channels, out_channels, 1, bn_eps=bn_eps)
        self.main = Sequential(main)
        shortcut: OrderedDict[str, nn.Module] = OrderedDict()
        if downsample and stride > 1:
            # There is no padding to count, but ncnn counts it at the border of odd maps unless told.
            shortcut["pool"] = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
        if downsample:
            shortcut["conv"] = ConvNormAct(in_channels, out_channels, 1, bn_eps=bn_eps)
        self.downsample = Sequential(shortcut)
        self.act = activate(activation)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.act(self.main(x) + self.downsample(x))
        return result


class Classifier(Sequential):
    """Flatten, dropout, and a linear layer, or the identity for no features at all."""

    linear: nn.Linear

    def __init__(self, in_features: int, out_features: int, dropout: float = 0.0) -> None:
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["flatten"] = nn.Flatten()
        parts["dropout"] = nn.Dropout(dropout)
        parts["linear"] = nn.Linear(in_features, out_features) if out_features else nn.Identity()
        super().__init__(parts)


def max_pool(kernel: int, stride: int) -> nn.Module:
    """Same-padded maximum."""
    return nn.MaxPool2d(kernel, stride, kernel // 2)


def global_pool() -> nn.Module:
    """The mean of all pixels."""
    return nn.AdaptiveAvgPool2d(1)


def activate(activation: str) -> nn.Module:
    """The module of an activation, which works in place."""
    if activation == "none":
        return nn.Identity()
    kinds = {"relu": nn.ReLU, "relu6": nn.ReLU6, "h_swish": nn.Hardswish}
    return kinds[activation](inplace=True)


def fold_norms(network: nn.Module) -> None:
    """Fold every batch norm into the convolution before it, in place. For evaluation only."""
    for module in network.modules():
        if isinstance(module, ConvNormAct) and hasattr(module, "bn"):
            module.conv = fuse_conv_bn_eval(module.conv.eval(), module.bn.eval())
            del module.bn
