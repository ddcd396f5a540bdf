"""Statistics from one batch at a time, against those from all batches at once."""

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onceforall.errors import InvalidConfiguration
from onceforall.nn.calibrate import calibrate
from onceforall.nn.streaming import calibrate_streaming
from onceforall.nn.supernet import Supernet

# Bytes of feature maps to keep: nothing, what the smaller ones of the networks below take, everything.
MEMORIES = [0, 30_000, 1 << 30]


def images(resolution: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, 3, resolution, resolution, generator=generator) for count in (4, 3, 0, 1)]


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_statistics_are_those_of_all_batches_at_once(
    memory: int, supernet: Supernet, rng: np.random.Generator
) -> None:
    arch = supernet.space.sample(rng)
    batches = images(arch.resolution)
    expected = calibrate(supernet.extract(arch), batches)
    found = calibrate_streaming(supernet.extract(arch), lambda: iter(batches), 8, memory)
    assert not any(module.training for module in found.modules())
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def test_batches_that_are_not_kept_are_gone_when_the_next_one_comes(tiny_supernet: Supernet) -> None:
    arch = tiny_supernet.space.largest()
    alive: list[weakref.ref[Tensor]] = []

    def batches() -> Iterator[Tensor]:
        for _ in range(3):
            assert sum(each() is not None for each in alive) <= 1  # the one before, which the loop still names
            batch = torch.randn(2, 3, arch.resolution, arch.resolution)
            alive.append(weakref.ref(batch))
            yield batch
            del batch

    calibrate_streaming(tiny_supernet.extract(arch), batches, 6, 0)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in tiny_supernet.extract(arch).modules())
    assert len(alive) > 3 * norms


def test_without_images_there_is_nothing_to_calibrate_from(tiny_supernet: Supernet) -> None:
    network = tiny_supernet.extract(tiny_supernet.space.smallest())
    with pytest.raises(InvalidConfiguration, match="calibration needs at least one batch of images"):
        calibrate_streaming(network, lambda: [torch.zeros(0, 3, 16, 16)], 0, 0)
