"""Tables for the terminal."""

from __future__ import annotations

from rich.table import Table

from onceforall.deploy.manifest import Specialization


def networks(result: Specialization) -> Table:
    """One row a network: what was asked, promised and measured."""
    device = result.device
    table = Table(title=f"Specialised for {device['runtime']}, {device['threads']} thread(s), {device['processor']}")
    for column in (
        "",
        "budget",
        "latency predicted",
        "measured",
        "top-1 predicted",
        "test top-1",
        "MACs",
        "params",
        "px",
    ):
        table.add_column(column, justify="left" if not column else "right")
    for network in result.networks:
        met = {None: "", True: "", False: " [red]missed[/]"}[network.budget_met]
        budget = f"{network.budget} = {network.budget_ms:.3f} ms" if network.budget_ms is not None else "-"
        table.add_row(
            network.role,
            budget,
            f"{network.predicted_latency_ms:.3f} ms",
            f"{network.measured_latency_ms:.3f} ms{met}",
            f"{network.predicted_top1:.2f} %",
            f"{network.test_top1:.2f} %",
            f"{network.macs / 1e6:.2f} M",
            f"{network.params / 1e6:.3f} M",
            str(network.architecture.resolution),
            style="bold" if network.role in ("searched", "given") else None,
            end_section=network.role != "searched",
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
            f"Latency table, {len(result.table.entries)} layers, on {validation.networks} other random networks: "
            f"mean error {validation.mape:.1f} %, {validation.within_5:.0f} % within 5 %, "
            f"Spearman {validation.spearman:.3f}; "
            f"noise of the measurement itself {validation.noise:.1f} %."
        )
    return "\n".join(lines)
