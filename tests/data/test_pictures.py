import itertools
import multiprocessing
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from onceforall.data import pictures as module
from onceforall.data.augment import centre_crop
from onceforall.data.batches import Batch, BatchPlan
from onceforall.data.dataset import SPLITS, split_positions
from onceforall.data.folder import ImageFolder
from onceforall.data.pictures import PictureData
from onceforall.errors import DataUnavailable, InvalidConfiguration, OFAError
from onceforall.nn.supernet import Network, Supernet
from onceforall.space import SearchSpace
from onceforall.training.recipe import finetune
from onceforall.training.trainer import train

CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Pairs = list[tuple[Image.Image, int]]


def noise(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def noisy(count: int) -> Pairs:
    """What any map-style data set looks like from outside: pictures and classes by position."""
    return [(noise(position), position % 3) for position in range(count)]


def plain(count: int) -> Pairs:
    """Pictures whose every pixel is their position, and whose class is their position."""
    return [(Image.new("RGB", (8, 8), (position, position, position)), position) for position in range(count)]


def small(picture: Image.Image, resolution: int, rng: np.random.Generator) -> Image.Image:
    """No augmentation."""
    return picture.resize((resolution, resolution))


def plain_data(**options: Any) -> PictureData:
    """Normalisation leaves a picture's position in its pixels."""
    unit = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
    return PictureData("plain", plain(60), plain(7), 60, **{"workers": 0, "augment": small, **unit, **options})


def noisy_data(workers: int = 0, **options: Any) -> PictureData:
    return PictureData("noisy", noisy(60), noisy(7), 3, **{"workers": workers, **options})


def plan_of(**options: Any) -> BatchPlan:
    return BatchPlan(**{"images": 54, "batch_size": 20, "resolutions": (16, 24), "seed": 0, "phase": 0, **options})


def trained(data: PictureData, plan: BatchPlan, first: int = 0, last: int = 5) -> list[tuple[Tensor, Tensor]]:
    return list(data.training(plan.batches(first, last), CPU))


def equal(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty-four pictures in two classes."""
    for label, position in itertools.product(("a", "b"), range(12)):
        (tmp_path / label).mkdir(exist_ok=True)
        noise(position).save(tmp_path / label / f"{position:02}.png")
    return tmp_path


# Training


def test_training_follows_the_plan() -> None:
    data, batches = plain_data(), list(plan_of().batches(0, 4))
    train = split_positions(60)["train"]
    for batch, (images, labels) in zip(batches, data.training(batches, CPU), strict=True):
        assert labels.tolist() == train[batch.positions].tolist()
        expected = labels.float().view(-1, 1, 1, 1).expand(-1, 3, batch.resolution, batch.resolution)
        assert_close(images, expected, atol=1e-3, rtol=0)


def test_batches_are_normalised_floats_in_channels_last_and_whole_numbers() -> None:
    data = PictureData("one", plain(60), plain(7), 60, workers=0, augment=small)
    images, labels = next(data.training(plan_of().batches(0, 1), CPU))
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert images.is_contiguous(memory_format=torch.channels_last)
    expected = (labels.float()[:, None] / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    assert_close(images[:, :, 3, 5], expected)


def test_colours_stay_in_their_channels() -> None:
    red = [(Image.new("RGB", (8, 8), (250, 100, 10)), 0)] * 20
    data = PictureData("red", red, red, 1, (0, 0, 0), (1, 1, 1), workers=0, augment=small)
    images, _ = next(data.training(plan_of(images=18, batch_size=2).batches(0, 1), CPU))
    assert_close(images[1, :, 0, 0] * 255, torch.tensor([250.0, 100.0, 10.0]))


def test_rows_and_columns_stay_rows_and_columns() -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[0], pixels[:, 0, 1] = (9, 0, 0), 7  # the top row red, the left column green as well
    data = replace(plain_data(), train=[(Image.fromarray(pixels), 0)] * 20)
    images, _ = next(data.training([Batch(np.array([0]), 16, 0, slice(0, 1))], CPU))
    assert images[0, 0, 0].round().tolist() == [9.0] * 16
    assert images[0, 1, :, 0].round().tolist() == [7.0] * 16


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same_batches(workers: int) -> None:
    alone, shared = noisy_data(0), noisy_data(workers)
    assert equal(trained(alone, plan_of()), trained(shared, plan_of()))
    assert equal(list(alone.batches("label", 16, 4)), list(shared.batches("label", 16, 4)))
    for first, second in zip(alone.calibration(16), shared.calibration(16), strict=True):
        assert torch.equal(first, second)


def test_workers_that_are_not_forked_give_the_same_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = PictureData("folder", ImageFolder(folder), ImageFolder(folder), 2, workers=0)
    plan = plan_of(images=22)
    alone = trained(data, plan, 0, 2)
    monkeypatch.setattr("onceforall.data.folder.undecoded", None)  # a forked worker would have this
    assert equal(alone, trained(replace(data, workers=1, start_method="forkserver"), plan, 0, 2))
    with pytest.raises(DataUnavailable, match="'NoneType' object is not callable"):
        trained(replace(data, workers=1, start_method="fork"), plan, 0, 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plan_goes_on_in_the_middle(workers: int) -> None:
    data = noisy_data(workers)
    assert equal(trained(data, plan_of(), 0, 5)[3:], trained(data, plan_of(), 3, 5))


def test_the_parts_of_two_processes_are_the_batch() -> None:
    data = noisy_data()
    whole = trained(data, plan_of())
    ranks = [trained(data, plan_of(rank=rank, world=2)) for rank in (0, 1)]
    joined = [tuple(torch.cat(pair) for pair in zip(*shares, strict=True)) for shares in zip(*ranks, strict=True)]
    assert equal(whole, joined)


def test_only_the_part_of_this_process_is_decoded() -> None:
    asked: list[int] = []

    class Recording(list[tuple[Image.Image, int]]):
        def __getitem__(self, index: Any) -> Any:
            asked.append(index)
            return super().__getitem__(index)

    data = replace(plain_data(), train=Recording(plain(60)))
    batch = next(plan_of(rank=1, world=2).batches(0, 1))
    (_, labels), *_ = data.training([batch], CPU)
    assert asked == labels.tolist() == data.positions["train"][batch.positions[10:]].tolist()


def test_a_part_without_pictures_is_an_empty_batch() -> None:
    batch = Batch(np.arange(4), 16, 0, slice(4, 8))
    ((images, labels),) = plain_data().training([batch], CPU)
    assert (images.shape, labels.shape) == ((0, 3, 16, 16), (0,))


def test_the_seed_of_a_batch_and_the_place_in_it_decide_the_augmentation() -> None:
    data = noisy_data()

    def of(positions: list[int], seed: int) -> Tensor:
        ((images, _),) = data.training([Batch(np.array(positions), 16, seed, slice(0, len(positions)))], CPU)
        return images

    first = of([5, 5, 7], seed=1)
    assert torch.equal(first, of([5, 5, 7], seed=1))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], of([5], seed=2)[0])
    assert torch.equal(first[0], of([5, 9], seed=1)[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_no_random_numbers_but_our_own_are_drawn(workers: int) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    first = trained(noisy_data(workers), plan_of())
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    torch.rand(1)
    assert equal(first, trained(noisy_data(workers), plan_of()))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_long_plan_is_read_a_little_ahead(workers: int) -> None:
    read = 0

    def endless() -> Iterator[Batch]:
        nonlocal read
        for batch in plan_of().batches(0, 10**9):
            read += 1
            yield batch

    batches = noisy_data(workers).training(endless(), CPU)
    for step in range(1, 20):
        next(batches)
        assert step <= read <= step + 4
    batches.close()


def test_an_empty_plan_gives_nothing() -> None:
    assert list(noisy_data(2).training([], CPU)) == []


# Workers


def children() -> set[int]:
    """Processes that this one started and that have not been collected."""
    lists = [path.read_text().split() for path in Path(f"/proc/{os.getpid()}/task").glob("*/children")]
    return {int(child) for child in itertools.chain.from_iterable(lists)}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads the processes from /proc")
@pytest.mark.parametrize("end", ["closed", "dropped", "at its end", "failed"])
def test_no_worker_outlives_its_iterator(end: str) -> None:
    before = children()
    data = noisy_data(2)
    if end == "failed":
        data.train[17] = (Image.new("RGB", (8, 8)), 99)  # type: ignore[index]
    batches = data.training(plan_of().batches(0, 10**6 if end in ("closed", "dropped") else 4), CPU)
    if end != "failed":
        next(batches)
        assert len(children() - before) == 2
    if end == "closed":
        batches.close()
    elif end == "dropped":
        del batches
    elif end == "at its end":
        assert len(list(batches)) == 3
    else:
        # The error is still held here, and with it a traceback.
        with pytest.raises(DataUnavailable) as error:
            list(batches)
        assert "class 99" in str(error.value)
    assert children() == before
    assert multiprocessing.active_children() == []


def test_a_core_each_but_no_more_than_eight_workers_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    original = module.work_ahead

    def record(function: Any, works: Any, workers: int, ahead: int, method: Any) -> Any:
        started.append(workers)
        return original(function, works, 0, ahead, method)

    monkeypatch.setattr(module, "work_ahead", record)
    for cores in (1, 5, 64):
        monkeypatch.setattr(module, "_cores", lambda cores=cores: cores)
        next(noisy_data(workers=None).batches("test", 16))  # type: ignore[arg-type]
    next(noisy_data(workers=12).batches("test", 16))
    assert started == [1, 5, 8, 12]


def test_processes_of_torchrun_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    found = []
    for processes in ("1", "4", "16"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        found.append(module._cores())
    assert found == [8, 2, 1]


def threads(picture: Image.Image, resolution: int, rng: np.random.Generator) -> Image.Image:
    """Torch's threads, as a colour."""
    return Image.new("RGB", (resolution, resolution), (torch.get_num_threads(), 0, 0))


def test_a_worker_has_one_thread() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        images, _ = next(plain_data(workers=1, augment=threads).training(plan_of().batches(0, 1), CPU))
    finally:
        torch.set_num_threads(before)
    assert_close(images[:, 0], torch.ones(images[:, 0].shape))


# Pictures that are not plain RGB


def test_an_augmentation_is_given_rgb() -> None:
    modes: list[str] = []

    def record(picture: Image.Image, resolution: int, rng: np.random.Generator) -> Image.Image:
        modes.append(picture.mode)
        return picture.resize((resolution, resolution))

    grey = [(Image.new("L", (8, 8), position), position) for position in range(60)]
    data = replace(plain_data(augment=record), train=grey)
    images, labels = next(data.training(plan_of().batches(0, 1), CPU))
    assert set(modes) == {"RGB"}
    assert_close(images[:, 2, 0, 0], labels.float())


def test_an_augmentation_may_give_grey() -> None:
    data = plain_data(augment=lambda picture, resolution, rng: picture.resize((resolution, resolution)).convert("L"))
    images, labels = next(data.training(plan_of().batches(0, 1), CPU))
    assert_close(images[:, 2, 0, 0], labels.float())


# Trouble


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (truncate, "truncated"),
    "no picture": (lambda path: path.write_text("a picture?"), "cannot identify"),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_training_picture_is_passed_over_and_named_once(folder: Path, damage: str, workers: int) -> None:
    data = PictureData("folder", ImageFolder(folder), ImageFolder(folder), 2, workers=workers)
    damaged = folder / "b" / "03.png"  # position 15
    harm, reason = DAMAGE[damage]
    harm(damaged)
    plan = plan_of(images=22, batch_size=22)
    with pytest.warns(UserWarning, match=reason) as warned:
        found = trained(data, plan, 0, 3)
    assert [str(warning.message).startswith(f"{damaged} cannot be decoded (") for warning in warned] == [True]
    noise(16 - 12).save(damaged)  # the next training picture in its place
    whole = PictureData("folder", ImageFolder(folder), ImageFolder(folder), 2, workers=workers)
    assert equal(found, trained(whole, plan, 0, 3))
    harm(damaged)
    again = PictureData("folder", ImageFolder(folder), ImageFolder(folder), 2, workers=workers)
    with pytest.warns(UserWarning, match=reason):
        assert equal(found[1:], trained(again, plan, 1, 3))


def test_no_held_out_picture_stands_in(folder: Path) -> None:
    data = PictureData("folder", ImageFolder(folder), ImageFolder(folder), 2, workers=0)
    for position in (8, 18):  # label pictures are 9 and 19, "b/07.png"
        truncate(folder / data.held_out()["calibrate"][position - (position > 9)])
    with pytest.warns(UserWarning, match="cannot be decoded"):
        images, labels = next(data.training([Batch(np.array([8, 17]), 16, 0, slice(0, 2))], CPU))
    whole = PictureData("folder", ImageFolder(folder), ImageFolder(folder), 2, workers=0)
    expected, _ = next(whole.training([Batch(np.array([9, 18]), 16, 0, slice(0, 2))], CPU))
    assert torch.equal(images, expected)
    assert labels.tolist() == [0, 1]


def test_training_ends_where_most_pictures_are_damaged(folder: Path) -> None:
    data = PictureData("folder", ImageFolder(folder), ImageFolder(folder), 2, workers=0)
    for path in folder.glob("*/*.png"):
        truncate(path)
    with pytest.raises(DataUnavailable, match="and the 10 training pictures after it cannot be decoded"):
        trained(data, plan_of(images=22), 0, 1)


def test_training_ends_where_many_pictures_are_damaged() -> None:
    broken = Image.new("La", (8, 8))  # a mode that Pillow cannot convert
    many = [(broken if position % 4 == 0 else picture, label) for position, (picture, label) in enumerate(noisy(60))]
    data = replace(noisy_data(), train=many)
    with (
        pytest.warns(UserWarning, match="its neighbour is trained on in its place"),
        pytest.raises(
            DataUnavailable, match=r"1\d of 54 training pictures cannot be decoded, picture \d+, .* among them"
        ),
    ):
        trained(data, plan_of(), 0, 2)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_held_out_picture_is_named(folder: Path, damage: str, workers: int) -> None:
    data = PictureData("folder", ImageFolder(folder), ImageFolder(folder), 2, workers=workers)
    harm, reason = DAMAGE[damage]
    harm(folder / "b" / "03.png")
    with pytest.raises(DataUnavailable) as error:
        list(data.batches("test", 16))
    message = str(error.value)
    assert message.startswith(f"{folder / 'b' / '03.png'} cannot be decoded: ")
    assert message.endswith("; put a whole copy of it in its place")
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_gone_is_named_and_not_passed_over(folder: Path, workers: int) -> None:
    data = PictureData("folder", ImageFolder(folder), ImageFolder(folder), 2, workers=workers)
    (folder / "b" / "03.png").unlink()
    with pytest.raises(DataUnavailable, match=r"b/03.png cannot be read: No such file or directory; put it back"):
        trained(data, plan_of(images=22, batch_size=22), 0, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_all_damaged_label_and_test_pictures_are_found_at_once(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, workers: int
) -> None:
    tests = tmp_path_factory.mktemp("tests")
    for path in sorted(folder.glob("*/*.png")):
        (tests / path.parent.name).mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("RGB").resize((400, 300)).save(tests / path.parent.name / f"{path.stem}.jpg")
    data = PictureData("folder", ImageFolder(folder), ImageFolder(tests), 2, workers=workers)
    data.check()
    for path in (folder / "a" / "09.png", tests / "a" / "03.jpg", tests / "b" / "07.jpg", folder / "a" / "00.png"):
        truncate(path)
    with pytest.raises(DataUnavailable) as error:
        data.check()
    message = str(error.value)
    assert message.startswith("3 of the label and test pictures cannot be decoded: ")
    assert "Put whole copies in their place, or take them out of the folder" in message
    assert all(name in message for name in ("a/09.png (", "a/03.jpg (", "b/07.jpg ("))


def test_a_damaged_picture_without_a_name_is_told_by_its_position() -> None:
    broken = Image.new("La", (8, 8))  # a mode that Pillow cannot convert
    data = replace(plain_data(), test=[*plain(6), (broken, 1)])
    with pytest.raises(DataUnavailable, match=r"picture 6 cannot be decoded: .*not supported"):
        list(data.batches("test", 16))


@pytest.mark.parametrize("label", [-1, 3])
def test_a_class_out_of_range_is_refused(label: int) -> None:
    data = replace(noisy_data(), test=[(noise(0), 0), (noise(1), label)])
    with pytest.raises(DataUnavailable, match=f"picture 1 is of class {label}; with 3 classes, 0 to 2 are allowed"):
        list(data.batches("test", 16))


def oblong(picture: Image.Image, resolution: int, rng: np.random.Generator) -> Image.Image:
    return picture.resize((resolution, 9))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_augmentation_of_the_wrong_size_is_refused(workers: int) -> None:
    with pytest.raises(InvalidConfiguration, match=r"^augmentation made a picture of 16 x 9 px, not 16 x 16"):
        trained(plain_data(augment=oblong, workers=workers), plan_of(resolutions=[16]))


def test_errors_of_an_augmentation_come_through() -> None:
    def fail(picture: Image.Image, resolution: int, rng: np.random.Generator) -> Image.Image:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        trained(plain_data(augment=fail), plan_of())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes 0: expected an integer of at least 1"),
        ({"calibration_images": 0}, "calibration_images 0: expected an integer of at least 1"),
        ({"workers": -1}, "workers -1: expected an integer of at least 0"),
        ({"test": []}, "no test images"),
        ({"train": plain(19)}, "19 training images: at least 20 are needed"),
        ({"std": (1.0, 0.0, 1.0)}, "std .*: expected three finite numbers above 0"),
        ({"mean": (0.5, 0.5)}, "mean .*: expected three numbers from 0 to 1"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OFAError, match=message):
        replace(plain_data(), **options)


# Splits, batches and calibration


def test_splits_hold_the_pictures_of_the_documented_positions() -> None:
    data = plain_data()
    expected = split_positions(60) | {"test": np.arange(7)}
    for split in SPLITS:
        (images, labels), *rest = data.batches(split, 16)
        assert rest == []
        assert labels.tolist() == images[:, 0, 0, 0].round().tolist() == expected[split].tolist()
        assert data.size(split) == len(labels)


def test_batches_are_centre_crops_in_order() -> None:
    data = noisy_data()
    batches = list(data.batches("test", 16, batch_size=3))
    assert [len(labels) for _, labels in batches] == [3, 3, 1]
    crops = torch.stack([torch.from_numpy(np.array(centre_crop(picture, 16))) for picture, _ in data.test])
    expected = (crops.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    images = torch.cat([images for images, _ in batches])
    assert_close(images, expected)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.cat([labels for _, labels in batches]).tolist() == [label for _, label in data.test]


def test_calibration_images_are_decoded_once_a_resolution() -> None:
    data = plain_data(calibration_images=3)
    first = data.calibration(16, batch_size=2)
    assert [len(batch) for batch in first] == [2, 1]
    assert torch.cat(first)[:, 0, 0, 0].round().tolist() == [0.0, 20.0, 40.0]
    data.train.clear()  # type: ignore[attr-defined]
    again = data.calibration(16)
    assert torch.equal(torch.cat(first), torch.cat(again))
    assert again[0].is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(InvalidConfiguration, match="reading picture 0 raised IndexError"):
        data.calibration(20)


def test_what_is_done_to_calibration_batches_does_not_reach_the_next_call() -> None:
    data = plain_data()
    data.calibration(16)[0].zero_()
    assert data.calibration(16)[0].any()


def test_a_changed_data_set_does_not_keep_the_calibration_images_of_the_first() -> None:
    data = plain_data(calibration_images=3)
    data.calibration(16)
    changed = replace(data, train=plain(60)[::-1])
    assert torch.cat(changed.calibration(16))[:, 0, 0, 0].round().tolist() == [59.0, 39.0, 19.0]


def test_calibration_images_come_from_the_whole_set_not_from_its_first_classes() -> None:
    data = replace(plain_data(), train=plain(400), calibration_images=5)
    assert data.positions["calibrate"].tolist() == [0, 80, 160, 240, 320]


# Descriptions


def test_a_description_gives_splits_rule_and_classes() -> None:
    assert plain_data(calibration_images=2).describe() == {
        "name": "plain",
        "splits": {"train": 54, "calibrate": 2, "label": 6, "test": 7},
        "rule": "training position p: label if p % 10 == 9, else train; calibrate: 2, evenly spread, with p % 20 == 0; "
        "test: the test set",
        "classes": 60,
    }


def test_files_and_their_classes_are_part_of_the_description(folder: Path) -> None:
    def described() -> dict[str, Any]:
        return PictureData("folder", ImageFolder(folder), ImageFolder(folder), 2).describe()

    first = described()
    assert len(first["files_sha256"]) == 64
    assert described() == first
    (folder / "a" / "03.png").rename(folder / "a" / "03x.png")
    renamed = described()
    (folder / "a" / "03x.png").rename(folder / "b" / "03x.png")
    moved = described()
    assert len({first["files_sha256"], renamed["files_sha256"], moved["files_sha256"]}) == 3


def test_classes_and_split_of_a_file_are_part_of_the_description(folder: Path) -> None:
    whole = ImageFolder(folder)
    other = ImageFolder(folder)
    other.labels = other.labels[::-1].copy()
    sources: list[tuple[Any, Any]] = [(whole, whole), (other, whole), (whole, other)]
    assert len({PictureData("x", train, test, 2).describe()["files_sha256"] for train, test in sources}) == 3


def test_held_out_pictures_are_named(folder: Path) -> None:
    data = PictureData("folder", ImageFolder(folder), ImageFolder(folder), 2, calibration_images=2)
    assert data.held_out() == {"label": ["a/09.png", "b/07.png"], "calibrate": ["a/00.png", "b/08.png"]}


def test_held_out_pictures_without_names_are_told_by_their_positions() -> None:
    held_out = plain_data(calibration_images=3).held_out()
    assert held_out == {"label": [9, 19, 29, 39, 49, 59], "calibrate": [0, 20, 40]}


def test_the_digest_is_of_names_classes_sizes_and_normalisation(folder: Path) -> None:
    def digest(**options: Any) -> str | None:
        return PictureData("folder", ImageFolder(folder), ImageFolder(folder), 2, **options).digest

    first = digest()
    assert first is not None
    assert len(first) == 64
    assert digest(workers=0, sparse=True, calibration_images=3) == first
    found = {first, digest(mean=(0.4, 0.4, 0.4)), digest(std=(0.4, 0.4, 0.4))}
    path = folder / "a" / "03.png"
    content = path.read_bytes()
    path.write_bytes(content + b"0")
    found.add(digest())
    path.write_bytes(content)
    path.rename(folder / "b" / "03x.png")
    found.add(digest())
    assert len(found) == 5
    data = PictureData("folder", ImageFolder(folder), ImageFolder(folder), 2)
    (folder / "a" / "04.png").unlink()
    with pytest.raises(DataUnavailable, match=r"a/04.png cannot be read: No such file or directory; put it back"):
        _ = data.digest
    assert plain_data().digest is None


def test_classes_of_files_are_checked_when_the_data_set_is_made(folder: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="folder: training image 12 is of class 1, and 11 more are out of"):
        PictureData("folder", Unnamed(folder), Unnamed(folder), 1)
    with pytest.raises(InvalidConfiguration, match="folder: 2 names of classes for 3 classes"):
        PictureData("folder", ImageFolder(folder), ImageFolder(folder), 3)


class Unnamed(ImageFolder):
    """Its classes have no names."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.classes = ()


def test_a_run_does_not_begin_where_a_test_picture_is_damaged(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, tiny_space: SearchSpace
) -> None:
    data = PictureData("folder", ImageFolder(folder), ImageFolder(folder), 2, workers=0)
    truncate(folder / "a" / "03.png")
    run = tmp_path_factory.mktemp("runs") / "run"
    network = Network.of(Supernet(replace(tiny_space, num_classes=2)), tiny_space.smallest())  # type: ignore[call-arg]
    with pytest.raises(DataUnavailable, match=r"1 of the label and test pictures cannot be decoded: .*a/03.png"):
        train(network, data, finetune(1, 8), run)
    assert not (run / "run.json").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_memory_is_no_damaged_picture(workers: int) -> None:
    with pytest.raises(MemoryError):
        list(replace(noisy_data(workers), train=[*noisy(59), (Large(), 0)]).batches("label", 16))


class Large(Image.Image):
    def load(self) -> Any:
        raise MemoryError
