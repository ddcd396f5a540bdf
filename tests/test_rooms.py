"""The plan of the house: every module leans only on floors below its own, or on its own room."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import onceforall

PACKAGE = Path(onceforall.__file__).parent

# A room is a module or a folder; it leans on its own room and on those of the floors above it in this list.
ROOMS = (
    "errors",
    "checks",
    "download files process registry serial sizes threads",
    "architecture layers results",
    "choices",
    "rows",
    "space",
    "spaces",
    "data nn",
    "checkpoint cost devices tasks",
    "evaluate search",
    "predict profiling training",
    "bundle interop",
    "deploy zoo",
    "report",
    "cli testing",
)
FLOORS = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms.split()}

TORCH_FREE = [
    "architecture",
    "choices",
    "cost.analytic",
    "cost.latency",
    "cost.model",
    "layers",
    "rows",
    "search",
    "space",
    "spaces",
    "threads",
]


def module_names() -> list[str]:
    paths = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    names = (".".join(path.parts).removesuffix("__init__").removesuffix(".") for path in paths)
    return sorted(name for name in names if name)


def path_of(name: str) -> Path:
    path = PACKAGE.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(name: str) -> set[str]:
    """Everything that a module imports, under full dotted names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path_of(name).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                is_module = path_of(full.removeprefix("onceforall.")).exists()
                found.add(full if full.startswith("onceforall.") and is_module else node.module)
    return found


def inside(name: str) -> set[str]:
    return {item.removeprefix("onceforall.") for item in imports(name) if item.startswith("onceforall.")}


def room(name: str) -> str:
    matches = [key for key in FLOORS if name == key or name.startswith(key + ".")]
    assert matches, f"{name} has no floor: add it to FLOORS"
    return max(matches, key=len)


@pytest.mark.parametrize("name", module_names())
def test_a_module_leans_only_on_floors_below(name: str) -> None:
    own = room(name)
    for other in inside(name):
        below = room(other)
        assert below == own or FLOORS[below] < FLOORS[own], f"{name} (floor {FLOORS[own]}) imports {other}"


@pytest.mark.parametrize("name", [n for n in module_names() if any((n + ".").startswith(f + ".") for f in TORCH_FREE)])
def test_spaces_costs_and_search_never_need_torch(name: str) -> None:
    seen, todo = set(), {name}
    while todo:
        current = todo.pop()
        seen.add(current)
        assert not any(item.split(".")[0] == "torch" for item in imports(current)), f"{current} imports torch"
        todo |= inside(current) - seen


def test_no_cycles() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for other in inside(name):
                visit(other, (*path, name))
            done.add(name)

    for name in module_names():
        visit(name, ())


def test_modules_stay_small() -> None:
    for name in module_names():
        assert len(path_of(name).read_text().splitlines()) <= 420, f"{name}: split it"
