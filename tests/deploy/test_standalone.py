from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from onceforall.deploy.standalone import TOLERANCE, run_alone, source, write_files, write_standalone
from onceforall.errors import IncompatibleCheckpoint, UnwritableOutput
from onceforall.layers import ConvSpec, MBConvSpec
from onceforall.nn.network import SubNetwork
from onceforall.nn.subnet import build, fold_batch_norm
from onceforall.nn.supernet import Supernet
from onceforall.space import SearchSpace
from onceforall.testing import scramble


def networks(space: SearchSpace) -> list[SubNetwork]:
    """A random sub-network as extracted, the largest folded, and the smallest without its classifier."""
    supernet = Supernet(space)
    scramble(supernet)
    random = supernet.extract(space.sample(np.random.default_rng(0)))
    features = supernet.extract(space.smallest())
    features.reset_classifier(0)
    return [random, fold_batch_norm(supernet.extract(space.largest())), features]


def images_for(network: SubNetwork) -> Tensor:
    size = network.specs[0].in_size
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_networks_of_every_space_run_without_this_package(all_spaces: dict[str, SearchSpace], tmp_path: Path) -> None:
    jobs, expected = [], []
    for name, space in all_spaces.items():
        for index, network in enumerate(networks(space)):
            path = tmp_path / f"{name}-{index}"
            write_files(network, path)
            jobs.append((path, images_for(network)))
            expected.append(network(images_for(network)).detach())
    for (path, _), logits, own in zip(jobs, run_alone(jobs), expected, strict=True):
        assert_close(logits / own.abs().max(), own / own.abs().max(), rtol=0, atol=TOLERANCE, msg=str(path))


def test_the_files_are_checked_and_named(tiny_supernet: Supernet, tmp_path: Path) -> None:
    network = tiny_supernet.extract(tiny_supernet.space.largest())
    found = write_standalone(network, tmp_path / "net", (2, 3, 20, 20))
    assert (found.code, found.weights) == (tmp_path / "net.py", tmp_path / "net.safetensors")
    assert 0 <= found.parity <= TOLERANCE
    assert {path.name for path in tmp_path.iterdir()} == {"net.py", "net.safetensors"}
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]  # type: ignore[union-attr]
        for node in ast.walk(ast.parse(found.code.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported == {"__future__", "collections", "pathlib", "safetensors", "torch"}


def test_the_code_is_tidy(tiny_resnet_space: SearchSpace, tiny_space: SearchSpace, tmp_path: Path) -> None:
    for space in (tiny_resnet_space, tiny_space):
        text = source(build(space.lower(space.largest())), "net")
        assert max(map(len, text.splitlines())) <= 120
        (tmp_path / "net.py").write_text(text)
        subprocess.run(
            [
                sys.executable,
                "-m",
                "ruff",
                "check",
                "-q",
                "--isolated",
                "--select",
                "E,F,I",
                "--line-length",
                "120",
                tmp_path / "net.py",
            ],
            check=True,
        )
        assert ("Bottleneck" in text, "SqueezeExcite" in text) == (space is tiny_resnet_space, space is tiny_space)


def test_a_network_that_is_not_what_its_specs_say_is_not_written(tiny_supernet: Supernet, tmp_path: Path) -> None:
    network = tiny_supernet.extract(tiny_supernet.space.largest())
    network[0].act = nn.ReLU()  # was a hard swish
    with pytest.raises(IncompatibleCheckpoint, match="net: logits differ by"):
        write_standalone(network, tmp_path / "net", (1, 3, 20, 20))
    network[0].conv = nn.Conv2d(3, 8, 5, 2, 2)
    with pytest.raises(IncompatibleCheckpoint, match=r"net\.py"):
        write_standalone(network, tmp_path / "net", (1, 3, 20, 20))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableOutput):
        write_files(build([ConvSpec(8, 3, 4, 3, 1, "none")]), tmp_path / "file" / "net")


def test_layers_without_activation_and_with_their_own_epsilon() -> None:
    text = source(
        build([ConvSpec(8, 3, 4, 3, 1, "none", bn_eps=1e-3), MBConvSpec(8, 4, 4, 4, 3, 1, "none", 0, True)]), "n"
    )
    assert "ConvNormAct(3, 4, 3, bn_eps=0.001)" in text
    assert 'InvertedResidual(4, 4, 4, 3, "none", shortcut=True)' in text
