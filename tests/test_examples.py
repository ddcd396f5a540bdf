from __future__ import annotations

import gzip
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_finetuning_on_another_data_set_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With made-up pictures, whose brightness tells the class, in Fashion-MNIST's files."""
    rng = np.random.default_rng(0)
    for split in ("train", "t10k"):
        classes = rng.integers(0, 10, 200, np.uint8)
        pixels = (25 * classes[:, None] + rng.integers(0, 6, (200, 784))).astype(np.uint8)
        (tmp_path / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pixels.tobytes()))
        (tmp_path / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + classes.tobytes()))
    given = ["--images", "200", "--test-images", "100", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", ["finetune.py", str(tmp_path), *given])
    runpy.run_path(str(EXAMPLES / "finetune.py"), run_name="__main__")
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["top1"].keys() == {"classifier alone", "fine-tuned", "from random weights"}
    assert found["top1"]["classifier alone"] > 50  # guessing gives 10
