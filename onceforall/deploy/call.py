"""What every step of one `specialize` call is given, and what several of them measure: label scores, latencies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from onceforall import serial
from onceforall.architecture import Architecture
from onceforall.cost.latency import Timing
from onceforall.data.dataset import Data, completed
from onceforall.deploy.exporting import Exporter, read_files
from onceforall.deploy.exports import Export
from onceforall.deploy.manifest import Exported, Number, Specialized
from onceforall.devices.device import Device
from onceforall.devices.timing import time_turns
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration, OFAError
from onceforall.files import append_jsonl, as_json, differing, read_jsonl, write_jsonl
from onceforall.nn.supernet import Supernet
from onceforall.predict.labels import Label
from onceforall.profiling.measuring import WHOLE, image_shape, summarise
from onceforall.results import discard
from onceforall.space import SearchSpace
from onceforall.tasks import CLASSIFICATION, Score, task_of

T = TypeVar("T")
Report = Callable[[str, int, int], None]  # of a step, how much of it is done, and of how much


def silent(step: str, done: int, total: int) -> None:
    """Reports nothing."""


# What a step finds, by how its name begins: a longer beginning before a shorter one.
FOUND: dict[str, Any] = {
    "label ": float,
    "test torch ": float,
    "test ": tuple[float, float, float],
    "memory ": int,
    "latency ": str,
    "precision ": dict[str, Any],
    "networks ": list[dict[str, Any]],
}


@dataclass(frozen=True)
class _Step:
    """A line behind the first."""

    step: str
    found: Any


class FinishedSteps:
    """A JSONL file: what the call is of, then a row a finished step. The same call goes on behind the last one.

    It is there until the call is complete. One of another call that finished no step is no obstacle: it goes, with
    what else that call has left. Raises InvalidConfiguration where another call did, IncompatibleCheckpoint for rows
    that are no steps.
    """

    def __init__(self, path: Path, identity: dict[str, Any], score: Score = CLASSIFICATION.score) -> None:
        self.path = path
        records, own = read_jsonl(path), as_json(identity)
        if records and "data" in own:
            records[0]["data"] = completed(records[0].get("data"), own["data"])
        if records and records[0] != own:
            if len(records) > 1:
                different = sorted(key for key in own if records[0].get(key) != own[key])
                raise InvalidConfiguration(
                    f"{path} is of an interrupted call with another {', '.join(different) or 'version'}: repeat that "
                    f"call, choose another folder, or remove the file ({differing(records[0], own)})"
                )
            records = []
        if not records:
            discard(path.parent)
            write_jsonl(path, [identity])
        self._found: dict[str, Any] = {}
        for number, record in enumerate(records[1:], 2):
            try:
                step = serial.from_json(_Step, record, "a finished step")
                kind = next((kind for name, kind in FOUND.items() if step.step.startswith(name)), Any)
                self._found[step.step] = serial.from_json(kind, step.found, f"what {step.step:.20} finds")
                if step.step.startswith("networks "):
                    for network in step.found:
                        _ = Specialized.from_json(network, score).export
                elif step.step.startswith("precision "):
                    serial.from_json(Number, step.found.get("latency_ratio"), "a ratio of latencies")
            except (OFAError, IndexError) as error:
                raise IncompatibleCheckpoint(f"{path}, line {number}: {error}; remove the file to begin anew") from None

    def once(self, step: str, compute: Callable[[], T]) -> T:
        """What a step finds, a JSON value: computed unless it was before."""
        if step not in self._found:
            found = compute()
            append_jsonl(self.path, {"step": step, "found": found})
            self._found[step] = found
        result: T = self._found[step]
        return result

    def remove(self) -> None:
        """The call is complete."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Call:
    """A supernet, its labels and data, the folder of the results, and what an interrupted call had finished.

    `trainings`: the folder for the runs of networks that go on training, which stay; below `out` where it is None.
    Its steps add: what exports the networks that went on training, by their name (`tuned`); the devices that run
    what was exported, by name and precision; and what keeping layers in floating point gives, rows by device.
    """

    supernet: Supernet
    labels: Sequence[Label]
    data: Data
    out: Path
    done: FinishedSteps
    seed: int = 0
    report: Report = silent
    trainings: Path | None = None
    tuned: dict[str, Exporter] = field(default_factory=dict)
    devices: dict[tuple[str, str], Device] = field(default_factory=dict)
    sensitivity: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def space(self) -> SearchSpace:
        """Of the supernet."""
        return self.supernet.space

    @property
    def score(self) -> Score:
        """What networks are judged by."""
        return task_of(self.data).score

    @cached_property
    def exporter(self) -> Exporter:
        """Of the supernet's weights."""
        return Exporter(self.supernet, self.data, self.out)

    @cached_property
    def known(self) -> dict[Architecture, float]:
        """Label scores of the supernet's weights in fp32: of the labels, and of what was asked for since."""
        return {label.architecture: label.score for label in self.labels}

    def each(self, step: str, items: Sequence[T]) -> Iterator[T]:
        """The items in turn; it is reported how many of them are done."""
        for done, item in enumerate(items):
            self.report(step, done, len(items))
            yield item
        self.report(step, len(items), len(items))

    def label_score(self, arch: Architecture, device: Device | None = None, exporter: Exporter | None = None) -> float:
        """On the label images, measured once: in torch for fp32, else by the files of a device.

        Of the weights of an exporter, or of the supernet's.
        """
        exporter = exporter or self.exporter
        of = exporter.key(arch)
        if device is not None and device.precision != "fp32":
            return self.done.once(
                f"label {device.name} {device.precision} {list(device.kept)} {of}",
                lambda: exporter.judge(arch, device, exporter.convert(arch, device), "label").score,
            )
        known = self.known if exporter.weights is None else {}
        if arch not in known:
            known[arch] = self.done.once(f"label fp32 {of}", lambda: exporter.in_torch(arch, "label"))
        return known[arch]

    def exporter_of(self, network: Specialized) -> Exporter:
        """Of its own weights where it went on training, else of the supernet's."""
        return self.tuned.get(network.name, self.exporter)

    def export(self, network: Specialized, export: Export) -> Exported:
        """Write the files of a network."""
        if export.device is not None:
            self.devices[export.name, export.precision] = export.device
        return self.exporter_of(network).export(network.name, network.architecture, export)

    def device_of(self, export: Exported) -> Device | None:
        """What runs and times an export; None where nothing here does."""
        return self.devices.get((export.device, export.precision))

    def with_latencies(self, networks: Sequence[Specialized], again: bool = True) -> list[Specialized]:
        """The networks with the latency of their exports: of all, or without `again` of those that have none."""

        def is_timed(export: Exported) -> bool:
            return self.device_of(export) is not None and (again or export.latency is None)

        def timed(export: Exported) -> Exported:
            if not is_timed(export):
                return export
            timing = next(timings)
            latency, spread = (Number(ms, "ms", "measured") for ms in (timing.median, timing.spread))
            return replace(export, latency=latency, latency_spread=spread)

        every = [(network, export) for network in networks for export in network.exports if is_timed(export)]
        timings = iter(time_exports(self, every))
        return [replace(network, exports=tuple(map(timed, network.exports))) for network in networks]


def time_exports(call: Call, exports: Sequence[tuple[Specialized, Exported]]) -> list[Timing]:
    """Latency of exported files, interleaved (ms): on devices that are all here, or on one of another machine.

    Raises MeasurementPending where that is to measure first.
    """
    devices = [call.devices[export.device, export.precision] for _, export in exports]
    shapes = [image_shape(network.architecture) for network, _ in exports]
    if all(device.is_here for device in devices):
        files = [read_files(call.out, export.files) for _, export in exports]
        loads = [device.loader(own, shape) for device, own, shape in zip(devices, files, shapes, strict=True)]
        step = "timing on the device"
        ms = time_turns(loads, WHOLE, report=lambda done, total: call.report(step, done, total)) if loads else ()
    else:  # a plan for the other machine, or its results; weights make no difference to it
        plain = [call.exporter.plain(network.architecture) for network, _ in exports]
        ms = devices[0].time(list(zip(plain, shapes, strict=True)), WHOLE)
    return [summarise(row) for row in ms]
