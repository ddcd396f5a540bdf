"""What networks are written as, and exports of strangers that cannot be run here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from onceforall.cost.latency import LatencyTable
from onceforall.data.dataset import ImageData
from onceforall.deploy import exports
from onceforall.deploy.exports import DeviceExport, Export, PythonExport
from onceforall.deploy.reading import read_manifest
from onceforall.deploy.specialize import specialize
from onceforall.deploy.verify import verify
from onceforall.devices.device import Images, Shape
from onceforall.devices.onnxruntime import OnnxRuntimeDevice
from onceforall.errors import InvalidConfiguration
from onceforall.files import write_atomically
from onceforall.nn.network import SubNetwork
from onceforall.nn.supernet import Supernet
from onceforall.predict.labels import Label
from onceforall.registry import Registry
from onceforall.report import tables


class CArray(Export):
    """The weights as a C array, in two precisions: a microcontroller runs it, not this machine."""

    name = "c-array"
    title = "an array in C"
    runtime = "a C compiler"
    precisions = ("fp32", "int8")
    problem = "no microcontroller is here"

    def write(
        self, network: SubNetwork, folder: Path, input_shape: Shape, calibration: Images | None = None
    ) -> Sequence[Path]:
        numbers = [f"{value:g}" for value in next(network.parameters()).flatten().tolist()]
        seen = 0 if calibration is None else len(calibration)
        path = folder / f"network-{self.precision}.h"
        write_atomically(path, f"/* {list(input_shape)}, {seen} */ float weights[] = {{{', '.join(numbers)}}};")
        return [path]


@pytest.fixture
def c_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "EXPORTS", Registry("export", "none.of.ours", {"python": PythonExport}))
    exports.register("c-array", CArray)


@pytest.mark.usefixtures("c_array")
def test_exports_are_found_by_their_name_or_that_of_their_files() -> None:
    for text, name, precision in (
        ("onnx", "onnxruntime", "fp32"),
        ("onnx:int8", "onnxruntime", "int8"),
        ("onnxruntime", "onnxruntime", "fp32"),
        ("pt2", "torch", "fp32"),
        ("python", "python", "fp32"),
        ("c-array:int8", "c-array", "int8"),
    ):
        found = exports.parse(text, threads=2)
        assert (found.name, found.precision, found.threads) == (name, precision, 2)
        assert isinstance(found, DeviceExport) == (found.device is not None)
    assert {"onnx", "onnxruntime", "python", "c-array"} <= set(exports.names())
    with pytest.raises(InvalidConfiguration, match=r"export 'abacus': choices are onnxruntime, .*python, c-array"):
        exports.parse("abacus")
    with pytest.raises(InvalidConfiguration, match="precision 'int8': choices of export python are fp32"):
        exports.parse("python:int8")


@pytest.mark.usefixtures("c_array")
@pytest.mark.parametrize("name", ["", "onnx", "torch", "a@b", "a:b", "python"])
def test_names_that_mean_something_else_are_refused(name: str) -> None:
    with pytest.raises(InvalidConfiguration, match=r"of no device and no format|is taken"):
        exports.register(name, CArray)


@pytest.mark.usefixtures("c_array")
def test_an_export_that_cannot_be_run_here_is_written_and_said(
    supernet: Supernet, labels: list[Label], table: LatencyTable, tiny_data: ImageData, tmp_path: Path
) -> None:
    found = specialize(
        supernet, labels, tiny_data, OnnxRuntimeDevice(), tmp_path, budgets=(), table=table,
        exports=[exports.parse("c-array"), exports.parse("c-array:int8")],
    )  # fmt: skip
    _, (largest,) = read_manifest(tmp_path)
    assert largest == found.networks[0]
    own, plain, small = largest.exports
    assert largest.export is own
    assert own.not_verified is None
    for export in (plain, small):
        assert (export.runtime, export.not_verified) == ("a C compiler", "no microcontroller is here")
        assert export.latency is export.test_score is export.parity is export.peak_memory is None
    size = supernet.space.largest().resolution
    assert (tmp_path / plain.files[0].path).read_text().startswith(f"/* [1, 3, {size}, {size}], 0 */ float weights[]")
    assert ", 30 */" in (tmp_path / small.files[0].path).read_text()  # calibration images
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert card.count("was not run here: no microcontroller is here") == 2
    assert "nan" not in card
    rows = [str(cell) for cell in tables.exports(found).columns[1].cells]
    assert rows[1:] == [f"c-array {p}: not verified, no microcontroller is here" for p in ("fp32", "int8")]
    claims = verify(tmp_path, tiny_data, supernet)
    skipped = [claim for claim in claims if not claim.repeated and "c-array" in claim.about]
    assert [claim.about for claim in skipped] == [f"largest, c-array {p}: accuracy, latency" for p in ("fp32", "int8")]
    assert {claim.found for claim in skipped} == {"no microcontroller is here"}


def test_python_code_gives_what_the_network_gives(supernet: Supernet, tmp_path: Path) -> None:
    network = supernet.extract(supernet.space.sample(np.random.default_rng(0)))
    size = network.specs[0].in_size
    paths = PythonExport().write(network, tmp_path, (1, 3, size, size))
    assert [path.name for path in paths] == ["network.py", "network.safetensors"]
