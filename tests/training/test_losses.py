import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from onceforall.training.losses import hard_cross_entropy, soft_cross_entropy


def test_equal_logits_cost_the_logarithm_of_the_number_of_classes() -> None:
    logits, labels = torch.zeros(5, 10), torch.arange(5)
    for loss in (hard_cross_entropy(logits, labels, 0.1), soft_cross_entropy(logits, torch.randn(5, 10))):
        assert loss.item() == pytest.approx(math.log(10))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_hard_cross_entropy_is_that_of_smoothed_labels_in_the_mean(smoothing: float) -> None:
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    targets = (1 - smoothing) * F.one_hot(labels, 4) + smoothing / 4
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    assert_close(hard_cross_entropy(logits, labels, smoothing), expected)


def test_soft_cross_entropy_uses_the_softmax_of_the_teacher() -> None:
    logits, teacher = torch.randn(6, 4), torch.randn(6, 4)
    expected = -(teacher.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    assert_close(soft_cross_entropy(logits, teacher), expected)


def test_soft_cross_entropy_has_no_gradient_where_student_and_teacher_agree() -> None:
    logits = torch.randn(6, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(soft_cross_entropy(logits, logits.detach() + 5), logits)
    assert_close(gradient, torch.zeros(6, 4))


def test_losses_of_half_precision_logits_are_computed_in_full() -> None:
    logits = torch.randn(6, 4).bfloat16()
    labels = torch.zeros(6, dtype=torch.int64)
    assert hard_cross_entropy(logits, labels, 0.1).dtype == torch.float32
    assert soft_cross_entropy(logits, logits).dtype == torch.float32
