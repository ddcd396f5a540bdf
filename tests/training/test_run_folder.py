import errno
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from onceforall.checkpoint import read_tensors, write_tensors
from onceforall.data.batches import Batch, BatchPlan
from onceforall.data.dataset import ImageData
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration, UnwritableOutput
from onceforall.files import read_json, read_jsonl, write_json
from onceforall.nn.supernet import Supernet
from onceforall.space import SearchSpace
from onceforall.training.run_folder import RunFolder, State
from onceforall.training.schedule import OPEN, Phase, Recipe
from onceforall.training.trainer import train

# Two phases of three steps: 90 images of `few_data` train.
RECIPE = Recipe(
    "two", (Phase("full", 1, 0.05, warmup_epochs=1), Phase("open", 1, 0.02, open=OPEN, teacher="frozen")), batch_size=30
)


def weights_of(supernet: Supernet) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in supernet.state_dict().items()}


def assert_same_weights(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


def names(run: Path) -> list[str]:
    return sorted(path.name.removesuffix(".safetensors") for path in (run / "checkpoints").iterdir())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def final_weights(
    tmp_path_factory: pytest.TempPathFactory, tiny_space: SearchSpace, few_data: ImageData
) -> dict[str, Tensor]:
    """Of an undisturbed run."""
    return weights_of(train(Supernet(tiny_space), few_data, RECIPE, tmp_path_factory.mktemp("undisturbed")))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A folder that keeps two checkpoints."""
    folder = RunFolder(tmp_path, {"space.json": {"name": "x", "sizes": (1, 2)}, "run.json": {"seed": 0}}, keep=2)
    folder.begin({"device": "cpu"}, {"label": [9]})
    return folder


def save(folder: RunFolder, phase: int, step: int) -> None:
    folder.save({"weight": torch.tensor([phase, step])}, State(phase, step), {"next": "more"})


# The folder alone


def test_a_new_folder_says_what_the_run_is(folder: RunFolder) -> None:
    assert read_json(folder.path / "space.json") == {"name": "x", "sizes": [1, 2]}
    assert read_json(folder.path / "run.json") == {"seed": 0}
    assert read_json(folder.path / "splits.json") == {"label": [9]}
    (start,) = read_jsonl(folder.path / "log.jsonl")
    assert start.items() >= {"event": "start", "device": "cpu", "torch": torch.__version__}.items()
    assert folder.load() is None


def test_the_folder_of_another_run_is_refused_by_the_file_that_differs(folder: RunFolder) -> None:
    RunFolder(folder.path, dict(folder.identity), keep=1).check_identity()
    other = RunFolder(folder.path, {**folder.identity, "run.json": {"seed": 1}}, keep=2)
    with pytest.raises(
        InvalidConfiguration, match=r"run.json is of another run \(seed is 0 there, 1 here\): choose a new folder"
    ):
        other.check_identity()
    more = RunFolder(folder.path, {**folder.identity, "architecture.json": {}}, keep=2)
    with pytest.raises(InvalidConfiguration, match=r"cannot read .*architecture.json"):
        more.check_identity()


def test_a_checkpoint_comes_back_with_its_state(folder: RunFolder) -> None:
    state = State(phase=1, step=20, rate_scale=0.25, rollbacks=2, best=1.5, seconds=12.5)
    folder.save({"weight": torch.arange(3.0)}, state, {"next": "phase 2"})
    found = folder.load()
    assert found is not None
    tensors, loaded = found
    assert loaded == state
    assert torch.equal(tensors["weight"], torch.arange(3.0))
    about = read_json(folder.path / "state.json")
    assert about.items() >= {"next": "phase 2", "phase": 1, "step": 20, "rate_scale": 0.25, "rollbacks": 2}.items()
    assert about["checkpoint"] == "01-000000020.safetensors"


def test_the_newest_checkpoint_is_that_of_the_furthest_phase_and_step(folder: RunFolder) -> None:
    for place in ((0, 9), (0, 10), (0, 100), (1, 0), (1, 9), (2, 0), (10, 0), (10, 5)):
        save(folder, *place)
        found = folder.load()
        assert found is not None
        assert found[0]["weight"].tolist() == list(place)
        assert len(names(folder.path)) <= 2
    assert names(folder.path) == ["10-000000000", "10-000000005"]


def test_a_checkpoint_written_again_takes_the_place_of_the_first(folder: RunFolder) -> None:
    save(folder, 0, 4)
    folder.save({"weight": torch.zeros(1)}, State(0, 4, rate_scale=0.5), {})
    found = folder.load()
    assert found is not None
    assert found[1].rate_scale == 0.5
    assert names(folder.path) == ["00-000000004"]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_later_checkpoint_that_cannot_be_read_never_counts_as_kept(folder: RunFolder, keep: int) -> None:
    save(folder, 0, 2)
    save(folder, 0, 4)
    truncate(folder.checkpoints[-1])
    folder.keep = keep
    save(folder, 0, 3)  # where the run went on from step 2
    assert names(folder.path) == ["00-000000002", "00-000000003"][-keep:]


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:9], lambda content: b"\x00" * 500])
def test_a_damaged_checkpoint_makes_room_for_the_one_before(folder: RunFolder, damage: Any) -> None:
    save(folder, 0, 2)
    save(folder, 0, 4)
    newest = folder.checkpoints[-1]
    newest.write_bytes(damage(newest.read_bytes()))
    found = folder.load()
    assert found is not None
    assert found[1] == State(0, 2)


@pytest.mark.parametrize("state", [None, "{", "[1]", '{"epoch": 3}'])
def test_a_checkpoint_without_a_state_makes_room_for_the_one_before(folder: RunFolder, state: str | None) -> None:
    save(folder, 0, 2)
    save(folder, 0, 4)
    metadata = {} if state is None else {"state": state}
    write_tensors(folder.checkpoints[-1], {"weight": torch.zeros(1)}, metadata)
    found = folder.load()
    assert found is not None
    assert found[1] == State(0, 2)


def test_where_no_checkpoint_can_be_read_each_is_named(folder: RunFolder) -> None:
    save(folder, 0, 2)
    save(folder, 0, 4)
    for path in folder.checkpoints:
        truncate(path)
    with pytest.raises(
        IncompatibleCheckpoint, match=r"can be read \(00-000000004.*; 00-000000002.*\): copy the folder"
    ):
        folder.load()


def test_files_that_are_no_checkpoints_are_left_alone(folder: RunFolder) -> None:
    (folder.path / "checkpoints").mkdir()
    for name in ("notes.txt", ".00-000000009.safetensors.77.part", "best.safetensors"):
        (folder.path / "checkpoints" / name).write_text("mine")
    for step in range(4):
        save(folder, 0, step)
    found = folder.load()
    assert found is not None
    assert found[1] == State(0, 3)
    assert len(list((folder.path / "checkpoints").iterdir())) == 3 + 2


def test_records_of_steps_that_will_be_repeated_are_dropped(folder: RunFolder) -> None:
    for phase, step in ((0, 50), (0, 100), (1, 1), (1, 50), (2, 1)):
        folder.log({"phase": phase, "step": step})
    folder.forget_after(State(1, 1))
    start, *records = read_jsonl(folder.path / "log.jsonl")
    assert start["event"] == "start"
    assert [(record["phase"], record["step"]) for record in records] == [(0, 50), (0, 100), (1, 1)]


# Of a run


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (1, ["02-000000000"]),
        (2, ["01-000000002", "02-000000000"]),
        (4, ["01-000000000", "01-000000001", "01-000000002", "02-000000000"]),
        (9, [f"0{phase}-00000000{step}" for phase in (0, 1) for step in (0, 1, 2)] + ["02-000000000"]),
    ],
)
def test_the_last_checkpoints_stay(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, keep: int, expected: list[str]
) -> None:
    train(Supernet(tiny_space), few_data, RECIPE, tmp_path, checkpoint_every=1, keep=keep)
    assert names(tmp_path) == expected


def test_a_checkpoint_holds_weights_and_momentum(tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData) -> None:
    supernet = train(Supernet(tiny_space), few_data, RECIPE, tmp_path, stop_after=2)
    initial, stopped = (read_tensors(path)[0] for path in sorted((tmp_path / "checkpoints").iterdir()))
    state, parameters = weights_of(supernet), dict(supernet.named_parameters())
    assert_same_weights(initial, weights_of(Supernet(tiny_space)))
    assert_same_weights({name: stopped[name] for name in state}, state)
    momentum = {name.removeprefix("momentum.") for name in stopped.keys() - state.keys()}
    assert momentum == {name for name in parameters if "transforms" not in name}  # which the first phase leaves alone


@pytest.mark.parametrize("stop", [2, 5])
def test_a_truncated_checkpoint_costs_only_the_steps_since_the_one_before(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, final_weights: dict[str, Tensor], stop: int
) -> None:
    train(Supernet(tiny_space), few_data, RECIPE, tmp_path, checkpoint_every=1, stop_after=stop)
    truncate(max((tmp_path / "checkpoints").iterdir()))
    steps: list[tuple[int, int]] = []

    def report(record: dict[str, Any]) -> None:
        if "steps" in record:
            steps.append((record["phase"], record["step"]))

    resumed = train(Supernet(tiny_space, seed=5), few_data, RECIPE, tmp_path, report=report)
    assert_same_weights(weights_of(resumed), final_weights)
    every = [(phase, step) for phase in (0, 1) for step in (1, 2, 3)]
    assert steps == every[stop - 1 :]


def test_a_run_without_a_checkpoint_that_can_be_read_is_refused_and_left_alone(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData
) -> None:
    train(Supernet(tiny_space), few_data, RECIPE, tmp_path, stop_after=2)
    for path in (tmp_path / "checkpoints").iterdir():
        truncate(path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(
        IncompatibleCheckpoint, match=r"no checkpoint in .*checkpoints can be read .*start in a new one"
    ):
        train(Supernet(tiny_space), few_data, RECIPE, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def full_disk(*args: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_written(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(b"half")
    full_disk()


@pytest.mark.parametrize(
    ("home", "name", "failing"),
    [(Path, "write_bytes", half_written), (os, "replace", full_disk)],
    ids=["write", "rename"],
)
@pytest.mark.parametrize("at", [2, 3, 5, 6])  # also at the ends of phases, where teacher and result are written
def test_a_checkpoint_that_cannot_be_written_leaves_the_old_ones_and_the_run_can_go_on(
    tmp_path: Path,
    tiny_space: SearchSpace,
    few_data: ImageData,
    final_weights: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    home: Any,
    name: str,
    failing: Any,
    at: int,
) -> None:
    seen: list[dict[Path, bytes]] = []

    def report(record: dict[str, Any]) -> None:
        if "steps" in record:
            seen.append({path: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()})
            if len(seen) == at:
                patch.setattr(home, name, failing)

    with monkeypatch.context() as patch, pytest.raises(UnwritableOutput, match=r"cannot write .*No space left"):
        train(Supernet(tiny_space), few_data, RECIPE, tmp_path, checkpoint_every=1, report=report)
    assert {path: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()} == seen[-1]
    assert len(seen[-1]) == min(at, 2)
    assert not list(tmp_path.rglob("*.part"))
    resumed = train(Supernet(tiny_space, seed=5), few_data, RECIPE, tmp_path)
    assert_same_weights(weights_of(resumed), final_weights)


def test_state_json_says_what_comes_next_and_its_learning_rate(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []
    used: list[float] = []
    step = torch.optim.SGD.step

    def observed(self: torch.optim.SGD, *args: Any, **options: Any) -> Any:
        told.append(read_json(tmp_path / "state.json"))
        used.append(self.param_groups[0]["lr"])
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", observed)
    recipe = Recipe("two", (Phase("full", 2, 0.05, warmup_epochs=1), Phase("open", 1, 0.02)), batch_size=30)
    train(Supernet(tiny_space), few_data, recipe, tmp_path, checkpoint_every=1)
    assert [state["learning_rate"] for state in told] == used
    assert used[:3] == pytest.approx([0.05 / 3, 0.1 / 3, 0.05])
    assert [(state["phase"], state["step"]) for state in told] == [
        *((0, step) for step in range(6)),
        (1, 0),
        (1, 1),
        (1, 2),
    ]
    assert [state["next"] for state in told] == ["phase 1 of 2, full"] * 6 + ["phase 2 of 2, open"] * 3
    assert [state["epoch"] for state in told] == ["1 of 2"] * 3 + ["2 of 2"] * 3 + ["1 of 1"] * 3
    assert [state["steps"] for state in told] == [6] * 6 + [3] * 3
    last = read_json(tmp_path / "state.json")
    assert last["next"] == "nothing: the run is complete"
    assert (last["phase"], last["step"]) == (2, 0)


def test_splits_json_names_held_out_images_which_training_never_shows(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: set[int] = set()
    batches = BatchPlan.batches
    train_positions = few_data.indices["train"]

    def observed(self: BatchPlan, first: int, last: int) -> Iterator[Batch]:
        for batch in batches(self, first, last):
            shown.update(train_positions[torch.from_numpy(batch.positions)].tolist())
            yield batch

    monkeypatch.setattr(BatchPlan, "batches", observed)
    train(Supernet(tiny_space), few_data, RECIPE, tmp_path)
    splits = json.loads((tmp_path / "splits.json").read_text())
    assert splits["label"] == list(range(9, 100, 10))
    assert splits["calibrate"] == list(range(0, 100, 20))
    assert len(shown) == 90
    assert not shown & set(splits["label"])
    assert shown >= set(splits["calibrate"])  # training images, which choose nothing


# Damage, strangers, and two at once


def test_a_damaged_log_stops_no_run(tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData) -> None:
    train(Supernet(tiny_space), few_data, RECIPE, tmp_path, stop_after=2)
    log = tmp_path / "log.jsonl"
    whole = log.read_bytes()
    for number, damage in enumerate((b"\xff\n", b"3\n", b"[" * 100_000 + b"\n", b'{"phase": "x", "step": []}\n')):
        log.write_bytes(damage + whole)
        train(Supernet(tiny_space), few_data, RECIPE, tmp_path, stop_after=0)
        records = read_jsonl(log)
        assert [r["lines"] for r in records if r.get("event") == "damage"] == [1] * (number < 3)


def test_a_flipped_bit_in_a_checkpoint_makes_room_for_the_one_before(folder: RunFolder) -> None:
    save(folder, 0, 4)
    save(folder, 0, 5)
    content = bytearray(folder.checkpoints[-1].read_bytes())
    content[-1] ^= 1
    folder.checkpoints[-1].write_bytes(content)
    found = folder.load()
    assert found is not None
    assert found[1].step == 4


@pytest.mark.parametrize(
    "change",
    [
        {"step": 10**9},
        {"phase": 9},
        {"phase": -1},
        {"step": -1},
        {"rate_scale": 0.0},
        {"weights": float("nan")},
        {"momentum": 1},
    ],
    ids=str,
)
def test_a_checkpoint_that_is_no_place_of_the_run_is_passed_over(
    tmp_path: Path,
    tiny_space: SearchSpace,
    few_data: ImageData,
    final_weights: dict[str, Tensor],
    change: dict[str, Any],
) -> None:
    """Whoever made it can compute its digest."""
    train(Supernet(tiny_space), few_data, RECIPE, tmp_path, checkpoint_every=1, stop_after=2)
    newest = RunFolder(tmp_path, {}, 2).checkpoints[-1]
    tensors, metadata = read_tensors(newest)
    state = json.loads(metadata["state"]) | {key: value for key, value in change.items() if key in State().__dict__}
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    if "weights" in change:
        tensors["stem.0.full.conv.weight"].view(-1)[0] = change["weights"]
    if "momentum" in change:
        tensors["momentum.stem.0.full.conv.weight"] = torch.zeros(2)
    write_tensors(newest, tensors, {"state": json.dumps(state)})
    resumed = train(Supernet(tiny_space, seed=5), few_data, RECIPE, tmp_path)
    assert_same_weights(weights_of(resumed), final_weights)


def test_a_finished_run_is_not_written_again_nor_trained_over(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData
) -> None:
    train(Supernet(tiny_space), few_data, RECIPE, tmp_path)
    result = tmp_path / "supernet.safetensors"
    tensors, metadata = read_tensors(result)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, result, metadata)  # as older versions did
    before = result.read_bytes()
    train(Supernet(tiny_space), few_data, RECIPE, tmp_path)
    assert result.read_bytes() == before
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(InvalidConfiguration, match=r"a run already \(supernet.safetensors\), which would be lost"):
        train(Supernet(tiny_space), few_data, RECIPE, tmp_path)
    assert result.read_bytes() == before


def test_a_run_that_another_process_trains_is_left_alone(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData
) -> None:
    other = RunFolder(tmp_path, {}, 2)
    other.own()
    with pytest.raises(UnwritableOutput, match="another run that is still running"):
        train(Supernet(tiny_space), few_data, RECIPE, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    other.release()
    train(Supernet(tiny_space), few_data, RECIPE, tmp_path, stop_after=1)
    other.own()  # which the call has let go
    with pytest.raises(UnwritableOutput, match="another run that is still running"):
        train(Supernet(tiny_space), few_data, RECIPE, tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classes": ("ant", "bee", "cat", "eel")}, "data.class_names"),
        ({"num_classes": 4, "classes": ()}, "data.class_names"),
    ],
)
def test_other_data_of_the_same_name_and_size_are_no_continuation(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData, change: dict[str, Any], said: str
) -> None:
    named = replace(few_data, classes=("ant", "bee", "cat", "dog"), _prepared={})
    train(Supernet(tiny_space), named, RECIPE, tmp_path, stop_after=2)
    with pytest.raises(InvalidConfiguration, match=f"run.json is of another run .*{said}"):
        train(Supernet(tiny_space), replace(named, **change, _prepared={}), RECIPE, tmp_path)
    train(Supernet(tiny_space), named, RECIPE, tmp_path, stop_after=1)


def test_a_run_goes_on_with_the_batch_norm_that_it_began_with(
    tmp_path: Path, tiny_space: SearchSpace, few_data: ImageData
) -> None:
    """As of two processes, of which each had half of every batch."""
    halves = replace(RECIPE, batch_norm_size=15)
    train(Supernet(tiny_space), few_data, halves, tmp_path, stop_after=2)
    about = read_json(tmp_path / "recipe.json")
    write_json(tmp_path / "recipe.json", {**about, "batch_norm_size": 0})
    expected = weights_of(train(Supernet(tiny_space), few_data, halves, tmp_path / "halves"))
    assert_same_weights(weights_of(train(Supernet(tiny_space, seed=5), few_data, RECIPE, tmp_path)), expected)
