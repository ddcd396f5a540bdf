"""ncnn on this machine's processor: fp32 and bf16. Converted by pnnx from the traced module or from ONNX."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onceforall.devices.device import Device, Files, Images, Kept, Model, Session, Shape, from_disk, on_disk, quietly
from onceforall.errors import InvalidConfiguration


class NcnnSession(Session):
    """A net; each run makes an extractor, as every use of ncnn does."""

    def __init__(self, ncnn: Any, net: Any) -> None:
        self._ncnn, self._net = ncnn, net
        self._input, self._output = net.input_indexes()[0], net.output_indexes()[0]

    def feed(self, images: Images) -> None:
        self._image = np.ascontiguousarray(images[0])  # the Mat reads it in place
        self._mat = self._ncnn.Mat(self._image)

    def run(self) -> None:
        extractor = self._net.create_extractor()
        extractor.input(self._input, self._mat)
        failed, self._result = extractor.extract(self._output)
        if failed:
            raise RuntimeError(f"ncnn: extracting the output failed with {failed}")

    def output(self) -> Images:
        values = np.array(self._result, np.float32)
        return values[None] if values.ndim == 3 else values.reshape(1, -1)  # a feature map, or logits


class NcnnDevice(Device):
    """ncnn's CPU layers with a fixed number of threads, batch 1 only. Its files are .param and .bin."""

    name = "ncnn"
    title = "ncnn, this machine's processor"
    suffixes = (".param", ".bin")
    precisions = ("fp32", "bf16")
    packages = ("ncnn", "pnnx")
    extra = "ncnn"

    def __init__(self, threads: int = 1, precision: str = "fp32") -> None:
        super().__init__(threads, precision)
        self._ncnn, self._pnnx = self.needs("ncnn"), self.needs("pnnx")

    def describe(self) -> dict[str, Any]:
        return self.described(f"ncnn {self._ncnn.__version__}")

    def convert(self, network: Model, input_shape: Shape, calibration: Images | None = None, kept: Kept = ()) -> Files:
        self.check_kept(kept)
        if input_shape[0] != 1:
            raise InvalidConfiguration(f"batch {input_shape[0]}: ncnn takes one image at a time")
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "network.onnx" if isinstance(network, bytes) else "network.pt")
            if isinstance(network, bytes):
                source.write_bytes(network)
            else:
                with quietly(), torch.no_grad():  # tracing is deprecated, but what pnnx reads
                    torch.jit.save(torch.jit.trace(network.eval(), torch.zeros(input_shape)), str(source))
            shape = ",".join(map(str, input_shape))
            command = [self._pnnx.EXEC_PATH, str(source), f"inputshape=[{shape}]", "fp16=0"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            path = Path(folder, "network.ncnn.param")
            if done.returncode or not all(path.with_suffix(suffix).exists() for suffix in self.suffixes):
                raise InvalidConfiguration(f"pnnx cannot convert this network: {done.stderr[-500:]}")
            return from_disk(path, self.suffixes)

    def load(self, files: Files, input_shape: Shape) -> Session:
        net = self._ncnn.Net()
        options = net.opt
        options.num_threads = self.threads
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False  # ARM's default
        options.use_bf16_storage = self.precision == "bf16"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "network")
            on_disk(path, files)
            if net.load_param(f"{path}.param") or net.load_model(f"{path}.bin"):
                raise InvalidConfiguration("ncnn cannot load this network: convert it again")
        return NcnnSession(self._ncnn, net)
