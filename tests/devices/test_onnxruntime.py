from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.version_converter import convert_version
from torch import nn

from onceforall import devices
from onceforall.devices.measure import random_images
from onceforall.devices.onnx import to_onnx
from onceforall.devices.onnxruntime import OnnxRuntimeDevice
from onceforall.devices.timing import Turns
from onceforall.errors import InvalidConfiguration
from onceforall.layers import BottleneckSpec
from onceforall.nn.subnet import build, fold_batch_norm
from onceforall.space import SearchSpace


def test_an_exported_network_computes_what_torch_computes(space: SearchSpace, rng: np.random.Generator) -> None:
    device = OnnxRuntimeDevice()
    for arch in (space.smallest(), space.largest(), space.sample(rng)):
        network = fold_batch_norm(build(space.lower(arch)))
        image = torch.randn(1, 3, arch.resolution, arch.resolution)
        found = device.prepare(network, tuple(image.shape))(image.numpy())
        with torch.inference_mode():
            np.testing.assert_allclose(found, network(image).numpy(), rtol=1e-4, atol=1e-5)


def test_pooling_over_odd_feature_maps_is_exported_as_torch_computes_it(tiny_resnet_space: SearchSpace) -> None:
    """The last row and column of a 5 px map are averaged over the pixels that are there."""
    device = OnnxRuntimeDevice()
    for stride, size in ((2, 5), (2, 7), (2, 1), (3, 7)):
        block = build([BottleneckSpec(size, 8, 8, 16, stride, "relu", downsample=True)]).eval()
        image = torch.randn(1, 8, size, size)
        found = device.prepare(block, tuple(image.shape))(image.numpy())
        with torch.inference_mode():
            np.testing.assert_allclose(found, block(image).numpy(), rtol=1e-4, atol=1e-5)
    sizes = [layer.in_size for layer in tiny_resnet_space.layers(40) if isinstance(layer, BottleneckSpec)]
    assert 5 in sizes  # so whole networks, above, have such a pooling as well


def test_pooling_is_exported_as_global_average_pooling(tiny_space: SearchSpace) -> None:
    network = build(tiny_space.lower(tiny_space.largest()))
    model = onnx.load_from_string(to_onnx(network, (1, 3, 20, 20)))
    kinds = [node.op_type for node in model.graph.node]
    assert "GlobalAveragePool" in kinds
    assert "ReduceMean" not in kinds
    assert "BatchNormalization" not in kinds


def test_a_device_says_what_it_is() -> None:
    found = devices.by_name("onnxruntime", threads=2).describe()
    assert found["threads"] == 2
    assert found["precision"] == "fp32"
    assert found["processor"]


def convolved(device: OnnxRuntimeDevice, network: nn.Module | bytes, kept: Collection[int]) -> dict[str, bool]:
    """The convolutions and matrices of a converted network, for images of 20 px, and whether they compute in int8."""
    images = np.random.default_rng(0).standard_normal((4, 3, 20, 20), np.float32)
    graph = onnx.load_from_string(device.convert(network, (1, 3, 20, 20), images, kept)[".onnx"]).graph
    dequantised = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    found = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert all(dequantised >= set(node.input) or not dequantised & set(node.input[1:]) for node in found)
    return {node.name: dequantised >= set(node.input) for node in found}


def test_kept_layers_and_no_others_are_left_out_of_quantisation(tiny_space: SearchSpace) -> None:
    device = OnnxRuntimeDevice(precision="int8")
    network = fold_batch_norm(build(tiny_space.lower(tiny_space.largest())))
    assert all(convolved(device, network, ()).values())
    for kept in ([0], [1, len(network) - 1], range(len(network))):
        for name, quantised in convolved(device, network, kept).items():
            assert quantised == (int(name.split("/")[1]) not in kept), name


def test_layers_of_a_model_that_was_exported_before_are_kept_alike(tiny_space: SearchSpace) -> None:
    device = OnnxRuntimeDevice(precision="int8")
    network = fold_batch_norm(build(tiny_space.lower(tiny_space.largest())))
    model = to_onnx(network, (1, 3, 20, 20))
    assert convolved(device, model, {1, 0}) == convolved(device, network, [0, 1])


def test_layers_without_a_place_cannot_be_kept() -> None:
    device = OnnxRuntimeDevice(precision="int8")
    with pytest.raises(InvalidConfiguration, match=r"kept layers \[0\]: only an nn.Sequential has layers"):
        device.convert(nn.Conv2d(3, 3, 1), (1, 3, 4, 4), kept=[0])
    with pytest.raises(InvalidConfiguration, match=r"kept layers \[0\]: only int8 networks.* fp32"):
        OnnxRuntimeDevice().convert(nn.Conv2d(3, 3, 1), (1, 3, 4, 4), kept=[0])


def test_equal_weights_are_quantised_as_others_are() -> None:
    """The exporter stores equal tensors once."""
    device = OnnxRuntimeDevice(precision="int8")
    network = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(3)))
    for layer in network:
        nn.init.zeros_(layer.bias)
    exported = onnx.load_from_string(to_onnx(network, (1, 3, 20, 20)))
    assert "Identity" in [node.op_type for node in exported.graph.node]
    assert list(convolved(device, network, ()).values()) == [True, True, True]


def test_kept_layers_are_kept_in_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole networks leave them in fp32; a layer on its own, as a latency table times it, has none to keep."""
    device = OnnxRuntimeDevice(1, "int8").keeping((0, 1))
    assert device.describe()["kept"] == [0, 1]
    assert "kept" not in OnnxRuntimeDevice(1, "int8").describe()
    given: list[tuple[int, ...]] = []
    convert = OnnxRuntimeDevice.convert

    def spy(self: OnnxRuntimeDevice, network: Any, shape: Any, calibration: Any = None, kept: Any = ()) -> Any:
        given.append(kept)
        return convert(self, network, shape, calibration, kept)

    monkeypatch.setattr(OnnxRuntimeDevice, "convert", spy)
    layers = [nn.Conv2d(3, 3, 3) for _ in range(3)]
    jobs = [(nn.Sequential(*layers), (1, 3, 8, 8)), (nn.Sequential(layers[0]), (1, 3, 8, 8))]
    device.time(jobs, Turns(1, 0.0))
    assert given == [(0, 1), ()]
    with pytest.raises(InvalidConfiguration, match="only int8 networks have layers to keep"):
        OnnxRuntimeDevice().keeping((0,))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_another_runtime_reads_the_same_from_a_file(precision: str, tiny_space: SearchSpace) -> None:
    """ONNX's reference implementation, which knows nothing of ours; and no weight lies in another file."""
    device = devices.by_name("onnxruntime", 1, precision)
    arch = tiny_space.smallest()
    network = fold_batch_norm(build(tiny_space.lower(arch)))
    images = random_images((4, 3, arch.resolution, arch.resolution))
    shape = (1, *images.shape[1:])
    files = device.convert(network, shape, images)
    model = onnx.load_from_string(files[".onnx"])
    assert not any(tensor.data_location for tensor in model.graph.initializer)
    newer = convert_version(model, 21)  # the reference has no quantisation of older ones
    reference, session = ReferenceEvaluator(newer), device.load(files, shape)
    for image in images:
        (found,) = reference.run(None, {"image": image[None]})
        np.testing.assert_allclose(found, session(image[None]), rtol=0, atol=1e-5 if precision == "fp32" else 0.05)
