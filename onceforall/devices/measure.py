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
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

PLAN_FORMAT = "onceforall.plan/1"
RESULTS_FORMAT = "onceforall.results/1"
TYPE_CHECKING = False  # Python 3.8 knows none of these, and needs none
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from numpy.typing import NDArray

    Images = NDArray[np.float32]


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
        "processor": _said("model name", "Hardware", "Model")  # x86; then what ARM systems may say
        or platform.processor()
        or platform.machine()
        or "unknown",
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
    }
    with contextlib.suppress(OSError):  # virtual machines and other systems do not say
        known["governor"] = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    return known


@functools.lru_cache(maxsize=None)  # asked for at every load, thousands of times a measurement  # noqa: UP033
def _said(*names: str) -> str:
    """What Linux says of the processor under the first of these names that it has; nothing on other systems."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        for name in names:
            for line in lines:
                if line.startswith(name):
                    return line.partition(":")[2].strip()
    return ""


def session_options(threads: int) -> Any:
    """Of ONNX Runtime, for so many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    flags = _said("flags")  # of x86 alone: before VNNI it adds products of uint8 and int8 in 16 bits, which overflow
    if flags and "vnni" not in flags:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


class Session(ABC):
    """A network loaded by a runtime, for inputs of one shape [n, channels, height, width]."""

    @abstractmethod
    def feed(self, images: Images) -> None:
        """Place an input where the runtime reads it; not part of what is timed."""

    @abstractmethod
    def run(self) -> None:
        """One inference on the input; it returns when the output is complete."""

    @abstractmethod
    def output(self) -> Images:
        """The output of the last run: logits [n, classes], or a layer's feature map. It is the caller's to keep."""

    def __call__(self, images: Images) -> Images:
        self.feed(images)
        self.run()
        return self.output()


class OnnxRuntime(Session):
    """An ONNX model in a session of ONNX Runtime's CPU provider."""

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


class LiteRt(Session):
    """A .tflite model in LiteRT's interpreter with its XNNPACK delegate.

    Feature maps are float [n, c, h, w] outside and [n, h, w, c] inside, int8 in a quantised model: feeding and
    reading change them, runs do not.
    """

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

    def load(network: dict[str, Any]) -> Any:
        session = RUNTIMES[plan["runtime"]]((folder / network["file"]).read_bytes(), plan["threads"])
        session.feed(random_images(network["shape"]))
        return session

    runtime = ""
    for number, network in enumerate(plan["networks"], 1):
        if hashlib.sha256((folder / network["file"]).read_bytes()).hexdigest() != network["sha256"]:
            raise ValueError(f"{network['file']} is not the plan's: copy the folder again")
        session = load(network)
        session.run()
        runtime = session.runtime
        if not np.isfinite(session.output()).all():
            raise ValueError(f"{network['file']}: the output is not finite; this runtime computes something else")
        say(f"checked {number} of {len(plan['networks'])}")
    machine = {"runtime": runtime, **describe_machine()}
    results = {"format": RESULTS_FORMAT, "plan": plan["digest"], "machine": machine, "turns": []}
    path = folder / "results.json"
    if path.exists():
        found = json.loads(path.read_text())
        if any(found.get(key) != results[key] for key in ("format", "plan", "machine")):
            raise ValueError("results.json is of another plan or another machine: move it away")
        results = found
    loads = [lambda network=network: load(network).run for network in plan["networks"]]
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
