"""Repeats what a manifest claims, as far as that can be done here.

Files and computed numbers must be the same; an accuracy may differ by what another version of a
runtime rounds otherwise; a latency is only compared where runtime, machine and settings are the manifest's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onceforall import spaces
from onceforall.checkpoint import load_network
from onceforall.cost.analytic import macs, params
from onceforall.profiling.measuring import WHOLE, image_shape, summarise
from onceforall.cost.saved import load_latency
from onceforall.data.dataset import Data
from onceforall.deploy.exporting import PARITY, Exporter, logits_of, read_files
from onceforall.deploy.manifest import Export, Network, differing, read_manifest
from onceforall.devices import by_name
from onceforall.devices.device import Device
from onceforall.devices.memory import measure_memory
from onceforall.devices.timing import time_turns
from onceforall.errors import BrokenClaim, InvalidConfiguration, OFAError
from onceforall.nn.supernet import Supernet
from onceforall.predict.accuracy import load_predictor

SAME_TOP1 = 0.05  # points, of the same version of a runtime
OTHER_TOP1 = 0.3  # of another
MEMORY = 0.25  # share by which peak memory may be larger, beside 1 MiB
LATENCY = 0.1  # share by which a shared machine may be slower at another moment, beside three spreads
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
    if data is not None and data.describe() != manifest["data"]:
        yield Claim("data", str(manifest["data"].get("name")), f"{data.name}, not the same images", repeated=False)
        data = None
    space = spaces.from_json(manifest["space"])
    model = load_latency(folder / manifest["latency_model"]["file"])
    predictor = load_predictor(folder / manifest["predictor"]["file"])
    exporter = Exporter(supernet, data, folder) if supernet is not None and data is not None else None
    devices: dict[tuple[str, str], Device | str] = {}
    for network in networks:
        arch = network.architecture
        layers = space.lower(arch)
        yield _equal(f"{network.name}: MACs", str(network.macs), str(macs(layers)))
        yield _equal(f"{network.name}: parameters", str(network.params), str(params(layers)))
        yield _equal(
            f"{network.name}: predicted latency",
            f"{network.predicted_latency_ms:.4f} ms",
            f"{model.cost(layers):.4f} ms",
        )
        if not manifest["predictor"]["corrected"]:
            stated, found = (f"{top1:.2f} %" for top1 in (network.predicted_top1, predictor.predict([arch])[0]))
            yield _equal(f"{network.name}: predicted top-1", stated, found)
        judge = exporter
        if network.weights:
            (size,) = map(len, read_files(folder, [network.weights]).values())
            yield Claim(f"{network.name}: fine-tuned weights, sha256", f"{size} bytes", f"{size} bytes")
            judge = Exporter(load_network(folder / network.weights.path), data, folder) if data is not None else None
        if network.standalone:
            size = sum(map(len, read_files(folder, network.standalone).values()))
            yield Claim(f"{network.name}: standalone files, sha256", f"{size} bytes", f"{size} bytes")
        for export in network.exports:
            about = f"{network.name}, {export.name}"
            files = read_files(folder, export.files)
            yield Claim(f"{about}: files, sha256", f"{export.bytes} bytes", f"{export.bytes} bytes")
            key = (export.device, export.precision)
            device = devices.setdefault(key, _device(*key, manifest["device"]["threads"]))
            if isinstance(device, str):
                yield Claim(f"{about}: accuracy, latency", export.runtime, device, repeated=False)
                continue
            if export.kept:
                device = device.keeping(export.kept)
            yield from _accuracy(about, network, export, device, files, data, judge)
            yield from _latency(about, network, export, device, files, manifest["device"])
            if not math.isnan(export.memory_bytes):
                yield _memory(about, network, export, device, files)


def _accuracy(
    about: str,
    network: Network,
    export: Export,
    device: Device,
    files: Any,
    data: Data | None,
    exporter: Exporter | None,
) -> Iterator[Claim]:
    stated = f"{export.test_top1:.2f} %"
    if data is None:
        yield Claim(f"{about}: test top-1", stated, "the data set is not here: give --data", repeated=False)
        return
    arch = network.architecture
    if exporter is not None:
        found, parity, _ = exporter.judge(arch, device, files, "test")
        allowed = PARITY if export.precision == "fp32" else max(PARITY, 2 * export.parity)
        said = f"{export.parity:.1e}, at most {allowed:.1e}"
        yield _holds(f"{about}: parity with torch", said, f"{parity:.1e}", parity <= allowed)
    else:
        correct = count = 0
        batches = data.batches("test", arch.resolution)
        for labels, logits in logits_of(device, files, image_shape(arch), batches):
            correct += int((logits.argmax(1) == labels.numpy()).sum())
            count += len(labels)
        found = 100 * correct / count
    same = str(device.describe()["runtime"]) == export.runtime
    allowed = SAME_TOP1 if same else OTHER_TOP1
    yield _holds(
        f"{about}: test top-1",
        f"{stated}, to {allowed} points",
        f"{found:.2f} %",
        abs(found - export.test_top1) <= allowed,
    )


def _latency(
    about: str, network: Network, export: Export, device: Device, files: Any, described: dict[str, Any]
) -> Iterator[Claim]:
    if math.isnan(export.latency_ms):
        return
    stated = f"{export.latency_ms:.3f} ms"
    if not device.is_here:
        yield Claim(f"{about}: latency", stated, f"measured on another machine, {export.device}", repeated=False)
        return
    own = device.describe()
    changed = {"precision": export.precision, "name": export.device, "runtime": export.runtime, "kept": export.kept}
    # What a runtime says beyond name and version (its provider) is of no other runtime's description.
    different = differing({**described, **changed}, own)
    if different:
        here = ", ".join(f"{key} {own.get(key)}" for key in different)
        yield Claim(
            f"{about}: latency", stated, f"another device ({here}): profile and specialise here", repeated=False
        )
        return
    shape = image_shape(network.architecture)
    load = device.loader(files, shape)
    for _ in range(MOMENTS):
        found = summarise(time_turns([load], WHOLE)[0])
        allowed = export.latency_ms * (1 + LATENCY) + 3 * max(export.latency_spread_ms, found.spread)
        if found.median <= allowed:
            break
    yield _holds(
        f"{about}: latency", f"{stated}, at most {allowed:.3f} ms", f"{found.median:.3f} ms", found.median <= allowed
    )


def _memory(about: str, network: Network, export: Export, device: Device, files: Any) -> Claim:
    about = f"{about}: peak memory"
    try:
        found = measure_memory(device, files, image_shape(network.architecture))
    except InvalidConfiguration as error:
        return Claim(about, f"{export.memory_bytes / 2**20:.1f} MiB", str(error), repeated=False)
    allowed = (1 + MEMORY) * export.memory_bytes + 2**20
    stated = f"{export.memory_bytes / 2**20:.1f} MiB, at most {allowed / 2**20:.1f} MiB"
    return _holds(about, stated, f"{found / 2**20:.1f} MiB", found <= allowed)


def _device(name: str, precision: str, threads: int) -> Device | str:
    """A device, or why it is not here."""
    try:
        return by_name(name, threads, precision)
    except OFAError as error:
        return str(error)


def _equal(about: str, stated: str, found: str) -> Claim:
    return _holds(about, stated, found, stated == found)


def _holds(about: str, stated: str, found: str, holds: bool) -> Claim:
    if not holds:
        raise BrokenClaim(f"{about}: the manifest says {stated}, found here: {found}")
    return Claim(about, stated, found)
