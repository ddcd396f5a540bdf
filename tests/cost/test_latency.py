from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onceforall import spaces
from onceforall.cost.latency import LatencyTable, Timing, fit_line, unique_layers
from onceforall.cost.learned import load_latency
from onceforall.cost.model import Constraint
from onceforall.cost.validation import Validation
from onceforall.errors import InvalidConfiguration, OutOfDomain
from onceforall.space import SearchSpace


def test_a_synthetic_table_prices_every_network(space: SearchSpace, rng: np.random.Generator) -> None:
    table = LatencyTable.synthetic(space, macs_per_ms=1e6, overhead_ms=0.5)
    for _ in range(10):
        layers = space.lower(space.sample(rng))
        expected = sum(layer.macs / 1e6 + 0.5 for layer in layers)
        assert table.cost(layers) == pytest.approx(expected)


def test_unique_layers_have_distinct_keys_and_cover_the_space(space: SearchSpace, rng: np.random.Generator) -> None:
    keys = [layer.key for layer in unique_layers(space)]
    assert len(keys) == len(set(keys))
    for _ in range(20):
        assert {layer.key for layer in space.lower(space.sample(rng))} <= set(keys)


def test_equal_keys_mean_equal_costs(space: SearchSpace) -> None:
    seen = {}
    for resolution in space.resolutions:
        for layer in space.layers(resolution):
            known = seen.setdefault(layer.key, layer)
            assert (known.macs, known.params, known.operations) == (layer.macs, layer.params, layer.operations)


def test_an_unknown_layer_is_an_error_that_names_it(tiny_space: SearchSpace) -> None:
    table = LatencyTable.synthetic(tiny_space)
    foreign = spaces.mobilenet_v3()
    with pytest.raises(OutOfDomain, match=r"layer conv:224:3>16\S* is not in the latency table of synthetic"):
        table.cost(foreign.lower(foreign.largest()))


def test_a_table_that_ranks_networks_the_wrong_way_round_is_not_turned_round() -> None:
    scale, _ = fit_line([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])
    assert 0 < scale < 1e-6


def test_correction_recovers_scale_and_constant(tiny_space: SearchSpace, rng: np.random.Generator) -> None:
    table = LatencyTable.synthetic(tiny_space)
    networks = [tiny_space.lower(tiny_space.sample(rng)) for _ in range(20)]
    truth = [1.7 * table.cost(layers) + 0.3 for layers in networks]
    corrected = table.corrected(networks, truth)
    assert (corrected.scale, corrected.constant) == (pytest.approx(1.7), pytest.approx(0.3))
    assert [corrected.cost(layers) for layers in networks] == pytest.approx(truth)
    # Correcting again starts from the plain sums, not from the last correction.
    assert corrected.corrected(networks, truth).scale == pytest.approx(1.7)


def test_correction_needs_three_networks(tiny_space: SearchSpace) -> None:
    layers = tiny_space.lower(tiny_space.largest())
    with pytest.raises(InvalidConfiguration, match="at least 3"):
        LatencyTable.synthetic(tiny_space).corrected([layers, layers], [1.0, 1.0])


def test_json_round_trip(tiny_space: SearchSpace, tmp_path: Path) -> None:
    table = replace(
        LatencyTable.synthetic(tiny_space),
        scale=1.1,
        constant=0.2,
        validation=Validation.of(["random", "uniform"] * 2, [1.0, 2.0, 3.0, 4.0], [1.1, 2.0, 3.0, 4.2], 0.5, 0.1),
    )
    table.save(tmp_path / "device.json")
    assert LatencyTable.load(tmp_path / "device.json") == table


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ('{"format": "other"}', "format 'other'"),
        ('{"format": "onceforall.latency/1", "device": {}}', "not a latency table"),
    ],
)
def test_a_foreign_file_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    path.write_text(content)
    with pytest.raises(InvalidConfiguration, match=message):
        LatencyTable.load(path)
    with pytest.raises(InvalidConfiguration, match="cannot read"):
        LatencyTable.load(tmp_path / "missing.json")


def test_a_file_is_readable_by_people(tiny_space: SearchSpace, tmp_path: Path) -> None:
    LatencyTable.synthetic(tiny_space).save(tmp_path / "device.json")
    value = json.loads((tmp_path / "device.json").read_text())
    assert value["unit"] == "ms"
    assert value["device"]["name"] == "synthetic"
    assert set(next(iter(value["entries"].values()))) == {"median", "spread", "count"}


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
def test_a_bound_must_be_positive_and_finite(bound: float, tiny_space: SearchSpace) -> None:
    with pytest.raises(InvalidConfiguration, match="positive, finite"):
        LatencyTable.synthetic(tiny_space).at_most(bound)


def test_a_constraint_reads_as_a_sentence(tiny_space: SearchSpace) -> None:
    table = LatencyTable({}, {"x": Timing(1.0, 0.0, 1)})
    assert str(Constraint(table, 8.0)) == "latency <= 8 ms"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": -1.0}, "scale -1.0: expected a finite number above 0"),
        ({"constant": -100.0}, "constant -100.0: expected a finite time of at least -"),
        ({"median": -5.0}, "median -5.0: expected a finite time of at least 0 ms"),
        ({"median": "x"}, "Expected `float`, got `str`"),
        ({"count": -1}, "count -1: expected an integer of at least 0"),
        ({"more": 1}, "unknown field"),
    ],
)
def test_a_file_with_times_that_cannot_be_is_refused_by_its_name(
    change: dict[str, Any], message: str, tiny_space: SearchSpace, tmp_path: Path
) -> None:
    value = LatencyTable.synthetic(tiny_space).to_json()
    table = change.keys() & {"scale", "constant"}
    (value if table else next(iter(value["entries"].values()))).update(change)
    (tmp_path / "t.json").write_text(json.dumps(value))
    with pytest.raises(InvalidConfiguration, match=f"t.json: .*{message}"):
        load_latency(tmp_path / "t.json")
