"""A layer of somebody else's, in one file, goes wherever ours go; one that nobody registered goes nowhere."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from onceforall.architecture import Gene
from onceforall.cost.analytic import MACs, Parameters, PeakActivationMemory, PeakConvolutionMemory, macs, params
from onceforall.cost.features import layer_features
from onceforall.cost.latency import LatencyTable
from onceforall.deploy.standalone import source, write_standalone
from onceforall.devices.onnx import INPUT, to_onnx
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration
from onceforall.layers import Layer, LayerSpec, LinearSpec, layer_from_json, layer_to_json, register
from onceforall.nn.calibrate import calibrate
from onceforall.nn.elastic import elastic
from onceforall.nn.network import SubNetwork
from onceforall.nn.subnet import build, build_layer
from onceforall.nn.supernet import Network, Supernet
from onceforall.registry import Registry
from onceforall.spaces.inverted_residual import InvertedResidualSpace
from onceforall.testing import scramble

FILE = '''
"""Shuffled groups: a convolution in two groups, a shuffle, and a learnt scale for each channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onceforall.layers import Layer, Operation, convolution, pixels, register
from onceforall.sizes import Size, strided_size

GROUPS = 2


@dataclass(frozen=True, slots=True)
class ShuffleSpec(Layer):
    in_size: Size
    in_channels: int
    out_channels: int
    kernel: int = 3
    stride: int = 1

    @property
    def out_size(self) -> Size:
        return strided_size(self.in_size, self.stride)

    @property
    def operations(self) -> tuple[Operation, ...]:
        channels, size = self.out_channels, self.out_size
        conv = convolution(self.in_channels, channels, self.in_size, self.kernel, self.stride, groups=GROUPS)
        scale = Operation("shuffle", channels, channels, size, size, vectors=channels, macs=channels * pixels(size))
        return conv, scale


def shuffled(x: Tensor) -> Tensor:
    count, channels, height, width = x.shape
    return x.view(count, GROUPS, channels // GROUPS, height, width).transpose(1, 2).flatten(1, 2)


class Shuffle(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=GROUPS, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.scale = nn.Parameter(torch.empty(out_channels, 1, 1))
        self.register_buffer("offset", torch.arange(out_channels)[:, None, None] / 10, persistent=False)

    def initialise(self, generator: torch.Generator) -> None:
        nn.init.uniform_(self.scale, 0.5, 1.5, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * shuffled(self.norm(self.conv(x)).relu()) + self.offset


register("shuffle", ShuffleSpec, module=Shuffle)
'''


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    path = tmp_path_factory.mktemp("strange") / "strange_shuffle.py"
    path.write_text(FILE)
    yield imported(path)
    del sys.modules[path.stem]


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class ShuffleSpace(InvertedResidualSpace):
    """Blocks of the first unit are somebody else's."""

    def block(self, resolution: Any, unit: int, index: int, gene: Gene, *args: float) -> LayerSpec:
        block: Any = super().block(resolution, unit, index, gene, *args)
        if unit:
            return block  # type: ignore[no-any-return]
        kind = sys.modules["strange_shuffle"].ShuffleSpec
        return kind(block.in_size, block.in_channels, block.out_channels, 3, block.stride)  # type: ignore[no-any-return]


@pytest.fixture
def space(strange: ModuleType, tiny_space: InvertedResidualSpace) -> ShuffleSpace:
    units = tuple(replace(unit, width_multipliers=(0.5, 1.0)) for unit in tiny_space.units)
    values = {field.name: getattr(tiny_space, field.name) for field in fields(tiny_space)}
    return ShuffleSpace(**values | {"units": (replace(units[0], width=16), *units[1:])})


@pytest.fixture
def supernet(space: ShuffleSpace) -> Supernet:
    supernet = Supernet(space)
    scramble(supernet)
    return supernet.eval()


def images(size: int = 20, count: int = 6) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network(supernet: Supernet, rng: np.random.Generator) -> SubNetwork:
    space = supernet.space.restrict(resolutions=[20])
    return supernet.extract(space.sample(rng))


def test_each_form_is_the_leading_part_of_the_largest(strange: ModuleType) -> None:
    largest = strange.ShuffleSpec(8, 16, 24)
    block = elastic(largest)
    for spec in (largest, replace(largest, in_channels=8), replace(largest, out_channels=8, in_size=5)):
        plain = build_layer(spec).eval()
        for name, tensor in block.extract(spec).state_dict().items():
            assert tensor.shape == plain.state_dict()[name].shape
            assert torch.equal(tensor, block.full.state_dict()[name][tuple(map(slice, tensor.shape))])
        x = torch.randn(2, spec.in_channels, 8, 8)
        assert_close(block.eval()(x, spec), block.extract(spec).eval()(x))


@pytest.mark.parametrize("training", [False, True])
def test_a_supernet_with_it_computes_what_extracted_networks_do(supernet: Supernet, training: bool) -> None:
    space = supernet.space
    for arch in (space.smallest(), space.largest(), space.sample(np.random.default_rng(0))):
        plain, alone = supernet.extract(arch).train(training), Network.of(supernet, arch).train(training)
        found = []
        for run in (lambda x: supernet.train(training)(x, arch), plain, lambda x: alone(x, arch)):  # noqa: B023
            torch.manual_seed(0)  # the same dropout
            found.append(run(images(arch.resolution)))
        assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
        assert_close(found[0], found[2], rtol=1e-5, atol=1e-5)


def test_its_own_initial_weights_follow_the_seed(space: ShuffleSpace) -> None:
    first, again, other = (Supernet(space, seed).units[0][0].full.scale for seed in (1, 1, 2))  # type: ignore[index]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0.5 <= first.min().item() < first.max().item() <= 1.5


def test_it_is_calibrated(network: SubNetwork) -> None:
    reference = copy.deepcopy(network).train()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        reference(images())
    calibrated = calibrate(network, images().split([4, 2])).state_dict()
    for name, tensor in reference.state_dict().items():
        if "running" in name:
            assert_close(calibrated[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_it_has_costs(strange: ModuleType, network: SubNetwork) -> None:
    spec = strange.ShuffleSpec((8, 6), 16, 24)
    assert spec.macs == 9 * 8 * 24 * 48 + 24 * 48
    assert spec.params == 9 * 8 * 24 + 2 * 24 + 24
    assert spec.key == "shuffle:8x6:16:24:3:1"
    work = dict(zip(("calls", "MACs", "elements", "weights"), layer_features(spec)[-4:], strict=True))
    assert work == {"calls": 1, "MACs": 24 * 48, "elements": 2 * 24 * 48, "weights": 0}
    assert params(network.specs) == sum(parameter.numel() for parameter in network.parameters())
    assert macs(network.specs) == sum(spec.macs for spec in network.specs)


def test_it_survives_json(strange: ModuleType) -> None:
    spec = strange.ShuffleSpec((8, 6), 16, 24)
    value = json.loads(json.dumps(layer_to_json(spec)))
    assert value == {
        "layer": "shuffle",
        "in_size": [8, 6],
        "in_channels": 16,
        "out_channels": 24,
        "kernel": 3,
        "stride": 1,
    }
    assert layer_from_json(value) == spec


def test_it_is_exported_with_its_source(network: SubNetwork, tmp_path: Path) -> None:
    found = write_standalone(network, tmp_path / "net", (2, 3, 20, 20))
    assert found.parity <= 1e-5
    text = found.code.read_text()
    assert "GROUPS = 2" in text
    assert "def shuffled(" in text
    assert "onceforall import" not in text
    x = images(count=1)
    session = onnxruntime.InferenceSession(to_onnx(network, tuple(x.shape)))
    assert_close(torch.from_numpy(session.run(None, {INPUT: x.numpy()})[0]), network(x), rtol=1e-3, atol=1e-4)


# What cannot be


@dataclass(frozen=True, slots=True)
class NobodysSpec(Layer):
    in_size: int = 4
    in_channels: int = 3
    out_channels: int = 3
    out_size: int = 4
    operations: tuple[Any, ...] = ()


@pytest.mark.parametrize(
    "ask",
    [
        build_layer,
        elastic,
        lambda spec: build([spec]),
        layer_to_json,
        lambda spec: spec.macs,
        lambda spec: spec.params,
        lambda spec: spec.key,
        lambda spec: MACs().cost([spec]),
        lambda spec: Parameters().cost([spec]),
        lambda spec: PeakActivationMemory().cost([spec]),
        lambda spec: PeakConvolutionMemory().cost([spec]),
        layer_features,
        lambda spec: source(SubNetwork([nn.Identity()], [spec]), "net"),
    ],
)
def test_a_layer_that_nobody_registered_is_refused_by_name(ask: Any) -> None:
    with pytest.raises(
        InvalidConfiguration, match=r"NobodysSpec is no layer that was registered: call onceforall.*register"
    ):
        ask(NobodysSpec())


def test_a_latency_table_knows_no_unregistered_layer(tiny_space: InvertedResidualSpace) -> None:
    with pytest.raises(InvalidConfiguration, match="NobodysSpec is no layer that was registered"):
        LatencyTable.synthetic(tiny_space).cost([*tiny_space.lower(tiny_space.largest()), NobodysSpec()])


def test_a_name_belongs_to_one_layer(strange: ModuleType) -> None:
    with pytest.raises(InvalidConfiguration, match="layer 'conv' is taken: choose another name"):
        register("conv", NobodysSpec, module=nn.Identity)
    with pytest.raises(InvalidConfiguration, match="is no layer: expected a frozen dataclass"):
        register("identity", nn.Identity, module=nn.Identity)  # type: ignore[arg-type]
    again = imported(Path(strange.__file__ or ""))  # a notebook's cell that runs a second time
    assert isinstance(build_layer(again.ShuffleSpec(8, 4, 4)), again.Shuffle)
    assert type(layer_from_json(layer_to_json(strange.ShuffleSpec(8, 4, 4)))) is again.ShuffleSpec
    register("shuffle", strange.ShuffleSpec, module=strange.Shuffle)
    sys.modules["strange_shuffle"] = strange


@pytest.fixture
def no_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of the test's own."""
    monkeypatch.setattr("onceforall.layers.layer._SPECS", Registry("layer", "none", {}))
    monkeypatch.setattr("onceforall.layers.layer._ENTRIES", {})


def test_what_its_module_takes_is_said(no_layers: None) -> None:
    register("nobody", NobodysSpec, module=nn.Linear)
    with pytest.raises(
        InvalidConfiguration, match="Linear takes in_features, out_features, which NobodysSpec does not have"
    ):
        build_layer(NobodysSpec())
    register("nobody", NobodysSpec, module="onceforall.nn.plain:Nothing")
    with pytest.raises(
        InvalidConfiguration, match=r"'onceforall\.nn\.plain:Nothing', which a layer was registered with"
    ):
        build_layer(NobodysSpec())


def test_source_that_cannot_be_shipped_is_said(no_layers: None) -> None:
    scope: dict[str, Any] = {"nn": nn, "__name__": __name__}
    exec("class Typed(nn.Identity):\n    def __init__(self): super().__init__()", scope)
    register("nobody", NobodysSpec, module=scope["Typed"])
    with pytest.raises(IncompatibleCheckpoint, match="the source of Typed cannot be read"):
        source(SubNetwork([nn.Identity()], [NobodysSpec()]), "net")
    register("nobody", NobodysSpec, module=UsesNumpy)
    with pytest.raises(IncompatibleCheckpoint, match="UsesNumpy uses np of numpy: a file of its own can use torch"):
        source(SubNetwork([nn.Identity()], [NobodysSpec()]), "net")


class UsesNumpy(nn.Identity):
    def __init__(self) -> None:
        super().__init__(np.float32(1))


def test_a_classifier_is_no_image() -> None:
    assert LinearSpec(4, 3).input_shape == (4, 1, 1)
