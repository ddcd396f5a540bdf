"""The twins that stand in for measurements during a search: of accuracy, and of latency."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onceforall.architecture import Architecture
from onceforall.cost.latency import LatencyTable
from onceforall.cost.learned import LearnedLatency, load_latency
from onceforall.deploy.call import Call
from onceforall.deploy.manifest import LATENCY
from onceforall.devices.device import Device
from onceforall.errors import InvalidConfiguration
from onceforall.predict.accuracy import MLPPredictor, PredictorQuality, assess
from onceforall.predict.corrected import CorrectedPredictor
from onceforall.predict.labels import training_pairs
from onceforall.profiling.profile import profile

Latency = LatencyTable | LearnedLatency


@dataclass(frozen=True)
class Twins:
    """A predictor of the score with its quality, corrected for a precision where that was asked for, and of latency."""

    predictor: MLPPredictor
    quality: PredictorQuality
    correction: CorrectedPredictor | None = None
    latency: Latency | None = None

    @property
    def accuracy(self) -> MLPPredictor | CorrectedPredictor:
        """What searches maximise."""
        return self.correction or self.predictor


def fit_predictor(call: Call) -> tuple[MLPPredictor, PredictorQuality]:
    """The accuracy predictor, and how good it is."""
    call.report("accuracy predictor", 0, 1)
    space, seed = call.space, call.seed
    archs, accuracies = training_pairs(call.labels, call.score)
    quality = assess(MLPPredictor(space, seed=seed), space, archs, accuracies, seed=seed)
    predictor = MLPPredictor(space, seed=seed).fit(archs, accuracies)
    call.report("accuracy predictor", 1, 1)
    return predictor, quality


def latency_model(call: Call, device: Device | None, table: Latency | None) -> Latency:
    """The given one, one that an interrupted call made, or a new one; it is saved beside the results."""
    path = call.out / LATENCY
    if table is not None:
        if device is not None:
            check_precision(table, device.precision)
        table.save(path)
        return table
    assert device is not None

    def make() -> str:
        made = profile(
            call.space,
            device,
            seed=call.seed,
            progress=call.out / "latency.part",
            report=lambda step, done, total: call.report(f"latency: {step}", done, total),
        )
        made.save(path)
        return device.precision

    call.done.once(f"latency {device.precision}", make)
    found = load_latency(path)
    assert isinstance(found, LatencyTable | LearnedLatency)
    return found


def check_precision(table: Latency, precision: str) -> None:
    """Raises InvalidConfiguration where a latency model was measured in another precision."""
    made_in = table.device.get("precision", precision)
    if made_in != precision:
        raise InvalidConfiguration(
            f"the latency model was measured in {made_in}, the networks will run in {precision}: give one "
            f"of `ofa profile --precision {precision}`, or none"
        )


def changes(call: Call, device: Device, count: int) -> tuple[list[Architecture], list[float]]:
    """Labelled sub-networks, spread over their scores, and by how much a device makes their label score better."""
    order = np.argsort([label.score for label in call.labels])
    spread = order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)]
    chosen = [call.labels[index].architecture for index in spread]
    goal = call.score.goal
    return chosen, [
        goal(call.label_score(arch, device)) - goal(call.label_score(arch))
        for arch in call.each(f"accuracy in {device.precision}", chosen)
    ]
