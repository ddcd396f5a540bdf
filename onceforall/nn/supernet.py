"""The supernet: one set of weights for every architecture of a space. It keeps no active sub-network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Self, cast

import torch
from torch import Tensor, nn

from onceforall.architecture import Architecture
from onceforall.errors import InvalidArchitecture, OutOfDomain
from onceforall.layers import LayerSpec
from onceforall.nn.elastic import Elastic, elastic
from onceforall.nn.network import SubNetwork
from onceforall.nn.subnet import initialise
from onceforall.sizes import Size, height_width, said
from onceforall.space import SearchSpace


class Trainable(nn.Module, ABC):
    """What training runs: the architectures of a space through elastic blocks."""

    space: SearchSpace
    classes: tuple[str, ...] = ()  # names of the outputs, where the data that it was trained on have such

    @property
    @abstractmethod
    def resolutions(self) -> tuple[Size, ...]:
        """Image sizes (px) that it takes."""

    @property
    def num_classes(self) -> int | None:
        """Outputs of the classifier; None where the last layer of the space is none."""
        return getattr(self.space.lower(self.space.largest())[-1], "out_features", None)

    @abstractmethod
    def _route(self, arch: Architecture) -> Iterator[tuple[Elastic, LayerSpec]]:
        """The active blocks of an architecture with their specs, in order. Raises InvalidArchitecture."""

    def forward(self, x: Tensor, arch: Architecture) -> Tensor:
        """Logits [n, classes] of `arch` for images [n, 3, height, width] of its resolution.

        Batch norm uses batch statistics in training mode and running statistics otherwise; those of
        a supernet belong to no sub-network in particular, so evaluate `calibrate(net.extract(arch), ...)`.
        Raises InvalidArchitecture, and OutOfDomain where the images have another size.
        """
        if tuple(x.shape[2:]) != height_width(arch.resolution):
            raise OutOfDomain(
                f"images of {x.shape[-2]} x {x.shape[-1]} px: this architecture takes {said(arch.resolution)} px"
            )
        for block, spec in self._route(arch):
            x = block(x, spec)
        return x

    def extract(self, arch: Architecture) -> SubNetwork:
        """A plain network with copies of the weights of `arch`, in evaluation mode.

        Its batch-norm statistics may be of other sub-networks: recalibrate them before use.
        Raises InvalidArchitecture.
        """
        specs = self.space.lower(arch)
        network = SubNetwork((block.extract(spec) for block, spec in self._route(arch)), specs)
        network.training = False  # as its layers are
        return network


class Supernet(Trainable):
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
        layers = iter(space.lower(largest))
        self.stem = nn.ModuleList(elastic(next(layers)) for _ in space.stem(largest.resolution))
        self.units = nn.ModuleList(
            nn.ModuleList(elastic(next(layers), self._forms(space, unit, index)) for index in range(depth))
            for unit, depth in enumerate(largest.depths)
        )
        self.head = nn.ModuleList(map(elastic, layers))
        initialise(self, torch.Generator().manual_seed(seed))

    @property
    def resolutions(self) -> tuple[Size, ...]:
        return self.space.resolutions

    def sort_channels(self, trained: SearchSpace | None = None) -> None:
        """Sort the middle channels of every block by importance, before smaller expand ratios open.

        `trained` is the sub-space that was already trained: its channels stay in front. The largest
        network's output does not change. What width multipliers cut keeps its order.
        """
        for u, unit in enumerate(self._units):
            for b, block in enumerate(unit):
                block.sort_channels(self._forms(trained, u, b) if trained else ())

    def reset_classifier(self, num_classes: int, seed: int = 0) -> None:
        """A new classifier with initial weights, to train these weights on other classes.

        `space` is then `space.with_classes(num_classes)`, which may raise InvalidConfiguration.
        """
        self.space, self.classes = self.space.with_classes(num_classes), ()
        like = next(self.parameters())
        last = elastic(self.space.lower(self.space.largest())[-1])
        initialise(last, torch.Generator().manual_seed(seed))
        self.head[-1] = last.to(like.device, like.dtype)

    def _route(self, arch: Architecture) -> Iterator[tuple[Elastic, LayerSpec]]:
        specs = self.space.lower(arch)
        units = (block for unit, depth in zip(self._units, arch.depths, strict=True) for block in unit[:depth])
        blocks = [*cast(list[Elastic], self.stem), *units, *cast(list[Elastic], self.head)]
        return zip(blocks, specs, strict=True)

    @staticmethod
    def _forms(space: SearchSpace, unit: int, index: int) -> list[LayerSpec]:
        return [form.layer for form in space.block_forms(space.resolutions[-1], unit, index)]

    @property
    def _units(self) -> list[list[Elastic]]:
        return [list(cast(list[Elastic], unit)) for unit in self.units]


class Network(Trainable):
    """One architecture of `space` with weights of its own: to train it alone, or to fine-tune it.

    It runs the same operations as a supernet's sub-network; `extract` gives plain torch modules.
    """

    def __init__(self, space: SearchSpace, architecture: Architecture, seed: int = 0) -> None:
        super().__init__()
        self.space, self.architecture = space, architecture
        self.layers = space.lower(architecture)
        self.blocks = nn.ModuleList(map(elastic, self.layers))
        initialise(self, torch.Generator().manual_seed(seed))

    @classmethod
    def of(cls, supernet: Supernet, architecture: Architecture) -> Self:
        """The sub-network of a supernet, with copies of its weights. Raises InvalidArchitecture."""
        network = cls(supernet.space, architecture)
        network.classes = supernet.classes
        network.load_plain(supernet.extract(architecture))
        return network

    @torch.no_grad()
    def load_plain(self, network: nn.Module) -> None:
        """Take the weights of the plain network of this architecture."""
        tensors = network.state_dict()
        for name, tensor in self.state_dict().items():
            tensor.copy_(tensors[self.plain_name(name)])

    @staticmethod
    def plain_name(name: str) -> str:
        """What a tensor of this module is called in the plain network."""
        return name.removeprefix("blocks.").replace(".full.", ".", 1)

    @property
    def resolutions(self) -> tuple[Size, ...]:
        return (self.architecture.resolution,)

    def _route(self, arch: Architecture) -> Iterator[tuple[Elastic, LayerSpec]]:
        if arch != self.architecture:
            raise InvalidArchitecture(f"{arch}: this network is {self.architecture}")
        return zip(cast(list[Elastic], self.blocks), self.layers, strict=True)
