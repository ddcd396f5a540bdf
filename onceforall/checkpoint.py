"""Supernets and networks on disk: safetensors, with space and architecture in the file's metadata."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from onceforall import serial, spaces
from onceforall.architecture import Architecture
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration, OFAError
from onceforall.files import DIGEST, parse_json, write_atomically
from onceforall.nn.subnet import channels_last
from onceforall.nn.supernet import Network, Supernet
from onceforall.space import SearchSpace

FORMAT = "onceforall.supernet/1"
NETWORK_FORMAT = "onceforall.network/1"

N = TypeVar("N", Supernet, Network)
Names = Callable[[str], str]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file, atomically: equal content gives equal bytes. Raises UnwritableOutput."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(plain, {**metadata, DIGEST: _digest(plain, metadata)})
    # A file is the length of its header in 8 bytes, that header, JSON, and the tensors. Its metadata come in
    # random order; and a header is a multiple of 8 bytes long.
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_atomically(path, b"".join([struct.pack("<Q", len(text)), text, memoryview(content)[8 + length :]]))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, whose digest is checked where it has one.

    Raises IncompatibleCheckpoint.
    """
    if not path.is_file():
        raise IncompatibleCheckpoint(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise IncompatibleCheckpoint(f"{path} is not a whole safetensors file ({error}): copy it again") from error
    digest = metadata.pop(DIGEST, None)
    if digest not in (None, _digest(tensors, metadata)):
        raise IncompatibleCheckpoint(f"{path} is damaged: its {DIGEST} is of another content; copy it again")
    return tensors, metadata


def digest(module: nn.Module) -> str:
    """Hexadecimal SHA-256 of all tensors of a module and their names."""
    return _hashed(module.state_dict()).hexdigest()


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Of all that a file says: names, types, shapes and content of its tensors, and its metadata."""
    tensors = dict(sorted(tensors.items()))
    found = _hashed(tensors)
    shapes = [(name, str(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()]
    found.update(json.dumps([shapes, sorted(metadata.items())]).encode())
    return found.hexdigest()


def _hashed(tensors: Mapping[str, Tensor]) -> hashlib._Hash:
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found


def restore(module: nn.Module, tensors: Mapping[str, Tensor], origin: str, names: Names = str) -> None:
    """Load tensors into a module, all of them. Raises IncompatibleCheckpoint, which names what does not fit.

    `names`: what `tensors` calls a tensor of the module, where that differs.
    """
    expected = check_fits(module, tensors, origin, names)
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])


def check_fits(module: nn.Module, tensors: Mapping[str, Tensor], origin: str, names: Names = str) -> dict[str, Tensor]:
    """The module's own tensors by the names of `tensors`. Raises IncompatibleCheckpoint where those are not for it."""
    own = module.state_dict()
    expected = {names(name): tensor for name, tensor in own.items()}
    if problem := misfit(tensors, {name: tuple(tensor.shape) for name, tensor in expected.items()}):
        raise IncompatibleCheckpoint(f"{origin} does not fit this space: tensors {problem}")
    for name, tensor in expected.items():
        check_numbers(origin, name, tensors[name], tensor.is_floating_point())
    return expected


def check_numbers(origin: str, name: str, tensor: Tensor, floating: bool) -> None:
    """Raises IncompatibleCheckpoint for a tensor that is not of floats, or integers, or not finite."""
    if tensor.is_floating_point() != floating or tensor.is_complex():
        kind = "floating-point numbers" if floating else "integers"
        raise IncompatibleCheckpoint(f"{origin}: tensor {name} is {tensor.dtype}: expected {kind}")
    if not bool(torch.isfinite(tensor).all()):
        raise IncompatibleCheckpoint(
            f"{origin}: tensor {name} holds NaN or infinite numbers: copy the file again, or train again"
        )


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
    """Weights, space and names of the classes in one file, atomically. Raises UnwritableOutput."""
    write_tensors(path, supernet.state_dict(), {"format": FORMAT, **_about(supernet)})


def load_supernet(path: str | Path) -> Supernet:
    """The supernet that `save_supernet` wrote, channels_last. Raises IncompatibleCheckpoint."""
    path = Path(path)
    tensors, metadata, space = _read(path, FORMAT)
    supernet = _empty(path, tensors, lambda: Supernet(space))
    restore(supernet, tensors, str(path))
    supernet.classes = _classes(path, metadata, supernet.num_classes)
    return channels_last(supernet)


def save_network(path: Path, network: Network) -> None:
    """Weights under the names of the plain modules, space and architecture, atomically. Raises UnwritableOutput."""
    tensors = {network.plain_name(name): tensor for name, tensor in network.state_dict().items()}
    about = {"architecture": json.dumps(network.architecture.to_json()), **_about(network)}
    write_tensors(path, tensors, {"format": NETWORK_FORMAT, **about})


def load_network(path: str | Path) -> Network:
    """The network that `save_network` wrote, channels_last. Raises IncompatibleCheckpoint."""
    path = Path(path)
    tensors, metadata, space = _read(path, NETWORK_FORMAT)
    said = parse_json(metadata.get("architecture", ""), f"{path}: its architecture", IncompatibleCheckpoint)
    try:
        arch = Architecture.from_json(said)
        space.validate(arch)
    except (KeyError, TypeError, ValueError, OFAError) as error:
        raise IncompatibleCheckpoint(f"{path}: its architecture cannot be read: {error}") from error
    network = _empty(path, tensors, lambda: Network(space, arch), Network.plain_name)
    restore(network, tensors, str(path), network.plain_name)
    network.classes = _classes(path, metadata, network.num_classes)
    return channels_last(network)


def _about(net: Supernet | Network) -> dict[str, str]:
    """What both kinds of files say about a network."""
    classes = {"classes": json.dumps(list(net.classes))} if net.classes else {}
    return {"space": json.dumps(net.space.to_json()), **classes}


def _classes(path: Path, metadata: Mapping[str, str], count: int | None) -> tuple[str, ...]:
    """The names of the classes in a file's metadata. Raises IncompatibleCheckpoint."""
    if "classes" not in metadata:
        return ()
    said = parse_json(metadata["classes"], f"{path}: its classes", IncompatibleCheckpoint)
    names = serial.from_json(tuple[str, ...], said, f"names of classes, as {path} should have", IncompatibleCheckpoint)
    if len(names) != count:
        raise IncompatibleCheckpoint(f"{path} names {len(names)} classes, and its network tells {count} apart")
    return names


def _empty(path: Path, tensors: Mapping[str, Tensor], make: Callable[[], N], names: Names = str) -> N:
    """A network that the tensors of a file fit. Raises IncompatibleCheckpoint.

    What a file says is no reason to take memory: the network is made without any first, and compared.
    """
    try:
        with torch.device("meta"):
            described = make()
    except (RuntimeError, TypeError, OverflowError) as error:  # sizes beyond what torch can count
        raise IncompatibleCheckpoint(f"{path}: its space is of no network: {error!s:.200}") from None
    check_fits(described, tensors, str(path), names)
    return make()


def parsed_space(text: str, what: str) -> SearchSpace:
    """The space in a file's metadata. Raises IncompatibleCheckpoint."""
    try:
        return spaces.from_json(parse_json(text, "it", InvalidConfiguration))
    except (KeyError, TypeError, ValueError, OFAError) as error:
        raise IncompatibleCheckpoint(f"{what}: its space cannot be read: {error}") from error


def _read(path: Path, expected: str) -> tuple[dict[str, Tensor], dict[str, str], SearchSpace]:
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != expected:
        raise IncompatibleCheckpoint(f"{path}: format {metadata.get('format')!r}, expected {expected!r}")
    return tensors, metadata, parsed_space(metadata.get("space", ""), str(path))
