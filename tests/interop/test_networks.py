"""The authors' descriptions of networks: read, written, and told apart from what we do not have."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from onceforall import spaces
from onceforall.cost.analytic import macs, params
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration
from onceforall.files import write_json
from onceforall.interop.networks import architecture_of, load_network, network_config, read_network, save_network
from onceforall.layers import ConvSpec, PoolSpec
from onceforall.nn.subnet import fold_batch_norm
from onceforall.nn.supernet import Supernet
from onceforall.space import SearchSpace

if TYPE_CHECKING:
    from tests.interop.conftest import Published

SPACES: dict[str, Callable[[], SearchSpace]] = {
    "mbv3_w1.0": lambda: spaces.mobilenet_v3(1.0, (64, 100)),
    "mbv3_w1.2": lambda: spaces.mobilenet_v3(1.2, (64, 100), num_classes=7, dropout=0.2),
    "proxyless_w1.3": lambda: spaces.proxyless(1.3, (64, 100)),
    "resnet50d": lambda: spaces.resnet50d((64, 100)),
    # Not the authors' own, but networks that their formats can say.
    "mbv3_w0.5": lambda: spaces.mobilenet_v3(0.5, (64, 100)),
    "mbv3_width_multipliers": lambda: spaces.mobilenet_v3(1.0, (64,), width_multipliers=(0.25, 0.5, 0.75, 1.0)),
    "mbv3_kernel_9": lambda: spaces.mobilenet_v3(1.0, (64,), kernels=(5, 9), expands=(2, 5), depths=(1, 3)),
    "small_images": spaces.mobilenet_v3_small_images,
}
OWN = ("mbv3_w1.0", "mbv3_w1.2", "proxyless_w1.3", "resnet50d")
# Two multipliers can be the same number of channels: 0.65 and 0.8 are in the middle of the ResNet's stem.
SEVERAL_NAMES = ("resnet50d", "mbv3_width_multipliers")


@pytest.fixture
def config() -> dict[str, Any]:
    """A described network at 64 px, for a test to spoil."""
    space = spaces.mobilenet_v3(1.0, (64,), 10)
    return network_config(space.lower(space.uniform(depth=2, kernel=3, expand=4, resolution=64)))


# The released networks


def test_every_released_network_is_a_member_with_the_published_size(tables: ModuleType) -> None:
    index = tables.rows_of("specialized/index.csv")
    assert len(index) == 25
    for row in index:
        name = row["name"]
        value = json.loads(tables.path_of(f"specialized/{name}.json").read_text())
        network = read_network(value["net_config"], value["run_config"])
        assert network.resolution == int(row["resolution"]), name
        assert network.space is not None, name
        assert network.architecture is not None, name
        assert network.space.lower(network.architecture) == network.layers, name
        wide = name.startswith(("flops", "note10_lat-30ms", "note10_lat-64ms", "pixel1_lat-132ms"))
        kind = "proxyless_w1.3" if row["design_space"] == "ProxylessNASNets" else f"mobilenet_v3_w1.{2 * wide}"
        assert network.space.to_json()["name"] == kind

        million_macs = macs(network.layers) / 1e6
        assert abs(params(network.layers) / 1e6 - float(row["readme_params_m"])) <= 0.05, name
        if name.startswith("note10_lat-8ms"):  # the README's 79 M is not what the structure has
            assert million_macs == pytest.approx(75.80, abs=0.005)
        else:
            assert abs(million_macs - float(row["readme_macs_m"])) <= 0.6, name
        exact = {"flops-595M": 595.2, "flops-389M": 389.5}.get(name.split("_")[0])
        assert exact is None or million_macs == pytest.approx(exact, abs=0.05)

        with torch.device("meta"):
            built = network.build().eval()
        built, image = built.to_empty(device="cpu"), torch.zeros(1, 3, network.resolution, network.resolution)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:  # on meta, this takes longer
            assert built(image).shape == (1, 1000)
        assert counter.get_total_flops() == 2 * macs(network.layers), name
        assert sum(parameter.numel() for parameter in built.parameters()) == params(network.layers), name

        text = json.dumps(network_config(network.layers))
        assert read_network(json.loads(text), value["run_config"]) == network, name


# Round trips


@pytest.mark.parametrize("name", SPACES)
def test_a_description_keeps_every_layer(name: str) -> None:
    space, rng = SPACES[name](), np.random.default_rng(0)
    for arch in (space.smallest(), space.largest(), *(space.sample(rng) for _ in range(20))):
        layers = space.lower(arch)
        text = json.dumps(network_config(layers))
        found = read_network(json.loads(text), {"image_size": arch.resolution})
        assert found.layers == layers
        assert found.resolution == arch.resolution
        member = architecture_of(space, layers)
        assert member is not None
        assert space.lower(member) == layers
        assert member == arch or name in SEVERAL_NAMES
        if name in OWN:
            assert found.architecture == member
            assert found.space == type(space).from_json({**space.to_json(), "resolutions": [arch.resolution]})
        else:
            assert (found.space is None) == (found.architecture is None)
            assert found.space is None or found.space.lower(found.architecture) == layers  # type: ignore[arg-type]


def test_a_description_has_the_keys_of_the_released_ones(tables: ModuleType) -> None:
    value = json.loads(tables.path_of("specialized/flops-595M_top1-80.0_finetune-75.json").read_text())
    theirs, ours = value["net_config"], network_config(read_network(value["net_config"], value["run_config"]).layers)
    assert ours.keys() == theirs.keys()
    for part in ("first_conv", "final_expand_layer", "feature_mix_layer", "classifier", "bn"):
        assert {key: ours[part][key] for key in theirs[part]} == theirs[part], part
    for block, published in zip(ours["blocks"], theirs["blocks"], strict=True):
        own, other = dict(block["conv"]), dict(published["mobile_inverted_conv"])
        assert {own.pop("name"), other.pop("name")} == {"MBConvLayer", "MBInvertedConvLayer"}  # new and old name
        if other["mid_channels"] is None:  # follows from the ratio
            del own["mid_channels"], other["mid_channels"]
        ratios = own.pop("expand_ratio"), other.pop("expand_ratio")
        assert round(ratios[0]) == ratios[1]
        assert {key: own[key] for key in other} == other
        assert (block["shortcut"] or {}).get("name") == (published["shortcut"] or {}).get("name")


def test_a_network_survives_its_folder(published: Published, images: Callable[[int], Tensor], tmp_path: Path) -> None:
    (_, arch), *_ = published.pairs(1, seed=2)
    network, layers = published.supernet.extract(arch), published.space.lower(arch)
    save_network(tmp_path / "net", network, layers)
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == ["init", "net.config", "run.config"]
    found, again = load_network(tmp_path / "net")
    assert (found.architecture, found.layers, found.resolution) == (arch, layers, 64)
    with torch.inference_mode():
        torch.testing.assert_close(again(images(64)), network(images(64)), rtol=1e-5, atol=1e-5)


def test_a_folder_is_not_begun_with_a_network_that_cannot_be_exported(tmp_path: Path) -> None:
    space = spaces.mobilenet_v3(1.0, (64,), 10)
    network = fold_batch_norm(Supernet(space).extract(space.smallest()))
    with pytest.raises(IncompatibleCheckpoint, match="folded"):
        save_network(tmp_path / "net", network, space.lower(space.smallest()))
    assert not (tmp_path / "net").exists()


def test_a_folder_without_one_of_its_files_is_refused_by_name(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match=r"cannot read \S*net\.config"):
        load_network(tmp_path)
    write_json(tmp_path / "net.config", config)
    with pytest.raises(InvalidConfiguration, match=r"cannot read \S*run\.config"):
        load_network(tmp_path)
    write_json(tmp_path / "run.config", {"image_size": 64})
    with pytest.raises(IncompatibleCheckpoint, match=r"init does not exist"):
        load_network(tmp_path)


# What the authors' formats can say and we do not have


def spoilt(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with another value at a path such as "blocks/1/conv/groups"."""
    result = copy.deepcopy(config)
    *way, last = (int(part) if part.isdigit() else part for part in path.split("/"))
    reduce(lambda part, key: part[key], way, result)[last] = value  # type: ignore[arg-type, return-value]
    return result


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("name", "EfficientNets", r"network 'EfficientNets': known are MobileNetV3, ProxylessNASNets, ResNets"),
        ("first_conv/groups", 2, r"groups 2 of a convolution: only 1 is supported"),
        ("first_conv/dilation", 2, r"dilation 2 of a convolution"),
        ("final_expand_layer/bias", True, r"bias True of a convolution"),
        ("feature_mix_layer/ops_order", "bn_act_weight", r"ops_order 'bn_act_weight' of a convolution"),
        ("final_expand_layer/use_se", True, r"use_se True"),
        ("blocks/1/conv/groups", 1, r"groups 1 of a block"),
        ("first_conv/act_func", "swish", r"swish"),
        ("blocks/1/conv/act_func", "h_sigmoid", r"h_sigmoid"),
        ("blocks/2/shortcut", {"name": "ConvLayer"}, r"ConvLayer"),
        ("blocks/1/conv/kernel_size", "3", r"'3'"),
        ("blocks/1/conv/kernel_size", 4, r"\b4\b"),
        ("blocks/1/conv/stride", 0, r"\b0\b"),
        ("blocks/1/conv/in_channels", 7, r"\b7\b"),
        ("classifier/bias", False, r"bias False"),
        ("classifier/act_func", "relu", r"relu"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(path: str, value: Any, message: str, config: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfiguration, match=message):
        read_network(spoilt(config, path, value), {"image_size": 64})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 32}, r"groups 32.* of a bottleneck"),
        ({"downsample_mode": "conv"}, r"downsample_mode 'conv' of a bottleneck: only 1 and 'avgpool_conv'"),
        ({"act_func": "swish"}, r"swish"),
    ],
    ids=str,
)
def test_bottlenecks_of_other_kinds_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    space = spaces.resnet50d((64,))
    config = network_config(space.lower(space.smallest()))
    config["blocks"][0] |= change
    with pytest.raises(InvalidConfiguration, match=message):
        read_network(config, {"image_size": 64})


@pytest.mark.parametrize("lost", ["name", "first_conv", "blocks", "final_expand_layer", "classifier"])
def test_a_missing_part_is_named(lost: str, config: dict[str, Any]) -> None:
    del config[lost]
    with pytest.raises(InvalidConfiguration, match=f"not a network config of the authors: .*{lost}"):
        read_network(config, {"image_size": 64})


@pytest.mark.parametrize("lost", ["in_channels", "kernel_size", "use_se", "expand_ratio"])
def test_a_missing_value_of_a_block_is_named(lost: str, config: dict[str, Any]) -> None:
    del config["blocks"][1]["conv"][lost]
    with pytest.raises(InvalidConfiguration, match=f"not a network config of the authors: .*{lost}"):
        read_network(config, {"image_size": 64})


@pytest.mark.parametrize("run_config", [{}, [], {"image_size": None}, {"image_size": "large"}, {"image_size": 0}])
def test_an_image_size_that_is_none_is_refused(run_config: Any, config: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfiguration):
        read_network(config, run_config)


@pytest.mark.parametrize("value", [None, [], "MobileNetV3", 3])
def test_what_is_no_description_is_refused(value: Any) -> None:
    with pytest.raises(InvalidConfiguration, match="not a network config of the authors"):
        read_network(value, {"image_size": 64})


# Membership


def test_layers_without_a_convolution_or_a_classifier_have_no_description() -> None:
    layers = spaces.proxyless(1.3, (64,)).lower(spaces.proxyless(1.3, (64,)).smallest())
    for part in ((), layers[:-1], layers[1:4], (*layers, layers[-1])):
        with pytest.raises(InvalidConfiguration, match="begin with a convolution and end with one classifier"):
            network_config(part)


def test_layers_that_no_member_has_are_no_architecture() -> None:
    space = spaces.mobilenet_v3(1.0, (64,))
    layers = space.lower(space.uniform(depth=3, kernel=5, expand=4, resolution=64))
    assert architecture_of(space, layers) is not None

    others = [spaces.mobilenet_v3(1.2, (64,)), spaces.proxyless(1.3, (64,)), spaces.resnet50d((64,))]
    for other in (*others, spaces.mobilenet_v3(1.0, (64,), num_classes=10), spaces.mobilenet_v3(1.0, (68,))):
        assert architecture_of(other, layers) is None
        assert architecture_of(space, other.lower(other.smallest())) is None
    assert architecture_of(space.restrict(kernels=(3, 7)), layers) is None
    assert architecture_of(space.restrict(depths=(2, 4)), layers) is None
    assert architecture_of(space, (*layers[:4], *layers[5:])) is not None  # a block of the first unit less
    assert architecture_of(space, (*layers[:2], *layers[3:])) is None  # its first block less
    assert architecture_of(space, (layers[0], *layers[2:])) is None  # without the fixed block
    assert architecture_of(space, layers[:-1]) is None
    assert architecture_of(space, (*layers, layers[-1])) is None
    assert architecture_of(space, (*layers[:-4], ConvSpec(2, 160, 960, 1, 1, "relu"), *layers[-3:])) is None
    assert architecture_of(space, (*layers[:-3], PoolSpec(4, 960), *layers[-2:])) is None
    assert architecture_of(space, layers[1:]) is None
    assert architecture_of(space, ()) is None


def test_depths_and_expand_ratios_that_a_space_ties_otherwise_are_no_architecture() -> None:
    tied, free = spaces.mobilenet_v3(1.0, (64,), tied=True), spaces.mobilenet_v3(1.0, (64,))
    members = [tied.smallest(), tied.largest(), tied.sample(np.random.default_rng(0))]
    for arch in members:
        assert architecture_of(tied, tied.lower(arch)) == arch
    for depth, expand in ((2, 6), (4, 3), (3, 6)):
        layers = free.lower(free.uniform(depth=depth, kernel=3, expand=expand, resolution=64))
        assert architecture_of(tied, layers) is None
