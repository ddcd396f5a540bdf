from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from faults import FullDisk, Killed
from mutated import mutations
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from onceforall.architecture import Architecture
from onceforall.bundle import measure as bundle_measure
from onceforall.bundle.bundle import RUNTIMES, Bundle, named_files, positions, read_manifest, write_bundle
from onceforall.bundle.measure import measure_bundle
from onceforall.bundle.shared import share
from onceforall.checkpoint import write_tensors
from onceforall.data.dataset import ImageData
from onceforall.errors import (
    IncompatibleCheckpoint,
    InvalidArchitecture,
    InvalidConfiguration,
    OFAError,
    UnwritableOutput,
)
from onceforall.files import read_json, sha256, write_json
from onceforall.nn.calibrate import calibrate
from onceforall.nn.supernet import Supernet
from onceforall.report import tables
from onceforall.results import publish
from onceforall.space import SearchSpace
from onceforall.tasks import CLASSIFICATION
from onceforall.testing import scramble


def chosen(space: SearchSpace) -> dict[str, Architecture]:
    rng = np.random.default_rng(0)
    return {"fast": space.smallest(), "some": space.sample(rng), "other": space.sample(rng), "best": space.largest()}


def images_for(resolution: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def supernet(tiny_space: SearchSpace) -> Supernet:
    supernet = Supernet(tiny_space)
    scramble(supernet)
    return supernet.eval()


@pytest.fixture(scope="module")
def written(supernet: Supernet, tiny_data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle")
    write_bundle(supernet, chosen(supernet.space), tiny_data, out)
    return out


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A bundle to spoil."""
    return Path(shutil.copytree(written, tmp_path / "bundle"))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("keep", [1, 3])
def test_each_sub_network_computes_what_it_does_alone(
    written: Path, supernet: Supernet, tiny_data: ImageData, runtime: str, keep: int
) -> None:
    bundle = Bundle.load(written, runtime, keep=keep)
    assert bundle.names == tuple(chosen(supernet.space))
    for name, arch in [*chosen(supernet.space).items()] * 2:
        bundle.use(name)
        assert (bundle.architecture, bundle.resolution) == (arch, arch.resolution)
        alone = calibrate(supernet.extract(arch), tiny_data.calibration(arch.resolution))
        x = images_for(arch.resolution)
        assert_close(bundle(x), alone(x).detach(), rtol=1e-4, atol=1e-5)
        assert len(bundle._ready) <= keep


def test_every_kind_of_space_can_be_bundled(kind_of_space: SearchSpace, tiny_data: ImageData, tmp_path: Path) -> None:
    supernet = Supernet(kind_of_space)
    scramble(supernet)
    supernet.eval()
    write_bundle(supernet, chosen(kind_of_space), tiny_data, tmp_path)
    for runtime in RUNTIMES:
        bundle = Bundle.load(tmp_path, runtime)
        for name, arch in chosen(kind_of_space).items():
            bundle.use(name)
            alone = calibrate(supernet.extract(arch), tiny_data.calibration(arch.resolution))
            x = images_for(arch.resolution)
            assert_close(bundle(x), alone(x).detach(), rtol=1e-4, atol=1e-5)


def test_what_is_shared_is_stored_once(written: Path, supernet: Supernet) -> None:
    stored = load_file(written / "weights.safetensors")
    best = supernet.extract(supernet.space.largest())
    shared = {key: tensor for key, tensor in stored.items() if "/" not in key}
    own = [key for key in stored if "/" in key]
    assert all(".bn." in key for key in own)
    whole = {  # the largest network's, and the smaller kernels that others use
        key: tensor for key, tensor in shared.items() if "depthwise" not in key
    }
    expected = [tensor for key, tensor in best.state_dict().items() if ".bn." not in key and "depthwise" not in key]
    assert sum(tensor.numel() for tensor in whole.values()) == sum(tensor.numel() for tensor in expected)
    assert not list(written.glob("*.data"))
    assert all(path.stat().st_size < 40_000 for path in written.glob("*.onnx"))  # graphs alone


def test_positions_name_the_parts_of_the_supernet(supernet: Supernet) -> None:
    modules = dict(supernet.named_modules())
    for arch in chosen(supernet.space).values():
        found = positions(supernet.space, arch)
        routed = [block for block, _ in supernet._route(arch)]
        assert [modules[name] for name in found] == routed


def test_tensors_that_are_no_part_of_each_other_are_both_kept() -> None:
    a, b = torch.arange(6.0).view(2, 3), torch.arange(6.0).view(3, 2)
    same = {"a": {"x": ("w", a)}, "b": {"x": ("w", a[:1, :2])}}
    stored, found = share(same)
    assert stored.keys() == {"w"}
    assert torch.equal(found["b"]["x"].cut(stored), a[:1, :2])
    stored, found = share({"a": {"x": ("w", a)}, "b": {"x": ("w", b)}})
    assert stored.keys() == {"w", "b/x"}
    assert torch.equal(found["a"]["x"].cut(stored), a)
    assert torch.equal(found["b"]["x"].cut(stored), b)
    corner = torch.full((3, 3), 7.0)
    stored, found = share({"a": {"x": ("w", corner[:2])}, "b": {"x": ("w", corner[:, :2])}})  # neither holds the other
    assert stored["w"].tolist() == [[7, 7, 7], [7, 7, 7], [7, 7, 0]]
    assert torch.equal(found["b"]["x"].cut(stored), corner[:, :2])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_unknown_name_leaves_the_bundle_as_it_was(written: Path, runtime: str) -> None:
    bundle = Bundle.load(written, runtime)
    bundle.use("best")
    with pytest.raises(InvalidConfiguration, match="'slow': this bundle has fast, some, other, best"):
        bundle.use("slow")
    assert bundle.name == "best"
    assert bundle(images_for(bundle.resolution)).shape == (2, 4)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_sub_network_that_was_used_longest_ago_makes_room(written: Path, runtime: str) -> None:
    bundle = Bundle.load(written, runtime, keep=2)  # fast
    for name, ready in (
        ("some", ["fast", "some"]),
        ("fast", ["some", "fast"]),  # used again
        ("best", ["fast", "best"]),
        ("fast", ["best", "fast"]),
        ("other", ["fast", "other"]),
    ):
        bundle.use(name)
        assert list(bundle._ready) == ready
    assert bundle(images_for(bundle.resolution)).shape == (2, 4)
    weights = {name: next(network.parameters()).is_meta for name, network in bundle._plain.items()}
    assert weights == ({"fast": False, "some": True, "best": True, "other": False} if runtime == "torch" else {})


@pytest.mark.parametrize("wrong", [{"runtime": "abacus"}, {"keep": 0}, {"threads": 0}])
def test_impossible_settings_are_refused(written: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidConfiguration, match="expected torch or onnxruntime"):
        Bundle.load(written, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_damaged_and_foreign_bundles_are_refused(folder: Path, runtime: str) -> None:
    with pytest.raises(IncompatibleCheckpoint, match=r"no manifest\.json"):
        Bundle.load(folder.parent, runtime)
    manifest = read_json(folder / "manifest.json")
    write_json(folder / "manifest.json", {**manifest, "format": "else/1"})
    with pytest.raises(IncompatibleCheckpoint, match=r"'else/1', expected 'onceforall\.bundle/2'"):
        Bundle.load(folder, runtime)
    for wrong in ({}, {"fast": {}}, {"fast": 3}):
        write_json(folder / "manifest.json", {**manifest, "networks": wrong})
        with pytest.raises(IncompatibleCheckpoint):
            Bundle.load(folder, runtime)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(IncompatibleCheckpoint, match="not JSON"):
        Bundle.load(folder, runtime)
    write_json(folder / "manifest.json", manifest)
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(IncompatibleCheckpoint, match=r"weights\.safetensors is not the file"):
        Bundle.load(folder, runtime)


@pytest.mark.parametrize(("harm", "message"), [
    ("cut", r"best\.onnx cannot be loaded"),
    ("flipped", r"best\.onnx is not the file that manifest\.json was written with"),
    ("another's", r"best\.onnx is not the file"),
    ("gone", r"best\.onnx cannot be loaded"),
    ("elsewhere", r"best\.onnx leads to .*, out of its folder"),
])  # fmt: skip
def test_a_damaged_graph_is_refused_as_it_is_taken_into_use(harm: str, message: str, folder: Path) -> None:
    graph = folder / "best.onnx"
    content = bytearray(graph.read_bytes())
    if harm == "cut":
        graph.write_bytes(content[:-100])
    elif harm == "flipped":  # in a name, which no runtime looks at
        content[content.index(b"pytorch")] ^= 1
        graph.write_bytes(content)
    elif harm == "another's":
        shutil.copy(folder / "fast.onnx", graph)
    else:
        outside = graph.rename(folder.with_name("outside.onnx"))
        if harm == "elsewhere":
            graph.symlink_to(outside)
    bundle = Bundle.load(folder, "onnxruntime")
    with pytest.raises(IncompatibleCheckpoint, match=message):
        bundle.use("best")


def test_a_graph_whose_weights_lie_elsewhere_is_refused(folder: Path) -> None:
    """As an old bundle may have one, which has no digests of its graphs."""
    model = onnx.load(folder / "best.onnx", load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../weights.safetensors"
    shutil.copy(folder / "weights.safetensors", folder.parent)
    (folder / "best.onnx").write_bytes(model.SerializeToString())
    manifest = read_json(folder / "manifest.json") | {"format": "onceforall.bundle/1"}
    for network in manifest["networks"].values():
        del network["onnx_sha256"]
    write_json(folder / "manifest.json", manifest)
    bundle = Bundle.load(folder, "onnxruntime")
    with pytest.raises(IncompatibleCheckpoint, match=r"looks for weights in \.\./weights\.safetensors"):
        bundle.use("best")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_weights_that_are_no_numbers_are_refused(folder: Path, runtime: str) -> None:
    tensors = load_file(folder / "weights.safetensors")
    name = next(iter(tensors))
    tensors[name].view(-1)[0] = float("nan")
    write_tensors(folder / "weights.safetensors", tensors, {})
    manifest = read_json(folder / "manifest.json")
    manifest["weights"]["sha256"] = sha256(folder / "weights.safetensors")
    write_json(folder / "manifest.json", manifest)
    with pytest.raises(IncompatibleCheckpoint, match="holds NaN or infinite numbers"):
        Bundle.load(folder, runtime)


FOREIGN = {
    "names": '{"networks": {"x": {"onnx": "thesis.docx"}}}',
    "another": '{"name": "my web app", "icons": []}',
    "specialised": '{"format": "onceforall.manifest/3", "networks": []}',
    "list": "[1]",
    "text": "dear diary",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_folder_of_something_else_stays_as_it_is(
    kind: str, supernet: Supernet, tiny_data: ImageData, tmp_path: Path
) -> None:
    (tmp_path / "thesis.docx").write_text("precious")
    (tmp_path / "manifest.json").write_text(FOREIGN[kind])
    with pytest.raises(InvalidConfiguration, match="choose another folder"):
        write_bundle(supernet, {"fast": supernet.space.smallest()}, tiny_data, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "thesis.docx"]
    assert (tmp_path / "manifest.json").read_text() == FOREIGN[kind]


def test_only_files_of_the_bundle_are_removed(folder: Path, supernet: Supernet, tiny_data: ImageData) -> None:
    """Neither what else lies there, nor what a changed manifest of ours names elsewhere."""
    (folder / "mine.onnx").write_text("mine")
    (folder.parent / "fast.onnx").write_text("theirs")
    manifest = read_json(folder / "manifest.json")
    manifest["networks"]["../fast"] = manifest["networks"].pop("fast") | {"onnx": "../fast.onnx"}
    write_json(folder / "manifest.json", manifest)
    write_bundle(supernet, {"new": supernet.space.smallest()}, tiny_data, folder)
    assert (folder / "mine.onnx").read_text() == "mine"
    assert (folder.parent / "fast.onnx").read_text() == "theirs"
    assert not (folder / "best.onnx").exists()


def test_a_bundle_goes_on_with_what_it_had_where_another_network_cannot_be_loaded(folder: Path) -> None:
    bundle = Bundle.load(folder, "onnxruntime")  # keeps one
    first = bundle.name
    images = torch.randn(1, 3, bundle.resolution, bundle.resolution)
    before = bundle(images)
    (folder / "best.onnx").unlink()
    with pytest.raises(IncompatibleCheckpoint):
        bundle.use("best")
    assert bundle.name == first
    assert torch.equal(bundle(images), before)


def test_a_new_bundle_replaces_the_old_one_whole_or_not_at_all(
    folder: Path, supernet: Supernet, tiny_data: ImageData
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = supernet.space.restrict(kernels=[3])
    foreign = replace(other.smallest(), resolution=999)
    with pytest.raises(InvalidArchitecture):
        write_bundle(supernet, {"new": foreign}, tiny_data, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    write_bundle(supernet, {"new": supernet.space.smallest()}, tiny_data, folder)
    found = sorted(path.name for path in folder.iterdir() if path.name != ".lock")
    assert found == ["manifest.json", "new.onnx", "weights.safetensors"]


@pytest.mark.parametrize("names", [(), ("a/b",), ("..",), ("",)])
def test_names_are_file_names(names: tuple[str, ...], supernet: Supernet, tiny_data: ImageData, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration):
        write_bundle(supernet, {name: supernet.space.smallest() for name in names}, tiny_data, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("left", range(6))
def test_a_full_disk_leaves_the_old_bundle(
    left: int, folder: Path, supernet: Supernet, tiny_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", FullDisk(left))
        with pytest.raises(UnwritableOutput, match="No space left"):
            write_bundle(supernet, chosen(supernet.space), tiny_data, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name in before} == before
    assert Bundle.load(folder).names == ("fast", "some", "other", "best")
    write_bundle(supernet, {"new": supernet.space.smallest()}, tiny_data, folder)
    assert Bundle.load(folder).names == ("new",)
    assert not (folder / "unfinished").exists()


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_kill_between_old_and_new_is_completed_by_the_next_call(
    moves: int, folder: Path, supernet: Supernet, tiny_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Killed(moves))
        with pytest.raises(KeyboardInterrupt):
            write_bundle(supernet, {"new": supernet.space.smallest()}, tiny_data, folder)
    with pytest.raises(IncompatibleCheckpoint, match="a kill has left half in place"):
        Bundle.load(folder)
    publish(folder, named_files)
    assert Bundle.load(folder, "onnxruntime").names == ("new",)
    assert sorted(path.name for path in folder.glob("*.onnx")) == ["new.onnx"]


def test_whatever_a_manifest_says_is_one_of_our_errors_or_loads(folder: Path, rng: np.random.Generator) -> None:
    manifest = read_json(folder / "manifest.json")
    manifest["networks"] = {"best": manifest["networks"]["best"]}
    for changed in mutations(manifest, rng, 60):
        write_json(folder / "manifest.json", changed)
        for runtime in RUNTIMES:
            with contextlib.suppress(OFAError):
                Bundle.load(folder, runtime)


def test_a_folder_that_cannot_be_written_is_said(supernet: Supernet, tiny_data: ImageData, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableOutput, match="choose a writable folder"):
        write_bundle(supernet, chosen(supernet.space), tiny_data, tmp_path / "file" / "out")


def test_what_a_bundle_costs_is_measured(
    folder: Path, supernet: Supernet, tiny_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(bundle_measure, "_resident", lambda mode, *given: asked.append((mode, *given)) or 1024)
    monkeypatch.setattr(bundle_measure, "SWITCHES", 1)
    manifest = measure_bundle(folder, supernet, tiny_data)
    assert read_manifest(folder) == manifest
    measured = manifest["measured"]
    assert measured["kind"] == "measured"
    best = supernet.space.largest()
    bundle = Bundle.load(folder)
    bundle.use("best")
    batches = list(tiny_data.batches("test", best.resolution))
    hits = sum(int((bundle(images).argmax(1) == labels).sum()) for images, labels in batches)
    for found in measured["runtimes"].values():
        assert found["networks"]["best"]["top1"] == 100 * hits / sum(len(labels) for _, labels in batches)
        assert all(row["switch_ms"] > 0 and row["ready_switch_ms"] > 0 for row in found["networks"].values())
        assert found["separate_bytes"] == sum(row["separate_bytes"] for row in found["networks"].values())
    together = sum(path.stat().st_size for path in folder.glob("weights.*"))
    assert together < measured["runtimes"]["torch"]["bytes"] < measured["runtimes"]["onnxruntime"]["bytes"]
    assert {mode for mode, *_ in asked} == {"bundle", "separate"}
    assert [table.row_count for table in tables.bundles(manifest, CLASSIFICATION.score)] == [8, 2]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells resident memory")
def test_memory_is_that_of_a_process_of_its_own(written: Path) -> None:
    grown = bundle_measure._resident("bundle", "onnxruntime", written, written, 1, 1)
    assert grown is not None
    assert 0 < grown < 100 << 20
