"""Pictures of results."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.figure import Figure

from onceforall.cost.analytic import macs
from onceforall.deploy.manifest import Specialization, Specialized
from onceforall.files import replacing
from onceforall.space import SearchSpace

STYLES = (
    ("searched", "o", "tab:blue", "-"),
    ("given", "^", "tab:purple", ""),
    ("uniform", "s", "tab:orange", "--"),
)


def front(result: Specialization, space: SearchSpace, path: Path) -> None:
    """Score against latency, or where nothing was timed against MACs: searched, uniform and largest networks; PNG."""
    figure = Figure(figsize=(8, 5), dpi=130, layout="constrained")
    axes = figure.subplots()
    timed = not any(math.isnan(network.measured_latency_ms) for network in result.networks)
    told = ", predicted latency" if result.table and timed else ""

    def across(network: Specialized) -> float:
        return network.measured_latency_ms if timed else network.macs / 1e6

    if result.table or not timed:
        layers = [space.lower(label.architecture) for label in result.labels]
        costs = [result.table.cost(each) if result.table and timed else macs(each) / 1e6 for each in layers]
        text = f"{len(costs)} labelled sub-networks (label images{told})"
        axes.scatter(costs, [label.score for label in result.labels], s=8, color="0.8", label=text)
    for role, marker, color, line in STYLES:
        points = sorted((across(n), n.measured_score) for n in result.networks if n.role == role)
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, marker=marker, color=color, linestyle=line, label=f"{role} (measured, test)")
            for place in points:
                text, offset = f"{place[1]:.1f}", (0, -14 if role == "uniform" else 7)
                axes.annotate(text, place, offset, textcoords="offset points", ha="center", fontsize=8, color=color)
    largest = next(network for network in result.networks if network.role == "largest")
    axes.plot([across(largest)], [largest.measured_score], "D", color="tab:green", label="largest (measured, test)")
    for network in result.networks:
        if network.role == "searched" and network.latency_budget_ms is not None:
            axes.axvline(network.latency_budget_ms, color="0.6", linewidth=0.8, linestyle=":")
            axes.annotate(
                f" {network.budget}",
                (network.latency_budget_ms, 0.02),
                xycoords=("data", "axes fraction"),
                fontsize=8,
                color="0.4",
            )
    best = [n.measured_score for n in result.networks]
    axes.set_ylim(min(best) - 3, max(best) + 1.5)
    device, score = result.device or {}, result.score
    about = f"{device['runtime']}, {device['threads']} thread(s), {device['processor']}" if device else ""
    axes.set_xlabel(f"latency (ms), batch 1, {about}" if timed else "MACs (millions)")
    axes.set_ylabel(f"{score.name} ({score.unit})".replace("percent", "%"))
    tuned = any(network.finetuning for network in result.networks)
    axes.set_title(f"Specialised {'and fine-tuned' if tuned else 'without training'}")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
