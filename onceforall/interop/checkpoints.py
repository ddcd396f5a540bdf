"""The authors' weights: supernets and sub-networks, into our modules and back out again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onceforall import spaces
from onceforall.checkpoint import misfit, restore
from onceforall.errors import IncompatibleCheckpoint
from onceforall.interop.naming import by_short_name, network_names, short, supernet_names
from onceforall.interop.pickles import read_state, write_state
from onceforall.layers import LayerSpec
from onceforall.nn.network import SubNetwork
from onceforall.nn.subnet import build, channels_last
from onceforall.nn.supernet import Supernet
from onceforall.space import SearchSpace

# Output channels of the first convolution tell the published spaces apart.
STEM_CHANNELS = {16: ("mobilenet_v3", 1.0), 24: ("mobilenet_v3", 1.2), 40: ("proxyless", 1.3)}


def load_supernet(path: str | Path, space: SearchSpace | None = None) -> Supernet:
    """The authors' supernet in a torch file, in any of their key styles, channels_last.

    Without a `space`, it is the published one that the tensors belong to. Raises
    IncompatibleCheckpoint, which names tensors that are missing, too many, or of wrong shape.
    """
    return supernet_of(read_state(path), space, str(path))


def supernet_of(state: Mapping[str, Tensor], space: SearchSpace | None = None, origin: str = "state dict") -> Supernet:
    """The supernet of a state dict in the authors' naming. Raises IncompatibleCheckpoint."""
    tensors = by_short_name(state, origin)
    supernet = Supernet(space or published_space(tensors, origin))
    _restore(supernet, tensors, supernet_names(supernet.space), origin)
    return channels_last(supernet)


def published_space(tensors: Mapping[str, Tensor], origin: str = "state dict") -> SearchSpace:
    """The published space that a state dict belongs to. Raises IncompatibleCheckpoint."""
    tensors = by_short_name(tensors, origin)
    first = tensors.get("first_conv.conv.weight", tensors.get("input_stem.0.conv.weight"))
    classes = tensors.get("classifier.linear.bias")
    if first is not None and classes is not None:
        resnet = "input_stem.0.conv.weight" in tensors
        space = space_by_stem(len(first), resnet=resnet, num_classes=len(classes))
        if space is not None:
            return space
    raise IncompatibleCheckpoint(
        f"{origin} is not one of the published supernets (MobileNetV3 width 1.0 or 1.2, ProxylessNAS width 1.3, "
        "ResNet-50D): give its space"
    )


def space_by_stem(channels: int, *, resnet: bool, **options: Any) -> SearchSpace | None:
    """The published space whose first convolution has so many output channels; options as of its function."""
    if resnet:  # the only one, whatever its elastic stem has
        return spaces.resnet50d(**options)
    if channels not in STEM_CHANNELS:
        return None
    name, width = STEM_CHANNELS[channels]
    return spaces.BY_NAME[name](width, **options)


def supernet_state(supernet: Supernet) -> dict[str, Tensor]:
    """A supernet's tensors in the naming of the authors' elastic networks."""
    state, names = supernet.state_dict(), supernet_names(supernet.space)
    return {names[name]: _plain(tensor) for name, tensor in state.items()}


def save_supernet(path: str | Path, supernet: Supernet) -> None:
    """A torch file that the authors' elastic networks load. Raises UnwritableOutput."""
    write_state(path, supernet_state(supernet))


def network_of(state: Mapping[str, Tensor], layers: Sequence[LayerSpec], origin: str = "state dict") -> SubNetwork:
    """The network of these layers with the weights of a plain network of the authors, in evaluation mode.

    Raises IncompatibleCheckpoint.
    """
    network = build(layers)
    _restore(network, by_short_name(state, origin), network_names(layers), origin)
    return network.eval()


def network_state(network: nn.Sequential, layers: Sequence[LayerSpec]) -> dict[str, Tensor]:
    """The tensors of a network of these layers in the naming of the authors' plain networks.

    Raises IncompatibleCheckpoint where the network is another, or its batch norms are folded away.
    """
    state, names = network.state_dict(), network_names(layers)
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in build(layers).state_dict().items()}
    if misfit(state, expected):
        raise IncompatibleCheckpoint(
            "the network's tensors are not those of the layers: export it as it was extracted, before batch norms are "
            "folded away"
        )
    return {names[name]: _plain(tensor) for name, tensor in state.items()}


def _plain(tensor: Tensor) -> Tensor:
    """A copy of its own, in memory as its shape says: files hold whole storages."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _restore(module: nn.Module, tensors: dict[str, Tensor], names: Mapping[str, str], origin: str) -> None:
    names = {ours: short(theirs) for ours, theirs in names.items()}
    counters = {theirs for theirs in names.values() if theirs.endswith("num_batches_tracked")}
    # Files of old torch versions do not count batches, and nothing here needs the count.
    restore(module, dict.fromkeys(counters, torch.zeros((), dtype=torch.int64)) | tensors, origin, names.__getitem__)
