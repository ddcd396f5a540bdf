"""A network for PyTorch without this package: NAME.py, short and readable, and NAME.safetensors."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from onceforall.checkpoint import read_tensors, write_tensors
from onceforall.errors import IncompatibleCheckpoint, OFAError
from onceforall.files import write_atomically
from onceforall.layers import Activation, BottleneckSpec, ConvSpec, LayerSpec, LinearSpec, MaxPoolSpec, MBConvSpec
from onceforall.nn.network import SubNetwork
from onceforall.process import run_python

TOLERANCE = 1e-5  # largest allowed difference of logits, relative to the largest logit


@dataclass(frozen=True)
class Standalone:
    """The files, and how far their logits are from the network's, relative to the largest logit (measured)."""

    code: Path
    weights: Path
    parity: float


def write_standalone(network: SubNetwork, path: str | Path, input_shape: tuple[int, ...]) -> Standalone:
    """`path`.py and `path`.safetensors, which give the network's logits with torch and safetensors alone.

    They are written once a process of their own, which cannot import onceforall, has given the same
    logits for random images of `input_shape`. Raises IncompatibleCheckpoint where it does not (for a
    network that was changed since it was built), UnwritableOutput.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder, path.name)
        write_files(network, trial)
        images = torch.randn(input_shape, generator=torch.Generator().manual_seed(0))
        (logits,) = run_alone([(trial, images)])
        with torch.no_grad():
            expected = network.eval()(images)
    parity = float((logits - expected).abs().max() / expected.abs().max())
    if not parity <= TOLERANCE:
        raise IncompatibleCheckpoint(
            f"{path.name}: logits differ by {parity:.1e} of the largest, {TOLERANCE:.0e} at most are allowed: "
            "are the network's layers still those of its specs?"
        )
    code, weights = write_files(network, path)
    return Standalone(code, weights, parity)


def write_files(network: SubNetwork, path: Path) -> tuple[Path, Path]:
    """`path`.py and `path`.safetensors, unchecked. Raises UnwritableOutput."""
    code, weights = path.with_name(f"{path.name}.py"), path.with_name(f"{path.name}.safetensors")
    write_tensors(weights, network.state_dict(), {"format": "pt"})
    write_atomically(code, source(network, path.name))
    return code, weights


def source(network: SubNetwork, name: str) -> str:
    """The Python code that rebuilds the network; what its layers do not need is left out."""
    kinds = {type(spec) for spec in network.specs}
    parts = [_HEAD.format(name=name, size=network.specs[0].in_size)]
    if kinds & {ConvSpec, MBConvSpec, BottleneckSpec}:
        parts.append(_CONV.format(bias="norm" if network.folded else "False"))
        if not network.folded:
            parts[-1] += _BATCH_NORM
        parts[-1] += _ACTIVATION
    parts += [_INVERTED_RESIDUAL] * (MBConvSpec in kinds) + [_BOTTLENECK] * (BottleneckSpec in kinds)
    layers = "".join(f"        {line(spec)},\n" for spec in network.specs)
    return "\n\n".join([*parts, _TAIL.format(layers=layers)])


def line(spec: LayerSpec) -> str:
    """The call that makes a layer; arguments with their default values are left out."""
    match spec:
        case ConvSpec():
            options = _options(
                ("stride", spec.stride, 1),
                ("act", _activation(spec.activation), "None"),
                ("norm", spec.batch_norm, True),
                ("shortcut", spec.shortcut, False),
                ("eps", spec.bn_eps, 1e-5),
            )
            return f"conv({spec.in_channels}, {spec.out_channels}, {spec.kernel}{options})"
        case MBConvSpec():
            options = _options(
                ("stride", spec.stride, 1),
                ("expanded", spec.expanded, True),
                ("squeeze", spec.se_channels, 0),
                ("shortcut", spec.shortcut, False),
                ("eps", spec.bn_eps, 1e-5),
            )
            shape = f"{spec.in_channels}, {spec.mid_channels}, {spec.out_channels}, {spec.kernel}"
            return f"InvertedResidual({shape}, {_activation(spec.activation)}{options})"
        case BottleneckSpec():
            options = _options(
                ("stride", spec.stride, 1), ("downsample", spec.downsample, False), ("eps", spec.bn_eps, 1e-5)
            )
            shape = f"{spec.in_channels}, {spec.mid_channels}, {spec.out_channels}, {spec.kernel}"
            return f"Bottleneck({shape}, {_activation(spec.activation)}{options})"
        case MaxPoolSpec():
            return f"nn.MaxPool2d({spec.kernel}, {spec.stride}, {spec.kernel // 2})"
        case LinearSpec():
            linear = f"nn.Linear({spec.in_features}, {spec.out_features})" if spec.out_features else "nn.Identity()"
            dropout = f"nn.Dropout({spec.dropout})"
            return f"nn.Sequential(OrderedDict(flatten=nn.Flatten(), dropout={dropout}, linear={linear}))"
        case _:
            return "nn.AdaptiveAvgPool2d(1)"


def run_alone(networks: Sequence[tuple[Path, Tensor]]) -> list[Tensor]:
    """Logits of standalone networks (paths without a suffix) for images, by a process that cannot import onceforall.

    Raises IncompatibleCheckpoint where it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder, "images.safetensors"), Path(folder, "logits.safetensors")
        write_tensors(inputs, {str(index): images for index, (_, images) in enumerate(networks)}, {})
        codes = [str(path.with_name(f"{path.name}.py")) for path, _ in networks]
        try:
            run_python(_RUN, str(inputs), str(outputs), *codes)
        except OFAError as error:
            raise IncompatibleCheckpoint(f"{', '.join(codes)}: {error}") from error
        logits, _ = read_tensors(outputs)
    return [logits[str(index)] for index in range(len(networks))]


def _options(*options: tuple[str, object, object]) -> str:
    return "".join(f", {name}={value}" for name, value, default in options if value != default)


def _activation(activation: Activation) -> str:
    return {"relu": "nn.ReLU", "relu6": "nn.ReLU6", "h_swish": "nn.Hardswish", "none": "None"}[activation]


_HEAD = '''"""{name}: a network in plain PyTorch, made by onceforall; it needs torch and safetensors, and nothing else.

    network = load()  # reads the .safetensors file beside this one
    logits = network(images)  # [n, 3, {size}, {size}], normalised as in training
"""

from collections import OrderedDict
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

WEIGHTS = Path(__file__).with_suffix(".safetensors")
'''

_CONV = '''class Residual(nn.Sequential):
    """Its parts in order, plus the input where there is a shortcut."""

    def __init__(self, parts, shortcut=False):
        super().__init__(OrderedDict(parts))
        self.shortcut = shortcut

    def forward(self, x):
        y = super().forward(x)
        return x + y if self.shortcut else y


def conv(inputs, outputs, kernel=1, act=None, stride=1, groups=1, norm=True, shortcut=False, eps=1e-5):
    pad = kernel // 2
    parts = {{"conv": nn.Conv2d(inputs, outputs, kernel, stride, pad, groups=groups, bias={bias})}}
'''

_BATCH_NORM = """    if norm:
        parts["bn"] = nn.BatchNorm2d(outputs, eps=eps)
"""

_ACTIVATION = """    if act:
        parts["act"] = act(inplace=True)
    return Residual(parts, shortcut)
"""

_INVERTED_RESIDUAL = '''class SqueezeExcite(nn.Module):
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
'''

_BOTTLENECK = '''class Bottleneck(nn.Module):
    """1x1 reduce, k x k, 1x1 restore; plus the input, or its average and a 1x1 convolution; then the activation."""

    def __init__(self, inputs, middle, outputs, kernel, act, stride=1, downsample=False, eps=1e-5):
        super().__init__()
        self.main = nn.Sequential(
            OrderedDict(
                reduce=conv(inputs, middle, act=act, eps=eps),
                conv=conv(middle, middle, kernel, act, stride, eps=eps),
                restore=conv(middle, outputs, eps=eps),
            )
        )
        parts = OrderedDict()
        if downsample and stride > 1:
            parts["pool"] = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
        if downsample:
            parts["conv"] = conv(inputs, outputs, eps=eps)
        self.downsample = nn.Sequential(parts)
        self.act = (act or nn.Identity)(inplace=True)

    def forward(self, x):
        return self.act(self.main(x) + self.downsample(x))
'''

_TAIL = '''def build():
    """The network with initial weights."""
    return nn.Sequential(
{layers}    )


def load(weights=WEIGHTS):
    """The network with its weights, in evaluation mode."""
    network = build()
    network.load_state_dict(load_file(weights))
    return network.eval()
'''

_RUN = """
import importlib.util, sys
sys.modules["onceforall"] = None  # any import of it fails
import torch
from safetensors.torch import load_file, save_file
images, logits = load_file(sys.argv[1]), {}
for index, path in enumerate(sys.argv[3:]):
    spec = importlib.util.spec_from_file_location("standalone", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with torch.no_grad():
        logits[str(index)] = module.load()(images[str(index)]).contiguous()
save_file(logits, sys.argv[2])
"""
