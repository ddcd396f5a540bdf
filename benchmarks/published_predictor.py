"""Claim: the published accuracy predictor ranks networks of another width well at 224 px, and is not to be believed
where it was not trained.

The predictor belongs to MobileNetV3 of width 1.2 at 160, 176, 192, 208, 224 px. No measured networks of that width are
public, so it is judged on networks of width 1.0: 1,301 of DyNAS-T (top-1 on all 50,000 ImageNet validation images,
224 px; repeated measurements averaged) and 1,305 of MOOFA (12,500 images, so about 0.4 points of sampling error; 128,
160, 192 px, chosen evenly over peak memory). 128 px is outside its domain: `predict` raises OutOfDomain there, and the
figure is what the network would have answered.

Reports, per resolution, the rank correlation (Spearman, Kendall) of the predictor and of MACs alone with measured
top-1; the predictor's offset (mean of predicted minus measured); and mean absolute errors in points on one half of the
networks after fitting the other half: one offset for the predictor, a line in log MACs for MACs. Halves are drawn
ten times. Prints a table, and one line of JSON last.

    python benchmarks/published_predictor.py [--tables ../shared/data/tables] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from golden import read_rows
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau, spearmanr

from onceforall import interop, spaces
from onceforall.architecture import Architecture
from onceforall.cost.analytic import macs
from onceforall.errors import OutOfDomain
from onceforall.interop import PublishedPredictor

TABLES = Path(__file__).resolve().parents[2] / "shared/data/tables"
SPLITS = 10


def measured(path: Path) -> dict[Architecture, float]:
    """Top-1 (percent) of each distinct network, repeated measurements averaged."""
    found: dict[Architecture, list[float]] = defaultdict(list)
    for arch, row in read_rows(path):
        found[arch].append(float(row["top1"]))
    return {arch: float(np.mean(values)) for arch, values in found.items()}


def judge(predictor: PublishedPredictor, rows: dict[Architecture, float], seed: int) -> dict[str, Any]:
    """Figures of one group of networks."""
    architectures, top1 = list(rows), np.array(list(rows.values()))
    predicted = predictor.evaluate(predictor.features(architectures))
    space = spaces.mobilenet_v3(1.0)
    log_macs = np.log([macs(space.lower(arch)) for arch in architectures])
    try:
        predictor.predict(architectures)
        inside = True
    except OutOfDomain:
        inside = False
    by_predictor, by_macs = [], []
    rng = np.random.default_rng(seed)
    for _ in range(SPLITS):
        order = rng.permutation(len(top1))
        fit, test = order[: len(order) // 2], order[len(order) // 2 :]
        shifted = predicted[test] - (predicted[fit] - top1[fit]).mean()
        by_predictor.append(error(shifted, top1[test]))
        by_macs.append(error(np.polyval(np.polyfit(log_macs[fit], top1[fit], 1), log_macs[test]), top1[test]))
    return {
        "networks": len(top1),
        "resolution_in_domain": inside,
        "spearman": round(float(spearmanr(predicted, top1).statistic), 3),
        "spearman_macs": round(float(spearmanr(log_macs, top1).statistic), 3),
        "kendall": round(float(kendalltau(predicted, top1).statistic), 3),
        "kendall_macs": round(float(kendalltau(log_macs, top1).statistic), 3),
        "offset": round(float((predicted - top1).mean()), 2),
        "error": round(float(np.mean(by_predictor)), 2),
        "error_macs": round(float(np.mean(by_macs)), 2),
    }


def error(estimated: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    return float(np.abs(estimated - truth).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, default=TABLES, help="folder of acc_predictor.pth and measured tables")
    parser.add_argument("--seed", type=int, default=0, help="of the halves")
    options = parser.parse_args()
    if not options.tables.is_dir():
        sys.exit(f"no {options.tables}: give the folder of the measured tables with --tables")
    predictor = interop.load_predictor(options.tables / "acc_predictor.pth")
    dynast = measured(options.tables / "dynast_mbv3_w1.0.csv")
    moofa = measured(options.tables / "moofa_mit_ofa.csv")
    groups = {"DyNAS-T, 224 px": dynast}
    for size in sorted({arch.resolution for arch in moofa}):
        groups[f"MOOFA, {size} px"] = {arch: top1 for arch, top1 in moofa.items() if arch.resolution == size}
    groups["MOOFA, all three"] = moofa
    results = {name: judge(predictor, rows, options.seed) for name, rows in groups.items()}
    table = Table(
        "measured networks (width 1.0)", "n", "resolution", "Spearman", "of MACs", "Kendall", "of MACs", "offset",
        "error after offset", "error of MACs line",
    )  # fmt: skip
    for name, found in results.items():
        table.add_row(
            name,
            str(found["networks"]),
            "in domain" if found["resolution_in_domain"] else "OUTSIDE: raises",
            *(f"{found[key]:.3f}" for key in ("spearman", "spearman_macs", "kendall", "kendall_macs")),
            f"{found['offset']:+.2f}",
            f"{found['error']:.2f}",
            f"{found['error_macs']:.2f}",
        )
    console = Console()
    console.width = max(console.width, 160)
    console.print(table)
    print(json.dumps({"predictor": predictor.domain.name, "splits": SPLITS, "seed": options.seed, "groups": results}))


if __name__ == "__main__":
    main()
