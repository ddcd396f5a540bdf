"""The public face: what the signatures of its functions mention can be imported from the same place."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from typing import Any

import onceforall as ofa


def ours(annotation: Any) -> Iterator[type]:
    """Our classes in an annotation."""
    if isinstance(annotation, type) and annotation.__module__.startswith("onceforall"):
        yield annotation
    for part in typing.get_args(annotation):
        yield from ours(part)


def test_what_signatures_mention_is_public() -> None:
    public = {getattr(ofa, name) for name in ofa.__all__ if isinstance(getattr(ofa, name), type)}
    missing = {
        f"{kind.__name__}, which ofa.{name} mentions"
        for name in ofa.__all__
        if inspect.isfunction(getattr(ofa, name))
        for annotation in typing.get_type_hints(getattr(ofa, name)).values()
        for kind in ours(annotation)
        if kind not in public
    }
    assert not missing


def test_the_list_is_what_there_is() -> None:
    assert sorted(ofa.__all__) == sorted(set(ofa.__all__))
    assert all(hasattr(ofa, name) for name in ofa.__all__)
