"""Latency tables of others: YAML files of milliseconds, by the text key of an operation.

Three dialects of the same idea, told apart by their keys: MobileNetV3 tables of the Once-for-All
authors (`expanded_conv-...-expand:72-...-hs:1`, one file a resolution, as for the Note10), their
ProxylessNAS tables (`expanded_conv-...-expand:3-...`), and those of NSGANetV2 (`MBConv-...`). Means
are read as they are: no correction, no validation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onceforall.cost.latency import LatencyTable, LatencyTables, Timing
from onceforall.errors import InvalidConfiguration, OutOfDomain
from onceforall.layers import ConvSpec, LayerSpec, LinearSpec, MBConvSpec, PoolSpec
from onceforall.space import SearchSpace

# The key of a layer of a network with this classifier; None for what another key includes.
Key = Callable[[LayerSpec, LinearSpec], str | None]


def read_latency(path: str | Path, space: SearchSpace) -> LatencyTable:
    """The latency of every layer of a space (ms), from a YAML table that holds all its resolutions.

    Raises InvalidConfiguration where the file is not such a table, OutOfDomain where a layer is missing.
    """
    measured, key = _read(Path(path))
    classifier = _classifier(space)
    entries: dict[str, Timing] = {}
    for resolution in space.resolutions:
        for layer in space.layers(resolution):
            if layer.key not in entries:
                entries[layer.key] = _timing(layer, key(layer, classifier), measured, path)
    return LatencyTable({"name": Path(path).stem, "source": Path(path).name, "statistic": "mean"}, entries)


def read_latency_by_resolution(paths: Mapping[int, str | Path], space: SearchSpace) -> LatencyTables:
    """The tables of a device that was measured into one YAML file a resolution (px).

    Raises InvalidConfiguration, OutOfDomain.
    """
    return LatencyTables(
        {resolution: read_latency(path, space.restrict(resolutions=[resolution])) for resolution, path in paths.items()}
    )


def table_keys(path: str | Path, space: SearchSpace) -> set[str]:
    """The keys that a space needs, in the dialect of a table."""
    _, key = _read(Path(path))
    classifier = _classifier(space)
    return {
        text
        for resolution in space.resolutions
        for layer in space.layers(resolution)
        if (text := key(layer, classifier)) is not None
    }


def _read(path: Path) -> tuple[dict[str, Any], Key]:
    try:
        import yaml
    except ImportError as error:
        raise InvalidConfiguration("latency tables in YAML need PyYAML: pip install 'onceforall[interop]'") from error
    try:
        # The C loader is ten times faster where it was built.
        value = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except OSError as error:
        raise InvalidConfiguration(f"cannot read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidConfiguration(f"{path} is not YAML: {error}") from error
    if not isinstance(value, dict):
        raise InvalidConfiguration(f"{path} is not a latency table: expected keys with their means (ms)")
    for prefix, suffix, key in (
        ("MBConv-", "", _nsganet_key),
        ("expanded_conv-", "-hs:", _mobilenet_v3_key),
        ("expanded_conv-", "", _proxyless_key),
    ):
        if any(isinstance(name, str) and name.startswith(prefix) and suffix in name for name in value):
            return value, key
    raise InvalidConfiguration(f"{path} is not a latency table: no key begins with expanded_conv- or MBConv-")


def _timing(layer: LayerSpec, key: str | None, measured: Mapping[str, Any], path: str | Path) -> Timing:
    if key is None:
        return Timing(0.0, 0.0, 0)
    if key not in measured:
        raise OutOfDomain(f"{path} has no {key} for layer {layer.key}: it was measured for another space or resolution")
    try:
        entry = measured[key]
        spread = entry["std"] if "std" in entry else math.sqrt(entry.get("var", 0.0))
        timing = Timing(float(entry["mean"]), float(spread), int(entry.get("count", 0)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidConfiguration(f"{path}: {key} holds no mean (ms): {measured[key]!r}") from error
    if not 0 <= timing.median < math.inf:
        raise InvalidConfiguration(f"{path}: {key} takes {timing.median} ms: expected a finite time of at least 0")
    return timing


def _classifier(space: SearchSpace) -> LinearSpec:
    return next(layer for layer in space.head(space.resolutions[0]) if isinstance(layer, LinearSpec))


def _shapes(layer: ConvSpec | MBConvSpec) -> str:
    before, after = f"{layer.in_size}x{layer.in_size}", f"{layer.out_size}x{layer.out_size}"
    return f"input:{before}x{layer.in_channels}-output:{after}x{layer.out_channels}"


def _block(layer: MBConvSpec, expand: int) -> str:
    return f"{_shapes(layer)}-expand:{expand}-kernel:{layer.kernel}-stride:{layer.stride}-idskip:{layer.shortcut:d}"


def _ratio(layer: MBConvSpec) -> int:
    return round(layer.mid_channels / layer.in_channels)


def _mobilenet_v3_key(layer: LayerSpec, classifier: LinearSpec) -> str | None:
    match layer:
        case MBConvSpec():
            flags = f"se:{layer.se_channels > 0:d}-hs:{layer.activation == 'h_swish':d}"
            return f"expanded_conv-{_block(layer, layer.mid_channels)}-{flags}"
        case ConvSpec():
            name = "Conv" if layer.kernel > 1 else "Conv_1" if layer.batch_norm else "Conv_2"
            return f"{name}-{_shapes(layer)}"
        case PoolSpec():
            size, channels = layer.in_size, layer.channels
            return f"AvgPool2D-input:{size}x{size}x{channels}-output:1x1x{channels}"
        case LinearSpec():
            return f"Logits-input:1x1x{layer.in_features}-output:{layer.out_features}"
        case _:
            return _unknown(layer)


def _proxyless_key(layer: LayerSpec, classifier: LinearSpec) -> str | None:
    match layer:
        case MBConvSpec():
            return f"expanded_conv-{_block(layer, _ratio(layer))}"
        case ConvSpec():
            return f"{'Conv' if layer.kernel > 1 else 'Conv_1'}-{_shapes(layer)}"
        case PoolSpec():  # Logits is everything after the last convolution
            size, channels = layer.in_size, classifier.in_features
            return f"Logits-input:{size}x{size}x{channels}-output:{classifier.out_features}"
        case LinearSpec():
            return None
        case _:
            return _unknown(layer)


def _nsganet_key(layer: LayerSpec, classifier: LinearSpec) -> str | None:
    match layer:
        case MBConvSpec():
            return f"MBConv-{_block(layer, _ratio(layer))}-se:{layer.se_channels > 0:d}"
        case ConvSpec():
            kinds = (
                "first_conv" if layer.kernel > 1 else "final_expand_layer" if layer.batch_norm else "feature_mix_layer"
            )
            return f"{kinds}-{_shapes(layer)}"
        case PoolSpec():
            return None  # part of final_expand_layer
        case LinearSpec():
            return f"classifier-input:{layer.in_features}-output:{layer.out_features}"
        case _:
            return _unknown(layer)


def _unknown(layer: LayerSpec) -> str:
    raise OutOfDomain(f"no published latency table has layers like {layer.key}")
