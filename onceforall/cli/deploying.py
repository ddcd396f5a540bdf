"""Commands that make networks for a device: specialize, verify, bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from onceforall.bundle.bundle import write_bundle
from onceforall.bundle.measure import measure_bundle
from onceforall.cli import options
from onceforall.cli.common import (
    announce,
    app,
    console,
    data_source,
    load_model,
    notify,
    read_architecture,
    read_limits,
)
from onceforall.cost.latency import LatencyTables
from onceforall.cost.learned import load_latency
from onceforall.data.sources import lasting, open_data
from onceforall.deploy import exports
from onceforall.deploy.manifest import differences
from onceforall.deploy.reading import read_manifest
from onceforall.deploy.specialize import specialize as run_specialize
from onceforall.deploy.verify import verify as run_verify
from onceforall.devices import by_name
from onceforall.errors import BrokenClaim, DataUnavailable, InvalidConfiguration, OFAError
from onceforall.files import check_writable
from onceforall.predict.labels import read_labels
from onceforall.report import tables
from onceforall.report.progress import Steps
from onceforall.tasks import task_of
from onceforall.zoo import LABELS


@app.command()
def specialize(
    out: Annotated[
        Path, typer.Option(help="Folder for the networks, manifest.json, MODEL_CARD.md, latency.json and front.png.")
    ],
    model: options.Model = "cifar10",
    data: options.Data = None,
    device: Annotated[
        str, typer.Option(help=f"{options.DEVICE_HELP} none: write --export, time nothing else.")
    ] = "onnxruntime",
    threads: options.Threads = 1,
    latency: Annotated[
        list[str] | None,
        typer.Option(
            help='Budget, as "0.5 ms" or "60%" of the largest network; repeat it. Without it, other bounds decide.',
            show_default="40%, 60%, 80% where nothing else is asked for",
        ),
    ] = None,
    macs: options.MACsBound = None,
    params: options.ParamsBound = None,
    memory: options.MemoryBound = None,
    weights: options.WeightsBound = None,
    limit: options.Limit = None,
    result: Annotated[
        list[Path] | None,
        typer.Option(help="Result of `ofa search`, specialised as it is; repeat it. No budgets then but those given."),
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Latency model of `ofa profile`.", show_default="measure one now")
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(help="int8 or bf16, as well as fp32: the faster one that is accurate enough is used.")
    ] = None,
    max_drop: Annotated[
        float, typer.Option(help="Points of the score that a quantised network may lose to be used.")
    ] = 0.5,
    quantized_labels: Annotated[
        int, typer.Option(help="Sub-networks to label in the --quantize precision, to correct the predictor.")
    ] = 0,
    full_int8: Annotated[
        bool, typer.Option("--full-int8", help="Quantise every layer, also those that had better stay in fp32.")
    ] = False,
    export: Annotated[
        list[str] | None,
        typer.Option(
            help="Further runtimes to export to and verify in, as openvino, litert:int8, executorch, ncnn, torch (or "
            "by their files: onnx, ir, tflite, pte, pt2), or what needs none, as python: code and weights for torch "
            "alone; repeat it."
        ),
    ] = None,
    finetune: Annotated[int, typer.Option(help="Epochs for which the chosen networks go on training.")] = 0,
    candidates: Annotated[int, typer.Option(help="Best networks of a search to measure on the label images.")] = 4,
    seed: options.Seed = 0,
) -> None:
    """From budgets and bounds to measured files (ONNX and others): search, extract, export, quantise, verify.

    Prints what was promised and what was measured, and one line of JSON last. Interrupted, the same command goes on.
    """
    from onceforall.report import plots  # matplotlib: only here

    check_writable(out)  # fails now, not after minutes
    loaded = load_latency(table) if table else None
    if isinstance(loaded, LatencyTables):
        raise InvalidConfiguration(f"--table {table}: tables by resolution; give one of `ofa profile`")
    runtime = by_name(device, threads) if device != "none" else None
    if loaded and runtime and runtime.is_here:  # what another machine is becomes known when it has measured
        later = {key: value for key, value in loaded.device.items() if key in ("precision", "kept")}  # chosen later
        if differs := differences(loaded.device, {**runtime.describe(), **later}):
            notify(
                f"{table} was measured on another device ({'; '.join(differs)}). Measured latencies decide what "
                "is kept; searches hit their budgets better with a latency model of this one: leave out --table, or "
                "`ofa profile` again"
            )
    given = [read_architecture(path, model) for path in result or ()]
    targets = [exports.parse(text, threads) for text in export or ()]
    entry = load_model(model)
    source = data_source(data, model)
    images = open_data(source, notify)
    about = {"name": entry.name, "model": model, "sha256": entry.weights_sha256}
    limits = read_limits(entry.supernet.space, limit, macs=macs, params=params, memory=memory, weights=weights)
    with Steps(console) as report:
        found = run_specialize(
            entry.supernet,
            entry.labels,
            images,
            runtime,
            out,
            budgets=latency or (() if given or limits or runtime is None else ("40%", "60%", "80%")),
            architectures=given,
            limits=limits,
            table=loaded,
            quantize=quantize,
            max_drop=max_drop,
            quantized_labels=quantized_labels,
            full_int8=full_int8,
            exports=targets,
            finetune=finetune,
            candidates=candidates,
            seed=seed,
            about=about,
            data_source=lasting(source),
            report=report,
        )
    plots.front(found, entry.supernet.space, out / "front.png")
    console.print(tables.networks(found))
    if any(len(network.exports) > 1 for network in found.networks):
        console.print(tables.exports(found))
    console.print(tables.quality(found))
    for sentence in found.about.get("losses", ()):
        console.print(f"[red]{escape(sentence)}[/]")
    announce(out, f": networks, manifest.json, MODEL_CARD.md,{' latency.json,' if found.table else ''} front.png")
    typer.echo(json.dumps(found.summary()))


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder of `ofa specialize`.")],
    model: Annotated[
        str | None, typer.Option(help="The source supernet, for parity.", show_default="the manifest's")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="As for `ofa specialize`: for accuracies.", show_default="the manifest's")
    ] = None,
) -> None:
    """Repeat every claim of a manifest that can be repeated here; fail at the first that does not hold."""
    manifest, _ = read_manifest(folder)
    source, entry, images, digest = manifest["supernet"], None, None, None
    try:
        entry = load_model(model or str(source.get("model")), labels=False)
        digest = entry.weights_sha256
        if not model and digest != source.get("sha256"):
            raise InvalidConfiguration(f"{entry.folder} holds other weights than those")
    except OFAError as problem:
        if model:
            raise
        entry = None
        notify(f"no source supernet, so no parity with torch (give --model): {problem}")
    try:
        images = open_data(data or manifest.get("data_source") or str(manifest["data"].get("name")), notify)
    except (DataUnavailable, InvalidConfiguration) as problem:
        if data:
            raise
        notify(f"no data set, so no accuracies (give --data): {problem}")
    labels = None
    try:
        labels = read_labels(entry.folder / LABELS, entry.supernet.space) if entry else None
    except OFAError as problem:
        notify(f"no labels, so no errors of the predictor: {problem}")
    repeated = skipped = 0
    try:
        for claim in run_verify(folder, images, entry.supernet if entry else None, digest, labels):
            repeated, skipped = repeated + claim.repeated, skipped + (not claim.repeated)
            sign = "[green]holds[/]  " if claim.repeated else "[yellow]not here[/]"
            said = escape(f"{claim.about}: {claim.stated}; here: {claim.found}")
            console.print(f"{sign} {said}", highlight=False)
    except BrokenClaim as broken:
        console.print(f"[red]broken[/]   {escape(str(broken))}", highlight=False)
        raise
    typer.echo(json.dumps({"verified": repeated, "not_repeated": skipped}))


@app.command()
def bundle(
    result: Annotated[
        list[Path], typer.Option(help="Result of `ofa search`, or an architecture's JSON: one sub-network; repeat it.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the weights, one ONNX graph a sub-network, and manifest.json.")],
    name: Annotated[
        list[str] | None,
        typer.Option(help="What to switch by: one for each --result.", show_default="the names of the files"),
    ] = None,
    model: options.Model = "cifar10",
    data: options.Data = None,
    threads: options.Threads = 1,
) -> None:
    """Put several sub-networks of one supernet into one folder that shares their weights, and measure it.

    For PyTorch and ONNX Runtime: Bundle.load(OUT).use(NAME) switches while a program runs. Prints a
    table, and what was measured as one line of JSON last.
    """
    names = name or [path.stem for path in result]
    if len(names) != len(result) or len(set(names)) < len(names):
        raise InvalidConfiguration(f"--name {', '.join(names)}: give each of the {len(result)} results one of its own")
    architectures = dict(zip(names, (read_architecture(path, model) for path in result), strict=True))
    entry = load_model(model, labels=False)
    images = open_data(data_source(data, model), notify)
    console.print("extracting and recalibrating, then accuracy on the test images, switches and memory")
    write_bundle(entry.supernet, architectures, images, out)
    manifest = measure_bundle(out, entry.supernet, images, threads=threads)
    for table in tables.bundles(manifest, task_of(images).score):
        console.print(table)
    announce(out, f": weights.safetensors, manifest.json, {len(names)} ONNX graphs")
    typer.echo(json.dumps(manifest["measured"]["runtimes"]))
