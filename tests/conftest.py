"""What the tests share: the spaces, among them two small enough to train, and images that can be learnt."""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from onceforall import devices, spaces
from onceforall.choices import Unit
from onceforall.data.dataset import ImageData
from onceforall.devices.device import Device
from onceforall.devices.registry import factory
from onceforall.errors import InvalidConfiguration
from onceforall.nn.supernet import Supernet
from onceforall.space import SearchSpace
from onceforall.spaces.inverted_residual import FirstBlock, InvertedResidualSpace, Stage
from onceforall.spaces.resnet50d import BottleneckStage, ResNetSpace
from onceforall.spaces.units import ConvUnit
from onceforall.spaces.vit import ViTSpace
from onceforall.testing import scramble

# These networks are tiny: on a busy machine, a second thread waits more than it computes.
torch.set_num_threads(1)

RUNTIMES = ("openvino", "ncnn", "litert", "executorch")  # extras


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require", default="", help=f"runtimes that must be there, or their tests fail: some of {','.join(RUNTIMES)}"
    )


def pytest_configure(config: pytest.Config) -> None:
    unknown = required(config) - {*RUNTIMES}
    if unknown:
        raise pytest.UsageError(f"--require {','.join(sorted(unknown))}: choices are {', '.join(RUNTIMES)}")


def required(config: pytest.Config) -> set[str]:
    return {*config.getoption("--require").split(",")} - {""}


# Spaces that every space must behave like. Small resolutions: what they test does not depend on size.
SPACES: dict[str, Callable[[], SearchSpace]] = {
    "tiny": lambda: make_tiny_space(),
    "mobilenet_v3": lambda: spaces.mobilenet_v3(resolutions=(32, 64), num_classes=10),
    "mobilenet_v3_w1.2": lambda: spaces.mobilenet_v3(1.2, resolutions=(32, 64), num_classes=10),
    "small_images": lambda: spaces.mobilenet_v3_small_images(),
    "proxyless": lambda: spaces.proxyless(resolutions=(32, 64), num_classes=10),
    "width_multipliers": lambda: spaces.mobilenet_v3(
        resolutions=(32, 64), num_classes=10, width_multipliers=(0.25, 0.5, 0.75, 1.0)
    ),
    "tied": lambda: spaces.mobilenet_v3(resolutions=(32, 64), num_classes=10, tied=True),
    "resnet_tiny": lambda: make_tiny_resnet_space(),
    "vit_tiny": lambda: make_tiny_vit_space(),
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


def make_tiny_resnet_space() -> ResNetSpace:
    """Every part of a ResNet-50D: an elastic stem, stages with and without a stride; 40 px leave odd feature maps."""
    widths = {"width_multipliers": (0.5, 1.0)}
    return ResNetSpace(
        resolutions=(32, 40),
        units=(
            ConvUnit((0, 1), (3,), (1,), **widths),
            ConvUnit((2,), (3,), (1,), **widths),
            BottleneckStage((1, 2), (3,), (0.25, 0.5), 32, 1, **widths),  # 10 px at 40
            BottleneckStage((1, 3), (3,), (0.25, 0.5), 48, 2, **widths),  # 10 -> 5
            BottleneckStage((1, 2), (3,), (0.25, 0.5), 64, 2, **widths),  # 5 -> 3
        ),
        name="resnet_tiny",
        num_classes=4,
        stem_width=32,  # with 16, the stem's middle would be 8 channels wide with either multiplier
        dropout=0.1,
    )


def make_tiny_vit_space() -> ViTSpace:
    """Patches of two sizes, and so of two grids, a class token, and all that is elastic in a vision transformer."""
    unit = Unit((1, 2, 3), {"heads": (1, 2), "ratio": (1, 1.5, 2)}, width_multipliers=(0.5, 1.0))
    return ViTSpace((16, 30), (unit,), "vit_tiny", 16, ((16, 4), (30, 5)), 8, num_classes=4, class_token=True)


def make_tiny_data() -> ImageData:
    """600 training and 100 test images of 20 px in four classes, told apart by their colour under noise."""
    rng = np.random.default_rng(0)
    colours = np.array([[90, 130, 130], [130, 90, 130], [130, 130, 90], [150, 150, 150]])

    def images(count: int) -> tuple[Tensor, Tensor]:
        labels = rng.integers(0, 4, count)
        pixels = colours[labels][:, :, None, None] + rng.normal(0, 30, (count, 3, 20, 20))
        return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)), torch.from_numpy(labels)

    # 30 images calibrate: with all 540, measuring would take most of the tests' time.
    return ImageData("tiny", *images(600), *images(100), 4, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), sparse=True)


MakeDevice = Callable[[str, str], Device]


@pytest.fixture(scope="session")
def make_device(pytestconfig: pytest.Config) -> MakeDevice:
    """Devices of one thread by name and precision.

    Where the runtime is not installed, or this processor cannot do that, the test is skipped. It fails if
    `--require` names the runtime; but not every processor has bf16.
    """

    def make(name: str, precision: str) -> Device:
        kind: Any = factory(name)
        try:
            for package in kind.packages:
                importlib.metadata.version(package)
            return devices.by_name(name, 1, precision)
        except (InvalidConfiguration, importlib.metadata.PackageNotFoundError) as error:
            refuse = pytest.fail if kind.extra in required(pytestconfig) and precision != "bf16" else pytest.skip
            refuse(f"{name} {precision}: {error}")

    return make


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session", params=SPACES)
def space(request: pytest.FixtureRequest) -> SearchSpace:
    """Each search space in turn."""
    return SPACES[request.param]()


@pytest.fixture(scope="session")
def all_spaces() -> dict[str, SearchSpace]:
    """All of them at once, for a test that starts one process for all."""
    return {name: make() for name, make in SPACES.items()}


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


@pytest.fixture
def maps(space: SearchSpace) -> None:
    """For tests of feature maps and convolutions, which a network of tokens has not."""
    if isinstance(space, ViTSpace):
        pytest.skip("this space has tokens and no feature maps")


@pytest.fixture(scope="session")
def tiny_space() -> InvertedResidualSpace:
    return make_tiny_space()


@pytest.fixture(scope="session")
def tiny_resnet_space() -> ResNetSpace:
    return make_tiny_resnet_space()


@pytest.fixture(params=["resnet", "width multipliers", "tied"])
def kind_of_space(request: pytest.FixtureRequest) -> SearchSpace:
    """A tiny space of each kind beside the plain one."""
    if request.param == "resnet":
        return make_tiny_resnet_space()
    space, options = make_tiny_space(), {"width_multipliers": (0.5, 1)}
    if request.param == "tied":
        options = {"expands": (3, 6), "tied": True}
    return replace(space, units=tuple(replace(unit, **options) for unit in space.units))


@pytest.fixture(scope="session")
def tiny_data() -> ImageData:
    return make_tiny_data()


@pytest.fixture
def tiny_supernet(tiny_space: InvertedResidualSpace) -> Supernet:
    """A supernet of the tiny space with random weights everywhere, in evaluation mode."""
    supernet = Supernet(tiny_space)
    scramble(supernet)
    return supernet.eval()
