"""Elastic layers of a vision transformer.

Every tensor of a smaller form is a leading part of that of the largest (Chen et al., "AutoFormer", ICCV
2021, section 3.2: weight entanglement), the positions and the kernel of the patches apart, which are resized.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onceforall.nn.elastic import Elastic, Tensors, leading, order_by_importance


class ElasticPatches(Elastic):
    """Patches of several sizes and grids: the kernel is resized as an image is, and so are the positions."""

    largest: Any

    def slice(self, spec: Any) -> Tensors:
        full, channels = self.full, spec.out_channels
        positions = resized_positions(full.positions[..., :channels], self.largest.grid, spec.grid)
        tensors = {
            "positions": positions,
            "proj.weight": resized_kernel(leading(full.proj.weight, channels), spec.patch),
            "proj.bias": leading(full.proj.bias, channels),
        }
        return tensors | ({"token": full.token[..., :channels]} if spec.class_token else {})


class ElasticEncoder(Elastic):
    """An encoder block with elastic channels, heads and MLP channels."""

    largest: Any

    @torch.no_grad()
    def sort_channels(self, trained: Iterable[Any] = ()) -> None:
        """As in Elastic. Importance of MLP channels and of heads is the L1 norm of the weights that read them."""
        forms, attention, mlp = list(trained), self.full.attention, self.full.mlp
        size = self.largest.head_channels
        reading = attention.out.weight.abs().sum(0).unflatten(0, (-1, size)).sum(1)
        heads = order_by_importance(reading, _below(self.largest.heads, (form.heads for form in forms)))
        order = (heads[:, None] * size + torch.arange(size, device=heads.device)).flatten()
        for tensor, dim in ((attention.weight, 1), (attention.bias, 1), (attention.out.weight, 1)):
            tensor.copy_(tensor.index_select(dim, order))
        trained_channels = _below(self.largest.mlp_channels, (form.mlp_channels for form in forms))
        order = order_by_importance(mlp.project.weight.abs().sum(0), trained_channels)
        for tensor, dim in ((mlp.expand.weight, 0), (mlp.expand.bias, 0), (mlp.project.weight, 1)):
            tensor.copy_(tensor.index_select(dim, order))


def _below(most: int, counts: Iterable[int]) -> tuple[int, ...]:
    """The different counts below the largest, in ascending order."""
    return tuple(sorted({count for count in counts if count < most}))


def resized_kernel(weight: Tensor, patch: int) -> Tensor:
    """A kernel [out, in, p, p] for patches of another size (px), whose answer to an even patch stays the same."""
    if weight.shape[-1] == patch:
        return weight
    scale = (weight.shape[-1] / patch) ** 2
    return F.interpolate(weight, (patch, patch), mode="bilinear", antialias=True) * scale


def resized_positions(positions: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Positions [1, tokens, channels] of one grid, interpolated to another; that of a class token stays."""
    if grid == wanted:
        return positions
    first = positions.shape[1] - grid[0] * grid[1]
    maps = positions[:, first:].transpose(1, 2).unflatten(2, grid)
    maps = F.interpolate(maps, wanted, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :first], maps.flatten(2).transpose(1, 2)], 1)
