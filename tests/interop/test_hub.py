from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from onceforall.errors import DataUnavailable, IncompatibleCheckpoint, InvalidConfiguration, UnwritableOutput
from onceforall.files import read_json, write_json
from onceforall.interop import from_pretrained, hub, save_pretrained
from onceforall.nn.network import SubNetwork
from onceforall.nn.subnet import fold_batch_norm
from onceforall.nn.supernet import Supernet
from onceforall.testing import scramble


@pytest.fixture
def network(tiny_supernet: Supernet) -> SubNetwork:
    return tiny_supernet.extract(tiny_supernet.space.smallest())


@pytest.fixture
def installed() -> None:
    pytest.importorskip("huggingface_hub")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("of", ["tiny_space", "tiny_resnet_space"])  # every kind of layer
def test_a_folder_brings_the_network_back(
    of: str, folded: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    space = request.getfixturevalue(of)
    supernet, arch = Supernet(space), space.largest()
    scramble(supernet)
    network = supernet.extract(arch)
    network.reset_classifier(6)
    network = fold_batch_norm(network) if folded else network
    save_pretrained(network, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    again = from_pretrained(tmp_path)
    assert type(again) is SubNetwork
    assert (again.specs, again.folded, again.training) == (network.specs, folded, False)
    x = torch.randn(2, 3, arch.resolution, arch.resolution)
    assert torch.equal(again(x), network(x))


@pytest.mark.usefixtures("installed")
def test_foreign_folders_are_refused(network: SubNetwork, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleCheckpoint, match=r"no config\.json"):
        from_pretrained(tmp_path)
    save_pretrained(network, tmp_path)
    good = read_json(tmp_path / "config.json")
    for wrong, message in (
        ({}, "config.json"),
        ({**good, "format": "else/2"}, "else/2"),
        ({**good, "layers": [{"layer": "lstm"}]}, "lstm"),
        ({**good, "layers": good["layers"][:-1]}, "extra"),
    ):
        write_json(tmp_path / "config.json", wrong)
        with pytest.raises((IncompatibleCheckpoint, InvalidConfiguration), match=message):
            from_pretrained(tmp_path)
    write_json(tmp_path / "config.json", good)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(IncompatibleCheckpoint, match="not a whole safetensors file"):
        from_pretrained(tmp_path)


@pytest.mark.usefixtures("installed")
def test_a_name_that_leads_nowhere_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match="neither a folder"):
        from_pretrained("me/nothing", local_files_only=True, cache_dir=tmp_path)


@pytest.mark.usefixtures("installed")
def test_a_folder_that_cannot_be_written_is_an_error_of_ours(network: SubNetwork, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableOutput):
        save_pretrained(network, tmp_path / "file" / "folder")


@pytest.mark.usefixtures("installed")
def test_an_upload_that_fails_is_no_unwritable_folder(
    network: SubNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(self: object, repository: str, **options: object) -> None:
        asked.append((repository, options))
        raise OSError("401: no token")

    monkeypatch.setattr(hub._hub_network(), "push_to_hub", refuse)
    with pytest.raises(DataUnavailable, match="folder was written, but not uploaded: 401"):
        save_pretrained(network, tmp_path / "folder", push_to_hub=True, repo_id="me/name", private=True)
    assert asked == [("me/name", {"private": True})]
    assert from_pretrained(tmp_path / "folder").specs == network.specs


def test_without_the_extra_the_error_names_it(network: SubNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    hub._hub_network.cache_clear()
    for ask in (lambda: save_pretrained(network, "out"), lambda: from_pretrained("out")):
        with pytest.raises(InvalidConfiguration, match=r"\.\[hub\]"):
            ask()
