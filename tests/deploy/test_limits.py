"""Constraints of any cost without a latency, and calls without a device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from onceforall.cost.analytic import MACs, PeakActivationMemory
from onceforall.cost.latency import LatencyTable
from onceforall.cost.model import AdditiveCost, Constraint
from onceforall.data.dataset import ImageData
from onceforall.deploy.exports import PythonExport
from onceforall.deploy.manifest import Specialization, value_of
from onceforall.deploy.reading import read_manifest
from onceforall.deploy.specialize import specialize
from onceforall.deploy.verify import verify
from onceforall.devices.onnxruntime import OnnxRuntimeDevice
from onceforall.errors import BrokenClaim, InfeasibleConstraint, InvalidConfiguration
from onceforall.files import read_json, write_json
from onceforall.layers import LayerSpec
from onceforall.nn.supernet import Supernet
from onceforall.predict.labels import Label
from onceforall.report import plots, tables
from onceforall.space import SearchSpace


@dataclass(frozen=True)
class Energy(AdditiveCost):
    """A stranger's cost, which no registry knows."""

    per_mac: float = 2e-9
    name: str = "energy"
    unit: str = "mJ"
    kind = "modelled"

    def layer_cost(self, layer: LayerSpec) -> float:
        return self.per_mac * layer.macs


def limits_of(space: SearchSpace) -> list[Constraint]:
    """Two that bind: six tenths of the MACs and of the memory between the smallest and the largest network."""
    ends = [space.lower(space.smallest()), space.lower(space.largest())]
    costs = [(cost, *map(cost.cost, ends)) for cost in (MACs(), PeakActivationMemory())]
    return [cost.at_most(least + 0.6 * (most - least)) for cost, least, most in costs]


@pytest.fixture(scope="module")
def result(
    supernet: Supernet,
    labels: list[Label],
    tiny_data: ImageData,
    tmp_path_factory: pytest.TempPathFactory,
    ideal: Callable[[pytest.MonkeyPatch], None],
) -> tuple[Specialization, Path]:
    """A search under limits alone, on a device."""
    out = tmp_path_factory.mktemp("limits")
    limits = [*limits_of(supernet.space), Energy().at_most(1e6)]
    with pytest.MonkeyPatch.context() as patch:
        ideal(patch)
        patch.setattr("onceforall.deploy.specialize.latency_model", None)  # is not called
        found = specialize(
            supernet, labels, tiny_data, OnnxRuntimeDevice(), out, budgets=(), limits=limits, candidates=1
        )
    return found, out


def test_limits_alone_give_a_searched_and_a_uniform_network_and_no_latency_model(
    result: tuple[Specialization, Path], supernet: Supernet
) -> None:
    found, out = result
    space = supernet.space
    assert [network.role for network in found.networks] == ["largest", "searched", "uniform"]
    assert [network.name for network in found.networks] == ["largest", "searched", "uniform"]
    for network in found.networks[1:]:
        layers = space.lower(network.architecture)
        assert all(limit.model.cost(layers) <= limit.bound for limit in limits_of(space))
    assert all(network.predicted_latency is None and network.budget_met is None for network in found.networks)
    assert all(network.measured_latency_ms == 0.5 for network in found.networks)  # it is timed where it can be
    manifest, _ = read_manifest(out)
    assert manifest["latency_model"] is None
    assert not (out / "latency.json").exists()
    assert found.summary()["table"] is None


def test_the_manifest_says_of_every_network_what_it_needs_of_each_cost(
    result: tuple[Specialization, Path], supernet: Supernet
) -> None:
    manifest, networks = read_manifest(result[1])
    for network, written in zip(networks, manifest["networks"], strict=True):
        layers = supernet.space.lower(network.architecture)
        rows = [(row["name"], row["unit"], row["kind"], row["value"]) for row in written["constraints"]]
        assert rows == [
            ("MACs", "MACs", "computed", MACs().cost(layers)),
            ("peak activation memory", "bytes", "computed", PeakActivationMemory().cost(layers)),
            ("energy", "mJ", "modelled", Energy().cost(layers)),
        ]
        assert written["constraints"][2]["bound"] == 1e6
    assert [network.constraints[0].met for network in networks] == [False, True, True]
    card = (result[1] / "MODEL_CARD.md").read_text()
    assert f"{networks[1].constraints[2].value:.6g} mJ" in card
    assert "Every searched and uniform network keeps MACs <= " in card


def test_costs_are_repeated_where_they_are_known(
    result: tuple[Specialization, Path], supernet: Supernet, tiny_data: ImageData, tmp_path: Path
) -> None:
    claims = {claim.about: claim for claim in verify(result[1], tiny_data, supernet)}
    assert claims["searched: peak activation memory"].repeated
    assert not claims["searched: energy"].repeated
    assert "no cost of this name" in claims["searched: energy"].found
    manifest = read_json(result[1] / "manifest.json")
    for edit, message in (
        ({"value": 9.0}, "the manifest says 9 bytes, found"),
        ({"bound": 1.0}, "more than its bound"),
    ):
        changed = read_json(result[1] / "manifest.json")
        changed["networks"][1]["constraints"][1].update(edit)
        write_json(result[1] / "manifest.json", changed)
        with pytest.raises(BrokenClaim, match=rf"searched: peak activation memory: .*{message}"):
            list(verify(result[1]))
        write_json(result[1] / "manifest.json", manifest)


def test_a_picture_and_tables_without_predicted_latency(
    result: tuple[Specialization, Path], supernet: Supernet, tmp_path: Path
) -> None:
    plots.front(result[0], supernet.space, tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    table = tables.networks(result[0])
    assert [column.header for column in table.columns][-2:] == ["peak activation memory (bytes)", "energy (mJ)"]
    assert [*table.columns[2].cells] == ["-"] * 3
    assert "Latency" not in tables.quality(result[0])


def test_without_a_device_nothing_is_timed_and_everything_says_so(
    supernet: Supernet, labels: list[Label], tiny_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onceforall.deploy.call.time_turns", None)
    out = tmp_path / "out"
    found = specialize(
        supernet, labels, tiny_data, None, out, budgets=(), limits=limits_of(supernet.space), candidates=1,
        exports=[PythonExport()],
    )  # fmt: skip
    assert found.device is None
    for network in found.networks:
        (export,) = network.exports
        assert (export.name, export.latency, export.test_score) == ("python fp32", None, None)
        assert math.isnan(network.measured_latency_ms)
        assert 0 <= network.measured_score <= 100  # in torch
    assert found.networks[1].architecture != supernet.space.largest()
    card = (out / "MODEL_CARD.md").read_text()
    assert "what could not be run here was not timed" in card
    assert f"{found.networks[1].measured_score:.2f} % (in torch) | - | - |" in card
    plots.front(found, supernet.space, tmp_path / "front.png")
    assert tables.networks(found).row_count == tables.exports(found).row_count == 3
    claims = {claim.about: claim for claim in verify(out, tiny_data, supernet)}
    assert claims["searched, in torch: test top-1"].repeated
    assert not claims["searched, python fp32: accuracy, latency"].repeated
    manifest = read_json(out / "manifest.json")
    manifest["networks"][1]["test_top1"]["value"] += 1
    write_json(out / "manifest.json", manifest)
    with pytest.raises(BrokenClaim, match="searched, in torch: test top-1"):
        list(verify(out, tiny_data, supernet))


def test_without_a_device_exports_that_can_be_run_are_verified(
    supernet: Supernet, labels: list[Label], tiny_data: ImageData, tmp_path: Path
) -> None:
    """Each is written once; the first, which is to be used, cannot be run; latencies are those of this machine."""
    exports = [PythonExport(), OnnxRuntimeDevice(), PythonExport(), OnnxRuntimeDevice()]
    found = specialize(supernet, labels, tiny_data, None, tmp_path, budgets=(), exports=exports)
    (largest,) = found.networks
    assert [export.name for export in largest.exports] == ["python fp32", "onnxruntime fp32"]
    assert [export.latency_ms for export in largest.exports[1:]] == [0.5]
    assert value_of(largest.exports[1].parity) < 1e-4
    assert largest.measured_score == pytest.approx(value_of(largest.exports[1].test_score), abs=1.01)  # in torch
    plots.front(found, supernet.space, tmp_path / "front.png")
    manifest, about = read_json(tmp_path / "manifest.json"), "largest, onnxruntime fp32: latency"
    assert about in [claim.about for claim in verify(tmp_path) if claim.repeated]
    manifest["machine"]["processor"] = "another"
    write_json(tmp_path / "manifest.json", manifest)
    (skipped,) = [claim for claim in verify(tmp_path) if claim.about == about and not claim.repeated]
    assert "another device (processor " in skipped.found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgets": ("60%",), "exports": [PythonExport()]}, "there is no device to measure it on"),
        ({"budgets": ()}, "neither a device nor exports"),
        ({"budgets": (), "exports": [PythonExport()], "quantize": "int8"}, "quantize 'int8' without a device"),
    ],
)
def test_what_needs_a_device_says_so(
    options: dict[str, Any], message: str, supernet: Supernet, tiny_data: ImageData, tmp_path: Path
) -> None:
    with pytest.raises(InvalidConfiguration, match=message):
        specialize(supernet, [], tiny_data, None, tmp_path, **options)


def test_limits_that_no_uniform_network_meets_are_named(
    supernet: Supernet, labels: Sequence[Label], table: LatencyTable, tiny_data: ImageData, tmp_path: Path
) -> None:
    space = supernet.space
    least = min(MACs().cost(space.lower(arch)) for arch in space.uniforms())
    with pytest.raises(InfeasibleConstraint, match=r"MACs <= .* cannot be met"):
        specialize(
            supernet, labels, tiny_data, OnnxRuntimeDevice(), tmp_path, budgets=(), candidates=1,
            limits=[MACs().at_most(0.9 * least)],
        )  # fmt: skip
