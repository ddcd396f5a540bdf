import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from onceforall.architecture import Architecture
from onceforall.checkpoint import load_network, load_supernet, read_tensors
from onceforall.data import dataset
from onceforall.data.dataset import ImageData, identity
from onceforall.errors import InvalidConfiguration, UnwritableOutput
from onceforall.evaluate import ready
from onceforall.files import as_json, read_json, read_jsonl
from onceforall.nn.supernet import Network, Supernet, Trainable
from onceforall.space import SearchSpace
from onceforall.spaces.inverted_residual import InvertedResidualSpace
from onceforall.tasks.classification import Classification
from onceforall.training import samplers, trainer
from onceforall.training.losses import KLDivergence
from onceforall.training.optimizers import SGD, AdamW
from onceforall.training.recipe import (
    BY_NAME,
    OPEN,
    Phase,
    Recipe,
    delayed_shrinking,
    finetune,
    progressive_shrinking,
    random_order,
    sandwich,
    standalone,
)
from onceforall.training.trainer import train

# Six phases of three steps: 90 images of `few_data` train.
RECIPE = progressive_shrinking((1,) * 6, batch_size=30, learning_rate_scale=4.0)
STEPS = 3

# A recipe without a teacher, for what needs no phases.
PLAIN = Recipe("plain", (Phase("full", 2, 0.05),), batch_size=30)  # 2 epochs of 3 steps

FILES = {".lock", "space.json", "recipe.json", "run.json", "splits.json", "state.json", "checkpoints", "log.jsonl"}

# Trains in a process of its own and says when a step is done.
CHILD = """
import json, runpy, sys, torch
from dataclasses import replace
from onceforall.nn.supernet import Supernet
from onceforall.training.recipe import Recipe
from onceforall.training.trainer import train
conftest, run, recipe, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
shared = runpy.run_path(conftest)
data = shared["make_tiny_data"]()
data = replace(data, train_images=data.train_images[:100], train_labels=data.train_labels[:100], _prepared={})
train(Supernet(shared["make_tiny_space"]()), data, Recipe.from_json(json.loads(recipe)), run, checkpoint_every=2,
      report=lambda record: print(json.dumps(record), flush=True))
"""


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def assert_same_weights(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


def newest(run: Path) -> Path:
    return max((run / "checkpoints").iterdir())


def short(name: str) -> Recipe:
    """A named recipe of one epoch a phase, of three steps of `few_data`."""
    return BY_NAME[name](2 if name == "delayed_shrinking" else 1, 30, 4.0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_space: SearchSpace, few_data: ImageData) -> Path:
    """The folder of an undisturbed run."""
    run = tmp_path_factory.mktemp("undisturbed")
    train(Supernet(tiny_space), few_data, RECIPE, run)
    return run


@pytest.fixture(scope="module")
def final_weights(finished: Path) -> dict[str, Tensor]:
    return weights_of(load_supernet(finished / "supernet.safetensors"))


@pytest.fixture
def started(tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData) -> Path:
    """The folder of a run that stopped after its first step."""
    train(Supernet(tiny_space), few_data, PLAIN, tmp_path / "run", stop_after=1)
    return tmp_path / "run"


# Resume


@pytest.mark.parametrize(
    "stops",
    [[1, 5, 7, 13, 17], [STEPS, 2 * STEPS, 4 * STEPS, 5 * STEPS]],
    ids=["inside phases", "at the ends of phases"],
)
def test_a_run_stopped_and_resumed_ends_with_the_weights_of_an_undisturbed_one(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, final_weights: dict[str, Tensor], stops: list[int]
) -> None:
    train(Supernet(tiny_space), few_data, RECIPE, tmp_path, stop_after=stops[0])
    for before, stop in itertools.pairwise(stops):  # other initial weights: all must come from the folder
        train(Supernet(tiny_space, seed=5), few_data, RECIPE, tmp_path, stop_after=stop - before)
    resumed = train(Supernet(tiny_space, seed=5), few_data, RECIPE, tmp_path)
    assert_same_weights(weights_of(resumed), final_weights)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_recipe_trains_every_kind_of_space_and_resumes_exactly(
    tmp_path: Path, kind_of_space: SearchSpace, few_data: ImageData, rng: np.random.Generator, name: str
) -> None:
    space, recipe, arch = kind_of_space, short(name), kind_of_space.sample(rng)

    def fresh(seed: int = 0) -> Supernet | Network:
        return Network(space, arch, seed) if name in ("standalone", "finetune") else Supernet(space, seed)

    initial = weights_of(fresh())
    whole = weights_of(train(fresh(), few_data, recipe, tmp_path / "whole"))
    assert all(torch.isfinite(tensor).all() for tensor in whole.values())
    convolutions = [key for key in whole if key.endswith("conv.weight")]
    assert [key for key in convolutions if torch.equal(whole[key], initial[key])] == []
    train(fresh(), few_data, recipe, tmp_path / "run", stop_after=1)
    for seed in (5, 6):
        resumed = train(fresh(seed), few_data, recipe, tmp_path / "run", stop_after=4 if seed == 5 else None)
    assert_same_weights(weights_of(resumed), whole)


def test_a_killed_run_resumes_to_the_weights_of_an_undisturbed_one(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, final_weights: dict[str, Tensor]
) -> None:
    conftest = Path(__file__).parents[1] / "conftest.py"
    recipe, threads = json.dumps(RECIPE.to_json()), str(torch.get_num_threads())
    command = [sys.executable, "-c", CHILD, str(conftest), str(tmp_path / "run"), recipe, threads]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        for line in child.stdout:
            record = json.loads(line)
            if (record["phase"], record["step"]) == (4, 1):
                child.send_signal(signal.SIGKILL)
                break
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "supernet.safetensors").exists()
    resumed = train(Supernet(tiny_space, seed=5), few_data, RECIPE, tmp_path / "run")
    assert_same_weights(weights_of(resumed), final_weights)


def test_a_finished_run_is_returned_without_training(
    finished: Path, tiny_space: SearchSpace, few_data: ImageData, final_weights: dict[str, Tensor]
) -> None:
    reports: list[dict[str, Any]] = []
    again = train(Supernet(tiny_space), few_data, RECIPE, finished, report=reports.append)
    assert reports == []
    assert_same_weights(weights_of(again), final_weights)


def test_phases_of_no_epochs_do_what_they_do_in_an_undisturbed_run(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData
) -> None:
    recipe = progressive_shrinking((0, 1, 0, 0, 0, 1), 30)  # width 1 sorts channels, then trains nothing
    whole = train(Supernet(tiny_space), few_data, recipe, tmp_path / "whole")
    train(Supernet(tiny_space), few_data, recipe, tmp_path / "run", stop_after=3)
    resumed = train(Supernet(tiny_space, seed=5), few_data, recipe, tmp_path / "run")
    assert_same_weights(weights_of(resumed), weights_of(whole))


def test_another_seed_gives_other_weights(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, started: Path
) -> None:
    recipe = PLAIN
    train(Supernet(tiny_space), few_data, recipe, tmp_path / "other", seed=1, stop_after=1)
    one, other = (read_tensors(newest(run))[0] for run in (started, tmp_path / "other"))
    assert not torch.equal(one["stem.0.full.conv.weight"], other["stem.0.full.conv.weight"])


# Stopping


def test_a_budget_of_no_steps_prepares_the_folder_and_trains_nothing(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData
) -> None:
    recipe = replace(PLAIN, phases=(replace(PLAIN.phases[0], sort_channels=True),))
    reports: list[dict[str, Any]] = []
    net = train(Supernet(tiny_space), few_data, recipe, tmp_path, stop_after=0, report=reports.append)
    assert reports == []
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert_same_weights(weights_of(net), weights_of(Supernet(tiny_space)))
    assert_same_weights(read_tensors(newest(tmp_path))[0], weights_of(net))


@pytest.mark.parametrize(
    ("stop", "place", "done"), [(1, (0, 1), 1), (3, (1, 0), 3), (4, (1, 1), 4), (6, (2, 0), 6), (99, (2, 0), 6)]
)
def test_a_run_stops_after_so_many_steps_and_keeps_its_place(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, stop: int, place: tuple[int, int], done: int
) -> None:
    steps: list[dict[str, Any]] = []
    recipe = Recipe("two", (Phase("first", 1, 0.01), Phase("second", 1, 0.01)), batch_size=30)
    net = train(Supernet(tiny_space), few_data, recipe, tmp_path, stop_after=stop, report=steps.append)
    assert sum("steps" in record for record in steps) == done
    state = read_json(tmp_path / "state.json")
    assert (state["phase"], state["step"]) == place
    assert newest(tmp_path).name == state["checkpoint"]
    assert (tmp_path / "supernet.safetensors").exists() == (done == 6)
    tensors, _ = read_tensors(newest(tmp_path))
    assert_same_weights({name: tensors[name] for name in net.state_dict()}, weights_of(net))


# Another run's folder


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("recipe", "options", "file"),
    [
        (replace(PLAIN, optimizer=SGD(momentum=0.8)), {}, "recipe.json"),
        (replace(PLAIN, batch_norm_size=15), {}, "run.json"),
        (PLAIN, {"seed": 1}, "run.json"),
        (PLAIN, {"precision": "bf16"}, "run.json"),
        (PLAIN, {"origin": "5" * 64}, "run.json"),
    ],
    ids=["momentum", "chunks", "seed", "precision", "origin"],
)
def test_the_folder_of_another_run_is_refused_and_left_alone(
    started: Path, tiny_space: SearchSpace, few_data: ImageData, recipe: Recipe, options: dict[str, Any], file: str
) -> None:
    before = contents(started)
    with pytest.raises(InvalidConfiguration, match=rf"{started / file} is of another run \(.*\): choose a new folder"):
        train(Supernet(tiny_space), few_data, recipe, started, **options)
    assert contents(started) == before


@pytest.mark.parametrize("file", ["space.json", "architecture.json"])
def test_the_folder_of_another_network_is_refused_and_left_alone(
    started: Path, tiny_space: SearchSpace, few_data: ImageData, file: str
) -> None:
    before = contents(started)
    nets: dict[str, Supernet | Network] = {
        "space.json": Supernet(tiny_space.restrict(kernels=[3, 5])),
        "architecture.json": Network(tiny_space, tiny_space.largest()),
    }
    with pytest.raises(InvalidConfiguration, match=str(started / file)):
        train(nets[file], few_data, PLAIN, started)
    assert contents(started) == before


def test_other_data_is_refused(started: Path, tiny_space: SearchSpace, tiny_data: ImageData) -> None:
    with pytest.raises(InvalidConfiguration, match=r"run.json is of another run"):
        train(Supernet(tiny_space), tiny_data, PLAIN, started)


def test_another_architecture_is_refused(tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData) -> None:
    recipe = standalone(1, 30)
    train(Network(tiny_space, tiny_space.largest()), few_data, recipe, tmp_path, stop_after=1)
    with pytest.raises(InvalidConfiguration, match=r"architecture.json is of another run"):
        train(Network(tiny_space, tiny_space.smallest()), few_data, recipe, tmp_path)


# What a run writes


def test_a_run_folder_holds_the_documented_files(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == FILES | {"teacher.safetensors", "supernet.safetensors"}


@pytest.mark.parametrize("recipe", [sandwich(1, 30), random_order(1, 30), delayed_shrinking(2, 30), standalone(1, 30)])
def test_a_teacher_is_kept_only_where_a_later_phase_needs_it(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, recipe: Recipe
) -> None:
    train(Supernet(tiny_space), few_data, recipe, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"supernet.safetensors"}


def test_a_run_folder_says_what_was_trained_and_how(
    finished: Path, tiny_space: SearchSpace, few_data: ImageData
) -> None:
    assert Recipe.from_json(read_json(finished / "recipe.json")) == RECIPE
    assert read_json(finished / "space.json") == as_json(tiny_space.to_json())
    assert read_json(finished / "run.json") == {
        "seed": 0,
        "precision": "fp32",
        "batch_norm_size": 30,
        "data": as_json(identity(few_data)),
    }


def test_the_teacher_is_the_supernet_as_the_first_phase_left_it(
    finished: Path, tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData
) -> None:
    first = train(Supernet(tiny_space), few_data, replace(RECIPE, phases=RECIPE.phases[:1]), tmp_path)
    assert_same_weights(weights_of(load_supernet(finished / "teacher.safetensors")), weights_of(first))


def test_the_log_holds_losses_and_accuracies_of_every_phase(finished: Path) -> None:
    start, *records = (record for record in read_jsonl(finished / "log.jsonl") if record.get("event") != "resume")
    assert start["event"] == "start"
    assert {"python", "torch", "device", "processes", "threads"} <= start.keys()
    where = [(phase.name, number, STEPS) for number, phase in enumerate(RECIPE.phases)]
    losses = [record for record in records if "loss" in record]
    assert [(record["name"], record["phase"], record["step"]) for record in losses] == where
    place = {"phase", "name", "step", "seconds"}
    for record, phase in zip(losses, RECIPE.phases, strict=True):
        assert record.keys() == place | {"loss", "cross_entropy", "learning_rate", "images_per_s"}
        assert 0 < record["cross_entropy"] < 5
        assert record["loss"] > record["cross_entropy"] or phase.teacher == "none"
    accuracies = [record for record in records if "largest_top1" in record]
    assert [(record["name"], record["phase"], record["step"]) for record in accuracies] == where
    for record in accuracies:
        assert record.keys() == place | {"largest_top1", "smallest_open_top1"}
        assert 0 <= record["largest_top1"] <= 100
    assert len(records) == len(losses) + len(accuracies)


def test_logged_losses_are_means_over_sub_networks_of_objective_and_plain_cross_entropy(
    tmp_path: Path, tiny_space: InvertedResidualSpace, few_data: ImageData, steps: list["Step"]
) -> None:
    space = replace(tiny_space, dropout=0.0)
    recipe = replace(sandwich(1, 30), label_smoothing=0.2)
    train(Supernet(space), few_data, recipe, tmp_path)
    (record,) = (record for record in read_jsonl(tmp_path / "log.jsonl") if "loss" in record)
    objective, entropies = [], []
    for seen in steps:
        (chunk,) = seen.chunks(space, 30)
        objective += objectives(recipe, recipe.phases[0], chunk.logits, chunk.labels, chunk.logits[0].detach())
        entropies += [F.cross_entropy(logits, chunk.labels) for logits in chunk.logits]
    assert record["loss"] == pytest.approx(torch.stack(objective).mean().item(), rel=1e-4)
    assert record["cross_entropy"] == pytest.approx(torch.stack(entropies).mean().item(), rel=1e-4)


def test_every_step_and_every_log_record_is_reported(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData
) -> None:
    reports: list[dict[str, Any]] = []
    train(Supernet(tiny_space), few_data, PLAIN, tmp_path, evaluate_every=1, report=reports.append)
    assert [record["step"] for record in reports if "steps" in record] == [1, 2, 3, 4, 5, 6]
    assert [record for record in reports if "steps" not in record] == read_jsonl(tmp_path / "log.jsonl")[1:]
    assert [record["step"] for record in reports if "largest_top1" in record] == [3, 6]


def test_a_restart_from_the_beginning_logs_nothing_twice(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData
) -> None:
    def kill(record: dict[str, Any]) -> None:
        if record["step"] == 4:
            raise KeyboardInterrupt

    recipe = PLAIN
    with pytest.raises(KeyboardInterrupt):
        train(Supernet(tiny_space), few_data, recipe, tmp_path, evaluate_every=1, report=kill)
    train(Supernet(tiny_space), few_data, recipe, tmp_path, evaluate_every=1)
    evaluated = [record["step"] for record in read_jsonl(tmp_path / "log.jsonl") if "largest_top1" in record]
    assert evaluated == [3, 6]


def test_a_resumed_run_logs_nothing_twice(tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData) -> None:
    def kill(record: dict[str, Any]) -> None:
        if record["step"] == 4:
            raise KeyboardInterrupt

    recipe, options = PLAIN, {"checkpoint_every": 2, "evaluate_every": 1}
    with pytest.raises(KeyboardInterrupt):
        train(Supernet(tiny_space), few_data, recipe, tmp_path, report=kill, **options)  # type: ignore[arg-type]
    train(Supernet(tiny_space), few_data, recipe, tmp_path, evaluate_every=1)
    records = read_jsonl(tmp_path / "log.jsonl")
    assert [record["step"] for record in records if "largest_top1" in record] == [3, 6]
    assert [(record["phase"], record["step"]) for record in records if record.get("event") == "resume"] == [(0, 2)]


def test_seconds_add_up_over_interruptions_and_phases(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    recipe = Recipe("two", (Phase("first", 1, 0.01), Phase("second", 1, 0.01)), batch_size=30)
    seconds = []
    for _ in range(3):
        train(Supernet(tiny_space), few_data, recipe, tmp_path, stop_after=2)
        seconds.append(read_json(tmp_path / "state.json")["seconds"])
    assert 0 < seconds[0] < seconds[1] < seconds[2]
    logged = [record["seconds"] for record in read_jsonl(tmp_path / "log.jsonl") if "seconds" in record]
    assert logged == sorted(logged)
    assert logged[-1] < seconds[2] < next(ticks)


# What a step does


@dataclass
class Chunk:
    """Images of one pass, and what each sub-network makes of them; with a graph, to differentiate."""

    net: Supernet
    share: float
    images: Tensor
    labels: Tensor
    logits: list[Tensor]


@dataclass
class Step:
    """What a training step was given, and the gradient that its optimiser got."""

    images: Tensor
    labels: Tensor
    ran: list[Architecture]
    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]
    groups: list[dict[str, Any]]

    @property
    def norm(self) -> float:
        return float(torch.stack([gradient.norm() for gradient in self.gradients.values()]).norm())

    def chunks(self, space: SearchSpace, size: int) -> list[Chunk]:
        """The same passes, run again by a supernet of the same weights: every sub-network once a chunk."""
        net = Supernet(space)
        net.load_state_dict(self.weights)
        count = len(self.images) // size
        archs = self.ran[: len(self.ran) // count]
        assert self.ran == archs * count
        return [
            Chunk(net, size / len(self.images), images, labels, [net(images, arch) for arch in archs])
            for images, labels in zip(self.images.split(size), self.labels.split(size), strict=True)
        ]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Fills with every training step."""
    seen: list[Step] = []
    batches: list[tuple[Tensor, Tensor]] = []
    passes: list[tuple[Trainable, Architecture]] = []
    training, forward, optimise = ImageData.training, Trainable.forward, torch.optim.SGD.step

    def observed_training(self: ImageData, *args: Any) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in training(self, *args):
            batches.append(batch)
            yield batch

    def observed_forward(self: Trainable, x: Tensor, arch: Architecture) -> Tensor:
        if torch.is_grad_enabled():
            passes.append((self, arch))
        return forward(self, x, arch)

    def observed_step(self: torch.optim.SGD, *args: Any, **options: Any) -> Any:
        net = passes[0][0]
        gradients = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
        ran, groups = [arch for _, arch in passes], [dict(group) for group in self.param_groups]
        seen.append(Step(*batches[-1], ran, weights_of(net), gradients, groups))
        passes.clear()
        return optimise(self, *args, **options)

    monkeypatch.setattr(ImageData, "training", observed_training)
    monkeypatch.setattr(Trainable, "forward", observed_forward)
    monkeypatch.setattr(torch.optim.SGD, "step", observed_step)
    return seen


def objectives(
    recipe: Recipe, phase: Phase, logits: list[Tensor], labels: Tensor, teacher: Tensor | None
) -> list[Tensor]:
    """The loss of each sub-network, written from the fields' documentation."""
    found = []
    for index, student in enumerate(logits):
        targets = (1 - recipe.label_smoothing) * F.one_hot(labels, 4) + recipe.label_smoothing / 4
        hard = -(targets * student.log_softmax(1)).sum(1).mean()
        if teacher is None or (phase.teacher == "in_place" and index == 0):
            found.append(hard)
            continue
        p = teacher.softmax(1)
        soft = -(p * student.log_softmax(1)).sum(1).mean()
        if isinstance(phase.loss, KLDivergence):
            soft = soft + (p * p.log()).sum(1).mean()
        found.append(phase.distill * soft + phase.hard * hard)
    return found


OBJECTIVES = {
    "labels": Phase("tested", 1, 0.02, open=OPEN, subnets=2),
    "largest alone": Phase("tested", 1, 0.02),
    "frozen": Phase("tested", 1, 0.02, open=OPEN, teacher="frozen", subnets=2),
    "frozen, other weights": Phase(
        "tested", 1, 0.02, open={"kernel": 2}, teacher="frozen", loss=KLDivergence(), distill=2.0, hard=0.5
    ),
    "frozen, no labels": Phase(
        "tested", 1, 0.02, open=OPEN, teacher="frozen", hard=0.0, sampler=samplers.Sandwich(), subnets=3
    ),
    "in place": replace(sandwich(1).phases[0], learning_rate=0.02),
    "in place, with labels": replace(sandwich(1).phases[0], learning_rate=0.02, hard=0.5, distill=0.5, subnets=2),
    "ramp": replace(sandwich(1).phases[0], learning_rate=0.02, ramp_epochs=1),
    "ramp, labels": Phase("tested", 1, 0.02, open=OPEN, subnets=3, ramp_epochs=2),
}


@pytest.mark.parametrize(
    ("name", "chunk"), [*((name, 30) for name in OBJECTIVES), ("labels", 10), ("frozen, no labels", 10), ("ramp", 15)]
)
def test_the_gradient_of_a_step_is_that_of_its_objective(
    tmp_path: Path, tiny_space: InvertedResidualSpace, few_data: ImageData, steps: list[Step], name: str, chunk: int
) -> None:
    space, phase = replace(tiny_space, dropout=0.0), OBJECTIVES[name]
    recipe = Recipe("tested", (Phase("full", 1, 0.02), phase), 30, label_smoothing=0.2, batch_norm_size=chunk % 30)
    train(Supernet(space), few_data, recipe, tmp_path)
    tested = steps[3:]
    for number, seen in enumerate(tested):
        ramp = min(1.0, (number + 1) / (3 * phase.ramp_epochs)) if phase.ramp_epochs else 1.0
        largest = replace(space.largest(), resolution=seen.images.shape[-1])
        for part in seen.chunks(space, chunk):
            teacher = None
            if phase.teacher == "frozen":
                first = load_supernet(tmp_path / "teacher.safetensors")
                teacher = ready(first, largest, few_data)(part.images).detach()
            elif phase.teacher == "in_place":
                teacher = part.logits[0].detach()
            own, *others = objectives(recipe, phase, part.logits, part.labels, teacher)
            (part.share * (own + ramp * sum(others))).backward()
        found = {name: p.grad for name, p in part.net.named_parameters() if p.grad is not None}
        assert found.keys() == seen.gradients.keys()
        assert seen.norm > 1e-3
        for parameter, gradient in found.items():
            assert_close(seen.gradients[parameter], gradient, rtol=1e-3, atol=1e-4 * seen.norm)
    assert len(tested) == 3


def test_in_place_the_largest_learns_from_labels_and_the_others_from_it_alone(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, steps: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: list[tuple[Tensor, Tensor]] = []
    labelled: list[Tensor] = []

    def observed_kl(self: KLDivergence, logits: Tensor, teacher: Tensor) -> Tensor:
        taught.append((logits, teacher))
        return (logits - teacher).square().mean()

    def observed_labels(self: Classification, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        if torch.is_grad_enabled():  # not for the log
            labelled.append(logits.detach())
        return F.cross_entropy(logits, labels)

    monkeypatch.setattr(KLDivergence, "__call__", observed_kl)
    monkeypatch.setattr(Classification, "loss", observed_labels)
    train(Supernet(tiny_space), few_data, sandwich(1, 30, batch_norm_size=15), tmp_path)
    assert len(labelled) == 3 * 2  # once a step and chunk
    assert len(taught) == 3 * 2 * 3
    for number, (logits, teacher) in enumerate(taught):
        assert torch.equal(teacher, labelled[number // 3])  # the same pass, not another one
        assert not teacher.requires_grad
        assert logits.requires_grad
    for seen in steps:
        largest, smallest, *others = seen.ran[:4]
        part = tiny_space.restrict(resolutions=[seen.images.shape[-1]])
        assert (largest, smallest) == (part.largest(), part.smallest())
        assert seen.ran == [largest, smallest, *others] * 2


def test_a_frozen_teacher_runs_once_a_step_and_chunk(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Architecture] = []
    taught: list[Tensor] = []

    def observed(supernet: Trainable, arch: Architecture, data: ImageData) -> nn.Module:
        built.append(arch)
        network = ready(supernet, arch, data)
        network.register_forward_hook(lambda module, inputs, output: taught.append(output))
        return network

    monkeypatch.setattr(trainer, "ready", observed)
    phases = Phase("full", 1, 0.02), Phase("taught", 2, 0.02, open=OPEN, teacher="frozen", subnets=4)
    train(Supernet(tiny_space), few_data, Recipe("taught", phases, 30, batch_norm_size=10), tmp_path)
    assert len(taught) == 2 * 3 * 3
    assert {tuple(output.shape) for output in taught} == {(10, 4)}
    assert not any(output.requires_grad for output in taught)
    largest = tiny_space.largest()
    assert sorted(arch.resolution for arch in built) == [16, 20]  # each once
    assert {replace(arch, resolution=20) for arch in built} == {largest}


def test_every_chunk_drops_other_features(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks: list[Tensor] = []
    dropout = F.dropout

    def observed(x: Tensor, p: float, training: bool, inplace: bool = False) -> Tensor:
        if training:
            masks.append(dropout(torch.ones_like(x), p) > 0)
            return x * masks[-1] / (1 - p)
        return x

    monkeypatch.setattr(F, "dropout", observed)
    train(Supernet(tiny_space), few_data, random_order(1, 30, subnets=2, batch_norm_size=10), tmp_path)
    assert len(masks) == 3 * 3 * 2
    assert len({mask.numpy().tobytes() for mask in masks}) == len(masks)
    assert torch.stack(masks).float().mean().item() == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("bound", [0.01, 1000.0])
def test_a_gradient_is_shortened_to_the_bound_on_its_norm(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, steps: list[Step], bound: float
) -> None:
    recipe = random_order(1, 30, batch_norm_size=15)
    train(Supernet(tiny_space), few_data, recipe, tmp_path / "free", stop_after=1)
    train(Supernet(tiny_space), few_data, replace(recipe, clip_norm=bound), tmp_path / "clipped", stop_after=1)
    free, clipped = steps
    assert 0.1 < free.norm < 1000
    assert clipped.norm == pytest.approx(min(bound, free.norm), rel=1e-3)
    for name, gradient in free.gradients.items():
        assert_close(clipped.gradients[name], gradient * min(1.0, bound / free.norm), rtol=1e-3, atol=1e-7)


def test_a_step_runs_several_sub_networks_of_what_is_open_at_one_resolution(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, steps: list[Step]
) -> None:
    phases = Phase("full", 1, 0.01), Phase("open", 4, 0.01, open={"*": 2}, subnets=3)
    train(Supernet(tiny_space), few_data, Recipe("two", phases, batch_size=30), tmp_path)
    full, rest = steps[:3], steps[3:]
    assert {arch.units for seen in full for arch in seen.ran} == {tiny_space.largest().units}
    assert len(rest) == 4 * 3
    assert all({arch.resolution for arch in seen.ran} == {seen.images.shape[-1]} for seen in steps)
    ran = [arch for seen in rest for arch in seen.ran]
    assert {arch.resolution for arch in ran} == {16, 20}
    assert {gene.kernel for arch in ran for unit in arch.units for gene in unit} == {5, 7}
    assert {gene.expand for arch in ran for unit in arch.units for gene in unit} == {4, 6}
    assert {arch.depths for arch in ran} == {(1, 2), (1, 3), (2, 2), (2, 3)}
    assert all(len(seen.ran) == 3 for seen in rest)
    assert any(len(set(seen.ran)) > 1 for seen in rest)


def test_an_epoch_shows_every_training_image_once_in_an_order_of_its_own(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def observed(images: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(images.flatten(1))
        return images

    monkeypatch.setattr(dataset, "flip_and_shift", observed)
    train(Supernet(tiny_space), few_data, PLAIN, tmp_path)
    names = torch.randint(1, 10**6, (3 * 20 * 20,))  # a number for each image
    first, second = ((torch.cat(part).long() * names).sum(1) for part in (seen[:3], seen[3:]))
    split = (few_data.train_images[few_data.indices["train"]].flatten(1).long() * names).sum(1)
    for order in (first, second):
        assert torch.equal(order.sort().values, split.sort().values)
    assert not torch.equal(first, second)


def rates(steps: list[Step]) -> list[float]:
    assert all(len({group["lr"] for group in seen.groups}) == 1 for seen in steps)
    return [seen.groups[0]["lr"] for seen in steps]


def cosine(part: float) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * part)


def test_the_learning_rate_warms_up_and_follows_a_cosine(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, steps: list[Step]
) -> None:
    recipe = Recipe("warm", (Phase("full", 3, 0.4, warmup_epochs=1),), batch_size=45)  # 2 steps an epoch
    train(Supernet(tiny_space), few_data, recipe, tmp_path)
    assert rates(steps) == pytest.approx([0.2, 0.4, *(0.4 * cosine(part / 4) for part in range(4))])


def test_a_phase_may_run_through_a_part_of_a_cosine(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, steps: list[Step]
) -> None:
    recipe = Recipe("part", (Phase("full", 2, 0.4, cosine=(0.25, 0.75)),), batch_size=45)
    train(Supernet(tiny_space), few_data, recipe, tmp_path)
    assert rates(steps) == pytest.approx([0.4 * cosine(0.25 + 0.5 * part / 4) for part in range(4)])


def test_the_logged_rate_of_delayed_shrinking_is_one_cosine_through_both_phases(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "LOG_EVERY", 1)
    recipe = delayed_shrinking(4, 30, subnets=2)
    train(Supernet(tiny_space), few_data, recipe, tmp_path)
    logged = [record for record in read_jsonl(tmp_path / "log.jsonl") if "learning_rate" in record]
    assert [(record["phase"], record["step"]) for record in logged] == [*itertools.product((0, 1), range(1, 7))]
    peak = recipe.phases[0].learning_rate
    expected = [peak * cosine(part / 12) for part in range(12)]
    assert [record["learning_rate"] for record in logged] == pytest.approx(expected)


def test_batch_norms_and_biases_do_not_decay(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, steps: list[Step]
) -> None:
    supernet, recipe = Supernet(tiny_space), replace(PLAIN, optimizer=SGD(0.8, 0.01))
    train(supernet, few_data, recipe, tmp_path, stop_after=1)
    (seen,) = steps
    decay = {id(parameter): group["weight_decay"] for group in seen.groups for parameter in group["params"]}
    for name, parameter in supernet.named_parameters():
        assert decay[id(parameter)] == (0.0 if ".bn." in name or name.endswith("bias") else 0.01), name
    assert all(group["nesterov"] and group["momentum"] == 0.8 for group in seen.groups)


def test_channels_are_sorted_after_what_was_trained_before_each_width_phase(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[dict[str, Any]] = []
    sorted_after: list[tuple[int, SearchSpace | None]] = []
    sort_channels = Supernet.sort_channels

    def observed(self: Supernet, trained: SearchSpace | None = None) -> None:
        sorted_after.append((len(steps), trained))
        sort_channels(self, trained)

    def report(record: dict[str, Any]) -> None:
        if "steps" in record:
            steps.append(record)

    monkeypatch.setattr(Supernet, "sort_channels", observed)
    train(Supernet(tiny_space), few_data, RECIPE, tmp_path, report=report)
    assert sorted_after == [
        (4 * STEPS, tiny_space.restrict(expands=[6])),
        (5 * STEPS, tiny_space.restrict(expands=[4, 6])),
    ]


def test_every_phase_begins_without_momentum(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, steps: list[Step]
) -> None:
    phases = Phase("first", 1, 0.02), Phase("second", 1, 0.02)
    net = train(
        Supernet(tiny_space), few_data, Recipe("two", phases, 30, SGD(weight_decay=0.0)), tmp_path, stop_after=4
    )
    before, after = steps[3].weights, weights_of(net)
    for name, gradient in steps[3].gradients.items():  # Nesterov's first step: (1 + momentum) times the gradient
        assert_close(after[name], before[name] - 0.02 * 1.9 * gradient, rtol=1e-4, atol=1e-6)


def test_training_learns_classes_that_can_be_learnt(
    tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData
) -> None:
    train(Supernet(tiny_space), tiny_data, Recipe("learn", (Phase("full", 6, 0.05),), batch_size=30), tmp_path)
    records = read_jsonl(tmp_path / "log.jsonl")
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < 0.7 * losses[0]
    assert [record["largest_top1"] for record in records if "largest_top1" in record][-1] > 75  # chance: 25


@pytest.mark.parametrize("teacher", ["frozen", "in_place"])
def test_bfloat16_trains_with_every_kind_of_teacher(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, teacher: Literal["frozen", "in_place"]
) -> None:
    phases = Phase("full", 1, 0.02), Phase("open", 1, 0.02, open=OPEN, teacher=teacher, subnets=4)
    trained = train(Supernet(tiny_space), few_data, Recipe("half", phases, 30), tmp_path / "bf16", precision="bf16")
    exact = train(Supernet(tiny_space), few_data, Recipe("half", phases, 30), tmp_path / "fp32").state_dict()
    name, weights = next(iter(trained.named_parameters()))
    assert not torch.equal(weights, exact[name])
    assert_close(weights, exact[name], rtol=0, atol=0.02)
    assert all(torch.isfinite(tensor).all() for tensor in weights_of(trained).values())
    assert all(tensor.dtype != torch.bfloat16 for tensor in weights_of(trained).values())


# A single network


@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in ("standalone", "finetune")])
def test_a_network_refuses_recipes_that_train_sub_networks_together(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, name: str
) -> None:
    message = f"recipe {name}: it trains sub-networks together, .*; choose standalone or finetune"
    with pytest.raises(InvalidConfiguration, match=message):
        train(Network(tiny_space, tiny_space.smallest()), few_data, short(name), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_refuses_a_teacher(tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData) -> None:
    taught = Recipe("taught", (Phase("full", 1, 0.02), Phase("kernel", 1, 0.02, teacher="frozen")), 30)
    with pytest.raises(InvalidConfiguration, match="recipe taught: it trains sub-networks together"):
        train(Network(tiny_space, tiny_space.smallest()), few_data, taught, tmp_path)


def test_the_folder_of_a_network_says_which_and_holds_it(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, rng: np.random.Generator
) -> None:
    arch = tiny_space.sample(rng)
    trained = train(Network(tiny_space, arch), few_data, standalone(1, 30), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"architecture.json", "network.safetensors"}
    assert Architecture.from_json(read_json(tmp_path / "architecture.json")) == arch
    assert_same_weights(weights_of(load_network(tmp_path / "network.safetensors")), weights_of(trained))
    accuracies = [record for record in read_jsonl(tmp_path / "log.jsonl") if "largest_top1" in record]
    assert accuracies
    assert not any("smallest_open_top1" in record for record in accuracies)


def test_a_network_trains_to_the_weights_of_a_supernet_that_has_no_other(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData
) -> None:
    arch = tiny_space.uniform(depth=2, kernel=5, expand=4, resolution=16)
    space = tiny_space.restrict(resolutions=[16], depths=[2], kernels=[5], expands=[4])
    assert space.size == 1
    supernet = Supernet(space)
    network = Network.of(supernet, arch)
    recipe = standalone(2, 30, 4.0)
    train(supernet, few_data, recipe, tmp_path / "supernet")
    train(network, few_data, recipe, tmp_path / "network")
    assert_same_weights(weights_of(network.extract(arch)), weights_of(supernet.extract(arch)))


def test_fine_tuning_goes_on_from_the_sub_network(
    tmp_path: Path, tiny_supernet: Supernet, few_data: ImageData, rng: np.random.Generator, steps: list[Step]
) -> None:
    arch, before = tiny_supernet.space.sample(rng), weights_of(tiny_supernet)
    trained = train(Network.of(tiny_supernet, arch), few_data, finetune(1, 30), tmp_path)
    assert [seen.ran for seen in steps] == [[arch]] * 3
    initial = Network(tiny_supernet.space, arch)
    initial.load_state_dict(read_tensors(min((tmp_path / "checkpoints").iterdir()))[0])
    images = steps[0].images
    assert_close(initial.eval()(images, arch), tiny_supernet(images, arch), rtol=1e-5, atol=1e-5)
    convolution = "blocks.0.full.conv.weight"
    assert not torch.equal(trained.state_dict()[convolution], initial.state_dict()[convolution])
    assert_same_weights(weights_of(tiny_supernet), before)


# What goes wrong


def test_a_batch_larger_than_the_training_split_is_refused(
    tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData
) -> None:
    with pytest.raises(InvalidConfiguration, match="batch_size 541: the training split has 540 images"):
        train(Supernet(tiny_space), tiny_data, replace(PLAIN, batch_size=541), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", ["checkpoint_every", "keep", "evaluate_every"])
def test_settings_that_count_from_one_are_checked(
    tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData, setting: str
) -> None:
    with pytest.raises(InvalidConfiguration, match=f"{setting} 0: expected at least 1"):
        train(Supernet(tiny_space), tiny_data, PLAIN, tmp_path / "run", **{setting: 0})  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"seed": -1}, "seed -1: expected at least 0"), ({"device": "gpu"}, "device 'gpu': .*; choose cpu, or cuda")],
)
def test_what_cannot_be_is_refused_before_the_folder_is_begun(
    tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidConfiguration, match=message):
        train(Supernet(tiny_space), tiny_data, PLAIN, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_training_without_momentum(tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData) -> None:
    before = Supernet(tiny_space)
    after = train(Supernet(tiny_space), few_data, replace(PLAIN, optimizer=SGD(0.0)), tmp_path, stop_after=2)
    assert not torch.equal(next(before.parameters()), next(after.parameters()))


def test_an_unwritable_folder_is_named(tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnwritableOutput, match=f"cannot write {tmp_path / 'file' / 'run'}.*choose a writable folder"):
        train(Supernet(tiny_space), tiny_data, PLAIN, tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"precision": "fp16"}, "precision 'fp16': choices are fp32, bf16"),
        ({"on_divergence": "stpo"}, "on_divergence 'stpo': choices are rollback, stop"),
    ],
)
def test_an_unknown_option_is_refused(
    tmp_path: Path, tiny_space: SearchSpace, tiny_data: ImageData, option: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidConfiguration, match=message):
        train(Supernet(tiny_space), tiny_data, PLAIN, tmp_path / "run", **option)
    assert not (tmp_path / "run").exists()


# Optimisers, openings and sizes of one's own


def test_adam_resumes_exactly(tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData) -> None:
    recipe = random_order(2, 30, 0.01, optimizer=AdamW(weight_decay=0.1))
    whole = train(Supernet(tiny_space), few_data, recipe, tmp_path / "whole")
    train(Supernet(tiny_space), few_data, recipe, tmp_path / "run", stop_after=2)
    resumed = train(Supernet(tiny_space, seed=5), few_data, recipe, tmp_path / "run")
    assert_same_weights(weights_of(resumed), weights_of(whole))
    stopped = read_tensors(max((tmp_path / "run" / "checkpoints").glob("00-*")))[0]
    kinds = {name.split(".")[1] for name in stopped if name.startswith("optimizer.")}
    assert kinds == {"exp_avg", "exp_avg_sq", "step"}


def test_a_recipe_for_another_kind_of_space_is_refused(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData
) -> None:
    recipe = Recipe("heads", (Phase("full", 1, 0.01, open={"heads": 2}),), 30)
    with pytest.raises(InvalidConfiguration, match="phase full opens heads: this space has depth, kernel, expand"):
        train(Supernet(tiny_space), few_data, recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_whose_recipe_was_written_in_other_words_goes_on(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData
) -> None:
    """As version 0.1.0 wrote it, and with what is open said in another way."""
    whole = train(Supernet(tiny_space), few_data, random_order(1, 30), tmp_path / "whole")
    train(Supernet(tiny_space), few_data, random_order(1, 30), tmp_path / "run", stop_after=1)
    recipe = read_json(tmp_path / "run" / "recipe.json")
    del recipe["optimizer"], recipe["phases"][0]["open"]
    recipe |= {"momentum": 0.9, "weight_decay": 3e-5}
    recipe["phases"][0] |= dict.fromkeys(("depths", "kernels", "expands", "width_multipliers"), 99)
    recipe["phases"][0]["sampler"] = "uniform"
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(recipe))
    names = {"depth": 99, "kernel": 99, "expand": 99, "width_multiplier": 99}
    (phase,) = random_order(1, 30).phases
    same = replace(random_order(1, 30), phases=(replace(phase, open=names),))
    resumed = train(Supernet(tiny_space, seed=5), few_data, same, tmp_path / "run")
    assert_same_weights(weights_of(resumed), weights_of(whole))
