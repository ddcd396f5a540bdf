import numpy as np
import pytest
import torch
from torch import Tensor

from onceforall.data.augment import flip_and_shift

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
