import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from onceforall.data import dataset
from onceforall.data.augment import flip_and_shift
from onceforall.data.batches import Batch, BatchPlan
from onceforall.data.dataset import SPLITS, ImageData, Split, as_described, normalise, split_positions, split_rule
from onceforall.errors import InvalidConfiguration

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.1)
CPU = torch.device("cpu")
IMAGES, CLASSES = torch.zeros(20, 3, 4, 4, dtype=torch.uint8), torch.zeros(20, dtype=torch.int64)


def data_of(train: int, test: int = 7, size: int = 1) -> ImageData:
    """Images whose every pixel is their position modulo 256, and whose class is their position."""

    def images(count: int) -> Tensor:
        return (torch.arange(count) % 256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, size, size).contiguous()

    return ImageData(
        "positions", images(train), torch.arange(train), images(test), torch.arange(test), max(train, test), MEAN, STD
    )


# Splits


@pytest.mark.parametrize(
    ("count", "train", "calibrate", "label"),
    [(20, 18, 18, 2), (605, 545, 545, 60), (3_000, 2_700, 2_000, 300), (50_000, 45_000, 2_000, 5_000)],
)
def test_splits_have_the_documented_sizes(count: int, train: int, calibrate: int, label: int) -> None:
    data = data_of(count)
    assert [len(data.indices[split]) for split in SPLITS] == [train, calibrate, label, 7]


def test_splits_follow_the_documented_rule() -> None:
    indices = data_of(100).indices
    assert indices["label"].tolist() == list(range(9, 100, 10))
    assert torch.equal(indices["calibrate"], indices["train"])
    assert indices["test"].tolist() == list(range(7))


def test_few_training_images_all_calibrate_and_many_give_every_twentieth() -> None:
    train, calibrate, _ = split_positions(400, 1000, spread=True).values()
    assert calibrate.tolist() == train.tolist()
    calibrate = split_positions(1000, 90, spread=True)["calibrate"]
    assert len(calibrate) == 90
    assert (np.diff(calibrate) <= 12).all()  # from the whole set
    assert split_positions(1000, 50)["calibrate"].tolist() == list(range(0, 1000, 20))
    assert split_positions(1000, 90, sparse=True)["calibrate"].tolist() == list(range(0, 1000, 20))
    assert split_positions(50_000)["calibrate"].tolist() == list(range(0, 40_000, 20))


@pytest.mark.parametrize("count", [20, 605])
def test_label_images_are_never_trained_on_nor_calibrated_with(count: int) -> None:
    train, calibrate, label = (set(data_of(count).indices[s].tolist()) for s in ("train", "calibrate", "label"))
    assert not label & train
    assert label | train == set(range(count))
    assert calibrate <= train


@settings(deadline=None)
@given(
    count=st.one_of(st.integers(20, 2000), st.integers(20, 2_000_000)),
    calibration_images=st.integers(1, 3000),
    spread=st.booleans(),
    sparse=st.booleans(),
)
def test_splits_of_any_size_keep_the_documented_bounds(
    count: int, calibration_images: int, spread: bool, sparse: bool
) -> None:
    train, calibrate, label = split_positions(count, calibration_images, spread, sparse).values()
    assert len(train) + len(label) == count
    assert len(label) <= min(10_000, count // 10)
    assert len(label) > min(3_000, count // 20)  # 110,000 images: every 20th, 5,500
    assert len(calibrate) == min(calibration_images, -(-count // 20) if sparse else len(train))
    for chosen in (train, calibrate, label):
        assert (np.diff(chosen) > 0).all()
    assert not np.isin(label, train).any()
    assert np.isin(calibrate, train).all()


def test_label_images_of_a_large_set_are_ten_thousand_at_most() -> None:
    splits = split_positions(1_281_167)
    assert splits["label"].tolist() == list(range(129, 1_281_167, 130))
    assert len(splits["label"]) == 9_855
    assert splits["calibrate"].tolist() == list(range(0, 40_000, 20))
    assert "p % 130 == 129" in split_rule(1_281_167)
    assert [split_positions(count)["label"][0] for count in (100_000, 100_001, 200_000, 200_001)] == [9, 19, 19, 29]


def test_calibration_images_are_the_first_or_spread_over_the_whole_set() -> None:
    assert split_positions(400, 5)["calibrate"].tolist() == [0, 20, 40, 60, 80]
    assert split_positions(400, 5, spread=True)["calibrate"].tolist() == [0, 80, 160, 240, 320]
    assert split_positions(140, 5, spread=True)["calibrate"].tolist() == [0, 20, 40, 80, 100]
    assert split_positions(80, 4, spread=True)["calibrate"].tolist() == [0, 20, 40, 60]


def test_the_rule_of_shipped_labels_has_not_changed() -> None:
    assert split_rule(50_000) == (
        "training position p: label if p % 10 == 9, else train; calibrate: the first 2000 with p % 20 == 0; "
        "test: the test set"
    )
    assert split_rule(50_000, 500, spread=True) == (
        "training position p: label if p % 10 == 9, else train; calibrate: 500, evenly spread, with p % 20 == 0; "
        "test: the test set"
    )


def test_the_rule_says_what_calibrates_where_images_are_few() -> None:
    rules = [split_rule(count, 500, spread=True).split("; ")[1] for count in (500, 1000, 10_000)]
    assert rules == [
        "calibrate: all of train",
        "calibrate: 500 of train, evenly spread",
        "calibrate: 500, evenly spread, with p % 20 == 0",
    ]
    sparse = split_rule(600, 500, spread=True, sparse=True)
    assert sparse == split_rule(50_000, 500, spread=True)


def test_files_of_the_first_version_keep_their_splits() -> None:
    data = data_of(600)
    described = {**replace(data, sparse=True).describe(), "something": "of a later version"}
    older = as_described(data, described)
    assert older.describe()["splits"]["calibrate"] == 30
    assert older.held_out()["calibrate"] == list(range(0, 600, 20))
    assert as_described(older, described).describe() == older.describe()
    large = data_of(40_000)
    for same, theirs in ((data, data.describe()), (data, {}), (data, None), (data, data_of(620).describe())):
        assert as_described(same, theirs) is same
    assert as_described(large, large.describe()) is large


@pytest.mark.parametrize("split", SPLITS)
def test_sizes_are_those_of_the_splits(split: Split) -> None:
    data = data_of(605)
    assert data.size(split) == len(data.labels(split)) == len(data.images(split, 1))


def test_held_out_images_are_told_by_their_positions() -> None:
    assert data_of(60).held_out() == {
        "label": [9, 19, 29, 39, 49, 59],
        "calibrate": [position for position in range(60) if position % 10 != 9],
    }


@pytest.mark.parametrize("split", SPLITS)
def test_images_and_classes_of_a_split_belong_together(split: Split) -> None:
    data = data_of(100)
    pixels = data.images(split, 1)[:, 0, 0, 0] * STD[0] * 255 + MEAN[0] * 255
    assert_close(pixels, data.labels(split).float())
    assert torch.equal(data.labels(split), data.indices[split])


def test_description_gives_sizes_and_the_rule() -> None:
    described = data_of(600).describe()
    assert described["name"] == "positions"
    assert described["splits"] == {"train": 540, "calibrate": 540, "label": 60, "test": 7}
    assert "p % 10 == 9" in described["rule"]


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(20, 3, 4, 4), CLASSES),
        (torch.zeros(20, 4, 4, dtype=torch.uint8), CLASSES),
        (torch.zeros(20, 1, 4, 4, dtype=torch.uint8), CLASSES),
        (torch.zeros(20, 3, 0, 4, dtype=torch.uint8), CLASSES),
        (IMAGES, CLASSES[:19]),
        (IMAGES, CLASSES.float()),
        (IMAGES, CLASSES[:, None]),
    ],
    ids=["floats", "no channels", "grey", "no rows", "a class too few", "classes as floats", "a column of classes"],
)
def test_images_of_a_wrong_form_are_refused(images: Tensor, labels: Tensor) -> None:
    good = IMAGES, CLASSES
    for train, test in (((images, labels), good), (good, (images, labels))):
        with pytest.raises(InvalidConfiguration, match=r"expected uint8 \[n, 3, h, w\] and n labels int64"):
            ImageData("wrong", *train, *test, 10, MEAN, STD)


@pytest.mark.parametrize("wrong", [-100, -1, 10])
def test_classes_out_of_range_are_refused(wrong: int) -> None:
    classes = CLASSES.clone()
    classes[[3, 5]] = wrong
    for split, sets in (("training", (classes, IMAGES, CLASSES)), ("test", (CLASSES, IMAGES, classes))):
        message = f"wrong: {split} image 3 is of class {wrong}, and 1 more .* with 10 classes, 0 to 9 are allowed"
        with pytest.raises(InvalidConfiguration, match=message):
            ImageData("wrong", IMAGES, *sets, 10, MEAN, STD)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_images": IMAGES[:0], "test_labels": CLASSES[:0]}, "positions: no test images"),
        ({"num_classes": 0}, "num_classes 0: expected an integer of at least 1"),
        ({"num_classes": 30.0}, "num_classes 30.0: expected an integer"),
        ({"classes": ("ant", "bee")}, "positions: 2 names of classes for 30 classes"),
        (
            {"std": (0.2, 0.0, 0.2)},
            r"std \(0.2, 0.0, 0.2\): expected three finite numbers above 0, of pixels from 0 to 1",
        ),
        ({"std": (0.2, float("inf"), 0.2)}, "std .*inf.*: expected three finite"),
        ({"std": (0.2, 0.2)}, "std .*: expected three"),
        ({"std": 0.2}, "std 0.2: expected three"),
        ({"mean": (0.5, float("nan"), 0.5)}, "mean .*nan.*: expected three numbers from 0 to 1, of pixels"),
        ({"mean": (123.7, 116.3, 103.5)}, "mean .*: expected three numbers from 0 to 1, of pixels"),
    ],
)
def test_settings_that_would_fail_in_a_run_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfiguration, match=message):
        replace(data_of(30), **options)


def test_a_changed_data_set_keeps_no_images_of_the_first() -> None:
    data = data_of(60)
    before = data.images("test", 1)
    assert not torch.equal(replace(data, test_images=255 - data.test_images).images("test", 1), before)


def test_the_digest_is_of_images_classes_and_normalisation() -> None:
    data = data_of(60)
    same = replace(data, name="other", test_images=data.test_images.clone(), mean=list(MEAN), sparse=True)
    assert len(data.digest) == 64
    assert same.digest == data.digest
    changed = data.train_images.clone()
    changed[7, 1] += 1
    others = [
        {"train_images": changed},
        {"train_labels": data.train_labels.flip(0)},
        {"test_labels": data.test_labels.flip(0)},
        {"test_images": data.test_images[:6], "test_labels": data.test_labels[:6]},
        {"train_images": data.train_images.view(60, 3, 1, 1).expand(60, 3, 1, 2)},
        {"num_classes": 61},
        {"mean": (0.5, 0.4, 0.31)},
        {"std": (0.2, 0.25, 0.11)},
    ]
    assert len({data.digest, *(replace(data, **other).digest for other in others)}) == 9


def test_too_few_training_images_are_refused() -> None:
    with pytest.raises(InvalidConfiguration, match="19 training images: at least 20 are needed"):
        data_of(19)


# Preparation


def test_preparation_normalises_each_channel() -> None:
    images = torch.full((2, 3, 4, 4), 51, dtype=torch.uint8)
    expected = torch.tensor([(0.2 - mean) / std for mean, std in zip(MEAN, STD, strict=True)])
    assert_close(data_of(20).prepare(images, 4), expected.view(3, 1, 1).expand(2, 3, 4, 4))


def test_normalised_images_have_the_given_mean_and_deviation() -> None:
    images = torch.rand(8, 3, 6, 6) * 255
    deviation, mean = torch.std_mean(images / 255, dim=(0, 2, 3))
    normalised = normalise(images, tuple(mean.tolist()), tuple(deviation.tolist()))
    assert_close(torch.std_mean(normalised, dim=(0, 2, 3)), (torch.ones(3), torch.zeros(3)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("resolution", [3, 8, 20])
def test_preparation_resizes_and_keeps_a_plain_image_plain(resolution: int) -> None:
    prepared = data_of(20).prepare(torch.full((2, 3, 8, 8), 100, dtype=torch.uint8), resolution)
    assert prepared.shape == (2, 3, resolution, resolution)
    assert_close(prepared, prepared[:, :, :1, :1].expand_as(prepared))


def test_shrinking_averages_fine_detail() -> None:
    # Stripes with a period of four pixels: interpolation that only looks at the two nearest would see none of them.
    stripes = torch.tensor([255, 0, 0, 255] * 4, dtype=torch.uint8).expand(1, 3, 16, 16)
    inner = data_of(20).prepare(stripes, 4)[0, 0, :, 1:-1]
    assert_close(inner, torch.full_like(inner, (0.5 - MEAN[0]) / STD[0]), atol=0.01, rtol=0)


def test_prepared_images_are_floats_in_channels_last() -> None:
    prepared = data_of(20).prepare(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), 4)
    assert prepared.dtype == torch.float32
    assert prepared.is_contiguous(memory_format=torch.channels_last)


# Batches


def test_prepared_splits_are_kept(tiny_data: ImageData) -> None:
    images = tiny_data.images("label", 16)
    assert tiny_data.images("label", 16) is images
    assert tiny_data.images("label", 20) is not images
    assert_close(images, tiny_data.prepare(tiny_data.train_images[9::10], 16))


def test_batches_hold_a_whole_split_in_order(tiny_data: ImageData) -> None:
    batches = list(tiny_data.batches("test", 16, batch_size=30))
    assert [len(labels) for _, labels in batches] == [30, 30, 30, 10]
    assert torch.equal(torch.cat([images for images, _ in batches]), tiny_data.images("test", 16))
    assert torch.equal(torch.cat([labels for _, labels in batches]), tiny_data.test_labels)


def test_calibration_batches_are_the_calibration_images(tiny_data: ImageData) -> None:
    batches = tiny_data.calibration(16, batch_size=8)
    assert [len(batch) for batch in batches] == [8, 8, 8, 6]
    assert_close(torch.cat(batches), tiny_data.prepare(tiny_data.train_images[::20], 16))


# Training


def plan_of(**options: int) -> BatchPlan:
    return replace(BatchPlan(images=540, batch_size=32, resolutions=(16, 20), seed=0, phase=0), **options)


def test_training_follows_the_plan(tiny_data: ImageData) -> None:
    batches = list(plan_of().batches(5, 9))
    images, labels = tiny_data.train_images[tiny_data.indices["train"]], tiny_data.labels("train")
    for batch, (found, classes) in zip(batches, tiny_data.training(batches, CPU), strict=True):
        augmented = flip_and_shift(images[batch.positions], torch.Generator().manual_seed(batch.seed))
        assert_close(found, tiny_data.prepare(augmented, batch.resolution))
        assert torch.equal(classes, labels[batch.positions])


@pytest.mark.parametrize("world", [2, 4])
def test_the_parts_of_all_processes_are_the_batch(tiny_data: ImageData, world: int) -> None:
    whole = tiny_data.training(plan_of().batches(0, 3), CPU)
    ranks = [tiny_data.training(plan_of(rank=rank, world=world).batches(0, 3), CPU) for rank in range(world)]
    for (images, labels), *shares in zip(whole, *ranks, strict=True):
        assert_close(torch.cat([part for part, _ in shares]), images)
        assert torch.equal(torch.cat([part for _, part in shares]), labels)
        assert {len(part) for _, part in shares} == {32 // world}


def test_a_batch_is_the_same_each_time_and_another_seed_augments_it_otherwise(tiny_data: ImageData) -> None:
    batch = Batch(np.arange(32), 20, seed=1, part=slice(0, 32))
    (first, _), (again, _), (other, _) = tiny_data.training([batch, batch, replace(batch, seed=2)], CPU)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_images_first_asked_for_in_inference_mode_are_fit_for_training(tiny_data: ImageData) -> None:
    data = replace(tiny_data, _prepared={})
    with torch.inference_mode():
        inside = data.images("test", 16)
    assert not inside.is_inference()


# What is kept in memory


@pytest.mark.parametrize(
    ("gigabytes", "limit", "processes", "kept"),
    [(16, "max", 1, 2048), (8, "max", 1, 1024), (64, str(12 << 30), 1, 1536), (64, "max", 8, 1024), (2, "max", 4, 384)],
)
def test_as_much_is_kept_as_memory_allows(
    gigabytes: int, limit: str, processes: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10,000 label pictures of 224 px, which would be decoded for each sub-network, on a machine of 12 GB or more."""
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": gigabytes << 18}.get)
    monkeypatch.setattr(Path, "read_text", lambda self: limit)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert dataset.kept_bytes() == kept << 20
    assert (kept << 20 > 10_000 * 3 * 224 * 224) == (kept >= 1536)


@pytest.mark.parametrize("bound", [0, 10 * 3 * 16 * 4, 1 << 30])
def test_no_more_images_are_kept_than_fit_and_batches_are_the_same(bound: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 images, 10 are labelled; of 4 px, ten take the second bound, and 7 are for the test."""
    whole = data_of(100, size=8)
    expected = {(split, side): list(whole.batches(split, side, 4)) for split in SPLITS for side in (4, 8)}
    data = replace(whole, _prepared={})
    monkeypatch.setattr(dataset, "KEPT_BYTES", bound)
    for _ in range(2):
        for (split, side), batches in expected.items():
            for (images, labels), (ours, theirs) in zip(batches, data.batches(split, side, 4), strict=True):
                assert torch.equal(images, ours)
                assert torch.equal(labels, theirs)
            assert torch.equal(data.images(split, side), whole.images(split, side))
            assert sum(images.nbytes for images, _ in data._prepared.values()) <= bound
