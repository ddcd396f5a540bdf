"""What a bundle costs and gives, measured in each runtime: accuracy, bytes, resident memory, time to switch."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onceforall.architecture import Architecture
from onceforall.bundle.bundle import RUNTIMES, WEIGHTS, Bundle, in_onnxruntime, in_torch, read_manifest, without_weights
from onceforall.checkpoint import read_tensors, write_tensors
from onceforall.data.dataset import Data
from onceforall.devices.measure import describe_machine
from onceforall.devices.onnx import INPUT, to_onnx
from onceforall.devices.torch import pinned
from onceforall.evaluate import ready
from onceforall.files import write_atomically, write_json
from onceforall.layers import MBConvSpec, layer_from_json
from onceforall.nn.subnet import build, channels_last, fold_batch_norm
from onceforall.nn.supernet import Supernet
from onceforall.process import run_python
from onceforall.profiling.measuring import image_shape
from onceforall.sizes import height_width
from onceforall.tasks import task_of

SWITCHES = 15  # of each sub-network


def measure_bundle(folder: str | Path, supernet: Supernet, data: Data, *, threads: int = 1) -> dict[str, Any]:
    """Measure a bundle on the test images and on this machine, and add what was found to its manifest.

    Each sub-network is compared with a file of its own, as it would be deployed without a bundle:
    batch norms folded, safetensors for PyTorch, ONNX for ONNX Runtime. Returns the manifest. Raises
    IncompatibleCheckpoint, UnwritableOutput.
    """
    folder, task = Path(folder), task_of(data)
    manifest = read_manifest(folder)
    networks = manifest["networks"]
    with tempfile.TemporaryDirectory() as temporary:
        separate = Path(temporary)
        for name, entry in networks.items():
            arch = Architecture.from_json(entry["architecture"])
            plain = ready(supernet, arch, data).cpu()
            write_tensors(separate / f"{name}.safetensors", plain.state_dict(), {})
            write_atomically(separate / f"{name}.onnx", to_onnx(plain, image_shape(arch)))
        measured = {runtime: _runtime(folder, separate, networks, runtime, data, threads) for runtime in RUNTIMES}
    manifest["measured"] = {
        "kind": "measured",
        "machine": describe_machine(),
        "threads": threads,
        "units": {
            task.score.key: f"{task.score.unit or task.score.name} of the test images, by the bundle in its runtime",
            "switch_ms": "ms from use() to the first logits of one image, median, one sub-network kept",
            "ready_switch_ms": "the same, all sub-networks kept",
            "bytes": "of files; separate: one file a sub-network, batch norms folded",
            "resident_bytes": "growth of a process's resident memory that is its own or is of the bundle's files (not "
            "the code of libraries), one image run through every sub-network",
        },
        "runtimes": measured,
    }
    write_json(folder / "manifest.json", manifest)
    return manifest


def _runtime(
    folder: Path, separate: Path, entries: Mapping[str, Any], runtime: str, data: Data, threads: int
) -> dict[str, Any]:
    suffix = ".safetensors" if runtime == "torch" else ".onnx"
    alone = {name: (separate / f"{name}{suffix}").stat().st_size for name in entries}
    graphs = [entry["onnx"] for entry in entries.values()] if runtime == "onnxruntime" else []
    bundle, task = Bundle.load(folder, runtime, threads=threads), task_of(data)
    network, scores = nn.Module(), {}
    network.forward = bundle  # what tasks evaluate is a module
    for name in entries:
        bundle.use(name)
        scores[name] = task.evaluate(network, data.batches("test", bundle.resolution))
    with pinned(threads):  # torch's, which a bundle leaves alone
        switches = _switches(bundle)
        kept = _switches(Bundle.load(folder, runtime, keep=len(entries), threads=threads))
    return {
        "networks": {
            name: {
                task.score.key: scores[name],
                "switch_ms": switches[name],
                "ready_switch_ms": kept[name],
                "separate_bytes": alone[name],
            }
            for name in entries
        },
        "bytes": sum((folder / file).stat().st_size for file in (WEIGHTS, "manifest.json", *graphs)),
        "separate_bytes": sum(alone.values()),
        "resident_bytes": _resident("bundle", runtime, folder, folder, 1, threads),
        "resident_bytes_all_kept": _resident("bundle", runtime, folder, folder, len(entries), threads),
        "separate_resident_bytes": _resident("separate", runtime, separate, folder, 1, threads),
    }


def _switches(bundle: Bundle) -> dict[str, float]:
    """Median milliseconds from the call of `use` to the first logits, coming from the sub-network before."""
    images = {}
    for name in bundle.names:
        bundle.use(name)
        images[name] = torch.randn(1, 3, *height_width(bundle.resolution))
        bundle(images[name])
    times: dict[str, list[float]] = {name: [] for name in images}
    for _ in range(SWITCHES):
        for name in images:
            began = time.perf_counter()
            bundle.use(name)
            bundle(images[name])
            times[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def _resident(mode: str, runtime: str, files: Path, folder: Path, keep: int, threads: int) -> int | None:
    """Bytes by which a process of its own grows; None on systems that do not tell (only Linux does)."""
    if not Path("/proc/self/smaps").exists():
        return None
    code = f"from {__name__} import report_memory; report_memory()"
    with tempfile.TemporaryDirectory() as temporary:
        result = Path(temporary, "bytes")  # runtimes print what they like
        given = (mode, runtime, str(files), str(folder), str(keep), str(threads), str(result))
        run_python(code, *given, same_paths=True)
        return int(result.read_text())


def report_memory() -> None:
    """Writes by how many bytes this process grows as it loads and runs all sub-networks (see `_resident`)."""
    mode, runtime, files, folder, keep, threads, result = sys.argv[1:]
    torch.set_num_threads(int(threads))
    networks = read_manifest(Path(folder))["networks"]
    sizes = {name: Architecture.from_json(entry["architecture"]).resolution for name, entry in networks.items()}
    images = {name: torch.zeros(1, 3, *height_width(size)) for name, size in sizes.items()}
    with torch.device("meta"):  # what torch imports for this is tens of MB
        warm = fold_batch_norm(build([MBConvSpec(32, 3, 24, 16, 5, 1, "h_swish", 8, shortcut=False)]))
    warm = channels_last(warm.to_empty(device="cpu"))
    with torch.inference_mode():  # the libraries' own memory is there before
        warm(torch.zeros(1, 3, 32, 32))
        if runtime == "onnxruntime":
            import onnxruntime

            model = to_onnx(warm, (1, 3, 32, 32))
            onnxruntime.InferenceSession(model).run(None, {INPUT: torch.zeros(1, 3, 32, 32).numpy()})
            del model
        before = _resident_now(files)
        if mode == "bundle":
            bundle = Bundle.load(files, runtime, keep=int(keep), threads=int(threads))
            for name in bundle.names:
                bundle.use(name)
                bundle(images[name])
        else:
            alive = []
            for name, entry in networks.items():
                path = Path(files, name)
                if runtime == "torch":
                    tensors, _ = read_tensors(path.with_name(f"{name}.safetensors"))
                    specs = [layer_from_json(value) for value in entry["layers"]]
                    alive.append(in_torch(without_weights(specs), tensors))
                else:
                    alive.append(in_onnxruntime(path.with_name(f"{name}.onnx"), int(threads)))
                alive[-1](images[name])
        Path(result).write_text(str(_resident_now(files) - before))


def _resident_now(files: str) -> int:
    """Resident bytes of this process that belong to no file, or to one in the folder `files`."""
    total, counted = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if not fields[0].endswith(":"):  # a mapping: addresses, rights, offset, device, inode, file
            counted = len(fields) < 6 or fields[5].startswith(("[", str(Path(files).resolve())))
        elif fields[0] == "Rss:" and counted:
            total += 1024 * int(fields[1])
    return total
