"""Files that we write: atomic, with a digest of their content, readable by people; and JSON that is read, whoever's."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import msgspec

from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration, OFAError, UnwritableOutput

# The field of a JSON object, and of a safetensors file's metadata, that holds the SHA-256 of all the rest.
DIGEST = "content_sha256"
LINE_DIGITS = 16  # of it in a line of JSONL

MOST_BYTES = 1 << 30  # of a file of JSON
DEEPEST = 100  # levels of JSON: ours have ten at most

STALE = 86_400  # seconds after which what another machine left half written is nobody's any more
HOST = re.sub(r"\W", "_", socket.gethostname())[:40]
_PART = re.compile(r"\..+\.(?P<host>\w*)-(?P<pid>\d+)\.part")
_unfinished = set[Path]()  # of this process
_swept = set[Path]()


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write beside the target, then rename: readers see the old file or the new one. Raises UnwritableOutput."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{HOST}-{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        _unfinished.add(temporary)
        yield temporary
        with temporary.open("r+b") as file:  # Windows syncs only what is open for writing
            os.fsync(file.fileno())
        # Some writers make files that only their owner may read; ours are as open as any new file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        _unfinished.discard(temporary)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed left half written in a folder: once in a process."""
    if folder in _swept:
        return
    _swept.add(folder)
    with contextlib.suppress(OSError):
        for path in folder.glob(".*.part"):
            match = _PART.fullmatch(path.name)
            old = time.time() - path.stat().st_mtime > STALE
            if match and path not in _unfinished and (old or (match["host"] == HOST and not _runs(int(match["pid"])))):
                path.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    """Whether another process of this machine has this number; True where one cannot know."""
    if os.name != "posix":
        return True
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


@contextlib.contextmanager
def owned(folder: Path, what: str) -> Iterator[None]:
    """The folder, made where there is none, is this process's alone until the block ends, or the process does.

    Raises UnwritableOutput where another process has it, which is said to be another `what`.
    """
    lock = filelock.FileLock(folder / ".lock", blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise UnwritableOutput(
            f"{folder} is being written by another {what} that is still running: wait for it or end it, or choose "
            "another folder"
        ) from None
    except NotImplementedError:  # a file system without locks
        pass
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def check_writable(folder: Path) -> None:
    """Raises UnwritableOutput where no file can be written into a folder, which is made."""
    probe = folder / ".writable"
    write_atomically(probe, "")
    probe.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError) -> UnwritableOutput:
    """The error, which says what to do about it."""
    remedies = {"ENOSPC": "free some space on this disk, or choose a folder on another"}
    remedy = remedies.get(errno.errorcode.get(error.errno or 0, ""), "choose a writable folder")
    return UnwritableOutput(f"cannot write {path}: {error.strerror or error}; {remedy}")


# JSON


def parse_json(text: bytes | str, what: str, error: type[OFAError] = InvalidConfiguration) -> Any:
    """The value of a JSON text, at most 100 levels deep, without NaN. Raises `error`, which begins with `what`."""
    try:
        value = msgspec.json.decode(text)
    except (ValueError, RecursionError) as problem:
        raise error(f"{what} is not JSON: {problem}") from None
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for item in level if isinstance(item, dict | list) for inner in _items(item)]
        if not level:
            return value
    raise error(f"{what} is not JSON of ours: it is more than {DEEPEST} levels deep")


def _items(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def content_digest(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value, in whatever order its objects have their fields."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _sealed(value: Any, digits: int | None = None) -> Any:
    """A value as it comes back from JSON, an object with its digest."""
    value = as_json(value)
    if isinstance(value, dict):
        value.pop(DIGEST, None)  # of what it was before
        value[DIGEST] = content_digest(value)[:digits]
    return value


def _opened(value: Any, what: str, error: type[OFAError], digits: int | None = None) -> Any:
    """The inverse of `_sealed`; what has no digest, as older files, is taken as it is."""
    if not isinstance(value, dict) or DIGEST not in value:
        return value
    digest = value.pop(DIGEST)
    if digest != content_digest(value)[:digits]:
        raise error(
            f"{what} is damaged, or was changed by hand: its {DIGEST} is of another content. Copy it again; if the "
            "change is meant, remove that field"
        )
    return value


def write_json(path: Path, value: Any, *, sealed: bool = True) -> None:
    """Indented JSON, atomically; an object gets a digest as its last field, where it is not `sealed` for a format of
    others. Raises UnwritableOutput, InvalidConfiguration where a number is not finite.
    """
    try:
        text = json.dumps(_sealed(value) if sealed else value, indent=1, allow_nan=False)
    except ValueError as problem:
        raise InvalidConfiguration(f"{path} cannot be written: {problem}") from problem
    write_atomically(path, text + "\n")


def read_json(path: Path) -> Any:
    """Parsed JSON without its digest, which is checked.

    Raises InvalidConfiguration where the file is missing, is not JSON, or is not as it was written.
    """
    return _opened(parse_json(_content(path), str(path)), str(path), InvalidConfiguration)


def read_json_object(path: Path) -> dict[str, Any]:
    """A parsed JSON object. Raises InvalidConfiguration where the file is missing or holds anything else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InvalidConfiguration(f"{path} holds no JSON object")
    return value


def as_json(value: Any) -> Any:
    """The value as it comes back from a JSON file: tuples become lists, keys strings."""
    return json.loads(json.dumps(value, allow_nan=False))


def finite(value: Any) -> Any:
    """The value, or None for a float that is NaN or infinite, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def differing(theirs: Any, ours: Any, place: str = "") -> str:
    """In what two JSON values differ, in words: the first few places; empty where they are equal."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        found = [
            differing(theirs.get(key), ours.get(key), f"{place}.{key}" if place else key)
            for key in sorted(theirs.keys() | ours.keys())
        ]
        return "; ".join([text for text in found if text][:3])
    said, here = (f"{json.dumps(value):.60}" for value in (theirs, ours))
    return "" if theirs == ours else f"{place or 'it'} is {said} there, {here} here"


def _content(path: Path) -> bytes:
    """Raises InvalidConfiguration where a file cannot be read, or is too large."""
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise InvalidConfiguration(f"{path} has {size} bytes: expected at most {MOST_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise InvalidConfiguration(f"cannot read {path}: {error.strerror or error}") from error


# JSONL


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line, atomically. Raises UnwritableOutput."""
    write_atomically(path, b"".join(map(_line, records)))


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Add one record to a JSONL file. Raises UnwritableOutput."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.truncate(_end_of_last_line(file))
            file.write(_line(record))
    except OSError as error:
        raise unwritable(path, error) from error


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(_sealed(record, LINE_DIGITS)).encode() + b"\n"


def _end_of_last_line(file: BinaryIO) -> int:
    """Where the last whole line ends: what a kill left behind it is to be cut off."""
    position = file.seek(0, os.SEEK_END)
    while position > 0:
        start = max(0, position - 4096)
        file.seek(start)
        newline = file.read(position - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        position = start
    return 0


def read_jsonl(path: Path, *, damaged: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """All records of a JSONL file, or none where it does not exist; a line cut off by a kill is dropped.

    Raises IncompatibleCheckpoint for any other line that is no JSON object, or not as it was written; or passes
    over it, where `damaged` receives what is wrong.
    """
    try:
        lines = _content(path).splitlines(keepends=True)
    except InvalidConfiguration as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return []
        raise
    records = []
    for number, line in enumerate(lines, 1):
        what = f"{path}, line {number}"
        try:
            record = _opened(parse_json(line, what, IncompatibleCheckpoint), what, IncompatibleCheckpoint, LINE_DIGITS)
            if not isinstance(record, dict):
                raise IncompatibleCheckpoint(f"{what} is no JSON object")
            records.append(record)
        except IncompatibleCheckpoint as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break
            if damaged is None:
                raise
            damaged(str(error))
    return records


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
