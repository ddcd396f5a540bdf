"""Plain networks from layer specs: ordinary torch modules with nothing elastic in them."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import nn

from onceforall.errors import InvalidConfiguration
from onceforall.layers import LayerSpec, registered
from onceforall.nn.network import SubNetwork
from onceforall.nn.plain import fold_norms

M = TypeVar("M", bound=nn.Module)


def build(specs: Sequence[LayerSpec]) -> SubNetwork:
    """The network of the given layers, in order, with torch's default initial weights."""
    return SubNetwork(map(build_layer, specs), specs)


def build_layer(spec: LayerSpec) -> nn.Module:
    """One layer as a plain module: input [n, c, h, w], or [n, c, 1, 1] for a linear layer.

    Raises InvalidConfiguration for a layer that nobody registered.
    """
    module: nn.Module = maker(spec)(**arguments(spec))
    return module


def maker(spec: LayerSpec) -> Callable[..., Any]:
    """What makes the module of a layer: a class, or a function."""
    return imported(registered(spec).module)


@lru_cache(maxsize=1000)
def imported(what: str | Callable[..., Any]) -> Callable[..., Any]:
    """The thing that "package.module:Name" names, or itself. Raises InvalidConfiguration."""
    if not isinstance(what, str):
        return what
    try:
        found: Callable[..., Any] = pkgutil.resolve_name(what)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidConfiguration(f"{what!r}, which a layer was registered with, is not there: {error}") from error
    return found


def arguments(spec: LayerSpec) -> Mapping[str, Any]:
    """What the maker of a layer takes of its spec, by name. Raises InvalidConfiguration where the spec lacks some."""
    make = maker(spec)
    found = {name: getattr(spec, name) for name, _ in _parameters(make) if hasattr(spec, name)}
    lacking = [name for name, required in _parameters(make) if required and name not in found]
    if lacking:
        raise InvalidConfiguration(
            f"{make.__qualname__} takes {', '.join(lacking)}, which {type(spec).__qualname__} does not have: "
            "arguments are named after its fields and properties"
        )
    return found


@lru_cache(maxsize=1000)
def _parameters(make: Callable[..., Any]) -> tuple[tuple[str, bool], ...]:
    """Name, and whether it has no default."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(make).parameters.values()
    return tuple((item.name, item.default is item.empty) for item in parameters if item.kind in named)


def channels_last(module: M) -> M:
    """The module with its convolution weights in torch's channels_last memory format, in place."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def fold_batch_norm(network: M) -> M:
    """Fold every batch norm into the convolution before it, in place. For evaluation only."""
    fold_norms(network)
    return network.eval()


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """He initialisation by fan-out for convolutions, N(0, 0.01) for linear layers, zero biases.

    A module with a method `initialise(generator)` does it itself, for its own tensors alone.
    """
    for module in network.modules():
        own = getattr(module, "initialise", None)
        if callable(own):
            own(generator)
        elif isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, 0.0, (2.0 / fan_out) ** 0.5, generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            continue
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
