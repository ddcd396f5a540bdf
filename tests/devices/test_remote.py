"""Plans: written here, measured by their own script, read back."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from onceforall.devices import measure
from onceforall.devices.remote import RemoteDevice, structure
from onceforall.devices.timing import Turns, time_turns
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration, MeasurementPending
from onceforall.files import read_json, write_json

TURNS = Turns(3, 0.0, seed=5)
SHAPE = (1, 3, 6, 6)


def networks(seed: int = 0) -> list[tuple[nn.Module | bytes, tuple[int, ...]]]:
    """Two convolutions, and the first one again."""
    torch.manual_seed(seed)
    first, second = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 8, 3)
    return [(first, SHAPE), (second, SHAPE), (first, SHAPE)]


def planned(tmp_path: Path) -> Path:
    """The folder of a fresh plan."""
    with pytest.raises(
        MeasurementPending, match=r"carry .* run `python measure.py` .*numpy, onnxruntime\).* results.json"
    ):
        RemoteDevice(tmp_path).time(networks(), TURNS)
    (folder,) = tmp_path.iterdir()
    return folder


def run_script(folder: Path, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """measure.py as a person runs it: without this package."""
    command = [python, "-I", "measure.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=600)


def test_a_plan_is_measured_elsewhere_and_read_back(tmp_path: Path) -> None:
    folder = planned(tmp_path / "here")
    assert sorted(path.name for path in folder.iterdir()) == ["measure.py", "networks", "plan.json"]
    assert len(list((folder / "networks").iterdir())) == 2  # the first and the third network share a file
    away = tmp_path / "away"
    shutil.copytree(folder, away)
    done = run_script(away)
    assert done.returncode == 0, done.stderr
    shutil.copy(away / "results.json", folder)
    device = RemoteDevice(tmp_path / "here")
    assert device.describe()["processor"] == "not measured yet"
    again = networks(seed=9)  # other weights: the same plan
    kept: list[np.ndarray] = []
    found = device.time(again, TURNS, done=[np.array([7.0, 8.0, 9.0])], keep=kept.append)
    assert found.shape == (3, 3)
    assert found[:, 0].tolist() == [7.0, 8.0, 9.0]
    assert np.array_equal(found[:, 1:], np.stack(kept, axis=1))
    assert (found > 0).all()
    said = device.describe()
    assert said["runtime"] == f"onnxruntime {onnxruntime.__version__}"
    assert said["processor"] == measure.describe_machine()["processor"]
    assert (said["name"], said["threads"], said["precision"]) == (f"onnxruntime@{tmp_path / 'here'}", 1, "fp32")


def test_the_script_goes_on_with_the_next_turn(tmp_path: Path) -> None:
    folder = planned(tmp_path)
    assert run_script(folder).returncode == 0
    results = read_json(folder / "results.json")
    first = results["turns"][:2]
    write_json(folder / "results.json", {**results, "turns": first}, sealed=False)
    with pytest.raises(IncompatibleCheckpoint, match=r"has 2 of 3 turns: run `python measure\.py` again"):
        RemoteDevice(tmp_path).time(networks(), TURNS)
    done = run_script(folder)
    assert "turn 3 of 3" in done.stdout
    assert "turn 2 of 3" not in done.stdout
    assert RemoteDevice(tmp_path).time(networks(), TURNS)[:, :2].T.tolist() == first


def test_the_script_times_as_this_package_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same order, same number of runs: the script's sessions and ours count calls."""
    folder = planned(tmp_path)
    known: dict[bytes, int] = {}

    class Counting:
        runtime = "counting 1"

        def __init__(self, model: bytes, threads: int) -> None:
            self.number = known.setdefault(model, len(known))  # loaded anew for every burst

        def feed(self, images: Any) -> None: ...

        def run(self) -> None:
            order.append(self.number)

        def output(self) -> Any:
            return np.zeros(1)

    order: list[int] = []
    monkeypatch.setitem(measure.RUNTIMES, "onnxruntime", Counting)
    measure.measure(folder, say=lambda text: None)
    script, order = order[3:], []  # without one run each while loading
    time_turns([lambda i=i: lambda: order.append(i) for i in (0, 1, 0)], TURNS)
    assert script == order
    assert len(order) == 3 * 3 * 5


def test_other_networks_settings_or_turns_are_another_plan(tmp_path: Path) -> None:
    other = [(nn.Conv2d(3, 4, 5), SHAPE)]
    for given, turns, threads in (
        (networks(), TURNS, 1),
        (networks(3), TURNS, 1),  # no other plan: only the weights differ
        (other, TURNS, 1),
        (networks(), Turns(4, 0.0, seed=5), 1),
        (networks(), Turns(3, 0.0, seed=6), 1),
        (networks(), TURNS, 2),
    ):
        with pytest.raises(MeasurementPending):
            RemoteDevice(tmp_path, threads=threads).time(given, turns)
    assert len(list(tmp_path.iterdir())) == 5


def test_layers_that_are_kept_are_kept_in_what_is_carried(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3))
    found = {}
    for kept in ((), (0, 2)):
        device = RemoteDevice(tmp_path / "phone", precision="int8").keeping(kept)
        with pytest.raises(MeasurementPending):
            device.time([(network, SHAPE)], TURNS)
        assert device.describe().get("kept", []) == list(kept)
    for plan in (tmp_path / "phone").iterdir():
        (file,) = (plan / "networks").iterdir()
        nodes = onnx.load(file).graph.node
        found[tuple(read_json(plan / "plan.json").get("kept", ()))] = sum(
            node.op_type == "QuantizeLinear" for node in nodes
        )
    assert found.keys() == {(), (0, 2)}
    assert found[0, 2] < found[()]


def test_a_structure_is_everything_but_the_weights() -> None:
    first, second = (structure(nn.Conv2d(3, 4, 3), SHAPE) for _ in range(2))
    assert first == second
    wider, strided = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 4, 3, stride=2)
    assert (
        len({first, structure(wider, SHAPE), structure(strided, SHAPE), structure(nn.Conv2d(3, 4, 3), (2, 3, 6, 6))})
        == 4
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value[:-9], "is not JSON.*copy results.json from the device again"),
        (lambda value: "[]", "holds no JSON object"),
        (lambda value: value.replace('"plan": "', '"plan": "0'), "bring back the results of this plan"),
        (lambda value: value.replace("results/1", "results/9"), "onceforall.results/9"),
        (lambda value: json.dumps({**json.loads(value), "turns": [[1.0, 2.0]] * 3}), "expected turns of 3 times"),
        (lambda value: json.dumps({**json.loads(value), "turns": [[1.0, 2.0, 0.0]] * 3}), "expected turns of 3 times"),
        (lambda value: json.dumps({**json.loads(value), "turns": [[1.0, 2.0, "3"]] * 3}), "expected turns of 3 times"),
        (lambda value: json.dumps({**json.loads(value), "machine": "phone"}), "expected turns of 3 times"),
    ],
)
def test_damaged_and_foreign_results_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    folder = planned(tmp_path)
    plan = read_json(folder / "plan.json")
    machine = {"runtime": "onnxruntime 1.0", "processor": "a phone"}
    good = {
        "format": measure.RESULTS_FORMAT,
        "plan": plan["digest"],
        "machine": machine,
        "turns": [[1.0, 2.0, 3.0]] * 3,
    }
    path = folder / "results.json"
    path.write_text(json.dumps(good))
    device = RemoteDevice(tmp_path)
    assert device.time(networks(), TURNS).tolist() == [[1.0] * 3, [2.0] * 3, [3.0] * 3]
    assert device.describe()["processor"] == "a phone"
    path.write_text(change(json.dumps(good)))
    with pytest.raises(IncompatibleCheckpoint, match=message):
        device.time(networks(), TURNS)


def test_the_script_refuses_damaged_networks_and_foreign_results(tmp_path: Path) -> None:
    folder = planned(tmp_path)
    write_json(folder / "results.json", {"format": measure.RESULTS_FORMAT, "plan": "0", "machine": {}, "turns": []})
    done = run_script(folder)
    assert done.returncode == 1
    assert "results.json is of another plan" in done.stderr
    path = next((folder / "networks").iterdir())
    path.write_bytes(path.read_bytes()[:-1])
    done = run_script(folder)
    assert done.returncode == 1
    assert "is not the plan's: copy the folder again" in done.stderr


def test_the_script_is_python_3_8_and_needs_nothing_of_this_package() -> None:
    source = Path(measure.__file__).read_text()
    tree = ast.parse(source, feature_version=(3, 8))
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "ai_edge_litert", "tflite_runtime"}
    outside = {node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)}
    assert {alias.name for node in outside for alias in node.names if alias.name == "onnxruntime"} == set()


def test_runtimes_without_a_script_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="remote runtime 'openvino': choices are onnxruntime, litert"):
        RemoteDevice(tmp_path, "openvino")
