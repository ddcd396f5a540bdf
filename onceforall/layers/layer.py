"""What a layer is, and the one entry that makes it known: `register`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from onceforall.errors import InvalidConfiguration
from onceforall.layers.operation import Operation
from onceforall.registry import Registry
from onceforall.serial import from_json, to_json
from onceforall.sizes import Size, height_width

Activation = Literal["relu", "relu6", "h_swish", "none"]
Maker = str | Callable[..., Any]  # "package.module:Name", imported where it is first needed, or the thing itself


class Layer:
    """One layer of a network as a value: a frozen dataclass with slots, whose costs follow from it and nothing else.

    A subclass has `in_size`, `out_size` (px), `in_channels`, `out_channels`, as fields or properties,
    and `operations`. `register` makes it known.
    """

    __slots__ = ()

    pools: ClassVar[bool] = False  # whether it makes one vector of an image: a classifier follows

    if TYPE_CHECKING:  # declared here and not defined: a dataclass would take them for defaults of its fields

        @property
        def in_size(self) -> Size: ...

        @property
        def out_size(self) -> Size: ...

        @property
        def in_channels(self) -> int: ...

        @property
        def out_channels(self) -> int: ...

        @property
        def operations(self) -> tuple[Operation, ...]:
            """What it does, in order."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """What its module takes of one image: [channels, height, width], unless a layer says otherwise."""
        return self.in_channels, *height_width(self.in_size)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image: those of convolutions, linear layers and attention, and no others."""
        return _totals(self)[0]

    @property
    def params(self) -> int:
        """Weights, biases, scale and shift of norms."""
        return _totals(self)[1]

    @property
    def key(self) -> str:
        """Equal for layers that take the same time; here the name and all fields."""
        values = (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
        texts = ("x".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in values)
        return ":".join([registered(self).name, *texts])


@dataclass(frozen=True, slots=True)
class KeepsChannels(Layer):
    """A layer with as many channels out as in."""

    in_size: Size
    channels: int

    @property
    def in_channels(self) -> int:
        return self.channels

    @property
    def out_channels(self) -> int:
        return self.channels


@dataclass(frozen=True)
class Entry:
    """How a layer is called in files, and what makes its module and its elastic form."""

    name: str
    module: Maker
    elastic: Maker


_SPECS: Registry[type[Layer]] = Registry("layer", "onceforall.layers", {})
_ENTRIES: dict[type[Layer], Entry] = {}


def register(name: str, spec: type[Layer], module: Maker, elastic: Maker = "onceforall.nn.elastic:Elastic") -> None:
    """Make a layer known to networks, costs and files.

    `module` makes its torch module: a class, or a function, whose arguments have the names of fields or
    properties of the spec; what is not there keeps its default. `elastic` is a class like
    `onceforall.nn.elastic.Elastic`, which takes the leading part of every tensor. Either may be
    "package.module:Name", so that a file without torch can say it. A layer that is defined again, as by a
    notebook's cell, takes its own place. An installed package says `name = "package.module:Spec"` under its entry
    points "onceforall.layers", and registers it in that module. Raises InvalidConfiguration where another layer has
    that name, or the key is that of the registered layer that it derives from.
    """
    if not (isinstance(spec, type) and issubclass(spec, Layer) and is_dataclass(spec) and callable(spec.__hash__)):
        raise InvalidConfiguration(f"{spec!r} is no layer: expected a frozen dataclass derived from Layer")
    origin = next(base for base in spec.__mro__ if "key" in vars(base))
    if origin is not spec and origin in _ENTRIES:
        raise InvalidConfiguration(
            f"{spec.__qualname__} has the key of {origin.__qualname__}, so that one would be taken for the other: "
            "give it a property `key` of its own, or key = Layer.key"
        )
    _SPECS.register(name, spec)
    _ENTRIES[spec] = Entry(name, module, elastic)


def registered(layer: Layer) -> Entry:
    """The entry of a layer. Raises InvalidConfiguration where nobody registered it."""
    entry = _ENTRIES.get(type(layer))
    if entry is None:
        spec = type(layer).__qualname__
        raise InvalidConfiguration(
            f"{spec} is no layer that was registered: call onceforall.layers.register('a name', {spec}, module=...) "
            f"once; known are {', '.join(_SPECS)}"
        )
    return entry


def operations_of(layers: Iterable[Layer]) -> Iterator[Operation]:
    """What the layers do, in order. Raises InvalidConfiguration for one that nobody registered."""
    for layer in layers:
        registered(layer)
        yield from layer.operations


@lru_cache(maxsize=100_000)
def _totals(layer: Layer) -> tuple[int, int]:
    operations = list(operations_of([layer]))
    return sum(operation.macs for operation in operations), sum(operation.params for operation in operations)


def layer_to_json(spec: Layer) -> dict[str, Any]:
    """A JSON object. Raises InvalidConfiguration for a layer that nobody registered."""
    return {"layer": registered(spec).name, **to_json(spec)}


def layer_from_json(value: Mapping[str, Any]) -> Layer:
    """The inverse of `layer_to_json`. Raises InvalidConfiguration where the form is wrong."""
    if not isinstance(value, Mapping):
        raise InvalidConfiguration(f"{value!r:.80} is no layer: expected a JSON object")
    given = dict(value)
    name = str(given.pop("layer", None))
    spec = _SPECS.find(name)
    if spec is None:
        raise InvalidConfiguration(f"{dict(value)} is no layer: layers are {', '.join(_SPECS)}")
    unknown = given.keys() - {field.name for field in fields(spec)}  # type: ignore[arg-type]
    if unknown:
        raise InvalidConfiguration(f"{dict(value)} is no layer: {name} has no {', '.join(sorted(unknown))}")
    return from_json(spec, given, f"a layer: {dict(value)}")
