import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from onceforall.data.dataset import SPLITS, ImageData, Split
from onceforall.errors import InvalidConfiguration

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.1)


def data_of(train: int, test: int = 7, size: int = 1) -> ImageData:
    """Images whose every pixel is their position modulo 256, and whose class is their position."""

    def images(count: int) -> Tensor:
        return (torch.arange(count) % 256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, size, size).contiguous()

    return ImageData("positions", images(train), torch.arange(train), images(test), torch.arange(test), 10, MEAN, STD)


@pytest.mark.parametrize(
    ("count", "train", "calibrate", "label"), [(20, 18, 1, 2), (605, 545, 31, 60), (50_000, 45_000, 2_000, 5_000)]
)
def test_splits_have_the_documented_sizes(count: int, train: int, calibrate: int, label: int) -> None:
    data = data_of(count)
    assert [len(data.indices[split]) for split in SPLITS] == [train, calibrate, label, 7]


def test_splits_follow_the_documented_rule() -> None:
    indices = data_of(100).indices
    assert indices["label"].tolist() == list(range(9, 100, 10))
    assert indices["calibrate"].tolist() == [0, 20, 40, 60, 80]
    assert indices["test"].tolist() == list(range(7))


@pytest.mark.parametrize("count", [20, 605])
def test_label_images_are_never_trained_on_nor_calibrated_with(count: int) -> None:
    train, calibrate, label = (set(data_of(count).indices[s].tolist()) for s in ("train", "calibrate", "label"))
    assert not label & train
    assert label | train == set(range(count))
    assert calibrate < train


@pytest.mark.parametrize("split", SPLITS)
def test_images_and_classes_of_a_split_belong_together(split: Split) -> None:
    data = data_of(100)
    pixels = data.images(split, 1)[:, 0, 0, 0] * STD[0] * 255 + MEAN[0] * 255
    assert_close(pixels, data.labels(split).float())
    assert torch.equal(data.labels(split), data.indices[split])


def test_description_gives_sizes_and_the_rule() -> None:
    described = data_of(600).describe()
    assert described["name"] == "positions"
    assert described["splits"] == {"train": 540, "calibrate": 30, "label": 60, "test": 7}
    assert "p % 10 == 9" in described["rule"]


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(20, 3, 4, 4), torch.zeros(20)),
        (torch.zeros(20, 4, 4, dtype=torch.uint8), torch.zeros(20)),
        (torch.zeros(20, 1, 4, 4, dtype=torch.uint8), torch.zeros(20)),
        (torch.zeros(20, 3, 4, 4, dtype=torch.uint8), torch.zeros(19)),
    ],
    ids=["floats", "no channels", "grey", "a class too few"],
)
def test_images_of_a_wrong_form_are_refused(images: Tensor, labels: Tensor) -> None:
    good = torch.zeros(20, 3, 4, 4, dtype=torch.uint8), torch.zeros(20)
    for train, test in (((images, labels), good), (good, (images, labels))):
        with pytest.raises(InvalidConfiguration, match=r"expected uint8 \[n, 3, h, w\] and n labels"):
            ImageData("wrong", *train, *test, 10, MEAN, STD)


def test_too_few_training_images_are_refused() -> None:
    with pytest.raises(InvalidConfiguration, match="19 training images: at least 20 are needed"):
        data_of(19)


# Preparation


def test_preparation_normalises_each_channel() -> None:
    images = torch.full((2, 3, 4, 4), 51, dtype=torch.uint8)
    expected = torch.tensor([(0.2 - mean) / std for mean, std in zip(MEAN, STD, strict=True)])
    assert_close(data_of(20).prepare(images, 4), expected.view(3, 1, 1).expand(2, 3, 4, 4))


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
