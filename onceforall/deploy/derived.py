"""Claims of a manifest that follow from its other entries, from the files beside it, or from what is installed here.

Nothing is run for them. What a manifest says and nobody can repeat is named as such: `NOT_REPEATED` lists it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onceforall.checkpoint import read_tensors
from onceforall.checks import is_number
from onceforall.cost.bounds import parse_bound
from onceforall.cost.learned import load_latency
from onceforall.deploy import exports
from onceforall.deploy.card import card
from onceforall.deploy.choosing import export_to_use
from onceforall.deploy.claims import Claim, equal, holds, same_json, skipped, told
from onceforall.deploy.exports import DeviceExport
from onceforall.deploy.finishing import losses
from onceforall.deploy.manifest import (
    CARD,
    CORRECTION,
    FORMAT,
    LATENCY,
    PREDICTOR,
    Exported,
    Specialized,
    latency_entry,
    value_of,
)
from onceforall.deploy.precision import Precisions
from onceforall.deploy.reading import score_in
from onceforall.deploy.specialize import versions
from onceforall.deploy.twins import Latency
from onceforall.devices.device import Device
from onceforall.devices.measure import describe_machine
from onceforall.errors import BrokenClaim, IncompatibleCheckpoint, OFAError
from onceforall.files import as_json, differing, parse_json
from onceforall.predict.accuracy import MLPPredictor, load_predictor
from onceforall.predict.corrected import CorrectedPredictor
from onceforall.results import UNFINISHED, inside
from onceforall.space import SearchSpace

# Entries that no claim repeats, and why; those of networks are named with each network.
NOT_REPEATED = {
    "data_source": "what the data are called where they were opened",
    "quantize": "latencies of another moment, which decided what the searches were for",
    "sensitivity": "label scores of the largest network in other choices of kept layers",
    "max_drop": "a setting of the call",
    "seconds": "of another moment",
}
LOSSES = "losses"
READ_HERE = (
    "format", "supernet", "space", "data", "score", "input", "machine", "limits", "seed", "versions", "device",
    "latency_model", "predictor", "networks",
)  # fmt: skip
CONTAINERS = ("finetune", UNFINISHED)  # sub-folders of ours that hold no results


def ours(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest is of this version's format, and so says all that we would say."""
    return bool(manifest["format"] == FORMAT)


def load_twins(
    folder: Path, manifest: Mapping[str, Any]
) -> tuple[Latency | None, MLPPredictor, CorrectedPredictor | None]:
    """The latency model, the accuracy predictor, and its correction where it has one with a file.

    Raises BrokenClaim where the manifest calls the files otherwise, and what reading them raises.
    """
    said, predicted, model = manifest["latency_model"], manifest["predictor"], None
    if said:
        equal("latency model, file", said["file"], LATENCY)
        model = load_latency(inside(folder, LATENCY))
    equal("predictor, file", predicted["file"], PREDICTOR)
    predictor = load_predictor(inside(folder, PREDICTOR))
    if not isinstance(predictor, MLPPredictor) or not (model is None or isinstance(model, Latency)):
        raise IncompatibleCheckpoint(f"{folder}: its latency model or predictor is of a kind that none is made with")
    if not predicted["corrected"] or not ours(manifest):
        return model, predictor, None
    return model, predictor, CorrectedPredictor(predictor).load(inside(folder, CORRECTION))


def of_spaces(folder: Path, manifest: Mapping[str, Any]) -> Claim:
    """The predictor says the same space, word for word: both were written by one call."""
    text = read_tensors(inside(folder, PREDICTOR))[1].get("space", "")
    return same_json("space", manifest["space"], parse_json(text, f"{folder / PREDICTOR}: its space"))


def of_twins(manifest: Mapping[str, Any], model: Latency | None, predictor: MLPPredictor) -> Iterator[Claim]:
    """What the manifest repeats of the files of the latency model and the predictor."""
    if model is not None:
        yield same_json("latency model", manifest["latency_model"], latency_entry(model, manifest["device"]))
    yield equal("seed", manifest["seed"], predictor.settings()["seed"])


def of_network(
    manifest: Mapping[str, Any], raw: Mapping[str, Any], network: Specialized, space: SearchSpace
) -> Iterator[Claim]:
    """What follows of one network, whose JSON value is `raw`."""
    name, score = network.name, score_in(manifest)
    written = as_json(network.to_json(score))
    if not ours(manifest):  # of what older versions wrote, which is less
        written = {"budget_met": written["budget_met"]}
        raw = {"budget_met": raw.get("budget_met")}
    met = {None: "no budget", True: "kept", False: "missed"}
    yield equal(f"{name}: budget_met", met.get(raw.get("budget_met")), met[network.budget_met])
    yield same_json(f"{name}: what follows from other entries", dict(raw), written)
    if network.role == "largest":
        yield equal(f"{name}: architecture", str(network.architecture), str(space.largest()))
    if network.constraints or ours(manifest):
        limits = [f"{needed.name} <= {needed.bound:g} {needed.unit}" for needed in network.constraints]
        yield same_json(f"{name}: limits", manifest["limits"], limits)
    yield _chosen(manifest, network)
    if network.attempts:
        yield skipped(f"{name}: attempts", network.attempts, "what was tried before")
    if network.finetuning:
        yield skipped(f"{name}: fine-tuning, epochs", network.finetuning.epochs, "it would have to be trained again")


def _chosen(manifest: Mapping[str, Any], network: Specialized) -> Claim:
    """That the export to use is the one that the rules choose."""
    about, device, expected = f"{network.name}: export to use", manifest["device"], 0
    if device is not None:
        target = made_here(device["name"], device["precision"], device["threads"])
        if isinstance(target, str):
            return skipped(about, network.export.name, target)
        low = target if manifest["quantize"] else None
        candidates = network.exports[: 2 if low else None]  # further ones came later
        try:
            own = replace(network, exports=candidates, chosen=0)
            expected = export_to_use(own, Precisions(target, low), manifest["max_drop"], score_in(manifest))
        except (StopIteration, IndexError):
            expected = -1
    found = network.exports[expected].name if expected >= 0 else "none of them can be it"
    return holds(about, network.export.name, found, network.chosen == expected)


def of_export(manifest: Mapping[str, Any], about: str, export: Exported, threads: int) -> Iterator[Claim]:
    """What follows of one export."""
    made = made_here_export(export.device, export.precision, threads)
    if isinstance(made, DeviceExport):
        begin = f"{export.device.partition('@')[0]}-{export.precision}"
        names = [file.path.rpartition("/")[2] for file in export.files]
        right = bool(names) and all(name.startswith(begin) for name in names)
        yield holds(f"{about}: file names", ", ".join(names), f"{begin}...", right)
    if isinstance(made, exports.Export):
        is_here = made.device is None or made.device.is_here
        runtime = made.runtime if is_here else "another machine's"
        if runtime == export.runtime:
            yield equal(f"{about}: runtime", export.runtime, runtime)
        else:
            yield skipped(f"{about}: runtime", export.runtime, f"{runtime} here")
        problem = None if made.device else made.problem
        why = f"{about}: why it was not run"
        if export.not_verified and problem and export.not_verified != problem:
            yield skipped(why, export.not_verified, f"in other words: {problem}")
        elif export.not_verified or ours(manifest):
            yield equal(why, export.not_verified, problem)
    elif export.not_verified:
        yield skipped(f"{about}: why it was not run", export.not_verified, made)
    if export.kept:
        yield skipped(f"{about}: layers that stay in fp32", export.kept, "a file does not tell")
        holds(f"{about}: layers that stay in fp32", told(export.kept), "fp32 throughout", export.precision != "fp32")


def of_budgets(manifest: Mapping[str, Any], networks: Sequence[Specialized]) -> Iterator[Claim]:
    """Which networks there are, and in milliseconds what their budgets say."""
    if ours(manifest):
        roles = {role: [net.budget for net in networks if net.role == role] for role in ("searched", "given")}
        names = ["largest", *(f"{role} {budget}" for budget in roles["searched"] for role in ("searched", "uniform"))]
        names += [f"given {place if place > 1 else None}" for place in range(1, len(roles["given"]) + 1)]
        found = [net.role if net.role == "largest" else f"{net.role} {net.budget}" for net in networks]
        yield same_json("networks", found, names)
    bases: dict[float, str] = {}
    for network in networks:
        about, budget, ms = f"{network.name}: budget", network.budget, network.latency_budget_ms
        if budget is None or network.role not in ("searched", "uniform"):
            yield equal(about, ms, None)
            continue
        absolute, share = (parse_bound(budget, "ms", largest) for largest in (math.nan, 1.0))
        said = f"{ms:.6g} ms" if ms is not None else "no bound"
        if not math.isnan(absolute):
            yield holds(about, said, f"{absolute:.6g} ms", ms is not None and math.isclose(ms, absolute, rel_tol=1e-9))
            continue
        if ms is None or ms <= 0:
            raise BrokenClaim(f"{about}: {budget} of the largest network cannot be {ms} ms")
        base = next((known for known in bases if math.isclose(known, ms / share, rel_tol=1e-9)), ms / share)
        bases.setdefault(base, network.name)
        if len(bases) > 1:
            others = " and ".join(f"{base:.6g} ms by {name}" for base, name in bases.items())
            raise BrokenClaim(f"{about}: the largest network took {others}: one of these budgets is not what it says")
        yield Claim(about, said, f"{budget} of {base:.6g} ms")
    for base in bases:
        yield skipped("latency of the largest network when budgets were set", f"{base:.6g} ms", "of another moment")


def of_this_machine(manifest: Mapping[str, Any]) -> Iterator[Claim]:
    """Where the manifest was made, beside where we are; and what was installed."""
    device, machine = manifest["device"], manifest.get("machine")
    if device is not None:
        here = made_here(device["name"], device["precision"], device["threads"])
        if isinstance(here, str) or not here.is_here:
            yield skipped("device", device["name"], here if isinstance(here, str) else "another machine")
        else:
            try:
                yield _alike("device", device, here.keeping(tuple(device.get("kept", ()))).describe())
            except (OFAError, TypeError) as error:
                yield skipped("device", device, str(error))
            if machine is not None:
                same = {key: value for key, value in device.items() if key in machine}
                yield same_json("machine", machine, same)
    if machine is not None:
        threads = device["threads"] if device else machine.get("threads")
        yield _alike("machine", machine, {"threads": threads, **describe_machine()})
        if not device:
            yield skipped("machine, threads", threads, "a setting of the call")
    yield _alike("versions", manifest["versions"], versions())


def _alike(about: str, stated: Any, found: Any) -> Claim:
    """What may differ from here, and is not repeated then."""
    different = differing(stated, as_json(found))
    return (
        skipped(about, told(stated), f"another one: {different}")
        if different
        else Claim(about, told(stated), "the same")
    )


def of_the_rest(folder: Path, manifest: dict[str, Any], networks: Sequence[Specialized]) -> Iterator[Claim]:
    """The card, files that nobody named, and the entries that nobody can repeat."""
    if ours(manifest):
        try:
            found = inside(folder, CARD).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise IncompatibleCheckpoint(f"{folder / CARD} cannot be read: {error}") from None
        expected = card(manifest, networks)
        lines, right = found.splitlines(), expected.splitlines()
        first = next((f"{there!r:.80} there" for there, here in zip(lines, right, strict=False) if there != here), "")
        yield holds(CARD, "what it says", first or f"{len(lines)} lines", found == expected)
    else:
        yield skipped(CARD, CARD, f"made by a version that wrote {manifest['format']}")
    if LOSSES in manifest:
        yield _losses(manifest, networks)
    named = {file.path for network in networks for file in network.files}
    folders = [path for path in folder.iterdir() if path.is_dir() and path.name not in CONTAINERS]
    others = [path.relative_to(folder).as_posix() for home in folders for path in home.rglob("*") if path.is_file()]
    if unnamed := sorted({*others} - named):
        yield skipped("files that the manifest does not name", unnamed, "no claim is about them")
    for key, value in manifest.items():
        why = NOT_REPEATED.get(key, "this version knows no such entry")
        if key not in (*READ_HERE, LOSSES) and value not in (None, {}):
            yield skipped(key, value, why)
    for key, value in manifest["supernet"].items():
        if key != "sha256":
            yield skipped(f"supernet, {key}", value, "what people call it")


def _losses(manifest: Mapping[str, Any], networks: Sequence[Specialized]) -> Claim:
    """The sentences on exports that lose too much, of the scores that the manifest says."""
    most, plain = manifest["max_drop"], all(any(x.precision == "fp32" for x in n.exports) for n in networks)
    if not is_number(most) or not plain:
        return skipped(LOSSES, manifest[LOSSES], "they follow from scores that are not in the manifest")
    found = losses(networks, score_in(manifest), most, lambda network: value_of(network.test_score))
    return same_json(LOSSES, manifest[LOSSES], found)


def made_here_export(name: str, precision: str, threads: int) -> exports.Export | str:
    """An export by its name, or why there is none here."""
    try:
        return exports.by_name(name, threads, precision)
    except OFAError as error:
        return str(error)


def made_here(name: str, precision: str, threads: int) -> Device | str:
    """What runs an export, or why nothing here does."""
    made = made_here_export(name, precision, threads)
    return made if isinstance(made, str) else made.device or made.problem
