"""The authors' names of tensors, beside ours.

Their files come in several key styles: blocks are called `mobile_inverted_conv` or `conv`, and an
elastic operation wraps a plain one, which doubles a level (`conv.conv.weight`, `bn.bn.weight`,
`linear.linear.weight`) that files of plain networks do not have. Dropping every doubled level gives
one short name for all styles, and that is what tensors are matched by.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration
from onceforall.layers import BottleneckSpec, ConvSpec, LayerSpec, LinearSpec, MaxPoolSpec, MBConvSpec, PoolSpec
from onceforall.space import SearchSpace

WRAPPED = ("conv", "bn", "linear")
BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

# Parts of a layer: ours, theirs.
MBCONV = {"expand": "inverted_bottleneck", "depthwise": "depth_conv", "project": "point_linear"}
BOTTLENECK = {"main.reduce": "conv1", "main.conv": "conv2", "main.restore": "conv3"}


def short(name: str) -> str:
    """The name without doubled levels, blocks called `conv`."""
    levels = name.replace("mobile_inverted_conv", "conv").split(".")
    return ".".join(
        level for level, before in zip(levels, ["", *levels], strict=False) if level != before or level not in WRAPPED
    )


def by_short_name(state: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """The state dict under short names. Raises IncompatibleCheckpoint where two tensors share one."""
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if short(name) in result:
            raise IncompatibleCheckpoint(f"{origin}: {name} is there twice, in two key styles")
        result[short(name)] = tensor
    return result


def module_names(layers: Sequence[LayerSpec]) -> list[tuple[str, bool]]:
    """For each layer of a network, the name of the authors' module, and whether it is elastic in a supernet.

    The name of a layer without tensors is "".
    """
    resnet = any(isinstance(layer, BottleneckSpec) for layer in layers)
    blocks, stem = itertools.count(), itertools.count()
    convolutions = ["first_conv", "final_expand_layer", "feature_mix_layer"]
    if sum(isinstance(layer, ConvSpec) for layer in layers) < len(convolutions):
        convolutions.remove("final_expand_layer")
    names = []
    for layer in layers:
        match layer:
            case ConvSpec() if resnet:
                names.append((f"input_stem.{next(stem)}{'.conv' if layer.shortcut else ''}", True))
            case ConvSpec() if convolutions:
                names.append((convolutions.pop(0), False))
            case MBConvSpec():
                number = next(blocks)
                names.append((f"blocks.{number}.conv", number > 0))  # the first block is fixed
            case BottleneckSpec():
                names.append((f"blocks.{next(blocks)}", True))
            case LinearSpec():
                names.append(("classifier", resnet))
            case PoolSpec() | MaxPoolSpec():
                names.append(("", False))
            case _:
                raise InvalidConfiguration(f"the authors' networks have no place for layer {layer.key}")
    return names


def layer_names(layer: LayerSpec, elastic: bool = False) -> Iterator[tuple[str, str]]:
    """(our, their) names of a layer's tensors inside its module; `elastic` writes the doubled levels."""
    wrapped = {level: f"{level}.{level}" if elastic else level for level in WRAPPED}

    def conv(ours: str, theirs: str, batch_norm: bool = True) -> Iterator[tuple[str, str]]:
        yield f"{ours}conv.weight", f"{theirs}{wrapped['conv']}.weight"
        for name in BATCH_NORM if batch_norm else ():
            yield f"{ours}bn.{name}", f"{theirs}{wrapped['bn']}.{name}"

    match layer:
        case ConvSpec():
            yield from conv("", "", layer.batch_norm)
        case MBConvSpec():
            for ours, theirs in MBCONV.items():
                if ours != "expand" or layer.expanded:
                    yield from conv(f"{ours}.", f"{theirs}.")
            for ours, name in itertools.product(("reduce", "expand") if layer.se_channels else (), ("weight", "bias")):
                yield f"se.{ours}.{name}", f"depth_conv.se.fc.{ours}.{name}"
        case BottleneckSpec():
            for ours, theirs in BOTTLENECK.items():
                yield from conv(f"{ours}.", f"{theirs}.")
            if layer.downsample:
                yield from conv("downsample.conv.", "downsample.")
        case LinearSpec():
            for name in ("weight", "bias"):
                yield f"linear.{name}", f"{wrapped['linear']}.{name}"


def network_names(layers: Sequence[LayerSpec]) -> dict[str, str]:
    """Our names of the tensors of a network of these layers -> the authors' names in a plain network.

    Raises InvalidConfiguration where the authors' networks have no such layer.
    """
    return {
        f"{number}.{ours}": f"{module}.{theirs}"
        for number, (layer, (module, _)) in enumerate(zip(layers, module_names(layers), strict=True))
        for ours, theirs in layer_names(layer)
    }


def supernet_names(space: SearchSpace) -> dict[str, str]:
    """Our names of a supernet's tensors -> the authors' names in an elastic network.

    Raises InvalidConfiguration where the authors' networks have no such layer.
    """
    largest = space.largest()
    layers = space.lower(largest)
    stem = [f"stem.{number}" for number in range(len(space.stem(largest.resolution)))]
    head = [f"head.{number}" for number in range(len(layers) - len(stem) - len(space.block_indices))]
    places = [*stem, *(f"units.{u}.{b}" for u, b in space.block_indices), *head]
    modules = dict(zip(places, module_names(layers), strict=True))
    names = {
        f"{place}.full.{ours}": f"{modules[place][0]}.{theirs}"
        for place, layer in zip(places, layers, strict=True)
        for ours, theirs in layer_names(layer, elastic=modules[place][1])
    }
    for u, b in space.block_indices:
        place = f"units.{u}.{b}"
        for smaller, larger in itertools.pairwise(space.units[u].choices["kernel"]):
            names[f"{place}.transforms.{smaller}"] = f"{modules[place][0]}.depth_conv.conv.{larger}to{smaller}_matrix"
    return names
