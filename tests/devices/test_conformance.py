"""The runtimes that are installed, each precision, under the suite that we ship; and mistakes that it must find."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from onceforall.devices.device import Device, Files, Images, Session, Shape
from onceforall.devices.onnx import as_onnx, nodes_of_layers
from onceforall.devices.onnxruntime import OnnxRuntimeDevice
from onceforall.devices.timing import Turns
from onceforall.testing.devices import DeviceSuite

MakeDevice = Callable[[str, str], Device]


class TestOnnxRuntime(DeviceSuite):
    @pytest.fixture(params=["fp32", "int8"])
    def device(self, request: pytest.FixtureRequest, make_device: MakeDevice) -> Device:
        return make_device("onnxruntime", request.param)


class TestTorch(DeviceSuite):
    @pytest.fixture(params=["fp32", "bf16"])
    def device(self, request: pytest.FixtureRequest, make_device: MakeDevice) -> Device:
        return make_device("torch", request.param)


class TestTorchCuda(DeviceSuite):
    @pytest.fixture(params=["fp32", "bf16"])
    def device(self, request: pytest.FixtureRequest, make_device: MakeDevice) -> Device:
        return make_device("torch-cuda", request.param)


class TestOpenVino(DeviceSuite):
    @pytest.fixture(params=["fp32", "bf16", "int8"])
    def device(self, request: pytest.FixtureRequest, make_device: MakeDevice) -> Device:
        return make_device("openvino", request.param)


class TestNcnn(DeviceSuite):
    batches = (1,)

    @pytest.fixture(params=["fp32", "bf16"])
    def device(self, request: pytest.FixtureRequest, make_device: MakeDevice) -> Device:
        return make_device("ncnn", request.param)


class TestLiteRt(DeviceSuite):
    @pytest.fixture(params=["litert fp32", "litert int8", "litert-builtin fp32", "litert-builtin int8"])
    def device(self, request: pytest.FixtureRequest, make_device: MakeDevice) -> Device:
        return make_device(*request.param.split())


class TestExecuTorch(DeviceSuite):
    @pytest.fixture(params=["fp32", "int8"])
    def device(self, request: pytest.FixtureRequest, make_device: MakeDevice) -> Device:
        return make_device("executorch", request.param)


def test_a_compiled_network_computes_what_torch_computes(make_device: MakeDevice) -> None:
    """The rest of the suite would compile for minutes."""
    DeviceSuite().test_batches_are_computed_image_by_image(make_device("torch-compiled", "fp32"))


# Mistakes


class Wrapped(Session):
    """Another session, to make mistakes with."""

    def __init__(self, inner: Session) -> None:
        self.inner = inner

    def feed(self, images: Images) -> None:
        self.inner.feed(images)

    def run(self) -> None:
        self.inner.run()

    def output(self) -> Images:
        return self.inner.output()


class Doubled(Wrapped):
    def output(self) -> Images:
        return 2 * self.inner.output()


class Noisy(Wrapped):
    def output(self) -> Images:
        result = self.inner.output()
        return result * (1 + np.random.default_rng().uniform(0, 1e-5))


class Deaf(Wrapped):
    fed = False

    def feed(self, images: Images) -> None:
        if not self.fed:
            self.inner.feed(images)
        self.fed = True


class Shared(Wrapped):
    last: Any = None

    def run(self) -> None:
        self.inner.run()
        if Shared.last is None or Shared.last.shape != self.inner.output().shape:
            Shared.last = self.inner.output().copy()
        Shared.last[:] = self.inner.output()

    def output(self) -> Images:
        return Shared.last


class Mistaken(OnnxRuntimeDevice):
    kind: type[Wrapped]

    def load(self, files: Files, input_shape: Shape) -> Session:
        return self.kind(super().load(files, input_shape))


def with_session(kind: type[Wrapped]) -> Callable[[], Device]:
    return type(kind.__name__, (Mistaken,), {"kind": kind})


class SaysNoProcessor(OnnxRuntimeDevice):
    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "processor": ""}


class TakesAnything(OnnxRuntimeDevice):
    def __init__(self, threads: int = 1, precision: str = "fp32") -> None:
        super().__init__()


class ConvertsToNoise(OnnxRuntimeDevice):
    suffixes = (".onnx", ".noise")

    def convert(
        self, network: nn.Module | bytes, input_shape: Shape, calibration: Images | None = None, kept: Any = ()
    ) -> Files:
        files = super().convert(network, input_shape, calibration, kept)
        return {**files, ".noise": np.random.default_rng().bytes(8)}


class SaysOtherSuffixes(OnnxRuntimeDevice):
    suffixes = (".onnx", ".bin")


class ChangesWeights(OnnxRuntimeDevice):
    def convert(
        self, network: nn.Module | bytes, input_shape: Shape, calibration: Images | None = None, kept: Any = ()
    ) -> Files:
        files = super().convert(network, input_shape, calibration, kept)
        assert isinstance(network, nn.Module)
        with torch.no_grad():
            next(network.parameters()).add_(1)
        return files


class ForgetsTurns(OnnxRuntimeDevice):
    def time(self, networks: Any, turns: Turns, **options: Any) -> Any:
        return super().time(networks, turns, keep=options["keep"])


class TimesOneForAll(OnnxRuntimeDevice):
    def time(self, networks: Any, turns: Turns, **options: Any) -> Any:
        return super().time([networks[0]] * len(networks), turns, **options)


class Disturbed(OnnxRuntimeDevice):
    """Another process takes the processor whenever the smaller network is timed."""

    def time(self, networks: Any, turns: Turns, **options: Any) -> Any:
        ms = super().time(networks, turns, **options)
        if not options.get("done"):
            ms[0] += 1e3
        return ms


def test_a_busy_machine_is_no_mistake_of_a_device() -> None:
    timed = [name for name in dir(DeviceSuite) if name.startswith("test_") and ("time" in name or "takes" in name)]
    assert timed
    for name in timed:
        getattr(DeviceSuite(), name)(Disturbed())


@pytest.mark.parametrize(
    ("device", "test", "message"),
    [
        (with_session(Doubled), "test_blocks_compute_what_torch_computes", "ConvSpec.* differ from torch's by 1 of"),
        (with_session(Noisy), "test_runs_repeat_and_sessions_do_not_disturb_each_other", "gave (another|diff)"),
        (with_session(Deaf), "test_runs_repeat_and_sessions_do_not_disturb_each_other", "gave the same output"),
        (with_session(Shared), "test_runs_repeat_and_sessions_do_not_disturb_each_other", "an output changed when"),
        (SaysNoProcessor, "test_it_says_what_it_is_in_the_text_of_json", "says no processor"),
        (TakesAnything, "test_impossible_settings_are_refused_by_name", "expected InvalidConfiguration: ... threads 0"),
        (ConvertsToNoise, "test_a_network_is_converted_to_the_same_bytes", "converted again, .noise has other bytes"),
        (SaysOtherSuffixes, "test_a_network_is_converted_to_the_same_bytes", "files are .onnx, `suffixes` .*bin"),
        (ChangesWeights, "test_a_network_is_converted_to_the_same_bytes", "conversion changed the weights"),
        (ForgetsTurns, "test_times_are_positive_and_a_measurement_goes_on", "was measured again"),
        (TimesOneForAll, "test_times_are_positive_and_a_measurement_goes_on", r"\(1, 3, 16, 16\) was run 0 times"),
    ],
)  # fmt: skip
def test_a_mistake_of_a_device_is_found(device: Callable[[], Device], test: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        getattr(DeviceSuite(), test)(device())


class TakesAnyImages(OnnxRuntimeDevice):
    def convert(
        self, network: nn.Module | bytes, input_shape: Shape, calibration: Images | None = None, kept: Any = ()
    ) -> Files:
        return super().convert(network, input_shape, kept=kept)


def test_ignored_calibration_images_are_found() -> None:
    with pytest.raises(AssertionError, match=r"expected InvalidConfiguration: ... \[4, 3, 20, 20\]"):
        DeviceSuite().test_calibration_images_must_fit(TakesAnyImages(precision="int8"))


class KeepsNothing(OnnxRuntimeDevice):
    def convert(
        self, network: nn.Module | bytes, input_shape: Shape, calibration: Images | None = None, kept: Any = ()
    ) -> Files:
        nodes_of_layers(as_onnx(network, input_shape), kept)
        return super().convert(network, input_shape, calibration)


class KeepsAll(OnnxRuntimeDevice):
    def convert(
        self, network: nn.Module | bytes, input_shape: Shape, calibration: Images | None = None, kept: Any = ()
    ) -> Files:
        files = super().convert(network, input_shape, calibration, kept)
        return OnnxRuntimeDevice().convert(network, input_shape) if kept else files


class KeepsAllOrNone(OnnxRuntimeDevice):
    def convert(
        self, network: nn.Module | bytes, input_shape: Shape, calibration: Images | None = None, kept: Any = ()
    ) -> Files:
        return super().convert(network, input_shape, calibration, () if set(kept) == {2, 3} else kept)


class SaysItKeepsNone(OnnxRuntimeDevice):
    keeps_layers = False

    def check_kept(self, kept: Collection[int]) -> None:
        pass


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (KeepsNothing, "all layers kept, outputs differ"),
        (KeepsAll, "is anything quantised"),
        (KeepsAllOrNone, "none was kept"),
        (SaysItKeepsNone, r"expected InvalidConfiguration: ... kept layers \[5\]"),
    ],
)
def test_layers_that_are_not_kept_as_said_are_found(device: type[Device], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        DeviceSuite().test_kept_layers_stay_in_floating_point(device(precision="int8"))
