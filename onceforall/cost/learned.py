"""Latency learnt from whole networks: a Gaussian process on what they ask of the device. No torch.

Where layers overlap, as on a GPU at batch 1, or a delegate fuses and splits them, a sum over layers
is a poor model. Here the logarithm of a network's latency is a Gaussian process over features that
add up over its layers (`cost/features.py`): a linear kernel, what the device makes of each kind of
work, plus a smooth one. Its mean is a straight line through MACs or, which takes far fewer
measurements where it resembles the device, through a `base` such as the latency table of another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from onceforall import serial
from onceforall.cost.analytic import macs
from onceforall.cost.features import CONVOLUTIONAL, NAMES, QUANTITIES, features, layer_features
from onceforall.cost.latency import LatencyModel, LatencyTable, LatencyTables, fit_line, read_table
from onceforall.cost.model import SummedCost, input_size
from onceforall.cost.validation import Validation
from onceforall.errors import InvalidConfiguration, OutOfDomain
from onceforall.files import read_json_object
from onceforall.layers import LayerSpec
from onceforall.sizes import Size, said, side

FEWEST = 5
LARGEST, LARGEST_LOGARITHM = 1e30, 100.0  # in files: what is beyond is damage, and would only end in NaN
PRIOR = (0.0, -1.0, 0.0, -3.0)  # of `kernel`, with a standard deviation of
PRIOR_SPREAD = 3.0
OUTLIER = 5.0  # robust standard deviations from what all others say of it,
LEAST_OUTLIER = 0.2  # and 20 %

FEWEST_FEATURES = len(CONVOLUTIONAL) * len(QUANTITIES)  # of networks that do nothing else

Matrix = NDArray[np.float64]
Kernel = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class LearnedLatency(LatencyModel, SummedCost):
    """Latency (ms) of networks on one device, learnt from measured ones with `fit`.

    inputs: features of the measured networks [n, features]; measured: their latency (ms), and offsets:
    the logarithm of what the base, or else their MACs, say of them, both [n]; resolutions: the smallest
    and largest input size (px) among them, outside of which OutOfDomain is raised; kernel: logarithms of
    the weights of the linear and the smooth kernel, of the squared length of the smooth one, and of
    the noise; line: the scale and the constant (ms) that bring base or MMACs closest.
    """

    device: Mapping[str, Any]
    inputs: Matrix
    measured: Matrix
    offsets: Matrix
    resolutions: tuple[int | float, int | float]  # a whole number of a file stays whole
    kernel: Kernel
    base: LatencyModel | None = None
    line: tuple[float, float] = (1.0, 0.0)
    validation: Validation | None = None
    format = "onceforall.learned-latency/1"
    what = "learned latency"

    @classmethod
    def fit(
        cls,
        networks: Sequence[Sequence[LayerSpec]],
        measured: Sequence[float] | Matrix,
        device: Mapping[str, Any],
        base: LatencyModel | None = None,
    ) -> LearnedLatency:
        """Learn from measured networks (ms): 5 at least, 10 to 30 with a base, else 100 to 1,000.

        Of 30 or more, those measurements are
        left out that all others contradict: something else ran. Raises InvalidConfiguration.
        """
        truth = np.asarray(measured, float)
        if len(networks) < FEWEST or len(networks) != len(truth) or not (np.isfinite(truth) & (truth > 0)).all():
            raise InvalidConfiguration(
                f"{len(networks)} networks and {len(truth)} latencies: expected at least {FEWEST} of each, all above 0"
            )
        sizes = [side(input_size(layers)) for layers in networks]
        inputs = np.stack([features(layers) for layers in networks])
        if not inputs[:, FEWEST_FEATURES:].any():
            inputs = inputs[:, :FEWEST_FEATURES]
        says = np.array([_base_cost(base, layers) for layers in networks])
        line = fit_line(says, truth, 0.0)
        model = cls(device, inputs, truth, np.zeros_like(truth), (min(sizes), max(sizes)), PRIOR, base, line)
        model = replace(model, offsets=model._offsets(says))
        model = replace(model, kernel=model._likeliest())
        errors = np.abs(model._left_out())
        kept = errors < max(OUTLIER * 1.4826 * float(np.median(errors)), LEAST_OUTLIER)
        if kept.all() or len(truth) < 30:
            return model
        model = replace(model, inputs=inputs[kept], measured=truth[kept], offsets=model.offsets[kept])
        return replace(model, kernel=model._likeliest())

    def parts_at(self, resolution: Size) -> tuple[Callable[[LayerSpec], Matrix], Matrix]:
        """Sums over layers: the features, and last the base or MMACs. Raises OutOfDomain."""
        least, most = self.resolutions
        if not least <= side(resolution) <= most:
            raise OutOfDomain(
                f"{said(resolution)} px: this latency was learnt from networks of {least} to {most} px; "
                "measure some at that size"
            )
        local = self.base.at(resolution) if self.base else None

        def part(layer: LayerSpec) -> Matrix:
            return np.append(layer_features(layer), local.layer_cost(layer) if local else layer.macs / 1e6)

        return part, np.append(np.zeros(len(NAMES)), local.constant if local else 0.0)

    def of_sums(self, sums: Matrix, sides: Matrix) -> Matrix:
        """Milliseconds [n] of networks from their sums [n, features + 1]."""
        points = self._standardised(sums[:, :-1])
        _, mean, spread = self._targets
        return np.asarray(np.exp(self._offsets(sums[:, -1]) + mean + spread * (self._cross(points) @ self._solved[1])))

    def uncertainty(self, networks: Sequence[Sequence[LayerSpec]]) -> Matrix:
        """Standard deviations (ms) of `costs`, noise of a measurement included, shape [n]. Raises OutOfDomain."""
        points = self._standardised(np.stack([features(layers) for layers in networks]))
        cross = self._cross(points)
        linear, smooth, _, noise = np.exp(self.kernel)
        own = linear * (points**2).sum(1) + smooth + noise
        variance = np.maximum(own - (cross * cho_solve(self._solved[0], cross.T).T).sum(1), 1e-9)
        return np.asarray(self.costs(networks) * self._targets[2] * np.sqrt(variance))

    def _offsets(self, says: Matrix) -> Matrix:
        """Logarithm of the straight line through what base or MMACs say."""
        scale, constant = self.line
        return np.asarray(np.log(scale * says + constant))

    # The Gaussian process, on standardised inputs and targets

    @cached_property
    def _scaling(self) -> tuple[Matrix, Matrix]:
        spread = self.inputs.std(0)
        varied = spread > 1e-9  # what never varied tells nothing
        return self.inputs.mean(0), np.where(varied, spread, np.inf) * np.sqrt(max(varied.sum(), 1))

    @cached_property
    def _points(self) -> Matrix:
        return self._standardised(self.inputs)

    @cached_property
    def _targets(self) -> tuple[Matrix, float, float]:
        """Standardised logarithms of latency over base, with their mean and standard deviation."""
        ratios = np.log(self.measured) - self.offsets
        mean, spread = float(ratios.mean()), max(float(ratios.std()), 1e-6)
        return (ratios - mean) / spread, mean, spread

    @cached_property
    def _solved(self) -> tuple[Any, Matrix]:
        """The Cholesky factor of the training kernel, and its solution for the targets."""
        factor = cho_factor(_noisy(self._cross(self._points), self.kernel), lower=True)
        return factor, cho_solve(factor, self._targets[0])

    def _standardised(self, inputs: Matrix) -> Matrix:
        mean, spread = self._scaling
        known = len(mean)
        if inputs[:, known:].any():
            strange = NAMES[known + int(np.argmax(inputs[:, known:].any(0)))].split(":")[0]
            raise OutOfDomain(f"a network with {strange}: this latency was learnt from networks without; measure some")
        return (inputs[:, :known] - mean) / spread

    def _cross(self, points: Matrix) -> Matrix:
        """The kernel of points with those that were measured."""
        return _combined(self.kernel, points @ self._points.T, _distances(points, self._points))

    def _left_out(self) -> Matrix:
        """Error of the logarithm of each measurement, as predicted from all others."""
        factor, weights = self._solved
        return np.asarray(self._targets[2] * weights / np.diag(cho_solve(factor, np.eye(len(weights)))))

    def _likeliest(self) -> Kernel:
        """The kernel of highest posterior density."""
        points, targets = self._points, self._targets[0]
        products, distances = points @ points.T, _distances(points, points)

        def loss(kernel: Matrix) -> float:
            covariance = _noisy(_combined(kernel, products, distances), kernel)
            factor = cho_factor(covariance, lower=True, overwrite_a=True, check_finite=False)
            fit = 0.5 * targets @ cho_solve(factor, targets) + np.log(np.diag(factor[0])).sum()
            return float(fit + 0.5 * (((kernel - PRIOR) / PRIOR_SPREAD) ** 2).sum())

        simplex = np.vstack([PRIOR, np.asarray(PRIOR) + np.diag([2.0, 2.0, 2.0, -2.0])])
        options = {"maxiter": 100, "xatol": 0.05, "fatol": 0.05, "initial_simplex": simplex}
        found = minimize(loss, PRIOR, method="Nelder-Mead", options=options)
        return tuple(found.x.tolist())

    # Files

    def to_json(self) -> dict[str, Any]:
        value = {"format": self.format, "unit": self.unit, "features": list(NAMES[: self.inputs.shape[1]])}
        value |= serial.to_json(replace(self, base=None))
        return value | {"base": self.base.to_json() if self.base else None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LearnedLatency:
        """The inverse of `to_json`. Raises InvalidConfiguration."""
        given = cls._fields(value)
        names, base = given.pop("features", None), given.pop("base", None)
        if not isinstance(names, list) or len(names) < FEWEST_FEATURES or tuple(names) != NAMES[: len(names)]:
            raise InvalidConfiguration(f"a learned latency of other features: this version has {', '.join(NAMES)}")
        found = serial.from_json(cls, given, "a learned latency")
        shapes = found.inputs.shape, found.measured.shape
        if shapes != ((found.measured.size, len(names)), found.offsets.shape):
            raise InvalidConfiguration(f"not a learned latency: {shapes[0]} inputs and {shapes[1]} latencies")
        for name, right, wanted in (
            (
                "measured",
                (found.measured > 0).all() and found.measured.size >= FEWEST,
                f"{FEWEST} or more times above 0",
            ),
            ("inputs", (np.abs(found.inputs) < LARGEST).all(), f"numbers below {LARGEST:g}"),
            ("offsets", (np.abs(found.offsets) < LARGEST_LOGARITHM).all(), f"numbers below {LARGEST_LOGARITHM:g}"),
            ("kernel", max(map(abs, found.kernel)) < LARGEST_LOGARITHM, f"numbers below {LARGEST_LOGARITHM:g}"),
            ("line", found.line[0] > 0 and found.line[1] >= 0, "a scale above 0, a constant of at least 0 ms"),
            ("resolutions", 0 < found.resolutions[0] <= found.resolutions[1], "two sizes (px), ascending"),
        ):
            if not right:
                raise InvalidConfiguration(f"not a learned latency: {name}: expected {wanted}")
        return replace(found, base=read_table(base) if base else None)

    def summary(self) -> dict[str, Any]:
        """What it is made of, for a manifest."""
        return {"kind": "learned", "networks": len(self.measured), "base": dict(self.base_device)}

    @property
    def base_device(self) -> Mapping[str, Any]:
        """The device of the base, where it is one table."""
        return self.base.device if isinstance(self.base, LatencyTable) else {}


def load_latency(path: str | Path) -> LatencyTable | LatencyTables | LearnedLatency:
    """What `save` of any latency model wrote. Raises InvalidConfiguration."""
    value = read_json_object(Path(path))
    try:
        return LearnedLatency.from_json(value) if value.get("format") == LearnedLatency.format else read_table(value)
    except InvalidConfiguration as error:
        raise InvalidConfiguration(f"{path}: {error}; copy it again, or `ofa profile` again") from error


def _base_cost(base: LatencyModel | None, layers: Sequence[LayerSpec]) -> float:
    """What a base says of a network, or its MMACs."""
    return base.cost(layers) if base else macs(layers) / 1e6


def _distances(a: Matrix, b: Matrix) -> Matrix:
    return np.asarray(np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0.0))


def _combined(kernel: Sequence[float] | Matrix, products: Matrix, distances: Matrix) -> Matrix:
    linear, smooth, length, _ = np.exp(kernel)
    return np.asarray(linear * products + smooth * np.exp(distances / (-2 * length)))


def _noisy(covariance: Matrix, kernel: Sequence[float] | Matrix) -> Matrix:
    covariance[np.diag_indices_from(covariance)] += np.exp(kernel[3]) + 1e-6
    return covariance
