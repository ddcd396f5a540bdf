"""Elastic blocks: each holds the tensors of its largest form, and takes its LayerSpec at call time.

`slice(spec)` gives the tensors of one choice under the names that `nn/subnet.py` uses. Forward
computes with them and extraction copies them, so the two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from onceforall.layers import ConvSpec, LayerSpec, LinearSpec, MBConvSpec, PoolSpec
from onceforall.nn import ops
from onceforall.nn.fast_cpu import global_pool
from onceforall.nn.ops import Tensors, leading
from onceforall.nn.subnet import InvertedResidual, build_layer


class FixedLayer(nn.Module):
    """A layer with nothing elastic: convolution, pooling or classifier."""

    def __init__(self, spec: ConvSpec | PoolSpec | LinearSpec) -> None:
        super().__init__()
        self.full = build_layer(spec)

    def forward(self, x: Tensor, spec: LayerSpec) -> Tensor:
        result: Tensor = global_pool(x) if isinstance(spec, PoolSpec) else self.full(x)
        return result

    def slice(self, spec: LayerSpec) -> Tensors:
        return self.full.state_dict(keep_vars=True)


class ElasticMBConv(nn.Module):
    """An inverted residual block with elastic kernel size and elastic middle width."""

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
            tensors["expand.conv.weight"] = leading(full.expand.conv.weight, mid, spec.in_channels)
            tensors |= _named("expand.", ops.slice_batch_norm(full.expand.bn, mid))
        tensors["depthwise.conv.weight"] = ops.transform_kernel(
            leading(full.depthwise.conv.weight, mid), spec.kernel, dict(self.transforms.items())
        )
        tensors |= _named("depthwise.", ops.slice_batch_norm(full.depthwise.bn, mid))
        if spec.se_channels:
            tensors["se.reduce.weight"] = leading(full.se.reduce.weight, spec.se_channels, mid)
            tensors["se.reduce.bias"] = leading(full.se.reduce.bias, spec.se_channels)
            tensors["se.expand.weight"] = leading(full.se.expand.weight, mid, spec.se_channels)
            tensors["se.expand.bias"] = leading(full.se.expand.bias, mid)
        tensors["project.conv.weight"] = leading(full.project.conv.weight, spec.out_channels, mid)
        tensors |= _named("project.", ops.slice_batch_norm(full.project.bn, spec.out_channels))
        return tensors

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
    def sort_channels(self, mid_boundaries: tuple[int, ...], se_boundaries: tuple[int, ...]) -> None:
        """Put the most important middle channels first; the largest form's function does not change.

        Importance is the L1 norm of the projection's input weights; of squeeze-excite's hidden
        channels, that of their expanding weights. Boundaries are widths already trained.
        """
        full = self.full
        if not self.largest.expanded:
            return
        order = ops.order_by_importance(full.project.conv.weight.abs().sum(dim=(0, 2, 3)), mid_boundaries)
        _permute(full.project.conv.weight, order, dim=1)
        for part in (full.expand, full.depthwise):
            bn = part.bn
            for tensor in (part.conv.weight, bn.weight, bn.bias, bn.running_mean, bn.running_var):
                _permute(tensor, order)
        if self.largest.se_channels:
            se = full.se
            _permute(se.expand.weight, order)
            _permute(se.expand.bias, order)
            _permute(se.reduce.weight, order, dim=1)
            hidden = ops.order_by_importance(se.expand.weight.abs().sum(dim=(0, 2, 3)), se_boundaries)
            _permute(se.expand.weight, hidden, dim=1)
            _permute(se.reduce.weight, hidden)
            _permute(se.reduce.bias, hidden)


def _named(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _permute(tensor: Tensor | None, order: Tensor, dim: int = 0) -> None:
    assert tensor is not None  # torch types a bias and running statistics as optional
    tensor.copy_(tensor.index_select(dim, order))
