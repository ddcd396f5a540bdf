"""An extracted network as a module of its own, with the methods that people know from timm and torchvision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, overload

from torch import Tensor, nn

from onceforall.errors import InvalidConfiguration, MissingPart
from onceforall.layers import LayerSpec, LinearSpec, height_width
from onceforall.nn.fast_cpu import Sequential
from onceforall.nn.plain import Classifier


class SubNetwork(Sequential):
    """The layers of a network in order, which knows what they are: `specs`, one each.

    It is a Sequential of plain modules, so whatever takes one takes this: a slice is a plain
    Sequential again. `build` and `Supernet.extract` make it. What needs a part that the layers lack
    (`build` also makes networks without a head) raises MissingPart.

    Example:
        >>> network = supernet.extract(space.smallest())
        >>> network.reset_classifier(37)  # then train it on another data set
        >>> backbone = network.features_only(out_indices=(1, 2, 3))  # feature maps for a detector
    """

    def __init__(self, layers: Iterable[nn.Module], specs: Sequence[LayerSpec]) -> None:
        super().__init__(*layers)
        self.specs = tuple(specs)

    @overload
    def __getitem__(self, index: slice) -> nn.Sequential: ...

    @overload
    def __getitem__(self, index: int) -> nn.Module: ...

    def __getitem__(self, index: int | slice) -> nn.Module:
        return nn.Sequential(*list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)

    def __getattr__(self, name: str) -> Any:
        # Python asks here when a property raised an AttributeError. nn.Module would say another, without the reason.
        found = getattr(type(self), name, None)
        return found.__get__(self) if isinstance(found, property) else super().__getattr__(name)

    @property
    def num_classes(self) -> int:
        """Outputs of the classifier; 0 where it was taken away."""
        return self._last.out_features

    @property
    def num_features(self) -> int:
        """Inputs of the classifier."""
        return self._last.in_features

    @property
    def folded(self) -> bool:
        """Whether its batch norms were folded into the convolutions."""
        normed = any(getattr(spec, "batch_norm", hasattr(spec, "bn_eps")) for spec in self.specs)
        return normed and not any(isinstance(module, nn.BatchNorm2d) for module in self.modules())

    @property
    def default_cfg(self) -> dict[str, Any]:
        """What timm's models say about themselves, as far as the layers tell it."""
        pool, first = self.specs[self._pool], self.specs[0]
        return {
            "input_size": (first.in_channels, *height_width(first.in_size)),
            "pool_size": height_width(pool.in_size),
            "num_classes": self.num_classes,
            "first_conv": "0.conv",
            "classifier": f"{len(self) - 1}.linear",
        }

    def forward_features(self, x: Tensor) -> Tensor:
        """The feature map [n, c, h, w], or tokens [n, tokens, c], before pooling, of images [n, 3, height, width]."""
        for layer in list(self)[: self._pool]:
            x = layer(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits [n, num_classes] of a feature map; with `pre_logits` what the classifier reads, [n, num_features]."""
        *head, last = list(self)[self._pool :]
        for layer in head:
            x = layer(x)
        result: Tensor = x.flatten(1) if pre_logits else last(x)
        return result

    def get_classifier(self) -> nn.Module:
        """The linear layer, or the identity where it was taken away."""
        self._last  # noqa: B018  (raises where there is none)
        classifier: nn.Module = self[-1].linear  # type: ignore[assignment]
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """A new linear layer with torch's initial weights where the old one was; 0 classes: none, features come out.

        Raises InvalidConfiguration for another pooling than "avg".
        """
        if num_classes < 0 or global_pool != "avg":
            raise InvalidConfiguration(
                f"num_classes {num_classes}, global_pool {global_pool!r}: expected 0 or more classes, and avg"
            )
        spec = replace(self._last, out_features=num_classes)
        like = next(self.parameters())
        self[-1].linear = Classifier(spec.in_features, num_classes).linear.to(like.device, like.dtype)
        self.specs = (*self.specs[:-1], spec)

    def features_only(self, out_indices: Sequence[int] | None = None) -> FeatureMaps:
        """The feature maps alone, for detection and segmentation: the last one at each stride, from large to small.

        The module shares this network's layers. `out_indices`: which of the maps, all by default; a
        negative index counts from the smallest map. Raises InvalidConfiguration where there is no such map,
        as in a network of tokens.
        """
        if any(len(spec.input_shape) < 3 for spec in self.specs[: self._pool]):
            raise InvalidConfiguration("this network has tokens and no feature maps: forward_features gives those")
        ends: dict[int, int] = {}
        reduction = 1
        for index, spec in enumerate(self.specs[: self._pool]):
            reduction *= getattr(spec, "stride", 1)
            ends[reduction] = index
        maps = list(ends.items())
        try:
            chosen = sorted({maps[index] for index in (range(len(maps)) if out_indices is None else out_indices)})
        except IndexError:
            chosen = []
        if not chosen:
            strides = ", ".join(f"{index} (stride {reduction})" for index, reduction in enumerate(ends))
            raise InvalidConfiguration(f"out_indices {out_indices}: give some of the feature maps {strides}")
        info = FeatureInfo(
            {"num_chs": self.specs[index].out_channels, "reduction": reduction, "module": str(index)}
            for reduction, index in chosen
        )
        return FeatureMaps(list(self)[: chosen[-1][1] + 1], info)

    @property
    def _pool(self) -> int:
        """Position of the global pooling."""
        for index, spec in enumerate(self.specs):
            if spec.pools:
                return index
        raise MissingPart("this network has no global pooling: it is a part of one")

    @property
    def _last(self) -> LinearSpec:
        if self.specs and isinstance(self.specs[-1], LinearSpec):
            return self.specs[-1]
        raise MissingPart("this network has no classifier: it is a part of one")


class FeatureInfo(list[dict[str, Any]]):
    """One dictionary a feature map: `num_chs` (channels), `reduction` (its stride), `module` (what makes it)."""

    def channels(self) -> list[int]:
        """Channels of each map."""
        return [item["num_chs"] for item in self]

    def reduction(self) -> list[int]:
        """Stride of each map: its pixels lie that many image pixels apart."""
        return [item["reduction"] for item in self]

    def module_name(self) -> list[str]:
        """The layer that makes each map."""
        return [item["module"] for item in self]


class FeatureMaps(nn.Sequential):
    """The layers of a network up to the last map that is wanted; the maps that `feature_info` lists are its output."""

    def __init__(self, layers: Iterable[nn.Module], feature_info: FeatureInfo) -> None:
        super().__init__(*layers)
        self.feature_info = feature_info

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps [n, channels, h, w] of images [n, 3, height, width]."""
        wanted = self.feature_info.module_name()
        maps = []
        for name, layer in self.named_children():
            x = layer(x)
            if name in wanted:
                maps.append(x)
        return maps
