"""Conformance suite of devices: what every runtime must do, ours and other people's.

Subclass it in a test file and give it its fixture; pytest then runs every test of the suite:

    class TestMyDevice(DeviceSuite):  # from onceforall.testing import DeviceSuite
        @pytest.fixture(params=["fp32", "int8"])
        def device(self, request):
            return MyDevice(threads=1, precision=request.param)
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from onceforall.devices.device import Device, Files, Images, Kept, Session, Shape
from onceforall.devices.measure import random_images
from onceforall.devices.timing import Turns
from onceforall.errors import InvalidConfiguration
from onceforall.layers import BottleneckSpec, ConvSpec, LayerSpec, LinearSpec, MaxPoolSpec, MBConvSpec, PoolSpec
from onceforall.nn.subnet import build, fold_batch_norm, initialise
from onceforall.profiling.profile import EMPTY
from onceforall.testing.common import raises, scramble

# Each kind of block in its variants, on feature maps small enough for slow converters, some of an odd size.
BLOCKS: tuple[LayerSpec, ...] = (
    ConvSpec(12, 3, 8, 3, 2, "h_swish"),
    ConvSpec(7, 8, 16, 1, 1, "relu", shortcut=False),
    ConvSpec(1, 16, 24, 1, 1, "h_swish", batch_norm=False),
    MBConvSpec(8, 8, 24, 8, 3, 1, "relu", 0, shortcut=True),
    MBConvSpec(7, 8, 32, 16, 5, 2, "h_swish", 8, shortcut=False),
    MBConvSpec(7, 8, 8, 16, 7, 1, "relu6", 0, shortcut=False, expanded=False),
    BottleneckSpec(5, 16, 8, 24, 2, "relu", downsample=True),
    BottleneckSpec(6, 16, 8, 16, 1, "relu", downsample=False),
    MaxPoolSpec(9, 8, 3, 2),
    PoolSpec(4, 16),
    LinearSpec(24, 10),
)
MOBILE: tuple[LayerSpec, ...] = (
    ConvSpec(16, 3, 8, 3, 2, "h_swish"),
    MBConvSpec(8, 8, 24, 16, 5, 2, "relu", 0, shortcut=False),
    MBConvSpec(4, 16, 64, 16, 3, 1, "h_swish", 16, shortcut=True),
    ConvSpec(4, 16, 32, 1, 1, "h_swish"),
    PoolSpec(4, 32),
    LinearSpec(32, 10),
)
RESIDUAL: tuple[LayerSpec, ...] = (
    ConvSpec(18, 3, 16, 3, 2, "relu"),
    MaxPoolSpec(9, 16, 3, 2),
    BottleneckSpec(5, 16, 8, 24, 2, "relu", downsample=True),
    BottleneckSpec(3, 24, 8, 24, 1, "relu", downsample=False),
    PoolSpec(3, 24),
    LinearSpec(24, 10),
)


class DeviceSuite:
    """What every device must do. A subclass provides the fixture `device`.

    `batches`: a runtime of single images says (1,). `reproducible`: whether a network converted twice gives
    the same bytes. `tolerance`, by precision: the largest difference to torch, relative to the largest
    output; a precision without one, such as int8, must correlate with torch instead.
    """

    batches: ClassVar[tuple[int, ...]] = (1, 4)
    reproducible: ClassVar[bool] = True
    tolerance: ClassVar[dict[str, float]] = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
    correlation: ClassVar[float] = 0.99

    def test_it_says_what_it_is_in_the_text_of_json(self, device: Device) -> None:
        found = device.describe()
        assert json.loads(json.dumps(found)) == found, f"{found} is not the same after a round trip through JSON"
        for key in ("name", "runtime", "threads", "precision", "processor"):
            assert found.get(key), f"the description says no {key}"
        assert (found["threads"], found["precision"]) == (device.threads, device.precision), f"it says {found}"

    def test_impossible_settings_are_refused_by_name(self, device: Device) -> None:
        for threads, precision, text in ((0, device.precision, "threads 0"), (1, "fp3", "precision 'fp3'")):
            with raises(InvalidConfiguration, text):
                self.another(device, threads, precision)

    def another(self, device: Device, threads: int, precision: str) -> Device:
        """A device like this one with other settings."""
        return device.remade(threads, precision)

    def test_blocks_compute_what_torch_computes(self, device: Device) -> None:
        for number, spec in enumerate(BLOCKS):
            self._assert_parity(device, *_network([spec], seed=number), 16, str(spec))

    def test_networks_compute_what_torch_computes(self, device: Device) -> None:
        self._assert_parity(device, *_network(MOBILE), 16, "a MobileNet")
        self._assert_parity(device, *_network(RESIDUAL), 16, "a residual network")

    def test_batches_are_computed_image_by_image(self, device: Device) -> None:
        for batch in self.batches:
            self._assert_parity(device, *_network(MOBILE, batch), batch, f"a batch of {batch}")

    def test_runs_repeat_and_sessions_do_not_disturb_each_other(self, device: Device) -> None:
        (network, shape), (other, other_shape) = _network(MOBILE), _network(RESIDUAL)
        first, second = _images(shape), _images(shape, seed=1)
        files = device.convert(network, shape, first)
        session, twin = device.load(files, shape), device.load(files, shape)
        stranger = device.prepare(other, other_shape)
        expected = session(first)
        kept = expected.copy()
        twin(second)
        stranger.run()
        assert np.array_equal(expected, kept), "an output changed when other sessions ran"
        session.run()
        assert np.array_equal(session.output(), kept), "the same input gave another output"
        assert not np.array_equal(session(second), kept), "another input gave the same output"
        assert np.array_equal(twin(first), kept), "the same files, loaded twice, gave different outputs"

    def test_a_network_is_converted_to_the_same_bytes(self, device: Device) -> None:
        network, shape = _network(MOBILE)
        images = _images(shape)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        files = device.convert(network, shape, images)
        assert files, "conversion gave no files"
        assert set(files) == set(device.suffixes), f"files are {', '.join(files)}, `suffixes` {device.suffixes}"
        assert all(suffix.startswith(".") and content for suffix, content in files.items()), "a file is empty"
        after = network.state_dict()
        assert before.keys() == after.keys(), "conversion changed the network"
        assert all(torch.equal(before[name], after[name]) for name in before), "conversion changed the weights"
        if self.reproducible:
            again = device.convert(network, shape, images)
            different = [suffix for suffix in files if files[suffix] != again.get(suffix)]
            assert not different, f"converted again, {', '.join(different)} has other bytes"

    def test_memory_formats_do_not_matter(self, device: Device) -> None:
        """Trained networks lie in memory in channels_last."""
        network, shape = _network(MOBILE)
        moved = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._assert_parity(device, moved, shape, 1, "a network in channels_last")

    def test_weights_that_training_switched_off(self, device: Device) -> None:
        """Weight decay leaves next to nothing of a branch that does not help: a bias, which no int32 holds in units of
        its weights' and input's int8.
        """
        network, shape = _network(MOBILE)
        scale: nn.Sequential = network[2].se  # type: ignore[assignment]
        with torch.no_grad():
            for parameter in (scale.reduce.weight, scale.reduce.bias, scale.expand.weight):  # type: ignore[union-attr]
                parameter *= 1e-6  # type: ignore[operator]
            scale.expand.bias.copy_(torch.tensor([-4.0, 4.0]).repeat(32))  # type: ignore[union-attr, operator]
        images = _images((8, *shape[1:]))
        expected, found = _torch(network, images), _outputs(device, network, shape, images)
        error = float(np.abs(found - expected).max() / np.abs(expected).max())
        assert error <= 0.05, f"a squeeze-excite whose weights were switched off: outputs differ by {error:.2g}"

    def test_calibration_images_must_fit(self, device: Device) -> None:
        """Where the precision takes any: those of other sizes and none at all are refused."""
        if device.precision in self.tolerance:
            return
        network, shape = _network(MOBILE)
        for wrong in ((4, 3, 20, 20), (4, 1, *shape[2:]), (0, *shape[1:]), shape[1:]):
            with raises(InvalidConfiguration, str(list(wrong))):
                device.convert(network, shape, np.zeros(wrong, np.float32))

    def test_kept_layers_stay_in_floating_point(self, device: Device) -> None:
        """Where the device can keep any; everywhere else they are refused."""
        network, shape = _network(RESIDUAL)
        images = _images((8, *shape[1:]))
        last = len(RESIDUAL) - 1
        if not device.keeps_layers or device.precision != "int8":
            with raises(InvalidConfiguration, f"kept layers [{last}]"):
                device.convert(network, shape, images, [last])
            return
        for wrong in (-1, last + 1):
            with raises(InvalidConfiguration, f"kept layers [{wrong}]"):
                device.convert(network, shape, images, [0, wrong])
        expected = _torch(network, images)
        errors = []
        for kept in ((), (2, 3), range(len(RESIDUAL))):
            found = _outputs(device, network, shape, images, kept)
            errors.append(float(np.abs(found - expected).max() / np.abs(expected).max()))
        none, some, every = errors
        assert every <= self.tolerance["fp32"], f"all layers kept, outputs differ from torch's by {every:.2g}"
        assert every < some, f"two of {last + 1} layers kept, outputs differ by {some:.2g}: is anything quantised?"
        assert some != none, f"two layers kept or none, outputs differ from torch's by {some:.2g}: none was kept"

    def test_times_are_positive_and_a_measurement_goes_on(self, device: Device) -> None:
        """And each network is run in each turn, where the device loads here what it times.

        Which of two is faster is not asked: on a busy machine, a short measurement does not tell.
        """
        networks = [EMPTY, _network(MOBILE)]
        kept: list[np.ndarray] = []
        turns = Turns(3, 0.0)
        done = [np.array([123.0, 456.0])]
        runs = Counter[Shape]()
        found = _counting(device, runs).time(networks, turns, done=done, keep=kept.append)
        assert found.shape == (2, 3), f"two networks, three turns: shape {found.shape}"
        assert np.isfinite(found).all(), f"times are {found}"
        assert (found > 0).all(), f"times are {found}"
        assert found[:, 0].tolist() == [123.0, 456.0], "the turn that was done was measured again"
        assert np.array_equal(np.stack(kept, axis=1), found[:, 1:]), "new turns were not kept"
        for _, shape in networks if runs else ():
            assert runs[shape] >= 2, f"in two turns, the network of inputs {shape} was run {runs[shape]} times"

    def _assert_parity(self, device: Device, network: nn.Module, shape: Shape, count: int, what: str) -> None:
        """Of so many images, which set the ranges as well, the device makes what torch does."""
        images = _images((count, *shape[1:]))
        expected, found = _torch(network, images), _outputs(device, network, shape, images)
        assert found.shape == expected.shape, f"{what}: an output of shape {found.shape}, torch {expected.shape}"
        assert found.dtype == np.float32, f"{what}: an output of {found.dtype}"
        allowed = self.tolerance.get(device.precision)
        if allowed is not None:
            error = float(np.abs(found - expected).max() / np.abs(expected).max())
            assert error <= allowed, f"{what}: outputs differ from torch's by {error:.2g} of the largest"
        else:
            agreement = float(np.corrcoef(found.ravel(), expected.ravel())[0, 1])
            assert agreement >= self.correlation, f"{what}: correlation with torch's outputs {agreement:.4f}"


def _network(specs: Sequence[LayerSpec], batch: int = 1, seed: int = 0) -> tuple[nn.Sequential, Shape]:
    """A network with random weights, batch norm folded, and its input shape."""
    network = build(specs)
    initialise(network, torch.Generator().manual_seed(seed))
    scramble(network, seed)
    return fold_batch_norm(network), (batch, *specs[0].input_shape)


def _images(shape: Shape, seed: int = 0) -> Images:
    """Random inputs, each image of its own brightness so that outputs differ."""
    images: Images = random_images(shape, seed)
    images += random_images((len(images), 1, 1, 1), seed + 1)
    return images


def _counting(device: Device, runs: Counter[Shape]) -> Device:
    """The same device, whose sessions count their runs by the shape of their input."""
    result = copy.copy(device)

    def load(files: Files, input_shape: Shape) -> Session:
        session = device.load(files, input_shape)
        run = session.run

        def counted() -> None:
            runs[input_shape] += 1
            run()

        session.run = counted  # type: ignore[method-assign]
        return session

    result.load = load  # type: ignore[method-assign]
    return result


def _outputs(device: Device, network: nn.Module, shape: Shape, images: Images, *kept: Kept) -> Images:
    """What a device makes of images, which set the ranges as well, as many at a time as `shape` says."""
    session = device.load(device.convert(network, shape, images, *kept), shape)
    return np.concatenate([session(batch).copy() for batch in np.split(images, len(images) // shape[0])])


def _torch(network: nn.Module, images: Images) -> Images:
    with torch.inference_mode():
        result: Images = network(torch.from_numpy(images)).numpy()
        return result
