"""The supernet: one set of weights for every architecture of a space. It keeps no active sub-network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from onceforall.architecture import Architecture
from onceforall.errors import OutOfDomain
from onceforall.layers import LayerSpec, MBConvSpec
from onceforall.nn.blocks import ElasticMBConv, FixedLayer
from onceforall.nn.subnet import build, initialise
from onceforall.space import SearchSpace

Block = FixedLayer | ElasticMBConv


class Supernet(nn.Module):
    """Weights shared by all sub-networks of `space`; `forward(x, arch)` runs one of them.

    Example:
        >>> supernet = Supernet(space)
        >>> logits = supernet(images, space.largest())  # images [n, 3, 32, 32] -> [n, classes]
        >>> network = supernet.extract(space.smallest())  # plain torch modules
    """

    def __init__(self, space: SearchSpace, seed: int = 0) -> None:
        super().__init__()
        self.space = space
        largest = space.largest()
        resolution = largest.resolution
        self.stem = nn.ModuleList(_fixed(spec) for spec in space.stem(resolution))
        self.units = nn.ModuleList(
            nn.ModuleList(_elastic(space.block(resolution, u, b, gene), unit.kernels) for b, gene in enumerate(genes))
            for u, (unit, genes) in enumerate(zip(space.units, largest.units, strict=True))
        )
        self.head = nn.ModuleList(_fixed(spec) for spec in space.head(resolution))
        initialise(self, torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor, arch: Architecture) -> Tensor:
        """Logits [n, classes] of sub-network `arch` for images [n, 3, resolution, resolution].

        Batch norm uses batch statistics in training mode and running statistics otherwise; those
        belong to no sub-network in particular, so evaluate `calibrate(supernet.extract(arch), ...)`.
        Raises InvalidArchitecture, and OutOfDomain where the images have another size.
        """
        if tuple(x.shape[2:]) != (arch.resolution, arch.resolution):
            raise OutOfDomain(
                f"images of {x.shape[-1]} x {x.shape[-2]} px: this architecture takes {arch.resolution} px"
            )
        for block, spec in self._route(arch):
            x = block(x, spec)
        return x

    def extract(self, arch: Architecture) -> nn.Sequential:
        """A plain network with copies of the weights of `arch`, in evaluation mode.

        Its batch-norm statistics are the supernet's: recalibrate them before use.
        Raises InvalidArchitecture.
        """
        tensors = {
            f"{index}.{name}": tensor.detach().clone()
            for index, (block, spec) in enumerate(self._route(arch))
            for name, tensor in block.slice(spec).items()
        }
        with torch.device("meta"):  # initial weights would be thrown away
            network = build(self.space.lower(arch))
        network.load_state_dict(tensors, assign=True)
        return network.requires_grad_(True).eval()

    def sort_channels(self, trained_expands: tuple[int, ...] = ()) -> None:
        """Sort the middle channels of every block by importance, before smaller expand ratios open.

        `trained_expands` are ratios that sub-networks were already trained with: their channels
        stay in front. The largest network's output does not change.
        """
        largest = self.space.largest()
        for u, blocks in enumerate(self._units):
            for b, block in enumerate(blocks):
                trained = [
                    self.space.block(largest.resolution, u, b, largest.units[u][b]._replace(expand=expand))
                    for expand in sorted(trained_expands)
                ]
                top = block.largest
                mids = {spec.mid_channels for spec in trained if isinstance(spec, MBConvSpec)} - {top.mid_channels}
                hidden = {spec.se_channels for spec in trained if isinstance(spec, MBConvSpec)} - {top.se_channels}
                block.sort_channels(tuple(sorted(mids)), tuple(sorted(hidden)))

    def _route(self, arch: Architecture) -> Iterator[tuple[Block, LayerSpec]]:
        """The active blocks of an architecture with their specs, in order."""
        specs = self.space.lower(arch)
        units = (block for unit, depth in zip(self._units, arch.depths, strict=True) for block in unit[:depth])
        blocks = [*cast(list[Block], self.stem), *units, *cast(list[Block], self.head)]
        return zip(blocks, specs, strict=True)

    @property
    def _units(self) -> list[list[ElasticMBConv]]:
        return [list(cast(list[ElasticMBConv], unit)) for unit in self.units]


def _fixed(spec: LayerSpec) -> Block:
    return ElasticMBConv(spec, ()) if isinstance(spec, MBConvSpec) else FixedLayer(spec)


def _elastic(spec: LayerSpec, kernels: tuple[int, ...]) -> ElasticMBConv:
    assert isinstance(spec, MBConvSpec)
    return ElasticMBConv(spec, kernels)
