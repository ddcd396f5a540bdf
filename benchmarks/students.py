"""Claim: in a transformer's first steps, students that learn from an untrained teacher alone pull it back.

Trains `vit_small_images` on CIFAR-10 (32 px, AdamW at 8e-4, batches of 128, gradients clipped at norm 1) in one of
these ways: the sandwich, whose students learn from the largest network's softmax (kl), from labels (labels) or from
both; one random sub-network a step (random); the largest network alone (largest). Every 25 steps: norms of the
gradients of teacher and students, and cosines of the students' with the teacher's. Every 50: cross entropy (nats) and
top-1 (percent) of the largest and the smallest network on 2,000 test images, which select nothing. JSON comes last.

    python benchmarks/students.py kl [--steps 300] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import onceforall as ofa
from onceforall.data.augment import flip_and_shift
from onceforall.training.losses import KLDivergence

WAYS = ("kl", "labels", "both", "random", "largest")
SIZE, BATCH, RATE, SMOOTHING, TESTED = 32, 128, 8e-4, 0.1, 2000


def gradients(net: ofa.Supernet) -> Tensor:
    """All of them in one vector, zeros where a parameter has none."""
    return torch.cat(
        [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten().clone() for p in net.parameters()]
    )


@torch.inference_mode()
def tested(net: ofa.Supernet, arch: ofa.Architecture, images: Tensor, labels: Tensor) -> list[float]:
    """Cross entropy and top-1."""
    logits = torch.cat([net(part, arch) for part in images.split(500)])
    right = float((logits.argmax(1) == labels).float().mean())
    return [round(float(F.cross_entropy(logits, labels)), 4), round(100 * right, 2)]


def main() -> None:
    """Run one way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    data = ofa.cifar10()
    space = ofa.spaces.vit_small_images().restrict(resolutions=[SIZE])
    net, rng = ofa.Supernet(space, given.seed), np.random.default_rng(given.seed)
    largest, smallest, kl = space.largest(), space.smallest(), KLDivergence()
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.05)
    test, labels = data.prepare(data.test_images[:TESTED], SIZE), data.test_labels[:TESTED]
    rows: list[dict[str, Any]] = []
    for step in range(1, given.steps + 1):
        chosen = torch.from_numpy(rng.integers(len(data.train_images), size=BATCH))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        images = data.prepare(flip_and_shift(data.train_images[chosen], generator), SIZE)
        wanted = data.train_labels[chosen]
        random = [space.sample(rng) for _ in range(2)]
        sandwich = [largest, smallest, *random]
        optimizer.zero_grad()
        taught, before, parts = None, None, []
        for arch in {"random": random[:1], "largest": [largest]}.get(given.way, sandwich):
            logits = net(images, arch)
            loss = F.cross_entropy(logits, wanted, label_smoothing=SMOOTHING)
            if taught is not None and given.way in ("kl", "both"):
                loss = kl(logits, taught) + (loss if given.way == "both" else 0)
            taught = logits.detach() if taught is None else taught
            loss.backward()
            if step % 25 == 0:
                after = gradients(net)
                parts.append(after - before if before is not None else after)
                before = after
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if parts:
            cosines = [round(float(F.cosine_similarity(parts[0], part, 0)), 3) for part in parts[1:]]
            row = {"step": step, "norms": [round(float(part.norm()), 3) for part in parts], "cosines": cosines}
            if step % 50 == 0:
                row |= {"largest": tested(net, largest, test, labels), "smallest": tested(net, smallest, test, labels)}
            rows.append(row)
            print(row, flush=True)
    print(json.dumps({"benchmark": "students", "way": given.way, "seed": given.seed, "rows": rows}))


if __name__ == "__main__":
    main()
