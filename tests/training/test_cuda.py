"""Training, resuming and measuring on a GPU, where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from onceforall.checkpoint import load_supernet
from onceforall.data.dataset import ImageData
from onceforall.evaluate import measure_top1
from onceforall.nn.supernet import Supernet
from onceforall.predict.labels import label
from onceforall.space import SearchSpace
from onceforall.training.recipe import sandwich
from onceforall.training.trainer import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")


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
    assert len(label(trained, tiny_data, tmp_path / "labels.jsonl", count=3, uniform=False)) == 3
