"""The spaces that come with the package, and the way back from JSON."""

from collections.abc import Callable, Mapping
from typing import Any

from onceforall.errors import InvalidConfiguration
from onceforall.space import SearchSpace
from onceforall.spaces.inverted_residual import InvertedResidualSpace
from onceforall.spaces.mobilenet_v3 import mobilenet_v3, mobilenet_v3_small_images
from onceforall.spaces.proxyless import proxyless
from onceforall.spaces.resnet50d import ResNetSpace, resnet50d

__all__ = ["BY_NAME", "from_json", "mobilenet_v3", "mobilenet_v3_small_images", "proxyless", "register", "resnet50d"]

BY_NAME: dict[str, Callable[..., SearchSpace]] = {
    "mobilenet_v3": mobilenet_v3,
    "mobilenet_v3_small_images": mobilenet_v3_small_images,
    "proxyless": proxyless,
    "resnet50d": resnet50d,
}

_READERS: dict[str, Callable[[Mapping[str, Any]], SearchSpace]] = {
    "inverted_residual": InvertedResidualSpace.from_json,
    "resnet": ResNetSpace.from_json,
}


def register(kind: str, reader: Callable[[Mapping[str, Any]], SearchSpace]) -> None:
    """Teach `from_json`, and so checkpoints, to read a space whose JSON has `"type": kind`.

    A reader that is defined again, as by a notebook's cell, takes its own place. Raises InvalidConfiguration
    where another reader has that name.
    """
    known = _READERS.get(kind, reader)
    if known != reader and _defined(known) != _defined(reader):
        raise InvalidConfiguration(f"space type {kind!r} is taken: choose another name")
    _READERS[kind] = reader


def _defined(reader: Callable[..., Any]) -> tuple[Any, Any]:
    """Where a reader comes from."""
    return getattr(reader, "__module__", reader), getattr(reader, "__qualname__", reader)


def from_json(value: Mapping[str, Any]) -> SearchSpace:
    """The space that `SearchSpace.to_json` wrote. Raises InvalidConfiguration."""
    kind = value.get("type")
    if kind not in _READERS:
        raise InvalidConfiguration(
            f"space type {kind!r}: known types are {', '.join(_READERS)}; import the module that registers it"
        )
    return _READERS[kind](value)
