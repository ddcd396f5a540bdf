"""Do the shipped CIFAR-10 supernet's weights help on another data set? Fine-tuning in plain PyTorch, on Fashion-MNIST.

    python examples/finetune.py FOLDER      # the four idx files, as in Debian's package dataset-fashion-mnist

Takes the best labelled sub-network of at most 8 million MACs, gives it a new classifier, and trains on a few thousand
images: the classifier alone on frozen features, then all weights; beside it, the same network and recipe from random
weights. Prints the accuracy on all test images, and one line of JSON last. Two minutes on one core.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import onceforall as ofa
from onceforall.nn.subnet import channels_last, initialise

BATCH = 100


def fashion_mnist(folder: Path, split: str, size: int) -> tuple[Tensor, Tensor]:
    """Images [n, 3, size, size], zero mean and unit deviation, and classes [n]; the grey 28 px get a black border."""
    pixels, classes = (
        torch.from_numpy(np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, -1, skip).copy())
        for name, skip in ((f"{split}-images-idx3-ubyte.gz", 16), (f"{split}-labels-idx1-ubyte.gz", 8))
    )
    grey = F.pad(pixels.view(-1, 1, 28, 28).float(), [(size - 28) // 2] * 4)
    images = ((grey - grey.mean()) / grey.std()).expand(-1, 3, -1, -1)
    return images.contiguous(memory_format=torch.channels_last), classes.long()


def train_classifier(network: ofa.SubNetwork, images: Tensor, classes: Tensor, steps: int = 300) -> None:
    """The classifier alone, on the features of all images at once."""
    with torch.no_grad():
        features = torch.cat(
            [network.forward_head(network.forward_features(x), pre_logits=True) for x in images.split(BATCH)]
        )
    head = network.get_classifier()
    optimizer = torch.optim.AdamW(head.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(head(features), classes).backward()
        optimizer.step()


def train(network: ofa.SubNetwork, images: Tensor, classes: Tensor, epochs: int, rate: float = 0.05) -> None:
    """All weights: SGD with momentum, a cosine schedule, flipped images."""
    network.train()
    steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, max(steps, 2), pct_start=0.2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=generator).split(BATCH)[: len(images) // BATCH]:
            x = images[chosen]
            x = x.flip(3) if torch.rand((), generator=generator) < 0.5 else x
            optimizer.zero_grad()
            F.cross_entropy(network(x), classes[chosen], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=4000, help="training images")
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)

    shipped = ofa.zoo.load("cifar10")
    lower, macs = shipped.supernet.space.lower, ofa.MACs()
    small = [label for label in shipped.labels if macs.cost(lower(label.architecture)) <= 8e6]
    arch = max(small, key=lambda label: label.top1).architecture
    images, classes = (part[: args.images] for part in fashion_mnist(args.folder, "train", arch.resolution))
    test = [part[: args.test_images] for part in fashion_mnist(args.folder, "t10k", arch.resolution)]

    def accuracy(network: ofa.SubNetwork) -> float:
        return round(ofa.top1(network, zip(*(part.split(BATCH) for part in test), strict=True)), 2)

    network = channels_last(shipped.supernet.extract(arch))
    network.reset_classifier(10)
    random = copy.deepcopy(network)
    initialise(random, torch.Generator().manual_seed(0))

    ofa.calibrate(network, images.split(BATCH))  # batch-norm statistics of this data set
    train_classifier(network, images, classes)
    found = {"classifier alone": accuracy(network)}
    train(network, images, classes, args.epochs)
    found["fine-tuned"] = accuracy(network)
    train(random, images, classes, args.epochs)
    found["from random weights"] = accuracy(random)

    print(f"{arch}: {args.images} training images, {args.epochs} epochs; top-1 on {len(test[0])} test images")
    for name, top1 in found.items():
        print(f"  {name:20} {top1:6.2f} %")
    print(json.dumps({"architecture": str(arch), "top1": found, "images": args.images, "epochs": args.epochs}))


if __name__ == "__main__":
    main()
