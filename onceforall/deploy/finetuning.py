"""Chosen networks that go on training, each with weights of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from onceforall.architecture import Architecture
from onceforall.checkpoint import digest, save_network
from onceforall.data.dataset import Data
from onceforall.deploy.choosing import Choosing
from onceforall.deploy.exporting import Exporter
from onceforall.deploy.manifest import File, Finetuning, Number, Specialized
from onceforall.files import sha256
from onceforall.nn.supernet import Network, Supernet
from onceforall.training.recipe import finetune
from onceforall.training.trainer import train

BATCH = 128


def tuned(
    supernet: Supernet, arch: Architecture, data: Data, epochs: int, seed: int, folder: Path, name: str
) -> tuple[Network, Finetuning]:
    """A sub-network after so many epochs more; its weights are in `folder` / `name`.

    The run folder, below `folder` / finetune, is named by all that the training depends on: an
    interrupted one goes on, and another one is no obstacle.
    """
    network = Network.of(supernet, arch)
    recipe = finetune(epochs, min(BATCH, data.size("train")))
    about = json.dumps([digest(network), arch.to_json(), recipe.to_json(), data.describe(), seed])
    run = folder / "finetune" / hashlib.sha256(about.encode()).hexdigest()[:16]
    train(network, data, recipe, run, seed=seed)
    path = folder / name / "finetuned.safetensors"
    save_network(path, network)
    return network, Finetuning(epochs, File(f"{name}/{path.name}", path.stat().st_size, sha256(path)))


def finetuned(
    choosing: Choosing, networks: Sequence[Specialized], epochs: int
) -> tuple[list[Specialized], dict[str, Exporter]]:
    """Go on training what was searched or given, and export it again. Interrupted, the training goes on as well.

    Returns all networks, and what exports the tuned ones, by their name.
    """
    call, score = choosing.call, choosing.call.score
    names = [network.name for network in networks if network.role in ("searched", "given")]
    exporters: dict[str, Exporter] = {}
    result = []
    for network in networks:
        if network.name not in names:
            result.append(network)
            continue
        call.report("fine-tuning", len(exporters), len(names))
        arch = network.architecture
        own, tuning = tuned(call.supernet, arch, call.data, epochs, call.seed, call.out, network.name)
        exporter = exporters[network.name] = Exporter(own, call.data, call.out, tuning.weights)
        before = choosing.scores.of(arch, choosing.precisions.plain)
        exports = choosing.exports(network, exporter)
        after = choosing.scores.of(arch, choosing.precisions.plain, exporter)
        note = f"fine-tuned for {epochs} epochs: label {score.name} {before:.2f} -> {score.text(after)}"
        label = Number(after, score.unit, "measured")
        attempts = (*network.attempts, note)
        result.append(replace(network, finetuning=tuning, exports=exports, label_score=label, attempts=attempts))
    if not names:
        return result, exporters
    call.report("fine-tuning", len(names), len(names))
    return choosing.timed(result), exporters
