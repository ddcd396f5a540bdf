"""The published supernets and networks by name: brought or fetched once, kept, and compared with what came first."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from onceforall import spaces, zoo
from onceforall.errors import DataUnavailable, IncompatibleCheckpoint, InvalidConfiguration
from onceforall.files import read_json
from onceforall.interop import save_network, save_supernet
from onceforall.nn.supernet import Supernet
from onceforall.testing import scramble
from onceforall.zoo import published
from onceforall.zoo.published import PublishedFile

NAME = "mit/ofa_mbv3_d234_e346_k357_w1.0"
NETWORK = "flops-595M_top1-80.0_finetune-75"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def supernet(seed: int, width: float = 1.0) -> Supernet:
    result = Supernet(spaces.mobilenet_v3(width), seed)
    scramble(result, seed)
    return result


@pytest.fixture(scope="module")
def first() -> Supernet:
    return supernet(0)


@pytest.fixture(scope="module")
def files(first: Supernet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the authors' files: a supernet, a later one in its place, and one of another width."""
    folder = tmp_path_factory.mktemp("theirs")
    for name, found in (("first", first), ("later", supernet(1)), ("w1.2", supernet(0, 1.2))):
        save_supernet(folder / name, found)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONCEFORALL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"


class Tree:
    """A folder that is served over HTTP, and the paths that were asked for."""

    def __init__(self, folder: Path) -> None:
        asked: list[str] = []

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                super().do_GET()

            def log_message(self, *args: Any) -> None: ...

        self.folder, self.asked = folder, asked
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self.http.server_port}/"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    """Stands for the authors' repository."""
    (tmp_path / "tree").mkdir()
    found = Tree(tmp_path / "tree")
    monkeypatch.setattr(published, "REPOSITORY", found.address)
    monkeypatch.setitem(published.SUPERNETS, NAME, PublishedFile(spaces.mobilenet_v3, f"{found.address}net"))
    with found.http:
        thread = threading.Thread(target=found.http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.http.shutdown()
        thread.join()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address where nobody answers, in place of the authors' repository."""
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as http:
        address = f"http://127.0.0.1:{http.server_port}/"
    monkeypatch.setattr(published, "REPOSITORY", address)
    monkeypatch.setitem(published.SUPERNETS, NAME, PublishedFile(spaces.mobilenet_v3, f"{address}net"))
    return address


def assert_is(found: Supernet, expected: Supernet) -> None:
    assert found.space == expected.space
    tensors = found.state_dict()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensors[name], tensor), name


# Names


def test_the_published_names_are_listed_with_addresses_of_the_authors() -> None:
    assert sorted(zoo.PUBLISHED) == [
        "mit/ofa_mbv3_d234_e346_k357_w1.0",
        "mit/ofa_mbv3_d234_e346_k357_w1.2",
        "mit/ofa_proxyless_d234_e346_k357_w1.3",
        "mit/ofa_resnet50",
    ]
    for name, file in published.SUPERNETS.items():
        assert file.url.startswith("https://")
        assert name.removeprefix("mit/") in file.url


@pytest.mark.parametrize("name", ["mit/ofa_mbv3", "ofa_resnet50", "imagenet", ""])
def test_an_unknown_name_lists_what_there_is(name: str) -> None:
    with pytest.raises(InvalidConfiguration) as error:
        zoo.load(name)
    assert f"supernet {name!r}: shipped are cifar10; published are {', '.join(zoo.PUBLISHED)}" in str(error.value)


# Supernets from a file


def test_a_file_is_imported_once_and_then_comes_from_the_cache(
    files: Path, first: Supernet, cache: Path, offline: str
) -> None:
    entry = zoo.load(NAME, file=files / "first")
    assert (entry.name, entry.labels, entry.folder) == (NAME, [], cache / NAME)
    assert_is(entry.supernet, first)
    assert sorted(path.name for path in entry.folder.iterdir()) == ["manifest.json", "supernet.safetensors"]
    manifest = json.loads((entry.folder / "manifest.json").read_text())
    assert (manifest["name"], manifest["source"]) == (NAME, f"{offline}net")
    assert manifest["source_sha256"] == sha256(files / "first")
    assert manifest["sha256"] == sha256(entry.folder / "supernet.safetensors")

    assert_is(zoo.load(NAME).supernet, first)  # without a file, and nobody to ask
    assert_is(zoo.load(NAME, file=files / "first").supernet, first)  # the same file again is welcome


def test_a_later_file_is_refused_until_one_accepts_it(files: Path, first: Supernet, cache: Path, offline: str) -> None:
    zoo.load(NAME, file=files / "first")
    later = files / "later"
    with pytest.raises(IncompatibleCheckpoint) as error:
        zoo.load(NAME, file=later)
    message = str(error.value)
    assert f"{later}: SHA-256 {sha256(later)}, expected {sha256(files / 'first')}" in message
    assert f"delete {cache / NAME} to accept a new one" in message
    assert later.is_file()  # it is the user's
    assert_is(zoo.load(NAME).supernet, first)

    shutil.rmtree(cache / NAME)
    found = zoo.load(NAME, file=later).supernet
    assert not torch.equal(found.state_dict()["stem.0.full.conv.weight"], first.state_dict()["stem.0.full.conv.weight"])
    assert_is(zoo.load(NAME).supernet, found)


def test_a_file_is_compared_with_the_checksum_that_the_authors_state(
    files: Path, first: Supernet, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = PublishedFile(spaces.mobilenet_v3, "http://127.0.0.1:9/net", sha256(files / "first"))
    monkeypatch.setitem(published.SUPERNETS, NAME, stated)
    with pytest.raises(IncompatibleCheckpoint, match=f"expected {stated.sha256}"):
        zoo.load(NAME, file=files / "later")
    assert not (cache / NAME).exists()
    assert_is(zoo.load(NAME, file=files / "first").supernet, first)


def test_a_supernet_of_another_name_is_refused(files: Path, cache: Path) -> None:
    with pytest.raises(IncompatibleCheckpoint):
        zoo.load(NAME, file=files / "w1.2")
    assert not (cache / NAME).exists()


def test_a_file_that_is_no_supernet_is_not_remembered(files: Path, first: Supernet, tmp_path: Path) -> None:
    (tmp_path / "page").write_text("hello, not found\n" * 9)
    with pytest.raises(IncompatibleCheckpoint, match="page"):
        zoo.load(NAME, file=tmp_path / "page")
    assert_is(zoo.load(NAME, file=files / "first").supernet, first)


def test_a_missing_file_names_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match=rf"nowhere does not exist: bring {published.SUPERNETS[NAME].url}"):
        zoo.load(NAME, file=tmp_path / "nowhere")


def test_damage_to_the_cache_is_found(files: Path, first: Supernet, cache: Path) -> None:
    zoo.load(NAME, file=files / "first")
    path = cache / NAME / "supernet.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(IncompatibleCheckpoint, match=rf"{path}: SHA-256 .*: delete it and import {NAME} again"):
        zoo.load(NAME)
    path.unlink()
    assert_is(zoo.load(NAME, file=files / "first").supernet, first)


# Supernets from the network


def test_a_supernet_is_fetched_once(files: Path, first: Supernet, tree: Tree, cache: Path) -> None:
    shutil.copy(files / "first", tree.folder / "net")
    for _ in range(2):
        assert_is(zoo.load(NAME).supernet, first)
    assert tree.asked == ["/net"]
    assert sorted(path.name for path in (cache / NAME).iterdir()) == ["manifest.json", "supernet.safetensors"]


def test_an_import_that_was_interrupted_is_done_again(files: Path, first: Supernet, cache: Path, tree: Tree) -> None:
    shutil.copy(files / "first", tree.folder / "net")
    zoo.load(NAME)
    (cache / NAME / "manifest.json").unlink()
    assert_is(zoo.load(NAME).supernet, first)
    assert tree.asked == ["/net"] * 2


def test_several_processes_fetch_it_once(files: Path, first: Supernet, tree: Tree, cache: Path) -> None:
    shutil.copy(files / "first", tree.folder / "net")
    with ThreadPoolExecutor(3) as pool:  # each with a lock of its own, as processes have
        found = list(pool.map(lambda _: zoo.load(NAME), range(3)))
    for entry in found:
        assert_is(entry.supernet, first)
    assert tree.asked == ["/net"]


def test_a_fetched_supernet_that_changed_is_refused_and_removed(
    files: Path, first: Supernet, tree: Tree, cache: Path
) -> None:
    shutil.copy(files / "first", tree.folder / "net")
    folder = zoo.load(NAME).folder
    (folder / "supernet.safetensors").unlink()
    shutil.copy(files / "later", tree.folder / "net")
    with pytest.raises(IncompatibleCheckpoint, match=f"delete {folder} to accept a new one"):
        zoo.load(NAME)
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]
    shutil.copy(files / "first", tree.folder / "net")
    assert_is(zoo.load(NAME).supernet, first)


def test_without_a_network_it_is_said_what_to_bring_and_how_to_give_it(offline: str) -> None:
    with pytest.raises(DataUnavailable) as error:
        zoo.load(NAME)
    message = str(error.value)
    assert f"cannot fetch {offline}net" in message
    assert f"bring {offline}net from another machine" in message
    assert f'zoo.load("{NAME}", file=PATH)' in message


def test_progress_goes_to_stderr(files: Path, tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(files / "first", tree.folder / "net")
    zoo.load(NAME)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "net" in printed.err


# Specialised networks


@pytest.fixture
def folder_of_network(tmp_path: Path) -> Path:
    """`net.config`, `run.config` and `init` of a network."""
    space = spaces.mobilenet_v3(1.0, (64,), 10)
    arch = space.uniform(depth=2, kernel=5, expand=3, resolution=64)
    save_network(tmp_path / "given", Supernet(space, seed=3).extract(arch), space.lower(arch))
    return tmp_path / "given"


@pytest.mark.parametrize("net_id", [NETWORK, f"mit/{NETWORK}", "flops@595M_top1@80.0_finetune@75"])
def test_a_network_is_fetched_once_under_any_of_its_names(
    net_id: str, folder_of_network: Path, tree: Tree, cache: Path
) -> None:
    shutil.copytree(folder_of_network, tree.folder / "ofa_specialized" / NETWORK)
    for _ in range(2):
        described, network = zoo.specialized(net_id)
        assert described.resolution == 64
        assert described.architecture is not None
        expected = torch.load(folder_of_network / "init", weights_only=True)["state_dict"]
        assert torch.equal(network[0].conv.weight, expected["first_conv.conv.weight"])  # type: ignore[union-attr, arg-type]
    names = ("net.config", "run.config", "init")
    assert tree.asked == [f"/ofa_specialized/{NETWORK}/{name}" for name in names]
    kept = cache / "mit" / "specialized" / NETWORK
    assert sorted(path.name for path in kept.iterdir()) == ["checksums.json", *sorted(names)]
    assert read_json(kept / "checksums.json") == {name: sha256(kept / name) for name in names}


def test_a_network_that_was_brought_needs_no_network(folder_of_network: Path, cache: Path, offline: str) -> None:
    with pytest.raises(DataUnavailable) as error:
        zoo.specialized(NETWORK)
    kept = cache / "mit" / "specialized" / NETWORK
    assert f"bring {offline}ofa_specialized/{NETWORK}/net.config from another machine" in str(error.value)
    assert f"put net.config, run.config and init into {kept}" in str(error.value)
    shutil.copytree(folder_of_network, kept, dirs_exist_ok=True)
    described, _ = zoo.specialized(NETWORK)
    assert described.resolution == 64


def test_a_changed_file_of_a_network_is_refused(folder_of_network: Path, tree: Tree, cache: Path) -> None:
    shutil.copytree(folder_of_network, tree.folder / "ofa_specialized" / NETWORK)
    zoo.specialized(NETWORK)
    kept = cache / "mit" / "specialized" / NETWORK
    (kept / "run.config").write_text('{"image_size": 96}')
    with pytest.raises(IncompatibleCheckpoint, match=rf"run\.config: SHA-256 .*delete {kept / 'checksums.json'}"):
        zoo.specialized(NETWORK)
    (kept / "run.config").unlink()
    assert zoo.specialized(NETWORK)[0].resolution == 64  # fetched again
    assert tree.asked[-1].endswith("run.config")

    # What the authors put in its place is refused as well, until one accepts it.
    (tree.folder / "ofa_specialized" / NETWORK / "run.config").write_text('{"image_size": 96}')
    (kept / "run.config").unlink()
    with pytest.raises(IncompatibleCheckpoint, match="to accept a new one"):
        zoo.specialized(NETWORK)
    assert not (kept / "run.config").exists()  # what was fetched is not kept
    (kept / "checksums.json").unlink()
    assert zoo.specialized(NETWORK)[0].resolution == 96


@pytest.mark.parametrize("name", ["init", "net.config"])
def test_a_page_in_place_of_a_file_is_not_kept(name: str, folder_of_network: Path, tree: Tree) -> None:
    """A proxy that wants a password answers with a page of its own; the next attempt must be able to succeed."""
    served = tree.folder / "ofa_specialized" / NETWORK
    shutil.copytree(folder_of_network, served)
    (served / name).write_text("hello, please log in\n" * 9)
    with pytest.raises((IncompatibleCheckpoint, InvalidConfiguration), match=name):
        zoo.specialized(NETWORK)
    shutil.copy(folder_of_network / name, served / name)
    assert zoo.specialized(NETWORK)[0].resolution == 64


def test_an_unknown_network_names_its_address(tree: Tree) -> None:
    with pytest.raises(DataUnavailable, match=rf"cannot fetch {tree.address}ofa_specialized/nothing/net\.config: "):
        zoo.specialized("nothing")
