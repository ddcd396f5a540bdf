"""Claims, for training:

1. the elastic machinery costs at most 5 %: a step (forward and backward) of a sub-network of the supernet takes at most
   1.05 times that of the same architecture as a plain static network of torch modules, at 32 and at 128 px;
2. the loader costs at most 5 %: images a second of the whole loop against the model and the optimiser alone;
3. on x86 cores, channels_last with torch's native activations and this package's two gradients takes at most 0.72 of
   the time of plain NCHW fp32 (0.48 to 0.72 was measured before on such networks); bf16 autocast is reported.

With `--against FOLDER` instead, the elastic step of this checkout over that of another one, in processes that take
turns: one implementation of a block costs at most 1.02 times what two of them did.

Medians of interleaved rounds, so that a drift of the machine meets all variants alike. On CUDA also: the fraction of
the rate that the chip reaches in a large matrix product, the time of one supernet epoch on CIFAR-10, and torch.compile
for the static network, whose shapes are fixed. One line of JSON last.

    python benchmarks/training_speed.py [--rounds 9] [--device cuda] [--pictures FOLDER] [--against CHECKOUT]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from onceforall import Architecture, Network, Supernet, recipes, spaces
from onceforall.data.batches import BatchPlan
from onceforall.data.cifar10 import cifar10
from onceforall.data.dataset import Data
from onceforall.data.folder import image_folder
from onceforall.nn import fast_cpu
from onceforall.nn.subnet import channels_last
from onceforall.space import SearchSpace
from onceforall.training.trainer import train

Step = Callable[[], None]


def architectures(space: SearchSpace) -> dict[str, Architecture]:
    """Largest, smallest and two random ones, at the largest resolution."""
    top = space.restrict(resolutions=space.resolutions[-1:])
    rng = np.random.default_rng(0)
    return {
        "largest": top.largest(),
        "smallest": top.smallest(),
        "random 1": top.sample(rng),
        "random 2": top.sample(rng),
    }


def step(run: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, bf16: bool = False) -> Step:
    """Forward and backward of one batch."""

    def go() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            logits = run(images)
        F.cross_entropy(logits.float(), labels).backward()

    return go


def interleaved(
    steps: dict[str, Step], rounds: int, device: str, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median milliseconds of each, all of them once a round; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, go in steps.items():
            repeats = 1 if device == "cpu" else 10
            synchronise(device)
            began = clock()
            for _ in range(repeats):
                go()
            synchronise(device)
            if turn:
                times[name].append(1e3 * (clock() - began) / repeats)
    return {name: float(np.median(values)) for name, values in times.items()}


def synchronise(device: str) -> None:
    """Wait for the device, where it works on its own."""
    if device != "cpu":
        torch.cuda.synchronize()


def machinery(space: SearchSpace, batch: int, rounds: int, device: str, table: Table) -> dict[str, Any]:
    """Claims 1 and 3."""
    size = space.resolutions[-1]
    images, labels = torch.randn(batch, 3, size, size, device=device), torch.randint(0, 10, (batch,), device=device)
    last = images.contiguous(memory_format=torch.channels_last)
    supernet = channels_last(Supernet(space).to(device)).train()
    found = {}
    for name, arch in architectures(space).items():
        static = channels_last(supernet.extract(arch)).train()
        plain: nn.Module = supernet.extract(arch).to(memory_format=torch.contiguous_format).train()
        fixed = channels_last(Network.of(supernet, arch).to(device)).train()
        steps = {
            "elastic": step(lambda x, arch=arch: supernet(x, arch), last, labels),  # type: ignore[misc]
            "one network, our operations": step(lambda x, net=fixed, arch=arch: net(x, arch), last, labels),  # type: ignore[misc]
            "static torch modules": step(static, last, labels),
            "static, NCHW": step(plain, images, labels),
        }
        if name == "largest":
            steps["elastic, bf16"] = step(lambda x, arch=arch: supernet(x, arch), last, labels, bf16=True)  # type: ignore[misc]
            if device != "cpu":
                compiled = torch.compile(channels_last(supernet.extract(arch)).train())
                steps["static, compiled"] = step(compiled, last, labels)
                steps["static, compiled, bf16"] = step(compiled, last, labels, bf16=True)
        medians = interleaved(steps, rounds, device)
        base = medians["elastic"]
        macs = sum(layer.macs for layer in space.lower(arch))
        for variant, ms in medians.items():
            table.add_row(f"{size} px, {name}", variant, f"{ms:.1f}", f"{1e3 * batch / ms:.0f}", f"{base / ms:.2f}")
        found[f"{size} px, {name}"] = {
            "ms": {variant: round(ms, 2) for variant, ms in medians.items()},
            "elastic / static": round(base / medians["static torch modules"], 3),
            "elastic / one network": round(base / medians["one network, our operations"], 3),
            "elastic / NCHW": round(base / medians["static, NCHW"], 3),
            "GFLOP/s of the elastic step": round(6 * macs * batch / base / 1e6, 1),  # backward costs two forwards
        }
    return found


def elastic_steps(space: SearchSpace, batch: int, rounds: int, device: str) -> dict[str, float]:
    """Milliseconds of the elastic step alone, and of extracting the largest network.

    On a processor it is the time that the process had: what others do on the machine is left out.
    """
    size = space.resolutions[-1]
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,), device=device)
    supernet = channels_last(Supernet(space).to(device)).train()
    steps = {
        f"{size} px, {name}": step(lambda x, arch=arch: supernet(x, arch), images, labels)  # type: ignore[misc]
        for name, arch in architectures(space).items()
    }
    largest = architectures(space)["largest"]
    steps[f"{size} px, extract"] = lambda: _discard(supernet.extract(largest))
    return interleaved(steps, rounds, device, time.process_time if device == "cpu" else time.perf_counter)


def against(checkout: Path, turns: int, rounds: int, device: str) -> dict[str, Any]:
    """The elastic step here over there: the median over turns, in each of which both run in processes of their own."""
    here = Path(__file__).resolve().parents[1]
    options = ["--parts", "elastic", "--rounds", str(rounds), "--device", device]
    found: dict[Path, list[dict[str, float]]] = {here: [], checkout: []}
    for turn in range(turns):
        for root in (here, checkout) if turn % 2 else (checkout, here):
            command = [sys.executable, __file__, *options]
            environment = os.environ | {"PYTHONPATH": str(root)}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            found[root].append(json.loads(done.stdout.splitlines()[-1])["elastic"])
    result = {}
    for name in found[here][0]:
        pairs = [(new[name], old[name]) for new, old in zip(found[here], found[checkout], strict=True)]
        ratios = [new / old for new, old in pairs]
        result[name] = {
            "ms here": round(statistics.median(new for new, _ in pairs), 2),
            "ms there": round(statistics.median(old for _, old in pairs), 2),
            "here / there": round(statistics.median(ratios), 3),
            "from, to": [round(min(ratios), 3), round(max(ratios), 3)],
        }
    return result


def loop(data: Data, space: SearchSpace, batch: int, steps: int, device: str) -> dict[str, float]:
    """Claim 2: images a second of the loop, of the model on one batch again and again, and of the loader alone."""
    recipe = recipes.standalone(10**4, batch)
    with tempfile.TemporaryDirectory() as folder:
        records: list[float] = []

        def clock(record: dict[str, Any]) -> None:
            if "steps" in record:
                synchronise(device)
                records.append(time.perf_counter())

        def run(data: Data, name: str) -> float:
            records.clear()
            quiet: dict[str, Any] = {"checkpoint_every": 10**9, "evaluate_every": 10**9, "device": device}
            train(Supernet(space), data, recipe, Path(folder) / name, stop_after=steps, report=clock, **quiet)
            return batch / float(np.median(np.diff(records)))

        turns = [(run(data, f"loop{turn}"), run(Again(data), f"model{turn}")) for turn in range(3)]
    plan = BatchPlan(data.size("train"), batch, space.resolutions, 0, 0)
    stream = data.training(plan.batches(0, steps), torch.device(device))
    next(stream)
    began = time.perf_counter()
    count = sum(len(labels) for _, labels in stream)
    loader = count / (time.perf_counter() - began)
    whole, model = (float(np.median(column)) for column in zip(*turns, strict=True))
    return {"loop": whole, "model alone": model, "loader alone": loader, "loop / model": whole / model}


class Again:
    """A data set whose loader gives the same batch each time: the model alone."""

    def __init__(self, data: Data) -> None:
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def training(self, plan: Any, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """The first batch, as often as the plan has batches."""
        first, *rest = plan
        (batch,) = self._data.training([first], device)
        return itertools.repeat(batch, 1 + len(rest))


def peak(device: str) -> float:
    """GFLOP/s of a large fp32 matrix product (TF32 off): what this machine reaches at best."""
    n = 2048 if device == "cpu" else 8192
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    times = interleaved({"matmul": lambda: _discard(a @ b)}, 5, device)
    return 2 * n**3 / times["matmul"] / 1e6


def _discard(_: object) -> None:
    pass


def epoch(data: Data, space: SearchSpace, batch: int, device: str, precision: Any) -> float:
    """Seconds of one epoch of random sub-networks, one a step."""
    with tempfile.TemporaryDirectory() as folder:
        records: list[dict[str, Any]] = []
        recipe = recipes.random_order(1, batch, subnets=1)
        train(Supernet(space), data, recipe, folder, device=device, precision=precision, report=records.append)
    speeds = [record["images_per_s"] for record in records if "images_per_s" in record]
    return data.size("train") / float(np.median(speeds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--pictures", type=Path, help="folder of class folders, for the loader of pictures in files")
    parser.add_argument("--parts", nargs="+", choices=("machinery", "loop", "elastic"), default=("machinery", "loop"))
    parser.add_argument("--against", type=Path, help="another checkout: the elastic step here over there")
    parser.add_argument("--turns", type=int, default=7, help="of the two checkouts")
    options = parser.parse_args()
    fast_cpu.keep_freed_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = options.device
    if options.against:
        for name, value in against(options.against.resolve(), options.turns, options.rounds, device).items():
            print(name, json.dumps(value), flush=True)
        return
    small = spaces.mobilenet_v3_small_images((32,))
    large = spaces.mobilenet_v3(resolutions=(128,), num_classes=10)
    table = Table("sub-network", "variant", "ms a step", "images/s", "elastic / this")
    batches = (128, 32) if device == "cpu" else (512, 256)
    results: dict[str, Any] = {}
    if "elastic" in options.parts:
        results["elastic"] = elastic_steps(small, batches[0], options.rounds, device) | elastic_steps(
            large, batches[1], options.rounds, device
        )
    if "machinery" in options.parts:
        results["machinery"] = machinery(small, batches[0], options.rounds, device, table) | machinery(
            large, batches[1], options.rounds, device, table
        )
        Console(width=120).print(table)
    if options.parts != ["elastic"]:
        results["peak GFLOP/s"] = round(peak(device), 1)
    if "loop" in options.parts:
        results["loop, CIFAR-10"] = loop(cifar10(), small, batches[0], 24 if device == "cpu" else 200, device)
    if options.pictures and "loop" in options.parts:
        results["loop, pictures"] = loop(image_folder(options.pictures), large, batches[1], 12, device)
    if device != "cpu":
        results["CIFAR-10 epoch (s)"] = {
            precision: round(epoch(cifar10(), small, batches[0], device, precision), 2)
            for precision in ("fp32", "bf16")
        }
    for name, value in results.items():
        if name not in ("machinery", "elastic"):
            Console(width=120).print(name, value)
    about = {
        "device": torch.cuda.get_device_name() if device != "cpu" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "batch": dict(zip(("32 px", "128 px"), batches, strict=True)),
    }
    print(json.dumps({"benchmark": "training_speed", **about, **results}))


if __name__ == "__main__":
    main()
