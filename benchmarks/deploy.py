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
* int8 (--int8): the largest network and what searches find within 8.06 and 10.8 MMACs, with the layers in fp32 that
  `specialize` chooses on the label images; drop on all test images, nothing timed. Aim: at most 0.5 points each.

Prints tables, and one line of JSON last; --out writes that as well.

    python benchmarks/deploy.py                                     # runtimes that are installed
    python benchmarks/deploy.py --devices onnxruntime openvino --aware openvino
    python benchmarks/deploy.py --space onnxruntime:int8 openvino:int8
    python benchmarks/deploy.py --int8 litert-builtin onnxruntime
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
from onceforall.deploy.call import Call, FinishedSteps
from onceforall.deploy.choosing import Choosing
from onceforall.deploy.exporting import read_files
from onceforall.deploy.exports import DeviceExport
from onceforall.deploy.finishing import verified
from onceforall.deploy.manifest import Specialized
from onceforall.deploy.precision import Precisions, choose_precision, keep_sensitive
from onceforall.deploy.twins import Latency, Twins, changes, fit_predictor
from onceforall.devices.device import Device
from onceforall.devices.timing import time_turns
from onceforall.files import write_json
from onceforall.predict.corrected import CorrectedPredictor
from onceforall.profiling.measuring import WHOLE, image_shape
from onceforall.profiling.profile import profile
from onceforall.report.progress import Steps
from onceforall.search.evolution import search

MAX_DROP = 0.5  # as `ofa specialize` has it
console = Console(stderr=True, width=150)


def call_on(name: str, entry: zoo.Entry, data: Any, out: Path, report: Any) -> Call:
    """What the steps of `ofa specialize` share, in a folder of their own."""
    done = FinishedSteps(out / "steps.jsonl", {"device": name})
    return Call(entry.supernet, entry.labels, data, out, done, 0, report)


def choosing_on(call: Call, precisions: Precisions, latency: Latency) -> Choosing:
    """How `ofa specialize` chooses networks, with a fitted predictor."""
    twins = Twins(*fit_predictor(call), latency=latency)
    return Choosing(call, twins, precisions, precisions.exports, candidates=2)


def along_the_front(choosing: Choosing, count: int) -> list[Specialized]:
    """Networks for budgets between the smallest and the largest, and their latency right after the choice."""
    space, latency = choosing.call.space, choosing.twins.latency
    assert latency is not None
    least, most = (latency.cost(space.lower(arch)) for arch in (space.smallest(), space.largest()))
    budgets = np.linspace(least + 0.1 * (most - least), 0.95 * most, count).tolist()
    return choosing.hold_budgets(
        [choosing.network("searched", f"{ms:.3f} ms", ms, choosing.searched(ms)) for ms in budgets]
    )


def exported(
    networks: Sequence[Specialized], targets: Sequence[Device], entry: zoo.Entry, data: Any, folder: Path, report: Any
) -> list[dict[str, Any]]:
    """One row a runtime and precision: errors, drops and latency ratios over the networks."""
    rows: list[dict[str, Any]] = []
    reference = np.array([network.measured_score for network in networks])
    for name in dict.fromkeys(device.name for device in targets):
        own = [device for device in targets if device.name == name]
        loads, found = [], []
        for device in own:
            call = call_on(name, entry, data, folder / f"{name}-{device.precision}", report)
            exporter, chosen = call.exporter, keep_sensitive(call, device, False, MAX_DROP)
            judged, without, size = [], [], []
            for index, network in enumerate(networks):
                report(f"{name} {device.precision}", index, len(networks))
                arch = network.architecture
                export = exporter.export(f"n{index}", arch, DeviceExport(chosen))
                files = read_files(call.out, export.files)
                judged.append(exporter.judge(arch, device, files, "test"))
                size.append(export.bytes)
                if chosen.kept:
                    plain = exporter.convert(arch, device)
                    without.append(exporter.judge(arch, device, plain, "test").score)
                loads.append(device.loader(files, image_shape(arch)))
            report(f"{name} {device.precision}", len(networks), len(networks))
            top1 = [each.score for each in judged]
            found.append(
                {
                    "device": name,
                    "precision": device.precision,
                    "runtime": device.describe()["runtime"],
                    "kept": list(chosen.kept),
                    "sensitivity": call.sensitivity.get(name, []),
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
    call = call_on(target.name, entry, data, folder / f"space-{target.name}-{target.precision}", report)
    device = keep_sensitive(call, target, False, MAX_DROP)
    archs, lost = changes(call, device, count)
    before = np.array([call.label_score(arch) for arch in archs])
    return {
        "device": target.name,
        "precision": target.precision,
        "kept": list(device.kept),
        "networks": len(archs),
        "fp32_top1": [float(before.min()), float(before.max())],
        "drop": round(-float(np.mean(lost)), 3),
        "worst_drop": round(-float(np.min(lost)), 2),
        "tau": round(float(kendalltau(before, before + lost).statistic), 3),
    }


def int8_drops(name: str, entry: zoo.Entry, data: Any, folder: Path, report: Any) -> dict[str, Any]:
    """What three networks lose in int8 on all test images."""
    target = devices.by_name(name, 1, "int8")
    call = call_on(name, entry, data, folder / f"int8-{name}", report)
    predictor, _ = fit_predictor(call)
    bounds = [ofa.MACs().at_most(most) for most in (8.06e6, 10.8e6)]
    archs = [call.space.largest(), *(search(call.space, predictor, [bound]).architecture for bound in bounds)]
    device = keep_sensitive(call, target, False, MAX_DROP)
    rows = []
    for arch in call.each(f"{name} int8 on test images", archs):
        before = call.exporter.in_torch(arch, "test")
        judged = call.exporter.judge(arch, device, call.exporter.convert(arch, device), "test")
        drop = round(before - judged.score, 2)
        rows.append({"network": str(arch), "fp32": before, "int8": judged.score, "drop": drop})
        console.print(name, rows[-1])
    about = device.describe()
    return {"device": name, "runtime": about["runtime"], "kept": [*device.kept], **call.sensitivity, "networks": rows}


def quantisation_aware(
    name: str, entry: zoo.Entry, data: Any, folder: Path, count: int, labels: int, report: Any
) -> dict[str, Any]:
    """Networks for int8 budgets, by a search that knows int8 and by one that knows fp32, both measured in int8."""
    call, plain = call_on(name, entry, data, folder / "aware", report), devices.by_name(name)
    precisions = choose_precision(call, plain, plain.with_precision("int8"), full_int8=False, max_drop=MAX_DROP)
    low, exporter, space = precisions.low, call.exporter, call.space
    assert low is not None
    models: dict[str, Latency] = {}
    for device in (low, plain):
        models[device.precision] = profile(
            space, device, report=lambda step, done, total, d=device: report(f"{d.precision}: {step}", done, total)
        )
    predictor, _ = fit_predictor(call)
    correction = CorrectedPredictor(predictor).fit(*changes(call, low, labels))
    random = [space.lower(space.sample(np.random.default_rng(seed))) for seed in range(50)]
    ratio = float(np.median([models["int8"].cost(layers) / models["fp32"].cost(layers) for layers in random]))
    least, most = (models["int8"].cost(space.lower(arch)) for arch in (space.smallest(), space.largest()))
    rows, loads = [], []
    for ms in np.linspace(least + 0.15 * (most - least), 0.9 * most, count):
        aware = search(space, correction, [models["int8"].at_most(float(ms))]).architecture
        after = search(space, predictor, [models["fp32"].at_most(float(ms / ratio))]).architecture
        row: dict[str, Any] = {"budget_ms": round(float(ms), 4)}
        for kind, arch in (("aware", aware), ("after", after)):
            files = exporter.convert(arch, low)
            row[f"{kind}_top1"] = exporter.judge(arch, low, files, "test").score
            row[f"{kind}_fp32_top1"] = exporter.in_torch(arch, "test")
            loads.append(low.loader(files, image_shape(arch)))
        rows.append(row)
    ms = np.median(time_turns(loads, WHOLE), axis=1).reshape(-1, 2)
    for row, times in zip(rows, ms, strict=True):
        row["aware_ms"], row["after_ms"] = (round(float(t), 4) for t in times)
    gain = [row["aware_top1"] - row["after_top1"] for row in rows]
    drops = correction.changes
    console.print(*rows, sep="\n")
    return {
        "device": low.describe()["runtime"],
        "comparison": precisions.comparison,
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
    parser.add_argument("--int8", nargs="+", metavar="DEVICE", help="what three networks lose in int8 alone")
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
            write({"benchmark": "deploy", "weights_sha256": entry.weights_sha256, "space": found}, options.out)
            return
        if options.int8:
            rows = [int8_drops(name, entry, data, folder, report) for name in options.int8]
            write({"benchmark": "deploy", "weights_sha256": entry.weights_sha256, "int8": rows}, options.out)
            return
        began = time.perf_counter()
        device = devices.by_name("onnxruntime")
        call = call_on(device.name, entry, data, folder / "front", report)
        latency = profile(call.space, device, report=report)
        choosing = choosing_on(call, Precisions(device), latency)
        networks = along_the_front(choosing, options.networks)
        first = [network.measured_latency_ms / (network.latency_budget_ms or 1) for network in networks]
        networks = verified(call, networks)
        seconds = time.perf_counter() - began
        rows = exported(networks, targets, entry, data, folder, report)
        aware = None
        if options.aware:
            aware = quantisation_aware(options.aware, entry, data, folder, 5, options.labels, report)
        again = choosing.timed(networks)
        later = [network.measured_latency_ms / (network.latency_budget_ms or 1) for network in again]
    table = Table("runtime", "parity", "as torch %", "drop", "worst", "drop, all layers", "tau", "of fp32", "KiB")
    for row in rows:
        cells = [
            row[key] for key in ("agreement", "drop", "worst_drop", "drop_all_layers", "tau", "latency_ratio", "kib")
        ]
        table.add_row(f"{row['device']} {row['precision']}", f"{row['parity']:.1e}", *map(str, cells))
    console.print(table)
    result = {
        "benchmark": "deploy",
        "weights_sha256": entry.weights_sha256,
        "machine": device.describe(),
        "networks": [network.to_json(call.score) for network in networks],
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
