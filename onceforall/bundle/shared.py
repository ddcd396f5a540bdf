"""Tensors that are leading parts of one another, stored once: in a safetensors file that ONNX graphs point into."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from onceforall.nn.elastic import leading


@dataclass(frozen=True)
class Place:
    """The first entries along each dimension of the stored tensor `key`."""

    key: str
    shape: tuple[int, ...]

    def cut(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """A view into the stored tensor."""
        return leading(tensors[self.key], *self.shape)

    def to_json(self) -> list[Any]:
        """`[key, shape]`."""
        return list(astuple(self))


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


@dataclass(frozen=True)
class Pool:
    """A safetensors file as ONNX external data: byte offset and shape of each tensor in it."""

    file: str
    tensors: Mapping[str, tuple[int, tuple[int, ...]]]

    @classmethod
    def of(cls, path: Path) -> Pool:
        """Reads the header: its length in 8 bytes, then JSON; offsets count from behind it."""
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        start = 8 + length
        return cls(
            path.name, {key: (start + item["data_offsets"][0], tuple(item["shape"])) for key, item in header.items()}
        )

    def refer(self, model: onnx.ModelProto, places: Mapping[str, Place]) -> bytes:
        """The model with its initialisers replaced by places in the file; their names are those of `places`.

        The first rows of a tensor lie together, so they are read as they are. A cut in any other
        dimension becomes a Slice of the whole tensor, which ONNX Runtime computes once as it loads.
        """
        graph = model.graph
        own = {item.name: item for item in graph.initializer}
        slices = []
        for name in own.keys() & places.keys():
            place, initializer = places[name], own[name]
            offset, whole = self.tensors[place.key]
            if place.shape[1:] == whole[1:]:
                self._point(initializer, offset, place.shape)
                continue
            initializer.name = f"{name}:whole"
            self._point(initializer, offset, whole)
            cut = [axis for axis, size in enumerate(place.shape) if size != whole[axis]]
            inputs = [initializer.name]
            for part, values in (
                ("starts", [0] * len(cut)),
                ("ends", [place.shape[axis] for axis in cut]),
                ("axes", cut),
            ):
                graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), f"{name}:{part}"))
                inputs.append(f"{name}:{part}")
            slices.append(helper.make_node("Slice", inputs, [name], name=f"{name}:slice"))
        nodes = [*slices, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
        serialized: bytes = model.SerializeToString()
        return serialized

    def _point(self, initializer: TensorProto, offset: int, shape: tuple[int, ...]) -> None:
        name, kind = initializer.name, initializer.data_type
        initializer.Clear()
        initializer.name, initializer.data_type = name, kind
        initializer.dims.extend(shape)
        initializer.data_location = TensorProto.EXTERNAL
        size = math.prod(shape) * 4
        for key, value in (("location", self.file), ("offset", offset), ("length", size)):
            entry = initializer.external_data.add()
            entry.key, entry.value = key, str(value)
