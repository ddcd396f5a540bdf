"""What a recipe carries as objects, samplers, losses and optimisers, and their form in recipe.json.

A part is a frozen dataclass. In JSON it is its name ("sandwich"), or where it has fields an object
with its name as "type" and these. The name of a class that says none is
its import path, "module:Class". Reading finds classes that are already imported and imports
nothing, so that a run folder from elsewhere cannot run code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, ClassVar, Self

from onceforall import serial
from onceforall.errors import InvalidConfiguration


class Part:
    """The base of `Sampler`, `DistillationLoss` and `Optimizer`. `name`: a short name."""

    name: ClassVar[str] = ""

    @classmethod
    def type_name(cls) -> str:
        """What JSON calls the class."""
        return vars(cls).get("name") or f"{cls.__module__}:{cls.__qualname__}"

    def to_json(self) -> Any:
        """The name, with the fields where there are some."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}  # type: ignore[arg-type]
        return {"type": self.type_name(), **serial.to_json(values)} if values else self.type_name()

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The inverse of `to_json`: an instance of an imported subclass. Raises InvalidConfiguration."""
        about = {"type": value} if isinstance(value, str) else dict(value)
        wanted = about.pop("type", None)
        known = {kind.type_name(): kind for kind in cls._kinds()}
        if wanted not in known:
            raise InvalidConfiguration(
                f"{_spoken(cls)} {wanted!r}: choices are {', '.join(known)}; "
                "import the module that defines another one first"
            )
        return serial.from_json(known[wanted], about, f"a {_spoken(cls)}")

    @classmethod
    def _kinds(cls) -> Iterator[type[Self]]:
        """All subclasses that can be made."""
        for kind in cls.__subclasses__():
            if not getattr(kind, "__abstractmethods__", None):
                yield kind
            yield from kind._kinds()


def _spoken(kind: type) -> str:
    """ "loss" for `DistillationLoss`: as the field of a recipe is called."""
    return {"DistillationLoss": "loss"}.get(kind.__name__, kind.__name__.lower())
