"""Repeats what a manifest claims, as far as that can be done here, and says what is not repeated.

Files and computed numbers must be the same; a score may differ by what another version of a runtime, or another
processor, rounds otherwise; a latency is only compared where runtime, machine and settings are the manifest's. What
is allowed is said here, or follows from what was found here: never from what is judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from onceforall import cost, spaces
from onceforall.architecture import Architecture
from onceforall.checkpoint import load_network
from onceforall.cost.analytic import macs, params
from onceforall.data.dataset import Data, Split, as_described, completed, described_input, identity
from onceforall.deploy import derived
from onceforall.deploy.choosing import settings_of
from onceforall.deploy.claims import SAME_NUMBER, Claim, computed, equal, holds, same_json, skipped, told
from onceforall.deploy.exporting import PARITY, Exporter, read_files, run_files
from onceforall.deploy.manifest import Exported, Needed, Number, Specialized, different_keys, value_of
from onceforall.deploy.reading import measured_on, read_manifest, score_in
from onceforall.deploy.specialize import versions
from onceforall.devices.device import Device, Files, Shape
from onceforall.devices.measure import describe_machine
from onceforall.devices.memory import measure_memory
from onceforall.devices.timing import time_turns
from onceforall.errors import BrokenClaim, IncompatibleCheckpoint, InvalidConfiguration, OFAError
from onceforall.nn.supernet import Supernet
from onceforall.predict.accuracy import MLPPredictor, PredictorQuality, assess
from onceforall.predict.labels import Label, training_pairs
from onceforall.profiling.measuring import WHOLE, image_shape, summarise
from onceforall.space import SearchSpace
from onceforall.tasks import Score, task_of

__all__ = ["Claim", "verify"]

SAME_SCORE = 0.05  # points, of the same version of a runtime on the same processor
OTHER_SCORE = 0.3  # of another
SAME_PARITY, OTHER_PARITY = 0.1, 1.0  # shares by which that of a quantised network may differ, likewise
QUALITY = 0.1  # share by which the errors of a predictor may differ that is trained again
MEMORY = 0.25  # share by which peak memory may differ, beside 1 MiB
SLOWER = 0.1  # share by which a shared machine may be slower at another moment, beside the spread found here,
SLOWER_AT_MOST = 0.25  # and both together: a noisy clock makes no claim true
MOMENTS = 3  # at which it may be as fast as the manifest says: whatever else runs only makes it slower


def verify(
    folder: str | Path,
    data: Data | None = None,
    supernet: Supernet | None = None,
    sha256: str | None = None,
    labels: Sequence[Label] | None = None,
) -> Iterator[Claim]:
    """Each claim of a folder's manifest, as it was found here. Raises BrokenClaim at the first that does not hold.

    data: the data set that the manifest names, for scores; supernet: the source, whose file has this
    sha256, for parity with torch (networks that were fine-tuned bring their own weights); labels: what the predictor
    learnt from, for its errors. What is not repeated is a claim as well, and says why. Raises
    InvalidConfiguration or IncompatibleCheckpoint where the folder's files cannot be read.
    """
    folder = Path(folder)
    manifest, networks = read_manifest(folder)
    if supernet is not None:
        yield equal("source weights, sha256", str(manifest["supernet"].get("sha256")), str(sha256))
        yield same_json("source space", manifest["space"], supernet.space.to_json())
    else:
        yield skipped("source weights, sha256", str(manifest["supernet"].get("sha256")), "the supernet is not here")
    data = as_described(data, manifest["data"]) if data is not None else None
    if data is not None and identity(data) != completed(manifest["data"], identity(data)):
        yield skipped("data", str(manifest["data"].get("name")), f"{data.name}, not the same images")
        data = None
    elif data is None:
        yield skipped("data", manifest["data"], "the data set is not here: give --data")
    else:
        yield Claim("data", told(manifest["data"]), "the same")
    score = score_in(manifest)
    yield from _of_data(manifest, data, score)
    yield derived.of_spaces(folder, manifest)
    space = _space(folder, manifest)
    model, predictor, correction = derived.load_twins(folder, manifest)
    yield from derived.of_twins(manifest, model, predictor)
    yield from _quality(manifest, space, labels, score)
    judged = _Judged(folder, manifest, score, data, labels)
    exporter = Exporter(supernet, data, folder) if supernet is not None and data is not None else None
    for network, raw in zip(networks, manifest["networks"], strict=True):
        space.validate(network.architecture)
        layers = space.lower(network.architecture)
        yield equal(f"{network.name}: MACs", network.macs, macs(layers))
        yield equal(f"{network.name}: parameters", network.params, params(layers))
        for needed in network.constraints:
            yield _constraint(network, needed, layers)
        about = f"{network.name}: predicted latency"
        if model is not None:
            yield computed(about, network.predicted_latency, model.cost(layers), 4)
        else:
            yield equal(about, network.predicted_latency, None)
        about = f"{network.name}: predicted {score.name}"
        if manifest["predictor"]["corrected"] and correction is None:
            yield skipped(about, score.text(value_of(network.predicted_score)), "corrected by what was not kept")
        else:
            found = score.goal(float((correction or predictor).predict([network.architecture])[0]))
            yield computed(about, network.predicted_score, found, 2)
        judge = exporter
        if network.finetuning:
            weights = network.finetuning.weights
            yield _intact(f"{network.name}: fine-tuned weights", read_files(folder, [weights]))
            judge = Exporter(load_network(folder / weights.path), data, folder) if data is not None else None
        yield from judged.network(network, judge)
        yield from derived.of_network(manifest, raw, network, space)
    yield from derived.of_budgets(manifest, networks)
    yield from derived.of_this_machine(manifest)
    yield from derived.of_the_rest(folder, manifest, networks)


def _space(folder: Path, manifest: Mapping[str, Any]) -> SearchSpace:
    try:
        return spaces.from_json(manifest["space"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IncompatibleCheckpoint(f"{folder}: the space of its manifest cannot be read: {error}") from error


def _of_data(manifest: Mapping[str, Any], data: Data | None, score: Score) -> Iterator[Claim]:
    """What networks take and give, and by which score they are judged."""
    if data is None:
        yield skipped("input", manifest["input"], "the data set is not here")
        yield skipped("score", score.name, "the data set is not here")
        return
    found = described_input(data)
    if not derived.ours(manifest):  # older versions may have said less
        found = {key: value for key, value in found.items() if key in manifest["input"]}
    yield same_json("input", manifest["input"], found)
    yield equal("score", score, task_of(data).score)


def _quality(
    manifest: Mapping[str, Any], space: SearchSpace, labels: Sequence[Label] | None, score: Score
) -> Iterator[Claim]:
    """The errors of the predictor on labels that it did not learn from."""
    names = [field.name for field in fields(PredictorQuality)]
    stated = {name: manifest["predictor"][name] for name in names}
    if labels is None:
        yield skipped("predictor, errors", stated, "the labels are not here")
        return
    seed, pairs = manifest["seed"], training_pairs(labels, score)
    found = assess(MLPPredictor(space, seed=seed), space, *pairs, seed=seed).to_json()
    for name in names:
        allowed = QUALITY if name in ("rmse", "kendall_tau") else SAME_NUMBER
        right = math.isclose(stated[name], found[name], rel_tol=allowed, abs_tol=min(allowed, 1e-3))
        yield holds(f"predictor, {name}", f"{stated[name]:.6g}", f"{found[name]:.6g}", right)


def _constraint(network: Specialized, needed: Needed, layers: Any) -> Claim:
    """What a network needs of a cost, computed again, and whether it keeps the bound that it was chosen under."""
    about, stated = f"{network.name}: {needed.name}", f"{needed.value:.6g} {needed.unit}"
    models = [cost.by_name(name) for name in cost.names()]
    same = [m for m in models if (m.name, m.unit, settings_of(m)) == (needed.name, needed.unit, needed.settings)]
    if not same:
        return skipped(about, stated, "no cost of this name and these settings is known here")
    equal(f"{about}, kind", needed.kind, same[0].kind)
    claim = computed(about, Number(needed.value, needed.unit, "predicted"), same[0].cost(layers), 0)
    if network.role in ("searched", "uniform") and not needed.met:
        raise BrokenClaim(f"{about}: the manifest says {stated}, which is more than its bound of {needed.bound:.6g}")
    return claim


@dataclass(frozen=True)
class _Run:
    """An export of an architecture whose files are the manifest's, and what runs it here."""

    about: str
    architecture: Architecture
    export: Exported
    device: Device
    files: Files

    @property
    def shape(self) -> Shape:
        """Of its input."""
        return image_shape(self.architecture)


@dataclass(frozen=True)
class _Judged:
    """Runs the networks of a manifest and their exports, as far as that can be done with what is here."""

    folder: Path
    manifest: Mapping[str, Any]
    score: Score
    data: Data | None
    labels: Sequence[Label] | None

    @property
    def threads(self) -> int:
        """Of what runs here."""
        threads = measured_on(self.manifest).get("threads", 1)
        return threads if isinstance(threads, int) and threads > 0 else 1

    def points(self, same: bool) -> float:
        """By how much a score may differ, in points: of the same runtime on the same processor, or of others."""
        processor = measured_on(self.manifest).get("processor")
        return SAME_SCORE if same and processor == describe_machine()["processor"] else OTHER_SCORE

    def network(self, network: Specialized, judge: Exporter | None) -> Iterator[Claim]:
        """Scores of a network in torch, and all of its exports."""
        same = self.manifest["versions"].get("torch") == versions().get("torch")
        if network.test_score is not None:
            about = f"{network.name}, in torch: test {self.score.name}"
            yield self._in_torch(about, network.test_score, network.architecture, judge, "test", self.points(same))
        yield from self._labelled(f"{network.name}: label {self.score.name}", network, None, judge)
        for export in network.exports:
            about = f"{network.name}, {export.name}"
            files = read_files(self.folder, export.files)
            yield _intact(f"{about}: files", files)
            yield from derived.of_export(self.manifest, about, export, self.threads)
            device = derived.made_here(export.device, export.precision, self.threads)
            if isinstance(device, str):
                yield skipped(f"{about}: accuracy, latency", export.runtime, device)
                continue
            run = _Run(
                about, network.architecture, export, device.keeping(export.kept) if export.kept else device, files
            )
            try:
                yield from self._measured(run, network, judge)
            except OFAError:
                raise
            except Exception as error:  # of runtimes, which raise what they like
                raise BrokenClaim(f"{about}: its files are the manifest's, and cannot be run: {error}") from error

    def _measured(self, run: _Run, network: Specialized, judge: Exporter | None) -> Iterator[Claim]:
        yield from self._labelled(f"{run.about}: label {self.score.name}", network, run, judge)
        yield from self._tested(run, judge)
        if run.export.latency is not None:
            yield from _latency(run, run.export.latency.value, measured_on(self.manifest))
        if run.export.peak_memory is not None:
            yield _memory(run, run.export.peak_memory.value)

    def _labelled(self, about: str, network: Specialized, run: _Run | None, judge: Exporter | None) -> Iterator[Claim]:
        """The label score of a network in torch, or of an export: of the labels, or measured again."""
        said = run.export.label_score if run else network.label_score
        device = self.manifest["device"] or {}
        if said is None:
            return
        text = self.score.text(said.value)
        if run is not None and run.export.precision != "fp32":
            if self.data is None:
                yield skipped(about, text, "the data set is not here")
                return
            batches = self.data.batches("label", run.architecture.resolution)
            measured, _ = run_files(run.device, run.files, run.shape, self.data, batches)
            yield _near(about, said.value, measured, self.points(_same_runtime(run)), self.score)
        elif said.kind == "given" or (not derived.ours(self.manifest) and not network.finetuning):
            known = [label.score for label in self.labels or () if label.architecture == network.architecture]
            if self.labels is None or (not known and said.kind != "given"):
                yield skipped(about, text, "of the labels, which are not here")
            else:
                found = ", ".join(map(self.score.text, known)) or "no label"
                right = any(math.isclose(said.value, score, rel_tol=SAME_NUMBER) for score in known)
                yield holds(about, text, found, right)
        elif network.finetuning and not self.manifest["quantize"] and device.get("precision", "fp32") != "fp32":
            yield skipped(about, text, f"in {device['precision']}, as the device has it")
        else:
            same = self.manifest["versions"].get("torch") == versions().get("torch")
            yield self._in_torch(about, said, network.architecture, judge, "label", self.points(same))

    def _in_torch(
        self, about: str, said: Number, arch: Architecture, judge: Exporter | None, split: Split, points: float
    ) -> Claim:
        if judge is None:
            return skipped(about, self.score.text(said.value), "the weights or the data set are not here")
        return _near(about, said.value, judge.in_torch(arch, split), points, self.score)

    def _tested(self, run: _Run, judge: Exporter | None) -> Iterator[Claim]:
        about, export = f"{run.about}: test {self.score.name}", run.export
        stated, same = value_of(export.test_score), _same_runtime(run)
        points = self.points(same)
        if self.data is None:
            yield skipped(about, self.score.text(stated), "the data set is not here: give --data")
            measured = None
        elif judge is not None:
            measured, parity, agreement = judge.judge(run.architecture, run.device, run.files, "test")
            yield _parity(run, parity, points == SAME_SCORE)
            if export.agreement is not None:
                said, here = (f"{value:.2f} %" for value in (export.agreement.value, agreement))
                right = abs(agreement - export.agreement.value) <= points
                yield holds(f"{run.about}: agreement with torch", f"{said}, to {points} points", here, right)
        else:
            batches = self.data.batches("test", run.architecture.resolution)
            measured, _ = run_files(run.device, run.files, run.shape, self.data, batches)
        if measured is not None:
            yield _near(about, stated, measured, points, self.score)
        if self.data is None or judge is None:
            yield skipped(f"{run.about}: parity with torch", f"{value_of(export.parity):.1e}", "torch's is not here")
            yield skipped(f"{run.about}: agreement with torch", f"{value_of(export.agreement):.2f} %", "as parity")


def _same_runtime(run: _Run) -> bool:
    return str(run.device.describe()["runtime"]) == run.export.runtime


def _parity(run: _Run, found: float, same: bool) -> Claim:
    """How far outputs are from torch's: of fp32 below a bound, which is all that rounding leaves to be repeated."""
    about, stated = f"{run.about}: parity with torch", value_of(run.export.parity)
    said, here = (f"{value:.1e}" for value in (stated, found))
    exact = run.export.precision == "fp32"
    holds(about, f"{said}, at most {PARITY:.1e}", here, not exact or max(stated, found) <= PARITY)
    allowed = SAME_PARITY if same else OTHER_PARITY
    near = abs(found - stated) <= allowed * min(found, stated)
    if exact and not near:
        return skipped(about, said, f"{here}: both at most {PARITY:.1e}, and below that rounding decides")
    return holds(about, f"{said}, to {allowed:.0%}", here, near)


def _latency(run: _Run, claimed: float, described: Mapping[str, Any]) -> Iterator[Claim]:
    """At the best of a few moments no slower than the claim, a fixed share, and the spread found here, within bounds.

    The spread in the manifest is a claim itself: it allows nothing.
    """
    about, stated, export, device = f"{run.about}: latency", f"{claimed:.3f} ms", run.export, run.device
    spread = f"{value_of(export.latency_spread):.3f} ms"
    if not device.is_here:
        yield skipped(about, stated, f"measured on another machine, {export.device}")
        yield skipped(f"{about}, spread", spread, "on another machine")
        return
    own = device.describe()
    changed = {"precision": export.precision, "name": export.device, "runtime": export.runtime, "kept": [*export.kept]}
    # What a runtime says beyond name and version (its provider) is of no other runtime's description.
    different = different_keys({**described, **changed}, own)
    if different:
        here = ", ".join(f"{key} {own.get(key)}" for key in different)
        yield skipped(about, stated, f"another device ({here}): profile and specialise here")
        yield skipped(f"{about}, spread", spread, "of another device")
        return
    load = device.loader(run.files, run.shape)
    for _ in range(MOMENTS):
        found = summarise(time_turns([load], WHOLE)[0])
        allowed = min(SLOWER * claimed + found.spread, SLOWER_AT_MOST * claimed)
        if found.median <= claimed + allowed:
            break
    here = f"{found.median:.3f} ms"
    holds(about, f"{stated}, at most {claimed + allowed:.3f} ms", here, found.median <= claimed + allowed)
    if claimed > found.median + allowed:
        yield skipped(about, stated, f"{here}: something else ran when it was measured, or it is not so slow")
    else:
        yield Claim(about, f"{stated}, at most {claimed + allowed:.3f} ms", here)
    yield skipped(f"{about}, spread", spread, f"{found.spread:.3f} ms: of another moment")


def _memory(run: _Run, claimed: float) -> Claim:
    about, stated = f"{run.about}: peak memory", f"{claimed / 2**20:.1f} MiB"
    try:
        found = measure_memory(run.device, run.files, run.shape)
    except InvalidConfiguration as error:
        return skipped(about, stated, str(error))
    here, most = f"{found / 2**20:.1f} MiB", (1 + MEMORY) * claimed + 2**20
    if claimed > (1 + MEMORY) * found + 2**20:
        return skipped(about, stated, f"{here}: less than it says")
    return holds(about, f"{stated}, at most {most / 2**20:.1f} MiB", here, found <= most)


def _intact(about: str, files: Files) -> Claim:
    """That files, which were read and so are those of the manifest, are."""
    size = f"{sum(map(len, files.values()))} bytes"
    return Claim(f"{about}, sha256", size, size)


def _near(about: str, stated: float, found: float, allowed: float, score: Score) -> Claim:
    said = f"{score.text(stated)}, to {allowed} points"
    return holds(about, said, score.text(found), abs(found - stated) <= allowed)
