"""Commands about devices: devices, profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from onceforall import devices as runtimes
from onceforall.cli import options
from onceforall.cli.common import announce, app, console, load_model
from onceforall.cost.latency import LatencyTable
from onceforall.cost.learned import LearnedLatency, load_latency
from onceforall.errors import InvalidConfiguration
from onceforall.files import check_writable
from onceforall.profiling.profile import adapt as run_adapt
from onceforall.profiling.profile import profile as run_profile
from onceforall.report import tables
from onceforall.report.progress import Steps

NOISY = 3.0  # percent


@app.command()
def devices() -> None:
    """List the runtimes that work on this machine, and what to install for the others."""
    found, output = runtimes.status(), Console()
    output.print(tables.devices(found))
    output.print(tables.device_notes(found), markup=False, highlight=False)


@app.command()
def profile(
    out: Annotated[Path, typer.Option(help="JSON file of the latency table.")],
    model: options.Model = "cifar10",
    device: options.Device = "onnxruntime",
    threads: options.Threads = 1,
    precision: options.DevicePrecision = "fp32",
    adapt: Annotated[
        Path | None,
        typer.Option(help="Profile of another device: adapt its table with ten measured networks, time no layers."),
    ] = None,
    seed: options.Seed = 0,
) -> None:
    """Time every layer of a space on a device -> a latency model that has judged itself on whole networks.

    A table of layers or, where their sum is wrong, a learned latency. Stop it at any time: the same
    command goes on with the turns that it has.
    """
    target = runtimes.by_name(device, threads, precision)
    space = load_model(model, labels=False).supernet.space
    if out.is_dir():
        raise InvalidConfiguration(f"--out {out} is a folder: name a JSON file")
    check_writable(out.parent)  # now, not after minutes
    progress = out.with_name(f"{out.name}.part")
    table: LatencyTable | LearnedLatency
    with Steps(console) as report:
        if adapt is None:
            table = run_profile(space, target, seed=seed, progress=progress, report=report)
        else:
            table = run_adapt(load_latency(adapt), space, target, seed=seed, progress=progress, report=report)
    table.save(out)
    found = table.validation
    assert found is not None
    made = ", ".join(f"{name} {value}" for name, value in table.summary().items())
    announce(out, f": {made}; noise of the clock {found.noise:.1f} %, drift {found.drift:.1f} %")
    if found.noise > NOISY:
        console.print("[yellow]The clock is noisy: close what else runs and profile again.[/]")
    for name, errors in found.kinds.items():
        console.print(f"{errors.networks:4} {name} networks that it never saw: {errors}")
