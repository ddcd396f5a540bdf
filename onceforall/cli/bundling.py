"""Several sub-networks for one device: bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from onceforall.bundle.bundle import write_bundle
from onceforall.bundle.measure import measure_bundle
from onceforall.cli.common import Data, Model, Threads, announce, app, console, load_model, notify, read_architecture
from onceforall.data.sources import open_data
from onceforall.errors import InvalidConfiguration
from onceforall.report import bundles


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
    model: Model = "cifar10",
    data: Data = "cifar10",
    threads: Threads = 1,
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
    images = open_data(data, notify)
    console.print("extracting and recalibrating, then accuracy on the test images, switches and memory")
    write_bundle(entry.supernet, architectures, images, out)
    manifest = measure_bundle(out, entry.supernet, images, threads=threads)
    for table in bundles.tables(manifest):
        console.print(table)
    announce(out, f": weights.safetensors, manifest.json, {len(names)} ONNX graphs")
    typer.echo(json.dumps(manifest["measured"]["runtimes"]))
