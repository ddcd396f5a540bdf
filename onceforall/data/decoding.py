"""Pictures as a viewer shows them, whatever their files hold: upright, in RGB, 8 bits, on white."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from onceforall.errors import DataUnavailable, OFAError

Transpose = Image.Transpose

# What makes a picture upright, by the orientation in its EXIF data, and which of the new axes (x, y) it reverses.
UPRIGHT = {
    2: (Transpose.FLIP_LEFT_RIGHT, (1, 0)),
    3: (Transpose.ROTATE_180, (1, 1)),
    4: (Transpose.FLIP_TOP_BOTTOM, (0, 1)),
    5: (Transpose.TRANSPOSE, (0, 0)),
    6: (Transpose.ROTATE_270, (1, 0)),
    7: (Transpose.TRANSVERSE, (1, 1)),
    8: (Transpose.ROTATE_90, (0, 1)),
}
SWAPPING = {Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90}
EXIF = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")  # where in `info` an orientation may be
BITS = (8, 10, 12, 14, 16)
SCALES = (8, 4, 2)  # of JPEG's decoder, which leaves out high frequencies: sides so many times shorter
GAP = 2  # how many times as large as the result a part stays; with 1, 4 % faster and twice as far from full decoding


class Undecodable(DataUnavailable):
    """A picture is damaged, or of a kind that cannot be shown."""


@contextmanager
def decoding() -> Iterator[None]:
    """Raises Undecodable for whatever is raised: on damaged files, decoders raise almost anything."""
    try:
        yield
    except (OFAError, MemoryError):
        raise
    except Exception as error:
        raise Undecodable(str(error) or type(error).__name__) from error


def rgb(picture: Image.Image) -> Image.Image:
    """A picture of any mode, decoded, as RGB of 8 bits and upright.

    What is transparent shows white. Grey of more than 8 bits, and floats, are scaled as `eight_bits` says. Raises
    ValueError where their range is unknown.
    """
    deep = any(";16" in str(tile) for tile in getattr(picture, "tile", ()))
    picture.load()
    turn = _turn(picture)
    picture = _colours(picture, deep)
    if turn is not None:
        picture = picture.transpose(turn[0])
        picture.info = {}  # it must not be turned again
    return picture


def eight_bits(values: NDArray[Any], what: str) -> NDArray[np.uint8]:
    """Numbers of pixels as 8 bits.

    Those from 0 to 1 that are no integers are times 255; others have 8, 10, 12, 14 or 16 bits, the fewest
    that hold the largest of them. Raises ValueError for any others; `what` begins its message.
    """
    least, most = values.min(initial=0), values.max(initial=0)
    floats = values.dtype.kind == "f"
    if least >= 0 and floats and most <= 1:
        return np.asarray(np.rint(values * 255), np.uint8)
    bits = next((bits for bits in BITS if most < 2**bits), None)
    if least >= 0 and bits is not None and not (floats and most < 2):  # from 0 to 1, and beyond by mistake?
        return np.asarray(values / 2 ** (bits - 8)).astype(np.uint8)
    raise ValueError(
        f"{what} with values from {least:g} to {most:g}: those that can be shown are 0 to 1, or integers of 8 to 16 "
        "bits from 0 on; convert them to 8 bits"
    )


class Undecoded(Image.Image):
    """A JPEG file as an RGB picture, upright, which is decoded when its pixels are asked for.

    `resize` decodes no more than is needed: a part that is two or more times as large as what it becomes, in
    JPEG's own smaller scales. `opened` opens the file anew; `file` is it, open. What fails in decoding
    raises Undecodable.
    """

    def __init__(self, opened: Callable[[], Image.Image], file: Image.Image) -> None:
        super().__init__()
        self._turn, size = _turn(file), file.size
        swapped = self._turn is not None and self._turn[0] in SWAPPING
        self._opened, self._mode, self._size, self._whole = opened, "RGB", size[::-1] if swapped else size, False

    def load(self) -> Any:
        if not self._whole:
            with decoding(), self._opened() as file:
                self.im, self._whole = rgb(file).im, True
        return super().load()

    def resize(
        self,
        size: Any,
        resample: int | None = None,
        box: tuple[float, float, float, float] | None = None,
        reducing_gap: float | None = None,
    ) -> Image.Image:
        left, top, right, bottom = box or (0, 0, *self.size)
        fits = min((right - left) / size[0], (bottom - top) / size[1])
        scale = next((scale for scale in SCALES if scale * GAP <= fits), 1)
        if scale == 1 or self._whole:
            return super().resize(size, resample, box, reducing_gap)
        with decoding(), self._opened() as file:
            file.draft(None, (file.width // scale, file.height // scale))
            small = rgb(file)
        # The decoder rounds sides up, at the end that a reversed axis begins with.
        x, y = self._turn[1] if self._turn else (0, 0)
        right_, down = x * (small.width - self.width / scale), y * (small.height - self.height / scale)
        box = (left / scale + right_, top / scale + down, right / scale + right_, bottom / scale + down)
        return small.resize(size, resample, box, reducing_gap)


def undecoded(opened: Callable[[], Image.Image]) -> Image.Image:
    """The picture in a file that `opened` opens, in RGB and upright; a JPEG is decoded when and as far as is needed."""
    with decoding(), opened() as picture:
        return Undecoded(opened, picture) if picture.format in ("JPEG", "MPO") else rgb(picture)


def _turn(picture: Image.Image) -> tuple[Transpose, tuple[int, int]] | None:
    """What makes the picture upright, of `UPRIGHT`."""
    if not any(key in picture.info for key in EXIF):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return UPRIGHT.get(picture.getexif()[ExifTags.Base.Orientation])
    except Exception:  # there is none, or it is damaged; the picture may be whole all the same
        return None


def _colours(picture: Image.Image, deep: bool) -> Image.Image:
    """In RGB; `deep`: of 16 bits a channel, of which Pillow kept the upper 8."""
    if picture.mode.startswith("I") or picture.mode == "F":
        return Image.fromarray(eight_bits(np.asarray(picture), f"mode {picture.mode}")).convert("RGB")
    if deep and 0 < (most := np.asarray(picture.convert("RGB")).max()) < 64:
        raise ValueError(
            f"mode {picture.mode} of 16 bits a channel, of which at most {int(most).bit_length() + 8} are used: it is "
            "black; convert it to 8 bits"
        )
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture)
        picture = white
    return picture if picture.mode == "RGB" else picture.convert("RGB")
