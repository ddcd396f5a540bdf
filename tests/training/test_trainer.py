import itertools
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onceforall.architecture import Architecture
from onceforall.checkpoint import load_supernet, read_tensors
from onceforall.data.dataset import ImageData
from onceforall.errors import InvalidConfiguration, TrainingDiverged, UnwritableOutput
from onceforall.files import read_json, read_jsonl
from onceforall.nn.supernet import Supernet
from onceforall.space import SearchSpace
from onceforall.training import trainer
from onceforall.training.recipe import Phase, Recipe, progressive_shrinking
from onceforall.training.trainer import train

# Six phases of six steps: the training split has 540 images.
RECIPE = progressive_shrinking(epochs=(1,) * 6, batch_size=90, learning_rate_scale=0.5)
STEPS = 6

# A recipe without a teacher, for what needs no phases.
PLAIN = Recipe("plain", (Phase("full", 2, 0.05, distill=0.0),), batch_size=180)  # 2 epochs of 3 steps

FILES = {"space.json", "recipe.json", "run.json", "checkpoint.safetensors", "teacher.safetensors", "log.jsonl"}

# Trains in a process of its own and says when a step is done.
CHILD = """
import json, runpy, sys, torch
from onceforall.nn.supernet import Supernet
from onceforall.training.recipe import Recipe
from onceforall.training.trainer import train
conftest, run, recipe, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
shared = runpy.run_path(conftest)
train(Supernet(shared["make_tiny_space"]()), shared["make_tiny_data"](), Recipe.from_json(json.loads(recipe)), run,
      checkpoint_every=4, report=lambda record: print(json.dumps(record), flush=True))
"""


def weights_of(supernet: Supernet) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in supernet.state_dict().items()}


def assert_same_weights(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_space: SearchSpace, tiny_data: ImageData) -> Path:
    """The folder of an undisturbed run."""
    run = tmp_path_factory.mktemp("undisturbed")
    train(Supernet(tiny_space), tiny_data, RECIPE, run)
    return run


@pytest.fixture(scope="module")
def final_weights(finished: Path) -> dict[str, Tensor]:
    return weights_of(load_supernet(finished / "supernet.safetensors"))


@pytest.fixture
def started(tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData) -> Path:
    """The folder of a run that stopped after its first step."""
    train(Supernet(tiny_space), tiny_data, PLAIN, tmp_path / "run", stop_after=1)
    return tmp_path / "run"


# Resume


@pytest.mark.parametrize(
    "stops",
    [[1, 8, 11, 25, 35], [STEPS, 2 * STEPS, 4 * STEPS, 5 * STEPS]],
    ids=["inside phases", "at the ends of phases"],
)
def test_a_run_stopped_and_resumed_ends_with_the_weights_of_an_undisturbed_one(
    tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData, final_weights: dict[str, Tensor], stops: list[int]
) -> None:
    train(Supernet(tiny_space), tiny_data, RECIPE, tmp_path, stop_after=stops[0])
    for before, stop in itertools.pairwise(stops):  # other initial weights: all must come from the folder
        train(Supernet(tiny_space, seed=5), tiny_data, RECIPE, tmp_path, stop_after=stop - before)
    resumed = train(Supernet(tiny_space, seed=5), tiny_data, RECIPE, tmp_path)
    assert_same_weights(weights_of(resumed), final_weights)


# Sorts channels and opens every choice in two phases of three steps, one after the other.
SHORT = Recipe(
    "short",
    (
        Phase("full", 1, 0.02, distill=0.0),
        Phase("open", 1, 0.02, depths=9, kernels=9, expands=9, width_multipliers=9, subnets=2, sort_channels=True),
    ),
    batch_size=180,
)


def test_every_kind_of_space_trains_and_resumes_exactly(
    tmp_path: Path, kind_of_space: SearchSpace, tiny_data: ImageData
) -> None:
    space = kind_of_space
    whole = weights_of(train(Supernet(space), tiny_data, SHORT, tmp_path / "whole"))
    assert all(torch.isfinite(tensor).all() for tensor in whole.values())
    train(Supernet(space), tiny_data, SHORT, tmp_path / "run", stop_after=1)
    train(Supernet(space, seed=5), tiny_data, SHORT, tmp_path / "run", stop_after=3)
    resumed = train(Supernet(space, seed=5), tiny_data, SHORT, tmp_path / "run")
    assert_same_weights(weights_of(resumed), whole)
    matrices = [(name, tensor) for name, tensor in Supernet(space).named_parameters() if name.endswith("conv.weight")]
    assert [name for name, initial in matrices if torch.equal(whole[name], initial)] == []


def test_a_killed_run_resumes_to_the_weights_of_an_undisturbed_one(
    tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData, final_weights: dict[str, Tensor]
) -> None:
    conftest = Path(__file__).parents[1] / "conftest.py"
    recipe, threads = json.dumps(RECIPE.to_json()), str(torch.get_num_threads())
    command = [sys.executable, "-c", CHILD, str(conftest), str(tmp_path / "run"), recipe, threads]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        for line in child.stdout:
            record = json.loads(line)
            if (record["phase"], record["step"]) == (2, 5):
                child.send_signal(signal.SIGKILL)
                break
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "supernet.safetensors").exists()
    resumed = train(Supernet(tiny_space), tiny_data, RECIPE, tmp_path / "run")
    assert_same_weights(weights_of(resumed), final_weights)


def test_a_finished_run_is_returned_without_training(
    finished: Path, tiny_space: SearchSpace, tiny_data: ImageData, final_weights: dict[str, Tensor]
) -> None:
    reports: list[dict[str, Any]] = []
    again = train(Supernet(tiny_space), tiny_data, RECIPE, finished, report=reports.append)
    assert reports == []
    assert_same_weights(weights_of(again), final_weights)


def test_another_seed_gives_other_weights(
    tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData, started: Path
) -> None:
    train(Supernet(tiny_space), tiny_data, PLAIN, tmp_path / "other", seed=1, stop_after=1)
    one, other = (read_tensors(run / "checkpoint.safetensors")[0] for run in (started, tmp_path / "other"))
    assert not torch.equal(one["stem.0.full.conv.weight"], other["stem.0.full.conv.weight"])


@pytest.mark.parametrize(
    ("change", "file"),
    [("recipe", "recipe.json"), ("seed", "run.json"), ("precision", "run.json"), ("space", "space.json")],
)
def test_the_folder_of_another_run_is_refused_and_left_alone(
    started: Path, tiny_space: SearchSpace, tiny_data: ImageData, change: str, file: str
) -> None:
    before = (started / "checkpoint.safetensors").read_bytes()
    space = tiny_space.restrict(kernels=[3, 5]) if change == "space" else tiny_space
    recipe = replace(PLAIN, momentum=0.8) if change == "recipe" else PLAIN
    options = {"seed": {"seed": 1}, "precision": {"precision": "bf16"}}.get(change, {})
    with pytest.raises(InvalidConfiguration, match=f"{started / file} is of another run: choose a new folder"):
        train(Supernet(space), tiny_data, recipe, started, **options)  # type: ignore[arg-type]
    assert (started / "checkpoint.safetensors").read_bytes() == before


def test_other_data_is_refused(started: Path, tiny_space: SearchSpace, tiny_data: ImageData) -> None:
    fewer = replace(
        tiny_data, train_images=tiny_data.train_images[:500], train_labels=tiny_data.train_labels[:500], _prepared={}
    )
    with pytest.raises(InvalidConfiguration, match=r"run.json is of another run"):
        train(Supernet(tiny_space), fewer, PLAIN, started)


# What a run writes


def test_a_run_folder_holds_the_documented_files(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == FILES | {"supernet.safetensors"}


def test_a_run_folder_says_what_was_trained_and_how(
    finished: Path, tiny_space: SearchSpace, tiny_data: ImageData
) -> None:
    assert Recipe.from_json(read_json(finished / "recipe.json")) == RECIPE
    assert read_json(finished / "space.json") == json.loads(json.dumps(tiny_space.to_json()))
    assert read_json(finished / "run.json") == {"seed": 0, "precision": "fp32", "data": tiny_data.describe()}


def test_the_teacher_is_the_supernet_as_the_first_phase_left_it(
    finished: Path, tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData
) -> None:
    first = train(Supernet(tiny_space), tiny_data, replace(RECIPE, phases=RECIPE.phases[:1]), tmp_path)
    assert_same_weights(weights_of(load_supernet(finished / "teacher.safetensors")), weights_of(first))


def test_the_log_holds_losses_and_accuracies_of_every_phase(finished: Path) -> None:
    start, *records = (record for record in read_jsonl(finished / "log.jsonl") if record.get("event") != "resume")
    assert start["event"] == "start"
    assert {"python", "torch", "device", "threads"} <= start.keys()
    where = [(phase.name, number, STEPS) for number, phase in enumerate(RECIPE.phases)]
    losses = [record for record in records if "loss" in record]
    assert [(record["name"], record["phase"], record["step"]) for record in losses] == where
    for record in losses:
        assert record.keys() == {"phase", "name", "step", "loss", "learning_rate", "images_per_s", "seconds"}
        assert 0 < record["loss"] < 10
    accuracies = [record for record in records if "largest_top1" in record]
    assert [(record["name"], record["phase"], record["step"]) for record in accuracies] == where
    for record in accuracies:
        assert record.keys() == {"phase", "name", "step", "largest_top1", "smallest_open_top1", "seconds"}
        assert 0 <= record["largest_top1"] <= 100
    assert len(records) == len(losses) + len(accuracies)


def test_every_step_and_every_log_record_is_reported(
    tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData
) -> None:
    reports: list[dict[str, Any]] = []
    train(Supernet(tiny_space), tiny_data, PLAIN, tmp_path, evaluate_every=1, report=reports.append)
    assert [record["step"] for record in reports if "steps" in record] == [1, 2, 3, 4, 5, 6]
    assert [record for record in reports if "steps" not in record] == read_jsonl(tmp_path / "log.jsonl")[1:]
    assert [record["step"] for record in reports if "largest_top1" in record] == [3, 6]


def test_a_restart_before_the_first_checkpoint_logs_nothing_twice(
    tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData
) -> None:
    def kill(record: dict[str, Any]) -> None:
        if record["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Supernet(tiny_space), tiny_data, PLAIN, tmp_path, evaluate_every=1, report=kill)
    train(Supernet(tiny_space), tiny_data, PLAIN, tmp_path, evaluate_every=1)
    evaluated = [record["step"] for record in read_jsonl(tmp_path / "log.jsonl") if "largest_top1" in record]
    assert evaluated == [3, 6]


def test_a_resumed_run_logs_nothing_twice(tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData) -> None:
    def kill(record: dict[str, Any]) -> None:
        if record["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Supernet(tiny_space), tiny_data, PLAIN, tmp_path, checkpoint_every=2, evaluate_every=1, report=kill)
    train(Supernet(tiny_space), tiny_data, PLAIN, tmp_path, evaluate_every=1)
    records = read_jsonl(tmp_path / "log.jsonl")
    assert [record["step"] for record in records if "largest_top1" in record] == [3, 6]
    assert [(record["phase"], record["step"]) for record in records if record.get("event") == "resume"] == [(0, 2)]


# What a step does


class Recording(Supernet):
    """A supernet that remembers which sub-networks it ran in training."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(space)
        self.ran: list[Architecture] = []

    def forward(self, x: Tensor, arch: Architecture) -> Tensor:
        self.ran.append(arch)
        return super().forward(x, arch)


def test_a_step_runs_several_sub_networks_of_what_is_open_at_one_resolution(
    tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData
) -> None:
    phases = (
        Phase("full", 1, 0.01, distill=0.0),
        Phase("open", 4, 0.01, kernels=2, depths=2, expands=2, subnets=3),
    )
    supernet = Recording(tiny_space)
    train(supernet, tiny_data, Recipe("two", phases, batch_size=180), tmp_path)
    full, rest = supernet.ran[:3], supernet.ran[3:]
    assert {arch.units for arch in full} == {tiny_space.largest().units}
    steps = [rest[start : start + 3] for start in range(0, len(rest), 3)]
    assert len(steps) == 4 * 3
    assert all(len({arch.resolution for arch in step}) == 1 for step in steps)
    assert {arch.resolution for arch in supernet.ran} == {16, 20}
    assert {gene.kernel for arch in rest for unit in arch.units for gene in unit} == {5, 7}
    assert {gene.expand for arch in rest for unit in arch.units for gene in unit} == {4, 6}
    assert {arch.depths for arch in rest} == {(1, 2), (1, 3), (2, 2), (2, 3)}
    assert any(len(set(step)) > 1 for step in steps)


def test_an_epoch_shows_every_training_image_once_in_an_order_of_its_own(
    tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def observed(images: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(images.flatten(1))
        return images

    monkeypatch.setattr(trainer, "flip_and_shift", observed)
    train(Supernet(tiny_space), tiny_data, PLAIN, tmp_path)
    names = torch.randint(1, 10**6, (3 * 20 * 20,))  # a number for each image
    first, second = ((torch.cat(part).long() * names).sum(1) for part in (seen[:3], seen[3:]))
    split = (tiny_data.train_images[tiny_data.indices["train"]].flatten(1).long() * names).sum(1)
    for order in (first, second):
        assert torch.equal(order.sort().values, split.sort().values)
    assert not torch.equal(first, second)


def observed_groups(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, Any]]]:
    """A list that fills with the optimiser's settings at every step."""
    seen: list[list[dict[str, Any]]] = []
    step = torch.optim.SGD.step

    def observed(self: torch.optim.SGD, *args: Any, **options: Any) -> Any:
        seen.append([dict(group) for group in self.param_groups])
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", observed)
    return seen


def test_the_learning_rate_warms_up_and_follows_a_cosine(
    tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = observed_groups(monkeypatch)
    recipe = Recipe("warm", (Phase("full", 3, 0.4, warmup_epochs=1, distill=0.0),), batch_size=270)  # 2 steps an epoch
    train(Supernet(tiny_space), tiny_data, recipe, tmp_path)
    cosine = [0.5 + 0.5 * math.cos(math.pi * part / 4) for part in range(4)]
    expected = [0.4 * share for share in (0.5, 1.0, *cosine)]
    for number in range(2):
        assert [groups[number]["lr"] for groups in seen] == pytest.approx(expected)


def test_batch_norms_and_biases_do_not_decay(
    tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = observed_groups(monkeypatch)
    supernet = Supernet(tiny_space)
    train(supernet, tiny_data, replace(PLAIN, weight_decay=0.01), tmp_path, stop_after=1)
    decay = {id(parameter): group["weight_decay"] for group in seen[0] for parameter in group["params"]}
    for name, parameter in supernet.named_parameters():
        assert decay[id(parameter)] == (0.0 if ".bn." in name or name.endswith("bias") else 0.01), name
    assert all(group["nesterov"] and group["momentum"] == 0.9 for group in seen[0])


def test_training_learns_classes_that_can_be_learnt(
    tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData
) -> None:
    recipe = Recipe("learn", (Phase("full", 9, 0.05, distill=0.0),), batch_size=30)  # 162 steps
    train(Supernet(tiny_space), tiny_data, recipe, tmp_path)
    records = read_jsonl(tmp_path / "log.jsonl")
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < 0.7 * losses[0]
    assert [record["largest_top1"] for record in records if "largest_top1" in record][-1] > 75  # chance: 25


def test_bfloat16_trains_every_kernel_size(tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData) -> None:
    phases = (Phase("full", 1, 0.01, distill=0.0), Phase("kernel", 1, 0.01, kernels=3))
    recipe = Recipe("half", phases, batch_size=270)
    trained = train(Supernet(tiny_space), tiny_data, recipe, tmp_path, precision="bf16")
    assert all(torch.isfinite(tensor).all() for tensor in weights_of(trained).values())


# What goes wrong


def test_a_batch_larger_than_the_training_split_is_refused(
    tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData
) -> None:
    with pytest.raises(InvalidConfiguration, match="batch_size 541: the training split has 540 images"):
        train(Supernet(tiny_space), tiny_data, replace(PLAIN, batch_size=541), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unwritable_folder_is_named(tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnwritableOutput, match=f"cannot write {tmp_path / 'file' / 'run'}.*choose a writable folder"):
        train(Supernet(tiny_space), tiny_data, PLAIN, tmp_path / "file" / "run")


def test_weights_that_are_no_numbers_end_the_run(tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData) -> None:
    supernet = Supernet(tiny_space)
    supernet.stem[0].full.conv.weight.data.fill_(math.nan)  # type: ignore[union-attr, operator]
    with pytest.raises(TrainingDiverged, match="loss nan in phase full"):
        train(supernet, tiny_data, PLAIN, tmp_path)


def finite(run: Path) -> bool:
    tensors, _ = read_tensors(run / "checkpoint.safetensors")
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def test_a_diverged_run_keeps_its_last_good_checkpoint(
    tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData
) -> None:
    absurd = replace(PLAIN, phases=(replace(PLAIN.phases[0], learning_rate=1e30),))
    with pytest.raises(TrainingDiverged):
        train(Supernet(tiny_space), tiny_data, absurd, tmp_path, checkpoint_every=1)
    assert not (tmp_path / "supernet.safetensors").exists()
    assert not (tmp_path / "checkpoint.safetensors").exists() or finite(tmp_path)


def test_a_first_phase_that_wants_a_teacher_is_refused_with_the_reason(
    tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData
) -> None:
    def attempt() -> None:  # whether the recipe or the run refuses it
        recipe = Recipe("early", (Phase("full", 1, 0.01, distill=1.0),), batch_size=180)
        train(Supernet(tiny_space), tiny_data, recipe, tmp_path)

    with pytest.raises(InvalidConfiguration, match="distill"):
        attempt()
