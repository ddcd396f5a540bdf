"""What version 0.1.0 wrote is still read, and still gives the same numbers: `make_v0_1_0.py` says how it was made.

Choices, rows, costs and searches are exact. What floating-point kernels of torch compute is compared to
a tolerance, because another processor may round otherwise; a resumed training bit by bit where the first
step after the interruption agrees bit by bit.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import onceforall as ofa
from onceforall.architecture import Architecture
from onceforall.cost.analytic import PeakActivationMemory
from onceforall.cost.features import CONVOLUTIONAL, QUANTITIES, features, layer_features
from onceforall.cost.latency import unique_layers
from onceforall.data.dataset import ImageData
from onceforall.deploy.manifest import value_of
from onceforall.deploy.reading import read_manifest
from onceforall.deploy.verify import verify
from onceforall.devices.onnxruntime import OnnxRuntimeDevice
from onceforall.files import sha256, write_json
from onceforall.layers import layer_from_json, layer_to_json
from onceforall.nn.supernet import Supernet
from onceforall.predict.labels import Label
from onceforall.predict.sampling import plan
from onceforall.space import SearchSpace
from onceforall.tasks import CLASSIFICATION
from onceforall.training.recipe import Recipe

OLD = Path(__file__).with_name("v0_1_0")
NUMBERS: dict[str, Any] = json.loads((OLD / "numbers.json").read_text())
SPACES = list(NUMBERS["spaces"])
COSTS = (ofa.MACs(), ofa.Parameters(), ofa.WeightBytes(), ofa.PeakActivationMemory(), ofa.PeakConvolutionMemory())


# What the old version was given


def noise(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    """Numbers from 0 to 1 that look random, of integer arithmetic alone."""
    x = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(1 + 1_000_003 * seed)
    for shift in (33, 29, 32):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(0xFF51AFD7ED558CCD)
    return (x >> np.uint64(40)).astype(np.float64).reshape(shape) / 2**24


@pytest.fixture(scope="module")
def data() -> ImageData:
    """200 training and 40 test images of 16 px in three classes, told apart by their colour under noise."""

    def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
        classes = np.arange(count) * 7 % 11 % 3
        colours = 17 * (np.arange(3) == classes[:, None]) + 24 * noise(count, 3, seed=seed + 2)
        pixels = 50 + colours[:, :, None, None] + 120 * noise(count, 3, 16, 16, seed=seed)
        return torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(classes)

    return ImageData("old", *images(200, 1), *images(40, 2), 3, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def inputs(size: int, count: int = 2) -> Tensor:
    return torch.from_numpy((2 * noise(count, 3, size, size, seed=5) - 1).astype(np.float32))


class Golden:
    """A made-up accuracy (percent): sums of multiples of 2^-20, which every processor adds up alike."""

    def __init__(self, space: SearchSpace, curved: bool = False) -> None:
        self.space = space
        width = space.encode([space.smallest()]).shape[1]
        self.weights = np.floor(2**20 * (noise(width, seed=7) - 0.3)) / 2**20
        self.pairs = np.floor(2**20 * (noise(width, width, seed=8) - 0.5)) / 2**22 * curved

    def predict_rows(self, rows: Any) -> NDArray[np.float64]:
        x = self.space.encode_rows(rows).astype(np.float64)
        return np.asarray(60 + x @ self.weights + ((x @ self.pairs) * x).sum(axis=1))


class Fixed(OnnxRuntimeDevice):
    """A device on no machine: its milliseconds follow from weights and turn; `found` are the turns it need not take."""

    name = "fixed"
    is_here = False

    def __init__(self, threads: int = 1, precision: str = "fp32", additive: bool = True) -> None:
        super().__init__(threads, precision)
        self.additive, self.found = additive, list[int]()

    def describe(self) -> dict[str, Any]:
        return {"name": "fixed", "runtime": "fixed 1", "threads": self.threads, "precision": self.precision}

    def latency(self, weights: int) -> float:
        return (0.02 + 1e-5 * weights) * (1.0 if self.additive else 1 + weights * 2654435761 % 1009 / 1009)

    def time(self, networks: Any, turns: Any, *, done: Any = (), keep: Any = None, report: Any = None) -> Any:
        rows = list(done)
        self.found.append(len(rows))
        sizes = [sum(tensor.numel() for tensor in network.parameters()) for network, _ in networks]
        for turn in range(len(rows), turns.count):
            jitter = [1 + 0.001 * ((7 * index + 13 * turn) % 11) for index in range(len(sizes))]
            rows.append(np.array([self.latency(n) * j for n, j in zip(sizes, jitter, strict=True)]))
            if keep is not None:
                keep(rows[-1])
        return np.stack(rows, axis=1)


def fingerprint(net: nn.Module) -> str:
    """Of all weights, whatever they are called and in whatever order they come."""
    parts = sorted(
        str(tuple(tensor.shape)) + hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()
        for tensor in net.state_dict().values()
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def short(value: Any) -> str:
    """Digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def written(value: Any) -> Any:
    """A JSON value as a file of that version has it: lists for tuples, genes as pairs."""
    return older(json.loads(json.dumps(value)))


def older(value: Any) -> Any:
    """Architectures as that version wrote them: a gene is [kernel, expand], no multipliers are left out."""
    if isinstance(value, dict):
        if value.keys() == {"kernel", "expand"}:
            return [value["kernel"], value["expand"]]
        kept = {key: older(item) for key, item in value.items()}
        if kept.keys() == {"resolution", "units", "width_multipliers"} and not kept["width_multipliers"]:
            del kept["width_multipliers"]
        return kept
    return list(map(older, value)) if isinstance(value, list) else value


def architectures(values: Iterable[Any]) -> list[Architecture]:
    return list(map(Architecture.from_json, values))


def listed(archs: Iterable[Architecture]) -> list[Any]:
    return [written(arch.to_json()) for arch in archs]


def some(space: SearchSpace, count: int) -> list[Architecture]:
    rng = np.random.default_rng(5)
    return [space.smallest(), space.largest(), *(space.sample(rng) for _ in range(count))]


def assert_logits(found: Tensor, expected: Any, tolerance: float = 1e-4) -> None:
    wanted = torch.tensor(expected)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    """Equal JSON values, but for rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_close(found[key], value, tolerance)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, tolerance)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=tolerance, abs=1e-9)
    else:
        assert found == expected


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return ofa.spaces.from_json(NUMBERS["spaces"]["plain"]["json"])


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    return ofa.load_supernet(OLD / "supernet.safetensors").eval()


@pytest.fixture
def files(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a file or folder: what is resumed is written."""

    def copied(name: str) -> Path:
        copy = shutil.copytree if (OLD / name).is_dir() else shutil.copy
        return Path(copy(OLD / name, tmp_path / name))

    return copied


# Spaces, architectures, layers


@pytest.mark.parametrize("name", SPACES)
def test_a_space_and_its_architectures_are_what_they_were(name: str) -> None:
    known = NUMBERS["spaces"][name]
    space = ofa.spaces.from_json(known["json"])
    assert written(space.to_json()) == known["json"]
    assert space.size == known["size"]
    archs = architectures(known["architectures"])
    assert archs == some(space, 6)
    assert written(listed(archs)) == known["architectures"]
    assert list(map(str, archs)) == known["strings"]
    uniforms = listed(space.uniforms())
    assert written([len(uniforms), short(uniforms), *uniforms[:3]]) == known["uniforms"]


@pytest.mark.parametrize("name", SPACES)
def test_rows_encodings_and_draws_are_what_they_were(name: str) -> None:
    known = NUMBERS["spaces"][name]
    space = ofa.spaces.from_json(known["json"])
    archs, rng = architectures(known["architectures"]), np.random.default_rng(6)
    rows = space.to_rows(archs)
    assert rows.tolist() == known["rows"]
    assert space.from_rows(rows) == archs
    columns = [[what.replace("_", " "), u, b, list(choices)] for (what, u, b), choices in space.columns.items()]
    assert written(columns) == known["columns"]
    assert ["".join(str(int(bit)) for bit in row) for row in space.encode(archs)] == known["encodings"]
    drawn = {
        "sampled": listed(space.from_rows(space.sample_rows(4, rng))),
        "mutated": listed(space.mutate(arch, rng, 0.3) for arch in archs),
        "crossed": listed(space.crossover(a, b, rng) for a, b in itertools.pairwise(archs)),
        "mutated_rows": space.mutate_rows(rows, rng, 0.3).tolist(),
        "crossed_rows": space.crossover_rows(rows[:-1], rows[1:], rng).tolist(),
    }
    assert written(drawn) == {key: known[key] for key in drawn}
    for distribution, rows_of_plan in known["plans"].items():
        found = plan(space, len(rows_of_plan), 3, distribution=distribution)
        assert written([[kind, arch.to_json()] for kind, arch in found]) == rows_of_plan, distribution


def old_features(found: NDArray[np.float64]) -> list[float]:
    """Without the kinds of operations that came later, of which these networks have none."""
    count = len(CONVOLUTIONAL) * len(QUANTITIES)
    assert not found[count:].any()
    return found[:count].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", SPACES)
def test_layers_and_costs_of_networks_are_what_they_were(name: str) -> None:
    known = NUMBERS["spaces"][name]
    space = ofa.spaces.from_json(known["json"])
    archs = architectures(known["architectures"])
    lowered = list(map(space.lower, archs))
    assert [short([layer_to_json(layer) for layer in layers]) for layers in lowered] == known["layers"]
    assert [[cost.cost(layers) for cost in COSTS] for layers in lowered] == known["costs"]
    assert short([layer.key for layer in unique_layers(space)]) == known["keys"]
    assert [old_features(features(layers)) for layers in lowered[:3]] == known["features"]


@pytest.mark.parametrize("known", NUMBERS["layers"], ids=lambda known: known["key"])
def test_a_layer_is_read_and_is_what_it_was(known: dict[str, Any]) -> None:
    layer = layer_from_json(known["json"])
    assert written(layer_to_json(layer)) == known["json"]
    assert layer.key == known["key"]
    sizes = [layer.in_size, layer.out_size, layer.in_channels, layer.out_channels, layer.macs, layer.params]
    assert sizes == known["numbers"]
    listed = [operation for operation in layer.operations if operation.kind not in ("add", "squeeze-excite")]
    assert [[operation.live, operation.weights] for operation in listed] == known["live"]
    assert PeakActivationMemory(1).cost([layer]) == max(live for live, _ in known["live"])
    assert old_features(layer_features(layer)) == known["features"]


@pytest.mark.parametrize("name", SPACES)
def test_a_seed_gives_the_same_initial_weights(name: str) -> None:
    known = NUMBERS["spaces"][name]
    net = Supernet(ofa.spaces.from_json(known["json"]), seed=1).eval()
    for arch, logits in zip(architectures(known["architectures"]), known["logits"], strict=False):
        assert_logits(net(inputs(arch.resolution), arch), logits)


# Weights


def test_a_supernet_is_read(supernet: Supernet, data: ImageData) -> None:
    known = NUMBERS["supernet"]
    archs = architectures(known["architectures"])
    assert fingerprint(supernet) == known["fingerprint"]
    for arch, logits in zip(archs, known["logits"], strict=True):
        assert_logits(supernet(inputs(arch.resolution), arch), logits)
        assert_logits(supernet.extract(arch)(inputs(arch.resolution)), logits)
    data = replace(data, sparse=True)  # as that version calibrated; what its files describe is done so of itself
    for arch, label_top1, test_top1 in zip(archs, known["label_top1"], known["test_top1"], strict=True):
        # One image may be on the edge.
        assert ofa.measure_top1(supernet, arch, data, "label") == pytest.approx(label_top1, abs=5.01)
        assert ofa.measure_top1(supernet, arch, data, "test") == pytest.approx(test_top1, abs=2.51)


def test_a_network_is_read() -> None:
    known = NUMBERS["network"]
    network = ofa.load_network(next(OLD.glob("specialized/*/finetuned.safetensors"))).eval()
    assert written(network.architecture.to_json()) == known["architecture"]
    assert fingerprint(network) == known["fingerprint"]
    assert_logits(network(inputs(network.architecture.resolution), network.architecture), known["logits"])


def test_a_folder_of_the_hub_is_read() -> None:
    pytest.importorskip("huggingface_hub")
    assert_logits(ofa.interop.from_pretrained(OLD / "pretrained")(inputs(12)), NUMBERS["pretrained"])


@pytest.mark.parametrize("name", ["fast", "best"])
@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_a_bundle_is_read(name: str, runtime: str) -> None:
    bundle = ofa.Bundle.load(OLD / "bundle", runtime)
    assert set(bundle.names) == set(NUMBERS["bundle"])
    bundle.use(name)
    architecture, logits = NUMBERS["bundle"][name]
    assert bundle.architecture == Architecture.from_json(architecture)
    assert_logits(bundle(inputs(bundle.resolution)), logits)


# Training

RECIPES: dict[str, Callable[[], Recipe]] = {
    "progressive_shrinking": lambda: ofa.recipes.progressive_shrinking(),
    "progressive_shrinking, six lengths": lambda: ofa.recipes.progressive_shrinking((1, 1, 1, 1, 1, 1), 60),
    "sandwich": lambda: ofa.recipes.sandwich(30, 64, loss="alpha"),
    "random_order": lambda: ofa.recipes.random_order(30, 64, batch_norm_size=32),
    "delayed_shrinking": lambda: ofa.recipes.delayed_shrinking(30, 64),
    "standalone": lambda: ofa.recipes.standalone(30, 64),
    "finetune": lambda: ofa.recipes.finetune(3, 64, clip_norm=1.0),
}


@pytest.mark.parametrize("name", NUMBERS["recipes"])
def test_a_recipe_is_read_and_does_what_it_did(name: str) -> None:
    known = NUMBERS["recipes"][name]
    recipe = Recipe.from_json(known["json"])
    assert recipe == RECIPES[name]()
    assert Recipe.from_json(written(recipe.to_json())) == recipe
    assert recipe.subnet_epochs == known["subnet_epochs"]
    spaces = {of: ofa.spaces.from_json(NUMBERS["spaces"][of]["json"]) for of in SPACES}
    for number, (phase, about) in enumerate(zip(recipe.phases, known["phases"], strict=True)):
        opened = {of: phase.opened(made) for of, made in spaces.items()}
        assert {of: made.size for of, made in opened.items()} == about["sizes"]
        assert {of: short(listed(some(made, 4))) for of, made in opened.items()} == about["opened"]
        assert {of: recipe.opened_before(number, made).size for of, made in spaces.items()} == about["before"]
        assert [phase.learning_rate_at(step, 3) for step in (0, 7)] == about["rates"]


@pytest.mark.parametrize("name", NUMBERS["runs"])
def test_an_interrupted_training_goes_on(name: str, data: ImageData, files: Callable[[str], Path]) -> None:
    known, run = NUMBERS["runs"][name], files(name)
    space = ofa.spaces.from_json(json.loads((run / "space.json").read_text()))
    single = run / "architecture.json"

    def net() -> Any:
        """Any weights: those of the checkpoint take their place."""
        if single.exists():
            return ofa.Network(space, Architecture.from_json(json.loads(single.read_text())), seed=9)
        return Supernet(space, seed=9)

    recipe = Recipe.from_json(known["recipe"])
    one = ofa.train(net(), data, recipe, run, seed=4, keep=1, stop_after=1)
    end = ofa.train(net(), data, recipe, run, seed=4, keep=1)
    if fingerprint(one) == known["one_later"]:  # a processor that rounds as the old one did
        assert fingerprint(end) == known["end"]
    for arch, logits in zip(architectures(known["architectures"]), known["logits"], strict=True):
        assert_logits(end.eval()(inputs(arch.resolution), arch), logits, 1e-3)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert log[0]["event"] == "start"
    found = [{key: row[key] for key in known["log"][0]} for row in log if "loss" in row]
    assert_close(found, known["log"], 1e-4)
    result = "network" if single.exists() else "supernet"
    load: Callable[[Path], nn.Module] = ofa.load_network if single.exists() else ofa.load_supernet
    assert fingerprint(load(run / f"{result}.safetensors")) == fingerprint(end)


# Labels, accuracy predictors


def test_labels_are_read_and_complete(
    space: SearchSpace, supernet: Supernet, data: ImageData, files: Callable[[str], Path]
) -> None:
    rows = ofa.read_labels(OLD / "labels.jsonl", space)
    assert written([[row.kind, row.architecture.to_json(), row.top1] for row in rows]) == NUMBERS["labels"]
    measured: list[tuple[int, int]] = []
    path = files("labels.jsonl")
    again = ofa.label(supernet, data, path, count=12, seed=1, uniform=False, report=lambda *done: measured.append(done))
    assert again == rows
    assert not measured
    for row in rows[:2]:
        found = ofa.measure_top1(supernet, row.architecture, data, "label")
        assert found == pytest.approx(row.top1, abs=5.01)


def test_interrupted_labels_go_on(supernet: Supernet, data: ImageData, files: Callable[[str], Path]) -> None:
    path = files("labels-part.jsonl")
    lines = path.read_text().splitlines()
    marked = json.loads(lines[1]) | {"top1": 12.5}
    path.write_text("\n".join([lines[0], json.dumps(marked), *lines[2:]]) + "\n")
    found = ofa.label(supernet, data, path, count=12, seed=1, uniform=False)
    assert [row.architecture for row in found] == architectures(arch for _, arch, _ in NUMBERS["labels"])
    assert [row.top1 for row in found if row.architecture == Architecture.from_json(marked["architecture"])] == [12.5]
    others = [row.top1 for row in found if row.top1 != 12.5]
    known = [top1 for _, arch, top1 in NUMBERS["labels"] if arch != marked["architecture"]]
    assert others == pytest.approx(known, abs=5.01)


@pytest.mark.parametrize("name", NUMBERS["predictors"]["top1"])
def test_an_accuracy_predictor_is_read(name: str, space: SearchSpace) -> None:
    known = NUMBERS["predictors"]
    predictor, archs = ofa.load_predictor(OLD / f"{name}.safetensors"), architectures(known["architectures"])
    assert predictor.space == space
    assert predictor.predict(archs) == pytest.approx(known["top1"][name], rel=1e-5)
    if isinstance(predictor, ofa.EnsemblePredictor):
        deviation = predictor.predict_with_uncertainty(archs)[1]
        assert deviation == pytest.approx(known["deviation"][name], rel=1e-3)


@pytest.mark.parametrize(("name", "tolerance"), [("ridge", 1e-5), ("interactions", 1e-5), ("mlp", 1e-3)])
def test_a_predictor_learns_what_it_learnt(name: str, tolerance: float, space: SearchSpace) -> None:
    known = NUMBERS["predictors"]
    kinds = {
        "ridge": ofa.RidgePredictor(space),
        "interactions": ofa.RidgePredictor(space, interactions=True),
        "mlp": ofa.MLPPredictor(space, hidden=6, epochs=20),
    }
    archs = architectures(known["fitted"])
    made_up = [20 + 10 * float(np.log10(COSTS[0].cost(space.lower(arch)))) for arch in archs]
    found = kinds[name].fit(archs, made_up).predict(architectures(known["architectures"]))
    assert found == pytest.approx(known["top1"][name], rel=tolerance)


# Latency


@pytest.mark.parametrize("name", NUMBERS["latency"]["ms"])
def test_a_latency_model_is_read(name: str) -> None:
    known = NUMBERS["latency"]
    space, model = ofa.spaces.from_json(known["space"]), ofa.load_latency(OLD / name)
    networks = list(map(space.lower, architectures(known["architectures"])))
    assert [model.cost(layers) for layers in networks] == pytest.approx(known["ms"][name], rel=1e-7)
    if name in known["uncertainty"]:
        assert isinstance(model, ofa.LearnedLatency)
        assert model.uncertainty(networks) == pytest.approx(known["uncertainty"][name], rel=1e-4)
    assert written(model.to_json()) == json.loads((OLD / name).read_text())


def test_an_interrupted_profile_goes_on(space: SearchSpace, files: Callable[[str], Path]) -> None:
    known, path, device = NUMBERS["profile"], files("profile.part"), Fixed(additive=False)
    found = ofa.profile(space, device, progress=path, **known["arguments"])
    assert device.found == [3, 1]
    assert not path.exists()
    assert_close(written(found.to_json()), known["json"], 1e-6)


# Searches


def test_a_search_result_is_read_and_found_again(space: SearchSpace) -> None:
    value, bounds = json.loads((OLD / "search.json").read_text()), [COSTS[0].at_most(40_000), COSTS[1].at_most(2_500)]
    known = ofa.SearchResult.from_json(value)
    assert {"model": "old", **written(known.to_json())} == value
    found = ofa.search(space, Golden(space, curved=True), bounds, seed=0)
    assert {**written(found.to_json()), "seconds": 0.5, "model": "old"} == value
    exact = ofa.optimum(space, Golden(space), bounds)
    assert exact.architecture == Architecture.from_json(NUMBERS["searches"]["optimum"])


def test_a_confirmed_search_result_is_read() -> None:
    value = json.loads((OLD / "confirmed.json").read_text())
    known = ofa.SearchResult.from_json(value)
    assert known.architecture == Architecture.from_json(NUMBERS["searches"]["confirmed"])
    assert [trial["met"] for trial in value["confirmation"]["trials"]] == [False, True]


def test_a_front_is_read_and_found_again(space: SearchSpace) -> None:
    value = json.loads((OLD / "front.json").read_text())
    known = ofa.Front.from_json(value)
    assert {"model": "old", **written(known.to_json())} == value
    found = ofa.front(
        space, Golden(space, curved=True), [COSTS[0]], [COSTS[1].at_most(2_500)], points=6, generations=5, population=40
    )
    assert {**written(found.to_json()), "seconds": 0.5, "model": "old"} == value


@pytest.fixture(scope="module")
def large() -> SearchSpace:
    return ofa.spaces.mobilenet_v3()


def test_the_optimum_of_the_large_space_is_what_it_was(large: SearchSpace) -> None:
    architecture, accuracy = NUMBERS["golden"]["optimum"]
    exact = ofa.optimum(large, Golden(large), [COSTS[0].at_most(250e6)])
    assert (exact.architecture, exact.accuracy) == (Architecture.from_json(architecture), accuracy)
    rows = large.sample_rows(3, np.random.default_rng(2))
    assert large.from_rows(rows) == architectures(NUMBERS["golden"]["sampled"])


@pytest.mark.parametrize("curved", [False, True])
def test_a_search_of_the_large_space_finds_what_it_found(large: SearchSpace, curved: bool) -> None:
    found = ofa.search(large, Golden(large, curved), [COSTS[0].at_most(250e6)], seed=0)
    value = [found.architecture.to_json(), found.accuracy, found.costs[0].value, found.evaluations]
    assert written(value) == NUMBERS["golden"]["search"][curved]
    if curved:
        assert listed(found.runners_up) == NUMBERS["golden"]["runners_up"]


def test_a_front_of_the_large_space_is_what_it_was(large: SearchSpace) -> None:
    accuracy, cost = Golden(large, curved=True), COSTS[0]
    found = ofa.front(large, accuracy, [cost], points=5, generations=5, population=60, rounds=1)
    points = [[point.architecture.to_json(), point.accuracy, point.costs[0].value] for point in found.points]
    assert written(points) == NUMBERS["golden"]["front"]
    soft = ofa.search(
        large, accuracy, [cost.at_most(250e6)], seed=1, generations=3, objective=ofa.SoftTarget(cost, 200e6)
    )
    assert written([soft.architecture.to_json(), soft.accuracy]) == NUMBERS["golden"]["soft"]


# Specialisation


@pytest.fixture
def specialized(files: Callable[[str], Path]) -> Path:
    """A finished folder. Peak memory takes a process for each export: it is left out."""
    folder = files("specialized")
    manifest = json.loads((folder / "manifest.json").read_text())
    for network in manifest["networks"]:
        for export in network["exports"]:
            export["peak_memory"] = None
    write_json(folder / "manifest.json", manifest)
    return folder


def test_a_manifest_is_read() -> None:
    manifest, networks = read_manifest(OLD / "specialized")
    found = [[n.role, n.budget, n.architecture.to_json(), n.macs, n.params] for n in networks]
    assert written(found) == NUMBERS["specialized"]["networks"][: len(found)]
    for network, old in zip(networks, manifest["networks"], strict=True):
        new = written(network.to_json(CLASSIFICATION.score))
        assert {key: new[key] for key in old.keys() - {"exports", "standalone"}} == {
            key: value for key, value in old.items() if key not in ("exports", "standalone")
        }
        own = zip(old["exports"], new["exports"], strict=False)
        assert all({key: export[key] for key in was} == was for was, export in own)
        assert [export["files"] for export in new["exports"][len(old["exports"]) :]] == [old["standalone"]] * bool(
            old["standalone"]
        )
    searched = networks[-1]
    assert {export.precision for export in searched.exports} == {"fp32", "int8"}
    assert all(value_of(export.peak_memory) > 0 for export in searched.exports if export.device != "python")
    assert searched.finetuning is not None
    assert searched.finetuning.epochs == 1
    assert searched.exports[-1].device == "python"


def test_a_manifest_still_holds(specialized: Path) -> None:
    claims = [claim.about for claim in verify(specialized)]
    for about in (
        "MACs",
        "parameters",
        "predicted latency",
        "predicted top-1",
        "fine-tuned weights",
        "python fp32: files",
    ):
        assert any(about in claim for claim in claims), about


def test_accuracies_of_a_manifest_still_hold(specialized: Path, data: ImageData, supernet: Supernet) -> None:
    """In fp32: an int8 network may differ by an image on a processor with other instructions."""
    manifest = json.loads((specialized / "manifest.json").read_text())
    for network in manifest["networks"]:
        network["exports"] = [export for export in network["exports"] if export["precision"] == "fp32"]
        network["chosen"] = 0
    write_json(specialized / "manifest.json", manifest)
    claims = list(verify(specialized, data, supernet, sha256(OLD / "supernet.safetensors")))
    repeated = [claim.about for claim in claims if claim.repeated]
    assert sum("parity with torch" in about for about in repeated) == 2
    assert sum("test top-1" in about for about in repeated) == 2


@pytest.mark.parametrize("name", ["specializing-profile", "specializing-verify"])
def test_an_interrupted_specialisation_goes_on(
    name: str, space: SearchSpace, supernet: Supernet, data: ImageData, files: Callable[[str], Path]
) -> None:
    known, folder, device = NUMBERS[name], files(name), Fixed()
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    for step in steps:
        if step.get("step", "").startswith("networks"):
            for network in step["found"]:
                network["attempts"] = ["a mark"]
    (folder / "steps.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    rows = [
        Label(kind, arch, 20 + 10 * float(np.log10(COSTS[0].cost(space.lower(arch)))))
        for kind, arch in plan(space, 30, 0, True)
    ]
    about = {"name": "old", "sha256": sha256(OLD / "supernet.safetensors")}
    made = ofa.specialize(supernet, rows, data, device, folder, budgets=("90%",), candidates=1, about=about, seed=1)
    found = [[n.role, n.budget, n.architecture.to_json(), n.measured_latency_ms] for n in made.networks]
    assert_close(written(found), known["networks"], 1e-9)
    if name == "specializing-profile":
        assert device.found[0] == 2  # turns that were measured before
    else:
        assert all(network.attempts == ("a mark",) for network in made.networks)
    model = ofa.load_latency(folder / "latency.json")
    assert [model.cost(space.lower(arch)) for arch in some(space, 5)] == pytest.approx(known["ms"], rel=1e-6)
    assert not (folder / "steps.jsonl").exists()
