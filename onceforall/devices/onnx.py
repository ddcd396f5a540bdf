"""ONNX export of plain networks: the same exporter for a table's layers and for what is deployed."""

from __future__ import annotations

import io
import re
import warnings

import onnx
import torch
from torch import nn

from onceforall.devices.device import Kept, Model, check_places

OPSET = 17
INPUT = "image"
OUTPUT = "logits"


def to_onnx(network: nn.Module, input_shape: tuple[int, ...]) -> bytes:
    """The ONNX model of a network in evaluation mode, with a fixed input "image" and an output "logits".

    torch's TorchScript-based exporter: it takes 20 to 150 ms a network, where the newer one takes
    10 s and a latency table needs hundreds.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation of this exporter, and its own internals
        torch.onnx.export(
            network.eval(),
            (torch.zeros(input_shape),),
            buffer,  # type: ignore[arg-type]
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamo=False,
        )
    return buffer.getvalue()


def as_onnx(network: Model, input_shape: tuple[int, ...]) -> bytes:
    """The ONNX model of a network that may be one already."""
    return network if isinstance(network, bytes) else to_onnx(network, input_shape)


def nodes_of_layers(model: bytes, layers: Kept) -> list[onnx.NodeProto]:
    """The nodes that some layers of an nn.Sequential became, by place from 0: the exporter names them /PLACE/...

    Raises InvalidConfiguration where the model has no such layer.
    """
    if not layers:
        return []
    found: dict[int, list[onnx.NodeProto]] = {}
    for node in onnx.load_from_string(model).graph.node:
        if match := re.match(r"/(\d+)/", node.name):
            found.setdefault(int(match[1]), []).append(node)
    check_places(layers, max(found, default=-1) + 1)
    return [node for layer in sorted(set(layers)) for node in found.get(layer, ())]


def without_aliases(model: bytes) -> bytes:
    """The same model where every weight is stored under its own name.

    The exporter stores equal tensors once, such as biases of zeros, and makes the others Identity nodes: quantisers
    take those for activations.
    """
    loaded = onnx.load_from_string(model)
    graph = loaded.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Identity" and node.input[0] in stored]:
        copied = onnx.TensorProto()
        copied.CopyFrom(stored[node.input[0]])
        copied.name = node.output[0]
        graph.initializer.append(copied)
        graph.node.remove(node)
    result: bytes = loaded.SerializeToString(deterministic=True)
    return result
