"""MODEL_CARD.md, made from manifest.json alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from onceforall.deploy.manifest import Export, Network, read_manifest
from onceforall.files import write_atomically

FEW = 20  # classes whose names a card lists; manifest.json has those of any number


def write_card(folder: Path) -> None:
    """The model card of a folder, beside its manifest."""
    manifest, networks = read_manifest(folder)
    write_atomically(folder / "MODEL_CARD.md", "\n".join(_lines(manifest, networks)) + "\n")


def _lines(manifest: dict[str, Any], networks: Sequence[Network]) -> Iterable[str]:
    device, data, supernet = manifest["device"], manifest["data"], manifest["supernet"]
    largest = networks[0].architecture
    yield f"# {supernet.get('name') or 'A supernet'}, specialised for {device['name']}"
    yield ""
    yield (
        f"Image classifiers taken from one Once-for-All supernet{_training(networks)}, for {device['runtime']}, "
        f"{device['threads']} thread(s), {device['precision']}, on {device.get('processor', 'another machine')}."
    )
    yield ""
    yield "## Networks"
    yield ""
    rows = []
    for network in networks:
        export = network.export
        budget = "-" if network.budget_ms is None else f"{network.budget_ms:.3f} ms"
        missed = " (missed)" if network.budget_met is False else ""
        rows.append(
            (
                network.name,
                budget + missed,
                export.name,
                f"{export.test_top1:.2f} %",
                f"{export.latency_ms:.3f} ms",
                f"{network.predicted_latency_ms:.3f} ms",
                f"{network.macs / 1e6:.2f} M",
                f"{network.params / 1e6:.3f} M",
            )
        )
    yield from _table(("network", "budget", "use", "test top-1", "latency", "predicted", "MACs", "parameters"), rows)
    yield ""
    yield (
        "Top-1 on all test images and latency (batch 1, median) are measured with the exported file in its runtime; "
        '"predicted" is what the latency model said beforehand. No test image took part in any choice.'
    )
    yield ""
    yield "## Files"
    yield ""
    every = [(network, export) for network in networks for export in network.exports]
    yield from _table(
        (
            "network",
            "runtime",
            "files",
            "size",
            "test top-1",
            "same class as torch",
            "difference of logits",
            "latency",
            "peak memory",
        ),
        [(network.name, *_cells(export)) for network, export in every],
    )
    if manifest["quantize"]:
        found = manifest["quantize"]
        yield ""
        yield (
            f"In {found['precision']} a network takes {found['latency_ratio']['value']:.2f} of its time in fp32 here "
            f"(median of {found['networks']} networks, measured): {found['verdict']}."
        )
    for runtime, rows in manifest["sensitivity"].items():
        yield ""
        yield from _table(
            (f"first layers of int8 networks in fp32, {runtime}", "label top-1 of the largest"),
            [(str(len(row["kept"])), f"{row['label_top1']['value']:.2f} %") for row in rows],
        )
    yield ""
    yield "## Input and output"
    yield ""
    given = manifest["input"]
    yield (
        f"Input {given['shape']}, float32; the resolution is that of `architecture` in manifest.json "
        f"({largest.resolution} px for the largest). Output: one logit a class."
    )
    if given.get("mean"):
        yield f"Pixels of 0 to 255, RGB: (value / 255 - mean) / std, mean {given['mean']}, std {given['std']}."
    if 0 < len(given.get("classes", ())) <= FEW:
        yield f"Classes, from 0: {', '.join(given['classes'])}."
    if any(file.path.endswith(".tflite") for _, export in every for file in export.files):
        yield "Files for LiteRT take [1, resolution, resolution, 3], in int8 where the network's first layer is."
    yield ""
    yield "## Data"
    yield ""
    splits = ", ".join(f"{count} {split}" for split, count in data.get("splits", {}).items())
    yield f"{data.get('name', 'unnamed')}: {splits} images."
    yield ""
    yield "## Where it comes from"
    yield ""
    yield f"* supernet: {supernet.get('name', 'unnamed')}, sha256 {supernet.get('sha256', 'unknown')}"
    yield f"* seed {manifest['seed']}; " + ", ".join(f"{name} {text}" for name, text in manifest["versions"].items())
    yield "* `ofa verify` in this folder repeats each of these numbers that can be repeated on your machine."


def _cells(export: Export) -> tuple[str, ...]:
    return (
        export.name,
        ", ".join(f"`{file.path}`" for file in export.files),
        f"{export.bytes / 1024:.0f} KiB",
        f"{export.test_top1:.2f} %",
        f"{export.agreement:.2f} %",
        f"{export.parity:.1e}",
        f"{export.latency_ms:.3f} ms",
        "-" if math.isnan(export.memory_bytes) else f"{export.memory_bytes / 2**20:.1f} MiB",
    )


def _training(networks: Sequence[Network]) -> str:
    tuned = {network.name: network.finetuning.epochs for network in networks if network.finetuning}
    if not tuned:
        return " without further training"
    return ", then fine-tuned (" + ", ".join(f"{name}: {epochs} epochs" for name, epochs in tuned.items()) + ")"


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    for row in (headers, ["---"] * len(headers), *rows):
        yield "| " + " | ".join(row) + " |"
