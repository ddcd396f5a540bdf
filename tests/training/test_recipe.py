import json
from typing import Any

import pytest

from onceforall.errors import InvalidConfiguration
from onceforall.space import SearchSpace
from onceforall.spaces import mobilenet_v3
from onceforall.training.recipe import Phase, Recipe, progressive_shrinking

PAPER = progressive_shrinking()


def test_the_defaults_are_those_of_the_paper() -> None:
    assert (PAPER.batch_size, PAPER.momentum, PAPER.weight_decay, PAPER.label_smoothing) == (2048, 0.9, 3e-5, 0.1)
    table = [(phase.name, phase.epochs, phase.learning_rate, phase.subnets) for phase in PAPER.phases]
    assert table == [
        ("full", 180, 2.6, 1),
        ("kernel", 125, 0.96, 1),
        ("depth 1", 25, 0.08, 2),
        ("depth 2", 125, 0.24, 2),
        ("width 1", 25, 0.08, 4),
        ("width 2", 125, 0.24, 4),
    ]


def test_phases_open_kernels_then_depths_then_widths() -> None:
    opened = [(phase.kernels, phase.depths, phase.expands) for phase in PAPER.phases]
    assert opened == [(1, 1, 1), (3, 1, 1), (3, 2, 1), (3, 3, 1), (3, 3, 2), (3, 3, 3)]
    assert [phase.width_multipliers for phase in PAPER.phases] == [1, 1, 1, 1, 2, 4]


def test_the_last_phase_opens_everything(space: SearchSpace) -> None:
    assert PAPER.phases[-1].opened(space) == space
    first = PAPER.phases[0].opened(space)
    assert first.size == len(space.resolutions)
    assert first.largest() == space.largest()


def test_a_phase_opens_its_number_of_largest_choices() -> None:
    space = mobilenet_v3(resolutions=(32, 64), width_multipliers=(0.25, 0.5, 0.75, 1))
    phase = Phase("x", 1, 0.1, depths=2, kernels=1, expands=3, width_multipliers=2)
    assert phase.opened(space) == space.restrict(depths=[3, 4], kernels=[7], width_multipliers=[0.75, 1])


def test_a_tied_space_opens_with_its_width_phases() -> None:
    tied = mobilenet_v3(resolutions=(32,), tied=True)
    opened = [phase.opened(tied).units[0] for phase in PAPER.phases]
    assert [unit.expands for unit in opened] == [(6,), (6,), (6,), (6,), (4, 6), (3, 4, 6)]
    assert [unit.depths for unit in opened] == [(4,), (4,), (4,), (4,), (3, 4), (2, 3, 4)]


def test_channels_are_sorted_before_each_width_phase_only() -> None:
    assert [phase.sort_channels for phase in PAPER.phases] == [False] * 4 + [True] * 2


def test_every_phase_but_the_first_has_the_teacher() -> None:
    assert [phase.distill for phase in PAPER.phases] == [0.0] + [1.0] * 5


def test_the_long_phases_warm_up_for_five_epochs() -> None:
    assert [phase.warmup_epochs for phase in PAPER.phases] == [5, 5, 0, 5, 0, 5]


def test_learning_rates_scale_with_the_batch_size() -> None:
    recipe = progressive_shrinking(batch_size=128, learning_rate_scale=2.0)
    assert recipe.batch_size == 128
    for phase, paper in zip(recipe.phases, PAPER.phases, strict=True):
        assert phase.learning_rate == pytest.approx(paper.learning_rate / 8)


def test_warm_up_scales_with_the_length_of_its_phase() -> None:
    recipe = progressive_shrinking(epochs=(36, 25, 5, 50, 5, 1))
    assert [phase.warmup_epochs for phase in recipe.phases] == [1, 1, 0, 2, 0, 0]


@pytest.mark.parametrize("epochs", [(1, 1, 1), (1,) * 7, ()])
def test_another_number_of_phases_is_refused(epochs: tuple[int, ...]) -> None:
    with pytest.raises(InvalidConfiguration, match=r"give six .*full, kernel"):
        progressive_shrinking(epochs=epochs)


@pytest.mark.parametrize("recipe", [PAPER, Recipe("short", (Phase("only", 1, 0.1, distill=0.0),), 32)])
def test_json_round_trip(recipe: Recipe) -> None:
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epochs": -1}, "phase x: epochs -1: expected at least 0"),
        ({"warmup_epochs": -1}, "phase x: warmup_epochs -1: expected at least 0"),
        ({"depths": 0}, "phase x: depths 0: expected at least 1"),
        ({"kernels": 0}, "phase x: kernels 0: expected at least 1"),
        ({"expands": 0}, "phase x: expands 0: expected at least 1"),
        ({"width_multipliers": 0}, "phase x: width_multipliers 0: expected at least 1"),
        ({"subnets": 0}, "phase x: subnets 0: expected at least 1"),
        ({"learning_rate": 0.0}, "phase x: learning_rate 0.0, .*: expected a positive rate"),
        ({"learning_rate": float("nan")}, "phase x: learning_rate nan, .*: expected a positive rate"),
        ({"distill": -1.0}, "phase x: .*distill -1.0: expected .* a weight of at least 0"),
    ],
)
def test_a_phase_refuses_settings_out_of_range(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfiguration, match=message):
        Phase(**{"name": "x", "epochs": 1, "learning_rate": 0.1, **setting})


def test_a_recipe_refuses_a_batch_of_one_image() -> None:
    with pytest.raises(InvalidConfiguration, match="batch_size 1: expected at least 2"):
        Recipe("x", (Phase("only", 1, 0.1, distill=0.0),), 1)


def test_a_recipe_needs_phases() -> None:
    with pytest.raises(InvalidConfiguration, match="recipe x has no phases"):
        Recipe("x", (), 32)


@pytest.mark.parametrize(
    "change",
    [{"phases": None}, {"phases": [3]}, {"phases": [{"name": "x"}]}, {"batch_size": "32"}, {"optimizer": "adam"}],
    ids=str,
)
def test_json_of_a_wrong_form_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfiguration, match="not a recipe"):
        Recipe.from_json({**PAPER.to_json(), **change})


def test_json_without_phases_is_refused() -> None:
    with pytest.raises(InvalidConfiguration, match="not a recipe: 'phases'"):
        Recipe.from_json({"name": "x", "batch_size": 32})
