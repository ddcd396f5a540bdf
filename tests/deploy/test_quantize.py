from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onceforall.cost.analytic import MACs, PeakActivationMemory
from onceforall.cost.latency import LatencyTable
from onceforall.cost.learned import LearnedLatency, load_latency
from onceforall.data.dataset import ImageData
from onceforall.deploy.call import Call, FinishedSteps
from onceforall.deploy.choosing import export_to_use
from onceforall.deploy.exporting import Exporter, Judged, run_files
from onceforall.deploy.exports import DeviceExport, PythonExport
from onceforall.deploy.manifest import Exported, File, Number, Specialization, Specialized, value_of
from onceforall.deploy.precision import Precisions, keep_sensitive, latency_ratio
from onceforall.deploy.specialize import specialize
from onceforall.deploy.verify import verify
from onceforall.devices import measure
from onceforall.devices.memory import measure_memory
from onceforall.devices.onnxruntime import OnnxRuntimeDevice
from onceforall.devices.remote import RemoteDevice
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration, MeasurementPending
from onceforall.nn.supernet import Supernet
from onceforall.predict.labels import Label
from onceforall.profiling.profile import profile
from onceforall.report import tables
from onceforall.search.pricing import PriceTable

Clocks = Callable[[float], Callable[..., Any]]
TIME = "onceforall.deploy.call.time_exports"
VERIFIED = "onceforall.deploy.specialize.verified"


def measured(precision: str, latency_ms: float, label_top1: float) -> Exported:
    label, latency = Number(label_top1, "percent", "measured"), Number(latency_ms, "ms", "measured")
    return Exported("onnxruntime", precision, "", (), label_score=label, latency=latency)


@pytest.mark.parametrize(
    ("exports", "chosen"),
    [
        ([("int8", 1.0, 79.8), ("fp32", 2.0, 80.0)], 0),  # faster, and as good as asked
        ([("int8", 2.0, 79.8), ("fp32", 1.0, 80.0)], 1),  # int8 can be slower
        ([("int8", 1.0, 79.0), ("fp32", 2.0, 80.0)], 1),  # too much is lost
        ([("int8", 1.0, 79.0), ("fp32", 4.0, 80.0)], 1),  # even where nothing else holds the budget: a promise
        ([("int8", 4.0, 79.0), ("fp32", 5.0, 80.0)], 1),  # and where nothing holds it
        ([("int8", 4.0, 79.9), ("fp32", 5.0, 80.0)], 0),  # nothing holds it: the nearest
        ([("int8", 1.0, 79.0), ("int8", 1.2, 79.9), ("fp32", 2.0, 80.0)], 1),  # some layers kept in fp32
    ],
)
def test_the_fastest_export_that_is_accurate_enough_is_used(
    exports: list[tuple[str, float, float]], chosen: int, supernet: Supernet
) -> None:
    found = tuple(measured(*export) for export in exports)
    network = Specialized("searched", "3 ms", 3.0, supernet.space.smallest(), 1, 1, None, None, exports=found)
    precisions = Precisions(OnnxRuntimeDevice(), OnnxRuntimeDevice(1, "int8"))
    assert export_to_use(network, precisions, max_drop=0.5) == chosen


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_both_precisions_are_exported_and_measured(
    ratio: float,
    supernet: Supernet,
    labels: list[Label],
    tiny_data: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    slower: Clocks,
) -> None:
    def synthetic(call: Call, device: object, table: None) -> LatencyTable:
        made = LatencyTable.synthetic(call.space)
        made.save(call.out / "latency.json")
        return made

    given = {
        "precision": "int8",
        "latency_ratio": {"value": ratio, "unit": "of fp32", "kind": "measured"},
        "networks": 8,
    }
    monkeypatch.setattr("onceforall.deploy.precision.latency_ratio", lambda *asked: given)
    monkeypatch.setattr(TIME, slower(0.9))
    monkeypatch.setattr("onceforall.deploy.specialize.latency_model", synthetic)
    found = specialize(
        supernet, labels, tiny_data, OnnxRuntimeDevice(), tmp_path, budgets=("80%",) if ratio > 1 else (),
        quantize="int8", quantized_labels=6, candidates=1, max_drop=100,
    )  # fmt: skip
    compared = found.about["quantize"]
    tried = {tuple(row["kept"]): row["label_top1"]["value"] for row in found.about["sensitivity"]["onnxruntime"]}
    assert list(tried) == [(), (0,), (0, 1), (0, 1, 2)]
    assert tried[tuple(compared["kept"])] == max(tried.values())
    assert compared["latency_ratio"]["value"] == ratio
    assert found.device["precision"] == ("int8" if ratio < 1 else "fp32")
    assert found.corrected == (ratio < 1)
    for network in found.networks:
        assert [export.precision for export in network.exports] == ["int8", "fp32"]
        assert [list(export.kept) for export in network.exports] == [compared["kept"], []]
        for export in network.exports:
            assert 0 <= value_of(export.label_score) <= 100
            assert 0 <= value_of(export.test_score) <= 100
            assert (value_of(export.parity) > 1e-4) == (export.precision == "int8")
    assert tables.exports(found).row_count == sum(len(network.exports) for network in found.networks)
    measured = iter(export.latency_ms for network in found.networks for export in network.exports)
    monkeypatch.setattr("onceforall.deploy.verify.time_turns", lambda loads, turns: [[next(measured)]])
    claims = list(verify(tmp_path, tiny_data, supernet))
    repeated = [claim.about for claim in claims if claim.repeated]
    assert any("int8" in about and about.endswith("parity with torch") for about in repeated)
    assert sum("predicted top-1" in about for about in repeated) == len(found.networks)  # corrected or not
    assert (tmp_path / "correction.json").exists() == (ratio < 1)


def test_which_precision_is_faster_is_measured(
    supernet: Supernet, tiny_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The median of the ratios of each network's two times."""

    def clock(loads: Sequence[object], turns: object) -> np.ndarray:
        ratios = np.linspace(0.2, 0.9, len(loads) // 2)
        return np.array([[ms] * 9 for number, ratio in enumerate(ratios, 1) for ms in (number * ratio, number)])

    monkeypatch.setattr("onceforall.deploy.precision.time_turns", clock)
    call = Call(supernet, [], tiny_data, tmp_path, FinishedSteps(tmp_path / "steps.jsonl", {}))
    found = latency_ratio(call, OnnxRuntimeDevice(1, "int8"), OnnxRuntimeDevice())
    assert (found["precision"], found["networks"]) == ("int8", 8)
    assert found["latency_ratio"] == {"value": pytest.approx(0.55), "unit": "of fp32", "kind": "measured"}


def test_without_a_latency_model_one_is_made_once_and_found_again(
    supernet: Supernet, labels: list[Label], tiny_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[LatencyTable | LearnedLatency] = []

    def short(*given: Any, **settings: Any) -> LatencyTable | LearnedLatency:
        few = {"calibrating": 8, "validating": 4, "learning": 0, "turns": 2, "burst_seconds": 0.001}
        made.append(profile(*given, **settings, **few))
        return made[-1]

    def killed(*given: object) -> None:
        raise KeyboardInterrupt

    def call() -> Specialization:
        return specialize(supernet, labels, tiny_data, OnnxRuntimeDevice(), tmp_path, budgets=())

    monkeypatch.setattr("onceforall.deploy.twins.profile", short)
    with monkeypatch.context() as patch:
        patch.setattr(VERIFIED, killed)
        with pytest.raises(KeyboardInterrupt):
            call()
    found = call()
    assert len(made) == 1
    assert found.table is not None
    assert found.table == load_latency(tmp_path / "latency.json")
    assert found.table.to_json() == made[0].to_json()
    assert not {"latency.part", "steps.jsonl"} & {path.name for path in tmp_path.iterdir()}


def test_a_device_that_another_process_cannot_make_has_no_memory_figure(
    supernet: Supernet, labels: list[Label], table: LatencyTable, tiny_data: ImageData, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    class Mine(OnnxRuntimeDevice):
        """Of this function: nobody can import it."""

    monkeypatch.setattr("onceforall.deploy.finishing.measure_memory", measure_memory)
    (largest,) = specialize(supernet, labels, tiny_data, Mine(), tmp_path, budgets=(), table=table).networks
    assert largest.export.peak_memory is None
    assert "NaN" not in (tmp_path / "manifest.json").read_text()
    assert "nan" not in (tmp_path / "MODEL_CARD.md").read_text()


def test_limits_bind_every_network_but_the_largest(
    supernet: Supernet,
    labels: list[Label],
    table: LatencyTable,
    tiny_data: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    slower: Clocks,
) -> None:
    monkeypatch.setattr(TIME, slower(1.0))
    space = supernet.space
    least = float(PriceTable(space, PeakActivationMemory()).cheapest()[1].min())
    limits = [
        PeakActivationMemory().at_most(1.2 * least),
        MACs().at_most(0.5 * MACs().cost(space.lower(space.largest()))),
    ]
    found = specialize(
        supernet, labels, tiny_data, OnnxRuntimeDevice(), tmp_path, budgets=("100%",), table=table, limits=limits,
        candidates=1,
    )  # fmt: skip
    assert [network.role for network in found.networks] == ["largest", "searched", "uniform"]
    for network in found.networks[1:]:
        layers = space.lower(network.architecture)
        assert all(constraint.model.cost(layers) <= constraint.bound for constraint in limits)
    assert found.about["limits"] == [str(constraint) for constraint in limits]


@pytest.mark.parametrize("full", [False, True])
def test_sensitive_layers_of_further_exports_are_found_as_well(
    full: bool, supernet: Supernet, labels: list[Label], table: LatencyTable, tiny_data: ImageData, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    accuracies = {(): 10.0, (0,): 30.0, (0, 1): 20.0, (0, 1, 2): 30.0}
    monkeypatch.setattr(
        Call, "label_score", lambda self, arch, device=None: accuracies[tuple(device.kept)] if device else 30.4
    )
    found = specialize(
        supernet, labels, tiny_data, OnnxRuntimeDevice(), tmp_path, budgets=(), table=table, full_int8=full,
        exports=[OnnxRuntimeDevice(1, "int8")],
    )  # fmt: skip
    (largest,) = found.networks
    assert [export.kept for export in largest.exports] == [(), () if full else (0,)]
    assert (tmp_path / "MODEL_CARD.md").read_text().count("fp32, onnxruntime | label top-1") == (not full)
    assert len(found.about["sensitivity"].get("onnxruntime", [])) == (0 if full else 4)


@pytest.mark.parametrize(
    ("enough", "kept", "tried"),
    [(1, (0, 1, 5), 5), (2, (0, 1, 3, 5), 6), (9, (0, 1, 2, 3, 5, 6), 7)],  # 4 first, then 1, 2 and 4 others
)
def test_sensitive_layers_are_looked_for_in_the_whole_network(
    enough: int, kept: tuple[int, ...], tried: int, supernet: Supernet, tiny_data: ImageData, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of one whose layers 5, 3, 6 and 2 are, in this order, and whose first two are the best of those tried first."""
    order = [5, 3, 6, 2]

    def label_score(self: Call, arch: object, device: Any = None) -> float:
        if device is None:
            return 90.0
        others = len({*order[:enough]} & {*device.kept})
        return (
            80.0
            + len({0, 1} & {*device.kept})
            + 0.1 * others
            + (8 if others == enough else 0)
            - 0.3 * (tuple(device.kept) == (0, 1, 2))
        )

    def noise(self: Exporter, arch: object, device: Any) -> float:
        (layer,) = {*device.kept} - {0, 1}
        return 0.01 * order.index(layer) if layer in order else 0.5 + 0.01 * layer

    monkeypatch.setattr(Call, "label_score", label_score)
    monkeypatch.setattr(Exporter, "noise", noise)
    call = Call(supernet, [], tiny_data, tmp_path, FinishedSteps(tmp_path / "steps.jsonl", {}))
    device = keep_sensitive(call, OnnxRuntimeDevice(1, "int8"), full_int8=False, max_drop=0.5)
    assert device.kept == kept
    assert len(call.sensitivity["onnxruntime"]) == tried


def test_the_noise_of_a_quantised_network_tells_which_layer_is_sensitive(
    supernet: Supernet, tiny_data: ImageData, tmp_path: Path
) -> None:
    """One channel of the fourth layer has weights a thousand times as large, and the next one undoes it."""
    exporter, arch = Exporter(supernet, tiny_data, tmp_path), supernet.space.largest()
    layers = exporter.plain(arch)
    with torch.no_grad():
        inner = layers[3]
        inner.depthwise.conv.weight[0] *= 1000  # type: ignore[union-attr]
        inner.project.conv.weight[:, 0] /= 1000  # type: ignore[union-attr]
    device = OnnxRuntimeDevice(1, "int8")
    noise = [exporter.noise(arch, device.keeping(kept)) for kept in ((), (3,), tuple(range(len(layers))))]
    assert noise[0] > 2 * noise[1] > 0
    assert noise[2] < 1e-9


def test_what_loses_more_than_asked_for_is_said(
    supernet: Supernet, labels: list[Label], table: LatencyTable, tiny_data: ImageData, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In the manifest, the card and the table: of every export, used or not."""
    judge = Exporter.judge

    def worse(self: Exporter, arch: Any, device: Any, files: Any, split: Any) -> Judged:
        found = judge(self, arch, device, files, split)
        return found._replace(score=60.0 if device.precision == "fp32" else 57.0)

    monkeypatch.setattr(Exporter, "judge", worse)

    def call(name: str, max_drop: float) -> Specialization:
        return specialize(
            supernet, labels, tiny_data, OnnxRuntimeDevice(), tmp_path / name, budgets=(), table=table,
            exports=[OnnxRuntimeDevice(1, "int8")], full_int8=True, max_drop=max_drop,
        )  # fmt: skip

    said = "largest: onnxruntime int8 loses 3.00 points of top-1 against fp32 on the test images, more than the 0.5"
    found = call("lossy", 0.5)
    assert [sentence[: len(said)] for sentence in found.about["losses"]] == [said]
    assert said in (tmp_path / "lossy" / "MODEL_CARD.md").read_text()
    assert said in (tmp_path / "lossy" / "manifest.json").read_text()
    assert "[red]3.00[/]" in list(tables.exports(found).columns[4].cells)
    assert found.networks[0].export.precision == "fp32"
    assert call("good", 3.5).about["losses"] == []


def test_further_runtimes_are_verified_as_well(
    supernet: Supernet, labels: list[Label], table: LatencyTable, tiny_data: ImageData, tmp_path: Path
) -> None:
    from onceforall.devices.torch import TorchDevice

    found = specialize(
        supernet, labels, tiny_data, OnnxRuntimeDevice(), tmp_path, budgets=(), table=table,
        exports=[TorchDevice(), OnnxRuntimeDevice(), PythonExport(), TorchDevice()],  # the device's own, and one twice
    )  # fmt: skip
    (largest,) = found.networks
    assert [export.name for export in largest.exports] == ["onnxruntime fp32", "torch fp32", "python fp32"]
    own, other, code = largest.exports
    assert largest.export is own
    assert value_of(other.parity) < 1e-4
    assert value_of(other.test_score) == pytest.approx(value_of(own.test_score), abs=1.01)
    assert other.latency_ms > 0
    assert (tmp_path / "largest" / "torch-fp32.pt2").stat().st_size == other.bytes
    assert [file.path for file in code.files] == ["largest/network.py", "largest/network.safetensors"]
    claims = {claim.about: claim for claim in verify(tmp_path, tiny_data, supernet)}
    assert claims["largest, python fp32: files, sha256"].repeated
    assert not claims["largest, python fp32: accuracy, latency"].repeated
    assert "python fp32 was not run here: its outputs" in (tmp_path / "MODEL_CARD.md").read_text()
    (tmp_path / "largest" / "network.py").write_text("")
    with pytest.raises(IncompatibleCheckpoint, match=r"network\.py is not what the manifest says"):
        list(verify(tmp_path))


def test_an_interrupted_call_goes_on_where_it_stopped(
    supernet: Supernet,
    labels: list[Label],
    table: LatencyTable,
    tiny_data: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    slower: Clocks,
) -> None:
    monkeypatch.setattr(TIME, slower(1.0))
    judged: list[str] = []
    judge = Exporter.judge

    def until(limit: int) -> None:
        def counted(self: Exporter, arch: object, device: object, files: object, split: str) -> object:
            if len(judged) == limit:
                raise KeyboardInterrupt
            judged.append(split)
            return judge(self, arch, device, files, split)  # type: ignore[arg-type]

        monkeypatch.setattr(Exporter, "judge", counted)

    def call(out: Path) -> list[Specialized]:
        return specialize(
            supernet, labels, tiny_data, OnnxRuntimeDevice(), out, budgets=("70%", "90%"), table=table, candidates=1
        ).networks

    until(1000)
    whole = call(tmp_path / "whole")
    judged.clear()
    until(3)
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path / "out")
    assert (tmp_path / "out" / "steps.jsonl").exists()
    judged.clear()
    until(1000)
    assert call(tmp_path / "out") == whole
    assert len(judged) == len(whole) - 3
    assert not (tmp_path / "out" / "steps.jsonl").exists()


def test_steps_of_another_call_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    assert FinishedSteps(path, {"seed": 0, "space": [1]}).once("a", lambda: 5) == 5
    assert FinishedSteps(path, {"seed": 0, "space": (1,)}).once("a", lambda: 6) == 5
    with pytest.raises(InvalidConfiguration, match="interrupted call with another seed: repeat that call"):
        FinishedSteps(path, {"seed": 1, "space": [1]})


@pytest.mark.parametrize(
    ("quantize", "max_drop", "message"),
    [
        ("int4", 0.5, "quantize 'int4': choices are int8, bf16"),
        ("bf16", 0.5, "precision 'bf16'"),
        ("int8", -1, "max_drop -1"),
    ],
)
def test_bad_settings_are_refused(
    quantize: str, max_drop: float, message: str, supernet: Supernet, tiny_data: ImageData, tmp_path: Path
) -> None:
    device = OnnxRuntimeDevice()
    with pytest.raises(InvalidConfiguration, match=message):
        specialize(supernet, [], tiny_data, device, tmp_path, quantize=quantize, max_drop=max_drop)


def test_a_full_disk_leaves_nothing_half_written(
    supernet: Supernet, tiny_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onceforall.errors import UnwritableOutput

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    exporter = Exporter(supernet, tiny_data, tmp_path)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UnwritableOutput, match="No space left on device"):
        exporter.export("small", supernet.space.smallest(), DeviceExport(OnnxRuntimeDevice()))
    assert not list((tmp_path / "small").iterdir())


def test_quantised_networks_are_calibrated_on_calibration_images(
    supernet: Supernet, tiny_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[np.ndarray] = []
    convert = OnnxRuntimeDevice.convert

    def spy(self: OnnxRuntimeDevice, network: object, shape: object, calibration: np.ndarray) -> object:
        given.append(calibration)
        return convert(self, network, shape, calibration)  # type: ignore[arg-type]

    monkeypatch.setattr(OnnxRuntimeDevice, "convert", spy)
    arch = supernet.space.smallest()
    Exporter(supernet, tiny_data, tmp_path).convert(arch, OnnxRuntimeDevice(1, "int8"))
    (images,) = given
    known = np.concatenate([batch.numpy() for batch in tiny_data.calibration(arch.resolution)])
    assert all(any(np.array_equal(image, other) for other in known) for image in images)


def test_an_export_is_as_large_as_its_files() -> None:
    files = File("x/a.b", 10, "0" * 64), File("x/a.c", 5, "0" * 64)
    assert Exported("a", "int8", "a 1", files).bytes == 15


def test_networks_for_another_machine_wait_for_its_results(
    supernet: Supernet, labels: list[Label], table: LatencyTable, tiny_data: ImageData, tmp_path: Path
) -> None:
    """Each plan is measured (here, by its script) and brought back; the same call goes on and counts on those times."""
    remote = RemoteDevice(tmp_path / "phone")

    def call() -> list[Specialized]:
        return specialize(
            supernet, labels, tiny_data, remote, tmp_path / "out", budgets=("1000 ms",), table=table, candidates=1
        ).networks

    for _ in range(2):  # the largest network alone, then all
        with pytest.raises(MeasurementPending, match=r"run `python measure\.py` in it"):
            call()
        (plan,) = [path for path in (tmp_path / "phone").iterdir() if not (path / "results.json").exists()]
        measure.measure(plan, say=lambda text: None)
    networks = call()
    assert [network.export.name for network in networks] == ["onnxruntime@" + str(tmp_path / "phone") + " fp32"] * 3
    assert all(0 < network.measured_latency_ms < 1000 for network in networks)
    skipped = [claim.about for claim in verify(tmp_path / "out", tiny_data) if not claim.repeated]
    assert sum(about.endswith("fp32: latency") for about in skipped) == 3
    with pytest.raises(InvalidConfiguration, match="precisions cannot be compared from here"):
        specialize(supernet, labels, tiny_data, remote, tmp_path / "int8", table=table, quantize="int8")


def test_what_was_chosen_can_go_on_training(
    supernet: Supernet, labels: list[Label], table: LatencyTable, tiny_data: ImageData, tmp_path: Path
) -> None:
    found = []
    for epochs in (0, 1):
        found.append(
            specialize(
                supernet, labels, tiny_data, OnnxRuntimeDevice(), tmp_path / str(epochs), budgets=(),
                architectures=[labels[3].architecture], table=table, finetune=epochs,
            ).networks
        )  # fmt: skip
    (largest, plain), (same, tuned) = found
    assert (plain.finetuning, same.finetuning) == (None, None)
    assert tuned.finetuning is not None
    assert tuned.finetuning.epochs == 1
    assert same.export.files[0].sha256 == largest.export.files[0].sha256  # only what was chosen
    assert tuned.export.files[0].sha256 != plain.export.files[0].sha256
    assert value_of(tuned.export.parity) < 1e-4
    assert "fine-tuned for 1 epochs: label top-1" in tuned.attempts[-1]
    card = (tmp_path / "1" / "MODEL_CARD.md").read_text()
    assert "then fine-tuned (given: 1 epochs)" in card
    assert "without further training" not in card


def test_fine_tuning_is_judged_in_the_precision_of_the_device(
    supernet: Supernet, labels: list[Label], table: LatencyTable, tiny_data: ImageData, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked: list[tuple[str | None, bool]] = []

    def label_score(self: Call, arch: object, device: Any = None, exporter: Exporter | None = None) -> float:
        asked.append((device and device.precision, exporter is not None))
        return 50.0 + len(asked)

    monkeypatch.setattr(Call, "label_score", label_score)
    _, tuned = specialize(
        supernet, labels, tiny_data, OnnxRuntimeDevice(1, "int8"), tmp_path, budgets=(), table=table, finetune=1,
        architectures=[labels[3].architecture],
    ).networks  # fmt: skip
    assert asked == [("int8", False), ("int8", True)]
    assert tuned.attempts == ("fine-tuned for 1 epochs: label top-1 51.00 -> 52.00 %",)
    assert value_of(tuned.label_score) == 52


def test_fine_tuned_networks_have_weights_of_their_own_which_verify_knows(
    supernet: Supernet, labels: list[Label], table: LatencyTable, tiny_data: ImageData, tmp_path: Path
) -> None:
    largest = supernet.space.largest()  # is there as a baseline, too

    def call(epochs: int) -> list[Specialized]:
        return specialize(
            supernet, labels, tiny_data, OnnxRuntimeDevice(), tmp_path, budgets=(), architectures=[largest],
            table=table, finetune=epochs, exports=[PythonExport()],
        ).networks  # fmt: skip

    for epochs in (1, 2):  # a finished folder is no obstacle
        baseline, tuned = call(epochs)
        assert max(value_of(baseline.export.parity), value_of(tuned.export.parity)) < 1e-4
        assert baseline.export.files[0].sha256 != tuned.export.files[0].sha256
        assert baseline.exports[1].files[1].sha256 != tuned.exports[1].files[1].sha256
    assert len(list((tmp_path / "finetune").iterdir())) == 2
    claims = {claim.about: claim for claim in verify(tmp_path, tiny_data, supernet)}
    assert claims["given, onnxruntime fp32: parity with torch"].repeated
    assert claims["given: fine-tuned weights, sha256"].repeated
    weights = tmp_path / "given" / "finetuned.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(IncompatibleCheckpoint, match=r"finetuned\.safetensors is not what the manifest says"):
        list(verify(tmp_path, tiny_data, supernet))


def test_an_interrupted_call_keeps_what_it_chose(
    supernet: Supernet, labels: list[Label], table: LatencyTable, tiny_data: ImageData, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, slower: Clocks,
) -> None:  # fmt: skip
    def call() -> list[Specialized]:
        return specialize(
            supernet, labels, tiny_data, OnnxRuntimeDevice(), tmp_path, budgets=("80%",), table=table, candidates=1
        ).networks

    chosen: list[Specialized] = []

    def killed(call: Call, networks: Sequence[Specialized]) -> None:
        chosen.extend(networks)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TIME, slower(1.0))
        patch.setattr(VERIFIED, killed)
        with pytest.raises(KeyboardInterrupt):
            call()
    monkeypatch.setattr(TIME, slower(2.0))  # at this speed other networks would be chosen
    monkeypatch.setattr("onceforall.deploy.choosing.search", None)
    again = call()
    assert [n.architecture for n in again] == [n.architecture for n in chosen]
    assert [n.latency_budget_ms for n in again] == [n.latency_budget_ms for n in chosen]
    assert again[1].measured_latency_ms == 2 * value_of(again[1].predicted_latency)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgets": ("0.5",)}, "budget '0.5': give milliseconds"),
        ({"budgets": ("0.5 ms", "0.5ms")}, "budgets '0.5 ms' and '0.5ms' are the same"),
        ({"candidates": 0}, "candidates 0: expected at least 1"),
        ({"finetune": -1}, "finetune -1: expected a number of epochs"),
        ({"quantize": "int4"}, "quantize 'int4'"),
        ({"exports": [RemoteDevice("phone")]}, "further export onnxruntime@phone: .* export to onnxruntime, timed"),
        ({"table": "int8"}, "was measured in int8, the networks will run in fp32"),
    ],
)
def test_what_makes_no_sense_is_refused_before_a_finished_manifest_is_lost(
    options: dict[str, Any], message: str, supernet: Supernet, tiny_data: ImageData, tmp_path: Path
) -> None:
    (tmp_path / "manifest.json").write_text("finished")
    if "table" in options:
        made = LatencyTable.synthetic(supernet.space)
        options = {"table": replace(made, device={"precision": options["table"]})}
    with pytest.raises(InvalidConfiguration, match=message):
        specialize(supernet, [], tiny_data, OnnxRuntimeDevice(), tmp_path, **options)
    assert (tmp_path / "manifest.json").read_text() == "finished"


def test_a_runtime_that_fails_is_an_error_and_no_endless_wait(tiny_data: ImageData) -> None:
    class Broken:
        def load(self, files: object, shape: object) -> Callable[[Any], Any]:
            def run(images: Any) -> Any:
                raise RuntimeError("out of order")

            return run

    images, labels = torch.zeros(5, 3, 4, 4), torch.zeros(5)
    device: Any = Broken()
    with pytest.raises(RuntimeError, match="out of order"):
        run_files(device, {}, (1, 3, 4, 4), tiny_data, [(images, labels)])
