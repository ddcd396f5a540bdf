"""An export that nothing here can run: an ONNX model and the script that builds a TensorRT engine from it.

ofa specialize --latency "0.5 ms" --export tensorrt --out out
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onceforall.deploy.exports import Export
from onceforall.devices.device import Images, Shape
from onceforall.devices.onnx import to_onnx
from onceforall.files import write_atomically
from onceforall.nn.network import SubNetwork

SCRIPT = '''"""Builds network.engine from network.onnx with TensorRT: run it on the machine that will use the engine."""

from pathlib import Path

import tensorrt

logger = tensorrt.Logger(tensorrt.Logger.WARNING)
builder = tensorrt.Builder(logger)
network = builder.create_network(0)
parser = tensorrt.OnnxParser(network, logger)
if not parser.parse(Path("{model}").read_bytes()):
    raise SystemExit("\\n".join(str(parser.get_error(index)) for index in range(parser.num_errors)))
engine = builder.build_serialized_network(network, builder.create_builder_config())
Path("network.engine").write_bytes(engine)
print("network.engine takes images of shape", {shape})
'''


class TensorRTExport(Export):
    """`network.onnx` and `build_engine.py`."""

    name = "tensorrt"
    title = "a script that builds a TensorRT engine"
    runtime = "TensorRT"
    problem = "an engine is built and run on a machine with an NVIDIA GPU"

    def write(
        self, network: SubNetwork, folder: Path, input_shape: Shape, calibration: Images | None = None
    ) -> Sequence[Path]:
        model, script = folder / "tensorrt.onnx", folder / "build_engine.py"
        write_atomically(model, to_onnx(network, tuple(input_shape)))
        write_atomically(script, SCRIPT.format(model=model.name, shape=list(input_shape)))
        return [model, script]
