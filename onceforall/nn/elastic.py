"""Elastic blocks: each holds the tensors of its largest form, and is given the form to compute at every call.

There is one implementation of a block, its plain module. A form of it is that module without weights of its own,
a `Shell`, which borrows slices of the largest form's tensors while it computes; extraction copies those same slices.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onceforall.layers import LayerSpec, registered
from onceforall.nn.fast_cpu import run
from onceforall.nn.plain import Bottleneck, InvertedResidual
from onceforall.nn.subnet import arguments, build_layer, imported, maker

Tensors = dict[str, Tensor]


def elastic(largest: LayerSpec, forms: Iterable[LayerSpec] = ()) -> Elastic:
    """The elastic block of a layer: the largest of its forms, and all of them where there are others.

    Raises InvalidConfiguration for a layer that nobody registered.
    """
    block: Elastic = imported(registered(largest).elastic)(largest, tuple(forms))
    return block


class Elastic(nn.Module):
    """A block of a supernet: each form has the leading part of every tensor of the largest."""

    def __init__(self, largest: LayerSpec, forms: Sequence[LayerSpec] = ()) -> None:
        super().__init__()
        self.largest = largest
        self.full: Any = build_layer(largest)

    def forward(self, x: Tensor, spec: LayerSpec) -> Tensor:
        """The output of the form `spec` of this block."""
        return _shell(spec, threading.get_ident())(x, self.slice(spec), self.training)

    def slice(self, spec: LayerSpec) -> Tensors:
        """The tensors of the form `spec`, by their names in the plain layer; views where nothing is computed."""
        shell = _shell(spec, threading.get_ident())
        tensors = zip(shell.shapes.items(), shell.tensors_of(self.full), strict=True)
        return {name: leading(tensor, *shape) for (name, shape), tensor in tensors}

    def extract(self, spec: LayerSpec) -> nn.Module:
        """The form `spec` as a plain module with copies of its tensors."""
        return _shell(spec, threading.get_ident()).filled(self.slice(spec))

    def sort_channels(self, trained: Iterable[LayerSpec] = ()) -> None:
        """Put the most important middle channels first; the largest form's function does not change.

        The channels of forms that were already trained stay in front.
        """


class ElasticMBConv(Elastic):
    """An inverted residual block with elastic kernel size and elastic input, middle and output channels."""

    full: InvertedResidual

    def __init__(self, largest: LayerSpec, forms: Sequence[Any] = ()) -> None:
        super().__init__(largest)
        kernels = sorted({form.kernel for form in forms if form.kernel < self.full.depthwise.conv.kernel_size[0]})
        # One matrix for each kernel below the largest, shared by all channels; identity at the start.
        self.transforms = nn.ParameterDict({str(size): nn.Parameter(torch.eye(size * size)) for size in kernels})

    def slice(self, spec: Any) -> Tensors:
        weight = leading(self.full.depthwise.conv.weight, spec.mid_channels)
        kernel = transform_kernel(weight, spec.kernel, dict(self.transforms.items()))
        return super().slice(spec) | {"depthwise.conv.weight": kernel}

    @torch.no_grad()
    def sort_channels(self, trained: Iterable[Any] = ()) -> None:
        """As in Elastic. Importance is the L1 norm of the projection's input weights; of squeeze-excite's
        hidden channels, that of their expanding weights.
        """
        full, forms = self.full, list(trained)
        if not hasattr(full, "expand"):
            return
        se = getattr(full, "se", None)
        middle = [full.expand, full.depthwise, *([se.expand] if se else [])]
        readers = [full.project.conv, *([se.reduce] if se else [])]
        sort(readers, middle, {form.mid_channels for form in forms})
        if se:
            sort([se.expand], [se.reduce], {form.se_channels for form in forms})


class ElasticBottleneck(Elastic):
    """A residual bottleneck block with elastic input, middle and output channels."""

    full: Bottleneck

    @torch.no_grad()
    def sort_channels(self, trained: Iterable[Any] = ()) -> None:
        """As in Elastic. Both layers of middle channels are sorted, each by the L1 norm of the weights that read it."""
        main: Any = self.full.main
        trained_channels = {form.mid_channels for form in trained}
        for before, after in ((main.conv, main.restore), (main.reduce, main.conv)):
            sort([after.conv], [before], trained_channels)


class Shell:
    """The plain module of one form without weights: it computes with tensors that are lent to it for a call."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.shapes = {name: tuple(holder[key].shape) for name, holder, key in _places(module)}
        self._getters = [attrgetter(name) for name in self.shapes]
        for _, holder, key in _places(module):
            if key == "num_batches_tracked":  # a supernet's batch norms do not count: their momentum is fixed
                holder[key] = None
        self._borrowed = [(*place, place[1][place[2]]) for place in _places(module)]

    def tensors_of(self, module: nn.Module) -> list[Tensor]:
        """The tensors of another module that this one has under the same names."""
        return [get(module) for get in self._getters]

    def __call__(self, x: Tensor, tensors: Mapping[str, Tensor], training: bool) -> Tensor:
        if self.module.training != training:
            self.module.train(training)
        for name, holder, key, _ in self._borrowed:
            holder[key] = tensors[name]
        try:
            return run(self.module, x)
        finally:
            for _, holder, key, own in self._borrowed:
                holder[key] = own

    def filled(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """A module of its own with copies of the tensors, in evaluation mode: building it takes ten times as long."""
        module = _unshared(self.module)
        for prefix, part in module.named_modules():
            for holder in (part._parameters, part._buffers):
                for key in holder:
                    tensor = tensors.get(f"{prefix}.{key}" if prefix else key)
                    if tensor is not None:
                        tensor = tensor.detach().clone()
                        holder[key] = nn.Parameter(tensor) if holder is part._parameters else tensor
        return module


def _places(network: nn.Module) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Of each tensor of a network its name, the dictionary in which its module looks it up, and the key there."""
    for prefix, module in network.named_modules():
        for holder in (module._parameters, module._buffers):
            for key, tensor in holder.items():
                if tensor is not None:
                    yield f"{prefix}.{key}" if prefix else key, holder, key


def _unshared(module: nn.Module) -> nn.Module:
    """The module again, in evaluation mode, with containers and children of its own."""
    copy = object.__new__(type(module))
    own = vars(copy)
    for name, value in vars(module).items():
        if isinstance(value, dict | list | set):  # most are empty, which is quicker to make than to copy
            value = value.copy() if value else type(value)()
        own[name] = value
    own["training"] = False
    for name, child in copy._modules.items():
        copy._modules[name] = child and _unshared(child)
    return copy


@lru_cache(maxsize=1024)
def _shell(spec: LayerSpec, thread: int) -> Shell:
    """The shell of a form: one a thread, because it belongs to the call that computes with it."""
    return _shell_of(maker(spec), tuple(arguments(spec).items()), thread)


@lru_cache(maxsize=1024)
def _shell_of(make: Callable[..., nn.Module], given: tuple[tuple[str, Any], ...], thread: int) -> Shell:
    """Most modules do not ask for the size of the map: forms for several resolutions share a shell."""
    with torch.device("meta"):
        return Shell(make(**dict(given)))


def leading(tensor: Tensor, *sizes: int) -> Tensor:
    """The first entries along each leading dimension: a view, or the tensor itself where nothing is cut."""
    for dim, size in enumerate(sizes):
        if size != tensor.shape[dim]:
            tensor = tensor.narrow(dim, 0, size)
    return tensor


def transform_kernel(weight: Tensor, kernel: int, transforms: Mapping[str, Tensor]) -> Tensor:
    """A smaller depthwise kernel (paper, section 3.3 and figure 3): the centre of the next larger one, times a learned
    matrix, down to `kernel`.

    `weight` is [channels, 1, k, k]; `transforms["5"]` is [25, 25], `transforms["3"]` [9, 9].
    Each step starts from the kernel that the step before made (7 -> 5 -> 3).
    """
    for size in sorted(map(int, transforms), reverse=True):
        if weight.shape[-1] <= kernel:
            break
        margin = (weight.shape[-1] - size) // 2
        centre = weight[:, :, margin : margin + size, margin : margin + size].reshape(weight.shape[0], size * size)
        weight = F.linear(centre, transforms[str(size)]).view(-1, 1, size, size)
    return weight


def sort(readers: Sequence[nn.Conv2d], parts: Sequence[nn.Module], trained: Iterable[int]) -> None:
    """Sort channels, in place, by the L1 norm of the weights [out, in, k, k] with which the first reader reads them.

    `readers` have them as inputs; all tensors of `parts` have them along their first dimension. `trained` are
    the numbers of channels of forms that were trained: theirs stay in front.
    """
    weight = readers[0].weight
    boundaries = sorted({count for count in trained if count < weight.shape[1]})
    order = order_by_importance(weight.abs().sum(dim=(0, 2, 3)), tuple(boundaries))
    for reader in readers:
        reader.weight.copy_(reader.weight.index_select(1, order))
    for part in parts:
        for tensor in (*part.parameters(), *part.buffers()):
            if tensor.ndim:  # a batch norm's count of batches has no channels
                tensor.copy_(tensor.index_select(0, order))


def order_by_importance(importance: Tensor, boundaries: tuple[int, ...]) -> Tensor:
    """Indices that sort by descending importance inside each range between boundaries.

    Channels of an already trained smaller width stay in front of the others.
    """
    edges = [0, *boundaries, len(importance)]
    ranges = [
        start + torch.argsort(importance[start:end], descending=True, stable=True)
        for start, end in itertools.pairwise(edges)
    ]
    return torch.cat(ranges)
