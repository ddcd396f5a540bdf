"""What a data set in Python gives for a position: a picture and its class, in any form that has one meaning."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from onceforall.data.decoding import Undecoded, decoding, eight_bits, rgb, undecoded
from onceforall.errors import InvalidConfiguration

PICTURES = ("image", "img", "picture")
LABELS = ("label", "labels", "class", "target", "fine_label")
CHANNELS = (1, 2, 3, 4)  # grey, grey and alpha, RGB, RGBA


@dataclass(frozen=True)
class Items:
    """Reads items of a data set with so many classes, which may have names.

    An item is a pair of picture and class, as torchvision's data sets give it, or a row of named columns, as
    Hugging Face's do. A picture is one of PIL, the bytes of a file, or an array [h, w, channels] or tensor
    [channels, h, w] of integers from 0 to 255 or floats from 0 to 1. A class is a number, one-hot numbers or a name.
    """

    num_classes: int
    names: Sequence[str] = ()

    def read(self, item: Any, name: str) -> tuple[Image.Image, int]:
        """Picture (RGB, upright) and class of an item, called `name`. Raises InvalidConfiguration for other kinds."""
        pair = _columns(item) if isinstance(item, Mapping) else item
        if isinstance(pair, tuple | list) and len(pair) == 2:
            picture, label = _opened(pair[0], name), self._class(pair[1])
            if picture is not None and label is not None:
                return picture, label
        names = f", or a name ({', '.join(map(str, self.names[:3]))}, ...)" if self.names else ""
        raise InvalidConfiguration(
            f"{name} is {_said(item)}: expected a pair of picture and class, or a row with the columns image and "
            "label. A picture is one of PIL, an array [h, w, 3] or a tensor [3, h, w] of integers 0 to 255 or floats 0 "
            f"to 1; a class is a number from 0 to {self.num_classes - 1}, or one-hot{names}"
        )

    def _class(self, label: Any) -> int | None:
        if isinstance(label, str):
            return self.names.index(label) if label in self.names else None
        try:
            values = np.asarray(label)
        except (TypeError, ValueError, RuntimeError):
            return None
        if values.dtype.kind not in "biuf":
            return None
        if values.shape == (self.num_classes,) and values.max() == 1 and np.count_nonzero(values) == 1:
            return int(values.argmax())
        return int(values.item()) if values.size == 1 and values.item() == np.rint(values.item()) else None


def class_names(source: Any) -> tuple[str, ...]:
    """Names of the classes, where a data set has such: `classes`, or the feature of its label column."""
    names = getattr(source, "classes", None)
    features = getattr(source, "features", None)
    if names is None and isinstance(features, Mapping):
        names = next((found for key in LABELS if (found := getattr(features.get(key), "names", None))), None)
    return tuple(name if isinstance(name, str) else ", ".join(map(str, name)) for name in names or ())


def _columns(row: Mapping[str, Any]) -> Any:
    """Picture and class of a row, or the row itself where it is not clear which these are."""
    picture = next((key for key in PICTURES if key in row), None)
    label = next((key for key in LABELS if key in row), None)
    return row if picture is None or label is None else (row[picture], row[label])


def _opened(value: Any, name: str) -> Image.Image | None:
    if isinstance(value, Mapping) and value.get("bytes") is not None:
        value = value["bytes"]
    if isinstance(value, bytes):
        return undecoded(lambda: Image.open(io.BytesIO(value)))
    if isinstance(value, Undecoded):
        return value
    if isinstance(value, Image.Image):
        with decoding():
            return rgb(value)
    if not isinstance(value, np.ndarray | Tensor):
        return None
    pixels = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    if pixels.ndim == 3:
        first, last = (pixels.shape[axis] in CHANNELS for axis in (0, 2))
        if first and (isinstance(value, Tensor) or not last):
            pixels = pixels.transpose(1, 2, 0)
    if pixels.dtype.kind not in "biuf" or pixels.ndim not in (2, 3) or not pixels.size:
        return None
    if pixels.ndim == 3 and pixels.shape[2] not in CHANNELS:
        return None
    if pixels.dtype == bool:
        pixels = pixels * np.float32(1)
    try:
        pixels = pixels if pixels.dtype == np.uint8 else eight_bits(pixels, f"{name}: {pixels.dtype}")
    except ValueError as error:
        raise InvalidConfiguration(str(error)) from None
    return rgb(Image.fromarray(np.ascontiguousarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else pixels)))


def _said(value: Any) -> str:
    """A value of a program in a few words."""
    if isinstance(value, Mapping):
        return f"a row ({', '.join(f'{key}: {_said(item)}' for key, item in list(value.items())[:8])})"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} ({', '.join(map(_said, value[:4]))}{', ...' * (len(value) > 4)})"
    if isinstance(value, np.ndarray | Tensor):
        return f"{type(value).__name__} {value.dtype} {list(value.shape)}"
    return f"{type(value).__name__} {value!r:.40}" if isinstance(value, str | int | float) else type(value).__name__
