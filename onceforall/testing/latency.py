"""What every latency table must do."""

from __future__ import annotations

import json
import math

import numpy as np
from numpy.typing import NDArray

from onceforall.cost.latency import LatencyTable, LatencyTables
from onceforall.errors import InfeasibleConstraint, OutOfDomain
from onceforall.layers import LinearSpec
from onceforall.rows import Rows
from onceforall.search.evolution import search
from onceforall.search.pricing import PriceTable
from onceforall.space import SearchSpace
from onceforall.testing.common import assert_prices, raises, some

Table = LatencyTable | LatencyTables


class LatencyTableSuite:
    """What every latency table must do. A subclass provides the fixtures `space` and `table`.

    A layer may cost nothing where the device runs it inside another one.
    """

    def test_every_layer_of_the_space_has_a_cost(self, space: SearchSpace, table: Table) -> None:
        for resolution in space.resolutions:
            for layer in space.layers(resolution):
                cost = table.at(resolution).layer_cost(layer)
                assert 0 <= cost < math.inf, f"{layer.key} at {resolution} px takes {cost} ms"

    def test_a_network_takes_a_constant_and_the_sum_of_its_layers(self, space: SearchSpace, table: Table) -> None:
        for arch in some(space, 20):
            layers, local = space.lower(arch), table.at(arch.resolution)
            expected = local.constant + sum(map(local.layer_cost, layers))
            assert 0 < expected < math.inf, f"{arch} takes {expected} ms"
            for cost in (table.cost(layers), local.cost(layers)):
                assert math.isclose(cost, expected), f"{arch} takes {cost} ms, its layers {expected} ms"

    def test_round_trip_through_the_text_of_json(self, space: SearchSpace, table: Table) -> None:
        again = type(table).from_json(json.loads(json.dumps(table.to_json())))
        assert again.to_json() == table.to_json(), "read and written again, the table is another"
        for arch in some(space, 20):
            before, after = (model.cost(space.lower(arch)) for model in (table, again))
            assert before == after, f"{arch} takes {before} ms, and {after} ms after a round trip"

    def test_an_unknown_layer_is_refused_by_name(self, space: SearchSpace, table: Table) -> None:
        layer = LinearSpec(10**6 + 3, 10**6 + 33)
        for resolution in space.resolutions:
            with raises(OutOfDomain, layer.key):
                table.at(resolution).layer_cost(layer)

    def test_prices_of_rows_are_the_costs_of_their_layers(self, space: SearchSpace, table: Table) -> None:
        assert_prices(space, table)

    def test_a_bound_out_of_reach_is_refused_with_the_smallest_latency(self, space: SearchSpace, table: Table) -> None:
        least = float(PriceTable(space, table).cheapest()[1].min())
        with raises(InfeasibleConstraint, f"{table.name} <= ") as caught:
            search(space, _Indifferent(space), [table.at_most(0.9 * least)])
        assert math.isclose(caught[0].smallest, least), f"the error says {caught[0].smallest} ms instead of {least} ms"
        limit = table.at_most(least * (1 + 1e-9))
        arch = search(space, _Indifferent(space), [limit], generations=1, population=4).architecture
        assert math.isclose(table.cost(space.lower(arch)), least), f"{arch} does not take {least} ms"


class _Indifferent:
    def __init__(self, space: SearchSpace) -> None:
        self.space = space

    def predict_rows(self, rows: Rows) -> NDArray[np.float64]:
        return np.zeros(len(rows))
