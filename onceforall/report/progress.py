"""Progress on the terminal: what runs, how far it is, how long it will take."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from onceforall.tasks import CLASSIFICATION, Score
from onceforall.training.schedule import Recipe

SEEN = ("speed", "loss", "score")  # in this order
WIDE = 100  # columns of a terminal that has room for a bar beside the numbers


class Steps(Progress):
    """One bar a step; called with (step, done, total), it moves that of the step."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        super().__init__(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
        self._bars: dict[str, TaskID] = {}

    def __call__(self, step: str, done: int, total: int) -> None:
        if step not in self._bars:
            self._bars[step] = self.add_task(step, total=total)
        self.update(self._bars[step], completed=done, total=total)


class Training(Progress):
    """One bar for a whole schedule; it is called with the records of `train`.

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
        super().__init__(*columns, console=console)
        self._bar = self.add_task("train", total=None, seen="")
        self._seen: dict[str, str] = {}

    def __call__(self, record: dict[str, Any]) -> None:
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
            self.console.print(f"{place}: {self._score.name} on label images: {said}")
        elif record.get("event") == "rollback":
            self.console.print(
                f"[yellow]{escape(record['reason'])}[/]\nback to phase {record['name']}, step {record['step']}, with "
                f"{record['rate_scale']:g} of the learning rate"
            )

    def _advance(self, number: int, step: int, steps: int) -> None:
        phases = self._recipe.phases
        phase = phases[number]
        per_epoch = steps // phase.epochs
        done = per_epoch * sum(before.epochs * before.subnets for before in phases[:number]) + step * phase.subnets
        epoch = min((step - 1) // per_epoch + 1, phase.epochs)
        self.update(
            self._bar,
            description=f"{number + 1}/{len(phases)} {phase.name}, epoch {epoch}/{phase.epochs}",
            completed=done,
            total=per_epoch * self._recipe.subnet_epochs,
        )

    def _show(self, **fields: str) -> None:
        self._seen |= fields
        seen = ", ".join(self._seen[name] for name in SEEN if name in self._seen)
        self.update(self._bar, seen=seen)
