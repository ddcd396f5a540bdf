"""Accuracy predictors: all of them, behind one protocol.

`RidgePredictor` is linear in the choices: the baseline, and what a search can be exact with. With
`interactions` it is the most accurate for its price. `MLPPredictor` is the paper's network;
`EnsemblePredictor` says how far off it may be. How well each does against the number of labels is
measured in benchmarks/accuracy_predictor.py.
"""

from onceforall.predict.ensemble import EnsemblePredictor
from onceforall.predict.files import load_predictor, save_predictor
from onceforall.predict.mlp import MLPPredictor
from onceforall.predict.predictor import AccuracyPredictor
from onceforall.predict.quality import MACsPredictor, PredictorQuality, assess
from onceforall.predict.ridge import RidgePredictor

__all__ = [
    "AccuracyPredictor",
    "EnsemblePredictor",
    "MACsPredictor",
    "MLPPredictor",
    "PredictorQuality",
    "RidgePredictor",
    "assess",
    "load_predictor",
    "save_predictor",
]
