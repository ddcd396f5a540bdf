"""Train one elastic supernet once; for any device and budget, get a specialised network without training again.

Read these files first: architecture.py and layers/ (the values), choices.py and space.py (what may be
chosen, and lowering it), nn/supernet.py (the elastic network), training/recipe.py (progressive
shrinking), deploy/specialize.py (the whole road).
"""

import os

# GNU OpenMP reads this as torch is loaded. Where another program is busy, threads that wait for each other by spinning
# make both many times slower; so they sleep after a few microseconds (benchmarks/two_at_once.py).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from onceforall import cost, devices, interop, layers, spaces, tasks, zoo
from onceforall.architecture import Architecture, Gene
from onceforall.bundle.bundle import Bundle, write_bundle
from onceforall.bundle.measure import measure_bundle
from onceforall.checkpoint import load_network, load_supernet, save_network, save_supernet
from onceforall.choices import Unit
from onceforall.cost.analytic import MACs, Parameters, PeakActivationMemory, PeakConvolutionMemory, WeightBytes
from onceforall.cost.latency import LatencyTable, LatencyTables, Timing
from onceforall.cost.learned import LearnedLatency, load_latency
from onceforall.cost.model import Constraint, CostModel
from onceforall.cost.validation import Validation
from onceforall.data.batches import Batch
from onceforall.data.cifar10 import cifar10
from onceforall.data.dataset import Data, ImageData
from onceforall.data.folder import image_folder
from onceforall.data.pictures import PictureData, Pictures
from onceforall.data.sources import open_data
from onceforall.deploy import exports
from onceforall.deploy.exports import Export
from onceforall.deploy.manifest import Specialization
from onceforall.deploy.specialize import specialize
from onceforall.deploy.standalone import Standalone, write_standalone
from onceforall.deploy.verify import Claim, verify
from onceforall.devices import by_name as device
from onceforall.devices.device import Device
from onceforall.errors import (
    BrokenClaim,
    DataUnavailable,
    IncompatibleCheckpoint,
    InfeasibleConstraint,
    InvalidArchitecture,
    InvalidConfiguration,
    MeasurementPending,
    OFAError,
    OutOfDomain,
    TrainingDiverged,
    UnwritableOutput,
)
from onceforall.evaluate import measure_top1, top1
from onceforall.layers import Layer
from onceforall.nn.calibrate import calibrate
from onceforall.nn.network import FeatureMaps, SubNetwork
from onceforall.nn.supernet import Network, Supernet, Trainable
from onceforall.predict.accuracy import (
    AccuracyPredictor,
    EnsemblePredictor,
    MLPPredictor,
    RidgePredictor,
    load_predictor,
    save_predictor,
)
from onceforall.predict.labels import Label, label, read_labels, training_pairs
from onceforall.profiling.profile import adapt, profile
from onceforall.search.confirm import Confirmation, Learner, MeasuredFront, confirm, measured_front
from onceforall.search.evolution import search
from onceforall.search.exact import optimum
from onceforall.search.objective import Objective, PenalisedLoss, SoftTarget
from onceforall.search.pareto import Front, FrontPoint, front
from onceforall.search.result import Cost, SearchResult
from onceforall.search.scoring import RowPredictor
from onceforall.space import SearchSpace
from onceforall.tasks import Score, Task
from onceforall.training import recipe as recipes
from onceforall.training.schedule import Phase, Recipe
from onceforall.training.trainer import train

__version__ = "0.1.0"

__all__ = [
    "AccuracyPredictor",
    "Architecture",
    "Batch",
    "BrokenClaim",
    "Bundle",
    "Claim",
    "Confirmation",
    "Constraint",
    "Cost",
    "CostModel",
    "Data",
    "DataUnavailable",
    "Device",
    "EnsemblePredictor",
    "Export",
    "FeatureMaps",
    "Front",
    "FrontPoint",
    "Gene",
    "ImageData",
    "IncompatibleCheckpoint",
    "InfeasibleConstraint",
    "InvalidArchitecture",
    "InvalidConfiguration",
    "Label",
    "LatencyTable",
    "LatencyTables",
    "Layer",
    "LearnedLatency",
    "Learner",
    "MACs",
    "MLPPredictor",
    "MeasuredFront",
    "MeasurementPending",
    "Network",
    "OFAError",
    "Objective",
    "OutOfDomain",
    "Parameters",
    "PeakActivationMemory",
    "PeakConvolutionMemory",
    "PenalisedLoss",
    "Phase",
    "PictureData",
    "Pictures",
    "Recipe",
    "RidgePredictor",
    "RowPredictor",
    "Score",
    "SearchResult",
    "SearchSpace",
    "SoftTarget",
    "Specialization",
    "Standalone",
    "SubNetwork",
    "Supernet",
    "Task",
    "Timing",
    "Trainable",
    "TrainingDiverged",
    "Unit",
    "UnwritableOutput",
    "Validation",
    "WeightBytes",
    "adapt",
    "calibrate",
    "cifar10",
    "confirm",
    "cost",
    "device",
    "devices",
    "exports",
    "front",
    "image_folder",
    "interop",
    "label",
    "layers",
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
    "tasks",
    "top1",
    "train",
    "training_pairs",
    "verify",
    "write_bundle",
    "write_standalone",
    "zoo",
]
