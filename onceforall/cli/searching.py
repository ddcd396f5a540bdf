"""Commands that choose a network: search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from onceforall.checkpoint import read_tensors
from onceforall.cli import options
from onceforall.cli.common import announce, app, console, data_source, load_model, notify, read_limits
from onceforall.cost.analytic import MACs
from onceforall.cost.bounds import parse_bound
from onceforall.cost.latency import LatencyTable, LatencyTables
from onceforall.cost.learned import LearnedLatency, load_latency
from onceforall.cost.model import Constraint
from onceforall.data.sources import open_data
from onceforall.errors import InvalidConfiguration
from onceforall.files import write_json
from onceforall.interop import PublishedPredictor, load_predictor
from onceforall.predict import accuracy as ours
from onceforall.predict.accuracy import MLPPredictor, Predictor
from onceforall.predict.labels import training_pairs
from onceforall.profiling.confirming import confirm_on_device
from onceforall.report import tables
from onceforall.search.evolution import GENERATIONS
from onceforall.search.evolution import search as run_search
from onceforall.search.pareto import front as run_front
from onceforall.space import SearchSpace
from onceforall.tasks import task_of

Table = LatencyTable | LatencyTables | LearnedLatency


@app.command()
def search(
    out: Annotated[Path, typer.Option(help="JSON file of the result.")],
    model: options.Model = "cifar10",
    table: Annotated[
        list[Path] | None, typer.Option(help="Latency table of `ofa profile`, one for each --latency, in this order.")
    ] = None,
    latency: Annotated[
        list[str] | None,
        typer.Option(help='Bound, as "0.5 ms", or "60%" of the largest network; repeat it, each with its --table.'),
    ] = None,
    macs: options.MACsBound = None,
    params: options.ParamsBound = None,
    memory: options.MemoryBound = None,
    weights: options.WeightsBound = None,
    limit: options.Limit = None,
    predictor: Annotated[
        Path | None,
        typer.Option(
            help="An accuracy predictor: one of --save-predictor or `ofa specialize`, or a published one.",
            show_default="learn from the model's labels",
        ),
    ] = None,
    save_predictor: Annotated[Path | None, typer.Option(help="Keep the predictor that was learnt.")] = None,
    front: Annotated[
        bool, typer.Option("--front", help="Not one network but a front: over the first --table, else over MACs.")
    ] = False,
    points: Annotated[int, typer.Option(help="Budgets along the front.")] = 40,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Measure the winner, and the next best where it breaks its --latency."),
    ] = False,
    data: options.Data = None,
    top: Annotated[int, typer.Option(help="Candidates that --measure tries at most.")] = 5,
    generations: Annotated[
        int, typer.Option(help="Of the search: four times as many take four times as long, and miss the best less.")
    ] = GENERATIONS,
    seed: options.Seed = 0,
) -> None:
    """Find the network of highest predicted accuracy within bounds, or a front -> result.json."""
    if front and measure:
        raise InvalidConfiguration("--measure confirms one network: leave out --front")
    if measure and not latency:
        raise InvalidConfiguration("--measure needs --latency and --table: it measures on the device of the table")
    entry = load_model(model, labels=predictor is None)
    space, score = entry.supernet.space, entry.score
    accuracy: Predictor | PublishedPredictor | None = None
    if predictor is not None:
        if save_predictor:
            raise InvalidConfiguration("--save-predictor keeps one that is learnt here: leave out --predictor")
        accuracy = _read_predictor(predictor)
        if isinstance(accuracy, PublishedPredictor):
            space = space.restrict(resolutions=accuracy.domain.resolutions)
    models = [load_latency(path) for path in table or ()]
    constraints = _latencies(space, models, latency or [], front)
    constraints += read_limits(space, limit, macs=macs, params=params, memory=memory, weights=weights)
    if accuracy is None:
        with console.status("accuracy predictor"):
            accuracy = MLPPredictor(space, seed=seed).fit(*training_pairs(entry.labels, score))
        if save_predictor:
            ours.save_predictor(save_predictor, accuracy)
    if front:
        cost = models[0] if models else MACs()
        outline = run_front(space, accuracy, [cost], constraints, points=points, seed=seed)
        write_json(out, {"model": model, **outline.to_json()})
        console.print(tables.front(outline, score))
        announce(out, f": {outline.evaluations} evaluations in {outline.seconds:.1f} s")
        return
    result = run_search(space, accuracy, constraints, seed=seed, generations=generations, keep=max(10, top))
    content = result.to_json()
    if measure:
        images = open_data(data_source(data, model), notify)
        score = task_of(images).score
        found = confirm_on_device(entry.supernet, space, accuracy, result, constraints, images, top=top)
        content, result = found.to_json(), found.result
        console.print(tables.trials(found, score))
    write_json(out, {"model": model, **content})
    costs = ", ".join(f"{cost.name} {cost.value:.4g} <= {cost.bound:.4g} {cost.unit}" for cost in result.costs)
    announce(
        out,
        f": predicted {score.name} {score.text(score.goal(result.accuracy))}, {costs or 'no bounds'}; "
        f"{result.evaluations} evaluations in {result.seconds:.1f} s\n{result.architecture}",
    )


def _read_predictor(path: Path) -> Predictor | PublishedPredictor:
    """One of ours, or of the authors', by what the file says."""
    is_ours = path.suffix == ".safetensors" and read_tensors(path)[1].get("format") == ours.FORMAT
    return ours.load_predictor(path) if is_ours else load_predictor(path)


def _latencies(space: SearchSpace, models: Sequence[Table], budgets: Sequence[str], front: bool) -> list[Constraint]:
    """A constraint for each pair of table and budget. Raises InvalidConfiguration where they are not pairs."""
    if len(models) != len(budgets) and not (front and len(models) == 1):
        raise InvalidConfiguration(
            f"--latency needs --table: {len(budgets)} and {len(models)} were given; each bound needs a table "
            "(`ofa profile --out DEVICE.json`), in the same order"
        )
    largest = space.lower(space.largest())
    return [
        model.at_most(parse_bound(text, "ms", model.cost(largest), "budget"))
        for model, text in zip(models, budgets, strict=False)
    ]
