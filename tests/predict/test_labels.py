from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from onceforall.cost.analytic import macs
from onceforall.data.dataset import ImageData
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration
from onceforall.evaluate import measure_top1
from onceforall.nn.supernet import Supernet
from onceforall.predict import labels as module
from onceforall.predict.labels import label, plan, read_labels, spread_sample
from onceforall.space import SearchSpace


def test_a_plan_has_distinct_architectures_and_every_uniform_one(space: SearchSpace) -> None:
    planned = plan(space, 30, seed=0, uniform=True)
    random = [arch for kind, arch in planned if kind != "uniform"]
    assert len(random) == len(set(random)) == 30
    assert [arch for kind, arch in planned if kind == "uniform"] == space.uniforms()
    assert {kind for kind, _ in planned} == {"random", "spread", "uniform"}
    assert plan(space, 30, seed=0) == planned[:30]
    assert plan(space, 30, seed=1) != planned[:30]


def test_spread_sampling_reaches_further_than_uniform_sampling() -> None:
    from onceforall.spaces import mobilenet_v3_small_images

    space, rng = mobilenet_v3_small_images(), np.random.default_rng(0)
    spread = [macs(space.lower(spread_sample(space, rng))) for _ in range(300)]
    uniform = [macs(space.lower(space.sample(rng))) for _ in range(300)]
    assert np.std(np.log(spread)) > np.std(np.log(uniform))


def test_more_labels_than_architectures_are_refused(tiny_space: SearchSpace) -> None:
    with pytest.raises(InvalidConfiguration, match=f"this space has {tiny_space.size}"):
        plan(tiny_space, tiny_space.size + 1, seed=0)


def test_labels_are_measured_on_the_label_images(tiny_supernet: Supernet, tiny_data: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    found = label(tiny_supernet, tiny_data, path, count=3, uniform=False)
    assert [item.top1 for item in found] == [
        measure_top1(tiny_supernet, item.architecture, tiny_data, "label") for item in found
    ]
    assert read_labels(path, tiny_supernet.space) == found


def test_labelling_goes_on_where_it_was_killed(
    tiny_supernet: Supernet, tiny_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = label(tiny_supernet, tiny_data, tmp_path / "whole.jsonl", count=4, uniform=False)
    path = tmp_path / "labels.jsonl"
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + lines[3][:10])  # killed in the middle of a line
    measured = []

    def counting(*arguments: object) -> float:
        measured.append(arguments)
        return measure_top1(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "measure_top1", counting)
    assert label(tiny_supernet, tiny_data, path, count=4, uniform=False) == whole
    assert len(measured) == 2
    assert path.read_text() == (tmp_path / "whole.jsonl").read_text()


def test_a_file_of_another_run_is_refused(tiny_supernet: Supernet, tiny_data: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    label(tiny_supernet, tiny_data, path, count=1, uniform=False)
    with pytest.raises(InvalidConfiguration, match="choose a new file"):
        label(tiny_supernet, tiny_data, path, count=1, seed=1, uniform=False)


def test_the_test_split_is_refused(tiny_supernet: Supernet, tiny_data: ImageData, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="use the label split"):
        label(tiny_supernet, tiny_data, tmp_path / "labels.jsonl", split="test")


def test_foreign_files_are_refused(tiny_space: SearchSpace, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    with pytest.raises(InvalidConfiguration, match="not a labels file"):
        read_labels(path)
    path.write_text('{"format": "onceforall.labels/1", "space": {}}\n{"kind": "random"}\n')
    with pytest.raises(InvalidConfiguration, match="a row is not a label: 'architecture'"):
        read_labels(path)
    other = tiny_space.restrict(kernels=[3])
    for foreign in ({}, other.to_json(), None):
        path.write_text(json.dumps({"format": "onceforall.labels/1", "space": foreign}) + "\n")
        with pytest.raises(InvalidConfiguration, match="another space"):
            read_labels(path, tiny_space)
    path.write_text("{\n" + json.dumps({}) + "\n")
    with pytest.raises(IncompatibleCheckpoint, match="line 1 is not JSON"):
        read_labels(path)


def test_labels_of_a_space_whose_json_says_less_are_its_own(tiny_space: SearchSpace, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    value = tiny_space.to_json()
    value["units"] = [
        {k: v for k, v in unit.items() if k not in ("width_multipliers", "tied")} for unit in value["units"]
    ]
    path.write_text(json.dumps({"format": "onceforall.labels/1", "space": value}) + "\n")
    assert read_labels(path, tiny_space) == []
