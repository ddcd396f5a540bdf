"""A second task, as small as a task can be, goes the same way as classification: how bright is an image?"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from onceforall.data.batches import Batch
from onceforall.data.dataset import ImageData, Split
from onceforall.errors import InvalidConfiguration
from onceforall.evaluate import Evaluator, measure
from onceforall.files import as_json, read_json, read_jsonl
from onceforall.nn.supernet import Supernet
from onceforall.predict.labels import Label, label, read_labels, score_of, training_pairs
from onceforall.report.progress import Training
from onceforall.space import SearchSpace
from onceforall.tasks import CLASSIFICATION, TASKS, Score, Task, register, task_of
from onceforall.training import trainer
from onceforall.training.losses import DistillationLoss
from onceforall.training.recipe import random_order, sandwich
from onceforall.training.samplers import Sandwich
from onceforall.training.schedule import OPEN, Phase, Recipe
from onceforall.training.trainer import train


class Brightness(Task):
    """The first output is the mean of the pixels; targets are means and their weights, a pair of [n]."""

    name = "brightness"
    score = Score("mae", "mean error", "", higher_is_better=False)
    loss_name = "squared_error"

    def loss(self, outputs: Tensor, targets: tuple[Tensor, Tensor], smoothing: float = 0.0) -> Tensor:
        means, weights = targets
        return (weights * (outputs[:, 0].float() - means).square()).mean()

    @torch.inference_mode()
    def evaluate(self, network: nn.Module, batches: Iterable[tuple[Tensor, tuple[Tensor, Tensor]]]) -> float:
        device = next(network.parameters()).device
        errors = [(network(images.to(device))[:, 0].cpu() - means).abs() for images, (means, _) in batches]
        return float(torch.cat(errors).mean())

    def chance(self, data: Any) -> float:
        return 0.5

    def chance_loss(self, data: Any) -> float:
        return 0.25

    def check(self, net: Any, data: Any) -> None:
        if not net.num_classes:
            raise InvalidConfiguration(f"{data.name} needs a network with an output")


BRIGHTNESS = Brightness()


@dataclass(frozen=True)
class Bright:
    """The images of another data set with how bright they are; it has no classes."""

    data: ImageData
    task: Task = BRIGHTNESS

    @property
    def name(self) -> str:
        return "bright"

    def size(self, split: Split) -> int:
        return self.data.size(split)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}

    def held_out(self) -> dict[str, Any]:
        return {}

    def training(self, plan: Iterable[Batch], device: torch.device) -> Iterator[tuple[Tensor, Any]]:
        return map(bright, self.data.training(plan, device))

    def batches(self, split: Split, resolution: int, batch_size: int = 250) -> Iterator[tuple[Tensor, Any]]:
        return map(bright, self.data.batches(split, resolution, batch_size))

    def calibration(self, resolution: int, batch_size: int = 250) -> list[Tensor]:
        return self.data.calibration(resolution, batch_size)


def bright(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    means = batch[0].mean((1, 2, 3))
    return batch[0], (means, torch.ones_like(means))


@dataclass(frozen=True)
class Near(DistillationLoss):
    """Of any outputs: their squared distance, times a factor."""

    factor: float = 1.0

    def __call__(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        return self.factor * (outputs - teacher).square().mean()


RECIPE = Recipe("plain", (Phase("open", 4, 0.05, 0, OPEN, subnets=2),), batch_size=30, batch_norm_size=15)


def taught(loss: DistillationLoss) -> Recipe:
    return replace(
        RECIPE,
        phases=(Phase("sandwich", 1, 0.05, 0, OPEN, Sandwich(), 3, "in_place", loss, hard=0.0),),
    )


@pytest.fixture
def data(few_data: ImageData) -> Bright:
    return Bright(few_data)


@pytest.fixture
def few_data(tiny_data: ImageData) -> ImageData:
    images, labels = tiny_data.train_images[:100], tiny_data.train_labels[:100]
    return replace(tiny_data, train_images=images, train_labels=labels, _prepared={})


def test_data_say_their_task(data: Bright, tiny_data: ImageData) -> None:
    assert task_of(data) is BRIGHTNESS
    assert task_of(tiny_data) is CLASSIFICATION


def test_it_is_learnt_logged_in_its_own_words_and_resumed_exactly(
    tmp_path: Path, tiny_space: SearchSpace, data: Bright
) -> None:
    whole = train(Supernet(tiny_space), data, RECIPE, tmp_path / "whole")
    records = read_jsonl(tmp_path / "whole" / "log.jsonl")
    (losses,) = (record for record in records if "loss" in record)
    assert losses.keys() >= {"squared_error", "learning_rate"}
    assert losses["loss"] == losses["squared_error"]  # no smoothing of means
    (scores,) = (record for record in records if "largest_mae" in record)
    assert scores.keys() >= {"largest_mae", "smallest_open_mae"}
    assert scores["largest_mae"] == measure(whole, tiny_space.largest(), data, "label")
    assert not any("top1" in name or "cross_entropy" in name for record in records for name in record)
    assert read_json(tmp_path / "whole" / "run.json")["task"] == "brightness"
    train(Supernet(tiny_space), data, RECIPE, tmp_path / "run", stop_after=2)
    resumed = train(Supernet(tiny_space, seed=5), data, RECIPE, tmp_path / "run")
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in resumed.state_dict().items())


def test_the_guard_knows_its_chance_level(
    tmp_path: Path, tiny_space: SearchSpace, data: Bright, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.2 is below guessing for classes (1.386), and for this task it is nearly guessing after 0.1."""
    told = itertools.chain([0.1, 0.1, 0.1, 0.1, 0.26], itertools.repeat(0.1))
    loss, count = Brightness.loss, itertools.count()

    def watched(self: Brightness, outputs: Tensor, targets: Any, smoothing: float = 0.0) -> Tensor:
        return loss(self, outputs, targets) if smoothing else torch.tensor(value_at[next(count) // 4])

    value_at = [next(told) for _ in range(40)]  # two chunks and two sub-networks a step
    monkeypatch.setattr(Brightness, "loss", watched)
    monkeypatch.setattr(trainer, "LOG_EVERY", 1)
    train(Supernet(tiny_space), data, RECIPE, tmp_path, checkpoint_every=3)
    (event,) = (record for record in read_jsonl(tmp_path / "log.jsonl") if record.get("event") == "rollback")
    assert event["reason"].startswith("squared error 0.260 after 0.100, as bad as guessing (0.250)")


def test_losses_of_logits_are_refused_and_others_distil(tmp_path: Path, tiny_space: SearchSpace, data: Bright) -> None:
    message = r"phase sandwich: its loss KLDivergence\(\) compares outputs of classification, and these data are for br"
    with pytest.raises(InvalidConfiguration, match=message):
        train(Supernet(tiny_space), data, sandwich(1, 30), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    before = Supernet(tiny_space).state_dict()
    trained = train(Supernet(tiny_space), data, taught(Near()), tmp_path / "run").state_dict()
    assert all(bool(tensor.isfinite().all()) for tensor in trained.values())
    assert not torch.equal(trained["stem.0.full.conv.weight"], before["stem.0.full.conv.weight"])


@pytest.mark.parametrize("memory", [None, 0])
def test_an_evaluator_gives_its_score(memory: int | None, tiny_supernet: Supernet, data: Bright) -> None:
    arch = tiny_supernet.space.smallest()
    expected = measure(tiny_supernet, arch, data, "label")
    assert 0 < expected < 100
    assert Evaluator(tiny_supernet, data, "label", memory=memory).score(arch) == expected


def test_labels_say_their_score_and_its_direction(tmp_path: Path, tiny_supernet: Supernet, data: Bright) -> None:
    path = tmp_path / "labels.jsonl"
    rows = label(tiny_supernet, data, path, count=4, uniform=False)
    assert [row.score for row in rows] == [measure(tiny_supernet, row.architecture, data, "label") for row in rows]
    header, first, *_ = read_jsonl(path)
    assert header["task"] == "brightness"
    assert first == {"kind": "random", "architecture": as_json(rows[0].architecture.to_json()), "mae": rows[0].score}
    assert read_labels(path, tiny_supernet.space) == rows
    assert score_of(path) == BRIGHTNESS.score
    architectures, goals = training_pairs(rows, score_of(path))
    assert goals == [-row.score for row in rows]
    best = architectures[max(range(4), key=lambda index: goals[index])]
    assert best == min(rows, key=lambda row: row.score).architecture
    assert training_pairs(rows)[1] == [row.score for row in rows]  # unless a score says so, higher is better
    assert label(tiny_supernet, data, path, count=4, uniform=False) == rows
    with pytest.raises(InvalidConfiguration, match="another supernet, seed, data set"):
        label(tiny_supernet, data.data, path, count=4, uniform=False)


def test_progress_speaks_of_its_score() -> None:
    text = StringIO()
    console = Console(file=text, width=140, force_terminal=True, color_system=None)
    with Training(random_order(3), console, BRIGHTNESS.score) as report:
        report({"phase": 0, "name": "random", "step": 6, "largest_mae": 0.125, "smallest_open_mae": 0.5})
    assert "mean error on label images: largest 0.12, smallest open 0.50" in text.getvalue()
    assert "%" not in text.getvalue().split("mean error")[1].splitlines()[0]


# Parts of a recipe that the package does not know


def test_a_loss_of_ones_own_is_written_with_its_import_path_and_read_where_it_is_imported() -> None:
    value = json.loads(json.dumps(taught(Near(0.5)).to_json()))
    assert value["phases"][0]["loss"] == {"type": f"{__name__}:Near", "factor": 0.5}
    assert Recipe.from_json(value) == taught(Near(0.5))
    value["phases"][0]["loss"]["factor"] = "much"
    with pytest.raises(InvalidConfiguration, match=r"not a loss: Expected `float`, got `str` - at `\$\.factor`"):
        Recipe.from_json(value)


def test_reading_a_recipe_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    value = json.loads(json.dumps(taught(Near()).to_json()))
    value["phases"][0]["loss"] = "trap:Loss"
    with pytest.raises(InvalidConfiguration, match=r"loss 'trap:Loss': choices are .*; import the module that defines"):
        Recipe.from_json(value)


def test_a_run_goes_on_with_the_parts_that_it_is_given_and_no_others(
    tmp_path: Path, tiny_space: SearchSpace, data: Bright
) -> None:
    train(Supernet(tiny_space), data, taught(Near(0.5)), tmp_path, stop_after=1)
    with pytest.raises(InvalidConfiguration, match=r"recipe\.json is of another run"):
        train(Supernet(tiny_space), data, taught(Near(0.25)), tmp_path)
    recipe = read_json(tmp_path / "recipe.json")
    recipe["phases"][0]["loss"]["type"] = "nowhere:Near"  # of a class that is not there: nothing is looked for
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(InvalidConfiguration, match=r"recipe\.json is of another run"):
        train(Supernet(tiny_space), data, taught(Near(0.5)), tmp_path)


@pytest.mark.parametrize("lower", [False, True])
def test_goals_rank_labels_by_what_is_better(lower: bool, tiny_space: SearchSpace) -> None:
    score = Score("x", "x", higher_is_better=not lower)
    rows = [Label("random", tiny_space.smallest(), 1.0), Label("random", tiny_space.largest(), 2.0)]
    architectures, goals = training_pairs(rows, score)
    assert architectures[goals.index(max(goals))] == (tiny_space.smallest() if lower else tiny_space.largest())
    assert [score.goal(goal) for goal in goals] == [1.0, 2.0]
    assert math.isnan(score.goal(math.nan))


def test_a_data_set_may_say_the_name_of_a_registered_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TASKS, "_registered", {})

    class Named:
        task = "brightness"

    with pytest.raises(InvalidConfiguration, match="task 'brightness': choices are classification"):
        task_of(Named())
    mine = Brightness()
    register(mine)
    assert task_of(Named()) is mine
    assert task_of(object()) is CLASSIFICATION
    with pytest.raises(InvalidConfiguration, match="task 'brightness' is taken"):
        register(Brightness2())


class Brightness2(Brightness):
    """Another task of the same name."""
