import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from onceforall.errors import InvalidConfiguration
from onceforall.nn.calibrate import calibrate
from onceforall.nn.supernet import Supernet


def statistics(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in network.state_dict().items() if "running" in name}


def one_pass(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What torch itself keeps after one pass over all images as a single batch."""
    network = copy.deepcopy(network).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(images)
    return statistics(network)


def assert_same_statistics(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in expected.items():
        assert_close(actual[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def tiny_network(supernet: Supernet) -> nn.Sequential:
    return supernet.extract(supernet.space.largest())


IMAGES = torch.randn(30, 3, 20, 20, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sizes", [[16], [7, 1, 5, 3], [1] * 16])
def test_statistics_are_those_of_one_pass_over_all_images(supernet: Supernet, sizes: Sequence[int]) -> None:
    rng = np.random.default_rng(0)
    for arch in [supernet.space.largest(), supernet.space.sample(rng)]:
        network = supernet.extract(arch)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(16, 3, arch.resolution, arch.resolution, generator=generator)
        expected = one_pass(network, images)
        assert_same_statistics(statistics(calibrate(network, images.split(sizes))), expected)  # type: ignore[arg-type]


def test_the_order_of_images_does_not_matter(tiny_supernet: Supernet) -> None:
    network = tiny_network(tiny_supernet)
    expected = copy.deepcopy(statistics(calibrate(network, IMAGES.split(7))))
    shuffled = IMAGES[torch.randperm(30, generator=torch.Generator().manual_seed(1))]
    assert_same_statistics(statistics(calibrate(network, shuffled.split(7))), expected)


def test_an_empty_batch_does_not_count(tiny_supernet: Supernet) -> None:
    network = tiny_network(tiny_supernet)
    expected = one_pass(network, IMAGES)
    assert_same_statistics(statistics(calibrate(network, [IMAGES[:20], IMAGES[:0], IMAGES[20:]])), expected)


def test_earlier_statistics_do_not_matter(tiny_supernet: Supernet) -> None:
    network = tiny_network(tiny_supernet)
    expected = copy.deepcopy(statistics(calibrate(network, [IMAGES])))
    for tensor in statistics(network).values():
        tensor.fill_(50)
    assert_same_statistics(statistics(calibrate(network, [IMAGES])), expected)


def test_a_large_mean_does_not_drown_the_variance() -> None:
    images = 1000 + 0.1 * torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    bn = calibrate(nn.Sequential(nn.BatchNorm2d(1)), images.split(7))[0]
    assert_close(bn.running_var, images.double().var().float().view(1), rtol=1e-2, atol=0)  # type: ignore[arg-type]


def test_the_same_network_comes_back_in_evaluation_mode_with_its_weights(tiny_supernet: Supernet) -> None:
    network = tiny_network(tiny_supernet).train()
    weights = {name: parameter.clone() for name, parameter in network.named_parameters()}
    assert calibrate(network, [IMAGES]) is network
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(parameter, weights[name]) for name, parameter in network.named_parameters())


def test_images_are_left_alone(tiny_supernet: Supernet) -> None:
    images = IMAGES.clone()
    calibrate(tiny_network(tiny_supernet), [images])
    assert torch.equal(images, IMAGES)


@pytest.mark.parametrize("batches", [[], [IMAGES[:0]]])
def test_no_images_are_refused(tiny_supernet: Supernet, batches: list[Tensor]) -> None:
    with pytest.raises(InvalidConfiguration, match="at least one batch of images"):
        calibrate(tiny_network(tiny_supernet), batches)


class Strange(nn.Module):
    """A block of somebody else's: batch norms in branches, a channel shuffle, and, where asked, a look at the shape."""

    def __init__(self, looks: bool) -> None:
        super().__init__()
        self.looks = looks
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(6)
        self.conv = nn.Conv2d(6, 6, 3, 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, 2 * self.first(x) - 1], dim=1)
        if self.looks:
            count, channels, height, width = y.shape
            y = y.view(count, 2, channels // 2, height, width).transpose(1, 2).reshape(count, channels, height, width)
        else:
            y = y.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        low, high = self.second(self.conv(y)).relu().chunk(2, dim=1)
        return torch.nn.functional.max_pool2d(low, 2) / 2 + high[:, :, ::2, ::2] @ high[:, :, 1::2, 1::2]


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("sizes", [[30], [8, 8, 14], [7, 1, 22]])
def test_a_batch_norm_anywhere_in_a_block_is_calibrated(looks: bool, sizes: list[int]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 3, 1), Strange(looks), nn.BatchNorm2d(3))
    expected = one_pass(network, IMAGES)
    assert_same_statistics(statistics(calibrate(network, IMAGES.split(sizes))), expected)  # type: ignore[arg-type]


def test_a_layer_that_asks_for_the_shape_gets_one_answer(tiny_supernet: Supernet) -> None:
    sizes = []

    class Asks(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().forward(x)

    calibrate(nn.Sequential(Asks(3)), IMAGES.split([10, 10, 10]))
    assert sizes == [10]  # the same for all of them
    calibrate(nn.Sequential(Asks(3)), IMAGES.split([10, 20]))
    assert sizes == [10, 30]
