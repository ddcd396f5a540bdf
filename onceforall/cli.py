"""The command line: `ofa train | label | profile | search | specialize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True)


@app.callback()
def root() -> None:
    """Train one elastic supernet once; get a specialised network for any device and budget."""


def progress_bar() -> Progress:
    """A bar with a description, counts, time spent and time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def load_data(text: str) -> Any:
    """The data set called `cifar10`, or `cifar10:FOLDER`."""
    from onceforall.data.cifar10 import cifar10
    from onceforall.errors import InvalidConfiguration

    name, _, folder = text.partition(":")
    if name != "cifar10":
        raise InvalidConfiguration(f"--data {text}: expected cifar10 or cifar10:FOLDER")
    return cifar10(folder or None, notify=console.print)


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Run folder; one with a checkpoint is resumed.")],
    data: Annotated[str, typer.Option(help="cifar10, or cifar10:FOLDER with the official binary batches.")] = "cifar10",
    space: Annotated[str, typer.Option(help="Search space.")] = "mobilenet_v3_small_images",
    epochs: Annotated[
        str, typer.Option(help="Epochs of the six phases: full, kernel, depth 1, depth 2, width 1, width 2.")
    ] = "24,6,1,4,1,5",
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 128,
    weight_decay: Annotated[float, typer.Option(help="On convolutions and the classifier.")] = 2e-4,
    seed: Annotated[int, typer.Option(help="Seed of weights, data order and sampling.")] = 0,
    device: Annotated[str, typer.Option(help="torch device: cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp32, or bf16 where the device is fast at it.")] = "fp32",
) -> None:
    """Train a supernet with progressive shrinking. Stop it at any time; the same command goes on."""
    from onceforall import spaces
    from onceforall.nn.supernet import Supernet
    from onceforall.training.recipe import progressive_shrinking
    from onceforall.training.trainer import train as run_training

    images = load_data(data)
    supernet = Supernet(spaces.BY_NAME[space](num_classes=images.num_classes), seed)
    recipe = progressive_shrinking([int(part) for part in epochs.split(",")], batch_size, weight_decay)
    with progress_bar() as progress:
        task = progress.add_task("train", total=None)

        def report(record: dict[str, Any]) -> None:
            if "steps" in record:
                progress.update(
                    task, completed=record["step"], total=record["steps"], description=f"{record['name']:8}"
                )
            else:
                progress.console.print({key: value for key, value in record.items() if key != "phase"})

        run_training(
            supernet, images, recipe, out, seed=seed, device=device, precision=precision, report=report  # type: ignore[arg-type]
        )


def main() -> None:
    """Entry point of `ofa`: errors of this package end in one line and exit code 1."""
    from onceforall.errors import OFAError

    try:
        app()
    except OFAError as error:
        console.print(f"[bold red]{type(error).__name__}[/]: {error}", highlight=False)
        raise SystemExit(1) from None
