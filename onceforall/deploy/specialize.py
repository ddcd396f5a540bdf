"""Specialise a supernet for a device: search, extract, calibrate, export, measure, and say what came out.

Which images decide what: the predictor learnt from the label images; the best candidates of a
search are measured on the label images again; the test images are used once, at the end, on what
was chosen.
"""

from __future__ import annotations

import math
import platform
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from onceforall.architecture import Architecture
from onceforall.cost.analytic import macs, params
from onceforall.cost.latency import LatencyTable
from onceforall.cost.learned import LearnedLatency
from onceforall.cost.profile import image_shape, measure_latency, profile
from onceforall.data.dataset import Data
from onceforall.deploy.manifest import FORMAT, Network, Role, Specialization
from onceforall.devices.device import Device
from onceforall.devices.onnx import to_onnx
from onceforall.errors import InfeasibleConstraint, InvalidConfiguration
from onceforall.evaluate import specialised, top1
from onceforall.files import sha256, write_atomically, write_json
from onceforall.nn.supernet import Supernet
from onceforall.predict.accuracy import MLPPredictor, PredictorQuality, assess
from onceforall.predict.labels import Label, training_pairs
from onceforall.search.evolution import search

Report = Callable[[str, int, int], None]

PARITY = 1e-4  # largest allowed difference of logits between the exported file and torch, relative to the largest logit


def specialize(
    supernet: Supernet,
    labels: Sequence[Label],
    data: Data,
    device: Device,
    out: str | Path,
    *,
    budgets: Sequence[str] = ("40%", "60%", "80%"),
    architectures: Sequence[Architecture] = (),
    table: LatencyTable | LearnedLatency | None = None,
    candidates: int = 4,
    seed: int = 0,
    about: dict[str, Any] | None = None,
    report: Report = lambda step, done, total: None,
) -> Specialization:
    """Specialised networks for latency budgets on a device, exported to `out` with a manifest.

    `architectures` are specialised as they are, without a budget. Beside each network that a budget
    finds stand the best uniform network within the same budget (chosen by its measured label
    top-1 where it is labelled), and the largest network. `candidates`: how many of a search's best
    networks are measured on the label images. A network whose measured latency breaks its budget is
    replaced: the search is repeated with a bound tightened by the excess, three times at most.

    Raises InfeasibleConstraint where a budget is below what the space reaches on this device,
    UnwritableOutput where `out` cannot be written.
    """
    out = Path(out)
    began = time.perf_counter()
    write_json(out / "manifest.json", {"format": FORMAT, "state": "running"})
    job = _Job(supernet, labels, data, device, out, candidates, seed, report)
    report("accuracy predictor", 0, 1)
    job.fit()
    report("accuracy predictor", 1, 1)
    if table is None:
        table = profile(supernet.space, device, seed=seed, report=lambda s, d, t: report(f"latency table: {s}", d, t))
    job.table = table
    table.save(out / "latency.json")

    largest = job.network("largest", None, None, supernet.space.largest())
    job.measure_latency([largest])
    limits = [(text, parse_budget(text, largest.measured_latency_ms)) for text in budgets]
    networks = [largest]
    for index, (text, limit) in enumerate(limits):
        report("search", index, len(limits))
        networks += [job.searched(text, limit, limit), job.uniform(text, limit, limit)]
    report("search", len(limits), len(limits))
    networks += [job.network("given", None, None, arch, number) for number, arch in enumerate(architectures, 1)]
    networks = job.hold_budgets(networks)
    for index, network in enumerate(networks):
        report("accuracy on test images", index, len(networks))
        job.measure_accuracy(network)
    report("accuracy on test images", len(networks), len(networks))
    result = Specialization(
        networks,
        device.describe(),
        table,
        job.quality,
        labels,
        {
            "supernet": about or {},
            "space": supernet.space.to_json(),
            "data": data.describe(),
            "seed": seed,
            "seconds": time.perf_counter() - began,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "onnx": onnx.__version__},
        },
    )
    write_json(out / "manifest.json", result.to_json())
    return result


def parse_budget(text: str, largest_ms: float) -> float:
    """Milliseconds of a budget: "0.5 ms", "0.5ms", or "60%" of the largest network. Raises InvalidConfiguration."""
    match = re.fullmatch(r"\s*(\S+?)\s*(ms|%)\s*", text)
    try:
        number, unit = (float(match[1]), match[2]) if match else (math.nan, "")
    except ValueError:
        number, unit = math.nan, ""
    if not 0 < number < math.inf:
        raise InvalidConfiguration(
            f'budget {text!r}: give milliseconds ("0.5 ms") or a share of the largest network ("60%"), above 0'
        )
    return number if unit == "ms" else number / 100 * largest_ms


class _Job:
    """What the steps of one specialisation share."""

    table: LatencyTable | LearnedLatency
    predictor: MLPPredictor
    quality: PredictorQuality

    def __init__(
        self,
        supernet: Supernet,
        labels: Sequence[Label],
        data: Data,
        device: Device,
        out: Path,
        candidates: int,
        seed: int,
        report: Report,
    ) -> None:
        self.supernet, self.labels, self.data, self.device = supernet, labels, data, device
        self.out, self.candidates, self.seed, self.report = out, candidates, seed, report
        self.space = supernet.space
        self.plain: dict[Architecture, nn.Sequential] = {}
        self.label_top1 = {label.architecture: label.top1 for label in labels}

    def fit(self) -> None:
        archs, accuracies = training_pairs(self.labels)
        self.quality = assess(MLPPredictor(self.space, seed=self.seed), self.space, archs, accuracies, seed=self.seed)
        self.predictor = MLPPredictor(self.space, seed=self.seed).fit(archs, accuracies)

    def network(
        self, role: Role, budget: str | None, budget_ms: float | None, arch: Architecture, number: int = 0
    ) -> Network:
        """Extract, calibrate and export one architecture; its file is named by role and budget or number."""
        layers = self.space.lower(arch)
        plain = self._plain(arch)
        suffix = budget.replace("%", "pct").replace(" ", "") if budget else str(number or "")
        name = f"{role}-{suffix}" if suffix else role
        model = to_onnx(plain, image_shape(arch))
        path = self.out / f"{name}.onnx"
        write_atomically(path, model)
        return Network(
            role,
            budget,
            budget_ms,
            arch,
            macs(layers),
            params(layers),
            self.table.cost(layers),
            float(self.predictor.predict([arch])[0]),
            label_top1=self.label_top1.get(arch),
            file=path.name,
            bytes=len(model),
            sha256=sha256(path),
        )

    def searched(self, budget: str, budget_ms: float, bound: float) -> Network:
        """The best of the search's candidates by measured label top-1."""
        constraint = self.table.at_most(bound)
        result = search(self.space, self.predictor, [constraint], seed=self.seed, keep=self.candidates)
        ranked = [result.architecture, *result.runners_up]
        for arch in ranked:
            if arch not in self.label_top1:
                batches = self.data.batches("label", arch.resolution)
                self.label_top1[arch] = top1(self._plain(arch), batches)
        return self.network("searched", budget, budget_ms, max(ranked, key=self.label_top1.__getitem__))

    def uniform(self, budget: str, budget_ms: float, bound: float) -> Network:
        """The best uniform network within the bound: by measured label top-1, or predicted where none is labelled."""
        costs = {arch: self.table.cost(self.space.lower(arch)) for arch in self.space.uniforms()}
        within = [arch for arch, cost in costs.items() if cost <= bound]
        if not within:
            raise InfeasibleConstraint(
                f"latency <= {bound:.4g} ms cannot be met by a uniform network: the smallest needs "
                f"{min(costs.values()):.4g} ms",
                min(costs.values()),
            )
        measured = [arch for arch in within if arch in self.label_top1]
        if measured:
            best = max(measured, key=self.label_top1.__getitem__)
        else:
            best = within[int(np.argmax(self.predictor.predict(within)))]
        return self.network("uniform", budget, budget_ms, best)

    def hold_budgets(self, networks: list[Network]) -> list[Network]:
        """Measure latencies together; replace what breaks its budget by a choice under a tighter bound."""
        bounds = [network.budget_ms for network in networks]
        for attempt in range(4):
            self.report("latency on the device", attempt, 4)
            self.measure_latency(networks)
            broken = [index for index, network in enumerate(networks) if network.budget_met is False]
            if not broken or attempt == 3:
                break
            for index in broken:
                old = networks[index]
                assert old.budget is not None
                assert old.budget_ms is not None
                bound = (bounds[index] or 0.0) * 0.995 * old.budget_ms / old.measured_latency_ms
                note = (
                    f"{old.architecture}: measured {old.measured_latency_ms:.4f} ms, bound tightened to {bound:.4f} ms"
                )
                choose = self.searched if old.role == "searched" else self.uniform
                try:
                    new = choose(old.budget, old.budget_ms, bound)
                except InfeasibleConstraint:
                    old.attempts.append(f"{note}: nothing smaller")
                    continue
                new.attempts = [*old.attempts, note]
                networks[index], bounds[index] = new, bound
        self.report("latency on the device", 4, 4)
        return networks

    def measure_latency(self, networks: list[Network]) -> None:
        """Interleaved timings of the exported files."""
        models = [((self.out / network.file).read_bytes(), image_shape(network.architecture)) for network in networks]
        for network, timing in zip(networks, measure_latency(self.device, models), strict=True):
            network.measured_latency_ms, network.latency_spread_ms = timing.median, timing.spread

    def measure_accuracy(self, network: Network) -> None:
        """Top-1 of the exported file on the test images, and its parity with torch."""
        own = threading.local()
        shape = image_shape(network.architecture)
        files = {".onnx": (self.out / network.file).read_bytes()}

        def classify(image: np.ndarray) -> np.ndarray:
            if not hasattr(own, "session"):
                own.session = self.device.load(files, shape)
            logits: np.ndarray = own.session(image[None])[0]
            return logits

        correct = count = 0
        network.parity = 0.0
        with ThreadPoolExecutor(2) as pool, torch.inference_mode():
            for images, labels in self.data.batches("test", network.architecture.resolution):
                logits = np.stack(list(pool.map(classify, images.contiguous().numpy())))
                if not count:
                    expected = self._plain(network.architecture)(images).numpy()
                    network.parity = float(np.abs(logits - expected).max() / np.abs(expected).max())
                correct += int((logits.argmax(1) == labels.numpy()).sum())
                count += len(labels)
        network.test_top1 = 100 * correct / count
        if network.parity > PARITY:
            raise InvalidConfiguration(
                f"{network.file}: its logits differ from torch's by {network.parity:.1e} of the largest "
                f"(allowed: {PARITY:g}): this ONNX Runtime computes something else"
            )

    def _plain(self, arch: Architecture) -> nn.Sequential:
        if arch not in self.plain:
            self.plain[arch] = specialised(self.supernet, arch, self.data)
        return self.plain[arch]
