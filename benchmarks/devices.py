"""Which runtimes work on this machine, how truly do they compute, how fast are they?

    python benchmarks/devices.py [--devices onnxruntime torch ...] [--turns 9]

Every device of `ofa devices` in every precision that works here, one thread, batch 1: the smallest and the largest
network of the small-images space at 32 px, and the smallest of the MobileNetV3 space at 224 px, random weights. Says
for each the version, the largest difference of outputs to torch fp32 relative to the largest output (correlation for
int8), seconds of conversion of the last network, and the latency in ms. Latencies of all devices are interleaved turn
by turn, so they compare; on a machine that does other work they do nothing but compare.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import numpy as np
import torch

from onceforall import devices, spaces
from onceforall.devices.measure import random_images
from onceforall.devices.timing import Turns, time_turns
from onceforall.errors import InvalidConfiguration
from onceforall.nn.subnet import build, fold_batch_norm, initialise
from onceforall.profiling.measuring import summarise
from onceforall.testing import scramble


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", nargs="*", default=list(devices.NAMES))
    parser.add_argument("--turns", type=int, default=9)
    options = parser.parse_args()
    small, large = spaces.mobilenet_v3_small_images(), spaces.mobilenet_v3()
    jobs = {
        "smallest_32": (small, small.smallest(), 32),
        "largest_32": (small, small.largest(), 32),
        "smallest_224": (large, large.smallest(), 224),
    }
    networks = {}
    for name, (space, arch, size) in jobs.items():
        network = build(space.lower(replace(arch, resolution=size)))
        initialise(network, torch.Generator().manual_seed(0))
        scramble(network)
        networks[name] = fold_batch_norm(network), (1, 3, size, size)
    rows, loads = [], []
    for name in options.devices:
        for precision in devices.registry.factory(name).precisions:
            try:
                device = devices.by_name(name, 1, precision)
            except InvalidConfiguration as error:
                print(f"{name} {precision}: {error}", flush=True)
                continue
            row = {"device": name, "precision": precision, "runtime": device.describe()["runtime"]}
            for job, (network, shape) in networks.items():
                began = time.process_time()
                files = device.convert(network, shape)
                row["convert_cpu_s"] = round(time.process_time() - began, 2)
                session = device.load(files, shape)
                images = random_images((8, *shape[1:]), seed=1)
                found = np.concatenate([session(image[None]).copy() for image in images])
                with torch.inference_mode():
                    expected = network(torch.from_numpy(images)).numpy()
                key, value = "parity", float(np.abs(found - expected).max() / np.abs(expected).max())
                if precision == "int8":
                    key, value = "correlation", float(np.corrcoef(found.ravel(), expected.ravel())[0, 1])
                row[f"{job}_{key}"] = float(f"{value:.2g}") if key == "parity" else round(value, 4)
                loads.append(lambda run=session.run: run)
            rows.append(row)
            print(json.dumps(row), flush=True)
    times = time_turns(loads, Turns(options.turns, 0.02))
    for index, row in enumerate(rows):
        for job, turn in zip(networks, times[index * len(networks) :], strict=False):
            timing = summarise(turn)
            row[f"{job}_ms"], row[f"{job}_spread_ms"] = round(timing.median, 4), round(timing.spread, 4)
        print({key: value for key, value in row.items() if key.endswith("_ms") or key in ("device", "precision")})
    print(json.dumps({"machine": devices.by_name("torch").describe()["processor"], "devices": rows}))


if __name__ == "__main__":
    main()
