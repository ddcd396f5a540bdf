"""Tables of what searches found, for the terminal."""

from __future__ import annotations

from rich.table import Table

from onceforall.search.confirm import Confirmation
from onceforall.search.pareto import Front
from onceforall.tasks import Score

MILLION = 1e6


def front(found: Front, score: Score) -> Table:
    """One row a point: predicted costs and predicted score."""
    table = Table(title=f"{len(found.points)} networks, none both less accurate and dearer than another")
    first = found.points[0].costs
    large = [cost.unit in ("MACs", "parameters", "bytes") for cost in first]
    for cost, in_millions in zip(first, large, strict=True):
        table.add_column(f"pred. {cost.name} ({'M' if in_millions else ''}{cost.unit})", justify="right")
    table.add_column(f"pred. {_said(score)}", justify="right")
    table.add_column("px", justify="right")
    for point in found.points:
        values = [cost.value / MILLION if m else cost.value for cost, m in zip(point.costs, large, strict=True)]
        resolution = str(point.architecture.resolution)
        table.add_row(*(f"{value:.3f}" for value in values), f"{score.goal(point.accuracy):.2f}", resolution)
    return table


def trials(found: Confirmation, score: Score) -> Table:
    """One row a measured candidate: what was predicted, what was measured, and whether it was taken."""
    kept = "kept its budget" if found.met else "[red]none kept its budget[/]: tighten the bound"
    table = Table(title=f"Candidates measured, best predicted first: {kept} of {found.bound:.4g} {found.unit}")
    said = _said(score)
    for header in (f"pred. {found.unit}", f"meas. {found.unit}", "gap", f"pred. {said}", f"label {said}", "gap"):
        table.add_column(header, justify="right")
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


def _said(score: Score) -> str:
    return "%" if score.unit == "percent" else f"{score.name} {score.unit}".rstrip()
