"""What the authors of Once-for-All and others published, read into ours, and written back.

No other room knows these formats. `pickles.py` reads torch files without running code, `naming.py`
translates tensor names, `hub.py` is the Hugging Face hub; the rest are supernets and networks,
descriptions, latency tables, predictors.
"""

from onceforall.interop.checkpoints import load_supernet, network_of, network_state, save_supernet, supernet_state
from onceforall.interop.hub import from_pretrained, save_pretrained
from onceforall.interop.latency import read_latency, read_latency_by_resolution
from onceforall.interop.networks import (
    PublishedNetwork,
    architecture_of,
    load_network,
    network_config,
    read_network,
    save_network,
)
from onceforall.interop.predictors import PublishedPredictor, load_predictor
from onceforall.interop.store import import_file, import_predictor, import_supernet

__all__ = [
    "PublishedNetwork",
    "PublishedPredictor",
    "architecture_of",
    "from_pretrained",
    "import_file",
    "import_predictor",
    "import_supernet",
    "load_network",
    "load_predictor",
    "load_supernet",
    "network_config",
    "network_of",
    "network_state",
    "read_latency",
    "read_latency_by_resolution",
    "read_network",
    "save_network",
    "save_pretrained",
    "save_supernet",
    "supernet_state",
]
