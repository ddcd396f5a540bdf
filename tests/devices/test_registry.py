from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime
import pytest
from typer.testing import CliRunner

from onceforall import cli, devices
from onceforall.devices import registry
from onceforall.devices.device import Device
from onceforall.devices.onnxruntime import OnnxRuntimeDevice
from onceforall.devices.remote import RemoteDevice
from onceforall.errors import InvalidConfiguration


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_factories", {})


def without(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a package were not installed."""
    monkeypatch.setitem(sys.modules, package, None)


class Board(OnnxRuntimeDevice):
    name = "board"
    title = "a board"
    precisions = ("fp32",)


def test_devices_of_others_are_known_by_name_and_listed() -> None:
    devices.register("board", Board)
    devices.register("two boards", lambda threads, precision: Board(2 * threads, precision))
    assert devices.names() == (*devices.NAMES, "board", "two boards")
    assert devices.by_name("two boards", 3).threads == 6
    rows = {row.name: row for row in devices.status() if row.name not in devices.NAMES}
    assert rows["board"].title == rows["two boards"].title == "a board"
    assert rows["two boards"].working == ("fp32",)


def test_a_device_that_cannot_be_made_does_not_hide_the_others() -> None:
    class Chip(Board):
        name = "chip"
        precisions = ("int8",)

    devices.register("chip", lambda threads, precision: Chip(threads, precision))
    (row,) = [row for row in devices.status() if row.name == "chip"]
    assert row.problem == "precision 'fp32': choices on chip are int8"
    assert not row.working


def test_a_package_of_a_device_without_an_extra_is_named_itself() -> None:
    with pytest.raises(InvalidConfiguration, match=r"board needs absent_package .*: pip install absent_package$"):
        Board().needs("absent_package")


@pytest.mark.parametrize("name", ["", "torch", "board@home"])
def test_names_that_are_taken_or_none_are_refused(name: str) -> None:
    with pytest.raises(InvalidConfiguration, match="expected a name without '@' beside onnxruntime, torch"):
        devices.register(name, Board)


def test_unknown_names_and_settings_are_refused() -> None:
    with pytest.raises(InvalidConfiguration, match=r"choices are onnxruntime, torch.*RUNTIME@FOLDER"):
        devices.by_name("abacus")
    with pytest.raises(InvalidConfiguration, match="threads 0"):
        devices.by_name("onnxruntime", 0)
    with pytest.raises(InvalidConfiguration, match="precision 'fp8': choices on torch are fp32, bf16"):
        devices.by_name("torch", precision="fp8")


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("openvino", "openvino"),
        ("ncnn", "ncnn"),
        ("litert", "ai_edge_litert.interpreter"),
        ("executorch", "executorch.extension.pybindings.portable_lib"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without(package, monkeypatch)
    with pytest.raises(InvalidConfiguration, match=rf"{name} needs {package} .*pip install 'onceforall\[{name}\]'"):
        devices.by_name(name)


def test_a_folder_behind_the_name_is_another_machine(tmp_path: Path) -> None:
    device = devices.by_name(f"onnxruntime@{tmp_path}", 2)
    assert isinstance(device, RemoteDevice)
    assert (device.folder, device.runtime, device.threads) == (tmp_path, "onnxruntime", 2)
    with pytest.raises(InvalidConfiguration, match="expected a folder"):
        devices.by_name("onnxruntime@")
    with pytest.raises(InvalidConfiguration, match="remote runtime 'torch': choices are onnxruntime, litert"):
        devices.by_name("torch@phone")


def test_the_list_says_what_works_and_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    without("ncnn", monkeypatch)
    found = {row.name: row for row in devices.status()}
    assert list(found) == list(devices.NAMES)
    assert found["onnxruntime"].working == ("fp32", "int8")
    assert found["onnxruntime"].versions[0] == f"onnxruntime {onnxruntime.__version__}"
    assert not found["onnxruntime"].problem
    assert found["ncnn"].precisions == ("fp32", "bf16")
    assert not found["ncnn"].working
    assert "pip install 'onceforall[ncnn]'" in found["ncnn"].problem
    printed = CliRunner().invoke(cli.app, ["devices"], env={"COLUMNS": "250"}, catch_exceptions=False).stdout
    assert "pip install 'onceforall[ncnn]'" in printed
    assert all(name in printed for name in devices.NAMES)


def test_every_device_of_ours_carries_its_name_and_extra() -> None:
    for name in devices.NAMES:
        kind = registry.factory(name)
        assert isinstance(kind, type)
        assert issubclass(kind, Device)
        assert kind.name == name
        assert kind.title
        assert kind.suffixes
        assert kind.packages
