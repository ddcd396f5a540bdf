"""Which images a training step takes, at which size: decided by numbers alone, so that any step can be repeated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onceforall.sizes import Size


@dataclass(frozen=True)
class Batch:
    """One step's images: positions in the training split, one resolution for all, and a seed for their augmentation.

    `part` is what this process takes. Augmentation is drawn for the whole batch, so that an image
    is changed alike whichever process has it.
    """

    positions: NDArray[np.int64]
    resolution: Size
    seed: int
    part: slice


@dataclass(frozen=True)
class BatchPlan:
    """The batches of one phase: every epoch shows each image at most once, in an order of its own.

    A batch that the epoch cannot fill is left out, and each batch has one resolution, drawn
    uniformly. All depends on `seed`, the phase and the step: a run goes on at any step, and every
    process of a distributed run (`rank` of `world`) makes the same plan and takes its own part.
    """

    images: int
    batch_size: int
    resolutions: Sequence[Size]
    seed: int
    phase: int
    rank: int = 0
    world: int = 1

    @property
    def steps_per_epoch(self) -> int:
        return self.images // self.batch_size

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """The batches of steps `first` to `last - 1`."""
        share = self.batch_size // self.world
        part = slice(self.rank * share, (self.rank + 1) * share)
        order, shuffled = np.empty(0, np.int64), -1
        for step in range(first, last):
            epoch, index = divmod(step, self.steps_per_epoch)
            if epoch != shuffled:
                order = np.random.default_rng([self.seed, self.phase, epoch, 0]).permutation(self.images)
                shuffled = epoch
            rng = np.random.default_rng([self.seed, self.phase, step, 1])
            yield Batch(
                positions=order[index * self.batch_size : (index + 1) * self.batch_size],
                resolution=self.resolutions[int(rng.integers(len(self.resolutions)))],
                seed=int(rng.integers(2**62)),
                part=part,
            )
