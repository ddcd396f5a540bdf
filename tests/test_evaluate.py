import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from elsewhere import elsewhere
from torch import nn
from torch.testing import assert_close

from onceforall import evaluate
from onceforall.data.dataset import ImageData
from onceforall.errors import InvalidConfiguration
from onceforall.evaluate import Evaluator, measure, measure_top1, ready, top1
from onceforall.nn.calibrate import calibrate
from onceforall.nn.subnet import channels_last, fold_batch_norm
from onceforall.nn.supernet import Supernet
from onceforall.tasks.classification import Classification


class Echo(nn.Module):
    """Logits that are the first column of pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, 0]


def batch(*classes: int) -> torch.Tensor:
    return nn.functional.one_hot(torch.tensor(classes), 4).float()[:, None, None, :]


def test_top1_is_the_percentage_of_right_answers_over_batches_of_any_size() -> None:
    batches = [(batch(0, 1, 2), torch.tensor([0, 1, 3])), (batch(3), torch.tensor([2]))]
    assert top1(Echo(), batches) == 50.0


def test_a_network_made_ready_is_folded_in_evaluation_mode_and_channels_last(
    tiny_supernet: Supernet, tiny_data: ImageData
) -> None:
    network = ready(tiny_supernet, tiny_supernet.space.largest(), tiny_data)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert not any(module.training for module in network.modules())
    stem = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    assert stem.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_network_made_ready_computes_what_the_calibrated_one_does(
    tiny_supernet: Supernet, tiny_data: ImageData
) -> None:
    arch = tiny_supernet.space.smallest()
    images = tiny_data.images("test", arch.resolution)
    calibrated = calibrate(tiny_supernet.extract(arch), tiny_data.calibration(arch.resolution))
    assert_close(ready(tiny_supernet, arch, tiny_data)(images), calibrated(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("split", ["label", "test"])
def test_measured_top1_is_that_of_the_named_split(tiny_supernet: Supernet, tiny_data: ImageData, split: str) -> None:
    arch = tiny_supernet.space.largest()
    images, labels = tiny_data.images(split, arch.resolution), tiny_data.labels(split)  # type: ignore[arg-type]
    answers = ready(tiny_supernet, arch, tiny_data)(images).argmax(1)
    expected = 100 * (answers == labels).double().mean().item()
    assert measure_top1(tiny_supernet, arch, tiny_data, split) == pytest.approx(expected)  # type: ignore[arg-type]


def test_measuring_leaves_the_supernet_alone(tiny_supernet: Supernet, tiny_data: ImageData) -> None:
    tiny_supernet.train()
    before = {name: tensor.clone() for name, tensor in tiny_supernet.state_dict().items()}
    measure_top1(tiny_supernet, tiny_supernet.space.largest(), tiny_data, "label")
    assert tiny_supernet.training
    for name, tensor in tiny_supernet.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("memory", [2 << 30, 0])
def test_an_evaluator_measures_what_each_network_measures_alone(
    memory: int, supernet: Supernet, tiny_data: ImageData, rng: np.random.Generator
) -> None:
    """Also where it can keep nothing."""
    space, data = supernet.space, replace(tiny_data, num_classes=supernet.num_classes or 0, _prepared={})
    evaluator = Evaluator(supernet, data, "label", memory=memory)
    for arch in (space.smallest(), space.largest(), space.sample(rng), space.smallest(), space.sample(rng)):
        assert evaluator.score(arch) == measure_top1(supernet, arch, data, "label")


def test_bf16_measures_nearly_the_same(
    tiny_supernet: Supernet, tiny_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    arch = tiny_supernet.space.largest()
    exact = measure_top1(tiny_supernet, arch, tiny_data, "label")
    measured: list[torch.dtype] = []
    evaluated = Classification.evaluate

    def seen(self: Classification, network: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
        batches = list(batches)
        measured.extend({tensor.dtype for tensor in (*network.parameters(), *(images for images, _ in batches))})
        return evaluated(self, network, batches)

    monkeypatch.setattr(Classification, "evaluate", seen)
    assert Evaluator(tiny_supernet, tiny_data, "label", "bf16").score(arch) == pytest.approx(exact, abs=8)
    assert measured == [torch.bfloat16]
    with pytest.raises(InvalidConfiguration, match="'fp8': choices are fp32, bf16"):
        Evaluator(tiny_supernet, tiny_data, "label", "fp8")


@pytest.mark.parametrize("kept", [0, 1 << 30])
def test_what_is_too_large_to_hold_at_once_passes_batch_by_batch_and_measures_the_same(
    kept: int, supernet: Supernet, tiny_data: ImageData, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    arch, data = supernet.space.sample(rng), replace(tiny_data, num_classes=supernet.num_classes or 0, _prepared={})
    images = torch.randn(4, 3, arch.resolution, arch.resolution)
    at_once = calibrate(supernet.extract(arch), data.calibration(arch.resolution, 7))
    network = channels_last(fold_batch_norm(at_once))
    expected, score = network(images), measure_top1(supernet, arch, data, "label")
    sizes: list[int] = []
    batches = ImageData.batches

    def observed(self: ImageData, *given: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for found in batches(self, *given):
            sizes.append(len(found[0]))
            yield found

    monkeypatch.setattr(evaluate, "AT_ONCE", 0)
    monkeypatch.setattr(evaluate, "KEPT", 0)
    monkeypatch.setattr(evaluate, "BETWEEN", kept)
    monkeypatch.setattr(evaluate, "ONE_BATCH", 7 * evaluate._peak(supernet, arch))
    monkeypatch.setattr(ImageData, "batches", observed)
    monkeypatch.setattr(ImageData, "calibration", None)  # which would hold all of them
    assert_close(ready(supernet, arch, data)(images), expected, rtol=1e-5, atol=1e-5)
    assert measure_top1(supernet, arch, data, "label") == pytest.approx(score, abs=100 / 60)
    assert Evaluator(supernet, data, "label").score(arch) == pytest.approx(score, abs=100 / 60)
    assert {7, 60 % 7} <= set(sizes) <= {7, 60 % 7, 30 % 7}


def test_an_evaluator_keeps_no_more_than_it_may(
    tiny_supernet: Supernet, tiny_data: ImageData, rng: np.random.Generator
) -> None:
    """Of 16 px, 90 images take 90 x 8 x 8 x 8 x 4 bytes behind the stem; of 20 px more."""
    evaluator = Evaluator(tiny_supernet, tiny_data, "label", memory=90 * 8 * 8 * 8 * 4)
    for resolution, keeps in ((16, True), (20, False), (16, True)):
        evaluator.score(tiny_supernet.space.restrict(resolutions=[resolution]).sample(rng))
        assert evaluator._shared is not None
        assert (evaluator._shared.outputs is not None) == keeps


def test_a_supernet_on_another_device_is_measured_there(tiny_supernet: Supernet, tiny_data: ImageData) -> None:
    arch = tiny_supernet.space.smallest()
    expected = measure(tiny_supernet, arch, tiny_data, "label")
    with elsewhere():
        moved = copy.deepcopy(tiny_supernet).to("meta")
        with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
            moved(torch.zeros(2, 3, arch.resolution, arch.resolution), arch)
        assert measure(moved, arch, tiny_data, "label") == expected
        assert measure_top1(moved, arch, tiny_data, "label") == expected
        for memory in (None, 0):
            assert Evaluator(moved, tiny_data, "label", memory=memory).score(arch) == expected


def test_calibration_batch_by_batch_stays_on_the_other_device(
    tiny_supernet: Supernet, tiny_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "AT_ONCE", 0)
    arch = tiny_supernet.space.smallest()
    expected = measure(tiny_supernet, arch, tiny_data, "label")
    with elsewhere():
        assert measure(copy.deepcopy(tiny_supernet).to("meta"), arch, tiny_data, "label") == expected
