"""Typical answers to the exercises of notebook 03: blank, unfinished, wrong, and right in many styles."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from klvae_edu.blocks import ResnetBlock2D
from klvae_edu.exercises import nb03
from tests.exercises.answers import assert_blank, assert_passes, assert_rejected, mistakes, verdicts


def raises(*args):
    raise NotImplementedError


def gaps(*args):
    values = ...  # noqa: F841
    return ...


@pytest.mark.parametrize("id", ["03.1", "03.2", "03.3"])
@pytest.mark.parametrize("answer", [raises, gaps])
def test_a_blank_is_not_attempted(id, answer):
    assert_blank(id, answer)


@pytest.mark.parametrize("shape", [(3, 12, 5, 7), (1, 4, 1, 6), (2, 8, 16, 16)])
def test_the_finished_functions_do_what_the_layers_do(shape):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape, dtype=torch.float64), *torch.randn(2, shape[1], dtype=torch.float64)
    matrix = torch.randn(5, shape[1], dtype=torch.float64)
    for ours, layers in (
        (nb03.group_norm(x, 2, weight, bias), F.group_norm(x, 2, weight, bias, eps=1e-6)),
        (nb03.silu(x), F.silu(x)),
        (nb03.pointwise(x, matrix, matrix[:, 0]), F.conv2d(x, matrix[:, :, None, None], matrix[:, 0])),
    ):
        torch.testing.assert_close(ours, layers, rtol=1e-12, atol=1e-12, check_stride=False)


@pytest.mark.parametrize("widths", [(8, 8), (8, 16), (16, 8)])
def test_the_finished_block_is_the_packages(widths):
    torch.manual_seed(0)
    theirs, ours = ResnetBlock2D(*widths, groups=4).double(), nb03.ResnetBlock(*widths, groups=4).double()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += torch.randn_like(parameter)
    ours.load_state_dict(theirs.state_dict())
    x = 1e-3 * torch.randn(2, widths[0], 6, 5, dtype=torch.float64)
    assert torch.equal(ours(x), theirs(x))


# 03.1


def standardised(values, dims, eps=0.0, **options):
    return (values - values.mean(dims, keepdim=True)) / torch.sqrt(values.var(dims, keepdim=True, **options) + eps)


def affine(x, weight, bias):
    return x * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)


def norm_across_images(x, groups, weight, bias, eps=1e-6):
    return affine(standardised(x.reshape(groups, -1), 1, eps, unbiased=False).reshape(x.shape), weight, bias)


def norm_with_groups_last(x, groups, weight, bias, eps=1e-6):
    values = x.reshape(x.shape[0], -1, groups)
    return affine(standardised(values, 1, eps, unbiased=False).reshape(x.shape), weight, bias)


def norm_by_strides(x, groups, weight, bias, eps=1e-6):
    y = torch.empty_like(x)
    for group in range(groups):
        y[:, group::groups] = standardised(x[:, group::groups], (1, 2, 3), eps, unbiased=False)
    return affine(y, weight, bias)


def norm_by_strides_per_pixel(x, groups, weight, bias, eps=1e-6):
    y = torch.empty_like(x)
    for group in range(groups):
        y[:, group::groups] = standardised(x[:, group::groups], 1, eps, unbiased=False)
    return affine(y, weight, bias)


def norm_over_the_groups(x, groups, weight, bias, eps=1e-6):
    values = x.reshape(x.shape[0], groups, -1)
    return affine(standardised(values, 1, eps, unbiased=False).view_as(x), weight, bias)


def norm_without_keepdim(x, groups, weight, bias, eps=1e-6):
    values = x.reshape(x.shape[0], groups, -1)
    mean, var = values.mean(2), values.var(2, unbiased=False)
    return affine(((values - mean) / torch.sqrt(var + eps)).reshape(x.shape), weight, bias)


def norm_without_keepdim_in_five_dimensions(x, groups, weight, bias, eps=1e-6):
    values = x.unflatten(1, (groups, -1))
    mean, var = values.mean((2, 3, 4), keepdim=True), values.var((2, 3, 4), unbiased=False)
    return affine(((values - mean) / torch.sqrt(var + eps)).reshape(x.shape), weight, bias)


def norm_without_keepdim_in_rows_of_all(x, groups, weight, bias, eps=1e-6):
    rows = x.reshape(x.shape[0] * groups, -1)
    rows = (rows - rows.mean(1)) / (rows.var(1, unbiased=False) + eps).sqrt()
    return affine(rows.view_as(x), weight, bias)


def norm_without_keepdim_in_a_loop(x, groups, weight, bias, eps=1e-6):
    parts = []
    for part in torch.chunk(x, groups, dim=1):
        mean, var = part.mean(dim=(1, 2, 3)), part.var(dim=(1, 2, 3), unbiased=False)
        parts.append((part - mean) / torch.sqrt(var + eps))
    return affine(torch.cat(parts, dim=1), weight, bias)


def norm_of_x_by_the_statistics_of_rows(x, groups, weight, bias, eps=1e-6):
    values = x.reshape(x.shape[0], groups, -1)
    mean, var = values.mean(2, keepdim=True), values.var(2, keepdim=True, unbiased=False)
    return affine((x - mean) / torch.sqrt(var + eps), weight, bias)


def norm_half(x, groups, weight, bias, eps=1e-6):
    values = x.reshape(x.shape[0], groups, -1)
    mean = ...
    return values - mean


def norm_over_the_batch(x, groups, weight, bias, eps=1e-6):
    values = x.view(x.shape[0], groups, -1)
    return affine(standardised(values, (0, 2), eps, unbiased=False).view_as(x), weight, bias)


def norm_of_the_batch(x, groups, weight, bias, eps=1e-6):
    return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)


def norm_of_everything(x, groups, weight, bias, eps=1e-6):
    return affine((x - x.mean()) / torch.sqrt(x.var(unbiased=False) + eps), weight, bias)


def norm_per_channel(x, groups, weight, bias, eps=1e-6):
    return affine(standardised(x, (2, 3), eps, unbiased=False), weight, bias)


def norm_of_the_layer(x, groups, weight, bias, eps=1e-6):
    return affine(standardised(x, (1, 2, 3), eps, unbiased=False), weight, bias)


def norm_per_pixel(x, groups, weight, bias, eps=1e-6):
    parts = [standardised(part, 1, eps, unbiased=False) for part in x.chunk(groups, dim=1)]
    return affine(torch.cat(parts, dim=1), weight, bias)


def norm_by_default_variance(x, groups, weight, bias, eps=1e-6):
    values = x.reshape(x.shape[0], groups, -1)
    return affine(standardised(values, 2, eps).reshape(x.shape), weight, bias)


def norm_with_eps_on_the_std(x, groups, weight, bias, eps=1e-6):
    values = x.reshape(x.shape[0], groups, -1)
    mean, std = values.mean(2, keepdim=True), values.std(2, keepdim=True, unbiased=False)
    return affine(((values - mean) / (std + eps)).reshape(x.shape), weight, bias)


def norm_with_std_by_default(x, groups, weight, bias, eps=1e-6):
    values = x.reshape(x.shape[0], groups, -1)
    mean, std = values.mean(2, keepdim=True), values.std(2, keepdim=True)
    return affine(((values - mean) / (std + eps)).reshape(x.shape), weight, bias)


def norm_without_eps(x, groups, weight, bias, eps=1e-6):
    values = x.reshape(x.shape[0], groups, -1)
    return affine(standardised(values, 2, unbiased=False).reshape(x.shape), weight, bias)


def norm_of_pytorch_with_its_own_eps(x, groups, weight, bias, eps=1e-6):
    return F.group_norm(x, groups, weight, bias)


def norm_with_another_default(x, groups, weight, bias, eps=1e-5):
    return F.group_norm(x, groups, weight, bias, eps)


def norm_with_a_fixed_eps(x, groups, weight, bias, eps=1e-6):
    return F.group_norm(x, groups, weight, bias, 1e-6)


def norm_by_variance(x, groups, weight, bias, eps=1e-6):
    values = x.reshape(x.shape[0], groups, -1)
    mean, var = values.mean(2, keepdim=True), values.var(2, keepdim=True, unbiased=False)
    return affine(((values - mean) / (var + eps)).reshape(x.shape), weight, bias)


def norm_without_mean(x, groups, weight, bias, eps=1e-6):
    values = x.reshape(x.shape[0], groups, -1)
    return affine((values / (values.var(2, keepdim=True, correction=0) + eps).sqrt()).reshape(x.shape), weight, bias)


def norm_interleaved(x, groups, weight, bias, eps=1e-6):
    b, c, h, w = x.shape
    values = x.view(b, c // groups, groups, h, w).transpose(1, 2).reshape(b, groups, -1)
    values = standardised(values, 2, eps, unbiased=False).view(b, groups, c // groups, h, w).transpose(1, 2)
    return affine(values.reshape(b, c, h, w), weight, bias)


def norm_in_groups_of(x, groups, weight, bias, eps=1e-6):
    values = x.reshape(x.shape[0], x.shape[1] // groups, -1)
    return affine(standardised(values, 2, eps, unbiased=False).reshape(x.shape), weight, bias)


def norm_without_affine(x, groups, weight, bias, eps=1e-6):
    return standardised(x.reshape(x.shape[0], groups, -1), 2, eps, unbiased=False).reshape(x.shape)


def norm_without_bias(x, groups, weight, bias, eps=1e-6):
    return norm_without_affine(x, groups, weight, bias, eps) * weight[:, None, None]


def norm_with_affine_along_the_width(x, groups, weight, bias, eps=1e-6):
    return norm_without_affine(x, groups, weight, bias, eps) * weight + bias


def norm_with_affine_first(x, groups, weight, bias, eps=1e-6):
    return norm_without_affine(affine(x, weight, bias), groups, weight, bias, eps)


def norm_with_exchanged_affine(x, groups, weight, bias, eps=1e-6):
    return affine(norm_without_affine(x, groups, weight, bias, eps), bias, weight)


def norm_with_one_weight_for_a_group(x, groups, weight, bias, eps=1e-6):
    normal = standardised(x.reshape(x.shape[0], groups, -1), 2, eps, unbiased=False)
    return (normal * weight[:groups, None] + bias[:groups, None]).reshape(x.shape)


def norm_in_the_shape_of_groups(x, groups, weight, bias, eps=1e-6):
    return standardised(x.reshape(x.shape[0], groups, -1), 2, eps, unbiased=False)


def norm_in_place_on_the_input(x, groups, weight, bias, eps=1e-6):
    values = x.view(x.shape[0], groups, -1)
    values -= values.mean(2, keepdim=True)
    values /= (values.var(2, keepdim=True, unbiased=False) + eps).sqrt()
    return affine(x, weight, bias)


def norm_with_detached_statistics(x, groups, weight, bias, eps=1e-6):
    values = x.reshape(x.shape[0], groups, -1)
    mean, var = values.detach().mean(2, keepdim=True), values.detach().var(2, keepdim=True, unbiased=False)
    return affine(((values - mean) / (var + eps).sqrt()).reshape(x.shape), weight, bias)


def norm_by_a_loop(x, groups, weight, bias, eps=1e-6):
    y, size = torch.empty_like(x), x.shape[1] // groups
    for image in range(x.shape[0]):
        for first in range(0, x.shape[1], size):
            group = x[image, first : first + size]
            var = ((group - group.mean()) ** 2).mean()
            y[image, first : first + size] = (group - group.mean()) / (var + eps) ** 0.5
    return y * weight[None, :, None, None] + bias[None, :, None, None]


def norm_by_einsum(x, groups, weight, bias, eps=1e-6):
    _, c, h, w = x.shape
    values = x.unflatten(1, (groups, -1))
    values = values - torch.einsum("bgchw->bg", values)[:, :, None, None, None] / (c // groups * h * w)
    var = torch.einsum("bgchw,bgchw->bg", values, values) / (c // groups * h * w)
    values = values * (var + eps).rsqrt()[:, :, None, None, None]
    return torch.einsum("bchw,c->bchw", values.flatten(1, 2), weight) + bias[:, None, None]


def norm_in_double(x, groups, weight, bias, eps=1e-6):
    values = x.double().reshape(x.shape[0], groups, -1)
    return affine(standardised(values, 2, eps, correction=0).reshape(x.shape), weight.double(), bias.double())


def norm_in_place(x, groups, weight, bias, eps=1e-6):
    values = x.reshape(x.shape[0], groups, -1)
    root = values.var(-1, keepdim=True, unbiased=False).add_(eps).sqrt()
    values = values.clone().sub_(values.mean(-1, keepdim=True)).div_(root).reshape(x.shape)
    return values.mul(weight[:, None, None]).add_(bias[:, None, None])


def norm_of_pytorch(x, groups, weight, bias, eps=1e-6):
    return F.group_norm(x, groups, weight, bias, eps)


@mistakes(
    "03.1",
    [
        ("gap `...` is still open", norm_half),
        ("over the batch as well", norm_over_the_batch),
        ("this is batch norm", norm_of_the_batch),
        ("one mean and one variance for everything", norm_of_everything),
        ("instance norm", norm_per_channel),
        ("groups is ignored", norm_of_the_layer),
        ("every pixel", norm_per_pixel),
        ("N - 1", norm_by_default_variance),
        ("under the root", norm_with_eps_on_the_std),
        ("look at both", norm_with_std_by_default),
        ("eps is missing", norm_without_eps),
        ("fixed at 1e-5", norm_of_pytorch_with_its_own_eps),
        ("default of eps is 1e-5", norm_with_another_default),
        ("fixed at 1e-6", norm_with_a_fixed_eps),
        ("divided by the variance", norm_by_variance),
        ("mean is not subtracted", norm_without_mean),
        ("across images", norm_across_images),
        ("dimension after the batch", norm_with_groups_last),
        ("the groups are interleaved", norm_by_strides),
        ("every pixel has statistics of its own, and the groups are interleaved", norm_by_strides_per_pixel),
        ("over the groups", norm_over_the_groups),
        ("use keepdim=True", norm_without_keepdim),
        ("use keepdim=True", norm_without_keepdim_in_five_dimensions),
        ("use keepdim=True", norm_without_keepdim_in_rows_of_all),
        ("use keepdim=True", norm_without_keepdim_in_a_loop),
        ("belongs to the reshaped values", norm_of_x_by_the_statistics_of_rows),
        ("interleaved", norm_interleaved),
        ("number of channels in a group", norm_in_groups_of),
        ("weight and bias are missing", norm_without_affine),
        ("bias is missing", norm_without_bias),
        ("run along the width: a value belongs to a channel", norm_with_affine_along_the_width),
        ("before the normalisation", norm_with_affine_first),
        ("exchanged", norm_with_exchanged_affine),
        ("for a whole group", norm_with_one_weight_for_a_group),
        ("expected shape (3, 8, 8, 8), got (3, 2, 256)", norm_in_the_shape_of_groups),
        ("changes its input x", norm_in_place_on_the_input),
        ("not the gradient with respect to x", norm_with_detached_statistics),
    ],
)
def test_a_wrong_group_norm_is_named(keyword, answer):
    assert_rejected("03.1", answer, keyword)


@verdicts("03.1", [norm_by_a_loop, norm_by_einsum, norm_in_double, norm_in_place, norm_of_pytorch])
def test_a_right_group_norm_passes_in_any_style(answer):
    assert_passes("03.1", answer)


# 03.2


def silu_half(x):
    return x * ...


def silu_without_x(x):
    return 1 / (1 + torch.exp(-x))


def silu_is_relu(x):
    return torch.clamp(x, min=0)


def silu_is_gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def silu_with_tanh(x):
    return x * torch.tanh(x)


def silu_with_another_beta(x):
    return x * torch.sigmoid(1.702 * x)


def silu_with_wrong_sign(x):
    return x / (1 + torch.exp(x))


def silu_that_overflows(x):
    return x * torch.exp(x) / (torch.exp(x) + 1)


def silu_added(x):
    return x + torch.sigmoid(x)


def silu_cut_off(x):
    return torch.where(x > 0, x * torch.sigmoid(x), torch.zeros_like(x))


def silu_is_mish(x):
    return x * torch.tanh(F.softplus(x))


def silu_is_softplus(x):
    return torch.log(1 + torch.exp(-x.abs())) + x.clamp(min=0)


def silu_in_place(x):
    x *= torch.sigmoid(x)
    return x


def silu_without_gradient(x):
    return x * torch.sigmoid(x).detach()


def silu_by_tanh(x):
    return 0.5 * x * (1 + torch.tanh(0.5 * x))


def silu_by_module(x):
    return nn.SiLU()(x)


def silu_by_division(x):
    return x / (1 + torch.exp(-x))


def silu_in_double(x):
    return torch.sigmoid(x.double()) * x


@mistakes(
    "03.2",
    [
        ("gap `...` is still open", silu_half),
        ("σ(x) alone", silu_without_x),
        ("ReLU", silu_is_relu),
        ("GELU", silu_is_gelu),
        ("x · tanh(x)", silu_with_tanh),
        ("quick version of GELU", silu_with_another_beta),
        ("sign in the exponent", silu_with_wrong_sign),
        ("exp overflows", silu_that_overflows),
        ("x is added", silu_added),
        ("cut off", silu_cut_off),
        ("Mish", silu_is_mish),
        ("softplus", silu_is_softplus),
        ("changes its input x", silu_in_place),
        ("not the gradient", silu_without_gradient),
    ],
)
def test_a_wrong_silu_is_named(keyword, answer):
    assert_rejected("03.2", answer, keyword)


@verdicts("03.2", [silu_by_tanh, silu_by_module, silu_by_division, silu_in_double])
def test_a_right_silu_passes_in_any_style(answer):
    assert_passes("03.2", answer)


# 03.3


def pointwise_half(x, weight, bias):
    moved = ...
    return moved @ weight.T + bias


def pointwise_transposed(x, weight, bias):
    return (x.movedim(1, -1) @ weight + bias).movedim(-1, 1)


def pointwise_without_bias(x, weight, bias):
    return torch.einsum("oc,bchw->bohw", weight, x)


def pointwise_with_bias_along_the_width(x, weight, bias):
    return torch.einsum("oc,bchw->bohw", weight, x) + bias


def pointwise_over_the_width(x, weight, bias):
    return F.linear(x, weight, bias)


def pointwise_over_the_height(x, weight, bias):
    return weight @ x + bias


def pointwise_over_the_batch(x, weight, bias):
    return torch.tensordot(weight, x, dims=1) + bias.view(-1, 1, 1)


def pointwise_with_channels_last(x, weight, bias):
    return x.permute(0, 2, 3, 1) @ weight.T + bias


def pointwise_by_reshape(x, weight, bias):
    b, c, h, w = x.shape
    return F.linear(x.reshape(b, h * w, c), weight, bias).reshape(b, len(weight), h, w)


def pointwise_by_reshape_there_only(x, weight, bias):
    b, c, h, w = x.shape
    return F.linear(x.reshape(b, h, w, c), weight, bias).permute(0, 3, 1, 2)


def pointwise_by_reshape_and_not_back(x, weight, bias):
    b, c, h, w = x.shape
    return x.view(b, h, w, c) @ weight.t() + bias


def pointwise_swapped_and_not_back(x, weight, bias):
    return F.linear(x.swapaxes(1, 3), weight, bias)


def pointwise_permuted_twice_alike(x, weight, bias):
    there = (0, 2, 3, 1)
    return (x.permute(there) @ weight.T + bias).permute(there)


def pointwise_transposed_and_not_back(x, weight, bias):
    return x.movedim(1, -1) @ weight + bias


def pointwise_back_by_reshape(x, weight, bias):
    b, _, h, w = x.shape
    return F.linear(x.flatten(2).transpose(1, 2), weight, bias).reshape(b, len(weight), h, w)


def pointwise_with_sides_exchanged(x, weight, bias):
    return F.linear(x.transpose(1, 3), weight, bias).permute(0, 3, 1, 2)


def pointwise_with_bias_first(x, weight, bias):
    return torch.einsum("oc,bchw->bohw", weight, x + bias.view(1, -1, 1, 1))


def pointwise_without_gradient(x, weight, bias):
    conv = nn.Conv2d(*weight.shape[::-1], 1)
    conv.weight.data, conv.bias.data = weight[:, :, None, None], bias
    return conv(x)


def pointwise_by_conv(x, weight, bias):
    return F.conv2d(x, weight[:, :, None, None], bias)


def pointwise_by_flattening(x, weight, bias):
    return (weight @ x.flatten(2) + bias[:, None]).unflatten(2, x.shape[2:])


def pointwise_by_moving_the_channels(x, weight, bias):
    return F.linear(x.movedim(1, -1), weight, bias).movedim(-1, 1)


def pointwise_by_a_loop(x, weight, bias):
    y = torch.zeros(x.shape[0], len(weight), *x.shape[2:])
    for o in range(len(weight)):
        for i in range(x.shape[1]):
            y[:, o] += weight[o, i] * x[:, i]
        y[:, o] += bias[o]
    return y


def pointwise_in_double(x, weight, bias):
    y = (weight.double()[None, :, :, None, None] * x.double()[:, None]).sum(2)
    return y.add_(bias[:, None, None])


@mistakes(
    "03.3",
    [
        ("gap `...` is still open", pointwise_half),
        ("transposed", pointwise_transposed),
        ("bias is missing", pointwise_without_bias),
        ("bias runs along the width", pointwise_with_bias_along_the_width),
        ("mixes the columns", pointwise_over_the_width),
        ("mixes the rows", pointwise_over_the_height),
        ("mixes the images", pointwise_over_the_batch),
        ("channels are last", pointwise_with_channels_last),
        ("reshape does not move the channels to the end", pointwise_by_reshape),
        ("reshape does not move the channels to the end", pointwise_by_reshape_there_only),
        ("reshape does not move the channels to the end", pointwise_by_reshape_and_not_back),
        ("channels are last in the result, and height and width exchanged", pointwise_swapped_and_not_back),
        ("does not undo a permute", pointwise_permuted_twice_alike),
        ("the matrix is transposed, and the channels are last", pointwise_transposed_and_not_back),
        ("reshape does not bring the channels back", pointwise_back_by_reshape),
        ("height and width are exchanged", pointwise_with_sides_exchanged),
        ("bias is added before the matrix", pointwise_with_bias_first),
        ("no gradient reaches weight and bias", pointwise_without_gradient),
    ],
)
def test_a_wrong_pointwise_convolution_is_named(keyword, answer):
    assert_rejected("03.3", answer, keyword)


@verdicts(
    "03.3",
    [
        pointwise_by_conv,
        pointwise_by_flattening,
        pointwise_by_moving_the_channels,
        pointwise_by_a_loop,
        pointwise_in_double,
    ],
)
def test_a_right_pointwise_convolution_passes_in_any_style(answer):
    assert_passes("03.3", answer)


# 03.4: a right class, and what people get wrong in one of its parts


class Right(nn.Module):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups=groups, num_channels=in_channels, eps=1e-6, affine=True)
        self.norm2 = nn.GroupNorm(num_groups=groups, num_channels=out_channels, eps=1e-6, affine=True)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=1, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, stride=1, padding=1)
        self.act = nn.SiLU()
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def shortcut(self, x):
        return self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x

    def forward(self, x):
        h = self.conv1(self.act(self.norm1(x)))
        h = self.conv2(self.act(self.norm2(h)))
        return self.shortcut(x) + h


class Blank(nn.Module):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__()
        self.norm1 = ...
        self.conv1 = ...
        self.norm2 = ...
        self.conv2 = ...
        self.conv_shortcut = ...

    def forward(self, x):
        hidden = ...
        hidden = ...  # noqa: F841
        return ...


class BlankRaising(nn.Module):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__()
        raise NotImplementedError

    def forward(self, x):
        raise NotImplementedError


class HalfInit(Blank):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__(in_channels, out_channels, groups)
        del self.norm1
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-6)


class HalfForward(Right):
    def forward(self, x):
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = ...
        return self.shortcut(x) + hidden


class EpsLeftAlone(Right):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__(in_channels, out_channels, groups)
        self.norm1 = nn.GroupNorm(groups, in_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels)


class EpsLeftAloneInTheSecondNorm(Right):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__(in_channels, out_channels, groups)
        self.norm2 = nn.GroupNorm(groups, out_channels)


class GroupsIgnored(Right):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__(in_channels, out_channels, 1)


class ChannelsBeforeGroups(Right):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__(in_channels, out_channels, groups)
        self.norm1 = nn.GroupNorm(in_channels, groups, eps=1e-6)


class SecondNormTooNarrow(Right):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__(in_channels, out_channels, groups)
        self.norm2 = nn.GroupNorm(groups, in_channels, eps=1e-6)


class WidenedLate(Right):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__(in_channels, out_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 3, padding=1)


class NoShortcutLayer(Right):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__(in_channels, out_channels, groups)
        if in_channels != out_channels:
            del self.conv_shortcut


class ShortcutAlways(Right):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__(in_channels, out_channels, groups)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1)


class ShortcutThreeByThree(Right):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__(in_channels, out_channels, groups)
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 3, padding=1)


class ShortcutPadded(Right):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__(in_channels, out_channels, groups)
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1, padding=1)


class CompVisName(Right):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__(in_channels, out_channels, groups)
        if in_channels != out_channels:
            self.nin_shortcut = self.conv_shortcut
            del self.conv_shortcut

    def shortcut(self, x):
        return self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x


class NoPadding(Right):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__(in_channels, out_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3)


class NoBias(Right):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__(in_channels, out_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)


class BatchNorm(Right):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__(in_channels, out_channels, groups)
        self.norm1, self.norm2 = nn.BatchNorm2d(in_channels), nn.BatchNorm2d(out_channels)


class PostActivation(Right):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__(in_channels, out_channels, groups)
        self.norm1 = nn.GroupNorm(groups, out_channels, eps=1e-6)

    def forward(self, x):
        h = F.silu(self.norm1(self.conv1(x)))
        return F.silu(self.shortcut(x) + self.norm2(self.conv2(h)))


class NoShortcut(Right):
    def forward(self, x):
        return self.conv2(self.act(self.norm2(self.conv1(self.act(self.norm1(x))))))


class NoActivation(Right):
    def forward(self, x):
        return self.shortcut(x) + self.conv2(self.norm2(self.conv1(self.norm1(x))))


class FirstActivationForgotten(Right):
    def forward(self, x):
        return self.shortcut(x) + self.conv2(self.act(self.norm2(self.conv1(self.norm1(x)))))


class SecondActivationForgotten(Right):
    def forward(self, x):
        return self.shortcut(x) + self.conv2(self.norm2(self.conv1(self.act(self.norm1(x)))))


class Relu(Right):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__(in_channels, out_channels, groups)
        self.act = nn.ReLU()


class ActivationBeforeNorm(Right):
    def forward(self, x):
        h = self.conv1(self.norm1(self.act(x)))
        return self.shortcut(x) + self.conv2(self.norm2(self.act(h)))


class FirstActivationBeforeNorm(Right):
    def forward(self, x):
        h = self.conv1(self.norm1(self.act(x)))
        return self.shortcut(x) + self.conv2(self.act(self.norm2(h)))


class SecondActivationBeforeNorm(Right):
    def forward(self, x):
        h = self.act(self.conv1(self.act(self.norm1(x))))
        return self.shortcut(x) + self.conv2(self.norm2(h))


class ActivationBetweenTheHalves(Right):
    def forward(self, x):
        h = self.act(self.conv1(self.norm1(x)))
        return self.shortcut(x) + self.conv2(self.norm2(h))


class ConvNormActivation(Right):
    def forward(self, x):
        h = self.act(self.norm1(self.conv1(x)))
        h = self.act(self.norm2(self.conv2(h)))
        return self.shortcut(x) + h


class ConvNormActivationConvNorm(Right):
    def forward(self, x):
        h = self.act(self.norm1(self.conv1(x)))
        return self.shortcut(x) + self.norm2(self.conv2(h))


class ConvActivationNorm(Right):
    def forward(self, x):
        h = self.norm1(self.act(self.conv1(x)))
        return self.shortcut(x) + self.norm2(self.act(self.conv2(h)))


class ActivationConvNorm(Right):
    def forward(self, x):
        h = self.norm1(self.conv1(self.act(x)))
        return self.norm2(self.conv2(self.act(h))) + self.shortcut(x)


class SecondHalfFromX(Right):
    def forward(self, x):
        hidden = self.conv1(self.act(self.norm1(x)))
        hidden = self.conv2(self.act(self.norm2(x)))
        return self.shortcut(x) + hidden


class BranchAddedToItself(Right):
    def forward(self, x):
        x = self.conv1(self.act(self.norm1(x)))
        x = self.conv2(self.act(self.norm2(x)))
        return self.shortcut(x) + x


class XItselfAlways(Right):
    def forward(self, x):
        hidden = self.conv1(self.act(self.norm1(x)))
        hidden = self.conv2(self.act(self.norm2(hidden)))
        return hidden + x


class XItselfFirst(Right):
    def forward(self, x):
        hidden = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(hidden)))


class NoneIsCalled(Right):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__(in_channels, out_channels, groups)
        self.conv_shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def shortcut(self, x):
        return self.conv_shortcut(x)


class GroupsOfTheBook(Right):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__(in_channels, out_channels, groups)
        self.norm1 = nn.GroupNorm(32, in_channels, eps=1e-6)


class ActivationAfterConv(Right):
    def forward(self, x):
        h = self.act(self.conv1(self.norm1(x)))
        return self.shortcut(x) + self.act(self.conv2(self.norm2(h)))


class ActivationAfterSum(Right):
    def forward(self, x):
        return self.act(super().forward(x))


class ShortcutFromTheNorm(Right):
    def forward(self, x):
        x = self.norm1(x)
        return self.shortcut(x) + self.conv2(self.act(self.norm2(self.conv1(self.act(x)))))


class ShortcutFromTheActivation(Right):
    def forward(self, x):
        x = self.act(self.norm1(x))
        return self.shortcut(x) + self.conv2(self.act(self.norm2(self.conv1(x))))


class AddedBeforeConv2(Right):
    def forward(self, x):
        h = self.act(self.norm2(self.conv1(self.act(self.norm1(x)))))
        return self.conv2(h + self.shortcut(x))


class Halved(Right):
    def forward(self, x):
        return super().forward(x) / math.sqrt(2)


class Subtracted(Right):
    def forward(self, x):
        return 2 * self.shortcut(x) - super().forward(x)


class OneNormForBoth(Right):
    def forward(self, x):
        h = self.conv1(self.act(self.norm1(x)))
        norm = self.norm1 if h.shape == x.shape else self.norm2
        return self.shortcut(x) + self.conv2(self.act(norm(h)))


class Dropout(Right):
    def forward(self, x):
        h = self.conv1(self.act(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.dropout(self.act(self.norm2(h)), 0.1))


class InPlaceOnTheInput(Right):
    def forward(self, x):
        h = self.conv2(self.act(self.norm2(self.conv1(self.act(self.norm1(x))))))
        return self.shortcut(x).add_(h)


class Detached(Right):
    def forward(self, x):
        with torch.no_grad():
            h = self.conv1(self.act(self.norm1(x)))
        return self.shortcut(x) + self.conv2(self.act(self.norm2(h)))


class WithIdentity(Right):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__(in_channels, out_channels, groups)
        if in_channels == out_channels:
            self.conv_shortcut = nn.Identity()

    def forward(self, x):
        h = self.norm1(x)
        h *= torch.sigmoid(h)
        h = self.norm2(self.conv1(h))
        return self.conv2(F.silu(h, inplace=True)).add_(self.conv_shortcut(x))


class WithNone(Right):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__(in_channels, out_channels, groups)
        self.conv_shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, (1, 1))

    def shortcut(self, x):
        return x if self.conv_shortcut is None else self.conv_shortcut(x)


class WithTheReadersFunctions(Right):
    def shortcut(self, x):
        if x.shape[1] == self.conv1.out_channels:
            return x
        return nb03.pointwise(x, self.conv_shortcut.weight[:, :, 0, 0], self.conv_shortcut.bias)

    def forward(self, x):
        h = x
        for norm, conv in ((self.norm1, self.conv1), (self.norm2, self.conv2)):
            h = conv(nb03.silu(nb03.group_norm(h, norm.num_groups, norm.weight, norm.bias, norm.eps)))
        return h + self.shortcut(x)


class WithSequential(Right):
    def forward(self, x):
        branch = nn.Sequential(self.norm1, nn.SiLU(), self.conv1, self.norm2, nn.SiLU(), self.conv2)
        return branch(x) + self.shortcut(x)


class PaddedByHand(Right):
    def __init__(self, in_channels, out_channels, groups):
        super().__init__(in_channels, out_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding="same")

    def forward(self, x):
        h = self.conv1(F.pad(self.act(self.norm1(x)), (1, 1, 1, 1)))
        return (self.conv2(self.act(self.norm2(h))).double() + self.shortcut(x).double()).float()


@verdicts("03.4", [Blank, BlankRaising])
def test_a_blank_block_is_not_attempted(answer):
    assert_blank("03.4", answer)


@mistakes("03.4", [("self.conv1, self.norm2", HalfInit), ("(forward)", HalfForward)])
def test_a_half_written_block_names_the_open_gap(keyword, answer):
    assert_rejected("03.4", answer, "gap `...` is still open")
    assert_rejected("03.4", answer, keyword)


@mistakes(
    "03.4",
    [
        ("norm1 has eps 1e-05, expected 1e-06", EpsLeftAlone),
        ("norm2 has eps 1e-05, expected 1e-06", EpsLeftAloneInTheSecondNorm),
        ("norm1 has num_groups 1, expected 4", GroupsIgnored),
        ("the argument groups stands first", ChannelsBeforeGroups),
        ("the argument groups stands first", GroupsOfTheBook),
        ("norm2 has in_channels", SecondNormTooNarrow),
        ("conv1 keeps the width", WidenedLate),
        ("conv_shortcut is missing", NoShortcutLayer),
        ("even where the widths are equal", ShortcutAlways),
        ("conv_shortcut is a 3x3 convolution", ShortcutThreeByThree),
        ("conv_shortcut has padding (1, 1), expected (0, 0)", ShortcutPadded),
        ("it has no conv_shortcut", CompVisName),
        ("conv1 has padding (0, 0), expected (1, 1)", NoPadding),
        ("convolutions have no bias", NoBias),
        ("this is batch norm", BatchNorm),
        ("norm1 has out_channels", PostActivation),
        ("the input is not added", NoShortcut),
        ("both SiLUs are missing", NoActivation),
        ("SiLU before conv1 is missing", FirstActivationForgotten),
        ("SiLU before conv2 is missing", SecondActivationForgotten),
        ("the activation is ReLU", Relu),
        ("before the norm", ActivationBeforeNorm),
        ("before norm1", FirstActivationBeforeNorm),
        ("before norm2", SecondActivationBeforeNorm),
        ("is missing before conv1", ActivationBetweenTheHalves),
        ("the norms stand after the convolutions", ConvNormActivation),
        ("the norms stand after the convolutions, and one SiLU is missing", ConvNormActivationConvNorm),
        ("this is convolution, SiLU, norm", ConvActivationNorm),
        ("this is SiLU, convolution, norm", ActivationConvNorm),
        ("the second half takes x", SecondHalfFromX),
        ("the shortcut takes the output of the branch", BranchAddedToItself),
        ("x does not fit where the widths differ", XItselfAlways),
        ("x does not fit where the widths differ", XItselfFirst),
        ("conv_shortcut is None", NoneIsCalled),
        ("after the convolution", ActivationAfterConv),
        ("SiLU after the sum", ActivationAfterSum),
        ("shortcut takes the normalised input", ShortcutFromTheNorm),
        ("after norm1 and SiLU", ShortcutFromTheActivation),
        ("added before conv2", AddedBeforeConv2),
        ("divided by the root of 2", Halved),
        ("branch is subtracted", Subtracted),
        ("norm1 is used in both places", OneNormForBoth),
        ("random numbers", Dropout),
        ("changes its input x", InPlaceOnTheInput),
        ("no gradient reaches norm1, conv1", Detached),
    ],
)
def test_a_wrong_block_is_named(keyword, answer):
    assert_rejected("03.4", answer, keyword)


@verdicts(
    "03.4",
    [Right, ResnetBlock2D, WithIdentity, WithNone, WithTheReadersFunctions, WithSequential, PaddedByHand],
)
def test_a_right_block_passes_in_any_style(answer):
    assert_passes("03.4", answer)
