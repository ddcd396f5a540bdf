"""torch itself: exported programs, run as they are or compiled, on the processor or a CUDA device."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from onceforall.devices.device import Device, Files, Images, Kept, Model, Session, Shape, quietly
from onceforall.errors import InvalidConfiguration
from onceforall.nn.subnet import channels_last

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[None]:
    """torch with this number of threads; the number belongs to the whole process, so it is put back."""
    before = torch.get_num_threads()
    if before != threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if before != threads:
            torch.set_num_threads(before)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """CUDA whose fp32 is fp32; the settings belong to the whole process, so they are put back.

    By default torch lets convolutions round their inputs to TF32 (10 bits of mantissa), and a user may have
    allowed that for matrix products: outputs are then 1e-3 off.
    """
    backends: Any = torch.backends
    places = (backends.cuda.matmul, backends.mkldnn.matmul, backends.cudnn.rnn, backends.cudnn.conv)
    before = [place.fp32_precision for place in places]
    products = None
    with contextlib.suppress(RuntimeError):  # old and new settings differ: torch follows the new ones, put back below
        products = torch.get_float32_matmul_precision()
    # The old settings too: torch does not compile where the two differ.
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = False
    for place in places:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products or "highest")
        backends.cudnn.allow_tf32 = before[-1] == "tf32"
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


class TorchSession(Session):
    """A module on a device, with its input in channels_last."""

    def __init__(self, module: Any, precision: str, target: str, threads: int, input_shape: Shape) -> None:
        self._module, self._dtype, self._target, self._threads = module, DTYPES[precision], target, threads
        self.feed(torch.zeros(input_shape).numpy())
        for _ in range(2):  # compiles where it is to be compiled
            self.run()

    def feed(self, images: Images) -> None:
        tensor = torch.from_numpy(images).to(self._target, self._dtype)
        self._input = tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    def run(self) -> None:
        with pinned(self._threads), torch.no_grad():
            if self._target == "cpu":
                self._output: Tensor = self._module(self._input)
                return
            with full_precision():
                self._output = self._module(self._input)
            torch.cuda.synchronize(self._target)

    def output(self) -> Images:
        result: Images = self._output.detach().cpu().float().contiguous().numpy()
        return result.copy()


class TorchDevice(Device):
    """Exported programs (.pt2) on the processor, operation by operation; weights and images in channels_last."""

    name = "torch"
    title = "torch, eager, this machine's processor"
    suffixes = (".pt2",)
    precisions = tuple(DTYPES)
    packages = ("torch",)
    loads_fast = False
    compiled: ClassVar[bool] = False
    target: ClassVar[str] = "cpu"

    def __init__(self, threads: int = 1, precision: str = "fp32") -> None:
        super().__init__(threads, precision)
        if self.target == "cuda" and not torch.cuda.is_available():
            raise InvalidConfiguration(f"{self.name} needs a CUDA device and a torch built for it: this one sees none")
        if self.compiled:
            _require_compiler(self.name)

    def describe(self) -> dict[str, Any]:
        gpu = {"gpu": torch.cuda.get_device_name()} if self.target == "cuda" else {}
        mode = "compiled" if self.compiled else "eager"
        return self.described(f"torch {torch.__version__}", mode=mode, target=self.target, **gpu)

    def convert(self, network: Model, input_shape: Shape, calibration: Images | None = None, kept: Kept = ()) -> Files:
        dtype = DTYPES[self.precision]
        module = self.own_module(network, kept).to(dtype)
        buffer = io.BytesIO()
        with pinned(self.threads), quietly():
            torch.export.save(torch.export.export(module, (torch.zeros(input_shape, dtype=dtype),)), buffer)
        return {".pt2": buffer.getvalue()}

    def load(self, files: Files, input_shape: Shape) -> Session:
        with pinned(self.threads), quietly():
            program = torch.export.load(io.BytesIO(files[".pt2"]))
            if self.target != "cpu":
                from torch.export.passes import move_to_device_pass

                program = move_to_device_pass(program, self.target)
            module: Any = channels_last(program.module())
            if self.compiled:
                module = torch.compile(module, options={"freezing": True})
            return TorchSession(module, self.precision, self.target, self.threads, input_shape)


class CompiledTorchDevice(TorchDevice):
    """The same, compiled by torch's inductor with frozen weights: seconds a network."""

    name = "torch-compiled"
    title = "torch, compiled by inductor, this machine's processor"
    compiled = True


class CudaTorchDevice(TorchDevice):
    """Exported programs on a CUDA device; a run ends when the device has finished."""

    name = "torch-cuda"
    title = "torch, eager, a CUDA device"
    target = "cuda"


class CompiledCudaTorchDevice(CudaTorchDevice):
    """The same, compiled by torch's inductor with frozen weights."""

    name = "torch-cuda-compiled"
    title = "torch, compiled by inductor, a CUDA device"
    compiled = True


def _require_compiler(name: str) -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:
        raise InvalidConfiguration(f"{name} needs a C++ compiler, such as g++: torch finds none") from error
