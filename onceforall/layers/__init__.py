"""What a layer *is*: shapes, kernel, stride, activation. Costs follow from that and from nothing else.

Every consumer of an architecture reads these values: the builder of the plain network, the elastic blocks, the
costs, the exporters. A layer has `in_size`, `out_size` (px; a number where square, else (height, width)),
`in_channels`, `out_channels`, the `operations` that it is made of, from which `macs` and `params` follow, and a
`key` that is equal for layers that take the same time. A layer of one's own is a `Layer` and one call of `register`:

    @dataclass(frozen=True, slots=True)
    class ScaleSpec(Layer):
        in_size: Size
        channels: int
        ...

    register("scale", ScaleSpec, module="my_package.my_module:Scale")
"""

from onceforall.layers.layer import (
    Activation,
    Entry,
    Layer,
    layer_from_json,
    layer_to_json,
    operations_of,
    register,
    registered,
)
from onceforall.layers.operation import CONVOLUTIONS, KINDS, Operation, addition, convolution
from onceforall.layers.specs import BottleneckSpec, ConvSpec, LinearSpec, MaxPoolSpec, MBConvSpec, PoolSpec
from onceforall.sizes import Size, height_width, make_divisible, pixels, said, scaled, strided_size

LayerSpec = Layer  # as annotations call it

__all__ = [
    "CONVOLUTIONS",
    "KINDS",
    "Activation",
    "BottleneckSpec",
    "ConvSpec",
    "Entry",
    "Layer",
    "LayerSpec",
    "LinearSpec",
    "MBConvSpec",
    "MaxPoolSpec",
    "Operation",
    "PoolSpec",
    "Size",
    "addition",
    "convolution",
    "height_width",
    "layer_from_json",
    "layer_to_json",
    "make_divisible",
    "operations_of",
    "pixels",
    "register",
    "registered",
    "said",
    "scaled",
    "strided_size",
]
