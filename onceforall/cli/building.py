"""Commands that make supernets and networks: train, finetune, import, label."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from onceforall import spaces, zoo
from onceforall.cli import options
from onceforall.cli.common import (
    announce,
    app,
    command,
    console,
    data_source,
    is_first_process,
    load_model,
    notify,
    read_architecture,
)
from onceforall.data.dataset import Data
from onceforall.data.sources import lasting, open_data
from onceforall.errors import InvalidConfiguration
from onceforall.evaluate import measure
from onceforall.interop import import_file
from onceforall.nn.supernet import Network, Supernet
from onceforall.predict.labels import label as run_label
from onceforall.report.progress import Steps, Training
from onceforall.tasks import task_of
from onceforall.tasks.classification import other_classes
from onceforall.training import recipe as recipes
from onceforall.training.distributed import torch_device
from onceforall.training.recipe import Recipe
from onceforall.training.run import Precision
from onceforall.training.tensorboard import tensorboard as tensorboard_report
from onceforall.training.trainer import train as run_training

SMALL_SPACE = "mobilenet_v3_small_images"
RUN_FOLDER = "Run folder; one with a checkpoint is resumed."
WEIGHT_DECAY = "On convolutions and the classifier."


@app.command()
def train(
    out: Annotated[Path, typer.Option(help=RUN_FOLDER)],
    data: options.Data = None,
    space: Annotated[
        str | None, typer.Option(help=f"Search space: {', '.join(spaces.BY_NAME)}.", show_default=SMALL_SPACE)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Begin with the weights of this supernet instead, a known one or a run folder; "
            "for another number of classes with a new classifier."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help=f"Recipe: {', '.join(recipes.BY_NAME)}.",
            show_default="random_order for small images, else progressive_shrinking",
        ),
    ] = None,
    epochs: Annotated[
        str | None,
        typer.Option(
            help="Length of the schedule; for progressive shrinking also of its six phases, as 20,5,1,3,1,4.",
            show_default="small images: random_order 45, progressive_shrinking 20,5,1,3,1,4; else as for ImageNet",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Images a step over all processes.", show_default="128 for small images, else 2048"),
    ] = None,
    batch_norm_size: Annotated[
        int | None,
        typer.Option(
            help="Images that batch norm sees at once, and that run at once.",
            show_default="all of a process's for small images, else 64, or what divides its share",
        ),
    ] = None,
    learning_rate_scale: Annotated[float, typer.Option(help="Times the recipe's learning rates.")] = 1.0,
    weight_decay: Annotated[
        float | None,
        typer.Option(help=WEIGHT_DECAY, show_default="2e-4 for small images, else 3e-5"),
    ] = None,
    clip_norm: Annotated[
        float | None, typer.Option(help="Bound on the gradient's norm, 0 for none.", show_default="the recipe's")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="What sandwich and delayed_shrinking distil with: kl, alpha, cross_entropy.")
    ] = None,
    subnets: Annotated[
        int | None,
        typer.Option(
            help="Sub-networks a step of sandwich, random_order, delayed_shrinking.",
            show_default="4; 1 for random_order on small images",
        ),
    ] = None,
    architecture: Annotated[
        Path | None,
        typer.Option(help="Result of `ofa search` (or an architecture's JSON): train this network alone, no supernet."),
    ] = None,
    seed: options.Seed = 0,
    device: options.TorchDevice = "cpu",
    precision: options.PrecisionOption = "fp32",
    workers: options.Workers = None,
    tensorboard: options.TensorBoard = False,
) -> None:
    """Train a supernet -> OUT/supernet.safetensors.

    Stop it at any time: the same command goes on where it was, and OUT/state.json says what comes
    next. Losses, learning rates and scores on the label images go to OUT/log.jsonl. Several processes:
    torchrun --nproc-per-node 2 --max-restarts 3 --no-python ofa train --out ...
    """
    if model is not None and space is not None:
        raise InvalidConfiguration(f"--space {space}: --model {model} has its own; give one of both")
    entry = load_model(model, labels=False) if model is not None else None
    start = entry.supernet if entry else None
    if space is not None and space not in spaces.BY_NAME:
        raise InvalidConfiguration(f"--space {space}: choices are {', '.join(spaces.BY_NAME)}")
    make = spaces.BY_NAME[space or SMALL_SPACE]
    made = recipes.default(
        start.space if start else make(num_classes=2),
        recipe,
        epochs=_epochs(epochs),
        batch_size=batch_size,
        batch_norm_size=batch_norm_size,
        weight_decay=weight_decay,
        learning_rate_scale=learning_rate_scale,
        clip_norm=clip_norm,
        loss=loss,
        subnets=subnets,
    )
    source = data_source(data, model)
    images = open_data(source, notify, workers)
    if start:
        _fit_classes(start, images)
    if architecture is None:
        supernet = start or Supernet(make(**_classes(images)), seed)
        _run_training(supernet, images, source, made, out, seed, device, precision, tensorboard, entry)
        announce(out / "supernet.safetensors", f"; next: {command('label', '--model', out)}")
    else:
        arch = read_architecture(architecture)
        network = Network.of(start, arch) if start else Network(make(**_classes(images)), arch, seed)
        _run_training(network, images, source, made, out, seed, device, precision, tensorboard, entry)
        announce(out / "network.safetensors", "; ofa.load_network reads it")


@app.command()
def finetune(
    result: Annotated[Path, typer.Option(help="Result of `ofa search`, or an architecture's JSON.")],
    out: Annotated[Path, typer.Option(help=RUN_FOLDER)],
    model: options.Model = "cifar10",
    data: options.Data = None,
    epochs: Annotated[int, typer.Option(help="The paper's are 25 and 75.")] = 25,
    batch_size: Annotated[int, typer.Option(help="Images a step over all processes.")] = 128,
    learning_rate_scale: Annotated[float, typer.Option(help="Times the recipe's learning rate.")] = 1.0,
    weight_decay: Annotated[float, typer.Option(help=WEIGHT_DECAY)] = 3e-5,
    seed: options.Seed = 0,
    device: options.TorchDevice = "cpu",
    precision: options.PrecisionOption = "fp32",
    workers: options.Workers = None,
    tensorboard: options.TensorBoard = False,
) -> None:
    """Extract one sub-network and go on training it -> OUT/network.safetensors.

    Data of another number of classes give it a new classifier. Prints its score on the label images
    before and after, each with batch norm recalibrated.
    """
    architecture = read_architecture(result, model)
    entry = load_model(model, labels=False)
    supernet = entry.supernet
    source = data_source(data, model)
    images = open_data(source, notify, workers)
    _fit_classes(supernet, images)
    network = Network.of(supernet, architecture)
    before = measure(network, network.architecture, images, "label")
    made = recipes.finetune(epochs, batch_size, learning_rate_scale, weight_decay=weight_decay)
    _run_training(network, images, source, made, out, seed, device, precision, tensorboard, entry)
    after = measure(network, network.architecture, images, "label")
    score = task_of(images).score
    announce(out / "network.safetensors", f": {score.name} on label images {before:.2f} -> {score.text(after)}")


@app.command()
def label(
    model: Annotated[str, typer.Option(help="Run folder of `ofa train`, or a known supernet.")],
    data: options.Data = None,
    count: Annotated[
        int, typer.Option(help="Number of random sub-networks; at most a quarter as many uniform ones come on top.")
    ] = 560,
    distribution: Annotated[
        str,
        typer.Option(
            help="mixed (half random, half spread to the corners), random, spread, or macs (uniform over MACs)."
        ),
    ] = "mixed",
    device: options.TorchDevice = "cpu",
    precision: options.PrecisionOption = "fp32",
    seed: options.Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="JSONL to write or continue.", show_default="labels.jsonl in the run folder"),
    ] = None,
) -> None:
    """Measure sub-networks on the label images -> labels.jsonl, what the accuracy predictor learns from.

    Stop it at any time: the same command goes on. Several processes share the work:
    torchrun --nproc-per-node 2 --no-python ofa label --model ...
    """
    entry = load_model(model, labels=False)
    if out is None and not Path(model).is_dir():
        raise InvalidConfiguration(f"--model {model} is no run folder: say with --out where its labels go")
    path = out or entry.folder / "labels.jsonl"
    images = open_data(data_source(data, model), notify)
    with Steps(console) as report:
        run_label(
            entry.supernet.to(torch_device(device)),
            images,
            path,
            count=count,
            seed=seed,
            distribution=distribution,
            precision=precision,
            report=lambda done, total: report("sub-networks", done, total),
        )
    announce(path, f"; next: {command('specialize', '--model', model, '--out', 'out')}")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="Torch file of the Once-for-All authors.")],
    out: Annotated[Path, typer.Option(help="Folder for the safetensors file and manifest.json.")],
) -> None:
    """Read a published supernet or accuracy predictor -> OUT/supernet.safetensors or OUT/predictor.safetensors.

    Tensors are read and code is not; manifest.json says where they came from. Supernets: MobileNetV3
    (width 1.0, 1.2), ProxylessNAS (1.3), ResNet-50D. OUT is then a run folder for --model.
    """
    found = import_file(file, out)
    if isinstance(found, Supernet):
        announce(out / "supernet.safetensors", f": {found.space.size:.3g} sub-networks")
    else:
        announce(out / "predictor.safetensors", f": accuracy predictor of {found.domain.name}")


def _fit_classes(supernet: Supernet, data: Data) -> None:
    """Give the supernet a new classifier where the data have other classes, or another number of them."""
    for classes in _classes(data).values():
        other = f"{classes} classes, the supernet {supernet.num_classes}" if supernet.num_classes != classes else ""
        if other := other or other_classes(supernet, data):
            notify(f"{data.name} has other classes ({other}): a new classifier")
            supernet.reset_classifier(classes)


def _classes(data: Data) -> dict[str, int]:
    """The number of classes as a space takes it; nothing for data that have none."""
    return {"num_classes": int(data.num_classes)} if hasattr(data, "num_classes") else {}


def _run_training(
    net: Supernet | Network,
    data: Data,
    source: str,
    recipe: Recipe,
    out: Path,
    seed: int,
    device: str,
    precision: str,
    tensorboard: bool,
    origin: zoo.Entry | None,
) -> None:
    also = tensorboard_report(out / "tensorboard") if tensorboard and is_first_process() else lambda record: None
    with Training(recipe, console, task_of(data).score) as show:

        def report(record: dict[str, Any]) -> None:
            show(record)
            also(record)

        run_training(
            net,
            data,
            recipe,
            out,
            seed=seed,
            device=device,
            precision=cast(Precision, precision),  # `train` checks it
            report=report,
            origin=origin.weights_sha256 if origin else None,
            data_source=lasting(source),
        )


def _epochs(text: str | None) -> int | tuple[int, ...] | None:
    try:
        parts = tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise InvalidConfiguration(f"--epochs {text}: give a whole number, or six, like 20,5,1,3,1,4") from None
    return parts[0] if len(parts) == 1 else parts or None
