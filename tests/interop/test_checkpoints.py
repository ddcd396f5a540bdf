"""The authors' weights in our modules: every sub-network computes what an independent implementation does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from onceforall import spaces
from onceforall.architecture import Architecture
from onceforall.errors import IncompatibleCheckpoint
from onceforall.interop.checkpoints import (
    load_supernet,
    network_of,
    network_state,
    published_space,
    save_supernet,
    supernet_of,
    supernet_state,
)
from onceforall.interop.pickles import read_state, write_state
from onceforall.nn.subnet import fold_batch_norm
from onceforall.nn.supernet import Supernet

if TYPE_CHECKING:
    from tests.interop.conftest import Published

Images = Callable[[int], Tensor]


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def small(plain: ModuleType) -> dict[str, Tensor]:
    """Weights of the width 1.0 MobileNetV3, ten classes."""
    weights: dict[str, Tensor] = plain.supernet_weights("mbv3_w1.0", torch.Generator().manual_seed(0), 10)
    return weights


def assert_equal_weights(found: Supernet, expected: Supernet) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    different = [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
    assert not different


def bytes_of(state: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def names_of_plain_network(published: Published, arch: dict[str, Any]) -> set[str]:
    """The authors' names in a sub-network: style "bare", no kernel matrices, only the layers that depth keeps."""
    slots, first = published.plain.slots_per_unit(published.family), int(published.family != "resnet50d")
    numbers = {0: 0} if first else {}
    start = first
    for most, depth in zip(slots, arch["d"], strict=True):
        for number in range(start, start + depth):
            numbers[number] = len(numbers)
        start += most
    names = set()
    for name in published.styled("bare"):
        part, number, *rest = name.split(".")
        if name.endswith("_matrix") or (part == "blocks" and int(number) not in numbers):
            continue
        if part == "blocks":
            number = str(numbers[int(number)])
        if part == "input_stem" and arch["skip"]:
            if number == "1":
                continue
            number = {"0": "0", "2": "1"}[number]
        names.add(".".join((part, number, *rest)))
    return names


# Whole supernets


def test_every_sub_network_computes_what_the_reference_does(published: Published, images: Images) -> None:
    for number, (theirs, ours) in enumerate(published.pairs(20)):
        if number % 10 == 0 and published.family != "resnet50d":  # odd feature maps as well: 96 px end on 3
            ours = published.architecture(theirs, 96)
        x = images(ours.resolution)
        expected = published.logits(theirs, x)
        for what, found in (
            ("supernet", published.supernet(x, ours)),
            ("extracted", published.supernet.extract(ours)(x)),
        ):
            error = float((found - expected).abs().max())
            assert error <= 1e-4, f"{what} {ours}"
            assert error <= 2e-5 * float(expected.std()), f"{what} {ours}"


def test_all_key_styles_load_to_equal_supernets(published: Published, plain: ModuleType) -> None:
    states = {frozenset(state): state for state in map(published.styled, plain.STYLES)}
    assert len(states) == (2 if published.family == "resnet50d" else 4)
    for state in states.values():
        assert_equal_weights(supernet_of(state, published.space), published.supernet)


def test_a_file_is_read_as_the_published_space_that_it_is(published: Published, tmp_path: Path) -> None:
    torch.save({"state_dict": published.styled("mobile_bare")}, tmp_path / "ofa_net")
    found = load_supernet(tmp_path / "ofa_net")
    assert found.space == published.space_of(resolutions=found.space.resolutions)
    assert_equal_weights(found, published.supernet)
    for parameter in found.parameters():
        assert parameter.requires_grad
        if parameter.ndim == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last)


def test_an_exported_supernet_is_the_authors_own(published: Published, tmp_path: Path) -> None:
    save_supernet(tmp_path / "ofa_net", published.supernet)
    state = read_state(tmp_path / "ofa_net")
    assert state.keys() == published.weights.keys()
    for name, tensor in state.items():
        assert tensor.dtype == published.weights[name].dtype, name
        assert torch.equal(tensor, published.weights[name]), name
        assert tensor.is_contiguous(), name
    assert (tmp_path / "ofa_net").stat().st_size < bytes_of(state) + 1000 * len(state)
    assert_equal_weights(supernet_of(state, published.space), published.supernet)


@pytest.mark.parametrize("family", ["mbv3_w1.0", "mbv3_w1.2", "proxyless_w1.3", "resnet50d"])
def test_the_number_of_classes_is_that_of_the_file(family: str, plain: ModuleType) -> None:
    state = plain.supernet_weights(family, torch.Generator().manual_seed(0), 7, "bare")
    found = published_space(state)
    name = {"mbv3": "mobilenet_v3", "proxyless": "proxyless", "resnet50d": "resnet50d"}[family.split("_")[0]]
    width = {"width": float(family.split("_w")[1])} if "_w" in family else {}
    assert found == spaces.BY_NAME[name](**width, num_classes=7)


def test_a_space_with_fewer_choices_takes_the_same_weights(
    published: Published, images: Images, plain: ModuleType
) -> None:
    fewer: dict[str, Any] = {"expands": (4, 6), "depths": (2, 4), "kernels": (3, 5, 7)}
    if published.family == "resnet50d":
        fewer = {"lost_blocks": (0, 2), "expands": (0.35,), "width_multipliers": (0.8, 1.0), "stem_skip": False}
    supernet = supernet_of(published.weights, published.space_of(**fewer)).eval()
    assert supernet.space.size < published.space.size
    for arch in (supernet.space.smallest(), supernet.space.largest()):
        x = images(arch.resolution)
        assert torch.equal(supernet(x, arch), published.supernet(x, arch))


# What does not fit


def test_missing_extra_and_misshapen_tensors_are_named_as_the_authors_do(small: dict[str, Tensor]) -> None:
    state = dict(small)
    del state["blocks.3.conv.depth_conv.conv.conv.weight"], state["blocks.2.conv.depth_conv.conv.5to3_matrix"]
    state["blocks.40.conv.point_linear.bn.bn.bias"] = torch.zeros(8)
    state["first_conv.bn.weight"] = torch.zeros(9)
    with pytest.raises(
        IncompatibleCheckpoint,
        match="the file does not fit this space: tensors "
        + re.escape(
            "2 missing: blocks.2.conv.depth_conv.conv.5to3_matrix, blocks.3.conv.depth_conv.conv.weight; "
            "1 extra: blocks.40.conv.point_linear.bn.bias; 1 of wrong shape: first_conv.bn.weight (9,) instead of (16,)"
        ),
    ):
        supernet_of(state, None, "the file")


@pytest.mark.parametrize(
    ("choices", "problem"),
    [
        ({"num_classes": 100}, r"2 of wrong shape: classifier\.linear\.weight \(10, 1280\) instead of \(100, 1280\)"),
        ({"kernels": (5, 7)}, r"20 extra: \S*5to3_matrix"),
        ({"kernels": (3, 7)}, r"20 missing: \S*7to3_matrix.*; 40 extra: "),
        ({"depths": (2, 3)}, r"extra: "),
        ({"expands": (3, 4)}, r"of wrong shape: "),
        ({"expands": (3, 4, 6, 8)}, r"of wrong shape: "),
    ],
    ids=str,
)
def test_a_space_that_the_weights_do_not_fit_is_refused(
    choices: dict[str, Any], problem: str, small: dict[str, Tensor]
) -> None:
    with pytest.raises(IncompatibleCheckpoint, match=problem):
        supernet_of(small, spaces.mobilenet_v3(**{"num_classes": 10, **choices}))


def test_weights_of_another_space_are_refused(small: dict[str, Tensor]) -> None:
    for space in (spaces.mobilenet_v3(1.2, num_classes=10), spaces.proxyless(num_classes=10)):
        with pytest.raises(IncompatibleCheckpoint, match="of wrong shape"):
            supernet_of(small, space)


@pytest.mark.parametrize("lost", ["first_conv.conv.weight", "classifier.linear.bias"])
def test_without_a_space_only_published_supernets_are_known(
    lost: str, small: dict[str, Tensor], tmp_path: Path
) -> None:
    write_state(tmp_path / "net", {name: tensor for name, tensor in small.items() if name != lost})
    with pytest.raises(IncompatibleCheckpoint, match=r"net is not one of the published supernets.*: give its space"):
        load_supernet(tmp_path / "net")
    write_state(tmp_path / "net", {**small, "first_conv.conv.weight": torch.zeros(20, 3, 3, 3)})
    with pytest.raises(IncompatibleCheckpoint, match=r"net is not one of the published supernets.*: give its space"):
        load_supernet(tmp_path / "net")


def test_a_tensor_in_two_key_styles_is_refused(small: dict[str, Tensor], plain: ModuleType) -> None:
    name = "blocks.5.conv.depth_conv.bn.bn.bias"
    state = {**small, plain.rename(name, "mbv3_w1.0", "mobile_bare"): small[name]}
    with pytest.raises(IncompatibleCheckpoint, match=r"blocks\.5\.mobile_inverted_conv\S* is there twice"):
        supernet_of(state)


def test_counts_of_batches_are_kept_but_not_needed(published: Published) -> None:
    counted = {name: tensor for name, tensor in published.weights.items() if name.endswith("num_batches_tracked")}
    assert counted
    state = {name: tensor for name, tensor in published.weights.items() if name not in counted}
    exported = supernet_state(supernet_of(state, published.space))
    assert exported.keys() == published.weights.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in state.items())
    assert all(exported[name] == 0 for name in counted)


# Sub-networks


def test_an_exported_sub_network_is_a_plain_network_of_the_authors(published: Published, images: Images) -> None:
    skips = set()
    for theirs, ours in published.pairs(4, seed=1):
        skips.add(theirs.get("skip"))
        network, layers = published.supernet.extract(ours), published.space.lower(ours)
        state = network_state(network, layers)
        assert state.keys() == names_of_plain_network(published, theirs)
        again = network_of(state, layers)
        assert not again.training
        torch.testing.assert_close(again(images(64)), network(images(64)), rtol=1e-5, atol=1e-5)
        without_counts = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
        assert torch.equal(network_of(without_counts, layers)(images(64)), again(images(64)))
    assert skips in ({None}, {True, False})  # with and without the ResNet stem's middle layer


def test_a_file_of_a_sub_network_holds_nothing_of_the_supernet(published: Published, tmp_path: Path) -> None:
    smallest = published.space.smallest()
    state = network_state(published.supernet.extract(smallest), published.space.lower(smallest))
    write_state(tmp_path / "init", state)
    assert (tmp_path / "init").stat().st_size < bytes_of(state) + 1000 * len(state)


def test_a_network_whose_batch_norms_are_folded_is_not_exported(small: dict[str, Tensor]) -> None:
    supernet = supernet_of(small)
    smallest = supernet.space.smallest()
    network = fold_batch_norm(supernet.extract(smallest))
    with pytest.raises(IncompatibleCheckpoint, match="export it as it was extracted, before batch norms are folded"):
        network_state(network, supernet.space.lower(smallest))


@pytest.mark.parametrize("change", [{"depth": 3}, {"kernel": 5}, {"expand": 4}], ids=str)
def test_a_network_of_other_layers_is_not_exported(change: dict[str, int], small: dict[str, Tensor]) -> None:
    """Its description and its weights would not belong together."""
    supernet = supernet_of(small)
    own, other = (
        supernet.space.uniform(**{"depth": 2, "kernel": 3, "expand": 3, "resolution": 128, **choices})
        for choices in ({}, change)
    )
    with pytest.raises(IncompatibleCheckpoint):
        network_state(supernet.extract(own), supernet.space.lower(other))


def test_weights_of_another_sub_network_are_refused_by_name(small: dict[str, Tensor]) -> None:
    supernet = supernet_of(small)
    lower = supernet.space.lower

    def network(kernel: int) -> Architecture:
        return supernet.space.uniform(depth=2, kernel=kernel, expand=3, resolution=128)

    state = network_state(supernet.extract(network(3)), lower(network(3)))
    with pytest.raises(
        IncompatibleCheckpoint,
        match=r"init does not fit .*10 of wrong shape: blocks\.1\.conv\.depth_conv\.conv\.weight \(48, 1, 3, 3\)",
    ):
        network_of(state, lower(network(5)), "init")
