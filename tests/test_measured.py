"""Numbers that depend on the shipped weights name them: they are of no others, or said to be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onceforall import zoo

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
PAGES = ("README.md", "benchmarks/README.md", "onceforall/zoo/cifar10/README.md")
# Results of timings, of trainings of their own, and of other people's measurements.
OF_NO_WEIGHTS = ("latency/", "shrinking/", "accuracy_predictor/published", "devices", "search", "training_speed", "vit")
SHOWN = 12  # digits of the digest


@pytest.fixture(scope="module")
def shipped() -> str:
    return zoo.load("cifar10").weights_sha256


def measured() -> Iterator[tuple[str, Any]]:
    """Each result that depends on weights, by file; some files hold several."""
    for path in sorted(RESULTS.rglob("*.json")):
        name = path.relative_to(RESULTS).as_posix()
        if not name.startswith(OF_NO_WEIGHTS):
            found = json.loads(path.read_text())
            yield from ((name, each) for each in (found if isinstance(found, list) else [found]))


def test_results_name_their_weights_and_those_of_older_ones_are_said_to_be(shipped: str) -> None:
    said = set(re.findall(r"older weights `(\w+)`", (ROOT / "benchmarks/README.md").read_text()))
    for name, result in measured():
        digest = result.get("weights_sha256", "")
        assert len(digest) == 64, f"{name} does not say of which weights it is: run its benchmark again"
        assert digest == shipped or digest[:SHOWN] in said, f"{name} is of other weights than those shipped: {digest}"


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_the_weights_of_their_numbers(page: str, shipped: str) -> None:
    found = re.findall(r"(older )?weights `(\w+)`", (ROOT / page).read_text())
    present, older = ({digest for kind, digest in found if bool(kind) == old} for old in (False, True))
    assert present == {shipped[:SHOWN]}, f"{page}: measure again, or say `older weights`"
    assert shipped[:SHOWN] not in older
