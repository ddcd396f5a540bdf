"""The spaces by name, and their JSON."""

import itertools
import json
from collections.abc import Mapping
from types import FunctionType
from typing import Any

import numpy as np
import pytest

from onceforall import spaces
from onceforall.errors import InvalidConfiguration
from onceforall.space import SearchSpace
from onceforall.spaces.inverted_residual import InvertedResidualSpace
from onceforall.spaces.resnet50d import ResNetSpace

BUILT_IN = {"inverted_residual": spaces.mobilenet_v3(), "resnet": spaces.resnet50d()}


@pytest.mark.parametrize("name", spaces.BY_NAME)
def test_named_spaces_are_made_without_arguments(name: str, rng: np.random.Generator) -> None:
    space = spaces.BY_NAME[name]()
    assert space.lower(space.sample(rng))[-1].out_size == 1
    assert spaces.from_json(json.loads(json.dumps(space.to_json()))) == space


# JSON


def test_json_of_an_earlier_version_has_no_width_multipliers_and_ties() -> None:
    value = spaces.mobilenet_v3().to_json()
    for unit in value["units"]:
        del unit["width_multipliers"], unit["tied"]
    assert spaces.from_json(value) == spaces.mobilenet_v3()


def test_json_of_an_unknown_type_is_refused_with_the_known_types() -> None:
    message = (
        "space type 'transformer': known types are inverted_residual, resnet, vit; import the module that registers it"
    )
    with pytest.raises(InvalidConfiguration, match=f"^{message}$"):
        spaces.from_json({"type": "transformer"})


@pytest.mark.parametrize("kind", BUILT_IN)
@pytest.mark.parametrize(
    "change",
    [
        {"units": None},
        {"units": [3]},
        {"units": [{"depths": [2]}]},
        {"units": []},
        {"resolutions": 32},
        {"resolutions": [32, 16]},
        {"width": 1.0},
        {"first": {"width": 16}},
    ],
    ids=str,
)
def test_json_of_a_wrong_form_is_refused(kind: str, change: dict[str, Any]) -> None:
    value = json.loads(json.dumps(BUILT_IN[kind].to_json()))
    with pytest.raises(InvalidConfiguration):
        spaces.from_json({**value, **change})


@pytest.mark.parametrize(
    ("kind", "field"), [("inverted_residual", "stem_width"), *itertools.product(BUILT_IN, ["units", "num_classes"])]
)
def test_json_without_a_field_is_refused(kind: str, field: str) -> None:
    value = BUILT_IN[kind].to_json()
    del value[field]
    with pytest.raises(InvalidConfiguration, match=field):
        spaces.from_json(value)


@pytest.mark.parametrize("place", ["units", "first", "activation"])
def test_an_unknown_activation_is_refused(place: str) -> None:
    value = spaces.mobilenet_v3().to_json()
    home = {"units": value["units"][0], "first": value["first"], "activation": value}[place]
    home["activation"] = "gelu"
    with pytest.raises(InvalidConfiguration, match=r"'gelu'.*activation|activation 'gelu'"):
        spaces.from_json(value)


# Spaces of others


class Own(InvertedResidualSpace):
    """A space of somebody else, with JSON of its own."""

    kind = "own"


def read_own(value: Mapping[str, Any]) -> SearchSpace:
    return Own.from_json(value)


def test_a_registered_space_is_read(monkeypatch: pytest.MonkeyPatch, tiny_space: InvertedResidualSpace) -> None:
    monkeypatch.setattr(spaces._READERS, "_registered", {})
    own = Own.from_json(tiny_space.to_json())
    with pytest.raises(InvalidConfiguration, match="space type 'own'"):
        spaces.from_json(own.to_json())
    for _ in range(2):  # a module may be imported again, a notebook's cell run again
        spaces.register("own", read_own)
        spaces.register("own", FunctionType(read_own.__code__, read_own.__globals__, "read_own"))
    with pytest.raises(InvalidConfiguration, match="'own' is taken"):
        spaces.register("own", lambda value: own)
    again = spaces.from_json(json.loads(json.dumps(own.to_json())))
    assert type(again) is Own
    assert again == own
    assert again != tiny_space


@pytest.mark.parametrize("kind", BUILT_IN)
def test_the_type_of_another_space_is_taken(kind: str) -> None:
    with pytest.raises(InvalidConfiguration, match=f"^space type '{kind}' is taken: choose another name$"):
        spaces.register(kind, read_own)
    assert type(spaces.from_json(BUILT_IN[kind].to_json())) in (InvertedResidualSpace, ResNetSpace)


# Wrong values in a stage table


WRONG = {
    ("inverted_residual", "units", "width"): (0, -8, 2.5, float("nan"), True, "8"),
    ("inverted_residual", "units", "stride"): (0, -1, None),
    ("inverted_residual", "first", "width"): (0, -16),
    ("inverted_residual", "first", "stride"): (0,),
    ("inverted_residual", "stem_width"): (0, -16),
    ("inverted_residual", "stem_stride"): (0,),
    ("inverted_residual", "final_width"): (0,),
    ("inverted_residual", "mix_width"): (-1,),
    ("inverted_residual", "dropout"): (-0.1, 1.0, float("nan")),
    ("inverted_residual", "bn_eps"): (0.0, -1e-5, float("nan"), float("inf")),
    ("inverted_residual", "num_classes"): (1, 2.5),
    ("inverted_residual", "name"): (3,),
    ("resnet", "units", "width"): (0, -8, "8"),
    ("resnet", "units", "stride"): (0,),
    ("resnet", "stem_width"): (0, "64", 2.5),
    ("resnet", "dropout"): (1.0, "0.1", float("nan")),
    ("resnet", "bn_eps"): (0.0, float("nan"), "small"),
    ("resnet", "num_classes"): (1, "ten"),
    ("resnet", "name"): (None, 3),
    ("vit", "width"): (0, 2.5),
    ("vit", "head_channels"): (0, -32),
    ("vit", "dropout"): (1.5, float("nan")),
}


@pytest.mark.parametrize(("place", "wrong"), [(place, wrong) for place, values in WRONG.items() for wrong in values])
def test_a_wrong_value_of_a_file_is_named(place: tuple[str, ...], wrong: object) -> None:
    kind, *path, name = place
    value = json.loads(json.dumps({**BUILT_IN, "vit": spaces.vit_small_images()}[kind].to_json()))
    home = value
    for step in path:
        home = home[step][-1] if isinstance(home[step], list) else home[step]
    assert name in home
    home[name] = wrong
    with pytest.raises(InvalidConfiguration, match=rf"\b{name}\b"):
        spaces.from_json(value)
