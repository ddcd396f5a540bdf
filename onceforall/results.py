"""A folder of results: manifest.json and the files that it names, which are replaced together or not at all.

A successor is written into a sub-folder. Its own manifest comes last there: from then on it is complete, and what
is left to do are renames, manifest.json last. A call that is killed between two of those is completed by the next
one, and nobody reads the folder before that.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration
from onceforall.files import read_json_object, unwritable

MANIFEST = "manifest.json"
UNFINISHED = "unfinished"  # the sub-folder

Files = Callable[[dict[str, Any]], Iterable[str]]  # that a manifest names, itself not among them


def inside(folder: Path, name: object) -> Path:
    """The file of a folder that a manifest calls so.

    Raises IncompatibleCheckpoint where that lies elsewhere: an absolute path, one with "..", a link that leads out.
    """
    problem = "expected the path of a file in that folder"
    if not isinstance(name, str) or not name.isprintable():
        raise IncompatibleCheckpoint(f"{folder}: its {MANIFEST} names {name!r:.100}: {problem}")
    there = PureWindowsPath(name)  # knows both ways to write a path
    if there.anchor or not there.parts or ".." in there.parts or "\\" in name:
        raise IncompatibleCheckpoint(f"{folder}: its {MANIFEST} names {name!r:.100}: {problem}")
    try:
        home = (folder / name).resolve()
    except (OSError, RuntimeError) as error:  # links that lead to themselves
        raise IncompatibleCheckpoint(f"{folder / name} cannot be found: {error}") from None
    if not home.is_relative_to(folder.resolve()):
        raise IncompatibleCheckpoint(f"{folder / name} leads to {home}, out of its folder: copy the file itself there")
    return folder / name


def check_ours(folder: Path, formats: Sequence[str], what: str) -> dict[str, Any]:
    """The manifest of a folder that is to be written, empty where there is none.

    Raises InvalidConfiguration where it has none of these formats: the folder is somebody else's.
    """
    path = folder / MANIFEST
    if not path.exists():
        return {}
    try:
        found = read_json_object(path)
    except InvalidConfiguration as error:
        raise InvalidConfiguration(f"{error}; or choose another folder for this {what}") from None
    if found.get("format") not in formats:
        raise InvalidConfiguration(
            f"{path} is of format {str(found.get('format'))!r:.60}, not of a {what}: choose another folder"
        )
    return found


def check_whole(folder: Path) -> None:
    """Raises InvalidConfiguration where a kill has left a folder between its old and its new results."""
    if (folder / UNFINISHED / MANIFEST).exists():
        raise InvalidConfiguration(
            f"{folder} is between old and new results, which a kill has left half in place: the next call of the "
            "command that writes it completes that"
        )


def publish(folder: Path, files: Files) -> None:
    """Put the successor in place, where there is one that is complete, and remove what only the old manifest names.

    Raises UnwritableOutput: it can be called again.
    """
    new, old = folder / UNFINISHED, set[str]()
    if not (new / MANIFEST).exists():
        return
    names = {*files(read_json_object(new / MANIFEST))}
    with contextlib.suppress(InvalidConfiguration, IncompatibleCheckpoint):  # there is none, or none that we can read
        old = {*files(read_json_object(folder / MANIFEST))}
    try:
        for name in sorted(names):
            source, target = inside(new, name), inside(folder, name)
            if source.exists():  # else it is in place
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, target)
        for name in old - names:
            _remove(folder, name)
        os.replace(new / MANIFEST, folder / MANIFEST)
    except OSError as error:
        raise unwritable(folder, error) from error
    discard(folder)


def discard(folder: Path) -> None:
    """Remove what an unfinished call has left."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def _remove(folder: Path, name: str) -> None:
    """A file of the old results, and folders that are empty without it; nothing that lies elsewhere."""
    with contextlib.suppress(IncompatibleCheckpoint):
        path = inside(folder, name)
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            while path.parent != folder:
                path = path.parent
                path.rmdir()
