"""ONNX export of plain networks: the same exporter for a table's layers and for what is deployed."""

from __future__ import annotations

import io
import warnings

import torch
from torch import nn

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


def as_onnx(network: nn.Module | bytes, input_shape: tuple[int, ...]) -> bytes:
    """The ONNX model of a network that may be one already."""
    return network if isinstance(network, bytes) else to_onnx(network, input_shape)
