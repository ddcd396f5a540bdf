"""ONNX Runtime on this machine's processor."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from onceforall.devices.device import Device, Files, Images, Session, Shape
from onceforall.devices.machine import describe_machine
from onceforall.devices.onnx import as_onnx

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime


class OnnxRuntimeSession(Session):
    """An ONNX model in a session of the CPU provider."""

    def __init__(self, model: bytes, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._name = self._session.get_inputs()[0].name
        self._output: list[Images] = []

    def feed(self, images: Images) -> None:
        self._feed = {self._name: images}

    def run(self) -> None:
        self._output = self._session.run(None, self._feed)

    def output(self) -> Images:
        return self._output[0]


class OnnxRuntimeDevice(Device):
    """ONNX Runtime's CPU provider with a fixed number of threads."""

    name = "onnxruntime"

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "runtime": f"onnxruntime {onnxruntime.__version__}",
            "provider": "CPUExecutionProvider",
            "threads": self.threads,
            "precision": self.precision,
            **describe_machine(),
        }

    def convert(self, network: nn.Module | bytes, input_shape: Shape, calibration: Images | None = None) -> Files:
        return {".onnx": as_onnx(network, input_shape)}

    def load(self, files: Files, input_shape: Shape) -> Session:
        return OnnxRuntimeSession(files[".onnx"], self.threads)
