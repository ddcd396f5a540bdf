"""The spaces that come with the package, those that others add, and the way back from JSON."""

from collections.abc import Callable, Mapping
from typing import Any

from onceforall.errors import InvalidConfiguration
from onceforall.registry import Registry
from onceforall.space import SearchSpace
from onceforall.spaces.inverted_residual import InvertedResidualSpace
from onceforall.spaces.mobilenet_v3 import mobilenet_v3, mobilenet_v3_small_images
from onceforall.spaces.proxyless import proxyless
from onceforall.spaces.resnet50d import ResNetSpace, resnet50d
from onceforall.spaces.vit import ViTSpace, vit, vit_small_images

__all__ = [
    "BY_NAME",
    "from_json",
    "mobilenet_v3",
    "mobilenet_v3_small_images",
    "proxyless",
    "register",
    "resnet50d",
    "vit",
    "vit_small_images",
]

Reader = Callable[[Mapping[str, Any]], SearchSpace]

# What makes a space from `num_classes` and options of its own. Entry points of the group are such functions.
BY_NAME: Registry[Callable[..., SearchSpace]] = Registry(
    "space",
    "onceforall.spaces",
    {
        "mobilenet_v3": mobilenet_v3,
        "mobilenet_v3_small_images": mobilenet_v3_small_images,
        "proxyless": proxyless,
        "resnet50d": resnet50d,
        "vit": vit,
        "vit_small_images": vit_small_images,
    },
)

_READERS: Registry[Reader] = Registry(
    "space type",
    "onceforall.space_types",
    {"inverted_residual": InvertedResidualSpace.from_json, "resnet": ResNetSpace.from_json, "vit": ViTSpace.from_json},
)


def register(kind: str, reader: Reader) -> None:
    """Teach `from_json`, and so checkpoints, to read a space whose JSON has `"type": kind`.

    A reader that is defined again, as by a notebook's cell, takes its own place. Raises InvalidConfiguration
    where another reader has that name.
    """
    _READERS.register(kind, reader)


def from_json(value: Mapping[str, Any]) -> SearchSpace:
    """The space that `SearchSpace.to_json` wrote. Raises InvalidConfiguration."""
    if not isinstance(value, Mapping):
        raise InvalidConfiguration(f"{value!r:.80} is no space: expected a JSON object")
    kind = value.get("type")
    # Installed spaces register their readers as they are imported.
    problems = BY_NAME.load_all() if kind not in _READERS else []
    reader = _READERS.find(str(kind))
    if reader is None:
        known = "; ".join([", ".join(_READERS), *problems])
        raise InvalidConfiguration(f"space type {kind!r}: known types are {known}; import the module that registers it")
    return reader(value)
