"""What networks are trained for: `Task`, image classification, and the tasks of others."""

from typing import Any

from onceforall.registry import Registry
from onceforall.tasks.classification import CLASSIFICATION
from onceforall.tasks.task import Score, Task

__all__ = ["CLASSIFICATION", "TASKS", "Score", "Task", "register", "task_of"]

TASKS: Registry[Task] = Registry("task", "onceforall.tasks", {CLASSIFICATION.name: CLASSIFICATION})


def register(task: Task) -> None:
    """Make a task known by its name, so that a data set can say it. Raises InvalidConfiguration where it is taken."""
    TASKS.register(task.name, task)


def task_of(data: Any) -> Task:
    """The task of a data set, its attribute `task`: a task or the name of one; classification where it has none.

    Raises InvalidConfiguration for a name that is not known.
    """
    task = getattr(data, "task", CLASSIFICATION)
    return TASKS[task] if isinstance(task, str) else task
