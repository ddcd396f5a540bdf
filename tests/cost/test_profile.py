from __future__ import annotations

import pytest
from torch import nn

from onceforall.cost.latency import unique_layers
from onceforall.cost.profile import profile
from onceforall.devices.device import Device, Files, Images, Session, Shape
from onceforall.devices.onnxruntime import OnnxRuntimeDevice
from onceforall.errors import InvalidConfiguration
from onceforall.space import SearchSpace


def test_profile_on_onnx_runtime_covers_the_space_and_judges_itself(tiny_space: SearchSpace) -> None:
    steps = set()
    table = profile(
        tiny_space,
        OnnxRuntimeDevice(),
        calibrating=8,
        validating=4,
        turns=3,
        burst_seconds=0.001,
        report=lambda step, done, total: steps.add(step),
    )
    assert set(table.entries) == {layer.key for layer in unique_layers(tiny_space)}
    assert all(timing.median > 0 and timing.count == 3 for timing in table.entries.values())
    assert table.validation is not None
    assert table.validation.networks == 4
    assert table.device["runtime"].startswith("onnxruntime ")
    assert steps == {"preparing", "timing"}
    small, large = (table.cost(tiny_space.lower(a)) for a in (tiny_space.smallest(), tiny_space.largest()))
    assert 0 < small < large


def test_random_weights_do_not_change_torchs_generator(tiny_space: SearchSpace) -> None:
    class Idle(Session):
        def feed(self, images: Images) -> None: ...

        def run(self) -> None: ...

        def output(self) -> Images:
            raise NotImplementedError

    class Fake(Device):
        name = "fake"

        def describe(self) -> dict[str, object]:
            return {"name": self.name}

        def convert(self, network: nn.Module | bytes, input_shape: Shape, calibration: Images | None = None) -> Files:
            assert isinstance(network, nn.Module)
            assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
            return {}

        def load(self, files: Files, input_shape: Shape) -> Session:
            return Idle()

    table = profile(tiny_space, Fake(), calibrating=3, validating=3, turns=2, burst_seconds=0.0)
    assert table.device == {"name": "fake"}


@pytest.mark.parametrize(("calibrating", "validating", "turns"), [(2, 3, 2), (3, 2, 2), (3, 3, 1)])
def test_too_few_measurements_are_refused(
    calibrating: int, validating: int, turns: int, tiny_space: SearchSpace
) -> None:
    with pytest.raises(InvalidConfiguration, match="expected at least"):
        profile(tiny_space, OnnxRuntimeDevice(), calibrating=calibrating, validating=validating, turns=turns)
