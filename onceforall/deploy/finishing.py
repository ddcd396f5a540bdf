"""What happens to networks once they are chosen: further exports, and everything measured on the test images."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from onceforall.deploy.call import Call, LabelScores
from onceforall.deploy.exporting import PARITY, Exporter, read_files
from onceforall.deploy.exports import DeviceExport, Export
from onceforall.deploy.latencies import Targets, device_of, with_latencies
from onceforall.deploy.manifest import Exported, Number, Specialized, number
from onceforall.deploy.precision import keep_sensitive
from onceforall.devices.device import Device
from onceforall.devices.memory import measure_memory
from onceforall.errors import InvalidConfiguration
from onceforall.profiling.measuring import image_shape

Sensitivity = dict[str, list[dict[str, Any]]]


def sensitive(
    call: Call, scores: LabelScores, exports: Sequence[Export], full_int8: bool
) -> tuple[list[Export], Sensitivity]:
    """The exports, of which the int8 ones keep first layers in fp32 where that scores better; and what was found."""
    found: list[Export] = []
    sensitivity: Sensitivity = {}
    for export in exports:
        if export.device is not None:
            device, rows = keep_sensitive(call, scores, export.device, full_int8)
            sensitivity |= rows
            export = DeviceExport(device)
        found.append(export)
    return found, sensitivity


def exported_further(
    call: Call,
    scores: LabelScores,
    networks: Sequence[Specialized],
    exports: Sequence[Export],
    own: Mapping[str, Exporter],
) -> list[Specialized]:
    """The same networks in further exports, timed where they can be. own: what exports networks of other weights."""
    added: list[Exported] = []
    result = []
    for step, network in enumerate(networks):
        exporter = own.get(network.name, scores.exporter)
        for export in exports:
            call.report("further exports", step, len(networks))
            added.append(exporter.export(network.name, network.architecture, export))
            network = replace(network, exports=(*network.exports, added[-1]))
        result.append(network)
    if not added:
        return result
    new = {id(export) for export in added}
    targets = {(export.name, export.precision): export for export in exports}
    result = with_latencies(call, scores, result, targets, lambda export: id(export) in new)
    call.report("further exports", len(networks), len(networks))
    return result


def verified(
    call: Call, scores: LabelScores, networks: Sequence[Specialized], targets: Targets, own: Mapping[str, Exporter]
) -> list[Specialized]:
    """The networks with what is measured once, at the end: of each export in its runtime, score, parity and memory.

    A network of which no export can be run here is measured in torch.
    """
    total, done = sum(len(network.exports) for network in networks), 0
    result = []
    for network in networks:
        exporter = own.get(network.name, scores.exporter)
        exports = []
        for export in network.exports:
            call.report("verified on test images", done, total)
            device = device_of(export, targets)
            exports.append(_verified(call, network, export, device, exporter) if device else export)
            done += 1
        network = replace(network, exports=tuple(exports))
        if all(export.test_score is None for export in exports):
            network = replace(network, test_score=_in_torch(call, network, exporter))
        result.append(network)
    call.report("verified on test images", total, total)
    return result


def _verified(call: Call, network: Specialized, export: Exported, device: Device, exporter: Exporter) -> Exported:
    files, arch = read_files(call.out, export.files), network.architecture
    step = f"test {export.device} {export.precision} {[file.sha256 for file in export.files]}"
    score, parity, agreement = call.done.once(step, lambda: list(exporter.judge(arch, device, files, "test")))
    memory: int | None = None
    if device.is_here:
        with contextlib.suppress(InvalidConfiguration):  # of a device that another process cannot make
            memory = call.done.once(f"memory {step}", lambda: measure_memory(device, files, image_shape(arch)))
    if export.precision == "fp32" and parity > PARITY:
        raise InvalidConfiguration(
            f"{export.files[0].path}: its logits differ from torch's by {parity:.1e} of the largest "
            f"(allowed: {PARITY:g}): {export.runtime} computes something else"
        )
    return replace(
        export,
        test_score=Number(score, call.score.unit, "measured"),
        parity=Number(parity, "of the largest logit", "measured"),
        agreement=number(agreement, "percent", "measured"),
        peak_memory=number(memory, "bytes", "measured"),
    )


def _in_torch(call: Call, network: Specialized, exporter: Exporter) -> Number:
    arch = network.architecture
    of = f"{arch}, fine-tuned {exporter.weights.sha256}" if exporter.weights else str(arch)
    score = call.done.once(f"test torch {of}", lambda: exporter.in_torch(arch, "test"))
    return Number(score, call.score.unit, "measured")
