"""ONNX Runtime on this machine's processor, fp32."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from onceforall.devices.device import Device, Run
from onceforall.devices.onnx import to_onnx
from onceforall.errors import InvalidConfiguration

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime


class OnnxRuntimeDevice(Device):
    """ONNX Runtime's CPU provider with a fixed number of threads."""

    def __init__(self, threads: int = 1) -> None:
        if threads < 1:
            raise InvalidConfiguration(f"threads {threads}: expected at least 1")
        self.name = "onnxruntime"
        self.threads = threads

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "runtime": f"onnxruntime {onnxruntime.__version__}",
            "provider": "CPUExecutionProvider",
            "threads": self.threads,
            "precision": "fp32",
            "batch": 1,
            "processor": _processor(),
            "machine": platform.machine(),
            "system": platform.system(),
        }

    def prepare(self, network: nn.Module, input_shape: tuple[int, ...]) -> Run:
        session = self.session(to_onnx(network, input_shape))
        feed = {"image": np.random.default_rng(0).standard_normal(input_shape, np.float32)}

        def run() -> None:
            session.run(None, feed)

        return run

    def session(self, model: bytes | Path) -> onnxruntime.InferenceSession:
        """A session of an ONNX model with this device's settings."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )

    def logits(self, session: onnxruntime.InferenceSession, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Output of a session for one batch of the size that it was exported with."""
        output: NDArray[np.float32] = session.run(None, {"image": image})[0]
        return output


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
