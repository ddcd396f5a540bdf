"""TensorBoard as a receiver of training records (the extra `tensorboard`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from onceforall.errors import InvalidConfiguration, install


def tensorboard(folder: Path) -> Callable[[dict[str, Any]], None]:
    """A `report` for `train` that writes its numbers to `folder`, one curve a phase and number.

    Raises InvalidConfiguration where TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InvalidConfiguration(f"TensorBoard is not installed ({error}): {install('tensorboard')}") from error
    writer = SummaryWriter(str(folder))

    def report(record: dict[str, Any]) -> None:
        numbers = {name: value for name, value in record.items() if isinstance(value, float) and name != "seconds"}
        if "event" in record or not numbers:
            return
        for name, value in numbers.items():
            writer.add_scalar(f"{record['phase'] + 1} {record['name']}/{name}", value, record["step"])
        writer.flush()

    return report
