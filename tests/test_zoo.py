from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from onceforall import zoo
from onceforall.cost.analytic import macs
from onceforall.data.cifar10 import cache_folder, cifar10
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration
from onceforall.evaluate import measure_top1


@pytest.fixture(scope="module")
def shipped() -> zoo.Entry:
    return zoo.load("cifar10")


def test_the_shipped_supernet_has_the_promised_size(shipped: zoo.Entry) -> None:
    space = shipped.supernet.space
    assert (shipped.folder / "supernet.safetensors").stat().st_size <= 16e6
    assert space.size >= 10**9
    assert macs(space.lower(space.largest())) >= 8 * macs(space.lower(space.smallest()))


def test_the_shipped_labels_are_enough_for_a_predictor(shipped: zoo.Entry) -> None:
    random = {label.architecture for label in shipped.labels if label.kind != "uniform"}
    assert len(random) >= 500
    uniform = {label.architecture for label in shipped.labels if label.kind == "uniform"}
    assert uniform == set(shipped.supernet.space.uniforms())
    assert all(50 < label.top1 < 100 for label in shipped.labels)


def test_the_card_is_there(shipped: zoo.Entry) -> None:
    card = (shipped.folder / "README.md").read_text()
    assert "ofa train" in card


def test_a_label_is_what_is_measured_today(shipped: zoo.Entry) -> None:
    if not (cache_folder() / "cifar-10-batches-bin" / "test_batch.bin").exists():
        pytest.skip("CIFAR-10 is not in the cache folder: `make demo` fetches it")
    data = cifar10()
    for label in (shipped.labels[0], shipped.labels[-1]):
        # Another processor rounds differently, which moves a few of 5,000 images.
        assert measure_top1(shipped.supernet, label.architecture, data, "label") == pytest.approx(label.top1, abs=0.2)


def test_unknown_names_and_broken_files_are_refused(shipped: zoo.Entry, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="shipped are cifar10"):
        zoo.load("imagenet")
    with pytest.raises(IncompatibleCheckpoint, match="does not exist"):
        zoo.load_run(tmp_path)
    whole = (shipped.folder / "supernet.safetensors").read_bytes()
    (tmp_path / "supernet.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IncompatibleCheckpoint, match="not a whole safetensors file"):
        zoo.load_run(tmp_path)
    shutil.copy(shipped.folder / "supernet.safetensors", tmp_path)
    with pytest.raises(InvalidConfiguration, match="not a labels file"):
        zoo.load_run(tmp_path)
    assert zoo.load_run(tmp_path, labels=False).labels == []
    with pytest.raises(InvalidConfiguration, match="'cifar10' is shipped: a file can only be given for mit/"):
        zoo.load("cifar10", file=tmp_path / "supernet.safetensors")
