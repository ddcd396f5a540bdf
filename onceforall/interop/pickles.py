"""Torch files of others: tensors and plain containers are read, code never.

torch's weights-only reader does the reading (zip files and the legacy format); what it refuses
becomes an error that says so.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onceforall.errors import IncompatibleCheckpoint
from onceforall.files import replacing


def read_pickle(path: str | Path) -> Any:
    """What a torch file holds, on the processor. Raises IncompatibleCheckpoint."""
    path = Path(path)
    if not path.is_file():
        raise IncompatibleCheckpoint(f"{path} does not exist")
    try:
        with warnings.catch_warnings():  # on pickle protocols: what cannot be read is an error here
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can make an unpickler raise anything
        culprit = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if culprit:
            raise IncompatibleCheckpoint(
                f"{path} is not read: it may run code ({culprit[1]}); save its state dict alone and try again"
            ) from error
        raise IncompatibleCheckpoint(f"{path} is not a whole torch file: copy it again") from error


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a torch file, bare or under "state_dict". Raises IncompatibleCheckpoint."""
    value = read_pickle(path)
    if isinstance(value, Mapping) and isinstance(value.get("state_dict"), Mapping):
        value = value["state_dict"]
    if not isinstance(value, Mapping) or not value or not all(isinstance(item, Tensor) for item in value.values()):
        raise IncompatibleCheckpoint(
            f"{path} holds no state dict: expected tensors by name, bare or under 'state_dict'"
        )
    # DataParallel's wrapper puts a level of its own in front of every name.
    wrapped = all(str(name).startswith("module.") for name in value)
    return {str(name).removeprefix("module.") if wrapped else str(name): tensor for name, tensor in value.items()}


def write_state(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """A torch file with `{"state_dict": state}`, as the authors' code reads it. Raises UnwritableOutput."""
    with replacing(Path(path)) as temporary:
        torch.save({"state_dict": dict(state)}, temporary)
