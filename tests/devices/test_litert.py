"""Files for LiteRT, as other runtimes of the format read them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from onceforall.devices.device import Device
from onceforall.devices.measure import random_images
from onceforall.layers import ConvSpec, LayerSpec, LinearSpec, MBConvSpec, PoolSpec
from onceforall.nn.subnet import build, fold_batch_norm
from onceforall.testing import scramble

MakeDevice = Callable[[str, str], Device]

NETWORK: tuple[LayerSpec, ...] = (
    ConvSpec(16, 3, 8, 3, 2, "h_swish"),
    MBConvSpec(8, 8, 64, 16, 3, 1, "h_swish", 16, shortcut=False),
    MBConvSpec(8, 16, 64, 16, 3, 1, "h_swish", 16, shortcut=True),
    MBConvSpec(8, 16, 64, 16, 3, 1, "h_swish", 16, shortcut=True),
    PoolSpec(8, 16),
    LinearSpec(16, 10),
)
SHAPE = (1, 3, 16, 16)


def made() -> nn.Sequential:
    network = build(NETWORK)
    scramble(network)
    return fold_batch_norm(network)


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    return made()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return random_images((16, *SHAPE[1:])) + np.linspace(-2, 2, 16, dtype=np.float32)[:, None, None, None]


@pytest.fixture(scope="module")
def content(make_device: MakeDevice, network: nn.Sequential, images: np.ndarray) -> bytes:
    return make_device("litert-builtin", "int8").convert(network, SHAPE, images)[".tflite"]


def model_of(content: bytes) -> Any:
    schema = importlib.import_module("ai_edge_litert.schema_py_generated")
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))


def with_buffers_outside(content: bytes) -> bytes:
    """The same model as quantizers write a large one: its weights behind the flatbuffer."""
    schema = importlib.import_module("ai_edge_litert.schema_py_generated")
    flatbuffers = importlib.import_module("flatbuffers")

    def written(start: int) -> tuple[bytes, bytes]:
        model, behind = model_of(content), b""
        for buffer in model.buffers:
            if buffer.data is not None and len(buffer.data) >= 256:
                buffer.offset, buffer.size = start + len(behind), len(buffer.data)
                behind += bytes(buffer.data) + bytes(-len(buffer.data) % 16)
                buffer.data = None
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output()), behind

    inside, _ = written(1 << 20)  # offsets of any value take the same room
    start = len(inside) + -len(inside) % 16
    inside, behind = written(start)
    assert schema.Model.GetRootAs(inside, 0).BuffersLength()
    return inside.ljust(start, b"\0") + behind


def test_a_file_holds_its_weights_inside_the_flatbuffer(
    content: bytes, make_device: MakeDevice, images: np.ndarray
) -> None:
    tflite = importlib.import_module("onceforall.devices.tflite")
    assert tflite.outside(content) == 0
    scattered = with_buffers_outside(content)
    assert tflite.outside(scattered) > 4000
    mended = tflite.self_contained(scattered)
    assert tflite.outside(mended) == 0
    device = make_device("litert-builtin", "int8")
    one, other = (device.load({".tflite": each}, SHAPE)(images[:1]) for each in (content, mended))
    assert np.array_equal(one, other)


def test_what_cannot_be_brought_inside_is_an_error(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    tflite = importlib.import_module("onceforall.devices.tflite")
    scattered = with_buffers_outside(content)
    monkeypatch.setattr(tflite, "_packed", lambda model: scattered)
    with pytest.raises(tflite.InvalidConfiguration, match=r"bytes of the \.tflite lie behind its flatbuffer"):
        tflite.self_contained(scattered)


@pytest.mark.parametrize("scattered", [False, True])
def test_a_microcontrollers_runtime_computes_the_same(
    scattered: bool, content: bytes, make_device: MakeDevice, images: np.ndarray
) -> None:
    """TensorFlow Lite Micro reads what lies behind the flatbuffer as zeros; from our files it reads all."""
    pytest.importorskip("tflite_micro", reason="TensorFlow Lite Micro is not installed: pip install tflite-micro")
    runtime = importlib.import_module("tflite_micro.python.tflite_micro.runtime")
    if scattered:
        content = importlib.import_module("onceforall.devices.tflite").self_contained(with_buffers_outside(content))
    interpreter = runtime.Interpreter.from_bytes(content, arena_size=1_000_000)
    about, result = (
        details["quantization_parameters"]
        for details in (interpreter.get_input_details(0), interpreter.get_output_details(0))
    )
    session = make_device("litert-builtin", "int8").load({".tflite": content}, SHAPE)
    outputs = set()
    for image in images:
        values = np.round(image.transpose(1, 2, 0)[None] / about["scales"][0]) + about["zero_points"][0]
        interpreter.set_input(np.ascontiguousarray(values.clip(-128, 127).astype(np.int8)), 0)
        interpreter.invoke()
        found = interpreter.get_output(0).astype(np.float32)
        outputs.add(tuple(found[0]))
        expected = session(image[None]) / result["scales"][0] + result["zero_points"][0]
        assert np.abs(found - expected).max() <= 4  # steps of int8: its kernels round otherwise
    assert len(outputs) > 1  # of zeros it makes one for all


def test_a_kept_layer_keeps_what_is_its_own(make_device: MakeDevice, network: nn.Sequential) -> None:
    """Layers share constants, and the names of operations that use them say whose they were first."""
    device = make_device("litert-builtin", "int8")
    model = model_of(device.convert(network, SHAPE, kept=[1])[".tflite"])
    (graph,) = model.subgraphs
    means = [op for op in graph.operators if model.operatorCodes[op.opcodeIndex].builtinCode == 40]
    kinds = [graph.tensors[op.outputs[0]].type for op in means]  # of squeeze-excites, then of the pooling
    assert kinds == [0, 9, 9, 9]  # float32, int8


def test_biases_that_int32_cannot_hold_are_kept_whole(make_device: MakeDevice) -> None:
    """Equal weights are stored once: each of these biases has a scale of its own all the same."""
    network = made()
    with torch.no_grad():
        for place in (1, 2, 3):
            scale: Any = network[place].se
            scale.reduce.weight.fill_(1e-7)
            scale.reduce.bias.fill_(1e-6)
            scale.expand.weight.fill_(1e-8)
            scale.expand.bias.copy_(torch.tensor([-4.0, 3.0 + place]).repeat(32))
    images = random_images((8, *SHAPE[1:]))
    device = make_device("litert-builtin", "int8")
    session = device.load(device.convert(network, SHAPE, images), SHAPE)
    found = np.concatenate([session(image[None]) for image in images])
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
