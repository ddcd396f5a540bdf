import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from onceforall.layers import Activation
from onceforall.nn import ops


def identities() -> dict[str, Tensor]:
    return {"5": torch.eye(25), "3": torch.eye(9)}


def test_leading_keeps_the_first_entries_as_a_view() -> None:
    tensor = torch.arange(24).view(4, 6)
    part = ops.leading(tensor, 2, 3)
    assert part.tolist() == [[0, 1, 2], [6, 7, 8]]
    assert part.data_ptr() == tensor.data_ptr()


def test_leading_returns_the_tensor_itself_where_nothing_is_cut() -> None:
    tensor = torch.zeros(4, 6)
    assert ops.leading(tensor, 4, 6) is tensor


@pytest.mark.parametrize(("kernel", "margin"), [(7, 0), (5, 1), (3, 2)])
def test_identity_transforms_give_the_centre_crop(kernel: int, margin: int) -> None:
    weight = torch.randn(4, 1, 7, 7)
    crop = weight[:, :, margin : 7 - margin, margin : 7 - margin]
    assert torch.equal(ops.transform_kernel(weight, kernel, identities()), crop)


def test_the_3x3_kernel_is_made_from_the_transformed_5x5_kernel() -> None:
    weight, five, three = torch.randn(4, 1, 7, 7), torch.randn(25, 25), torch.randn(9, 9)
    for channel, small in zip(weight, ops.transform_kernel(weight, 3, {"3": three, "5": five}), strict=True):
        middle = (five @ channel[0, 1:6, 1:6].flatten()).view(5, 5)
        assert_close(small[0], (three @ middle[1:4, 1:4].flatten()).view(3, 3), rtol=1e-4, atol=1e-4)


def test_the_largest_kernel_is_not_transformed() -> None:
    weight = torch.randn(4, 1, 7, 7)
    assert ops.transform_kernel(weight, 7, {"5": torch.zeros(25, 25), "3": torch.zeros(9, 9)}) is weight


def test_a_missing_size_is_stepped_over() -> None:
    weight = torch.randn(4, 1, 7, 7)
    assert torch.equal(ops.transform_kernel(weight, 3, {"3": torch.eye(9)}), weight[:, :, 2:5, 2:5])


def test_a_sliced_batch_norm_has_the_first_channels_and_shares_their_statistics() -> None:
    bn = nn.BatchNorm2d(6)
    tensors = ops.slice_batch_norm(bn, 4)
    assert {len(tensors[f"bn.{name}"]) for name in ("weight", "bias", "running_mean", "running_var")} == {4}
    tensors["bn.running_mean"].fill_(3.0)
    assert bn.running_mean.tolist() == [3, 3, 3, 3, 0, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("activation", "function"),
    [("relu", F.relu), ("relu6", F.relu6), ("h_swish", F.hardswish), ("none", lambda x: x)],
)
@pytest.mark.parametrize("training", [True, False])
def test_conv_norm_act_is_convolution_batch_norm_and_activation(
    activation: Activation, function: object, training: bool
) -> None:
    conv, bn = nn.Conv2d(4, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8, eps=1e-3).train(training)
    x = 10 * torch.randn(5, 4, 6, 6)
    tensors = {"part.conv.weight": conv.weight, **{f"part.{k}": v for k, v in ops.slice_batch_norm(bn, 8).items()}}
    tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    y = ops.conv_norm_act(x, tensors, "part.", stride=2, activation=activation, training=training, bn_eps=1e-3)
    assert_close(y, function(bn(conv(x))), rtol=1e-5, atol=1e-5)  # type: ignore[operator]
    assert_close(tensors["part.bn.running_var"], bn.running_var)


def test_conv_norm_act_without_batch_norm_is_convolution_and_activation() -> None:
    weight, x = torch.randn(8, 4, 1, 1), torch.randn(5, 4, 6, 6)
    y = ops.conv_norm_act(x, {"conv.weight": weight}, "", activation="relu", training=True, bn_eps=1e-5)
    assert_close(y, F.relu(F.conv2d(x, weight)))


def test_squeeze_excite_scales_channels_by_a_hard_sigmoid_of_their_means() -> None:
    reduce, expand = torch.randn(2, 4), torch.randn(4, 2)
    biases = torch.randn(2), torch.randn(4)
    tensors = {
        "se.reduce.weight": reduce[..., None, None],
        "se.reduce.bias": biases[0],
        "se.expand.weight": expand[..., None, None],
        "se.expand.bias": biases[1],
    }
    x = torch.randn(5, 4, 3, 3)
    hidden = (x.mean(dim=(2, 3)) @ reduce.T + biases[0]).clamp(min=0)
    scale = ((hidden @ expand.T + biases[1]) / 6 + 0.5).clamp(0, 1)
    assert_close(ops.squeeze_excite(x, tensors), x * scale[..., None, None])


@pytest.mark.parametrize(
    ("boundaries", "order"), [((), [1, 3, 5, 2, 4, 0]), ((2,), [1, 0, 3, 5, 2, 4]), ((2, 4), [1, 0, 3, 2, 5, 4])]
)
def test_importance_sorts_inside_each_range_and_ties_keep_their_order(
    boundaries: tuple[int, ...], order: list[int]
) -> None:
    importance = torch.tensor([0.0, 9.0, 2.0, 5.0, 1.0, 5.0])
    assert ops.order_by_importance(importance, boundaries).tolist() == order
