"""The steps of one specialisation: which precision, which networks, which of their exports."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onceforall.architecture import Architecture
from onceforall.cost.analytic import macs, params
from onceforall.cost.latency import LatencyTable
from onceforall.cost.learned import LearnedLatency
from onceforall.cost.model import Constraint
from onceforall.cost.profile import WHOLE, image_shape
from onceforall.data.dataset import Data
from onceforall.deploy.budgets import parse_budget
from onceforall.deploy.exporting import PARITY, Exporter, read_files
from onceforall.deploy.finetuning import tuned
from onceforall.deploy.manifest import LATENCY, Export, File, Network, Role, number
from onceforall.deploy.precision import latency_ratio
from onceforall.deploy.steps import FinishedSteps
from onceforall.devices.device import Device
from onceforall.devices.memory import measure_memory
from onceforall.devices.timing import summarise, time_turns
from onceforall.errors import InfeasibleConstraint, InvalidConfiguration
from onceforall.evaluate import top1
from onceforall.files import sha256
from onceforall.nn.supernet import Supernet
from onceforall.predict.accuracy import MLPPredictor, PredictorQuality, assess
from onceforall.predict.corrected import CorrectedPredictor
from onceforall.predict.labels import Label, training_pairs
from onceforall.search.evolution import search

ATTEMPTS = 4
# First layers that may stay in floating point: their few channels differ most in range, and one scale serves them all.
KEPT = ((), (0,), (0, 1), (0, 1, 2))
QUANTIZED = ("int8", "bf16")


class Job:
    """What the steps share. `target` is the device in the precision that searches are for."""

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
        done: FinishedSteps,
        *,
        limits: Sequence[Constraint],
        quantize: str | None,
        max_drop: float,
        full_int8: bool,
        candidates: int,
        seed: int,
        report: Callable[[str, int, int], None],
    ) -> None:
        if quantize is not None and quantize not in QUANTIZED:
            raise InvalidConfiguration(f"quantize {quantize!r}: choices are {', '.join(QUANTIZED)}")
        if quantize is not None and device.precision != "fp32":
            raise InvalidConfiguration(f"quantize {quantize!r} on a device in {device.precision}: give one in fp32")
        if quantize is not None and not device.is_here:
            raise InvalidConfiguration(
                f"quantize on {device.name}: precisions cannot be compared from here; specialise for one "
                "of them, or there"
            )
        if not max_drop >= 0:
            raise InvalidConfiguration(f"max_drop {max_drop}: expected points of top-1, at least 0")
        if candidates < 1:
            raise InvalidConfiguration(f"candidates {candidates}: expected at least 1")
        self.supernet, self.labels, self.data, self.done = supernet, labels, data, done
        self.out, self.candidates, self.seed, self.report = out, candidates, seed, report
        self.space, self.limits, self.max_drop = supernet.space, list(limits), max_drop
        self.full_int8 = full_int8
        self.device = self.target = device
        self.low = device.with_precision(quantize) if quantize else None
        self.exporter = Exporter(supernet, data, out)
        self._finetuned: dict[str, Exporter] = {}  # by the path of the weights
        self.label_top1 = {label.architecture: label.top1 for label in labels}
        self.correction: CorrectedPredictor | None = None
        self.further: dict[tuple[str, str], Device] = {}
        self.sensitivity: dict[str, list[dict[str, Any]]] = {}  # of each runtime with int8 networks

    # The twins

    def fit(self) -> None:
        """The accuracy predictor, and how good it is."""
        archs, accuracies = training_pairs(self.labels)
        self.quality = assess(MLPPredictor(self.space, seed=self.seed), self.space, archs, accuracies, seed=self.seed)
        self.predictor = MLPPredictor(self.space, seed=self.seed).fit(archs, accuracies)

    def choose_precision(self) -> dict[str, Any] | None:
        """Which precision the searches are for: the quantised one if it is faster. What was found, for the manifest."""
        if self.low is None:
            return None
        self.low = low = self.choose_kept(self.low)
        step = f"precision {low.precision} {list(low.kept)}"
        found = self.done.once(step, lambda: latency_ratio(self.space, low, self.device, self.seed, self.report))
        faster = found["latency_ratio"]["value"] < 1
        self.target = self.low if faster else self.device
        verdict = "faster than fp32" if faster else "no faster than fp32: searched for fp32, exported in both"
        return {**found, "verdict": verdict, "kept": list(self.low.kept)}

    def choose_kept(self, low: Device) -> Device:
        """Keeping those first layers in fp32 with which the largest network is most accurate on the label images."""
        if low.precision != "int8" or not low.keeps_layers or self.full_int8:
            return low
        largest, found = self.space.largest(), []
        for index, kept in enumerate(KEPT):
            self.report("sensitive layers", index, len(KEPT))
            found.append(self._label_top1(largest, low.keeping(kept)))
        self.report("sensitive layers", len(KEPT), len(KEPT))
        self.sensitivity[low.name] = [
            {"kept": list(kept), "label_top1": number(top1, "percent", "measured")}
            for kept, top1 in zip(KEPT, found, strict=True)
        ]
        return low.keeping(KEPT[int(np.argmax(found))])

    def correct_predictor(self, count: int) -> None:
        """Label sub-networks in the target's precision, on the device, and learn what that costs."""
        self.correction = CorrectedPredictor(self.predictor).fit(*self.changes(self.target, count))

    def changes(self, device: Device, count: int) -> tuple[list[Architecture], list[float]]:
        """Labelled sub-networks, spread over their accuracies, and how far label top-1 on a device is from that."""
        archs = [label.architecture for label in self.labels]
        order = np.argsort([label.top1 for label in self.labels])
        chosen = [archs[i] for i in order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)]]
        found = []
        for index, arch in enumerate(chosen):
            self.report(f"accuracy in {device.precision}", index, len(chosen))
            found.append(self._label_top1(arch, device) - self.label_top1[arch])
        self.report(f"accuracy in {device.precision}", len(chosen), len(chosen))
        return chosen, found

    # Networks

    def networks(self, budgets: Sequence[str], architectures: Sequence[Architecture]) -> list[Network]:
        """The largest network, for each budget what a search and what uniform choices give, and those given.

        Their latencies are measured. An interrupted call finds what it chose before: latencies of another
        moment, and so the bounds that follow from them, would choose others.
        """
        made: list[Network] = []

        def choose() -> list[dict[str, Any]]:
            made.extend(self._chosen(budgets, architectures))
            return [network.to_json() for network in made]

        asked = {
            "budgets": list(budgets),
            "architectures": [arch.to_json() for arch in architectures],
            "limits": [str(limit) for limit in self.limits],
            "low": self.low.describe() if self.low else None,
            "max_drop": self.max_drop,
            "candidates": self.candidates,
            "corrected": self.correction is not None,
            "latency": sha256(self.out / LATENCY),
        }
        found = self.done.once(f"networks {json.dumps(asked)}", choose)
        if not made:
            for network in map(Network.from_json, found):
                again = self.network(network.role, network.budget, network.budget_ms, network.architecture)
                again.attempts, again.label_top1 = network.attempts, network.label_top1
                made.append(again)
            self.measure_latency(made)
        return made

    def _chosen(self, budgets: Sequence[str], architectures: Sequence[Architecture]) -> list[Network]:
        largest = self.network("largest", None, None, self.space.largest())
        self.measure_latency([largest])
        bounds = [(text, parse_budget(text, largest.measured_latency_ms)) for text in budgets]
        networks = [largest]
        for index, (text, bound) in enumerate(bounds):
            self.report("search", index, len(bounds))
            networks += [self.searched(text, bound, bound), self.uniform(text, bound, bound)]
        self.report("search", len(bounds), len(bounds))
        networks += [
            self.network("given", str(number) if number > 1 else None, None, arch)
            for number, arch in enumerate(architectures, 1)
        ]
        return self.hold_budgets(networks)

    def network(self, role: Role, budget: str | None, budget_ms: float | None, arch: Architecture) -> Network:
        """Extract, calibrate and export one architecture."""
        layers = self.space.lower(arch)
        predicted = float((self.correction or self.predictor).predict([arch])[0])
        network = Network(
            role, budget, budget_ms, arch, macs(layers), params(layers), self.table.cost(layers), predicted
        )
        network.exports = self._exports(network)
        network.label_top1 = self.label_top1.get(arch, math.nan)  # known for those that the exports asked for
        return network

    def searched(self, budget: str, budget_ms: float, bound: float) -> Network:
        """The best of the search's candidates by measured label top-1, in the precision that it is for."""
        constraints = [self.table.at_most(bound), *self.limits]
        accuracy = self.correction or self.predictor
        result = search(self.space, accuracy, constraints, seed=self.seed, keep=self.candidates)
        ranked = [result.architecture, *result.runners_up]
        best = max(ranked, key=lambda arch: self._label_top1(arch, self.target))
        return self.network("searched", budget, budget_ms, best)

    def uniform(self, budget: str, budget_ms: float, bound: float) -> Network:
        """The best uniform network within the bound: by measured label top-1, or predicted where none is labelled."""
        costs = {arch: self.table.cost(self.space.lower(arch)) for arch in self.space.uniforms() if self._within(arch)}
        within = [arch for arch, cost in costs.items() if cost <= bound]
        if not within:
            least = min(costs.values(), default=math.nan)
            raise InfeasibleConstraint(
                f"latency <= {bound:.4g} ms cannot be met by a uniform network: the smallest needs {least:.4g} ms",
                least,
            )
        measured = [arch for arch in within if arch in self.label_top1]
        if measured:
            best = max(measured, key=self.label_top1.__getitem__)
        else:
            best = within[int(np.argmax(self.predictor.predict(within)))]
        return self.network("uniform", budget, budget_ms, best)

    def _within(self, arch: Architecture) -> bool:
        layers = self.space.lower(arch)
        return all(constraint.model.cost(layers) <= constraint.bound for constraint in self.limits)

    # Exports

    def _exports(self, network: Network) -> list[Export]:
        """Every export of a network that may be the one to use."""
        arch, weights, found = network.architecture, network.weights, []
        for device in (self.low, self.device):
            if device is not None:
                export = self._exporter(weights).export(network.name, arch, device)
                if self.low is not None:
                    export.label_top1 = self._label_top1(arch, device, weights)
                found.append(export)
        return found

    def _exporter(self, weights: File | None) -> Exporter:
        """What exports the supernet's weights, or those that fine-tuning made of them."""
        return self.exporter if weights is None else self._finetuned[weights.path]

    def _label_top1(self, arch: Architecture, device: Device, weights: File | None = None) -> float:
        """Measured on the label images: in torch for fp32, else by the files in their runtime."""
        exporter, of = self._exporter(weights), f"{arch}, fine-tuned {weights.sha256}" if weights else str(arch)
        if device.precision == "fp32":
            if weights is None and arch in self.label_top1:
                return self.label_top1[arch]
            batches = self.data.batches("label", arch.resolution)
            found = self.done.once(f"label fp32 {of}", lambda: top1(exporter.plain(arch), batches))
            if weights is None:
                self.label_top1[arch] = found
            return found
        return self.done.once(
            f"label {device.name} {device.precision} {list(device.kept)} {of}",
            lambda: exporter.judge(arch, device, exporter.convert(arch, device), "label").top1,
        )

    def hold_budgets(self, networks: list[Network]) -> list[Network]:
        """Measure latencies together; replace what breaks its budget by a choice under a tighter bound."""
        bounds = [network.budget_ms for network in networks]
        for attempt in range(ATTEMPTS):
            self.report("latency on the device", attempt, ATTEMPTS)
            self.measure_latency(networks)
            broken = [index for index, network in enumerate(networks) if network.budget_met is False]
            if not broken or attempt == ATTEMPTS - 1:
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
        self.report("latency on the device", ATTEMPTS, ATTEMPTS)
        return networks

    def finetune(self, networks: Sequence[Network], epochs: int) -> None:
        """Go on training what was searched or given, and export it again. Interrupted, the training goes on as well."""
        chosen = [network for network in networks if network.role in ("searched", "given")]
        for index, network in enumerate(chosen):
            self.report("fine-tuning", index, len(chosen))
            arch = network.architecture
            own, tuning = tuned(self.supernet, arch, self.data, epochs, self.seed, self.out, network.name)
            self._finetuned[tuning.weights.path] = Exporter(own, self.data, self.out)
            before = self._label_top1(arch, self.device)
            network.finetuning = tuning
            network.exports = self._exports(network)
            network.label_top1 = self._label_top1(arch, self.device, network.weights)
            network.attempts.append(
                f"fine-tuned for {epochs} epochs: label top-1 {before:.2f} -> {network.label_top1:.2f} %"
            )
        if chosen:
            self.report("fine-tuning", len(chosen), len(chosen))
            self.measure_latency(networks)

    def measure_latency(self, networks: Sequence[Network]) -> None:
        """Interleaved timings of all exports; each network's export to use follows from them."""
        self.time([(network, export) for network in networks for export in network.exports])
        for network in networks:
            network.chosen = self.choice(network)

    def time(self, exports: Sequence[tuple[Network, Export]]) -> None:
        """Latency of exported files, interleaved."""
        here: list[tuple[Network, Export]] = []
        away: list[tuple[Network, Export]] = []
        for network, export in exports:
            (here if self._device_of(export).is_here else away).append((network, export))
        if here:
            loads = [
                self._device_of(export).loader(read_files(self.out, export.files), image_shape(network.architecture))
                for network, export in here
            ]
            step = "timing on the device"
            self._note(here, time_turns(loads, WHOLE, report=lambda done, total: self.report(step, done, total)))
        if away:  # a plan for another machine, or its results; weights make no difference to it
            modules = [(self.exporter.plain(n.architecture), image_shape(n.architecture)) for n, _ in away]
            self._note(away, self.device.time(modules, WHOLE))

    def _note(self, exports: Sequence[tuple[Network, Export]], ms: NDArray[np.float64]) -> None:
        for (_, export), row in zip(exports, ms, strict=True):
            timing = summarise(row)
            export.latency_ms, export.latency_spread_ms = timing.median, timing.spread

    def choice(self, network: Network) -> int:
        """The export to use: within the budget and accurate enough, the fastest; else the best within the budget."""
        own = [index for index, export in enumerate(network.exports) if export.device == self.target.name]
        if self.low is None:
            return own[0]
        exports, bound = network.exports, network.budget_ms or math.inf
        within = [index for index in own if exports[index].latency_ms <= bound]
        if not within:
            return min(own, key=lambda index: exports[index].latency_ms)
        fp32 = next(exports[index].label_top1 for index in own if exports[index].precision == "fp32")
        accurate = [index for index in within if exports[index].label_top1 >= fp32 - self.max_drop]
        if accurate:
            return min(accurate, key=lambda index: exports[index].latency_ms)
        return max(within, key=lambda index: exports[index].label_top1)

    def export_further(self, networks: Sequence[Network], devices: Sequence[Device]) -> None:
        """The same networks for other runtimes, timed there."""
        devices, added = [self.choose_kept(device) for device in devices], []
        for step, network in enumerate(networks):
            for device in devices:
                self.report("further exports", step, len(networks))
                self.further[device.name, device.precision] = device
                export = self._exporter(network.weights).export(network.name, network.architecture, device)
                network.exports.append(export)
                added.append((network, export))
        if added:
            self.time(added)
            self.report("further exports", len(networks), len(networks))

    def export_standalone(self, networks: Sequence[Network]) -> None:
        """Every network as a Python file with its weights, which needs nothing of this package."""
        for index, network in enumerate(networks):
            self.report("standalone files", index, len(networks))
            exporter = self._exporter(network.weights)
            network.standalone = exporter.export_standalone(network.name, network.architecture)
        self.report("standalone files", len(networks), len(networks))

    def verify(self, networks: Sequence[Network]) -> None:
        """Top-1 on the test images and peak memory, of each export in its runtime, and its parity with torch."""
        exports = [(network, export) for network in networks for export in network.exports]
        for index, (network, export) in enumerate(exports):
            self.report("verified on test images", index, len(exports))
            self._verify(network, export)
        self.report("verified on test images", len(exports), len(exports))

    def _verify(self, network: Network, export: Export) -> None:
        device, files = self._device_of(export), read_files(self.out, export.files)
        step = f"test {export.device} {export.precision} {[file.sha256 for file in export.files]}"
        exporter = self._exporter(network.weights)
        judged = self.done.once(step, lambda: list(exporter.judge(network.architecture, device, files, "test")))
        export.test_top1, export.parity, export.agreement = judged
        if device.is_here:
            shape = image_shape(network.architecture)
            with contextlib.suppress(InvalidConfiguration):  # of a device that another process cannot make
                export.memory_bytes = self.done.once(f"memory {step}", lambda: measure_memory(device, files, shape))
        if export.precision == "fp32" and export.parity > PARITY:
            raise InvalidConfiguration(
                f"{export.files[0].path}: its logits differ from torch's by {export.parity:.1e} of the largest "
                f"(allowed: {PARITY:g}): {export.runtime} computes something else"
            )

    def _device_of(self, export: Export) -> Device:
        for device in (self.device, *([self.low] if self.low else [])):
            if (device.name, device.precision) == (export.device, export.precision):
                return device
        return self.further[export.device, export.precision]
