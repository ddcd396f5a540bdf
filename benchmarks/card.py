"""Claim: the numbers of a shipped supernet's card are what its weights give on the 10,000 test images.

Measures the largest and the smallest sub-network, the corners at the largest resolution (the least or the most of
depth and of each of the blocks' choices) and 20 random sub-networks, each extracted and recalibrated. --alone also
trains each corner without a supernet for as many epochs and gives the gap; these runs go on where they were. Prints the
card's table, and one line of JSON last. Any run folder of a space for CIFAR-10 will do as --model.

    python benchmarks/card.py [--model cifar10] [--seed 0]
    python benchmarks/card.py --alone 19 --workers 2 --precision bf16
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from rich.progress import track

import onceforall as ofa
from onceforall.choices import DEPTH
from onceforall.cost.analytic import macs, params
from onceforall.space import SearchSpace
from onceforall.training.trainer import Precision


def named(space: SearchSpace, seed: int) -> list[tuple[str, ofa.Architecture]]:
    """What the card lists."""
    units = space.units[0]
    names = sorted((DEPTH, *units.choices))
    corners = [
        dict(zip(names, ends, strict=True))
        for ends in itertools.product(*((units.options[name][0], units.options[name][-1]) for name in names))
    ]
    rng = np.random.default_rng(seed)
    return [
        ("largest", space.largest()),
        ("smallest", space.smallest()),
        *(
            (
                "corner " + " ".join(f"{name[0].upper()}{value}" for name, value in corner.items()),
                space.uniform(resolution=space.resolutions[-1], **corner),
            )
            for corner in corners
        ),
        *((f"random {number}", space.sample(rng)) for number in range(1, 21)),
    ]


def alone(row: dict[str, Any], space: SearchSpace, epochs: int, seed: int, precision: Precision, runs: Path) -> float:
    """Test top-1 (%) of the row's architecture, trained for itself with the shipped supernet's batch and decay."""
    torch.set_num_threads(1)
    arch, data = ofa.Architecture.from_json(row["architecture"]), ofa.cifar10()
    recipe = ofa.recipes.standalone(epochs, 128, weight_decay=2e-4)
    folder = runs / f"{row['name'].replace(' ', '-')}-{epochs}-{seed}"
    net = ofa.train(
        ofa.Network(space, arch, seed), data, recipe, folder, seed=seed, precision=precision, evaluate_every=10**6
    )
    return ofa.measure_top1(net, arch, data, "test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10", help="a shipped name, or a run folder")
    parser.add_argument("--seed", type=int, default=0, help="of the random sub-networks and of training")
    parser.add_argument("--alone", type=int, default=0, help="also train each corner alone, for so many epochs")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help="of that training")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/card"), help="where they are kept")
    options = parser.parse_args()
    shipped = options.model in ofa.zoo.NAMES
    entry = ofa.zoo.load(options.model) if shipped else ofa.zoo.load_run(Path(options.model), labels=False)
    supernet, data = entry.supernet, ofa.cifar10()
    space = supernet.space
    rows = []
    for name, arch in track(named(space, options.seed), description="measuring"):
        layers = space.lower(arch)
        rows.append(
            {
                "name": name,
                "resolution": arch.resolution,
                "macs": macs(layers),
                "params": params(layers),
                "test_top1": round(ofa.measure_top1(supernet, arch, data, "test"), 2),
                "architecture": arch.to_json(),
            }
        )
    if options.alone:
        corners = [row for row in rows if row["name"].startswith("corner")]
        train = partial(
            alone, space=space, epochs=options.alone, seed=options.seed, precision=options.precision, runs=options.runs
        )
        corners.sort(key=lambda row: row["macs"], reverse=True)  # the longest first, so that workers end together
        with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
            for row, top1 in zip(corners, pool.map(train, corners), strict=True):
                row |= {"alone_top1": round(top1, 2), "alone_epochs": options.alone}
                print(f"{row['name']}: {row['test_top1']:.2f}, alone {top1:.2f}", flush=True)
        gaps = [row["test_top1"] - row["alone_top1"] for row in corners]
        print(f"Gap to alone ({options.alone} epochs each): mean {np.mean(gaps):.2f}, worst {min(gaps):.2f}.\n")
    print("| sub-network | px | MACs (M) | parameters (M) | test top-1 (%) |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['name']} | {row['resolution']} | {row['macs'] / 1e6:.2f} | {row['params'] / 1e6:.3f} "
            f"| {row['test_top1']:.2f} |"
        )
    random = [row["test_top1"] for row in rows if row["name"].startswith("random")]
    print(f"\nRandom sub-networks: mean {np.mean(random):.2f}, lowest {min(random):.2f}, highest {max(random):.2f}.")
    about = {"benchmark": "card", "model": options.model, "weights_sha256": entry.weights_sha256, "seed": options.seed}
    print(json.dumps({**about, "rows": rows}))


if __name__ == "__main__":
    main()
