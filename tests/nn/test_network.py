import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from onceforall.architecture import Architecture
from onceforall.cost.analytic import params
from onceforall.errors import InvalidArchitecture, OutOfDomain
from onceforall.nn.subnet import build
from onceforall.nn.supernet import Network, Supernet
from onceforall.space import SearchSpace
from onceforall.testing import scramble

PLAIN = tuple(f"onceforall.nn.{name}" for name in ("plain", "transformer", "network", "fast_cpu"))  # of plain modules


def images_for(arch: Architecture, count: int = 4) -> Tensor:
    return torch.randn(count, 3, arch.resolution, arch.resolution, generator=torch.Generator().manual_seed(0))


def some(space: SearchSpace) -> list[Architecture]:
    """The extremes and a random member."""
    return [space.smallest(), space.largest(), space.sample(np.random.default_rng(0))]


@pytest.fixture
def arch(tiny_supernet: Supernet) -> Architecture:
    """A member that is neither the smallest nor the largest."""
    return tiny_supernet.space.sample(np.random.default_rng(1))


@pytest.mark.parametrize("training", [False, True])
def test_a_network_of_a_supernet_computes_what_its_sub_network_does(supernet: Supernet, training: bool) -> None:
    for arch in some(supernet.space):
        network = Network.of(supernet, arch).train(training)
        outputs = []
        for net in (network, supernet.train(training)):
            torch.manual_seed(0)  # the same dropout
            outputs.append(net(images_for(arch), arch))
        assert_close(*outputs, rtol=1e-5, atol=1e-5)


def test_a_network_has_the_gradients_of_the_extracted_network(tiny_supernet: Supernet, arch: Architecture) -> None:
    network, plain = Network.of(tiny_supernet, arch).train(), tiny_supernet.extract(arch).train()
    labels, images = torch.tensor([0, 1, 2, 3]), images_for(arch)
    for net, inputs in ((network, (images, arch)), (plain, (images,))):
        torch.manual_seed(0)  # the same dropout
        nn.functional.cross_entropy(net(*inputs), labels).backward()
    expected = dict(plain.named_parameters())
    for name, parameter in network.named_parameters():
        gradient = expected.pop(network.plain_name(name)).grad
        assert gradient is not None
        assert gradient.any()
        assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    assert not expected


def test_extracting_gives_plain_modules_with_plain_names(supernet: Supernet) -> None:
    for arch in some(supernet.space):
        network = Network(supernet.space, arch)
        scramble(network)
        plain = network.extract(arch)
        assert plain.state_dict().keys() == build(supernet.space.lower(arch)).state_dict().keys()
        homes = {type(module).__module__ for module in plain.modules()}
        assert all(home in PLAIN or home.startswith("torch.nn.modules.") for home in homes)
        assert_close(plain(images_for(arch)), network.eval()(images_for(arch), arch), rtol=1e-5, atol=1e-5)


def test_a_network_holds_the_weights_of_its_architecture_and_no_others(supernet: Supernet) -> None:
    for arch in some(supernet.space):
        network = Network(supernet.space, arch)
        assert sum(parameter.numel() for parameter in network.parameters()) == params(supernet.space.lower(arch))
        names = [network.plain_name(name) for name in network.state_dict()]
        assert names == list(network.extract(arch).state_dict())
        assert not any("transforms" in name for name in names)


def test_plain_weights_come_back_whole(tiny_supernet: Supernet, arch: Architecture) -> None:
    plain = tiny_supernet.extract(arch)
    network = Network(tiny_supernet.space, arch, seed=3)
    network.load_plain(plain)
    again = network.extract(arch).state_dict()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(again[name], tensor), name


def test_a_network_and_its_supernet_leave_each_other_alone(tiny_supernet: Supernet, arch: Architecture) -> None:
    network = Network.of(tiny_supernet, arch).eval()
    before, output = copy.deepcopy(tiny_supernet.state_dict()), network(images_for(arch), arch)
    for tensor in tiny_supernet.state_dict().values():
        tensor.fill_(7)
    assert torch.equal(network(images_for(arch), arch), output)
    tiny_supernet.load_state_dict(before)
    for tensor in network.state_dict().values():
        tensor.fill_(7)
    for name, tensor in tiny_supernet.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_network_of_a_supernet_can_be_trained(tiny_supernet: Supernet, arch: Architecture) -> None:
    network = Network.of(tiny_supernet, arch)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in network.parameters())
    assert network.resolutions == (arch.resolution,)
    assert (network.space, network.architecture) == (tiny_supernet.space, arch)


def test_initial_weights_follow_the_seed(tiny_supernet: Supernet, arch: Architecture) -> None:
    first, again, other = (Network(tiny_supernet.space, arch, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "blocks.0.full.conv.weight"
    assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize("method", ["forward", "extract"])
def test_another_architecture_is_refused(tiny_supernet: Supernet, arch: Architecture, method: str) -> None:
    network, other = Network(tiny_supernet.space, arch), tiny_supernet.space.largest()
    assert other != arch
    with pytest.raises(InvalidArchitecture, match=f"^{other}: this network is {arch}$"):
        network(images_for(other), other) if method == "forward" else network.extract(other)


def test_a_foreign_architecture_is_refused(tiny_supernet: Supernet, arch: Architecture) -> None:
    foreign = replace(arch, resolution=32)
    with pytest.raises(InvalidArchitecture, match="resolution 32: choices are 16, 20"):
        Network(tiny_supernet.space, foreign)
    with pytest.raises(InvalidArchitecture, match="resolution 32: choices are 16, 20"):
        Network.of(tiny_supernet, foreign)


def test_images_of_another_size_are_refused(tiny_supernet: Supernet, arch: Architecture) -> None:
    with pytest.raises(OutOfDomain, match=f"images of 24 x 24 px: this architecture takes {arch.resolution} px"):
        Network(tiny_supernet.space, arch)(torch.zeros(1, 3, 24, 24), arch)
