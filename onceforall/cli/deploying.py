"""Commands that make networks for a device: profile, search, specialize."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from onceforall.cli.common import Data, Device, Model, Seed, Threads, app, console, load_model, notify
from onceforall.cost.analytic import MACs, Parameters, PeakActivationMemory
from onceforall.cost.latency import LatencyTable, load_latency
from onceforall.cost.model import Constraint
from onceforall.cost.profile import profile as run_profile
from onceforall.data.sources import open_data
from onceforall.deploy.specialize import parse_budget
from onceforall.deploy.specialize import specialize as run_specialize
from onceforall.devices import by_name
from onceforall.errors import InvalidConfiguration
from onceforall.files import read_json, sha256, write_json
from onceforall.interop import PublishedPredictor, load_predictor
from onceforall.predict.accuracy import MLPPredictor
from onceforall.predict.labels import training_pairs
from onceforall.report.progress import Steps
from onceforall.search.evolution import SearchResult
from onceforall.search.evolution import search as run_search


@app.command()
def profile(
    out: Annotated[Path, typer.Option(help="JSON file of the latency table.")],
    model: Model = "cifar10",
    device: Device = "onnxruntime",
    threads: Threads = 1,
    seed: Seed = 0,
) -> None:
    """Time every layer of a space on this machine -> a latency table that has judged itself on whole networks."""
    space = load_model(model, labels=False).supernet.space
    with Steps(console) as report:
        table = run_profile(space, by_name(device, threads), seed=seed, report=report)
    table.save(out)
    found = table.validation
    assert found is not None
    console.print(
        f"[bold]{out}[/]: {len(table.entries)} layers; on {found.networks} other networks: "
        f"mean error {found.mape:.1f} %, {found.within_5:.0f} % within 5 %, "
        f"Spearman {found.spearman:.3f}, noise {found.noise:.1f} %"
    )


@app.command()
def search(
    out: Annotated[Path, typer.Option(help="JSON file of the result.")],
    model: Model = "cifar10",
    table: Annotated[Path | None, typer.Option(help="Latency table of `ofa profile`; needed for --latency.")] = None,
    latency: Annotated[str | None, typer.Option(help='Bound, as "0.5 ms", or "60%" of the largest network.')] = None,
    macs: Annotated[float | None, typer.Option(help="Bound, in millions.")] = None,
    params: Annotated[float | None, typer.Option(help="Bound, in millions.")] = None,
    memory: Annotated[float | None, typer.Option(help="Bound on peak fp32 activation memory, in KiB.")] = None,
    predictor: Annotated[
        Path | None,
        typer.Option(help="A published accuracy predictor.", show_default="learn from the model's labels"),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Find the network of highest predicted accuracy within bounds -> result.json."""
    entry = load_model(model, labels=predictor is None)
    space = entry.supernet.space
    accuracy: MLPPredictor | PublishedPredictor | None = None
    if predictor is not None:
        accuracy = load_predictor(predictor)
        space = space.restrict(resolutions=accuracy.domain.resolutions)
    constraints: list[Constraint] = []
    if latency is not None:
        if table is None:
            raise InvalidConfiguration("--latency needs --table: make one with `ofa profile --out DEVICE.json`")
        loaded = load_latency(table)
        constraints.append(loaded.at_most(parse_budget(latency, loaded.cost(space.lower(space.largest())))))
    if macs is not None:
        constraints.append(MACs().at_most(macs * 1e6))
    if params is not None:
        constraints.append(Parameters().at_most(params * 1e6))
    if memory is not None:
        constraints.append(PeakActivationMemory().at_most(memory * 1024))
    if accuracy is None:
        with console.status("accuracy predictor"):
            accuracy = MLPPredictor(space, seed=seed).fit(*training_pairs(entry.labels))
    result = run_search(space, accuracy, constraints, seed=seed)
    write_json(out, {"model": model, **result.to_json()})
    costs = ", ".join(f"{cost.name} {cost.value:.4g} <= {cost.bound:.4g} {cost.unit}" for cost in result.costs)
    console.print(
        f"[bold]{out}[/]: predicted top-1 {result.accuracy:.2f} %, {costs or 'no bounds'}; "
        f"{result.evaluations} evaluations in {result.seconds:.1f} s\n{result.architecture}"
    )


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
