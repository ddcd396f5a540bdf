"""Progress on the terminal: what runs, how far it is, how long it will take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from onceforall.tasks import CLASSIFICATION, Score
from onceforall.training.schedule import Recipe

SEEN = ("speed", "loss", "score")  # in this order
WIDE = 100  # columns of a terminal that has room for a bar beside the numbers


class Steps:
    """One bar a step; as a context it gives the function (step, done, total) that moves them."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Callable[[str, int, int], None]:
        self._progress.start()
        return self._report

    def _report(self, step: str, done: int, total: int) -> None:
        if step not in self._tasks:
            self._tasks[step] = self._progress.add_task(step, total=total)
        self._progress.update(self._tasks[step], completed=done, total=total)

    def __exit__(self, *error: object) -> None:
        self._progress.stop()


class Training:
    """One bar for a whole schedule; as a context it gives the function that takes the records of `train`.

    It shows phase, epoch, images a second, loss, score of the largest / the smallest open sub-network
    (label images), and the time left, for which a step counts by its sub-networks.
    """

    def __init__(self, recipe: Recipe, console: Console, score: Score = CLASSIFICATION.score) -> None:
        self._recipe, self._score = recipe, score
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}"),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[seen]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
        ]
        if console.width >= WIDE:
            columns[1:1] = [BarColumn(bar_width=20)]
        self._progress = Progress(*columns, console=console)
        self._task = self._progress.add_task("train", total=None, seen="")
        self._seen: dict[str, str] = {}

    def __enter__(self) -> Callable[[dict[str, Any]], None]:
        self._progress.start()
        return self._report

    def _report(self, record: dict[str, Any]) -> None:
        if "steps" in record:
            self._advance(record["phase"], record["step"], record["steps"])
        elif "loss" in record:
            self._show(speed=f"{record['images_per_s']:.0f} img/s", loss=f"loss {record['loss']:.2f}")
        elif f"largest_{self._score.key}" in record:
            ends = {who: f"{who.replace(' ', '_')}_{self._score.key}" for who in ("largest", "smallest open")}
            values = {who: record[name] for who, name in ends.items() if name in record}
            *others, last = values.values()
            self._show(score=" / ".join([*(f"{value:.2f}" for value in others), self._score.text(last)]))
            said = ", ".join(f"{who} {self._score.text(value)}" for who, value in values.items())
            place = f"{record['name']}, step {record['step']}"
            self._progress.console.print(f"{place}: {self._score.name} on label images: {said}")
        elif record.get("event") == "rollback":
            self._progress.console.print(
                f"[yellow]{escape(record['reason'])}[/]\nback to phase {record['name']}, step {record['step']}, with "
                f"{record['rate_scale']:g} of the learning rate"
            )

    def _advance(self, number: int, step: int, steps: int) -> None:
        phases = self._recipe.phases
        phase = phases[number]
        per_epoch = steps // phase.epochs
        done = per_epoch * sum(before.epochs * before.subnets for before in phases[:number]) + step * phase.subnets
        epoch = min((step - 1) // per_epoch + 1, phase.epochs)
        self._progress.update(
            self._task,
            description=f"{number + 1}/{len(phases)} {phase.name}, epoch {epoch}/{phase.epochs}",
            completed=done,
            total=per_epoch * self._recipe.subnet_epochs,
        )

    def _show(self, **fields: str) -> None:
        self._seen |= fields
        seen = ", ".join(self._seen[name] for name in SEEN if name in self._seen)
        self._progress.update(self._task, seen=seen)

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
