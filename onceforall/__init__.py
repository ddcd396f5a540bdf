"""Train one elastic supernet once; for any device and budget, get a specialised network without training again.

Read these files first: architecture.py and layers/ (the values), choices.py and space.py (what may be
chosen, and lowering it), nn/supernet.py (the elastic network), training/recipe.py (progressive
shrinking), deploy/specialize.py (the whole road).
"""

from onceforall import cost, interop, spaces, zoo
from onceforall.architecture import Architecture, Gene
from onceforall.bundle.bundle import Bundle, write_bundle
from onceforall.bundle.measure import measure_bundle
from onceforall.checkpoint import load_network, load_supernet, save_network, save_supernet
from onceforall.cost.analytic import MACs, Parameters, PeakActivationMemory, PeakConvolutionMemory, WeightBytes
from onceforall.cost.latency import LatencyTable, LatencyTables
from onceforall.cost.learned import LearnedLatency
from onceforall.cost.saved import load_latency
from onceforall.data.cifar10 import cifar10
from onceforall.data.dataset import ImageData
from onceforall.data.folder import image_folder
from onceforall.data.pictures import PictureData
from onceforall.data.sources import open_data
from onceforall.deploy.specialize import specialize
from onceforall.deploy.standalone import write_standalone
from onceforall.devices import by_name as device
from onceforall.errors import (
    DataUnavailable,
    IncompatibleCheckpoint,
    InfeasibleConstraint,
    InvalidArchitecture,
    InvalidConfiguration,
    OFAError,
    OutOfDomain,
    TrainingDiverged,
    UnwritableOutput,
)
from onceforall.evaluate import measure_top1, top1
from onceforall.nn.calibrate import calibrate
from onceforall.nn.network import SubNetwork
from onceforall.nn.supernet import Network, Supernet
from onceforall.predict.accuracy import (
    EnsemblePredictor,
    MLPPredictor,
    RidgePredictor,
    load_predictor,
    save_predictor,
)
from onceforall.predict.labels import label, read_labels, training_pairs
from onceforall.profiling.profile import adapt, profile
from onceforall.search.confirm import confirm, measured_front
from onceforall.search.evolution import search
from onceforall.search.exact import optimum
from onceforall.search.objective import PenalisedLoss, SoftTarget
from onceforall.search.pareto import Front, front
from onceforall.search.result import SearchResult
from onceforall.training import recipe as recipes
from onceforall.training.trainer import train

__version__ = "0.1.0"

__all__ = [
    "Architecture",
    "Bundle",
    "DataUnavailable",
    "EnsemblePredictor",
    "Front",
    "Gene",
    "ImageData",
    "IncompatibleCheckpoint",
    "InfeasibleConstraint",
    "InvalidArchitecture",
    "InvalidConfiguration",
    "LatencyTable",
    "LatencyTables",
    "LearnedLatency",
    "MACs",
    "MLPPredictor",
    "Network",
    "OFAError",
    "OutOfDomain",
    "Parameters",
    "PeakActivationMemory",
    "PeakConvolutionMemory",
    "PenalisedLoss",
    "PictureData",
    "RidgePredictor",
    "SearchResult",
    "SoftTarget",
    "SubNetwork",
    "Supernet",
    "TrainingDiverged",
    "UnwritableOutput",
    "WeightBytes",
    "adapt",
    "calibrate",
    "cifar10",
    "confirm",
    "cost",
    "device",
    "front",
    "image_folder",
    "interop",
    "label",
    "load_latency",
    "load_network",
    "load_predictor",
    "load_supernet",
    "measure_bundle",
    "measure_top1",
    "measured_front",
    "open_data",
    "optimum",
    "profile",
    "read_labels",
    "recipes",
    "save_network",
    "save_predictor",
    "save_supernet",
    "search",
    "spaces",
    "specialize",
    "top1",
    "train",
    "training_pairs",
    "write_bundle",
    "write_standalone",
    "zoo",
]
