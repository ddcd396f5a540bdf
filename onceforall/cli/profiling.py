"""Commands about devices: devices, profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from onceforall import devices as runtimes
from onceforall.cli.common import Device, DevicePrecision, Model, Seed, Threads, app, console, load_model
from onceforall.cost.profile import profile as run_profile
from onceforall.report.progress import Steps


@app.command()
def devices() -> None:
    """List the runtimes that work on this machine, and what to install for the others."""
    from onceforall.report import tables

    Console().print(tables.devices(runtimes.status()))


@app.command()
def profile(
    out: Annotated[Path, typer.Option(help="JSON file of the latency table.")],
    model: Model = "cifar10",
    device: Device = "onnxruntime",
    threads: Threads = 1,
    precision: DevicePrecision = "fp32",
    seed: Seed = 0,
) -> None:
    """Time every layer of a space on this machine -> a latency table that has judged itself on whole networks."""
    target = runtimes.by_name(device, threads, precision)
    space = load_model(model, labels=False).supernet.space
    with Steps(console) as report:
        table = run_profile(space, target, seed=seed, report=report)
    table.save(out)
    found = table.validation
    assert found is not None
    made = ", ".join(f"{name} {value}" for name, value in table.summary().items())
    console.print(f"[bold]{out}[/]: {made}; noise of the clock {found.noise:.1f} %, drift {found.drift:.1f} %")
    for name, errors in found.kinds.items():
        console.print(f"{errors.networks:4} {name} networks that it never saw: {errors}")
