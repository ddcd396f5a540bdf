from __future__ import annotations

import numpy as np
import pytest

from onceforall.cost.analytic import MACs, Parameters, PeakActivationMemory
from onceforall.cost.latency import LatencyTable
from onceforall.cost.model import CostModel
from onceforall.search.pricing import PriceTable, pricer
from onceforall.space import SearchSpace


@pytest.mark.parametrize("kind", ["macs", "params", "memory", "latency"])
def test_prices_of_rows_equal_costs_of_layers(kind: str, space: SearchSpace, rng: np.random.Generator) -> None:
    model: CostModel = {
        "macs": MACs(),
        "params": Parameters(),
        "memory": PeakActivationMemory(),
        "latency": LatencyTable.synthetic(space),
    }[kind]
    rows = space.sample_rows(50, rng)
    expected = [model.cost(space.lower(arch)) for arch in space.from_rows(rows)]
    np.testing.assert_allclose(pricer(space, model)(rows), expected)


def test_a_constant_is_counted_once(tiny_space: SearchSpace, rng: np.random.Generator) -> None:
    table = LatencyTable(**{**vars_of(LatencyTable.synthetic(tiny_space)), "constant": 5.0})
    rows = tiny_space.sample_rows(5, rng)
    difference = PriceTable(tiny_space, table)(rows) - PriceTable(tiny_space, LatencyTable.synthetic(tiny_space))(rows)
    np.testing.assert_allclose(difference, 5.0)


def vars_of(table: LatencyTable) -> dict[str, object]:
    return {"device": table.device, "entries": table.entries}


def test_cheapest_is_exact(tiny_space: SearchSpace) -> None:
    """Against every architecture of one resolution, with prices that do not grow with size."""
    space = tiny_space.restrict(resolutions=[16], kernels=[3, 7], depths=[1, 2], expands=[3, 6])
    rng = np.random.default_rng(1)

    class Random(MACs):
        prices: dict[str, float] = {}  # noqa: RUF012

        def layer_cost(self, layer) -> float:  # type: ignore[no-untyped-def]
            return self.prices.setdefault(layer.key, float(rng.normal()))

    model = Random()
    rows, costs = PriceTable(space, model).cheapest()
    everything = np.unique(space.sample_rows(20_000, np.random.default_rng(0)), axis=0)
    assert len(everything) == space.size
    assert costs[0] == pytest.approx(PriceTable(space, model)(everything).min())
    assert space.from_rows(rows)  # a valid architecture
