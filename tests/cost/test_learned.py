from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onceforall import spaces
from onceforall.cost.features import CONVOLUTIONAL, NAMES, QUANTITIES
from onceforall.cost.latency import LatencyTable, LatencyTables
from onceforall.cost.learned import LearnedLatency, load_latency
from onceforall.cost.validation import Errors, Validation
from onceforall.errors import InvalidConfiguration, OutOfDomain
from onceforall.layers import LayerSpec
from onceforall.search.pricing import pricer
from onceforall.space import SearchSpace
from onceforall.spaces.inverted_residual import InvertedResidualSpace

Layers = tuple[LayerSpec, ...]


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return spaces.mobilenet_v3_small_images()


@pytest.fixture(scope="module")
def networks(space: SearchSpace) -> list[Layers]:
    """The extremes first, so that every resolution is within reach."""
    rng = np.random.default_rng(0)
    ends = [space.restrict(resolutions=[size]) for size in (space.resolutions[0], space.resolutions[-1])]
    archs = [arch for end in ends for arch in (end.smallest(), end.largest())]
    return [space.lower(arch) for arch in (*archs, *(space.sample(rng) for _ in range(196)))]


def overlapping(layers: Layers) -> float:
    """A device on which calls and MACs overlap: whichever takes longer counts. No sum over layers can say that."""
    return 0.2 + max(0.05 * len(layers), sum(layer.macs for layer in layers) / 2e7)


def test_it_learns_what_no_sum_over_layers_can_say(space: SearchSpace, networks: list[Layers]) -> None:
    truth = np.array([overlapping(layers) for layers in networks])
    learned = LearnedLatency.fit(networks[:120], truth[:120], {"name": "gpu"})
    table = LatencyTable.synthetic(space).corrected(networks[:120], truth[:120].tolist())
    found = Errors.of(learned.costs(networks[120:]), truth[120:])
    summed = Errors.of([table.cost(layers) for layers in networks[120:]], truth[120:])
    assert found.mape < 1
    assert found.mape < summed.mape / 3
    assert found.spearman > summed.spearman
    assert learned.cost(networks[150]) == pytest.approx(learned.costs(networks)[150])


def test_ten_measurements_adapt_the_table_of_another_device(space: SearchSpace, networks: list[Layers]) -> None:
    rng = np.random.default_rng(2)  # layers are fast or slow there, whatever their MACs
    even = LatencyTable.synthetic(space, macs_per_ms=3e6, overhead_ms=0.02).entries
    factors = {key: rng.lognormal(0, 0.7) for key in even}
    other = LatencyTable({}, {key: replace(even[key], median=even[key].median * factors[key]) for key in even})
    truth = np.array([1.3 * other.cost(layers) ** 1.1 + 0.1 for layers in networks])
    adapted = LearnedLatency.fit(networks[:10], truth[:10], {}, other)
    alone = LearnedLatency.fit(networks[:10], truth[:10], {})
    found, without = (Errors.of(model.costs(networks[10:]), truth[10:]) for model in (adapted, alone))
    assert found.spearman > 0.98
    assert found.mape < 2 < without.mape


def test_uncertainty_covers_the_noise(networks: list[Layers]) -> None:
    rng = np.random.default_rng(1)
    truth = np.array([overlapping(layers) for layers in networks]) * np.exp(rng.normal(0, 0.05, len(networks)))
    model = LearnedLatency.fit(networks[:120], truth[:120], {})
    predicted, deviation = model.costs(networks[120:]), model.uncertainty(networks[120:])
    inside = np.abs(predicted - truth[120:]) < deviation
    assert 0.5 < inside.mean() < 0.9  # 0.68 of a normal distribution


def test_a_measurement_that_all_others_contradict_is_left_out(networks: list[Layers]) -> None:
    truth = np.array([overlapping(layers) for layers in networks])
    disturbed = truth.copy()
    disturbed[50] *= 3
    found = LearnedLatency.fit(networks[:100], disturbed[:100], {})
    assert len(found.measured) <= 99
    assert disturbed[50] not in found.measured
    assert Errors.of(found.costs(networks[100:]), truth[100:]).mape < 1


def test_a_size_that_it_never_saw_is_out_of_its_domain(networks: list[Layers]) -> None:
    learned = LearnedLatency.fit(networks[:20], [overlapping(layers) for layers in networks[:20]], {})
    large = spaces.mobilenet_v3_small_images((48,))
    with pytest.raises(OutOfDomain, match="48 px: this latency was learnt from networks of 20 to 32 px"):
        learned.cost(large.lower(large.smallest()))


@pytest.mark.parametrize("latency", [0.0, -1.0, float("nan")])
def test_what_is_no_latency_is_refused(latency: float, networks: list[Layers]) -> None:
    with pytest.raises(InvalidConfiguration, match="above 0"):
        LearnedLatency.fit(networks[:6], [1.0, 2.0, 1.0, 2.0, 1.0, latency], {})
    with pytest.raises(InvalidConfiguration, match="at least 5"):
        LearnedLatency.fit(networks[:4], [1.0, 2.0, 1.0, 2.0], {})


@pytest.mark.parametrize("kind", ["none", "table", "tables"])
def test_a_file_gives_the_same_latencies(kind: str, space: SearchSpace, networks: list[Layers], tmp_path: Path) -> None:
    table = LatencyTable.synthetic(space)
    base = {"none": None, "table": table, "tables": LatencyTables(dict.fromkeys(space.resolutions, table))}[kind]
    truth = [overlapping(layers) for layers in networks]
    learned = LearnedLatency.fit(networks[:40], truth[:40], {"name": "gpu"}, base)
    learned = replace(learned, validation=Validation.of(["random"] * 2, [1.0, 2.0], [1.0, 2.1], 0.5))
    learned.save(tmp_path / "gpu.json")
    again = load_latency(tmp_path / "gpu.json")
    assert isinstance(again, LearnedLatency)
    assert np.array_equal(again.costs(networks), learned.costs(networks))
    assert again.to_json() == learned.to_json()
    assert learned.summary()["networks"] == 40


def test_a_network_that_does_what_none_did_is_out_of_its_domain(networks: list[Layers]) -> None:
    learned = LearnedLatency.fit(networks[:20], [overlapping(layers) for layers in networks[:20]], {})
    assert learned.inputs.shape[1] == len(CONVOLUTIONAL) * len(QUANTITIES)  # as files have always had them
    assert list(NAMES[:-12]) == learned.to_json()["features"]
    sums = np.zeros((1, len(NAMES) + 1))
    sums[0, NAMES.index("attention: calls")] = 1
    with pytest.raises(OutOfDomain, match="a network with attention: this latency was learnt from networks without"):
        learned.of_sums(sums, np.array([32]))


def test_a_foreign_file_is_refused(networks: list[Layers]) -> None:
    learned = LearnedLatency.fit(networks[:10], [overlapping(layers) for layers in networks[:10]], {})
    good = json.loads(json.dumps(learned.to_json()))
    for change, message in (
        ({"format": "other"}, "format 'other'"),
        ({"features": ["MACs"]}, "other features"),
        ({"inputs": good["inputs"][:5]}, "not a learned latency"),
        ({"kernel": [1.0]}, "not a learned latency"),
        ({"measured": None}, "not a learned latency"),
    ):
        with pytest.raises(InvalidConfiguration, match=message):
            LearnedLatency.from_json({**good, **change})


def test_rectangular_images_have_the_side_of_a_square_of_as_many_pixels(tiny_space: InvertedResidualSpace) -> None:
    space = replace(tiny_space, resolutions=(16, (32, 16), 32))
    whole = LatencyTable.synthetic(space)
    archs = [space.sample(np.random.default_rng(seed)) for seed in range(40)]
    layers = [space.lower(arch) for arch in archs]
    model = LearnedLatency.fit(layers, [whole.cost(own) for own in layers], {"name": "made up"})
    wide = replace(space.largest(), resolution=(32, 16))
    assert model.cost(space.lower(wide)) == pytest.approx(whole.cost(space.lower(wide)), rel=0.2)
    assert LearnedLatency.from_json(json.loads(json.dumps(model.to_json()))).cost(layers[0]) == model.cost(layers[0])
    tables = LatencyTables(dict.fromkeys(space.resolutions, whole))
    again = LatencyTables.from_json(json.loads(json.dumps(tables.to_json())))
    assert again.cost(space.lower(wide)) == whole.cost(space.lower(wide))
    with pytest.raises(OutOfDomain, match="no latency table for 32x24 px: there are tables for 16, 32x16, 32 px"):
        again.at((32, 24))
    rows = space.sample_rows(20, np.random.default_rng(0))
    costs = [model.cost(space.lower(arch)) for arch in space.from_rows(rows)]
    assert pricer(space, model)(rows) == pytest.approx(costs)
