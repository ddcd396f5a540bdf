"""Several sub-networks of one supernet in one folder: what they share is stored once, and a loader switches.

    weights.safetensors    every tensor once, cut to what the largest sub-network needs; and, of each
                           sub-network, its batch norms as a scale and a shift a channel
    NAME.onnx              the graph alone: its weights are places in that same file
    manifest.json          architectures, layers, where each tensor lies, digests, and what was measured

Batch norms stay unfolded on disk, because folding would make every weight a sub-network's own. They are
folded when a sub-network is taken into use: by the loader in PyTorch, by ONNX Runtime as it loads a graph.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from onceforall import serial
from onceforall.architecture import Architecture
from onceforall.bundle.shared import Place, refer, share, weights_of
from onceforall.checkpoint import check_numbers, read_tensors, write_tensors
from onceforall.data.dataset import Data
from onceforall.devices.measure import session_options
from onceforall.devices.onnx import INPUT, to_onnx
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration, OFAError
from onceforall.files import owned, read_json_object, sha256, write_atomically, write_json
from onceforall.layers import LayerSpec, layer_from_json, layer_to_json
from onceforall.nn.calibrate import calibrate
from onceforall.nn.network import SubNetwork
from onceforall.nn.plain import ConvNormAct
from onceforall.nn.subnet import build, channels_last, fold_batch_norm
from onceforall.nn.supernet import Supernet
from onceforall.profiling.measuring import image_shape
from onceforall.results import MANIFEST, UNFINISHED, check_ours, check_whole, discard, inside, publish
from onceforall.sizes import Size
from onceforall.space import SearchSpace

FORMATS = ("onceforall.bundle/2", "onceforall.bundle/1")  # /1 has no digests of its graphs
FORMAT = FORMATS[0]
RUNTIMES = ("torch", "onnxruntime")
WEIGHTS = "weights.safetensors"

Run = Callable[[Tensor], Tensor]


class Affine(nn.Module):
    """A batch norm in evaluation mode: a scale and a shift a channel, [c, 1, 1] each."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight.detach() * torch.rsqrt(norm.running_var + norm.eps)
        self.register_buffer("scale", scale[:, None, None])
        self.register_buffer("shift", (norm.bias.detach() - norm.running_mean * scale)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def write_bundle(
    supernet: Supernet, architectures: Mapping[str, Architecture], data: Data, out: str | Path
) -> dict[str, Any]:
    """Extract and recalibrate the sub-networks, and write the bundle; returns its manifest.

    The keys of `architectures` are the names that the loader switches by. Raises InvalidConfiguration
    for none, for a name that is no file name, and for a folder whose manifest.json is not a bundle's;
    InvalidArchitecture; IncompatibleCheckpoint for weights that are not finite; UnwritableOutput. A bundle
    that is there already stays as it is until the new one is complete.
    """
    out = Path(out)
    check_ours(out, FORMATS, "bundle")
    if not architectures:
        raise InvalidConfiguration("a bundle needs at least one sub-network: none was given")
    for name in architectures:
        if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("."):
            raise InvalidConfiguration(f"name {name!r}: letters, digits, '-', '_' and '.' make a file name")
    networks = {name: unfolded(_calibrated(supernet, arch, data)) for name, arch in architectures.items()}
    places = {name: positions(supernet.space, arch) for name, arch in architectures.items()}
    tensors, found = share({name: _named(networks[name], name, places[name]) for name in networks})
    for key, tensor in tensors.items():
        check_numbers("the bundle", key, tensor, floating=True)
    with owned(out, "bundle"):
        publish(out, named_files)  # of a call that was killed in that
        discard(out)
        new = out / UNFINISHED
        write_tensors(new / WEIGHTS, tensors, {"format": FORMAT})
        entries: dict[str, Any] = {}
        for name, arch in architectures.items():
            network, graph = networks[name], new / f"{name}.onnx"
            model = onnx.load_from_string(to_onnx(network, image_shape(arch)))
            write_atomically(graph, refer(model, found[name], new / WEIGHTS))
            entries[name] = {
                "architecture": arch.to_json(),
                "layers": [layer_to_json(spec) for spec in network.specs],
                "tensors": {key: [*place] for key, place in found[name].items()},
                "onnx": graph.name,
                "onnx_sha256": sha256(graph),
            }
        weights = {"file": WEIGHTS, "bytes": (new / WEIGHTS).stat().st_size, "sha256": sha256(new / WEIGHTS)}
        manifest = {"format": FORMAT, "weights": weights, "networks": entries}
        write_json(new / MANIFEST, manifest)
        publish(out, named_files)
    return manifest


def named_files(manifest: Mapping[str, Any]) -> list[str]:
    """The files of a bundle, by its manifest. Raises IncompatibleCheckpoint."""
    return [WEIGHTS, *(network.onnx for network in parse(manifest).networks.values())]


def positions(space: SearchSpace, arch: Architecture) -> list[str]:
    """For each layer of an architecture the part of the supernet that its weights are cut from."""
    stem = [f"stem.{index}" for index in range(len(space.stem(arch.resolution, arch.multipliers[0])))]
    units = [f"units.{unit}.{block}" for unit, depth in enumerate(arch.depths) for block in range(depth)]
    rest = len(space.lower(arch)) - len(stem) - len(units)
    return [*stem, *units, *(f"head.{index}" for index in range(rest))]


def unfolded(network: SubNetwork) -> SubNetwork:
    """The network with every batch norm as an `Affine`, in place: exporters leave its convolutions' weights alone."""
    for module in network.modules():
        if isinstance(module, ConvNormAct) and hasattr(module, "bn"):
            module.bn = Affine(module.bn)  # type: ignore[assignment]
    return network.eval()


@dataclass(frozen=True)
class _Network:
    """What a manifest says of one sub-network."""

    architecture: Architecture
    layers: tuple[dict[str, Any], ...]
    tensors: Mapping[str, Place]
    onnx: str
    onnx_sha256: str | None = None

    @cached_property
    def specs(self) -> list[LayerSpec]:
        """Its layers. Raises InvalidConfiguration."""
        return [layer_from_json(value) for value in self.layers]


@dataclass(frozen=True)
class _Weights:
    """The file that all sub-networks share."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Manifest:
    """The manifest of a bundle, but for what was measured."""

    weights: _Weights
    networks: Mapping[str, _Network]


def parse(manifest: Mapping[str, Any]) -> _Manifest:
    """A manifest whose every field was looked at. Raises IncompatibleCheckpoint."""
    given = {key: value for key, value in manifest.items() if key not in ("format", "measured")}
    found = serial.from_json(_Manifest, given, "the manifest of a bundle", IncompatibleCheckpoint)
    if not found.networks or found.weights.file != WEIGHTS:
        raise IncompatibleCheckpoint(f"not the manifest of a bundle: expected sub-networks, and weights in {WEIGHTS}")
    for name, network in found.networks.items():
        unsealed = manifest.get("format") == FORMAT and network.onnx_sha256 is None
        if network.onnx != f"{name}.onnx" or unsealed:
            raise IncompatibleCheckpoint(f"not the manifest of a bundle: {name!r:.60} has no graph and digest")
    return found


class Bundle:
    """The sub-networks of a bundle, one of them in use; images [n, 3, resolution, resolution] -> logits [n, classes].

    `keep` sub-networks stay ready: switching back to one of those costs nothing, and each costs its
    memory. `onnxruntime` takes one image a run, as its graphs were exported; more are run in turn.

    Example:
        >>> bundle = Bundle.load("bundle", keep=2)
        >>> bundle.use("fast")
        >>> logits = bundle(images)
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], runtime: str, keep: int, threads: int) -> None:
        self.folder, self.runtime, self.keep, self.threads = folder, runtime, keep, threads
        self._networks = parse(manifest).networks
        self._ready: OrderedDict[str, Run] = OrderedDict()
        self._plain: dict[str, SubNetwork] = {}
        tensors = read_tensors(folder / WEIGHTS)[0]
        for key, tensor in tensors.items():
            check_numbers(str(folder / WEIGHTS), key, tensor, floating=True)
        self._tensors = tensors if runtime == "torch" else {}
        self.name = next(iter(self._networks))
        self.use(self.name)

    @classmethod
    def load(cls, path: str | Path, runtime: str = "torch", *, keep: int = 1, threads: int = 1) -> Bundle:
        """The bundle in a folder, its first sub-network in use; `threads` are ONNX Runtime's.

        Raises IncompatibleCheckpoint where the folder is no whole bundle, InvalidConfiguration for
        an unknown runtime.
        """
        path = Path(path)
        if runtime not in RUNTIMES or keep < 1 or threads < 1:
            raise InvalidConfiguration(
                f"runtime {runtime!r}, keep {keep}, threads {threads}: expected {' or '.join(RUNTIMES)}, 1 or more, "
                "1 or more"
            )
        return cls(path, read_manifest(path), runtime, keep, threads)

    @property
    def names(self) -> tuple[str, ...]:
        """The sub-networks, in the order in which they were given."""
        return tuple(self._networks)

    @property
    def resolution(self) -> Size:
        """Image size (px) of the sub-network in use."""
        return self.architecture.resolution

    @property
    def architecture(self) -> Architecture:
        """The sub-network in use."""
        return self._networks[self.name].architecture

    def use(self, name: str) -> None:
        """Switch to a sub-network. Raises InvalidConfiguration for a name that the bundle does not have."""
        if name not in self._networks:
            raise InvalidConfiguration(f"sub-network {name!r}: this bundle has {', '.join(self.names)}")
        if name not in self._ready:
            while len(self._ready) >= self.keep:  # first, so that no more than `keep` are ever in memory
                oldest, _ = self._ready.popitem(last=False)
                if oldest in self._plain:
                    self._plain[oldest].to("meta")
            if self.runtime == "torch":
                self._ready[name] = self._module(name)
            else:
                self._ready[name] = in_onnxruntime(self._graph(name), self.threads)
        self._ready.move_to_end(name)
        self.name = name

    def __call__(self, images: Tensor) -> Tensor:
        self.use(self.name)  # ready, unless loading another one failed
        return self._ready[self.name](images)

    def _graph(self, name: str) -> Path:
        """The file of a sub-network, whole, which finds its weights in this folder. Raises IncompatibleCheckpoint."""
        entry = self._networks[name]
        path = inside(self.folder, entry.onnx)
        try:
            content = path.read_bytes()
            digest, elsewhere = hashlib.sha256(content).hexdigest(), weights_of(content) - {WEIGHTS}
        except (OSError, ValueError) as error:
            raise IncompatibleCheckpoint(f"{path} cannot be loaded: {error}; copy it again") from error
        if entry.onnx_sha256 not in (None, digest):
            raise IncompatibleCheckpoint(f"{path} is not the file that manifest.json was written with: copy both again")
        if elsewhere:
            raise IncompatibleCheckpoint(f"{path} looks for weights in {', '.join(sorted(elsewhere)):.100}")
        return path

    def _module(self, name: str) -> Run:
        entry = self._networks[name]
        try:
            if name not in self._plain:  # without weights, modules cost little: they are made once
                self._plain[name] = without_weights(entry.specs)
            tensors = {key: place.cut(self._tensors) for key, place in entry.tensors.items()}
            return in_torch(self._plain[name], _folded(tensors))
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError, OverflowError) as error:
            if isinstance(error, OFAError):
                raise
            raise IncompatibleCheckpoint(
                f"{self.folder / MANIFEST}: the layers and tensors of {name!r:.60} do not fit: {error!s:.200}"
            ) from error


def without_weights(layers: Sequence[LayerSpec]) -> SubNetwork:
    """The network of these layers, batch norms folded, on no device."""
    with torch.device("meta"):
        return fold_batch_norm(build(layers))


def in_torch(network: SubNetwork, tensors: Mapping[str, Tensor]) -> Run:
    """A network that takes these tensors, as they are, for its weights."""
    network.load_state_dict(tensors, assign=True)
    module = channels_last(network.requires_grad_(False))

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = module(images)
        return logits

    return run


def in_onnxruntime(file: Path, threads: int) -> Run:
    """A graph that takes one image, for any number. Raises IncompatibleCheckpoint."""
    import onnxruntime

    options = session_options(threads)
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of ONNX Runtime, which has many
        raise IncompatibleCheckpoint(f"{file} cannot be loaded: {error}") from error

    def run(images: Tensor) -> Tensor:
        arrays = (image.contiguous().numpy() for image in images.split(1))
        return torch.cat([torch.from_numpy(session.run(None, {INPUT: array})[0]) for array in arrays])

    return run


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a bundle whose weights are those that it was written with. Raises IncompatibleCheckpoint."""
    if not (path / MANIFEST).is_file():
        raise IncompatibleCheckpoint(f"{path} holds no manifest.json: it is no bundle, or was not written to its end")
    try:
        check_whole(path)
        manifest = read_json_object(path / MANIFEST)
    except InvalidConfiguration as error:
        raise IncompatibleCheckpoint(str(error)) from error
    if manifest.get("format") not in FORMATS:
        raise IncompatibleCheckpoint(f"{path}: format {manifest.get('format')!r:.60}, expected {FORMAT!r}")
    try:
        known = parse(manifest).weights.sha256
    except IncompatibleCheckpoint as error:
        raise IncompatibleCheckpoint(f"{path / MANIFEST}: {error}; write the bundle again") from error
    weights = inside(path, WEIGHTS)
    if not weights.is_file() or sha256(weights) != known:
        raise IncompatibleCheckpoint(f"{weights} is not the file that manifest.json was written with: copy both again")
    return manifest


def _calibrated(supernet: Supernet, arch: Architecture, data: Data) -> SubNetwork:
    """On the processor, wherever the supernet was trained."""
    return calibrate(supernet.extract(arch).cpu(), data.calibration(arch.resolution))


def _named(network: SubNetwork, name: str, places: list[str]) -> dict[str, tuple[str, Tensor]]:
    """Each tensor with the name under which others may share it: its own where it is a batch norm's."""
    named = {}
    for key, tensor in network.state_dict().items():
        index, rest = key.split(".", 1)
        own = ".bn." in key
        kernel = f"@{tensor.shape[-1]}" if tensor.ndim == 4 else ""  # kernels of each size are others
        named[key] = (f"{name}/{key}" if own else f"{places[int(index)]}.{rest}{kernel}", tensor)
    return named


def _folded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convolutions with the scale and shift that follow them folded in."""
    result = {}
    for key, tensor in tensors.items():
        scale, shift = (tensors.get(key.removesuffix("conv.weight") + f"bn.{part}") for part in ("scale", "shift"))
        if key.endswith("conv.weight") and scale is not None and shift is not None:
            result[key] = tensor * scale[..., None]
            result[key.replace("weight", "bias")] = shift.flatten()
        elif ".bn." not in key:
            result[key] = tensor
    return result
