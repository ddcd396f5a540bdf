"""Accuracy predictors: all of them, behind one protocol, and fitted ones on disk.

`RidgePredictor` is linear in the choices: the baseline, and what a search can be exact with. With
`interactions` it is the most accurate for its price. `MLPPredictor` is the paper's network;
`EnsemblePredictor` says how far off it may be. How well each does against the number of labels is
measured in benchmarks/accuracy_predictor.py.

Files are safetensors, with kind, settings and space in their metadata.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from onceforall.checkpoint import check_numbers, misfit, parsed_space, read_tensors, write_tensors
from onceforall.errors import IncompatibleCheckpoint, OFAError, OutOfDomain
from onceforall.files import parse_json
from onceforall.predict.ensemble import EnsemblePredictor
from onceforall.predict.mlp import MLPPredictor
from onceforall.predict.predictor import AccuracyPredictor, seen_shape
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

FORMAT = "onceforall.accuracy_predictor/1"

Predictor = RidgePredictor | MLPPredictor | EnsemblePredictor

KINDS: dict[str, type[Predictor]] = {kind.kind: kind for kind in (RidgePredictor, MLPPredictor, EnsemblePredictor)}


def save_predictor(path: str | Path, predictor: Predictor) -> None:
    """What a predictor learnt, in one file, atomically. Raises OutOfDomain before `fit`, UnwritableOutput."""
    if not predictor.arrays:
        raise OutOfDomain("this predictor has learnt nothing yet: call fit with labelled architectures")
    metadata = {
        "format": FORMAT,
        "kind": predictor.kind,
        "settings": json.dumps(predictor.settings()),
        "space": json.dumps(predictor.space.to_json()),
    }
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in predictor.arrays.items()}
    write_tensors(Path(path), tensors, metadata)


def load_predictor(path: str | Path) -> Predictor:
    """The predictor that `save_predictor` wrote: it predicts the same numbers. Raises IncompatibleCheckpoint."""
    tensors, metadata = read_tensors(Path(path))
    if metadata.get("format") != FORMAT:
        raise IncompatibleCheckpoint(
            f"{path}: format {metadata.get('format')!r}, expected {FORMAT!r}; what the authors published is read by "
            "interop.load_predictor"
        )
    space = parsed_space(metadata.get("space", ""), str(path))
    try:
        settings = parse_json(metadata["settings"], "it")
        predictor = KINDS[metadata["kind"]](space, **settings)
        predictor.shapes()  # of which settings may be nonsense, too
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, OFAError) as error:
        raise IncompatibleCheckpoint(f"{path}: its settings cannot be read: {error!s:.200}") from error
    expected = {**predictor.shapes(), "seen": seen_shape(space), **({"range": (2,)} if "range" in tensors else {})}
    if problem := misfit(tensors, expected):
        raise IncompatibleCheckpoint(f"{path} does not fit its space and settings: tensors {problem}")
    for name, tensor in tensors.items():
        check_numbers(str(path), name, tensor, name != "seen")
    predictor.adopt({name: tensor.numpy() for name, tensor in tensors.items()})
    return predictor
