"""What training shows on the terminal."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from onceforall.report.progress import Training
from onceforall.training.recipe import sandwich


def test_losses_accuracies_and_a_rollback_are_said() -> None:
    text = StringIO()
    place = {"phase": 0, "name": "sandwich", "step": 6}
    with Training(sandwich(3), Console(file=text, width=140, force_terminal=True, color_system=None)) as report:
        report({**place, "steps": 9})
        report({**place, "loss": 1.25, "cross_entropy": 1.5, "learning_rate": 0.1, "images_per_s": 345.6})
        report({**place, "largest_top1": 61.5, "smallest_open_top1": 50.25})
        report({**place, "event": "rollback", "reason": "loss [nan] in phase sandwich", "rate_scale": 0.5})
        report({**place, "event": "resume"})
    said = text.getvalue()
    for part in ("1/1 sandwich, epoch 2/3", "346 img/s", "loss 1.25", "61.50 / 50.25 %", "loss [nan]", "0.5 of the"):
        assert part in said, part
