"""Tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from onceforall.deploy.manifest import SHOWN, Number, Specialization, value_of
from onceforall.devices import Status
from onceforall.search.confirm import Confirmation
from onceforall.search.pareto import Front
from onceforall.tasks import Score


def networks(result: Specialization) -> Table:
    """One row a network: what was asked, promised and measured."""
    device, unit = result.device, _unit(result.score)
    where = f" for {device['runtime']}, {device['threads']} thread(s), {device['processor']}" if device else ""
    limits = [needed for needed in result.networks[0].constraints if needed.name not in SHOWN]
    headers = ["", "budget (ms)", "pred. ms", "meas. ms", f"pred. {unit}", f"test {unit}", "MMACs", "Mpar.", "px"]
    headers += [f"{needed.name} ({needed.unit})" for needed in limits]
    # A terminal of 80 columns has no room for what is always the same.
    quantised = any(network.export.precision != "fp32" for network in result.networks)
    table = _table(f"Specialised{where}", *headers, *("use",) * quantised)
    for network in result.networks:
        missed = " [red]missed[/]" if network.budget_met is False else ""
        budget = network.latency_budget_ms
        table.add_row(
            network.role,
            f"{network.budget}: {budget:.3f}" if budget is not None else "-",
            _figure(network.predicted_latency, ".3f"),
            f"{_figure(network.export.latency, '.3f')}{missed}",
            _figure(network.predicted_score, ".2f"),
            _figure(network.export.test_score or network.test_score, ".2f"),
            f"{network.macs / 1e6:.2f}",
            f"{network.params / 1e6:.3f}",
            str(network.architecture.resolution),
            *(f"{needed.value:.6g}" for needed in network.constraints if needed.name not in SHOWN),
            *(network.export.precision,) * quantised,
            style="bold" if network.role in ("searched", "given") else None,
            end_section=network.role != "searched",
        )
    return table


def exports(result: Specialization) -> Table:
    """One row an export: size, accuracy and latency of its files in their runtime, how far they are from torch.

    What could not be verified here has dashes, and a row's last words say why.
    """
    headers = ("KiB", f"test {_unit(result.score)}", "drop", "as torch %", "parity", "ms", "of fp32", "MiB")
    table = _table("Every export, measured in its runtime", "", "runtime", *headers)
    for network in result.networks:
        for index, export in enumerate(network.exports):
            # All fp32 exports have torch's outputs.
            plain = next((other for other in network.exports if other.precision == "fp32" and other.test_score), None)
            same = [other for other in network.exports if (other.device, other.precision) == (export.device, "fp32")]
            drop = value_of(plain.test_score if plain else None) - value_of(export.test_score)
            ratio = export.latency_ms / same[0].latency_ms if same else math.nan
            table.add_row(
                network.name if not index else "",
                export.name + (f": not verified, {export.not_verified}" if export.not_verified else ""),
                f"{export.bytes / 1024:.0f}",
                _figure(export.test_score, ".2f"),
                f"[red]{drop:.2f}[/]" if drop > result.about.get("max_drop", math.inf) else _plain(drop, ".2f"),
                _figure(export.agreement, ".2f"),
                _figure(export.parity, ".1e"),
                _figure(export.latency, ".3f"),
                _plain(ratio, ".2f"),
                _plain(value_of(export.peak_memory) / 2**20, ".1f"),
                style="bold" if index == network.chosen else None,
                end_section=index == len(network.exports) - 1,
            )
    return table


def quality(result: Specialization) -> str:
    """Two sentences on the twins."""
    predictor, validation = result.quality, result.table.validation if result.table else None
    lines = [
        f"Accuracy predictor, {predictor.train} labels, on {predictor.held_out} held-out sub-networks: "
        f"RMSE {predictor.rmse:.2f} points, Kendall tau {predictor.kendall_tau:.3f} "
        f"(MACs alone: {predictor.macs_rmse:.2f}, {predictor.macs_kendall_tau:.3f})."
    ]
    if result.table is not None and validation is not None:
        lines.append(
            f"Latency, {result.table.summary()['kind']}, on {validation.all.networks} other networks: "
            f"{validation.all}; "
            f"noise of the measurement itself {validation.noise:.1f} %."
        )
    return "\n".join(lines)


def devices(found: Sequence[Status]) -> Table:
    """One row a device: the precisions that work here and those that do not, what is installed."""
    table = Table(title="Devices on this machine")
    for header in ("name", "works", "does not", "installed"):
        table.add_column(header, no_wrap=header == "name")
    for device in found:
        broken = [precision for precision in device.precisions if precision not in device.working]
        installed, style = ", ".join(device.versions), None if device.working else "dim"
        table.add_row(device.name, ", ".join(device.working), ", ".join(broken), installed, style=style)
    return table


def device_notes(found: Sequence[Status]) -> str:
    """What each device is, and why it does not work: a paragraph each, of any width."""
    return "\n".join(
        f"{device.name}: {'; '.join(text for text in (device.title, device.problem) if text)}" for device in found
    )


def front(found: Front, score: Score) -> Table:
    """One row a point: predicted costs and predicted score."""
    first = found.points[0].costs
    millions = ["M" if cost.unit in ("MACs", "parameters", "bytes") else "" for cost in first]
    title = f"{len(found.points)} networks, none both less accurate and dearer than another"
    costs = [f"pred. {cost.name} ({million}{cost.unit})" for cost, million in zip(first, millions, strict=True)]
    table = _table(title, *costs, f"pred. {_unit(score)}", "px")
    for point in found.points:
        values = [cost.value / (1e6 if million else 1) for cost, million in zip(point.costs, millions, strict=True)]
        predicted, resolution = f"{score.goal(point.accuracy):.2f}", str(point.architecture.resolution)
        table.add_row(*(f"{value:.3f}" for value in values), predicted, resolution)
    return table


def trials(found: Confirmation, score: Score) -> Table:
    """One row a measured candidate: what was predicted, what was measured, and whether it was taken."""
    kept = "kept its budget" if found.met else "[red]none kept its budget[/]: tighten the bound"
    title = f"Candidates measured, best predicted first: {kept} of {found.bound:.4g} {found.unit}"
    unit = _unit(score)
    table = _table(title, f"pred. {found.unit}", f"meas. {found.unit}", "gap", f"pred. {unit}", f"label {unit}", "gap")
    for trial in found.trials:
        missed = "" if trial.met else " [red]missed[/]"
        table.add_row(
            f"{trial.predicted_cost:.4g}",
            f"{trial.measured_cost:.4g}{missed}",
            f"{trial.cost_gap:+.1f} %",
            f"{score.goal(trial.predicted_top1):.2f}",
            "-" if trial.measured_top1 is None else f"{score.goal(trial.measured_top1):.2f}",
            "-" if trial.top1_gap is None else f"{score.goal(trial.top1_gap):+.2f}",
        )
    return table


def bundles(manifest: Mapping[str, Any], score: Score) -> tuple[Table, Table]:
    """One row a sub-network and runtime, and one row a runtime: shared against a file for each."""
    runtimes = manifest["measured"]["runtimes"]
    own = (f"test {_unit(score)}", "switch ms", "switch back ms", "own file KiB")
    each = _table("Sub-networks (measured)", "", "runtime", *own)
    for name in manifest["networks"]:
        for runtime, found in runtimes.items():
            row = found["networks"][name]
            figures = (f"{row[key]:.2f}" for key in (score.key, "switch_ms", "ready_switch_ms"))
            each.add_row(name, runtime, *figures, _kib(row["separate_bytes"]))
    shared = ("files KiB", "separate files KiB", "memory KiB, one kept", "all kept", "separate loads")
    together = _table("All of them (measured)", "", *shared)
    keys = ("bytes", "separate_bytes", "resident_bytes", "resident_bytes_all_kept", "separate_resident_bytes")
    for runtime, found in runtimes.items():
        together.add_row(runtime, *(_kib(found[key]) for key in keys))
    return each, together


def _table(title: str, *headers: str) -> Table:
    """Names on the left, numbers on the right."""
    table = Table(title=title)
    for header in headers:
        justify: Any = "left" if header in ("", "runtime") else "right"
        table.add_column(header, justify=justify, no_wrap=header in ("", "budget (ms)"))
    return table


def _unit(score: Score) -> str:
    return "%" if score.unit == "percent" else f"{score.name} {score.unit}".rstrip()


def _figure(number: Number | None, form: str) -> str:
    return _plain(value_of(number), form)


def _plain(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _kib(count: int | None) -> str:
    return "-" if count is None else f"{count / 1024:.0f}"
