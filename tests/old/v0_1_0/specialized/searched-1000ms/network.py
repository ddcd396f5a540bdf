"""network: a network in plain PyTorch, made by onceforall; it needs torch and safetensors, and nothing else.

    network = load()  # reads the .safetensors file beside this one
    logits = network(images)  # [n, 3, 12, 12], normalised as in training
"""

from collections import OrderedDict
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

WEIGHTS = Path(__file__).with_suffix(".safetensors")


class Residual(nn.Sequential):
    """Its parts in order, plus the input where there is a shortcut."""

    def __init__(self, parts, shortcut=False):
        super().__init__(OrderedDict(parts))
        self.shortcut = shortcut

    def forward(self, x):
        y = super().forward(x)
        return x + y if self.shortcut else y


def conv(inputs, outputs, kernel=1, act=None, stride=1, groups=1, norm=True, shortcut=False, eps=1e-5):
    pad = kernel // 2
    parts = {"conv": nn.Conv2d(inputs, outputs, kernel, stride, pad, groups=groups, bias=norm)}
    if act:
        parts["act"] = act(inplace=True)
    return Residual(parts, shortcut)


class SqueezeExcite(nn.Module):
    def __init__(self, channels, hidden):
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x):
        scale = self.reduce(nn.functional.adaptive_avg_pool2d(x, 1)).relu()
        return x * nn.functional.hardsigmoid(self.expand(scale))


class InvertedResidual(Residual):
    """1x1 expand, depthwise, squeeze-excite, 1x1 project."""

    def __init__(
        self, inputs, middle, outputs, kernel, act, stride=1, expanded=True, squeeze=0, shortcut=False, eps=1e-5
    ):
        parts = {"expand": conv(inputs, middle, act=act, eps=eps)} if expanded else {}
        parts["depthwise"] = conv(middle, middle, kernel, act, stride, groups=middle, eps=eps)
        if squeeze:
            parts["se"] = SqueezeExcite(middle, squeeze)
        parts["project"] = conv(middle, outputs, eps=eps)
        super().__init__(parts, shortcut)


def build():
    """The network with initial weights."""
    return nn.Sequential(
        conv(3, 8, 3, stride=2, act=nn.Hardswish),
        InvertedResidual(8, 8, 8, 3, nn.ReLU, expanded=False, shortcut=True),
        InvertedResidual(8, 16, 8, 5, nn.ReLU, stride=2),
        InvertedResidual(8, 16, 8, 3, nn.ReLU, shortcut=True),
        InvertedResidual(8, 16, 8, 5, nn.Hardswish, stride=2, squeeze=8),
        conv(8, 16, 1, act=nn.Hardswish),
        nn.AdaptiveAvgPool2d(1),
        conv(16, 8, 1, act=nn.Hardswish, norm=False),
        nn.Sequential(OrderedDict(flatten=nn.Flatten(), dropout=nn.Dropout(0.1), linear=nn.Linear(8, 3))),
    )


def load(weights=WEIGHTS):
    """The network with its weights, in evaluation mode."""
    network = build()
    network.load_state_dict(load_file(weights))
    return network.eval()
