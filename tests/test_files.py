import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration, UnwritableOutput
from onceforall.files import (
    DIGEST,
    HOST,
    MOST_BYTES,
    append_jsonl,
    differing,
    owned,
    read_json,
    read_jsonl,
    replacing,
    sha256,
    write_atomically,
    write_json,
    write_jsonl,
)


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


# Digests


def test_an_object_says_the_digest_of_its_content_and_is_read_without(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"b": (1, 2), "a": 0.1})
    written = json.loads(path.read_text())
    assert written.pop(DIGEST) == hashlib.sha256(b'{"a":0.1,"b":[1,2]}').hexdigest()
    assert read_json(path) == written == {"b": [1, 2], "a": 0.1}
    write_json(path, {**written, DIGEST: "of before"})
    assert read_json(path) == written
    write_json(path, written, sealed=False)
    assert DIGEST not in path.read_text()
    assert read_json(path) == written


@pytest.mark.parametrize(("old", "new"), [("0.1", "0.2"), ('"a"', '"c"'), ("[\n  1", "[\n  7")])
def test_json_that_was_changed_is_refused_and_says_what_to_do(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"b": (1, 2), "a": 0.1})
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InvalidConfiguration, match=r"value.json is damaged, or was changed by hand.*remove that field"):
        read_json(path)
    changed = {key: value for key, value in json.loads(path.read_text()).items() if key != DIGEST}
    path.write_text(json.dumps(changed))
    assert read_json(path) == changed


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "[" * 101 + "]" * 101, '{"a": NaN}', '{"a": 1e400}', "\udcff", "{", ""]
)
def test_json_that_is_none_of_ours_is_refused_by_its_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "value.json"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(InvalidConfiguration, match=r"value.json is not JSON"):
        read_json(path)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_json_does_not_have_is_not_written(tmp_path: Path, number: float) -> None:
    with pytest.raises(InvalidConfiguration, match=r"value.json cannot be written: .*not JSON compliant"):
        write_json(tmp_path / "value.json", {"a": [number]})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "value.json").open("wb") as file:
        file.truncate(MOST_BYTES + 1)  # which takes no room on the disk
    for read in (read_json, read_jsonl):
        with pytest.raises(InvalidConfiguration, match=f"has {MOST_BYTES + 1} bytes: expected at most"):
            read(tmp_path / "value.json")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"n": 5}', None),  # as older versions wrote it
        (b"[]", "line 2 is no JSON object"),
        (b"3", "line 2 is no JSON object"),
        (b'{"n": "\xff"}', "line 2 is not JSON"),
        (b"[" * 100_000, "line 2 is not JSON"),
        (b'{"n": 1, "content_sha256": "0123456789abcdef"}', "line 2 is damaged"),
    ],
)
def test_a_damaged_line_is_named_or_passed_over(tmp_path: Path, line: bytes, message: str | None) -> None:
    path = tmp_path / "lines.jsonl"
    write_jsonl(path, [{"n": 1}])
    with path.open("ab") as file:
        file.write(line + b"\n")
    append_jsonl(path, {"n": 3})
    if message is None:
        assert [record["n"] for record in read_jsonl(path)] == [1, 5, 3]
        return
    with pytest.raises(IncompatibleCheckpoint, match=f"lines.jsonl, {message}"):
        read_jsonl(path)
    problems: list[str] = []
    assert [record["n"] for record in read_jsonl(path, damaged=problems.append)] == [1, 3]
    assert len(problems) == 1


# What others left, and who may write


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    gone = tmp_path / f".old.json.{HOST}-{ended.pid}.part"
    kept = [
        tmp_path / f".of-init.json.{HOST}-1.part",  # which runs
        tmp_path / ".of-another-machine.json.elsewhere-99.part",
        tmp_path / f".no-number.json.{HOST}-x.part",
        tmp_path / "latency.part",
    ]
    for path in (gone, *kept):
        path.touch()
    write_json(tmp_path / "new.json", {})
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / "new.json"])


def test_a_folder_has_one_owner_until_its_process_ends(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from onceforall.files import owned\n"
        "with owned(Path(sys.argv[1]), 'run'): print('mine', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"mine\n"
        with pytest.raises(UnwritableOutput, match="another run that is still running"), owned(tmp_path / "run", "run"):
            pass
        other.kill()
    with owned(tmp_path / "run", "run"):
        pass


def test_what_differs_is_said_by_its_place() -> None:
    theirs = {"seed": 0, "data": {"name": "a", "size": 3}, "same": [1]}
    ours = {"seed": 1, "data": {"name": "a", "size": 4}, "same": [1]}
    assert differing(theirs, ours) == "data.size is 3 there, 4 here; seed is 0 there, 1 here"
    assert differing(theirs, theirs) == ""
    assert len(differing({"a": "x" * 1000}, {"a": None})) < 100


def test_lines_of_a_file_that_goes_while_it_is_read_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: Path) -> bytes:
        path.unlink()
        raise FileNotFoundError(2, "No such file or directory")

    write_jsonl(tmp_path / "lines.jsonl", [{"n": 1}])
    monkeypatch.setattr(Path, "read_bytes", gone)
    assert read_jsonl(tmp_path / "lines.jsonl") == []
