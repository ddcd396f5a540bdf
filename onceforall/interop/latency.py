"""Latency tables of others: YAML files of milliseconds, by the text key of an operation.

Three dialects of the same idea, told apart by their keys: MobileNetV3 tables of the Once-for-All
authors (`expanded_conv-...-expand:72-...-hs:1`, one file a resolution, as for the Note10), their
ProxylessNAS tables (`expanded_conv-...-expand:3-...`), and those of NSGANetV2 (`MBConv-...`). Means
are read as they are: no correction, no validation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from onceforall.cost.latency import LatencyTable, LatencyTables, Timing
from onceforall.errors import InvalidConfiguration, OutOfDomain, install
from onceforall.layers import ConvSpec, LayerSpec, LinearSpec, MBConvSpec, PoolSpec
from onceforall.space import SearchSpace

DEEPEST = 10  # levels of YAML, the document and the stream among them

SHAPES = "input:{0.in_size}x{0.in_size}x{0.in_channels}-output:{0.out_size}x{0.out_size}x{0.out_channels}"


class Dialect(NamedTuple):
    """How keys are written: texts in which {0} is the layer; None for what another key includes."""

    mark: str  # that tells a block's key apart
    block: str  # {ratio}: of expansion; {se}, {hs}: whether it has squeeze-excite, and h-swish
    convolutions: tuple[str, str, str]  # names: of the first, of a 1 x 1 with batch norm, of one without
    pool: str | None  # {classifier}: the layer behind it
    linear: str | None

    def key(self, layer: LayerSpec, classifier: LinearSpec) -> str | None:
        """The key of a layer of a network with this classifier. Raises OutOfDomain for a layer that has none."""
        text: str | None
        match layer:
            case MBConvSpec():
                ratio, hard = round(layer.mid_channels / layer.in_channels), layer.activation == "h_swish"
                return self.block.format(layer, ratio=ratio, se=layer.se_channels > 0, hs=hard)
            case ConvSpec():
                text = self.convolutions[0 if layer.kernel > 1 else 1 if layer.batch_norm else 2] + "-" + SHAPES
            case PoolSpec():
                text = self.pool
            case LinearSpec():
                text = self.linear
            case _:
                raise OutOfDomain(f"no published latency table has layers like {layer.key}")
        return text and text.format(layer, classifier=classifier)


REST = "kernel:{0.kernel}-stride:{0.stride}-idskip:{0.shortcut:d}"

# In the order in which they are tried.
DIALECTS = (
    Dialect(
        "MBConv-",
        f"MBConv-{SHAPES}-expand:{{ratio}}-{REST}-se:{{se:d}}",
        ("first_conv", "final_expand_layer", "feature_mix_layer"),
        None,  # part of final_expand_layer
        "classifier-input:{0.in_features}-output:{0.out_features}",
    ),
    Dialect(
        "-hs:",
        f"expanded_conv-{SHAPES}-expand:{{0.mid_channels}}-{REST}-se:{{se:d}}-hs:{{hs:d}}",
        ("Conv", "Conv_1", "Conv_2"),
        "AvgPool2D-input:{0.in_size}x{0.in_size}x{0.channels}-output:1x1x{0.channels}",
        "Logits-input:1x1x{0.in_features}-output:{0.out_features}",
    ),
    Dialect(
        "expanded_conv-",
        f"expanded_conv-{SHAPES}-expand:{{ratio}}-{REST}",
        ("Conv", "Conv_1", "Conv_1"),
        # Logits is everything after the last convolution.
        "Logits-input:{0.in_size}x{0.in_size}x{classifier.in_features}-output:{classifier.out_features}",
        None,
    ),
)


def read_latency(path: str | Path, space: SearchSpace) -> LatencyTable:
    """The latency of every layer of a space (ms), from a YAML table that holds all its resolutions.

    Raises InvalidConfiguration where the file is not such a table, OutOfDomain where a layer is missing.
    """
    measured, dialect = _read(Path(path))
    entries = {layer.key: _timing(layer, key, measured, path) for layer, key in _layers(space, dialect)}
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
    return {key for _, key in _layers(space, _read(Path(path))[1]) if key is not None}


def _layers(space: SearchSpace, dialect: Dialect) -> Iterator[tuple[LayerSpec, str | None]]:
    """Every different layer of a space, with its key."""
    classifier = next(layer for layer in space.head(space.resolutions[0]) if isinstance(layer, LinearSpec))
    layers = {layer.key: layer for resolution in space.resolutions for layer in space.layers(resolution)}
    return ((layer, dialect.key(layer, classifier)) for layer in layers.values())


def _read(path: Path) -> tuple[dict[str, Any], Dialect]:
    try:
        import yaml
    except ImportError as error:
        raise InvalidConfiguration(f"latency tables in YAML need PyYAML: {install('interop')}") from error
    try:
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise InvalidConfiguration(f"{path} is not YAML: {error}") from error
    except OSError as error:
        raise InvalidConfiguration(f"cannot read {path}: {error.strerror or error}") from error
    try:
        # The C loader is ten times faster where it was built; it builds what is nested without a limit of depth.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        _check_yaml(path, yaml.parse(text, loader))
        value = yaml.load(text, loader)
    except InvalidConfiguration:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidConfiguration(f"{path} is not YAML: {error!s:.300}") from error
    if not isinstance(value, dict):
        raise InvalidConfiguration(f"{path} is not a latency table: expected keys with their means (ms)")
    blocks = [name for name in value if isinstance(name, str) and name.startswith(("expanded_conv-", "MBConv-"))]
    for dialect in DIALECTS:
        if any(dialect.mark in name for name in blocks):
            return value, dialect
    raise InvalidConfiguration(f"{path} is not a latency table: no key begins with expanded_conv- or MBConv-")


def _check_yaml(path: Path, events: Iterable[Any]) -> None:
    """Raises InvalidConfiguration for what no latency table has: values inside values inside values, and aliases."""
    depth = 0
    for event in events:
        kind = type(event).__name__
        depth += kind.endswith("StartEvent") - kind.endswith("EndEvent")
        if kind == "AliasEvent" or depth > DEEPEST:
            what = "an alias" if kind == "AliasEvent" else f"more than {DEEPEST} levels"
            raise InvalidConfiguration(
                f"{path} is not a latency table: {what} in line {event.start_mark.line + 1}; expected keys with their "
                "means (ms)"
            )


def _timing(layer: LayerSpec, key: str | None, measured: Mapping[str, Any], path: str | Path) -> Timing:
    if key is None:
        return Timing(0.0, 0.0, 0)
    if key not in measured:
        raise OutOfDomain(f"{path} has no {key} for layer {layer.key}: it was measured for another space or resolution")
    try:
        entry = measured[key]
        spread = entry["std"] if "std" in entry else math.sqrt(entry.get("var", 0.0))
        timing = Timing(float(entry["mean"]), float(spread), int(entry.get("count", 0)))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InvalidConfiguration(f"{path}: {key} holds no mean (ms) in {measured[key]!r:.100}: {error}") from error
    return timing
