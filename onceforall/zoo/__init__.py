"""Supernets by name: those that we trained and ship (with labels and a card), and the published ones (`mit/...`)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from onceforall.checkpoint import load_supernet
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration
from onceforall.files import sha256
from onceforall.nn.supernet import Supernet
from onceforall.predict.labels import Label, read_labels, score_of
from onceforall.tasks import CLASSIFICATION, Score
from onceforall.zoo import published
from onceforall.zoo.published import specialized

__all__ = ["NAMES", "PUBLISHED", "Entry", "load", "load_run", "specialized"]

NAMES = ("cifar10",)
PUBLISHED = tuple(published.SUPERNETS)
LABELS = "labels.jsonl"
WEIGHTS = "supernet.safetensors"


@dataclass(frozen=True)
class Entry:
    """A supernet, its labelled architectures (none for a published one), and where they are."""

    name: str
    supernet: Supernet
    labels: list[Label]
    folder: Path

    @property
    def weights_sha256(self) -> str:
        """Of the file of its weights: what a number that was measured with them names."""
        return sha256(self.folder / WEIGHTS)

    @property
    def score(self) -> Score:
        """By which score its labels measure: that of classifiers where there are none."""
        try:
            return score_of(self.folder / LABELS)
        except (InvalidConfiguration, IncompatibleCheckpoint):  # no labels yet, or what a kill left of them
            return CLASSIFICATION.score


def load(name: str = "cifar10", file: str | Path | None = None) -> Entry:
    """A supernet by name: a shipped one, or a published one, which is fetched once or read from `file`.

    Raises InvalidConfiguration for an unknown name, DataUnavailable without a network,
    IncompatibleCheckpoint where a file is not what it should be.
    """
    if name in PUBLISHED:
        supernet, folder = published.supernet(name, file)
        return Entry(name, supernet, [], folder)
    if name not in NAMES:
        raise InvalidConfiguration(
            f"supernet {name!r}: shipped are {', '.join(NAMES)}; published are {', '.join(PUBLISHED)}"
        )
    if file is not None:
        raise InvalidConfiguration(f"supernet {name!r} is shipped: a file can only be given for {', '.join(PUBLISHED)}")
    return load_run(Path(str(files(__package__) / name)), name)


def load_run(folder: Path, name: str = "", *, labels: bool = True) -> Entry:
    """The supernet and labels of a run folder (`supernet.safetensors`, `labels.jsonl`).

    `labels`: whether they are wanted. Raises IncompatibleCheckpoint or InvalidConfiguration where one
    is missing or foreign.
    """
    supernet = load_supernet(folder / WEIGHTS)
    rows = read_labels(folder / LABELS, supernet.space) if labels else []
    return Entry(name or folder.name, supernet, rows, folder)
