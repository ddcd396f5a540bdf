"""Entries by name: ours, registered ones, those of installed packages."""

from __future__ import annotations

from importlib import metadata

import pytest

from onceforall import registry
from onceforall.errors import InvalidConfiguration
from onceforall.registry import Registry


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> Registry[object]:
    points = {
        "plugged": metadata.EntryPoint("plugged", "string:ascii_lowercase", "onceforall.things"),
        "broken": metadata.EntryPoint("broken", "string:no_such_thing", "onceforall.things"),
    }
    monkeypatch.setattr(registry, "_entry_points", lambda group: points if group == "onceforall.things" else {})
    return Registry("thing", "onceforall.things", {"ours": "string:digits", "plain": 1})


def test_entries_are_found_wherever_they_come_from(entries: Registry[object]) -> None:
    entries.register("own", 2)
    assert entries.names() == tuple(entries) == ("ours", "plain", "own", "plugged", "broken")
    assert [entries[name] for name in ("ours", "plain", "own")] == ["0123456789", 1, 2]
    assert entries["plugged"] == "abcdefghijklmnopqrstuvwxyz"
    assert "plugged" in entries
    assert "foreign" not in entries
    assert entries.find("foreign") is None


def test_errors_name_what_there_is(entries: Registry[object]) -> None:
    with pytest.raises(InvalidConfiguration, match="thing 'foreign': choices are ours, plain, plugged, broken"):
        entries["foreign"]
    with pytest.raises(InvalidConfiguration, match=r"thing 'broken' of the installed .* cannot be loaded: Attr"):
        entries["broken"]


def test_a_name_is_taken_once(entries: Registry[object]) -> None:
    with pytest.raises(InvalidConfiguration, match="thing 'ours' is taken"):
        entries.register("ours", 3)
    entries.register("own", 2)
    entries.register("own", 2)
    with pytest.raises(InvalidConfiguration, match="thing 'own' is taken"):
        entries.register("own", 3)


def test_a_definition_that_is_repeated_takes_its_own_place(entries: Registry[object]) -> None:
    def define() -> type:
        class Kind:
            pass

        return Kind

    entries.register("kind", define())
    latest = define()
    entries.register("kind", latest)
    assert entries["kind"] is latest


def test_entry_points_of_this_machine_are_asked_for() -> None:
    assert registry._entry_points("console_scripts")
    assert registry._entry_points("onceforall.nothing") == {}


def test_one_broken_plug_in_leaves_the_others_alone(entries: Registry[object]) -> None:
    (problem,) = entries.load_all()
    assert "'broken'" in problem
    assert entries["plugged"]


def test_methods_of_two_classes_are_two_entries(entries: Registry[object]) -> None:
    class Base:
        @classmethod
        def read(cls) -> str:
            return cls.__name__

    one, other = type("One", (Base,), {}), type("Other", (Base,), {})
    entries.register("read", one.read)
    with pytest.raises(InvalidConfiguration, match="taken"):
        entries.register("read", other.read)
