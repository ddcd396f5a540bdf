"""Files that we write: atomic, checked, readable by people."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration, UnwritableOutput


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write beside the target, then rename: readers see the old file or the new one. Raises UnwritableOutput."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        # Some writers make files that only their owner may read; ours are as open as any new file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise UnwritableOutput(f"cannot write {path}: {error.strerror or error}; choose a writable folder") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raises UnwritableOutput where no file can be written into a folder, which is made."""
    probe = folder / ".writable"
    write_atomically(probe, "")
    probe.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Parsed JSON. Raises InvalidConfiguration where the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise InvalidConfiguration(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InvalidConfiguration(f"{path} is not JSON: {error}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """A parsed JSON object. Raises InvalidConfiguration where the file is missing or holds anything else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InvalidConfiguration(f"{path} holds no JSON object")
    return value


def as_json(value: Any) -> Any:
    """The value as it comes back from a JSON file: tuples become lists, keys strings."""
    return json.loads(json.dumps(value))


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line, atomically. Raises UnwritableOutput."""
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in records))


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Add one record to a JSONL file. Raises UnwritableOutput."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.truncate(_end_of_last_line(file))
            file.write(json.dumps(record).encode() + b"\n")
    except OSError as error:
        raise UnwritableOutput(f"cannot write {path}: {error.strerror or error}; choose a writable folder") from error


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


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All records of a JSONL file, or none where it does not exist; a line cut off by a kill is dropped.

    Raises IncompatibleCheckpoint where any other line is not JSON.
    """
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise IncompatibleCheckpoint(f"{path}, line {number} is not JSON: {error}") from error
    return records


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
