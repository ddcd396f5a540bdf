"""The published supernets with generated weights, and where to find what others measured.

plain.py is the judge: it was written without a look at the package.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from modules import module_at
from torch import Tensor

from onceforall import spaces
from onceforall.architecture import Architecture, Gene
from onceforall.interop.checkpoints import supernet_of
from onceforall.nn.supernet import Supernet
from onceforall.space import SearchSpace

CLASSES = 10
CHOICES: dict[str, Any] = {"resolutions": (64, 96), "num_classes": CLASSES}
FAMILIES: dict[str, Callable[..., SearchSpace]] = {
    "mbv3_w1.0": lambda **choices: spaces.mobilenet_v3(1.0, **choices),
    "mbv3_w1.2": lambda **choices: spaces.mobilenet_v3(1.2, **choices),
    "proxyless_w1.3": lambda **choices: spaces.proxyless(1.3, **choices),
    "resnet50d": lambda **choices: spaces.resnet50d(**choices),
}


def load(name: str) -> ModuleType:
    """A module beside this file, which is in no package."""
    return module_at(Path(__file__).with_name(f"{name}.py"))


@dataclass(frozen=True)
class Published:
    """A published supernet: its weights in the authors' naming (style "conv"), and the same in ours."""

    family: str
    plain: ModuleType
    weights: dict[str, Tensor]
    supernet: Supernet

    @property
    def space(self) -> SearchSpace:
        return self.supernet.space

    def space_of(self, **choices: Any) -> SearchSpace:
        """The published space with fewer choices, or with other classes."""
        return FAMILIES[self.family](**CHOICES | choices)

    def styled(self, style: str) -> dict[str, Tensor]:
        """The weights in another key style."""
        return {self.plain.rename(name, self.family, style): tensor for name, tensor in self.weights.items()}

    def pairs(self, count: int, resolution: int = 64, seed: int = 0) -> Iterator[tuple[dict[str, Any], Architecture]]:
        """Random architectures, as plain.py writes them and as we do."""
        rng = random.Random(seed)
        for _ in range(count):
            arch = self.plain.random_arch(self.family, rng)
            yield arch, self.architecture(arch, resolution)

    def architecture(self, arch: dict[str, Any], resolution: int = 64) -> Architecture:
        """Ours for one of plain.py, which has values for the blocks that depth cuts off as well."""
        slots = self.plain.slots_per_unit(self.family)
        kernels = arch.get("ks", [3] * sum(slots))
        units, start = [], 0
        for most, depth in zip(slots, arch["d"], strict=True):
            chosen = zip(kernels[start : start + depth], arch["e"][start : start + depth], strict=True)
            units.append(tuple(Gene(kernel=kernel, expand=expand) for kernel, expand in chosen))
            start += most
        if self.family != "resnet50d":
            return Architecture(resolution, tuple(units))
        stem = ((Gene(kernel=3, expand=1),) * (not arch["skip"]), (Gene(kernel=3, expand=1),) * 2)
        return Architecture(resolution, (*stem, *units), tuple(arch["w"]))

    def logits(self, arch: dict[str, Any], images: Tensor) -> Tensor:
        """What plain.py computes."""
        result: Tensor = self.plain.forward(self.family, self.weights, arch, images)
        return result


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other take ten times as long where others use the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def plain() -> ModuleType:
    return load("plain")


@pytest.fixture(scope="session")
def tables() -> ModuleType:
    """shared_tables.py"""
    return load("shared_tables")


@pytest.fixture(scope="session", params=FAMILIES)
def published(request: pytest.FixtureRequest, plain: ModuleType) -> Published:
    """Each published supernet in turn, ten classes, in evaluation mode; never changed by a test."""
    family = request.param
    weights = plain.supernet_weights(family, torch.Generator().manual_seed(0), CLASSES)
    supernet = supernet_of(weights, FAMILIES[family](**CHOICES)).eval()
    return Published(family, plain, weights, supernet)


@pytest.fixture(scope="session")
def images() -> Callable[[int], Tensor]:
    """Two images of a size."""
    return lambda size: torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
