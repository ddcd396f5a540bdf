"""Chosen networks that go on training, each with weights of its own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from onceforall.architecture import Architecture
from onceforall.checkpoint import digest, save_network
from onceforall.data.dataset import Data
from onceforall.deploy.manifest import File, Finetuning
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
