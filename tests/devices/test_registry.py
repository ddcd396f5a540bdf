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
    monkeypatch.setattr(registry.DEVICES, "_registered", {})


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


class WithPort(OnnxRuntimeDevice):
    """A device that needs to know more than threads and precision."""

    name = "with port"

    def __init__(self, port: str, threads: int = 1, precision: str = "fp32", *, baud: int = 9600) -> None:
        super().__init__(threads, precision)
        self.port, self.baud = port, baud


def settings(device: Device) -> tuple[object, ...]:
    assert isinstance(device, WithPort)
    return device.port, device.baud, device.threads, device.precision


def test_a_device_of_a_factory_is_made_by_it_in_another_precision() -> None:
    def factory(cores: int, what: str) -> Device:
        device = WithPort(f"port of {what}", 2 * cores, what)
        device.baud = 115200
        return device

    devices.register("with port", factory)
    device = devices.by_name("with port", 3)
    assert settings(device) == ("port of fp32", 115200, 6, "fp32")
    for other in (device.with_precision("int8"), device.with_precision("int8").with_precision("int8")):
        assert settings(other) == ("port of int8", 115200, 6, "int8")
    assert settings(device.with_precision("int8").keeping([0]).with_precision("fp32"))[3] == "fp32"


@pytest.mark.parametrize(
    "device",
    [WithPort("a", 2, baud=1), WithPort("a", baud=1, precision="fp32", threads=2), WithPort("a", 2, "fp32", baud=1)],
    ids=["some", "by name", "all"],
)
def test_a_device_that_was_made_with_more_is_made_again_with_it(device: Device) -> None:
    assert settings(device.with_precision("int8")) == ("a", 1, 2, "int8")
    assert settings(device.with_precision("int8").with_precision("fp32")) == ("a", 1, 2, "fp32")
    with pytest.raises(InvalidConfiguration, match="precision 'fp8': choices on with port are fp32, int8"):
        device.with_precision("fp8")


def test_a_class_that_takes_no_precision_says_what_to_do() -> None:
    class Fixed(OnnxRuntimeDevice):
        def __init__(self, port: str) -> None:
            super().__init__(2)
            self.port = port

    with pytest.raises(InvalidConfiguration, match=r"precision 'int8': .* Fixed takes no argument 'precision'; regis"):
        Fixed("a").with_precision("int8")
    assert Fixed("a").with_precision("fp32").threads == 2


def test_another_machine_is_the_same_in_another_precision(tmp_path: Path) -> None:
    for device in (devices.by_name(f"onnxruntime@{tmp_path}", 2), RemoteDevice(tmp_path, threads=2)):
        other = device.with_precision("int8")
        assert isinstance(other, RemoteDevice)
        assert (other.folder, other.runtime, other.threads, other.precision) == (tmp_path, "onnxruntime", 2, "int8")


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
    with pytest.raises(InvalidConfiguration, match=r"expected a name without '@'|device 'torch' is taken"):
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
    with pytest.raises(InvalidConfiguration, match=rf"{name} needs {package} .*pip install .*'\.\[{name}\]'"):
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
    assert "'.[ncnn]' in a clone" in found["ncnn"].problem
    printed = CliRunner().invoke(cli.app, ["devices"], env={"COLUMNS": "250"}, catch_exceptions=False).stdout
    assert "'.[ncnn]' in a clone" in printed
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
