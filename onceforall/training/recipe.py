"""Recipes: what is elastic when, for how long, with which learning rate, sub-networks, teacher and loss.

The functions return the named ones; each says what it claims. `epochs` is the one number that scales
a schedule, learning rates are the paper's for a batch of 2,048 images and scale with the batch size
(and `learning_rate_scale`), and `settings` are those of `Recipe`, or momentum and weight_decay of SGD.
`default` chooses for a space. A recipe of your own is a `Recipe` of `Phase`s, with samplers, losses and
optimisers from the modules of these names, or your own.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypedDict, Unpack

from onceforall.checks import check_integer
from onceforall.choices import Choices
from onceforall.errors import InvalidConfiguration
from onceforall.layers import operations_of
from onceforall.registry import Registry
from onceforall.sizes import height_width
from onceforall.space import SearchSpace
from onceforall.training import losses, optimizers, samplers
from onceforall.training.losses import DistillationLoss
from onceforall.training.optimizers import AdamW, Optimizer
from onceforall.training.schedule import ALL, OPEN, Phase, Recipe

__all__ = [
    "ALL",
    "BY_NAME",
    "OPEN",
    "Phase",
    "Recipe",
    "by_name",
    "default",
    "delayed_shrinking",
    "finetune",
    "losses",
    "optimizers",
    "progressive_shrinking",
    "random_order",
    "samplers",
    "sandwich",
    "standalone",
]

PAPER_BATCH = 2048
PAPER_EPOCHS = (180, 125, 25, 125, 25, 125)
PAPER_WARMUP = 5

# Images below this size (px) are small; what recipes are given for those (benchmarks/shrinking.py).
IMAGENET_SIZE = 128
SMALL: dict[str, dict[str, Any]] = {
    "random_order": {"epochs": 45, "subnets": 1},
    "progressive_shrinking": {"epochs": (20, 5, 1, 3, 1, 4)},
}
ADAMW_SCALE = 8e-4 / (2.6 * 128 / PAPER_BATCH)  # of rates that are those of SGD


class Settings(TypedDict, total=False):
    """What every recipe takes: fields of `Recipe`, or of its optimiser (`SGD` where none is given)."""

    optimizer: Optimizer
    momentum: float
    weight_decay: float
    label_smoothing: float
    clip_norm: float
    batch_norm_size: int


def progressive_shrinking(
    epochs: float | Sequence[int] = sum(PAPER_EPOCHS),
    batch_size: int = PAPER_BATCH,
    learning_rate_scale: float = 1.0,
    **settings: Unpack[Settings],
) -> Recipe:
    """Progressive shrinking: full, kernel, depth 1, depth 2, width 1, width 2 (paper, section 3.3 and appendix B).

    Claim: small sub-networks fine-tuned from large ones, with the large one as teacher, disturb it
    least, so that all become as good as if trained alone.

    The default is the paper's schedule for ImageNet: 605 epochs, batch 2,048 (its 32 x 64 images are
    `batch_norm_size` 64). `epochs` is the length of all six phases together, which keep their
    proportions (each has at least one epoch), or the six lengths. Warm-up takes 5 of 180 or 125
    epochs, rounded, in the long phases. Other choices than the paper's, such as width multipliers, open
    with the expand ratios; what a space has beyond the paper's three choices, in the last phase of its kind.
    """
    if isinstance(epochs, Sequence):
        lengths = tuple(epochs)
        if len(lengths) != 6:
            raise InvalidConfiguration(
                f"epochs {lengths}: give one number, or six (full, kernel, depth 1, depth 2, width 1, width 2)"
            )
    else:
        if not epochs >= 1:
            raise InvalidConfiguration(f"epochs {epochs}: expected at least 1")
        lengths = tuple(max(1, round(length * epochs / sum(PAPER_EPOCHS))) for length in PAPER_EPOCHS)
    rate = partial(_rate, batch_size=batch_size, scale=learning_rate_scale)
    full, kernel, depth1, depth2, width1, width2 = lengths
    deep = {"kernel": ALL, "depth": ALL}
    wide: dict[str, Any] = {"subnets": 4, "teacher": "frozen", "sort_channels": True}
    phases = (
        Phase("full", full, rate(2.6), _warmup(full, 180)),
        Phase("kernel", kernel, rate(0.96), _warmup(kernel, 125), {"kernel": ALL}, teacher="frozen"),
        Phase("depth 1", depth1, rate(0.08), 0, {"kernel": ALL, "depth": 2}, subnets=2, teacher="frozen"),
        Phase("depth 2", depth2, rate(0.24), _warmup(depth2, 125), deep, subnets=2, teacher="frozen"),
        Phase("width 1", width1, rate(0.08), 0, {"*": 2, **deep}, **wide),
        Phase("width 2", width2, rate(0.24), _warmup(width2, 125), OPEN, **wide),
    )
    return _with(Recipe("progressive_shrinking", phases, batch_size), settings)


def sandwich(
    epochs: int = 180,
    batch_size: int = PAPER_BATCH,
    learning_rate_scale: float = 1.0,
    loss: str | DistillationLoss = "kl",
    subnets: int = 4,
    hard: float = 0.0,
    **settings: Unpack[Settings],
) -> Recipe:
    """Sandwich rule with in-place distillation, in a single stage (Yu and Huang, 2019; Yu et al., "BigNAS", 2020).

    Claim: training the largest, the smallest and two random sub-networks in every step lifts all of
    them together, and the largest is teacher enough while it learns. It learns from labels, the
    others from its softmax alone, and with the weight `hard` from labels as well. `loss` "alpha" is the
    adaptive alpha-divergence (Wang et al., 2021), which punishes a student that is too sure as well as
    one that is too unsure. Gradients are clipped at norm 1 unless `clip_norm` says otherwise.
    """
    check_integer("subnets", subnets, 2)
    settings.setdefault("clip_norm", 1.0)
    rate = _rate(2.6, batch_size, learning_rate_scale)
    phase = Phase(
        "sandwich",
        epochs,
        rate,
        _warmup(epochs, 180),
        OPEN,
        samplers.Sandwich(),
        subnets=subnets,
        teacher="in_place",
        loss=DistillationLoss.from_json(loss) if isinstance(loss, str) else loss,
        hard=hard,
    )
    return _with(Recipe("sandwich", (phase,), batch_size), settings)


def random_order(
    epochs: int = 180,
    batch_size: int = PAPER_BATCH,
    learning_rate_scale: float = 1.0,
    subnets: int = 4,
    **settings: Unpack[Settings],
) -> Recipe:
    """Every choice open from the first step, random sub-networks, labels alone (paper, section 4.2: its baseline).

    Claim: none; it is what the other recipes have to beat. In 40 sub-network-epochs on CIFAR-10 none of
    them did (`benchmarks/shrinking.py`).
    """
    rate = _rate(2.6, batch_size, learning_rate_scale)
    phase = Phase("random", epochs, rate, _warmup(epochs, 180), OPEN, subnets=subnets)
    return _with(Recipe("random_order", (phase,), batch_size), settings)


def delayed_shrinking(
    epochs: int = 180,
    batch_size: int = PAPER_BATCH,
    learning_rate_scale: float = 1.0,
    loss: str | DistillationLoss = "kl",
    subnets: int = 4,
    **settings: Unpack[Settings],
) -> Recipe:
    """Shrink when the largest network is half trained (Annavajjala et al., "Delayed epsilon-shrinking", 2024).

    Claim: sub-networks inherit from a network that already knows something, yet can still move; so
    they need fewer steps than from the start, and better shared weights than after its end. One
    cosine spans both phases: the largest network alone through its first half, then the sandwich,
    whose smaller sub-networks begin with a rate of 0 that rises over a fifth of the second phase.
    """
    check_integer("epochs", epochs, 2)
    alone, shared = epochs - epochs // 2, epochs // 2
    second = sandwich(shared, batch_size, learning_rate_scale, loss, subnets, **settings)
    shrink = replace(
        second.phases[0],
        name="shrink",
        warmup_epochs=0,
        ramp_epochs=max(1, round(shared / 5)),
        cosine=(0.5, 1.0),
        sort_channels=True,
    )
    full = Phase("full", alone, shrink.learning_rate, _warmup(alone, 180), cosine=(0.0, 0.5))
    return replace(second, name="delayed_shrinking", phases=(full, shrink))


def standalone(
    epochs: int = 180, batch_size: int = PAPER_BATCH, learning_rate_scale: float = 1.0, **settings: Unpack[Settings]
) -> Recipe:
    """The first phase of progressive shrinking by itself: for a `Network`, one architecture that shares nothing.

    Claim: none; it is what a sub-network of a supernet should reach. Of a supernet it trains the
    largest network.
    """
    first = progressive_shrinking((epochs, 0, 0, 0, 0, 0), batch_size, learning_rate_scale, **settings)
    return replace(first, name="standalone", phases=(replace(first.phases[0], name="alone"),))


def finetune(
    epochs: int = 25, batch_size: int = PAPER_BATCH, learning_rate_scale: float = 1.0, **settings: Unpack[Settings]
) -> Recipe:
    """Go on with an extracted network, on labels alone: 25 or 75 epochs (paper, table 2: "#25" and "#75").

    Claim: what sharing weights cost a network comes back in a few epochs. The paper does not give
    the rate; this is that of the last phase of shrinking, 0.24 for 2,048 images, along a cosine.
    """
    phase = Phase("finetune", epochs, _rate(0.24, batch_size, learning_rate_scale))
    return _with(Recipe("finetune", (phase,), batch_size), settings)


OURS = (progressive_shrinking, sandwich, random_order, delayed_shrinking, standalone, finetune)
BY_NAME: Registry[Callable[..., Recipe]] = Registry(
    "recipe", "onceforall.recipes", {recipe.__name__: recipe for recipe in OURS}
)


def by_name(name: str, **given: Any) -> Recipe:
    """The named recipe, ours or an installed package's (entry points `onceforall.recipes`).

    Any recipe takes the `Settings` and a `learning_rate_scale`: what its function does not name is set in
    what it returns. Raises InvalidConfiguration where there is none, or it does not take what is given.
    """
    make = BY_NAME[name]
    own = inspect.signature(make).parameters
    settings = {key: given.pop(key) for key in Settings.__annotations__ if key in given and key not in own}
    scale = given.pop("learning_rate_scale", 1.0) if "learning_rate_scale" not in own else 1.0
    if make in OURS and make is not progressive_shrinking and not isinstance(given.get("epochs", 0), int):
        raise InvalidConfiguration(f"epochs {given['epochs']}: recipe {name} takes one whole number")
    try:
        recipe = _with(make(**given), settings)
    except TypeError as error:
        raise InvalidConfiguration(f"recipe {name} does not take that: {error}") from error
    phases = tuple(replace(phase, learning_rate=scale * phase.learning_rate) for phase in recipe.phases)
    return replace(recipe, phases=phases)


def default(
    space: Choices,
    name: str | None = None,
    *,
    epochs: float | Sequence[int] | None = None,
    batch_size: int | None = None,
    **given: Any,
) -> Recipe:
    """The recipe for a space where nothing else is known: what the command line trains with.

    Spaces for small images (the largest below 128 px) get `random_order` with one sub-network a step,
    batches of 128 and a weight decay of 2e-4 (`benchmarks/shrinking.py`); others the paper's
    `progressive_shrinking`, and batch norm over 64 images or what divides a process's share. Networks
    with attention get AdamW, gradients clipped at norm 1, and rates that peak at 8e-4 for 128 images; in
    `sandwich` all of them learn from labels, because what students learn from a teacher that knows nothing yet
    pulls it back (`benchmarks/README.md`). What is given, `name`, `epochs` or any setting of the recipe, takes
    the place of that; None is not given.
    An installed package's recipe gets what is given alone.
    Raises InvalidConfiguration as `by_name` does.
    """
    small = max(height_width(space.resolutions[-1])) < IMAGENET_SIZE
    name = name or ("random_order" if small else "sandwich" if has_attention(space) else "progressive_shrinking")
    settings: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, **given}
    settings = {key: value for key, value in settings.items() if value is not None}
    if BY_NAME[name] not in OURS:
        return by_name(name, **settings)  # which knows its own defaults
    if small:
        ours = {"batch_size": 128, **SMALL.get(name, {})}
    else:
        ours = {"batch_norm_size": _chunk(settings.get("batch_size", PAPER_BATCH))}
    if "optimizer" not in settings and has_attention(space):
        decay = {key: settings.pop(key) for key in ("weight_decay",) if key in settings}
        ours |= {"optimizer": AdamW(**decay), "clip_norm": 1.0}
        settings["learning_rate_scale"] = ADAMW_SCALE * settings.get("learning_rate_scale", 1.0)
        ours |= {"hard": 1.0} if name == "sandwich" else {}
    elif "optimizer" not in settings and small:
        ours["weight_decay"] = 2e-4
    return by_name(name, **ours | settings)


def has_attention(space: Choices) -> bool:
    """Whether networks of a space attend, which SGD hardly trains."""
    if not isinstance(space, SearchSpace):
        return False
    return any(operation.kind == "attention" for operation in operations_of(space.lower(space.smallest())))


def _chunk(batch: int) -> int:
    """The largest part of the paper's 64 images a chunk that divides what each process gets of a batch."""
    chunk = math.gcd(64, batch // int(os.environ.get("WORLD_SIZE", 1)))
    return chunk if chunk > 1 else 0


def _with(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with these settings; momentum and weight_decay are its optimiser's. TypeError where it has none."""
    own = {key: settings[key] for key in ("momentum", "weight_decay") if key in settings}
    if own and "optimizer" in settings:
        raise InvalidConfiguration(f"{', '.join(own)}: set it in the optimizer that is given, {settings['optimizer']}")
    optimizer: Any = recipe.optimizer
    rest = {key: value for key, value in settings.items() if key not in own}
    return replace(recipe, **{"optimizer": replace(optimizer, **own), **rest})


def _rate(paper: float, batch_size: int, scale: float) -> float:
    """A learning rate of the paper, in proportion to the batch."""
    check_integer("batch_size", batch_size, 2)
    return paper * scale * batch_size / PAPER_BATCH


def _warmup(length: int, paper: int) -> int:
    return min(length, round(PAPER_WARMUP * length / paper))
