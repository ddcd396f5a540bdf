"""Question: does what is exported do what was promised, in every runtime and precision that works here?

On the shipped CIFAR-10 supernet, on this machine's processor, one thread, batch 1:

* networks: searches for `--networks` latency budgets along the front of ONNX Runtime fp32, as `ofa specialize` does
  them: a network that misses its budget when it is measured is replaced. Measured latency over budget, right after and
  again at the end, at another moment. Aim: within +2 % of the budget in 9 of 10.
* exports: those networks in every runtime and precision: parity with torch (1e-4 in fp32), top-1 on all test images by
  the files in their runtime, drop against torch's fp32, latency over that of fp32 in the same runtime (interleaved),
  Kendall's tau between fp32 and quantised top-1 over the networks. Aims: int8 drop at most 0.5 points on average, tau
  at least 0.9. int8 networks keep those first layers in fp32 that `specialize` measures to be sensitive (label images),
  where the runtime can; the drop without that is printed beside it.
* quantisation-aware (--aware): budgets in int8 latency on --aware's runtime. One search knows int8 latency and int8
  accuracy (the predictor corrected by --labels sub-networks, labelled in int8 on the label images), another knows fp32
  alone (latency budget divided by the median ratio) and quantises what it finds. Both networks in int8: latency and
  test top-1. Does it pick better networks?
* space (--space): --labels networks of every accuracy in fp32 and int8, on the label images: does int8 rank them alike?

Prints tables, and one line of JSON last; --out writes that as well.

    python benchmarks/deploy.py                                     # runtimes that are installed
    python benchmarks/deploy.py --devices onnxruntime openvino --aware openvino
    python benchmarks/deploy.py --space onnxruntime:int8 openvino:int8
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau

import onceforall as ofa
from onceforall import devices, zoo
from onceforall.cost.latency import LatencyTable
from onceforall.cost.learned import LearnedLatency
from onceforall.cost.profile import WHOLE, image_shape, profile
from onceforall.deploy.exporting import read_files
from onceforall.deploy.job import Job
from onceforall.deploy.manifest import Network
from onceforall.deploy.steps import FinishedSteps
from onceforall.devices.device import Device
from onceforall.devices.timing import time_turns
from onceforall.files import write_json
from onceforall.report.progress import Steps
from onceforall.search.evolution import search

console = Console(stderr=True, width=150)
Model = LatencyTable | LearnedLatency


def job_on(device: Device, quantize: str | None, entry: zoo.Entry, data: Any, out: Path, report: Any) -> Job:
    """The steps of `ofa specialize` on a device, with a fitted predictor."""
    job = Job(
        entry.supernet, entry.labels, data, device, out, FinishedSteps(out / "steps.jsonl", {"device": device.name}),
        limits=(), quantize=quantize, max_drop=100.0, full_int8=False, candidates=2, seed=0, report=report,
    )  # fmt: skip
    job.fit()
    return job


def along_the_front(job: Job, count: int) -> list[Network]:
    """Networks for budgets between the smallest and the largest, and their latency right after the choice."""
    least, most = (job.table.cost(job.space.lower(arch)) for arch in (job.space.smallest(), job.space.largest()))
    budgets = np.linspace(least + 0.1 * (most - least), 0.95 * most, count).tolist()
    return job.hold_budgets([job.searched(f"{ms:.3f} ms", ms, ms) for ms in budgets])


def exported(
    networks: Sequence[Network], targets: Sequence[Device], entry: zoo.Entry, data: Any, folder: Path, report: Any
) -> list[dict[str, Any]]:
    """One row a runtime and precision: errors, drops and latency ratios over the networks."""
    rows: list[dict[str, Any]] = []
    reference = np.array([network.export.test_top1 for network in networks])
    for name in dict.fromkeys(device.name for device in targets):
        own = [device for device in targets if device.name == name]
        fp32 = next(device for device in own if device.precision == "fp32")
        loads, found = [], []
        for device in own:
            quantised = None if device.precision == "fp32" else device.precision
            job = job_on(fp32, quantised, entry, data, folder / f"{name}-{device.precision}", report)
            chosen = job.choose_kept(device)
            judged, without, size = [], [], []
            for index, network in enumerate(networks):
                report(f"{name} {device.precision}", index, len(networks))
                arch = network.architecture
                export = job.exporter.export(f"n{index}", arch, chosen)
                files = read_files(job.out, export.files)
                judged.append(job.exporter.judge(arch, device, files, "test"))
                size.append(export.bytes)
                if chosen.kept:
                    plain = job.exporter.convert(arch, device)
                    without.append(job.exporter.judge(arch, device, plain, "test").top1)
                loads.append(device.loader(files, image_shape(arch)))
            report(f"{name} {device.precision}", len(networks), len(networks))
            top1 = [each.top1 for each in judged]
            found.append(
                {
                    "device": name,
                    "precision": device.precision,
                    "runtime": device.describe()["runtime"],
                    "kept": list(chosen.kept),
                    "sensitivity": job.sensitivity.get(name, []),
                    "parity": max(each.parity for each in judged),
                    "agreement": round(float(np.mean([each.agreement for each in judged])), 2),
                    "drop": round(float(np.mean(reference - top1)), 3),
                    "worst_drop": round(float(np.max(reference - top1)), 2),
                    "drop_all_layers": round(float(np.mean(reference - without)), 3) if without else None,
                    "tau": round(float(kendalltau(reference, top1).statistic), 3),
                    "top1": top1,
                    "kib": round(float(np.mean(size)) / 1024),
                }
            )
        ms = np.median(time_turns(loads, WHOLE), axis=1).reshape(len(own), len(networks))
        base = ms[[device.precision for device in own].index("fp32")]
        for row, times in zip(found, ms, strict=True):
            row["latency_ratio"] = round(float(np.median(times / base)), 3)
            row["latency_ms"] = [round(float(t), 4) for t in times]
            console.print(row)
        rows += found
    return rows


def over_the_space(
    target: Device, entry: zoo.Entry, data: Any, folder: Path, count: int, report: Any
) -> dict[str, Any]:
    """Rank agreement of fp32 and int8 over networks of every accuracy, not those of the front alone; label images."""
    fp32 = target.with_precision("fp32")
    job = job_on(fp32, target.precision, entry, data, folder / f"space-{target.name}-{target.precision}", report)
    device = job.choose_kept(target)
    archs, changes = job.changes(device, count)
    before = np.array([job.label_top1[arch] for arch in archs])
    return {
        "device": target.name,
        "precision": target.precision,
        "kept": list(device.kept),
        "networks": len(archs),
        "fp32_top1": [float(before.min()), float(before.max())],
        "drop": round(-float(np.mean(changes)), 3),
        "worst_drop": round(-float(np.min(changes)), 2),
        "tau": round(float(kendalltau(before, before + changes).statistic), 3),
    }


def quantisation_aware(
    name: str, entry: zoo.Entry, data: Any, folder: Path, count: int, labels: int, report: Any
) -> dict[str, Any]:
    """Networks for int8 budgets, by a search that knows int8 and by one that knows fp32, both measured in int8."""
    job = job_on(devices.by_name(name), "int8", entry, data, folder / "aware", report)
    assert job.low is not None
    comparison = job.choose_precision()
    job.target = job.low
    models: dict[str, Model] = {}
    for device in (job.low, job.device):
        models[device.precision] = profile(
            job.space, device, report=lambda step, done, total, d=device: report(f"{d.precision}: {step}", done, total)
        )
    job.table = models["int8"]
    job.correct_predictor(labels)
    assert job.correction is not None
    random = [job.space.lower(job.space.sample(np.random.default_rng(seed))) for seed in range(50)]
    ratio = float(np.median([models["int8"].cost(layers) / models["fp32"].cost(layers) for layers in random]))
    least, most = (models["int8"].cost(job.space.lower(arch)) for arch in (job.space.smallest(), job.space.largest()))
    rows, jobs = [], []
    for ms in np.linspace(least + 0.15 * (most - least), 0.9 * most, count):
        aware = search(job.space, job.correction, [models["int8"].at_most(float(ms))]).architecture
        after = search(job.space, job.predictor, [models["fp32"].at_most(float(ms / ratio))]).architecture
        row: dict[str, Any] = {"budget_ms": round(float(ms), 4)}
        for kind, arch in (("aware", aware), ("after", after)):
            files = job.exporter.convert(arch, job.low)
            row[f"{kind}_top1"] = job.exporter.judge(arch, job.low, files, "test").top1
            row[f"{kind}_fp32_top1"] = ofa.top1(job.exporter.plain(arch), data.batches("test", arch.resolution))
            jobs.append(job.low.loader(files, image_shape(arch)))
        rows.append(row)
    ms = np.median(time_turns(jobs, WHOLE), axis=1).reshape(-1, 2)
    for row, times in zip(rows, ms, strict=True):
        row["aware_ms"], row["after_ms"] = (round(float(t), 4) for t in times)
    gain = [row["aware_top1"] - row["after_top1"] for row in rows]
    drops = job.correction.changes
    console.print(*rows, sep="\n")
    return {
        "device": job.low.describe()["runtime"],
        "comparison": comparison,
        "labels": labels,
        "change_mean": round(float(np.mean(drops)), 3),
        "change_std": round(float(np.std(drops)), 3),
        "ratio": round(ratio, 3),
        "rows": rows,
        "gain_mean": round(float(np.mean(gain)), 3),
        "gain_std": round(float(np.std(gain)), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=10)
    parser.add_argument("--devices", nargs="+", help="runtimes; default: all that work here")
    parser.add_argument("--aware", metavar="DEVICE", help="quantisation-aware search against quantising after")
    parser.add_argument("--space", nargs="+", metavar="DEVICE:PRECISION", help="rank agreement over the space alone")
    parser.add_argument("--labels", type=int, default=32, help="sub-networks labelled in int8")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    entry, data = zoo.load("cifar10"), ofa.open_data(options.data, console.print)
    working = {status.name: status.working for status in devices.status() if not status.name.startswith("torch-")}
    targets = [
        devices.by_name(name, 1, precision)
        for name, precisions in working.items()
        for precision in precisions
        if name in (options.devices or working)
    ]
    with tempfile.TemporaryDirectory() as temporary, Steps(console) as report:
        folder = Path(temporary)
        if options.space:
            chosen = [devices.by_name(name, 1, precision) for name, precision in (s.split(":") for s in options.space)]
            found = [over_the_space(each, entry, data, folder, options.labels, report) for each in chosen]
            write({"benchmark": "deploy", "space": found}, options.out)
            return
        began = time.perf_counter()
        device = devices.by_name("onnxruntime")
        job = job_on(device, None, entry, data, folder / "front", report)
        job.table = profile(job.space, device, report=report)
        networks = along_the_front(job, options.networks)
        first = [network.measured_latency_ms / (network.budget_ms or 1) for network in networks]
        job.verify(networks)
        seconds = time.perf_counter() - began
        rows = exported(networks, targets, entry, data, folder, report)
        aware = None
        if options.aware:
            aware = quantisation_aware(options.aware, entry, data, folder, 5, options.labels, report)
        job.measure_latency(networks)
        later = [network.measured_latency_ms / (network.budget_ms or 1) for network in networks]
    table = Table("runtime", "parity", "as torch %", "drop", "worst", "drop, all layers", "tau", "of fp32", "KiB")
    for row in rows:
        cells = [
            row[key] for key in ("agreement", "drop", "worst_drop", "drop_all_layers", "tau", "latency_ratio", "kib")
        ]
        table.add_row(f"{row['device']} {row['precision']}", f"{row['parity']:.1e}", *map(str, cells))
    console.print(table)
    result = {
        "benchmark": "deploy",
        "machine": device.describe(),
        "networks": [network.to_json() for network in networks],
        "seconds": round(seconds, 1),
        "over_budget": [round(float(value), 4) for value in first],
        "over_budget_later": [round(float(value), 4) for value in later],
        "within_2_percent": sum(value <= 1.02 for value in first),
        "within_2_percent_later": sum(value <= 1.02 for value in later),
        "exports": rows,
        "aware": aware,
    }
    write(result, options.out)


def write(result: dict[str, Any], out: Path | None) -> None:
    if out:
        write_json(out, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
