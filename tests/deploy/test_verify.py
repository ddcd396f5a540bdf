from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modules import module_at
from mutated import mutations

from onceforall.cost.latency import LatencyTable
from onceforall.data.dataset import ImageData
from onceforall.deploy.card import card
from onceforall.deploy.exporting import Exporter
from onceforall.deploy.manifest import differences
from onceforall.deploy.reading import read_manifest
from onceforall.deploy.specialize import specialize
from onceforall.deploy.verify import Claim, verify
from onceforall.devices.onnxruntime import OnnxRuntimeDevice
from onceforall.errors import BrokenClaim, IncompatibleCheckpoint, InvalidConfiguration, OFAError
from onceforall.files import read_json, write_json
from onceforall.nn.supernet import Supernet
from onceforall.predict.labels import Label


@pytest.fixture(scope="module")
def folder(
    supernet: Supernet,
    labels: list[Label],
    table: LatencyTable,
    tiny_data: ImageData,
    tmp_path_factory: pytest.TempPathFactory,
    ideal: Callable[[pytest.MonkeyPatch], None],
) -> Path:
    """One network, specialised on a machine that does nothing else."""
    out = tmp_path_factory.mktemp("specialised")
    about = {"name": "tiny", "sha256": "5" * 64}
    with pytest.MonkeyPatch.context() as patch:
        ideal(patch)
        specialize(
            supernet, labels, tiny_data, OnnxRuntimeDevice(), out, budgets=(), architectures=[labels[0].architecture],
            table=table, about=about,
        )  # fmt: skip
    return out


@pytest.fixture
def falsify() -> Any:
    """The script, as a module."""
    return module_at(Path(__file__).parents[2] / "benchmarks" / "falsify.py")


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def change(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """By somebody who makes digests and the card anew."""
    manifest = read_json(folder / "manifest.json")
    edit(manifest)
    write_json(folder / "manifest.json", manifest)
    with contextlib.suppress(OFAError):
        (folder / "MODEL_CARD.md").write_text(card(*read_manifest(folder)))


def names(claims: Sequence[Claim], repeated: bool = True) -> list[str]:
    return [claim.about for claim in claims if claim.repeated == repeated]


def test_everything_is_repeated_where_everything_is_here(
    folder: Path, supernet: Supernet, tiny_data: ImageData, labels: list[Label]
) -> None:
    claims = list(verify(folder, tiny_data, supernet, "5" * 64, labels))
    assert names(claims, repeated=False) == [
        "largest, onnxruntime fp32: latency, spread",
        "given, onnxruntime fp32: latency, spread",
        "max_drop",
        "seconds",
        "supernet, name",
    ]
    repeated = names(claims)
    for about in (
        "source weights, sha256", "source space", "data", "input", "score", "space", "latency model", "seed",
        "predictor, train", "predictor, rmse", "predictor, macs_kendall_tau", "networks", "device", "machine",
        "versions", "MODEL_CARD.md",
    ):  # fmt: skip
        assert about in repeated
    for network in ("largest", "given"):
        for what in (
            ": MACs", ": parameters", ": predicted latency", ": predicted top-1", ": label top-1", ": budget_met",
            ": export to use", ": budget", ": what follows from other entries", ", onnxruntime fp32: files, sha256",
            ", onnxruntime fp32: file names", ", onnxruntime fp32: runtime", ", onnxruntime fp32: parity with torch",
            ", onnxruntime fp32: agreement with torch", ", onnxruntime fp32: test top-1",
            ", onnxruntime fp32: latency", ", onnxruntime fp32: peak memory",
        ):  # fmt: skip
            assert f"{network}{what}" in repeated


def test_what_is_missing_is_said(copied: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["device"]["processor"] = manifest["machine"]["processor"] = "another"

    change(copied, edit)
    skipped = {claim.about: claim for claim in verify(copied) if not claim.repeated}
    for about in ("source weights, sha256", "data", "input", "score", "predictor, errors", "device", "machine"):
        assert about in skipped
    for network in ("largest", "given"):
        for what in ("parity with torch", "agreement with torch", "test top-1", "latency", "latency, spread"):
            assert f"{network}, onnxruntime fp32: {what}" in skipped
        assert "of the labels, which are not here" in skipped[f"{network}: label top-1"].found
    assert "give --data" in skipped["given, onnxruntime fp32: test top-1"].found
    assert "another device (processor " in skipped["given, onnxruntime fp32: latency"].found


def test_a_runtime_that_is_not_here_is_said(copied: Path) -> None:
    change(copied, lambda manifest: manifest["networks"][0]["exports"][0].update(device="abacus"))
    with pytest.raises(BrokenClaim, match="largest: export to use: the manifest says abacus fp32"):
        list(verify(copied))
    for claim in verify(copied):
        if claim.about == "largest, abacus fp32: accuracy, latency":
            break
    assert not claim.repeated
    assert "'abacus': choices are" in claim.found


def set_number(key: str, value: float) -> Callable[[dict[str, Any]], None]:
    def edit(manifest: dict[str, Any]) -> None:
        network = manifest["networks"][1]
        place = network if key in network else network["exports"][0]
        if isinstance(place[key], dict):
            place[key]["value"] = value
        else:
            place[key] = value

    return edit


@pytest.mark.parametrize(
    ("key", "value", "about"),
    [
        ("macs", 1, "given: MACs"),
        ("params", 2, "given: parameters"),
        ("predicted_latency", 1e-3, "given: predicted latency"),
        ("predicted_top1", 3.0, "given: predicted top-1"),
        ("test_top1", 99.0, "given, onnxruntime fp32: test top-1"),
        ("latency", 1e-6, "given, onnxruntime fp32: latency"),
        ("latency", 0.39, "given, onnxruntime fp32: latency"),
        ("label_top1", 50.0, "given: label top-1"),
        ("agreement", 99.0, "given, onnxruntime fp32: agreement with torch"),
        ("parity", 2e-4, "given, onnxruntime fp32: parity with torch"),
    ],
)
def test_a_number_that_does_not_hold_is_found(
    key: str, value: float, about: str, copied: Path, supernet: Supernet, tiny_data: ImageData, labels: list[Label]
) -> None:
    change(copied, set_number(key, value))
    with pytest.raises(BrokenClaim, match=rf"^{about}: the manifest says .*, found here: "):
        list(verify(copied, tiny_data, supernet, "5" * 64, labels))


def test_memory_that_does_not_hold_is_found(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter more, and a MiB, may be."""
    for network in (0, 1):
        change(copied, put("networks", network, "exports", 0, "peak_memory", "value", value=8 << 20))
    monkeypatch.setattr("onceforall.deploy.verify.measure_memory", lambda *given: 11 << 20)
    assert "given, onnxruntime fp32: peak memory" in names(list(verify(copied)))
    monkeypatch.setattr("onceforall.deploy.verify.measure_memory", lambda *given: (11 << 20) + 1)
    with pytest.raises(BrokenClaim, match=r"peak memory: the manifest says 8\.0 MiB, at most 11\.0 MiB, found"):
        list(verify(copied))


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets what lies at a place of a manifest."""

    def edit(manifest: dict[str, Any]) -> None:
        place: Any = manifest
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return edit


GIVEN, EXPORT = ("networks", 1), ("networks", 1, "exports", 0)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("input", "mean", value=[0, 0, 0]), "input: .* mean is"),
        (put("input", "std", value=[1, 1, 1]), "input: .* std is"),
        (put("space", "num_classes", value=5), "source space: .* num_classes is 5"),
        (put("seed", value=1), "seed"),
        (put("latency_model", "scale", value=9), "latency model: .* scale is 9"),
        (put("latency_model", "differs", value=[]), "latency model: .* differs is"),
        (put("predictor", "rmse", value=1e-3), "predictor, rmse"),
        (put("predictor", "kendall_tau", value=1.0), "predictor, kendall_tau"),
        (put("predictor", "train", value=9), "predictor, train"),
        (put("predictor", "corrected", value=True), r"cannot read .*correction\.json"),
        (put("predictor", "file", value="../predictor.safetensors"), "predictor, file"),
        (put("limits", value=["MACs <= 1 MACs"]), "largest: limits"),
        (put("machine", "cores", value=99), "machine"),
        (put(*GIVEN, "budget_met", value=True), "given: budget_met"),
        (put(*GIVEN, "latency_budget_ms", value=0.1), "given: budget_met"),
        (put(*GIVEN, "role", value="searched"), "is no file in the folder of searched"),
        (put(*GIVEN, "architecture", "resolution", value=18), "resolution 18"),
        (put(*GIVEN, "chosen", value=1), "chosen 1: expected the place of one"),
        (put(*GIVEN, "predicted_latency", "unit", value="ns"), "predicted_latency .* 'ns', predicted: expected 'ms'"),
        (put(*EXPORT, "latency", "unit", value="ns"), "latency 0.5 'ns', measured: expected 'ms', measured"),
        (put(*EXPORT, "latency", "kind", value="predicted"), "latency 0.5 'ms', predicted: expected 'ms', measured"),
        (put(*EXPORT, "latency", "value", value=0), "latency 0 'ms'"),
        (put(*EXPORT, "agreement", "value", value=101), "agreement 101 'percent'"),
        (put(*EXPORT, "size", "value", value=1), "given: what follows from other entries"),
        (put(*EXPORT, "precision", value="int8"), "given, onnxruntime int8: file names"),
        (put(*EXPORT, "kept", value=[0]), "layers that stay in fp32: the manifest says"),
        (put(*EXPORT, "not_verified", value="lazy"), "given, onnxruntime fp32: why it was not run"),
        (put(*EXPORT, "files", value=[]), "an export without a file"),
        (put(*EXPORT, "files", 0, "path", value="/etc/hostname"), "is no file in the folder of given"),
        (put(*EXPORT, "files", 0, "path", value="given/../x"), "is no file in the folder of given"),
        (put(*EXPORT, "files", 0, "bytes", value=-1), "a file of -1 bytes"),
        (lambda manifest: manifest["networks"].reverse(), "networks: "),
        (lambda manifest: manifest["networks"].pop(0), "networks: "),
        (lambda manifest: manifest["networks"][1].pop("attempts"), "attempts is null there"),
        (lambda manifest: manifest.pop("versions"), "missing required field `versions`"),
    ],
)
def test_what_does_not_follow_is_found(
    edit: Callable[[dict[str, Any]], None], message: str, copied: Path, supernet: Supernet, tiny_data: ImageData,
    labels: list[Label],
) -> None:  # fmt: skip
    change(copied, edit)
    with pytest.raises(OFAError, match=message):
        list(verify(copied, tiny_data, supernet, "5" * 64, labels))


@pytest.mark.parametrize(
    ("edit", "about"),
    [
        (put("supernet", "name", value="x"), "supernet, name"),
        (put("seconds", value=1.0), "seconds"),
        (put("max_drop", value=9.0), "max_drop"),
        (put("versions", "numpy", value="0.1"), "versions"),
        (put(*GIVEN, "attempts", value=["none"]), "given: attempts"),
        (put(*EXPORT, "latency", "value", value=7.0), "given, onnxruntime fp32: latency"),  # nothing is so slow here
        (put(*EXPORT, "latency_spread", "value", value=1e9), "given, onnxruntime fp32: latency, spread"),
        (put(*EXPORT, "peak_memory", "value", value=1e9), "given, onnxruntime fp32: peak memory"),
        (put(*EXPORT, "runtime", value="onnxruntime 0"), "given, onnxruntime fp32: runtime"),
        (put(*EXPORT, "parity", "value", value=9e-5), "given, onnxruntime fp32: parity with torch"),
        (put("data_source", value="here"), "data_source"),
        (put("new", value=1), "new"),
    ],
)
def test_what_nobody_can_repeat_is_named(
    edit: Callable[[dict[str, Any]], None], about: str, copied: Path, supernet: Supernet, tiny_data: ImageData
) -> None:
    change(copied, edit)
    assert about in names(list(verify(copied, tiny_data, supernet, "5" * 64)), repeated=False)


def test_a_card_that_says_something_else_is_found(copied: Path) -> None:
    (copied / "MODEL_CARD.md").write_text("# 100 % top-1\n")
    with pytest.raises(BrokenClaim, match=r"MODEL_CARD\.md: .* found here: '# 100 % top-1' there"):
        list(verify(copied))


def test_files_that_nobody_named_are_said(copied: Path) -> None:
    shutil.copy(copied / "given" / "onnxruntime-fp32.onnx", copied / "given" / "more.onnx")
    skipped = {claim.about: claim.stated for claim in verify(copied) if not claim.repeated}
    assert skipped["files that the manifest does not name"] == '["given/more.onnx"]'


@pytest.mark.parametrize("name", ["given/onnxruntime-fp32.onnx", "latency.json", "predictor.safetensors"])
def test_a_link_out_of_the_folder_is_not_followed(name: str, copied: Path) -> None:
    outside = (copied / name).rename(copied.with_name("outside"))
    (copied / name).symlink_to(outside)
    with pytest.raises(IncompatibleCheckpoint, match=r"leads to .*, out of its folder"):
        list(verify(copied))


def test_lies_are_found_or_named(copied: Path, tmp_path: Path, falsify: Any) -> None:
    """A sample of `benchmarks/falsify.py`."""
    with falsify.ideal_machine():
        truth = falsify.made(tmp_path, budgets=())
        before = {claim for claim in truth.claims(truth.folder) if not claim.repeated}
        every = [lie for lie in falsify.lies(truth.folder) if "as it is" not in lie.how]
        told = {lie: falsify.outcome(truth, lie, tmp_path, before)[0] for lie in every[::37]}
    assert {*told.values()} >= {"found"}
    assert [lie[:2] for lie, kind in told.items() if kind in ("passed", "raw")] == []


def test_whatever_a_manifest_says_is_one_of_our_errors_or_holds(copied: Path, rng: np.random.Generator) -> None:
    manifest = read_json(copied / "manifest.json")
    for changed in mutations(manifest, rng, 300):
        write_json(copied / "manifest.json", changed)
        with contextlib.suppress(OFAError):
            card(*read_manifest(copied))
        with contextlib.suppress(OFAError):
            list(verify(copied))


def test_a_disturbed_moment_breaks_no_claim(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moments: list[float] = []

    def clock(loads: Sequence[object], turns: object) -> list[list[float]]:
        moments.append([1e5, 1e5, 0.5][len(moments) % 3])  # ms
        return [[moments[-1]] * 3 for _ in loads]

    monkeypatch.setattr("onceforall.deploy.verify.time_turns", clock)
    assert "given, onnxruntime fp32: latency" in names(list(verify(folder)))
    assert len(moments) == 6
    monkeypatch.setattr("onceforall.deploy.verify.MOMENTS", 2)
    with pytest.raises(BrokenClaim, match=r"largest, onnxruntime fp32: latency: .*, found here: 100000"):
        list(verify(folder))


@pytest.mark.parametrize(("spread", "found", "holds"), [
    (0.0, 0.545, True),  # a tenth slower
    (0.0, 0.56, False),
    (0.03, 0.56, True),  # and the spread that was found here
    (0.03, 0.59, False),
    (5.0, 0.62, True),  # but never more than a quarter in all
    (5.0, 0.63, False),
])  # fmt: skip
def test_a_noisy_clock_makes_no_claim_true(
    spread: float, found: float, holds: bool, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a millisecond is claimed, beside a spread of an hour."""
    change(copied, put(*EXPORT, "latency_spread", "value", value=3.6e6))
    row = [found - spread, found - spread, found, found + spread, found + spread]
    monkeypatch.setattr("onceforall.deploy.verify.time_turns", lambda loads, turns: [row for _ in loads])
    if holds:
        assert "given, onnxruntime fp32: latency" in names(list(verify(copied)))
        return
    with pytest.raises(BrokenClaim, match=r"latency: the manifest says 0\.500 ms, at most 0\.[56]"):
        list(verify(copied))


def test_other_weights_are_found(folder: Path, supernet: Supernet) -> None:
    with pytest.raises(BrokenClaim, match="source weights, sha256: the manifest says 5555"):
        list(verify(folder, None, supernet, "6" * 64))


@pytest.mark.parametrize("harm", ["truncated", "missing"])
def test_files_that_were_changed_are_found(harm: str, copied: Path) -> None:
    path = copied / "given" / "onnxruntime-fp32.onnx"
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IncompatibleCheckpoint, match=r"onnxruntime-fp32\.onnx is (missing|not what the manifest says)"):
        list(verify(copied))


def test_folders_that_are_no_specialisation_are_refused(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match=r"cannot read .*manifest\.json"):
        list(verify(tmp_path))
    change(copied, lambda manifest: manifest.update(format="onceforall.manifest/1"))
    with pytest.raises(IncompatibleCheckpoint, match=r"expected 'onceforall\.manifest/5'"):
        list(verify(copied))
    change(copied, lambda manifest: manifest.update(format="onceforall.manifest/5", networks=[{}]))
    with pytest.raises(IncompatibleCheckpoint, match="not a manifest"):
        list(verify(copied))
    write_json(copied / "manifest.json", {"state": "running"})
    with pytest.raises(InvalidConfiguration, match="the same `ofa specialize` command goes on"):
        list(verify(copied))


def test_a_card_says_what_the_manifest_says(folder: Path) -> None:
    card, manifest = (folder / "MODEL_CARD.md").read_text(), read_json(folder / "manifest.json")
    for network in manifest["networks"]:
        assert f"{network['exports'][0]['test_top1']['value']:.2f} %" in card
        assert f"{network['exports'][0]['latency']['value']:.3f} ms" in card
    assert "540 train, 30 calibrate, 60 label, 100 test images" in card


def test_parity_is_judged_on_every_image(supernet: Supernet, tiny_data: ImageData, tmp_path: Path) -> None:
    """A file of other weights agrees with torch in nothing but chance."""
    exporter, device = Exporter(supernet, tiny_data, tmp_path), OnnxRuntimeDevice()
    arch, other = (
        supernet.space.largest(),
        supernet.space.restrict(resolutions=[supernet.space.resolutions[-1]]).smallest(),
    )
    same = exporter.judge(arch, device, exporter.convert(arch, device), "test")
    assert same.parity < 1e-4
    assert same.agreement == 100
    different = exporter.judge(arch, device, exporter.convert(other, device), "test")
    assert different.parity > 0.01


def test_a_latency_model_of_another_device_is_told(folder: Path) -> None:
    here = {"name": "onnxruntime", "processor": "b", "threads": 1, "provider": "CPU"}
    assert differences({"name": "onnxruntime", "processor": "a", "threads": 1}, here) == ["processor: a, here b"]
    assert differences(here, here) == []
    differs = read_json(folder / "manifest.json")["latency_model"]["differs"]
    assert len(differs) == 1
    assert differs[0].startswith("name: synthetic, here onnxruntime")
