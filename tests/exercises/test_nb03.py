"""Right answers to the exercises of notebook 03 in many styles, and what only its judges tell."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from klvae_edu.blocks import ResnetBlock2D
from klvae_edu.exercises.solutions import nb03
from tests.exercises.answers import assert_passes, assert_rejected, verdicts


@pytest.mark.parametrize("shape", [(3, 12, 5, 7), (1, 4, 1, 6), (2, 8, 16, 16)])
def test_the_solutions_do_what_the_layers_do(shape):
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
def test_the_solution_is_the_packages_block(widths):
    torch.manual_seed(0)
    theirs, ours = ResnetBlock2D(*widths, groups=4).double(), nb03.ResnetBlock(*widths, groups=4).double()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += torch.randn_like(parameter)
    ours.load_state_dict(theirs.state_dict())
    x = 1e-3 * torch.randn(2, widths[0], 6, 5, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


# 03.1


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
    var, mean = torch.var_mean(values, 2, keepdim=True, correction=0)
    y = ((values - mean) / torch.sqrt(var + eps)).reshape(x.shape)
    return y * weight.double().view(1, -1, 1, 1) + bias.double().view(1, -1, 1, 1)


def norm_in_place(x, groups, weight, bias, eps=1e-6):
    values = x.reshape(x.shape[0], groups, -1)
    root = values.var(-1, keepdim=True, unbiased=False).add_(eps).sqrt()
    values = values.clone().sub_(values.mean(-1, keepdim=True)).div_(root).reshape(x.shape)
    return values.mul(weight[:, None, None]).add_(bias[:, None, None])


def norm_of_pytorch(x, groups, weight, bias, eps=1e-6):
    return F.group_norm(x, groups, weight, bias, eps)


@verdicts("03.1", [norm_by_a_loop, norm_by_einsum, norm_in_double, norm_in_place, norm_of_pytorch])
def test_a_right_group_norm_passes_in_any_style(answer):
    assert_passes("03.1", answer)


def norm_with_detached_statistics(x, groups, weight, bias, eps=1e-6):
    values = x.reshape(x.shape[0], groups, -1)
    var, mean = torch.var_mean(values.detach(), 2, keepdim=True, correction=0)
    return ((values - mean) / (var + eps).sqrt()).reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


# 03.2


def silu_by_tanh(x):
    return 0.5 * x * (1 + torch.tanh(0.5 * x))


def silu_by_module(x):
    return nn.SiLU()(x)


def silu_in_double(x):
    return torch.sigmoid(x.double()) * x


@verdicts("03.2", [silu_by_tanh, silu_by_module, silu_in_double])
def test_a_right_silu_passes_in_any_style(answer):
    assert_passes("03.2", answer)


def silu_by_division(x):
    return x / (1 + torch.exp(-x))


# 03.3


def by_conv(x, weight, bias):
    return F.conv2d(x, weight[:, :, None, None], bias)


def by_flattening(x, weight, bias):
    return (weight @ x.flatten(2) + bias[:, None]).unflatten(2, x.shape[2:])


def by_moving_the_channels(x, weight, bias):
    return F.linear(x.movedim(1, -1), weight, bias).movedim(-1, 1)


def by_a_loop(x, weight, bias):
    y = x.new_zeros(x.shape[0], len(weight), *x.shape[2:])
    for o in range(len(weight)):
        for i in range(x.shape[1]):
            y[:, o] += weight[o, i] * x[:, i]
        y[:, o] += bias[o]
    return y


def in_double(x, weight, bias):
    y = (weight.double()[None, :, :, None, None] * x.double()[:, None]).sum(2)
    return y.add_(bias[:, None, None])


@verdicts("03.3", [by_conv, by_flattening, by_moving_the_channels, by_a_loop, in_double])
def test_a_right_pointwise_convolution_passes_in_any_style(answer):
    assert_passes("03.3", answer)


def pointwise_by_a_new_layer(x, weight, bias):
    conv = nn.Conv2d(*weight.shape[::-1], 1)
    conv.weight.data, conv.bias.data = weight[:, :, None, None], bias
    return conv(x)


@pytest.mark.parametrize(
    ("id", "message", "answer"),
    [
        ("03.1", "not the gradient with respect to x", norm_with_detached_statistics),
        ("03.2", "the gradient to x is not finite, for example where it is -200", silu_by_division),
        ("03.3", "no gradient reaches weight and bias", pointwise_by_a_new_layer),
    ],
)
def test_gradients_are_judged(id, message, answer):
    assert_rejected(id, answer, message)


# 03.4


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


@verdicts(
    "03.4",
    [Right, ResnetBlock2D, WithIdentity, WithNone, WithTheReadersFunctions, WithSequential, PaddedByHand],
)
def test_a_right_block_passes_in_any_style(answer):
    assert_passes("03.4", answer)
