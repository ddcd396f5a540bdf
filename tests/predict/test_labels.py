from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from elsewhere import elsewhere

from onceforall.architecture import Architecture
from onceforall.data.dataset import ImageData
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration
from onceforall.evaluate import Evaluator, measure_top1
from onceforall.files import DIGEST
from onceforall.nn.supernet import Supernet
from onceforall.predict.labels import Label, label, read_labels, training_pairs
from onceforall.space import SearchSpace


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
    score = Evaluator.score

    def counting(self: Evaluator, arch: Architecture) -> float:
        measured.append(arch)
        return score(self, arch)

    monkeypatch.setattr(Evaluator, "score", counting)
    assert label(tiny_supernet, tiny_data, path, count=4, uniform=False) == whole
    assert len(measured) == 2
    assert path.read_text() == (tmp_path / "whole.jsonl").read_text()


def test_a_file_of_another_run_is_refused(tiny_supernet: Supernet, tiny_data: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    label(tiny_supernet, tiny_data, path, count=1, uniform=False)
    with pytest.raises(InvalidConfiguration, match="choose a new file"):
        label(tiny_supernet, tiny_data, path, count=1, seed=1, uniform=False)


def test_what_is_drawn_and_uniform_is_measured_once_and_stays_apart(
    tiny_supernet: Supernet, tiny_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Architecture] = []
    monkeypatch.setattr(Evaluator, "score", lambda self, arch: measured.append(arch) or 50.0)
    found = label(tiny_supernet, tiny_data, tmp_path / "labels.jsonl", count=30, distribution="macs")
    twice = {item.architecture for item in found if item.kind == "macs"} & set(tiny_supernet.space.uniforms())
    assert twice  # the ends of the space are both
    assert len(measured) == len(set(measured)) == len(found) - len(twice)
    assert not twice & set(training_pairs(found)[0])
    again = label(tiny_supernet, tiny_data, tmp_path / "labels.jsonl", count=30, distribution="macs")
    assert again == found
    assert len(measured) == len(set(measured))


def test_rows_that_are_not_asked_for_again_are_kept(
    tiny_supernet: Supernet, tiny_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "labels.jsonl"
    many = label(tiny_supernet, tiny_data, path, count=4)
    monkeypatch.setattr(Evaluator, "score", None)  # nothing is measured again
    few = label(tiny_supernet, tiny_data, path, count=2, uniform=False)
    assert len(few) == 2
    kept = read_labels(path)
    assert len(kept) == len(many)
    assert set(kept) == set(many)


def test_uniform_networks_are_few_beside_those_that_were_asked_for_and_old_files_go_on(
    tiny_supernet: Supernet, tiny_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, space = tmp_path / "labels.jsonl", tiny_supernet.space
    monkeypatch.setattr(Evaluator, "score", lambda self, arch: 50.0)
    found = label(tiny_supernet, tiny_data, path, count=8)
    uniform = [row for row in found if row.kind == "uniform"]
    assert (len(found), len(uniform)) == (10, 2)
    assert len(space.uniforms()) > 10
    # A file of before holds all of them: nothing is measured again, and no row is lost.
    old = [Label("uniform", arch, 40.0) for arch in space.uniforms()]
    rows = [{"kind": row.kind, "architecture": row.architecture.to_json(), "top1": row.score} for row in old]
    header, *others = path.read_text().splitlines()[:9]
    path.write_text("\n".join([header, *others, *map(json.dumps, rows)]) + "\n")
    monkeypatch.setattr(Evaluator, "score", None)
    assert {row.architecture for row in label(tiny_supernet, tiny_data, path, count=8)} == {
        row.architecture for row in found
    }
    assert set(read_labels(path, space)) == {*found[:8], *old}


def test_labels_of_other_weights_are_refused(tiny_supernet: Supernet, tiny_data: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    label(tiny_supernet, tiny_data, path, count=1, uniform=False)
    with pytest.raises(InvalidConfiguration, match="labels of another supernet"):
        label(Supernet(tiny_supernet.space, seed=77), tiny_data, path, count=1, uniform=False)


def test_data_of_other_classes_are_refused(tiny_space: SearchSpace, tiny_data: ImageData, tmp_path: Path) -> None:
    other = Supernet(tiny_space.with_classes(3))
    message = "tiny has 4 classes, and the network tells 3 apart: give the data"
    with pytest.raises(InvalidConfiguration, match=message):
        label(other, tiny_data, tmp_path / "labels.jsonl", count=1)
    with pytest.raises(InvalidConfiguration, match=message):
        measure_top1(other, tiny_space.with_classes(3).smallest(), tiny_data, "label")


def test_the_test_split_is_refused(tiny_supernet: Supernet, tiny_data: ImageData, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="use the label split"):
        label(tiny_supernet, tiny_data, tmp_path / "labels.jsonl", split="test")


def test_foreign_files_are_refused(tiny_space: SearchSpace, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    with pytest.raises(InvalidConfiguration, match="not a labels file"):
        read_labels(path)
    path.write_text('{"format": "onceforall.labels/1", "space": {}}\n{"kind": "random"}\n')
    with pytest.raises(InvalidConfiguration, match="line 2 is not a label"):
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


CHILD = """
import os, runpy, sys
from onceforall.nn.supernet import Supernet
from onceforall.predict.labels import label
shared = runpy.run_path(sys.argv[1])
label(Supernet(shared["make_tiny_space"]()), shared["make_tiny_data"](), sys.argv[2], count=5, uniform=False)
"""


def test_processes_share_the_work_and_the_first_gathers(
    tiny_space: SearchSpace, tiny_data: ImageData, tmp_path: Path
) -> None:
    path, conftest = tmp_path / "labels.jsonl", Path(__file__).parents[1] / "conftest.py"
    whole = label(Supernet(tiny_space), tiny_data, tmp_path / "whole.jsonl", count=5, uniform=False)

    def start(rank: int) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"}
        return subprocess.Popen([sys.executable, "-c", CHILD, str(conftest), str(path)], env=environment)

    processes = [start(0), start(1)]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert read_labels(path, tiny_space) == whole
    assert path.read_text() == (tmp_path / "whole.jsonl").read_text()
    assert list(tmp_path.glob("labels.jsonl.*")) == []


def test_what_one_of_several_processes_measured_is_not_measured_again(
    tiny_supernet: Supernet, tiny_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a distributed call that was killed, the part files stay; a call of one process takes them up."""
    whole = label(tiny_supernet, tiny_data, tmp_path / "whole.jsonl", count=4, uniform=False)
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "labels.jsonl.1-of-2").write_text(lines[0] + lines[2] + lines[4][:9])
    measured: list[Architecture] = []
    score = Evaluator.score
    monkeypatch.setattr(Evaluator, "score", lambda self, arch: measured.append(arch) or score(self, arch))
    assert label(tiny_supernet, tiny_data, tmp_path / "labels.jsonl", count=4, uniform=False) == whole
    assert whole[1].architecture not in measured
    assert len(measured) == 3
    assert list(tmp_path.glob("labels.jsonl.*")) == []


def test_a_file_of_another_distribution_or_precision_is_refused(
    tiny_supernet: Supernet, tiny_data: ImageData, tmp_path: Path
) -> None:
    path = tmp_path / "labels.jsonl"
    label(tiny_supernet, tiny_data, path, count=1, uniform=False)
    for other in ({"distribution": "macs"}, {"precision": "bf16"}):
        with pytest.raises(InvalidConfiguration, match="distribution or precision"):
            label(tiny_supernet, tiny_data, path, count=1, uniform=False, **other)  # type: ignore[arg-type]


def test_files_from_before_distributions_are_continued(
    tiny_supernet: Supernet, tiny_data: ImageData, tmp_path: Path
) -> None:
    path = tmp_path / "labels.jsonl"
    whole = label(tiny_supernet, tiny_data, path, count=2, uniform=False)
    header, *rows = path.read_text().splitlines()
    old = {key: value for key, value in json.loads(header).items() if key not in ("distribution", "precision", DIGEST)}
    path.write_text("\n".join([json.dumps(old), *rows]) + "\n")
    assert label(tiny_supernet, tiny_data, path, count=2, uniform=False) == whole


def test_a_part_that_another_process_has_just_made_is_no_part_yet(
    tiny_supernet: Supernet, tiny_data: ImageData, tmp_path: Path
) -> None:
    for name in ("labels.jsonl", "labels.jsonl.1-of-2"):  # a kill, or a full disk, leaves as much
        (tmp_path / name).write_text('{"format": "onceforall.la' if name.endswith("l") else "")
    assert len(label(tiny_supernet, tiny_data, tmp_path / "labels.jsonl", count=2, uniform=False)) == 2


def test_the_header_of_a_part_appears_at_once_or_not_at_all(
    tiny_supernet: Supernet, tiny_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part is first seen by its name with the header in it: nothing opens that name to write before it is there."""
    path, part = tmp_path / "labels.jsonl", tmp_path / "labels.jsonl.1-of-2"
    opened: list[str] = []

    class Seen(Exception):
        pass

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and str(args[0]) == str(part) and not part.exists() and set("wax+") & set(str(args[1])):
            opened.append(str(args[1]))

    def measured(self: Evaluator, arch: Architecture) -> float:
        raise Seen

    sys.addaudithook(watch)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(Evaluator, "score", measured)
    with pytest.raises(Seen):
        label(tiny_supernet, tiny_data, path, count=2, uniform=False)
    assert json.loads(part.read_text())["format"] == "onceforall.labels/1"
    assert opened == []


def test_labels_of_a_supernet_on_another_device_are_those_of_the_processor(
    tiny_supernet: Supernet, tiny_data: ImageData, tmp_path: Path
) -> None:
    here = label(tiny_supernet, tiny_data, tmp_path / "here.jsonl", count=3, uniform=False)
    with elsewhere():
        there = label(
            copy.deepcopy(tiny_supernet).to("meta"), tiny_data, tmp_path / "there.jsonl", count=3, uniform=False
        )
    assert there == here
