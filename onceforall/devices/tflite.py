"""What .tflite files need beyond what converter and quantizer write, so that every runtime of the format reads them."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import numpy as np

from onceforall.errors import InvalidConfiguration

LARGEST = 2**31  # bytes: no flatbuffer is larger; weights beyond that have to lie behind it
BIAS = 2**30  # largest int32 bias: half the range, as sums of products are added to it


def self_contained(content: bytes) -> bytes:
    """The model with everything inside the flatbuffer. Larger ones than 2 GB stay as they are.

    Quantizers move weights behind it, where small and old runtimes do not look: TensorFlow Lite Micro takes them for
    zeros, and says nothing. Raises InvalidConfiguration where some still lie there.
    """
    from ai_edge_litert.tools import flatbuffer_utils as files

    if not outside(content) or len(content) >= LARGEST:
        return content
    result = _packed(files.read_model_from_bytearray(content))
    if left := outside(result):
        raise InvalidConfiguration(
            f"{left} bytes of the .tflite lie behind its flatbuffer, where not every runtime looks"
        )
    return result


def outside(content: bytes) -> int:
    """How many bytes of a model's weights and options lie behind its flatbuffer."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content, 0)
    buffers = [model.Buffers(place) for place in range(model.BuffersLength())]
    graphs = [model.Subgraphs(place) for place in range(model.SubgraphsLength())]
    operations = [graph.Operators(place) for graph in graphs for place in range(graph.OperatorsLength())]
    found = sum(buffer.Size() for buffer in buffers if buffer.Offset() > 1)
    return int(found + sum(op.LargeCustomOptionsSize() for op in operations if op.LargeCustomOptionsOffset() > 1))


def with_whole_biases(quantised: bytes, plain: bytes) -> bytes:
    """The int8 model with those biases of the plain one that its quantizer clipped to the range of int32.

    A bias has the scale of the input times that of the weights. Where training has all but switched off the weights of
    a channel, and its bias alone counts, that is too small for it: as TensorFlow's converter does, the scale of those
    weights is raised until the bias fits.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils as files

    model, source = files.read_model_from_bytearray(quantised), files.read_model_from_bytearray(plain)
    (graph,), (floats,) = model.subgraphs, source.subgraphs
    used = Counter(place for op in graph.operators for place in op.inputs)
    held = Counter(tensor.buffer for tensor in graph.tensors)

    def store(op: Any, which: int, values: Any, scale: Any) -> None:
        """In a tensor of its own: equal constants are stored once, and need not be equal any more."""
        tensor = graph.tensors[op.inputs[which]]
        if used[op.inputs[which]] > 1 or held[tensor.buffer] > 1:
            tensor = copy.deepcopy(tensor)
            op.inputs[which], tensor.buffer = len(graph.tensors), len(model.buffers)
            graph.tensors.append(tensor)
            model.buffers.append(schema.BufferT())
        model.buffers[tensor.buffer].data = np.frombuffer(values.tobytes(), np.uint8)
        tensor.quantization.scale = scale.tolist()

    # In the order of the plain model: what the quantizer inserts has one input.
    for op, original in zip(_with_bias(graph), _with_bias(floats), strict=True):
        weights, bias = (graph.tensors[place] for place in op.inputs[1:])
        if bias.type != schema.TensorType.INT32 or weights.type != schema.TensorType.INT8:
            continue
        exact = _values(source, floats.tensors[original.inputs[2]], np.float32)
        scale = np.array(bias.quantization.scale)
        factor = np.maximum(np.abs(exact) / (scale * BIAS), 1)
        if factor.max() == 1:
            continue
        factor = factor if scale.size > 1 else factor.max(keepdims=True)
        axis = weights.quantization.quantizedDimension
        along = np.moveaxis(_values(model, weights, np.int8).reshape(weights.shape), axis, -1)
        smaller = np.moveaxis(np.round(along / factor).astype(np.int8), -1, axis)
        store(op, 1, smaller, factor * weights.quantization.scale)
        store(op, 2, np.round(exact / (factor * scale)).astype(np.int32), factor * scale)
    return _packed(model)


def _packed(model: Any) -> bytes:
    """The file of a model, with every buffer inside."""
    from ai_edge_litert.tools import flatbuffer_utils as files

    for buffer in model.buffers:
        if isinstance(buffer.data, bytes | bytearray | memoryview):  # which would be copied byte by byte
            buffer.data = np.frombuffer(buffer.data, np.uint8)
    return bytes(files.convert_object_to_bytearray(model))


def _with_bias(graph: Any) -> list[Any]:
    """The operations of a graph that have an input, weights and a bias."""
    return [op for op in graph.operators if len(op.inputs) == 3 and op.inputs[2] >= 0]


def _values(model: Any, tensor: Any, kind: type) -> Any:
    """Of a constant, flat."""
    return np.frombuffer(bytes(model.buffers[tensor.buffer].data), kind)
