"""What was imported, as our own files: safetensors, with a manifest that names the origin and its SHA-256."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from onceforall.checkpoint import load_supernet, save_supernet
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration
from onceforall.files import read_json_object, sha256, write_json
from onceforall.interop import checkpoints, predictors
from onceforall.interop.pickles import read_state
from onceforall.nn.supernet import Supernet
from onceforall.serial import from_json, to_json
from onceforall.space import SearchSpace

FORMAT = "onceforall.import/1"
SUPERNET, PREDICTOR = "supernet.safetensors", "predictor.safetensors"

Imported = TypeVar("Imported", bound=Supernet | predictors.PublishedPredictor)


@dataclass(frozen=True)
class Origin:
    """Where an imported file came from, with the SHA-256 of that file and of what was made of it."""

    name: str
    source: str
    source_sha256: str
    file: str
    sha256: str


def import_file(path: str | Path, folder: str | Path) -> Supernet | predictors.PublishedPredictor:
    """Read a published supernet or accuracy predictor and keep it in `folder`, whichever it is.

    Raises IncompatibleCheckpoint, InvalidConfiguration where the folder holds another import,
    UnwritableOutput.
    """
    state = read_state(path)
    read = predictors.predictor_of if predictors.is_predictor(state) else checkpoints.supernet_of
    return _keep(read(state, origin=str(path)), Path(path), Path(folder))


def import_supernet(
    path: str | Path, folder: str | Path, *, name: str = "", source: str = "", space: SearchSpace | None = None
) -> Supernet:
    """Read the authors' supernet in a torch file and keep it in `folder` as `supernet.safetensors`.

    `manifest.json` beside it says what it was made from; the folder is then a run folder like those
    of `ofa train`. `name` and `source` (default: the file's name) go into the manifest. Raises
    IncompatibleCheckpoint, InvalidConfiguration where the folder holds another import, UnwritableOutput.
    """
    return _keep(checkpoints.load_supernet(path, space), Path(path), Path(folder), name, source)


def import_predictor(path: str | Path, folder: str | Path) -> predictors.PublishedPredictor:
    """Read a published accuracy predictor and keep it in `folder` as `predictor.safetensors`, with its manifest.

    Raises IncompatibleCheckpoint, InvalidConfiguration where the folder holds another import, UnwritableOutput.
    """
    return _keep(predictors.load_predictor(path), Path(path), Path(folder))


def read_origin(folder: str | Path) -> Origin | None:
    """What the manifest of an import says; None where there is none. Raises IncompatibleCheckpoint."""
    path = Path(folder) / "manifest.json"
    if not path.exists():
        return None
    try:
        value = read_json_object(path)
        if (found := value.pop("format", None)) != FORMAT:
            raise InvalidConfiguration(f"its format is {found!r}")
        return from_json(Origin, value, "an origin")
    except InvalidConfiguration as error:
        raise IncompatibleCheckpoint(f"{path} is not the manifest of an import ({FORMAT}): {error}") from error


def reopen(folder: str | Path) -> Supernet:
    """The imported supernet in a folder, checked against its manifest. Raises IncompatibleCheckpoint."""
    path, origin = Path(folder) / SUPERNET, read_origin(folder)
    if origin is None or not path.is_file():
        raise IncompatibleCheckpoint(f"{folder} holds no imported supernet")
    found = sha256(path)
    if found != origin.sha256:
        raise IncompatibleCheckpoint(
            f"{path}: SHA-256 {found}, recorded at its import {origin.sha256}: delete it and import {origin.name} again"
        )
    return load_supernet(path)


def _keep(found: Imported, path: Path, folder: Path, name: str = "", source: str = "") -> Imported:
    """Write what `path` held, unless the folder is another import's or another program's."""
    target, origin = folder / (SUPERNET if isinstance(found, Supernet) else PREDICTOR), read_origin(folder)
    of_source = sha256(path)
    if origin is not None and (origin.file, origin.source_sha256) != (target.name, of_source):
        raise InvalidConfiguration(f"{folder} already holds {origin.file} of {origin.name}: choose another folder")
    if origin is None and target.exists():
        raise InvalidConfiguration(
            f"{folder} already holds a {target.name} that was not imported: choose another folder"
        )
    if isinstance(found, Supernet):
        save_supernet(target, found)
    else:
        found.save(target)
    origin = Origin(name or path.name, source or path.name, of_source, target.name, sha256(target))
    write_json(folder / "manifest.json", {"format": FORMAT, **to_json(origin)})
    return found
