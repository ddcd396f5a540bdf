"""Plain reference for the published Once-for-All supernets: generated weights, and sub-networks computed from them.

Independent of the library on purpose: it is what the library is judged by.
"""

import math
import random
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
Arch = dict[str, Any]

FAMILIES = ("mbv3_w1.0", "mbv3_w1.2", "proxyless_w1.3", "resnet50d")
STYLES = ("conv", "mobile_inverted_conv", "bare", "mobile_bare")

MBV3_BASE = (24, 40, 80, 112, 160)
MBV3_STRIDES = (2, 2, 2, 1, 2)
MBV3_ACTS = ("relu", "relu", "hswish", "hswish", "hswish")
MBV3_SE = (False, True, False, True, True)

PROXYLESS_BASE = (24, 40, 80, 96, 192, 320)
PROXYLESS_STRIDES = (2, 2, 2, 1, 2, 1)

RESNET_BASE = (256, 512, 1024, 2048)
RESNET_STRIDES = (1, 2, 2, 2)
RESNET_BLOCKS = (4, 4, 6, 4)
RESNET_WIDTHS = (0.65, 0.8, 1.0)
RESNET_EXPANDS = (0.2, 0.25, 0.35)


def divisible(value: float) -> int:
    """Round to a multiple of 8, never below 8 and never below 0.9 of the value."""
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded


def mobile_middle(c_in: int, expand: int) -> int:
    """Middle channels of an inverted bottleneck."""
    return divisible(round(c_in * expand))


def resnet_middle(c_out: int, expand: float) -> int:
    """Middle channels of a ResNet bottleneck."""
    return divisible(round(c_out * expand))


def stem_widths(w_middle: float, w_output: float) -> tuple[int, int]:
    """Middle and output channels of the ResNet stem."""
    return divisible(divisible(64 * w_middle) // 2), divisible(64 * w_output)


def slots_per_unit(family: str) -> list[int]:
    """Largest number of blocks in each unit or stage."""
    if family == "resnet50d":
        return list(RESNET_BLOCKS)
    return [4] * 5 + [1] if family == "proxyless_w1.3" else [4] * 5


def mobile_units(family: str) -> list[tuple[int, int, str, bool]]:
    """Output channels, stride, activation and squeeze-excite of each elastic unit."""
    if family == "proxyless_w1.3":
        return [
            (divisible(base * 1.3), stride, "relu6", False)
            for base, stride in zip(PROXYLESS_BASE, PROXYLESS_STRIDES, strict=True)
        ]
    mult = mobile_mult(family)
    return [
        (divisible(base * mult), stride, act, se)
        for base, stride, act, se in zip(MBV3_BASE, MBV3_STRIDES, MBV3_ACTS, MBV3_SE, strict=True)
    ]


def mobile_mult(family: str) -> float:
    """Width multiplier of a mobile family."""
    return {"mbv3_w1.0": 1.0, "mbv3_w1.2": 1.2, "proxyless_w1.3": 1.3}[family]


# ---------------------------------------------------------------------------------------------------- weights


def add_bn(shapes: Shapes, prefix: str, channels: int) -> None:
    """Names and shapes of one batch norm."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"{prefix}.{name}"] = (channels,)
    shapes[f"{prefix}.num_batches_tracked"] = ()


def add_static(shapes: Shapes, prefix: str, c_out: int, c_in: int, k: int) -> None:
    """Names and shapes of a fixed convolution with its batch norm; c_in is 1 for a depthwise one."""
    shapes[f"{prefix}.conv.weight"] = (c_out, c_in, k, k)
    add_bn(shapes, f"{prefix}.bn", c_out)


def add_dynamic(shapes: Shapes, prefix: str, c_out: int, c_in: int, k: int) -> None:
    """Names and shapes of an elastic convolution with its batch norm."""
    shapes[f"{prefix}.conv.conv.weight"] = (c_out, c_in, k, k)
    add_bn(shapes, f"{prefix}.bn.bn", c_out)


def mobile_shapes(family: str, num_classes: int) -> Shapes:
    """All tensors of a MobileNetV3 or ProxylessNAS supernet."""
    shapes: Shapes = {}
    mult = mobile_mult(family)
    proxyless = family == "proxyless_w1.3"
    stem = divisible((32 if proxyless else 16) * mult)
    c_in = divisible(16 * mult)
    add_static(shapes, "first_conv", stem, 3, 3)
    add_static(shapes, "blocks.0.conv.depth_conv", stem, 1, 3)
    add_static(shapes, "blocks.0.conv.point_linear", c_in, stem, 1)
    index = 1
    for (c_out, _, _, se), slots in zip(mobile_units(family), slots_per_unit(family), strict=True):
        for _ in range(slots):
            block = f"blocks.{index}.conv"
            mid = mobile_middle(c_in, 6)
            add_dynamic(shapes, f"{block}.inverted_bottleneck", mid, c_in, 1)
            add_dynamic(shapes, f"{block}.depth_conv", mid, 1, 7)
            shapes[f"{block}.depth_conv.conv.7to5_matrix"] = (25, 25)
            shapes[f"{block}.depth_conv.conv.5to3_matrix"] = (9, 9)
            if se:
                hidden = divisible(mid // 4)
                shapes[f"{block}.depth_conv.se.fc.reduce.weight"] = (hidden, mid, 1, 1)
                shapes[f"{block}.depth_conv.se.fc.reduce.bias"] = (hidden,)
                shapes[f"{block}.depth_conv.se.fc.expand.weight"] = (mid, hidden, 1, 1)
                shapes[f"{block}.depth_conv.se.fc.expand.bias"] = (mid,)
            add_dynamic(shapes, f"{block}.point_linear", c_out, mid, 1)
            c_in = c_out
            index += 1
    features = divisible(1280 * mult)
    if proxyless:
        add_static(shapes, "feature_mix_layer", features, c_in, 1)
    else:
        wide = divisible(960 * mult)
        add_static(shapes, "final_expand_layer", wide, c_in, 1)
        shapes["feature_mix_layer.conv.weight"] = (features, wide, 1, 1)
    shapes["classifier.linear.weight"] = (num_classes, features)
    shapes["classifier.linear.bias"] = (num_classes,)
    return shapes


def resnet_shapes(num_classes: int) -> Shapes:
    """All tensors of the ResNet-50D supernet."""
    shapes: Shapes = {}
    stem_mid, c_in = stem_widths(1.0, 1.0)
    add_dynamic(shapes, "input_stem.0", stem_mid, 3, 3)
    add_dynamic(shapes, "input_stem.1.conv", stem_mid, stem_mid, 3)
    add_dynamic(shapes, "input_stem.2", c_in, stem_mid, 3)
    index = 0
    for c_out, slots in zip(RESNET_BASE, RESNET_BLOCKS, strict=True):
        mid = resnet_middle(c_out, max(RESNET_EXPANDS))
        for position in range(slots):
            block = f"blocks.{index}"
            add_dynamic(shapes, f"{block}.conv1", mid, c_in, 1)
            add_dynamic(shapes, f"{block}.conv2", mid, mid, 3)
            add_dynamic(shapes, f"{block}.conv3", c_out, mid, 1)
            if position == 0:
                add_dynamic(shapes, f"{block}.downsample", c_out, c_in, 1)
            c_in = c_out
            index += 1
    shapes["classifier.linear.linear.weight"] = (num_classes, c_in)
    shapes["classifier.linear.linear.bias"] = (num_classes,)
    return shapes


def draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Generated values for one tensor, by the role its name says."""
    if name.endswith("num_batches_tracked"):
        return torch.randint(1, 1000, shape, generator=generator)
    if name.endswith("_matrix"):
        return torch.eye(shape[0]) + 0.05 * torch.randn(shape, generator=generator)
    if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
        return 0.5 + torch.rand(shape, generator=generator)
    if len(shape) == 1:
        return 0.1 * torch.randn(shape, generator=generator)
    # He, but less where no activation follows, and least where blocks add up: the deepest networks stay in range.
    gain = 2.0
    if ".conv3." in name:
        gain = 0.25
    elif "point_linear" in name:
        gain = 0.7
    elif "downsample" in name or "classifier" in name:
        gain = 1.0
    values = math.sqrt(gain / math.prod(shape[1:])) * torch.randn(shape, generator=generator)
    if shape[1:] == (1, 7, 7):
        # Most of the energy in the centre, as trained kernels have: the 5x5 and 3x3 in there keep the signal alive too.
        offset = (torch.arange(7) - 3).abs()
        profile = torch.tensor([1.0, 1.0, 0.5, 0.25])[torch.maximum(offset[:, None], offset[None, :])]
        values = values * profile / profile.square().mean().sqrt()
    return values


def rename(name: str, family: str, style: str) -> str:
    """A name of the style "conv" in another style."""
    if style in ("bare", "mobile_bare"):
        name = name.replace(".bn.bn.", ".bn.").replace(".conv.conv.weight", ".conv.weight")
        name = name.replace(".linear.linear.", ".linear.")
    if style in ("mobile_inverted_conv", "mobile_bare") and family != "resnet50d":
        name = re.sub(r"^blocks\.(\d+)\.conv\.", r"blocks.\1.mobile_inverted_conv.", name)
    return name


def supernet_weights(family: str, generator: torch.Generator, num_classes: int = 1000, style: str = "conv") -> Weights:
    """Generated weights of a whole supernet, named as the published checkpoints name them."""
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}: one of {', '.join(FAMILIES)}")
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}: one of {', '.join(STYLES)}")
    shapes = resnet_shapes(num_classes) if family == "resnet50d" else mobile_shapes(family, num_classes)
    return {rename(name, family, style): draw(name, shape, generator) for name, shape in shapes.items()}


# ---------------------------------------------------------------------------------------------------- forward


def activate(x: Tensor, act: str) -> Tensor:
    """An activation by name."""
    if act == "relu":
        return F.relu(x)
    if act == "relu6":
        return F.relu6(x)
    if act == "hswish":
        return x * F.relu6(x + 3) / 6
    raise ValueError(f"unknown activation {act!r}")


def batch_norm(weights: Weights, prefix: str, x: Tensor, eps: float) -> Tensor:
    """Batch norm with the running statistics of the leading channels."""
    c = x.shape[1]
    return F.batch_norm(
        x,
        weights[f"{prefix}.running_mean"][:c],
        weights[f"{prefix}.running_var"][:c],
        weights[f"{prefix}.weight"][:c],
        weights[f"{prefix}.bias"][:c],
        training=False,
        eps=eps,
    )


def conv(weight: Tensor, x: Tensor, stride: int = 1) -> Tensor:
    """A dense convolution that keeps the size (before its stride)."""
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)


def depthwise(weight: Tensor, x: Tensor, stride: int = 1) -> Tensor:
    """A depthwise convolution that keeps the size (before its stride)."""
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=x.shape[1])


def dynamic_conv(weights: Weights, prefix: str, x: Tensor, c_out: int, stride: int = 1) -> Tensor:
    """An elastic dense convolution with its batch norm: the leading output and input channels."""
    weight = weights[f"{prefix}.conv.conv.weight"][:c_out, : x.shape[1]]
    return batch_norm(weights, f"{prefix}.bn.bn", conv(weight, x, stride), 1e-5)


def elastic_kernel(weights: Weights, prefix: str, channels: int, k: int) -> Tensor:
    """The k x k depthwise kernel of the leading channels: 7 -> 5 -> 3, each step a learned matrix."""
    kernel = weights[f"{prefix}.conv.weight"][:channels]
    if k == 7:
        return kernel
    flat = kernel[:, :, 1:6, 1:6].reshape(channels, 25)
    kernel = F.linear(flat, weights[f"{prefix}.7to5_matrix"]).reshape(channels, 1, 5, 5)
    if k == 5:
        return kernel
    flat = kernel[:, :, 1:4, 1:4].reshape(channels, 9)
    return F.linear(flat, weights[f"{prefix}.5to3_matrix"]).reshape(channels, 1, 3, 3)


def squeeze_excite(weights: Weights, prefix: str, x: Tensor) -> Tensor:
    """Squeeze-excite over the leading channels and the leading hidden ones."""
    c = x.shape[1]
    hidden = divisible(c // 4)
    scale = x.mean(dim=(2, 3), keepdim=True)
    scale = F.conv2d(scale, weights[f"{prefix}.reduce.weight"][:hidden, :c], weights[f"{prefix}.reduce.bias"][:hidden])
    scale = F.relu(scale)
    scale = F.conv2d(scale, weights[f"{prefix}.expand.weight"][:c, :hidden], weights[f"{prefix}.expand.bias"][:c])
    return x * (F.relu6(scale + 3) / 6)


def mobile_block(
    weights: Weights,
    block: str,
    x: Tensor,
    *,
    c_out: int,
    k: int,
    expand: int,
    stride: int,
    act: str,
    se: bool,
    eps: float,
) -> Tensor:
    """One elastic inverted bottleneck, without its shortcut."""
    c_in = x.shape[1]
    mid = mobile_middle(c_in, expand)
    y = conv(weights[f"{block}.inverted_bottleneck.conv.conv.weight"][:mid, :c_in], x)
    y = activate(batch_norm(weights, f"{block}.inverted_bottleneck.bn.bn", y, eps), act)
    y = depthwise(elastic_kernel(weights, f"{block}.depth_conv.conv", mid, k), y, stride)
    y = activate(batch_norm(weights, f"{block}.depth_conv.bn.bn", y, eps), act)
    if se:
        y = squeeze_excite(weights, f"{block}.depth_conv.se.fc", y)
    y = conv(weights[f"{block}.point_linear.conv.conv.weight"][:c_out, :mid], y)
    return batch_norm(weights, f"{block}.point_linear.bn.bn", y, eps)


def mobile_forward(family: str, weights: Weights, arch: Arch, x: Tensor) -> Tensor:
    """Logits of a MobileNetV3 or ProxylessNAS sub-network."""
    proxyless = family == "proxyless_w1.3"
    eps = 1e-3 if proxyless else 1e-5

    x = conv(weights["first_conv.conv.weight"], x, stride=2)
    x = activate(batch_norm(weights, "first_conv.bn", x, eps), "relu6" if proxyless else "hswish")

    y = depthwise(weights["blocks.0.conv.depth_conv.conv.weight"], x)
    y = activate(batch_norm(weights, "blocks.0.conv.depth_conv.bn", y, eps), "relu6" if proxyless else "relu")
    y = conv(weights["blocks.0.conv.point_linear.conv.weight"], y)
    y = batch_norm(weights, "blocks.0.conv.point_linear.bn", y, eps)
    x = y if proxyless else x + y

    first_slot = 0
    units = mobile_units(family)
    for (c_out, stride, act, se), slots, depth in zip(units, slots_per_unit(family), arch["d"], strict=True):
        for position in range(depth):
            slot = first_slot + position
            y = mobile_block(
                weights,
                f"blocks.{slot + 1}.conv",
                x,
                c_out=c_out,
                k=arch["ks"][slot],
                expand=arch["e"][slot],
                stride=stride if position == 0 else 1,
                act=act,
                se=se,
                eps=eps,
            )
            x = y if position == 0 else x + y
        first_slot += slots

    if proxyless:
        x = conv(weights["feature_mix_layer.conv.weight"], x)
        x = activate(batch_norm(weights, "feature_mix_layer.bn", x, eps), "relu6")
        x = x.mean(dim=(2, 3))
    else:
        x = conv(weights["final_expand_layer.conv.weight"], x)
        x = activate(batch_norm(weights, "final_expand_layer.bn", x, eps), "hswish")
        x = x.mean(dim=(2, 3), keepdim=True)
        x = activate(conv(weights["feature_mix_layer.conv.weight"], x), "hswish").flatten(1)
    return F.linear(x, weights["classifier.linear.weight"], weights["classifier.linear.bias"])


def resnet_block(
    weights: Weights, block: str, x: Tensor, *, c_out: int, expand: float, stride: int, first: bool
) -> Tensor:
    """One elastic bottleneck with its shortcut."""
    mid = resnet_middle(c_out, expand)
    y = F.relu(dynamic_conv(weights, f"{block}.conv1", x, mid))
    y = F.relu(dynamic_conv(weights, f"{block}.conv2", y, mid, stride))
    y = dynamic_conv(weights, f"{block}.conv3", y, c_out)
    if first:
        x = F.avg_pool2d(x, kernel_size=stride, stride=stride, ceil_mode=True)
        x = dynamic_conv(weights, f"{block}.downsample", x, c_out)
    return F.relu(x + y)


def resnet_forward(weights: Weights, arch: Arch, x: Tensor) -> Tensor:
    """Logits of a ResNet-50D sub-network."""
    stem_mid, stem_out = stem_widths(arch["w"][0], arch["w"][1])
    x = F.relu(dynamic_conv(weights, "input_stem.0", x, stem_mid, stride=2))
    if not arch["skip"]:
        x = x + F.relu(dynamic_conv(weights, "input_stem.1.conv", x, stem_mid))
    x = F.relu(dynamic_conv(weights, "input_stem.2", x, stem_out))
    x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)

    first_slot = 0
    for stage in range(4):
        c_out = divisible(RESNET_BASE[stage] * arch["w"][2 + stage])
        for position in range(arch["d"][stage]):
            slot = first_slot + position
            x = resnet_block(
                weights,
                f"blocks.{slot}",
                x,
                c_out=c_out,
                expand=arch["e"][slot],
                stride=RESNET_STRIDES[stage] if position == 0 else 1,
                first=position == 0,
            )
        first_slot += RESNET_BLOCKS[stage]

    x = x.mean(dim=(2, 3))
    weight = weights["classifier.linear.linear.weight"][:, : x.shape[1]]
    return F.linear(x, weight, weights["classifier.linear.linear.bias"])


def forward(family: str, weights: Weights, arch: Arch, x: Tensor) -> Tensor:
    """Evaluation-mode logits of one sub-network, from weights named in the style "conv"."""
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}: one of {', '.join(FAMILIES)}")
    if family == "resnet50d":
        return resnet_forward(weights, arch, x)
    return mobile_forward(family, weights, arch, x)


# ---------------------------------------------------------------------------------------------- architectures


def random_arch(family: str, rng: random.Random) -> Arch:
    """A uniformly drawn architecture; slots beyond the depth have values too, which nothing reads."""
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}: one of {', '.join(FAMILIES)}")
    slots = slots_per_unit(family)
    if family == "resnet50d":
        return {
            "skip": rng.random() < 0.5,
            "d": [most - rng.choice((0, 1, 2)) for most in slots],
            "e": [rng.choice(RESNET_EXPANDS) for _ in range(sum(slots))],
            "w": [rng.choice(RESNET_WIDTHS) for _ in range(6)],
        }
    return {
        "d": [rng.choice((2, 3, 4)) if most == 4 else 1 for most in slots],
        "ks": [rng.choice((3, 5, 7)) for _ in range(sum(slots))],
        "e": [rng.choice((3, 4, 6)) for _ in range(sum(slots))],
    }
