"""A runtime on another machine: a plan that a person carries there, and the results that come back.

A plan is a folder with the networks as the runtime loads them, `plan.json`, and `measure.py`, which needs
nothing of this package. Where a plan's results are missing, `time` writes the plan and raises; the same
call finds them afterwards.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onceforall.devices import measure
from onceforall.devices.device import Device, Files, Images, Kept, Model, Report, Session, Shape, Timed
from onceforall.devices.onnx import as_onnx
from onceforall.devices.registry import local
from onceforall.devices.timing import Turn, Turns
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration, MeasurementPending
from onceforall.files import read_json_object, write_atomically, write_json

DIGEST = 12  # characters of a plan's digest that name its folder


class RemoteDevice(Device):
    """A runtime that `measure.py` knows, on a machine that this one cannot reach. Networks are converted here.

    `folder` holds one folder a plan: whoever measures other networks with it gets another plan. A plan is
    known by the structure of its networks, whatever their weights: latency does not depend on those.
    `load` runs networks on this machine, to check what was converted.
    """

    name = "remote"
    title = "a runtime on another machine, by a plan that is carried there"
    is_here = False

    def __init__(
        self, folder: str | Path, runtime: str = "onnxruntime", threads: int = 1, precision: str = "fp32"
    ) -> None:
        if runtime not in measure.RUNTIMES:
            raise InvalidConfiguration(f"remote runtime {runtime!r}: choices are {', '.join(measure.RUNTIMES)}")
        if not str(folder):
            raise InvalidConfiguration(f"{runtime}@: expected a folder for the plan, such as {runtime}@phone")
        self.folder, self.runtime = Path(folder), runtime
        self.name = f"{runtime}@{folder}"  # type: ignore[misc]
        self._local = local(runtime, threads, precision)
        self.precisions = self._local.precisions  # type: ignore[misc]
        self.suffixes = self._local.suffixes  # type: ignore[misc]
        self.keeps_layers = self._local.keeps_layers  # type: ignore[misc]
        super().__init__(threads, precision)
        self._machine: Mapping[str, Any] = {}

    def describe(self) -> dict[str, Any]:
        """What measured the last results read; before any, the runtime alone."""
        return {**self.identity(), "runtime": self.runtime, "processor": "not measured yet", **self._machine}

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, **self.chosen}

    def convert(self, network: Model, input_shape: Shape, calibration: Images | None = None, kept: Kept = ()) -> Files:
        return self._local.convert(network, input_shape, calibration, kept)

    def load(self, files: Files, input_shape: Shape) -> Session:
        return self._local.load(files, input_shape)

    def time(
        self,
        networks: Sequence[Timed],
        turns: Turns,
        *,
        done: Sequence[Turn] = (),
        keep: Callable[[Turn], None] = lambda turn: None,
        report: Report = lambda step, done, total: None,
    ) -> NDArray[np.float64]:
        """As `Device.time`, from the results of the plan.

        Raises MeasurementPending where there are none yet, IncompatibleCheckpoint where they are not the plan's.
        """
        plan = self._plan(networks, turns)
        folder = self.folder / f"plan-{plan['digest'][:DIGEST]}"
        results = folder / "results.json"
        if not results.exists():
            self._write(folder, plan, networks, report)
            package = self._local.packages[0]  # the others convert, which is done here
            raise MeasurementPending(
                f"nothing is measured yet: carry {folder} to the device, run `python measure.py` in it "
                f"(Python 3.8 or newer, numpy, {package}), bring results.json back to {results}, "
                "and run the same command again"
            )
        self._machine, measured = read_results(results, plan)
        for turn in measured[len(done) :]:
            keep(turn)
        return np.stack([*done, *measured[len(done) :]], axis=1)

    def _plan(self, networks: Sequence[Timed], turns: Turns) -> dict[str, Any]:
        """What is to be measured, without the files; `digest` names all of it."""
        known = cache(structure)  # some networks are given several times
        plan = {
            "format": measure.PLAN_FORMAT,
            "runtime": self.runtime,
            **self.chosen,
            "turns": turns.count,
            "burst_seconds": turns.burst_seconds,
            "seed": turns.seed,
            "networks": [{"structure": known(network, shape), "shape": list(shape)} for network, shape in networks],
        }
        return {**plan, "digest": hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()}

    def _write(self, folder: Path, plan: Mapping[str, Any], networks: Sequence[Timed], report: Report) -> None:
        """The plan's folder; what it holds already, whole, is left alone. `plan.json` comes last."""
        if (folder / "plan.json").exists():
            return

        @cache
        def converted(network: Model, shape: Shape) -> dict[str, str]:
            ((suffix, content),) = self.convert_keeping(network, shape).items()
            digest = hashlib.sha256(content).hexdigest()
            file = f"networks/{digest[:16]}{suffix}"  # equal networks share a file
            if not (folder / file).exists():
                write_atomically(folder / file, content)
            return {"file": file, "sha256": digest}

        entries: list[dict[str, Any]] = []
        for (network, shape), entry in zip(networks, plan["networks"], strict=True):
            report("converting", len(entries), len(networks))
            entries.append({**entry, **converted(network, shape)})
        report("converting", len(networks), len(networks))
        write_atomically(folder / "measure.py", inspect.getsource(measure))
        write_json(folder / "plan.json", {**plan, "networks": entries})


def structure(network: Model, input_shape: Shape) -> str:
    """A digest of what a network computes, weights left out: of its ONNX graph."""
    model = onnx.load_from_string(as_onnx(network, input_shape))
    for tensor in model.graph.initializer:
        for name in ("raw_data", "float_data", "int32_data", "int64_data"):
            tensor.ClearField(name)
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def read_results(path: Path, plan: Mapping[str, Any]) -> tuple[dict[str, Any], list[Turn]]:
    """The machine, and the turns (ms of each network) of a plan's results.

    Raises IncompatibleCheckpoint where the file is damaged, of another plan, or not complete.
    """
    try:
        value = read_json_object(path)
    except InvalidConfiguration as error:
        raise IncompatibleCheckpoint(f"{error}: copy results.json from the device again") from error
    if value.get("format") != measure.RESULTS_FORMAT or value.get("plan") != plan["digest"]:
        raise IncompatibleCheckpoint(
            f"{path} has the format {value.get('format')!r}, plan {str(value.get('plan'))[:DIGEST]!r}: expected "
            f"{measure.RESULTS_FORMAT!r} and {plan['digest'][:DIGEST]!r}; bring back the results of this plan"
        )
    machine: Any = value.get("machine")
    turns: Any = value.get("turns")
    count = len(plan["networks"])
    whole = (
        isinstance(machine, dict)
        and {"runtime", "processor"} <= machine.keys()
        and isinstance(turns, list)
        and all(isinstance(turn, list) and len(turn) == count for turn in turns)
        and all(isinstance(ms, float) and 0 < ms < math.inf for turn in turns for ms in turn)
    )
    if not whole:
        raise IncompatibleCheckpoint(f"{path}: expected turns of {count} times above 0 ms; measure again")
    if len(turns) != plan["turns"]:
        raise IncompatibleCheckpoint(
            f"{path} has {len(turns)} of {plan['turns']} turns: run `python measure.py` again on the device, it goes on"
        )
    return machine, [np.array(turn) for turn in turns]
