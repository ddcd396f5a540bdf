import itertools
import math
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onceforall.checkpoint import read_tensors
from onceforall.data.dataset import ImageData
from onceforall.errors import TrainingDiverged
from onceforall.files import read_json, read_jsonl
from onceforall.nn.supernet import Supernet
from onceforall.space import SearchSpace
from onceforall.tasks.classification import CLASSIFICATION, Classification
from onceforall.training import trainer
from onceforall.training.guard import trouble
from onceforall.training.recipe import Phase, Recipe
from onceforall.training.run_folder import State
from onceforall.training.trainer import train

# Two phases of six steps: 90 images of `few_data` train. The rate of each is constant but for a small part of a cosine.
FLAT = (0.0, 1e-9)
RECIPE = Recipe("two", (Phase("first", 2, 0.04, cosine=FLAT), Phase("second", 2, 0.02, cosine=FLAT)), batch_size=30)
PEAKS = [0.04] * 6 + [0.02] * 6

NAME, CHANCE = "cross entropy", math.log(10)


# What is wrong with a loss


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("best", [None, 0.5])
def test_a_cross_entropy_that_is_no_number_is_trouble(value: float, best: float | None) -> None:
    assert trouble(NAME, value, State(best=best), CHANCE) == f"cross entropy {value}"


def test_guessing_is_no_trouble_before_anything_was_learnt() -> None:
    state = State()
    for value in (2 * CHANCE, CHANCE, 0.98 * CHANCE, 0.71 * CHANCE, CHANCE, 5 * CHANCE):
        assert trouble(NAME, value, state, CHANCE) is None
    assert state.best == pytest.approx(0.71 * CHANCE)


def test_guessing_again_after_having_learnt_is_trouble() -> None:
    state = State()
    assert trouble(NAME, 0.69 * CHANCE, state, CHANCE) is None
    assert trouble(NAME, 0.96 * CHANCE, state, CHANCE) is None
    message = trouble(NAME, 0.98 * CHANCE, state, CHANCE)
    assert message == "cross entropy 2.257 after 1.589, as bad as guessing (2.303)"


def test_trouble_is_measured_against_the_best_so_far_and_the_number_of_classes() -> None:
    state = State(best=1.0)
    assert trouble(NAME, 0.5, state, math.log(1000)) is None
    assert trouble(NAME, 0.9, state, math.log(1000)) is None
    assert state.best == 0.5
    assert trouble(NAME, 2.5, state, math.log(1000)) is None  # guessing costs 6.9
    assert trouble(NAME, 2.5, state, CHANCE) is not None
    assert state.best == 0.5


# What a run does about it


def weights_of(supernet: Supernet) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in supernet.state_dict().items()}


def assert_same_weights(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


Poison = Callable[[Container[int]], None]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """Makes the loss of the given steps no number; they are counted from 1, repeated ones again."""

    loss = Classification.loss

    def poison(steps: Container[int]) -> None:
        count = itertools.count(1)

        def poisoned(self: Classification, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
            value = loss(self, logits, labels, smoothing)
            return value * math.nan if smoothing and next(count) in steps else value

        monkeypatch.setattr(Classification, "loss", poisoned)

    return poison


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Fills with the learning rate of every step."""
    seen: list[float] = []
    step = torch.optim.SGD.step

    def observed(self: torch.optim.SGD, *args: Any, **options: Any) -> Any:
        seen.append(self.param_groups[0]["lr"])
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", observed)
    return seen


def rollbacks(run: Path) -> list[dict[str, Any]]:
    return [record for record in read_jsonl(run / "log.jsonl") if record.get("event") == "rollback"]


def all_finite(run: Path) -> bool:
    """Whether every checkpoint is."""
    paths = list((run / "checkpoints").iterdir())
    return bool(paths) and all(
        bool(tensor.isfinite().all()) for path in paths for tensor in read_tensors(path)[0].values()
    )


@pytest.mark.parametrize(
    ("step", "again", "halved"),
    [
        (4, 2, 4),  # found with the checkpoint of step 4; goes on after that of step 2
        (3, 2, 4),  # found with the same one
        (1, 0, 6),
        (6, 4, 2),  # the last of the phase: found before the next one begins
    ],
)
def test_a_run_that_diverges_goes_on_from_its_last_checkpoint_with_half_the_rate_for_the_rest_of_the_phase(
    tmp_path: Path,
    tiny_space: SearchSpace,
    few_data: ImageData,
    poison: Poison,
    rates: list[float],
    step: int,
    again: int,
    halved: int,
) -> None:
    poison({step})
    found = again + 2
    trained = train(Supernet(tiny_space), few_data, RECIPE, tmp_path, checkpoint_every=2)
    assert rates == pytest.approx([0.04] * found + [0.02] * halved + [0.02] * 6)
    (event,) = rollbacks(tmp_path)
    assert (event["phase"], event["name"], event["step"], event["rate_scale"]) == (0, "first", again, 0.5)
    assert "in phase first" in event["reason"]
    state = read_json(tmp_path / "state.json")
    assert (state["rate_scale"], state["rollbacks"]) == (1.0, 1)
    assert all(tensor.isfinite().all() for tensor in trained.state_dict().values())


def test_steps_before_a_rollback_count_among_those_of_the_call(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, poison: Poison, rates: list[float]
) -> None:
    poison({4})
    train(Supernet(tiny_space), few_data, RECIPE, tmp_path, checkpoint_every=2, stop_after=6)
    assert len(rates) == 6
    assert (read_json(tmp_path / "state.json")["phase"], read_json(tmp_path / "state.json")["step"]) == (0, 4)


def test_the_last_step_of_a_run_may_diverge_too(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, poison: Poison, rates: list[float]
) -> None:
    poison({12, 14})
    trained = train(Supernet(tiny_space), few_data, RECIPE, tmp_path, checkpoint_every=2)
    assert rates == pytest.approx(PEAKS + [0.01] * 2 + [0.005] * 2)
    assert [event["rate_scale"] for event in rollbacks(tmp_path)] == [0.5, 0.25]
    assert all(tensor.isfinite().all() for tensor in trained.state_dict().values())


def test_a_network_that_falls_back_to_guessing_has_diverged(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, rates: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([0.9, 0.5, 0.6, 0.6, 1.0, *[0.6] * 9])

    loss = CLASSIFICATION.loss

    def told(self: Classification, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        return loss(logits, labels, smoothing) if smoothing else torch.tensor(math.log(4) * next(measured))

    monkeypatch.setattr(trainer, "LOG_EVERY", 1)
    monkeypatch.setattr(Classification, "loss", told)
    train(Supernet(tiny_space), few_data, RECIPE, tmp_path, checkpoint_every=3)
    assert rates == pytest.approx([0.04] * 5 + [0.02] * 3 + [0.02] * 6)
    (event,) = rollbacks(tmp_path)
    assert (event["phase"], event["step"]) == (0, 3)
    assert "as bad as guessing (1.386) in phase first, step 5, at a peak learning rate of 0.04" in event["reason"]
    steps = [record["step"] for record in read_jsonl(tmp_path / "log.jsonl") if "loss" in record]
    assert steps == [1, 2, 3, 4, 5, 6] * 2  # none twice


def test_after_three_rollbacks_the_run_is_given_up_and_its_good_checkpoint_stays(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, poison: Poison, rates: list[float]
) -> None:
    poison(range(4, 1000))
    with pytest.raises(TrainingDiverged, match=r"in phase first, step 4, at a peak learning rate of 0.005: train in a"):
        train(Supernet(tiny_space), few_data, RECIPE, tmp_path, checkpoint_every=2)
    assert rates == pytest.approx([0.04] * 4 + [0.02] * 2 + [0.01] * 2 + [0.005] * 2)
    assert [event["rate_scale"] for event in rollbacks(tmp_path)] == [0.5, 0.25, 0.125]
    assert all_finite(tmp_path)
    assert not (tmp_path / "supernet.safetensors").exists()
    with pytest.raises(TrainingDiverged):  # at once: three it was
        train(Supernet(tiny_space), few_data, RECIPE, tmp_path, checkpoint_every=2)
    assert rates[10:] == pytest.approx([0.005] * 2)


def test_three_rollbacks_are_for_the_whole_run(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, poison: Poison, rates: list[float]
) -> None:
    poison({2, 4, 11, 13})  # the first phase ends with the tenth step
    with pytest.raises(TrainingDiverged, match=r"in phase second, step 2, at a peak learning rate of 0.01"):
        train(Supernet(tiny_space), few_data, RECIPE, tmp_path, checkpoint_every=2)
    assert [(event["phase"], event["rate_scale"]) for event in rollbacks(tmp_path)] == [(0, 0.5), (0, 0.25), (1, 0.5)]
    assert rates == pytest.approx([0.04] * 2 + [0.02] * 2 + [0.01] * 6 + [0.02] * 2 + [0.01] * 2)


def test_a_rate_beyond_hope_is_given_up(tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData) -> None:
    absurd = Recipe("absurd", (Phase("full", 2, 1e30),), batch_size=30)
    with pytest.raises(TrainingDiverged):
        train(Supernet(tiny_space), few_data, absurd, tmp_path, checkpoint_every=1)
    assert len(rollbacks(tmp_path)) == 3
    assert all_finite(tmp_path)
    assert not (tmp_path / "supernet.safetensors").exists()


def test_stop_raises_at_once_and_keeps_the_good_checkpoint(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, poison: Poison, rates: list[float]
) -> None:
    poison({4})
    with pytest.raises(
        TrainingDiverged, match=r"is not finite in phase first, step 4, .* keeps its last good checkpoint"
    ):
        train(Supernet(tiny_space), few_data, RECIPE, tmp_path, checkpoint_every=2, on_divergence="stop")
    assert len(rates) == 4
    assert rollbacks(tmp_path) == []
    assert all_finite(tmp_path)
    assert max((tmp_path / "checkpoints").iterdir()).name == "00-000000002.safetensors"


def test_initial_weights_that_are_no_numbers_are_refused(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData
) -> None:
    supernet = Supernet(tiny_space)
    supernet.stem[0].full.conv.weight.data.fill_(math.nan)  # type: ignore[union-attr, operator]
    with pytest.raises(TrainingDiverged, match=r"stem.0.full.conv.weight is not finite in phase first, step 0"):
        train(supernet, few_data, RECIPE, tmp_path)


def test_a_run_killed_right_after_a_rollback_goes_on_with_the_lower_rate(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, poison: Poison, rates: list[float]
) -> None:
    def kill(record: dict[str, Any]) -> None:
        if record.get("event") == "rollback":
            raise KeyboardInterrupt

    poison({4})
    whole = weights_of(train(Supernet(tiny_space), few_data, RECIPE, tmp_path / "whole", checkpoint_every=2))
    poison({4})
    with pytest.raises(KeyboardInterrupt):
        train(Supernet(tiny_space), few_data, RECIPE, tmp_path / "run", checkpoint_every=2, report=kill)
    killed = len(rates)
    resumed = train(Supernet(tiny_space, seed=5), few_data, RECIPE, tmp_path / "run", checkpoint_every=2)
    assert rates[killed:] == pytest.approx([0.02] * 4 + [0.02] * 6)
    assert len(rollbacks(tmp_path / "run")) == 1
    assert_same_weights(weights_of(resumed), whole)


def test_a_rollback_to_the_beginning_of_a_phase_sorts_channels_again(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, poison: Poison, rates: list[float]
) -> None:
    phases = (
        Phase("full", 1, 0.04, cosine=FLAT),
        Phase("wide", 1, 0.02, open={"expand": 3}, sort_channels=True, cosine=FLAT),
    )
    recipe = Recipe("sorted", phases, batch_size=30)
    poison({4})
    train(Supernet(tiny_space), few_data, recipe, tmp_path / "run")
    assert rates == pytest.approx([0.04] * 3 + [0.02] * 3 + [0.01] * 3)
    halved = Recipe(
        "halved", (phases[0], Phase("wide", 1, 0.01, open={"expand": 3}, sort_channels=True, cosine=FLAT)), 30
    )
    poison(())
    expected = train(Supernet(tiny_space), few_data, halved, tmp_path / "halved")
    trained = read_tensors(tmp_path / "run" / "supernet.safetensors")[0]
    assert_same_weights(trained, weights_of(expected))
