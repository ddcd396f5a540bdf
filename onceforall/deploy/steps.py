"""What the finished steps of an interrupted call found, in a file of their own until the call is complete."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from onceforall.errors import InvalidConfiguration
from onceforall.files import append_jsonl, as_json, read_jsonl

T = TypeVar("T")


class FinishedSteps:
    """A JSONL file: what the call is of, then a row a finished step. The same call goes on behind the last one.

    Raises InvalidConfiguration where the file is of another call.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        records = read_jsonl(path)
        if records and records[0] != as_json(identity):
            different = sorted(key for key in identity if records[0].get(key) != as_json(identity[key]))
            raise InvalidConfiguration(
                f"{path} is of an interrupted call with another {', '.join(different) or 'version'}: repeat that call, "
                "choose another folder, or remove the file"
            )
        if not records:
            append_jsonl(path, identity)
        self._found: dict[str, Any] = {record["step"]: record["found"] for record in records[1:]}

    def once(self, step: str, compute: Callable[[], T]) -> T:
        """What a step finds, a JSON value: computed unless it was before."""
        if step not in self._found:
            found = compute()
            append_jsonl(self.path, {"step": step, "found": found})
            self._found[step] = found
        result: T = self._found[step]
        return result

    def remove(self) -> None:
        """The call is complete."""
        self.path.unlink(missing_ok=True)
