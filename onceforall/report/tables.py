"""Tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from onceforall.deploy.manifest import Specialization
from onceforall.devices import Status


def networks(result: Specialization) -> Table:
    """One row a network: what was asked, promised and measured."""
    device = result.device
    table = Table(title=f"Specialised for {device['runtime']}, {device['threads']} thread(s), {device['processor']}")
    headers: tuple[str, ...] = ("", "budget (ms)", "pred. ms", "meas. ms", "pred. %", "test %", "MMACs", "Mpar.", "px")
    quantised = any(network.export.precision != "fp32" for network in result.networks)
    headers += ("use",) * quantised  # a terminal of 80 columns has no room for what is always the same
    for header in headers:
        table.add_column(header, justify="right" if header else "left", no_wrap=header in ("", "budget (ms)"))
    for network in result.networks:
        missed = " [red]missed[/]" if network.budget_met is False else ""
        table.add_row(
            network.role,
            f"{network.budget}: {network.budget_ms:.3f}" if network.budget_ms is not None else "-",
            f"{network.predicted_latency_ms:.3f}",
            f"{network.measured_latency_ms:.3f}{missed}",
            f"{network.predicted_top1:.2f}",
            f"{network.test_top1:.2f}",
            f"{network.macs / 1e6:.2f}",
            f"{network.params / 1e6:.3f}",
            str(network.architecture.resolution),
            *(network.export.precision,) * quantised,
            style="bold" if network.role in ("searched", "given") else None,
            end_section=network.role != "searched",
        )
    return table


def exports(result: Specialization) -> Table:
    """One row an export: size, accuracy and latency of its files in their runtime, how far they are from torch."""
    table = Table(title="Every export, measured in its runtime")
    for header in ("", "runtime", "KiB", "test %", "drop", "as torch %", "parity", "ms", "of fp32", "MiB"):
        table.add_column(header, justify="right" if header not in ("", "runtime") else "left", no_wrap=header == "")
    for network in result.networks:
        for index, export in enumerate(network.exports):
            plain = [other for other in network.exports if other.precision == "fp32"]  # all have torch's logits
            same = [other for other in plain if other.device == export.device]
            table.add_row(
                network.name if not index else "",
                export.name,
                f"{export.bytes / 1024:.0f}",
                f"{export.test_top1:.2f}",
                f"{plain[0].test_top1 - export.test_top1:.2f}" if plain else "-",
                f"{export.agreement:.2f}",
                f"{export.parity:.1e}",
                f"{export.latency_ms:.3f}",
                f"{export.latency_ms / same[0].latency_ms:.2f}" if same else "-",
                "-" if math.isnan(export.memory_bytes) else f"{export.memory_bytes / 2**20:.1f}",
                style="bold" if index == network.chosen else None,
                end_section=index == len(network.exports) - 1,
            )
    return table


def quality(result: Specialization) -> str:
    """Two sentences on the twins."""
    predictor, validation = result.quality, result.table.validation
    lines = [
        f"Accuracy predictor, {predictor.train} labels, on {predictor.held_out} held-out sub-networks: "
        f"RMSE {predictor.rmse:.2f} points, Kendall tau {predictor.kendall_tau:.3f} "
        f"(MACs alone: {predictor.macs_rmse:.2f}, {predictor.macs_kendall_tau:.3f})."
    ]
    if validation is not None:
        lines.append(
            f"Latency, {result.table.summary()['kind']}, on {validation.all.networks} other networks: "
            f"{validation.all}; "
            f"noise of the measurement itself {validation.noise:.1f} %."
        )
    return "\n".join(lines)


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
