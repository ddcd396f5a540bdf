"""A second device for machines that have one alone: it computes on the processor, and refuses to mix with it.

Within `elsewhere()`, torch's device "meta" stands for it: `module.to("meta")` brings a module there, and an operation
on tensors of both devices raises, as one on CUDA would. For evaluation: no gradients pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten


class There(Tensor):
    """A tensor of the other device; `here` are its numbers."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        tensor: There = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device="meta"
        )
        tensor.here = here
        return tensor

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(function, args, kwargs or {})


def dispatched(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if torch.is_inference_mode_enabled():  # where operations that are made of others arrive whole
        with _Mode():
            parts = function.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
    with torch.inference_mode(False):  # aliases of such tensors could not be made
        return computed(function, args, kwargs)


def computed(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, There)]
    moves = function in (aten._to_copy.default, aten.copy_.default)
    if there and not moves and any(tensor.ndim and not isinstance(tensor, There) for tensor in tensors):
        raise RuntimeError(f"{function}: expected all tensors to be on the same device")
    device = kwargs.get("device")
    wrap = bool(there) if device is None else torch.device(device).type == "meta"
    if function is aten.copy_.default:
        wrap = isinstance(args[0], There)
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    known = {id(tensor.here): tensor for tensor in there}
    args, kwargs = tree_map(lambda leaf: leaf.here if isinstance(leaf, There) else leaf, (args, kwargs))
    found = function(*args, **kwargs)
    if not wrap:
        return found

    def wrapped(leaf: Any) -> Any:
        return known.get(id(leaf), There(leaf)) if isinstance(leaf, Tensor) else leaf

    return tree_map(wrapped, found)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(function, args, kwargs or {})


@contextmanager
def elsewhere() -> Iterator[None]:
    with _Mode():
        yield
