"""MODEL_CARD.md, made from manifest.json alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from onceforall.deploy.manifest import Exported, Number, Specialized, read_manifest, score_in
from onceforall.files import write_atomically
from onceforall.tasks import CLASSIFICATION, Score

FEW = 20  # classes whose names a card lists; manifest.json has those of any number


def write_card(folder: Path) -> None:
    """The model card of a folder, beside its manifest."""
    manifest, networks = read_manifest(folder)
    write_atomically(folder / "MODEL_CARD.md", "\n".join(_lines(manifest, networks)) + "\n")


def _lines(manifest: dict[str, Any], networks: Sequence[Specialized]) -> Iterable[str]:
    device, data, supernet, score = manifest["device"], manifest["data"], manifest["supernet"], score_in(manifest)
    largest = networks[0].architecture
    what = "Image classifiers" if score == CLASSIFICATION.score else "Networks"
    name = supernet.get("name") or "A supernet"
    yield f"# {name}, specialised for {device['name']}" if device else f"# {name}, specialised"
    yield ""
    where = (
        f"for {device['runtime']}, {device['threads']} thread(s), {device['precision']}, on "
        f"{device.get('processor', 'another machine')}"
        if device
        else "for no device in particular: what could not be run here was not timed"
    )
    yield f"{what} taken from one Once-for-All supernet{_training(networks)}, {where}."
    yield ""
    yield "## Networks"
    yield ""
    limits = [needed.name for needed in networks[0].constraints if needed.name not in ("MACs", "parameters")]
    headers = ("network", "budget", "use", f"test {score.name}", "latency", "predicted", "MACs", "parameters", *limits)
    yield from _table(headers, [_row(network, score) for network in networks])
    yield ""
    yield (
        f"{score.name.capitalize()} on all test images and latency (batch 1, median) are measured with the exported "
        'file in its runtime; "predicted" is what the latency model said beforehand. No test image took part in any '
        "choice."
    )
    if manifest["limits"]:
        yield f"Every searched and uniform network keeps {', '.join(manifest['limits'])}."
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
            f"test {score.name}",
            "same class as torch",
            "difference of logits",
            "latency",
            "peak memory",
        ),
        [(network.name, *_cells(export, score)) for network, export in every],
    )
    for name, why in {export.name: export.not_verified for _, export in every if export.not_verified}.items():
        yield ""
        yield f"{name} was not run here: {why}."
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
            (f"first layers of int8 networks in fp32, {runtime}", f"label {score.name} of the largest"),
            [(str(len(row["kept"])), score.text(row[f"label_{score.key}"]["value"])) for row in rows],
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


def _row(network: Specialized, score: Score) -> tuple[str, ...]:
    budget = "-" if network.latency_budget_ms is None else f"{network.latency_budget_ms:.3f} ms"
    missed = " (missed)" if network.budget_met is False else ""
    others = [needed for needed in network.constraints if needed.name not in ("MACs", "parameters")]
    tested = _said(network.export.test_score or network.test_score, score)
    return (
        network.name,
        budget + missed,
        network.export.name,
        f"{tested} (in torch)" if network.test_score else tested,
        _ms(network.export.latency),
        _ms(network.predicted_latency),
        f"{network.macs / 1e6:.2f} M",
        f"{network.params / 1e6:.3f} M",
        *(f"{needed.value:.6g} {needed.unit}" for needed in others),
    )


def _cells(export: Exported, score: Score) -> tuple[str, ...]:
    return (
        export.name,
        ", ".join(f"`{file.path}`" for file in export.files),
        f"{export.bytes / 1024:.0f} KiB",
        _said(export.test_score, score),
        "-" if export.agreement is None else f"{export.agreement.value:.2f} %",
        "-" if export.parity is None else f"{export.parity.value:.1e}",
        _ms(export.latency),
        "-" if export.peak_memory is None else f"{export.peak_memory.value / 2**20:.1f} MiB",
    )


def _said(number: Number | None, score: Score) -> str:
    return "-" if number is None else score.text(number.value)


def _ms(number: Number | None) -> str:
    return "-" if number is None else f"{number.value:.3f} ms"


def _training(networks: Sequence[Specialized]) -> str:
    tuned = {network.name: network.finetuning.epochs for network in networks if network.finetuning}
    if not tuned:
        return " without further training"
    return ", then fine-tuned (" + ", ".join(f"{name}: {epochs} epochs" for name, epochs in tuned.items()) + ")"


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    for row in (headers, ["---"] * len(headers), *rows):
        yield "| " + " | ".join(row) + " |"
