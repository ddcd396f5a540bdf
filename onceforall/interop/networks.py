"""The authors' network descriptions: `net.config` and `run.config`, and a folder with `init` weights beside them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from torch import nn

from onceforall.architecture import Architecture, Gene
from onceforall.errors import IncompatibleCheckpoint, InvalidArchitecture, InvalidConfiguration
from onceforall.files import read_json, write_json
from onceforall.interop.checkpoints import network_of, network_state, space_by_stem
from onceforall.interop.pickles import read_state, write_state
from onceforall.layers import (
    Activation,
    BottleneckSpec,
    ConvSpec,
    LayerSpec,
    LinearSpec,
    MaxPoolSpec,
    MBConvSpec,
    PoolSpec,
    Size,
    make_divisible,
    said,
)
from onceforall.nn.network import SubNetwork
from onceforall.nn.subnet import build
from onceforall.space import SearchSpace

# What the authors' layers can be that these networks never are.
ORDER = {"ops_order": "weight_bn_act"}
CONVOLUTION = {"dilation": 1, "groups": 1, "bias": False, "has_shuffle": False, "use_se": False, **ORDER}
CLASSIFIER = {"bias": True, "use_bn": False, "act_func": None, **ORDER}
IDENTITY = {"use_bn": False, "act_func": None, "dropout_rate": 0, **ORDER}

Units = tuple[tuple[Gene, ...], ...]

# What follows the blocks of each kind of network.
HEADS = {
    "MobileNetV3": ("final_expand_layer", "pool", "feature_mix_layer"),
    "ProxylessNASNets": ("feature_mix_layer", "pool"),
    "ResNets": ("pool",),
}


@dataclass(frozen=True)
class PublishedNetwork:
    """A network that the authors describe: its layers, and its name in a space where it is a member of one."""

    resolution: int
    layers: tuple[LayerSpec, ...]
    space: SearchSpace | None
    architecture: Architecture | None

    def build(self, weights: str | Path | None = None) -> SubNetwork:
        """The network as plain torch modules, with the weights of a torch file where one is given.

        Raises IncompatibleCheckpoint.
        """
        return network_of(read_state(weights), self.layers, str(weights)) if weights else build(self.layers)


def load_network(folder: str | Path) -> tuple[PublishedNetwork, SubNetwork]:
    """A specialised network of the authors: a folder with `net.config`, `run.config` and `init`.

    Raises InvalidConfiguration, IncompatibleCheckpoint.
    """
    folder = Path(folder)
    network = read_network(read_json(folder / "net.config"), read_json(folder / "run.config"))
    return network, network.build(folder / "init")


def save_network(folder: str | Path, network: nn.Sequential, layers: Sequence[LayerSpec]) -> None:
    """Write a network of these layers as the authors do: `net.config`, `run.config`, `init`.

    Raises IncompatibleCheckpoint where the network is not that of the layers, UnwritableOutput.
    """
    folder = Path(folder)
    state = network_state(network, layers)
    write_json(folder / "net.config", network_config(layers))
    write_json(folder / "run.config", {"image_size": _resolution(layers)})
    write_state(folder / "init", state)


def read_network(net_config: Mapping[str, Any], run_config: Mapping[str, Any]) -> PublishedNetwork:
    """The network of a `net.config` at the image size of its `run.config`. Raises InvalidConfiguration."""
    try:
        resolution = _positive(run_config, "image_size")
        layers = tuple(_layers(net_config, resolution))
        _check_channels(layers)
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidConfiguration(f"not a network config of the authors: {error!r}") from error
    space = _published_space(layers, resolution)
    architecture = architecture_of(space, layers) if space else None
    return PublishedNetwork(resolution, layers, space if architecture else None, architecture)


def architecture_of(space: SearchSpace, layers: Sequence[LayerSpec]) -> Architecture | None:
    """The member of a space that lowers to exactly these layers, or None."""
    if not layers or not isinstance(layers[0], ConvSpec) or layers[0].in_size not in space.resolutions:
        return None
    resolution = layers[0].in_size
    blocks = layers[len(space.stem(resolution)) :]  # and the head, which no unit can read
    # Where two units have blocks of one shape, several depths fit so far: all of them are kept until the end.
    readings: list[tuple[Units, tuple[int, ...]]] = [((), ())]  # genes and width multiplier of each unit
    for u, unit in enumerate(space.units):
        readings = [
            ((*units, genes), (*multipliers, m))
            for units, multipliers in readings
            for m in range(len(unit.width_multipliers))
            for genes in _genes(space, resolution, u, blocks[sum(map(len, units)) :], m, (0, *multipliers)[-1])
        ]
    for units, multipliers in readings:
        widths = (unit.width_multipliers[m] for unit, m in zip(space.units, multipliers, strict=True))
        architecture = Architecture(resolution, units, tuple(widths))
        with contextlib.suppress(InvalidArchitecture):  # a depth and an expand ratio that are not tied to each other
            if space.lower(architecture) == tuple(layers):
                return architecture
    return None


def _genes(
    space: SearchSpace, resolution: Size, u: int, layers: Sequence[LayerSpec], own: int, before: int
) -> list[tuple[Gene, ...]]:
    """The genes of a unit at each of its depths for which the first of the layers are its blocks.

    own, before: the width multipliers of the unit and of the one before, as indices.
    """
    unit, genes = space.units[u], list[Gene]()
    for index, layer in enumerate(layers[: unit.depths[-1]]):
        wanted = layer, own, own if index else before
        fitting = (
            unit.genes[form.gene]
            for form in space.block_forms(resolution, u, index)
            if (form.layer, form.multiplier, form.in_multiplier) == wanted
        )
        gene = next(fitting, None)
        if gene is None:
            break
        genes.append(gene)
    return [tuple(genes[:depth]) for depth in unit.depths if depth <= len(genes)]


def network_config(layers: Sequence[LayerSpec]) -> dict[str, Any]:
    """The `net.config` of a network. Raises InvalidConfiguration where the authors have no such layer."""
    blocks = [layer for layer in layers if isinstance(layer, MBConvSpec | BottleneckSpec)]
    convolutions = [layer for layer in layers if isinstance(layer, ConvSpec)]
    classifiers = [layer for layer in layers if isinstance(layer, LinearSpec)]
    if not convolutions or len(classifiers) != 1:
        raise InvalidConfiguration(
            f"{len(convolutions)} convolutions and {len(classifiers)} classifiers: the authors' networks begin with a "
            "convolution and end with one classifier"
        )
    config: dict[str, Any] = {"bn": {"momentum": 0.1, "eps": convolutions[0].bn_eps}}
    classifier = {
        "name": "LinearLayer",
        "in_features": classifiers[0].in_features,
        "out_features": classifiers[0].out_features,
        "dropout_rate": classifiers[0].dropout,
        **CLASSIFIER,
    }
    tail = {"blocks": list(map(_block_config, blocks)), "classifier": classifier}
    if any(isinstance(layer, BottleneckSpec) for layer in layers):
        return {"name": "ResNets", **config, "input_stem": list(map(_conv_config, convolutions)), **tail}
    first, *rest = map(_conv_config, convolutions)
    name = "MobileNetV3" if len(rest) == 2 else "ProxylessNASNets"
    names = [part for part in HEADS[name] if part != "pool"]
    if len(names) != len(rest):
        raise InvalidConfiguration(f"{len(rest)} convolutions after the blocks: the authors' networks have 1 or 2")
    return {"name": name, **config, "first_conv": first, **dict(zip(names, rest, strict=True)), **tail}


# Reading


def _layers(config: Mapping[str, Any], resolution: int) -> Iterator[LayerSpec]:
    """The layers of a network config, in order of execution."""
    kind, eps = config["name"], config.get("bn", {}).get("eps", 1e-5)
    if kind not in HEADS:
        raise InvalidConfiguration(f"network {kind!r}: known are {', '.join(HEADS)}")
    size: Size = resolution
    for entry in config["input_stem"] if kind == "ResNets" else [config["first_conv"]]:
        layer: LayerSpec = _conv(entry["conv"], size, eps, True) if "conv" in entry else _conv(entry, size, eps)
        size = layer.out_size
        yield layer
    if kind == "ResNets":
        layer = MaxPoolSpec(size, config["input_stem"][-1]["out_channels"])
        size = layer.out_size
        yield layer
    for block in config["blocks"]:
        body = _bottleneck(block, size, eps) if kind == "ResNets" else _mbconv(block, size, eps)
        size, channels = body.out_size, body.out_channels
        yield body
    for name in HEADS[kind]:
        if name == "pool":
            yield PoolSpec(size, channels)
            size = 1
        else:
            conv = _conv(config[name], size, eps)
            channels = conv.out_channels
            yield conv
    classifier = config["classifier"]
    _only(classifier, "a classifier", CLASSIFIER)
    features = _positive(classifier, "in_features")
    yield LinearSpec(features, _positive(classifier, "out_features"), classifier.get("dropout_rate", 0))


def _conv(config: Mapping[str, Any], size: Size, eps: float, shortcut: bool = False) -> ConvSpec:
    _only(config, "a convolution", CONVOLUTION)
    return ConvSpec(size, **_shared(config), batch_norm=bool(config["use_bn"]), bn_eps=eps, shortcut=shortcut)


def _mbconv(block: Mapping[str, Any], size: Size, eps: float) -> MBConvSpec:
    config = block["conv"] if "conv" in block else block["mobile_inverted_conv"]
    _only(config, "a block", {"groups": None})
    shortcut = (block["shortcut"] or {}).get("name")
    if shortcut not in (None, "IdentityLayer", "ZeroLayer"):
        raise InvalidConfiguration(f"shortcut {shortcut!r} of a block: only IdentityLayer or none is supported")
    mid = _middle(config, "in_channels")
    return MBConvSpec(
        size,
        **_shared(config),
        mid_channels=mid,
        se_channels=make_divisible(mid // 4) if config["use_se"] else 0,
        shortcut=shortcut == "IdentityLayer",
        expanded=config["expand_ratio"] != 1,
        bn_eps=eps,
    )


def _bottleneck(config: Mapping[str, Any], size: Size, eps: float) -> BottleneckSpec:
    identity = config["stride"] == 1 and config["in_channels"] == config["out_channels"]
    if config.get("groups", 1) != 1 or (not identity and config["downsample_mode"] != "avgpool_conv"):
        raise InvalidConfiguration(
            f"groups {config.get('groups', 1)}, downsample_mode {config['downsample_mode']!r} of a bottleneck: "
            "only 1 and 'avgpool_conv' are supported"
        )
    mid = make_divisible(_middle(config, "out_channels"))
    return BottleneckSpec(size, **_shared(config), mid_channels=mid, downsample=not identity, bn_eps=eps)


def _shared(config: Mapping[str, Any]) -> dict[str, Any]:
    """What every kind of convolution and block has. Raises InvalidConfiguration."""
    kernel, activation = _positive(config, "kernel_size"), config["act_func"] or "none"
    if kernel % 2 == 0:
        raise InvalidConfiguration(f"kernel_size {kernel}: expected an odd number")
    if activation not in get_args(Activation):
        raise InvalidConfiguration(f"act_func {activation!r}: choices are {', '.join(get_args(Activation))}")
    counts = {name: _positive(config, name) for name in ("in_channels", "out_channels", "stride")}
    return {**counts, "kernel": kernel, "activation": activation}


def _middle(config: Mapping[str, Any], base: str) -> int:
    if config["mid_channels"] is not None:
        return _positive(config, "mid_channels")
    return round(_positive(config, base) * float(config["expand_ratio"]))


def _only(config: Mapping[str, Any], what: str, plain: Mapping[str, Any]) -> None:
    for name, value in plain.items():
        if config.get(name, value) != value:
            raise InvalidConfiguration(f"{name} {config[name]!r} of {what}: only {value!r} is supported")


def _positive(config: Mapping[str, Any], name: str) -> int:
    value: object = config[name]
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise InvalidConfiguration(f"{name} {value!r}: expected a positive integer")


def _check_channels(layers: Sequence[LayerSpec]) -> None:
    """Raises InvalidConfiguration where a layer does not take the channels that come out of the one before."""
    channels = 3
    for layer in layers:
        if layer.in_channels != channels:
            raise InvalidConfiguration(
                f"{layer.key} takes {layer.in_channels} channels, but the layer before it gives {channels}"
            )
        channels = layer.out_channels


def _published_space(layers: Sequence[LayerSpec], resolution: int) -> SearchSpace | None:
    """The published space that a network may be a member of, at its resolution."""
    stem, classifier = layers[0], layers[-1]
    assert isinstance(stem, ConvSpec)
    assert isinstance(classifier, LinearSpec)
    return space_by_stem(
        stem.out_channels,
        resnet=any(isinstance(layer, BottleneckSpec) for layer in layers),
        resolutions=(resolution,),
        num_classes=classifier.out_features,
        dropout=classifier.dropout,
    )


def _resolution(layers: Sequence[LayerSpec]) -> int:
    first = layers[0]
    if not isinstance(first, ConvSpec):
        raise IncompatibleCheckpoint(f"a network begins with a convolution, not with {first.key}")
    if not isinstance(first.in_size, int):
        raise IncompatibleCheckpoint(f"images of {said(first.in_size)} px: published networks take square ones")
    return first.in_size


# Writing


def _conv_config(layer: ConvSpec) -> dict[str, Any]:
    config = {
        "name": "ConvLayer",
        **_shared_config(layer),
        **CONVOLUTION,
        "use_bn": layer.batch_norm,
        "act_func": None if layer.activation == "none" else layer.activation,
        "dropout_rate": 0,
    }
    return _residual(config, layer, True) if layer.shortcut else config


def _block_config(layer: MBConvSpec | BottleneckSpec) -> dict[str, Any]:
    config = {**_shared_config(layer), "mid_channels": layer.mid_channels, "act_func": layer.activation}
    if isinstance(layer, BottleneckSpec):
        ratio = layer.mid_channels / layer.out_channels
        extra = {"expand_ratio": ratio, "groups": 1, "downsample_mode": "avgpool_conv"}
        return {"name": "ResNetBottleneckBlock", **config, **extra}
    ratio = layer.mid_channels / layer.in_channels
    if layer.expanded == (ratio == 1):
        raise InvalidConfiguration(f"{layer.key}: the authors' blocks have an expansion unless their ratio is 1")
    extra = {"expand_ratio": ratio, "use_se": layer.se_channels > 0, "groups": None}
    return _residual({"name": "MBConvLayer", **config, **extra}, layer, layer.shortcut)


def _shared_config(layer: ConvSpec | MBConvSpec | BottleneckSpec) -> dict[str, Any]:
    channels = {"in_channels": layer.in_channels, "out_channels": layer.out_channels}
    return {**channels, "kernel_size": layer.kernel, "stride": layer.stride}


def _residual(conv: dict[str, Any], layer: ConvSpec | MBConvSpec, shortcut: bool) -> dict[str, Any]:
    channels = {"in_channels": layer.out_channels, "out_channels": layer.out_channels}
    identity = {"name": "IdentityLayer", **channels, **IDENTITY}
    return {"name": "ResidualBlock", "conv": conv, "shortcut": identity if shortcut else None}
