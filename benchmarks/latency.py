"""Question: how far is a predicted latency from a measured one, and how many measurements does that take?

Three parts. `--tables FOLDER`: on what others measured (whole networks on three GPUs at several batch sizes; layers
on a phone, an Intel processor and an FPGA), error with 10, 100 and 1,000 measurements, next to a straight line
through MACs and one through the table of another device. `--device NAME`: here, `ofa profile` of a space at five
resolutions, validated on networks that it never saw, and at another moment on random ones and on the winners of
searches with the table (the largest networks within a latency: that is where an optimiser finds its errors). `--adapt
NAME ...`, with --tables: ten measured networks bring the tables of a phone, an Intel processor and of no device at
all to devices here.

    python benchmarks/latency.py --tables ../shared/data/tables
    python benchmarks/latency.py --device onnxruntime
    python benchmarks/latency.py --device openvino --precision fp32 --small    # the space for 32 px images
    python benchmarks/latency.py --tables ../shared/data/tables --adapt onnxruntime openvino torch ncnn

Networks that judge took no part in fitting. One line of JSON last.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from golden import read_note10, read_rows
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from onceforall import MACs, devices, interop, spaces
from onceforall.cost.latency import LatencyTable, fit_line
from onceforall.cost.learned import LearnedLatency
from onceforall.cost.model import CostModel
from onceforall.cost.validation import Errors, Validation
from onceforall.devices.timing import Turns
from onceforall.files import write_json
from onceforall.layers import LayerSpec
from onceforall.profiling.measuring import measure_latency, whole_network
from onceforall.profiling.profile import adapt, profile
from onceforall.report.progress import Steps
from onceforall.rows import Rows
from onceforall.search.evolution import search
from onceforall.search.pricing import PriceTable
from onceforall.space import SearchSpace

Layers = Sequence[LayerSpec]
Predict = Callable[[Sequence[Layers]], NDArray[np.float64]]
Fit = Callable[[Sequence[Layers], NDArray[np.float64]], Predict]
SIZES = (160, 176, 192, 208, 224)
JUDGING = 1000
console = Console(stderr=True, width=140)


def along(model: CostModel, networks: Sequence[Layers], ms: NDArray[np.float64]) -> Predict:
    """A straight line through another cost."""
    unit = max(model.cost(layers) for layers in networks)
    scale, constant = fit_line([model.cost(layers) / unit for layers in networks], ms)
    return lambda others: np.array([scale * model.cost(layers) / unit + constant for layers in others])


def spread_choice(sizes: Sequence[int], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Random positions, among them networks of the smallest and the largest input, as a profile would choose."""
    order = rng.permutation(len(sizes))
    ends = [next(i for i in order if sizes[i] == size) for size in (min(sizes), max(sizes))]
    return np.array([*ends, *(i for i in order if i not in ends)][:count])


def compare(
    title: str,
    networks: Sequence[Layers],
    ms: NDArray[np.float64],
    base: LatencyTable | None,
    counts: Sequence[int],
    seeds: int,
    table: Table,
) -> dict[str, Any]:
    """Errors of each method for each number of measurements, mean over seeds, on the same judging networks."""
    sizes = [layers[0].in_size for layers in networks]
    found: dict[str, Any] = {}
    methods: dict[str, Fit] = {"MACs": lambda known, truth: along(MACs(), known, truth)}
    if base is not None:
        methods["another device's table"] = lambda known, truth: along(base, known, truth)
        methods["learned on that table"] = lambda known, truth: LearnedLatency.fit(known, truth, {}, base).costs
    methods["learned"] = lambda known, truth: LearnedLatency.fit(known, truth, {}).costs
    for count in counts:
        results: dict[str, list[Errors]] = {}
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            judging = rng.permutation(len(networks))[:JUDGING]
            rest = np.setdiff1d(np.arange(len(networks)), judging)
            chosen = rest[spread_choice([sizes[i] for i in rest], count, rng)]
            for name, fit in methods.items():
                predict = fit([networks[i] for i in chosen], ms[chosen])
                errors = Errors.of(predict([networks[i] for i in judging]), ms[judging])
                results.setdefault(name, []).append(errors)
        for name, judged in results.items():
            mean = {key: float(np.mean([asdict(errors)[key] for errors in judged])) for key in asdict(judged[0])}
            found.setdefault(str(count), {})[name] = {key: round(value, 3) for key, value in mean.items()}
            table.add_row(
                title,
                str(count),
                name,
                f"{mean['mape']:.1f}",
                f"{mean['within_5']:.0f}",
                f"{mean['within_10']:.0f}",
                f"{mean['worst']:.0f}",
                f"{mean['spearman']:.3f}",
            )
        table.add_section()
    return found


def others(folder: Path, seeds: int) -> dict[str, Any]:
    """What others measured."""
    table = Table("measured", "measurements", "method", "MAPE %", "in 5 %", "in 10 %", "worst %", "Spearman")
    space = spaces.mobilenet_v3(1.2)
    i7 = interop.read_latency(folder / "i7-8700K_lut.yaml", space)
    archs = [arch for arch, _ in read_rows(folder / "help_ofa/archs.csv")]
    with (folder / "help_ofa/latency_ms.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    networks = [space.lower(archs[int(row["row"])]) for row in rows]
    found: dict[str, Any] = {}
    for setting in (name for name in rows[0] if name != "row"):
        ms = np.array([float(row[setting]) for row in rows])
        found[setting] = compare(setting, networks, ms, i7, (10, 100, 1000), seeds, table)

    five = spaces.mobilenet_v3(1.2, SIZES)
    note10 = read_note10(folder, five)
    sampled = [five.lower(arch) for arch in five.from_rows(five.sample_rows(2000, np.random.default_rng(9)))]
    for title, model, base in (("note10 sums", note10, i7), ("i7 sums", i7, None)):
        ms = np.array([model.cost(layers) for layers in sampled])
        found[title] = compare(title, sampled, ms, base, (10, 100), seeds, table)

    at_224 = spaces.mobilenet_v3(1.2, (224,))
    ultra96 = read_ultra96(folder / "ultra96_dpu.csv", at_224)
    sampled = [at_224.lower(arch) for arch in at_224.from_rows(at_224.sample_rows(2000, np.random.default_rng(9)))]
    ms = np.array([ultra96.cost(layers) for layers in sampled])
    found["ultra96 sums"] = compare("ultra96 sums", sampled, ms, note10.at(224), (10, 100), seeds, table)
    console.print(table)
    return found


def read_ultra96(path: Path, space: SearchSpace) -> LatencyTable:
    """Milliseconds of the layers on the FPGA, whose profiler saw no pooling."""
    with path.open(newline="") as file:
        times = {row["key"]: {"mean": float(row["mean_ms"])} for row in csv.DictReader(file)}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "ultra96.yaml"  # JSON is YAML
        copy.write_text(json.dumps(times | {"AvgPool2D-input:7x7x1152-output:1x1x1152": {"mean": 0.0}}))
        return interop.read_latency(copy, space)


class Largest:
    """The number of MACs as if it were an accuracy: its optimum is where a table promises too much."""

    def __init__(self, space: SearchSpace) -> None:
        self.space, self._macs = space, PriceTable(space, MACs())

    def predict_rows(self, rows: Rows) -> NDArray[np.float64]:
        return self._macs(rows) / 1e7


def here(name: str, precision: str, threads: int, small: bool, turns: int, seed: int) -> dict[str, Any]:
    """A profile of this machine."""
    space: SearchSpace = spaces.mobilenet_v3_small_images() if small else spaces.mobilenet_v3(1.0, SIZES)
    device = devices.by_name(name, threads, precision)
    began = time.perf_counter()
    with Steps(console) as report:
        model = profile(space, device, turns=turns, seed=seed, report=report)
    seconds = time.perf_counter() - began
    validation = model.validation
    assert validation is not None
    shown = Table(
        "networks", "number", "MAPE %", "bias %", "in 5 %", "worst %", "Spearman", title=f"{name} {precision}"
    )

    def show(title: str, errors: Errors) -> None:
        numbers = (f"{errors.mape:.2f}", f"{errors.bias:.2f}", f"{errors.within_5:.0f}", f"{errors.worst:.1f}")
        shown.add_row(title, str(errors.networks), *numbers, f"{errors.spearman:.3f}")

    for kind, errors in validation.kinds.items():
        show(kind, errors)
    least, most = (model.cost(space.lower(arch)) for arch in (space.smallest(), space.largest()))
    budgets = np.linspace(1.1 * least, 0.9 * most, 12)
    winners = [search(space, Largest(space), [model.at_most(ms)], seed=seed).architecture for ms in budgets]
    rng = np.random.default_rng(seed + 1000)
    again = [space.sample(rng) for _ in range(12)]
    jobs = [whole_network(space, arch) for arch in (*winners, *again)]
    ms = np.array([timing.median for timing in measure_latency(device, jobs, Turns(3 * turns, 0.02, seed))])
    predicted = np.array([model.cost(space.lower(arch)) for arch in (*winners, *again)])
    drift = float(np.median(ms[12:] / predicted[12:]))  # of the machine, since the profile
    later = {
        "random, another moment": Errors.of(predicted[12:], ms[12:]),
        "searched winners, another moment": Errors.of(predicted[:12], ms[:12]),
        "the same, drift of the random ones taken out": Errors.of(drift * predicted[:12], ms[:12]),
    }
    for kind, errors in later.items():
        show(kind, errors)
    console.print(shown)
    console.print(
        f"{model.summary()}; built and validated in {seconds:.0f} s; noise of a median {validation.noise:.2f} %, "
        f"drift {validation.drift:.1f} %"
    )
    return {
        "device": device.describe(),
        "model": model.summary(),
        "seconds": round(seconds, 1),
        "noise": validation.noise,
        "drift": validation.drift,
        "kinds": {kind: asdict(errors) for kind, errors in (*validation.kinds.items(), *later.items())},
    }


def adapted(folder: Path, names: Sequence[str], threads: int, turns: int, seeds: int) -> dict[str, Any]:
    """Tables of other devices, brought to those here by ten measured networks: what `ofa profile --adapt` does."""
    space = spaces.mobilenet_v3(1.2, SIZES)
    bases = {
        "made up": LatencyTable.synthetic(space),  # knows MACs and layers, nothing of any device
        "note10": read_note10(folder, space),
        "i7": interop.read_latency(folder / "i7-8700K_lut.yaml", space),
    }
    shown = Table("device", "table of", "MAPE %", "in 5 %", "in 10 %", "worst %", "Spearman", "noise %")
    found: dict[str, Any] = {}
    for name in names:
        device = devices.by_name(name, threads)
        judged: dict[str, list[Validation]] = {base: [] for base in bases}
        with Steps(console) as report:
            for seed in range(seeds):
                for base, table in bases.items():
                    model = adapt(table, space, device, turns=turns, seed=seed, report=report)
                    assert model.validation is not None
                    judged[base].append(model.validation)
        found[name] = {"device": device.describe()}
        for base, validations in judged.items():
            errors = [asdict(validation.all) for validation in validations]
            mean = {key: round(float(np.mean([each[key] for each in errors])), 3) for key in errors[0]}
            mean |= {
                "least_spearman": round(min(each["spearman"] for each in errors), 3),
                "noise": round(float(np.mean([validation.noise for validation in validations])), 2),
            }
            found[name][base] = mean
            keys = ("mape", "within_5", "within_10", "worst", "spearman", "noise")
            shown.add_row(name, base, *(f"{mean[key]:.4g}" for key in keys))
    console.print(shown)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, help="folder of the tables that others measured")
    parser.add_argument("--seeds", type=int, default=3, help="random splits of what others measured")
    parser.add_argument("--device", help="profile this device here")
    parser.add_argument("--adapt", nargs="+", help="adapt those tables to these devices, and do nothing else")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="the space for 32 px images, not that for 160 to 224 px")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    if options.adapt and not options.tables:
        parser.error("--adapt needs --tables, the tables to adapt")
    result: dict[str, Any] = {"benchmark": "latency"}
    if options.adapt:
        result["adapted"] = adapted(options.tables, options.adapt, options.threads, options.turns, options.seeds)
    elif options.tables:
        result["others"] = others(options.tables, options.seeds)
    if options.device and not options.adapt:
        result["here"] = here(
            options.device, options.precision, options.threads, options.small, options.turns, options.seed
        )
    text = json.dumps(result)
    if options.out:
        write_json(options.out, result)
    print(text)


if __name__ == "__main__":
    main()
