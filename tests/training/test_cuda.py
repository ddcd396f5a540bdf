"""Training, resuming and measuring on a GPU, where there is one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from onceforall.checkpoint import load_supernet
from onceforall.cli import app, building
from onceforall.data.dataset import ImageData
from onceforall.evaluate import Evaluator, measure_top1
from onceforall.nn.supernet import Supernet
from onceforall.predict.labels import label
from onceforall.space import SearchSpace
from onceforall.training.distributed import Processes, torch_device
from onceforall.training.recipe import sandwich
from onceforall.training.trainer import train

with_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")


@with_a_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_on_a_gpu_ends_and_measures_as_on_the_processor(
    precision: Any, tiny_space: SearchSpace, tiny_data: ImageData, tmp_path: Path
) -> None:
    run, options = tmp_path / "run", {"device": "cuda", "precision": precision}
    train(Supernet(tiny_space), tiny_data, sandwich(1, 60), run, stop_after=2, **options)
    trained = train(Supernet(tiny_space), tiny_data, sandwich(1, 60), run, **options)
    assert next(trained.parameters()).is_cuda
    here, arch = load_supernet(run / "supernet.safetensors"), tiny_space.smallest()
    assert measure_top1(trained, arch, tiny_data, "label") == pytest.approx(
        measure_top1(here, arch, tiny_data, "label"), abs=2
    )
    assert Evaluator(trained, tiny_data, "label").score(arch) == measure_top1(trained, arch, tiny_data, "label")
    assert len(label(trained, tiny_data, tmp_path / "labels.jsonl", count=3, uniform=False)) == 3


@pytest.mark.parametrize(
    ("name", "local_rank", "expected"),
    [("cuda", "1", "cuda:1"), ("cuda", None, "cuda:0"), ("cuda:2", "1", "cuda:2"), ("cpu", "1", "cpu")],
)
def test_a_process_touches_its_own_gpu_alone(
    name: str, local_rank: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that torchrun starts on a machine, each has one; a first touch opens a context, and takes memory."""
    touched: list[torch.device] = []
    monkeypatch.setattr(torch, "empty", lambda size, device: touched.append(torch.device(device)))
    for variable, value in (("LOCAL_RANK", local_rank), ("WORLD_SIZE", None)):
        monkeypatch.delenv(variable, raising=False) if value is None else monkeypatch.setenv(variable, value)
    assert str(torch_device(name)) == expected
    assert str(Processes(name).device) == expected
    assert list(map(str, touched)) == [expected] * 2


def test_labels_are_measured_on_a_process_s_own_gpu(
    tiny_space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []
    monkeypatch.setenv("LOCAL_RANK", "3")
    entry = SimpleNamespace(supernet=Supernet(tiny_space), folder=tmp_path)
    monkeypatch.setattr(building, "load_model", lambda *given, **named: entry)
    monkeypatch.setattr(torch, "empty", lambda size, device: None)
    monkeypatch.setattr(Supernet, "to", lambda self, device: moved.append(str(device)))
    monkeypatch.setattr(building, "open_data", lambda *given: None)
    monkeypatch.setattr(building, "run_label", lambda *given, **named: [])
    assert CliRunner().invoke(app, ["label", "--model", str(tmp_path), "--device", "cuda"]).exit_code == 0
    assert moved == ["cuda:3"]
