"""Torch files of strangers are read as data: nothing in them runs, and what is no state dict is refused."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onceforall.errors import IncompatibleCheckpoint
from onceforall.interop.pickles import read_pickle, read_state, write_state

STATE = {"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.ones(3), "count": torch.tensor(7)}

both_formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


class Command:
    """Runs when it is unpickled."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.ran}'",)


def write(path: Path, value: Any, zipped: bool) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


@both_formats
@pytest.mark.parametrize(
    "value",
    [STATE, {"state_dict": STATE}, {"state_dict": STATE, "epoch": 3, "optimizer": {"lr": [0.1]}}],
    ids=["bare", "under state_dict", "beside other things"],
)
def test_a_state_dict_is_read(value: Any, zipped: bool, tmp_path: Path) -> None:
    found = read_state(write(tmp_path / "file", value, zipped))
    assert list(found) == list(STATE)
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


@both_formats
def test_code_in_a_file_is_refused_and_does_not_run(zipped: bool, tmp_path: Path) -> None:
    ran, path = tmp_path / "ran", tmp_path / "file"
    for value in (Command(ran), {"state_dict": STATE, "more": Command(ran)}, {**STATE, "b": Command(ran)}):
        write(path, value, zipped)
        for read in (read_pickle, read_state):
            with pytest.raises(IncompatibleCheckpoint, match=f"{path} is not read: it may run code"):
                read(path)
    assert not ran.exists()
    torch.load(path, weights_only=False)  # the trap is a real one
    assert ran.exists()


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_a_plain_pickle_is_refused_and_does_not_run(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(pickle.dumps(Command(tmp_path / "ran"), protocol))
    with pytest.raises(IncompatibleCheckpoint):
        read_pickle(path)
    assert not (tmp_path / "ran").exists()


@both_formats
def test_a_pickled_module_is_refused(zipped: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "file", nn.Linear(2, 2), zipped)
    with pytest.raises(IncompatibleCheckpoint, match=r"may run code .*; save its state dict alone"):
        read_pickle(path)


@both_formats
@pytest.mark.parametrize(
    ("value", "culprit"),
    [(Command(Path("ran")), r"\.system"), (nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear")],
    ids=["command", "module"],
)
def test_what_would_run_is_named(value: Any, culprit: str, zipped: bool, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleCheckpoint, match=culprit):
        read_pickle(write(tmp_path / "file", value, zipped))


@both_formats
def test_a_truncated_file_is_refused_wherever_it_ends(zipped: bool, tmp_path: Path) -> None:
    whole, path = write(tmp_path / "whole", STATE, zipped).read_bytes(), tmp_path / "part"
    for length in (*range(64), *range(64, len(whole), 5), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(IncompatibleCheckpoint):
            read_state(path)


@both_formats
def test_a_damaged_file_is_read_or_refused_and_nothing_else(zipped: bool, tmp_path: Path) -> None:
    whole, path, rng = write(tmp_path / "whole", STATE, zipped).read_bytes(), tmp_path / "part", random.Random(0)
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] = rng.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(IncompatibleCheckpoint):
            read_state(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello, this is text\n",
        b"<!DOCTYPE html><html>Not found</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:3406\nsize 192000000\n",
        bytes(1000),
    ],
    ids=["empty", "text", "web page", "Git LFS pointer", "zeros"],
)
def test_a_file_of_another_kind_is_said_to_be_one(content: bytes, tmp_path: Path) -> None:
    """And not to be dangerous, nor safe with checks turned off."""
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(IncompatibleCheckpoint, match=f"{path} is not a whole torch file") as error:
        read_state(path)
    assert "weights_only" not in str(error.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleCheckpoint, match=r"nowhere does not exist"):
        read_state(tmp_path / "nowhere")
    with pytest.raises(IncompatibleCheckpoint, match=str(tmp_path)):
        read_state(tmp_path)


@both_formats
@pytest.mark.parametrize(
    "value",
    [list(STATE.values()), {}, {"state_dict": {}}, {"state_dict": {"a": 1.0}}, {"epoch": 3}, torch.ones(2)],
    ids=["list", "empty", "empty inside", "numbers", "no tensors", "one tensor"],
)
def test_what_is_no_state_dict_is_refused(value: Any, zipped: bool, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleCheckpoint, match="holds no state dict"):
        read_state(write(tmp_path / "file", value, zipped))


def test_what_is_written_is_what_the_authors_code_reads(tmp_path: Path) -> None:
    state: dict[str, Tensor] = dict(STATE)
    write_state(tmp_path / "file", state)
    assert list(torch.load(tmp_path / "file", weights_only=True)["state_dict"]) == list(STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_level_of_a_parallel_wrapper_is_dropped_where_all_names_have_it(tmp_path: Path) -> None:
    torch.save({f"module.{name}": tensor for name, tensor in STATE.items()}, tmp_path / "wrapped")
    assert read_state(tmp_path / "wrapped").keys() == STATE.keys()
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "mixed")
    assert read_state(tmp_path / "mixed").keys() == {"module.a", "b"}
