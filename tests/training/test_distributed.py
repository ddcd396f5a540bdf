"""Training by two processes that `torchrun` starts, against training by one: this file is also what they run.

Batch norm sees 45 images at a time in either case, so two processes compute what one does, except for the order in
which gradients are added: one process adds chunk after chunk, two add their own chunks first and then both sums. In
float32 that rounds differently.
"""

from __future__ import annotations

import faulthandler
import math
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch import distributed as dist

from onceforall.checkpoint import read_tensors, write_tensors
from onceforall.data.batches import Batch
from onceforall.data.dataset import Data, ImageData
from onceforall.errors import OFAError, TrainingDiverged
from onceforall.files import read_json, read_jsonl, write_json
from onceforall.nn.supernet import Supernet
from onceforall.space import SearchSpace
from onceforall.training import losses, samplers
from onceforall.training.distributed import Processes
from onceforall.training.schedule import OPEN, Phase, Recipe
from onceforall.training.trainer import train

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch was built without torch.distributed")

ROOT = Path(__file__).parents[2]
DEADLINE = 300  # seconds after which processes that hang print where they are, and end

# The largest differences between one process and two, times ten. Measured: 3.7e-9 on gradients of up to 0.05, where
# the weights were still the same. A weight that differs in its last bit can turn an activation that is almost 0, and
# with it a gradient, on or off: 1e-6 on weights after 9 steps, which move by 0.01 and more, was the largest of 50 runs
# with 25 seeds.
GRADIENT_TOLERANCE, WEIGHT_TOLERANCE = 4e-8, 1e-5

# The training split has 540 images: 3 steps an epoch.
FULL = Phase("full", 1, 0.02)
PLAIN = Recipe("plain", (replace(FULL, epochs=2),), batch_size=180, batch_norm_size=45)
OPENED = Phase("open", 2, 0.02, open=OPEN, subnets=3, teacher="frozen", sort_channels=True)
MULTI = replace(PLAIN, name="multi", phases=(FULL, OPENED))
# The smallest sub-network runs last, and lacks blocks that the largest has.
ENDS = Phase(
    "ends", 2, 0.02, 0, OPEN, samplers.Sandwich(), 2, teacher="in_place", loss=losses.AlphaDivergence(), hard=0.0
)
SANDWICH = replace(PLAIN, name="sandwich", phases=(ENDS,), clip_norm=1.0)
# Batch norm sees all images of a process at a time, 90 or 180.
WHOLE = replace(PLAIN, name="whole", batch_norm_size=0)


# What the processes do

RUNS: dict[str, tuple[Recipe, dict[str, Any]]] = {
    "multi": (MULTI, {}),
    "sandwich": (SANDWICH, {}),
    "begun_by_one": (MULTI, {"seed": 5}),  # other initial weights: all must come from the folder
    "begun_by_two": (MULTI, {"stop_after": 5}),
    "whole_begun_by_one": (WHOLE, {}),
    "whole_begun_by_two": (WHOLE, {"stop_after": 1}),
    "odd_batch": (replace(WHOLE, batch_size=181), {}),
    "tiny_batch": (replace(WHOLE, batch_size=2), {}),
    "large_chunk": (replace(PLAIN, batch_norm_size=180), {}),
}


def run(
    folder: Path,
    rank: int,
    space: SearchSpace,
    data: Data,
    recipe: Recipe,
    name: str,
    *,
    seed: int = 0,
    after: Callable[[Supernet, int], None] = lambda net, step: None,
    **options: Any,
) -> Any:
    """Train in folder/name; write the weights and the gradients of the first step beside it.

    seed: of the initial weights; after: what is done after each step of the optimiser, counted from 1.
    """
    net, steps, reports = Supernet(space, seed), 0, []
    optimise = torch.optim.SGD.step

    def step(*args: Any) -> None:
        nonlocal steps
        optimise(*args)
        steps += 1
        if steps == 1:
            gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
            used = {name: gradient for name, gradient in gradients.items() if gradient is not None}
            write_tensors(folder / f"{name}.gradients.{rank}.safetensors", used, {})
        after(net, steps)

    with mock.patch.object(torch.optim.SGD, "step", step):
        train(net, data, recipe, folder / name, report=reports.append, **options)
    write_tensors(folder / f"{name}.{rank}.safetensors", dict(net.named_parameters()), {})
    return {"reports": len(reports)}


class Spoilt:
    """Data whose images are not numbers in one batch of all those that are asked for, counted from 1."""

    def __init__(self, data: ImageData, batch: int) -> None:
        self.data, self.left = data, batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    def training(self, plan: Iterable[Batch], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.data.training(plan, device):
            self.left -= 1
            yield (images if self.left else images * math.nan), labels


class Jobs:
    """What each process can be asked for: a run of `RUNS`, or one of these methods."""

    def __init__(self, folder: Path, rank: int, space: SearchSpace, data: ImageData) -> None:
        self.folder, self.rank, self.space, self.data = folder, rank, space, data
        self.second = rank == 1

    def do(self, name: str) -> Any:
        return self.run(name, *RUNS[name]) if name in RUNS else getattr(self, name)()

    def run(self, name: str, recipe: Recipe, options: dict[str, Any], data: Data | None = None) -> Any:
        return run(self.folder, self.rank, self.space, data or self.data, recipe, name, **options)

    def killed(self) -> Any:
        """The first time, the second process is killed in its seventh step, the fourth of the second phase."""
        marker = self.folder / "was_killed"

        def kill(net: Supernet, step: int) -> None:
            if self.second and step == 7 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        return self.run("killed", MULTI, {"after": kill, "checkpoint_every": 2, "evaluate_every": 1})

    def other_weights(self) -> Any:
        return self.run("other_weights", PLAIN, {"seed": self.rank})

    def own_folders(self) -> Any:
        return self.run(f"own_folders_{self.rank}", MULTI, {})

    def diverged(self) -> Any:
        """The second process alone has a batch that is not numbers, its fourth."""
        return self.run("diverged", PLAIN, {"checkpoint_every": 2}, Spoilt(self.data, 4) if self.second else None)

    def different(self) -> Any:
        """The second process alone loses a weight in its second step, and in its sixth changes one a little."""

        def change(net: Supernet, step: int) -> None:
            if self.second and step in (2, 6):
                with torch.no_grad():
                    next(net.parameters())[0, 0, 0, 0] += math.nan if step == 2 else 1e-6

        return self.run("different", PLAIN, {"after": change, "checkpoint_every": 2})

    def equal(self) -> Any:
        """Which weights of the second process count as different from those of the first."""
        first = torch.tensor([1.0, 2.0, math.nan])
        seconds = {
            "the same": first,
            "another last bit": torch.nextafter(first, torch.tensor(3.0)),
            "swapped": first[[1, 0, 2]],
            "lost": first * math.nan,
        }
        found: dict[str, str | None] = dict.fromkeys(seconds)
        with Processes("cpu") as processes:
            for name, second in seconds.items():
                try:
                    processes.check_equal([torch.ones(2, 2), second if self.second else first])
                except TrainingDiverged as error:
                    found[name] = str(error)
        return found


def work(folder: Path, deadline: float, *names: str) -> None:
    """Do jobs, one after the other, and write for each what came of it and which files this process changed."""
    faulthandler.dump_traceback_later(deadline - time.time(), exit=True)
    torch.set_num_threads(1)
    shared = runpy.run_path(str(ROOT / "tests" / "conftest.py"))
    rank, changed = int(os.environ["RANK"]), list[str]()

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event in ("os.rename", "os.remove", "os.mkdir") or (event == "open" and set("wax+") & set(str(args[1]))):
            changed.append(str(args[0]))

    sys.addaudithook(watch)
    jobs = Jobs(folder, rank, shared["make_tiny_space"](), shared["make_tiny_data"]())
    for name in names:
        changed.clear()
        try:
            result = {"found": jobs.do(name)}
        except OFAError as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        own = str(folder / name) + os.sep
        result["changed"] = [path for path in changed if path.startswith(own)]
        write_json(folder / f"{name}.{rank}.json", result)


# What the tests see of it


def start(folder: Path, *names: str) -> None:
    """Two processes do jobs. Where one is killed, both are started anew, with the first job."""
    options = ["--standalone", "--local-addr=localhost", "--nproc-per-node=2", "--max-restarts=3"]
    task = [__file__, str(folder), str(time.time() + DEADLINE), *names]
    path = os.pathsep.join([str(ROOT), *sys.path])
    with (folder / "output.txt").open("w+") as output:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *options, *task],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        try:
            status = launcher.wait(DEADLINE + 30)
        finally:
            launcher.terminate()  # it ends the processes, which end at the deadline in any case
            try:
                launcher.wait(60)
            finally:
                launcher.kill()
        output.seek(0)
        assert status == 0, output.read()


def weights(folder: Path, name: str, rank: int = 0) -> dict[str, Tensor]:
    return read_tensors(folder / f"{name}.{rank}.safetensors")[0]


def outcome(folder: Path, name: str, rank: int) -> Any:
    return read_json(folder / f"{name}.{rank}.json")


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest, of any number; they are all finite."""
    assert ours.keys() == theirs.keys()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in (*ours.values(), *theirs.values()))
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def places(records: list[dict[str, Any]], key: str, value: Any = None) -> list[tuple[int, int]]:
    """Phase and step of the log records that have a key, with a value where that is given."""
    return [(r["phase"], r["step"]) for r in records if key in r and value in (None, r[key]) and "phase" in r]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_space: SearchSpace, tiny_data: ImageData) -> Path:
    """The folder of what one process makes."""
    folder = tmp_path_factory.mktemp("alone")
    run(folder, 0, tiny_space, tiny_data, MULTI, "multi")
    run(folder, 0, tiny_space, tiny_data, SANDWICH, "sandwich")
    run(folder, 0, tiny_space, Spoilt(tiny_data, 4), PLAIN, "diverged", checkpoint_every=2)
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, tiny_space: SearchSpace, tiny_data: ImageData) -> Path:
    """The folder of what two processes make, all in one go: it takes seconds to start them."""
    folder = tmp_path_factory.mktemp("together")
    train(Supernet(tiny_space), tiny_data, MULTI, folder / "begun_by_one", stop_after=5)
    train(Supernet(tiny_space), tiny_data, WHOLE, folder / "whole_begun_by_one", stop_after=1)
    shutil.copytree(folder / "begun_by_one", folder / "own_folders_0")
    # The killed one first, because all of them begin anew.
    start(folder, "killed", *RUNS, "other_weights", "own_folders", "diverged", "different", "equal")
    return folder


# What two processes compute


@pytest.mark.parametrize("name", ["multi", "sandwich"])
def test_two_processes_train_what_one_does(together: Path, alone: Path, name: str) -> None:
    first, second = (weights(together, name, rank) for rank in (0, 1))
    assert difference(first, second) == 0
    assert difference(first, weights(alone, name)) < WEIGHT_TOLERANCE


@pytest.mark.parametrize("name", ["multi", "sandwich"])
def test_gradients_are_those_of_the_whole_batch(together: Path, alone: Path, name: str) -> None:
    first, second = (weights(together, f"{name}.gradients", rank) for rank in (0, 1))
    assert difference(first, second) == 0
    assert difference(first, weights(alone, f"{name}.gradients")) < GRADIENT_TOLERANCE


def test_so_are_gradients_of_what_only_an_earlier_sub_network_of_the_step_has(
    together: Path, alone: Path, tiny_space: SearchSpace
) -> None:
    net, last = Supernet(tiny_space), tiny_space.smallest()
    net(torch.zeros(2, 3, last.resolution, last.resolution), last).sum().backward()
    reached = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    first, second, expected = (
        {name: gradient for name, gradient in gradients.items() if name not in reached}
        for gradients in (
            *(weights(together, "sandwich.gradients", rank) for rank in (0, 1)),
            weights(alone, "sandwich.gradients"),
        )
    )
    assert {name.split(".full.")[0] for name in expected} == {"units.0.1", "units.1.2"}
    for name, gradient in expected.items():
        assert "bn" in name or float(gradient.abs().max()) > 100 * GRADIENT_TOLERANCE, name  # not just all zero
    assert difference(first, second) == 0
    assert difference(first, expected) < GRADIENT_TOLERANCE


@pytest.mark.parametrize("name", ["multi", "sandwich"])
def test_only_the_first_process_writes_and_reports(together: Path, name: str) -> None:
    first, second = (outcome(together, name, rank) for rank in (0, 1))
    assert first["found"]["reports"] > 0
    assert {Path(path).parent.name for path in first["changed"]} >= {name, "checkpoints"}
    assert second == {"found": {"reports": 0}, "changed": []}


# Interrupted, and gone on with by others


def test_a_run_whose_process_was_killed_ends_with_the_weights_of_an_undisturbed_one(together: Path) -> None:
    assert (together / "was_killed").exists()
    for rank in (0, 1):
        assert difference(weights(together, "killed", rank), weights(together, "multi")) == 0
    records = read_jsonl(together / "killed" / "log.jsonl")
    assert places(records, "event") == [(1, 2)]
    assert places(records, "event", "resume") == [(1, 2)]
    assert places(records, "loss") == [(0, 3), (1, 6)]
    assert places(records, "largest_top1") == [(0, 3), (1, 3), (1, 6)]  # the second of them was measured twice


def test_two_processes_go_on_with_what_one_began(together: Path, alone: Path) -> None:
    first, second = (weights(together, "begun_by_one", rank) for rank in (0, 1))
    assert difference(first, second) == 0
    assert difference(first, weights(alone, "multi")) < WEIGHT_TOLERANCE
    records = read_jsonl(together / "begun_by_one" / "log.jsonl")
    assert [record["processes"] for record in records if "event" in record] == [1, 2]


def test_one_process_goes_on_with_what_two_began(
    together: Path, alone: Path, tiny_space: SearchSpace, tiny_data: ImageData
) -> None:
    run(together, 0, tiny_space, tiny_data, MULTI, "begun_by_two", seed=5)
    assert difference(weights(together, "begun_by_two"), weights(alone, "multi")) < WEIGHT_TOLERANCE


def test_where_the_number_of_processes_matters_another_is_refused(
    together: Path, tiny_space: SearchSpace, tiny_data: ImageData
) -> None:
    for rank in (0, 1):
        refused = outcome(together, "whole_begun_by_one", rank)
        assert refused["error"].startswith("InvalidConfiguration: ")
        assert "run.json is of another run" in refused["error"]
        assert refused["changed"] == []
    # One process can run the parts that each of the two ran at once.
    train(Supernet(tiny_space), tiny_data, WHOLE, together / "whole_begun_by_two", stop_after=0)
    sizes = {
        name: read_json(together / name / "run.json")["batch_norm_size"]
        for name in ("multi", "whole_begun_by_one", "whole_begun_by_two")
    }
    assert sizes == {"whole_begun_by_one": 180, "whole_begun_by_two": 90, "multi": 45}


# What goes wrong


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("odd_batch", "InvalidConfiguration: batch_size 181: expected a multiple of the 2 processes"),
        ("tiny_batch", "InvalidConfiguration: batch_size 2: expected a multiple of the 2 processes, 2 images or more"),
        ("large_chunk", "InvalidConfiguration: batch_norm_size 180: expected a divisor of the 90 images of each"),
        ("other_weights", "TrainingDiverged: the processes hold different weights"),
        ("own_folders", "the processes find different checkpoints: give a folder that all of them see"),
    ],
)
def test_what_processes_cannot_share_is_refused_by_all_of_them(together: Path, name: str, message: str) -> None:
    for rank in (0, 1):
        assert message in outcome(together, name, rank)["error"]


def test_weights_are_compared_bit_by_bit(together: Path) -> None:
    for rank in (0, 1):
        found = outcome(together, "equal", rank)["found"]
        assert found.pop("the same") is None
        assert all("the processes hold different weights" in message for message in found.values())
        assert found.keys() == {"another last bit", "swapped", "lost"}


def test_where_one_process_diverges_all_go_back(together: Path, alone: Path) -> None:
    first, second = (weights(together, "diverged", rank) for rank in (0, 1))
    assert difference(first, second) == 0
    assert difference(first, weights(alone, "diverged")) < WEIGHT_TOLERANCE
    records = read_jsonl(together / "diverged" / "log.jsonl")
    assert places(records, "event", "rollback") == [(0, 2)]
    assert [r["reason"].split(" in ")[0] for r in records if r.get("event") == "rollback"] == ["cross entropy nan"]
    assert places(records, "loss") == [(0, 6)]


def test_where_processes_differ_all_go_back(together: Path) -> None:
    first, second = (weights(together, "different", rank) for rank in (0, 1))
    assert difference(first, second) == 0
    records = read_jsonl(together / "different" / "log.jsonl")
    assert places(records, "event", "rollback") == [(0, 0), (0, 2)]
    assert all("different weights" in r["reason"] for r in records if r.get("event") == "rollback")


def test_a_process_without_others_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    parameter = torch.ones(2, requires_grad=True)
    parameter.grad = torch.tensor([1.0, 2.0])
    with Processes("cpu") as processes:
        assert not dist.is_initialized()
        assert processes.first
        processes.wait()
        processes.check_batch(181, 0)
        processes.check_equal([parameter])
        processes.sum_gradients([parameter])
        assert processes.sum(parameter.grad).tolist() == [1, 2]
        assert processes.agree(torch.tensor([3]))


if __name__ == "__main__":
    work(Path(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:])
