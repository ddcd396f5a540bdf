"""Pictures of results."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from onceforall.deploy.manifest import Specialization
from onceforall.files import replacing
from onceforall.space import SearchSpace

STYLES = (
    ("searched", "o", "tab:blue", "-"),
    ("given", "^", "tab:purple", ""),
    ("uniform", "s", "tab:orange", "--"),
)


def front(result: Specialization, space: SearchSpace, path: Path) -> None:
    """Accuracy against latency: the chosen networks, the uniform ones, the largest; PNG."""
    figure = Figure(figsize=(8, 5), dpi=130, layout="constrained")
    axes = figure.subplots()
    cloud = [(result.table.cost(space.lower(label.architecture)), label.top1) for label in result.labels]
    if cloud:
        latencies, accuracies = zip(*cloud, strict=True)
        text = f"{len(cloud)} labelled sub-networks (label images, predicted latency)"
        axes.scatter(latencies, accuracies, s=8, color="0.8", label=text)
    for role, marker, color, line in STYLES:
        points = sorted((n.measured_latency_ms, n.test_top1) for n in result.networks if n.role == role)
        if points:
            axes.plot(
                *zip(*points, strict=True), marker=marker, color=color, linestyle=line, label=f"{role} (measured, test)"
            )
            for latency, accuracy in points:
                text, offset = f"{accuracy:.1f}", (0, -14 if role == "uniform" else 7)
                axes.annotate(
                    text, (latency, accuracy), offset, textcoords="offset points", ha="center", fontsize=8, color=color
                )
    largest = next(network for network in result.networks if network.role == "largest")
    axes.plot(
        [largest.measured_latency_ms], [largest.test_top1], "D", color="tab:green", label="largest (measured, test)"
    )
    for network in result.networks:
        if network.role == "searched" and network.budget_ms is not None:
            axes.axvline(network.budget_ms, color="0.6", linewidth=0.8, linestyle=":")
            axes.annotate(
                f" {network.budget}",
                (network.budget_ms, 0.02),
                xycoords=("data", "axes fraction"),
                fontsize=8,
                color="0.4",
            )
    best = [n.test_top1 for n in result.networks]
    axes.set_ylim(min(best) - 3, max(best) + 1.5)
    device = result.device
    axes.set_xlabel(f"latency (ms), batch 1, {device['runtime']}, {device['threads']} thread(s), {device['processor']}")
    axes.set_ylabel("top-1 (%)")
    tuned = any(network.finetuning for network in result.networks)
    axes.set_title(f"Specialised {'and fine-tuned' if tuned else 'without training'}: accuracy against latency")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
