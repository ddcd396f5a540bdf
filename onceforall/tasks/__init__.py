"""What networks are trained for: `Task`, and the one that comes with the package, image classification."""

from typing import Any

from onceforall.tasks.classification import CLASSIFICATION
from onceforall.tasks.task import Score, Task

__all__ = ["CLASSIFICATION", "Score", "Task", "task_of"]


def task_of(data: Any) -> Task:
    """The task of a data set, its attribute `task`; classification where it has none."""
    task: Task = getattr(data, "task", CLASSIFICATION)
    return task
