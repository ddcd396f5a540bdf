from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from onceforall.cost.analytic import MACs, Parameters, PeakActivationMemory, WeightBytes
from onceforall.cost.latency import LatencyTable
from onceforall.cost.model import Constraint, CostModel
from onceforall.errors import InfeasibleConstraint, InvalidConfiguration
from onceforall.layers import LayerSpec, MBConvSpec
from onceforall.rows import Rows
from onceforall.search.limits import Limits
from onceforall.search.pricing import pricer
from onceforall.space import SearchSpace
from onceforall.testing import members


class Learned(CostModel):
    """Neither a sum nor a peak: MACs to some power, dearer with small kernels, so the smallest is not the cheapest."""

    name, unit = "learned latency", "ms"

    def cost(self, layers: object) -> float:
        raise AssertionError("rows are priced at once")

    def cost_rows(self, space: SearchSpace, rows: Rows) -> NDArray[np.float64]:
        kernels = rows[:, space.columns_of("kernel")]
        return np.asarray(1 + (rows[:, 1:] > 0).sum(axis=1) ** 0.7 + 2 * (kernels == 0).sum(axis=1), np.float64)


class OnlySmallKernels(MACs):
    """MACs, but large kernels cost nothing: at odds with a plain count."""

    name: str = "odd MACs"

    def layer_cost(self, layer: LayerSpec) -> float:
        return 1e-4 * (7 - getattr(layer, "kernel", 7)) + 1e-8


@pytest.fixture
def few(tiny_space: SearchSpace) -> SearchSpace:
    """The tiny space with so few choices that all of its networks can be looked at."""
    return tiny_space.restrict(kernels=[3, 7], depths=[1, 2], expands=[3, 6])


def test_constraints_that_can_only_be_met_one_by_one(few: SearchSpace) -> None:
    models = MACs(), OnlySmallKernels(name="odd MACs")
    costs = np.array([[m.cost(few.lower(a)) for m in models] for a in members(few)])
    tight = [model.at_most(float(least)) for model, least in zip(models, costs.min(axis=0), strict=True)]
    assert not (costs <= costs.min(axis=0)).all(axis=1).any()
    for constraint in tight:
        Limits(few, [constraint])
    with pytest.raises(
        InfeasibleConstraint, match="no sub-network that was tried meets the constraints together"
    ) as caught:
        Limits(few, tight)
    needed = [model.cost(few.lower(caught.value.architecture)) for model in models]  # type: ignore[arg-type]
    assert any(caught.value.smallest == pytest.approx(cost) for cost in needed)
    # Nearest in shares of the bounds, though one of them is in units a billion times smaller than the other.
    bounds = [constraint.bound for constraint in tight]
    least = np.maximum(costs / bounds - 1, 0).sum(axis=1).min()
    assert sum(max(cost / bound - 1, 0) for cost, bound in zip(needed, bounds, strict=True)) <= 1.2 * least


def test_two_bounds_that_only_a_compromise_meets(tiny_space: SearchSpace) -> None:
    """Neither cheapest network meets the other bound; one in between does, and is found."""
    odd = OnlySmallKernels(name="odd MACs")
    compromise = tiny_space.lower(tiny_space.uniform(depth=2, kernel=5, expand=3, resolution=16))
    limits = Limits(tiny_space, [MACs().at_most(MACs().cost(compromise)), odd.at_most(odd.cost(compromise))])
    assert limits.met(limits.anchors[limits.resolutions]).all()
    rows = limits.repair(
        tiny_space.restrict(resolutions=[16]).sample_rows(50, np.random.default_rng(0)), np.random.default_rng(0)
    )
    assert limits.met(rows).all()


def test_repair_leaves_as_much_as_it_can(tiny_space: SearchSpace) -> None:
    """What is a little over a bound needs few choices of the smallest network."""
    rows = tiny_space.sample_rows(400, np.random.default_rng(0))
    costs = pricer(tiny_space, MACs())(rows)
    limits = Limits(tiny_space, [MACs().at_most(float(np.quantile(costs, 0.8)))])
    repaired = limits.repair(rows.copy(), np.random.default_rng(0))
    assert limits.met(repaired).all()
    broken = costs > limits.bounds[0]
    np.testing.assert_array_equal(repaired[~broken], rows[~broken])
    assert (repaired != rows)[broken].mean() < 0.35


def test_a_learned_cost_prices_rows_at_once_and_may_prefer_large_kernels(few: SearchSpace) -> None:
    model = Learned()
    everyone = few.to_rows(list(members(few)))
    least = model.cost_rows(few, everyone).min()
    assert least < model.cost_rows(few, few.to_rows([few.smallest()]))[0]
    limits = Limits(few, [model.at_most(float(least))])
    assert limits.met(limits.anchors[limits.resolutions]).all()
    with pytest.raises(
        InfeasibleConstraint, match=r"learned latency <= .* is met by no .* that was found needs"
    ) as caught:
        Limits(few, [model.at_most(0.99 * float(least))])
    assert caught.value.smallest == pytest.approx(least)


class Valleys(CostModel):
    """4 mJ and more where two or more kernels are 5; where all are the one that is given, 1; 10 or more elsewhere.

    No change of one choice leads from elsewhere to the cheap ones.
    """

    name, unit = "energy", "mJ"

    def __init__(self, kernel: int = 0) -> None:
        self.kernel = kernel

    def cost(self, layers: Sequence[LayerSpec]) -> float:
        kernels = [layer.kernel for layer in layers if isinstance(layer, MBConvSpec)][1:]  # the first block is fixed
        fives, sevens = kernels.count(5), kernels.count(7)
        return 1.0 if set(kernels) == {self.kernel} else 9.0 - fives if fives > 1 else 10.0 + 2 * fives + sevens


class Cliff(Valleys):
    """1 mJ for five blocks of kernel 7, 10 for all others."""

    def cost(self, layers: Sequence[LayerSpec]) -> float:
        return 1.0 if sum(layer.kernel == 7 for layer in layers if isinstance(layer, MBConvSpec)) == 5 else 10.0


@pytest.mark.parametrize(("model", "least"), [(Cliff(), 1.0), (Valleys(), 4.0)], ids=["largest", "random"])
def test_what_the_smallest_network_does_not_lead_to_is_found(
    model: CostModel, least: float, tiny_space: SearchSpace
) -> None:
    """Changes of one choice end in no cheap network, from the smallest: others need a tenth or a half of it."""
    assert model.cost(tiny_space.lower(tiny_space.smallest())) == 10
    limits = Limits(tiny_space, [model.at_most(6)])
    assert limits.met(limits.anchors[limits.resolutions]).all()
    with pytest.raises(InfeasibleConstraint, match=r"energy <= 0\.9 mJ is met by no .* that was found needs") as caught:
        Limits(tiny_space, [model.at_most(0.9)])
    assert caught.value.smallest == least
    assert model.cost(tiny_space.lower(caught.value.architecture)) == least  # type: ignore[arg-type]


def test_bounds_that_each_end_of_the_space_breaks_are_met_in_between(tiny_space: SearchSpace) -> None:
    limits = Limits(tiny_space, [Valleys(3).at_most(7), Valleys(7).at_most(7)])
    assert limits.resolutions
    assert limits.met(limits.anchors[limits.resolutions]).all()


def test_the_smallest_value_comes_with_what_reaches_it(space: SearchSpace) -> None:
    for model in (LatencyTable.synthetic(space), PeakActivationMemory(), WeightBytes()):
        with pytest.raises(InfeasibleConstraint) as caught:
            Limits(space, [model.at_most(1e-3)])
        cost = model.cost(space.lower(caught.value.architecture))  # type: ignore[arg-type]
        assert cost == pytest.approx(caught.value.smallest)
        assert f"{cost:.4g} {model.unit} ({caught.value.architecture})" in str(caught.value)


def test_units_are_checked() -> None:
    assert MACs().at_most(5, "MACs") == Constraint(MACs(), 5)
    with pytest.raises(InvalidConfiguration, match="latency <= 5 s: this cost is in ms"):
        LatencyTable({}, {}).at_most(5, "s")
    with pytest.raises(InvalidConfiguration, match="weights <= 1 KiB: this cost is in bytes"):
        WeightBytes().at_most(1, "KiB")
    assert WeightBytes().cost([]) == 0


def test_weight_bytes_are_parameters_times_bytes(space: SearchSpace) -> None:
    layers = space.lower(space.largest())
    assert WeightBytes().cost(layers) == 4 * Parameters().cost(layers)
    assert WeightBytes(bytes_per_element=1).cost(layers) == Parameters().cost(layers)
