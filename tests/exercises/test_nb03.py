"""Typical answers to the exercises of notebook 03: blank, unfinished, wrong, and right in many styles."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    ("id", "answer"),
    [*((id, raises) for id in ("03.1", "03.2", "03.3")), *((id, gaps) for id in ("03.2", "03.3"))],
)
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


def norm_half(x, groups, weight, bias, eps=1e-6):
    values = x.reshape(x.shape[0], groups, -1)
    mean = ...
    return values - mean


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


def norm_by_view(x, groups, weight, bias, eps=1e-6):
    values = x.view(x.shape[0], groups, -1)
    return affine(standardised(values, 2, eps, correction=0).view(x.shape), weight, bias)


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
        ("expected shape (3, 8, 8, 8), got (3, 2, 256)", norm_in_the_shape_of_groups),
        ("changes its input x", norm_in_place_on_the_input),
        ("not the gradient with respect to x", norm_with_detached_statistics),
        ("use reshape or flatten, not view", norm_by_view),
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
        ("changes its input x", silu_in_place),
        ("not the gradient", silu_without_gradient),
        ("the gradient to x is not finite, for example where it is -200", silu_by_division),
    ],
)
def test_a_wrong_silu_is_named(keyword, answer):
    assert_rejected("03.2", answer, keyword)


@verdicts("03.2", [silu_by_tanh, silu_by_module, silu_in_double])
def test_a_right_silu_passes_in_any_style(answer):
    assert_passes("03.2", answer)


# 03.3


def pointwise_half(x, weight, bias):
    moved = ...
    return moved @ weight.T + bias


def pointwise_without_gradient(x, weight, bias):
    conv = nn.Conv2d(*weight.shape[::-1], 1)
    conv.weight.data, conv.bias.data = weight[:, :, None, None], bias
    return conv(x)


def pointwise_by_view(x, weight, bias):
    batch, channels, height, width = x.shape
    return (weight @ x.view(batch, channels, height * width) + bias[:, None]).view(batch, -1, height, width)


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
        ("no gradient reaches weight and bias", pointwise_without_gradient),
        ("use reshape or flatten, not view", pointwise_by_view),
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
        ("conv_shortcut has padding (1, 1), expected (0, 0)", ShortcutPadded),
        ("it has no conv_shortcut", CompVisName),
        ("conv1 has padding (0, 0), expected (1, 1)", NoPadding),
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
