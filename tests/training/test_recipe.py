import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from onceforall.errors import InvalidConfiguration
from onceforall.files import as_json
from onceforall.space import SearchSpace
from onceforall.spaces import mobilenet_v3, mobilenet_v3_small_images, vit, vit_small_images
from onceforall.training.losses import AlphaDivergence, DistillationLoss, SoftCrossEntropy
from onceforall.training.optimizers import SGD, AdamW
from onceforall.training.recipe import (
    ALL,
    BY_NAME,
    Phase,
    Recipe,
    by_name,
    default,
    delayed_shrinking,
    finetune,
    progressive_shrinking,
    random_order,
    sandwich,
    standalone,
)
from onceforall.training.samplers import Random, Sandwich
from onceforall.training.schedule import identity

PAPER = progressive_shrinking()
ALONE = ("standalone", "finetune")  # one network, not a supernet

every = pytest.mark.parametrize("name", BY_NAME)


# Progressive shrinking


def test_the_defaults_are_those_of_the_paper() -> None:
    assert (PAPER.batch_size, PAPER.optimizer, PAPER.label_smoothing) == (2048, SGD(0.9, 3e-5), 0.1)
    assert (PAPER.clip_norm, PAPER.batch_norm_size) == (0, 0)
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
    units = [phase.opened(mobilenet_v3()).units[0] for phase in PAPER.phases]
    opened = [(len(unit.kernels), len(unit.depths), len(unit.expands)) for unit in units]
    assert opened == [(1, 1, 1), (3, 1, 1), (3, 2, 1), (3, 3, 1), (3, 3, 2), (3, 3, 3)]
    space = mobilenet_v3(width_multipliers=(0.25, 0.5, 0.75, 1))
    assert [len(phase.opened(space).units[0].width_multipliers) for phase in PAPER.phases] == [1, 1, 1, 1, 2, 4]


def test_at_the_end_everything_is_open_however_many_choices_there_are() -> None:
    space = mobilenet_v3(depths=(1, 2, 3, 4), kernels=(3, 5, 7, 9), expands=(1, 2, 3, 4, 6))
    assert PAPER.phases[-1].opened(space) == space


def test_a_phase_opens_its_number_of_largest_choices() -> None:
    space = mobilenet_v3(resolutions=(32, 64), width_multipliers=(0.25, 0.5, 0.75, 1))
    phase = Phase("x", 1, 0.1, open={"depth": 2, "kernel": 1, "expand": 3, "width_multiplier": 2})
    assert phase.opened(space) == space.restrict(depths=[3, 4], kernels=[7], width_multipliers=[0.75, 1])


def test_a_tied_space_opens_with_its_width_phases() -> None:
    tied = mobilenet_v3(resolutions=(32,), tied=True)
    opened = [phase.opened(tied).units[0] for phase in PAPER.phases]
    assert [unit.expands for unit in opened] == [(6,), (6,), (6,), (6,), (4, 6), (3, 4, 6)]
    assert [unit.depths for unit in opened] == [(4,), (4,), (4,), (4,), (3, 4), (2, 3, 4)]


def test_what_was_trained_before_a_phase_is_what_the_earlier_ones_opened() -> None:
    space = mobilenet_v3(resolutions=(32,), width_multipliers=(0.5, 0.75, 1))
    full, deep = Phase("x", 1, 0.1).opened(space), space.restrict(expands=[6], width_multipliers=[1])
    assert [PAPER.opened_before(number, space) for number in (0, 1)] == [full, full]
    assert PAPER.opened_before(4, space) == deep
    assert PAPER.opened_before(5, space) == space.restrict(expands=[4, 6], width_multipliers=[0.75, 1])
    back = Recipe("back", (*PAPER.phases[:5], PAPER.phases[0], PAPER.phases[0]), 32)  # what is closed again was trained
    assert back.opened_before(6, space) == PAPER.opened_before(5, space)


def test_channels_are_sorted_before_each_width_phase_only() -> None:
    assert [phase.sort_channels for phase in PAPER.phases] == [False] * 4 + [True] * 2


def test_every_phase_but_the_first_has_the_frozen_teacher() -> None:
    assert [phase.teacher for phase in PAPER.phases] == ["none"] + ["frozen"] * 5
    assert {(phase.loss, phase.distill, phase.hard) for phase in PAPER.phases} == {(SoftCrossEntropy(), 1.0, 1.0)}


def test_the_long_phases_warm_up_for_five_epochs() -> None:
    assert [phase.warmup_epochs for phase in PAPER.phases] == [5, 5, 0, 5, 0, 5]


def test_warm_up_scales_with_the_length_of_its_phase() -> None:
    recipe = progressive_shrinking(epochs=(36, 25, 5, 50, 5, 1))
    assert [phase.warmup_epochs for phase in recipe.phases] == [1, 1, 0, 2, 0, 0]


@pytest.mark.parametrize(
    ("epochs", "lengths"),
    [
        (605, [180, 125, 25, 125, 25, 125]),
        (302.5, [90, 62, 12, 62, 12, 62]),
        (34, [10, 7, 1, 7, 1, 7]),
        (6, [2, 1, 1, 1, 1, 1]),
        (1, [1, 1, 1, 1, 1, 1]),
    ],
)
def test_one_number_of_epochs_keeps_the_proportions_of_the_phases(epochs: float, lengths: list[int]) -> None:
    assert [phase.epochs for phase in progressive_shrinking(epochs).phases] == lengths


@pytest.mark.parametrize("epochs", [0, 0.5, -3, math.nan])
def test_less_than_an_epoch_is_refused(epochs: float) -> None:
    with pytest.raises(InvalidConfiguration, match=f"epochs {epochs}: expected at least 1"):
        progressive_shrinking(epochs)


@pytest.mark.parametrize("epochs", [(1, 1, 1), (1,) * 7, ()])
def test_another_number_of_phases_is_refused(epochs: tuple[int, ...]) -> None:
    with pytest.raises(InvalidConfiguration, match=r"give one number, or six .*full, kernel"):
        progressive_shrinking(epochs)


# The others


@pytest.mark.parametrize("loss", ["kl", "alpha", "cross_entropy"])
def test_a_sandwich_is_one_phase_in_which_the_largest_teaches_the_others(loss: str) -> None:
    (phase,) = sandwich(36, loss=loss, subnets=3).phases
    assert (phase.sampler, phase.subnets, phase.teacher) == (Sandwich(), 3, "in_place")
    assert phase.loss == DistillationLoss.from_json(loss)
    assert (phase.distill, phase.hard) == (1.0, 0.0)
    assert (phase.epochs, phase.warmup_epochs, phase.sort_channels, phase.ramp_epochs) == (36, 1, False, 0)


@pytest.mark.parametrize("recipe", [sandwich, delayed_shrinking])
def test_a_sandwich_needs_the_largest_and_another_network(recipe: Any) -> None:
    for subnets in (0, 1):
        with pytest.raises(InvalidConfiguration, match=f"subnets {subnets}: expected an integer of at least 2"):
            recipe(subnets=subnets)


def test_only_the_recipes_with_a_sandwich_clip_gradients() -> None:
    clipped = {name: recipe().clip_norm for name, recipe in BY_NAME.items()}
    assert clipped == {name: 1.0 if name in ("sandwich", "delayed_shrinking") else 0.0 for name in BY_NAME}
    assert [recipe(clip_norm=0.0).clip_norm for recipe in (sandwich, delayed_shrinking)] == [0.0, 0.0]


def test_random_order_learns_from_labels_alone() -> None:
    (phase,) = random_order(subnets=2).phases
    assert (phase.sampler, phase.subnets, phase.teacher) == (Random(), 2, "none")


@pytest.mark.parametrize(
    ("epochs", "lengths", "ramp"), [(180, (90, 90), 18), (16, (8, 8), 2), (5, (3, 2), 1), (2, (1, 1), 1)]
)
def test_delayed_shrinking_opens_everything_at_half_time(epochs: int, lengths: tuple[int, int], ramp: int) -> None:
    full, shrink = delayed_shrinking(epochs, loss="alpha", subnets=3).phases
    assert (full.epochs, shrink.epochs) == lengths
    assert (full.subnets, full.teacher, full.ramp_epochs) == (1, "none", 0)
    assert (shrink.sampler, shrink.subnets, shrink.teacher, shrink.loss) == (
        Sandwich(),
        3,
        "in_place",
        AlphaDivergence(),
    )
    assert (shrink.ramp_epochs, shrink.sort_channels, shrink.hard) == (ramp, True, 0.0)


def test_one_cosine_spans_both_phases_of_delayed_shrinking() -> None:
    full, shrink = delayed_shrinking().phases
    assert (full.cosine, shrink.cosine) == ((0.0, 0.5), (0.5, 1.0))
    assert full.learning_rate == shrink.learning_rate
    assert (full.warmup_epochs, shrink.warmup_epochs) == (2, 0)


@pytest.mark.parametrize("epochs", [0, 1])
def test_delayed_shrinking_needs_an_epoch_for_each_phase(epochs: int) -> None:
    with pytest.raises(InvalidConfiguration, match=f"epochs {epochs}: expected an integer of at least 2"):
        delayed_shrinking(epochs)


def test_standalone_training_is_the_first_phase_of_shrinking() -> None:
    (phase,) = standalone(180).phases
    first = PAPER.phases[0]
    assert (phase.epochs, phase.learning_rate, phase.warmup_epochs) == (180, first.learning_rate, first.warmup_epochs)


def test_fine_tuning_has_the_rate_of_the_last_phase_of_shrinking() -> None:
    (phase,) = finetune().phases
    assert (phase.epochs, phase.learning_rate) == (25, PAPER.phases[-1].learning_rate)


# Every recipe


@every
def test_the_last_phase_opens_everything_unless_one_network_is_trained(name: str, space: SearchSpace) -> None:
    first, last = (BY_NAME[name]().phases[end].opened(space) for end in (0, -1))
    assert first.largest() == space.largest()
    if name in ALONE:
        assert last.size == len(space.resolutions)
    else:
        assert last == space
    if name in ("progressive_shrinking", "delayed_shrinking"):
        assert first.size == len(space.resolutions)


@every
def test_learning_rates_scale_with_the_batch_size(name: str) -> None:
    recipe, paper = BY_NAME[name](batch_size=128, learning_rate_scale=2.0), BY_NAME[name]()
    assert (recipe.batch_size, paper.batch_size) == (128, 2048)
    for phase, original in zip(recipe.phases, paper.phases, strict=True):
        assert phase.learning_rate == pytest.approx(original.learning_rate / 8)


@every
def test_every_recipe_takes_the_shared_settings(name: str) -> None:
    settings: dict[str, Any] = {
        "label_smoothing": 0.0,
        "clip_norm": 5.0,
        "batch_norm_size": 64,
    }
    recipe = BY_NAME[name](**settings, momentum=0.8, weight_decay=1e-4)
    assert (recipe.name, recipe.optimizer) == (name, SGD(0.8, 1e-4))
    assert BY_NAME[name](optimizer=AdamW()).optimizer == AdamW()
    with pytest.raises(InvalidConfiguration, match="momentum: set it in the optimizer that is given"):
        BY_NAME[name](optimizer=AdamW(), momentum=0.8)
    assert {setting: getattr(recipe, setting) for setting in settings} == settings


@pytest.mark.parametrize(
    ("recipe", "subnet_epochs"),
    [
        (PAPER, 180 + 125 + 2 * 25 + 2 * 125 + 4 * 25 + 4 * 125),
        (sandwich(10, subnets=3), 30),
        (random_order(10), 40),
        (delayed_shrinking(5), 3 + 4 * 2),
        (standalone(7), 7),
        (finetune(), 25),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_sub_network_epochs_are_epochs_times_sub_networks(recipe: Recipe, subnet_epochs: int) -> None:
    assert recipe.subnet_epochs == subnet_epochs


ODD = Recipe(
    "odd",
    (
        Phase(
            "only", 1, 0.1, 1, {"*": 2, "kernel": 3, "heads": 4}, Sandwich(), 6, "in_place", AlphaDivergence(), 0.5,
            0.25, 2, True, (0.25, 0.5),
        ),
    ),
    32,
    AdamW((0.8, 0.9), 0.1),
    label_smoothing=0.0,
    clip_norm=2.0,
    batch_norm_size=16,
)  # fmt: skip


@pytest.mark.parametrize("recipe", [*(recipe() for recipe in BY_NAME.values()), ODD], ids=lambda recipe: recipe.name)
def test_json_round_trip(recipe: Recipe) -> None:
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@every
def test_a_recipe_is_found_by_its_name(name: str) -> None:
    assert by_name(name, epochs=12, batch_size=64) == BY_NAME[name](12, 64)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("shrinking", {}, "recipe 'shrinking': choices are progressive_shrinking, sandwich, "),
        ("random_order", {"loss": "kl"}, "recipe random_order does not take that: .*'loss'"),
        ("finetune", {"optimiser": "adam"}, "does not take that: .*'optimiser'"),
        ("sandwich", {"loss": "l2"}, "loss 'l2': choices are cross_entropy, kl, alpha.*; import the module"),
        ("sandwich", {"epochs": 2.5}, "epochs 2.5: recipe sandwich takes one whole number"),
        ("standalone", {"epochs": (1,) * 6}, "recipe standalone takes one whole number"),
    ],
)
def test_a_recipe_that_is_not_there_or_does_not_take_that_is_refused(
    name: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidConfiguration, match=message):
        by_name(name, **given)


# Settings out of range


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epochs": -1}, "phase x: epochs -1: expected an integer of at least 0"),
        ({"epochs": 1.5}, "phase x: epochs 1.5: expected an integer of at least 0"),
        ({"warmup_epochs": -1}, "phase x: warmup_epochs -1: expected an integer of at least 0"),
        ({"ramp_epochs": -1}, "phase x: ramp_epochs -1: expected an integer of at least 0"),
        ({"open": {"depth": 0}}, "phase x: open depth 0: expected an integer of at least 1"),
        ({"open": {"kernel": 0}}, "phase x: open kernel 0: expected an integer of at least 1"),
        ({"open": {"expand": 0}}, "phase x: open expand 0: expected an integer of at least 1"),
        ({"subnets": 0}, "phase x: subnets 0: expected an integer of at least 1"),
        ({"sampler": "best"}, "phase x: sampler 'best': expected a Sampler"),
        ({"teacher": "wise"}, "phase x: teacher 'wise': choices are none, frozen, in_place"),
        ({"loss": "l2"}, "phase x: loss 'l2': expected a DistillationLoss"),
        ({"learning_rate": 0.0}, "phase x: learning_rate 0.0: expected a positive number"),
        ({"learning_rate": math.nan}, "phase x: learning_rate nan: expected a positive number"),
        ({"distill": -1.0}, "phase x: distill -1.0: expected a weight of at least 0"),
        ({"hard": -0.5}, "phase x: hard -0.5: expected a weight of at least 0"),
        ({"hard": math.nan}, "phase x: hard nan: expected a weight of at least 0"),
        ({"cosine": (0.5, 0.5)}, r"phase x: cosine \(0.5, 0.5\): expected a part of \(0, 1\)"),
        ({"cosine": (0.5, 0.2)}, r"phase x: cosine \(0.5, 0.2\): expected a part"),
        ({"cosine": (-0.1, 1.0)}, r"phase x: cosine \(-0.1, 1.0\): expected a part"),
        ({"cosine": (0.0, 1.1)}, r"phase x: cosine \(0.0, 1.1\): expected a part"),
        ({"cosine": (0.0, 0.5, 1.0)}, r"phase x: cosine \(0.0, 0.5, 1.0\): expected a part"),
    ],
    ids=str,
)
def test_a_phase_refuses_settings_out_of_range(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfiguration, match=message):
        Phase(**{"name": "x", "epochs": 1, "learning_rate": 0.1, **setting})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch_size": 1}, "batch_size 1: expected an integer of at least 2"),
        ({"batch_size": 2.5}, "batch_size 2.5: expected an integer of at least 2"),
        ({"phases": ()}, "recipe x has no phases"),
        ({"label_smoothing": -0.1}, "label_smoothing -0.1: expected at least 0 and less than 1"),
        ({"optimizer": "adam"}, "optimizer 'adam': expected an Optimizer"),
        ({"clip_norm": -1.0}, "clip_norm -1.0: expected a norm, or 0 for none"),
        ({"clip_norm": math.nan}, "clip_norm nan: expected a norm, or 0 for none"),
        ({"batch_norm_size": -1}, "batch_norm_size -1: expected a divisor of batch_size 32 of at least 2, or 0"),
        ({"batch_norm_size": 1}, "batch_norm_size 1: expected a divisor"),
        ({"batch_norm_size": 12}, "batch_norm_size 12: expected a divisor"),
        ({"batch_norm_size": 64}, "batch_norm_size 64: expected a divisor"),
    ],
    ids=str,
)
def test_a_recipe_refuses_settings_out_of_range(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfiguration, match=message):
        Recipe(**{"name": "x", "phases": (Phase("only", 1, 0.1),), "batch_size": 32, **setting})


def test_the_first_phase_has_no_frozen_teacher_yet() -> None:
    taught = Phase("early", 1, 0.1, teacher="frozen")
    message = "recipe x: teacher 'frozen' in phase early: the first phase makes that teacher; choose 'none' or"
    with pytest.raises(InvalidConfiguration, match=message):
        Recipe("x", (taught,), 32)
    assert Recipe("x", (Phase("full", 1, 0.1), taught), 32).phases[1] == taught


@pytest.mark.parametrize(
    "change",
    [{"phases": None}, {"phases": [3]}, {"phases": [{"name": "x"}]}, {"clip_norm": "1"}, {"optimiser": "adam"}],
    ids=str,
)
def test_json_of_a_wrong_form_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfiguration, match="not a recipe"):
        Recipe.from_json({**PAPER.to_json(), **change})


def test_json_without_phases_is_refused() -> None:
    with pytest.raises(InvalidConfiguration, match="not a recipe: 'phases'"):
        Recipe.from_json({"name": "x", "batch_size": 32})


# What is open, by name


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ({}, {}),
        ({"*": 1, "kernel": 1}, {}),
        ({"kernel": 2, "depth": 1}, {"kernel": 2}),
        ({"*": 2, "kernel": 2, "depth": 1}, {"*": 2, "depth": 1}),
        ({"depth": 3, "*": 2, "kernel": 3}, {"*": 2, "depth": 3, "kernel": 3}),
    ],
)
def test_equal_openings_are_equal(given: dict[str, int], normal: dict[str, int]) -> None:
    phase = Phase("x", 1, 0.1, open=given)
    assert phase.open == normal
    assert phase == Phase("x", 1, 0.1, open=normal)
    assert json.dumps(Recipe("x", (phase,), 32).to_json()) == json.dumps(
        Recipe("x", (Phase("x", 1, 0.1, open=normal),), 32).to_json()
    )


def old_phase(phase: dict[str, Any], **counts: int) -> dict[str, Any]:
    """A phase's JSON as version 0.1.0 wrote it."""
    plain = {"depths": 1, "kernels": 1, "expands": 1, "width_multipliers": 1}
    sampler = {"random": "uniform"}.get(phase["sampler"], phase["sampler"])
    return {key: value for key, value in phase.items() if key != "open"} | plain | counts | {"sampler": sampler}


def test_recipes_of_older_versions_are_read_and_are_the_same_run() -> None:
    value = as_json(PAPER.to_json())
    counts: list[dict[str, int]] = [
        {},
        {"kernels": ALL},
        {"kernels": ALL, "depths": 2},
        {"kernels": ALL, "depths": ALL},
        {"kernels": ALL, "depths": ALL, "expands": 2, "width_multipliers": 2},
        dict.fromkeys(("kernels", "depths", "expands", "width_multipliers"), ALL),
    ]
    phases = [old_phase(phase, **given) for phase, given in zip(value["phases"], counts, strict=True)]
    del value["optimizer"]
    old = {**value, "phases": phases, "momentum": 0.9, "weight_decay": 3e-5}
    assert Recipe.from_json(old) == PAPER
    names = mobilenet_v3().choice_names
    assert as_json(identity(old, names)) == as_json(identity(PAPER.to_json(), names))
    assert as_json(identity({**old, "momentum": 0.8}, names)) != as_json(identity(PAPER.to_json(), names))
    alone = {**old, "phases": [*phases[:4], {**phases[4], "expands": 3}, phases[5]]}
    assert Recipe.from_json(alone).phases[4].open == {"kernel": ALL, "depth": ALL, "expand": 3, "width_multiplier": 2}
    assert as_json(identity(alone, names)) != as_json(identity(PAPER.to_json(), names))


def test_openings_are_the_same_run_where_a_space_cannot_tell_them_apart() -> None:
    recipes = [Recipe("x", (Phase("x", 1, 0.1, open=given),), 32) for given in ({"*": 2}, {"kernel": 2, "depth": 2})]
    same, other = ([identity(recipe.to_json(), names) for recipe in recipes] for names in (("kernel", "depth"), ("x",)))
    assert same[0] == same[1]
    assert other[0] != other[1]


def test_names_that_a_space_does_not_have_are_refused() -> None:
    message = "phase x opens heads, ratio: this space has depth, kernel, expand, width_multiplier"
    with pytest.raises(InvalidConfiguration, match=message):
        Recipe("x", (Phase("x", 1, 0.1, open={"*": 2, "ratio": 1, "heads": 3}),), 32).check_space(mobilenet_v3())


# What is trained with where nothing is said


def test_the_default_recipe_depends_on_the_size_of_images() -> None:
    small, large = mobilenet_v3_small_images(), mobilenet_v3(resolutions=(128,))
    assert default(small) == random_order(45, 128, subnets=1, weight_decay=2e-4)
    assert default(large) == progressive_shrinking(batch_norm_size=64)
    assert default(mobilenet_v3(resolutions=(96, 112))) == default(small)
    shrinking = progressive_shrinking((20, 5, 1, 3, 1, 4), 128, weight_decay=2e-4)
    assert default(small, "progressive_shrinking") == shrinking
    assert default(small, "sandwich", epochs=9, batch_size=64, weight_decay=None, loss="alpha") == sandwich(
        9, 64, loss="alpha", weight_decay=2e-4
    )
    assert default(large, epochs=10, batch_size=96) == progressive_shrinking(10, 96, batch_norm_size=32)
    assert default(small, optimizer=AdamW()).optimizer == AdamW()


def test_a_recipe_of_another_package_gets_what_is_given_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(epochs: float = 1.5) -> Recipe:
        return Recipe("mine", (Phase("only", int(2 * epochs), 0.1),), 32)

    monkeypatch.setitem(BY_NAME._registered, "mine", mine)
    assert default(mobilenet_v3(), "mine") == mine()
    assert by_name("mine", epochs=2.5) == mine(2.5)
    with pytest.raises(InvalidConfiguration, match=r"recipe mine does not take that: .*'subnets'"):
        default(mobilenet_v3(), "mine", subnets=2)


def test_a_recipe_of_another_package_takes_what_every_recipe_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what its function does not name; what it names goes through the function."""

    def mine(clip_norm: float = 1.0) -> Recipe:
        return Recipe("mine", (Phase("only", 1, 0.1),), 32, AdamW(), clip_norm=2 * clip_norm)

    monkeypatch.setitem(BY_NAME._registered, "mine", mine)
    settings = {"weight_decay": 0.1, "label_smoothing": 0.0, "batch_norm_size": 16}
    made = default(mobilenet_v3(), "mine", clip_norm=3.0, learning_rate_scale=0.5, **settings)
    phases, optimizer = (Phase("only", 1, 0.05),), AdamW(weight_decay=0.1)
    assert made == Recipe("mine", phases, 32, optimizer, label_smoothing=0.0, clip_norm=6.0, batch_norm_size=16)
    assert by_name("mine", optimizer=SGD()).optimizer == SGD()
    with pytest.raises(InvalidConfiguration, match=r"recipe mine does not take that: AdamW.*'momentum'"):
        by_name("mine", momentum=0.5)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda: SGD(momentum=1.0), "momentum 1.0: expected at least 0 and less than 1"),
        (lambda: SGD(weight_decay=math.nan), "weight_decay nan: expected at least 0 and less than inf"),
        (lambda: AdamW(betas=(0.9, 1.0)), "betas 1.0: expected at least 0 and less than 1"),
        (lambda: AdamW(weight_decay=-1.0), "weight_decay -1.0: expected at least 0"),
    ],
)
def test_an_optimiser_refuses_settings_out_of_range(optimizer: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidConfiguration, match=message):
        optimizer()


def test_networks_with_attention_are_trained_with_adamw() -> None:
    """Rates of SGD would be a hundred times too high."""
    space = vit_small_images()
    made = default(space, "sandwich", epochs=10, learning_rate_scale=0.5)
    assert (made.optimizer, made.clip_norm, made.batch_size) == (AdamW(), 1.0, 128)
    assert made.phases[0].learning_rate == pytest.approx(4e-4)
    assert default(space, "random_order", weight_decay=0.1).optimizer == AdamW(weight_decay=0.1)
    assert default(space, optimizer=SGD()).optimizer == SGD()
    assert default(vit()).name == "sandwich"  # it has no kernels that shrinking could open
    assert default(mobilenet_v3_small_images()).optimizer == SGD(weight_decay=2e-4)
