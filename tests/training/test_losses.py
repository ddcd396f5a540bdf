import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from onceforall.tasks import CLASSIFICATION
from onceforall.training.losses import AlphaDivergence, KLDivergence, SoftCrossEntropy

hard_cross_entropy = CLASSIFICATION.loss
soft_cross_entropy, kl_divergence, alpha_divergence = SoftCrossEntropy(), KLDivergence(), AlphaDivergence()
DISTILLATION = {"cross_entropy": soft_cross_entropy, "kl": kl_divergence, "alpha": alpha_divergence}

distillation = pytest.mark.parametrize("name", DISTILLATION)


def random_logits(images: int = 8, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Of a student and its teacher, five classes."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = scale * torch.randn(2, images, 5, generator=generator)
    return student, teacher


def gradient_of(loss: Tensor, logits: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, logits)
    return gradient.double()


# The formulas as the papers write them, in double precision, of p (teacher) and q (student).


def softmax(logits: Tensor) -> Tensor:
    powers = (logits.double() - logits.double().amax(1, keepdim=True)).exp()
    return powers / powers.sum(1, keepdim=True)


def plain_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    return -(softmax(teacher) * softmax(student).log()).sum(1).mean()


def plain_kl(student: Tensor, teacher: Tensor) -> Tensor:
    p, q = softmax(teacher), softmax(student)
    return (p * (p / q).log()).sum(1).mean()


def divergences(student: Tensor, teacher: Tensor) -> Tensor:
    """Of orders -1 and 1, [2, images]: E_q[(p / q)^alpha - 1] / (alpha (alpha - 1)), at order 1 its limit."""
    p, q = softmax(teacher), softmax(student)
    return torch.stack([(q * ((p / q) ** -1 - 1)).sum(1) / 2, (p * (p / q).log()).sum(1)])


def plain_alpha(student: Tensor, teacher: Tensor) -> Tensor:
    return divergences(student, teacher).amax(0).mean()


def clipped_gradient(student: Tensor, teacher: Tensor, bound: float = 5.0) -> Tensor:
    """With respect to the logits: -1/alpha E_q[min((p / q)^alpha, bound) grad log q], grad log q_c = [c = k] - q_k."""
    p, q = softmax(teacher), softmax(student)
    rows = []
    for p_row, q_row, (minus, plus) in zip(p, q, divergences(student, teacher).T, strict=True):
        alpha = -1.0 if minus > plus else 1.0
        weights = ((p_row / q_row) ** alpha).clamp(max=bound)
        grad_log_q = torch.eye(len(q_row)) - q_row[None]  # [class c, logit k]
        rows.append(-(q_row * weights) @ grad_log_q / alpha)
    return torch.stack(rows) / len(rows)


PLAIN = {"cross_entropy": plain_cross_entropy, "kl": plain_kl, "alpha": plain_alpha}


# Labels


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


# Teachers


@distillation
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_the_value_is_that_of_the_formula(name: str, scale: float) -> None:
    student, teacher = random_logits(scale=scale)
    expected = PLAIN[name](student, teacher)
    assert_close(DISTILLATION[name](student, teacher).double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["cross_entropy", "kl"])
def test_the_gradient_is_that_of_the_formula(name: str) -> None:
    student, teacher = random_logits(scale=3.0)
    student.requires_grad_()
    expected = gradient_of(PLAIN[name](student, teacher), student)
    assert_close(gradient_of(DISTILLATION[name](student, teacher), student), expected, rtol=1e-4, atol=1e-7)


def test_kl_has_the_gradient_of_soft_cross_entropy() -> None:
    student, teacher = random_logits()
    student.requires_grad_()
    ours, other = (gradient_of(loss(student, teacher), student) for loss in (kl_divergence, soft_cross_entropy))
    assert_close(ours, other, rtol=1e-5, atol=1e-7)


def test_without_clipping_alpha_has_the_gradient_of_the_larger_divergence() -> None:
    student, teacher = random_logits(scale=0.3)  # no ratio comes near 5
    assert len(set(divergences(student, teacher).argmax(0).tolist())) == 2
    student.requires_grad_()
    expected = gradient_of(plain_alpha(student, teacher), student)
    assert_close(gradient_of(alpha_divergence(student, teacher), student), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_alpha_has_the_gradient_with_clipped_importance_weights(scale: float) -> None:
    student, teacher = random_logits(32, scale)
    student.requires_grad_()
    expected = clipped_gradient(student.detach(), teacher)
    assert_close(gradient_of(alpha_divergence(student, teacher), student), expected, rtol=1e-4, atol=1e-6)


# Probabilities in percent: the teacher's, then the student's.
SURE = [[1.0, 49.0, 50.0], [90.0, 5.0, 5.0]]  # of what the teacher rules out: the divergence of order -1 is large
UNSURE = [[88.0, 6.0, 6.0], [10.0, 45.0, 45.0]]  # of what the teacher knows: as large, but not by a factor


@pytest.mark.parametrize("percent", [SURE, UNSURE], ids=["sure", "unsure"])
def test_clipping_shows_where_student_and_teacher_are_far_apart(percent: list[list[float]]) -> None:
    teacher, student = torch.tensor(percent).log().split(1)
    student.requires_grad_()
    gradient = gradient_of(alpha_divergence(student, teacher), student)
    assert_close(gradient, clipped_gradient(student.detach(), teacher), rtol=1e-4, atol=1e-6)
    unclipped = clipped_gradient(student.detach(), teacher, math.inf)
    assert gradient.norm() < 0.75 * unclipped.norm()
    assert (gradient.sign() == unclipped.sign()).all()


@distillation
def test_there_is_no_gradient_where_student_and_teacher_agree(name: str) -> None:
    logits = torch.randn(6, 4, requires_grad=True)
    loss = DISTILLATION[name](logits, logits.detach() + 5)  # the same softmax
    assert_close(gradient_of(loss, logits), torch.zeros(6, 4).double(), rtol=0, atol=1e-6)
    if name != "cross_entropy":  # which is the teacher's entropy then
        assert loss.item() == pytest.approx(0, abs=1e-6)


@distillation
def test_no_gradient_reaches_the_teacher(name: str) -> None:
    student, teacher = (logits.requires_grad_() for logits in random_logits())
    DISTILLATION[name](student, teacher).backward()
    assert student.grad is not None
    assert student.grad.any()
    assert teacher.grad is None


@distillation
@pytest.mark.parametrize("size", [50.0, 100.0, 1000.0])
def test_extreme_logits_leave_all_finite(name: str, size: float) -> None:
    teacher = torch.tensor([[size, -size, 0.0], [0.0, 0.0, size]])
    student = (-teacher).requires_grad_()
    loss = DISTILLATION[name](student, teacher)
    assert math.isfinite(loss.item())
    assert loss.item() > size / 2
    gradient = gradient_of(loss, student)
    assert torch.isfinite(gradient).all()
    assert gradient[0, 0] <= 0  # up, to where the teacher is


def test_losses_of_half_precision_logits_are_computed_in_full() -> None:
    logits = torch.randn(6, 4).bfloat16()
    labels = torch.zeros(6, dtype=torch.int64)
    for loss in (hard_cross_entropy(logits, labels, 0.1), *(loss(logits, logits) for loss in DISTILLATION.values())):
        assert loss.dtype == torch.float32
