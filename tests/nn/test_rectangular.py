"""Feature maps of any height and width, for the layers of every space."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from onceforall.deploy.standalone import write_standalone
from onceforall.devices.onnx import INPUT, to_onnx
from onceforall.errors import OutOfDomain
from onceforall.layers import LayerSpec, height_width
from onceforall.nn.calibrate import calibrate
from onceforall.nn.elastic import Elastic, elastic
from onceforall.nn.subnet import build
from onceforall.nn.supernet import Trainable
from onceforall.space import SearchSpace
from onceforall.spaces.inverted_residual import InvertedResidualSpace

SIZE = (40, 28)


def specs_of(space: SearchSpace, size: Any) -> list[LayerSpec]:
    """The largest network, on a map of any size."""
    arch = space.largest()
    blocks = [space.block(size, u, b, gene) for u, unit in enumerate(arch.units) for b, gene in enumerate(unit)]
    return [*space.stem(size), *blocks, *space.head(size)]


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.mark.usefixtures("maps")
def test_a_square_map_is_the_special_case(space: SearchSpace) -> None:
    arch = space.largest()
    assert specs_of(space, (arch.resolution, arch.resolution))[0].in_size == (arch.resolution, arch.resolution)
    square = [layer.macs for layer in specs_of(space, (arch.resolution, arch.resolution))]
    assert square == [layer.macs for layer in specs_of(space, arch.resolution)]


@pytest.mark.usefixtures("maps")
def test_every_layer_has_the_sizes_that_it_says(space: SearchSpace) -> None:
    network, x = build(specs_of(space, SIZE)).eval(), images(2)
    with torch.no_grad():
        for layer, spec in zip(network, network.specs, strict=True):
            assert tuple(x.shape[1:]) == spec.input_shape
            x = layer(x)
            assert tuple(x.shape[1:]) == (spec.out_channels, *height_width(spec.out_size))[: x.ndim - 1]
    about = network.default_cfg
    assert about["input_size"] == (3, *SIZE)
    assert about["pool_size"] == tuple(network.forward_features(images(1)).shape[2:])


def test_a_network_is_calibrated_and_exported(tiny_space: InvertedResidualSpace, tmp_path: Path) -> None:
    network = calibrate(build(specs_of(tiny_space, SIZE)), images().split(3))  # type: ignore[arg-type]
    found = write_standalone(network, tmp_path / "net", (1, 3, *SIZE))
    assert "[n, 3, 40, 28]" in found.code.read_text()
    session = onnxruntime.InferenceSession(to_onnx(network, (1, 3, *SIZE)))
    (logits,) = session.run(None, {INPUT: images(1).numpy()})
    assert_close(torch.from_numpy(logits), network(images(1)).detach(), rtol=1e-3, atol=1e-4)


class Fixed(Trainable):
    """Elastic blocks in a row."""

    def __init__(self, specs: list[LayerSpec]) -> None:
        super().__init__()
        self.specs = specs
        self.blocks = torch.nn.ModuleList(map(elastic, specs))

    @property
    def resolutions(self) -> Any:
        return (SIZE,)

    def _route(self, arch: Any) -> Iterator[tuple[Elastic, LayerSpec]]:
        return zip(self.blocks, self.specs, strict=True)  # type: ignore[arg-type]


def test_elastic_blocks_take_images_of_their_size_alone(tiny_space: InvertedResidualSpace) -> None:
    net, arch = Fixed(specs_of(tiny_space, SIZE)).eval(), SimpleNamespace(resolution=SIZE)
    assert net(images(), arch).shape == (4, 4)
    with pytest.raises(OutOfDomain, match="images of 28 x 40 px: this architecture takes 40x28 px"):
        net(images().transpose(2, 3), arch)
