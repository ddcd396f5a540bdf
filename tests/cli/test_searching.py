"""`ofa search` on the tiny space: bounds and their units, fronts, and the winner measured."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from onceforall import cli, zoo
from onceforall.cost.analytic import MACs, Parameters, PeakActivationMemory, WeightBytes
from onceforall.cost.latency import LatencyTable
from onceforall.cost.model import CostModel
from onceforall.data.dataset import ImageData
from onceforall.devices.timing import Turns
from onceforall.errors import InvalidConfiguration
from onceforall.files import write_jsonl
from onceforall.nn.supernet import Supernet
from onceforall.predict.accuracy import MLPPredictor
from onceforall.predict.labels import FORMAT, Label
from onceforall.profiling.measuring import measure_latency
from onceforall.search.pareto import Front
from onceforall.search.result import SearchResult
from onceforall.serial import to_json
from onceforall.space import SearchSpace
from onceforall.tasks import Score

Search = Callable[..., dict[str, Any]]


@pytest.fixture
def search(
    tiny_supernet: Supernet, tiny_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: Any
) -> Search:
    """The command with made-up labels, which rise with the resolution, and short measurements; its result."""
    space = tiny_supernet.space
    labels = [Label("random", arch, 10.0 + arch.resolution) for arch in space.from_rows(space.sample_rows(20, rng))]
    commands = cli.searching
    monkeypatch.setattr(commands, "load_model", lambda *a, **k: zoo.Entry("tiny", tiny_supernet, labels, tmp_path))
    monkeypatch.setattr(commands, "open_data", lambda *given: tiny_data)
    monkeypatch.setattr(commands, "MLPPredictor", lambda space, seed: MLPPredictor(space, seed=seed, epochs=5))
    monkeypatch.setattr(commands, "run_front", partial(commands.run_front, generations=2, population=10, rounds=1))
    monkeypatch.setattr(
        "onceforall.profiling.confirming.measure_latency", partial(measure_latency, turns=Turns(2, 0.001))
    )

    def run(*arguments: object) -> dict[str, Any]:
        given = ["search", "--out", tmp_path / "result.json", "--generations", 2, *arguments]
        result = CliRunner().invoke(cli.app, [str(argument) for argument in given], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        value: dict[str, Any] = json.loads((tmp_path / "result.json").read_text())
        return value

    return run


@pytest.fixture
def tables(tiny_space: SearchSpace, tmp_path: Path) -> list[Path]:
    """Two made-up latency tables that say they are of ONNX Runtime."""
    paths = []
    for number, overhead in enumerate((0.0, 0.1)):
        table = LatencyTable.synthetic(tiny_space, overhead_ms=overhead)
        named = LatencyTable({"name": "onnxruntime", "threads": 1}, table.entries)
        paths.append(tmp_path / f"table{number}.json")
        named.save(paths[-1])
    return paths


def test_bounds_are_in_the_units_that_the_help_says(search: Search, tiny_space: SearchSpace) -> None:
    scales: dict[str, tuple[CostModel, float]] = {
        "--macs": (MACs(), 1e6),
        "--params": (Parameters(), 1e6),
        "--memory": (PeakActivationMemory(), 1024),
        "--weights": (WeightBytes(), 1024),
    }
    bounds = {
        option: (model.cost(tiny_space.lower(tiny_space.smallest())) * 1.5, scale)
        for option, (model, scale) in scales.items()
    }
    found = search(*(text for option, (bound, scale) in bounds.items() for text in (option, bound / scale)))
    layers = tiny_space.lower(SearchResult.from_json(found).architecture)
    for cost, (option, (model, _)) in zip(found["predicted_costs"], scales.items(), strict=True):
        assert (cost["name"], cost["unit"]) == (model.name, model.unit)
        assert cost["bound"] == pytest.approx(bounds[option][0])
        assert cost["value"] == model.cost(layers) <= cost["bound"]


def test_any_cost_that_is_known_bounds_a_search(search: Search, tiny_space: SearchSpace) -> None:
    largest = tiny_space.lower(tiny_space.largest())
    found = search("--limit", "macs <= 60%", "--limit", "memory <= 1 MiB")
    bounds = {cost["name"]: cost["bound"] for cost in found["predicted_costs"]}
    assert bounds == {"MACs": 0.6 * MACs().cost(largest), "peak activation memory": 2**20}
    with pytest.raises(InvalidConfiguration, match="cost 'energy': choices are macs, params, memory, weights"):
        search("--limit", "energy <= 1 mJ")


def test_latencies_and_tables_are_paired_in_order(search: Search, tables: list[Path], tiny_space: SearchSpace) -> None:
    found = search("--table", tables[0], "--latency", "90%", "--table", tables[1], "--latency", "5 ms")
    first, second = found["predicted_costs"]
    assert second["bound"] == 5
    largest = tiny_space.lower(tiny_space.largest())
    assert first["bound"] == pytest.approx(0.9 * LatencyTable.load(tables[0]).cost(largest))
    assert first["value"] <= first["bound"]
    with pytest.raises(InvalidConfiguration, match="--latency needs --table: 2 and 1 were given"):
        search("--table", tables[0], "--latency", "90%", "--latency", "2 ms")
    with pytest.raises(InvalidConfiguration, match="--latency needs --table: 1 and 0 were given"):
        search("--latency", "90%")


def test_a_front_is_written_as_points(search: Search, tables: list[Path]) -> None:
    found = Front.from_json(search("--front", "--points", 6, "--table", tables[0], "--macs", 1000))
    assert 1 <= len(found.points) <= 6
    assert [(cost.name, cost.bound) for cost in found.points[0].costs] == [("latency", None), ("MACs", 1e9)]
    found = Front.from_json(search("--front", "--points", 4))
    assert [cost.name for cost in found.points[0].costs] == ["MACs"]


def test_the_winner_is_measured_and_the_gap_is_part_of_the_result(search: Search, tables: list[Path]) -> None:
    found = search("--table", tables[0], "--latency", "1000 ms", "--measure")
    confirmation = found["confirmation"]
    (trial,) = confirmation["trials"]
    assert confirmation["met"]
    assert trial["architecture"] == found["architecture"]
    assert trial["top1_gap"] == pytest.approx(trial["measured_top1"] - found["predicted_top1"])
    assert 0 < trial["measured_cost"] < 1000


def test_a_budget_that_no_candidate_keeps_is_said_so(search: Search, tables: list[Path]) -> None:
    """The made-up device is faster than any: what it promises cannot be kept."""
    table = LatencyTable.load(tables[0])
    LatencyTable(table.device, table.entries, scale=1e-6).save(tables[0])
    found = search("--table", tables[0], "--latency", "90%", "--measure", "--top", 2)
    assert not found["confirmation"]["met"]
    assert len(found["confirmation"]["trials"]) == 2
    with pytest.raises(InvalidConfiguration, match="--measure needs --latency"):
        search("--macs", 1, "--measure")
    with pytest.raises(InvalidConfiguration, match="leave out --front"):
        search("--front", "--measure")


def test_more_generations_look_at_more_networks(search: Search) -> None:
    short, long = search("--macs", 1), search("--macs", 1, "--generations", 20)
    assert short["evaluations"] < long["evaluations"]


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (None, r": predicted top-1 \d+\.\d\d %"),
        (Score("iou", "overlap", "points"), r": predicted overlap \d+\.\d\d points"),
    ],
)
def test_predictions_are_said_in_the_words_of_the_task(
    score: Score | None, said: str, search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: list[str] = []
    monkeypatch.setattr(cli.searching, "announce", lambda path, what: announced.append(what))
    if score:
        write_jsonl(tmp_path / "labels.jsonl", [{"format": FORMAT, "score": to_json(score)}])
    search("--macs", 5)
    assert re.match(said, announced[0])


def test_results_of_before_can_still_be_read(tiny_space: SearchSpace) -> None:
    old = {
        "model": "cifar10",
        "architecture": tiny_space.smallest().to_json(),
        "predicted_top1": 84.6,
        "predicted_costs": [{"name": "latency", "value": 0.44, "bound": 0.46, "unit": "ms"}],
        "runners_up": [tiny_space.largest().to_json()],
        "evaluations": 24400,
        "seconds": 0.8,
        "seed": 0,
    }
    result = SearchResult.from_json(old)
    assert (result.architecture, result.costs[0].bound) == (tiny_space.smallest(), 0.46)


def test_a_predictor_is_kept_and_used_again(search: Search, tmp_path: Path) -> None:
    path = tmp_path / "accuracy.safetensors"
    first = search("--macs", 5, "--save-predictor", path)
    again = search("--macs", 5, "--predictor", path)
    assert again["architecture"] == first["architecture"]
    assert again["predicted_top1"] == pytest.approx(first["predicted_top1"])
    with pytest.raises(InvalidConfiguration, match="leave out --predictor"):
        search("--macs", 5, "--predictor", path, "--save-predictor", path)


def test_the_score_of_the_labels_is_named_and_what_is_better_is_found(
    search: Search, tmp_path: Path, tiny_space: SearchSpace
) -> None:
    """The labels rise with the resolution: of a score where lower is better, the smaller one is wanted."""
    assert search()["architecture"]["resolution"] == 20
    score = {"key": "mae", "name": "mean error", "unit": "px", "higher_is_better": False}
    header = {"format": "onceforall.labels/1", "space": tiny_space.to_json(), "score": score}
    (tmp_path / "labels.jsonl").write_text(json.dumps(header) + "\n")
    with cli.searching.console.capture() as said:
        assert search()["architecture"]["resolution"] == 16
    assert "predicted mean error 2" in said.get()
    assert "px" in said.get()
    assert "top-1" not in said.get()
    with cli.searching.console.capture() as said:
        search("--front", "--points", 3)
    assert "pred. mean error px" in " ".join(said.get().split())
