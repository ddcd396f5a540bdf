import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torch import Tensor

from onceforall.data import augment
from onceforall.data.augment import augment_picture, centre_crop, flip_and_shift, jitter, random_resized_crop

HEIGHT, WIDTH = 12, 16


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def maps(count: int) -> Tensor:
    """Images that say where each pixel came from: its row, its column, and which image."""
    rows = torch.arange(HEIGHT)[:, None].expand(HEIGHT, WIDTH)
    columns = torch.arange(WIDTH)[None, :].expand(HEIGHT, WIDTH)
    images = torch.stack([rows, columns, rows]).to(torch.uint8).repeat(count, 1, 1, 1)
    images[:, 2] = torch.arange(count, dtype=torch.uint8)[:, None, None]
    return images


def shifted(size: int, margin: int) -> dict[tuple[int, ...], int]:
    """Every row of positions that a shift with reflected edges can give, and its shift."""
    padded = np.pad(np.arange(size), margin, mode="reflect")
    return {tuple(padded[start : start + size].tolist()): start - margin for start in range(2 * margin + 1)}


def test_images_keep_their_shape_type_and_place_in_the_batch() -> None:
    images = maps(8)
    augmented = flip_and_shift(images, generator())
    assert augmented.dtype == torch.uint8
    assert augmented.shape == images.shape
    assert torch.equal(augmented[:, 2], images[:, 2])


def test_the_input_is_left_alone() -> None:
    images = maps(8)
    flip_and_shift(images, generator())
    assert torch.equal(images, maps(8))


@pytest.mark.parametrize("margin", [1, 4])
def test_an_image_is_shifted_within_the_margin_and_may_be_mirrored(margin: int) -> None:
    row_shifts, column_shifts, mirrored = [], [], []
    for image in flip_and_shift(maps(250), generator(), margin):
        rows, columns = image[0], image[1]
        assert torch.equal(rows, rows[:, :1].expand_as(rows))
        assert torch.equal(columns, columns[:1].expand_as(columns))
        row_shifts.append(shifted(HEIGHT, margin)[tuple(rows[:, 0].tolist())])
        line = columns[0].tolist()
        mirrored.append(tuple(line) not in shifted(WIDTH, margin))
        column_shifts.append(shifted(WIDTH, margin)[tuple(line[::-1] if mirrored[-1] else line)])
    assert set(row_shifts) == set(column_shifts) == set(range(-margin, margin + 1))
    assert np.mean(mirrored) == pytest.approx(0.5, abs=0.15)
    assert abs(np.corrcoef(row_shifts, column_shifts)[0, 1]) < 0.3


def test_equal_generators_give_equal_images() -> None:
    assert torch.equal(flip_and_shift(maps(50), generator(3)), flip_and_shift(maps(50), generator(3)))


def test_other_generators_give_other_images() -> None:
    assert not torch.equal(flip_and_shift(maps(50), generator(3)), flip_and_shift(maps(50), generator(4)))


def test_draws_come_from_the_generator_alone() -> None:
    first, second = generator(3), generator(3)
    flip_and_shift(maps(50), first)
    torch.manual_seed(123)
    again = flip_and_shift(maps(50), second)
    assert torch.equal(again, flip_and_shift(maps(50), generator(3)))
    assert not torch.equal(again, flip_and_shift(maps(50), first))  # the generator moved on


# Single pictures


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def ramp(width: int, height: int) -> Image.Image:
    """Red grows from left to right, green from top to bottom, each from 0 to 250."""
    red, green = np.meshgrid(np.linspace(0, 250, width), np.linspace(0, 250, height))
    return Image.fromarray(np.stack([red, green, np.zeros_like(red)], axis=2).round().astype(np.uint8))


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(draws().integers(0, 256, (height, width, 3), dtype=np.uint8))


def plain(*colour: int) -> Image.Image:
    return Image.new("RGB", (4, 4), colour)


def pixels(picture: Image.Image) -> NDArray[np.float64]:
    return np.asarray(picture).astype(np.float64)


@settings(deadline=None)
@given(width=st.integers(40, 600), height=st.integers(40, 600), seed=st.integers(0, 2**32))
def test_a_crop_lies_in_the_picture_within_the_bounds_of_area_and_ratio(width: int, height: int, seed: int) -> None:
    left, top, right, bottom = augment._crop_box((width, height), draws(seed), (0.08, 1.0), (3 / 4, 4 / 3))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    across, down = right - left, bottom - top  # each rounded to a whole pixel
    assert (across + 0.5) * (down + 0.5) >= 0.08 * width * height
    assert (across + 0.5) / (down - 0.5) >= 3 / 4
    assert (across - 0.5) / (down + 0.5) <= 4 / 3


def test_crops_cover_all_areas_ratios_and_places() -> None:
    rng = draws()
    boxes = np.array([augment._crop_box((400, 400), rng, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(3000)])
    across, down = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    shares, aspects = across * down / 160_000, np.log(across / down)
    # A crop of 60 % fits whatever its ratio: up to there, all areas are equally likely.
    small = shares[shares < 0.6]
    assert np.histogram(small, 4, (0.08, 0.6))[0] == pytest.approx(len(small) / 4, rel=0.15)
    assert (shares.min(), shares.max()) == (pytest.approx(0.08, abs=0.01), pytest.approx(1, abs=0.03))
    fitting = aspects[shares < 0.6]
    bounds = (-np.log(4 / 3), np.log(4 / 3))
    assert np.histogram(fitting, 4, bounds)[0] == pytest.approx(len(fitting) / 4, rel=0.15)
    # Places are uniform among those that fit: the share of the free room to the left and above.
    roomy = (across < 350) & (down < 350)
    for start, side in ((boxes[roomy, 0], across[roomy]), (boxes[roomy, 1], down[roomy])):
        assert np.histogram(start / (400 - side), 4, (0, 1))[0] == pytest.approx(roomy.sum() / 4, rel=0.15)


@pytest.mark.parametrize(
    ("size", "box"), [((1000, 12), (492, 0, 508, 12)), ((12, 1000), (0, 492, 12, 508)), ((1, 1), (0, 0, 1, 1))]
)
def test_where_no_crop_fits_the_largest_central_one_within_the_ratio_is_taken(
    size: tuple[int, int], box: tuple[int, ...]
) -> None:
    assert augment._crop_box(size, draws(), (0.9, 1.0), (3 / 4, 4 / 3)) == box


@pytest.mark.parametrize("side", [100, 256, 2000])
def test_a_crop_shows_the_part_that_was_drawn(side: int) -> None:
    picture = ramp(side, side)
    for seed in range(5):
        left, top, right, bottom = augment._crop_box((side, side), draws(seed), (0.08, 1.0), (3 / 4, 4 / 3))
        crop = pixels(random_resized_crop(picture, 32, draws(seed)))
        centres = (np.arange(32) + 0.5) / 32
        columns = (left + centres * (right - left) - 0.5) * 250 / (side - 1)
        rows = (top + centres * (bottom - top) - 0.5) * 250 / (side - 1)
        inner = slice(1, -1)  # at a picture's edge there is nothing beyond to average with
        assert abs(crop[..., 0] - columns)[inner, inner].max() < 1.5
        assert abs(crop[..., 1] - rows[:, None])[inner, inner].max() < 1.5


def test_crops_keep_to_the_given_scale_and_ratio() -> None:
    assert np.array_equal(
        pixels(random_resized_crop(noise(32, 32), 32, draws(), scale=(1, 1), ratio=(1, 1))), pixels(noise(32, 32))
    )


def test_half_of_the_pictures_are_mirrored() -> None:
    rng = draws()
    slopes = [np.diff(pixels(augment_picture(ramp(64, 64), 8, rng))[..., 0].mean(0)).mean() for _ in range(300)]
    assert np.mean(np.array(slopes) < 0) == pytest.approx(0.5, abs=0.1)


def test_augmented_pictures_are_rgb_of_the_resolution() -> None:
    augmented = augment_picture(noise(50, 37), 24, draws())
    assert (augmented.mode, augmented.size) == ("RGB", (24, 24))


def test_augmentation_depends_on_the_generator_alone_and_leaves_the_picture_alone() -> None:
    picture = noise(50, 37)
    first = pixels(augment_picture(picture, 24, draws(1)))
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    assert np.array_equal(first, pixels(augment_picture(picture, 24, draws(1))))
    assert not np.array_equal(first, pixels(augment_picture(picture, 24, draws(2))))
    assert np.array_equal(pixels(picture), pixels(noise(50, 37)))


def test_colours_are_part_of_the_augmentation() -> None:
    rng = draws()
    assert len({augment_picture(plain(120, 100, 60), 4, rng).getpixel((0, 0)) for _ in range(20)}) > 10


def test_brightness_changes_by_an_eighth_at_most() -> None:
    rng = draws()
    factors = np.array([pixels(jitter(plain(200, 200, 200), rng)).mean() / 200 for _ in range(500)])
    assert 1 - 32 / 255 - 0.005 <= factors.min() < 0.89
    assert 1.11 < factors.max() <= 1 + 32 / 255 + 0.005
    assert factors.mean() == pytest.approx(1, abs=0.02)


def test_saturation_changes_by_a_half_at_most() -> None:
    rng = draws()

    def saturation(picture: Image.Image) -> float:
        red, green, blue = pixels(picture)[0, 0]
        return float((red - blue) / (0.299 * red + 0.587 * green + 0.114 * blue))

    colour = plain(150, 120, 90)
    factors = np.array([saturation(jitter(colour, rng)) / saturation(colour) for _ in range(500)])
    assert 0.47 <= factors.min() < 0.55
    assert 1.45 < factors.max() <= 1.53
    assert factors.mean() == pytest.approx(1, abs=0.05)


def test_strengths_of_the_jitter_can_be_given() -> None:
    picture = plain(150, 120, 90)
    assert np.array_equal(pixels(jitter(picture, draws(), brightness=0, saturation=0)), pixels(picture))


def test_brightness_and_saturation_change_in_either_order(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in ("Brightness", "Color"):
        original = getattr(ImageEnhance, name)
        monkeypatch.setattr(
            ImageEnhance,
            name,
            lambda picture, name=name, original=original: done.append(name) or original(picture),
        )
    rng = draws()
    for _ in range(200):
        jitter(plain(150, 120, 90), rng)
    orders = list(zip(done[::2], done[1::2], strict=True))
    assert set(orders) == {("Brightness", "Color"), ("Color", "Brightness")}
    assert orders.count(("Brightness", "Color")) == pytest.approx(100, abs=30)


@pytest.mark.parametrize("resolution", [32, 100, 224])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (300, 300), (40, 700), (123, 457)])
def test_a_centre_crop_is_a_resize_and_a_crop(size: tuple[int, int], resolution: int) -> None:
    picture = noise(*size)
    short = math.ceil(resolution / 0.875)
    scaled = tuple(short if side == min(size) else int(short * side / min(size)) for side in size)
    left, top = (round((side - resolution) / 2) for side in scaled)
    whole = picture.resize(scaled, Image.Resampling.BILINEAR)
    expected = whole.crop((left, top, left + resolution, top + resolution))
    found = centre_crop(picture, resolution)
    assert found.size == (resolution, resolution)
    assert abs(pixels(found) - pixels(expected)).max() <= 1


def test_a_centre_crop_keeps_seven_eighths_of_the_shorter_side() -> None:
    columns = pixels(centre_crop(ramp(512, 256), 224))[112, :, 0]
    # The shorter side becomes 256 px: of 512 columns, 144 to 367 are left, of values 250 / 511 apart.
    assert columns == pytest.approx((144 + np.arange(224)) * 250 / 511, abs=1)


@pytest.mark.parametrize(("height", "width", "margin"), [(1, 1, 0), (3, 9, 2), (4, 4, 3)])
def test_images_smaller_than_the_margin_are_shifted_less(height: int, width: int, margin: int) -> None:
    images = torch.randint(0, 256, (50, 3, height, width), dtype=torch.uint8)
    shifted = flip_and_shift(images, torch.Generator().manual_seed(0))
    assert torch.equal(shifted, flip_and_shift(images, torch.Generator().manual_seed(0), margin))
    assert shifted.shape == images.shape
