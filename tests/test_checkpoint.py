import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from onceforall import checkpoint, spaces
from onceforall.architecture import Architecture
from onceforall.checkpoint import (
    load_network,
    load_supernet,
    read_tensors,
    restore,
    save_network,
    save_supernet,
    write_tensors,
)
from onceforall.errors import IncompatibleCheckpoint, UnwritableOutput
from onceforall.nn.subnet import build
from onceforall.nn.supernet import Network, Supernet
from onceforall.space import SearchSpace


@pytest.fixture
def saved(tiny_supernet: Supernet, tmp_path: Path) -> Path:
    path = tmp_path / "supernet.safetensors"
    save_supernet(path, tiny_supernet)
    return path


def rewrite(path: Path, tensors: dict[str, Tensor]) -> None:
    """The same file with other tensors."""
    _, metadata = read_tensors(path)
    write_tensors(path, tensors, metadata)


def test_weights_and_space_come_back(saved: Path, tiny_supernet: Supernet) -> None:
    loaded = load_supernet(saved)
    assert loaded.space == tiny_supernet.space
    tensors = loaded.state_dict()
    assert tensors.keys() == tiny_supernet.state_dict().keys()
    for name, tensor in tiny_supernet.state_dict().items():
        assert torch.equal(tensors[name], tensor), name


def test_a_loaded_supernet_computes_the_same(supernet: Supernet, space: SearchSpace, tmp_path: Path) -> None:
    save_supernet(tmp_path / "supernet.safetensors", supernet)
    loaded = load_supernet(str(tmp_path / "supernet.safetensors")).eval()
    arch = space.smallest()
    images = torch.randn(2, 3, arch.resolution, arch.resolution)
    torch.testing.assert_close(loaded(images, arch), supernet(images, arch), rtol=1e-4, atol=1e-4)


def test_a_loaded_supernet_is_channels_last(saved: Path) -> None:
    weight = load_supernet(saved).stem[0].full.conv.weight  # type: ignore[union-attr]
    assert weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[operator]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleCheckpoint, match=r"none.safetensors does not exist"):
        load_supernet(tmp_path / "none.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 100, 5000, -1])
def test_a_truncated_file_is_refused(saved: Path, kept: int) -> None:
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(IncompatibleCheckpoint, match=r"supernet.safetensors is not a whole safetensors file"):
        load_supernet(saved)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "supernet.safetensors").write_bytes(b"\x80\x02PK this is a pickle" * 100)
    with pytest.raises(IncompatibleCheckpoint, match="not a whole safetensors file"):
        load_supernet(tmp_path / "supernet.safetensors")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_foreign_safetensors_file_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors", metadata)
    with pytest.raises(IncompatibleCheckpoint, match=r"foreign.safetensors: format .*, expected 'onceforall"):
        load_supernet(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize("space", [None, "{", "{}", '{"type": "inverted_residual"}'])
def test_a_space_that_cannot_be_read_is_refused(saved: Path, space: str | None) -> None:
    tensors, metadata = read_tensors(saved)
    metadata.pop("space")
    write_tensors(saved, tensors, {**metadata, **({"space": space} if space is not None else {})})
    with pytest.raises(IncompatibleCheckpoint, match="its space cannot be read"):
        load_supernet(saved)


def test_missing_tensors_are_named(saved: Path) -> None:
    tensors, _ = read_tensors(saved)
    del tensors["stem.0.full.conv.weight"]
    rewrite(saved, tensors)
    with pytest.raises(IncompatibleCheckpoint, match=r"tensors 1 missing: stem.0.full.conv.weight$"):
        load_supernet(saved)


def test_extra_tensors_are_named(saved: Path) -> None:
    tensors, _ = read_tensors(saved)
    rewrite(saved, {**tensors, "unit.9": torch.zeros(1)})
    with pytest.raises(IncompatibleCheckpoint, match=r"tensors 1 extra: unit.9$"):
        load_supernet(saved)


def test_tensors_of_wrong_shape_are_named_with_both_shapes(saved: Path) -> None:
    tensors, _ = read_tensors(saved)
    rewrite(saved, {**tensors, "stem.0.full.conv.weight": torch.zeros(8, 3, 5, 5)})
    message = r"1 of wrong shape: stem.0.full.conv.weight \(8, 3, 5, 5\) instead of \(8, 3, 3, 3\)$"
    with pytest.raises(IncompatibleCheckpoint, match=message):
        load_supernet(saved)


def test_a_checkpoint_of_another_space_is_refused_briefly(saved: Path) -> None:
    tensors, _ = read_tensors(saved)
    other = Supernet(spaces.mobilenet_v3_small_images())
    with pytest.raises(IncompatibleCheckpoint, match=r"missing: .*; .*of wrong shape: ") as error:
        restore(other, tensors, "the file")
    assert len(str(error.value)) < 1000


def test_a_refused_checkpoint_leaves_the_module_alone(saved: Path, tiny_supernet: Supernet) -> None:
    tensors = {name: torch.zeros_like(tensor) for name, tensor in read_tensors(saved)[0].items()}
    tensors.popitem()
    before = {name: tensor.clone() for name, tensor in tiny_supernet.state_dict().items()}
    with pytest.raises(IncompatibleCheckpoint):
        restore(tiny_supernet, tensors, "the file")
    for name, tensor in tiny_supernet.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_metadata_holds_format_and_space(saved: Path, tiny_supernet: Supernet) -> None:
    _, metadata = read_tensors(saved)
    assert metadata["format"] == checkpoint.FORMAT
    assert spaces.from_json(json.loads(metadata["space"])) == tiny_supernet.space


def test_a_failed_save_leaves_the_old_file(
    saved: Path, tiny_supernet: Supernet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(UnwritableOutput, match="No space left on device"):
        save_supernet(saved, tiny_supernet)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_an_unwritable_path_is_named(tiny_supernet: Supernet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnwritableOutput, match=f"cannot write {tmp_path / 'file' / 'supernet.safetensors'}"):
        save_supernet(tmp_path / "file" / "supernet.safetensors", tiny_supernet)


# Networks of one architecture


@pytest.fixture
def network(tiny_supernet: Supernet) -> Network:
    return Network.of(tiny_supernet, tiny_supernet.space.uniform(depth=2, kernel=5, expand=4, resolution=16)).eval()


@pytest.fixture
def saved_network(network: Network, tmp_path: Path) -> Path:
    path = tmp_path / "network.safetensors"
    save_network(path, network)
    return path


def test_a_network_comes_back_with_space_and_architecture(saved_network: Path, network: Network) -> None:
    loaded = load_network(saved_network)
    assert (loaded.space, loaded.architecture) == (network.space, network.architecture)
    tensors = loaded.state_dict()
    assert tensors.keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensors[name], tensor), name


def test_a_loaded_network_computes_the_same(
    supernet: Supernet, space: SearchSpace, rng: np.random.Generator, tmp_path: Path
) -> None:
    arch = space.sample(rng)
    save_network(tmp_path / "network.safetensors", Network.of(supernet, arch))
    loaded = load_network(str(tmp_path / "network.safetensors")).eval()
    images = torch.randn(2, 3, arch.resolution, arch.resolution)
    torch.testing.assert_close(loaded(images, arch), supernet(images, arch), rtol=1e-4, atol=1e-4)
    weight = next(tensor for tensor in loaded.extract(arch).parameters() if tensor.ndim == 4)
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_the_file_of_a_network_has_the_names_of_the_plain_modules(saved_network: Path, network: Network) -> None:
    tensors, metadata = read_tensors(saved_network)
    plain = build(network.layers)
    plain.load_state_dict(tensors)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(plain.eval()(images), network(images, network.architecture))
    assert metadata["format"] == checkpoint.NETWORK_FORMAT
    assert Architecture.from_json(json.loads(metadata["architecture"])) == network.architecture
    assert spaces.from_json(json.loads(metadata["space"])) == network.space


def test_a_network_and_a_supernet_are_not_taken_for_each_other(saved: Path, saved_network: Path) -> None:
    with pytest.raises(
        IncompatibleCheckpoint, match=r"format 'onceforall.supernet/1', expected 'onceforall.network/1'"
    ):
        load_network(saved)
    with pytest.raises(
        IncompatibleCheckpoint, match=r"format 'onceforall.network/1', expected 'onceforall.supernet/1'"
    ):
        load_supernet(saved_network)


@pytest.mark.parametrize("kept", [0, 100, 5000, -1])
def test_a_truncated_network_is_refused(saved_network: Path, kept: int) -> None:
    saved_network.write_bytes(saved_network.read_bytes()[:kept])
    with pytest.raises(IncompatibleCheckpoint, match=r"network.safetensors is not a whole safetensors file"):
        load_network(saved_network)


@pytest.mark.parametrize("architecture", [None, "{", "{}", "[3]", '{"resolution": 99, "units": [[[3, 3]], [[3, 3]]]}'])
def test_an_architecture_that_cannot_be_read_is_refused(saved_network: Path, architecture: str | None) -> None:
    tensors, metadata = read_tensors(saved_network)
    metadata.pop("architecture")
    if architecture is not None:
        metadata["architecture"] = architecture
    write_tensors(saved_network, tensors, metadata)
    with pytest.raises(IncompatibleCheckpoint, match=r"its architecture (cannot be read|is not JSON)"):
        load_network(saved_network)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.conv.weight": None}, r"tensors 1 missing: 0.conv.weight$"),
        ({"extra": torch.zeros(1)}, r"tensors 1 extra: extra$"),
        (
            {"0.conv.weight": torch.zeros(8, 3, 5, 5)},
            r"1 of wrong shape: 0.conv.weight \(8, 3, 5, 5\) instead of \(8, 3, 3, 3\)$",
        ),
    ],
    ids=["missing", "extra", "shape"],
)
def test_tensors_of_a_network_that_do_not_fit_have_the_names_in_the_file(
    saved_network: Path, change: dict[str, Tensor | None], message: str
) -> None:
    tensors = {**read_tensors(saved_network)[0], **change}
    rewrite(saved_network, {name: tensor for name, tensor in tensors.items() if tensor is not None})
    with pytest.raises(IncompatibleCheckpoint, match=message):
        load_network(saved_network)


# Damage


def test_equal_weights_give_equal_bytes(tiny_supernet: Supernet, tmp_path: Path) -> None:
    contents = set()
    for _ in range(8):
        save_supernet(tmp_path / "supernet.safetensors", tiny_supernet)
        contents.add((tmp_path / "supernet.safetensors").read_bytes())
    assert len(contents) == 1
    tensors, metadata = read_tensors(tmp_path / "supernet.safetensors")
    assert set(metadata) == {"format", "space"}
    assert load_file(tmp_path / "supernet.safetensors").keys() == tensors.keys()


def test_every_flipped_bit_is_noticed(saved: Path) -> None:
    content, rng = saved.read_bytes(), np.random.default_rng(0)
    for place in rng.integers(len(content), size=60).tolist():
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        saved.unlink()  # its content may still be mapped
        saved.write_bytes(damaged)
        with pytest.raises(IncompatibleCheckpoint):
            load_supernet(saved)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(saved: Path, number: float) -> None:
    tensors, _ = read_tensors(saved)
    tensors["stem.0.full.conv.weight"].view(-1)[3] = number
    rewrite(saved, tensors)
    with pytest.raises(IncompatibleCheckpoint, match=r"tensor stem.0.full.conv.weight holds NaN or infinite numbers"):
        load_supernet(saved)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_weights_of_another_kind_are_named(saved: Path, dtype: torch.dtype) -> None:
    tensors, _ = read_tensors(saved)
    tensors["stem.0.full.conv.weight"] = tensors["stem.0.full.conv.weight"].to(dtype)
    rewrite(saved, tensors)
    with pytest.raises(IncompatibleCheckpoint, match=f"tensor stem.0.full.conv.weight is {dtype}: expected floating"):
        load_supernet(saved)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("num_classes",), 10**9),
        (("units", 0, "width"), 10**8),
        (("units", 0, "depths"), [1, 10**6]),
        (("units", 1, "expands"), [3, 1e300]),
        (("stem_stride",), 10**9),
        (("resolutions",), "x"),
        ((), "[" * 100_000),
        ((), "null"),
    ],
)
def test_a_space_that_does_not_fit_the_tensors_takes_no_memory(
    saved: Path, place: tuple[str | int, ...], value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, metadata = read_tensors(saved)
    said: Any = json.loads(metadata["space"])
    inner = said
    for key in place[:-1]:
        inner = inner[key]
    if place:
        inner[place[-1]] = value
    write_tensors(saved, tensors, {**metadata, "space": json.dumps(said) if place else str(value)})

    def made(space: SearchSpace) -> Supernet:
        assert torch.get_default_device().type == "meta"
        return Supernet(space)

    monkeypatch.setattr(checkpoint, "Supernet", made)
    with pytest.raises(IncompatibleCheckpoint, match=saved.name):
        load_supernet(saved)


def test_names_of_classes_come_back(tiny_supernet: Supernet, tmp_path: Path) -> None:
    named = Supernet(tiny_supernet.space)
    named.classes = ("ant", "bee", "cat", "dog")
    save_supernet(tmp_path / "supernet.safetensors", named)
    loaded = load_supernet(tmp_path / "supernet.safetensors")
    assert loaded.classes == named.classes
    network = Network.of(loaded, loaded.space.smallest())
    save_network(tmp_path / "network.safetensors", network)
    assert load_network(tmp_path / "network.safetensors").classes == named.classes
    loaded.reset_classifier(4)
    assert loaded.classes == ()
    tensors, metadata = read_tensors(tmp_path / "supernet.safetensors")
    for classes in ('["ant"]', "{}", "[1, 2, 3, 4]", "["):
        write_tensors(tmp_path / "supernet.safetensors", tensors, {**metadata, "classes": classes})
        with pytest.raises(IncompatibleCheckpoint, match="classes"):
            load_supernet(tmp_path / "supernet.safetensors")
