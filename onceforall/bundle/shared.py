"""Tensors that are leading parts of one another, stored once: in a safetensors file that ONNX graphs point into."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data
from torch import Tensor

from onceforall.nn.elastic import leading


class Place(NamedTuple):
    """The first entries along each dimension of the stored tensor `key`; in files a list."""

    key: str
    shape: tuple[int, ...]

    def cut(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """A view into the stored tensor."""
        return leading(tensors[self.key], *self.shape)


def share(
    networks: Mapping[str, Mapping[str, tuple[str, Tensor]]],
) -> tuple[dict[str, Tensor], dict[str, dict[str, Place]]]:
    """The tensors to store, and where each network finds its own.

    A network gives, for each of its tensors, the name under which it may be shared. Tensors of one
    name are stored as one where they agree on what they have in common (to rounding: a smaller kernel
    is a product, whose last bit depends on the number of channels); a tensor that does not agree is
    stored as its network's own.
    """
    stored: dict[str, Tensor] = {}
    everyone = [(name, key, shared, tensor) for name, own in networks.items() for key, (shared, tensor) in own.items()]
    for _, _, shared, tensor in sorted(everyone, key=lambda item: -item[3].numel()):  # the largest first
        if shared not in stored:
            stored[shared] = tensor.detach().clone(memory_format=torch.contiguous_format)
        elif _agree(stored[shared], tensor):
            stored[shared] = _joined(stored[shared], tensor)
    found: dict[str, dict[str, Place]] = {name: {} for name in networks}
    for name, key, shared, tensor in everyone:
        place = Place(shared, tuple(tensor.shape))
        if not _agree(stored[shared], tensor):
            place = Place(f"{name}/{key}", place.shape)
            stored[place.key] = tensor.detach().clone(memory_format=torch.contiguous_format)
        found[name][key] = place
    return stored, found


def _common(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    sizes = [min(pair) for pair in zip(a.shape, b.shape, strict=True)]
    return leading(a, *sizes), leading(b, *sizes)


def _agree(a: Tensor, b: Tensor) -> bool:
    if a.ndim != b.ndim or a.dtype != b.dtype:
        return False
    return torch.allclose(*_common(a, b), rtol=1e-5, atol=1e-7)


def _joined(a: Tensor, b: Tensor) -> Tensor:
    """The smallest tensor that both are leading parts of; zeros where neither reaches."""
    sizes = [max(pair) for pair in zip(a.shape, b.shape, strict=True)]
    if list(a.shape) == sizes:
        return a
    joined = torch.zeros(sizes, dtype=a.dtype)
    for part in (b, a):  # what was stored first stays as it is
        leading(joined, *part.shape).copy_(part)
    return joined


def refer(model: onnx.ModelProto, places: Mapping[str, Place], weights: Path) -> bytes:
    """The model with its initialisers replaced by places in a safetensors file; their names are those of `places`.

    The first rows of a tensor lie together, so they are read as they are. A cut in any other
    dimension becomes a Slice of the whole tensor, which ONNX Runtime computes once as it loads.
    """
    graph, stored = model.graph, _header(weights)

    def point(initializer: TensorProto, key: str, shape: tuple[int, ...]) -> None:
        del initializer.dims[:]
        initializer.dims.extend(shape)
        set_external_data(initializer, weights.name, stored[key][0], length=math.prod(shape) * 4)
        initializer.ClearField("raw_data")

    own = {item.name: item for item in graph.initializer}
    slices = []
    for name in own.keys() & places.keys():
        place, initializer = places[name], own[name]
        whole = stored[place.key][1]
        if place.shape[1:] == whole[1:]:
            point(initializer, place.key, place.shape)
            continue
        initializer.name = f"{name}:whole"
        point(initializer, place.key, whole)
        cut = [axis for axis, size in enumerate(place.shape) if size != whole[axis]]
        ends = [place.shape[axis] for axis in cut]
        inputs = [initializer.name]
        for part, values in (("starts", [0] * len(cut)), ("ends", ends), ("axes", cut)):
            graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), f"{name}:{part}"))
            inputs.append(f"{name}:{part}")
        slices.append(helper.make_node("Slice", inputs, [name], name=f"{name}:slice"))
    nodes = [*slices, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    serialized: bytes = model.SerializeToString()
    return serialized


def weights_of(content: bytes) -> set[str]:
    """The files in which an ONNX model looks for its tensors. Raises ValueError where it is none."""
    try:
        model = onnx.load_from_string(content)
    except Exception as error:  # protobuf's own
        raise ValueError(f"it is no ONNX model: {error}") from error
    entries = [entry for tensor in _tensors(model.graph) for entry in tensor.external_data]
    return {str(entry.value) for entry in entries if entry.key == "location"}


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """All that a graph holds, and those within its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from _tensors(inner)


def _header(path: Path) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Byte offset and shape of each tensor in a safetensors file.

    It begins with the length of a header in 8 bytes; then that header, JSON, behind which offsets count.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {key: (8 + length + item["data_offsets"][0], tuple(item["shape"])) for key, item in header.items()}
