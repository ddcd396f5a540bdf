"""Wrote `v0_1_0/`: one of each file that commit 26b5fcf writes, and the numbers that it gives (numbers.json).

    git worktree add ../oldcode 26b5fcf
    PYTHONPATH=../oldcode OMP_NUM_THREADS=1 python tests/old/make_v0_1_0.py tests/old/v0_1_0

It needs the package as it was then; nothing imports it. `test_v0_1_0.py` reads the files with the package of
today. What depends on the machine, such as the processor's name, is made up.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import itertools
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onceforall.cost.profile import profile

import onceforall as ofa
from onceforall.choices import Unit
from onceforall.cost.analytic import macs
from onceforall.cost.features import features, layer_features
from onceforall.cost.latency import unique_layers
from onceforall.data.dataset import ImageData
from onceforall.deploy import job as job_module
from onceforall.deploy.card import write_card
from onceforall.devices import device as device_module
from onceforall.devices.onnxruntime import OnnxRuntimeDevice
from onceforall.files import sha256, write_json
from onceforall.layers import layer_to_json
from onceforall.predict.labels import Label
from onceforall.predict.sampling import DISTRIBUTIONS, plan
from onceforall.spaces.inverted_residual import FirstBlock, InvertedResidualSpace, Stage
from onceforall.spaces.resnet50d import BottleneckStage, ResNetSpace

torch.set_num_threads(1)
device_module.describe_machine = lambda: {
    "processor": "a processor",
    "cores": 2,
    "machine": "x86_64",
    "system": "Linux",
}

Json = Any


class Stopped(Exception):
    """In place of a signal."""


# The spaces


def plain_space() -> InvertedResidualSpace:
    return InvertedResidualSpace(
        resolutions=(12, 16),
        units=(
            Stage((1, 2), (3, 5), (1, 2), 8, 2, "relu", False),
            Stage((1,), (3, 5, 7), (1, 2), 8, 2, "h_swish", True),
        ),
        name="old",
        stem_width=8,
        stem_stride=2,
        first=FirstBlock(8, 1, "relu", shortcut=True),
        final_width=16,
        mix_width=8,
        activation="h_swish",
        num_classes=3,
        dropout=0.1,
    )


def make_spaces() -> dict[str, Any]:
    plain = plain_space()
    widths = {"width_multipliers": (0.5, 1.0)}
    units = tuple(replace(unit, width=16) for unit in plain.units)
    return {
        "plain": plain,
        "width_multipliers": replace(plain, units=tuple(replace(unit, **widths) for unit in units)),
        "tied": replace(
            plain,
            units=tuple(replace(unit, depths=(1, 2), tied=True, **widths) for unit in units),
            mix_width=0,
            dropout=0.0,
        ),
        "resnet": ResNetSpace(
            resolutions=(32, 40),
            units=(
                Unit((0, 1), (3,), (1,), **widths),
                Unit((2,), (3,), (1,), **widths),
                BottleneckStage((1, 2), (3,), (0.25, 0.5), 16, 1, **widths),
                BottleneckStage((1, 3), (3,), (0.25, 0.5), 24, 2, **widths),
            ),
            name="old_resnet",
            num_classes=3,
            stem_width=32,
            dropout=0.1,
        ),
    }


# What the tests make again. No random numbers of a library: they would have to stay what they are for ever.


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Numbers from 0 to 1 that look random, of integer arithmetic alone."""
    x = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(1 + 1_000_003 * seed)
    for shift in (33, 29, 32):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(0xFF51AFD7ED558CCD)
    return (x >> np.uint64(40)).astype(np.float64).reshape(shape) / 2**24


def make_data() -> ImageData:
    """200 training and 40 test images of 16 px in three classes, told apart by their colour under noise."""

    def images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        classes = np.arange(count) * 7 % 11 % 3
        colours = 17 * (np.arange(3) == classes[:, None]) + 24 * noise(count, 3, seed=seed + 2)
        pixels = 50 + colours[:, :, None, None] + 120 * noise(count, 3, 16, 16, seed=seed)
        return torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(classes)

    return ImageData("old", *images(200, 1), *images(40, 2), 3, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def inputs(size: int, count: int = 2) -> torch.Tensor:
    return torch.from_numpy((2 * noise(count, 3, size, size, seed=5) - 1).astype(np.float32))


class Golden:
    """A made-up accuracy (percent): sums of multiples of 2^-20, which every processor adds up alike."""

    def __init__(self, space: Any, curved: bool = False) -> None:
        self.space = space
        width = len(space.encoded_choices)
        self.weights = np.floor(2**20 * (noise(width, seed=7) - 0.3)) / 2**20
        self.pairs = np.floor(2**20 * (noise(width, width, seed=8) - 0.5)) / 2**22 * curved

    def predict_rows(self, rows: Any) -> Any:
        x = self.space.encode_rows(rows).astype(np.float64)
        return 60 + x @ self.weights + ((x @ self.pairs) * x).sum(axis=1)


class Fixed(OnnxRuntimeDevice):
    """A device on no machine: its milliseconds follow from weights and turn. It is stopped after some turns."""

    name = "fixed"
    is_here = False
    additive = True
    turns_left = 10**6

    def latency(self, weights: int) -> float:
        return (0.02 + 1e-5 * weights) * (1.0 if self.additive else 1 + weights * 2654435761 % 1009 / 1009)

    def describe(self) -> dict[str, Any]:
        return {"name": "fixed", "runtime": "fixed 1", "threads": self.threads, "precision": self.precision}

    def time(self, networks: Any, turns: Any, *, done: Any = (), keep: Any = None, report: Any = None) -> Any:
        rows = list(done)
        sizes = [sum(tensor.numel() for tensor in network.parameters()) for network, _ in networks]
        for turn in range(len(rows), turns.count):
            jitter = [1 + 0.001 * ((7 * index + 13 * turn) % 11) for index in range(len(sizes))]
            rows.append(np.array([self.latency(n) * j for n, j in zip(sizes, jitter, strict=True)]))
            if keep is not None:
                keep(rows[-1])
            self.turns_left -= 1
            if not self.turns_left:
                raise Stopped
        return np.stack(rows, axis=1)


def made_up_labels(space: Any, count: int) -> list[Label]:
    return [
        Label(kind, arch, 20 + 10 * float(np.log10(macs(space.lower(arch)))))
        for kind, arch in plan(space, count, 0, True)
    ]


def fingerprint(net: torch.nn.Module) -> str:
    """Of all weights, whatever they are called and in whatever order they come."""
    parts = sorted(
        str(tuple(tensor.shape)) + hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()
        for tensor in net.state_dict().values()
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def short(value: Json) -> str:
    """Digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def listed(archs: Any) -> list[Json]:
    return [arch.to_json() for arch in archs]


def some(space: Any, count: int) -> list[Any]:
    rng = np.random.default_rng(5)
    return [space.smallest(), space.largest(), *(space.sample(rng) for _ in range(count))]


# The numbers


def of_space(space: Any) -> Json:
    rng = np.random.default_rng(6)
    archs = some(space, 6)
    rows = space.to_rows(archs)
    net = ofa.Supernet(space, seed=1).eval()
    costs = [ofa.MACs(), ofa.Parameters(), ofa.WeightBytes(), ofa.PeakActivationMemory(), ofa.PeakConvolutionMemory()]
    uniforms = space.uniforms()
    return {
        "json": space.to_json(),
        "size": space.size,
        "architectures": listed(archs),
        "strings": list(map(str, archs)),
        "rows": rows.tolist(),
        "columns": [[*key, list(choices)] for key, choices in space.columns.items()],
        "encodings": ["".join(str(int(bit)) for bit in row) for row in space.encode(archs)],
        "costs": [[cost.cost(space.lower(arch)) for cost in costs] for arch in archs],
        "layers": [short([layer_to_json(layer) for layer in space.lower(arch)]) for arch in archs],
        "keys": short([layer.key for layer in unique_layers(space)]),
        "features": [features(space.lower(arch)).tolist() for arch in archs[:3]],
        "uniforms": [len(uniforms), short(listed(uniforms)), *listed(uniforms[:3])],
        "sampled": listed(space.from_rows(space.sample_rows(4, rng))),
        "mutated": listed(space.mutate(arch, rng, 0.3) for arch in archs),
        "crossed": listed(space.crossover(a, b, rng) for a, b in itertools.pairwise(archs)),
        "mutated_rows": space.mutate_rows(rows, rng, 0.3).tolist(),
        "crossed_rows": space.crossover_rows(rows[:-1], rows[1:], rng).tolist(),
        "plans": {
            name: [[kind, arch.to_json()] for kind, arch in plan(space, 3, 3, distribution=name)]
            for name in DISTRIBUTIONS
        },
        "logits": [net(inputs(arch.resolution), arch).tolist() for arch in archs[:4]],
    }


RECIPES: dict[str, Callable[[], Any]] = {
    "progressive_shrinking": lambda: ofa.recipes.progressive_shrinking(),
    "progressive_shrinking, six lengths": lambda: ofa.recipes.progressive_shrinking((1, 1, 1, 1, 1, 1), 60),
    "sandwich": lambda: ofa.recipes.sandwich(30, 64, loss="alpha"),
    "random_order": lambda: ofa.recipes.random_order(30, 64, batch_norm_size=32),
    "delayed_shrinking": lambda: ofa.recipes.delayed_shrinking(30, 64),
    "standalone": lambda: ofa.recipes.standalone(30, 64),
    "finetune": lambda: ofa.recipes.finetune(3, 64, clip_norm=1.0),
}


def of_recipes(spaces: dict[str, Any]) -> Json:
    found = {}
    for name, make in RECIPES.items():
        recipe = make()
        phases = [
            {
                "opened": {of: short(listed(some(phase.opened(space), 4))) for of, space in spaces.items()},
                "sizes": {of: phase.opened(space).size for of, space in spaces.items()},
                "before": {of: recipe.opened_before(number, space).size for of, space in spaces.items()},
                "rates": [phase.learning_rate_at(step, 3) for step in (0, 7)],
            }
            for number, phase in enumerate(recipe.phases)
        ]
        found[name] = {"json": recipe.to_json(), "subnet_epochs": recipe.subnet_epochs, "phases": phases}
    return found


def of_layers(spaces: dict[str, Any]) -> Json:
    """Each kind of layer, in each of its forms."""
    chosen: dict[Any, Any] = {}
    for space in spaces.values():
        for layer in unique_layers(space):
            flags = [value for value in layer_to_json(layer).values() if isinstance(value, bool | str)]
            chosen.setdefault(short([flags, getattr(layer, "se_channels", 0) > 0, getattr(layer, "stride", 1)]), layer)
    return [
        {
            "json": layer_to_json(layer),
            "key": layer.key,
            "numbers": [layer.in_size, layer.out_size, layer.in_channels, layer.out_channels, layer.macs, layer.params],
            "live": [[operation.live, operation.weights] for operation in layer.operations],
            "features": layer_features(layer).tolist(),
        }
        for layer in chosen.values()
    ]


# Training

DATA = make_data()
PS = ofa.recipes.progressive_shrinking((1, 1, 1, 1, 1, 1), 60, 2.0)
SANDWICH = ofa.recipes.sandwich(2, 60, 2.0)
FINETUNE = ofa.recipes.finetune(2, 60, 2.0)


def interrupted(make: Callable[[], Any], recipe: Any, steps: int, folder: Path, temporary: Path) -> Json:
    """A run stopped after some steps, in `folder`; and how it goes on."""
    arguments: dict[str, Any] = {"seed": 4, "keep": 1}
    ofa.train(make(), DATA, recipe, folder, stop_after=steps, **arguments)
    copy = Path(shutil.copytree(folder, temporary / folder.name))
    net = make()
    ofa.train(net, DATA, recipe, copy, stop_after=1, **arguments)
    one_later = fingerprint(net)
    net = make()
    ofa.train(net, DATA, recipe, copy, **arguments)
    undisturbed = make()
    ofa.train(undisturbed, DATA, recipe, temporary / f"{folder.name}-undisturbed", **arguments)
    assert fingerprint(undisturbed) == fingerprint(net)
    space = net.space
    asked = [net.architecture] if isinstance(net, ofa.Network) else some(space, 3)
    log = [json.loads(line) for line in (copy / "log.jsonl").read_text().splitlines()]
    kept = ("phase", "name", "step", "loss", "cross_entropy", "learning_rate", "largest", "smallest", "top1")
    return {
        "recipe": recipe.to_json(),
        "one_later": one_later,
        "end": fingerprint(net),
        "architectures": listed(asked),
        "logits": [net.eval()(inputs(arch.resolution), arch).tolist() for arch in asked],
        "log": [{key: row[key] for key in row if key in kept} for row in log if "loss" in row],
    }


# Everything


def main(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    temporary = Path(tempfile.mkdtemp())
    spaces = make_spaces()
    space = spaces["plain"]
    numbers: dict[str, Json] = {
        "spaces": {name: of_space(made) for name, made in spaces.items()},
        "recipes": of_recipes(spaces),
        "layers": of_layers(spaces),
    }

    # Training, networks
    supernet = ofa.Supernet(space, seed=3)
    recipe = ofa.recipes.random_order(20, 60, 2.0)
    ofa.train(supernet, DATA, recipe, temporary / "base", evaluate_every=100)
    ofa.save_supernet(out / "supernet.safetensors", supernet)
    little = space.restrict(depths=[1], kernels=[3, 5])
    arch = space.uniform(depth=1, kernel=3, expand=2, resolution=16)
    supernet.eval()
    archs = some(space, 3)
    numbers["supernet"] = {
        "architectures": listed(archs),
        "logits": [supernet(inputs(a.resolution), a).tolist() for a in archs],
        "label_top1": [ofa.measure_top1(supernet, a, DATA, "label") for a in archs],
        "test_top1": [ofa.measure_top1(supernet, a, DATA, "test") for a in archs],
        "fingerprint": fingerprint(supernet),
    }
    print("test top-1", numbers["supernet"]["test_top1"])
    plain = supernet.extract(space.smallest())
    ofa.calibrate(plain, DATA.calibration(12))
    ofa.interop.save_pretrained(plain, out / "pretrained")
    numbers["pretrained"] = plain(inputs(12)).tolist()
    numbers["runs"] = {
        # The fourth of six phases, whose first step is done: momentum, a teacher, and channels still to be sorted.
        "shrinking": interrupted(lambda: ofa.Supernet(space, seed=2), PS, 10, out / "shrinking", temporary),
        "sandwich": interrupted(lambda: ofa.Supernet(little, seed=2), SANDWICH, 2, out / "sandwich", temporary),
        "finetune": interrupted(
            lambda: ofa.Network.of(ofa.load_supernet(out / "supernet.safetensors"), arch),
            FINETUNE,
            2,
            out / "finetune",
            temporary,
        ),
    }

    # Labels
    measured = ofa.label(supernet, DATA, out / "labels.jsonl", count=12, seed=1, uniform=False)
    part = out / "labels-part.jsonl"

    def stop(done: int, total: int) -> None:
        if done >= 7:
            raise Stopped

    with contextlib.suppress(Stopped):
        ofa.label(supernet, DATA, part, count=12, seed=1, uniform=False, report=stop)
    numbers["labels"] = [[row.kind, row.architecture.to_json(), row.top1] for row in measured]
    print("labels", [row.top1 for row in measured])

    # Latency
    few = space.restrict(resolutions=[12, 16], kernels=[3], depths=[1, 2])
    table = ofa.LatencyTable.synthetic(few)
    table = table.corrected(
        [few.lower(a) for a in some(few, 4)], [0.3 + 1.1 * table.cost(few.lower(a)) for a in some(few, 4)]
    )
    table.save(out / "table.json")
    tables = {size: ofa.LatencyTable.synthetic(few.restrict(resolutions=[size]), 1e5 * size) for size in (12, 16)}
    ofa.LatencyTables(tables).save(out / "tables.json")
    teachers = [few.lower(a) for a in dict.fromkeys(some(few, 12))]
    truth = [0.02 + 1e-4 * macs(layers) ** 0.7 for layers in teachers]
    about = {"name": "made up", "runtime": "made up 1", "threads": 1, "precision": "fp32"}
    learned = {
        "learned.json": ofa.LearnedLatency.fit(teachers, truth, about),
        "learned-table.json": ofa.LearnedLatency.fit(teachers, truth, about, table),
        "learned-tables.json": ofa.LearnedLatency.fit(teachers, truth, about, ofa.LatencyTables(tables)),
    }
    for name, model in learned.items():
        model.save(out / name)
    ofa.profile(few, OnnxRuntimeDevice(), calibrating=8, validating=4, learning=0, turns=2, burst_seconds=0.001).save(
        out / "profiled.json"
    )
    asked = some(few, 5)
    numbers["latency"] = {
        "space": few.to_json(),
        "architectures": listed(asked),
        "ms": {
            name: [ofa.load_latency(out / name).cost(few.lower(a)) for a in asked]
            for name in ("table.json", "tables.json", "profiled.json", *learned)
        },
        "uncertainty": {
            name: model.uncertainty([few.lower(a) for a in asked]).tolist() for name, model in learned.items()
        },
    }

    # An interrupted profile, in its second step
    device = Fixed()
    device.additive, device.turns_left = False, 3 + 1
    arguments: dict[str, Any] = {"calibrating": 12, "validating": 4, "learning": 10, "turns": 3}
    with contextlib.suppress(Stopped):
        profile(space, device, progress=out / "profile.part", **arguments)
    assert json.loads((out / "profile.part").read_text().splitlines()[-1])["step"] == "learning"
    shutil.copy(out / "profile.part", temporary / "profile.part")
    device = Fixed()
    device.additive = False
    found = profile(space, device, progress=temporary / "profile.part", **arguments)
    assert json.loads(json.dumps(found.to_json())) == json.loads(
        json.dumps(profile(space, device, **arguments).to_json())
    )
    numbers["profile"] = {
        "arguments": arguments,
        "json": found.to_json(),
        "ms": [found.cost(space.lower(a)) for a in asked],
    }

    # Accuracy predictors
    labels = made_up_labels(space, 30)
    pairs = ofa.training_pairs(labels)
    kinds = {
        "ridge": ofa.RidgePredictor(space),
        "interactions": ofa.RidgePredictor(space, interactions=True),
        "mlp": ofa.MLPPredictor(space, hidden=6, epochs=20),
        "ensemble-mlp": ofa.EnsemblePredictor(space, members=2, options={"hidden": 4, "epochs": 10}),
        "ensemble-ridge": ofa.EnsemblePredictor(space, members=2, of="ridge"),
    }
    asked = some(space, 8)
    numbers["predictors"] = {"architectures": listed(asked), "top1": {}, "deviation": {}, "fitted": listed(pairs[0])}
    for name, predictor in kinds.items():
        ofa.save_predictor(out / f"{name}.safetensors", predictor.fit(*pairs))
        numbers["predictors"]["top1"][name] = predictor.predict(asked).tolist()
        if name.startswith("ensemble"):
            numbers["predictors"]["deviation"][name] = predictor.predict_with_uncertainty(asked)[1].tolist()

    # Searches
    golden = Golden(space, curved=True)
    bounds = [ofa.MACs().at_most(40_000), ofa.Parameters().at_most(2_500)]
    result = ofa.search(space, golden, bounds, seed=0)
    write_json(out / "search.json", {"model": "old", **replace(result, seconds=0.5).to_json()})
    tries = iter([41_000, 39_000])
    confirmed = ofa.confirm(
        space, golden, replace(result, seconds=0.5), bounds, lambda a: [next(tries)], lambda a: [70.5], top=3
    )
    write_json(out / "confirmed.json", {"model": "old", **confirmed.to_json()})
    outline = ofa.front(space, golden, [ofa.MACs()], bounds[1:], points=6, generations=5, population=40)
    write_json(out / "front.json", {"model": "old", **replace(outline, seconds=0.5).to_json()})
    numbers["searches"] = {
        "architecture": result.architecture.to_json(),
        "accuracy": result.accuracy,
        "confirmed": confirmed.result.architecture.to_json(),
        "front": [[p.accuracy, p.costs[0].value] for p in outline.points],
        "optimum": ofa.optimum(space, Golden(space), bounds).architecture.to_json(),
    }
    numbers["golden"] = large()

    # Specialisation: int8, fine-tuning, standalone code
    job_module.MLPPredictor = functools.partial(ofa.MLPPredictor, hidden=6, epochs=20)
    about = {"name": "old", "sha256": sha256(out / "supernet.safetensors")}
    ofa.specialize(
        supernet, labels, DATA, OnnxRuntimeDevice(), temporary / "specialized", budgets=("1000 ms",),
        limits=[ofa.MACs().at_most(30_000)], table=ofa.LatencyTable.synthetic(space), quantize="int8",
        standalone=True, finetune=1, candidates=1, about=about,
    )  # fmt: skip
    keep_little(temporary / "specialized")
    shutil.copytree(temporary / "specialized", out / "specialized")
    job_module.MLPPredictor = ofa.MLPPredictor
    manifest = json.loads((out / "specialized" / "manifest.json").read_text())
    tuned = ofa.load_network(out / "specialized" / manifest["networks"][1]["finetuning"]["weights"]["path"]).eval()
    numbers["network"] = {
        "architecture": tuned.architecture.to_json(),
        "logits": tuned(inputs(tuned.architecture.resolution), tuned.architecture).tolist(),
        "fingerprint": fingerprint(tuned),
    }
    numbers["specialized"] = {
        "networks": [[n["role"], n["budget"], n["architecture"], n["macs"], n["params"]] for n in manifest["networks"]],
    }

    # Interrupted ones: while it profiles, and when it verifies
    arguments = {"budgets": ("90%",), "candidates": 1, "about": about, "seed": 1}
    folders = {name: out / name for name in ("specializing-profile", "specializing-verify")}
    device = Fixed()
    device.turns_left = 2
    with contextlib.suppress(Stopped):
        ofa.specialize(supernet, labels, DATA, device, folders["specializing-profile"], **arguments)

    def stop_late(step: str, done: int, total: int) -> None:
        if step == "verified on test images" and done == 2:
            raise Stopped

    with contextlib.suppress(Stopped):
        ofa.specialize(supernet, labels, DATA, Fixed(), folders["specializing-verify"], report=stop_late, **arguments)
    for name, folder in folders.items():
        copy = Path(shutil.copytree(folder, temporary / name))
        made = ofa.specialize(supernet, labels, DATA, Fixed(), copy, **arguments)
        for path in list(folder.iterdir()):  # they are written again, and some are large
            if path.name not in ("manifest.json", "steps.jsonl", "latency.part", "latency.json"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        numbers[name] = {
            "networks": [[n.role, n.budget, n.architecture.to_json(), n.measured_latency_ms] for n in made.networks],
            "ms": [ofa.load_latency(copy / "latency.json").cost(space.lower(a)) for a in some(space, 5)],
        }

    # A bundle
    chosen = {"fast": space.smallest(), "best": space.largest()}
    ofa.write_bundle(supernet, chosen, DATA, out / "bundle")
    numbers["bundle"] = {}
    for name in chosen:
        bundle = ofa.Bundle.load(out / "bundle")
        bundle.use(name)
        numbers["bundle"][name] = [bundle.architecture.to_json(), bundle(inputs(bundle.resolution)).tolist()]

    packages = ("torch", "numpy", "scipy", "onnx", "onnxruntime", "safetensors")
    numbers["versions"] = {name: importlib.metadata.version(name) for name in packages}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in numbers.items()]
    (out / "numbers.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def keep_little(folder: Path) -> None:
    """Of a specialised folder the searched network, and the largest in fp32: the others say nothing more."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    largest, searched, uniform = manifest["networks"]
    for file in [*largest["standalone"], *largest["exports"][0]["files"]]:
        (folder / file["path"]).unlink()
    assert largest["exports"][0]["precision"] == "int8"
    largest |= {"standalone": [], "exports": largest["exports"][1:], "chosen": 0}
    shutil.rmtree(folder / "finetune")
    shutil.rmtree(folder / uniform["exports"][0]["files"][0]["path"].split("/")[0])
    manifest["networks"] = [largest, searched]
    write_json(path, manifest)
    write_card(folder)


def large() -> Json:
    """Searches of the large space."""
    space = ofa.spaces.mobilenet_v3()
    bound = ofa.MACs().at_most(250e6)
    linear, curved = Golden(space), Golden(space, curved=True)
    exact = ofa.optimum(space, linear, [bound])
    found: Sequence[Any] = [ofa.search(space, accuracy, [bound], seed=0) for accuracy in (linear, curved)]
    outline = ofa.front(space, curved, [ofa.MACs()], points=5, generations=5, population=60, rounds=1)
    soft = ofa.search(space, curved, [bound], seed=1, generations=3, objective=ofa.SoftTarget(ofa.MACs(), 200e6))
    return {
        "optimum": [exact.architecture.to_json(), exact.accuracy],
        "search": [[r.architecture.to_json(), r.accuracy, r.costs[0].value, r.evaluations] for r in found],
        "runners_up": listed(found[1].runners_up),
        "soft": [soft.architecture.to_json(), soft.accuracy],
        "front": [[p.architecture.to_json(), p.accuracy, p.costs[0].value] for p in outline.points],
        "sampled": listed(space.from_rows(space.sample_rows(3, np.random.default_rng(2)))),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
