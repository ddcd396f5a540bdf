"""Networks of another task than classification: everything speaks of its score."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from onceforall.cost.analytic import MACs
from onceforall.data.dataset import ImageData
from onceforall.deploy.manifest import value_of
from onceforall.deploy.reading import read_manifest, score_in
from onceforall.deploy.specialize import specialize
from onceforall.deploy.verify import verify
from onceforall.devices.onnxruntime import OnnxRuntimeDevice
from onceforall.errors import BrokenClaim
from onceforall.evaluate import top1
from onceforall.files import read_json, write_json
from onceforall.nn.supernet import Supernet
from onceforall.predict.labels import Label
from onceforall.report import tables
from onceforall.tasks import Score


class Halves:
    """A task that is judged by half of top-1."""

    name = "halves"
    score = Score("half", "half", "points")

    def evaluate(self, network: nn.Module, batches: Iterable[tuple[Tensor, Any]]) -> float:
        return top1(network, batches) / 2

    def check(self, net: Any, data: Any) -> None:
        """Every network will do."""


class Pictures(ImageData):
    task = Halves()


def test_another_score_has_its_own_name_and_direction(
    supernet: Supernet, labels: list[Label], tiny_data: ImageData, tmp_path: Path
) -> None:
    data = Pictures(*(getattr(tiny_data, field.name) for field in fields(ImageData) if field.init))
    halved = [Label(label.kind, label.architecture, label.top1 / 2) for label in labels]
    limits = [MACs().at_most(0.6 * MACs().cost(supernet.space.lower(supernet.space.largest())))]
    options: dict[str, Any] = {"budgets": (), "limits": limits, "candidates": 2}
    plain = specialize(supernet, labels, tiny_data, OnnxRuntimeDevice(), tmp_path / "plain", **options)
    found = specialize(supernet, halved, data, OnnxRuntimeDevice(), tmp_path / "out", **options)
    manifest, networks = read_manifest(tmp_path / "out")
    assert score_in(manifest) == Halves.score
    for network, written, other in zip(networks, manifest["networks"], plain.networks, strict=True):
        assert written["predicted_half"]["value"] == pytest.approx(value_of(other.predicted_score) / 2, abs=1)
        if network.architecture == other.architecture:  # as of the largest: predictors differ a little
            assert written["exports"][0]["test_half"]["value"] == pytest.approx(other.measured_score / 2)
        assert network.measured_score == written["exports"][0]["test_half"]["value"]
        assert not any("top1" in key for key in (*written, *written["exports"][0]))
    assert "test_half" in found.summary()["networks"][0]
    assert "| test half |" in (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert tables.networks(found).row_count == 3
    claims = [claim.about for claim in verify(tmp_path / "out", data, supernet) if claim.repeated]
    assert {"searched: predicted half", "searched, onnxruntime fp32: test half"} <= set(claims)
    value = read_json(tmp_path / "out" / "manifest.json")
    value["networks"][1]["exports"][0]["test_half"]["value"] -= 1
    write_json(tmp_path / "out" / "manifest.json", value)
    with pytest.raises(BrokenClaim, match="searched, onnxruntime fp32: test half"):
        list(verify(tmp_path / "out", data, supernet))
