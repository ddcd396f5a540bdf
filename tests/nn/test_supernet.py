import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from onceforall.architecture import Architecture
from onceforall.errors import InvalidArchitecture, InvalidConfiguration, OutOfDomain
from onceforall.nn.elastic import ElasticBottleneck, ElasticMBConv
from onceforall.nn.supernet import Supernet
from onceforall.space import SearchSpace
from onceforall.spaces.inverted_residual import InvertedResidualSpace
from onceforall.testing import scramble

PLAIN = tuple(f"onceforall.nn.{name}" for name in ("plain", "transformer", "network", "fast_cpu"))  # of plain modules


def images_for(arch: Architecture, count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, arch.resolution, arch.resolution, generator=torch.Generator().manual_seed(seed))


def some(space: SearchSpace, count: int = 4) -> list[Architecture]:
    """The extremes and a few random members."""
    rng = np.random.default_rng(0)
    return [space.smallest(), space.largest(), *(space.sample(rng) for _ in range(count))]


def importances(supernet: Supernet) -> list[list[Tensor]]:
    """Of every block with middle channels: the importance of each layer of them, in order."""
    found = []
    for block in (block for unit in supernet.units for block in unit):  # type: ignore[union-attr]
        readers = {
            ElasticMBConv: lambda full: [full.project],
            ElasticBottleneck: lambda full: [full.main.conv, full.main.restore],
        }.get(type(block), lambda full: [])
        found.append([part.conv.weight.abs().sum(dim=(0, 2, 3)) for part in readers(getattr(block, "full", None))])
    return found


@pytest.mark.parametrize("training", [False, True])
def test_forward_equals_the_extracted_network(supernet: Supernet, training: bool) -> None:
    for arch in some(supernet.space):
        network = supernet.extract(arch).train(training)
        outputs = []
        for run in (lambda x: supernet.train(training)(x, arch), network):  # noqa: B023
            torch.manual_seed(0)  # the same dropout
            outputs.append(run(images_for(arch)))
        assert_close(*outputs, rtol=1e-5, atol=1e-5)


def test_training_updates_the_statistics_that_the_extracted_network_would(tiny_supernet: Supernet) -> None:
    arch = tiny_supernet.space.sample(np.random.default_rng(1))
    network = tiny_supernet.extract(arch).train()
    network(images_for(arch))
    tiny_supernet.train()(images_for(arch), arch)
    after = tiny_supernet.extract(arch).state_dict()
    for name, tensor in network.state_dict().items():
        if "running" in name:
            assert_close(after[name], tensor)


def test_an_extracted_network_holds_plain_modules_only(supernet: Supernet) -> None:
    for arch in some(supernet.space):
        network = supernet.extract(arch)
        homes = {type(module).__module__ for module in network.modules()}
        assert all(home in PLAIN or home.startswith("torch.nn.modules.") for home in homes)
        assert not any("transforms" in name for name in network.state_dict())
        assert not any(tensor.is_meta for tensor in network.state_dict().values())


def test_an_extracted_network_is_ready_to_evaluate_and_to_train(tiny_supernet: Supernet) -> None:
    network = tiny_supernet.train().extract(tiny_supernet.space.largest())
    assert not any(module.training for module in network.modules())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in network.parameters())


def test_changing_an_extracted_network_leaves_the_supernet_alone(tiny_supernet: Supernet) -> None:
    before = copy.deepcopy(tiny_supernet.state_dict())
    network = tiny_supernet.extract(tiny_supernet.space.largest())
    for tensor in network.state_dict().values():
        tensor.fill_(7)
    for name, tensor in tiny_supernet.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_an_extracted_network_does_not_follow_the_supernet(tiny_supernet: Supernet) -> None:
    arch = tiny_supernet.space.largest()
    network = tiny_supernet.extract(arch)
    before = network(images_for(arch))
    for tensor in tiny_supernet.state_dict().values():
        tensor.fill_(7)
    assert torch.equal(network(images_for(arch)), before)


def test_running_another_architecture_leaves_no_trace(supernet: Supernet) -> None:
    small, large = supernet.space.smallest(), supernet.space.largest()
    state = copy.deepcopy(supernet.state_dict())
    before = supernet(images_for(small), small)
    supernet(images_for(large), large)
    assert torch.equal(supernet(images_for(small), small), before)
    for name, tensor in supernet.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_images_of_another_size_are_refused(tiny_supernet: Supernet) -> None:
    with pytest.raises(OutOfDomain, match="images of 16 x 16 px: this architecture takes 20 px"):
        tiny_supernet(torch.zeros(1, 3, 16, 16), tiny_supernet.space.largest())


def test_foreign_architectures_are_refused(tiny_supernet: Supernet) -> None:
    foreign = replace(tiny_supernet.space.largest(), resolution=32)
    with pytest.raises(InvalidArchitecture, match="resolution 32: choices are 16, 20"):
        tiny_supernet(torch.zeros(1, 3, 32, 32), foreign)
    with pytest.raises(InvalidArchitecture, match="resolution 32: choices are 16, 20"):
        tiny_supernet.extract(foreign)


def test_initial_weights_follow_the_seed(tiny_space: SearchSpace) -> None:
    first, again, other = (Supernet(tiny_space, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stem.0.full.conv.weight"], other["stem.0.full.conv.weight"])


# Gradients


def gradients(supernet: Supernet, arch: Architecture) -> None:
    torch.manual_seed(0)
    nn.functional.cross_entropy(supernet.train()(images_for(arch), arch), torch.tensor([0, 1, 2, 3])).backward()


def test_gradients_reach_every_active_parameter(tiny_supernet: Supernet) -> None:
    gradients(tiny_supernet, tiny_supernet.space.uniform(depth=2, kernel=3, expand=6, resolution=20))
    inactive = {"units.1.2."}  # the third block of the second unit
    for name, parameter in tiny_supernet.named_parameters():
        assert (parameter.grad is None) == any(name.startswith(prefix) for prefix in inactive), name


def test_gradients_stay_out_of_channels_that_width_cuts_off(tiny_supernet: Supernet) -> None:
    space = tiny_supernet.space
    arch = space.uniform(depth=2, kernel=7, expand=3, resolution=20)
    gradients(tiny_supernet, arch)
    for u, unit in enumerate(tiny_supernet.units):
        for b, block in enumerate(unit[:2]):  # type: ignore[index, arg-type]
            mid = space.block(20, u, b, arch.units[u][b]).mid_channels  # type: ignore[union-attr]
            parts = (block.full.project.conv.weight.grad.transpose(0, 1), block.full.depthwise.conv.weight.grad)
            for grad in (*parts, block.full.expand.conv.weight.grad, block.full.depthwise.bn.weight.grad):
                assert len(grad) > mid
                assert grad[:mid].any()
                assert not grad[mid:].any()


@pytest.mark.parametrize(("kernel", "border", "trained"), [(7, True, set()), (5, False, {"5"}), (3, False, {"3", "5"})])
def test_gradients_reach_only_the_kernel_transforms_in_use(
    tiny_supernet: Supernet, kernel: int, border: bool, trained: set[str]
) -> None:
    gradients(tiny_supernet, tiny_supernet.space.uniform(depth=2, kernel=kernel, expand=6, resolution=20))
    block = tiny_supernet.units[0][0]  # type: ignore[index]
    assert {size for size, matrix in block.transforms.items() if matrix.grad is not None} == trained  # type: ignore[union-attr, operator]
    assert bool(block.full.depthwise.conv.weight.grad[:, :, 0].any()) == border  # type: ignore[union-attr, index]


# Sorting channels. Only the order of additions may change: outputs in double precision, importance within rounding.


def outputs(supernet: Supernet, architectures: list[Architecture]) -> list[Tensor]:
    return [supernet(images_for(arch).double(), arch) for arch in architectures]


def largest_expands(space: SearchSpace, expands: int, width_multipliers: int = 9) -> SearchSpace:
    """The sub-space with the largest expand ratios (heads, MLP ratios) only; depth is free where it is not tied."""
    middle = {name: expands for name in ("expand", "heads", "ratio") if name in space.choice_names}
    return space.largest_choices({"*": 9, **middle, "width_multiplier": width_multipliers})


def test_sorting_leaves_networks_of_full_expand_ratio_and_width_unchanged(supernet: Supernet) -> None:
    supernet.double()
    # With a width multiplier, a block has fewer middle channels at the same expand ratio.
    full = some(largest_expands(supernet.space, 1, width_multipliers=1), 2)
    before = outputs(supernet, full)
    supernet.sort_channels()
    for output, expected in zip(outputs(supernet, full), before, strict=True):
        assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_sorting_leaves_trained_smaller_widths_unchanged(supernet: Supernet) -> None:
    supernet.double()
    space = supernet.space
    for part in (largest_expands(space, 2), largest_expands(space, 1)):
        trained = some(part, 2)
        before = outputs(supernet, trained)
        supernet.sort_channels(part)
        for output, expected in zip(outputs(supernet, trained), before, strict=True):
            assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_sorting_changes_smaller_widths_that_are_not_trained(supernet: Supernet) -> None:
    supernet.double()
    space = supernet.space
    smallest = [space.smallest()]
    (before,) = outputs(supernet, smallest)
    supernet.sort_channels(largest_expands(space, 1, width_multipliers=1))
    assert not torch.allclose(outputs(supernet, smallest)[0], before, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("maps")
def test_sorting_orders_all_channels_by_importance(supernet: Supernet) -> None:
    supernet.sort_channels()
    ordered = [importance for block in importances(supernet) for importance in block]
    assert ordered
    for importance in ordered:
        assert_close(importance, importance.sort(descending=True).values)


@pytest.mark.usefixtures("maps")
def test_sorting_keeps_trained_channels_in_front_and_orders_each_range(supernet: Supernet) -> None:
    space, before = supernet.space, importances(supernet)
    trained = largest_expands(space, 2)
    supernet.sort_channels(trained)
    ranges = 0
    for place, after, earlier in zip(space.block_indices, importances(supernet), before, strict=True):
        forms = [form.layer for form in trained.block_forms(space.resolutions[0], *place)]
        for importance, old in zip(after, earlier, strict=True):
            edges = [0, *sorted({form.mid_channels for form in forms})]  # type: ignore[union-attr]
            assert edges[-1] == len(importance)
            for start, end in itertools.pairwise(edges):
                assert_close(importance[start:end], old[start:end].sort(descending=True).values)
                ranges += 1
    assert ranges > sum(map(len, before))  # somewhere, a smaller form was trained


@pytest.mark.parametrize("tied", [False, True])
def test_what_was_trained_may_be_less_deep(tiny_space: InvertedResidualSpace, tied: bool) -> None:
    units = tuple(replace(unit, expands=(3, 6), tied=tied) for unit in tiny_space.units)
    supernet = Supernet(replace(tiny_space, units=units)).double().eval()
    scramble(supernet)
    trained = supernet.space.restrict(depths=[1, 2], expands=[3])
    before = outputs(supernet, some(trained))
    supernet.sort_channels(trained)
    for output, expected in zip(outputs(supernet, some(trained)), before, strict=True):
        assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_a_new_classifier_leaves_everything_else_alone(supernet: Supernet) -> None:
    arch, before = supernet.space.largest(), copy.deepcopy(supernet)
    supernet.reset_classifier(3)
    assert supernet(images_for(arch), arch).shape == (4, 3)
    assert supernet.num_classes == 3
    assert supernet.space.with_classes(before.space.lower(arch)[-1].out_features) == before.space  # type: ignore[union-attr]
    old, new = before.state_dict(), supernet.state_dict()
    assert {name for name in old if old[name].shape != new[name].shape} == {
        f"head.{len(supernet.head) - 1}.full.linear.{part}" for part in ("weight", "bias")
    }
    for name, tensor in old.items():
        if tensor.shape == new[name].shape:
            assert torch.equal(tensor, new[name])


@pytest.mark.parametrize("count", [1, 0, -3])
def test_a_classifier_tells_two_classes_apart_at_least(tiny_supernet: Supernet, count: int) -> None:
    with pytest.raises(InvalidConfiguration, match=f"num_classes {count}: expected an integer of at least 2"):
        tiny_supernet.reset_classifier(count)
