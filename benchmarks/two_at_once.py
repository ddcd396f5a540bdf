"""Claim: two of our commands at once take at most 2.2 times as long as one, on as many cores as they find.

Runs `ofa search`, `ofa label` (10 sub-networks) and `ofa train` (one epoch of a few hundred pictures) once and twice at
the same time, without settings of threads in the environment, `--turns` times in turn: seconds, medians. JSON last.

    python benchmarks/two_at_once.py [--turns 3] [search] [label] [train]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

OURS = ("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_")  # what the environment may say of threads
PICTURES = 640
MOST = 2.2


def pictures(root: Path) -> None:
    """A folder of two classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", PICTURES // 2), ("val", 20)):
        for name, hue in (("dark", 70), ("light", 180)):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.normal(hue, 30, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")


def seconds(words: list[str], count: int) -> float:
    """Of `count` commands at once; {out} in their words is a folder of each."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    code = "from onceforall.cli import main; main()"
    with tempfile.TemporaryDirectory() as root:
        began = time.perf_counter()
        running = [
            subprocess.Popen(
                [sys.executable, "-c", code, *(word.format(out=Path(root, str(number))) for word in words)],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for number in range(count)
        ]
        if any(process.wait() for process in running):
            raise SystemExit(f"ofa {' '.join(words)} failed")
        return time.perf_counter() - began


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", metavar="search|label|train")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pictures(Path(folder))
        commands = {
            "search": "search --params 0.4 --out {out}.json",
            "label": "label --model cifar10 --count 10 --out {out}.jsonl",
            "train": f"train --data {folder} --epochs 1 --batch-size 64 --workers 0 --out {{out}}",
        }
        rows = {}
        for name in given.commands or commands:
            words = commands[name].split()
            seconds(words, 1)  # files in memory
            found = [(seconds(words, 1), seconds(words, 2)) for _ in range(given.turns)]
            one, two = (statistics.median(column) for column in zip(*found, strict=True))
            rows[name] = {"one_s": round(one, 2), "two_s": round(two, 2), "ratio": round(two / one, 2)}
            print(f"{name:7} one {one:6.1f} s, two at once {two:6.1f} s: {two / one:.2f} times, at most {MOST}")
    print(json.dumps({"benchmark": "two_at_once", "cores": os.cpu_count(), "turns": given.turns, "commands": rows}))


if __name__ == "__main__":
    main()
