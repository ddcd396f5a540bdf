"""The spaces that come with the package, and the way back from JSON."""

from collections.abc import Callable, Mapping
from typing import Any

from onceforall.errors import InvalidConfiguration
from onceforall.space import SearchSpace
from onceforall.spaces.inverted_residual import InvertedResidualSpace
from onceforall.spaces.mobilenet_v3 import mobilenet_v3, mobilenet_v3_small_images

__all__ = ["BY_NAME", "from_json", "mobilenet_v3", "mobilenet_v3_small_images"]

BY_NAME: dict[str, Callable[..., InvertedResidualSpace]] = {
    "mobilenet_v3": mobilenet_v3,
    "mobilenet_v3_small_images": mobilenet_v3_small_images,
}

_TYPES = {"inverted_residual": InvertedResidualSpace}


def from_json(value: Mapping[str, Any]) -> SearchSpace:
    """The space that `SearchSpace.to_json` wrote. Raises InvalidConfiguration."""
    kind = value.get("type")
    if kind not in _TYPES:
        raise InvalidConfiguration(f"space type {kind!r}: known types are {', '.join(_TYPES)}")
    return _TYPES[kind].from_json(value)
