"""The model card, made from manifest.json alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from onceforall.deploy.manifest import SHOWN, Exported, Number, Specialized
from onceforall.deploy.reading import score_in
from onceforall.tasks import CLASSIFICATION, Score

FEW = 20  # classes whose names a card lists; manifest.json has those of any number
MS = "{:.3f} ms".format


def card(manifest: dict[str, Any], networks: Sequence[Specialized]) -> str:
    """The model card of a manifest and its networks."""
    return "\n\n".join(_blocks(manifest, networks)) + "\n"


def _blocks(manifest: dict[str, Any], networks: Sequence[Specialized]) -> Iterator[str]:
    """Headings, paragraphs and tables."""
    device, supernet, score = manifest["device"], manifest["supernet"], score_in(manifest)
    every = [(network, export) for network in networks for export in network.exports]
    name = supernet.get("name") or "A supernet"
    yield f"# {name}, specialised for {device['name']}" if device else f"# {name}, specialised"
    where = (
        f"for {device['runtime']}, {device['threads']} thread(s), {device['precision']}, on "
        f"{device.get('processor', 'another machine')}"
        if device
        else "for no device in particular: what could not be run here was not timed"
    )
    what = "Image classifiers" if score == CLASSIFICATION.score else "Networks"
    yield f"{what} taken from one Once-for-All supernet{_training(networks)}, {where}."
    yield "## Networks"
    limits = [needed.name for needed in networks[0].constraints if needed.name not in SHOWN]
    headers = ("network", "budget", "use", f"test {score.name}", "latency", "predicted", "MACs", "parameters", *limits)
    yield _table(headers, [_row(network, score) for network in networks])
    about = (
        f"{score.name.capitalize()} on all test images and latency (batch 1, median) are measured with the exported "
        'file in its runtime; "predicted" is what the latency model said beforehand. No test image took part in any '
        "choice."
    )
    if manifest["limits"]:
        about += f"\nEvery searched and uniform network keeps {', '.join(manifest['limits'])}."
    yield about
    yield "## Files"
    tested, parity = f"test {score.name}", ("same class as torch", "difference of logits")
    yield _table(
        ("network", "runtime", "files", "size", tested, *parity, "latency", "peak memory"),
        [(network.name, *_cells(export, score)) for network, export in every],
    )
    for name, why in {export.name: export.not_verified for _, export in every if export.not_verified}.items():
        yield f"{name} was not run here: {why}."
    if manifest["quantize"]:
        found = manifest["quantize"]
        yield (
            f"In {found['precision']} a network takes {found['latency_ratio']['value']:.2f} of its time in fp32 here "
            f"(median of {found['networks']} networks, measured): {found['verdict']}."
        )
    for runtime, rows in manifest["sensitivity"].items():
        yield _table(
            (f"layers of int8 networks in fp32, {runtime}", f"label {score.name} of the largest"),
            [
                (", ".join(map(str, row["kept"])) or "none", score.text(row[f"label_{score.key}"]["value"]))
                for row in rows
            ],
        )
    if manifest.get("losses"):
        yield "**Not accurate enough.** " + "; ".join(manifest["losses"]) + "."
    yield "## Input and output"
    yield "\n".join(_input(manifest["input"], networks))
    yield "## Data"
    data = manifest["data"]
    splits = ", ".join(f"{count} {split}" for split, count in data.get("splits", {}).items())
    yield f"{data.get('name', 'unnamed')}: {splits} images."
    yield "## Where it comes from"
    versions = ", ".join(f"{name} {text}" for name, text in manifest["versions"].items())
    yield (
        f"* supernet: {supernet.get('name', 'unnamed')}, sha256 {supernet.get('sha256', 'unknown')}\n"
        f"* seed {manifest['seed']}; {versions}\n"
        "* `ofa verify` in this folder repeats each of these numbers that can be repeated on your machine."
    )


def _input(given: dict[str, Any], networks: Sequence[Specialized]) -> Iterator[str]:
    yield (
        f"Input {given['shape']}, float32; the resolution is that of `architecture` in manifest.json "
        f"({networks[0].architecture.resolution} px for the largest). Output: one logit a class."
    )
    if given.get("mean"):
        yield f"Pixels of 0 to 255, RGB: (value / 255 - mean) / std, mean {given['mean']}, std {given['std']}."
    if 0 < len(given.get("classes", ())) <= FEW:
        yield f"Classes, from 0: {', '.join(given['classes'])}."
    if any(file.path.endswith(".tflite") for net in networks for export in net.exports for file in export.files):
        yield "Files for LiteRT take [1, resolution, resolution, 3], in int8 where the network's first layer is."


def _row(network: Specialized, score: Score) -> tuple[str, ...]:
    budget = "-" if network.latency_budget_ms is None else MS(network.latency_budget_ms)
    missed = " (missed)" if network.budget_met is False else ""
    tested = _said(network.export.test_score or network.test_score, score.text)
    return (
        network.name,
        budget + missed,
        network.export.name,
        f"{tested} (in torch)" if network.test_score else tested,
        _said(network.export.latency, MS),
        _said(network.predicted_latency, MS),
        f"{network.macs / 1e6:.2f} M",
        f"{network.params / 1e6:.3f} M",
        *(f"{needed.value:.6g} {needed.unit}" for needed in network.constraints if needed.name not in SHOWN),
    )


def _cells(export: Exported, score: Score) -> tuple[str, ...]:
    return (
        export.name,
        ", ".join(f"`{file.path}`" for file in export.files),
        f"{export.bytes / 1024:.0f} KiB",
        _said(export.test_score, score.text),
        _said(export.agreement, "{:.2f} %".format),
        _said(export.parity, "{:.1e}".format),
        _said(export.latency, MS),
        _said(export.peak_memory, lambda size: f"{size / 2**20:.1f} MiB"),
    )


def _said(number: Number | None, text: Callable[[float], str]) -> str:
    return "-" if number is None else text(number.value)


def _training(networks: Sequence[Specialized]) -> str:
    tuned = {network.name: network.finetuning.epochs for network in networks if network.finetuning}
    if not tuned:
        return " without further training"
    return ", then fine-tuned (" + ", ".join(f"{name}: {epochs} epochs" for name, epochs in tuned.items()) + ")"


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (headers, ["---"] * len(headers), *rows))
