"""Files that are damaged or made up: whatever is in them, reading ends in an error of ours, or in an answer."""

from __future__ import annotations

import contextlib
import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import onceforall as ofa
from onceforall.files import read_json_object

OLD = Path(__file__).parent / "old" / "v0_1_0"  # of a version that wrote no digests

STRANGE = (None, True, -1, 0, 2**70, 1e300, -0.5, "x", "", [], {}, [[]], [1], {"a": 1}, ["x"] * 3)


def of_json(kind: Any) -> Callable[[Path], Any]:
    return lambda path: kind.from_json(read_json_object(path))


def latency(path: Path) -> Any:
    model, space = ofa.load_latency(path), ofa.load_supernet(OLD / "supernet.safetensors").space
    return model.cost(space.lower(space.largest()))


def labels(path: Path) -> Any:
    return ofa.read_labels(path, ofa.load_supernet(OLD / "supernet.safetensors").space)


def predictor(path: Path) -> Any:
    found = ofa.load_predictor(path)
    return found.predict([found.space.largest()])


READERS: dict[str, Callable[[Path], Any]] = {
    "supernet.safetensors": ofa.load_supernet,
    "finetune/network.safetensors": ofa.load_network,
    "mlp.safetensors": predictor,
    "ridge.safetensors": predictor,
    "ensemble-ridge.safetensors": predictor,
    "labels.jsonl": labels,
    "table.json": latency,
    "tables.json": latency,
    "learned.json": latency,
    "learned-tables.json": latency,
    "front.json": of_json(ofa.Front),
    "search.json": of_json(ofa.SearchResult),
}


@pytest.mark.parametrize("name", [name for name in READERS if (OLD / name).exists()])
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damage_is_answered_by_an_error_of_ours(name: str, data: st.DataObject, tmp_path: Path) -> None:
    content = (OLD / name).read_bytes()
    change = data.draw(
        st.sampled_from([flipped, cut, values_of.get(Path(name).suffix, flipped), values_of[Path(name).suffix]])
    )
    path = tmp_path / Path(name).name
    path.unlink(missing_ok=True)  # what was read may still be mapped
    path.write_bytes(change(content, data))
    with contextlib.suppress(ofa.OFAError):
        READERS[name](path)


# Changes


def flipped(content: bytes, data: st.DataObject) -> bytes:
    """A few bytes are others."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed)


def cut(content: bytes, data: st.DataObject) -> bytes:
    """The end is missing."""
    return content[: data.draw(st.integers(0, len(content)))]


def strange(value: Any, data: st.DataObject) -> Any:
    """The JSON value with something else in one place."""
    value = copy.deepcopy(value)
    inner, holder, key = value, None, None
    while isinstance(inner, dict | list) and inner and data.draw(st.integers(0, 3)):
        holder, key = inner, data.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
        inner = inner[key]
    if holder is None:
        return data.draw(st.sampled_from(STRANGE))
    if isinstance(holder, dict) and data.draw(st.booleans()):
        del holder[key]
    else:
        holder[key] = data.draw(st.sampled_from(STRANGE))
    return value


def strange_json(content: bytes, data: st.DataObject) -> bytes:
    return json.dumps(strange(json.loads(content), data)).encode()


def strange_line(content: bytes, data: st.DataObject) -> bytes:
    lines = content.splitlines()
    place = data.draw(st.integers(0, len(lines) - 1))
    lines[place] = strange_json(lines[place], data)
    return b"\n".join(lines) + b"\n"


def strange_metadata(content: bytes, data: st.DataObject) -> bytes:
    """A safetensors file whose space, settings or the like are strange."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    metadata = header["__metadata__"]
    key = data.draw(st.sampled_from(sorted(metadata)))
    try:
        metadata[key] = json.dumps(strange(json.loads(metadata[key]), data))
    except ValueError:
        metadata[key] = "x"
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


values_of = {".json": strange_json, ".jsonl": strange_line, ".safetensors": strange_metadata}
