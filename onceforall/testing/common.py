"""What the suites share: members of spaces, random weights, and what an error must say."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from onceforall.architecture import Architecture, Gene
from onceforall.choices import BaseUnit, Choices
from onceforall.cost.model import CostModel
from onceforall.search.pricing import PriceTable
from onceforall.space import SearchSpace


def members(space: Choices) -> Iterator[Architecture]:
    """All architectures of a small space, by brute force."""

    def forms(unit: BaseUnit) -> Iterator[tuple[Gene, ...]]:
        for depth, numbers in zip(unit.depths, unit.genes_of_depth, strict=True):
            yield from itertools.product([unit.genes[number] for number in numbers], repeat=depth)

    units = itertools.product(*map(forms, space.units))
    multipliers = itertools.product(*(unit.width_multipliers for unit in space.units))
    yield from itertools.starmap(Architecture, itertools.product(space.resolutions, units, multipliers))


def scramble(network: nn.Module, seed: int = 0) -> None:
    """Random batch norms, biases and kernel transforms: fresh ones are identities that would hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            noise = torch.rand(tensor.shape, generator=generator) - 0.5
            if name.endswith("running_mean"):
                tensor.copy_(0.2 * noise)
            elif name.endswith("running_var"):
                tensor.copy_(1 + noise)
            elif "transforms" in name or tensor.ndim == 1:
                tensor.add_((0.2 if "transforms" in name else 0.5) * noise)


def some(space: SearchSpace, count: int, seed: int = 0) -> list[Architecture]:
    """The extremes and `count` random members."""
    rng = np.random.default_rng(seed)
    return [space.smallest(), space.largest(), *(space.sample(rng) for _ in range(count))]


def foreigners(space: SearchSpace) -> Iterator[tuple[Architecture, str]]:
    """Architectures with one choice that the space does not have, and how an error must call it."""
    largest = space.largest()
    resolution = space.resolutions[-1]
    resolution = resolution + 1 if isinstance(resolution, int) else (resolution[0] + 1, resolution[1])
    yield replace(largest, resolution=resolution), f"resolution {resolution}"
    for u, unit in enumerate(space.units):
        depth, gene = unit.depths[-1] + 1, unit.genes[-1]
        multiplier = unit.width_multipliers[-1] + 1
        multipliers = (*largest.multipliers[:u], multiplier, *largest.multipliers[u + 1 :])
        yield replace(largest, width_multipliers=multipliers), f"width multiplier {multiplier} at unit {u + 1}"
        before, genes, after = largest.units[:u], largest.units[u][:-1], largest.units[u + 1 :]
        place = f"at unit {u + 1}, block {depth - 1}"
        changes = [((gene,) * depth, f"depth {depth} at unit {u + 1}"), ((*genes, Gene()), f"gene Gene() {place}")]
        for name, values in unit.choices.items():
            value = values[-1] + 1
            changes.append(((*genes, gene.replace(**{name: value})), f"{name.replace('_', ' ')} {value} {place}"))
        for changed, name in changes if unit.choices else changes[:1]:
            yield replace(largest, units=(*before, changed, *after)), name


def assert_prices(space: SearchSpace, model: CostModel) -> None:
    """A PriceTable agrees with whole networks, and no network is cheaper than its cheapest."""
    prices, rng = PriceTable(space, model), np.random.default_rng(0)
    for index, (row, least) in enumerate(zip(*prices.cheapest(), strict=True)):
        rows = np.concatenate([row[None], space.sample_rows(200, rng)])
        rows[1:, 0] = index
        architectures, costs = space.from_rows(rows), prices(rows)
        for arch, price in zip(architectures[:50], costs[:50], strict=True):
            expected = model.cost(space.lower(arch))
            assert math.isclose(price, expected), f"{arch} is priced {price}, its layers cost {expected}"
        assert (row[0], costs[0]) == (index, least), f"{architectures[0]} is no network that costs {least}"
        cheaper = architectures[costs.argmin()]
        assert least <= costs.min() * (1 + 1e-9), f"{cheaper} costs {costs.min()}, the cheapest network {least}"


@contextmanager
def raises(error: type[Exception], text: str) -> Iterator[list[Any]]:
    """Asserts that the block raises `error` with `text` in its message."""
    caught: list[Any] = []
    try:
        yield caught
    except error as found:
        caught.append(found)
    assert any(text in str(found) for found in caught), f"expected {error.__name__}: ... {text} ...; found {caught}"
