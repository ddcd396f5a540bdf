"""The authors' accuracy predictors, which answer only where they were trained.

They are multi-layer perceptrons on one-hot choices. The MobileNetV3 one belongs to width 1.2 and
160, 176, 192, 208, 224 px; the ResNet-50D one has its own encoding of 82 features. Both answer
anything at all and say nothing, so here whatever they never saw raises OutOfDomain.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onceforall import spaces
from onceforall.architecture import Architecture
from onceforall.checkpoint import read_tensors, write_tensors
from onceforall.choices import WIDTH
from onceforall.errors import IncompatibleCheckpoint, InvalidArchitecture, InvalidConfiguration, OutOfDomain
from onceforall.interop.pickles import read_state
from onceforall.rows import RESOLUTION, Rows
from onceforall.sizes import Size, said
from onceforall.space import SearchSpace

FORMAT = "onceforall.predictor/1"

Layer = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Domain:
    """Where a predictor answers: members of `space` at `resolutions`; the space has a slot for each feature."""

    name: str
    space: SearchSpace
    resolutions: tuple[int, ...]
    features: int

    def check(self, resolutions: Iterable[Size]) -> None:
        """Raises OutOfDomain where the predictor was not trained at one of these."""
        for resolution in resolutions:
            if resolution not in self.resolutions:
                raise OutOfDomain(
                    f"resolution {said(resolution)}: the published {self.name} predictor was trained at "
                    f"{', '.join(map(str, self.resolutions))} px; restrict the space's resolutions"
                )


def mobilenet_v3_domain() -> Domain:
    """The space of `acc_predictor.pth`: 20 kernels, 20 expand ratios, 8 resolution slots of 16 px from 112."""
    return Domain(
        "MobileNetV3 width 1.2", spaces.mobilenet_v3(1.2, range(112, 225, 16)), tuple(range(160, 225, 16)), 128
    )


def resnet50d_domain() -> Domain:
    """The space of `ofa_resnet50_acc_predictor.pth`: 8 resolutions, the stem, 6 widths, 18 expand ratios."""
    sizes = (128, 144, 160, 176, 192, 224, 240, 256)
    return Domain("ResNet-50D", spaces.resnet50d(sizes), sizes, 82)


class PublishedPredictor:
    """A published accuracy predictor for a space inside its domain, or for its whole domain.

    Predictions are percent of ImageNet top-1, as its authors measured it. Raises OutOfDomain for a
    space that is not inside the domain, and for architectures that are not.
    """

    def __init__(
        self, domain: Domain, layers: Sequence[Layer], offset: float, space: SearchSpace | None = None
    ) -> None:
        self.domain, self.layers, self.offset = domain, list(layers), offset
        self.space = space or domain.space.restrict(resolutions=domain.resolutions)
        domain.check(self.space.resolutions)
        try:
            self._adopt = domain.space.adopting(self.space)
        except InvalidArchitecture as error:
            raise OutOfDomain(f"{error}; the published predictor belongs to {domain.name}") from error

    def on(self, space: SearchSpace) -> PublishedPredictor:
        """The same predictor for rows of a space that lies inside its domain. Raises OutOfDomain."""
        return PublishedPredictor(self.domain, self.layers, self.offset, space)

    def fit(self, architectures: Sequence[Architecture], accuracies: Sequence[float]) -> Self:
        """A published predictor does not learn: raises InvalidConfiguration."""
        raise InvalidConfiguration("a published predictor does not learn: fit an MLPPredictor on your labels")

    def predict(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Predicted top-1 (percent), shape [n]. Raises OutOfDomain."""
        self.domain.check(architecture.resolution for architecture in architectures)
        return self.evaluate(self.features(architectures))

    def predict_rows(self, rows: Rows) -> NDArray[np.float64]:
        """Predicted top-1 (percent) of rows of `space`, shape [n]."""
        return self.evaluate(self._encode(self._adopt(rows)))

    def features(self, architectures: Sequence[Architecture]) -> NDArray[np.float32]:
        """The predictor's input, for every resolution that has a slot, trained or not. Raises OutOfDomain."""
        try:
            return self._encode(self.domain.space.to_rows(architectures))
        except InvalidArchitecture as error:
            raise OutOfDomain(f"{error}; the published {self.domain.name} predictor knows no other") from error

    def evaluate(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """The network's answer (percent) to features, without asking whether it can know."""
        x = features
        for weight, bias in self.layers[:-1]:
            x = np.maximum(x @ weight.T + bias, 0)
        weight, bias = self.layers[-1]
        return 100.0 * ((x @ weight.T + bias)[:, 0].astype(np.float64) + self.offset)

    def save(self, path: str | Path) -> None:
        """A safetensors file that `load_predictor` reads. Raises UnwritableOutput."""
        tensors = {"base_acc": np.array([self.offset], np.float32)}
        for number, (weight, bias) in enumerate(self.layers):
            tensors |= {f"{number}.weight": weight, f"{number}.bias": bias}
        metadata = {"format": FORMAT, "domain": self.domain.name}
        write_tensors(Path(path), {name: torch.from_numpy(array) for name, array in tensors.items()}, metadata)

    def _encode(self, rows: Rows) -> NDArray[np.float32]:
        """One-hot features of rows of the domain's space, in the authors' order."""
        space = self.domain.space
        encoded = space.encode_rows(rows)
        if self.domain.features == encoded.shape[1]:  # ours is the order of the MobileNetV3 predictor
            return encoded

        def of(what: str, first: int = 0) -> NDArray[np.float32]:
            """The features of a choice in all units from one on."""
            return encoded[:, [name == what and u >= first for name, u, _, _ in space.encoded_choices]]

        # ResNet-50D: resolution, whether the stem's middle layer is there, widths, expand ratios of the stages.
        stem = np.eye(2, dtype=np.float32)[rows[:, 1]]
        return np.concatenate([of(RESOLUTION), stem, of(WIDTH), of("expand", 2)], axis=1)


def is_predictor(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict looks like that of a published accuracy predictor."""
    return "0.weight" in state or "layers.0.0.weight" in state


def load_predictor(path: str | Path, space: SearchSpace | None = None) -> PublishedPredictor:
    """A published accuracy predictor: `acc_predictor.pth`, the ResNet-50D one, or what was imported from either.

    Raises IncompatibleCheckpoint, and OutOfDomain where `space` is not inside its domain.
    """
    path = Path(path)
    state = read_tensors(path)[0] if path.suffix == ".safetensors" else read_state(path)
    return predictor_of(state, space, str(path))


def predictor_of(
    state: Mapping[str, Tensor], space: SearchSpace | None = None, origin: str = "state dict"
) -> PublishedPredictor:
    """The published accuracy predictor of a state dict. Raises as `load_predictor` does."""
    arrays = {name: tensor.float().numpy() for name, tensor in state.items()}
    # Numbers in the names are the order of the layers; safetensors files sort by name, to the same effect.
    weights = sorted(name for name in arrays if name.endswith("weight"))
    # Only the last layer may have no bias: `base_acc` stands in for it.
    biases = {name: np.zeros(len(arrays[name]) if name == weights[-1] else 0, np.float32) for name in weights}
    layers = [(arrays[name], arrays.get(name.removesuffix("weight") + "bias", none)) for name, none in biases.items()]
    offset = arrays.get("base_acc", np.zeros(1, np.float32))
    domains = (mobilenet_v3_domain(), resnet50d_domain())
    found = [(weight.shape, bias.shape) for weight, bias in layers]
    for domain in domains:
        sizes = (domain.features, 400, 400, 400, 1)
        if found == [((after, before), (after,)) for before, after in itertools.pairwise(sizes)] and offset.size == 1:
            return PublishedPredictor(domain, layers, float(offset.item()), space)
    raise IncompatibleCheckpoint(
        f"{origin} is not a published accuracy predictor: expected four layers from "
        f"{' or '.join(str(domain.features) for domain in domains)} features to one accuracy, got "
        f"weights and biases of {found}"
    )
