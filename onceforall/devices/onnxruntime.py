"""ONNX Runtime on this machine's processor: fp32, and int8 after static quantisation."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onceforall.devices.device import Device, Files, Images, Kept, Model, Session, Shape, quietly
from onceforall.devices.measure import OnnxRuntime
from onceforall.devices.onnx import INPUT, as_onnx, nodes_of_layers, without_aliases

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

onnxruntime.set_default_logger_severity(3)  # the quantiser's own sessions warn about what it leaves behind


class OnnxRuntimeDevice(Device):
    """ONNX Runtime's CPU provider with a fixed number of threads."""

    name = "onnxruntime"
    title = "ONNX Runtime, this machine's processor"
    suffixes = (".onnx",)
    precisions = ("fp32", "int8")
    packages = ("onnxruntime",)
    keeps_layers = True

    def describe(self) -> dict[str, Any]:
        return self.described(f"onnxruntime {onnxruntime.__version__}", provider="CPUExecutionProvider")

    def convert(self, network: Model, input_shape: Shape, calibration: Images | None = None, kept: Kept = ()) -> Files:
        self.check_kept(kept)
        model = as_onnx(network, input_shape)
        if self.precision == "int8":
            nodes = [node.name for node in nodes_of_layers(model, kept)]
            model = quantise(model, self.calibration_inputs(calibration, input_shape), nodes)
        return {".onnx": model}

    def load(self, files: Files, input_shape: Shape) -> Session:
        return OnnxRuntime(files[".onnx"], self.threads)


def quantise(model: bytes, inputs: Iterator[Images], kept: Sequence[str] = ()) -> bytes:
    """An ONNX model with int8 weights, one scale a channel, and uint8 activations whose ranges `inputs` set (QDQ).

    `kept` names the nodes that stay in floating point.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Images] | None:
            images = next(inputs, None)
            return None if images is None else {INPUT: images}

    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, quantised = (Path(folder, f"{name}.onnx") for name in ("plain", "prepared", "quantised"))
        plain.write_bytes(without_aliases(model))
        # Shapes are fixed: nothing symbolic to infer. Optimised, h-swish would become two nodes without names, and
        # the product of the two would be quantised: no faster, less exact, and no layer's to keep.
        with quietly():  # it warns of every layer norm, whose weights have no channels
            quant_pre_process(plain, prepared, skip_symbolic_shape=True, skip_optimization=True)
            quantize_static(
                prepared,
                quantised,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(kept),
            )
        return quantised.read_bytes()
