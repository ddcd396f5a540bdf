"""How networks are timed, and a script that does it alone on another machine.

    python measure.py        # in the folder of a plan: plan.json and the networks beside this file

It needs Python 3.8 or newer, numpy, and the plan's runtime (onnxruntime, or ai-edge-litert or tflite-runtime);
nothing else of onceforall. It writes results.json, whole after every turn: stopped at any time, the same command
goes on with the next turn. onceforall times with the same functions: what a plan brings back is what `timing`
would have measured there.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np

PLAN_FORMAT = "onceforall.plan/1"
RESULTS_FORMAT = "onceforall.results/1"
TYPE_CHECKING = False  # Python 3.8 knows none of these, and needs none
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any


def orders(networks: int, turns: int, seed: int) -> list[list[int]]:
    """In which order the networks take their bursts, one permutation a turn."""
    return [np.random.default_rng([seed, turn]).permutation(networks).tolist() for turn in range(turns)]


def burst(run: Callable[[], object], seconds: float) -> float:
    """Median seconds of consecutive runs: at least three, after two that warm up."""
    run()
    run()
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while True:
        began = time.perf_counter()
        if began >= end and len(samples) >= 3:
            return float(np.median(samples))
        run()
        samples.append(time.perf_counter() - began)


def time_turn(
    loads: Sequence[Callable[[], Callable[[], object]]],
    order: Sequence[int],
    seconds: float,
    report: Callable[[int], None] = lambda bursts: None,
) -> list[float]:
    """Milliseconds a run in one turn: each network is loaded, which gives its run, and takes a burst, in the order.

    Loaded anew it lies elsewhere in memory, which alone moves its latency by one or two percent: turns average
    that too. `report` receives bursts done.
    """
    turn = [0.0] * len(loads)
    for place, index in enumerate(order, 1):
        turn[index] = 1e3 * burst(loads[index](), seconds)
        report(place)
    return turn


def random_images(shape: Sequence[int], seed: int = 0) -> Any:
    """Standard normal numbers, float32."""
    return np.random.default_rng(seed).standard_normal(tuple(shape), np.float32)


def describe_machine() -> dict[str, Any]:
    """Processor, cores, architecture, system; the frequency governor where the system tells it."""
    known = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
    }
    with contextlib.suppress(OSError):  # virtual machines and other systems do not say
        known["governor"] = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    return known


def _processor() -> str:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        for name in ("model name", "Hardware", "Model"):  # x86; then what ARM systems may say
            for line in lines:
                if line.startswith(name):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


@functools.lru_cache(maxsize=None)  # asked for at every load, thousands of times a measurement  # noqa: UP033
def _has_vnni() -> bool:
    """Whether the processor multiplies int8 without overflow, which x86 says; where nothing is said, it is taken to."""
    try:
        flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0]
    except OSError:
        return True
    return not flags or "vnni" in flags


def session_options(threads: int) -> Any:
    """Of ONNX Runtime, for so many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not _has_vnni():  # x86 before it adds products of uint8 and int8 in 16 bits, where they overflow
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


class OnnxRuntime:
    """An ONNX model in a session of ONNX Runtime's CPU provider: feed, run, output."""

    suffix = ".onnx"

    def __init__(self, model: bytes, threads: int) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        self.runtime = "onnxruntime " + onnxruntime.__version__
        options = session_options(threads)
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._name = self._session.get_inputs()[0].name
        self._outputs: list[Any] = []

    def feed(self, images: Any) -> None:
        self._feed = {self._name: images}

    def run(self) -> None:
        self._outputs = self._session.run(None, self._feed)

    def output(self) -> Any:
        return self._outputs[0]


class LiteRt:
    """A .tflite model in LiteRT's interpreter with its XNNPACK delegate: feed, run, output.

    Feature maps are float [n, c, h, w] outside and [n, h, w, c] inside, int8 in a quantised model: feeding and
    reading change them, runs do not.
    """

    suffix = ".tflite"
    delegate = True

    def __init__(self, model: bytes, threads: int) -> None:
        module, self.runtime = _litert()
        self._model = model  # the interpreter keeps no copy
        kernels = module.OpResolverType
        self._interpreter = module.Interpreter(
            model_content=model,
            num_threads=threads,
            experimental_op_resolver_type=(
                kernels.AUTO if self.delegate else kernels.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            ),
        )
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]
        self._result = self._interpreter.get_output_details()[0]

    def feed(self, images: Any) -> None:
        values = images.transpose(0, 2, 3, 1)
        if self._input["dtype"] is np.int8:
            scale, zero = self._input["quantization"]
            values = np.clip(np.round(values / scale) + zero, -128, 127).astype(np.int8)
        self._interpreter.set_tensor(self._input["index"], np.ascontiguousarray(values))

    def run(self) -> None:
        self._interpreter.invoke()

    def output(self) -> Any:
        values = self._interpreter.get_tensor(self._result["index"])
        if self._result["dtype"] is np.int8:
            scale, zero = self._result["quantization"]
            values = (values.astype(np.float32) - zero) * np.float32(scale)
        return values.transpose(0, 3, 1, 2) if values.ndim == 4 else values


class LiteRtBuiltin(LiteRt):
    """The same with LiteRT's own kernels, without a delegate."""

    delegate = False


def _litert() -> Any:
    """The module of LiteRT's interpreter, and what it is."""
    try:
        import ai_edge_litert
        from ai_edge_litert import interpreter

        return interpreter, "litert " + ai_edge_litert.__version__
    except ImportError:
        import tflite_runtime
        from tflite_runtime import interpreter

        return interpreter, "tflite " + tflite_runtime.__version__


RUNTIMES: dict[str, Any] = {"onnxruntime": OnnxRuntime, "litert": LiteRt, "litert-builtin": LiteRtBuiltin}


def measure(folder: Path, say: Callable[[str], None] = print) -> None:
    """Time the plan of a folder, or what is left of it. Raises ValueError where its files are not the plan's."""
    plan = json.loads((folder / "plan.json").read_text())
    if plan.get("format") != PLAN_FORMAT:
        raise ValueError(f"plan.json has the format {plan.get('format')!r}: this script reads {PLAN_FORMAT!r}")
    loads = []
    runtime = ""
    for number, network in enumerate(plan["networks"], 1):
        model = (folder / network["file"]).read_bytes()
        if hashlib.sha256(model).hexdigest() != network["sha256"]:
            raise ValueError(f"{network['file']} is not the plan's: copy the folder again")

        def load(path: Path = folder / network["file"], shape: Sequence[int] = network["shape"]) -> Any:
            session = RUNTIMES[plan["runtime"]](path.read_bytes(), plan["threads"])
            session.feed(random_images(shape))
            return session

        session = load()
        session.run()
        runtime = session.runtime
        if not np.isfinite(session.output()).all():
            raise ValueError(f"{network['file']}: the output is not finite; this runtime computes something else")
        loads.append(lambda load=load: load().run)
        say(f"checked {number} of {len(plan['networks'])}")
    machine = {"runtime": runtime, **describe_machine()}
    results = {"format": RESULTS_FORMAT, "plan": plan["digest"], "machine": machine, "turns": []}
    path = folder / "results.json"
    if path.exists():
        found = json.loads(path.read_text())
        if any(found.get(key) != results[key] for key in ("format", "plan", "machine")):
            raise ValueError("results.json is of another plan or another machine: move it away")
        results = found
    order = orders(len(loads), plan["turns"], plan["seed"])
    for number in range(len(results["turns"]), plan["turns"]):
        results["turns"].append(time_turn(loads, order[number], plan["burst_seconds"]))
        temporary = folder / "results.json.part"
        temporary.write_text(json.dumps(results))
        os.replace(str(temporary), str(path))
        say(f"turn {number + 1} of {plan['turns']}")
    say(f"complete: carry {path} back")


if __name__ == "__main__":
    try:
        measure(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent)
    except (ValueError, OSError, ImportError) as problem:
        sys.exit(f"measure.py: {problem}")
