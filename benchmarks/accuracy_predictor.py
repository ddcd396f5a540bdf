"""Question: how many labels does an accuracy predictor need, and does a better predictor find better networks?

Aim: RMSE of at most 0.25 points with 300 labels; Kendall's tau of at least 0.85 with 200 labels and 0.92 with 1,000.

Data: the labels of our own supernet (what is shipped: random and spread ones, on its label images); 1,301 networks of
DyNAS-T (MobileNetV3 width 1.0, 224 px, top-1 on all 50,000 ImageNet validation images); 1,305 of MOOFA (the same at
128, 160, 192 px, on 12,500 images). Repeated measurements of a network are averaged: splits are by architecture. In
each random split a fifth of the networks is held out; smaller training sets are parts of larger ones; all predictors
and all numbers of labels are judged on the same held-out networks. Held-out networks with a choice that the smallest
training set does not show are left out for all, because there a predictor rightly refuses to answer.

Noise: `binomial` is the standard error of one label if images were drawn anew for each network. All labels of a data
set come from the same images, so most of that error is common to all networks and a predictor learns it with them: its
RMSE can be lower. `repeats` is the standard deviation of repeated measurements (DyNAS-T), which is a floor.

Uncertainty of the ensembles: the share of held-out networks within one and two standard deviations (normal: 68, 95 %).

Figure 12 of the paper, predictor error against what a search then selects. `regret`: the search chooses the held-out
network of highest prediction under each of several MACs budgets (quartiles of the held-out ones); measured top-1 of the
best possible choice minus that of the choice, points. On our supernet also `ofa.search` in the whole space, with the
same budgets, in the first split: top-1 of what it selects, measured on the label images (--measure, slow), else
estimated by a ridge with interactions on all labels, which favours its own kind.

Prints tables, and one line of JSON last; --out writes that as well.

    python benchmarks/accuracy_predictor.py [--splits 5] [--counts 100 200 300 500 1000] [--data cifar10 dynast moofa]
        [--predictors MACs ridge ...] [--measure] [--tables ../shared/data/tables] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from golden import read_rows
from numpy.typing import NDArray
from published_predictor import TABLES, measured
from rich.console import Console
from rich.progress import track
from rich.table import Table

import onceforall as ofa
from onceforall.cost.analytic import macs
from onceforall.files import read_jsonl, write_json
from onceforall.predict.accuracy import (
    AccuracyPredictor,
    EnsemblePredictor,
    MACsPredictor,
    MLPPredictor,
    RidgePredictor,
)
from onceforall.predict.predictor import seen_choices
from onceforall.predict.quality import errors
from onceforall.space import SearchSpace

PREDICTORS: dict[str, Callable[[SearchSpace, int], AccuracyPredictor]] = {
    "MACs": lambda space, seed: MACsPredictor(space),
    "ridge": lambda space, seed: RidgePredictor(space),
    "ridge, interactions": lambda space, seed: RidgePredictor(space, interactions=True),
    "MLP": lambda space, seed: MLPPredictor(space, seed=seed),
    "ensemble of ridges": lambda space, seed: EnsemblePredictor(space, of="ridge", seed=seed),
    "ensemble of MLPs": lambda space, seed: EnsemblePredictor(space, seed=seed),
}
AIMS = (("rmse", 300, 0.25), ("kendall_tau", 200, 0.85), ("kendall_tau", 1000, 0.92))
BUDGETS = (0.25, 0.5, 0.75)  # quantiles of the held-out networks' MACs


@dataclass(frozen=True)
class Labelled:
    """Distinct networks of a space, their measured top-1 (percent), and what is known of its noise (points)."""

    space: SearchSpace
    architectures: list[ofa.Architecture]
    top1: NDArray[np.float64]
    noise: dict[str, float]


def binomial(top1: NDArray[np.float64], images: int) -> float:
    """Standard error (points) of a top-1 measured on so many images."""
    return float(np.sqrt(np.mean(top1 * (100 - top1)) / images))


def shipped() -> Labelled:
    entry = ofa.zoo.load("cifar10")
    architectures, accuracies = ofa.training_pairs(entry.labels)
    images = read_jsonl(entry.folder / "labels.jsonl")[0]["data"]["splits"]["label"]
    top1 = np.array(accuracies)
    return Labelled(entry.supernet.space, architectures, top1, {"binomial": binomial(top1, images)})


def table(path: Path, images: int) -> Labelled:
    rows = measured(path)
    top1, groups = np.array(list(rows.values())), defaultdict(list)
    for arch, row in read_rows(path):
        groups[arch].append(float(row["top1"]))
    repeated = [np.array(values) for values in groups.values() if len(values) > 1]
    noise = {"binomial": binomial(top1, images)}
    if repeated:
        squares = sum(float(((values - values.mean()) ** 2).sum()) for values in repeated)
        noise["repeats"] = float(np.sqrt(squares / sum(len(values) - 1 for values in repeated)))
    space = ofa.spaces.mobilenet_v3(1.0, sorted({arch.resolution for arch in rows}))
    return Labelled(space, list(rows), top1, noise)


def judge(data: Labelled, counts: list[int], names: list[str], splits: int, title: str) -> dict[str, Any]:
    """Figures of every predictor and number of labels: means and standard deviations over the splits."""
    rows = data.space.to_rows(data.architectures)
    size = np.array([macs(data.space.lower(arch)) for arch in data.architectures], float)
    held_out = len(rows) // 5
    usable = sorted({count for count in counts if count < len(rows) - held_out} | {len(rows) - held_out})
    if usable[-1] > counts[-1]:
        usable.pop()
    found: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    judged = []
    for split in track(range(splits), description=title):
        order = np.random.default_rng(split).permutation(len(rows))
        test, pool = order[:held_out], order[held_out:]
        seen = seen_choices(data.space, rows[pool[: usable[0]]])
        test = test[seen[np.arange(rows.shape[1]), 1 + rows[test]].all(axis=1)]
        judged.append(len(test))
        for count in usable:
            train = [data.architectures[i] for i in pool[:count]]
            for name in names:
                began = time.process_time()
                model = PREDICTORS[name](data.space, split).fit(train, data.top1[pool[:count]].tolist())
                figures = found[name, count]
                figures["fit_cpu_s"].append(time.process_time() - began)
                predicted, truth = model.predict_rows(rows[test]), data.top1[test]
                for key, value in zip(("rmse", "kendall_tau"), errors(predicted, truth), strict=True):
                    figures[key].append(value)
                figures["regret"].append(regret(predicted, truth, size[test]))
                if isinstance(model, EnsemblePredictor):
                    mean, deviation = model.predict_rows_with_uncertainty(rows[test])
                    for times in (1, 2):
                        inside = np.abs(mean - truth) <= times * deviation
                        figures[f"within_{times}_deviations"].append(100 * float(inside.mean()))
    results = [
        {
            "predictor": name,
            "labels": count,
            **{key: round(float(np.mean(values)), 4) for key, values in figures.items()},
            **{f"{key}_spread": round(float(np.std(figures[key])), 4) for key in ("rmse", "kendall_tau", "regret")},
        }
        for (name, count), figures in found.items()
    ]
    noise = {key: round(value, 4) for key, value in data.noise.items()}
    return {"networks": len(rows), "judged_on": judged, "noise": noise, "results": results, "aims": aims(results)}


def regret(predicted: NDArray[np.float64], truth: NDArray[np.float64], size: NDArray[np.float64]) -> float:
    """Points lost under budgets by choosing the highest prediction instead of the highest measurement."""
    lost = []
    for budget in np.quantile(size, BUDGETS):
        within = np.flatnonzero(size <= budget)
        lost.append(truth[within].max() - truth[within[predicted[within].argmax()]])
    return float(np.mean(lost))


def aims(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best predictor at each number of labels that we have an aim for."""
    reached = []
    for key, count, aim in AIMS:
        rows = [row for row in results if row["labels"] == count]
        if rows:
            best = (min if key == "rmse" else max)(rows, key=lambda row: row[key])
            met = best[key] <= aim if key == "rmse" else best[key] >= aim
            reached.append(
                {"aim": f"{key} with {count} labels: {aim}", "best": best[key], "by": best["predictor"], "met": met}
            )
    return reached


def searched(data: Labelled, counts: list[int], names: list[str], measure: bool) -> list[dict[str, Any]]:
    """Figure 12 in the whole space: top-1 of what `ofa.search` selects with each predictor, mean over the budgets."""
    order = np.random.default_rng(0).permutation(len(data.architectures))
    pool = order[len(order) // 5 :]
    bounds = np.quantile([macs(data.space.lower(data.architectures[i])) for i in order[: len(order) // 5]], BUDGETS)
    if measure:
        supernet, images, known = ofa.zoo.load("cifar10").supernet, ofa.cifar10(), {}

        def truth(arch: ofa.Architecture) -> float:
            if arch not in known:
                known[arch] = ofa.measure_top1(supernet, arch, images, "label")
            return known[arch]

    else:
        every = RidgePredictor(data.space, interactions=True).fit(data.architectures, data.top1.tolist())

        def truth(arch: ofa.Architecture) -> float:
            return float(every.predict([arch])[0])

    results = []
    for count in track([count for count in counts if count <= len(pool)], description="search"):
        train = [data.architectures[i] for i in pool[:count]]
        for name in names:
            model = PREDICTORS[name](data.space, 0).fit(train, data.top1[pool[:count]].tolist())
            chosen = [ofa.search(data.space, model, [ofa.MACs().at_most(float(bound))]) for bound in bounds]
            top1 = [truth(result.architecture) for result in chosen]
            promised = float(np.mean([result.accuracy for result in chosen]))
            results.append(
                {
                    "predictor": name,
                    "labels": count,
                    "predicted_top1": round(promised, 3),
                    "measured_top1" if measure else "estimated_top1": round(float(np.mean(top1)), 3),
                }
            )
    return results


def show(console: Console, title: str, found: dict[str, Any]) -> None:
    noise = ", ".join(f"{key} {value:.3f}" for key, value in found["noise"].items())
    header = f"{title}: {found['networks']} networks, {np.mean(found['judged_on']):.0f} held out; noise {noise} points"
    view = Table("labels", "predictor", "RMSE", "tau", "regret", "within 1, 2 dev. (%)", "fit, CPU s", title=header)
    for row in sorted(found["results"], key=lambda row: row["labels"]):
        inside = [f"{row[key]:.0f}" for key in ("within_1_deviations", "within_2_deviations") if key in row]
        view.add_row(
            str(row["labels"]),
            row["predictor"],
            *(f"{row[key]:.3f} ± {row[key + '_spread']:.3f}" for key in ("rmse", "kendall_tau", "regret")),
            ", ".join(inside),
            f"{row['fit_cpu_s']:.2f}",
            end_section=row["predictor"] == found["results"][-1]["predictor"],
        )
    console.print(view)
    for aim in found["aims"]:
        console.print(f"{aim['aim']}: {'reached' if aim['met'] else 'missed'}, {aim['best']:.3f} by {aim['by']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["cifar10", "dynast", "moofa"], help="which data sets")
    parser.add_argument("--predictors", nargs="+", choices=PREDICTORS, default=list(PREDICTORS))
    parser.add_argument("--counts", nargs="+", type=int, default=[100, 200, 300, 500, 1000], help="numbers of labels")
    parser.add_argument("--splits", type=int, default=5, help="random splits")
    parser.add_argument("--measure", action="store_true", help="measure what searches select (needs CIFAR-10)")
    parser.add_argument("--tables", type=Path, default=TABLES, help="folder of the tables measured by others")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    options = parser.parse_args()
    console, counts = Console(), sorted(options.counts)
    console.width = max(console.width, 130)
    sources: dict[str, Callable[[], Labelled]] = {
        "cifar10": shipped,
        "dynast": lambda: table(options.tables / "dynast_mbv3_w1.0.csv", 50_000),
        "moofa": lambda: table(options.tables / "moofa_mit_ofa.csv", 12_500),
    }
    report: dict[str, Any] = {"benchmark": "accuracy_predictor", "splits": options.splits, "data": {}}
    for name in options.data:
        if name != "cifar10" and not options.tables.is_dir():
            console.print(f"{name} is left out: no {options.tables}; give the folder of the tables with --tables")
            continue
        data = sources[name]()
        report["data"][name] = found = judge(data, counts, options.predictors, options.splits, name)
        show(console, name, found)
        if name == "cifar10":
            report["weights_sha256"] = ofa.zoo.load("cifar10").weights_sha256
            found["searched"] = searched(data, counts, options.predictors, options.measure)
            kind = "measured_top1" if options.measure else "estimated_top1"
            view = Table("labels", "predictor", "predicted", kind.replace("_", " "), title="selected by a search")
            for row in found["searched"]:
                view.add_row(str(row["labels"]), row["predictor"], f"{row['predicted_top1']:.2f}", f"{row[kind]:.2f}")
            console.print(view)
    if options.out is not None:
        write_json(options.out, report)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
