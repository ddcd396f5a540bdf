"""What a device is: a runtime with fixed settings that converts networks, loads them, runs and times them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from onceforall.devices.timing import Turn, Turns, time_turns
from onceforall.errors import InvalidConfiguration

Images = NDArray[np.float32]
Shape = tuple[int, ...]
Files = Mapping[str, bytes]  # what a runtime loads, by suffix: {".onnx": ...}, {".xml": ..., ".bin": ...}


class Session(ABC):
    """A network loaded by a runtime, for inputs of one shape [n, channels, height, width]."""

    @abstractmethod
    def feed(self, images: Images) -> None:
        """Place an input where the runtime reads it; not part of what is timed."""

    @abstractmethod
    def run(self) -> None:
        """One inference on the input; it returns when the output is complete."""

    @abstractmethod
    def output(self) -> Images:
        """The output of the last run: logits [n, classes], or a layer's feature map."""

    def __call__(self, images: Images) -> Images:
        self.feed(images)
        self.run()
        return self.output()


class Device(ABC):
    """A runtime on this machine (or another) with a number of threads and a precision."""

    name: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)

    def __init__(self, threads: int = 1, precision: str = "fp32") -> None:
        if threads < 1:
            raise InvalidConfiguration(f"threads {threads}: expected at least 1")
        if precision not in self.precisions:
            raise InvalidConfiguration(
                f"precision {precision!r}: choices on {self.name} are {', '.join(self.precisions)}"
            )
        self.threads, self.precision = threads, precision

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Name, runtime and version, threads, precision, and the machine: what a measurement is of."""

    @abstractmethod
    def convert(self, network: nn.Module | bytes, input_shape: Shape, calibration: Images | None = None) -> Files:
        """The files that the runtime loads for a network: a module in evaluation mode, or the bytes of an ONNX model.

        `calibration` [n, channels, height, width] sets the ranges of a quantised network; without it
        they come from random inputs, which is enough to time it.
        """

    @abstractmethod
    def load(self, files: Files, input_shape: Shape) -> Session:
        """What `convert` made, ready to run."""

    def prepare(self, network: nn.Module | bytes, input_shape: Shape) -> Session:
        """A network that can be timed: converted, loaded and fed with random numbers."""
        session = self.load(self.convert(network, input_shape), input_shape)
        session.feed(random_images(input_shape))
        return session

    def time(
        self,
        networks: Sequence[tuple[nn.Module | bytes, Shape]],
        turns: Turns,
        *,
        done: Sequence[Turn] = (),
        keep: Callable[[Turn], None] = lambda turn: None,
        report: Callable[[str, int, int], None] = lambda step, done, total: None,
    ) -> NDArray[np.float64]:
        """Milliseconds a run of networks with their input shapes, interleaved, shape [networks, turns].

        `done`, `keep`: as in `time_turns`. `report` receives (step, done, total).
        """
        runs = []
        for number, (network, shape) in enumerate(networks):
            report("preparing", number, len(networks))
            runs.append(self.prepare(network, shape).run)
        report("preparing", len(networks), len(networks))
        return time_turns(runs, turns, done=done, keep=keep, report=lambda count, total: report("timing", count, total))


def random_images(shape: Shape, seed: int = 0) -> Images:
    """Standard normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)
