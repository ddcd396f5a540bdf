"""The command line: `ofa train | import | label | profile | search | specialize`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from onceforall import spaces, zoo
from onceforall.checkpoint import load_supernet
from onceforall.cost.analytic import MACs, Parameters, PeakActivationMemory
from onceforall.cost.latency import LatencyTable, load_latency
from onceforall.cost.model import Constraint
from onceforall.cost.profile import profile as run_profile
from onceforall.data.cifar10 import cifar10
from onceforall.data.dataset import ImageData
from onceforall.deploy.specialize import parse_budget
from onceforall.deploy.specialize import specialize as run_specialize
from onceforall.devices import by_name
from onceforall.errors import InvalidConfiguration, OFAError
from onceforall.files import read_json, sha256, write_json
from onceforall.interop import PublishedPredictor, import_file, load_predictor
from onceforall.nn.supernet import Supernet
from onceforall.predict.accuracy import MLPPredictor
from onceforall.predict.labels import label as run_label
from onceforall.predict.labels import training_pairs
from onceforall.search.evolution import SearchResult
from onceforall.search.evolution import search as run_search
from onceforall.training.recipe import progressive_shrinking
from onceforall.training.trainer import train as run_training

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True)

Model = Annotated[
    str, typer.Option(help="A shipped supernet (cifar10), or a run folder with supernet.safetensors and labels.jsonl.")
]
Data = Annotated[str, typer.Option(help="cifar10, or cifar10:FOLDER with the official binary batches.")]
Device = Annotated[str, typer.Option(help="Runtime to measure on: onnxruntime.")]
Threads = Annotated[int, typer.Option(help="Threads of the runtime.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]


@app.callback()
def root() -> None:
    """Train one elastic supernet once; get a specialised network for any device and budget.

    The road: train -> label -> profile -> search -> specialize. Each command writes files that the
    next one reads; `specialize` alone does the last three steps with a shipped supernet.
    """


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Run folder; one with a checkpoint is resumed.")],
    data: Data = "cifar10",
    space: Annotated[str, typer.Option(help="Search space.")] = "mobilenet_v3_small_images",
    epochs: Annotated[
        str, typer.Option(help="Epochs of the six phases: full, kernel, depth 1, depth 2, width 1, width 2.")
    ] = "20,5,1,3,1,4",
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 128,
    weight_decay: Annotated[float, typer.Option(help="On convolutions and the classifier.")] = 2e-4,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="torch device: cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp32, or bf16 where the device is fast at it.")] = "fp32",
) -> None:
    """Train a supernet with progressive shrinking -> OUT/supernet.safetensors.

    Stop it at any time: the same command goes on where it was. Losses, learning rates and top-1 on
    the label images go to OUT/log.jsonl.
    """
    if space not in spaces.BY_NAME:
        raise InvalidConfiguration(f"--space {space}: choices are {', '.join(spaces.BY_NAME)}")
    if precision not in ("fp32", "bf16"):
        raise InvalidConfiguration(f"--precision {precision}: choices are fp32, bf16")
    try:
        lengths = [int(part) for part in epochs.split(",")]
    except ValueError:
        raise InvalidConfiguration(f"--epochs {epochs}: give six whole numbers, like 20,5,1,3,1,4") from None
    recipe = progressive_shrinking(lengths, batch_size, weight_decay)
    images = _load_data(data)
    supernet = Supernet(spaces.BY_NAME[space](num_classes=images.num_classes), seed)
    with _progress() as progress:
        task = progress.add_task("train", total=None)

        def report(record: dict[str, Any]) -> None:
            if "steps" in record:
                progress.update(
                    task, completed=record["step"], total=record["steps"], description=f"{record['name']:8}"
                )
            elif "loss" in record:
                progress.update(task, description=f"{record['name']:8} loss {record['loss']:.3f}")
            else:
                progress.console.print(
                    f"{record['name']}, step {record['step']}: top-1 on label images: largest "
                    f"{record['largest_top1']:.2f} %, smallest open {record['smallest_open_top1']:.2f} %"
                )

        run_training(
            supernet,
            images,
            recipe,
            out,
            seed=seed,
            device=device,
            precision="bf16" if precision == "bf16" else "fp32",
            report=report,
        )
    console.print(f"[bold]{out / 'supernet.safetensors'}[/]; next: ofa label --model {out}")


@app.command()
def label(
    model: Annotated[str, typer.Option(help="Run folder of `ofa train`.")],
    data: Data = "cifar10",
    count: Annotated[int, typer.Option(help="Number of random sub-networks; the uniform ones come on top.")] = 560,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="JSONL to write or continue [default: MODEL/labels.jsonl].")] = None,
) -> None:
    """Measure sub-networks on the label images -> labels.jsonl, what the accuracy predictor learns from."""
    folder = Path(model)
    supernet = load_supernet(folder / "supernet.safetensors")
    images = _load_data(data)
    path = out or folder / "labels.jsonl"
    with _steps() as report:
        run_label(supernet, images, path, count=count, seed=seed, report=lambda d, t: report("sub-networks", d, t))
    console.print(f"[bold]{path}[/]; next: ofa specialize --model {model} --out out")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="Torch file of the Once-for-All authors.")],
    out: Annotated[Path, typer.Option(help="Folder for the safetensors file and manifest.json.")],
) -> None:
    """Read a published supernet or accuracy predictor -> OUT/supernet.safetensors or OUT/predictor.safetensors.

    Tensors are read and code is not; manifest.json says where they came from. Supernets: MobileNetV3
    (width 1.0, 1.2), ProxylessNAS (1.3), ResNet-50D. OUT is then a run folder for --model.
    """
    found = import_file(file, out)
    if isinstance(found, Supernet):
        console.print(f"[bold]{out / 'supernet.safetensors'}[/]: {found.space.size:.3g} sub-networks")
    else:
        console.print(f"[bold]{out / 'predictor.safetensors'}[/]: accuracy predictor of {found.domain.name}")


@app.command()
def profile(
    out: Annotated[Path, typer.Option(help="JSON file of the latency table.")],
    model: Model = "cifar10",
    device: Device = "onnxruntime",
    threads: Threads = 1,
    seed: Seed = 0,
) -> None:
    """Time every layer of a space on this machine -> a latency table that has judged itself on whole networks."""
    space = _load_model(model, labels=False).supernet.space
    with _steps() as report:
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
        typer.Option(help="A published accuracy predictor [default: learn from the model's labels]."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Find the network of highest predicted accuracy within bounds -> result.json."""
    entry = _load_model(model, labels=predictor is None)
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
        typer.Option(help='Latency, as "0.5 ms" or "60%" of the largest network; repeat it [default: 40%, 60%, 80%].'),
    ] = None,
    result: Annotated[
        list[Path] | None,
        typer.Option(help="Result of `ofa search`, specialised as it is; repeat it. No budgets then but those given."),
    ] = None,
    table: Annotated[Path | None, typer.Option(help="Latency table of `ofa profile` [default: build one now].")] = None,
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
    entry = _load_model(model)
    images = _load_data(data)
    about = {"name": entry.name, "sha256": sha256(entry.folder / "supernet.safetensors")}
    with _steps() as report:
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


def main() -> None:
    """Entry point of `ofa`: errors of this package end in one line and exit code 1."""
    try:
        app()
    except OFAError as error:
        console.print(f"[bold red]{type(error).__name__}[/]: {error}", highlight=False)
        raise SystemExit(1) from None


def _load_data(text: str) -> ImageData:
    name, _, folder = text.partition(":")
    if name != "cifar10":
        raise InvalidConfiguration(f"--data {text}: expected cifar10 or cifar10:FOLDER")
    return cifar10(folder or None, notify=console.print)


def _load_model(text: str, labels: bool = True) -> zoo.Entry:
    if text in (*zoo.NAMES, *zoo.PUBLISHED):
        return zoo.load(text)
    if not Path(text).is_dir():
        known = ", ".join((*zoo.NAMES, *zoo.PUBLISHED))
        raise InvalidConfiguration(f"--model {text}: no such folder; known supernets are {known}")
    return zoo.load_run(Path(text), labels=labels)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


class _steps:  # noqa: N801 (used as a function)
    """A progress display with one bar a step; as a context it gives the function that moves them."""

    def __enter__(self) -> Callable[[str, int, int], None]:
        self.progress = _progress()
        self.progress.start()
        self.tasks: dict[str, Any] = {}
        return self._report

    def _report(self, step: str, done: int, total: int) -> None:
        if step not in self.tasks:
            self.tasks[step] = self.progress.add_task(step, total=total)
        self.progress.update(self.tasks[step], completed=done, total=total)

    def __exit__(self, *error: object) -> None:
        self.progress.stop()


if __name__ == "__main__":
    main()
