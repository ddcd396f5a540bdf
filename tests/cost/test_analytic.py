from __future__ import annotations

import numpy as np

from onceforall.cost.analytic import MACs, Parameters, PeakActivationMemory, macs, params
from onceforall.layers import ConvSpec, MBConvSpec
from onceforall.space import SearchSpace


def test_models_agree_with_the_sums_of_layers(space: SearchSpace, rng: np.random.Generator) -> None:
    layers = space.lower(space.sample(rng))
    assert MACs().cost(layers) == macs(layers) == sum(layer.macs for layer in layers)
    assert Parameters().cost(layers) == params(layers) == sum(layer.params for layer in layers)


def test_peak_memory_counts_input_output_and_a_held_shortcut() -> None:
    conv = ConvSpec(8, 3, 4, 3, 2, "relu")
    assert PeakActivationMemory().cost([conv]) == 4 * (3 * 64 + 4 * 16)
    block = MBConvSpec(8, 4, 16, 4, 3, 1, "relu", 0, shortcut=True)
    # The depthwise convolution: its input and output, and the block's input waiting for the sum.
    assert PeakActivationMemory().cost([conv, block]) == 4 * (16 * 64 + 16 * 64 + 4 * 64)
    assert PeakActivationMemory(bytes_per_element=1).cost([block]) == 16 * 64 + 16 * 64 + 4 * 64


def test_a_fixed_block_without_expansion_counts_its_input_once() -> None:
    block = MBConvSpec(8, 4, 4, 4, 3, 1, "relu", 0, shortcut=True, expanded=False)
    assert max(block.live_elements) == 3 * 4 * 64  # filtered, result and the held input


def test_a_smaller_network_never_needs_more(space: SearchSpace) -> None:
    for model in (MACs(), Parameters(), PeakActivationMemory()):
        assert model.cost(space.lower(space.smallest())) < model.cost(space.lower(space.largest()))
