"""Repeats what a manifest claims, as far as that can be done here.

Files and computed numbers must be the same; an accuracy may differ by what another version of a
runtime rounds otherwise; a latency is only compared where runtime, machine and settings are the manifest's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onceforall import cost, spaces
from onceforall.architecture import Architecture
from onceforall.checkpoint import load_network
from onceforall.cost.analytic import macs, params
from onceforall.cost.learned import load_latency
from onceforall.data.dataset import Data, as_described, completed, identity
from onceforall.deploy import exports
from onceforall.deploy.choosing import settings_of
from onceforall.deploy.exporting import PARITY, Exporter, read_files, run_files
from onceforall.deploy.manifest import (
    Exported,
    Needed,
    Number,
    Specialized,
    differing,
    measured_on,
    read_manifest,
    score_in,
    value_of,
)
from onceforall.devices.device import Device, Files, Shape
from onceforall.devices.memory import measure_memory
from onceforall.devices.timing import time_turns
from onceforall.errors import BrokenClaim, InvalidConfiguration, OFAError
from onceforall.nn.supernet import Supernet
from onceforall.predict.accuracy import load_predictor
from onceforall.profiling.measuring import WHOLE, image_shape, summarise
from onceforall.tasks import Score

SAME_SCORE = 0.05  # points, of the same version of a runtime
OTHER_SCORE = 0.3  # of another
MEMORY = 0.25  # share by which peak memory may be larger, beside 1 MiB
SLOWER = 0.1  # share by which a shared machine may be slower at another moment, beside the spread found here,
SLOWER_AT_MOST = 0.25  # and both together: a noisy clock makes no claim true
MOMENTS = 3  # at which it may be as fast as the manifest says: whatever else runs only makes it slower


@dataclass(frozen=True)
class Claim:
    """One claim of a manifest: about what, what it says, what was found here, or why that cannot be repeated."""

    about: str
    stated: str
    found: str
    repeated: bool = True


def verify(
    folder: str | Path, data: Data | None = None, supernet: Supernet | None = None, sha256: str | None = None
) -> Iterator[Claim]:
    """Each claim of a folder's manifest, as it was found here. Raises BrokenClaim at the first that does not hold.

    data: the data set that the manifest names, for accuracies; supernet: the source, whose file has this
    sha256, for parity with torch (networks that were fine-tuned bring their own weights). Raises
    InvalidConfiguration or IncompatibleCheckpoint where the folder's files cannot be read.
    """
    folder = Path(folder)
    manifest, networks = read_manifest(folder)
    if supernet is not None:
        yield _equal("source weights, sha256", str(manifest["supernet"].get("sha256"))[:12], str(sha256)[:12])
    data = as_described(data, manifest["data"]) if data is not None else None
    if data is not None and identity(data) != completed(manifest["data"], identity(data)):
        yield Claim("data", str(manifest["data"].get("name")), f"{data.name}, not the same images", repeated=False)
        data = None
    space = spaces.from_json(manifest["space"])
    score, described = score_in(manifest), measured_on(manifest)
    model = load_latency(folder / manifest["latency_model"]["file"]) if manifest["latency_model"] else None
    predictor = load_predictor(folder / manifest["predictor"]["file"])
    exporter = Exporter(supernet, data, folder) if supernet is not None and data is not None else None
    devices: dict[tuple[str, str], Device | str] = {}
    for network in networks:
        layers = space.lower(network.architecture)
        yield _equal(f"{network.name}: MACs", str(network.macs), str(macs(layers)))
        yield _equal(f"{network.name}: parameters", str(network.params), str(params(layers)))
        for needed in network.constraints:
            yield _constraint(network, needed, layers)
        if model is not None:
            yield _number(f"{network.name}: predicted latency", network.predicted_latency, model.cost(layers), 4)
        if not manifest["predictor"]["corrected"]:
            found = score.goal(float(predictor.predict([network.architecture])[0]))
            yield _number(f"{network.name}: predicted {score.name}", network.predicted_score, found, 2)
        judge = exporter
        if network.finetuning:
            weights = network.finetuning.weights
            yield _intact(f"{network.name}: fine-tuned weights", read_files(folder, [weights]))
            judge = Exporter(load_network(folder / weights.path), data, folder) if data is not None else None
        if network.test_score is not None and judge is not None:
            measured = judge.in_torch(network.architecture, "test")
            about = f"{network.name}, in torch: test {score.name}"
            yield _near(about, network.test_score.value, measured, SAME_SCORE, score)
        for export in network.exports:
            about = f"{network.name}, {export.name}"
            files = read_files(folder, export.files)
            yield _intact(f"{about}: files", files)
            key = (export.device, export.precision)
            device = devices.setdefault(key, _device(*key, described.get("threads", 1)))
            if isinstance(device, str):
                yield Claim(f"{about}: accuracy, latency", export.runtime, device, repeated=False)
                continue
            if export.kept:
                device = device.keeping(export.kept)
            run = _Run(about, network.architecture, export, device, files)
            yield from _score(run, data, judge, score)
            if export.latency is not None:
                yield _latency(run, export.latency.value, described)
            if export.peak_memory is not None:
                yield _memory(run, export.peak_memory.value)


def _constraint(network: Specialized, needed: Needed, layers: Any) -> Claim:
    """What a network needs of a cost, computed again, and whether it keeps the bound that it was chosen under."""
    about, stated = f"{network.name}: {needed.name}", f"{needed.value:.6g} {needed.unit}"
    models = [cost.by_name(name) for name in cost.names()]
    same = [m for m in models if (m.name, m.unit, settings_of(m)) == (needed.name, needed.unit, needed.settings)]
    if not same:
        return Claim(about, stated, "no cost of this name and these settings is known here", repeated=False)
    claim = _equal(about, stated, f"{same[0].cost(layers):.6g} {needed.unit}")
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


def _score(run: _Run, data: Data | None, exporter: Exporter | None, score: Score) -> Iterator[Claim]:
    about, export, device = f"{run.about}: test {score.name}", run.export, run.device
    stated = value_of(export.test_score)
    if data is None:
        yield Claim(about, score.text(stated), "the data set is not here: give --data", repeated=False)
        return
    if exporter is not None:
        measured, parity, _ = exporter.judge(run.architecture, device, run.files, "test")
        allowed = PARITY if export.precision == "fp32" else max(PARITY, 2 * value_of(export.parity))
        said = f"{value_of(export.parity):.1e}, at most {allowed:.1e}"
        yield _holds(f"{run.about}: parity with torch", said, f"{parity:.1e}", parity <= allowed)
    else:
        batches = data.batches("test", run.architecture.resolution)
        measured, _ = run_files(device, run.files, run.shape, data, batches)
    same = str(device.describe()["runtime"]) == export.runtime
    yield _near(about, stated, measured, SAME_SCORE if same else OTHER_SCORE, score)


def _latency(run: _Run, claimed: float, described: Mapping[str, Any]) -> Claim:
    """At the best of a few moments no slower than the claim, a fixed share, and the spread found here, within bounds.

    The spread in the manifest is a claim itself: it allows nothing.
    """
    about, stated, export, device = f"{run.about}: latency", f"{claimed:.3f} ms", run.export, run.device
    if not device.is_here:
        return Claim(about, stated, f"measured on another machine, {export.device}", repeated=False)
    own = device.describe()
    changed = {"precision": export.precision, "name": export.device, "runtime": export.runtime, "kept": [*export.kept]}
    # What a runtime says beyond name and version (its provider) is of no other runtime's description.
    different = differing({**described, **changed}, own)
    if different:
        here = ", ".join(f"{key} {own.get(key)}" for key in different)
        return Claim(about, stated, f"another device ({here}): profile and specialise here", repeated=False)
    load = device.loader(run.files, run.shape)
    for _ in range(MOMENTS):
        found = summarise(time_turns([load], WHOLE)[0])
        allowed = claimed + min(SLOWER * claimed + found.spread, SLOWER_AT_MOST * claimed)
        if found.median <= allowed:
            break
    said = f"{stated}, at most {allowed:.3f} ms"
    return _holds(about, said, f"{found.median:.3f} ms", found.median <= allowed)


def _memory(run: _Run, claimed: float) -> Claim:
    about, stated = f"{run.about}: peak memory", f"{claimed / 2**20:.1f} MiB"
    try:
        found = measure_memory(run.device, run.files, run.shape)
    except InvalidConfiguration as error:
        return Claim(about, stated, str(error), repeated=False)
    allowed = (1 + MEMORY) * claimed + 2**20
    stated += f", at most {allowed / 2**20:.1f} MiB"
    return _holds(about, stated, f"{found / 2**20:.1f} MiB", found <= allowed)


def _device(name: str, precision: str, threads: int) -> Device | str:
    """What runs an export, or why nothing here does."""
    try:
        export = exports.by_name(name, threads, precision)
    except OFAError as error:
        return str(error)
    return export.device or export.problem


def _intact(about: str, files: Files) -> Claim:
    """That files, which were read and so are those of the manifest, are."""
    size = f"{sum(map(len, files.values()))} bytes"
    return Claim(f"{about}, sha256", size, size)


def _number(about: str, stated: Number | None, found: float, digits: int) -> Claim:
    unit = stated.unit.replace("percent", "%") if stated else ""
    return _equal(about, f"{value_of(stated):.{digits}f} {unit}", f"{found:.{digits}f} {unit}")


def _near(about: str, stated: float, found: float, allowed: float, score: Score) -> Claim:
    said = f"{score.text(stated)}, to {allowed} points"
    return _holds(about, said, score.text(found), abs(found - stated) <= allowed)


def _equal(about: str, stated: str, found: str) -> Claim:
    return _holds(about, stated, found, stated == found)


def _holds(about: str, stated: str, found: str, holds: bool) -> Claim:
    if not holds:
        raise BrokenClaim(f"{about}: the manifest says {stated}, found here: {found}")
    return Claim(about, stated, found)
