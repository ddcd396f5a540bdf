"""What the commands share: the application, the console, and how they read what they are given."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from onceforall import zoo
from onceforall.architecture import Architecture
from onceforall.cost.bounds import parse_limit
from onceforall.cost.model import Constraint
from onceforall.errors import InvalidConfiguration
from onceforall.files import read_json_object
from onceforall.search.pareto import FORMAT as FRONT
from onceforall.space import SearchSpace
from onceforall.training.run import SOURCE
from onceforall.training.run_folder import about_run

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def is_first_process() -> bool:
    """Of the processes of a distributed run, the first talks."""
    return os.environ.get("RANK", "0") == "0"


console = Console(stderr=True, quiet=not is_first_process())


def read_architecture(path: Path, model: str | None = None) -> Architecture:
    """From the result of `ofa search`, or an architecture's own JSON. `model`: whose weights it is to get."""
    value = read_json_object(path)
    if value.get("format") == FRONT:
        raise InvalidConfiguration(
            f"{path} is a whole front: search for one budget, or keep one point of it: ofa.Front.from_json(...)"
            ".within(BUDGET).to_json()"
        )
    if model is not None and value.get("model", model) != model:
        notify(f"{path} was found for --model {value['model']}, and gets the weights of --model {model}")
    try:
        return Architecture.from_json(value.get("architecture", value))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidConfiguration(f"{path} holds no architecture: {error}") from error


def read_limits(space: SearchSpace, limits: Iterable[str] | None, **given: float | None) -> list[Constraint]:
    """The constraints of --macs and its like, in the units that people use there, and of each --limit."""
    units = {"macs": "M", "params": "M", "memory": "KiB", "weights": "KiB"}
    texts = [f"{name} <= {bound:.17g} {units[name]}" for name, bound in given.items() if bound is not None]
    return [parse_limit(text, space) for text in (*texts, *(limits or ()))]


def notify(message: str) -> None:
    """Say something; square brackets in it are meant as such."""
    console.print(message, markup=False)


def announce(path: Path, what: str) -> None:
    """Say what a command wrote."""
    console.print(f"[bold]{escape(str(path))}[/]{escape(what)}")


def data_source(given: str | None, model: str | None = None) -> str:
    """How the data are found: as given, else those of the run that made the model, else CIFAR-10."""
    recorded = about_run(Path(model)).get(SOURCE) if given is None and model is not None else None
    return given or (recorded if isinstance(recorded, str) else "cifar10")


def command(*words: object) -> str:
    """A command of ours that can be copied into a shell."""
    return shlex.join(["ofa", *map(str, words)])


def load_model(text: str, labels: bool = True) -> zoo.Entry:
    if text in (*zoo.NAMES, *zoo.PUBLISHED):
        return zoo.load(text)
    if not Path(text).is_dir():
        known = ", ".join((*zoo.NAMES, *zoo.PUBLISHED))
        raise InvalidConfiguration(f"--model {text}: no such folder; known supernets are {known}")
    return zoo.load_run(Path(text), labels=labels)
