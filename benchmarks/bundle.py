"""What does a bundle of sub-networks cost, against a file for each, and how long does a switch take?

    python benchmarks/bundle.py --out out/bundle

Three sub-networks of the shipped CIFAR-10 supernet: the smallest, the best labelled one of at most 8 million MACs,
the largest. Accuracy on the 10,000 test images, bytes of files, resident memory (a process for each figure), and
milliseconds from `use(name)` to the first logits, in PyTorch and ONNX Runtime with one thread. `weight_bytes` says what
each way of sharing saves: none; equal tensors; leading rows, which a graph can read in place; leading parts in every
dimension, which is what a bundle does.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onceforall as ofa


def weight_bytes(manifest: dict[str, Any]) -> dict[str, int]:
    """Bytes of all tensors, shared in one way or another."""
    places = [(key, tuple(shape)) for net in manifest["networks"].values() for key, shape in net["tensors"].values()]

    def total(shapes: Iterable[tuple[int, ...]]) -> int:
        return 4 * sum(map(math.prod, shapes))

    rows: dict[tuple[str, tuple[int, ...]], int] = defaultdict(int)
    parts: dict[str, tuple[int, ...]] = {}
    for key, shape in places:
        rows[key, shape[1:]] = max(rows[key, shape[1:]], shape[0])
        parts[key] = tuple(map(max, parts.get(key, shape), shape))
    return {
        "nothing shared": total(shape for _, shape in places),
        "equal tensors": total(shape for _, shape in set(places)),
        "leading rows": total((count, *rest) for (_, rest), count in rows.items()),
        "leading parts": total(parts.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out

    shipped, data = ofa.zoo.load("cifar10"), ofa.cifar10()
    space, macs = shipped.supernet.space, ofa.MACs()
    small = [label for label in shipped.labels if macs.cost(space.lower(label.architecture)) <= 8e6]
    medium = max(small, key=lambda label: label.top1).architecture
    chosen = {"fast": space.smallest(), "medium": medium, "best": space.largest()}
    saved = weight_bytes(ofa.write_bundle(shipped.supernet, chosen, data, out))
    measured = ofa.measure_bundle(out, shipped.supernet, data)["measured"]
    print(json.dumps({"weights_sha256": shipped.weights_sha256, "weight_bytes": saved, **measured}))


if __name__ == "__main__":
    main()
