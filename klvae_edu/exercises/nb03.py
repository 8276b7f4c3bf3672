"""The exercises of notebook 03, the ResNet block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klvae_edu.blocks import ResnetBlock2D
from klvae_edu.exercises.exercise import Exercise, Mistakes
from klvae_edu.exercises.judges.functions import Probe, judge_function, probe
from klvae_edu.exercises.judges.modules import judge_module

NOTEBOOK = "03_resnet_blocks"


# The finished versions, in the form in which the exercises ask for them. The tests hold them to the package.
# Annotated with torch.Tensor, which a notebook knows, because `solution` shows them and readers paste them.


def group_norm(
    x: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-6
) -> torch.Tensor:
    """(B, C, H, W) -> the same shape: mean 0, variance 1 in each group; then weight and bias, (C,), per channel."""
    values = x.reshape(x.shape[0], groups, -1)
    mean = values.mean(2, keepdim=True)
    var = values.var(2, unbiased=False, keepdim=True)
    normalised = ((values - mean) / torch.sqrt(var + eps)).reshape(x.shape)
    return normalised * weight[:, None, None] + bias[:, None, None]


def silu(x: torch.Tensor) -> torch.Tensor:
    """x · σ(x), of any shape."""
    return x * torch.sigmoid(x)


def pointwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """One matrix for every pixel: (B, in, H, W), weight (out, in), bias (out,) -> (B, out, H, W)."""
    return torch.einsum("oi,bihw->bohw", weight, x) + bias[:, None, None]


class ResnetBlock(nn.Module):
    """norm, SiLU, 3×3 convolution, twice; then the input is added: (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return self.conv_shortcut(x) + hidden


# 03.1


def _per_channel(values: Tensor) -> Tensor:
    return values[:, None, None]


def _affine(standardise: Callable[[Tensor, int, float], Tensor]) -> Callable[..., Tensor]:
    """Any way to standardise, with weight and bias as they should be."""

    def norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
        return standardise(x, groups, eps) * _per_channel(weight) + _per_channel(bias)

    return norm


_View = Callable[[Tensor, int], tuple[int, ...]]  # a shape for x in so many groups


def _over(view: _View, *dims: int) -> Callable[..., Tensor]:
    """Statistics over some dimensions of x, seen in another shape."""

    def standardise(x: Tensor, groups: int, eps: float) -> Tensor:
        values = x.reshape(view(x, groups))
        var, mean = torch.var_mean(values, dims, correction=0, keepdim=True)
        return ((values - mean) / (var + eps).sqrt()).reshape(x.shape)

    return _affine(standardise)


def _as_it_is(x: Tensor, groups: int) -> tuple[int, ...]:
    return tuple(x.shape)


def _in_rows(x: Tensor, groups: int) -> tuple[int, ...]:
    return (x.shape[0], groups, -1)


def _in_groups(x: Tensor, groups: int) -> tuple[int, ...]:
    return (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])


def _in_groups_of_rows(x: Tensor, groups: int) -> tuple[int, ...]:
    return (x.shape[0], groups, x.shape[1] // groups, -1)


def _in_rows_of_all(x: Tensor, groups: int) -> tuple[int, ...]:
    return (x.shape[0] * groups, -1)


def _in_groups_of(x: Tensor, groups: int) -> tuple[int, ...]:
    return (x.shape[0], x.shape[1] // groups, groups, *x.shape[2:])


def _from_statistics(formula: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> Callable[..., Tensor]:
    """Another formula, of the values (B, G, N), their mean and variance (B, G, 1), and eps."""

    def standardise(x: Tensor, groups: int, eps: float) -> Tensor:
        values = x.reshape(x.shape[0], groups, -1)
        var, mean = torch.var_mean(values, 2, correction=0, keepdim=True)
        return formula(values, mean, var, eps).reshape(x.shape)

    return _affine(standardise)


def _misfit(values_as: _View, statistics_of: _View, dims: tuple[int, ...], keepdim: bool) -> Callable[..., Tensor]:
    """Values in one shape, less the mean of x in another: the two do not fit."""

    def standardise(x: Tensor, groups: int, eps: float) -> Tensor:
        mean = x.reshape(statistics_of(x, groups)).mean(dims, keepdim)
        return (x.reshape(values_as(x, groups)) - mean).reshape(x.shape)

    return _affine(standardise)


def _then(affine: Callable[[Tensor, int, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Another use of weight and bias, after the right standardisation."""

    def norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
        return affine(F.group_norm(x, groups, eps=eps), groups, weight, bias)

    return norm


def _fixed_eps(fixed: float) -> Callable[..., Tensor]:
    return lambda x, g, w, b, eps=0.0: F.group_norm(x, g, w, b, fixed)


_KEEPDIM = "mean or var has lost a dimension, and does not fit the values: use keepdim=True"
_PER_CHANNEL = "a value belongs to a channel, so give the shape (C, 1, 1)"
GROUP_NORM_MISTAKES = Mistakes(
    [
        (
            "this is batch norm: every image has statistics of its own, and channels of a group share theirs",
            _over(_as_it_is, 0, 2, 3),
        ),
        (
            "the statistics are taken over the batch as well: every image has its own, never average over dimension 0",
            _over(_in_groups, 0, 2, 3, 4),
        ),
        (
            "one mean and one variance for everything: each group of each image has its own",
            _over(_as_it_is, 0, 1, 2, 3),
        ),
        (
            "groups is ignored: the statistics are over all channels of an image (layer norm)",
            _over(_as_it_is, 1, 2, 3),
        ),
        (
            "every channel has statistics of its own (instance norm): the channels of a group share theirs",
            _over(_as_it_is, 2, 3),
        ),
        (
            "every pixel has statistics of its own: a group's mean is over its channels and over the whole map",
            _over(_in_groups, 2),
        ),
        ("every pixel has statistics of its own, and groups is ignored", _over(_as_it_is, 1)),
        (
            "the statistics are over the last dimension only: a group's mean is over its channels, H and W",
            _over(_in_groups, 4),
        ),
        (
            "the groups are interleaved (channels 0, G, 2·G, …): a group is a run of neighbouring channels",
            _over(_in_groups_of, 1, 3, 4),
        ),
        (
            "reshape(groups, -1) cuts the whole batch into groups, across images: keep a row for each image and group",
            _over(lambda x, groups: (groups, -1), 1),
        ),
        (
            "groups must be the dimension after the batch: as the last one it takes every G-th value of an image",
            _over(lambda x, groups: (x.shape[0], -1, groups), 1),
        ),
        (
            "every pixel has statistics of its own, and the groups are interleaved: a group is a run of neighbouring "
            "channels, over the whole map",
            _over(_in_groups_of, 1),
        ),
        (
            "the statistics are over the groups: each group has its own, so average over what follows, dimension 2",
            _over(_in_rows, 1),
        ),
        (
            "groups is taken for the number of channels in a group: it is the number of groups",
            _over(_in_groups_of, 2, 3, 4),
        ),
        (
            "the variance divides by N - 1, PyTorch's default: group norm divides by N, unbiased=False",
            _from_statistics(lambda v, mean, var, eps: (v - mean) / (v.var(2, keepdim=True) + eps).sqrt()),
        ),
        (
            "eps is added to the standard deviation: it belongs under the root, to the variance",
            _from_statistics(lambda v, mean, var, eps: (v - mean) / (var.sqrt() + eps)),
        ),
        (
            "this is divided by the standard deviation of N - 1, and eps is outside the root: look at both",
            _from_statistics(lambda v, mean, var, eps: (v - mean) / (v.std(2, keepdim=True) + eps)),
        ),
        ("eps is missing: it is added to the variance, under the root", _fixed_eps(0.0)),
        ("eps is fixed at 1e-5: use the argument, which is 1e-6 by default", _fixed_eps(1e-5)),
        ("eps is fixed at 1e-6: use the argument", _fixed_eps(1e-6)),
        (
            "the default of eps is 1e-5: in Stable Diffusion's autoencoder it is 1e-6",
            lambda x, g, w, b, eps=1e-5: F.group_norm(x, g, w, b, eps),
        ),
        (
            "divided by the variance: divide by its root, the standard deviation",
            _from_statistics(lambda v, mean, var, eps: (v - mean) / (var + eps)),
        ),
        (
            "the mean is not subtracted",
            _from_statistics(lambda v, mean, var, eps: v / (var + eps).sqrt()),
        ),
        (
            "divided by the root mean square: the variance is the mean square of the distances to the mean",
            _from_statistics(lambda v, mean, var, eps: (v - mean) / (v.pow(2).mean(2, keepdim=True) + eps).sqrt()),
        ),
        (
            "divided by the root mean square, and the mean is not subtracted (RMS norm)",
            _from_statistics(lambda v, mean, var, eps: v / (v.pow(2).mean(2, keepdim=True) + eps).sqrt()),
        ),
        (
            "only the mean is subtracted: divide by the standard deviation",
            _from_statistics(lambda v, mean, var, eps: v - mean),
        ),
        ("weight and bias are missing", _then(lambda y, g, w, b: y)),
        ("weight is missing", _then(lambda y, g, w, b: y + _per_channel(b))),
        ("bias is missing", _then(lambda y, g, w, b: y * _per_channel(w))),
        ("weight and bias are exchanged", _then(lambda y, g, w, b: y * _per_channel(b) + _per_channel(w))),
        (
            "the bias is added before the weight multiplies: multiply first, then add",
            _then(lambda y, g, w, b: (y + _per_channel(b)) * _per_channel(w)),
        ),
        (f"weight and bias run along the width: {_PER_CHANNEL}", _then(lambda y, g, w, b: y * w + b)),
        (
            f"weight and bias run along the height: {_PER_CHANNEL}",
            _then(lambda y, g, w, b: y * w[:, None] + b[:, None]),
        ),
        (f"the bias runs along the width: {_PER_CHANNEL}", _then(lambda y, g, w, b: y * _per_channel(w) + b)),
        (
            "one weight and one bias for a whole group: every channel has its own",
            _then(
                lambda y, g, w, b: (
                    y * _per_channel(w[:g].repeat_interleave(len(w) // g))
                    + _per_channel(b[:g].repeat_interleave(len(b) // g))
                )
            ),
        ),
        (
            "weight and bias act before the normalisation, which takes them away again: they come after it",
            lambda x, g, w, b, eps=1e-6: F.group_norm(x * _per_channel(w) + _per_channel(b), g, eps=eps),
        ),
        # by their exceptions
        *(
            (_KEEPDIM, _misfit(view, view, dims, keepdim=False))
            for view, dims in (
                (_in_rows, (2,)),
                (_in_groups, (2, 3, 4)),
                (_in_groups_of_rows, (2, 3)),
                (_in_rows_of_all, (1,)),
            )
        ),
        (_KEEPDIM, lambda x, g, w, b, eps=1e-6: (first := x.chunk(g, dim=1)[0]) - first.mean((1, 2, 3))),
        *(
            (
                "mean or var does not fit x, for it belongs to the reshaped values: normalise these, then reshape back",
                _misfit(_as_it_is, view, dims, keepdim),
            )
            for view, dims, keepdim in (
                (_in_rows, (2,), False),
                (_in_rows, (2,), True),
                (_in_groups, (2, 3, 4), True),
            )
        ),
    ]
)


@GROUP_NORM_MISTAKES(
    "the channels are moved to the end before they are grouped: a group is a run of channels, dimension 1"
)
def norm_with_channels_last(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    moved = x.permute(0, 2, 3, 1)
    values = moved.reshape(x.shape[0], groups, -1)
    var, mean = torch.var_mean(values, 2, correction=0, keepdim=True)
    return ((values - mean) / (var + eps).sqrt()).reshape(moved.shape).mul(weight).add(bias).permute(0, 3, 1, 2)


_LAST_GROUP = "the last group is forgotten: a loop over all groups is range(groups)"


@GROUP_NORM_MISTAKES(_LAST_GROUP)
def norm_without_the_last_group(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    result, size = torch.zeros_like(x), x.shape[1] // groups
    for group in range(groups - 1):
        run = slice(group * size, (group + 1) * size)
        result[:, run] = F.group_norm(x[:, run], 1, eps=eps)
    return result * _per_channel(weight) + _per_channel(bias)


@GROUP_NORM_MISTAKES(_LAST_GROUP)
def norm_keeping_the_last_group(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    result, size = x.clone(), x.shape[1] // groups
    for group in range(groups - 1):
        run = slice(group * size, (group + 1) * size)
        result[:, run] = F.group_norm(x[:, run], 1, eps=eps)
    return result * _per_channel(weight) + _per_channel(bias)


@GROUP_NORM_MISTAKES("only the first group is normalised: every group is, does the return stand inside the loop?")
def norm_of_the_first_group(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    result, size = torch.zeros_like(x), x.shape[1] // groups
    result[:, :size] = F.group_norm(x[:, :size], 1, eps=eps)
    return result * _per_channel(weight) + _per_channel(bias)


@GROUP_NORM_MISTAKES("the statistics are those of the first image: every image has its own")
def norm_by_the_first_image(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    values = x.reshape(x.shape[0], groups, -1)
    var, mean = torch.var_mean(values[:1], 2, correction=0, keepdim=True)
    return ((values - mean) / (var + eps).sqrt()).reshape(x.shape) * _per_channel(weight) + _per_channel(bias)


@GROUP_NORM_MISTAKES("multiplied by the standard deviation: divide by it")
def norm_multiplied(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    values = x.reshape(x.shape[0], groups, -1)
    var, mean = torch.var_mean(values, 2, correction=0, keepdim=True)
    return ((values - mean) * (var + eps).sqrt()).reshape(x.shape) * _per_channel(weight) + _per_channel(bias)


@GROUP_NORM_MISTAKES("eps is subtracted: it is added to the variance, under the root")
def norm_less_eps(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    values = x.reshape(x.shape[0], groups, -1)
    var, mean = torch.var_mean(values, 2, correction=0, keepdim=True)
    return ((values - mean) / (var - eps).sqrt()).reshape(x.shape) * _per_channel(weight) + _per_channel(bias)


@GROUP_NORM_MISTAKES("the sign of the bias: it is added")
def norm_less_bias(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    return F.group_norm(x, groups, weight, -bias, eps)


def _norm_probe(
    batch: int, channels: int, size: tuple[int, int], groups: int, *eps: float, flat: bool = False
) -> Probe:
    x, weight, bias = probe((batch, channels, *size), (channels,), (channels,))
    return (1e-3 * x if flat else x, groups, weight, bias, *eps)


# 03.2

SILU_MISTAKES = Mistakes(
    [
        ("this is σ(x) alone: multiply it by x", torch.sigmoid),
        ("this is ReLU: it is 0 for every negative x, SiLU is not", torch.relu),
        ("this is GELU: x · σ(x) is asked for", F.gelu),
        ("this is GELU: x · σ(x) is asked for", lambda x: F.gelu(x, approximate="tanh")),
        ("this is the quick version of GELU: nothing multiplies x inside of σ", lambda x: x * (1.702 * x).sigmoid()),
        ("this is tanh(x): x · σ(x) is asked for", torch.tanh),
        ("this is x · tanh(x): σ is the sigmoid, between 0 and 1", lambda x: x * x.tanh()),
        ("this is Mish: x · σ(x) is asked for", F.mish),
        ("this is softplus: x · σ(x) is asked for", F.softplus),
        ("this is log σ(x): x · σ(x) is asked for", F.logsigmoid),
        ("this is ELU: x · σ(x) is asked for", F.elu),
        ("this is leaky ReLU: x · σ(x) is asked for", F.leaky_relu),
        ("this is the hard, piecewise version: use the sigmoid itself", F.hardswish),
        ("the sign in the exponent: σ(x) = 1 / (1 + exp(-x))", lambda x: x * (-x).sigmoid()),
        ("1 - σ(x) stands where σ(x) belongs, and x is missing", lambda x: (-x).sigmoid()),
        ("x is added: it is multiplied by σ(x)", lambda x: x + x.sigmoid()),
        ("x · σ(x) is passed through a sigmoid again: multiply only", lambda x: (x * x.sigmoid()).sigmoid()),
        ("negative values are cut off: SiLU is negative for x < 0", lambda x: F.silu(x).relu()),
        (
            "only σ is cut off at negative x: it multiplies every x",
            lambda x: torch.where(x > 0, F.silu(x), x.sigmoid()),
        ),
        ("x is squared: x · σ(x) is asked for", lambda x: x * F.silu(x)),
        ("σ is squared: x · σ(x) is asked for", lambda x: x.sigmoid() * F.silu(x)),
        (
            "exp overflows for large x and leaves NaN: use torch.sigmoid",
            lambda x: x * x.exp() / (1 + x.exp()),
        ),
    ]
)


@SILU_MISTAKES("this is softsign, x / (1 + |x|): x · σ(x) is asked for, and σ(x) = 1 / (1 + exp(-x))")
def softsign(x: Tensor) -> Tensor:
    return x / (1 + x.abs())


@SILU_MISTAKES("x is divided by σ(x): it is multiplied by it")
def silu_divided(x: Tensor) -> Tensor:
    return x / torch.sigmoid(x)


@SILU_MISTAKES("softmax weighs the values of x against each other: σ is the sigmoid, of each value by itself")
def silu_by_softmax(x: Tensor) -> Tensor:
    return x * torch.softmax(x, dim=-1)


@SILU_MISTAKES("this is σ(x) · (1 - σ(x)), the sigmoid's slope: x · σ(x) is asked for")
def slope_of_the_sigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * (1 - torch.sigmoid(x))


@SILU_MISTAKES("this is SELU: x · σ(x) is asked for")
def selu(x: Tensor) -> Tensor:
    return F.selu(x)


@SILU_MISTAKES("the sign: x · σ(x) is asked for, which is positive for x > 0")
def silu_negative(x: Tensor) -> Tensor:
    return -x * torch.sigmoid(x)


_SILU_PROBES = [(3 * probe((4, 6, 5, 2))[0],), (torch.tensor([-200.0, -100.0, -1.0, 0.0, 1.0, 100.0, 200.0]),)]

# 03.3


def _mixed(pattern: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda x, weight, bias: torch.einsum(pattern, weight, x) + _per_channel(bias)


def _without_permutation(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return (x.reshape(batch, height * width, channels) @ weight.T + bias).reshape(batch, -1, height, width)


def _back_without_permutation(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x.permute(0, 2, 3, 1), weight, bias).reshape(x.shape[0], -1, *x.shape[2:])


def _in_without_permutation(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x.reshape(x.shape[0], *x.shape[2:], x.shape[1]), weight, bias)


_TORN = "reshape does not move the channels to the end, it tears the pixels apart: permute or transpose first"
_MIXES_SPACE = "the matrix belongs to the channels, dimension 1"
POINTWISE_MISTAKES = Mistakes(
    [
        ("the matrix is transposed: its rows belong to the outputs, (out, in)", _mixed("io,bihw->bohw")),
        ("the bias is missing", lambda x, w, b: torch.einsum("oi,bihw->bohw", w, x)),
        ("the sign of the bias: it is added", lambda x, w, b: torch.einsum("oi,bihw->bohw", w, x) - _per_channel(b)),
        (
            "the bias is added before the matrix: it has a value for every output, so it comes after",
            lambda x, w, b: torch.einsum("oi,bihw->bohw", w, x + _per_channel(b)),
        ),
        (
            "the bias runs along the width: it has a value for every output channel, so give it the shape (out, 1, 1)",
            lambda x, w, b: torch.einsum("oi,bihw->bohw", w, x) + b,
        ),
        (
            "the bias runs along the height: it has a value for every output channel, so give it the shape (out, 1, 1)",
            lambda x, w, b: torch.einsum("oi,bihw->bohw", w, x) + b[:, None],
        ),
        (f"the matrix mixes the columns of the map: {_MIXES_SPACE}", F.linear),
        (f"the matrix mixes the columns of the map: {_MIXES_SPACE}", _mixed("oi,bchi->bcho")),
        (f"the matrix mixes the columns of the map: {_MIXES_SPACE}", lambda x, w, b: x @ w + _per_channel(b)),
        (f"the matrix mixes the rows of the map: {_MIXES_SPACE}", _mixed("oi,bciw->bcow")),
        (f"the matrix mixes the rows of the map: {_MIXES_SPACE}", lambda x, w, b: w @ x + b),
        (f"the matrix mixes the images of the batch: {_MIXES_SPACE}", _mixed("oi,ichw->ochw")),
        (
            "the channels are last in the result: bring them back to dimension 1",
            lambda x, w, b: F.linear(x.permute(0, 2, 3, 1), w, b),
        ),
        (
            "height and width are exchanged in the result",
            lambda x, w, b: F.linear(x.permute(0, 3, 2, 1), w, b).permute(0, 3, 1, 2),
        ),
        (
            "the channels are last in the result, and height and width exchanged: undo what moved the channels",
            lambda x, w, b: F.linear(x.transpose(1, 3), w, b),
        ),
        (
            "permute by the same numbers does not undo a permute: from (B, H, W, out), permute(0, 3, 1, 2) leads back",
            lambda x, w, b: F.linear(x.permute(0, 2, 3, 1), w, b).permute(0, 2, 3, 1),
        ),
        (
            "the matrix is transposed, and the channels are last in the result: look at both",
            lambda x, w, b: x.permute(0, 2, 3, 1) @ w + b,
        ),
        (_TORN, _without_permutation),
        (_TORN, lambda x, w, b: _in_without_permutation(x, w, b).permute(0, 3, 1, 2)),
        (_TORN, _in_without_permutation),
        (
            "reshape does not bring the channels back to dimension 1, it tears the pixels apart: permute or transpose",
            _back_without_permutation,
        ),
        (
            "only the diagonal of the matrix is used: every output is a sum over all inputs",
            lambda x, w, b: _per_channel(w.diagonal()) * x + _per_channel(b),
        ),
        (
            "the rows of the matrix are summed before the pixel is multiplied: multiply, then sum over the inputs",
            lambda x, w, b: _per_channel(w.sum(1)) * x.sum(1, keepdim=True) + _per_channel(b),
        ),
        (
            "the pixels are averaged: every pixel keeps its own result",
            lambda x, w, b: pointwise(x, w, b).mean((2, 3), keepdim=True).expand(-1, -1, *x.shape[2:]),
        ),
    ]
)


@POINTWISE_MISTAKES("in the loop, each input takes the place of the one before: add them up, with +=")
def pointwise_of_the_last_input(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    result = torch.zeros(x.shape[0], len(weight), *x.shape[2:])
    for o in range(len(weight)):
        for i in range(x.shape[1]):
            result[:, o] = weight[o, i] * x[:, i] + bias[o]
    return result


@POINTWISE_MISTAKES("the bias is added once for every input: once for an output is enough, after the sum")
def pointwise_with_many_biases(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    result = torch.zeros(x.shape[0], len(weight), *x.shape[2:])
    for o in range(len(weight)):
        for i in range(x.shape[1]):
            result[:, o] += weight[o, i] * x[:, i] + bias[o]
    return result


@POINTWISE_MISTAKES("the products are averaged: every output is the sum over all inputs")
def pointwise_averaged(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.einsum("oi,bihw->bohw", weight, x) / x.shape[1] + _per_channel(bias)


@POINTWISE_MISTAKES("only the first input channel is used: every output is a sum over all inputs")
def pointwise_of_the_first_input(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x[:, :1] * _per_channel(weight[:, 0]) + _per_channel(bias)


@POINTWISE_MISTAKES("the input is added: here only the matrix and the bias are asked for")
def pointwise_with_its_input(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x + pointwise(x, weight, bias)


# 03.4


def _block(forward: Callable[[Any, Tensor], Tensor]) -> type[ResnetBlock]:
    """The right layers, used in another way."""

    class Wrong(ResnetBlock):
        def forward(self, x: Tensor) -> Tensor:
            return forward(self, x)

    return Wrong


def _made(**layers: Callable[[int, int, int], nn.Module | None]) -> type[ResnetBlock]:
    """Some layers made in another way."""

    class Wrong(ResnetBlock):
        def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
            super().__init__(in_channels, out_channels, groups)
            for name, make in layers.items():
                setattr(self, name, make(in_channels, out_channels, groups))

    return Wrong


def _shortcut(size: int = 1, bias: bool = True) -> Callable[[int, int, int], nn.Module]:
    return lambda i, o, g: nn.Identity() if i == o else nn.Conv2d(i, o, size, padding=size // 2, bias=bias)


def _branch(block: Any, x: Tensor, before_conv1: Any = F.silu, before_conv2: Any = F.silu) -> Any:
    hidden = block.conv1(before_conv1(block.norm1(x)))
    return block.conv2(before_conv2(block.norm2(hidden)))


def _same(x: Tensor) -> Tensor:
    return x


def _activated_by(act: Any) -> type[ResnetBlock]:
    return _block(lambda s, x: s.conv_shortcut(x) + _branch(s, x, act, act))


_PRE = "the order is norm, SiLU, convolution"
_FROM_X = "it starts from x itself"
_GROUPS_FIRST = "nn.GroupNorm(groups, channels, eps=1e-6): the argument groups stands first"
_X_ITSELF = "x does not fit where the widths differ: conv_shortcut(x) is what is added, in both cases"
RESNET_MISTAKES = Mistakes(
    [
        # by their layers
        (
            "conv_shortcut is missing: where the widths differ, x has to be brought to out_channels before the sum",
            _made(conv_shortcut=lambda i, o, g: nn.Identity()),
        ),
        (
            "conv_shortcut stands there even where the widths are equal: x itself is added then, without weights",
            _made(conv_shortcut=lambda i, o, g: nn.Conv2d(i, o, 1)),
        ),
        (
            "conv_shortcut is a 3x3 convolution: 1x1 is asked for, one matrix for every pixel",
            _made(conv_shortcut=_shortcut(3)),
        ),
        ("conv_shortcut has no bias: every convolution here has one", _made(conv_shortcut=_shortcut(bias=False))),
        (
            "norm2 has in_channels: it comes after conv1, whose output has out_channels",
            _made(norm2=lambda i, o, g: nn.GroupNorm(g, i)),
        ),
        (
            "conv1 keeps the width and conv2 changes it: here conv1 changes it, and norm2 and conv2 have out_channels",
            _made(
                conv1=lambda i, o, g: nn.Conv2d(i, i, 3, padding=1),
                norm2=lambda i, o, g: nn.GroupNorm(g, i),
                conv2=lambda i, o, g: nn.Conv2d(i, o, 3, padding=1),
            ),
        ),
        (
            "conv2 expects in_channels: it comes after conv1, whose output has out_channels",
            _made(conv2=lambda i, o, g: nn.Conv2d(i, o, 3, padding=1)),
        ),
        (
            f"norm1 has out_channels, as if it came after conv1: {_PRE}, so that norm1 sees x",
            _made(norm1=lambda i, o, g: nn.GroupNorm(g, o)),
        ),
        (
            "the convolutions have no bias: every convolution here has one",
            _made(
                conv1=lambda i, o, g: nn.Conv2d(i, o, 3, padding=1, bias=False),
                conv2=lambda i, o, g: nn.Conv2d(o, o, 3, padding=1, bias=False),
            ),
        ),
        (
            "no convolution has a bias: every convolution here has one",
            _made(
                conv1=lambda i, o, g: nn.Conv2d(i, o, 3, padding=1, bias=False),
                conv2=lambda i, o, g: nn.Conv2d(o, o, 3, padding=1, bias=False),
                conv_shortcut=_shortcut(bias=False),
            ),
        ),
        (
            "the convolutions are 1x1, which sees no neighbours: 3x3 is asked for, only the shortcut is 1x1",
            _made(conv1=lambda i, o, g: nn.Conv2d(i, o, 1), conv2=lambda i, o, g: nn.Conv2d(o, o, 1)),
        ),
        (
            "this is batch norm: nn.GroupNorm(groups, channels, eps=1e-6) is asked for",
            _made(norm1=lambda i, o, g: nn.BatchNorm2d(i), norm2=lambda i, o, g: nn.BatchNorm2d(o)),
        ),
        (
            "the norms have no weight and bias: leave affine as it is",
            _made(
                norm1=lambda i, o, g: nn.GroupNorm(g, i, affine=False),
                norm2=lambda i, o, g: nn.GroupNorm(g, o, affine=False),
            ),
        ),
        # by their results
        ("the input is not added", _block(lambda s, x: _branch(s, x))),
        ("both SiLUs are missing", _block(lambda s, x: s.conv_shortcut(x) + _branch(s, x, _same, _same))),
        ("the SiLU before conv1 is missing", _block(lambda s, x: s.conv_shortcut(x) + _branch(s, x, _same))),
        ("the SiLU before conv2 is missing", _block(lambda s, x: s.conv_shortcut(x) + _branch(s, x, F.silu, _same))),
        *(
            (f"the activation is {name}: SiLU is asked for", _activated_by(act))
            for name, act in (("ReLU", F.relu), ("GELU", F.gelu), ("sigmoid, without the factor x", torch.sigmoid))
        ),
        (
            f"the activation stands before the norm: {_PRE}",
            _block(lambda s, x: s.conv_shortcut(x) + s.conv2(s.norm2(F.silu(s.conv1(s.norm1(F.silu(x))))))),
        ),
        (
            f"the activation stands after the convolution: {_PRE}",
            _block(lambda s, x: s.conv_shortcut(x) + F.silu(s.conv2(s.norm2(F.silu(s.conv1(s.norm1(x))))))),
        ),
        (
            f"the activation stands before norm1: {_PRE}",
            _block(lambda s, x: s.conv_shortcut(x) + s.conv2(F.silu(s.norm2(s.conv1(s.norm1(F.silu(x))))))),
        ),
        (
            f"the activation stands before norm2: {_PRE}",
            _block(lambda s, x: s.conv_shortcut(x) + s.conv2(s.norm2(F.silu(s.conv1(F.silu(s.norm1(x))))))),
        ),
        (
            f"the activation stands after conv1, before norm2, and is missing before conv1: {_PRE}",
            _block(lambda s, x: s.conv_shortcut(x) + s.conv2(s.norm2(F.silu(s.conv1(s.norm1(x)))))),
        ),
        (
            f"the norms stand after the convolutions, and one SiLU is missing: {_PRE}",
            _block(lambda s, x: s.conv_shortcut(x) + s.norm2(s.conv2(F.silu(s.norm1(s.conv1(x)))))),
        ),
        (
            f"this is convolution, SiLU, norm: {_PRE}",
            _block(lambda s, x: s.conv_shortcut(x) + s.norm2(F.silu(s.conv2(s.norm1(F.silu(s.conv1(x))))))),
        ),
        (
            f"this is SiLU, convolution, norm: {_PRE}",
            _block(lambda s, x: s.conv_shortcut(x) + s.norm2(s.conv2(F.silu(s.norm1(s.conv1(F.silu(x))))))),
        ),
        (
            f"the norms stand after the convolutions: {_PRE}",
            _block(lambda s, x: s.conv_shortcut(x) + F.silu(s.norm2(s.conv2(F.silu(s.norm1(s.conv1(x))))))),
        ),
        (
            f"the norms stand after the convolutions, and SiLU after the sum: {_PRE}, and nothing after the sum",
            _block(lambda s, x: F.silu(s.conv_shortcut(x) + s.norm2(s.conv2(F.silu(s.norm1(s.conv1(x))))))),
        ),
        ("SiLU after the sum: nothing comes after it", _block(lambda s, x: F.silu(s.conv_shortcut(x) + _branch(s, x)))),
        (
            "SiLU after conv2: the sum takes what conv2 puts out",
            _block(lambda s, x: s.conv_shortcut(x) + F.silu(_branch(s, x))),
        ),
        (
            f"the shortcut takes the normalised input: {_FROM_X}",
            _block(lambda s, x: s.conv_shortcut(s.norm1(x)) + _branch(s, x)),
        ),
        (
            f"the shortcut takes the input after norm1 and SiLU: {_FROM_X}",
            _block(lambda s, x: s.conv_shortcut(F.silu(s.norm1(x))) + _branch(s, x)),
        ),
        (
            f"the shortcut takes SiLU of the input: {_FROM_X}",
            _block(lambda s, x: s.conv_shortcut(F.silu(x)) + _branch(s, x)),
        ),
        (
            "the second half takes x, and what conv1 put out is lost: it goes on with hidden",
            _block(lambda s, x: s.conv_shortcut(x) + s.conv2(F.silu(s.norm2(x)))),
        ),
        (
            f"the shortcut takes the output of the branch: {_FROM_X}",
            _block(lambda s, x: (h := _branch(s, x)) + s.conv_shortcut(h)),
        ),
        (
            "x is added before conv2: first the whole branch, then the sum",
            _block(lambda s, x: s.conv2(s.conv_shortcut(x) + F.silu(s.norm2(s.conv1(F.silu(s.norm1(x))))))),
        ),
        (
            "x is added after conv1: first the whole branch, then the sum",
            _block(lambda s, x: s.conv2(F.silu(s.norm2(s.conv_shortcut(x) + s.conv1(F.silu(s.norm1(x))))))),
        ),
        (
            "what is added is the output of conv1, not the input of the block",
            _block(lambda s, x: (h := s.conv1(F.silu(s.norm1(x)))) + s.conv2(F.silu(s.norm2(h)))),
        ),
        ("the sum is divided by the root of 2", _block(lambda s, x: (s.conv_shortcut(x) + _branch(s, x)) / 2**0.5)),
        ("the branch is subtracted: it is added", _block(lambda s, x: s.conv_shortcut(x) - _branch(s, x))),
        ("the input is subtracted: it is added", _block(lambda s, x: _branch(s, x) - s.conv_shortcut(x))),
        (
            "norm1 is used in both places: norm2 belongs before conv2",
            _block(lambda s, x: s.conv_shortcut(x) + s.conv2(F.silu(s.norm1(s.conv1(F.silu(s.norm1(x))))))),
        ),
        (
            "conv1 is used in both places: conv2 comes second",
            _block(lambda s, x: s.conv_shortcut(x) + s.conv1(F.silu(s.norm2(s.conv1(F.silu(s.norm1(x))))))),
        ),
        ("norm2 is not used", _block(lambda s, x: s.conv_shortcut(x) + s.conv2(F.silu(s.conv1(F.silu(s.norm1(x))))))),
        ("norm1 is not used", _block(lambda s, x: s.conv_shortcut(x) + s.conv2(F.silu(s.norm2(s.conv1(F.silu(x))))))),
        # by their exceptions
        (_GROUPS_FIRST, _made(norm1=lambda i, o, g: nn.GroupNorm(i, g))),
        (_GROUPS_FIRST, _made(norm1=lambda i, o, g: nn.GroupNorm(32, i))),
        (
            "conv_shortcut is None, which cannot be called: nn.Identity() hands x on",
            _made(conv_shortcut=lambda i, o, g: None if i == o else nn.Conv2d(i, o, 1)),
        ),
        (_X_ITSELF, _block(lambda s, x: x + _branch(s, x))),
        (_X_ITSELF, _block(lambda s, x: _branch(s, x) + x)),
    ]
)

EXERCISES = (
    Exercise(
        id="03.1",
        title="Group norm by hand",
        notebook=NOTEBOOK,
        minutes=15,
        difficulty=3,
        reference=group_norm,
        in_package=(ResnetBlock2D,),
        hints=(
            "Bring the values that share statistics into one row: x.reshape(batch, groups, -1).",
            "mean and var take the dimension, keepdim=True, and var also unbiased=False. eps is added to the variance.",
            "Reshape back to (B, C, H, W) first; weight[:, None, None] then gives each channel its own factor.",
        ),
        judge=judge_function(
            group_norm,
            [
                _norm_probe(3, 8, (8, 8), 2, 1e-6),
                _norm_probe(2, 6, (3, 5), 3, 1e-6, flat=True),
                _norm_probe(1, 6, (4, 3), 3, 0.1),
                _norm_probe(2, 6, (2, 5), 2, flat=True),
            ],
            GROUP_NORM_MISTAKES,
            inputs=("x", "groups", "weight", "bias", "eps"),
            gradients=("x", "weight", "bias"),
        ),
    ),
    Exercise(
        id="03.2",
        title="SiLU",
        notebook=NOTEBOOK,
        minutes=3,
        difficulty=1,
        reference=silu,
        in_package=(ResnetBlock2D,),
        hints=(
            "σ is the sigmoid, 1 / (1 + exp(-x)). PyTorch has it.",
            "x * torch.sigmoid(x)",
        ),
        judge=judge_function(silu, _SILU_PROBES, SILU_MISTAKES, inputs=("x",), gradients=("x",)),
    ),
    Exercise(
        id="03.3",
        title="A 1×1 convolution by hand",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=pointwise,
        in_package=(ResnetBlock2D,),
        hints=(
            "Only the channels, dimension 1, are mixed. Batch, height and width stay where they are.",
            "torch.einsum sums over a letter that is missing in the result: which one is it here?",
            'torch.einsum("oi,bihw->bohw", weight, x); the bias needs the shape (out, 1, 1).',
        ),
        judge=judge_function(
            pointwise,
            [
                probe((b, i, h, w), (o, i), (o,))
                for b, i, o, h, w in ((4, 4, 4, 4, 4), (3, 5, 6, 2, 7), (1, 2, 3, 1, 4))
            ],
            POINTWISE_MISTAKES,
            inputs=("x", "weight", "bias"),
            gradients=("x", "weight", "bias"),
        ),
    ),
    Exercise(
        id="03.4",
        title="The ResNet block",
        notebook=NOTEBOOK,
        minutes=20,
        difficulty=3,
        reference=ResnetBlock,
        in_package=(ResnetBlock2D,),
        hints=(
            "Follow the widths: norm1 sees in_channels, conv1 turns them into out_channels, which stay to the end.",
            "nn.GroupNorm(groups, channels, eps=1e-6); a 3x3 convolution with padding=1 keeps the size of the map.",
            "In forward: norm, SiLU, conv, twice. Then conv_shortcut(x) plus the result, and nothing after the sum.",
        ),
        judge=judge_module(
            ResnetBlock,
            [(8, 8, 4), (8, 16, 4)],
            [probe((2, 8, 6, 5)), probe((1, 8, 3, 4))],
            RESNET_MISTAKES,
            parts=("norm1", "conv1", "norm2", "conv2", "conv_shortcut"),
        ),
    ),
)
