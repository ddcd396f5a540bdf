"""examples/plugins, installed as a distribution of its own and used from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import onceforall
from onceforall.testing import DeviceSuite, SearchSpaceSuite

EXAMPLES = Path(__file__).parent.parent / "examples" / "plugins"
COLOURS = {"red": (200, 60, 60), "blue": (60, 60, 200)}
ENERGY = "energy <= 0.1 mJ"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed plug-ins and pictures of two colours."""
    folder = tmp_path_factory.mktemp("plugins")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-build-isolation", "--no-deps"]
    done = subprocess.run([*pip, "--target", str(folder / "site"), str(EXAMPLES)], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("val", 12)):
        for name, colour in COLOURS.items():
            (folder / "data" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = (np.array(colour) + rng.normal(0, 60, (32, 32, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "data" / part / name / f"{number}.png")
    return folder


def ofa(place: Path, *words: str) -> str:
    """What a command prints: on the terminal, and last its line of JSON."""
    paths = os.pathsep.join([str(place / "site"), str(Path(onceforall.__file__).parent.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "onceforall.cli", *words]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """A supernet of the plug-in's space, trained with the plug-in's recipe, and its labels."""
    settings = ("--space", "fused", "--recipe", "towards_small", "--epochs", "1", "--batch-size", "16")
    settings += ("--clip-norm", "2", "--weight-decay", "0.001")  # which every recipe takes
    ofa(place, "train", *settings, "--data", "data", "--workers", "0", "--out", "run")
    ofa(place, "label", "--model", "run", "--data", "data", "--count", "20")
    return place / "run"


def test_a_space_a_layer_and_a_recipe_of_a_stranger_train(run: Path) -> None:
    recipe = json.loads((run / "recipe.json").read_text())
    (phase,) = recipe["phases"]
    assert (recipe["clip_norm"], recipe["optimizer"]["weight_decay"]) == (2.0, 0.001)
    assert phase["sampler"] == {"type": "onceforall_examples.recipe:TowardsSmall", "tries": 3}
    assert phase["loss"] == "onceforall_examples.recipe:JensenShannon"
    assert json.loads((run / "space.json").read_text())["type"] == "fused"
    assert len((run / "labels.jsonl").read_text().splitlines()) > 20


def test_a_cost_and_an_export_of_a_stranger_reach_the_manifest(place: Path, run: Path) -> None:
    ofa(place, "search", "--model", "run", "--limit", ENERGY, "--out", "result.json")
    (cost,) = json.loads((place / "result.json").read_text())["predicted_costs"]
    assert (cost["name"], cost["unit"], cost["bound"]) == ("energy", "mJ", 0.1)
    assert 0 < cost["value"] <= 0.1
    words = ("--result", "result.json", "--limit", ENERGY, "--export", "tensorrt", "--out", "out")
    ofa(place, "specialize", "--model", "run", "--data", "data", *words)
    about = json.loads((place / "out" / "manifest.json").read_text())
    given = next(network for network in about["networks"] if network["role"] == "given")
    (export,) = (export for export in given["exports"] if export["device"] == "tensorrt")
    assert export["test_top1"] is None
    assert export["latency"] is None
    script = (place / "out" / "given" / "build_engine.py").read_text()
    compile(script, "build_engine.py", "exec")
    assert "tensorrt.onnx" in script
    assert "NVIDIA GPU" in (place / "out" / "manifest.json").read_text()
    assert "energy" in json.dumps(given)


def test_a_device_of_a_stranger_is_listed_and_profiles(place: Path, run: Path) -> None:
    assert "onnx-reference" in ofa(place, "devices")
    code = (
        "import onceforall as ofa, onceforall_examples.space as plug\n"
        "space = plug.fused((8,)).restrict(depths=[1, 2], expands=[1, 2])\n"
        "device = ofa.device('onnx-reference')\n"
        "model = ofa.profile(space, device, calibrating=8, validating=4, turns=2, burst_seconds=0, learning=0)\n"
        "print(model.device['name'], model.cost(space.lower(space.largest())) > 0)\n"
    )
    paths = os.pathsep.join([str(place / "site"), str(Path(onceforall.__file__).parent.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["onnx-reference", "True"], done.stderr


@pytest.fixture
def examples(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(place / "site"))


def _tests(suite: type) -> list[str]:
    return [name for name in dir(suite) if name.startswith("test_")]


@pytest.mark.parametrize("name", _tests(SearchSpaceSuite))
def test_the_space_passes_the_suite(name: str, examples: None) -> None:
    from onceforall_examples.space import fused

    getattr(SearchSpaceSuite(), name)(fused((8, 16)))


@pytest.mark.parametrize("name", [name for name in _tests(DeviceSuite) if "large_network" not in name])
def test_the_device_passes_the_suite(name: str, examples: None) -> None:
    from onceforall_examples.device import OnnxReferenceDevice

    getattr(DeviceSuite(), name)(OnnxReferenceDevice())
