"""ExecuTorch with XNNPACK on this machine's processor: fp32, and int8 after PT2E quantisation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from onceforall.devices.device import Device, Files, Images, Kept, Model, Session, Shape, quietly
from onceforall.devices.torch import pinned


class ExecuTorchSession(Session):
    """The method `forward` of a program."""

    def __init__(self, program: Any) -> None:
        self._program = program  # the method reads its bytes, and does not keep them
        self._method = program.load_method("forward")

    def feed(self, images: Images) -> None:
        self._inputs = [torch.from_numpy(images).contiguous()]

    def run(self) -> None:
        self._outputs = self._method.execute(self._inputs)

    def output(self) -> Images:
        result: Images = self._outputs[0].float().numpy().copy()
        return result


class ExecuTorchDevice(Device):
    """ExecuTorch's runtime; XNNPACK takes what it can, portable kernels do the rest. Its files are .pte.

    The thread pool belongs to the process: `load` sets its size, so load and run networks of one number
    of threads at a time.
    """

    name = "executorch"
    title = "ExecuTorch (XNNPACK), this machine's processor"
    suffixes = (".pte",)
    precisions = ("fp32", "int8")
    packages = ("executorch", "torchao")
    extra = "executorch"
    keeps_layers = True

    def __init__(self, threads: int = 1, precision: str = "fp32") -> None:
        super().__init__(threads, precision)
        self._library = self.needs("executorch.extension.pybindings.portable_lib")

    def describe(self) -> dict[str, Any]:
        return self.described(f"executorch {self.needs('executorch.version').__version__}", delegate="XNNPACK")

    def convert(self, network: Model, input_shape: Shape, calibration: Images | None = None, kept: Kept = ()) -> Files:
        module: Any = self.own_module(network, kept)
        module = module.to(memory_format=torch.contiguous_format)  # its passes expect weights as they are in shape
        sample = (torch.zeros(input_shape),)
        with pinned(self.threads), torch.no_grad(), quietly():
            partitioner = self.needs("executorch.backends.xnnpack.partition.xnnpack_partitioner").XnnpackPartitioner()
            if self.precision == "int8":
                module = self._quantise(module, sample, self.calibration_inputs(calibration, input_shape), kept)
            program = torch.export.export(module, sample)
            lower = self.needs("executorch.exir").to_edge_transform_and_lower
            return {".pte": bytes(lower(program, partitioner=[partitioner]).to_executorch().buffer)}

    def load(self, files: Files, input_shape: Shape) -> Session:
        with quietly():
            if self._library._threadpool_get_thread_count() != self.threads:
                self._library._unsafe_reset_threadpool(self.threads)
            program = self.needs("executorch.runtime").Runtime.get().load_program(files[".pte"])
            return ExecuTorchSession(program)

    def _quantise(
        self, module: nn.Module, sample: tuple[torch.Tensor], inputs: Iterator[Images], kept: Kept
    ) -> nn.Module:
        """int8 weights, one scale a channel, and int8 activations whose ranges `inputs` set."""
        pt2e = self.needs("torchao.quantization.pt2e.quantize_pt2e")
        xnnpack = self.needs("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
        quantizer = xnnpack.XNNPACKQuantizer()
        quantizer.set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
        quantizer.set_filter_function(lambda node: _place(node) not in kept)
        prepared = pt2e.prepare_pt2e(torch.export.export(module, sample).module(), quantizer)
        for images in inputs:
            prepared(torch.from_numpy(images))
        converted: nn.Module = pt2e.convert_pt2e(prepared)
        return converted


def _place(node: torch.fx.Node) -> int:
    """Which layer of an nn.Sequential an operation belongs to: -1 for none."""
    paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    first = paths[-1].partition(".")[0] if paths else ""
    return int(first) if first.isdecimal() else -1
