"""Commands that choose a network: search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onceforall.cli.common import Model, Seed, app, console, load_model
from onceforall.cost.analytic import MACs, Parameters, PeakActivationMemory
from onceforall.cost.model import Constraint
from onceforall.cost.saved import load_latency
from onceforall.deploy.specialize import parse_budget
from onceforall.errors import InvalidConfiguration
from onceforall.files import write_json
from onceforall.interop import PublishedPredictor, load_predictor
from onceforall.predict.accuracy import MLPPredictor
from onceforall.predict.labels import training_pairs
from onceforall.search.evolution import search as run_search


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
