"""A supernet that stayed on another device, as after training on a GPU; its images are on the processor."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from elsewhere import There, elsewhere
from torch import Tensor
from torch.testing import assert_close

from onceforall.bundle import measure as bundle_measure
from onceforall.bundle.bundle import Bundle, write_bundle
from onceforall.bundle.measure import measure_bundle
from onceforall.cost.latency import LatencyTable
from onceforall.data.dataset import ImageData
from onceforall.deploy.exports import PythonExport
from onceforall.deploy.manifest import value_of
from onceforall.deploy.specialize import specialize
from onceforall.deploy.verify import verify
from onceforall.devices.onnxruntime import OnnxRuntimeDevice
from onceforall.nn.calibrate import calibrate
from onceforall.nn.supernet import Supernet
from onceforall.predict.labels import Label


@pytest.fixture(params=["meta", "cuda"])
def away(request: pytest.FixtureRequest, supernet: Supernet, monkeypatch: pytest.MonkeyPatch) -> Supernet:
    """The supernet there: on a GPU, or on a device that computes here and refuses tensors of the processor."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    if request.param == "meta":  # only where it is needed: exporters trace what the processor does
        move = Tensor.to

        def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            there = any(torch.device(given).type == "meta" for given in args if isinstance(given, str | torch.device))
            return There(tensor.detach()) if there and not isinstance(tensor, There) else move(tensor, *args, **kwargs)

        monkeypatch.setattr(Tensor, "to", to)
        monkeypatch.setattr("onceforall.evaluate.calibrate", elsewhere()(calibrate))
    return copy.deepcopy(supernet).to(request.param)


def test_it_is_specialised(
    away: Supernet, supernet: Supernet, labels: list[Label], table: LatencyTable, tiny_data: ImageData, tmp_path: Path
) -> None:
    networks = specialize(
        away, labels, tiny_data, OnnxRuntimeDevice(), tmp_path, budgets=(), architectures=[labels[1].architecture],
        table=table, exports=[PythonExport()],
    ).networks  # fmt: skip
    assert all(value_of(network.export.parity) < 1e-4 for network in networks)
    repeated = {claim.about for claim in verify(tmp_path, tiny_data, away) if claim.repeated}
    assert {f"largest, onnxruntime fp32: {what}" for what in ("test top-1", "parity with torch")} <= repeated


def test_it_is_bundled(
    away: Supernet, supernet: Supernet, tiny_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arch = supernet.space.smallest()
    write_bundle(away, {"small": arch}, tiny_data, tmp_path)
    images = torch.randn(2, 3, arch.resolution, arch.resolution)
    alone = calibrate(supernet.extract(arch), tiny_data.calibration(arch.resolution))
    assert_close(Bundle.load(tmp_path)(images), alone(images).detach(), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(bundle_measure, "_resident", lambda *given: 1024)
    monkeypatch.setattr(bundle_measure, "SWITCHES", 1)
    assert "measured" in measure_bundle(tmp_path, away, tiny_data)
