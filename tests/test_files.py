import hashlib
from pathlib import Path

import pytest

from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration, UnwritableOutput
from onceforall.files import append_jsonl, read_json, read_jsonl, replacing, sha256, write_atomically, write_json


@pytest.fixture
def below_a_file(tmp_path: Path) -> Path:
    """A path that nobody can write, the administrator included: its folder is a regular file."""
    (tmp_path / "file").write_text("in the way")
    return tmp_path / "file" / "result.json"


@pytest.mark.parametrize("content", ["text\n", b"\x00bytes"])
def test_content_is_written_and_missing_folders_are_made(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "new" / "folder" / "result"
    write_atomically(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)


def test_nothing_but_the_result_is_left_behind(tmp_path: Path) -> None:
    write_atomically(tmp_path / "result", "one")
    write_atomically(tmp_path / "result", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
    assert (tmp_path / "result").read_text() == "two"


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_while_writing_leaves_the_old_file(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "result"
    path.write_text("old")

    def fail_halfway() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the ne")
            raise failure

    with pytest.raises(failure):
        fail_halfway()
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "result"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_full_disk_is_reported_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result"
    path.write_text("old")
    with pytest.raises(UnwritableOutput, match="No space left on device; free some space"), replacing(path):
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old"


@pytest.mark.parametrize("write", [write_json, append_jsonl])
def test_an_unwritable_path_is_named(below_a_file: Path, write: object) -> None:
    with pytest.raises(UnwritableOutput, match=f"cannot write {below_a_file}: .*; choose a writable folder"):
        write(below_a_file, {"a": 1})  # type: ignore[operator]


def test_json_round_trip_is_readable_by_people(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": [1, 2], "b": None})
    assert read_json(path) == {"a": [1, 2], "b": None}
    assert len(path.read_text().splitlines()) > 1


def test_json_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match=f"cannot read {tmp_path / 'none.json'}: No such file"):
        read_json(tmp_path / "none.json")


def test_json_that_is_cut_off_is_named(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('{"a": [1, ')
    with pytest.raises(InvalidConfiguration, match=r"cut.json is not JSON"):
        read_json(tmp_path / "cut.json")


def test_jsonl_records_come_back_in_order(tmp_path: Path) -> None:
    records = [{"step": step, "name": "é\n"} for step in range(3)]
    for record in records:
        append_jsonl(tmp_path / "new" / "log.jsonl", record)
    assert read_jsonl(tmp_path / "new" / "log.jsonl") == records


def test_jsonl_that_does_not_exist_has_no_records(tmp_path: Path) -> None:
    assert read_jsonl(tmp_path / "log.jsonl") == []


def test_jsonl_drops_a_last_line_cut_off_by_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_jsonl(path, {"step": 1})
    path.write_text(path.read_text() + '{"step": 2, "lo')
    assert read_jsonl(path) == [{"step": 1}]


@pytest.mark.parametrize("text", ['{"step": 1}\n{"st\n{"step": 3}\n', '{"step": 1}\n{"st\n'])
def test_jsonl_that_is_damaged_elsewhere_is_refused_with_the_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    with pytest.raises(IncompatibleCheckpoint, match=r"log.jsonl, line 2 is not JSON"):
        read_jsonl(path)


def test_a_file_cut_off_by_a_kill_can_be_continued(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    append_jsonl(path, {"step": 3})
    assert read_jsonl(path) == [{"step": 1}, {"step": 3}]


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert sha256(tmp_path / "file") == hashlib.sha256(b"content").hexdigest()


def test_a_file_is_as_open_as_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("")
        temporary.chmod(0o600)
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
