import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from onceforall.data.augment import augment_picture, centre_crop, random_resized_crop
from onceforall.data.decoding import Undecodable, Undecoded, eight_bits, rgb, undecoded

RAMP = np.tile(np.linspace(0, 1, 64), (64, 1))


def smooth(width: int, height: int) -> Image.Image:
    """Something like a photograph: coarse shapes with fine ones on them, which JPEG keeps."""
    rng = np.random.default_rng(0)
    pixels = np.zeros((height, width, 3))
    for cells in (4, 16, 64):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        pixels += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / (cells**0.5)
    return Image.fromarray((pixels / pixels.max() * 255).astype(np.uint8))


def saved(picture: Image.Image, path: Path, orientation: int = 1, **options: Any) -> Path:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture.save(path, exif=exif, **options)
    return path


def pixels_of(path: Path) -> NDArray[np.int64]:
    with Image.open(path) as picture:
        return np.asarray(rgb(picture)).astype(int)


# Modes


def grey16(value: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8), 256 * value, np.uint16))


def palette(value: int) -> Image.Image:
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, value, value, value])
    return picture


SEEN = 255 - 155 * 51 / 255  # a grey of 100, one fifth of it on white
MODES: dict[str, tuple[str, Callable[[int], Image.Image], dict[str, Any], float]] = {
    "grey": ("jpg", lambda value: Image.new("L", (8, 8), value), {}, 100),
    "grey and alpha": ("png", lambda value: Image.new("LA", (8, 8), (value, 51)), {}, SEEN),
    "16 bit grey": ("png", grey16, {}, 100),
    "32 bit grey": ("tif", lambda value: Image.fromarray(np.full((8, 8), 256 * value, np.int32)), {}, 100),
    "CMYK": ("jpg", lambda value: Image.new("CMYK", (8, 8), (255 - value,) * 3 + (0,)), {"quality": 100}, 100),
    "RGBA": ("png", lambda value: Image.new("RGBA", (8, 8), (value, value, value, 51)), {}, SEEN),
    "opaque": ("png", lambda value: Image.new("RGBA", (8, 8), (value, value, value, 255)), {}, 100),
    "palette": ("gif", palette, {}, 100),
    "palette and alpha": ("png", palette, {"transparency": bytes([0, 51])}, SEEN),
    "palette without that colour": ("png", palette, {"transparency": 1}, 255),
    "grey without that grey": ("png", lambda value: Image.new("L", (8, 8), value), {"transparency": 100}, 255),
    "RGB without that colour": (
        "png",
        lambda value: Image.new("RGB", (8, 8), (value, value, value)),
        {"transparency": (100, 100, 100)},
        255,
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_pictures_of_every_mode_become_rgb_on_white(mode: str, tmp_path: Path) -> None:
    suffix, make, options, expected = MODES[mode]
    path = tmp_path / f"picture.{suffix}"
    make(100).save(path, **options)
    with Image.open(path) as picture:
        converted = rgb(picture)
    assert converted.mode == "RGB"
    assert abs(np.asarray(converted) - expected).max() <= 2
    assert np.array_equal(np.asarray(rgb(converted)), np.asarray(converted))


def test_black_and_white_pictures_become_rgb() -> None:
    assert rgb(Image.new("1", (2, 2), 1)).getpixel((0, 0)) == (255, 255, 255)
    assert rgb(Image.new("1", (2, 2), 0)).getpixel((0, 0)) == (0, 0, 0)


# Depths


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize(("suffix", "dtype"), [("png", np.uint16), ("tif", np.uint16), ("tif", np.int32)])
def test_grey_of_any_depth_keeps_its_range(bits: int, suffix: str, dtype: Any, tmp_path: Path) -> None:
    path = tmp_path / f"ramp.{suffix}"
    Image.fromarray((RAMP * (2**bits - 1)).astype(dtype)).save(path)
    assert abs(pixels_of(path) - RAMP[:, :, None] * 255).max() <= 1.1


@pytest.mark.parametrize("most", [1, 255, 4095])
def test_floats_keep_their_range(most: int, tmp_path: Path) -> None:
    Image.fromarray((RAMP * most).astype(np.float32)).save(tmp_path / "ramp.tif")
    assert abs(pixels_of(tmp_path / "ramp.tif") - RAMP[:, :, None] * 255).max() <= 1.1


@pytest.mark.parametrize(
    "values",
    [
        np.array([[-1, 5]], np.int32),
        np.array([[0, 65_536]], np.int32),
        np.array([[-0.5, 0.5]], np.float32),
        np.array([[0, 1.5]], np.float32),
        np.array([[0, np.nan]], np.float32),
        np.array([[0, np.inf]], np.float32),
    ],
)
def test_ranges_that_are_not_known_are_refused(values: NDArray[Any]) -> None:
    mode = "F" if values.dtype == np.float32 else "I"
    with pytest.raises(ValueError, match=f"mode {mode} with values from .* to .*: those that can be shown are 0 to 1"):
        rgb(Image.fromarray(values))
    with pytest.raises(ValueError, match="x with values from"):
        eight_bits(values, "x")


def png16(values: NDArray[np.uint16]) -> bytes:
    """RGB of 16 bits a channel, which Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_colours_of_which_only_the_low_bits_are_used_are_refused() -> None:
    colours = np.repeat(RAMP[:, :, None], 3, axis=2)
    whole = rgb(Image.open(io.BytesIO(png16((colours * 65_535).astype(np.uint16)))))
    assert abs(np.asarray(whole) - colours * 255).max() <= 1.1
    assert not np.asarray(rgb(Image.open(io.BytesIO(png16(np.zeros((4, 4, 3), np.uint16)))))).any()
    with pytest.raises(ValueError, match="mode RGB of 16 bits a channel, of which at most 12 are used"):
        rgb(Image.open(io.BytesIO(png16((colours * 4_095).astype(np.uint16)))))


# Orientation


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(orientation: int, suffix: str, tmp_path: Path) -> None:
    path = saved(smooth(40, 24), tmp_path / f"turned.{suffix}", orientation)
    with Image.open(path) as picture:
        expected = ImageOps.exif_transpose(picture).convert("RGB")
    with Image.open(path) as picture:
        upright = rgb(picture)
    assert np.array_equal(np.asarray(upright), np.asarray(expected))
    assert np.array_equal(np.asarray(rgb(upright)), np.asarray(expected))  # and are not turned again
    lazily = undecoded(lambda: Image.open(path))
    assert lazily.size == expected.size
    assert np.array_equal(np.asarray(lazily), np.asarray(expected))


def test_damaged_exif_data_is_passed_over() -> None:
    picture = smooth(8, 8)
    picture.info["exif"] = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"
    assert rgb(picture) is picture


# JPEG in smaller scales


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_jpeg_is_cropped_as_if_it_were_decoded_in_full(orientation: int, tmp_path: Path) -> None:
    path = saved(smooth(1003, 749), tmp_path / "large.jpg", orientation, quality=92)  # no multiples of 8
    with Image.open(path) as picture:
        whole = rgb(picture)
    crops: list[Callable[[Image.Image], Image.Image]] = [lambda picture: centre_crop(picture, 64)]
    crops += [
        lambda picture, seed=seed: random_resized_crop(picture, 48, np.random.default_rng(seed)) for seed in range(8)
    ]
    crops += [lambda picture: picture.resize((20, 15), Image.Resampling.BILINEAR)]
    for crop in crops:
        expected, found = (
            np.asarray(crop(picture)).astype(int) for picture in (whole, undecoded(lambda: Image.open(path)))
        )
        assert abs(found - expected).mean() < 1
        shifted = np.roll(expected, 1, axis=1)[:, 1:]
        assert abs(found - expected).mean() < abs(found[:, 1:] - shifted).mean() / 3


def test_no_more_is_decoded_than_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(smooth(1200, 800), tmp_path / "large.jpg", 6)
    decoded: list[tuple[int, int]] = []
    original = Image.Image.resize

    def record(self: Image.Image, *given: Any) -> Image.Image:
        decoded.append(self.size)
        return original(self, *given)

    monkeypatch.setattr(Image.Image, "resize", record)
    for side in (201, 200, 101, 100, 50, 10):
        picture = undecoded(lambda: Image.open(path))
        assert picture.size == (800, 1200)
        picture.resize((side, side), Image.Resampling.BILINEAR)
    assert decoded == [(800, 1200), (400, 600), (400, 600), (200, 300), (100, 150), (100, 150)]


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_smaller_scales_of_other_modes_become_rgb(mode: str, tmp_path: Path) -> None:
    path = saved(smooth(400, 300).convert(mode), tmp_path / "large.jpg", 3)
    small = undecoded(lambda: Image.open(path)).resize((40, 30), Image.Resampling.BILINEAR)
    with Image.open(path) as picture:
        expected = rgb(picture).resize((40, 30), Image.Resampling.BILINEAR)
    assert small.mode == "RGB"
    assert abs(np.asarray(small).astype(int) - np.asarray(expected)).mean() < 1


def test_small_jpegs_come_out_bit_for_bit(tmp_path: Path) -> None:
    path = saved(smooth(500, 375), tmp_path / "small.jpg")
    with Image.open(path) as picture:
        whole = rgb(picture)
    for seed in range(6):
        first, second = (
            augment_picture(picture, 224, np.random.default_rng(seed))
            for picture in (whole, undecoded(lambda: Image.open(path)))
        )
        assert np.array_equal(np.asarray(first), np.asarray(second))
    assert np.array_equal(
        np.asarray(centre_crop(undecoded(lambda: Image.open(path)), 160)), np.asarray(centre_crop(whole, 160))
    )


def test_an_undecoded_picture_is_a_picture(tmp_path: Path) -> None:
    path = saved(smooth(80, 60), tmp_path / "picture.jpg")
    with Image.open(path) as picture:
        whole = rgb(picture)
    for use in (
        lambda picture: picture.crop((3, 4, 20, 30)),
        lambda picture: picture.convert("L"),
        lambda picture: picture.transpose(Image.Transpose.ROTATE_90),
        lambda picture: picture.copy(),
        lambda picture: picture.getpixel((5, 6)),
        lambda picture: picture.rotate(10),
    ):
        assert np.array_equal(np.asarray(use(whole)), np.asarray(use(undecoded(lambda: Image.open(path)))))


def test_only_jpegs_wait_and_all_say_that_they_are_damaged(tmp_path: Path) -> None:
    for suffix, waits in (("jpg", True), ("png", False)):
        path = saved(smooth(400, 300), tmp_path / f"picture.{suffix}")
        assert isinstance(undecoded(lambda path=path: Image.open(path)), Undecoded) == waits
        path.write_bytes(path.read_bytes()[:-900])
        for use in (np.asarray, lambda picture: picture.resize((9, 9))):
            with pytest.raises(Undecodable, match="truncated"):
                use(undecoded(lambda path=path: Image.open(path)))
