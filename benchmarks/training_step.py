"""Claim: on x86 cores, channels_last with this package's two CPU gradients and kept memory makes a training step of the
largest small-image sub-network at least 2 times faster than plain NCHW fp32; bf16 autocast makes it slower.

Forward and backward of a supernet step, batch 128, at 32 px, medians of interleaved rounds. One line of JSON last.

    python benchmarks/training_step.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import time
from collections.abc import Iterator

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from onceforall import spaces
from onceforall.nn import blocks, fast_cpu, ops
from onceforall.nn.subnet import channels_last
from onceforall.nn.supernet import Supernet

BATCH = 128
VARIANTS = {
    "NCHW fp32, torch's gradients": (False, False, False),
    "channels_last fp32, torch's gradients": (True, False, False),
    "channels_last fp32, ours": (True, True, False),
    "channels_last bf16 autocast, ours": (True, True, True),
}


@contextlib.contextmanager
def gradients(ours: bool) -> Iterator[None]:
    """Our two gradients, or torch's own."""
    kept = fast_cpu._MAX_PIXEL_PAIRS, ops.global_pool, blocks.global_pool
    if not ours:
        fast_cpu._MAX_PIXEL_PAIRS = 0
        ops.global_pool = blocks.global_pool = lambda x: F.adaptive_avg_pool2d(x, 1)
    try:
        yield
    finally:
        fast_cpu._MAX_PIXEL_PAIRS, ops.global_pool, blocks.global_pool = kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--no-bf16", action="store_true", help="leave bf16 out: a step takes many seconds on some processors"
    )
    rounds = parser.parse_args()
    fast_cpu.keep_freed_memory()
    space = spaces.mobilenet_v3_small_images()
    architectures = {"largest": space.largest(), "smallest at 32 px": space.uniform(2, 3, 3, 32)}
    nets = {flag: Supernet(space).train() for flag in (False, True)}
    channels_last(nets[True])
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))
    chosen = {name: v for name, v in VARIANTS.items() if not (rounds.no_bf16 and v[2])}
    seconds: dict[tuple[str, str], list[float]] = {(a, v): [] for a in architectures for v in chosen}
    for turn in range(rounds.rounds + 1):
        for (arch, variant), times in seconds.items():
            last, ours, bf16 = chosen[variant]
            x = images.contiguous(memory_format=torch.channels_last) if last else images
            with gradients(ours):
                began = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    logits = nets[last](x, architectures[arch])
                F.cross_entropy(logits.float(), labels).backward()
                if turn:  # the first warms up
                    times.append(time.perf_counter() - began)
    medians = {key: 1e3 * float(np.median(times)) for key, times in seconds.items()}
    table = Table("sub-network", "variant", "ms a step", "images/s", "ratio")
    base = next(iter(VARIANTS))
    for (arch, variant), ms in medians.items():
        table.add_row(arch, variant, f"{ms:.0f}", f"{1e3 * BATCH / ms:.0f}", f"{ms / medians[arch, base]:.2f}")
    Console().print(table)
    result = {f"{arch} | {variant}": round(ms, 1) for (arch, variant), ms in medians.items()}
    about = {"threads": torch.get_num_threads(), "torch": torch.__version__, "machine": platform.machine()}
    print(json.dumps({"benchmark": "training_step", "unit": "ms, batch 128", **about, "median": result}))


if __name__ == "__main__":
    main()
