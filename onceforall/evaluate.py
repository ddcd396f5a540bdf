"""Top-1 of a sub-network: extracted, recalibrated, folded, measured on a named split."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from onceforall.architecture import Architecture
from onceforall.data.dataset import ImageData, Split
from onceforall.nn.calibrate import calibrate
from onceforall.nn.subnet import channels_last, fold_batch_norm
from onceforall.nn.supernet import Supernet


@torch.inference_mode()
def top1(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share of images whose class has the largest logit, in percent."""
    correct = count = 0
    for images, labels in batches:
        correct += int((network(images).argmax(1) == labels).sum())
        count += len(labels)
    return 100.0 * correct / count


def specialised(supernet: Supernet, arch: Architecture, data: ImageData) -> nn.Sequential:
    """The extracted network with batch norm recalibrated on the calibration images and folded away.

    In evaluation mode and channels_last: for measuring and exporting, not for training.
    """
    network = calibrate(supernet.extract(arch), data.calibration(arch.resolution))
    return channels_last(fold_batch_norm(network))


def measure_top1(supernet: Supernet, arch: Architecture, data: ImageData, split: Split) -> float:
    """Measured top-1 (percent) of a sub-network on a split, after recalibration."""
    return top1(specialised(supernet, arch, data), data.batches(split, arch.resolution))
