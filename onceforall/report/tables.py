"""Tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from onceforall.deploy.manifest import Number, Specialization, value_of
from onceforall.devices import Status

SHOWN = ("MACs", "parameters")  # costs that have a column anyway


def networks(result: Specialization) -> Table:
    """One row a network: what was asked, promised and measured."""
    device, score = result.device, result.score
    where = f" for {device['runtime']}, {device['threads']} thread(s), {device['processor']}" if device else ""
    table = Table(title=f"Specialised{where}")
    unit = "%" if score.unit == "percent" else score.key
    limits = [needed for needed in result.networks[0].constraints if needed.name not in SHOWN]
    headers = ["", "budget (ms)", "pred. ms", "meas. ms", f"pred. {unit}", f"test {unit}", "MMACs", "Mpar.", "px"]
    headers += [f"{needed.name} ({needed.unit})" for needed in limits]
    # A terminal of 80 columns has no room for what is always the same.
    quantised = any(network.export.precision != "fp32" for network in result.networks)
    for header in (*headers, *("use",) * quantised):
        table.add_column(header, justify="right" if header else "left", no_wrap=header in ("", "budget (ms)"))
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
    table = Table(title="Every export, measured in its runtime")
    unit = "%" if result.score.unit == "percent" else result.score.key
    for header in ("", "runtime", "KiB", f"test {unit}", "drop", "as torch %", "parity", "ms", "of fp32", "MiB"):
        table.add_column(header, justify="right" if header not in ("", "runtime") else "left", no_wrap=header == "")
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
                _plain(drop, ".2f"),
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


def _figure(number: Number | None, form: str) -> str:
    return _plain(value_of(number), form)


def _plain(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def devices(found: Sequence[Status]) -> Table:
    """One row a device: what it is, the precisions that work here and those that do not, what is installed or amiss."""
    table = Table(title="Devices on this machine", show_lines=True)
    for header in ("name", "what it is", "works", "does not", "installed"):
        table.add_column(header, no_wrap=header == "name")
    for device in found:
        broken = [precision for precision in device.precisions if precision not in device.working]
        notes = [", ".join(device.versions), device.problem]
        table.add_row(
            device.name,
            device.title,
            ", ".join(device.working),
            ", ".join(broken),
            escape("\n".join(note for note in notes if note)),
            style=None if device.working else "dim",
        )
    return table
