"""Which precision of a device the searches are for, and which layers an int8 network keeps in floating point."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from onceforall.architecture import Architecture
from onceforall.deploy.call import Call
from onceforall.deploy.exports import DeviceExport, Export
from onceforall.deploy.manifest import Number
from onceforall.devices.device import Device
from onceforall.devices.timing import Load, Turns, time_turns
from onceforall.errors import InvalidConfiguration
from onceforall.profiling.measuring import whole_network

# What is tried at first: the first layers' few channels differ most in range, and one scale serves them all.
KEPT = ((), (0,), (0, 1), (0, 1, 2))
FURTHER = (1, 2, 4)  # how many others are tried beside them, the most sensitive ones
QUANTIZED = ("int8", "bf16")
RANDOM = 6  # networks that are timed beside the smallest and the largest
TURNS, BURST_SECONDS = 9, 0.02


@dataclass(frozen=True)
class Precisions:
    """A device in fp32, the same in another precision where one was asked for, and which of them searches are for.

    comparison: what was found, for the manifest.
    """

    plain: Device | None
    low: Device | None = None
    faster: bool = False
    comparison: dict[str, Any] | None = None

    @property
    def target(self) -> Device | None:
        """What the searches are for."""
        return self.low if self.faster else self.plain

    @property
    def exports(self) -> list[Export]:
        """What every network is exported for."""
        return [DeviceExport(device) for device in (self.low, self.plain) if device is not None]


def quantized(device: Device | None, precision: str | None) -> Device | None:
    """The device in the precision that was asked for. Raises InvalidConfiguration where that makes no sense."""
    if precision is None:
        return None
    if precision not in QUANTIZED:
        raise InvalidConfiguration(f"quantize {precision!r}: choices are {', '.join(QUANTIZED)}")
    if device is None:
        raise InvalidConfiguration(f"quantize {precision!r} without a device: give one, or exports in that precision")
    if device.precision != "fp32":
        raise InvalidConfiguration(f"quantize {precision!r} on a device in {device.precision}: give one in fp32")
    if not device.is_here:
        raise InvalidConfiguration(
            f"quantize on {device.name}: precisions cannot be compared from here; specialise for one of them, or there"
        )
    return device.with_precision(precision)


def choose_precision(
    call: Call, plain: Device | None, low: Device | None, full_int8: bool, max_drop: float
) -> Precisions:
    """The searches are for the quantised precision if it is faster."""
    if low is None or plain is None:
        return Precisions(plain)
    chosen = keep_sensitive(call, low, full_int8, max_drop)
    kept = list(chosen.kept)
    found = call.done.once(f"precision {low.precision} {kept}", lambda: latency_ratio(call, chosen, plain))
    faster = bool(found["latency_ratio"]["value"] < 1)
    verdict = "faster than fp32" if faster else "no faster than fp32: searched for fp32, exported in both"
    return Precisions(plain, chosen, faster, {**found, "verdict": verdict, "kept": kept})


def keep_sensitive(call: Call, device: Device, full_int8: bool, max_drop: float) -> Device:
    """The device with those layers in fp32 with which the largest network scores best on the label images.

    The first layers are tried: four conversions, each judged on all label images. Only where the best of them loses
    more than `max_drop` does the search go through the whole network: one conversion for every other layer, whose
    outputs on the 128 calibration images are compared with torch's, then at most three judged on all label images.
    What was found goes to `call.sensitivity`.
    """
    if device.precision != "int8" or not device.keeps_layers or full_int8:
        return device
    largest, score = call.space.largest(), call.score
    found: dict[tuple[int, ...], float] = {}

    def best() -> tuple[int, ...]:
        return max(found, key=lambda kept: score.goal(found[kept]))

    def loses() -> bool:
        return score.goal(call.label_score(largest)) - score.goal(found[best()]) > max_drop

    for kept in call.each("sensitive layers", KEPT):
        found[kept] = call.label_score(largest, device.keeping(kept))
    if loses():
        first = best()
        others = by_sensitivity(call, largest, device, first)
        for count in FURTHER:
            kept = tuple(sorted((*first, *others[:count])))
            found[kept] = call.label_score(largest, device.keeping(kept))
            if not loses():
                break
    call.sensitivity[device.name] = [
        {"kept": list(kept), f"label_{score.key}": asdict(Number(value, score.unit, "measured"))}
        for kept, value in found.items()
    ]
    return device.keeping(best())


def by_sensitivity(call: Call, arch: Architecture, device: Device, kept: tuple[int, ...]) -> list[int]:
    """The layers of a network that are not kept, the most sensitive first.

    That is the one which, kept as well, brings the outputs nearest to torch's.
    """
    others = [layer for layer in range(len(call.exporter.plain(arch))) if layer not in kept]
    noise = []
    for layer in call.each("sensitive layers of the whole network", others):
        more = device.keeping((*kept, layer))
        step = f"noise {device.name} {[*more.kept]} {call.exporter.key(arch)}"
        noise.append(call.done.once(step, partial(call.exporter.noise, arch, more)))
    return [others[place] for place in np.argsort(noise, kind="stable")]


def latency_ratio(call: Call, low: Device, plain: Device) -> dict[str, Any]:
    """How much of its time in `plain` a network takes in `low`: the median over networks, as the manifest has it."""
    space, rng = call.space, np.random.default_rng(call.seed)
    chosen = [space.smallest(), space.largest(), *(space.sample(rng) for _ in range(RANDOM))]
    loads: list[Load] = []
    for arch in call.each("which precision is faster", chosen):
        network, shape = whole_network(space, arch)
        loads += [device.loader(device.convert_keeping(network, shape), shape) for device in (low, plain)]
    ms = np.median(time_turns(loads, Turns(TURNS, BURST_SECONDS, call.seed)), axis=1).reshape(-1, 2)
    return {
        "precision": low.precision,
        "latency_ratio": asdict(Number(float(np.median(ms[:, 0] / ms[:, 1])), "of fp32", "measured")),
        "networks": len(chosen),
    }
