"""Question: does progressive shrinking pay? Table 1 of the paper, asked again on CIFAR-10 with equal budgets.

Progressive shrinking, the sandwich rule, random order and delayed shrinking train one space each for the same number of
sub-network-epochs (epochs times sub-networks a step; frozen teachers not counted); the eight corners of the space are
also trained alone, each as long as the first phase of progressive shrinking. Test images measure and select nothing.

Each run is one JSON file in --results; a run that has one is not repeated, and an interrupted one goes on where it was.
So the experiment can be spread over days: the same command goes on, and --report prints what there is.

    python benchmarks/shrinking.py --seeds 3 --workers 2      # three to five hours of two x86 cores
    python benchmarks/shrinking.py --seeds 1 --variants all   # ablations
    python benchmarks/shrinking.py --scale long --seeds 1 --only "random order" "progressive shrinking" --workers 2
    python benchmarks/shrinking.py --report                   # the table, and one line of JSON last
    python benchmarks/shrinking.py --scale gpu --seeds 3 --workers 6 --device cuda
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy import stats

from onceforall import Architecture, Network, Supernet, measure_top1, recipes, spaces, train
from onceforall.data.cifar10 import cifar10
from onceforall.files import read_json, read_jsonl, write_json
from onceforall.space import SearchSpace
from onceforall.spaces.inverted_residual import FirstBlock, InvertedResidualSpace, Stage
from onceforall.training import samplers
from onceforall.training.schedule import Recipe
from onceforall.training.trainer import Precision

RESULTS = Path(__file__).parent / "results" / "shrinking"
OPTIONS = {"batch_size": 128, "weight_decay": 2e-4}
NO_TRANSFORMS = "shrinking, no kernel transforms"


def small_space() -> SearchSpace:
    """Two elastic units at 7 and 4 px, one resolution: a processor core trains 1,000 to 3,300 images a second."""
    units = (
        Stage((2, 3, 4), (3, 5, 7), (3, 4, 6), 24, 1, "h_swish", False),
        Stage((2, 3, 4), (3, 5, 7), (3, 4, 6), 40, 2, "h_swish", True),
    )
    return InvertedResidualSpace(
        resolutions=(28,),
        units=units,
        name="mobilenet_v3_two_units",
        stem_width=16,
        stem_stride=2,
        first=FirstBlock(16, 2, "h_swish", shortcut=False),
        final_width=240,
        mix_width=0,
        activation="h_swish",
        num_classes=10,
        dropout=0.0,
    )


@dataclass(frozen=True)
class Scale:
    """A space, and the lengths that give every supernet recipe the same sub-network-epochs."""

    space: SearchSpace
    shrinking: tuple[int, ...]  # full, kernel, depth 1, depth 2, width 1, width 2
    sandwich: int  # four sub-networks a step
    random: int  # two
    delayed: int  # half of it alone, half with four

    def recipes(self) -> dict[str, Recipe]:
        """The four recipes that the question is about."""
        return {
            "progressive shrinking": recipes.progressive_shrinking(self.shrinking, **OPTIONS),
            "sandwich": recipes.sandwich(self.sandwich, **OPTIONS),
            "random order": recipes.random_order(self.random, subnets=2, **OPTIONS),
            "delayed shrinking": recipes.delayed_shrinking(self.delayed, **OPTIONS),
        }

    def variants(self) -> dict[str, Recipe]:
        """Ablations of progressive shrinking and of the sandwich, at the same budget."""
        shrinking, sandwich = self.recipes()["progressive shrinking"], self.recipes()["sandwich"]
        later = shrinking.phases[1:]

        def changed(change: Callable[[recipes.Phase], recipes.Phase]) -> Recipe:
            return replace(shrinking, phases=(shrinking.phases[0], *map(change, later)))

        return {
            "shrinking, control": shrinking,  # with the code of its ablations: what they share agrees to the bit
            "shrinking, no teacher": changed(lambda phase: replace(phase, teacher="none")),
            NO_TRANSFORMS: shrinking,
            "shrinking, no sorting": changed(lambda phase: replace(phase, sort_channels=False)),
            "shrinking, rates x4": changed(lambda phase: replace(phase, learning_rate=4 * phase.learning_rate)),
            "shrinking, all rates at least 0.06": changed(
                lambda phase: replace(phase, learning_rate=max(phase.learning_rate, 0.06))
            ),
            "shrinking, sandwich sampling": changed(
                lambda phase: replace(phase, sampler=samplers.Sandwich() if phase.subnets > 1 else samplers.Random())
            ),
            "sandwich, alpha": recipes.sandwich(self.sandwich, loss="alpha", **OPTIONS),
            "sandwich, no clipping": replace(sandwich, clip_norm=0.0),
            "random order, one sub-network a step": recipes.random_order(2 * self.random, subnets=1, **OPTIONS),
        }

    def alone(self) -> Recipe:
        """What each corner gets alone."""
        return recipes.standalone(self.shrinking[0], **OPTIONS)


SCALES: dict[str, Callable[[], Scale]] = {
    "cpu": lambda: Scale(small_space(), (8, 4, 1, 3, 1, 4), sandwich=10, random=20, delayed=16),
    "gpu": lambda: Scale(
        spaces.mobilenet_v3_small_images((32,)), (60, 30, 5, 30, 5, 30), sandwich=75, random=150, delayed=120
    ),
    # Four times as long: does the answer change nearer to convergence?
    "long": lambda: Scale(small_space(), (32, 16, 4, 12, 4, 16), sandwich=40, random=80, delayed=64),
    "smoke": lambda: Scale(small_space(), (1, 1, 1, 1, 1, 1), sandwich=1, random=1, delayed=2),  # does it run?
}


def corners(space: SearchSpace) -> dict[str, Architecture]:
    """The eight networks with the least or most of depth, kernel and expand ratio everywhere."""
    unit, size = space.units[0], space.resolutions[-1]
    ends = itertools.product(*((choices[0], choices[-1]) for choices in (unit.depths, unit.expands, unit.kernels)))
    return {f"D{d} E{e} K{k}": space.uniform(depth=d, kernel=k, expand=e, resolution=size) for d, e, k in ends}


def probes(space: SearchSpace) -> list[Architecture]:
    """Random sub-networks that all supernets are measured on."""
    rng = np.random.default_rng(0)
    return [space.sample(rng) for _ in range(16)]


def execute(
    scale_name: str, name: str, seed: int, results: Path, runs: Path, device: str, precision: Precision, threads: int
) -> str:
    """Train one supernet or one corner, measure it on the test images, and write its JSON."""
    torch.set_num_threads(threads)
    scale, data = SCALES[scale_name](), cifar10()
    space, folder = scale.space, runs / scale_name / f"{slug(name)}-{seed}"
    options: dict[str, Any] = {"seed": seed, "device": device, "precision": precision}
    options |= {"evaluate_every": 10**6, "checkpoint_every": 1000}
    if name in corners(space):
        recipe, arch = scale.alone(), corners(space)[name]
        net: Network | Supernet = train(Network(space, arch, seed), data, recipe, folder, **options)
        measured = {name: measure_top1(net, arch, data, "test")}
        extra = {}
    else:
        recipe = {**scale.recipes(), **scale.variants()}[name]
        net = Supernet(space, seed)
        if name == NO_TRANSFORMS:
            freeze_transforms(net)
        net = train(net, data, recipe, folder, **options)
        measured = {corner: measure_top1(net, arch, data, "test") for corner, arch in corners(space).items()}
        extra = {"random_top1": [measure_top1(net, arch, data, "test") for arch in probes(space)]}
    log = read_jsonl(folder / "log.jsonl")
    write_json(
        results / scale_name / f"{slug(name)}-{seed}.json",
        {
            "name": name,
            "seed": seed,
            "scale": scale_name,
            "test_top1": measured,
            **extra,
            "subnet_epochs": recipe.subnet_epochs,
            "training_seconds": training_seconds(log, recipe, data.size("train")),
            "rollbacks": sum(record.get("event") == "rollback" for record in log),
            "threads": threads,
            "device": torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or "cpu",
            "precision": precision,
            "torch": torch.__version__,
            "recipe": recipe.to_json(),
        },
    )
    return f"{name}, seed {seed}"


def freeze_transforms(net: Supernet) -> None:
    """Smaller kernels stay the centres of larger ones: their matrices begin as the identity."""
    for name, parameter in net.named_parameters():
        if ".transforms." in name:
            parameter.requires_grad_(False)


def training_seconds(log: list[dict[str, Any]], recipe: Recipe, images: int) -> float:
    """What the run takes on a machine that does nothing else: all images at the median speed of each phase."""
    total = 0.0
    for number, phase in enumerate(recipe.phases):
        speeds = [r["images_per_s"] for r in log if r.get("phase") == number and "images_per_s" in r]
        total += phase.epochs * images / float(np.median(speeds))
    return total


def slug(name: str) -> str:
    """The name as part of a file's."""
    return name.lower().replace(",", "").replace(" ", "-")


def confidence(values: list[float]) -> str:
    """Mean and half-width of the 95 % confidence interval over seeds (Student's t); nothing without values."""
    if not values:
        return ""
    average = f"{np.mean(values):.2f}"
    if len(values) < 2:
        return average
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return f"{average} ± {half:.2f}"


def report(scale_name: str, results: Path) -> dict[str, Any]:
    """Print what has been measured so far; gaps are paired by seed."""
    names = list(corners(SCALES[scale_name]().space))
    found = [read_json(path) for path in sorted((results / scale_name).glob("*.json"))]
    alone: dict[int, dict[str, float]] = {}
    nets: dict[str, dict[int, dict[str, Any]]] = {}
    for item in found:
        if item["name"] in names:
            alone.setdefault(item["seed"], {}).update(item["test_top1"])
        else:
            nets.setdefault(item["name"], {})[item["seed"]] = item
    tops = {name: {seed: item["test_top1"] for seed, item in by_seed.items()} for name, by_seed in nets.items()}
    tops = {"alone": {seed: values for seed, values in alone.items() if len(values) == len(names)}, **tops}
    summary: dict[str, Any] = {}
    for name, by_seed in tops.items():
        if not by_seed:
            continue
        over_alone, over_random = (differences(by_seed, tops.get(other, {})) for other in ("alone", "random order"))
        items = list(nets.get(name, {}).values())
        summary[name] = {
            "seeds": str(len(by_seed)),
            "top-1": {
                **{corner: confidence([top1[corner] for top1 in by_seed.values()]) for corner in names},
                "mean": confidence([mean(top1) for top1 in by_seed.values()]),
                "16 random": confidence([float(np.mean(item["random_top1"])) for item in items]),
            },
            "gap to alone": {
                **{corner: confidence([gap[corner] for gap in over_alone]) for corner in names},
                "mean": confidence([mean(gap) for gap in over_alone]),
                "worst": confidence([min(gap.values()) for gap in over_alone]),
            },
            "gain over random order": {
                "mean": confidence([mean(gap) for gap in over_random]),
                "small": confidence([float(np.mean([gap[c] for c in names[:4]])) for gap in over_random]),
                "largest": confidence([gap[names[-1]] for gap in over_random]),
            },
        }
        if items:
            summary[name]["sub-network-epochs"] = str(items[0]["subnet_epochs"])
            # The least disturbed seed: others shared the machine with something else.
            summary[name]["core minutes"] = f"{min(i['training_seconds'] * i['threads'] for i in items) / 60:.0f}"
    titles = ("top-1", "gap to alone", "gain over random order")
    for title in titles:
        rows = {name: row for name, row in summary.items() if any(row[title].values())}
        extra = ("sub-network-epochs", "core minutes") if title == titles[0] else ()
        columns = dict.fromkeys(column for row in rows.values() for column in row[title])
        table = Table("recipe", "seeds", *columns, *extra, title=f"{title} on test (%), scale {scale_name}")
        for name, row in rows.items():
            cells = [row["seeds"], *(row[title][column] for column in columns), *(row.get(key, "") for key in extra)]
            table.add_row(name, *cells)
        Console(width=230).print(table)
    return summary


def differences(ours: dict[int, dict[str, float]], theirs: dict[int, dict[str, float]]) -> list[dict[str, float]]:
    """Ours minus theirs, corner by corner, for each seed that both have; nothing for the same ones."""
    if ours is theirs:
        return []
    return [{c: ours[seed][c] - theirs[seed][c] for c in ours[seed]} for seed in sorted(ours.keys() & theirs.keys())]


def mean(values: dict[str, float]) -> float:
    return float(np.mean(list(values.values())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="*", default=[], help="ablations to run, by name, or all")
    parser.add_argument("--only", nargs="+", help="recipes and corners to run, by name, instead of all")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--runs", type=Path, default=Path("runs/shrinking"), help="where unfinished runs are kept")
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args()
    scale = SCALES[options.scale]()
    names = options.only or [*scale.recipes(), *corners(scale.space)]
    wanted = list(scale.variants()) if options.variants == ["all"] else options.variants
    unknown = {*names, *wanted} - {*scale.recipes(), *corners(scale.space), *scale.variants()}
    if unknown:
        parser.error(f"no recipe, corner or ablation is called {', '.join(sorted(unknown))}")
    plan = [(name, seed) for seed in range(options.seeds) for name in [*names, *wanted]]
    if not options.report:
        cifar10()  # fetched once
        began = time.perf_counter()
        todo = [
            (name, seed)
            for name, seed in plan
            if not (options.results / options.scale / f"{slug(name)}-{seed}.json").exists()
        ]
        with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
            places = (options.results, options.runs, options.device, options.precision, options.threads)
            jobs = [pool.submit(execute, options.scale, name, seed, *places) for name, seed in todo]
            for done, job in enumerate(as_completed(jobs), 1):
                print(f"{time.perf_counter() - began:7.0f} s  {done}/{len(todo)}  {job.result()}", flush=True)
    print(json.dumps({"benchmark": "shrinking", "scale": options.scale, **report(options.scale, options.results)}))


if __name__ == "__main__":
    main()
