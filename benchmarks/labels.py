"""Question: how many labels (measured sub-networks) a minute, and does bf16 measure the same?

Random sub-networks of a supernet are measured on the 5,000 label images three times, one after the other: each by
itself (`measure_top1`), with what they share computed once (`Evaluator`: the layers before the first unit, for
calibration and label images), and with that in bf16. The first network of each resolution warms up and is not counted.
Shown: labels a minute, and how far the accuracies of the second and third way are from those of the first.

    python benchmarks/labels.py --threads 1
    python benchmarks/labels.py --networks 40 --threads 2

One line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau

from onceforall import Architecture, cifar10, zoo
from onceforall.evaluate import Evaluator, measure_top1
from onceforall.nn.fast_cpu import keep_freed_memory
from onceforall.report.progress import Steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    shipped, data = zoo.load("cifar10"), cifar10()
    supernet = shipped.supernet
    shared, halved = Evaluator(supernet, data, "label"), Evaluator(supernet, data, "label", "bf16")
    ways: dict[str, Callable[[Architecture], float]] = {
        "each by itself": lambda arch: measure_top1(supernet, arch, data, "label"),
        "what they share once": shared.score,
        "and in bf16": halved.score,
    }
    rng = np.random.default_rng(options.seed)
    space = supernet.space
    first = [space.restrict(resolutions=[size]).sample(rng) for size in space.resolutions]
    networks = [*first, *(space.sample(rng) for _ in range(options.networks))]
    found = np.empty((len(networks), len(ways)))
    seconds = np.zeros((len(networks), len(ways)))
    console = Console(stderr=True)
    with Steps(console) as report:
        for number, arch in enumerate(networks):
            for way, measure in enumerate(ways.values()):
                began = time.perf_counter()
                found[number, way] = measure(arch)
                seconds[number, way] = time.perf_counter() - began
            report("sub-networks", number + 1, len(networks))
    found, seconds = found[len(first) :], seconds[len(first) :]
    columns = ("labels a minute", "mean difference", "largest difference", "Kendall tau")
    table, result = Table("", *columns), {}
    for way, name in enumerate(ways):
        difference = found[:, way] - found[:, 0]
        values = {
            "labels_per_minute": 60 / float(seconds[:, way].mean()),
            "mean_difference": float(difference.mean()),
            "largest_difference": float(np.abs(difference).max()),
            "kendall_tau": float(kendalltau(found[:, way], found[:, 0]).statistic),
        }
        table.add_row(name, *(f"{value:.3f}" for value in values.values()))
        result[name] = {key: round(value, 4) for key, value in values.items()}
    console.print(table)
    about = {"benchmark": "labels", "weights_sha256": shipped.weights_sha256}
    print(json.dumps({**about, "networks": options.networks, "threads": options.threads, **result}))


if __name__ == "__main__":
    main()
