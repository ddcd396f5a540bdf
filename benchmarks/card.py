"""Claim: the numbers of a shipped supernet's card are what its weights give on the 10,000 test images.

Measures the largest and the smallest sub-network, the eight (depth, expand, kernel) corners at the largest resolution
and 20 random sub-networks, each extracted and recalibrated. Prints the card's table, and one line of JSON last.

    python benchmarks/card.py [--model cifar10] [--seed 0]
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
from rich.progress import track

import onceforall as ofa
from onceforall.cost.analytic import macs, params
from onceforall.space import SearchSpace


def named(space: SearchSpace, seed: int) -> list[tuple[str, ofa.Architecture]]:
    """What the card lists."""
    units = space.units[0]
    ends = ((choices[0], choices[-1]) for choices in (units.depths, units.expands, units.kernels))
    rng = np.random.default_rng(seed)
    return [
        ("largest", space.largest()),
        ("smallest", space.smallest()),
        *(
            (f"corner D{depth} E{expand} K{kernel}", space.uniform(depth, kernel, expand, space.resolutions[-1]))
            for depth, expand, kernel in itertools.product(*ends)
        ),
        *((f"random {number}", space.sample(rng)) for number in range(1, 21)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10", help="a shipped name, or a run folder")
    parser.add_argument("--seed", type=int, default=0, help="of the random sub-networks")
    options = parser.parse_args()
    if options.model in ofa.zoo.NAMES:
        supernet = ofa.zoo.load(options.model).supernet
    else:
        supernet = ofa.load_supernet(Path(options.model) / "supernet.safetensors")
    data, space = ofa.cifar10(), supernet.space
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
    print("| sub-network | px | MACs (M) | parameters (M) | test top-1 (%) |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['name']} | {row['resolution']} | {row['macs'] / 1e6:.2f} | {row['params'] / 1e6:.3f} "
            f"| {row['test_top1']:.2f} |"
        )
    random = [row["test_top1"] for row in rows if row["name"].startswith("random")]
    print(f"\nRandom sub-networks: mean {np.mean(random):.2f}, lowest {min(random):.2f}, highest {max(random):.2f}.")
    print(json.dumps({"benchmark": "card", "model": options.model, "seed": options.seed, "rows": rows}))


if __name__ == "__main__":
    main()
