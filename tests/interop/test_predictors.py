"""The authors' accuracy predictors: their numbers, their features, and silence nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from onceforall import spaces
from onceforall.architecture import Architecture, Gene
from onceforall.cost.analytic import MACs
from onceforall.errors import IncompatibleCheckpoint, InvalidConfiguration, OutOfDomain
from onceforall.interop.predictors import PublishedPredictor, load_predictor
from onceforall.search.evolution import search
from onceforall.space import SearchSpace

TRAINED = (160, 176, 192, 208, 224)


@pytest.fixture(scope="module")
def mobile(tables: ModuleType) -> PublishedPredictor:
    return load_predictor(tables.path_of("acc_predictor.pth"))


@pytest.fixture(scope="module")
def resnet(tables: ModuleType) -> PublishedPredictor:
    return load_predictor(tables.path_of("ofa_resnet50_acc_predictor.pth"))


def network(resolution: int, kernels: str, expands: str) -> Architecture:
    """From strings such as "53 53" and "33 44", one word a unit."""
    units = zip(kernels.split(), expands.split(), strict=True)
    return Architecture(
        resolution,
        tuple(tuple(Gene(kernel=int(a), expand=int(b)) for a, b in zip(k, e, strict=True)) for k, e in units),
    )


TUTORIAL = network(192, "53 53 773 5573 335", "33 44 634 4443 666")
REFERENCES = (  # percent, float64 arithmetic
    (TUTORIAL, 81.712854),
    (network(160, "33 33 33 33 33", "33 33 33 33 33"), 75.311861),
    (network(224, "7777 7777 7777 7777 7777", "6666 6666 6666 6666 6666"), 83.592778),
)


# MobileNetV3


def test_reference_values(mobile: PublishedPredictor) -> None:
    architectures, expected = zip(*REFERENCES, strict=True)
    assert mobile.predict(architectures) == pytest.approx(expected, abs=2e-4)
    in_double = mobile.evaluate(mobile.features(architectures).astype(np.float64))
    assert in_double == pytest.approx(expected, abs=1e-6)


def test_the_128_features_spelled_out(mobile: PublishedPredictor) -> None:
    kernels = "010 100 000 000  010 100 000 000  001 001 100 000  010 010 001 100  100 100 010 000"
    expands = "100 100 000 000  010 010 000 000  001 100 010 000  010 010 010 100  001 001 001 000"
    slots = "00000100"  # 112, 128, 144, 160, 176, 192, 208, 224
    expected = [float(bit) for bit in (kernels + expands + slots).replace(" ", "")]
    (found,) = mobile.features([TUTORIAL])
    assert len(expected) == 128
    assert found.tolist() == expected


@pytest.mark.parametrize("resolution", [112, 128, 144, 196])
def test_resolutions_that_it_never_saw_are_refused(resolution: int, mobile: PublishedPredictor) -> None:
    message = rf"resolution {resolution}: .*MobileNetV3 width 1.2.* at 160, 176, 192, 208, 224 px"
    with pytest.raises(OutOfDomain, match=message):
        mobile.predict([TUTORIAL, Architecture(resolution, TUTORIAL.units)])
    with pytest.raises(OutOfDomain, match=message):
        mobile.on(spaces.mobilenet_v3(1.2, sorted({resolution, 192})))


@pytest.mark.parametrize(
    "space",
    [
        spaces.mobilenet_v3(1.0, TRAINED),
        spaces.mobilenet_v3(0.5, (160,)),
        spaces.proxyless(1.3, TRAINED),
        spaces.resnet50d((160,)),
        spaces.mobilenet_v3(1.2, (160,), kernels=(3, 5, 9)),
        spaces.mobilenet_v3(1.2, (160,), expands=(3, 5, 6)),
        spaces.mobilenet_v3(1.2, (160,), depths=(1, 2, 4)),
        spaces.mobilenet_v3(1.2, (160,), width_multipliers=(0.5, 1.0)),
        spaces.mobilenet_v3_small_images((160,)),
    ],
    ids=["w1.0", "w0.5", "proxyless", "resnet50d", "kernel 9", "expand 5", "depth 1", "multipliers", "small images"],
)
def test_other_spaces_are_refused(space: SearchSpace, mobile: PublishedPredictor, tables: ModuleType) -> None:
    with pytest.raises(OutOfDomain, match=r"MobileNetV3 width 1\.2"):
        mobile.on(space)
    with pytest.raises(OutOfDomain, match=r"MobileNetV3 width 1\.2"):
        load_predictor(tables.path_of("acc_predictor.pth"), space)


def test_architectures_of_other_forms_are_refused_with_what_is_allowed(mobile: PublishedPredictor) -> None:
    for wrong, message in (
        (network(192, "93 53 773 5573 335", "33 44 634 4443 666"), r"kernel 9 at unit 1, block 1: choices are 3, 5, 7"),
        (network(192, "53 53 773 5573 335", "33 44 634 4443 665"), r"expand 5 at unit 5, block 3: choices are 3, 4, 6"),
        (network(192, "5 53 773 5573 335", "3 44 634 4443 666"), r"depth 1 at unit 1: choices are 2, 3, 4"),
        (network(192, "53 53 773 5573", "33 44 634 4443"), r"4 units: this space has 5"),
    ):
        with pytest.raises(OutOfDomain, match=message):
            mobile.predict([wrong])


@pytest.mark.parametrize(
    "space",
    [
        spaces.mobilenet_v3(1.2, TRAINED),
        spaces.mobilenet_v3(1.2, (176, 224), num_classes=10, dropout=0.0),
        spaces.mobilenet_v3(1.2, (160, 208), depths=(2, 4), kernels=(3, 7), expands=(4,)),
        spaces.mobilenet_v3(1.2, (192,), depths=(2, 3), tied=False),
        spaces.mobilenet_v3(1.2, (192,), tied=True),
    ],
    ids=["whole", "other classes", "fewer choices", "shallower", "tied"],
)
def test_rows_are_predicted_as_architectures_are(space: SearchSpace, mobile: PublishedPredictor) -> None:
    rows = space.sample_rows(50, np.random.default_rng(0))
    expected = mobile.predict(space.from_rows(rows))
    assert mobile.on(space).predict_rows(rows) == pytest.approx(expected, abs=1e-4)
    assert mobile.on(space).predict(space.from_rows(rows)) == pytest.approx(expected, abs=1e-4)
    assert len(set(expected.round(6))) > 10


def test_without_a_space_rows_are_those_of_the_whole_domain(mobile: PublishedPredictor) -> None:
    assert mobile.space.resolutions == TRAINED
    rows = mobile.space.to_rows([TUTORIAL])
    assert mobile.predict_rows(rows) == pytest.approx([81.712854], abs=2e-4)


def test_a_search_of_a_sub_space_gets_answers_for_its_own_rows(mobile: PublishedPredictor) -> None:
    """The first resolution of the one is not that of the other: row indices alone would be wrong without a word."""
    space = spaces.mobilenet_v3(1.2, (224,))
    best = search(space, mobile, [MACs().at_most(400e6)], generations=2)
    assert best.accuracy == pytest.approx(mobile.predict([best.architecture])[0], abs=1e-3)
    for foreign in (spaces.mobilenet_v3(1.0, (224,)), spaces.mobilenet_v3(1.2, (128,)), spaces.proxyless(1.3, (224,))):
        with pytest.raises(OutOfDomain, match="belongs to another space"):
            search(foreign, mobile, [MACs().at_most(400e6)], generations=2)


def test_it_does_not_learn(mobile: PublishedPredictor) -> None:
    with pytest.raises(InvalidConfiguration, match="does not learn: fit an MLPPredictor"):
        mobile.fit([TUTORIAL], [80.0])


def test_it_ranks_measured_networks_of_width_1_0_if_one_insists(mobile: PublishedPredictor, tables: ModuleType) -> None:
    measured: dict[Architecture, list[float]] = {}
    for row in tables.rows_of("dynast_mbv3_w1.0.csv"):
        measured.setdefault(tables.architecture_in(row), []).append(float(row["top1"]))
    assert len(measured) == 1301
    predicted = mobile.evaluate(mobile.features(list(measured)))
    truth = [np.mean(values) for values in measured.values()]
    assert spearmanr(predicted, truth).statistic == pytest.approx(0.982, abs=0.002)


# ResNet-50D

SIZES = (128, 144, 160, 176, 192, 224, 240, 256)


def bottlenecks(
    resolution: int, stem: bool, expands: Sequence[Sequence[float]], multipliers: tuple[float, ...]
) -> Architecture:
    units = (
        (Gene(kernel=3, expand=1),) * stem,
        (Gene(kernel=3, expand=1),) * 2,
        *(tuple(Gene(kernel=3, expand=e) for e in stage) for stage in expands),
    )
    return Architecture(resolution, units, multipliers)


WITH_STEM = (
    bottlenecks(
        176,
        True,
        [(0.2, 0.25), (0.35, 0.2, 0.25, 0.35), (0.2, 0.2, 0.25, 0.35, 0.2), (0.25, 0.35, 0.2)],
        (0.65, 0.8, 1.0, 0.65, 0.8, 1.0),
    ),
    "00010000"  # 176 px
    + "01"  # the stem's middle layer is there
    + "100 010 001 100 010 001"  # stem's middle, stem, four stages
    + "100 010 000 000"  # 2 of 4 blocks
    + "001 100 010 001"
    + "100 100 010 001 100 000"  # 5 of 6
    + "010 001 100 000",  # 3 of 4
)
WITHOUT_STEM = (
    bottlenecks(256, False, [(0.35,) * 3, (0.2, 0.2), (0.25,) * 4, (0.35, 0.25)], (1.0, 1.0, 0.8, 0.8, 0.65, 0.65)),
    "00000001" + "10" + "001 001 010 010 100 100"
    "001 001 001 000" + "100 100 000 000" + "010 010 010 010 000 000" + "001 010 000 000",
)


@pytest.mark.parametrize(("arch", "bits"), [WITH_STEM, WITHOUT_STEM], ids=["with the stem", "without"])
def test_the_82_features_of_a_resnet_spelled_out(
    arch: Architecture, bits: str, resnet: PublishedPredictor, tables: ModuleType
) -> None:
    expected = [float(bit) for bit in bits.replace(" ", "")]
    assert len(expected) == 82
    (found,) = resnet.features([arch])
    assert found.tolist() == expected
    assert resnet.predict([arch]) == pytest.approx([resnet_by_hand(tables, expected)], abs=1e-4)


def resnet_by_hand(tables: ModuleType, features: Sequence[float]) -> float:
    """The published network in a few lines of double precision."""
    state = torch.load(tables.path_of("ofa_resnet50_acc_predictor.pth"), map_location="cpu", weights_only=True)
    array = {name: tensor.double().numpy() for name, tensor in state.items()}
    x: NDArray[np.float64] = np.asarray(features)
    for layer in ("layers.0.0", "layers.1.0", "layers.2.0"):
        x = np.maximum(array[f"{layer}.weight"] @ x + array[f"{layer}.bias"], 0)
    return 100 * float((array["layers.3.weight"] @ x).item() + array["base_acc"].item())


def test_resnet_predictions_are_accuracies_in_percent(resnet: PublishedPredictor) -> None:
    space = spaces.resnet50d(SIZES)
    assert resnet.space == space
    rows = space.sample_rows(100, np.random.default_rng(0))
    predicted = resnet.predict_rows(rows)
    assert predicted == pytest.approx(resnet.predict(space.from_rows(rows)), abs=1e-4)
    assert 70 < predicted.min() < predicted.max() < 90
    fewer = space.restrict(resolutions=(192, 224), expands=(0.25, 0.35), width_multipliers=(1.0,))
    rows = fewer.sample_rows(20, np.random.default_rng(0))
    assert resnet.on(fewer).predict_rows(rows) == pytest.approx(resnet.predict(fewer.from_rows(rows)), abs=1e-4)


def test_resnets_that_it_never_saw_are_refused(resnet: PublishedPredictor) -> None:
    with pytest.raises(OutOfDomain, match=r"resolution 208: .*ResNet-50D.* at 128, 144, 160, 176, 192, 224, 240, 256"):
        resnet.on(spaces.resnet50d())
    with pytest.raises(OutOfDomain, match=r"resolution 208"):
        resnet.predict([Architecture(208, WITH_STEM[0].units, WITH_STEM[0].width_multipliers)])
    with pytest.raises(OutOfDomain, match=r"ResNet-50D"):
        resnet.on(spaces.mobilenet_v3(1.2, (160,)))
    with pytest.raises(
        OutOfDomain, match=r"width multiplier \(0\.5, 1\.0\) at unit 1: choices are \(0\.65, 0\.8, 1\.0\)"
    ):
        resnet.on(spaces.resnet50d((224,), width_multipliers=(0.5, 1.0)))


# Files


State = dict[str, torch.Tensor]


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {**state, "0.weight": state["0.weight"][:, :-1].clone()},
        lambda state: dict(list(state.items())[2:]),
        lambda state: {"fc.weight": torch.zeros(10, 128), "fc.bias": torch.zeros(10)},
        lambda state: {"x": torch.zeros(3)},
        lambda state: {name: tensor for name, tensor in state.items() if name != "0.bias"},
        lambda state: {**state, "base_acc": torch.zeros(0)},
    ],
    ids=["narrower", "shallower", "foreign", "no weights", "no first bias", "no offset"],
)
def test_other_files_are_refused_with_what_was_expected(
    change: Callable[[State], State], tables: ModuleType, tmp_path: Path
) -> None:
    state = torch.load(tables.path_of("acc_predictor.pth"), map_location="cpu", weights_only=True)
    torch.save(change(state), tmp_path / "file.pth")
    with pytest.raises(IncompatibleCheckpoint, match=r"file\.pth is not a published accuracy predictor"):
        load_predictor(tmp_path / "file.pth")


def test_a_list_is_no_predictor(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(IncompatibleCheckpoint, match="holds no state dict"):
        load_predictor(tmp_path / "list.pth")


@pytest.mark.parametrize("wrapped", [False, True])
def test_bare_and_wrapped_files_are_the_same_predictor(
    wrapped: bool, mobile: PublishedPredictor, tables: ModuleType, tmp_path: Path
) -> None:
    state = torch.load(tables.path_of("acc_predictor.pth"), map_location="cpu", weights_only=True)
    torch.save({"state_dict": state} if wrapped else dict(state), tmp_path / "zip.pth")
    assert load_predictor(tmp_path / "zip.pth").predict([TUTORIAL]) == mobile.predict([TUTORIAL])
