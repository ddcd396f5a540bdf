"""Supernets and networks on disk: safetensors, with space and architecture in the file's metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from onceforall import spaces
from onceforall.architecture import Architecture
from onceforall.errors import IncompatibleCheckpoint, OFAError
from onceforall.files import replacing
from onceforall.nn.subnet import channels_last
from onceforall.nn.supernet import Network, Supernet
from onceforall.space import SearchSpace

FORMAT = "onceforall.supernet/1"
NETWORK_FORMAT = "onceforall.network/1"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file, atomically. Raises UnwritableOutput."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(plain, temporary, dict(metadata))
        except SafetensorError as error:
            raise OSError(str(error)) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises IncompatibleCheckpoint."""
    if not path.is_file():
        raise IncompatibleCheckpoint(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise IncompatibleCheckpoint(f"{path} is not a whole safetensors file ({error}): copy it again") from error


def digest(module: nn.Module) -> str:
    """Hexadecimal SHA-256 of all tensors of a module and their names."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def restore(
    module: nn.Module, tensors: Mapping[str, Tensor], origin: str, names: Mapping[str, str] | None = None
) -> None:
    """Load tensors into a module, all of them. Raises IncompatibleCheckpoint, which names what does not fit.

    `names`: what `tensors` calls each tensor of the module, where that differs.
    """
    own = module.state_dict()
    expected = {names[name]: tensor for name, tensor in own.items()} if names else own
    if problem := misfit(tensors, {name: tuple(tensor.shape) for name, tensor in expected.items()}):
        raise IncompatibleCheckpoint(f"{origin} does not fit this space: tensors {problem}")
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])


def misfit(found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> str:
    """How tensors differ from what is expected, in words; empty where names and shapes are the same."""
    shapes = [
        f"{name} {tuple(found[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    ]
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    return "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for kind, names in (("missing", missing), ("extra", extra), ("of wrong shape", shapes))
        if names
    )


def save_supernet(path: Path, supernet: Supernet) -> None:
    """Weights and space in one file, atomically. Raises UnwritableOutput."""
    metadata = {"format": FORMAT, "space": json.dumps(supernet.space.to_json())}
    write_tensors(path, supernet.state_dict(), metadata)


def load_supernet(path: str | Path) -> Supernet:
    """The supernet that `save_supernet` wrote, channels_last. Raises IncompatibleCheckpoint."""
    tensors, _, space = _read(Path(path), FORMAT)
    supernet = Supernet(space)
    restore(supernet, tensors, str(path))
    return channels_last(supernet)


def save_network(path: Path, network: Network) -> None:
    """Weights under the names of the plain modules, space and architecture, atomically. Raises UnwritableOutput."""
    about = {"space": json.dumps(network.space.to_json()), "architecture": json.dumps(network.architecture.to_json())}
    tensors = {network.plain_name(name): tensor for name, tensor in network.state_dict().items()}
    write_tensors(path, tensors, {"format": NETWORK_FORMAT, **about})


def load_network(path: str | Path) -> Network:
    """The network that `save_network` wrote, channels_last. Raises IncompatibleCheckpoint."""
    tensors, metadata, space = _read(Path(path), NETWORK_FORMAT)
    try:
        network = Network(space, Architecture.from_json(json.loads(metadata["architecture"])))
    except (KeyError, TypeError, ValueError, OFAError) as error:
        raise IncompatibleCheckpoint(f"{path}: its architecture cannot be read: {error}") from error
    restore(network, tensors, str(path), {name: network.plain_name(name) for name in network.state_dict()})
    return channels_last(network)


def _read(path: Path, expected: str) -> tuple[dict[str, Tensor], dict[str, str], SearchSpace]:
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != expected:
        raise IncompatibleCheckpoint(f"{path}: format {metadata.get('format')!r}, expected {expected!r}")
    try:
        return tensors, metadata, spaces.from_json(json.loads(metadata["space"]))
    except (KeyError, ValueError, OFAError) as error:
        raise IncompatibleCheckpoint(f"{path}: its space cannot be read: {error}") from error
