"""What people expect of a network of timm or torchvision, for a random sub-network of every space."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from onceforall.architecture import Architecture
from onceforall.checkpoint import load_network, save_network
from onceforall.data.dataset import ImageData
from onceforall.devices.onnx import INPUT, to_onnx
from onceforall.errors import InvalidConfiguration, MissingPart
from onceforall.layers import LinearSpec, MBConvSpec, PoolSpec
from onceforall.nn.calibrate import calibrate
from onceforall.nn.network import SubNetwork
from onceforall.nn.subnet import build, fold_batch_norm
from onceforall.nn.supernet import Network, Supernet


@pytest.fixture
def arch(supernet: Supernet, rng: np.random.Generator) -> Architecture:
    return supernet.space.sample(rng)


@pytest.fixture(params=["as extracted", "folded"])
def network(supernet: Supernet, arch: Architecture, request: pytest.FixtureRequest) -> SubNetwork:
    """A random sub-network of each space."""
    extracted = supernet.extract(arch)
    return fold_batch_norm(extracted) if request.param == "folded" else extracted


def images_for(network: SubNetwork, count: int = 2) -> Tensor:
    size = network.specs[0].in_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.usefixtures("maps")
def test_features_and_head_make_the_network(network: SubNetwork) -> None:
    x = images_for(network)
    features = network.forward_features(x)
    pool = next(spec for spec in network.specs if isinstance(spec, PoolSpec))
    assert features.shape == (2, pool.in_channels, pool.in_size, pool.in_size)
    assert torch.equal(network.forward_head(features), network(x))
    before = network.forward_head(features, pre_logits=True)
    assert before.shape == (2, network.num_features)
    assert torch.equal(network.get_classifier()(before), network(x))
    assert network(x).shape == (2, network.num_classes)


@pytest.mark.usefixtures("maps")
def test_it_says_what_it_takes(network: SubNetwork, arch: Architecture) -> None:
    about = network.default_cfg
    assert about["input_size"] == (3, arch.resolution, arch.resolution)
    assert about["pool_size"] == tuple(network.forward_features(images_for(network)).shape[2:])
    modules = dict(network.named_modules())
    assert modules[about["classifier"]] is network.get_classifier()
    assert isinstance(modules[about["first_conv"]], nn.Conv2d)


@pytest.mark.parametrize("num_classes", [7, 0])
def test_the_classifier_is_replaced_and_nothing_else(network: SubNetwork, num_classes: int) -> None:
    x = images_for(network)
    old, features = network.state_dict(), network.forward_head(network.forward_features(x), pre_logits=True)
    names = [name for name in old if ".linear." not in name]
    network.double().reset_classifier(num_classes)
    assert {tensor.dtype for tensor in network.parameters()} == {torch.float64}
    new = network.float().state_dict()
    assert [name for name in new if ".linear." not in name] == names
    assert all(torch.equal(new[name], old[name]) for name in names)
    logits = network(x)
    assert_close(logits, network.get_classifier()(features), rtol=1e-4, atol=1e-4)
    assert logits.shape == (2, num_classes or network.num_features)
    network.reset_classifier(3)  # and back
    assert network(x).shape == (2, 3)


@pytest.mark.parametrize("wrong", [(-1, "avg"), (10, "max")])
def test_an_impossible_classifier_is_refused(wrong: tuple[int, str], tiny_supernet: Supernet) -> None:
    network = tiny_supernet.extract(tiny_supernet.space.largest())
    with pytest.raises(InvalidConfiguration, match=r"expected 0 or more classes, and avg"):
        network.reset_classifier(*wrong)
    assert network.num_classes == 4


@pytest.mark.usefixtures("maps")
def test_feature_maps_are_the_last_at_each_stride(network: SubNetwork) -> None:
    x = images_for(network)
    backbone = network.features_only()
    maps, info = backbone(x), backbone.feature_info
    assert [item.shape[1] for item in maps] == info.channels()
    assert [item.shape[-1] for item in maps] == [-(-x.shape[-1] // stride) for stride in info.reduction()]
    assert info.reduction() == sorted(set(info.reduction()))
    assert torch.equal(maps[-1], network.forward_features(x))
    values = x
    for index, layer in enumerate(network):  # each layer by itself, in memory of its own
        values = layer(values.clone())
        if str(index) in info.module_name():
            assert torch.equal(maps[info.module_name().index(str(index))], values)
            following = network.specs[index + 1]
            assert getattr(following, "stride", 1) > 1 or isinstance(following, PoolSpec)


@pytest.mark.usefixtures("maps")
def test_chosen_feature_maps_leave_out_the_layers_behind_them(network: SubNetwork) -> None:
    x, full = images_for(network), network.features_only()
    backbone = network.features_only(out_indices=(-2, 0))
    assert backbone.feature_info.reduction() == [full.feature_info.reduction()[index] for index in (0, -2)]
    for index, item in zip((0, -2), backbone(x), strict=True):
        assert torch.equal(item, full(x)[index])
    assert len(backbone) < len(full)
    assert backbone.state_dict().keys() < network.state_dict().keys()


@pytest.mark.parametrize("wrong", [(9,), ()])
def test_a_feature_map_that_is_not_there_is_refused(wrong: tuple[int, ...], tiny_supernet: Supernet) -> None:
    network = tiny_supernet.extract(tiny_supernet.space.largest())
    with pytest.raises(InvalidConfiguration, match=r"the feature maps 0 \(stride 2\), 1 \(stride 4\), 2 \(stride 8\)"):
        network.features_only(wrong)


def test_published_sizes_of_the_feature_maps() -> None:
    """Those of MobileNetV3-Large and ResNet-50 in timm."""
    from onceforall import spaces

    space = spaces.mobilenet_v3(resolutions=[64])
    with torch.device("meta"):
        info = build(space.lower(space.largest())).features_only().feature_info
        assert (info.channels(), info.reduction()) == ([16, 24, 40, 112, 960], [2, 4, 8, 16, 32])
        space = spaces.resnet50d(resolutions=[64])
        info = build(space.lower(space.largest())).features_only().feature_info
        assert (info.channels(), info.reduction()) == ([64, 256, 512, 1024, 2048], [2, 4, 8, 16, 32])


def test_copies_and_pickles_compute_the_same(network: SubNetwork) -> None:
    x, buffer = images_for(network), io.BytesIO()
    torch.save(network, buffer)
    buffer.seek(0)
    for again in (copy.deepcopy(network), torch.load(buffer, weights_only=False)):
        assert again.specs == network.specs
        assert torch.equal(again(x), network(x))
        again.reset_classifier(5)
    assert network.num_classes == network.specs[-1].out_channels != 5


def test_a_slice_is_a_plain_sequential(network: SubNetwork) -> None:
    part = network[:2]
    assert type(part) is nn.Sequential
    assert [*part] == [*network][:2]
    assert network[-1] is [*network][-1]


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # of exporters that ncnn and ONNX still go through
@pytest.mark.parametrize("of", ["tiny_space", "tiny_resnet_space"])
def test_exporters_take_it(of: str, request: pytest.FixtureRequest) -> None:
    space = request.getfixturevalue(of)
    network = Supernet(space).extract(space.smallest())
    network.reset_classifier(3)
    x = images_for(network, 1)
    for module in (network, fold_batch_norm(copy.deepcopy(network)), network.features_only()):
        expected = module(x)
        assert_close(torch.export.export(module, (x,)).module()(x), expected, rtol=1e-4, atol=1e-5)
        assert_close(torch.jit.trace(module, x, strict=False)(x), expected, rtol=1e-4, atol=1e-5)
    session = onnxruntime.InferenceSession(to_onnx(network, tuple(x.shape)))
    assert_close(torch.from_numpy(session.run(None, {INPUT: x.numpy()})[0]), network(x), rtol=1e-3, atol=1e-4)


def test_a_network_that_was_saved_has_the_methods(tiny_supernet: Supernet, tmp_path: Path) -> None:
    arch = tiny_supernet.space.largest()
    save_network(tmp_path / "network.safetensors", Network.of(tiny_supernet, arch))
    again = load_network(tmp_path / "network.safetensors").extract(arch)
    x = images_for(again)
    assert_close(again.forward_features(x), tiny_supernet.extract(arch).forward_features(x))


def test_batch_norm_is_recalibrated_with_another_classifier(tiny_supernet: Supernet, tiny_data: ImageData) -> None:
    network = tiny_supernet.extract(tiny_supernet.space.smallest())
    network.reset_classifier(0)
    batches = tiny_data.calibration(network.specs[0].in_size)
    again = calibrate(network, batches)
    assert again is network
    features = torch.cat([network(batch) for batch in batches])
    assert features.shape == (sum(map(len, batches)), network.num_features)
    assert not network.folded
    assert fold_batch_norm(network).folded


def test_a_part_of_a_network_says_what_it_lacks() -> None:
    part = build([MBConvSpec(8, 4, 16, 4, 5, 1, "relu", se_channels=8, shortcut=True)])
    assert part(torch.randn(1, 4, 8, 8)).shape == (1, 4, 8, 8)
    for ask in (lambda: part.num_classes, part.get_classifier, lambda: part.reset_classifier(2)):
        with pytest.raises(MissingPart, match="no classifier"):
            ask()
    for ask in (lambda: part.forward_features(torch.randn(1, 4, 8, 8)), part.features_only):
        with pytest.raises(MissingPart, match="no global pooling"):
            ask()
    with pytest.raises(AttributeError, match="'SubNetwork' object has no attribute 'num_layers'"):
        part.num_layers  # noqa: B018


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # what pnnx reads
def test_parts_answer_whoever_looks_for_what_they_have(tiny_supernet: Supernet) -> None:
    """torch.jit tries every name of every module."""
    network = fold_batch_norm(tiny_supernet.extract(tiny_supernet.space.largest()))
    ends = range(len(network) + 1)
    for specs in (network.specs[first:last] for first in ends for last in ends[first:]):
        part = build(specs)
        classified, pooled = (any(type(spec) is kind for spec in specs) for kind in (LinearSpec, PoolSpec))
        found = {name: hasattr(part, name) for name in dir(part)}
        assert found["num_classes"] is found["num_features"] is classified
        assert found["default_cfg"] is (classified and pooled)
        assert found["folded"]
    x = images_for(network, 1)
    with torch.no_grad():
        assert_close(torch.jit.trace(network[:2], x)(x), network[:2](x))
        for place, spec in enumerate(network.specs):
            layer = SubNetwork([network[place]], [spec])
            assert_close(torch.jit.trace(layer, x)(x), layer(x))
            x = layer(x)
