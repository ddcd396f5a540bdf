"""Image classification: which of so many classes an image shows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onceforall.errors import InvalidConfiguration
from onceforall.tasks.task import Score, Task, device_of


def other_classes(net: Any, data: Any) -> str:
    """Where the names of a network's classes differ from those of data, in words; empty where one has no names."""
    theirs, ours = tuple(getattr(net, "classes", ())), tuple(getattr(data, "classes", ()))
    if not theirs or not ours or theirs == ours:
        return ""
    if len(theirs) != len(ours):
        return f"{len(theirs)} there, {len(ours)} here"
    index = next(index for index, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1])
    return f"class {index} is {theirs[index]!r:.50} there, {ours[index]!r:.50} here"


class Classification(Task):
    """Outputs are logits [n, classes], targets classes [n] int64; data have `num_classes`. Score: top-1 in percent.

    Data that name their classes (`classes`) are for networks trained on classes of the same names, in that order.
    """

    name = "classification"
    score = Score("top1", "top-1", "percent")
    loss_name = "cross_entropy"

    def loss(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Cross entropy (nats) with smoothed labels."""
        return F.cross_entropy(outputs.float(), targets, label_smoothing=smoothing)

    @torch.inference_mode()
    def evaluate(self, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Share of images whose class has the largest logit, in percent."""
        correct = count = 0
        device = device_of(network)
        for images, labels in batches:
            correct += int((network(images.to(device)).argmax(1).cpu() == labels).sum())
            count += len(labels)
        return 100.0 * correct / count

    def chance(self, data: Any) -> float:
        """Of guessing among equally frequent classes."""
        return 100.0 / int(data.num_classes)

    def chance_loss(self, data: Any) -> float:
        """The cross entropy of equal logits (nats)."""
        return math.log(data.num_classes)

    def check(self, net: Any, data: Any) -> None:
        """Raises InvalidConfiguration where the classes of a network are not those of the data."""
        if net.num_classes != data.num_classes:
            raise InvalidConfiguration(
                f"{data.name} has {data.num_classes} classes, and the network tells {net.num_classes} apart: give the "
                "data that it is for"
            )
        if other := other_classes(net, data):
            raise InvalidConfiguration(
                f"{data.name} has other classes than the network: {other}. Give the data that it is for, or train it "
                "on these (a new classifier: `reset_classifier`, `ofa train --model`)"
            )


CLASSIFICATION = Classification()
