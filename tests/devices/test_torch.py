"""fp32 on a CUDA device is fp32: what torch sets by default, and what a user sets, is put aside and put back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from onceforall.devices.torch import TorchSession, full_precision

BACKENDS: Any = torch.backends
PLACES = (BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn, BACKENDS.mkldnn.matmul)


def present() -> list[str]:
    return [place.fp32_precision for place in PLACES]


@pytest.fixture(params=["default", "old settings", "new settings"])
def chosen(request: pytest.FixtureRequest) -> Iterator[str]:
    """What a process may have chosen, by torch's old settings or by its new ones."""
    before = present()
    if request.param == "old settings":
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.allow_tf32 = False
    if request.param == "new settings":
        for place in PLACES:
            place.fp32_precision = "tf32"
    yield request.param
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for place, precision in zip(PLACES, before, strict=True):
        place.fp32_precision = precision


def test_full_precision_is_set_and_put_back(chosen: str) -> None:
    before = present()
    with full_precision():
        assert present() == ["ieee"] * 4
        # What compilers ask for: torch raises where old and new settings differ.
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert present() == before
    with pytest.raises(ZeroDivisionError), full_precision():
        _ = 1 / 0
    assert present() == before
    if chosen != "new settings":
        assert torch.backends.cudnn.allow_tf32 == (chosen == "default")
        assert torch.get_float32_matmul_precision() == ("highest" if chosen == "default" else "medium")


def test_a_session_that_is_not_on_the_processor_runs_in_full_precision(
    chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`meta` stands in for a GPU: it computes nothing, and everybody has it."""
    found: list[list[str]] = []

    class Module:
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            assert images.device.type == "meta"
            found.append(present())
            return images

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    before = present()
    session = TorchSession(Module(), "fp32", "meta", 1, (1, 3, 4, 4))
    session.feed(np.zeros((1, 3, 4, 4), np.float32))
    session.run()
    assert found == [["ieee"] * 4] * 3  # two to warm up
    assert present() == before
