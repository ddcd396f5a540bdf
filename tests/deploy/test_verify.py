from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from onceforall.cost.latency import LatencyTable
from onceforall.data.dataset import ImageData
from onceforall.deploy.exporting import Exporter
from onceforall.deploy.manifest import differences
from onceforall.deploy.specialize import specialize
from onceforall.deploy.verify import Claim, verify
from onceforall.devices.onnxruntime import OnnxRuntimeDevice
from onceforall.errors import BrokenClaim, IncompatibleCheckpoint, InvalidConfiguration
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
def copied(folder: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def change(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    manifest = read_json(folder / "manifest.json")
    edit(manifest)
    write_json(folder / "manifest.json", manifest)


def names(claims: Sequence[Claim], repeated: bool = True) -> list[str]:
    return [claim.about for claim in claims if claim.repeated == repeated]


def test_everything_is_repeated_where_everything_is_here(
    folder: Path, supernet: Supernet, tiny_data: ImageData
) -> None:
    claims = list(verify(folder, tiny_data, supernet, "5" * 64))
    assert not names(claims, repeated=False)
    assert names(claims) == [
        "source weights, sha256",
        *(
            f"{network}{what}"
            for network in ("largest", "given")
            for what in (
                ": MACs",
                ": parameters",
                ": predicted latency",
                ": predicted top-1",
                ", onnxruntime fp32: files, sha256",
                ", onnxruntime fp32: parity with torch",
                ", onnxruntime fp32: test top-1",
                ", onnxruntime fp32: latency",
                ", onnxruntime fp32: peak memory",
            )
        ),
    ]


def test_what_is_missing_is_said(copied: Path) -> None:
    change(copied, lambda manifest: manifest["device"].update(processor="another"))
    skipped = [claim for claim in verify(copied) if not claim.repeated]
    assert names(skipped, repeated=False) == [
        f"{network}, onnxruntime fp32: {what}" for network in ("largest", "given") for what in ("test top-1", "latency")
    ]
    assert "give --data" in skipped[0].found
    assert "another device (processor " in skipped[1].found


def test_a_runtime_that_is_not_here_is_said(copied: Path) -> None:
    change(copied, lambda manifest: manifest["networks"][0]["exports"][0].update(device="abacus"))
    (skipped,) = [claim for claim in verify(copied) if not claim.repeated and claim.about.startswith("largest")]
    assert skipped.about == "largest, abacus fp32: accuracy, latency"
    assert "'abacus': choices are" in skipped.found


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
        ("peak_memory", -1e8, "given, onnxruntime fp32: peak memory"),
    ],
)
def test_a_number_that_does_not_hold_is_found(
    key: str, value: float, about: str, copied: Path, supernet: Supernet, tiny_data: ImageData
) -> None:
    change(copied, set_number(key, value))
    with pytest.raises(BrokenClaim, match=rf"^{about}: the manifest says .*, found here: "):
        list(verify(copied, tiny_data, supernet, "5" * 64))


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
    manifest = read_json(copied / "manifest.json")
    for network in manifest["networks"]:
        network["exports"][0]["latency_spread"]["value"] = 3.6e6
    write_json(copied / "manifest.json", manifest)
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
    with pytest.raises(IncompatibleCheckpoint, match=r"expected 'onceforall\.manifest/4'"):
        list(verify(copied))
    change(copied, lambda manifest: manifest.update(format="onceforall.manifest/4", networks=[{}]))
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
