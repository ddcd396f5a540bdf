"""Specialise a supernet for a device: search, extract, calibrate, export, quantise, measure, and say what came out.

Which images decide what: the predictor learnt from the label images; the best candidates of a
search, and the precision to use, are judged on the label images again; the test images are used once,
at the end, on what was chosen.
"""

from __future__ import annotations

import contextlib
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from onceforall.architecture import Architecture
from onceforall.cost.bounds import parse_bound
from onceforall.cost.model import Constraint
from onceforall.data.dataset import Data, as_described, described_input, identity
from onceforall.deploy.call import Call, FinishedSteps, Report, silent
from onceforall.deploy.card import card
from onceforall.deploy.choosing import Choosing
from onceforall.deploy.exports import DeviceExport, Export
from onceforall.deploy.finishing import exported_further, finetuned, in_torch, losses, verified
from onceforall.deploy.manifest import (
    CARD,
    CORRECTION,
    FORMATS,
    LATENCY,
    PREDICTOR,
    Number,
    Specialization,
    Specialized,
    folder_name,
)
from onceforall.deploy.precision import choose_precision, keep_sensitive, quantized
from onceforall.deploy.reading import named_files
from onceforall.deploy.twins import Latency, Twins, changes, check_precision, fit_predictor, latency_model
from onceforall.devices.device import Device
from onceforall.devices.measure import describe_machine
from onceforall.errors import InvalidConfiguration, UnwritableOutput
from onceforall.files import as_json, owned, read_json_object, read_jsonl, unwritable, write_atomically, write_json
from onceforall.nn.supernet import Supernet
from onceforall.predict.accuracy import save_predictor
from onceforall.predict.corrected import FEWEST, CorrectedPredictor
from onceforall.predict.labels import Label
from onceforall.results import MANIFEST, UNFINISHED, check_ours, publish
from onceforall.search.limits import Limits
from onceforall.tasks import task_of

STEPS = "steps.jsonl"
WHAT = "specialisation"  # for messages
PACKAGES = (
    "onceforall", "torch", "numpy", "onnx", "onnxruntime", "openvino", "nncf", "ncnn", "ai-edge-litert", "executorch",
)  # fmt: skip


def specialize(
    supernet: Supernet,
    labels: Sequence[Label],
    data: Data,
    device: Device | None,
    out: str | Path,
    *,
    budgets: Sequence[str] = ("40%", "60%", "80%"),
    architectures: Sequence[Architecture] = (),
    limits: Sequence[Constraint] = (),
    table: Latency | None = None,
    quantize: str | None = None,
    max_drop: float = 0.5,
    quantized_labels: int = 0,
    full_int8: bool = False,
    exports: Sequence[Export | Device] = (),
    finetune: int = 0,
    candidates: int = 4,
    seed: int = 0,
    about: dict[str, Any] | None = None,
    data_source: str | None = None,
    report: Report = silent,
) -> Specialization:
    """Specialised networks for latency budgets on a device, exported to `out`, verified, with a manifest.

    `architectures` are specialised as they are, without a budget. Beside each network that a budget
    finds stand the best uniform network within the same budget, and the largest network. limits: further
    constraints of every search, of any cost. `candidates`: how many of a search's best networks are
    measured on the label images. A network of which no export holds its budget when it is measured is
    replaced: the search is repeated with a bound tightened by the excess, three times at most.

    Without budgets the limits alone decide, and no latency model is needed or made. Without a device
    (None) nothing is timed beside the exports that can be: what is written are `exports`, of which the first
    is the one to use.

    quantize: a precision of the device, "int8" or "bf16". Where it is no faster than fp32 there, the
    searches are for fp32, and the manifest says so. Every network is exported in both; the fastest export is
    the one to use which holds the budget and loses at most `max_drop` of the score on the label images: one that
    loses more is never used, and the manifest's `losses` name every export that does so on the test images. Layers
    stay in fp32 in int8 networks where that makes the largest network more accurate on the label images
    (`keep_sensitive` says which are tried), unless `full_int8` asks for every layer in int8, as accelerators without
    floating point need it.
    quantized_labels: how many sub-networks are labelled in that precision, on the device, to correct the
    accuracy predictor before a search.
    finetune: epochs for which what was searched or given goes on training, after it was chosen.
    exports: further runtimes and formats that every network is written for (`exports.by_name`), verified where
    they can be run here; of several with one name and precision, and of the device's own, one is written.

    The manifest says about the supernet what is in `about`, and by `data_source` how `open_data` finds the data.

    A call that was interrupted goes on where it stopped, when it is repeated. Finished results in `out`, and all
    their files, stay as they are until the new ones are complete. Raises InfeasibleConstraint where a budget is below
    what the space reaches on this device, InvalidConfiguration where `out` holds a manifest.json of something else,
    UnwritableOutput where `out` cannot be written, or another call does that.
    """
    out, began = Path(out), time.perf_counter()
    asked = [DeviceExport(export) if isinstance(export, Device) else export for export in exports]
    _check_names(supernet, budgets, architectures)
    _check_exports(device, asked, budgets)
    task_of(data).check(supernet, data)
    if finetune < 0:
        raise InvalidConfiguration(f"finetune {finetune}: expected a number of epochs, or 0 for none")
    if candidates < 1:
        raise InvalidConfiguration(f"candidates {candidates}: expected at least 1")
    if not 0 <= max_drop < math.inf:
        raise InvalidConfiguration(f"max_drop {max_drop}: expected points of the score, at least 0")
    if quantized_labels and min(quantized_labels, len(labels)) < FEWEST:
        raise InvalidConfiguration(
            f"quantized_labels {quantized_labels} of {len(labels)} labels: expected 0, or at least {FEWEST}"
        )
    low = quantized(device, quantize)
    if table is not None and device is not None and low is None:
        check_precision(table, device.precision)
    _check_reachable(supernet, budgets, limits, table)
    for header in read_jsonl(out / STEPS)[:1]:
        data = as_described(data, header.get("data"))
    given = {"supernet": about or {}, "space": supernet.space.to_json(), "data": identity(data)}
    of_call = {**given, "device": device.identity() if device else None, "seed": seed}
    check_ours(out, FORMATS, WHAT)
    with owned(out, WHAT):
        _complete(out)
        done = FinishedSteps(out / STEPS, of_call, task_of(data).score)
        (out / UNFINISHED).mkdir(exist_ok=True)
        call = Call(supernet, labels, data, out / UNFINISHED, done, seed, report, out / "finetune")

        predictor, quality = fit_predictor(call)
        precisions = choose_precision(call, device, low, full_int8, max_drop)
        target, correction, latency = precisions.target, None, None
        if table is not None or (target is not None and (budgets or not limits)):
            latency = latency_model(call, target, table)
        if target is not None and target.precision != "fp32" and quantized_labels:
            correction = CorrectedPredictor(predictor).fit(*changes(call, target, quantized_labels))
            correction.save(call.out / CORRECTION)
        save_predictor(call.out / PREDICTOR, predictor)
        own = precisions.exports
        different = {(export.name, export.precision): export for export in asked}  # as their files are called
        for export in own:
            different.pop((export.name, export.precision), None)
        further = [_keeping_sensitive(call, export, full_int8, max_drop) for export in different.values()]
        first = own or further[:1]

        twins = Twins(predictor, quality, correction, latency)
        choosing = Choosing(call, twins, precisions, first, limits, max_drop, candidates)
        networks = choosing.networks(budgets, architectures)
        if finetune:
            networks = finetuned(choosing, networks, finetune)
        networks = exported_further(call, networks, [export for export in further if export not in first])
        networks = _with_given(call, verified(call, networks))
        result = Specialization(
            networks,
            target.describe() if target else None,
            latency,
            quality,
            correction is not None,
            labels,
            call.score,
            {
                **given,
                "data_source": data_source,
                "input": described_input(data),
                "machine": {"threads": (device or asked[0]).threads, **describe_machine()},
                "limits": [str(constraint) for constraint in limits],
                "quantize": precisions.comparison,
                "sensitivity": call.sensitivity,
                "max_drop": max_drop,
                "losses": losses(networks, call.score, max_drop, lambda network: in_torch(call, network).value),
                "seed": seed,
                "seconds": time.perf_counter() - began,
                "versions": versions(),
            },
        )
        manifest = as_json(result.to_json())
        write_atomically(call.out / CARD, card(manifest, networks))
        write_json(call.out / MANIFEST, manifest)
        call.done.remove()
        publish(out, named_files)
    return result


def _check_names(supernet: Supernet, budgets: Sequence[str], architectures: Sequence[Architecture]) -> None:
    """Raises InvalidConfiguration or InvalidArchitecture for what would only fail after minutes of measuring."""
    names: dict[str, str] = {}
    for text in budgets:
        parse_bound(text, "ms", 1.0, "budget")
        name = folder_name("searched", text)
        if name in names:
            raise InvalidConfiguration(f"budgets {names[name]!r} and {text!r} are the same: give one of them")
        names[name] = text
    for arch in architectures:
        supernet.space.validate(arch)


def _check_reachable(
    supernet: Supernet, budgets: Sequence[str], limits: Sequence[Constraint], table: Latency | None
) -> None:
    """Raises InfeasibleConstraint for bounds that nothing can meet, as far as that is known before the first minute.

    A share of the largest network's latency is known when that is measured.
    """
    bounds = [parse_bound(text, "ms", math.nan, "budget") for text in budgets] if table is not None else []
    known = [bound for bound in bounds if not math.isnan(bound)]
    for bound in known:
        assert table is not None
        Limits(supernet.space, [table.at_most(bound), *limits])
    if limits and not known:
        Limits(supernet.space, limits)


def _complete(out: Path) -> None:
    """Put in place what a killed call had completed; and let one go on that an older version began.

    That wrote its results where they were to be: what it has left moves to where it goes on.
    """
    steps, unfinished, manifest = out / STEPS, out / UNFINISHED, out / MANIFEST
    try:
        if (unfinished / MANIFEST).exists():
            steps.unlink(missing_ok=True)
            publish(out, named_files)
        elif steps.exists() and manifest.exists() and read_json_object(manifest).get("state") == "running":
            unfinished.mkdir(exist_ok=True)
            for path in (out / LATENCY, out / "latency.part"):
                if path.exists():
                    path.rename(unfinished / path.name)
        elif not unfinished.is_dir():  # what the steps have made is gone
            steps.unlink(missing_ok=True)
    except OSError as error:
        raise error if isinstance(error, UnwritableOutput) else unwritable(out, error) from error


def _with_given(call: Call, networks: Sequence[Specialized]) -> list[Specialized]:
    """The networks, whose label scores of fp32 are said to be given where the labels had them."""
    given = {label.architecture for label in call.labels}

    def said(network: Specialized) -> Specialized:
        if network.finetuning or network.architecture not in given:
            return network
        exports = [
            replace(export, label_score=as_given(export.label_score)) if export.precision == "fp32" else export
            for export in network.exports
        ]
        return replace(network, label_score=as_given(network.label_score), exports=tuple(exports))

    def as_given(score: Number | None) -> Number | None:
        return score and replace(score, kind="given")

    return [said(network) for network in networks]


def _check_exports(device: Device | None, exports: Sequence[Export], budgets: Sequence[str]) -> None:
    if device is None and budgets:
        raise InvalidConfiguration(
            f"budgets {', '.join(budgets)} are of a latency, and there is no device to measure it on: give one, or "
            "budgets=() and limits"
        )
    if device is None and not exports:
        raise InvalidConfiguration("neither a device nor exports: nothing would be written; give one of them")
    for export in exports:
        if export.device is not None and not export.device.is_here:
            raise InvalidConfiguration(
                f"further export {export.name}: another machine's runtime can only be what is specialised for; "
                f"make it the device, or export to {export.name.partition('@')[0]}, timed here"
            )


def _keeping_sensitive(call: Call, export: Export, full_int8: bool, max_drop: float) -> Export:
    """The export, which keeps layers of int8 networks in fp32 where its device can and that scores better."""
    if export.device is None:
        return export
    device = keep_sensitive(call, export.device, full_int8, max_drop)
    return export if device is export.device else DeviceExport(device)


def versions() -> dict[str, str]:
    """Of what took part in the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
