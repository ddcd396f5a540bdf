"""What a device is: a runtime with fixed settings that converts networks, loads them, runs and times them."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import io
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import nn

from onceforall.devices.measure import Session as Session
from onceforall.devices.measure import describe_machine, random_images
from onceforall.devices.timing import Load, Run, Turn, Turns, time_turns
from onceforall.errors import InvalidConfiguration, install

Images = NDArray[np.float32]
Shape = tuple[int, ...]
Model = nn.Module | bytes  # a network: a module in evaluation mode, or the bytes of an ONNX model
Timed = tuple[Model, Shape]  # a network and its input
Files = Mapping[str, bytes]  # what a runtime loads, by suffix: {".onnx": ...}, {".xml": ..., ".bin": ...}
Kept = Collection[int]  # layers of an int8 network that stay in fp32, by their place in the nn.Sequential, from 0
Report = Callable[[str, int, int], None]  # receives (step, done, total)

CALIBRATING = 32  # random inputs that set the ranges of a quantised network where no images are given


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings and progress of other people's converters."""
    silence = io.StringIO()
    with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Device(ABC):
    """A runtime on this machine (or another) with a number of threads and a precision.

    Raises InvalidConfiguration where the settings are not possible here or the runtime is not installed.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""  # what it is, in a few words
    suffixes: ClassVar[tuple[str, ...]]  # of the files that `convert` gives
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    packages: ClassVar[tuple[str, ...]] = ()  # distributions that it needs beyond torch
    extra: ClassVar[str | None] = None  # of onceforall, which installs them
    is_here: ClassVar[bool] = True  # what it measures is this machine
    keeps_layers: ClassVar[bool] = False  # `convert` can leave layers of a quantised network in floating point
    kept: tuple[int, ...] = ()  # layers that stay in floating point: see `keeping`
    loads_fast: ClassVar[bool] = True  # a network is loaded anew for every burst; else once, and kept
    factory: Callable[[str], Device] | None = None  # of a registered device: makes it in another precision

    made_with: tuple[tuple[Any, ...], dict[str, Any]]  # arguments of its class: perhaps more than the two of all

    def __new__(cls, *args: Any, **options: Any) -> Self:
        device = super().__new__(cls)
        device.made_with = args, options
        return device

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

    def identity(self) -> dict[str, Any]:
        """What tells it from other devices before anything was measured: for another machine the settings alone."""
        return self.describe()

    @abstractmethod
    def convert(self, network: Model, input_shape: Shape, calibration: Images | None = None, kept: Kept = ()) -> Files:
        """The files that the runtime loads for a network: a module in evaluation mode, or the bytes of an ONNX model.

        `calibration` [n, channels, height, width] sets the ranges of a quantised network; without it
        they come from random inputs, which is enough to time it. `kept`: layers of an int8 network that
        stay in fp32, by their place in the nn.Sequential, from 0. Raises InvalidConfiguration where the
        runtime cannot take such a network or input, or cannot keep layers.
        """

    @abstractmethod
    def load(self, files: Files, input_shape: Shape) -> Session:
        """What `convert` made, ready to run."""

    def prepare(self, network: Model, input_shape: Shape) -> Session:
        """A network that can be timed: converted, loaded and fed with random numbers."""
        return self._fed(self.convert(network, input_shape), input_shape)

    def time(
        self,
        networks: Sequence[Timed],
        turns: Turns,
        *,
        done: Sequence[Turn] = (),
        keep: Callable[[Turn], None] = lambda turn: None,
        report: Report = lambda step, done, total: None,
    ) -> NDArray[np.float64]:
        """Milliseconds a run of networks with their input shapes, interleaved, shape [networks, turns].

        A network that is given several times is converted once and gets as many bursts a turn.
        `done`, `keep`: as in `time_turns`.
        """
        loads: list[Load] = []
        with tempfile.TemporaryDirectory() as folder:

            @cache
            def converted(network: Model, shape: Shape) -> Callable[[], Files]:
                """On disk, where it waits: a measurement has hundreds of networks."""
                return on_disk(Path(folder, str(len(loads))), self.convert_keeping(network, shape))

            for network, shape in networks:
                report("preparing", len(loads), len(networks))
                loads.append(self._loader(converted(network, shape), shape))
            report("preparing", len(networks), len(networks))
            return time_turns(
                loads, turns, done=done, keep=keep, report=lambda count, total: report("timing", count, total)
            )

    def loader(self, files: Files, input_shape: Shape) -> Load:
        """What makes files ready to be timed with random numbers: anew for every burst, or once where that is slow."""
        return self._loader(lambda: files, input_shape)

    def _loader(self, files: Callable[[], Files], input_shape: Shape) -> Load:
        def load() -> Run:
            return self._fed(files(), input_shape).run

        if self.loads_fast:
            return load
        run = load()
        return lambda: run

    def _fed(self, files: Files, input_shape: Shape) -> Session:
        session = self.load(files, input_shape)
        session.feed(random_images(input_shape))
        return session

    def with_precision(self, precision: str) -> Device:
        """The same device in another precision. Raises InvalidConfiguration where it has none such."""
        return self.factory(precision) if self.factory else self.remade(self.threads, precision)

    def remade(self, threads: int, precision: str) -> Self:
        """A new device, made as this one was but for these settings. Raises InvalidConfiguration."""
        args, options = self.made_with
        taken = inspect.signature(type(self).__init__).bind(self, *args, **options)
        for name, value in (("threads", threads), ("precision", precision)):
            if name in taken.signature.parameters:
                taken.arguments[name] = value
            elif value != getattr(self, name):
                raise InvalidConfiguration(
                    f"{name} {value!r}: what makes a {type(self).__name__} takes no argument {name!r}; register a "
                    "function of threads and precision that makes it (devices.register)"
                )
        return type(self)(*taken.args[1:], **taken.kwargs)

    def keeping(self, kept: Sequence[int]) -> Device:
        """The same device, which leaves these layers of whole networks in floating point (`convert_keeping`, `time`).

        Raises InvalidConfiguration where it cannot.
        """
        self.check_kept(kept)
        result = copy.copy(self)
        result.kept = tuple(kept)
        return result

    def convert_keeping(self, network: Model, input_shape: Shape, calibration: Images | None = None) -> Files:
        """`convert`, which leaves the layers in `kept` in floating point; a layer on its own has no place there."""
        if self.kept and (isinstance(network, bytes) or layers_of(network) > 1):
            return self.convert(network, input_shape, calibration, self.kept)
        return self.convert(network, input_shape, calibration)  # not every device can keep layers

    @property
    def chosen(self) -> dict[str, Any]:
        """The settings that every device has, as descriptions and plans say them."""
        kept = {"kept": list(self.kept)} if self.kept else {}
        return {"threads": self.threads, "precision": self.precision, **kept}

    def described(self, runtime: str, **settings: object) -> dict[str, Any]:
        """A description of this device on this machine; `runtime` names the runtime and its version."""
        return {"name": self.name, "runtime": runtime, **settings, **self.chosen, **describe_machine()}

    def check_kept(self, kept: Kept) -> None:
        """Raises InvalidConfiguration where layers are to be kept and this device has none to keep."""
        if kept and not self.keeps_layers:
            raise InvalidConfiguration(
                f"kept layers {sorted(kept)}: {self.name} quantises whole networks; keep none, or use a device whose "
                "`keeps_layers` is true, such as onnxruntime"
            )
        if kept and self.precision != "int8":
            raise InvalidConfiguration(
                f"kept layers {sorted(kept)}: only int8 networks have layers to keep, this device computes in "
                f"{self.precision}; keep none"
            )

    def calibration_inputs(self, calibration: Images | None, input_shape: Shape) -> Iterator[Images]:
        """Inputs of exactly `input_shape` that set ranges: the images in turn, the first ones again to fill the last.

        Random numbers where there are no images. Raises InvalidConfiguration where they do not fit.
        """
        batch, *image = input_shape
        if calibration is None:
            calibration = random_images((CALIBRATING, *image))
        if calibration.ndim != 4 or list(calibration.shape[1:]) != image or not len(calibration):
            raise InvalidConfiguration(
                f"calibration images of shape {list(calibration.shape)}: the network takes {['n', *image]}, n from 1"
            )
        batches = np.resize(calibration, (-(-len(calibration) // batch), *input_shape))
        return iter(batches.astype(np.float32, copy=False))

    def own_module(self, network: Model, kept: Kept) -> nn.Module:
        """A copy of a module, for runtimes that do not convert from ONNX.

        Raises InvalidConfiguration where it is an ONNX model, or lacks a layer that is to be kept.
        """
        self.check_kept(kept)
        if isinstance(network, bytes):
            raise InvalidConfiguration(f"{self.name} converts torch modules: an ONNX model cannot be given")
        check_places(kept, layers_of(network))
        return copy.deepcopy(network.eval())

    def needs(self, package: str) -> Any:
        """An optional package, imported now. Raises InvalidConfiguration that says how to install it."""
        try:
            with quietly():
                return importlib.import_module(package)
        except ImportError as error:
            how = install(self.extra) if self.extra else f"pip install {package}"
            raise InvalidConfiguration(f"{self.name} needs {package} ({error}): {how}") from error


def layers_of(network: Model) -> int:
    """How many layers a network has that can be kept, by place from 0: those of an nn.Sequential."""
    return len(network) if isinstance(network, nn.Sequential) else 0


def check_places(kept: Kept, layers: int) -> None:
    """Raises InvalidConfiguration where a network of so many layers lacks one that is to be kept."""
    wrong = sorted(layer for layer in kept if not 0 <= layer < layers)
    if wrong:
        has = f"the network has layers 0 to {layers - 1}" if layers else "only an nn.Sequential has layers with a place"
        raise InvalidConfiguration(f"kept layers {wrong}: {has}")


def on_disk(path: Path, files: Files) -> Callable[[], Files]:
    """Write the files of a network, each at `path` with its suffix; what reads them again."""
    for suffix, content in files.items():
        path.with_suffix(suffix).write_bytes(content)
    return partial(from_disk, path, tuple(files))


def from_disk(path: Path, suffixes: Sequence[str]) -> Files:
    """The files of a network that lie at `path`."""
    return {suffix: path.with_suffix(suffix).read_bytes() for suffix in suffixes}
