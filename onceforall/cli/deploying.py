"""Commands that make networks for a device: specialize."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from onceforall.cli.common import Data, Device, Model, Seed, Threads, app, console, load_model, notify
from onceforall.cost.latency import LatencyTable
from onceforall.data.sources import open_data
from onceforall.deploy.specialize import specialize as run_specialize
from onceforall.devices import by_name
from onceforall.files import read_json, sha256, write_json
from onceforall.report.progress import Steps
from onceforall.search.result import SearchResult


@app.command()
def specialize(
    out: Annotated[Path, typer.Option(help="Folder for the ONNX files, manifest.json, latency.json and front.png.")],
    model: Model = "cifar10",
    data: Data = "cifar10",
    device: Device = "onnxruntime",
    threads: Threads = 1,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            help='Latency, as "0.5 ms" or "60%" of the largest network; repeat it.', show_default="40%, 60%, 80%"
        ),
    ] = None,
    result: Annotated[
        list[Path] | None,
        typer.Option(help="Result of `ofa search`, specialised as it is; repeat it. No budgets then but those given."),
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Latency table of `ofa profile`.", show_default="build one now")
    ] = None,
    candidates: Annotated[int, typer.Option(help="Best networks of a search to measure on the label images.")] = 4,
    seed: Seed = 0,
) -> None:
    """From latency budgets to measured ONNX files: search, extract, recalibrate, export, verify.

    Prints a table of what was promised and what was measured, and one line of JSON last.
    """
    from onceforall.report import plots, tables  # matplotlib: only here

    write_json(out / "manifest.json", {"state": "running"})  # fails now, not after minutes, where it cannot be written
    loaded = LatencyTable.load(table) if table else None
    given = [SearchResult.from_json(read_json(path)).architecture for path in result or ()]
    entry = load_model(model)
    images = open_data(data, notify)
    about = {"name": entry.name, "sha256": sha256(entry.folder / "supernet.safetensors")}
    with Steps(console) as report:
        found = run_specialize(
            entry.supernet,
            entry.labels,
            images,
            by_name(device, threads),
            out,
            budgets=budget or (() if given else ("40%", "60%", "80%")),
            architectures=given,
            table=loaded,
            candidates=candidates,
            seed=seed,
            about=about,
            report=report,
        )
    plots.front(found, entry.supernet.space, out / "front.png")
    console.print(tables.networks(found))
    console.print(tables.quality(found))
    console.print(f"Written to [bold]{out}[/]: ONNX files, manifest.json, latency.json, front.png")
    typer.echo(json.dumps(found.summary()))
