import copy
import json
import pickle
from dataclasses import replace

import pytest

from onceforall.architecture import Architecture, Gene
from onceforall.errors import InvalidArchitecture
from onceforall.files import as_json

ARCHITECTURE = Architecture(32, ((Gene(kernel=3, expand=4), Gene(kernel=5, expand=6)), (Gene(kernel=7, expand=3),)))
WIDE = replace(ARCHITECTURE, width_multipliers=(0.5, 1))


def test_equal_networks_are_equal_and_hash_equal() -> None:
    twin = Architecture(32, ((Gene(kernel=3, expand=4), Gene(kernel=5, expand=6)), (Gene(kernel=7, expand=3),)))
    assert twin == ARCHITECTURE
    assert hash(twin) == hash(ARCHITECTURE)


def test_an_architecture_is_immutable() -> None:
    with pytest.raises(AttributeError):
        ARCHITECTURE.resolution = 28  # type: ignore[misc]


def test_depths_count_the_genes_of_each_unit() -> None:
    assert ARCHITECTURE.depths == (2, 1)


def test_text_names_resolution_kernels_and_expands() -> None:
    assert str(ARCHITECTURE) == "32px k3e4-k5e6 k7e3"


def test_json_has_the_documented_form() -> None:
    units = [[{"kernel": 3, "expand": 4}, {"kernel": 5, "expand": 6}], [{"kernel": 7, "expand": 3}]]
    assert as_json(ARCHITECTURE.to_json()) == {"resolution": 32, "units": units, "width_multipliers": []}


def test_genes_are_read_as_older_files_have_them() -> None:
    assert Architecture.from_json({"resolution": 32, "units": [[[3, 4], [5, 6]], [[7, 3]]]}) == ARCHITECTURE


@pytest.mark.parametrize("architecture", [ARCHITECTURE, WIDE], ids=str)
def test_json_round_trip(architecture: Architecture) -> None:
    assert Architecture.from_json(json.loads(json.dumps(architecture.to_json()))) == architecture


# Genes


def test_a_gene_is_a_value_of_named_choices() -> None:
    gene = Gene(heads=4, ratio=2.5)
    assert gene == Gene(ratio=2.5, heads=4)
    assert hash(gene) == hash(Gene(ratio=2.5, heads=4.0))
    assert (gene.heads, gene["ratio"], dict(gene)) == (4, 2.5, {"heads": 4, "ratio": 2.5})
    assert gene.replace(heads=2) == Gene(heads=2, ratio=2.5) != gene
    assert str(gene) == "h4r2.5"
    for twin in (copy.deepcopy(gene), pickle.loads(pickle.dumps(gene))):
        assert twin == gene
    with pytest.raises(AttributeError, match="kernel: this Gene has heads, ratio"):
        _ = gene.kernel
    with pytest.raises(AttributeError, match="immutable"):
        gene.heads = 2  # type: ignore[misc]


def test_a_resolution_may_be_height_and_width() -> None:
    tall = replace(ARCHITECTURE, resolution=(224, 160))
    assert str(tall) == "224x160px k3e4-k5e6 k7e3"
    assert Architecture.from_json(json.loads(json.dumps(tall.to_json()))) == tall


# Width multipliers


@pytest.mark.parametrize("multipliers", [(), (1,), (1, 1), (1.0, 1.0)], ids=str)
def test_multipliers_of_one_are_left_out(multipliers: tuple[float, ...]) -> None:
    twin = replace(ARCHITECTURE, width_multipliers=multipliers)
    assert twin == ARCHITECTURE
    assert hash(twin) == hash(ARCHITECTURE)
    assert twin.width_multipliers == ()
    assert twin.multipliers == (1, 1)
    assert twin.to_json() == ARCHITECTURE.to_json()


def test_other_multipliers_make_another_architecture() -> None:
    assert WIDE != ARCHITECTURE
    assert WIDE.width_multipliers == WIDE.multipliers == (0.5, 1)
    assert replace(WIDE, width_multipliers=(1, 0.5)) != WIDE


def test_text_names_width_multipliers() -> None:
    assert str(WIDE) == "32px k3e4-k5e6(x0.5) k7e3(x1)"
    assert str(Architecture(32, ((), (Gene(kernel=3, expand=0.25),)), (0.65, 1))) == "32px none(x0.65) k3e0.25(x1)"


def test_json_with_width_multipliers_has_the_documented_form() -> None:
    assert WIDE.to_json() == {**ARCHITECTURE.to_json(), "width_multipliers": (0.5, 1)}


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"resolution": 32},
        {"units": []},
        {"resolution": "32", "units": [[[3, 4]]]},
        {"resolution": True, "units": [[[3, 4]]]},
        {"resolution": 32.0, "units": [[[3, 4]]]},
        {"resolution": 32, "units": None},
        {"resolution": 32, "units": [[3, 4]]},
        {"resolution": 32, "units": [[[3]]]},
        {"resolution": 32, "units": [[[3, 4, 6]]]},
        {"resolution": 32, "units": [[[3, "4"]]]},
        {"resolution": 32, "units": [[{"kernel": "3"}]]},
        {"resolution": 32, "units": [[{"kernel": True}]]},
        {"resolution": [32], "units": [[[3, 4]]]},
        {"resolution": 32, "units": "k3e4"},
        {"resolution": 32, "units": [[[3, 4]]], "width_multipliers": None},
        {"resolution": 32, "units": [[[3, 4]]], "width_multipliers": 0.5},
        {"resolution": 32, "units": [[[3, 4]]], "width_multipliers": ["0.5"]},
        {"resolution": 32, "units": [[[3, 4]]], "width_multipliers": [True]},
        [32, [[[3, 4]]]],
        "32px k3e4",
        None,
    ],
)
def test_wrong_json_is_refused_with_the_expected_form(value: object) -> None:
    with pytest.raises(InvalidArchitecture, match=r'expected \{"resolution": 32, "units"'):
        Architecture.from_json(value)  # type: ignore[arg-type]
