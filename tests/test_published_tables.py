"""Our counters against what others counted for thousands of sub-networks: not one row may differ."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from modules import module_at

from onceforall import spaces
from onceforall.cost.analytic import PeakActivationMemory, PeakConvolutionMemory, macs, params


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    """interop/shared_tables.py, which is in no package."""
    return module_at(Path(__file__).parent / "interop" / "shared_tables.py")


def test_macs_and_parameters_are_those_of_dynas_t(tables: ModuleType) -> None:
    rows, space = tables.rows_of("dynast_mbv3_w1.0.csv"), spaces.mobilenet_v3(1.0, (224,))
    assert len(rows) == 1424
    for number, row in enumerate(rows, 1):
        layers = space.lower(tables.architecture_in(row))
        assert (params(layers), macs(layers)) == (int(row["params"]), int(row["macs"])), f"row {number}"


def test_peak_convolution_memory_is_that_of_moofa(tables: ModuleType) -> None:
    """In elements. What is alive alone is always less: every convolution before the global pooling has weights, and
    behind the last of them nothing is as large as its own input and output.
    """
    rows, space = tables.rows_of("moofa_mit_ofa.csv"), spaces.mobilenet_v3(1.0, (128, 160, 192))
    with_weights, alive = PeakConvolutionMemory(bytes_per_element=1), PeakActivationMemory(bytes_per_element=1)
    assert len(rows) == 1305
    for number, row in enumerate(rows, 1):
        layers = space.lower(tables.architecture_in(row))
        assert with_weights.cost(layers) == int(row["peak_memory"]), f"row {number}"
        assert alive.cost(layers) < int(row["peak_memory"]), f"row {number}"
    assert PeakConvolutionMemory().cost(layers) == 4 * with_weights.cost(layers)  # bytes of float32
