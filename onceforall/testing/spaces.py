"""What every search space must do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from onceforall import spaces
from onceforall.architecture import Architecture
from onceforall.cost.analytic import MACs, macs, params
from onceforall.errors import InvalidArchitecture
from onceforall.nn.subnet import build
from onceforall.nn.supernet import Supernet
from onceforall.sizes import Size, height_width
from onceforall.space import SearchSpace
from onceforall.testing.common import assert_prices, foreigners, members, raises, scramble, some

ENUMERABLE = 5000  # spaces of at most so many members are enumerated


class SearchSpaceSuite:
    """What every search space must do. A subclass provides the fixture `space`.

    `spaces.from_json` must know its type (`spaces.register`), and its supernet must fit into memory.
    """

    def test_size_is_that_of_an_enumeration(self, space: SearchSpace) -> None:
        """Of the space where it is small enough, and of those sub-spaces around its largest network that are."""
        parts = [space, *(space.largest_choices({name: 2}) for name in space.choice_names)]
        for part in parts:
            if part.size <= ENUMERABLE:
                everyone = set(members(part))
                assert 1 <= part.size == len(everyone), f"size {part.size}, but {len(everyone)} members"
                for arch in everyone:
                    space.validate(arch)

    def test_extremes_and_samples_are_members_and_samples_follow_their_generator(self, space: SearchSpace) -> None:
        for arch in some(space, 50):
            space.validate(arch)
        first, again, other = (some(space, 20, seed) for seed in (1, 1, 2))
        assert first == again, "the same seed drew other architectures"
        assert first != other or space.size == 1, "another seed drew the same architectures"

    def test_a_foreign_choice_is_refused_by_name(self, space: SearchSpace) -> None:
        for arch, name in foreigners(space):
            for consume in (space.validate, space.lower):
                with raises(InvalidArchitecture, name):
                    consume(arch)

    def test_round_trip_through_the_text_of_json(self, space: SearchSpace) -> None:
        again = spaces.from_json(json.loads(json.dumps(space.to_json())))
        assert again == space, f"{space} came back as {again}"
        for arch in some(space, 20):
            back = Architecture.from_json(json.loads(json.dumps(arch.to_json())))
            assert back == arch, f"{arch} came back as {back}"

    def test_sampled_mutated_and_crossed_rows_are_canonical(self, space: SearchSpace) -> None:
        rng = np.random.default_rng(0)
        first, second = space.to_rows(some(space, 198)), space.sample_rows(200, rng)
        before = first.copy()
        mutants = [space.mutate_rows(first, rng, probability) for probability in (0.0, 0.1, 0.5, 1.0)]
        assert np.array_equal(first, before), "mutation changed its parents"
        assert np.array_equal(first, mutants[0]), "mutation with probability 0 redrew a choice"
        for rows in (first, second, *mutants, space.crossover_rows(first, second, rng)):
            architectures = space.from_rows(rows)
            for arch, row, again in zip(architectures, rows, space.to_rows(architectures), strict=True):
                assert np.array_equal(row, again), f"{arch} has the rows {row.tolist()} and {again.tolist()}"

    def test_every_gene_of_a_child_comes_from_a_parent(self, space: SearchSpace) -> None:
        rng = np.random.default_rng(0)
        first, second = space.sample_rows(200, rng), space.sample_rows(200, rng)
        child = space.crossover_rows(first, second, rng)
        foreign = (child >= 0) & (child != first) & (child != second)
        columns = [column for column, found in zip(space.columns, foreign.any(axis=0), strict=True) if found]
        assert not columns, f"neither parent has a child's choice of {columns}"
        assert np.array_equal(space.crossover_rows(first, first, rng), first), "a child of twins is not their twin"

    def test_encodings_are_one_hot_distinct_and_round_trip(self, space: SearchSpace) -> None:
        architectures = list(members(space) if space.size <= ENUMERABLE else dict.fromkeys(some(space, 1000)))
        features = space.encode(architectures)
        assert set(np.unique(features)) <= {0, 1}, "an encoding has values other than 0 and 1"
        distinct = len(np.unique(features, axis=0))
        assert distinct == len(architectures), f"{len(architectures)} architectures have {distinct} encodings"
        wrong = [arch for arch, back in zip(architectures, space.decode(features), strict=True) if arch != back]
        assert not wrong, f"{wrong[0]} was decoded as another architecture"

    def test_consecutive_layers_fit_from_the_image_to_the_classifier(self, space: SearchSpace) -> None:
        for arch in some(space, 20):
            channels: int = 3
            size: Size = arch.resolution
            for layer in space.lower(arch):
                takes = layer.in_channels, layer.in_size
                assert (channels, size) == takes, f"{arch}: {layer} does not take {channels} channels of {size} px"
                channels, size = layer.out_channels, layer.out_size
            assert size == 1, f"{arch} ends on feature maps of {size} px"

    def test_a_block_depends_on_its_own_choices_only(self, space: SearchSpace) -> None:
        """On its gene, the multiplier of its unit and that of the unit that it reads; and all its forms are listed."""
        for resolution in space.resolutions:
            forms = {
                (block, *form[:3]): form.layer
                for block, place in enumerate(space.block_indices)
                for form in space.block_forms(resolution, *place)
            }
            listed = set(space.layers(resolution))
            for arch in (replace(arch, resolution=resolution) for arch in some(space, 20)):
                blocks = [forms.get(key) for key in _form_keys(space, arch)]
                first, last = arch.multipliers[0], arch.multipliers[-1]
                expected = [*space.stem(resolution, first), *blocks, *space.head(resolution, last)]
                assert len(space.lower(arch)) == len(expected), f"{arch} does not have {len(expected)} layers"
                for layer, form in zip(space.lower(arch), expected, strict=True):
                    assert layer == form, f"{arch} has {layer} where its choices alone give {form}"
                    assert layer in listed, f"{arch} has {layer}, which layers({resolution}) does not list"

    def test_costs_lie_between_those_of_the_smallest_and_the_largest_network(self, space: SearchSpace) -> None:
        for cost in (macs, params):
            least, most = cost(space.lower(space.smallest())), cost(space.lower(space.largest()))
            for arch in some(space, 100):
                value = cost(space.lower(arch))
                assert least <= value <= most, f"{cost.__name__} {value} of {arch}: expected {least} to {most}"

    def test_a_built_network_has_the_parameters_and_macs_of_its_layers(self, space: SearchSpace) -> None:
        for arch in some(space, 8):
            layers = space.lower(arch)
            with torch.device("meta"):
                network, image = build(layers).eval(), torch.empty(1, 3, *height_width(arch.resolution))
            with FlopCounterMode(display=False) as counter:
                network(image)
            found = sum(parameter.numel() for parameter in network.parameters())
            assert found == params(layers), f"{arch} has {found} parameters, its layers {params(layers)}"
            found = counter.get_total_flops()
            assert found == 2 * macs(layers), f"{arch} takes {found} operations, its layers {macs(layers)} MACs"

    def test_the_supernet_computes_what_extracted_networks_do(self, space: SearchSpace) -> None:
        """And sorting its channels leaves the largest network as it is."""
        supernet, largest = Supernet(space).eval(), space.largest()
        scramble(supernet)
        with torch.inference_mode():
            for arch in some(space, 3):
                _assert_close(supernet(_images(arch), arch), supernet.extract(arch)(_images(arch)), str(arch))
            before = supernet(_images(largest), largest)
            supernet.sort_channels()
            _assert_close(supernet(_images(largest), largest), before, f"{largest} after sorting channels")

    def test_prices_of_rows_are_the_costs_of_their_layers(self, space: SearchSpace) -> None:
        assert_prices(space, MACs())


def _form_keys(space: SearchSpace, arch: Architecture) -> Iterator[tuple[int, int, int, int]]:
    """Block, indices of input multiplier and multiplier, and number of the gene, of each active block."""
    chosen = [unit.width_multipliers.index(m) for unit, m in zip(space.units, arch.multipliers, strict=True)]
    for block, (u, b) in enumerate(space.block_indices):
        if b < arch.depths[u]:
            gene, unit = arch.units[u][b], space.units[u]
            before = chosen[u] if b else chosen[u - 1] if u else 0
            yield block, before, chosen[u], unit.genes.index(gene)


def _images(arch: Architecture) -> Tensor:
    return torch.randn(2, 3, *height_width(arch.resolution), generator=torch.Generator().manual_seed(0))


def _assert_close(found: Tensor, expected: Tensor, what: str) -> None:
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error <= 1e-4, f"{what}: outputs differ by {error:.2g} of the largest"
