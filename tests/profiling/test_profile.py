from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from onceforall import devices
from onceforall.cost.latency import LatencyTable, unique_layers
from onceforall.cost.learned import LearnedLatency
from onceforall.devices import measure
from onceforall.devices.device import Device, Files, Images, Session, Shape
from onceforall.devices.onnxruntime import OnnxRuntimeDevice
from onceforall.devices.remote import RemoteDevice
from onceforall.devices.timing import Turns
from onceforall.errors import InvalidConfiguration, MeasurementPending, OutOfDomain
from onceforall.profiling.measuring import BURSTS, Measured, steady, summarise
from onceforall.profiling.profile import adapt, profile
from onceforall.space import SearchSpace


def test_profile_on_onnx_runtime_covers_the_space_and_judges_itself(tiny_space: SearchSpace) -> None:
    steps = set()
    table = profile(
        tiny_space,
        OnnxRuntimeDevice(),
        calibrating=8,
        validating=4,
        learning=0,
        turns=3,
        burst_seconds=0.001,
        report=lambda step, done, total: steps.add(step),
    )
    assert isinstance(table, LatencyTable)
    assert set(table.entries) == {layer.key for layer in unique_layers(tiny_space)}
    assert all(timing.median > 0 and timing.count == 3 for timing in table.entries.values())
    assert table.validation is not None
    assert table.validation.all.networks == 4
    assert set(table.validation.kinds) == {"all", "uniform", "random"}
    assert table.device["runtime"].startswith("onnxruntime ")
    assert steps == {"preparing", "timing"}
    assert np.isfinite(table.cost(tiny_space.lower(tiny_space.smallest())))  # of times as short, noise may be all


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

    before = torch.get_rng_state()
    table = profile(tiny_space, Fake(), calibrating=8, validating=4, learning=0, turns=2, burst_seconds=0.0)
    assert torch.equal(torch.get_rng_state(), before)
    assert table.device == {"name": "fake"}


class Ideal(Device):
    """Times networks by a formula of their weights and convolutions, with a drift that all of them share."""

    name = "ideal"

    def __init__(self, overlap: bool = False, stop_after: int = 99) -> None:
        super().__init__()
        self.overlap, self.stop_after, self.timed = overlap, stop_after, 0

    def describe(self) -> dict[str, object]:
        return {"name": self.name, "overlap": self.overlap}

    def convert(self, network: nn.Module | bytes, input_shape: Shape, calibration: Images | None = None) -> Files:
        raise NotImplementedError

    def load(self, files: Files, input_shape: Shape) -> Session:
        raise NotImplementedError

    def milliseconds(self, network: Any, shape: Shape) -> float:
        weights = sum(parameter.numel() for parameter in network.parameters()) / 1e4
        calls = sum(isinstance(module, nn.Conv2d) for module in network.modules()) / 10
        return 0.01 + (max(weights, calls) if self.overlap else weights + calls)

    def time(self, networks: Any, turns: Turns, *, done: Any = (), keep: Any = None, report: Any = None) -> Any:
        result = list(done)
        ideal = np.array([self.milliseconds(network, shape) for network, shape in networks])
        for number in range(len(done), turns.count):
            if self.timed == self.stop_after:
                raise KeyboardInterrupt
            self.timed += 1
            result.append(ideal * (1 + 0.1 * number))
            if keep is not None:
                keep(result[-1])
        return np.stack(result, axis=1)


def test_a_summary_is_robust_to_one_bad_turn() -> None:
    timing = summarise(np.array([1.0, 1.0, 1.1, 0.9, 50.0]))
    assert timing.median == 1.0
    assert timing.spread == pytest.approx(0.05)
    assert timing.count == 5


def test_drift_that_all_networks_share_is_taken_out_and_reported(tiny_space: SearchSpace) -> None:
    truth = np.array([1.0, 2.0])
    ms, drift = steady(truth[:, None] * np.array([1.0, 1.1, 1.2]))
    assert np.ptp(ms, axis=1) == pytest.approx(0)
    found = Measured([tiny_space.smallest(), tiny_space.largest()], ms, drift)
    assert found.medians == pytest.approx(1.1 * truth)
    assert found.drift == pytest.approx(50 * 0.2 / 1.1)
    assert found.noise == pytest.approx(0)


def test_noise_is_what_odd_and_even_turns_disagree_by(tiny_space: SearchSpace) -> None:
    ms = np.array([[1.0, 1.2, 1.0, 1.2, 1.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
    found = Measured([tiny_space.smallest(), tiny_space.largest()], ms, 0.0)
    assert found.noise == pytest.approx(50 * (0.2 / 1.0 + 0) / 2)
    assert found.of([tiny_space.smallest()]).noise == pytest.approx(50 * 0.2)


def test_bursts_of_a_network_are_one_row_of_its_own(tiny_space: SearchSpace) -> None:
    archs = [tiny_space.smallest(), tiny_space.largest()]
    ms = np.array([[10 * network + burst] * 2 for burst in range(BURSTS) for network in (1, 2)], float)
    found = Measured.pooled(archs, ms, 0.0)
    assert found.of(archs[1:]).ms.tolist() == [[20, 20, 21, 21, 22, 22]]
    assert found.of(archs[::-1]).medians.tolist() == [21, 11]


def test_where_layers_overlap_a_learned_latency_takes_over(tiny_space: SearchSpace) -> None:
    settings: dict[str, Any] = {"calibrating": 20, "validating": 20, "turns": 2}
    summed = profile(tiny_space, Ideal(), **settings)
    assert isinstance(summed, LatencyTable)
    learned = profile(tiny_space, Ideal(overlap=True), learning=80, **settings)
    assert isinstance(learned, LearnedLatency)
    assert len(learned.measured) > 80
    refused = profile(tiny_space, Ideal(overlap=True), learning=0, **settings)
    assert learned.validation is not None
    assert refused.validation is not None
    assert learned.validation.all.mape < 0.7 * refused.validation.all.mape


def test_networks_of_a_slower_moment_are_brought_to_the_pace_of_the_table(tiny_space: SearchSpace) -> None:
    class Tired(Ideal):
        calls = 0

        def time(self, *given: Any, **named: Any) -> Any:
            self.calls += 1
            return super().time(*given, **named) * self.calls

    settings: dict[str, Any] = {"calibrating": 20, "validating": 20, "turns": 2, "learning": 60}
    once, twice = (profile(tiny_space, device, **settings) for device in (Ideal(overlap=True), Tired(overlap=True)))
    assert isinstance(twice, LearnedLatency)
    for arch in (tiny_space.smallest(), tiny_space.largest()):
        layers = tiny_space.lower(arch)
        assert twice.cost(layers) == pytest.approx(once.cost(layers), rel=1e-6)


def test_another_machine_is_profiled_by_plans_with_the_same_device(tiny_space: SearchSpace, tmp_path: Path) -> None:
    device, file = RemoteDevice(tmp_path / "phone"), tmp_path / "progress.jsonl"
    settings: dict[str, Any] = {"calibrating": 8, "validating": 4, "turns": 2, "burst_seconds": 0.0, "learning": 6}
    plans = 0
    for _ in range(3):  # the table, and where that is not good enough networks for a learned latency
        try:
            table = profile(tiny_space, device, progress=file, **settings)
            break
        except MeasurementPending:
            (plan,) = [path for path in (tmp_path / "phone").iterdir() if not (path / "results.json").exists()]
            measure.measure(plan, say=lambda text: None)
            plans += 1
    assert plans in (1, 2)
    assert table.device["processor"] == measure.describe_machine()["processor"]
    assert not file.exists()
    again = devices.by_name(str(table.device["name"]))
    assert isinstance(again, RemoteDevice)
    assert again.folder == tmp_path / "phone"


def test_an_interrupted_profile_goes_on_with_the_turns_it_has(tiny_space: SearchSpace, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"calibrating": 8, "validating": 4, "turns": 4}
    whole = profile(tiny_space, Ideal(), **settings)
    file = tmp_path / "progress.jsonl"
    with pytest.raises(KeyboardInterrupt):
        profile(tiny_space, Ideal(stop_after=3), progress=file, **settings)
    with pytest.raises(InvalidConfiguration, match="other settings"):
        profile(tiny_space, Ideal(), progress=file, seed=1, **settings)
    device = Ideal()
    resumed = profile(tiny_space, device, progress=file, **settings)
    assert device.timed == 1
    assert resumed.to_json() == whole.to_json()
    assert not file.exists()


def test_given_networks_are_judged_as_a_kind_of_their_own(tiny_space: SearchSpace) -> None:
    rng = np.random.default_rng(5)
    given = [tiny_space.sample(rng) for _ in range(3)]
    table = profile(tiny_space, Ideal(), calibrating=8, validating=4, turns=2, given=given)
    assert table.validation is not None
    assert table.validation.kinds["given"].networks == 3


def test_a_table_of_another_device_is_adapted_with_ten_measurements(tiny_space: SearchSpace) -> None:
    class Slower(Ideal):
        def milliseconds(self, network: Any, shape: Shape) -> float:
            return 2.5 * super().milliseconds(network, shape) + 0.3

    base = profile(tiny_space, Ideal(), calibrating=8, validating=4, turns=2)
    assert isinstance(base, LatencyTable)
    adapted = adapt(base, tiny_space, Slower(), turns=2)
    assert adapted.validation is not None
    assert adapted.validation.all.networks == 32
    assert adapted.validation.all.mape < 2
    assert adapted.base_device == base.device
    again = adapt(adapted, tiny_space, Ideal(), turns=2)  # of a learned latency, the table that it stands on
    assert again.base_device == base.device
    assert again.validation is not None
    assert again.validation.all.mape < 2
    with pytest.raises(InvalidConfiguration, match="learned without a table"):
        adapt(replace(adapted, base=None), tiny_space, Ideal(), turns=2)
    idle = Ideal()
    with pytest.raises(OutOfDomain):
        adapt(LatencyTable.synthetic(tiny_space.restrict(kernels=[3])), tiny_space, idle)
    with pytest.raises(InvalidConfiguration, match="calibrating 4, validating 32: expected at least 5 and 4"):
        adapt(base, tiny_space, idle, calibrating=4)
    assert not idle.timed


def test_an_interrupted_adaptation_goes_on_with_the_turns_it_has(tiny_space: SearchSpace, tmp_path: Path) -> None:
    base, file = LatencyTable.synthetic(tiny_space), tmp_path / "progress.jsonl"
    whole = adapt(base, tiny_space, Ideal(), turns=4)
    with pytest.raises(KeyboardInterrupt):
        adapt(base, tiny_space, Ideal(stop_after=3), turns=4, progress=file)
    device = Ideal()
    resumed = adapt(base, tiny_space, device, turns=4, progress=file)
    assert device.timed == 1
    assert resumed.to_json() == whole.to_json()
    assert not file.exists()


@pytest.mark.parametrize(("calibrating", "validating", "turns"), [(7, 4, 2), (8, 3, 2), (8, 4, 1)])
def test_too_few_measurements_are_refused(
    calibrating: int, validating: int, turns: int, tiny_space: SearchSpace
) -> None:
    with pytest.raises(InvalidConfiguration, match="expected at least"):
        profile(tiny_space, Ideal(), calibrating=calibrating, validating=validating, turns=turns)


def test_a_space_with_fewer_networks_gives_what_it_has(tiny_space: SearchSpace) -> None:
    small = tiny_space.restrict(resolutions=[16], depths=[1, 2], kernels=[3, 5], expands=[3])
    assert small.size < 80
    table = profile(small, Ideal(), turns=2)
    assert table.validation is not None
    assert 4 <= table.validation.all.networks <= 32
    smaller = tiny_space.restrict(resolutions=[16], depths=[1, 2], kernels=[3], expands=[3])
    with pytest.raises(InvalidConfiguration, match=f"this space has {smaller.size} networks, fewer than 12"):
        profile(smaller, Ideal(), turns=2)
