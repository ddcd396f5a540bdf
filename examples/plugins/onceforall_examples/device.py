"""A device: ONNX's own reference evaluator, which computes every operation with numpy, slowly and by the book.

ofa profile --device onnx-reference --out reference.json
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from onceforall.devices.device import Device, Files, Images, Kept, Model, Session, Shape
from onceforall.devices.onnx import INPUT, as_onnx


class OnnxReferenceSession(Session):
    """An ONNX model in the evaluator."""

    def __init__(self, model: bytes) -> None:
        self._evaluator = ReferenceEvaluator(onnx.load_from_string(model))

    def feed(self, images: Images) -> None:
        self._inputs = {INPUT: images}

    def run(self) -> None:
        self._outputs = self._evaluator.run(None, self._inputs)

    def output(self) -> Images:
        return np.array(self._outputs[0], np.float32)


class OnnxReferenceDevice(Device):
    """The evaluator on this machine's processor. Its files are those of ONNX."""

    name = "onnx-reference"
    title = "ONNX's reference evaluator (numpy)"
    suffixes = (".onnx",)
    packages = ("onnx",)

    def describe(self) -> dict[str, Any]:
        return self.described(f"onnx {onnx.__version__}")

    def convert(self, network: Model, input_shape: Shape, calibration: Images | None = None, kept: Kept = ()) -> Files:
        self.check_kept(kept)
        return {".onnx": as_onnx(network, input_shape)}

    def load(self, files: Files, input_shape: Shape) -> Session:
        return OnnxReferenceSession(files[".onnx"])
