"""What the tests share: a space small enough to enumerate and train, images that can be learnt, random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onceforall import spaces
from onceforall.data.dataset import ImageData
from onceforall.nn.supernet import Supernet
from onceforall.space import SearchSpace
from onceforall.spaces.inverted_residual import FirstBlock, InvertedResidualSpace, Stage

# Spaces that every space must behave like. Small resolutions: what they test does not depend on size.
SPACES: dict[str, Callable[[], SearchSpace]] = {
    "tiny": lambda: make_tiny_space(),
    "mobilenet_v3": lambda: spaces.mobilenet_v3(resolutions=(32, 64), num_classes=10),
    "mobilenet_v3_w1.2": lambda: spaces.mobilenet_v3(1.2, resolutions=(32, 64), num_classes=10),
    "small_images": lambda: spaces.mobilenet_v3_small_images(),
}


def make_tiny_space() -> InvertedResidualSpace:
    """Two units, one of them with squeeze-excite; every part of a MobileNetV3 is there, a few channels wide."""
    return InvertedResidualSpace(
        resolutions=(16, 20),
        units=(
            Stage((1, 2), (3, 5, 7), (3, 4, 6), 8, 2, "relu", False),
            Stage((2, 3), (3, 5, 7), (3, 4, 6), 16, 2, "h_swish", True),
        ),
        name="tiny",
        stem_width=8,
        stem_stride=2,
        first=FirstBlock(8, 1, "relu", shortcut=True),
        final_width=32,
        mix_width=24,
        activation="h_swish",
        num_classes=4,
        dropout=0.1,
    )


def make_tiny_data() -> ImageData:
    """600 training and 100 test images of 20 px in four classes, told apart by their colour under noise."""
    rng = np.random.default_rng(0)
    colours = np.array([[90, 130, 130], [130, 90, 130], [130, 130, 90], [150, 150, 150]])

    def images(count: int) -> tuple[Tensor, Tensor]:
        labels = rng.integers(0, 4, count)
        pixels = colours[labels][:, :, None, None] + rng.normal(0, 30, (count, 3, 20, 20))
        return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)), torch.from_numpy(labels)

    return ImageData("tiny", *images(600), *images(100), 4, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def scramble(network: nn.Module, seed: int = 0) -> None:
    """Random batch norms, biases and kernel transforms: fresh ones are identities that would hide a mistake."""
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: Tensor) -> Tensor:
        return torch.rand(tensor.shape, generator=generator) - 0.5

    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "transforms" in name:
                parameter.add_(0.2 * noise(parameter))
            elif parameter.ndim == 1:
                parameter.add_(0.5 * noise(parameter))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(0.2 * noise(module.running_mean))  # type: ignore[union-attr, arg-type]
                module.running_var.copy_(1 + noise(module.running_var))  # type: ignore[union-attr, arg-type]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session", params=SPACES)
def space(request: pytest.FixtureRequest) -> SearchSpace:
    """Each search space in turn."""
    return SPACES[request.param]()


@pytest.fixture(scope="session")
def scrambled_supernet(space: SearchSpace) -> Supernet:
    """A supernet of each space with random weights everywhere; never changed by a test."""
    supernet = Supernet(space)
    scramble(supernet)
    return supernet.eval()


@pytest.fixture
def supernet(scrambled_supernet: Supernet) -> Supernet:
    """A supernet of each space, in evaluation mode, for the test to change."""
    return copy.deepcopy(scrambled_supernet)


@pytest.fixture(scope="session")
def tiny_space() -> InvertedResidualSpace:
    return make_tiny_space()


@pytest.fixture(scope="session")
def tiny_data() -> ImageData:
    return make_tiny_data()


@pytest.fixture
def tiny_supernet(tiny_space: InvertedResidualSpace) -> Supernet:
    """A supernet of the tiny space with random weights everywhere, in evaluation mode."""
    supernet = Supernet(tiny_space)
    scramble(supernet)
    return supernet.eval()
