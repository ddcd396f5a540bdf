"""Spaces and tables, ours and somebody else's, under the suites that we ship; and mistakes that those must find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onceforall import spaces
from onceforall.architecture import Architecture, Gene
from onceforall.choices import Unit
from onceforall.cost.latency import LatencyTable, LatencyTables, Timing
from onceforall.errors import OutOfDomain
from onceforall.layers import ConvSpec, Layer, LayerSpec, LinearSpec, MBConvSpec, Operation, PoolSpec, register
from onceforall.rows import Rows
from onceforall.space import SearchSpace
from onceforall.testing import LatencyTableSuite, SearchSpaceSuite


class TestSpaces(SearchSpaceSuite):
    """`space` is each of those in conftest.py."""


class TestSyntheticTables(LatencyTableSuite):
    @pytest.fixture
    def table(self, space: SearchSpace) -> LatencyTable:
        return LatencyTable.synthetic(space)


class TestTablesByResolution(LatencyTableSuite):
    @pytest.fixture
    def table(self, space: SearchSpace) -> LatencyTables:
        """At each resolution, another speed and another constant."""
        tables = {}
        for size in space.resolutions:
            table = LatencyTable.synthetic(space.restrict(resolutions=[size]), macs_per_ms=1e8 / size)
            tables[size] = replace(table, scale=1.1, constant=size / 100)
        return LatencyTables(tables)


# A space of somebody else: its own layers, and nothing of ours but the base class.


@dataclass(frozen=True)
class Plain(SearchSpace):
    """Units that halve the feature maps, 8 channels wide."""

    kind = "plain"

    units: tuple[Unit, ...]

    def stem(self, resolution: int, multiplier: float = 1) -> tuple[LayerSpec, ...]:
        return (ConvSpec(resolution, 3, 8, 3, 1, "relu"),)

    def block(
        self, resolution: int, unit: int, index: int, gene: Gene, multiplier: float = 1, in_multiplier: float = 1
    ) -> LayerSpec:
        size, mid = resolution // 2 ** (unit + (index > 0)), 8 * int(gene.expand)
        return MBConvSpec(size, 8, mid, 8, gene.kernel, 1 if index else 2, "relu", 0, shortcut=index > 0)

    def head(self, resolution: int, multiplier: float = 1) -> tuple[LayerSpec, ...]:
        return PoolSpec(resolution // 2 ** len(self.units), 8), LinearSpec(8, 10)


CHOICES = (8, 16), (Unit((1, 2), {"kernel": (3,), "expand": (1, 2)}), Unit((1,), {"kernel": (3, 5), "expand": (2,)}))
PLAIN = Plain(*CHOICES)


class TestSpaceOfSomebodyElse(SearchSpaceSuite):
    @pytest.fixture
    def space(self, monkeypatch: pytest.MonkeyPatch) -> SearchSpace:
        monkeypatch.setitem(spaces._READERS._registered, "plain", Plain.from_json)
        return PLAIN


# Mistakes


class SizeOfOneResolution(Plain):
    @property
    def size(self) -> int:
        return super().size // 2


class ValidatesNothing(Plain):
    def validate(self, architecture: Architecture) -> None:
        pass


class ForgetsAResolution(Plain):
    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "resolutions": [8]}


class IgnoresTheGenerator(Plain):
    def sample(self, rng: np.random.Generator) -> Architecture:
        return super().sample(np.random.default_rng())


class MutatesInPlace(Plain):
    def mutate_rows(self, rows: Rows, rng: np.random.Generator, probability: float) -> Rows:
        rows[:] = super().mutate_rows(rows, rng, probability)
        return rows


class KeepsGenesOfSkippedBlocks(Plain):
    def sample_rows(self, count: int, rng: np.random.Generator) -> Rows:
        return rng.integers(0, self.choice_counts, (count, len(self.choice_counts))).astype(np.int16)


class CrossesWithAStranger(Plain):
    def crossover_rows(self, first: Rows, second: Rows, rng: np.random.Generator, share: float = 0.5) -> Rows:
        return super().crossover_rows(first, self.sample_rows(len(first), rng), rng, share)


class EncodesNoResolution(Plain):
    def encode_rows(self, rows: Rows) -> NDArray[np.float32]:
        return super().encode_rows(rows)[:, :-2]


class ForgetsAStride(Plain):
    def head(self, resolution: int, multiplier: float = 1) -> tuple[LayerSpec, ...]:
        return PoolSpec(resolution // 2, 8), LinearSpec(8, 10)


class LooksAtOtherBlocks(Plain):
    def lower(self, architecture: Architecture) -> tuple[LayerSpec, ...]:
        stem, first, *rest = super().lower(architecture)
        assert isinstance(first, MBConvSpec)
        return stem, replace(first, kernel=3 if len(rest) == 3 else 5), *rest


class ListsNoHead(Plain):
    def layers(self, resolution: int) -> Iterator[LayerSpec]:
        return (layer for layer in super().layers(resolution) if layer not in self.head(resolution))


class SmallestIsLargest(Plain):
    def smallest(self) -> Architecture:
        return self.largest()


class FreeConv(ConvSpec):
    key = Layer.key

    @property
    def operations(self) -> tuple[Operation, ...]:
        return tuple(operation._replace(macs=0) for operation in super().operations)


register("free", FreeConv, module="onceforall.nn.plain:ConvNormAct")


class CountsNoStem(Plain):
    def stem(self, resolution: int, multiplier: float = 1) -> tuple[LayerSpec, ...]:
        return (FreeConv(resolution, 3, 8, 3, 1, "relu"),)


@pytest.mark.parametrize(
    ("kind", "test", "message"),
    [
        (SizeOfOneResolution, "test_size_is_that_of_an_enumeration", "size 12, but 24 members"),
        (ValidatesNothing, "test_a_foreign_choice_is_refused_by_name", r"InvalidArchitecture: \.\.\. resolution 17"),
        (ForgetsAResolution, "test_round_trip_through_the_text_of_json", r"came back as \w+\(resolutions=\(8,\)"),
        (IgnoresTheGenerator, "test_extremes_and_samples_are_members_and_samples_follow_their_generator",
         "the same seed drew other architectures"),
        (MutatesInPlace, "test_sampled_mutated_and_crossed_rows_are_canonical", "mutation changed its parents"),
        (KeepsGenesOfSkippedBlocks, "test_sampled_mutated_and_crossed_rows_are_canonical", "px .* has the rows"),
        (CrossesWithAStranger, "test_every_gene_of_a_child_comes_from_a_parent", r"choice of \[\('resolution', 0, 0\)"),
        (EncodesNoResolution, "test_encodings_are_one_hot_distinct_and_round_trip", "24 architectures have 12 encod"),
        (ForgetsAStride, "test_consecutive_layers_fit_from_the_image_to_the_classifier",
         r"8px k3e1 k3e2: PoolSpec\(.*\) does not take 8 channels of 2 px"),
        (LooksAtOtherBlocks, "test_a_block_depends_on_its_own_choices_only",
         r"8px .* has MBConvSpec\(.*kernel=5.* alone give MBConvSpec\(.*kernel=3"),
        (ListsNoHead, "test_a_block_depends_on_its_own_choices_only", r"has PoolSpec.*, which layers\(8\) does not"),
        (SmallestIsLargest, "test_costs_lie_between_those_of_the_smallest_and_the_largest_network", "macs .* of "),
        (CountsNoStem, "test_a_built_network_has_the_parameters_and_macs_of_its_layers", "operations, its layers"),
    ],
)  # fmt: skip
def test_a_mistake_of_a_space_is_found(
    kind: type[Plain], test: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(spaces._READERS._registered, "plain", kind.from_json)
    with pytest.raises(AssertionError, match=message):
        getattr(SearchSpaceSuite(), test)(kind(*CHOICES))


class ForgetsItsConstant(LatencyTable):
    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "constant": 0.0}


class CountsItsConstantTwice(LatencyTable):
    def cost(self, layers: Sequence[LayerSpec]) -> float:
        return super().cost(layers) + self.constant


class TakesLessThanNothing(LatencyTable):
    def layer_cost(self, layer: LayerSpec) -> float:
        return min(super().layer_cost(layer), -1.0)


class KnowsNoLimits(LatencyTable):
    def layer_cost(self, layer: LayerSpec) -> float:
        try:
            return super().layer_cost(layer)
        except OutOfDomain:
            return 0.0


@pytest.mark.parametrize(
    ("kind", "entries", "test", "message"),
    [
        (TakesLessThanNothing, {}, "test_every_layer_of_the_space_has_a_cost", "takes -1.0 ms"),
        (ForgetsItsConstant, {}, "test_round_trip_through_the_text_of_json", "ms after a round trip"),
        (CountsItsConstantTwice, {}, "test_a_network_takes_a_constant_and_the_sum_of_its_layers", "its layers"),
        (KnowsNoLimits, {}, "test_an_unknown_layer_is_refused_by_name", r"OutOfDomain: \.\.\. linear:1000003>1000033"),
    ],
)  # fmt: skip
def test_a_mistake_of_a_table_is_found(
    kind: type[LatencyTable], entries: dict[str, Timing], test: str, message: str
) -> None:
    plain = LatencyTable.synthetic(PLAIN)
    table = kind(plain.device, {**plain.entries, **entries}, constant=5.0)
    with pytest.raises(AssertionError, match=message):
        getattr(LatencyTableSuite(), test)(PLAIN, table)


def test_a_missing_layer_is_named() -> None:
    table = LatencyTable.synthetic(PLAIN.restrict(resolutions=[8]))
    with pytest.raises(OutOfDomain, match="layer conv:16:3>8"):
        LatencyTableSuite().test_every_layer_of_the_space_has_a_cost(PLAIN, table)
