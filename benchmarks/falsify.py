"""Question: does `ofa verify` find what is not true of a specialised folder, or say that it does not repeat it?

A tiny supernet is specialised (two budgets, limits, int8 beside fp32, Python code), on a clock and a memory meter that
repeat exactly; its labels are measured. Then one thing at a time is made false: each leaf of manifest.json (numbers
scaled and moved, words changed, booleans turned, entries dropped, lists turned round, paths led outside), and bytes
of each file that the folder has. Each lie about the manifest is told three times: as it is, with the digest of the
manifest made anew, and without one. A lie is

* found, where reading or `verify` raises one of our errors (the command ends with another exit code than 0 then),
* named, where a claim that is "not repeated" shows it, or says that the entry is not repeated,
* passed, where neither is so: all of these are printed.

Aim: at least 95 % found or named, and none that ends with any other exception. Prints tried / found / named as not
repeated / passed, and one line of JSON last.

    python benchmarks/falsify.py
    python benchmarks/falsify.py --every 7     # a seventh of the lies
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

from onceforall.checkpoint import digest
from onceforall.cost.analytic import MACs
from onceforall.cost.latency import LatencyTable
from onceforall.data.dataset import ImageData
from onceforall.deploy.derived import NOT_REPEATED
from onceforall.deploy.exporting import Exporter, run_files
from onceforall.deploy.exports import PythonExport
from onceforall.deploy.specialize import specialize
from onceforall.deploy.verify import Claim, verify
from onceforall.devices.onnxruntime import OnnxRuntimeDevice
from onceforall.errors import OFAError
from onceforall.files import DIGEST, write_json
from onceforall.nn.supernet import Supernet
from onceforall.predict.labels import Label, label
from onceforall.predict.quality import assess
from onceforall.spaces.inverted_residual import FirstBlock, InvertedResidualSpace, Stage

AIM = 0.95
DIGESTS = ("as it is", "made anew", "removed")
UNREPEATED = {*NOT_REPEATED, "attempts"}


class Lie(NamedTuple):
    """What is made false, how, and what does that to a folder."""

    place: str
    how: str
    tell: Callable[[Path], None]


class Truth(NamedTuple):
    """A folder whose claims hold, and what `verify` is given for it."""

    folder: Path
    supernet: Supernet
    data: ImageData
    labels: list[Label]

    def claims(self, folder: Path) -> list[Claim]:
        """Of a folder in its place. Raises what `verify` raises."""
        return list(verify(folder, self.data, self.supernet, digest(self.supernet), self.labels))


# The truth


def tiny() -> tuple[Supernet, ImageData]:
    """145,800 networks of a few channels, and images of 20 px in four colours."""
    space = InvertedResidualSpace(
        resolutions=(16, 20),
        units=(
            Stage((1, 2), (3, 5, 7), (3, 4, 6), 8, 2, "relu", False),
            Stage((2, 3), (3, 5, 7), (3, 4, 6), 16, 2, "h_swish", True),
        ),
        name="tiny", stem_width=8, stem_stride=2, first=FirstBlock(8, 1, "relu", shortcut=True), final_width=32,
        mix_width=24, activation="h_swish", num_classes=4, dropout=0.1,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    colours = np.array([[90, 130, 130], [130, 90, 130], [130, 130, 90], [150, 150, 150]])

    def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        classes = rng.integers(0, 4, count)
        pixels = colours[classes][:, :, None, None] + rng.normal(0, 30, (count, 3, 20, 20))
        return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)), torch.from_numpy(classes)

    names = ["red", "green", "blue", "grey"]
    return Supernet(space, seed=1), ImageData(
        "tiny", *images(200), *images(60), 4, (0.5, 0.51, 0.52), (0.2, 0.21, 0.22), classes=tuple(names)
    )


def made(place: Path, budgets: Sequence[str] = ("90%", "100 ms")) -> Truth:
    """The folder, specialised on the ideal machine."""
    supernet, data = tiny()
    labels = label(supernet, data, place / "labels.jsonl", count=40)
    largest = supernet.space.lower(supernet.space.largest())
    specialize(
        supernet, labels, data, OnnxRuntimeDevice(), place / "true", budgets=budgets,
        limits=[MACs().at_most(0.9 * MACs().cost(largest))] if budgets else (), quantize="int8" if budgets else None,
        table=LatencyTable.synthetic(supernet.space), candidates=2, exports=[PythonExport()] if budgets else (),
        about={"name": "tiny", "sha256": digest(supernet)}, data_source="made up",
    )  # fmt: skip
    return Truth(place / "true", supernet, data, labels)


def ideal_machine() -> Any:
    """Patches: clocks and memory repeat exactly, and what was measured of equal files is not measured again."""
    judge, in_torch = Exporter.judge, Exporter.in_torch
    known: dict[Any, Any] = {}

    def ms(loads: Sequence[object], turns: object, **given: object) -> np.ndarray:
        return np.full((len(loads), 9), 0.5)

    def memory(device: object, files: dict[str, bytes], shape: object) -> int:
        return sum(map(len, files.values())) << 10

    def judged(self: Exporter, arch: Any, device: Any, files: Any, split: Any) -> Any:
        key = (digest(self.source), arch, device.name, device.precision, tuple(sorted(files.items())), split)
        known[key] = known.get(key) or judge(self, arch, device, files, split)
        return known[key]

    def scored(self: Exporter, arch: Any, split: Any) -> float:
        key = (digest(self.source), arch, split)
        known[key] = known.get(key) or in_torch(self, arch, split)
        return float(known[key])

    def ran(device: Any, files: Any, shape: Any, data: Any, batches: Any) -> Any:
        key = (device.name, device.precision, tuple(sorted(files.items())))  # of label images alone
        known[key] = known.get(key) or run_files(device, files, shape, data, batches)
        return known[key]

    def assessed(predictor: Any, space: Any, *pairs: Any, seed: int) -> Any:
        known[seed] = known.get(seed) or assess(predictor, space, *pairs, seed=seed)
        return known[seed]

    stack = contextlib.ExitStack()
    for module in ("call", "precision", "verify"):
        stack.enter_context(mock.patch(f"onceforall.deploy.{module}.time_turns", ms))
    for module in ("finishing", "verify"):
        stack.enter_context(mock.patch(f"onceforall.deploy.{module}.measure_memory", memory))
    stack.enter_context(mock.patch("onceforall.deploy.verify.run_files", ran))
    stack.enter_context(mock.patch("onceforall.deploy.verify.assess", assessed))
    stack.enter_context(mock.patch.object(Exporter, "judge", judged))
    stack.enter_context(mock.patch.object(Exporter, "in_torch", scored))
    return stack


# Lies


def lies(truth: Path, seed: int = 0) -> Iterator[Lie]:
    """About a true folder, each of which makes one thing false."""
    manifest, rng = json.loads((truth / "manifest.json").read_text()), random.Random(seed)
    for steps in places(manifest):
        for how, change in changes(at(manifest, steps), rng):
            changed = copy.deepcopy(manifest)
            change(at(changed, steps[:-1]), steps[-1])
            for digest_of in DIGESTS:
                yield Lie(".".join(map(str, steps)), f"{how}, digest {digest_of}", told(changed, digest_of))
    for path in sorted(path for path in truth.rglob("*") if path.is_file() and path.name not in (".lock",)):
        name = path.relative_to(truth).as_posix()
        for how, harm in (("bit flipped", flipped), ("bit flipped again", flipped), ("cut off", cut), ("gone", gone)):
            yield Lie(name, how, harm(name, rng))
        yield Lie(name, "a link that leads outside", linked(name))


def places(value: Any, steps: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of a JSON object are, those that hold others as well."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if key != DIGEST:
            yield (*steps, key)
            yield from places(inner, (*steps, key))


def at(value: Any, steps: Sequence[Any]) -> Any:
    """The value at a place."""
    for step in steps:
        value = value[step]
    return value


Change = Callable[[Any, Any], None]


def changes(value: Any, rng: random.Random) -> Iterator[tuple[str, Change]]:
    """What makes a value false, each where it changes anything."""

    def put(new: Any) -> Change:
        return lambda parent, key: parent.__setitem__(key, new)

    yield "dropped", lambda parent, key: parent.__delitem__(key)
    if isinstance(value, bool):
        yield "turned", put(not value)
    elif isinstance(value, int | float):
        yield "scaled", put(value * 2 if value else 1)
        yield "moved", put(value // 2 - 1 if isinstance(value, int) else value * 1.3 + 0.1)
    elif isinstance(value, str):
        yield "changed", put(value[:-1] + ("x" if value[-1:] != "x" else "y"))
        if "/" in value or value.endswith((".json", ".safetensors")):
            yield "led up", put(f"../{value}")
            yield "led away", put(f"/{value}")
    elif isinstance(value, list) and value[::-1] != value:
        yield "turned round", put(value[::-1])


def told(manifest: Any, digest_of: str) -> Callable[[Path], None]:
    """What writes a changed manifest."""

    def tell(folder: Path) -> None:
        value = {key: entry for key, entry in manifest.items() if digest_of == "as it is" or key != DIGEST}
        if digest_of == "made anew":
            write_json(folder / "manifest.json", value)
        else:
            (folder / "manifest.json").write_text(json.dumps(value))

    return tell


def flipped(name: str, rng: random.Random) -> Callable[[Path], None]:
    share, bit = rng.random(), rng.randrange(8)

    def tell(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[int(share * len(content))] ^= 1 << bit
        (folder / name).write_bytes(content)

    return tell


def cut(name: str, rng: random.Random) -> Callable[[Path], None]:
    share = rng.random()

    def tell(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return tell


def gone(name: str, rng: random.Random) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def linked(name: str) -> Callable[[Path], None]:
    def tell(folder: Path) -> None:
        outside = folder.with_name(f"{folder.name}-outside")
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)

    return tell


# The judge


def outcome(truth: Truth, lie: Lie, place: Path, before: set[Claim]) -> tuple[str, str]:
    """found, named, passed, or raw for an exception that is none of ours; and what was said."""
    folder = Path(tempfile.mkdtemp(dir=place)) / "told"
    shutil.copytree(truth.folder, folder)
    lie.tell(folder)
    try:
        claims = truth.claims(folder)
    except OFAError as error:
        return "found", str(error)
    except Exception as error:
        return "raw", repr(error)
    finally:
        shutil.rmtree(folder.parent)
    named = [claim for claim in claims if not claim.repeated and claim not in before]
    if not named and UNREPEATED & {*lie.place.split(".")}:
        named = [claim for claim in claims if not claim.repeated and claim.about.split(": ")[-1] in lie.place]
    return ("named", named[0].about) if named else ("passed", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="tell every so many-th lie only")
    parser.add_argument("--show", action="store_true", help="print what was said of each lie")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary, ideal_machine():
        truth = made(Path(temporary))
        claims = truth.claims(truth.folder)
        before = {claim for claim in claims if not claim.repeated}
        print(f"the truth: {len(claims) - len(before)} claims hold, {len(before)} are not repeated", flush=True)
        counts: Counter[str] = Counter()
        for lie in list(lies(truth.folder))[:: given.every]:
            kind, said = outcome(truth, lie, Path(temporary), before)
            counts[kind] += 1
            if given.show or kind in ("passed", "raw"):
                print(f"{kind}: {lie.place}: {lie.how}: {said[:160]}", flush=True)
    tried = sum(counts.values())
    share = (counts["found"] + counts["named"]) / tried
    print(f"tried {tried}, found {counts['found']}, named as not repeated {counts['named']}, passed {counts['passed']}")
    print(json.dumps({"tried": tried, **counts, "share": share, "aim": share >= AIM and not counts["raw"]}))


if __name__ == "__main__":
    main()
