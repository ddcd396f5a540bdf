"""The road from a space to files on each runtime of an extra; what a runtime itself must do is in tests/devices."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import onceforall as ofa
from onceforall.cost.analytic import macs
from onceforall.cost.latency import unique_layers
from onceforall.data.dataset import ImageData
from onceforall.deploy.specialize import specialize
from onceforall.devices.device import Device
from onceforall.nn.supernet import Supernet
from onceforall.predict.labels import Label, plan
from onceforall.spaces.inverted_residual import InvertedResidualSpace

MakeDevice = Callable[[str, str], Device]

SECOND = {"openvino": "int8", "ncnn": "bf16", "litert": "int8", "executorch": "int8"}


@pytest.mark.parametrize("name", SECOND)
def test_a_space_is_profiled(name: str, make_device: MakeDevice, tiny_space: InvertedResidualSpace) -> None:
    """Every layer by itself, and whole networks."""
    units = (replace(unit, depths=unit.depths[:1], kernels=(3,)) for unit in tiny_space.units)
    space = replace(tiny_space, resolutions=(16,), units=tuple(units))
    device = make_device(name, "fp32")
    table = ofa.profile(space, device, calibrating=8, validating=4, learning=0, turns=2, burst_seconds=0.001)
    assert set(table.entries) == {layer.key for layer in unique_layers(space)}
    assert table.device["name"] == name


@pytest.mark.parametrize("name", SECOND)
def test_a_network_is_exported_and_what_was_written_computes_it(
    name: str,
    make_device: MakeDevice,
    tiny_space: InvertedResidualSpace,
    tiny_data: ImageData,
    tmp_path: Path,
) -> None:
    labels = [
        Label(kind, arch, 20 + 10 * float(np.log10(macs(tiny_space.lower(arch)))))
        for kind, arch in plan(tiny_space, 20, seed=0, uniform=True)
    ]
    arch = tiny_space.smallest()
    exports = [make_device(name, "fp32"), make_device(name, SECOND[name])]
    specialize(
        Supernet(tiny_space, seed=1), labels, tiny_data, make_device("onnxruntime", "fp32"), tmp_path, budgets=(),
        architectures=[arch], table=ofa.LatencyTable.synthetic(tiny_space), exports=exports, candidates=1,
    )  # fmt: skip
    images = torch.cat([batch for batch, _ in tiny_data.batches("test", arch.resolution)])[:8].numpy()
    logits = []
    networks = json.loads((tmp_path / "manifest.json").read_text())["networks"]
    (given,) = (network for network in networks if network["role"] == "given")
    for export, device in zip(given["exports"], [make_device("onnxruntime", "fp32"), *exports], strict=True):
        assert (export["device"], export["precision"]) == (device.name, device.precision)
        files = {Path(file["path"]).suffix: (tmp_path / file["path"]).read_bytes() for file in export["files"]}
        session = device.load(files, (1, *images.shape[1:]))
        logits.append(np.concatenate([session(image[None]) for image in images]))
    expected, full, small = logits
    np.testing.assert_allclose(full, expected, rtol=1e-3, atol=1e-4)
    assert np.corrcoef(small.ravel(), expected.ravel())[0, 1] > 0.9
