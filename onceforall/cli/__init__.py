"""The command line: `ofa train | finetune | import | label | profile | devices | search | specialize | ...`."""

from __future__ import annotations

from rich.markup import escape

from onceforall.cli import building, deploying, profiling, searching
from onceforall.cli.common import app, console
from onceforall.errors import OFAError

__all__ = ["app", "building", "console", "deploying", "main", "profiling", "searching"]


@app.callback()
def root() -> None:
    """Train one elastic supernet once; get a specialised network for any device and budget.

    The road: train -> label -> profile -> search -> specialize. Each command writes files that the
    next one reads; `specialize` alone does the last three steps with a shipped supernet.
    """


def main() -> None:
    """Entry point of `ofa`: errors of this package end in one line and exit code 1."""
    try:
        app()
    except OFAError as error:
        console.print(f"[bold red]{type(error).__name__}[/]: {escape(str(error))}", highlight=False)
        raise SystemExit(1) from None
