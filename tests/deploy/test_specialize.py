from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import FullDisk, Killed
from mutated import mutations

from onceforall.cost.analytic import MACs
from onceforall.cost.latency import LatencyTable
from onceforall.data.dataset import ImageData
from onceforall.deploy.call import FinishedSteps
from onceforall.deploy.exporting import PARITY
from onceforall.deploy.manifest import Specialization, value_of
from onceforall.deploy.reading import read_manifest
from onceforall.deploy.specialize import specialize
from onceforall.devices.onnxruntime import OnnxRuntimeDevice
from onceforall.devices.timing import time_turns
from onceforall.errors import IncompatibleCheckpoint, InfeasibleConstraint, InvalidConfiguration, UnwritableOutput
from onceforall.evaluate import measure_top1, ready
from onceforall.files import as_json, owned, read_json, sha256
from onceforall.nn.supernet import Supernet
from onceforall.predict.labels import Label
from onceforall.report import plots, tables
from onceforall.space import SearchSpace

BUDGETS = ("70%", "90%")

Clocks = Callable[[float], Callable[..., Any]]
TIME = "onceforall.deploy.call.time_exports"


@pytest.fixture(scope="module")
def result(
    supernet: Supernet,
    labels: list[Label],
    table: LatencyTable,
    tiny_data: ImageData,
    tmp_path_factory: pytest.TempPathFactory,
    slower: Clocks,
    ideal: Callable[[pytest.MonkeyPatch], None],
) -> tuple[Specialization, Path]:
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        ideal(patch)
        patch.setattr(TIME, slower(1.03))
        found = specialize(
            supernet, labels, tiny_data, OnnxRuntimeDevice(), out, budgets=BUDGETS, table=table, candidates=2
        )
    return found, out


def test_every_kind_of_space_is_specialised(
    kind_of_space: SearchSpace,
    tiny_data: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    slower: Clocks,
    made_up_labels: Callable[[SearchSpace, int], list[Label]],
) -> None:
    space = kind_of_space
    rows = made_up_labels(space, 20)
    monkeypatch.setattr(TIME, slower(1.03))
    found = specialize(
        Supernet(space), rows, tiny_data, OnnxRuntimeDevice(), tmp_path, budgets=("80%",),
        table=LatencyTable.synthetic(space), candidates=1,
    )  # fmt: skip
    assert [network.role for network in found.networks] == ["largest", "searched", "uniform"]
    for network in found.networks:
        assert network.budget_met is not False
        assert all((tmp_path / file.path).is_file() for file in network.export.files)
        assert value_of(network.export.parity) <= PARITY


def test_every_budget_has_a_searched_and_a_uniform_network(result: tuple[Specialization, Path]) -> None:
    found = [(network.role, network.budget) for network in result[0].networks]
    assert found == [("largest", None), *((role, b) for b in BUDGETS for role in ("searched", "uniform"))]


def test_a_network_that_breaks_its_budget_on_the_clock_is_replaced(result: tuple[Specialization, Path]) -> None:
    chosen = result[0].networks[1:]
    assert all(network.budget_met for network in chosen)
    replaced = [network for network in chosen if network.attempts]
    assert replaced
    assert all("bound tightened to" in note for network in replaced for note in network.attempts)


def test_a_budget_that_cannot_be_held_is_reported_as_missed(
    supernet: Supernet,
    labels: list[Label],
    table: LatencyTable,
    tiny_data: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    slower: Clocks,
) -> None:
    monkeypatch.setattr(TIME, slower(10))
    found = specialize(supernet, labels, tiny_data, OnnxRuntimeDevice(), tmp_path, budgets=("10%",), table=table)
    searched = found.networks[1]
    assert searched.budget_met is False
    assert "nothing smaller" in searched.attempts[-1]


def test_the_real_clock(
    supernet: Supernet,
    labels: list[Label],
    table: LatencyTable,
    tiny_data: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("onceforall.deploy.call.time_turns", time_turns)
    found = specialize(
        supernet, labels, tiny_data, OnnxRuntimeDevice(), tmp_path, budgets=(), table=table, candidates=1
    )
    for network in found.networks:
        assert network.measured_latency_ms > 0  # whatever else runs
        assert value_of(network.export.latency_spread) >= 0


def test_files_are_what_the_manifest_says(result: tuple[Specialization, Path]) -> None:
    found, out = result
    manifest = read_json(out / "manifest.json")
    assert manifest == as_json(found.to_json())
    files = [file for network in manifest["networks"] for export in network["exports"] for file in export["files"]]
    assert len(files) == 5
    for file in files:
        assert sha256(out / file["path"]) == file["sha256"]
        assert (out / file["path"]).stat().st_size == file["bytes"]
    assert LatencyTable.load(out / manifest["latency_model"]["file"]) == found.table
    assert manifest["data"]["splits"] == {"train": 540, "calibrate": 30, "label": 60, "test": 100}
    kinds = [manifest["networks"][1][key] for key in ("predicted_latency", "predicted_top1", "label_top1")]
    assert [(number["unit"], number["kind"]) for number in kinds] == [
        ("ms", "predicted"),
        ("percent", "predicted"),
        ("percent", "measured"),
    ]


def test_accuracy_is_that_of_the_recalibrated_network_on_all_test_images(
    result: tuple[Specialization, Path], supernet: Supernet, tiny_data: ImageData
) -> None:
    for network in result[0].networks:
        expected = measure_top1(supernet, network.architecture, tiny_data, "test")
        assert network.measured_score == pytest.approx(expected, abs=1.01)  # one image of 100 may tie
        assert value_of(network.export.parity) <= 1e-4
        assert value_of(network.export.agreement) == 100


def test_the_exported_file_alone_gives_the_same_logits(
    result: tuple[Specialization, Path], supernet: Supernet, tiny_data: ImageData
) -> None:
    import onnxruntime

    network = result[0].networks[1]
    images = tiny_data.images("test", network.architecture.resolution)
    session = onnxruntime.InferenceSession(
        str(result[1] / network.export.files[0].path), providers=["CPUExecutionProvider"]
    )
    plain = ready(supernet, network.architecture, tiny_data)
    with torch.inference_mode():
        expected = plain(images[:1]).numpy()
    np.testing.assert_allclose(session.run(None, {"image": images[:1].contiguous().numpy()})[0], expected, atol=1e-4)


def test_the_best_uniform_network_is_the_most_accurate_labelled_one(
    result: tuple[Specialization, Path], labels: list[Label], supernet: Supernet
) -> None:
    found = result[0]
    for network in found.networks:
        if network.role == "uniform" and not network.attempts:
            assert network.latency_budget_ms is not None
            within = [
                label.top1
                for label in labels
                if label.kind == "uniform"
                and found.table.cost(supernet.space.lower(label.architecture)) <= network.latency_budget_ms
            ]
            assert value_of(network.label_score) == max(within)


def test_test_images_select_nothing(
    supernet: Supernet, labels: list[Label], table: LatencyTable, tiny_data: ImageData, tmp_path: Path
) -> None:
    """With other test images the same networks are chosen (budgets in ms, so that no clock decides)."""
    other = ImageData(
        "other",
        tiny_data.train_images,
        tiny_data.train_labels,
        255 - tiny_data.test_images,
        tiny_data.test_labels.flip(0),
        4,
        tiny_data.mean,
        tiny_data.std,
    )
    chosen = []
    for data in (tiny_data, other):
        found = specialize(
            supernet, labels, data, OnnxRuntimeDevice(), tmp_path / data.name, budgets=("1000 ms",), table=table
        )
        chosen.append([(network.role, network.architecture, network.label_score) for network in found.networks])
    assert chosen[0] == chosen[1]


def test_a_picture_a_table_and_a_line(result: tuple[Specialization, Path], supernet: Supernet, tmp_path: Path) -> None:
    plots.front(result[0], supernet.space, tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert tables.networks(result[0]).row_count == 5
    assert "MACs alone" in tables.quality(result[0])
    assert len(json.loads(json.dumps(result[0].summary()))["networks"]) == 5


def test_an_impossible_budget_raises_and_names_the_smallest(
    supernet: Supernet, labels: list[Label], table: LatencyTable, tiny_data: ImageData, tmp_path: Path
) -> None:
    with pytest.raises(
        InfeasibleConstraint, match=r"latency <= 1e-05 ms cannot be met: the smallest sub-network needs"
    ):
        specialize(supernet, labels, tiny_data, OnnxRuntimeDevice(), tmp_path, budgets=("0.00001 ms",), table=table)


def test_an_unwritable_folder_is_an_error_at_once(
    supernet: Supernet, labels: list[Label], tiny_data: ImageData, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    steps: list[str] = []
    with pytest.raises(UnwritableOutput, match="choose a writable folder"):
        specialize(
            supernet,
            labels,
            tiny_data,
            OnnxRuntimeDevice(),
            tmp_path / "file" / "out",
            report=lambda step, done, total: steps.append(step),
        )
    assert not steps


# What is there already


@pytest.fixture
def finished(result: tuple[Specialization, Path], tmp_path: Path) -> Path:
    """A finished folder, to be written again."""
    return Path(shutil.copytree(result[1], tmp_path / "finished"))


@pytest.fixture
def again(
    supernet: Supernet, labels: list[Label], table: LatencyTable, tiny_data: ImageData, finished: Path
) -> Callable[..., Specialization]:
    """Another call for the finished folder: one network."""

    def call(**options: Any) -> Specialization:
        given: dict[str, Any] = {"budgets": (), "architectures": [supernet.space.smallest()], "table": table}
        return specialize(supernet, labels, tiny_data, OnnxRuntimeDevice(), finished, **{**given, **options})

    return call


def content(folder: Path) -> dict[str, bytes]:
    """What a folder holds, but for what is not finished."""
    files = [path for path in folder.rglob("*") if path.is_file() and "unfinished" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name not in IN_PASSING}


IN_PASSING = (".lock", "steps.jsonl")


@pytest.mark.parametrize("budget", ["0.0001 ms", "0.01%", "x"])
def test_a_mistyped_budget_leaves_finished_results(
    budget: str, finished: Path, again: Callable[..., Specialization]
) -> None:
    before = content(finished)
    with pytest.raises((InfeasibleConstraint, InvalidConfiguration)):
        again(budgets=(budget,))
    assert content(finished) == before
    read_manifest(finished)
    assert (finished / "unfinished").exists() == (budget == "0.01%")  # of what the largest takes, when that is known
    again()
    assert [network.name for network in read_manifest(finished)[1]] == ["largest", "given"]


def test_what_is_impossible_is_refused_before_anything_is_written(
    supernet: Supernet, labels: list[Label], table: LatencyTable, tiny_data: ImageData, tmp_path: Path
) -> None:
    device, out = OnnxRuntimeDevice(), tmp_path / "out"
    call = functools.partial(specialize, supernet, labels, tiny_data, device, out, table=table)
    for options in ({"budgets": ("1e-9 ms",)}, {"budgets": (), "limits": [MACs().at_most(1)]}):
        with pytest.raises(InfeasibleConstraint):
            call(**options)  # type: ignore[arg-type]
    for options in ({"max_drop": math.inf}, {"quantize": "int8", "quantized_labels": 3}):
        with pytest.raises(InvalidConfiguration):
            call(**options)  # type: ignore[arg-type]
    assert not out.exists()


@pytest.mark.parametrize("left", range(0, 10, 2))
def test_a_full_disk_leaves_finished_results(
    left: int, finished: Path, again: Callable[..., Specialization], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(left)
    before = content(finished)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk)
        with contextlib.suppress(UnwritableOutput):
            again()
    if disk.left < 0:
        assert content(finished) == before
    again()
    assert [network.name for network in read_manifest(finished)[1]] == ["largest", "given"]


def test_a_kill_between_old_and_new_is_healed_by_the_same_call(
    finished: Path, again: Callable[..., Specialization], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Killed(2))
        with pytest.raises(KeyboardInterrupt):
            again()
    with pytest.raises(InvalidConfiguration, match="a kill has left half in place: the next call"):
        read_manifest(finished)
    with monkeypatch.context() as patch:
        patch.setattr("onceforall.deploy.specialize.fit_predictor", lambda call: pytest.fail("not before"))
        with pytest.raises(pytest.fail.Exception):
            again()
    assert [network.name for network in read_manifest(finished)[1]] == ["largest", "given"]  # completed first
    again()
    assert sorted(path.name for path in finished.iterdir() if path.is_dir()) == ["given", "largest"]


def test_what_only_the_old_manifest_names_goes_and_nothing_else(
    finished: Path, again: Callable[..., Specialization]
) -> None:
    for mine in (finished / "notes.txt", finished / "searched-70pct" / "mine.onnx", finished / "mine" / "x"):
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("mine")
    again()
    names = {*content(finished)}
    assert {"notes.txt", "searched-70pct/mine.onnx", "mine/x", "given/onnxruntime-fp32.onnx"} <= names
    assert not any("uniform" in name or "searched-90pct" in name for name in names)
    assert "searched-70pct/onnxruntime-fp32.onnx" not in names


@pytest.mark.parametrize("said", ['{"format": "onceforall.bundle/1"}', '{"name": "my app"}', "[]", "{"])
def test_a_folder_of_something_else_is_refused(said: str, finished: Path, again: Callable[..., Specialization]) -> None:
    (finished / "manifest.json").write_text(said)
    before = content(finished)
    with pytest.raises(InvalidConfiguration, match="choose another folder"):
        again()
    assert content(finished) == before


def test_two_calls_do_not_write_one_folder(finished: Path, again: Callable[..., Specialization]) -> None:
    with owned(finished, "run"), pytest.raises(UnwritableOutput, match="another specialisation that is still running"):
        again()


def test_another_call_that_finished_nothing_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    FinishedSteps(path, {"seed": 0})
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "latency.part").write_text("of the other one")
    other = FinishedSteps(path, {"seed": 1})
    assert not (tmp_path / "unfinished").exists()
    other.once("label a", lambda: 5.0)
    with pytest.raises(InvalidConfiguration, match=r"another seed: .* \(seed is 1 there, 0 here\)"):
        FinishedSteps(path, {"seed": 0})


def test_steps_are_read_or_refused_with_their_line(
    result: tuple[Specialization, Path], tmp_path: Path, rng: np.random.Generator
) -> None:
    """Whatever a file of steps says."""
    path, found = tmp_path / "steps.jsonl", result[0]
    ratio = {"value": 1.5, "unit": "of fp32", "kind": "measured"}
    steps = {
        "latency fp32": "fp32",
        "label fp32 a": 50.0,
        "test torch a": 50.0,
        "test a fp32 b": [50.0, 1e-7, 100.0],
        "memory test a": 1024,
        "precision int8 []": {"precision": "int8", "latency_ratio": ratio, "networks": 8},
        "networks {}": [network.to_json(found.score) for network in found.networks[:2]],
    }
    rows = as_json([{"step": step, "found": value} for step, value in steps.items()])
    for changed in (rows, *mutations(rows, rng, 300)):
        lines = [{"seed": 0}, *changed]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        problem = ""
        try:
            FinishedSteps(path, {"seed": 0})
        except IncompatibleCheckpoint as error:
            problem = str(error)
        assert not problem or (changed is not rows and re.search(r"steps\.jsonl, line \d", problem))
