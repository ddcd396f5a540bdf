import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from onceforall.data import folder as module
from onceforall.data.batches import BatchPlan
from onceforall.data.dataset import split_positions
from onceforall.data.folder import ImageFolder, image_folder
from onceforall.errors import DataUnavailable, InvalidConfiguration

COLOURS = {"ant": (200, 0, 0), "bee": (0, 200, 0), "cow": (0, 0, 200)}


def fill(folder: Path, *names: str, colour: tuple[int, int, int] = (1, 2, 3)) -> None:
    """Pictures of one colour."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), colour).save(folder / name)


def classes_in(folder: Path, count: int, names: tuple[str, ...] = tuple(COLOURS)) -> Path:
    for name in names:
        fill(folder, *(f"{name}/{position:02}.png" for position in range(count)), colour=COLOURS.get(name, (9, 9, 9)))
    return folder


def touch(folder: Path, *names: str) -> None:
    """Files that are never opened."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


# A folder of classes


def test_classes_are_the_folders_in_the_order_of_their_names(tmp_path: Path) -> None:
    touch(tmp_path, "b/1.png", "B/1.png", "10/1.png", "9/1.png")
    found = ImageFolder(tmp_path)
    assert found.root == tmp_path
    assert found.classes == ("10", "9", "B", "b")
    assert found.files == ("10/1.png", "9/1.png", "B/1.png", "b/1.png")
    assert found.labels.tolist() == [0, 1, 2, 3]


def test_pictures_are_sorted_by_class_then_by_file_and_found_in_folders_below(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.png", "b/10.png", "a/z.png", "a/sub/deeper/1.png", "a/b.png")
    found = ImageFolder(tmp_path)
    assert found.files == ("a/b.png", "a/sub/deeper/1.png", "a/z.png", "b/10.png", "b/2.png")
    assert found.labels.tolist() == [0, 0, 0, 1, 1]
    assert len(found) == 5


def test_picture_files_are_told_by_their_names(tmp_path: Path) -> None:
    pictures = ["1.jpg", "2.JPEG", "3.Png", "4.bmp", "5.gif", "6.webp", "7.ppm", "8.tif", "9.TIFF", "91.jfif", "92.pgm"]
    others = ["a.txt", "b.npy", "jpg", ".c.jpg", "._1.jpg", "d.jpg.part", ".hidden/e.jpg"]
    touch(tmp_path, *(f"ant/{name}" for name in pictures + others), "note.jpg", ".cache/f.jpg")
    found = ImageFolder(tmp_path)
    assert found.files == tuple(f"ant/{name}" for name in pictures)
    assert found.classes == ("ant",)


def test_links_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "store", "x/1.png", "y/2.png")
    root = tmp_path / "data"
    (root / "ant").mkdir(parents=True)
    (root / "bee").symlink_to(tmp_path / "store" / "x")
    (root / "ant" / "more").symlink_to(tmp_path / "store" / "y")
    assert ImageFolder(root).files == ("ant/more/2.png", "bee/1.png")


def test_no_folder_is_walked_twice(tmp_path: Path) -> None:
    touch(tmp_path, "ant/1.png", "ant/z/deep/2.png", "bee/3.png", "bee/4.png")
    plain = ImageFolder(tmp_path)
    for link, target in (
        ("ant/loop", "."),
        ("ant/loop2", "."),
        ("ant/a", "z"),  # comes first, and yet the folder keeps its name
        ("ant/up", ".."),
        ("ant/other", "../bee"),
        ("bee/z", "../ant/z"),
    ):
        (tmp_path / link).symlink_to(target)
    linked = ImageFolder(tmp_path)
    assert linked.files == plain.files == ("ant/1.png", "ant/z/deep/2.png", "bee/3.png", "bee/4.png")
    assert linked.labels.tolist() == [0, 0, 1, 1]


def test_a_folder_for_two_classes_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "ant/1.png")
    (tmp_path / "bee").symlink_to("ant")
    with pytest.raises(DataUnavailable, match=r"bee is the same folder as .*ant: a picture has one class"):
        ImageFolder(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_what_is_no_file_or_cannot_be_read_here_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, *(f"ant/{name}" for name in ("1.png", "2.heic", "3.AVIF", "4.dng", "note.txt")))
    os.mkfifo(tmp_path / "ant" / "5.png")
    (tmp_path / "ant" / "6.png").symlink_to("nowhere.png")
    readable = {".png": "PNG", ".avif": "AVIF"}
    monkeypatch.setattr(module.Image, "registered_extensions", lambda: readable)
    said: list[str] = []
    assert ImageFolder(tmp_path, notify=said.append).files == ("ant/1.png", "ant/3.AVIF")
    assert len(said) == 1
    assert f"{tmp_path}: 4 pictures are left out, which cannot be read here" in said[0]
    assert all(name in said[0] for name in ("ant/2.heic", "ant/4.dng", "ant/5.png", "ant/6.png"))
    del readable[".avif"]
    with pytest.warns(UserWarning, match="5 pictures are left out"):
        assert ImageFolder(tmp_path).files == ("ant/1.png",)


def test_items_are_pictures_and_classes(tmp_path: Path) -> None:
    found = ImageFolder(classes_in(tmp_path, 2))
    assert [(found[i][0].getpixel((3, 3)), found[i][1]) for i in range(6)] == [
        (colour, label) for label, colour in enumerate(COLOURS.values()) for _ in range(2)
    ]
    assert type(found[3][1]) is int


def test_a_folder_can_be_given_as_text_and_from_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes_in(tmp_path / "here", 1)
    monkeypatch.chdir(tmp_path)
    assert ImageFolder("here").files == ("ant/00.png", "bee/00.png", "cow/00.png")
    monkeypatch.chdir(tmp_path / "here")
    assert ImageFolder(".").files == ("ant/00.png", "bee/00.png", "cow/00.png")


def test_a_part_keeps_the_classes(tmp_path: Path) -> None:
    whole = ImageFolder(classes_in(tmp_path, 2))
    part = whole.part(np.array([True, False, False, False, False, True]))
    assert (part.files, part.labels.tolist()) == (("ant/00.png", "cow/01.png"), [0, 2])
    assert part.classes == whole.classes
    assert part[1][0].getpixel((0, 0)) == COLOURS["cow"]
    assert len(whole) == 6


@settings(deadline=None)
@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=60))
def test_each_class_is_held_out_by_its_share(counts: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    if len(labels) < 20:
        return
    splits = split_positions(len(labels))
    held_out = np.bincount(labels[splits["label"]], minlength=len(counts))
    assert (abs(held_out - np.array(counts) / 10) < 1).all()
    trained = np.bincount(labels[splits["train"]], minlength=len(counts))
    assert (trained[np.array(counts) > 1] > 0).all()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, reason in (("none", "No such file or directory"), ("file", "Not a directory")):
        with pytest.raises(DataUnavailable, match=f"{tmp_path / name} cannot be read as a folder .*: {reason}"):
            ImageFolder(tmp_path / name)


def test_a_folder_without_classes_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", ".git/2.png")
    with pytest.raises(DataUnavailable, match=f"{tmp_path} holds no class folders"):
        ImageFolder(tmp_path)


def test_a_class_without_pictures_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "ant/1.png", "bee/1.txt", "cow/1.png")
    with pytest.raises(DataUnavailable, match=rf"{tmp_path / 'bee'}: no pictures \(.jpg, .*\): fill or remove"):
        ImageFolder(tmp_path)


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "ant/1.png", "ant/locked/2.png")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataUnavailable, match=r"ant/locked cannot be read: Permission denied"):
        ImageFolder(tmp_path)


# A data set in a folder


@pytest.mark.parametrize(
    ("present", "used"),
    [(["val"], "val"), (["validation"], "validation"), (["test"], "test"), (["test", "val", "validation"], "val")],
)
def test_a_test_set_is_found_under_its_usual_names(tmp_path: Path, present: list[str], used: str) -> None:
    classes_in(tmp_path / "train", 10)
    for name in present:
        classes_in(tmp_path / name, 1 if name == used else 2)
    data = image_folder(tmp_path)
    assert isinstance(data.train, ImageFolder)
    assert isinstance(data.test, ImageFolder)
    assert (data.train.root, data.test.root) == (tmp_path / "train", tmp_path / used)
    assert (len(data.train), len(data.test), data.num_classes) == (30, 3, 3)
    assert data.name == f"folder:{tmp_path.name}"


def test_without_a_test_set_every_tenth_picture_of_all_classes_is_one(tmp_path: Path) -> None:
    data = image_folder(classes_in(tmp_path, 20))
    assert isinstance(data.train, ImageFolder)
    assert isinstance(data.test, ImageFolder)
    assert data.test.files == tuple(f"{name}/{tenth}.png" for name in COLOURS for tenth in ("09", "19"))
    assert len(data.train) == 54
    assert not set(data.train.files) & set(data.test.files)
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.held_out()["label"] == ["ant/10.png", "bee/01.png", "bee/12.png", "cow/03.png", "cow/14.png"]


@pytest.mark.parametrize("size", [1, 3, 7, 9])
def test_tiny_classes_take_turns_to_be_held_out(tmp_path: Path, size: int) -> None:
    names = tuple(f"{label:03}" for label in range(200))
    touch(tmp_path, *(f"{name}/{position}.png" for name in names for position in range(size)))
    data = image_folder(tmp_path)
    assert isinstance(data.test, ImageFolder)
    assert len(data.test) == 20 * size
    assert np.bincount(data.test.labels, minlength=200).max() == 1


def test_the_name_is_that_of_the_folder_however_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes_in(tmp_path / "insects", 10)
    monkeypatch.chdir(tmp_path / "insects")
    assert image_folder(".").name == "folder:insects"


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}/{position}.png" for name in ("car", "train") for position in range(20)))
    assert image_folder(tmp_path).num_classes == 2


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_a_test_set_has_one_of_these_names(tmp_path: Path, name: str) -> None:
    for split in ("train", name):
        classes_in(tmp_path / split, 20)
    assert len(image_folder(tmp_path).test) == 60


def test_a_test_set_of_another_name_is_not_taken_for_a_class(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        classes_in(tmp_path / split, 20)
    with pytest.raises(DataUnavailable, match="no test set: name that one val/ or valid/ or validation/ or test/"):
        image_folder(tmp_path)


def test_a_lone_class_is_refused_with_what_is_expected(tmp_path: Path) -> None:
    touch(tmp_path, *(f"train/{position}.png" for position in range(30)))
    with pytest.raises(DataUnavailable, match=r"one class folder \(train\).* one of train/ and val/ or valid/ or"):
        image_folder(tmp_path)


def test_a_test_class_that_is_not_trained_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "train", *(f"{name}/1.png" for name in ("ant", "bee", "cow")))
    touch(tmp_path / "val", *(f"{name}/1.png" for name in ("ant", "dog", *(f"x{i}" for i in range(6)))))
    with pytest.raises(DataUnavailable) as error:
        image_folder(tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'val'} has classes that {tmp_path / 'train'} lacks, so that nothing would learn them: "
        "dog, x0, x1, x2, x3 and 2 more"
    )


@pytest.mark.parametrize("empty", [False, True])
def test_a_test_set_may_lack_a_class_which_is_said(tmp_path: Path, empty: bool) -> None:
    classes_in(tmp_path / "train", 10)
    classes_in(tmp_path / "val", 2, ("ant", "cow"))
    if empty:
        (tmp_path / "val" / "bee").mkdir()
    said: list[str] = []
    data = image_folder(tmp_path, 0, said.append)
    assert data.classes == tuple(COLOURS)
    assert [labels.tolist() for _, labels in data.batches("test", 16)] == [[0, 0, 2, 2]]
    assert said == [f"{tmp_path / 'val'} has no pictures of bee: nothing will be known of how well they are told"]
    with pytest.warns(UserWarning, match="has no pictures of bee"):
        image_folder(tmp_path)


def test_too_few_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="18 training images: at least 20 are needed"):
        image_folder(classes_in(tmp_path, 10, ("ant", "bee")))


def test_workers_are_passed_on(tmp_path: Path) -> None:
    classes_in(tmp_path, 10)
    assert [image_folder(tmp_path, workers).workers for workers in (None, 0, 3)] == [None, 0, 3]


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_in_folders_are_trained_on(tmp_path: Path, workers: int) -> None:
    data = image_folder(classes_in(tmp_path, 10), workers)
    plan = BatchPlan(data.size("train"), 8, [16], seed=0, phase=0)
    batches = list(data.training(plan.batches(0, 3), torch.device("cpu")))
    assert len(batches) == 3
    for images, labels in itertools.chain(batches, data.batches("test", 16)):
        # A class has one colour: the channel of its number is the brightest.
        assert torch.equal(images.mean((2, 3)).argmax(1), labels)


def test_extensions_are_written_in_small_letters() -> None:
    assert all(extension == extension.lower() and extension[0] == "." for extension in module.EXTENSIONS)
