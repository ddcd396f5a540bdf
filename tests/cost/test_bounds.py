from __future__ import annotations

import pytest

from onceforall import cost
from onceforall.cost.analytic import MACs, PeakActivationMemory
from onceforall.cost.bounds import parse_bound, parse_limit
from onceforall.errors import InvalidConfiguration
from onceforall.registry import Registry
from onceforall.space import SearchSpace


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("0.5 ms", "ms", 0.5),
        ("0.5ms", "ms", 0.5),
        ("60%", "ms", 1.2),
        (" 60 % ", "ms", 1.2),
        ("5 M", "MACs", 5e6),
        ("5 MMACs", "MACs", 5e6),
        ("5e6 MACs", "MACs", 5e6),
        ("0.4M", "parameters", 4e5),
        ("200 KiB", "bytes", 204800),
        ("2 MB", "bytes", 2e6),
        ("2048 bytes", "bytes", 2048),
        ("2048 B", "bytes", 2048),
        ("0.3 mJ", "mJ", 0.3),
        ("60 %", "mJ", 1.2),
    ],
)
def test_bounds_are_numbers_with_a_unit_or_shares(text: str, unit: str, expected: float) -> None:
    assert parse_bound(text, unit, 2.0) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["0.5", "fast", "-1 ms", "nan ms", "0%", "inf ms", "ms", "5 M", "0.5 s", "1-2 ms", ""])
def test_other_latencies_are_refused(text: str) -> None:
    with pytest.raises(InvalidConfiguration, match=r'budget .*: give milliseconds \("0.5 ms"\) or a share'):
        parse_bound(text, "ms", 2.0, "budget")


@pytest.mark.parametrize("text", ["5", "5 ms", "5 MACs", "5 XB", "five KiB"])
def test_other_units_are_refused(text: str) -> None:
    with pytest.raises(InvalidConfiguration, match=r'give bytes \("200 KiB"\)'):
        parse_bound(text, "bytes", 2.0)


def test_limits_name_a_cost(tiny_space: SearchSpace) -> None:
    limit = parse_limit("macs <= 5 M", tiny_space)
    assert (limit.model, limit.bound) == (MACs(), 5e6)
    limit = parse_limit("memory<=50%", tiny_space)
    assert limit.bound == 0.5 * PeakActivationMemory().cost(tiny_space.lower(tiny_space.largest()))
    with pytest.raises(InvalidConfiguration, match="cost 'energy': choices are macs, params, memory, weights"):
        parse_limit("energy <= 1 mJ", tiny_space)
    with pytest.raises(InvalidConfiguration, match="limit 'macs 5 M': expected COST <= BOUND"):
        parse_limit("macs 5 M", tiny_space)
    with pytest.raises(InvalidConfiguration, match="limit macs <= '5 KiB': give MACs"):
        parse_limit("macs <= 5 KiB", tiny_space)


def test_a_registered_cost_is_found_by_its_name(tiny_space: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onceforall.cost.COSTS", Registry("cost", "none.of.ours", {"macs": MACs}))
    cost.register("peak", PeakActivationMemory)
    assert cost.names() == ("macs", "peak")
    assert parse_limit("peak <= 9 KiB", tiny_space).model == PeakActivationMemory()
    with pytest.raises(InvalidConfiguration, match="cost 'macs' is taken"):
        cost.register("macs", PeakActivationMemory)
