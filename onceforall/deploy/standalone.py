"""A network for PyTorch without this package: NAME.py, short and readable, and NAME.safetensors."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from onceforall.checkpoint import read_tensors, write_tensors
from onceforall.deploy.source import Source
from onceforall.errors import IncompatibleCheckpoint, OFAError
from onceforall.files import write_atomically
from onceforall.layers import height_width
from onceforall.nn.network import SubNetwork
from onceforall.nn.plain import fold_norms
from onceforall.process import run_python

TOLERANCE = 1e-5  # largest allowed difference of logits, relative to the largest logit


@dataclass(frozen=True)
class Standalone:
    """The files, and how far their logits are from the network's, relative to the largest logit (measured)."""

    code: Path
    weights: Path
    parity: float


def write_standalone(network: SubNetwork, path: str | Path, input_shape: tuple[int, ...]) -> Standalone:
    """`path`.py and `path`.safetensors, which give the network's logits with torch and safetensors alone.

    They are written once a process of their own, which cannot import onceforall, has given the same
    logits for random images of `input_shape`. Raises IncompatibleCheckpoint where it does not (for a
    network that was changed since it was built), UnwritableOutput.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder, path.name)
        write_files(network, trial)
        images = torch.randn(input_shape, generator=torch.Generator().manual_seed(0))
        (logits,) = run_alone([(trial, images)])
        with torch.no_grad():
            expected = network.eval()(images)
    parity = float((logits - expected).abs().max() / expected.abs().max())
    if not parity <= TOLERANCE:
        raise IncompatibleCheckpoint(
            f"{path.name}: logits differ by {parity:.1e} of the largest, {TOLERANCE:.0e} at most are allowed: "
            "are the network's layers still those of its specs?"
        )
    code, weights = write_files(network, path)
    return Standalone(code, weights, parity)


def write_files(network: SubNetwork, path: Path) -> tuple[Path, Path]:
    """`path`.py and `path`.safetensors, unchecked. Raises UnwritableOutput."""
    code, weights = path.with_name(f"{path.name}.py"), path.with_name(f"{path.name}.safetensors")
    write_tensors(weights, network.state_dict(), {"format": "pt"})
    write_atomically(code, source(network, path.name))
    return code, weights


def source(network: SubNetwork, name: str) -> str:
    """The Python code that rebuilds the network: the source of its modules, as it is in this package or another's.

    Raises IncompatibleCheckpoint where the source of a module cannot be read, or needs more than torch.
    """
    code = Source()
    layers = "".join(f"        {code.call(spec)},\n" for spec in network.specs)
    if network.folded:
        code.take(fold_norms)
    size = ", ".join(map(str, height_width(network.specs[0].in_size)))
    head = _HEAD.format(name=name, channels=network.specs[0].in_channels, size=size)
    tail = _TAIL.format(layers=layers, fold="    fold_norms(network.eval())\n" if network.folded else "")
    code.need("pathlib", "Path")
    code.need("safetensors.torch", "load_file")
    code.need("torch", "nn")
    return head + code.text() + tail


def run_alone(networks: Sequence[tuple[Path, Tensor]]) -> list[Tensor]:
    """Logits of standalone networks (paths without a suffix) for images, by a process that cannot import onceforall.

    Raises IncompatibleCheckpoint where it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder, "images.safetensors"), Path(folder, "logits.safetensors")
        write_tensors(inputs, {str(index): images for index, (_, images) in enumerate(networks)}, {})
        codes = [str(path.with_name(f"{path.name}.py")) for path, _ in networks]
        try:
            run_python(_RUN, str(inputs), str(outputs), *codes)
        except OFAError as error:
            raise IncompatibleCheckpoint(f"{', '.join(codes)}: {error}") from error
        logits, _ = read_tensors(outputs)
    return [logits[str(index)] for index in range(len(networks))]


_HEAD = '''"""{name}: a network in plain PyTorch, made by onceforall; it needs torch and safetensors, and nothing else.

    network = load()  # reads the .safetensors file beside this one
    logits = network(images)  # [n, {channels}, {size}], normalised as in training
"""

'''

_TAIL = '''

WEIGHTS = Path(__file__).with_suffix(".safetensors")


def build():
    """The network with initial weights."""
    network = nn.Sequential(
{layers}    )
{fold}    return network


def load(weights=WEIGHTS):
    """The network with its weights, in evaluation mode."""
    network = build()
    network.load_state_dict(load_file(weights))
    return network.eval()
'''

_RUN = """
import importlib.util, sys
sys.modules["onceforall"] = None  # any import of it fails
import torch
from safetensors.torch import load_file, save_file
images, logits = load_file(sys.argv[1]), {}
for index, path in enumerate(sys.argv[3:]):
    spec = importlib.util.spec_from_file_location("standalone", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with torch.no_grad():
        logits[str(index)] = module.load()(images[str(index)]).contiguous()
save_file(logits, sys.argv[2])
"""
