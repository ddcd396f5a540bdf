"""Specialise a supernet for a device: search, extract, calibrate, export, quantise, measure, and say what came out.

Which images decide what: the predictor learnt from the label images; the best candidates of a
search, and the precision to use, are judged on the label images again; the test images are used once,
at the end, on what was chosen.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from onceforall.architecture import Architecture
from onceforall.cost.latency import LatencyTable
from onceforall.cost.learned import LearnedLatency
from onceforall.cost.model import Constraint
from onceforall.profiling.profile import profile
from onceforall.cost.saved import load_latency
from onceforall.data.dataset import Data, described_input
from onceforall.deploy.budgets import parse_budget
from onceforall.deploy.card import write_card
from onceforall.deploy.job import Job
from onceforall.deploy.manifest import FORMAT, LATENCY, Specialization, folder_name
from onceforall.deploy.steps import FinishedSteps
from onceforall.devices.device import Device
from onceforall.errors import InvalidConfiguration
from onceforall.files import write_json
from onceforall.nn.supernet import Supernet
from onceforall.predict.accuracy import save_predictor
from onceforall.predict.labels import Label

Report = Callable[[str, int, int], None]

PACKAGES = (
    "onceforall", "torch", "numpy", "onnx", "onnxruntime", "openvino", "nncf", "ncnn", "ai-edge-litert", "executorch",
)  # fmt: skip


def specialize(
    supernet: Supernet,
    labels: Sequence[Label],
    data: Data,
    device: Device,
    out: str | Path,
    *,
    budgets: Sequence[str] = ("40%", "60%", "80%"),
    architectures: Sequence[Architecture] = (),
    limits: Sequence[Constraint] = (),
    table: LatencyTable | LearnedLatency | None = None,
    quantize: str | None = None,
    max_drop: float = 0.5,
    quantized_labels: int = 0,
    full_int8: bool = False,
    exports: Sequence[Device] = (),
    standalone: bool = False,
    finetune: int = 0,
    candidates: int = 4,
    seed: int = 0,
    about: dict[str, Any] | None = None,
    report: Report = lambda step, done, total: None,
) -> Specialization:
    """Specialised networks for latency budgets on a device, exported to `out`, verified, with a manifest.

    `architectures` are specialised as they are, without a budget. Beside each network that a budget
    finds stand the best uniform network within the same budget, and the largest network. limits: further
    constraints of every search, as on memory. `candidates`: how many of a search's best networks are
    measured on the label images. A network of which no export holds its budget when it is measured is
    replaced: the search is repeated with a bound tightened by the excess, three times at most.

    quantize: a precision of the device, "int8" or "bf16". Where it is no faster than fp32 there, the
    searches are for fp32, and the manifest says so. Every network is exported in both; the fastest export is
    the one to use which holds the budget and loses at most `max_drop` points of top-1 on the label images. First
    layers stay in fp32 in int8 networks where that makes the largest network more accurate on those images, unless
    `full_int8` asks for every layer in int8, as accelerators without floating point need it.
    quantized_labels: how many sub-networks are labelled in that precision, on the device, to correct the
    accuracy predictor before a search.
    finetune: epochs for which what was searched or given goes on training, after it was chosen.
    exports: further runtimes that every network is exported to and verified in. standalone: whether every
    network is written as Python code that needs torch and safetensors alone, too.

    A call that was interrupted goes on where it stopped, when it is repeated. Raises InfeasibleConstraint
    where a budget is below what the space reaches on this device, UnwritableOutput where `out` cannot be written.
    """
    out = Path(out)
    _check(supernet, budgets, architectures, finetune, exports)
    if table is not None and quantize is None:
        _check_precision(table, device.precision)
    began = time.perf_counter()
    identity = {
        "supernet": about or {},
        "space": supernet.space.to_json(),
        "data": data.describe(),
        "device": device.identity(),
        "seed": seed,
    }
    job = Job(
        supernet, labels, data, device, out, FinishedSteps(out / "steps.jsonl", identity),
        limits=limits, quantize=quantize, max_drop=max_drop, full_int8=full_int8, candidates=candidates,
        seed=seed, report=report,
    )  # fmt: skip
    # Not before what is asked for is known to make sense: a finished folder's manifest goes here.
    write_json(out / "manifest.json", {"format": FORMAT, "state": "running"})
    report("accuracy predictor", 0, 1)
    job.fit()
    report("accuracy predictor", 1, 1)
    comparison = job.choose_precision()
    job.table = _latency_model(job, table, out, report)
    if job.target.precision != "fp32" and quantized_labels:
        job.correct_predictor(quantized_labels)
    save_predictor(out / "predictor.safetensors", job.predictor)

    networks = job.networks(budgets, architectures)
    if finetune:
        job.finetune(networks, finetune)
    job.export_further(networks, exports)
    if standalone:
        job.export_standalone(networks)
    job.verify(networks)
    result = Specialization(
        networks,
        job.target.describe(),
        job.table,
        job.quality,
        job.correction is not None,
        labels,
        {
            "supernet": about or {},
            "space": supernet.space.to_json(),
            "data": data.describe(),
            "input": described_input(data),
            "limits": [str(constraint) for constraint in limits],
            "quantize": comparison,
            "sensitivity": job.sensitivity,
            "max_drop": max_drop,
            "seed": seed,
            "seconds": time.perf_counter() - began,
            "versions": _versions(),
        },
    )
    write_json(out / "manifest.json", result.to_json())
    write_card(out)
    job.done.remove()
    return result


def _check(
    supernet: Supernet,
    budgets: Sequence[str],
    architectures: Sequence[Architecture],
    finetune: int,
    exports: Sequence[Device],
) -> None:
    """Raises InvalidConfiguration or InvalidArchitecture for what would only fail after minutes of measuring."""
    names: dict[str, str] = {}
    for text in budgets:
        parse_budget(text, 1.0)
        name = folder_name("searched", text)
        if name in names:
            raise InvalidConfiguration(f"budgets {names[name]!r} and {text!r} are the same: give one of them")
        names[name] = text
    for arch in architectures:
        supernet.space.validate(arch)
    if finetune < 0:
        raise InvalidConfiguration(f"finetune {finetune}: expected a number of epochs, or 0 for none")
    for device in exports:
        if not device.is_here:
            raise InvalidConfiguration(
                f"further export {device.name}: another machine's runtime can only be what is specialised for; "
                f"make it the device, or export to {device.name.partition('@')[0]}, timed here"
            )


def _check_precision(table: LatencyTable | LearnedLatency, precision: str) -> None:
    made_in = table.device.get("precision", precision)
    if made_in != precision:
        raise InvalidConfiguration(
            f"the latency model was measured in {made_in}, the networks will run in {precision}: give one "
            f"of `ofa profile --precision {precision}`, or none"
        )


def _latency_model(
    job: Job, table: LatencyTable | LearnedLatency | None, out: Path, report: Report
) -> LatencyTable | LearnedLatency:
    """The given one, one that an interrupted call made, or a new one; it is saved beside the results."""
    path = out / LATENCY
    if table is None:

        def make() -> str:
            made = profile(
                job.space,
                job.target,
                seed=job.seed,
                progress=out / "latency.part",
                report=lambda step, done, total: report(f"latency: {step}", done, total),
            )
            made.save(path)
            return job.target.precision

        job.done.once(f"latency {job.target.precision}", make)
        found = load_latency(path)
        assert isinstance(found, LatencyTable | LearnedLatency)
        return found
    _check_precision(table, job.target.precision)
    table.save(path)
    return table


def _versions() -> dict[str, str]:
    """Of what took part in the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
