import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from onceforall.data.batches import Batch
from onceforall.data.decoding import Undecodable, Undecoded
from onceforall.data.items import Items, class_names
from onceforall.data.pictures import PictureData
from onceforall.errors import InvalidConfiguration

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
GREY = np.asarray(PICTURE.convert("L"))
ITEMS = Items(4, ("ant", "bee", "cow", "dog"))


def png() -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, "PNG")
    return file.getvalue()


PICTURES: dict[str, Any] = {
    "PIL": PICTURE,
    "array": PIXELS,
    "array, channels first": PIXELS.transpose(2, 0, 1),
    "array of integers": PIXELS.astype(np.int64),
    "array of floats": (PIXELS / 255).astype(np.float32),
    "array with alpha": np.concatenate([PIXELS, np.full((6, 5, 1), 255, np.uint8)], axis=2),
    "tensor": torch.from_numpy(PIXELS.transpose(2, 0, 1).copy()),
    "tensor, channels last": torch.from_numpy(PIXELS.copy()),
    "tensor, as after ToTensor": torch.from_numpy(PIXELS.transpose(2, 0, 1) / 255).float().requires_grad_(),
    "bytes": png(),
    "bytes of a row that is not decoded": {"bytes": png(), "path": None},
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_may_be_of_any_kind(kind: str) -> None:
    picture, label = ITEMS.read((PICTURES[kind], 2), "it")
    assert np.array_equal(np.asarray(picture), PIXELS)
    assert (picture.mode, label) == ("RGB", 2)


@pytest.mark.parametrize("value", [GREY, GREY[:, :, None], torch.from_numpy(GREY.copy())[None], GREY * np.uint16(256)])
def test_a_picture_may_be_grey(value: Any) -> None:
    picture, _ = ITEMS.read((value, 0), "it")
    assert np.array_equal(np.asarray(picture), np.repeat(GREY[:, :, None], 3, axis=2))


def test_true_and_false_are_white_and_black() -> None:
    picture, _ = ITEMS.read((GREY > 100, 0), "it")
    assert np.array_equal(np.asarray(picture)[:, :, 0], (GREY > 100) * 255)


@pytest.mark.parametrize(
    "label",
    [
        2,
        2.0,
        np.int32(2),
        np.float64(2),
        np.array([2]),
        torch.tensor(2),
        torch.tensor([2.0]),
        np.eye(4)[2],
        torch.eye(4)[2],
        [0, 0, 1, 0],
        "cow",
    ],
    ids=repr,
)
def test_a_class_may_be_of_any_kind(label: Any) -> None:
    assert ITEMS.read((PICTURE, label), "it")[1] == 2
    assert type(ITEMS.read((PICTURE, label), "it")[1]) is int


def test_two_classes_may_be_true_and_false() -> None:
    assert [Items(2).read((PICTURE, label), "it")[1] for label in (False, True, [1, 0], [0, 1])] == [0, 1, 0, 1]
    assert [Items(1).read((PICTURE, label), "it")[1] for label in ([0], [1], 0)] == [0, 0, 0]


@pytest.mark.parametrize(
    "row",
    [
        {"image": PICTURE, "label": 1},
        {"label": 1, "image": PICTURE, "id": 7},
        {"img": PIXELS, "fine_label": 1, "coarse_label": 0},
        {"image": PICTURE, "labels": 1, "segmentation": PICTURE},
    ],
)
def test_a_row_gives_its_picture_and_class(row: dict[str, Any]) -> None:
    picture, label = ITEMS.read(row, "it")
    assert np.array_equal(np.asarray(picture), PIXELS)
    assert label == 1


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ((PICTURE, "elk"), r"a tuple \(Image, str 'elk'\)"),
        ((PICTURE, 1.5), r"a tuple \(Image, float 1.5\)"),
        ((PICTURE, [0.5, 0.5, 0, 0]), "a tuple"),
        ((PICTURE, [1, 0, 1, 0]), "a tuple"),
        ((PICTURE, None), r"a tuple \(Image, NoneType\)"),
        ((PICTURE, {"class": 1}), r"a tuple \(Image, a row \(class: int 1\)\)"),
        ((PICTURE, 1, 2), r"a tuple \(Image, int 1, int 2\)"),
        (PICTURE, "Image"),
        (7, "int 7"),
        (None, "NoneType"),
        ("picture.jpg", "str 'picture.jpg'"),
        (("picture.jpg", 1), "a tuple"),
        ({"pixels": PICTURE, "label": 1}, r"a row \(pixels: Image, label: int 1\)"),
        ({"image": PICTURE, "species": 1}, "a row"),
        ({"image": {"path": "x.jpg", "bytes": None}, "label": 1}, "a row"),
        ((np.zeros((2, 3, 8, 8)), 1), r"a tuple \(ndarray float64 \[2, 3, 8, 8\], int 1\)"),
        ((np.zeros((8, 8, 7)), 1), "a tuple"),
        ((np.zeros((0, 8, 3)), 1), "a tuple"),
        ((np.array([["a"]]), 1), "a tuple"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_other_items_are_refused_with_what_they_are_and_should_be(item: Any, said: str) -> None:
    with pytest.raises(InvalidConfiguration, match=rf"^picture 3 is {said}.*: expected a pair of picture and") as error:
        ITEMS.read(item, "picture 3")
    assert "a number from 0 to 3, or one-hot, or a name (ant, bee, cow, ...)" in str(error.value)
    assert "remove" not in str(error.value)


def test_arrays_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidConfiguration, match=r"picture 3: float32 with values from -2 to 2: those that can be"):
        ITEMS.read((np.array([[[-2.0, 0, 2]]], np.float32), 1), "picture 3")


def test_damaged_bytes_are_a_damaged_picture() -> None:
    with pytest.raises(Undecodable, match="cannot identify"):
        ITEMS.read((b"a picture?", 1), "it")
    with pytest.raises(Undecodable, match="mode I with values from -1 to 0"):
        ITEMS.read((Image.fromarray(np.full((2, 2), -1, np.int32)), 1), "it")


def test_jpegs_in_rows_are_decoded_as_far_as_is_needed() -> None:
    file = io.BytesIO()
    PICTURE.save(file, "JPEG")
    assert isinstance(ITEMS.read({"image": {"bytes": file.getvalue()}, "label": 1}, "it")[0], Undecoded)


def test_names_of_classes_are_found() -> None:
    feature = SimpleNamespace(names=["ant", "bee"])
    assert class_names([]) == ()
    assert class_names(SimpleNamespace(classes=["ant", "bee"])) == ("ant", "bee")
    assert class_names(SimpleNamespace(classes=[("tench", "Tinca tinca")])) == ("tench, Tinca tinca",)
    assert class_names(SimpleNamespace(features={"img": None, "fine_label": feature})) == ("ant", "bee")
    assert class_names(SimpleNamespace(features={"image": None})) == ()


class Rows(list[dict[str, Any]]):
    """As a data set of Hugging Face is seen from outside."""

    features = {"image": None, "label": SimpleNamespace(names=["ant", "bee"])}  # noqa: RUF012


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_are_trained_on(workers: int) -> None:
    rows = Rows({"image": Image.new("L", (8, 8), position), "label": position % 2} for position in range(40))
    data = PictureData("rows", rows, rows, 2, (0, 0, 0), (1, 1, 1), workers)
    assert data.classes == ("ant", "bee")
    ((images, labels),) = data.training([Batch(np.array([3, 8]), 4, 0, slice(0, 2))], torch.device("cpu"))
    assert images.shape == (2, 3, 4, 4)
    assert labels.tolist() == [1, 0]
    assert len(next(data.batches("test", 4))[1]) == 40


class Faulty(list[Any]):
    def __getitem__(self, index: Any) -> Any:
        raise KeyError("image")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_of_the_data_set_is_no_damaged_picture(workers: int) -> None:
    data = PictureData("faulty", Faulty([0] * 40), Faulty([0]), 2, workers=workers)
    with pytest.raises(
        InvalidConfiguration, match=r"reading picture 3 raised KeyError: 'image'; that is a fault of the"
    ):
        list(data.training([Batch(np.array([3]), 4, 0, slice(0, 1))], torch.device("cpu")))
