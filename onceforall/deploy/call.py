"""What every step of one `specialize` call is given, and scores on the label images, each measured once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from onceforall.architecture import Architecture
from onceforall.data.dataset import Data
from onceforall.deploy.exporting import Exporter
from onceforall.deploy.steps import FinishedSteps
from onceforall.devices.device import Device
from onceforall.nn.supernet import Supernet
from onceforall.predict.labels import Label
from onceforall.space import SearchSpace
from onceforall.tasks import Score, task_of

Report = Callable[[str, int, int], None]  # of a step, how much of it is done, and of how much


def silent(step: str, done: int, total: int) -> None:
    """Reports nothing."""


@dataclass(frozen=True)
class Call:
    """A supernet, its labels and data, the folder of the results, and what an interrupted call had finished."""

    supernet: Supernet
    labels: Sequence[Label]
    data: Data
    out: Path
    done: FinishedSteps
    seed: int = 0
    report: Report = silent

    @property
    def space(self) -> SearchSpace:
        """Of the supernet."""
        return self.supernet.space

    @property
    def score(self) -> Score:
        """What networks are judged by."""
        return task_of(self.data).score


class LabelScores:
    """Scores of sub-networks on the label images: labels that are known, and others, each measured once a call."""

    def __init__(self, call: Call, exporter: Exporter) -> None:
        self.call, self.exporter = call, exporter
        self._known = {label.architecture: label.score for label in call.labels}

    def known(self, arch: Architecture) -> float | None:
        """Of the supernet's weights in fp32, where it was labelled or asked for before."""
        return self._known.get(arch)

    def of(self, arch: Architecture, device: Device | None = None, exporter: Exporter | None = None) -> float:
        """In torch for fp32, else by the files of a device; of the weights of an exporter, or the supernet's."""
        exporter = exporter or self.exporter
        weights = exporter.weights
        of = f"{arch}, fine-tuned {weights.sha256}" if weights else str(arch)
        if device is not None and device.precision != "fp32":
            return self.call.done.once(
                f"label {device.name} {device.precision} {list(device.kept)} {of}",
                lambda: exporter.judge(arch, device, exporter.convert(arch, device), "label").score,
            )
        if weights is None and arch in self._known:
            return self._known[arch]
        found = self.call.done.once(f"label fp32 {of}", lambda: exporter.in_torch(arch, "label"))
        if weights is None:
            self._known[arch] = found
        return found
