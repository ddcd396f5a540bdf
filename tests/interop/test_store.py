"""What was imported is kept as our own files, whose origin and checksums are recorded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from onceforall import spaces, zoo
from onceforall.checkpoint import save_supernet as save_ours
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration, OFAError
from onceforall.files import read_json
from onceforall.interop.checkpoints import save_supernet
from onceforall.interop.predictors import load_predictor
from onceforall.interop.store import import_file, import_predictor, import_supernet, read_origin, reopen
from onceforall.nn.supernet import Supernet
from onceforall.testing import scramble


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Supernet]:
    """A file in the authors' format, and the supernet in it."""
    supernet = Supernet(spaces.mobilenet_v3(1.0, num_classes=10))
    scramble(supernet)
    path = tmp_path_factory.mktemp("theirs") / "ofa_net"
    save_supernet(path, supernet)
    return path, supernet


@pytest.fixture
def imported(theirs: tuple[Path, Supernet], tmp_path: Path) -> Path:
    import_supernet(theirs[0], tmp_path / "run")
    return tmp_path / "run"


def test_an_import_is_a_run_folder_with_a_manifest(theirs: tuple[Path, Supernet], tmp_path: Path) -> None:
    path, supernet = theirs
    found = import_supernet(path, tmp_path / "run", name="mine", source="https://example.org/ofa_net")
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["manifest.json", "supernet.safetensors"]
    assert read_json(tmp_path / "run" / "manifest.json") == {
        "format": "onceforall.import/1",
        "name": "mine",
        "source": "https://example.org/ofa_net",
        "source_sha256": sha256(path),
        "file": "supernet.safetensors",
        "sha256": sha256(tmp_path / "run" / "supernet.safetensors"),
    }
    entry = zoo.load_run(tmp_path / "run", labels=False)
    for again in (found, reopen(tmp_path / "run"), entry.supernet):
        assert again.space == supernet.space
        tensors = again.state_dict()
        for name, tensor in supernet.state_dict().items():
            assert torch.equal(tensors[name], tensor), name
    assert load_file(tmp_path / "run" / "supernet.safetensors").keys() == supernet.state_dict().keys()


def test_name_and_source_are_the_file_by_default_without_its_folder(imported: Path) -> None:
    origin = read_origin(imported)
    assert origin is not None
    assert (origin.name, origin.source) == ("ofa_net", "ofa_net")


def test_a_space_can_be_given(theirs: tuple[Path, Supernet], tmp_path: Path) -> None:
    space = spaces.mobilenet_v3(1.0, (128, 160), 10, depths=(3, 4))
    import_supernet(theirs[0], tmp_path / "run", space=space)
    assert reopen(tmp_path / "run").space == space


def test_a_refused_import_leaves_nothing(theirs: tuple[Path, Supernet], tmp_path: Path) -> None:
    with pytest.raises(IncompatibleCheckpoint, match="of wrong shape"):
        import_supernet(theirs[0], tmp_path / "run", space=spaces.mobilenet_v3(1.2, num_classes=10))
    assert not (tmp_path / "run").exists()


def test_another_import_is_not_written_over(theirs: tuple[Path, Supernet], imported: Path, tmp_path: Path) -> None:
    import_supernet(theirs[0], imported)  # the same again
    before = (imported / "supernet.safetensors").read_bytes()
    other = Supernet(theirs[1].space, seed=3)
    save_supernet(tmp_path / "other", other)
    with pytest.raises(InvalidConfiguration, match=r"already holds supernet\.safetensors of ofa_net: choose another"):
        import_supernet(tmp_path / "other", imported)
    assert (imported / "supernet.safetensors").read_bytes() == before


def test_a_folder_with_a_trained_supernet_is_not_written_over(theirs: tuple[Path, Supernet], tmp_path: Path) -> None:
    path = tmp_path / "run" / "supernet.safetensors"
    save_ours(path, Supernet(spaces.mobilenet_v3_small_images()))
    before = path.read_bytes()
    with pytest.raises(OFAError, match=str(tmp_path / "run")):
        import_supernet(theirs[0], tmp_path / "run")
    assert path.read_bytes() == before


@pytest.mark.parametrize("file", ["acc_predictor.pth", "ofa_resnet50_acc_predictor.pth"])
def test_a_predictor_is_kept_as_it_is(file: str, tables: ModuleType, tmp_path: Path) -> None:
    path = tables.path_of(file)
    found, original = import_file(path, tmp_path / "run"), load_predictor(path)
    kept = tmp_path / "run" / "predictor.safetensors"
    assert read_json(tmp_path / "run" / "manifest.json") == {
        "format": "onceforall.import/1",
        "name": file,
        "source": file,
        "source_sha256": sha256(path),
        "file": "predictor.safetensors",
        "sha256": sha256(kept),
    }
    rows = original.space.sample_rows(20, np.random.default_rng(0))
    for predictor in (found, load_predictor(kept)):
        assert not isinstance(predictor, Supernet)
        assert predictor.space == original.space
        assert np.array_equal(predictor.predict_rows(rows), original.predict_rows(rows))


def test_a_file_is_known_for_what_it_is(theirs: tuple[Path, Supernet], tables: ModuleType, tmp_path: Path) -> None:
    assert isinstance(import_file(theirs[0], tmp_path / "supernet"), Supernet)
    with pytest.raises(InvalidConfiguration, match=r"already holds supernet\.safetensors of ofa_net: choose another"):
        import_predictor(tables.path_of("acc_predictor.pth"), tmp_path / "supernet")
    import_file(tables.path_of("acc_predictor.pth"), tmp_path / "predictor")
    with pytest.raises(InvalidConfiguration, match=r"already holds predictor\.safetensors of acc_predictor\.pth"):
        import_file(theirs[0], tmp_path / "predictor")
    with pytest.raises(IncompatibleCheckpoint, match="holds no imported supernet"):
        reopen(tmp_path / "predictor")
    torch.save({"x": torch.ones(1)}, tmp_path / "neither")
    with pytest.raises(IncompatibleCheckpoint, match="neither"):
        import_file(tmp_path / "neither", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_damage_is_found(imported: Path) -> None:
    path = imported / "supernet.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # one bit of one weight
    path.write_bytes(content)
    with pytest.raises(IncompatibleCheckpoint, match=rf"{path}: SHA-256 .*: delete it and import ofa_net again"):
        reopen(imported)


def test_a_folder_without_an_import_is_refused(imported: Path, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleCheckpoint, match=f"{tmp_path / 'other'} holds no imported supernet"):
        reopen(tmp_path / "other")
    (imported / "supernet.safetensors").unlink()
    with pytest.raises(IncompatibleCheckpoint, match="holds no imported supernet"):
        reopen(imported)


@pytest.mark.parametrize(
    "manifest",
    [
        {"format": "onceforall.import/2"},
        {"format": "onceforall.import/1", "name": "x"},
        {"format": "onceforall.import/1", "name": "x", "source": "", "source_sha256": "", "sha256": "", "more": 1},
        {},
        [],
        3,
        "x",
        None,
    ],
    ids=str,
)
def test_a_foreign_manifest_is_refused(manifest: Any, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for read in (read_origin, reopen):
        with pytest.raises(IncompatibleCheckpoint, match=r"manifest\.json is not the manifest of an import"):
            read(tmp_path)


def test_a_manifest_that_is_cut_off_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": "onceforall.imp')
    with pytest.raises(OFAError, match=r"manifest\.json is not JSON"):
        reopen(tmp_path)
