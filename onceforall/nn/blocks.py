"""Elastic blocks: each holds the tensors of its largest form, and takes its LayerSpec at call time.

`slice(spec)` gives the tensors of one choice under the names that `nn/subnet.py` uses. Forward
computes with them and extraction copies them, so the two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
from onceforall.nn import ops
from onceforall.nn.fast_cpu import global_pool
from onceforall.nn.ops import Tensors, leading
from onceforall.nn.subnet import Bottleneck, Classifier, ConvNormAct, InvertedResidual, build_layer


def elastic(largest: LayerSpec, kernels: Sequence[int] = ()) -> ElasticBlock:
    """The elastic block of a layer whose largest form is given; `kernels` are those of a depthwise convolution."""
    match largest:
        case MBConvSpec():
            return ElasticMBConv(largest, kernels)
        case BottleneckSpec():
            return ElasticBottleneck(largest)
        case ConvSpec():
            return ElasticConv(largest)
        case LinearSpec():
            return ElasticLinear(largest)
        case PoolSpec() | MaxPoolSpec():
            return Pool()


class ElasticBlock(nn.Module):
    """What every block of a supernet can do."""

    def forward(self, x: Tensor, spec: LayerSpec) -> Tensor:
        """The output of the form `spec` of this block."""
        raise NotImplementedError

    def slice(self, spec: LayerSpec) -> Tensors:
        """The tensors of the form `spec`, by their names in the plain layer; views where nothing is computed."""
        return {}

    def sort_channels(self, trained: Iterable[LayerSpec] = ()) -> None:
        """Put the most important middle channels first; the largest form's function does not change.

        The channels of forms that were already trained stay in front.
        """


class Pool(ElasticBlock):
    """Pooling: nothing to learn."""

    def forward(self, x: Tensor, spec: LayerSpec) -> Tensor:
        if isinstance(spec, MaxPoolSpec):
            return F.max_pool2d(x, spec.kernel, spec.stride, spec.kernel // 2)
        return global_pool(x)


class ElasticConv(ElasticBlock):
    """A dense convolution with elastic input and output channels."""

    def __init__(self, largest: ConvSpec) -> None:
        super().__init__()
        self.full: ConvNormAct = build_layer(largest)  # type: ignore[assignment]

    def slice(self, spec: LayerSpec) -> Tensors:
        assert isinstance(spec, ConvSpec)
        return _conv_tensors("", self.full, spec.out_channels, spec.in_channels)

    def forward(self, x: Tensor, spec: LayerSpec) -> Tensor:
        assert isinstance(spec, ConvSpec)
        y = ops.conv_norm_act(
            x,
            self.slice(spec),
            "",
            stride=spec.stride,
            activation=spec.activation,
            training=self.training,
            bn_eps=spec.bn_eps,
        )
        return x + y if spec.shortcut else y


class ElasticLinear(ElasticBlock):
    """A classifier with elastic input features."""

    def __init__(self, largest: LinearSpec) -> None:
        super().__init__()
        self.full: Classifier = build_layer(largest)  # type: ignore[assignment]

    def slice(self, spec: LayerSpec) -> Tensors:
        assert isinstance(spec, LinearSpec)
        linear = self.full.linear
        return {
            "linear.weight": leading(linear.weight, spec.out_features, spec.in_features),
            "linear.bias": linear.bias,
        }

    def forward(self, x: Tensor, spec: LayerSpec) -> Tensor:
        assert isinstance(spec, LinearSpec)
        tensors = self.slice(spec)
        x = F.dropout(x.flatten(1), spec.dropout, self.training)
        return F.linear(x, tensors["linear.weight"], tensors["linear.bias"])


class ElasticMBConv(ElasticBlock):
    """An inverted residual block with elastic kernel size and elastic input, middle and output channels."""

    def __init__(self, largest: MBConvSpec, kernels: Sequence[int]) -> None:
        super().__init__()
        self.largest = largest
        self.full = InvertedResidual(largest)
        # One matrix for each kernel below the largest, shared by all channels; identity at the start.
        self.transforms = nn.ParameterDict(
            {str(size): nn.Parameter(torch.eye(size * size)) for size in kernels if size < largest.kernel}
        )

    def slice(self, spec: LayerSpec) -> Tensors:
        assert isinstance(spec, MBConvSpec)
        full, mid = self.full, spec.mid_channels
        tensors: Tensors = {}
        if spec.expanded:
            tensors |= _conv_tensors("expand.", full.expand, mid, spec.in_channels)
        tensors |= _conv_tensors("depthwise.", full.depthwise, mid)
        tensors["depthwise.conv.weight"] = ops.transform_kernel(
            tensors["depthwise.conv.weight"], spec.kernel, dict(self.transforms.items())
        )
        if spec.se_channels:
            tensors["se.reduce.weight"] = leading(full.se.reduce.weight, spec.se_channels, mid)
            tensors["se.reduce.bias"] = leading(full.se.reduce.bias, spec.se_channels)
            tensors["se.expand.weight"] = leading(full.se.expand.weight, mid, spec.se_channels)
            tensors["se.expand.bias"] = leading(full.se.expand.bias, mid)
        return tensors | _conv_tensors("project.", full.project, spec.out_channels, mid)

    def forward(self, x: Tensor, spec: LayerSpec) -> Tensor:
        assert isinstance(spec, MBConvSpec)
        tensors, training, eps = self.slice(spec), self.training, spec.bn_eps
        activation = spec.activation
        y = x
        if spec.expanded:
            y = ops.conv_norm_act(y, tensors, "expand.", activation=activation, training=training, bn_eps=eps)
        y = ops.conv_norm_act(
            y,
            tensors,
            "depthwise.",
            stride=spec.stride,
            depthwise=True,
            activation=activation,
            training=training,
            bn_eps=eps,
        )
        if spec.se_channels:
            y = ops.squeeze_excite(y, tensors)
        y = ops.conv_norm_act(y, tensors, "project.", activation="none", training=training, bn_eps=eps)
        return x + y if spec.shortcut else y

    @torch.no_grad()
    def sort_channels(self, trained: Iterable[LayerSpec] = ()) -> None:
        """As in ElasticBlock. Importance is the L1 norm of the projection's input weights; of squeeze-excite's
        hidden channels, that of their expanding weights.
        """
        full = self.full
        if not self.largest.expanded:
            return
        forms = [spec for spec in trained if isinstance(spec, MBConvSpec)]
        order = _order(full.project.conv.weight, {spec.mid_channels for spec in forms})
        _permute(full.project.conv.weight, order, dim=1)
        _permute_outputs(full.expand, order)
        _permute_outputs(full.depthwise, order)
        if self.largest.se_channels:
            se = full.se
            _permute(se.expand.weight, order)
            _permute(se.expand.bias, order)
            _permute(se.reduce.weight, order, dim=1)
            hidden = _order(se.expand.weight, {spec.se_channels for spec in forms})
            _permute(se.expand.weight, hidden, dim=1)
            _permute(se.reduce.weight, hidden)
            _permute(se.reduce.bias, hidden)


class ElasticBottleneck(ElasticBlock):
    """A residual bottleneck block with elastic input, middle and output channels."""

    def __init__(self, largest: BottleneckSpec) -> None:
        super().__init__()
        self.full = Bottleneck(largest)

    def slice(self, spec: LayerSpec) -> Tensors:
        assert isinstance(spec, BottleneckSpec)
        main, mid = self.full.main, spec.mid_channels
        tensors = _conv_tensors("main.reduce.", main.reduce, mid, spec.in_channels)
        tensors |= _conv_tensors("main.conv.", main.conv, mid, mid)
        tensors |= _conv_tensors("main.restore.", main.restore, spec.out_channels, mid)
        if spec.downsample:
            conv = self.full.downsample.conv
            tensors |= _conv_tensors("downsample.conv.", conv, spec.out_channels, spec.in_channels)
        return tensors

    def forward(self, x: Tensor, spec: LayerSpec) -> Tensor:
        assert isinstance(spec, BottleneckSpec)
        tensors = self.slice(spec)

        def conv(x: Tensor, name: str, activation: Activation, stride: int = 1) -> Tensor:
            return ops.conv_norm_act(
                x, tensors, name, stride=stride, activation=activation, training=self.training, bn_eps=spec.bn_eps
            )

        y = conv(x, "main.reduce.", spec.activation)
        y = conv(y, "main.conv.", spec.activation, spec.stride)
        y = conv(y, "main.restore.", "none")
        if spec.downsample:
            x = F.avg_pool2d(x, spec.stride, ceil_mode=True) if spec.stride > 1 else x
            x = conv(x, "downsample.conv.", "none")
        return ops.activate(x + y, spec.activation)

    @torch.no_grad()
    def sort_channels(self, trained: Iterable[LayerSpec] = ()) -> None:
        """As in ElasticBlock. Both layers of middle channels are sorted, each by the L1 norm of the weights that
        read it.
        """
        main = self.full.main
        boundaries = {spec.mid_channels for spec in trained if isinstance(spec, BottleneckSpec)}
        for before, after in ((main.conv, main.restore), (main.reduce, main.conv)):
            order = _order(after.conv.weight, boundaries)
            _permute(after.conv.weight, order, dim=1)
            _permute_outputs(before, order)


def _conv_tensors(name: str, part: ConvNormAct, *channels: int) -> Tensors:
    """A part's convolution and batch norm, cut to the first output (and input) channels."""
    tensors = {f"{name}conv.weight": leading(part.conv.weight, *channels)}
    if hasattr(part, "bn"):
        tensors |= {name + key: tensor for key, tensor in ops.slice_batch_norm(part.bn, channels[0]).items()}
    return tensors


def _order(weight: Tensor, boundaries: set[int]) -> Tensor:
    """The order of input channels by the L1 norm of the weights [out, in, k, k] that read them."""
    edges = tuple(sorted(boundary for boundary in boundaries if boundary < weight.shape[1]))
    return ops.order_by_importance(weight.abs().sum(dim=(0, 2, 3)), edges)


def _permute_outputs(part: ConvNormAct, order: Tensor) -> None:
    bn = part.bn
    for tensor in (part.conv.weight, bn.weight, bn.bias, bn.running_mean, bn.running_var):
        _permute(tensor, order)


def _permute(tensor: Tensor | None, order: Tensor, dim: int = 0) -> None:
    assert tensor is not None  # torch types a bias and running statistics as optional
    tensor.copy_(tensor.index_select(dim, order))
