from __future__ import annotations

from onceforall.cost.analytic import (
    MACs,
    Parameters,
    PeakActivationMemory,
    PeakConvolutionMemory,
)
from onceforall.layers import BottleneckSpec, ConvSpec, LinearSpec, MaxPoolSpec, MBConvSpec, PoolSpec
from onceforall.space import SearchSpace


def test_peak_memory_counts_input_output_and_a_held_shortcut() -> None:
    conv = ConvSpec(8, 3, 4, 3, 2, "relu")
    assert PeakActivationMemory().cost([conv]) == 4 * (3 * 64 + 4 * 16)
    block = MBConvSpec(8, 4, 16, 4, 3, 1, "relu", 0, shortcut=True)
    # The depthwise convolution: its input and output, and the block's input waiting for the sum.
    assert PeakActivationMemory().cost([conv, block]) == 4 * (16 * 64 + 16 * 64 + 4 * 64)
    assert PeakActivationMemory(bytes_per_element=1).cost([block]) == 16 * 64 + 16 * 64 + 4 * 64


def test_a_fixed_block_without_expansion_counts_its_input_once() -> None:
    block = MBConvSpec(8, 4, 4, 4, 3, 1, "relu", 0, shortcut=True, expanded=False)
    assert PeakActivationMemory(1).cost([block]) == 3 * 4 * 64  # filtered, result and the held input


def test_peak_convolution_memory_adds_the_weights_of_the_one_convolution() -> None:
    conv = ConvSpec(8, 3, 4, 3, 2, "relu")
    block = MBConvSpec(8, 4, 16, 4, 3, 1, "relu", se_channels=8, shortcut=True)
    assert PeakConvolutionMemory().cost([conv]) == 4 * (3 * 64 + 4 * 16 + 9 * 3 * 4)
    assert PeakConvolutionMemory(bytes_per_element=1).cost([conv, block]) == (16 + 16 + 4) * 64 + 9 * 16


def test_peak_convolution_memory_leaves_pooling_and_the_classifier_out() -> None:
    conv = ConvSpec(8, 3, 4, 3, 1, "relu")
    rest = (MaxPoolSpec(8, 100), PoolSpec(4, 400), ConvSpec(1, 4, 2000, 1, 1, "relu"), LinearSpec(2000, 1000))
    assert PeakConvolutionMemory(1).cost([conv, *rest]) == (3 + 4) * 64 + 9 * 3 * 4
    # The shortcut of a bottleneck: its 1x1 convolution counts, its pooling, which holds even more, does not.
    block = BottleneckSpec(8, 32, 4, 40, 2, "relu", downsample=True)
    assert PeakActivationMemory(1).cost([block]) == 32 * 64 + (32 + 40) * 16
    assert PeakConvolutionMemory(1).cost([block]) == (32 + 40 + 40) * 16 + 32 * 40


def test_a_smaller_network_never_needs_more(space: SearchSpace) -> None:
    for model in (MACs(), Parameters(), PeakActivationMemory(), PeakConvolutionMemory()):
        assert model.cost(space.lower(space.smallest())) < model.cost(space.lower(space.largest()))
