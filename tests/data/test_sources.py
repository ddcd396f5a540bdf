from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from onceforall.data import sources
from onceforall.data.pictures import PictureData
from onceforall.data.sources import open_data
from onceforall.errors import DataUnavailable, InvalidConfiguration


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The folders that CIFAR-10 is asked for; nothing is fetched."""
    folders: list[str | None] = []

    def cifar10(folder: str | None, notify: Any) -> str:
        folders.append(folder)
        notify("CIFAR-10: fetching")
        return "CIFAR-10"

    monkeypatch.setattr(sources, "cifar10", cifar10)
    return folders


def pictures(folder: Path) -> Path:
    for name in ("ant", "bee"):
        (folder / name).mkdir(parents=True)
        for position in range(20):
            Image.new("RGB", (4, 4)).save(folder / name / f"{position}.png")
    return folder


@pytest.mark.parametrize(
    ("text", "folder"), [("cifar10", None), ("cifar10:", None), ("cifar10:some/folder", "some/folder")]
)
def test_cifar10_is_opened_by_its_name(asked: list[str | None], text: str, folder: str | None) -> None:
    messages: list[str] = []
    assert open_data(text, messages.append) == "CIFAR-10"
    assert asked == [folder]
    assert messages == ["CIFAR-10: fetching"]


def test_a_folder_of_class_folders_is_opened_by_its_path(tmp_path: Path) -> None:
    path = pictures(tmp_path / "insects")
    messages: list[str] = []
    data = open_data(str(path), messages.append, workers=1)
    assert isinstance(data, PictureData)
    assert (data.name, data.num_classes, data.workers) == ("folder:insects", 2, 1)
    assert messages == [f"{path}: looking for pictures"]


def test_a_folder_called_cifar10_is_opened_by_a_longer_path(
    asked: list[str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path / "cifar10")
    monkeypatch.chdir(tmp_path)
    assert open_data("./cifar10").name == "folder:cifar10"
    assert asked == []


@pytest.mark.parametrize("text", ["imagenet", "cifar100", "", "a:b", "cifar10/none"])
def test_other_texts_are_refused_with_what_is_accepted(text: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidConfiguration) as error:
        open_data(text)
    message = str(error.value)
    assert message.startswith(f"data {text!r}: expected cifar10, cifar10:FOLDER")
    assert "a folder that exists" in message


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidConfiguration, match="a folder that exists"):
        open_data(str(tmp_path / "file"))


def test_an_empty_folder_is_reported_as_such(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match="holds no class folders"):
        open_data(str(tmp_path))
