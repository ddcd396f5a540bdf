from __future__ import annotations

import importlib
import mmap
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from onceforall import devices
from onceforall.devices import memory, registry
from onceforall.devices.memory import measure_memory
from onceforall.devices.onnxruntime import OnnxRuntimeDevice
from onceforall.errors import InvalidConfiguration

MIB = 2**20
linux = pytest.mark.skipif(not memory.FORGET.exists(), reason="needs Linux: elsewhere the peak cannot be forgotten")


def layers(count: int) -> nn.Module:
    """Linear layers of 4 MiB each."""
    return nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(count)))


@linux
def test_a_larger_network_takes_more_memory_and_at_least_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    device = OnnxRuntimeDevice()
    found = {}
    for count in (1, 9):
        files = device.convert(layers(count), (1, 1024))
        assert sum(map(len, files.values())) >= 4 * MIB * count
        found[count] = measure_memory(device, files, (1, 1024))
        assert found[count] >= 4 * MIB * count
    weights = 4 * 8 * MIB
    assert 0.9 * weights <= found[9] - found[1] <= 5 * weights  # copies of the weights, not the process
    assert not list(tmp_path.iterdir())


def test_a_failing_process_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(InvalidConfiguration, match=r"(?s)onnxruntime fp32: the process .* failed: .*onnxruntime"):
        measure_memory(OnnxRuntimeDevice(), {".onnx": b"nothing"}, (1, 3))
    assert not list(tmp_path.iterdir())


def test_other_machines_have_no_memory_here(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="memory is measured on this machine"):
        measure_memory(devices.by_name(f"onnxruntime@{tmp_path}"), {}, (1, 3))


def fill(size: int) -> None:
    """Fresh pages, gone at once: an allocator may have kept some that others freed."""
    with mmap.mmap(-1, size) as pages:
        for start in range(0, size, MIB):
            pages[start : start + MIB] = bytes(MIB)


@linux
def test_the_peak_is_forgotten_where_that_is_possible(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    start = memory.peak(forget=True)
    fill(64 * MIB)
    assert memory.peak() >= start + 60 * MIB
    assert memory.peak(forget=True) < start + 30 * MIB
    monkeypatch.setattr(memory, "FORGET", tmp_path / "absent" / "file")
    fill(64 * MIB)
    assert memory.peak(forget=True) >= start + 60 * MIB


def test_systems_without_proc_are_asked_for_the_peak_since_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("resource")
    known = memory.peak()
    monkeypatch.setattr(memory, "STATUS", tmp_path / "absent")
    assert 0.99 * known <= memory.peak() < 100 * known  # pages are counted in batches
    monkeypatch.setitem(sys.modules, "resource", None)
    with pytest.raises(InvalidConfiguration, match="does not tell peak memory"):
        memory.peak()


OTHERS = """
import numpy as np
from onceforall.devices.onnxruntime import OnnxRuntimeDevice

class Hungry(OnnxRuntimeDevice):
    def __init__(self, size, threads=1, precision="fp32"):
        super().__init__(threads, precision)
        self.size = size

    def load(self, files, input_shape):
        np.ones(self.size, np.uint8)
        return super().load(files, input_shape)
"""


@linux
def test_devices_of_others_are_measured_and_what_loading_wastes_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry.DEVICES, "_registered", {})
    (tmp_path / "hungry_device.py").write_text(OTHERS)
    monkeypatch.syspath_prepend(tmp_path)
    hungry = importlib.import_module("hungry_device").Hungry
    devices.register("hungry", lambda threads, precision: hungry(100 * MIB, threads, precision))
    for device in (hungry(100 * MIB), devices.by_name("hungry").with_precision("fp32")):
        assert measure_memory(device, device.convert(nn.Linear(3, 3), (1, 3)), (1, 3)) >= 95 * MIB


@pytest.mark.parametrize("argument", [lambda: 0, memory], ids=["function", "module"])
def test_a_device_that_cannot_be_made_elsewhere_is_named(argument: Any) -> None:
    class Here(OnnxRuntimeDevice):
        """Of this function: nobody can import it."""

    unsent = OnnxRuntimeDevice()
    unsent.made_with = (argument,), {}
    for device in (Here(), unsent):
        with pytest.raises(InvalidConfiguration, match=r"onnxruntime fp32: the process that measures .* failed: .*"):
            measure_memory(device, {}, (1, 3))
