"""The supernets that we trained and ship, with their labelled architectures and a card each (README.md)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from onceforall.checkpoint import load_supernet
from onceforall.errors import InvalidConfiguration
from onceforall.nn.supernet import Supernet
from onceforall.predict.labels import Label, read_labels

NAMES = ("cifar10",)


@dataclass(frozen=True)
class Entry:
    """A shipped supernet, its labels, and where they are."""

    name: str
    supernet: Supernet
    labels: list[Label]
    folder: Path


def load(name: str = "cifar10") -> Entry:
    """A shipped supernet by name. Raises InvalidConfiguration."""
    if name not in NAMES:
        raise InvalidConfiguration(f"supernet {name!r}: shipped are {', '.join(NAMES)}")
    return load_run(Path(str(files(__package__) / name)), name)


def load_run(folder: Path, name: str = "") -> Entry:
    """The supernet and labels of a run folder (`supernet.safetensors`, `labels.jsonl`).

    Raises IncompatibleCheckpoint or InvalidConfiguration where one is missing or foreign.
    """
    supernet = load_supernet(folder / "supernet.safetensors")
    return Entry(name or folder.name, supernet, read_labels(folder / "labels.jsonl", supernet.space), folder)
