"""Files from the network: resumable, whole or not there at all."""

from __future__ import annotations

import contextlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock

from onceforall.errors import DataUnavailable, UnwritableOutput

CHUNK = 1 << 20  # bytes
TIMEOUT = 20.0  # seconds without an answer


def cache_folder() -> Path:
    """Where downloads are kept: $ONCEFORALL_CACHE, `onceforall` in the user's cache folder, or in a temporary one."""
    given = os.environ.get("ONCEFORALL_CACHE")
    if given:
        return Path(given)
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "onceforall"
    try:
        return Path.home() / ".cache" / "onceforall"
    except RuntimeError:  # a user without a name and a home, as in some containers
        return Path(tempfile.gettempdir()) / f"onceforall-{os.getuid()}"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Other processes that want to fill the same folder wait here. Raises UnwritableOutput."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        lock.acquire()
    except OSError as error:
        raise UnwritableOutput(f"cannot write {folder}: {error.strerror or error}; set ONCEFORALL_CACHE") from error
    try:
        yield
    finally:
        lock.release()


def fetch(url: str, path: Path, report: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Download to `path`. What an interrupted download left in `path.part` is not fetched again.

    `report` receives (done, total) in bytes; a total of 0 is unknown. Raises DataUnavailable.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            expected = _continue(url, part, report)
        except urllib.error.HTTPError as error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            part.unlink()  # longer than what is there now: of another file
            expected = _continue(url, part, report)
        size = part.stat().st_size
        if expected not in (0, size):
            raise DataUnavailable(f"{url}: the connection ended after {size} of {expected} bytes; try again to go on")
        os.replace(part, path)
        part.with_name(f"{part.name}.etag").unlink(missing_ok=True)
    except DataUnavailable:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DataUnavailable(f"cannot fetch {url}: {getattr(error, 'reason', error)}") from error


def _continue(url: str, part: Path, report: Callable[[int, int], None]) -> int:
    """Append what is missing; the number of bytes that the whole file has, 0 if unknown."""
    start = part.stat().st_size if part.exists() else 0
    # If-Range: what changed in between is sent whole, not spliced onto what is here.
    validator = part.with_name(f"{part.name}.etag")
    headers = {"Range": f"bytes={start}-"} if start else {}
    if start and validator.exists():
        headers["If-Range"] = validator.read_text()
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0  # the server sends the whole file
        if (etag := response.headers.get("ETag", "")).startswith('"'):  # not a weak one
            validator.write_text(etag)
        length = int(response.headers.get("Content-Length") or 0)
        total = start + length if length else 0
        with part.open("ab" if start else "wb") as file:
            done = start
            while chunk := response.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                report(done, total)
    return total
