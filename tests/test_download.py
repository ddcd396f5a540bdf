"""Downloads: resumed, whole or not there at all. The server is here; no test leaves this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceforall import download
from onceforall.download import cache_folder, fetch
from onceforall.errors import DataUnavailable

CONTENT = np.random.default_rng(0).bytes(100_000)


@dataclass
class Server:
    """Serves `content` at every path; says what it was asked for."""

    address: str
    content: bytes = CONTENT
    ranges: bool = True  # whether it can send a part
    cut: int = 0  # bytes after which it hangs up
    length: bool = True  # whether it says how long its answer is
    status: int = 0  # an error to answer with
    etag: str = ""  # what names this version of the content
    asked: list[str] = field(default_factory=list)  # Range headers

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range", "")
        self.asked.append(asked)
        if request.headers.get("If-Range", self.etag) != self.etag:
            asked = ""  # another version: all of it
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        if self.status or start >= len(self.content):
            request.send_response(self.status or 416)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        body = self.content[start:]
        request.send_response(206 if asked and self.ranges else 200)
        if self.etag:
            request.send_header("ETag", self.etag)
        if self.length:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: self.cut] if self.cut else body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.answer(self)

        def log_message(self, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        found = Server(f"http://127.0.0.1:{http.server_port}/file")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        http.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "file"


def part_of(path: Path) -> Path:
    return path.with_name("file.part")


def files_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_file_arrives_whole_with_its_progress(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "CHUNK", 30_000)
    told: list[tuple[int, int]] = []
    fetch(server.address, path, lambda done, total: told.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert files_in(path.parent) == ["file"]
    assert told == [(done, 100_000) for done in (30_000, 60_000, 90_000, 100_000)]


def test_a_file_that_changed_in_between_is_not_spliced(server: Server, path: Path) -> None:
    server.cut, server.etag = 60_000, '"first"'
    with pytest.raises(DataUnavailable):
        fetch(server.address, path)
    server.cut, server.etag, server.content = 0, '"second"', CONTENT[::-1]
    fetch(server.address, path)
    assert server.asked == ["", "bytes=60000-"]
    assert path.read_bytes() == CONTENT[::-1]
    assert files_in(path.parent) == ["file"]


def test_an_unknown_length_is_a_total_of_zero(server: Server, path: Path) -> None:
    server.length = False
    told: list[tuple[int, int]] = []
    fetch(server.address, path, lambda done, total: told.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert told[-1] == (100_000, 0)


def test_a_cut_connection_leaves_a_part_and_the_next_attempt_goes_on(server: Server, path: Path) -> None:
    server.cut = 60_000
    with pytest.raises(DataUnavailable, match=r"file: the connection ended after 60000 of 100000 bytes; try again"):
        fetch(server.address, path)
    assert files_in(path.parent) == ["file.part"]
    server.cut = 0
    told: list[tuple[int, int]] = []
    fetch(server.address, path, lambda done, total: told.append((done, total)))
    assert server.asked == ["", "bytes=60000-"]
    assert path.read_bytes() == CONTENT
    assert files_in(path.parent) == ["file"]
    assert 60_000 < told[0][0] <= told[-1][0] == 100_000
    assert {total for _, total in told} == {100_000}


def test_a_second_cut_is_counted_from_the_start(server: Server, path: Path) -> None:
    server.cut = 30_000
    for held in (30_000, 60_000, 90_000):
        with pytest.raises(DataUnavailable, match=f"ended after {held} of 100000 bytes"):
            fetch(server.address, path)
    fetch(server.address, path)
    assert path.read_bytes() == CONTENT


def test_a_server_that_cannot_send_parts_sends_it_all_again(server: Server, path: Path) -> None:
    server.ranges, server.cut = False, 60_000
    with pytest.raises(DataUnavailable):
        fetch(server.address, path)
    server.cut = 0
    told: list[tuple[int, int]] = []
    fetch(server.address, path, lambda done, total: told.append((done, total)))
    assert server.asked == ["", "bytes=60000-"]
    assert path.read_bytes() == CONTENT
    assert told[-1] == (100_000, 100_000)


@pytest.mark.parametrize("held", [100_000, 120_000], ids=["as long as the file", "longer"])
def test_a_part_that_the_server_cannot_go_on_from_is_fetched_anew(held: int, server: Server, path: Path) -> None:
    part_of(path).parent.mkdir()
    part_of(path).write_bytes(bytes(held))
    fetch(server.address, path)
    assert server.asked == [f"bytes={held}-", ""]
    assert path.read_bytes() == CONTENT
    assert files_in(path.parent) == ["file"]


@pytest.mark.parametrize(("status", "reason"), [(404, "Not Found"), (403, "Forbidden"), (500, "Internal Server Error")])
def test_a_refusal_names_url_and_reason(status: int, reason: str, server: Server, path: Path) -> None:
    server.status = status
    with pytest.raises(DataUnavailable, match=f"cannot fetch {server.address}: {reason}"):
        fetch(server.address, path)
    assert files_in(path.parent) == []


def test_a_refusal_keeps_what_was_there(server: Server, path: Path) -> None:
    part_of(path).parent.mkdir()
    part_of(path).write_bytes(CONTENT[:10])
    path.write_bytes(b"old")
    server.status = 503
    with pytest.raises(DataUnavailable, match="Service Unavailable"):
        fetch(server.address, path)
    assert (path.read_bytes(), part_of(path).read_bytes()) == (b"old", CONTENT[:10])


def test_a_server_that_finds_no_range_good_is_asked_twice_at_most(server: Server, path: Path) -> None:
    part_of(path).parent.mkdir()
    part_of(path).write_bytes(b"x")
    server.status = 416
    with pytest.raises(DataUnavailable, match="cannot fetch"):
        fetch(server.address, path)
    assert len(server.asked) == 2


def test_nobody_there_is_an_error_that_names_the_url(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as http:
        port = http.server_port  # closed again at once
    with pytest.raises(DataUnavailable, match=rf"cannot fetch http://127\.0\.0\.1:{port}/file: .*refused"):
        fetch(f"http://127.0.0.1:{port}/file", path)
    with pytest.raises(DataUnavailable, match="cannot fetch no url: "):
        fetch("no url", path)


def test_the_cache_folder_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ONCEFORALL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "onceforall"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "onceforall"
    monkeypatch.setenv("ONCEFORALL_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
