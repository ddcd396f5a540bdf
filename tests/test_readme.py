from __future__ import annotations

import re
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image
from torch.testing import assert_close

import onceforall as ofa
from onceforall.cli import app
from onceforall.cost.latency import LatencyTable
from onceforall.predict.labels import Label
from onceforall.space import SearchSpace

README = Path(__file__).parent.parent / "README.md"


def code_below(heading: str, number: int = 0) -> str:
    """A block of Python between a heading and the next, counted from 0."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## )", README.read_text(), re.DOTALL | re.MULTILINE)
    return str(re.findall(r"```python\n(.*?)```", section, re.DOTALL)[number])


def test_the_nine_lines_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With random images in place of CIFAR-10 and a made-up device in place of a half minute of timing."""
    images = torch.randint(0, 256, (200, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) % 10
    data = ofa.ImageData("random", images, labels, images, labels, 10, (0.5,) * 3, (0.25,) * 3)
    monkeypatch.setattr(ofa, "cifar10", lambda: data)

    def made_up(space: SearchSpace, device: object) -> LatencyTable:
        return LatencyTable.synthetic(space, macs_per_ms=3e7, overhead_ms=0.001)

    monkeypatch.setattr(ofa, "profile", made_up)
    exec(compile(code_below("Nine lines"), "README.md", "exec"), {})
    assert re.match(r"\d+px k\de\d.* \d\d\.\d+ \d+\.\d+", capsys.readouterr().out)


def test_the_lines_on_your_own_data_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one step of each run."""
    monkeypatch.chdir(tmp_path)
    pictures = [(Image.new("RGB", (40, 36), (6 * number, 90, 200)), number % 2) for number in range(80)]
    real = ofa.train
    monkeypatch.setattr(ofa, "train", lambda *given: real(*given, stop_after=1))
    names: dict[str, Any] = {"train": pictures, "test": pictures}
    exec(compile(code_below("Train on your data"), "README.md", "exec"), names)
    assert {path.name for path in Path("runs").iterdir()} == {"mine", "tuned"}
    assert names["network"].architecture == names["space"].smallest()


def test_the_lines_on_published_artefacts_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With random weights in place of the published ones."""
    tables = README.parents[1] / "shared/data/tables"
    if not tables.is_dir():
        pytest.skip("no ../shared/data/tables beside the project")
    (tmp_path / "acc_predictor.pth").symlink_to(tables / "acc_predictor.pth")
    (tmp_path / "note10").symlink_to(tables / "note10")
    monkeypatch.chdir(tmp_path)
    supernet = ofa.Supernet(ofa.spaces.mobilenet_v3(1.2))
    monkeypatch.setattr(ofa.zoo, "load", lambda name: ofa.zoo.Entry(name, supernet, [], tmp_path))
    names: dict[str, Any] = {}
    exec(compile(code_below("From the published Once-for-All"), "README.md", "exec"), names)
    assert names["best"].costs[0].value <= 25
    again, _ = ofa.interop.load_network(tmp_path / "note10_25ms")
    assert again.architecture == names["best"].architecture


def test_the_lines_that_run_a_file_run(
    tiny_supernet: ofa.Supernet,
    tiny_data: ofa.ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("onceforall.deploy.finishing.measure_memory", lambda *given: 1)
    Image.new("RGB", (40, 36), (6, 90, 200)).save("horse.png")
    data = replace(tiny_data, classes=("ant", "bee", "cow", "dog"), _prepared={})
    space = tiny_supernet.space
    labels = [Label("random", arch, 50.0 + sum(arch.depths)) for arch in space.uniforms()]
    table = LatencyTable.synthetic(space)
    ofa.specialize(
        tiny_supernet, labels, data, ofa.device("onnxruntime"), "out", budgets=(), architectures=[space.smallest()],
        table=table,
    )  # fmt: skip
    names: dict[str, Any] = {}
    exec(compile(code_below("From a budget to a file that runs"), "README.md", "exec"), names)
    assert capsys.readouterr().out.strip() in data.classes
    pixels = torch.tensor([6.0, 90, 200])[:, None, None].expand(3, 16, 16)
    assert_close(torch.from_numpy(names["x"][0]), (pixels / 255 - 0.5) / 0.2)


def test_the_lines_on_your_device_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    front, search = ofa.front, ofa.search
    quick: dict[str, Any] = {"population": 20, "generations": 1}
    monkeypatch.setattr(ofa, "front", lambda *given, **named: front(*given, **named, **quick, rounds=1))
    monkeypatch.setattr(ofa, "search", lambda *given, **named: search(*given, **named, **quick))
    exec(compile(code_below("Your device"), "README.md", "exec"), {})
    assert re.match(r"\d+ \d+px k\de\d.* \d\d\.\d+ \d+\.\d+", capsys.readouterr().out)


def test_the_lines_on_a_bundle_run(
    tiny_supernet: ofa.Supernet, tiny_data: ofa.ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    space = tiny_supernet.space
    ofa.write_bundle(tiny_supernet, {"fast": space.smallest(), "best": space.largest()}, tiny_data, "bundle")
    names: dict[str, Any] = {"ofa": ofa, "images": torch.randn(2, 3, 16, 16)}
    exec(compile(code_below("From a budget to a file that runs", 1), "README.md", "exec"), names)
    assert names["logits"].shape == (2, 4)


def test_the_space_of_the_readme_conforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ofa.spaces._READERS, "_registered", {})
    module = types.ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)  # dataclasses look their module up
    exec(compile(code_below("A space of your own"), "README.md", "exec"), module.__dict__)
    suite = module.TestTwoUnits()
    space = type(suite).space.__wrapped__(suite)
    tests = [name for name in dir(suite) if name.startswith("test_")]
    assert len(tests) >= 10
    for name in tests:
        getattr(suite, name)(space)


def test_every_command_in_the_readme_exists() -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"(?:^|`)ofa (\w+)", README.read_text(), re.MULTILINE)) == known


def test_every_option_in_the_readme_exists() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    seen = 0
    for name, rest in re.findall(r"^ *(?:torchrun .*)?ofa (\w+)(.*)$", README.read_text(), re.MULTILINE):
        known = {option for parameter in commands[name].params for option in parameter.opts}
        used = re.findall(r"--[a-z][\w-]+", rest.partition("#")[0])
        assert set(used) <= known, name
        seen += len(used)
    assert seen > 50


PAGES = (README, README.parent / "benchmarks/README.md", README.parent / "onceforall/zoo/cifar10/README.md")


def test_every_benchmark_and_its_options_exist() -> None:
    seen = 0
    for page in PAGES:
        for script, rest in re.findall(r"(benchmarks/\w+\.py)([^`#\n]*)", page.read_text()):
            known = re.findall(r'add_argument\(\s*"(--[a-z][\w-]+)"', (README.parent / script).read_text())
            used = re.findall(r"--[a-z][\w-]+", rest)
            assert set(used) <= set(known), f"{page}: {script}"
            seen += len(used)
    assert seen > 20


def test_every_link_leads_somewhere() -> None:
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())]
    assert len(links) > 3
    for page, link in links:
        assert (page.parent / link).exists(), f"{page}: {link}"


def test_public_names_are_there() -> None:
    assert sorted(ofa.__all__) == ofa.__all__
    assert all(hasattr(ofa, name) for name in ofa.__all__)
