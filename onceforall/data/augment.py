"""Augmentation of whole batches of small images, on the device they live on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def flip_and_shift(images: Tensor, generator: torch.Generator, margin: int = 4) -> Tensor:
    """Mirror each image with probability 1/2 and shift it by up to `margin` px, edges reflected.

    uint8 [n, c, h, w] in and out; `generator` lives on the processor, so that the same draws
    come out on every device.
    """
    count, _, height, width = images.shape
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
