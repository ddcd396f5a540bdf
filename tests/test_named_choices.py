"""Spaces whose choices are called something else than kernel and expand, from rows to exact optima."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onceforall.architecture import Architecture, Gene
from onceforall.choices import Unit
from onceforall.cost.analytic import Parameters
from onceforall.errors import InvalidArchitecture, InvalidConfiguration
from onceforall.layers import LayerSpec, LinearSpec
from onceforall.rows import Rows
from onceforall.search.evolution import search
from onceforall.search.exact import optimum
from onceforall.search.neighbours import Neighbours
from onceforall.search.scoring import Scorer
from onceforall.sizes import Size
from onceforall.space import SearchSpace
from onceforall.spaces import mobilenet_v3
from onceforall.spaces.units import ConvUnit
from onceforall.testing import members
from onceforall.testing.common import assert_prices

V3 = mobilenet_v3()

HEADS = Unit((1, 2), {"heads": (2, 4), "ratio": (2, 3, 4)}, tied=("heads",))
BARE = Unit((0, 2))  # blocks with nothing to choose: only their number


@dataclass(frozen=True)
class Strange(SearchSpace):
    """Blocks with heads and ratios, and a unit whose blocks have no choices at all, on rectangular images."""

    kind = "strange"

    units: tuple[Unit, ...]

    def stem(self, resolution: Size, multiplier: float = 1) -> tuple[LayerSpec, ...]:
        return ()

    def block(
        self, resolution: Size, unit: int, index: int, gene: Gene, multiplier: float = 1, in_multiplier: float = 1
    ) -> LayerSpec:
        return LinearSpec(8, 8 * int(gene.get("heads", 1) * gene.get("ratio", 1)))

    def head(self, resolution: Size, multiplier: float = 1) -> tuple[LayerSpec, ...]:
        return (LinearSpec(8, 10),)


STRANGE = Strange((16, (32, 16), 32), (HEADS, BARE, replace(HEADS, tied=(), width_multipliers=(0.5, 1))))


def with_first_gene(gene: Gene) -> Architecture:
    """The largest network with another gene in the first block."""
    (_, *genes), *units = STRANGE.largest().units
    return replace(STRANGE.largest(), units=((gene, *genes), *units))


def test_names_of_choices_are_those_of_the_units() -> None:
    assert STRANGE.choice_names == ("depth", "heads", "ratio", "width_multiplier")
    assert V3.choice_names == ("depth", "kernel", "expand", "width_multiplier")
    assert str(STRANGE.largest()) == "32px h4r4-h4r4 - h4r4-h4r4"


def test_a_space_of_other_names_has_all_its_members_as_rows_and_encodings() -> None:
    everyone = list(members(STRANGE))
    untied = 2 * ((2 * 3) + (2 * 3) ** 2)
    assert len(set(everyone)) == len(everyone) == STRANGE.size == 3 * (3 + 3**2) * 2 * untied
    rows = STRANGE.to_rows(everyone)
    assert len(np.unique(rows, axis=0)) == len(everyone)
    assert STRANGE.from_rows(rows) == everyone
    assert np.array_equal(STRANGE.canonical(rows), rows)
    assert STRANGE.decode(STRANGE.encode(everyone)) == everyone


def test_canonical_leaves_its_argument_alone(tiny_space: SearchSpace, rng: np.random.Generator) -> None:
    rows = rng.integers(0, tiny_space.choice_counts, (50, len(tiny_space.choice_counts))).astype(np.int16)
    before = rows.copy()
    assert not np.array_equal(tiny_space.canonical(rows), before)
    assert np.array_equal(rows, before)


def test_tied_choices_of_any_name_follow_the_depth(rng: np.random.Generator) -> None:
    for arch in STRANGE.from_rows(STRANGE.mutate_rows(STRANGE.sample_rows(200, rng), rng, 0.5)):
        assert {gene.heads for gene in arch.units[0]} == {2 * len(arch.units[0])}
    with pytest.raises(InvalidArchitecture, match="heads 2 at unit 1, block 1: depth 2 is tied to heads 4"):
        STRANGE.validate(with_first_gene(Gene(heads=2, ratio=4)))


def test_a_gene_of_other_names_is_refused() -> None:
    with pytest.raises(InvalidArchitecture, match=r"gene Gene\(kernel=3\) at unit 1, block 1: its choices are heads"):
        STRANGE.validate(with_first_gene(Gene(kernel=3)))


def test_sub_spaces_by_name() -> None:
    part = STRANGE.restrict(resolutions=[(32, 16)], ratios=[2, 4], depth=[2], width_multipliers=[1])
    assert part.resolutions == ((32, 16),)
    assert [unit.options for unit in part.units] == [
        {"depth": (2,), "heads": (4,), "ratio": (2, 4), "width_multiplier": (1.0,)},
        {"depth": (2,), "width_multiplier": (1.0,)},
        {"depth": (2,), "heads": (2, 4), "ratio": (2, 4), "width_multiplier": (1,)},
    ]
    STRANGE.check_contains(part)
    opened = STRANGE.largest_choices({"*": 2, "depth": 1})
    assert [unit.options["ratio"] for unit in opened.units if "ratio" in unit.options] == [(3, 4), (3, 4)]
    assert [unit.depths for unit in opened.units] == [(2,)] * 3
    assert STRANGE.uniform(resolution=16, depth=2, heads=4, ratio=3).units[2] == (Gene(heads=4, ratio=3),) * 2
    for call, text in (
        (lambda: STRANGE.restrict(kernel=[3]), "choice 'kernel': this space has depth, heads, ratio"),
        (lambda: STRANGE.largest_choices({"kernel": 1}), "choice 'kernel': this space has depth, heads, ratio"),
        (
            lambda: STRANGE.uniform(resolution=16, depth=2, heads=4),
            "a uniform network needs ratio: choices are 2, 3",
        ),
        (lambda: Unit((1,), {"depth": (1,)}), "choice 'depth': expected a name"),
        (lambda: Unit((1,), {"heads": (4, 2)}), r"heads \(4, 2\): expected distinct finite numbers, ascending"),
        (lambda: Unit((1,), {"heads": ("a",)}), r"heads \('a',\): expected"),
        (lambda: Unit((1,), {"heads": (1,)}, tied=("ratio",)), "tied ratio: the choices are heads"),
    ):
        with pytest.raises((InvalidConfiguration, InvalidArchitecture), match=text):
            call()


def test_even_kernels_are_refused_by_the_units_that_cannot_have_them() -> None:
    assert Unit((1,), {"kernel": (2, 4)}).genes == (Gene(kernel=2), Gene(kernel=4))
    with pytest.raises(InvalidConfiguration, match="odd positive integers"):
        ConvUnit((1,), (2, 4), (1,))


def test_prices_neighbours_and_optimum_follow_the_names() -> None:
    model = Parameters()
    assert_prices(STRANGE, model)
    near, owners = Neighbours(STRANGE).of(STRANGE.to_rows([STRANGE.smallest()]))
    assert len(STRANGE.from_rows(near)) == len(set(STRANGE.from_rows(near))) == len(owners)
    weights = np.random.default_rng(0).normal(0, 1, len(STRANGE.encoded_choices))

    class Linear:
        space = STRANGE

        def predict_rows(self, rows: Rows) -> NDArray[np.float64]:
            return np.asarray(STRANGE.encode_rows(rows) @ weights, np.float64)

    everyone = list(members(STRANGE))
    costs = np.array([model.cost(STRANGE.lower(arch)) for arch in everyone])
    bound = float(np.median(costs))
    best = Linear().predict_rows(STRANGE.to_rows(everyone))[costs <= bound].max()
    assert optimum(STRANGE, Linear(), [model.at_most(bound)]).accuracy == pytest.approx(best)
    assert search(STRANGE, Linear(), [model.at_most(bound)]).accuracy == pytest.approx(best)


def test_equal_spaces_may_name_their_choices_in_another_order() -> None:
    """Files may be rewritten with sorted keys: rows then have other columns, and a predictor is asked by its own."""
    units = [Unit((1, 2), choices) for choices in ({"a": (1, 2, 3), "b": (4, 5)}, {"b": (4, 5), "a": (1, 2, 3)})]
    one, other = (Strange((16,), (unit,)) for unit in units)
    assert one == other
    weights = np.random.default_rng(0).normal(0, 1, len(one.encoded_choices))

    class Linear:
        space = one

        def predict_rows(self, rows: Rows) -> NDArray[np.float64]:
            return np.asarray(one.encode_rows(rows) @ weights, np.float64)

    archs = list(members(one))
    expected = Linear().predict_rows(one.to_rows(archs))
    assert Scorer(other, Linear())(other.to_rows(archs)) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["items", "_values", "replace", "resolutions", 3])
def test_names_that_a_gene_or_a_space_needs_are_refused(name: Any) -> None:
    with pytest.raises(InvalidConfiguration, match=f"choice {name!r}: expected a name"):
        Unit((1,), {name: (1, 2)})


def test_square_pairs_are_numbers_everywhere_and_no_choice_is_no_number() -> None:
    assert STRANGE.restrict(resolutions=[(32, 32), [32, 16]]).resolutions == ((32, 16), 32)
    with pytest.raises(InvalidConfiguration, match="largest choices of heads 0: expected an integer of at least 1"):
        STRANGE.largest_choices({"heads": 0})
