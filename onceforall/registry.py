"""Entries by name: ours, those that code registers, and those of installed packages (entry points).

A package that adds something names it in its own pyproject.toml, and the command line sees it:

    [project.entry-points."onceforall.devices"]
    my-board = "my_package.board:MyBoard"
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from typing import Any, TypeVar

from onceforall.errors import InvalidConfiguration

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """The entries of one kind: `what` is a word for messages, `group` that of the entry points.

    Ours may be "module:name" instead of what is there: a module is imported when its entry is asked for.
    """

    def __init__(self, what: str, group: str, ours: Mapping[str, T | str]) -> None:
        self.what, self.group = what, group
        self._ours: dict[str, T | str] = dict(ours)
        self._registered: dict[str, T] = {}

    def register(self, name: str, entry: T) -> None:
        """Add an entry. One that is defined again, as by a notebook's cell, takes its own place.

        Raises InvalidConfiguration where another entry has that name.
        """
        if name in self._ours or (name in self._registered and not _same(self._registered[name], entry)):
            raise InvalidConfiguration(f"{self.what} {name!r} is taken: choose another name")
        self._registered[name] = entry

    @property
    def ours(self) -> tuple[str, ...]:
        """The names that come with the package."""
        return tuple(self._ours)

    def names(self) -> tuple[str, ...]:
        """Every name: ours first, then those that code registered, then those of installed packages."""
        return tuple(dict.fromkeys((*self._ours, *self._registered, *self._plugins())))

    def find(self, name: str) -> T | None:
        """The entry of a name, None where there is none. Raises InvalidConfiguration where its module is broken."""
        if name in self._ours:
            ours = self._ours[name]
            return pkgutil.resolve_name(ours) if isinstance(ours, str) else ours
        if name not in self._registered and name in self._plugins():
            loaded = self._loaded(self._plugins()[name])  # which may register itself as it is imported
            self._registered.setdefault(name, loaded)
        return self._registered.get(name)

    def __getitem__(self, name: str) -> T:
        """The entry of a name. Raises InvalidConfiguration, which lists the names, where there is none."""
        entry = self.find(name)
        if entry is None:
            raise InvalidConfiguration(f"{self.what} {name!r}: choices are {', '.join(self.names())}")
        return entry

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def load_all(self) -> list[str]:
        """Import what installed packages add, which may register more as it is imported; what is wrong with some."""
        problems = []
        for name in self._plugins():
            try:
                self.find(name)
            except InvalidConfiguration as error:
                problems.append(str(error))
        return problems

    def _plugins(self) -> dict[str, metadata.EntryPoint]:
        return _entry_points(self.group)

    def _loaded(self, point: metadata.EntryPoint) -> T:
        try:
            entry: T = point.load()
        except Exception as error:  # of somebody else's module
            package = point.dist.name if point.dist else point.value
            raise InvalidConfiguration(
                f"{self.what} {point.name!r} of the installed package {package} cannot be loaded: "
                f"{type(error).__name__}: {error}; mend or uninstall it"
            ) from error
        return entry


@cache
def _entry_points(group: str) -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=group)}


def _same(one: Any, other: Any) -> bool:
    """Whether two entries are one, or two definitions of the same name in the same module."""
    names = ("__module__", "__qualname__", "__self__")  # the last one for methods of classes that inherit them
    places = [[getattr(entry, name, None) for name in names] for entry in (one, other)]
    return one == other or (places[0] == places[1] and places[0][1] is not None)
