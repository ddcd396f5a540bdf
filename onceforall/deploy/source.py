"""Python code for a file of its own: the source of some functions and classes, and of all that they use."""

from __future__ import annotations

import ast
import builtins
import inspect
import json
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from onceforall.errors import IncompatibleCheckpoint
from onceforall.layers import LayerSpec
from onceforall.nn import fast_cpu
from onceforall.nn.subnet import arguments, maker

AVAILABLE = ("torch", "safetensors", *sys.stdlib_module_names)


class Source:
    """Collects definitions in the order in which they need each other, and the imports of torch and the standard
    library that they need.
    """

    def __init__(self) -> None:
        self._imports: dict[str, set[str]] = {}
        self._definitions: dict[str, str] = {}
        self._taken: dict[str, Any] = {}

    def text(self) -> str:
        """The code so far."""
        groups: list[list[str]] = [[], []]
        for home in sorted(self._imports, key=str.lower):  # "": modules as they are
            names = sorted(self._imports[home])
            for line in (
                (f"import {name}" for name in names) if not home else [f"from {home} import {', '.join(names)}"]
            ):
                groups[line.split()[1].split(".")[0] in AVAILABLE[:2]].append(line)
        blocks = ["\n".join(group) for group in (["from __future__ import annotations"], *groups) if group]
        return "\n\n".join(blocks) + "\n" + "".join(self._definitions.values())

    def call(self, spec: LayerSpec) -> str:
        """The call that makes a layer, whose module is taken; arguments with their default values are left out."""
        make, given, own = maker(spec), arguments(spec), []
        self.take(make)
        for name, item in inspect.signature(make).parameters.items():
            if name in given and given[name] != item.default:
                text = _text(given[name])
                own.append(text if item.default is item.empty else f"{name}={text}")
        return f"{make.__name__}({', '.join(own)})"

    def need(self, home: str, *names: str) -> None:
        """Import names of a module, or modules where it is ""."""
        self._imports.setdefault(home, set()).update(names)

    def take(self, thing: type | Callable[..., Any]) -> None:
        """Take the source of a class or a function, and before it all that it uses. Raises IncompatibleCheckpoint."""
        name = thing.__name__
        if self._taken.setdefault(name, thing) is not thing:
            raise IncompatibleCheckpoint(f"two things are called {name}: a file of its own needs a name for each")
        if name in self._definitions:
            return
        try:
            code = textwrap.dedent(inspect.getsource(thing))
        except (OSError, TypeError) as error:
            raise IncompatibleCheckpoint(
                f"the source of {name} cannot be read ({error}): define it in a file"
            ) from error
        scope = vars(sys.modules[thing.__module__])
        tree = ast.parse(code)
        needed = _names(_without_annotations(tree))
        for used in sorted(_names(ast.walk(tree)) - {name}):
            if used in scope:
                self._use(used, scope[used], user=name, optional=used not in needed)
        self._definitions[name] = f"\n\n{code.rstrip()}\n"

    def _use(self, name: str, value: Any, user: str, optional: bool) -> None:
        home = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None) or ""
        if value is fast_cpu.Sequential:
            self.need("torch.nn", "Sequential")
        elif home.split(".")[0] in AVAILABLE:
            self._import(name, value, home)
        elif optional or getattr(builtins, name, None) is value:
            pass
        elif isinstance(value, type | types.FunctionType):
            if name != value.__name__:
                raise IncompatibleCheckpoint(f"{user} uses {value.__name__} under the name {name}: use its own")
            self.take(value)
        elif _is_literal(value):
            self._definitions[name] = f"\n{name} = {_text(value)}\n"
        else:
            raise IncompatibleCheckpoint(
                f"{user} uses {name} of {home or type(value).__name__}: a file of its own can use torch, the standard "
                "library, functions, classes and literals"
            )

    def _import(self, name: str, value: Any, home: str) -> None:
        if isinstance(value, types.ModuleType):
            home, _, own = home.rpartition(".")
        else:
            own = getattr(value, "__name__", name)
            public = ("torch", "torch.nn", "torch.nn.functional")  # where people know it from
            home = next((place for place in public if getattr(sys.modules[place], own, None) is value), home)
        shown = own if name == own else f"{own} as {name}"
        self.need(home, shown)


def _text(value: Any) -> str:
    """As code says it."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _names(nodes: Iterable[ast.AST]) -> set[str]:
    """What code reads by name."""
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _without_annotations(tree: ast.AST) -> Iterator[ast.AST]:
    """A node of code and all below it but annotations."""
    yield tree
    for name, value in ast.iter_fields(tree):
        for node in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.AST) and name not in ("annotation", "returns"):
                yield from _without_annotations(node)


def _is_literal(value: Any) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError):
        return False
