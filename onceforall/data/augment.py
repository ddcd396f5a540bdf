"""What is done to images before a network sees them.

Whole batches of small images, on the device they live on (`flip_and_shift`), and single pictures in
the processes that decode them: `augment_picture` to train (the paper's recipe), `centre_crop` to measure.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.nn import functional as F

from onceforall.sizes import Size, height_width


def flip_and_shift(images: Tensor, generator: torch.Generator, margin: int = 4) -> Tensor:
    """Mirror each image with probability 1/2 and shift it by up to `margin` px (less than its sides), edges reflected.

    uint8 [n, c, h, w] in and out; `generator` lives on the processor, so that the same draws
    come out on every device.
    """
    count, _, height, width = images.shape
    margin = min(margin, height - 1, width - 1)
    draws = torch.randint(0, 2 * margin + 1, (2, count), generator=generator)
    flips = torch.rand(count, generator=generator) < 0.5
    padded = F.pad(images.float(), [margin] * 4, mode="reflect").to(images.dtype)
    rows = draws[0][:, None] + torch.arange(height)
    columns = draws[1][:, None] + torch.arange(width)
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    index = torch.arange(count)
    picked = padded.permute(0, 2, 3, 1)[
        index[:, None, None].to(images.device),
        rows[:, :, None].to(images.device),
        columns[:, None, :].to(images.device),
    ]
    return picked.permute(0, 3, 1, 2)


def augment_picture(picture: Image.Image, resolution: Size, rng: np.random.Generator) -> Image.Image:
    """An RGB picture as the paper trains on it: random crop, mirrored with probability 1/2, colours jittered."""
    picture = random_resized_crop(picture, resolution, rng)
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return jitter(picture, rng)


def random_resized_crop(
    picture: Image.Image,
    resolution: Size,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Image.Image:
    """A random part of the picture, resized to the resolution (bilinear).

    The part's share of the area is uniform in `scale`, the logarithm of its width / height uniform
    in that of `ratio`; where ten draws do not fit, it is the largest central part within `ratio`.
    """
    box = _crop_box(picture.size, rng, scale, ratio)
    # Averages whole pixels first where the part is four times the resolution or more: 2.7 times as fast
    # for a picture of 2,000 px, and nothing changes for one of ImageNet's 500.
    return picture.resize(height_width(resolution)[::-1], Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)


def jitter(
    picture: Image.Image, rng: np.random.Generator, brightness: float = 32 / 255, saturation: float = 0.5
) -> Image.Image:
    """Brightness and saturation of an RGB picture times factors uniform in 1 +- the given, in either order."""
    changes = [(ImageEnhance.Brightness, brightness), (ImageEnhance.Color, saturation)]
    if rng.random() < 0.5:
        changes.reverse()
    for enhance, strength in changes:
        picture = enhance(picture).enhance(rng.uniform(1 - strength, 1 + strength))
    return picture


def centre_crop(picture: Image.Image, resolution: Size) -> Image.Image:
    """The picture for measuring: resized to cover resolution / 0.875 (rounded up), its centre cut out.

    One bilinear resize does both, so pixels that are not kept are never computed.
    """
    wide, high = height_width(resolution)[::-1]
    width, height = picture.size
    least = math.ceil(wide / 0.875), math.ceil(high / 0.875)
    if least[0] * height >= least[1] * width:  # its width is what hardly covers
        scaled = least[0], least[0] * height // width
    else:
        scaled = least[1] * width // height, least[1]
    left, top = (round((side - kept) / 2) for side, kept in zip(scaled, (wide, high), strict=True))
    across, down = width / scaled[0], height / scaled[1]
    box = left * across, top * down, (left + wide) * across, (top + high) * down
    return picture.resize((wide, high), Image.Resampling.BILINEAR, box=box)


def _crop_box(
    size: tuple[int, int], rng: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom (px) of a random part of a picture of `size` (width, height)."""
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < across <= width and 0 < down <= height:
            left, top = int(rng.integers(width - across + 1)), int(rng.integers(height - down + 1))
            return left, top, left + across, top + down
    across, down = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down
