"""LiteRT (TensorFlow Lite) on this machine's processor: fp32, and int8 after static quantisation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch

from onceforall.devices.device import Device, Files, Images, Kept, Model, Session, Shape, layers_of, quietly
from onceforall.devices.measure import LiteRt, LiteRtBuiltin
from onceforall.devices.tflite import self_contained, with_whole_biases


class LiteRtDevice(Device):
    """LiteRT's interpreter with XNNPACK and a fixed number of threads. Its .tflite files take [n, h, w, c]."""

    name = "litert"
    title = "LiteRT (XNNPACK), this machine's processor"
    suffixes = (".tflite",)
    precisions = ("fp32", "int8")
    packages = ("ai-edge-litert", "litert-torch", "ai-edge-quantizer")
    extra = "litert"
    keeps_layers = True
    session: ClassVar[type[LiteRt]] = LiteRt

    def __init__(self, threads: int = 1, precision: str = "fp32") -> None:
        super().__init__(threads, precision)
        self.needs("ai_edge_litert.interpreter")

    def describe(self) -> dict[str, Any]:
        delegate = "XNNPACK" if self.session.delegate else "none"
        return self.described(f"litert {self.needs('ai_edge_litert').__version__}", delegate=delegate)

    def convert(self, network: Model, input_shape: Shape, calibration: Images | None = None, kept: Kept = ()) -> Files:
        module = self.own_module(network, kept)  # its converter changes modules
        layers = layers_of(module)
        litert_torch = self.needs("litert_torch")
        batch, channels, height, width = input_shape
        with quietly(), torch.no_grad():
            is_map = module(torch.zeros(input_shape)).ndim == 4
            module = litert_torch.to_channel_last_io(module, args=[0], outputs=[0] if is_map else [])
            converted = litert_torch.convert(module.eval(), (torch.zeros(batch, height, width, channels),))
            model = bytes(converted.model_content())
            everything = bool(layers) and len(set(kept)) == layers  # then its quantiser has nothing to do, and fails
            if self.precision == "int8" and not everything:
                model = self._quantise(model, self.calibration_inputs(calibration, input_shape), kept, layers)
            return {".tflite": self_contained(model)}

    def load(self, files: Files, input_shape: Shape) -> Session:
        return self.session(files[".tflite"], self.threads)

    def _quantise(self, model: bytes, inputs: Iterator[Images], kept: Kept, layers: int) -> bytes:
        """int8 weights, one scale a channel, and int8 activations whose ranges `inputs` set, input and output too.

        The input of a network that keeps its first layer stays in floating point as well, the output of
        one that keeps its last.
        """
        manager = self.needs("ai_edge_quantizer.recipe_manager").RecipeManager()
        manager.load_quantization_recipe(self.needs("ai_edge_quantizer.recipe").static_wi8_ai8())
        if kept:
            never = self.needs("ai_edge_quantizer.algorithm_manager").AlgorithmName.NO_QUANTIZE
            operations = self.needs("ai_edge_quantizer.qtyping").TFLOperationName
            # A tensor is named after its modules, /SubNetwork_wrapped/ConvNormAct_0/Conv2d_conv; or is the output.
            # Behind a ; are names of others whose constants it shares.
            places = "|".join(map(str, sorted(kept)))
            names = rf"^[^;]*_wrapped/[^/;]*_({places})[/;]" + (
                "|^serving_default_output" if layers - 1 in kept else ""
            )
            manager.add_quantization_config(names, operations.ALL_SUPPORTED, algorithm_key=never)
            if 0 in kept:
                manager.add_quantization_config("^", operations.INPUT, algorithm_key=never)
        # The quantizer's own calibration takes moving averages: ranges of the first input, nearly.
        extremes = self.needs("ai_edge_quantizer.utils.qsv_utils").min_max_update
        calibrator = self.needs("ai_edge_quantizer.calibrator").Calibrator(
            model, num_threads=self.threads, qsv_update_func=extremes
        )
        ((signature, arguments),) = calibrator.get_signature_list().items()
        samples = [{arguments["inputs"][0]: images.transpose(0, 2, 3, 1).copy()} for images in inputs]
        calibrator.calibrate({signature: samples}, manager)
        quantizer = self.needs("ai_edge_quantizer.quantizer").Quantizer(model)
        quantizer.load_quantization_recipe(manager.get_quantization_recipe())
        quantised = bytes(quantizer.quantize(calibrator.get_model_qsvs()).quantized_model)
        return with_whole_biases(quantised, model)


class LiteRtBuiltinDevice(LiteRtDevice):
    """The same files with LiteRT's own kernels.

    Which of the two is faster depends on the network: on one x86 processor the delegate was nine times slower for
    the largest network of a space in int8, and four times faster for its smallest in fp32.
    """

    name = "litert-builtin"
    title = "LiteRT (built-in kernels), this machine's processor"
    session = LiteRtBuiltin
