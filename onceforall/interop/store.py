"""What was imported, as our own files: safetensors, with a manifest that names the origin and its SHA-256."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
    path, state = Path(path), read_state(path)
    if predictors.is_predictor(state):
        return _keep_predictor(predictors.predictor_of(state, origin=str(path)), path, Path(folder))
    return _keep_supernet(checkpoints.supernet_of(state, origin=str(path)), path, Path(folder))


def import_supernet(
    path: str | Path, folder: str | Path, *, name: str = "", source: str = "", space: SearchSpace | None = None
) -> Supernet:
    """Read the authors' supernet in a torch file and keep it in `folder` as `supernet.safetensors`.

    `manifest.json` beside it says what it was made from; the folder is then a run folder like those
    of `ofa train`. `name` and `source` (default: the file's name) go into the manifest. Raises
    IncompatibleCheckpoint, InvalidConfiguration where the folder holds another import, UnwritableOutput.
    """
    return _keep_supernet(checkpoints.load_supernet(path, space), Path(path), Path(folder), name, source)


def import_predictor(path: str | Path, folder: str | Path) -> predictors.PublishedPredictor:
    """Read a published accuracy predictor and keep it in `folder` as `predictor.safetensors`, with its manifest.

    Raises IncompatibleCheckpoint, InvalidConfiguration where the folder holds another import, UnwritableOutput.
    """
    return _keep_predictor(predictors.load_predictor(path), Path(path), Path(folder))


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


def _keep_supernet(supernet: Supernet, path: Path, folder: Path, name: str = "", source: str = "") -> Supernet:
    target = _target(folder, SUPERNET, path)
    save_supernet(target, supernet)
    _record(target, path, name, source)
    return supernet


def _keep_predictor(
    predictor: predictors.PublishedPredictor, path: Path, folder: Path
) -> predictors.PublishedPredictor:
    target = _target(folder, PREDICTOR, path)
    predictor.save(target)
    _record(target, path)
    return predictor


def _target(folder: Path, file: str, path: Path) -> Path:
    """Where to write what `path` holds, unless the folder is another import's or another program's."""
    origin = read_origin(folder)
    if origin is not None and (origin.file != file or origin.source_sha256 != sha256(path)):
        raise InvalidConfiguration(f"{folder} already holds {origin.file} of {origin.name}: choose another folder")
    if origin is None and (folder / file).exists():
        raise InvalidConfiguration(f"{folder} already holds a {file} that was not imported: choose another folder")
    return folder / file


def _record(target: Path, path: Path, name: str = "", source: str = "") -> None:
    origin = Origin(name or path.name, source or path.name, sha256(path), target.name, sha256(target))
    write_json(target.parent / "manifest.json", {"format": FORMAT, **to_json(origin)})
