"""The exercises of notebook 03, the ResNet block."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn

from klvae_edu.blocks import ResnetBlock2D
from klvae_edu.exercises.exercise import Exercise, Mistakes
from klvae_edu.exercises.judges.functions import judge_function, probe
from klvae_edu.exercises.judges.modules import judge_module
from klvae_edu.exercises.solutions.nb03 import ResnetBlock, group_norm, pointwise, silu

NOTEBOOK = "03_resnet_blocks"


def but(**stages):
    """Name the stages of a solution that are made otherwise."""
    return stages


def several_at_once(make, changes, most=2):
    """Combine changes of different stages. A judge tries them last; they are no answers of their own."""
    return [
        ("several mistakes: " + "; ".join(message.split(": ")[0] for message, _ in some), make(**stages))
        for count in range(2, most + 1)
        for some in itertools.combinations(changes, count)
        if len(stages := {name: stage for _, change in some for name, stage in change.items()})
        == sum(len(change) for _, change in some)
    ]


# 03.1

_VIEWS = {
    "map": lambda x, groups: x.shape,
    "image, group": lambda x, groups: (len(x), groups, -1),
    "image, group, channel": lambda x, groups: (len(x), groups, x.shape[1] // groups, *x.shape[2:]),
    "image, group, row": lambda x, groups: (len(x), groups, x.shape[1] // groups, -1),
    "image, channel, group": lambda x, groups: (len(x), x.shape[1] // groups, groups, *x.shape[2:]),
    "image, value, group": lambda x, groups: (len(x), -1, groups),
    "image and group": lambda x, groups: (len(x) * groups, -1),
    "group": lambda x, groups: (groups, -1),
    "two channels": lambda x, groups: (len(x), x.shape[1] // 2, -1),
}


def _root(values, dims, eps):
    return (values.var(dims, correction=0, keepdim=True) + eps).sqrt()


def _norm(
    over=("image, group", 2),
    numerator=lambda x, values: values,
    centre=lambda values, dims: values.mean(dims, True),
    spread=_root,
    eps=lambda given=1e-6: given,
    affine=lambda y, weight, bias: y * weight + bias,
):
    """Group norm with some of its stages made otherwise."""

    def norm(x, groups, weight, bias, *given):
        view, dims = over
        values = x.reshape(_VIEWS[view](x, groups))
        centred = numerator(x, values) - centre(values, dims)
        normalised = (centred / spread(values, dims, eps(*given))).reshape(x.shape)
        return affine(normalised, weight[:, None, None], bias[:, None, None])

    return norm


_OWN = "every group of every image has its own"
_RUN = "a group is a run of neighbouring channels"
_PIXEL = "every pixel has statistics of its own"
_WHOLE = "a group's mean is over its channels and the whole map"
_C11 = "a value belongs to a channel, so give the shape (C, 1, 1)"
_ADDED = "it belongs under the root, beside the variance"
_RMS = "divided by the root mean square: the variance is the mean square of the distances to the mean"
_NORMS = [
    (f"this is batch norm, with statistics of the whole batch: {_OWN}", but(over=("map", (0, 2, 3)))),
    ("groups is ignored: the statistics are over all channels (layer norm)", but(over=("map", (1, 2, 3)))),
    ("every channel has statistics of its own (instance norm): a group shares them", but(over=("map", (2, 3)))),
    (f"the groups are interleaved (channels 0, G, 2·G, …): {_RUN}", but(over=("image, channel, group", (1, 3, 4)))),
    ("the variance divides by N - 1: unbiased=False", but(spread=lambda v, d, e: (v.var(d, True, True) + e).sqrt())),
    (f"eps is added to the standard deviation: {_ADDED}", but(spread=lambda v, d, e: v.std(d, False, True) + e)),
    ("this is std() of N - 1, and eps is outside: look at both", but(spread=lambda v, d, e: v.std(d, True, True) + e)),
    ("this is std() of N - 1, and eps is missing: look at both", but(spread=lambda v, d, e: v.std(d, True, True))),
    (f"eps is missing: {_ADDED}", but(eps=lambda given=1e-6: 0.0)),
    ("the default of eps is 1e-5: in Stable Diffusion's autoencoder it is 1e-6", but(eps=lambda given=1e-5: given)),
    ("weight and bias are missing", but(affine=lambda y, w, b: y)),
    ("bias is missing", but(affine=lambda y, w, b: y * w)),
    ("one weight and one bias for all channels: each has its own", but(affine=lambda y, w, b: y * w[0] + b[0])),
    (f"weight and bias run along the width: {_C11}", but(affine=lambda y, w, b: y * w.flatten() + b.flatten())),
]
_KEEPDIM = "mean or var has lost a dimension, and does not fit the values: use keepdim=True"
_UNFIT = "mean or var does not fit x, for it belongs to the reshaped values: normalise these, then reshape back"
GROUP_NORM_MISTAKES = Mistakes(
    [
        *((message, _norm(**stages)) for message, stages in _NORMS),
        (f"the batch shares the statistics: {_OWN}", _norm(("image, group, channel", (0, 2, 3, 4)))),
        ("groups is taken for the size of a group: it is their number", _norm(("image, channel, group", (2, 3, 4)))),
        ("reshape(groups, -1) cuts the whole batch: keep a row for each image and group", _norm(("group", 1))),
        ("divided by the variance: divide by its root", _norm(spread=lambda v, d, e: v.var(d, False, True) + e)),
        ("weight and bias are exchanged", _norm(affine=lambda y, w, b: y * b + w)),
        ("the bias is added before the weight multiplies: add it last", _norm(affine=lambda y, w, b: (y + b) * w)),
        (f"one mean and one variance for everything: {_OWN}", _norm(("map", (0, 1, 2, 3)))),
        (f"{_PIXEL}: {_WHOLE}", _norm(("image, group, channel", 2))),
        (f"{_PIXEL}, and groups is ignored", _norm(("map", 1))),
        (f"{_PIXEL}, of interleaved groups: {_RUN}", _norm(("image, channel, group", 1))),
        (f"the statistics are over the last dimension only: {_WHOLE}", _norm(("map", 3))),
        ("groups stands last in the reshape: it comes after the batch", _norm(("image, value, group", 1))),
        ("the statistics are over the groups: average over what follows, dimension 2", _norm(("image, group", 1))),
        ("there are always two channels in a group: there are C / groups", _norm(("two channels", 2))),
        (f"eps limits the variance: {_ADDED}", _norm(spread=lambda v, d, e: v.var(d, False, True).clamp(e).sqrt())),
        (f"eps is subtracted: {_ADDED}", _norm(eps=lambda given=1e-6: -given)),
        (f"eps is squared: {_ADDED}", _norm(eps=lambda given=1e-6: given**2)),
        *(
            (f"eps is fixed at {fixed}: use the argument, which is 1e-6 by default", _norm(eps=lambda *_, e=fixed: e))
            for fixed in (1e-3, 1e-5, 1e-6, 1e-8)
        ),
        ("the root is taken twice: once is enough", _norm(spread=lambda v, d, e: (v.std(d, False, True) + e).sqrt())),
        ("multiplied by the standard deviation: divide by it", _norm(spread=lambda *given: 1 / _root(*given))),
        ("only the mean is subtracted: divide by the standard deviation", _norm(spread=lambda *given: 1.0)),
        (_RMS, _norm(spread=lambda v, d, e: (v.square().mean(d, True) + e).sqrt())),
        (
            f"the mean is not subtracted, and {_RMS}",
            _norm(centre=lambda v, d: 0.0, spread=lambda v, d, e: (v.square().mean(d, True) + e).sqrt()),
        ),
        ("the mean is not subtracted", _norm(centre=lambda v, d: 0.0)),
        (
            "divided by the root of a sum, as in F.normalize: subtract the mean, and divide by the root of a mean",
            _norm(centre=lambda v, d: 0.0, spread=lambda v, d, e: v.norm(dim=d, keepdim=True)),
        ),
        (
            "stretched from 0 to 1: subtract the mean, and divide by the standard deviation",
            _norm(centre=lambda v, d: v.amin(d, True), spread=lambda v, d, e: v.amax(d, True) - v.amin(d, True) + e),
        ),
        (
            f"the statistics are those of the first image: {_OWN}",
            _norm(centre=lambda v, d: v[:1].mean(d, True), spread=lambda v, d, e: _root(v[:1], d, e)),
        ),
        ("weight is missing", _norm(affine=lambda y, w, b: y + b)),
        ("the sign of the bias: it is added", _norm(affine=lambda y, w, b: y * w - b)),
        ("weight is added: it multiplies", _norm(affine=lambda y, w, b: y + w + b)),
        (f"weight and bias run along the height: {_C11}", _norm(affine=lambda y, w, b: y * w[..., 0] + b[..., 0])),
        (f"the bias runs along the width: {_C11}", _norm(affine=lambda y, w, b: y * w + b.flatten())),
        # by their exceptions
        (_KEEPDIM, _norm(centre=lambda v, d: v.mean(d))),
        (_KEEPDIM, _norm(("image, group, channel", (2, 3, 4)), centre=lambda v, d: v.mean(d))),
        (_KEEPDIM, _norm(("image, group, row", (2, 3)), centre=lambda v, d: v.mean(d))),
        (_KEEPDIM, _norm(("image and group", 1), centre=lambda v, d: v.mean(d))),
        (_KEEPDIM, lambda x, groups, w, b, eps=1e-6: (part := x[:, : x.shape[1] // groups]) - part.mean((1, 2, 3))),
        (_UNFIT, _norm(numerator=lambda x, v: x)),
        (_UNFIT, _norm(numerator=lambda x, v: x, centre=lambda v, d: v.mean(d))),
        (_UNFIT, _norm(("image, group, channel", (2, 3, 4)), numerator=lambda x, v: x)),
        ("32 groups are fixed: use the argument", lambda x, groups, w, b, eps=1e-6: F.group_norm(x, 32, w, b, eps)),
    ]
)

for _shape in ((-1, 1, 1), (1, -1, 1, 1), (1, -1, 1), (-1,)):

    @GROUP_NORM_MISTAKES("weight and bias meet the rows of the groups: bring these back to the shape of x first")
    def norm_of_rows(x, groups, weight, bias, eps=1e-6, shape=_shape):
        rows = F.group_norm(x, groups, eps=eps).reshape(len(x), groups, -1)
        return rows * weight.reshape(shape) + bias.reshape(shape)


@GROUP_NORM_MISTAKES("one weight and one bias for a whole group: every channel has its own")
def norm_with_weights_of_groups(x, groups, weight, bias, eps=1e-6):
    size = x.shape[1] // groups
    return F.group_norm(x, groups, weight[:groups].repeat_interleave(size), bias[:groups].repeat_interleave(size), eps)


@GROUP_NORM_MISTAKES("weight and bias act before the normalisation, which takes them away again: they come after it")
def norm_of_the_affine_map(x, groups, weight, bias, eps=1e-6):
    return F.group_norm(x * weight[:, None, None] + bias[:, None, None], groups, eps=eps)


@GROUP_NORM_MISTAKES("the channels are moved to the end before they are grouped: a group is a run of dimension 1")
def norm_with_channels_last(x, groups, weight, bias, eps=1e-6):
    moved = x.permute(0, 2, 3, 1)
    rows = F.layer_norm(moved.reshape(len(x), groups, -1), (x[0].numel() // groups,), eps=eps)
    return (rows.reshape(moved.shape) * weight + bias).permute(0, 3, 1, 2)


for _missed, _rest in itertools.product(
    ("the last group is", "all groups but the first are"), (torch.zeros_like, torch.clone)
):

    @GROUP_NORM_MISTAKES(f"{_missed} left out: a loop over all is range(groups), and the return stands behind it")
    def norm_of_some_groups(x, groups, weight, bias, eps=1e-6, missed=_missed, rest=_rest):
        result, size = rest(x), x.shape[1] // groups
        for group in range(1 if "but" in missed else groups - 1):
            run = slice(group * size, (group + 1) * size)
            result[:, run] = F.group_norm(x[:, run], 1, eps=eps)
        return result * weight[:, None, None] + bias[:, None, None]


def _norm_probe(shape, groups, *eps, scale=1.0):
    x, weight, bias = probe(shape, shape[1:2], shape[1:2])
    return (scale * x, groups, weight, bias, *eps)


_NORM_PROBES = [
    _norm_probe((3, 8, 8, 8), 2, 1e-6),
    _norm_probe((2, 6, 3, 5), 3, 1e-6, scale=1e-3),
    _norm_probe((1, 6, 4, 3), 3, 0.1),
    _norm_probe((2, 6, 2, 5), 2, scale=1e-3),
]

# 03.2

SILU_MISTAKES = Mistakes(
    [
        *(
            (f"this is {name}: x · σ(x) is asked for", activation)
            for name, activation in (
                ("σ(x) alone", torch.sigmoid),
                ("σ(x) alone", lambda x: x.exp() / (1 + x.exp())),
                ("1 - σ(x), without x", lambda x: (-x).sigmoid()),
                ("log σ(x)", F.logsigmoid),
                ("x · log σ(x)", lambda x: x * F.logsigmoid(x)),
                ("x · log σ(x)", lambda x: x * x.sigmoid().log()),
                ("|x| · σ(x)", lambda x: x.abs() * x.sigmoid()),
                ("x² · σ(x)", lambda x: x * F.silu(x)),
                ("x · σ(x)²", lambda x: x.sigmoid() * F.silu(x)),
                ("σ(x · σ(x))", lambda x: F.silu(x).sigmoid()),
                ("SiLU's slope", lambda x: x.sigmoid() * (1 + x * (1 - x.sigmoid()))),
                ("the slope of σ", lambda x: x.sigmoid() * (1 - x.sigmoid())),
                ("tanh(x)", torch.tanh),
                ("GELU", F.gelu),
                ("GELU", lambda x: F.gelu(x, approximate="tanh")),
                ("Mish", F.mish),
                ("softplus", F.softplus),
                ("softplus", lambda x: torch.log(1 + x.exp())),
                ("softsign, x / (1 + |x|)", F.softsign),
                ("ELU", F.elu),
                ("SELU", F.selu),
                ("ReLU, which is 0 for every negative x", torch.relu),
                *(("leaky ReLU", lambda x, slope=slope: F.leaky_relu(x, slope)) for slope in (0.01, 0.1, 0.2)),
                ("hard swish, which is piecewise", F.hardswish),
                ("the hard sigmoid alone", F.hardsigmoid),
                ("ReLU6", F.relu6),
                ("x · softplus(x)", lambda x: x * F.softplus(x)),
                ("x · exp(x)", lambda x: x * x.exp()),
                ("x + x · σ(x)", lambda x: x + F.silu(x)),
                ("x · σ(|x|)", lambda x: x * x.abs().sigmoid()),
                ("x · σ(x²)", lambda x: x * x.square().sigmoid()),
                ("x / (1 + 2⁻ˣ)", lambda x: x / (1 + 2.0**-x)),
                ("softmax alone", lambda x: x.softmax(-1)),
                ("GLU, which multiplies one half of x by σ of the other", F.glu),
                *(
                    ("x itself for x > 0", lambda x, left=left: torch.where(x > 0, x, left(x)))
                    for left in (F.silu, lambda x: x * x.exp(), lambda x: -x * x.exp())
                ),
            )
        ),
        *(
            ("tanh stands in the place of σ: σ is the sigmoid, between 0 and 1", code)
            for code in (
                lambda x: x * x.tanh(),
                lambda x: x * (x / 2).tanh(),
                lambda x: x * (1 + x.tanh()),
                lambda x: F.silu(x) - x / 2,
            )
        ),
        *(
            (
                "a number multiplies x inside of σ, as in the quick GELU: σ(x) takes x itself",
                lambda x, b=b: x * (b * x).sigmoid(),
            )
            for b in (1.702, 1.7, 1.5, 2.0, 0.5)
        ),
        *(
            ("softmax weighs the values against each other: σ takes each alone", lambda x, dim=dim: x * x.softmax(dim))
            for dim in (-1, 0, 1)
        ),
        *(
            ("x is clamped: torch.sigmoid copes with every x", lambda x, most=most: F.silu(x.clamp(max=most)))
            for most in (10, 20, 50, 80, 88, 100)
        ),
        ("the sign in the exponent: σ(x) = 1 / (1 + exp(-x))", lambda x: x * (-x).sigmoid()),
        ("the sign in the exponent: σ(x) = 1 / (1 + exp(-x))", lambda x: x * torch.exp(-x) / (1 + torch.exp(-x))),
        ("the sign in the denominator: σ(x) = 1 / (1 + exp(-x))", lambda x: x / (1 - torch.exp(-x))),
        ("the denominator has no brackets: σ(x) = 1 / (1 + exp(-x))", lambda x: x / 1 + torch.exp(-x)),
        ("x is added: it is multiplied by σ(x)", lambda x: x + x.sigmoid()),
        ("σ(x) is subtracted: it multiplies x", lambda x: x - x.sigmoid()),
        ("x is divided by σ(x): it is multiplied by it", lambda x: x / x.sigmoid()),
        ("the sign: x · σ(x) is positive for x > 0", lambda x: -x * x.sigmoid()),
        ("negative values are cut off: SiLU is negative for x < 0", lambda x: F.silu(x).relu()),
        ("small values become 0: σ(x) is never 0", lambda x: torch.where(x < -5, 0.0, F.silu(x))),
        ("σ is cut off at negative x: it multiplies every x", lambda x: torch.where(x > 0, F.silu(x), x.sigmoid())),
        ("exp overflows for large x and leaves NaN: use torch.sigmoid", lambda x: x * x.exp() / (1 + x.exp())),
        ("0 replaces the NaN of an overflow: use torch.sigmoid", lambda x: (x * x.exp() / (1 + x.exp())).nan_to_num(0)),
        ("the values are summed: every value of x has a result of its own", lambda x: F.silu(x).sum()),
        ("the values are averaged: every value of x has a result of its own", lambda x: F.silu(x).mean()),
        # by their exceptions
        ("math.exp takes a single number: use torch.exp, or torch.sigmoid", lambda x: x / (1 + math.exp(-x))),
        ("item() takes a single number: a formula takes all values", lambda x: x.item()),
        ("if, max and min decide for a single number: a formula takes all values", lambda x: x if x > 0 else -x),
    ]
)
_SILU_PROBES = [(3 * probe((4, 6, 5, 2))[0],), (torch.tensor([-200.0, -100.0, -1.0, 0.0, 1.0, 100.0, 200.0]),)]

# 03.3


def _mixed(
    there=lambda x: x.permute(0, 2, 3, 1),
    matrix=lambda weight: weight.T,
    bias=lambda y, values: y + values,
    back=lambda y: y.permute(0, 3, 1, 2),
):
    """The matrix of every pixel, with the channels at the end, and some of its stages made otherwise."""
    return lambda x, weight, values: back(bias(there(x) @ matrix(weight), values))


def _along(dim):
    """Add the bias along another dimension of (B, H, W, out)."""
    return lambda y, values: (y.movedim(dim, -1) + values).movedim(-1, dim)


_OUT = "it has a value for every output channel, so give it the shape (out, 1, 1)"
_TORN = "it tears the pixels apart, permute or transpose"
_MIXES = "the matrix belongs to the channels, dimension 1"
_EACH = "every pixel of every image keeps its own result"
_SUM = "every output is a sum over all inputs"
_ONLY = "only the matrix and the bias are asked for"
_POINTWISE = [
    (f"reshape does not move the channels: {_TORN}", but(there=lambda x: x.reshape(len(x), *x.shape[2:], x.shape[1]))),
    (f"reshape does not bring the channels back: {_TORN}", but(back=lambda y: y.reshape(len(y), -1, *y.shape[1:3]))),
    ("the channels are last in the result: bring them back to dimension 1", but(back=lambda y: y)),
    ("height and width are exchanged in the result", but(back=lambda y: y.permute(0, 3, 2, 1))),
    ("permute(0, 2, 3, 1) does not undo itself: permute(0, 3, 1, 2) does", but(back=lambda y: y.permute(0, 2, 3, 1))),
    ("the matrix is transposed: its rows belong to the outputs, (out, in)", but(matrix=lambda w: w)),
    (f"the products are averaged: {_SUM}", but(matrix=lambda w: w.T / w.shape[1])),
    ("the bias is missing", but(bias=lambda y, b: y)),
    ("the sign of the bias: it is added", but(bias=lambda y, b: y - b)),
    ("the bias multiplies: it is added", but(bias=lambda y, b: y * b)),
    ("one bias for all outputs: each has its own", but(bias=lambda y, b: y + b[0])),
    (f"the bias runs along the width: {_OUT}", but(bias=_along(2))),
    (f"the bias runs along the height: {_OUT}", but(bias=_along(1))),
    (f"the bias runs along the batch: {_OUT}", but(bias=_along(0))),
    (f"SiLU at the end: {_ONLY}", but(back=lambda y: F.silu(y).permute(0, 3, 1, 2))),
    (f"ReLU at the end: {_ONLY}", but(back=lambda y: F.relu(y).permute(0, 3, 1, 2))),
]
POINTWISE_MISTAKES = Mistakes(
    [
        *((message, _mixed(**stages)) for message, stages in _POINTWISE),
        ("the channels are last, height and width exchanged", _mixed(lambda x: x.transpose(1, 3), back=lambda y: y)),
        ("the result is still a row of pixels: make a map of it", lambda x, w, b: F.linear(x.flatten(2).mT, w, b)),
        (f"the matrix mixes the columns of the map: {_MIXES}", F.linear),
        (f"the matrix mixes the columns of the map: {_MIXES}", lambda x, w, b: x @ w.T + b[:, None, None]),
        (f"the matrix mixes the columns of the map: {_MIXES}", lambda x, w, b: x @ w + b[:, None, None]),
        (f"the matrix mixes the rows of the map: {_MIXES}", lambda x, w, b: w @ x + b[:, None, None]),
        (f"the matrix mixes the rows of the map: {_MIXES}", lambda x, w, b: w @ x + b),
        (f"the images are mixed: {_MIXES}", lambda x, w, b: torch.einsum("oi,ichw->ochw", w, x) + b[:, None, None]),
        ("the bias is added before the matrix: add it last", lambda x, w, b: pointwise(x + b[:, None, None], w, 0 * b)),
        (f"only the diagonal is used: {_SUM}", lambda x, w, b: w.diagonal()[:, None, None] * x + b[:, None, None]),
        ("the matrix is summed before it meets pixels", lambda x, w, b: pointwise(x.sum(1, True), w.sum(1, True), b)),
        (f"products are not summed: {_SUM}", lambda x, w, b: w[:, :, None, None] * x[:, None] + b[:, None, None, None]),
        ("inputs replace each other in the loop: add them", lambda x, w, b: pointwise(x[:, -1:], w[:, -1:], b)),
        ("the bias is added once for every input: once is enough", lambda x, w, b: pointwise(x, w, x.shape[1] * b)),
        *(
            (f"only the first inputs are used: {_SUM}", lambda x, w, b, n=n: pointwise(x[:, :n], w[:, :n], b))
            for n in (1, 2, 3)
        ),
        (
            f"the largest product is taken: {_SUM}",
            lambda x, w, b: (w[..., None, None] * x[:, None]).amax(2) + b[:, None, None],
        ),
        ("the matrix is put through softmax: take it as it is", lambda x, w, b: pointwise(x, w.softmax(1), b)),
        ("only the first output is made: there is one for each row", lambda x, w, b: pointwise(x, w[:1], b[:1])),
        (f"only the first image is used: {_EACH}", lambda x, w, b: pointwise(x[:1], w, b)),
        (f"the images are added up: {_EACH}", lambda x, w, b: pointwise(x.sum(0, True), w, b)),
        (f"the images are added up: {_EACH}", lambda x, w, b: pointwise(x.sum(0, True), w, b)[0]),
        (f"the pixels are averaged: {_EACH}", lambda x, w, b: pointwise(x.mean((2, 3), True).expand_as(x), w, b)),
        *(
            (
                f"rows or columns are summed or averaged: {_EACH}",
                lambda x, w, b, take=take, dims=dims: pointwise(take(x, dims, True), w, b),
            )
            for take in (torch.sum, torch.mean)
            for dims in (2, 3, (2, 3))
        ),
        (f"neighbouring pixels are mixed: {_EACH}", lambda x, w, b: pointwise(F.avg_pool2d(x, 3, 1, 1), w, b)),
        (f"neighbouring pixels are mixed: {_EACH}", lambda x, w, b: pointwise(9 * F.avg_pool2d(x, 3, 1, 1), w, b)),
        ("the map is padded: a 1×1 convolution keeps its size", lambda x, w, b: pointwise(F.pad(x, [1] * 4), w, b)),
        (f"the input is added: {_ONLY}", lambda x, w, b: x + pointwise(x, w, b)),
        (f"the input is added: {_ONLY}", lambda x, w, b: x[:, :1] + pointwise(x, w, b)),
        ("height and width are exchanged", lambda x, w, b: pointwise(x, w, b).reshape(len(x), -1, *x.mT.shape[2:])),
        ("the height is taken for the width", lambda x, w, b: pointwise(x.reshape(*x.shape[:3], x.shape[2]), w, b)),
        # by their exceptions
        ("F.conv2d takes a weight of four dimensions: weight[:, :, None, None]", F.conv2d),
        (
            "F.conv2d takes a weight of four dimensions: weight[:, :, None, None]",
            lambda x, w, b: F.conv2d(x, w[..., None], b),
        ),
    ]
)


@POINTWISE_MISTAKES("x is overwritten in the loop: every output begins with the pixels as they were")
def pointwise_of_a_changed_input(x, weight, bias):
    outputs = []
    for row, value in zip(weight, bias, strict=True):
        x = x * row[:, None, None]
        outputs.append(x.sum(1) + value)
    return torch.stack(outputs, dim=1)


# 03.4


def _block(
    first=lambda s, x: s.conv1(F.silu(s.norm1(x))),
    second=lambda s, hidden, x: s.conv2(F.silu(s.norm2(hidden))),
    end=lambda s, x, hidden: s.conv_shortcut(x) + hidden,
):
    """The right layers, with some stages of forward made otherwise."""

    class Mistaken(ResnetBlock):
        def forward(self, x):
            return end(self, x, second(self, first(self, x), x))

    return Mistaken


def _made(norms=None, convs=None, **layers):
    """Some layers made in another way, by functions of their channels and groups; `layers`: of in, out and groups."""

    class Mistaken(ResnetBlock):
        def __init__(self, in_channels, out_channels, groups):
            super().__init__(in_channels, out_channels, groups)
            if norms:
                self.norm1, self.norm2 = (norms(channels, groups) for channels in (in_channels, out_channels))
            if convs:
                self.conv1, self.conv2 = (convs(channels, out_channels) for channels in (in_channels, out_channels))
            for name, make in layers.items():
                setattr(self, name, make(in_channels, out_channels, groups))

    return Mistaken


def _conv3(i, o, **options):
    return nn.Conv2d(i, o, 3, padding=1, **options)


def _shortcut(size=1, bias=True):
    return lambda i, o, g: nn.Identity() if i == o else nn.Conv2d(i, o, size, padding=size // 2, bias=bias)


def _halves(half):
    """Both halves of the branch, each made of its norm and its convolution."""
    return but(
        first=lambda s, x: half(x, s.norm1, s.conv1),
        second=lambda s, hidden, x: half(hidden, s.norm2, s.conv2),
    )


_PRE = "the order is norm, SiLU, convolution"
_NORM_LAST = (
    lambda x, norm, conv: F.silu(norm(conv(x))),
    lambda x, norm, conv: norm(conv(x)),
    lambda x, norm, conv: norm(F.silu(conv(x))),
    lambda x, norm, conv: norm(conv(F.silu(x))),
)
_FROM_X = "it takes x itself"
_LAST = "nothing comes after the sum"
_BRANCH_FIRST = "first the whole branch, then the sum"
_FIRSTS = [
    ("the SiLU before conv1 is missing", but(first=lambda s, x: s.conv1(s.norm1(x)))),
    ("the SiLU before conv2 is missing", but(second=lambda s, h, x: s.conv2(s.norm2(h)))),
    ("both SiLUs are missing", _halves(lambda x, norm, conv: conv(norm(x)))),
    *(
        (f"the activation is {name}: SiLU is asked for", _halves(lambda x, norm, conv, act=act: conv(act(norm(x)))))
        for name, act in (
            ("ReLU", F.relu),
            ("leaky ReLU", F.leaky_relu),
            ("GELU", F.gelu),
            ("tanh", torch.tanh),
            ("sigmoid, without the factor x", torch.sigmoid),
        )
    ),
    (f"the activation stands before the norm: {_PRE}", _halves(lambda x, norm, conv: conv(norm(F.silu(x))))),
    (f"the activation stands after the convolution: {_PRE}", _halves(lambda x, norm, conv: F.silu(conv(norm(x))))),
    (f"this is convolution, norm, SiLU: {_PRE}", _halves(lambda x, norm, conv: F.silu(norm(conv(x))))),
    (f"this is convolution, SiLU, norm: {_PRE}", _halves(lambda x, norm, conv: norm(F.silu(conv(x))))),
    (f"this is SiLU, convolution, norm: {_PRE}", _halves(lambda x, norm, conv: norm(conv(F.silu(x))))),
]
_ENDS = [
    ("the input is not added", but(end=lambda s, x, h: h)),
    (f"SiLU after the sum: {_LAST}", but(end=lambda s, x, h: F.silu(s.conv_shortcut(x) + h))),
    (f"ReLU after the sum: {_LAST}", but(end=lambda s, x, h: F.relu(s.conv_shortcut(x) + h))),
    (f"the shortcut takes the normalised input: {_FROM_X}", but(end=lambda s, x, h: s.conv_shortcut(s.norm1(x)) + h)),
    ("the sum is divided by √2: it stays as it is", but(end=lambda s, x, h: (s.conv_shortcut(x) + h) / 2**0.5)),
]
_GROUPS_FIRST = "nn.GroupNorm(groups, channels, eps=1e-6): the argument groups stands first"
_X_ITSELF = "x does not fit where the widths differ: conv_shortcut(x) is what is added, in both cases"
RESNET_MISTAKES = Mistakes(
    [
        # by their layers
        ("conv_shortcut is missing where the widths differ", _made(conv_shortcut=lambda i, o, g: nn.Identity())),
        ("conv_shortcut is there for equal widths, too", _made(conv_shortcut=lambda i, o, g: nn.Conv2d(i, o, 1))),
        (
            "the condition of conv_shortcut is turned round: nn.Identity() stands for equal widths",
            _made(conv_shortcut=lambda i, o, g: nn.Identity() if i != o else nn.Conv2d(i, o, 1)),
        ),
        ("conv_shortcut is a 3x3 convolution: 1x1, one matrix for every pixel", _made(conv_shortcut=_shortcut(3))),
        ("conv_shortcut has no bias: every convolution here has one", _made(conv_shortcut=_shortcut(bias=False))),
        ("norm2 has in_channels: conv1 puts out out_channels", _made(norm2=lambda i, o, g: nn.GroupNorm(g, i))),
        ("conv2 expects in_channels: conv1 puts out out_channels", _made(conv2=lambda i, o, g: _conv3(i, o))),
        (
            "conv1 keeps the width and conv2 changes it: here conv1 changes it, and norm2 and conv2 have out_channels",
            _made(
                conv1=lambda i, o, g: _conv3(i, i),
                norm2=lambda i, o, g: nn.GroupNorm(g, i),
                conv2=lambda i, o, g: _conv3(i, o),
            ),
        ),
        ("norm1 has out_channels: it sees x, before conv1", _made(norm1=lambda i, o, g: nn.GroupNorm(g, o))),
        ("the convolutions have no bias: each has one", _made(convs=lambda i, o: _conv3(i, o, bias=False))),
        (
            "no convolution has a bias: each has one",
            _made(convs=lambda i, o: _conv3(i, o, bias=False), conv_shortcut=_shortcut(bias=False)),
        ),
        ("the convolutions are 1x1 and see no neighbours: make them 3x3", _made(convs=lambda i, o: nn.Conv2d(i, o, 1))),
        ("this is batch norm: take nn.GroupNorm(groups, channels, …)", _made(norms=lambda c, g: nn.BatchNorm2d(c))),
        ("the norms lack weight and bias: affine=True", _made(norms=lambda c, g: nn.GroupNorm(g, c, affine=False))),
        ("groups is taken for the channels in a group", _made(norms=lambda c, g: nn.GroupNorm(c // g, c))),
        # by their results
        *((message, _block(**stages)) for message, stages in (*_FIRSTS, *_ENDS)),
        (f"the activation stands before norm1: {_PRE}", _block(lambda s, x: s.conv1(s.norm1(F.silu(x))))),
        (f"the activation stands before norm2: {_PRE}", _block(second=lambda s, h, x: s.conv2(s.norm2(F.silu(h))))),
        (
            f"the activation stands after conv1, before norm2, and is missing before conv1: {_PRE}",
            _block(lambda s, x: F.silu(s.conv1(s.norm1(x))), lambda s, h, x: s.conv2(s.norm2(h))),
        ),
        (
            f"the norms stand after the convolutions, and one SiLU is missing: {_PRE}",
            _block(lambda s, x: F.silu(s.norm1(s.conv1(x))), lambda s, h, x: s.norm2(s.conv2(h))),
        ),
        (
            f"the norms stand after the convolutions, and SiLU after the sum: {_PRE}, and {_LAST}",
            _block(
                lambda s, x: F.silu(s.norm1(s.conv1(x))),
                lambda s, h, x: s.norm2(s.conv2(h)),
                lambda s, x, h: F.silu(s.conv_shortcut(x) + h),
            ),
        ),
        *(
            (f"norm1 stands after conv1: {_PRE}", _block(lambda s, x, half=half: half(x, s.norm1, s.conv1)))
            for half in _NORM_LAST
        ),
        *(
            (f"norm2 stands after conv2: {_PRE}", _block(second=lambda s, h, x, half=half: half(h, s.norm2, s.conv2)))
            for half in _NORM_LAST
        ),
        (
            f"the norms stand after the convolutions, and both SiLUs are missing: {_PRE}",
            _block(**_halves(_NORM_LAST[1])),
        ),
        ("the second half takes x, not what conv1 put out", _block(second=lambda s, h, x: s.conv2(F.silu(s.norm2(x))))),
        ("norm1 is used in both places: norm2 is second", _block(second=lambda s, h, x: s.conv2(F.silu(s.norm1(h))))),
        ("conv1 is used in both places: conv2 is second", _block(second=lambda s, h, x: s.conv1(F.silu(s.norm2(h))))),
        ("the first half is used twice", _block(second=lambda s, h, x: s.conv1(F.silu(s.norm1(h))))),
        ("the second half is missing", _block(second=lambda s, h, x: h)),
        ("the activation before conv1 is ReLU: SiLU is asked for", _block(lambda s, x: s.conv1(F.relu(s.norm1(x))))),
        (
            "the activation before conv2 is ReLU: SiLU is asked for",
            _block(second=lambda s, h, x: s.conv2(F.relu(s.norm2(h)))),
        ),
        ("SiLU after conv1, too: norm2 comes next", _block(lambda s, x: F.silu(s.conv1(F.silu(s.norm1(x)))))),
        ("norm1 is not used", _block(lambda s, x: s.conv1(F.silu(x)))),
        ("norm2 is not used", _block(second=lambda s, h, x: s.conv2(F.silu(h)))),
        ("conv1 is not used", _block(lambda s, x: F.silu(s.norm1(x)))),
        ("conv2 is not used", _block(second=lambda s, h, x: F.silu(s.norm2(h)))),
        ("norm1 and SiLU are missing before conv1", _block(lambda s, x: s.conv1(x))),
        ("norm2 and SiLU are missing before conv2", _block(second=lambda s, h, x: s.conv2(h))),
        (f"SiLU after conv2, before the sum: {_PRE}", _block(end=lambda s, x, h: s.conv_shortcut(x) + F.silu(h))),
        ("the shortcut is after norm1 and SiLU", _block(end=lambda s, x, h: s.conv_shortcut(F.silu(s.norm1(x))) + h)),
        (f"the shortcut takes SiLU of x: {_FROM_X}", _block(end=lambda s, x, h: s.conv_shortcut(F.silu(x)) + h)),
        (f"the shortcut takes the output of the branch: {_FROM_X}", _block(end=lambda s, x, h: h + s.conv_shortcut(h))),
        ("the sum is divided by 2: it stays as it is", _block(end=lambda s, x, h: (s.conv_shortcut(x) + h) / 2)),
        ("the branch is subtracted: it is added", _block(end=lambda s, x, h: s.conv_shortcut(x) - h)),
        ("the input is subtracted: it is added", _block(end=lambda s, x, h: h - s.conv_shortcut(x))),
        ("the input multiplies the branch: it is added", _block(end=lambda s, x, h: s.conv_shortcut(x) * h)),
        ("the input is added twice", _block(end=lambda s, x, h: 2 * s.conv_shortcut(x) + h)),
        (f"norm2 after the sum: {_LAST}", _block(end=lambda s, x, h: s.norm2(s.conv_shortcut(x) + h))),
        ("the output of conv1 is added, too", _block(second=lambda s, h, x: h + s.conv2(F.silu(s.norm2(h))))),
        ("torch.cat stacks input and branch: add them", _block(end=lambda s, x, h: torch.cat([x, h], dim=1))),
        (
            f"x is added before conv2: {_BRANCH_FIRST}",
            _block(second=lambda s, h, x: s.conv2(s.conv_shortcut(x) + F.silu(s.norm2(h))), end=lambda s, x, h: h),
        ),
        (
            f"x is added after conv1: {_BRANCH_FIRST}",
            _block(second=lambda s, h, x: s.conv2(F.silu(s.norm2(s.conv_shortcut(x) + h))), end=lambda s, x, h: h),
        ),
        (
            "what is added is the output of conv1, not the input of the block",
            _block(second=lambda s, h, x: h + s.conv2(F.silu(s.norm2(h))), end=lambda s, x, h: h),
        ),
        # by their exceptions
        ("this is layer norm: take nn.GroupNorm(groups, channels, …)", _made(norms=lambda c, g: nn.LayerNorm(c))),
        (_GROUPS_FIRST, _made(norms=lambda c, g: nn.GroupNorm(c, g))),
        ("the number of groups is fixed at 32: use the argument groups", _made(norms=lambda c, g: nn.GroupNorm(32, c))),
        (
            "conv_shortcut is None, which is no function: nn.Identity() hands x on",
            _made(conv_shortcut=lambda i, o, g: None if i == o else nn.Conv2d(i, o, 1)),
        ),
        (_X_ITSELF, _block(end=lambda s, x, h: x + h)),
        (_X_ITSELF, _block(end=lambda s, x, h: h + x)),
    ]
)

for _name in ("norm", "conv"):

    @RESNET_MISTAKES(f"{_name}1 and {_name}2 are one module, with the same weights: make two")
    class OneModuleTwice(ResnetBlock):
        def __init__(self, in_channels, out_channels, groups, name=_name):
            super().__init__(in_channels, out_channels, groups)
            if in_channels == out_channels:
                setattr(self, f"{name}2", getattr(self, f"{name}1"))


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
            _NORM_PROBES,
            [*GROUP_NORM_MISTAKES, *several_at_once(_norm, _NORMS, most=4)],
            inputs=("x", "groups", "weight", "bias", "eps"),
            gradients=("x", "weight", "bias"),
        ),
        mistakes=GROUP_NORM_MISTAKES,
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
            "σ is the sigmoid, 1 / (1 + exp(-x)). PyTorch has it, safe for every x: torch.sigmoid.",
            "x * torch.sigmoid(x)",
        ),
        judge=judge_function(silu, _SILU_PROBES, SILU_MISTAKES, inputs=("x",), gradients=("x",)),
        mistakes=SILU_MISTAKES,
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
            [*POINTWISE_MISTAKES, *several_at_once(_mixed, _POINTWISE, most=3)],
            inputs=("x", "weight", "bias"),
            gradients=("x", "weight", "bias"),
        ),
        mistakes=POINTWISE_MISTAKES,
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
            [(8, 8, 4), (8, 16, 4), (16, 8, 4)],
            [probe((2, 8, 6, 5)), probe((1, 8, 3, 4)), probe((1, 16, 4, 3))],
            [*RESNET_MISTAKES, *several_at_once(_block, (*_FIRSTS, *_ENDS))],
            parts=("norm1", "conv1", "norm2", "conv2", "conv_shortcut"),
        ),
        mistakes=RESNET_MISTAKES,
    ),
)
