from __future__ import annotations

import numpy as np
import pytest
import torch

from onceforall import devices
from onceforall.devices.onnx import to_onnx
from onceforall.devices.onnxruntime import OnnxRuntimeDevice
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
    import onnx

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


def test_unknown_devices_and_threads_are_refused() -> None:
    with pytest.raises(InvalidConfiguration, match="choices are onnxruntime"):
        devices.by_name("abacus")
    with pytest.raises(InvalidConfiguration, match="threads 0"):
        OnnxRuntimeDevice(0)
    with pytest.raises(InvalidConfiguration, match="precision 'fp8'"):
        OnnxRuntimeDevice(precision="fp8")
