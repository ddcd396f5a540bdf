"""Top-1 of a sub-network: extracted, recalibrated, folded, measured on a named split."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from onceforall.architecture import Architecture
from onceforall.data.dataset import Data, Split
from onceforall.nn.calibrate import calibrate
from onceforall.nn.subnet import channels_last, fold_batch_norm
from onceforall.nn.supernet import Trainable


def device_of(module: nn.Module) -> torch.device:
    """Where a module's tensors are; the processor for one that has none."""
    return next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))


@torch.inference_mode()
def top1(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share of images whose class has the largest logit, in percent."""
    correct = count = 0
    device = device_of(network)
    for images, labels in batches:
        correct += int((network(images.to(device)).argmax(1).cpu() == labels).sum())
        count += len(labels)
    return 100.0 * correct / count


def specialised(supernet: Trainable, arch: Architecture, data: Data) -> nn.Sequential:
    """The extracted network with batch norm recalibrated on the calibration images and folded away.

    In evaluation mode and channels_last: for measuring and exporting, not for training.
    """
    device = device_of(supernet)
    images = [batch.to(device) for batch in data.calibration(arch.resolution)]
    return channels_last(fold_batch_norm(calibrate(supernet.extract(arch), images)))


def measure_top1(supernet: Trainable, arch: Architecture, data: Data, split: Split) -> float:
    """Measured top-1 (percent) of a sub-network on a split, after recalibration."""
    return top1(specialised(supernet, arch, data), data.batches(split, arch.resolution))
