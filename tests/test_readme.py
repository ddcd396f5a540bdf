from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import onceforall as ofa
from onceforall.cost.latency import LatencyTable
from onceforall.space import SearchSpace

README = Path(__file__).parent.parent / "README.md"


def test_the_nine_lines_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With random images in place of CIFAR-10 and a made-up device in place of a half minute of timing."""
    images = torch.randint(0, 256, (200, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) % 10
    data = ofa.ImageData("random", images, labels, images, labels, 10, (0.5,) * 3, (0.25,) * 3)
    monkeypatch.setattr(ofa, "cifar10", lambda: data)

    def made_up(space: SearchSpace, device: object) -> LatencyTable:
        return LatencyTable.synthetic(space, macs_per_ms=3e7, overhead_ms=0.001)

    monkeypatch.setattr(ofa, "profile", made_up)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert re.match(r"\d+px k\de\d.* \d\d\.\d+ \d+\.\d+", capsys.readouterr().out)


def test_every_command_in_the_readme_exists() -> None:
    from onceforall.cli import app

    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"^ofa (\w+)", README.read_text(), re.MULTILINE)) == known


def test_public_names_are_there() -> None:
    assert sorted(ofa.__all__) == ofa.__all__
    assert all(hasattr(ofa, name) for name in ofa.__all__)
