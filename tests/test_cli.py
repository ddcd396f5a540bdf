"""The whole road through the command line, on tiny images: train, label, profile, search, specialize."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import typer
from torch.testing import assert_close
from typer.testing import CliRunner

from onceforall import cli, interop, spaces
from onceforall.bundle import measure as bundle_measure
from onceforall.bundle.bundle import RUNTIMES, Bundle
from onceforall.checkpoint import load_network, load_supernet, save_supernet
from onceforall.cost.learned import load_latency
from onceforall.data.dataset import ImageData
from onceforall.errors import BrokenClaim, InvalidConfiguration
from onceforall.files import as_json
from onceforall.nn.supernet import Network, Supernet
from onceforall.predict import labels as labels_module
from onceforall.predict.accuracy import MLPPredictor
from onceforall.profiling.profile import adapt, profile
from onceforall.space import SearchSpace
from onceforall.training import recipe as recipes

COMMANDS = ("train", "finetune", "label", "import", "profile", "devices", "search", "specialize", "verify", "bundle")


@pytest.fixture
def road(tiny_space: SearchSpace, tiny_data: ImageData, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    """The commands on the tiny space and images, with short measurements."""
    monkeypatch.setitem(spaces.BY_NAME._registered, "tiny", lambda num_classes: tiny_space)
    for commands in (cli.building, cli.deploying):
        monkeypatch.setattr(commands, "open_data", lambda *given: tiny_data)
    short = {"calibrating": 8, "validating": 4, "learning": 0, "turns": 2, "burst_seconds": 0.001}
    monkeypatch.setattr(cli.profiling, "run_profile", lambda *a, **k: profile(*a, **k, **short))
    few = {"calibrating": 5, "validating": 4, "turns": 2, "burst_seconds": 0.001}
    monkeypatch.setattr(cli.profiling, "run_adapt", lambda *a, **k: adapt(*a, **k, **few))
    monkeypatch.setattr(labels_module.Evaluator, "score", lambda self, arch: 10.0 + arch.resolution)
    for module in ("finishing", "verify"):  # not a process for each export
        monkeypatch.setattr(f"onceforall.deploy.{module}.measure_memory", lambda *given: 1)
    for module in ("call", "verify"):  # the clock of a machine that does nothing else
        monkeypatch.setattr(
            f"onceforall.deploy.{module}.time_turns", lambda loads, turns, **given: np.full((len(loads), 9), 0.5)
        )
    monkeypatch.setattr(cli.searching, "MLPPredictor", lambda space, seed: MLPPredictor(space, seed=seed, epochs=5))
    return CliRunner()


def run(runner: CliRunner, *arguments: object) -> str:
    result = runner.invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_published_files_are_imported_and_searched_with(road: CliRunner, tmp_path: Path) -> None:
    """A supernet and an accuracy predictor in the authors' format, both with random weights."""
    interop.save_supernet(tmp_path / "net.pth", Supernet(spaces.mobilenet_v3(1.2)))
    sizes, layers = (128, 400, 400, 400, 1), {}
    for number, (before, after) in enumerate(itertools.pairwise(sizes)):
        layers |= {f"{2 * number}.weight": torch.randn(after, before) / 20, f"{2 * number}.bias": torch.zeros(after)}
    torch.save(layers, tmp_path / "acc_predictor.pth")
    for file, kind in (("net.pth", "supernet"), ("acc_predictor.pth", "predictor")):
        run(road, "import", tmp_path / file, "--out", tmp_path / kind)
        assert sorted(path.name for path in (tmp_path / kind).iterdir()) == ["manifest.json", f"{kind}.safetensors"]
    predictor = ("--predictor", tmp_path / "predictor" / "predictor.safetensors")
    target = ("--macs", 300, "--out", tmp_path / "result.json")
    run(road, "search", "--model", tmp_path / "supernet", *predictor, *target)
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["architecture"]["resolution"] in (160, 176, 192, 208, 224)
    assert found["predicted_costs"][0]["value"] <= 300e6
    with pytest.raises(InvalidConfiguration, match="`ofa label` makes one"):
        run(road, "search", "--model", tmp_path / "supernet", *target)


def test_the_whole_road(
    road: CliRunner, tmp_path: Path, tiny_space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "run"
    run(road, "train", "--space", "tiny", "--epochs", 1, "--batch-size", 128, "--out", model)
    recipe = json.loads((model / "recipe.json").read_text())
    assert (recipe["name"], [phase["subnets"] for phase in recipe["phases"]]) == ("random_order", [1])
    run(road, "label", "--model", model, "--count", 20)
    run(road, "profile", "--model", model, "--out", tmp_path / "device.json")
    run(road, "profile", "--model", model, "--adapt", tmp_path / "device.json", "--out", tmp_path / "other.json")
    assert load_latency(tmp_path / "other.json").summary()["kind"] == "learned"
    table = ("--table", tmp_path / "device.json")
    run(
        road,
        "search",
        "--model",
        model,
        *table,
        "--latency",
        "1000 ms",
        "--macs",
        10,
        "--out",
        tmp_path / "result.json",
    )
    found = json.loads((tmp_path / "result.json").read_text())
    assert [cost["name"] for cost in found["predicted_costs"]] == ["latency", "MACs"]
    assert all(cost["value"] <= cost["bound"] for cost in found["predicted_costs"])
    alone = ("--space", "tiny", "--recipe", "standalone", "--epochs", 1, "--architecture", tmp_path / "result.json")
    run(road, "train", *alone, "--batch-size", 128, "--tensorboard", "--out", tmp_path / "alone")
    assert list((tmp_path / "alone" / "tensorboard").iterdir())
    tuned = ("--epochs", 1, "--batch-size", 128, "--out", tmp_path / "tuned")
    run(road, "finetune", "--model", model, "--result", tmp_path / "result.json", *tuned)
    for folder in ("alone", "tuned"):
        network = load_network(tmp_path / folder / "network.safetensors")
        assert as_json(network.architecture.to_json()) == found["architecture"]
    stdout = run(road, "specialize", "--model", model, *table, "--latency", "1000 ms", "--out", tmp_path / "out")
    summary = json.loads(stdout.splitlines()[-1])
    assert [network["role"] for network in summary["networks"]] == ["largest", "searched", "uniform"]
    stdout = run(
        road, "specialize", "--model", model, *table, "--result", tmp_path / "result.json", "--out", tmp_path / "given"
    )
    assert [network["role"] for network in json.loads(stdout.splitlines()[-1])["networks"]] == ["largest", "given"]
    manifest = json.loads((tmp_path / "given" / "manifest.json").read_text())
    assert manifest["networks"][1]["architecture"] == found["architecture"]
    stdout = run(
        road, "specialize", "--model", model, "--macs", 10, "--limit", "params <= 90%", "--export", "python",
        "--device", "none", "--out", tmp_path / "bounded",
    )  # fmt: skip
    summary = json.loads(stdout.splitlines()[-1])
    assert [network["role"] for network in summary["networks"]] == ["largest", "searched", "uniform"]
    assert summary["networks"][1]["constraints"].keys() == {"MACs", "parameters"}
    assert [network["measured_latency_ms"] for network in summary["networks"]] == [None] * 3
    assert not (tmp_path / "bounded" / "latency.json").exists()
    for name in (
        "manifest.json",
        "latency.json",
        "front.png",
        "MODEL_CARD.md",
        "largest/onnxruntime-fp32.onnx",
        "searched-1000ms/onnxruntime-fp32.onnx",
        "uniform-1000ms/onnxruntime-fp32.onnx",
    ):
        assert (tmp_path / "out" / name).stat().st_size > 0
    assert not (tmp_path / "out" / "steps.jsonl").exists()
    stdout = run(road, "verify", tmp_path / "out")  # the manifest knows the model
    assert json.loads(stdout.splitlines()[-1])["verified"] >= 3 * 6
    given_input = json.loads((tmp_path / "out" / "manifest.json").read_text())["input"]
    assert (given_input["mean"], given_input["std"]) == ([0.5, 0.5, 0.5], [0.2, 0.2, 0.2])
    verified = json.loads(stdout.splitlines()[-1])["verified"]
    save_supernet(model / "supernet.safetensors", Supernet(tiny_space, seed=9))  # trained anew, say
    stdout = run(road, "verify", tmp_path / "out")
    # No checksum and no space, no parity and no agreement of three networks.
    assert json.loads(stdout.splitlines()[-1])["verified"] <= verified - 2 - 2 * 3
    with pytest.raises(BrokenClaim, match="source weights, sha256"):
        run(road, "verify", tmp_path / "out", "--model", model)
    monkeypatch.setattr(bundle_measure, "_resident", lambda *given: 1024)
    (tmp_path / "small.json").write_text(json.dumps(tiny_space.smallest().to_json()))
    results = ("--result", tmp_path / "result.json", "--result", tmp_path / "small.json")
    stdout = run(road, "bundle", "--model", model, *results, "--out", tmp_path / "bundle")
    assert json.loads(stdout.splitlines()[-1]).keys() == set(RUNTIMES)
    assert Bundle.load(tmp_path / "bundle").names == ("result", "small")


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in ("devices", "verify")])
def test_help_explains_every_option(command: str) -> None:
    result = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    assert "-> " in result.output or "->" in result.output or "ONNX" in result.output
    assert all(getattr(option, "help", None) for option in typer.main.get_command(cli.app).commands[command].params)  # type: ignore[attr-defined]


def test_devices_are_listed_with_what_to_install() -> None:
    result = CliRunner().invoke(cli.app, ["devices"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"onnxruntime {onnxruntime.__version__}" in result.output
    assert "torch-compiled" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--out", "x", "--space", "vgg"), "--space vgg: choices are"),
        (("train", "--out", "x", "--epochs", "1,2", "--recipe", "progressive_shrinking"), "give one number, or six"),
        (("train", "--out", "x", "--epochs", "many"), "give a whole number, or six"),
        (("train", "--out", "x", "--epochs", "1,2", "--recipe", "sandwich"), "recipe sandwich takes one whole number"),
        (("train", "--out", "x", "--recipe", "magic"), "recipe 'magic': choices are progressive_shrinking, sandwich"),
        (("train", "--out", "x", "--loss", "kl"), "recipe random_order does not take that: "),
        (("finetune", "--out", "x", "--result", "nowhere"), "cannot read nowhere"),
        (("train", "--out", "x", "--precision", "fp8"), "choices are fp32, bf16"),
        (("train", "--out", "x", "--data", "imagenet"), "expected cifar10, cifar10:FOLDER"),
        (("train", "--out", "x", "--data", "cifar10:nowhere"), "nowhere holds no data_batch_1.bin"),
        (("bundle", "--out", "x", "--result", "a.json", "--result", "b/a.json"), "--name a, a: give each of the 2"),
        (("bundle", "--out", "x", "--result", "nowhere"), "cannot read nowhere"),
        (("label", "--model", "nowhere"), "no such folder; known supernets are cifar10, mit/"),
        (("label", "--model", "cifar10"), "--model cifar10 is no run folder: say with --out where its labels go"),
        (("train", "--out", "x [/b]", "--model", "photos [old]"), "--model photos [old]: no such folder"),
        (("finetune", "--out", "x", "--result", "[red]"), "cannot read [red]"),
        (("profile", "--out", "x", "--device", "absent"), "pip install 'onceforall[thing]'"),
        (("train", "--out", "x", "--subnets", "0"), "subnets 0: expected an integer of at least 1"),
        (("train", "--out", "x", "--batch-size", "0"), "batch_size 0: expected an integer of at least 2"),
        (("label", "--model", "cifar10", "--out", "x", "--device", "gpu"), "device 'gpu': "),
        (("search", "--out", "x", "--model", "nowhere"), "no such folder; known supernets are cifar10, mit/"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    def absent(*given: object) -> None:
        raise InvalidConfiguration("pip install 'onceforall[thing]'")

    if "absent" in arguments:
        monkeypatch.setattr(cli.profiling.runtimes, "by_name", absent)
    monkeypatch.setattr(sys, "argv", ["ofa", *arguments])
    monkeypatch.setattr(cli.console, "width", 500)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_batch_norm_runs_over_what_divides_a_process_s_share(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [recipes._chunk(batch) for batch in (2048, 64, 48, 32, 100, 33)] == [64, 64, 16, 32, 4, 0]
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert [recipes._chunk(batch) for batch in (2048, 256, 100)] == [64, 32, 4]


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("ofa")
    if not command.exists():
        pytest.skip("the package is not installed beside this interpreter: `make test` installs it")
    result = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    assert all(name in result.stdout for name in COMMANDS)


def test_training_begins_with_the_weights_of_a_supernet(
    road: CliRunner, tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other data, with three classes in place of ten: all weights but the classifier's are where training starts."""
    model = tmp_path / "model" / "supernet.safetensors"
    start = Supernet(tiny_space, seed=5)
    save_supernet(model, start)
    labels = {name: getattr(tiny_data, name) % 3 for name in ("train_labels", "test_labels")}
    monkeypatch.setattr(
        cli.building, "open_data", lambda *given: replace(tiny_data, num_classes=3, _prepared={}, **labels)
    )
    slow = ("--epochs", 1, "--batch-size", 128, "--learning-rate-scale", 1e-9)
    given = ("--model", model.parent, *slow)
    with pytest.raises(InvalidConfiguration, match=r"--space tiny: --model .* has its own"):
        run(road, "train", "--space", "tiny", *given, "--out", tmp_path / "run")
    run(road, "train", *given, "--out", tmp_path / "run")
    found = load_supernet(tmp_path / "run" / "supernet.safetensors")
    assert found.space == tiny_space.with_classes(3)
    (tmp_path / "arch.json").write_text(json.dumps(tiny_space.largest().to_json()))
    run(
        road,
        "train",
        *given,
        "--recipe",
        "standalone",
        "--architecture",
        tmp_path / "arch.json",
        "--out",
        tmp_path / "a",
    )
    run(road, "finetune", "--result", tmp_path / "arch.json", *given, "--out", tmp_path / "tuned")
    largest = Network.of(start, tiny_space.largest())
    for net, origin in (
        (found, start),
        (load_network(tmp_path / "a" / "network.safetensors"), largest),
        (load_network(tmp_path / "tuned" / "network.safetensors"), largest),
    ):
        trained = net.state_dict()
        same = {name: tensor for name, tensor in origin.named_parameters() if tensor.shape == trained[name].shape}
        assert len(same) == len(dict(origin.named_parameters())) - 2
        for name, tensor in same.items():
            assert_close(trained[name], tensor, rtol=0, atol=1e-4)


def test_what_was_trained_from_other_weights_is_not_taken_for_this(
    road: CliRunner, tmp_path: Path, tiny_space: SearchSpace
) -> None:
    (tmp_path / "arch.json").write_text(json.dumps(tiny_space.largest().to_json()))
    given = ("--result", tmp_path / "arch.json", "--epochs", 1, "--batch-size", 128, "--out", tmp_path / "tuned")
    for seed in (0, 1):
        save_supernet(tmp_path / "model" / "supernet.safetensors", Supernet(tiny_space, seed=seed))
        if not seed:
            run(road, "finetune", "--model", tmp_path / "model", *given)
    with pytest.raises(InvalidConfiguration, match=r"run\.json is of another run"):
        run(road, "finetune", "--model", tmp_path / "model", *given)


def test_a_result_that_was_found_for_another_supernet_is_noticed(
    tmp_path: Path, tiny_space: SearchSpace, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"model": "runs/mine", "architecture": tiny_space.largest().to_json()}))
    assert cli.common.read_architecture(path, "runs/mine") == tiny_space.largest()
    assert capsys.readouterr().err == ""
    assert cli.common.read_architecture(path, "cifar10") == tiny_space.largest()
    assert "found for --model runs/mine" in " ".join(capsys.readouterr().err.split())
    path.write_text(json.dumps({"format": "onceforall.front/1", "points": []}))
    with pytest.raises(InvalidConfiguration, match="is a whole front: search for one budget"):
        cli.common.read_architecture(path)


class Enough(Exception):
    """What was to be seen was seen."""


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tiny_data: ImageData) -> dict[str, Any]:
    """The arguments that commands call the package with, of which nothing then runs."""
    seen: dict[str, Any] = {}

    def record(*given: Any, **named: Any) -> None:
        seen.update(named, given=given)
        raise Enough

    for module, name in (
        (cli.deploying, "run_specialize"),
        (cli.building, "run_training"),
        (cli.building, "run_label"),
    ):
        monkeypatch.setattr(module, name, record)
        monkeypatch.setattr(
            module, "open_data", lambda *given: seen.update(opened=given) or replace(tiny_data, num_classes=10)
        )
    return seen


def test_specialize_passes_every_option_on(called: dict[str, Any], tmp_path: Path) -> None:
    options = (
        "--latency", "2 ms", "--latency", "60%", "--memory", 64, "--weights", 32, "--macs", 5, "--params", 0.4,
        "--limit", "macs <= 50%", "--quantize", "int8",
        "--max-drop", 0.25, "--quantized-labels", 7, "--full-int8", "--export", "pt2",
        "--export", "onnx:int8", "--export", "python", "--finetune", 3, "--candidates", 2, "--seed", 5, "--threads", 2,
    )  # fmt: skip
    with pytest.raises(Enough):
        run(CliRunner(), "specialize", "--out", tmp_path / "out", *options)
    device = called["given"][3]
    assert (device.name, device.threads, device.precision) == ("onnxruntime", 2, "fp32")
    assert [(d.name, d.precision, d.threads) for d in called["exports"]] == [
        ("torch", "fp32", 2),
        ("onnxruntime", "int8", 2),
        ("python", "fp32", 2),
    ]
    assert [limit.model.unit for limit in called["limits"]] == ["MACs", "parameters", "bytes", "bytes", "MACs"]
    assert [limit.bound for limit in called["limits"][:4]] == [5e6, 4e5, 65536, 32768]
    expected = {
        "budgets": ["2 ms", "60%"], "quantize": "int8", "max_drop": 0.25, "quantized_labels": 7, "full_int8": True,
        "finetune": 3, "candidates": 2, "seed": 5, "table": None, "architectures": [], "data_source": "cifar10",
    }  # fmt: skip
    assert {name: called[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ({"data_source": "photos"}, (), "(give --data): data 'photos': expected cifar10"),
        ({}, (), "(give --data): data 'folder:photos': expected cifar10"),  # older manifests do not say it
        ({"data_source": "photos"}, ("--data", "mine"), "data 'mine': expected cifar10"),
    ],
)
def test_verify_opens_the_data_that_the_manifest_says(
    source: dict[str, Any], options: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it is not there, which is said; it is an error where it was asked for."""
    monkeypatch.chdir(tmp_path)
    manifest = {"supernet": {}, "data": {"name": "folder:photos"}, **source}
    monkeypatch.setattr(cli.deploying, "read_manifest", lambda folder: (manifest, []))
    monkeypatch.setattr(cli.deploying, "run_verify", lambda *given: iter(()))
    result = CliRunner().invoke(cli.app, ["verify", ".", *options], env={"COLUMNS": "500"})
    assert said in (str(result.exception) if options else " ".join(result.output.split()))
    assert isinstance(result.exception, InvalidConfiguration) == bool(options)


@pytest.mark.parametrize(
    ("space", "name", "epochs", "subnets", "settings"),
    [
        ("mobilenet_v3_small_images", "random_order", 45, 45, (128, 0, 2e-4)),
        ("mobilenet_v3", "progressive_shrinking", 605, 1205, (2048, 64, 3e-5)),
    ],
)
def test_what_is_not_said_of_training_depends_on_the_size_of_images(
    space: str,
    name: str,
    epochs: int,
    subnets: int,
    settings: tuple[float, ...],
    called: dict[str, Any],
    tmp_path: Path,
) -> None:
    with pytest.raises(Enough):
        run(CliRunner(), "train", "--space", space, "--out", tmp_path)
    recipe = called["given"][2]
    assert (recipe.name, sum(phase.epochs for phase in recipe.phases), recipe.subnet_epochs) == (name, epochs, subnets)
    assert (recipe.batch_size, recipe.batch_norm_size, recipe.optimizer.weight_decay) == settings
    assert (called["seed"], called["device"], called["precision"], called["origin"]) == (0, "cpu", "fp32", None)


def test_train_and_label_pass_every_option_on(called: dict[str, Any], tmp_path: Path, tiny_space: SearchSpace) -> None:
    options = (
        "--recipe", "sandwich", "--epochs", 9, "--batch-size", 96, "--batch-norm-size", 32,
        "--learning-rate-scale", 0.5, "--weight-decay", 1e-3, "--clip-norm", 2, "--loss", "alpha", "--subnets", 3,
        "--seed", 4, "--precision", "bf16", "--workers", 2,
    )  # fmt: skip
    with pytest.raises(Enough):
        run(CliRunner(), "train", "--out", tmp_path, *options)
    recipe = called["given"][2]
    (phase,) = recipe.phases
    assert (recipe.name, recipe.batch_size, recipe.batch_norm_size) == ("sandwich", 96, 32)
    assert (recipe.optimizer.weight_decay, recipe.clip_norm) == (1e-3, 2)
    assert (phase.epochs, phase.loss, phase.subnets) == (9, recipes.losses.AlphaDivergence(), 3)
    assert phase.learning_rate == pytest.approx(0.5 * 2.6 * 96 / 2048)
    assert (called["seed"], called["precision"], called["opened"][2]) == (4, "bf16", 2)
    save_supernet(tmp_path / "model" / "supernet.safetensors", Supernet(tiny_space))
    options = (
        "--count",
        7,
        "--distribution",
        "macs",
        "--precision",
        "bf16",
        "--seed",
        3,
        "--out",
        tmp_path / "l.jsonl",
    )
    with pytest.raises(Enough):
        run(CliRunner(), "label", "--model", tmp_path / "model", *options)
    assert (called["count"], called["distribution"], called["precision"], called["seed"]) == (7, "macs", "bf16", 3)
    assert called["given"][2] == tmp_path / "l.jsonl"
