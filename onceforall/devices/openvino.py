"""OpenVINO on this machine's processor: fp32, bf16, and int8 after NNCF's post-training quantisation."""

from __future__ import annotations

import importlib.util
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onceforall.devices.device import Device, Files, Images, Kept, Model, Session, Shape, from_disk, on_disk, quietly
from onceforall.devices.onnx import as_onnx, nodes_of_layers
from onceforall.errors import InvalidConfiguration

# Without a hint, processors with AMX run fp32 networks in bf16 and nobody says so.
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class OpenVinoSession(Session):
    """A compiled model with one request."""

    def __init__(self, openvino: Any, compiled: Any) -> None:
        self._openvino = openvino
        self._request = compiled.create_infer_request()

    def feed(self, images: Images) -> None:
        self._images = np.ascontiguousarray(images)  # the request reads it in place
        self._request.set_input_tensor(self._openvino.Tensor(self._images, shared_memory=True))

    def run(self) -> None:
        self._request.infer()

    def output(self) -> Images:
        result: Images = self._request.get_output_tensor().data.astype(np.float32)
        return result


class OpenVinoDevice(Device):
    """OpenVINO's CPU plug-in: latency hint, one stream, a fixed number of threads. Its files are IR: .xml and .bin."""

    name = "openvino"
    title = "OpenVINO, this machine's processor"
    suffixes = (".xml", ".bin")
    precisions = ("fp32", "bf16", "int8")
    packages = ("openvino", "nncf")
    extra = "openvino"
    keeps_layers = True
    loads_fast = False  # compiles for a fifth of a second

    def __init__(self, threads: int = 1, precision: str = "fp32") -> None:
        super().__init__(threads, precision)
        _send_nothing()
        self._openvino = self.needs("openvino")
        if precision == "int8":
            self.needs("nncf").set_log_level(logging.ERROR)
        self._core = self._openvino.Core()
        if precision == "bf16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise InvalidConfiguration(
                "precision 'bf16': this processor has no bf16 instructions (AVX512-BF16 or AMX on x86), and OpenVINO "
                "would run fp32; use fp32 or int8"
            )

    def describe(self) -> dict[str, Any]:
        return self.described(f"openvino {self._openvino.__version__}", plugin="CPU", streams=1)

    def convert(self, network: Model, input_shape: Shape, calibration: Images | None = None, kept: Kept = ()) -> Files:
        self.check_kept(kept)
        source = as_onnx(network, input_shape)
        model = self._core.read_model(source)
        if self.precision == "int8":
            nncf = self.needs("nncf")
            inputs = list(self.calibration_inputs(calibration, input_shape))
            # By default ranges are means of the inputs' extremes, and clip what is brighter than most.
            ranges = self.needs("nncf.quantization.range_estimator").RangeEstimatorParametersSet.MINMAX
            with quietly():
                model = nncf.quantize(
                    model,
                    nncf.Dataset(inputs),
                    subset_size=len(inputs),
                    ignored_scope=nncf.IgnoredScope(names=_operations(model, nodes_of_layers(source, kept))),
                    advanced_parameters=nncf.AdvancedQuantizationParameters(activations_range_estimator_params=ranges),
                )
        # Names carry a counter of the whole process: without new ones, no two files of a network are equal.
        for number, operation in enumerate(model.get_ordered_ops()):
            if operation.get_type_name() not in ("Parameter", "Result"):
                operation.set_friendly_name(f"{operation.get_type_name()}_{number}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "network.xml")
            self._openvino.save_model(model, path, compress_to_fp16=False)
            return from_disk(path, self.suffixes)

    def load(self, files: Files, input_shape: Shape) -> Session:
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": HINTS[self.precision],
        }
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "network.xml")
            on_disk(path, files)
            compiled = self._core.compile_model(self._core.read_model(path), "CPU", settings)
        return OpenVinoSession(self._openvino, compiled)


def _operations(model: Any, nodes: Sequence[Any]) -> list[str]:
    """The operations that ONNX nodes became: of a node's name, or one below it, or of its output, as the last one's."""
    names = {name for node in nodes for name in (node.name, *node.output)}
    found = (operation.get_friendly_name() for operation in model.get_ordered_ops())
    return [name for name in found if names & {name, name.rpartition("/")[0]}]


def _send_nothing() -> None:
    """OpenVINO and NNCF report each use to their makers where the package `openvino_telemetry` can be imported."""
    if "openvino" not in sys.modules and importlib.util.find_spec("openvino_telemetry"):
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
