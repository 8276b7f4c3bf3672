"""The exercises of notebook 04, resampling and attention."""

from __future__ import annotations

import math
import operator
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from klvae_edu.blocks import Attention, Downsample2D, Upsample2D, eager_attention
from klvae_edu.exercises.exercise import Exercise, Mistakes
from klvae_edu.exercises.judges.functions import judge_function, probe
from klvae_edu.exercises.judges.modules import judge_module
from klvae_edu.exercises.judges.numbers import judge_numbers
from klvae_edu.exercises.nb03 import but, several_at_once
from klvae_edu.exercises.solutions.nb04 import AttentionBlock, attention, downsample, receptive_field, upsample
from klvae_edu.network import Encoder

NOTEBOOK = "04_resampling_and_attention"

# 04.1


def _down(
    resize=lambda x: x,
    sides=(0, 1, 0, 1),
    stride=2,
    mode="constant",
    value=0.0,
    weight=lambda weight: weight,
    bias=lambda y, values: y + values[:, None, None],
    after=lambda y: y,
    **options,
):
    """Resize (or not), pad, convolve in steps of two: with some of these stages made otherwise."""

    def layer(x, w, b):
        padded = F.pad(resize(x), sides, mode, value)
        return after(bias(F.conv2d(padded, weight(w), stride=stride, **options), b))

    return layer


def _padded(resize):
    return lambda x, w, b: F.conv2d(resize(x), w, b, padding=1)


_ONE_EACH = "pad one column on the right and one row at the bottom; F.pad counts (left, right, top, bottom)"
_ZEROS = "the padding is zeros, on the right and at the bottom"
_STEPS = "let the convolution take the steps, stride=2"
_AS_IT_IS = "F.conv2d takes the weight as it is, (out, in, 3, 3)"
_LAST = "nothing comes after the convolution"
_OF_BOTH = [  # of 04.1 and 04.2
    ("the bias is missing", but(bias=lambda y, b: y)),
    (f"the weight is transposed: {_AS_IT_IS}", but(weight=lambda w: w.transpose(0, 1))),
    (f"the kernel is turned by 180°: {_AS_IT_IS}", but(weight=lambda w: w.flip(2, 3))),
    (f"the kernel's rows and columns are exchanged: {_AS_IT_IS}", but(weight=lambda w: w.mT)),
    (f"SiLU at the end: {_LAST}", but(after=F.silu)),
    (f"ReLU at the end: {_LAST}", but(after=F.relu)),
]
_RARE_OF_BOTH = [
    ("the sign of the bias: it is added", but(bias=lambda y, b: y - b[:, None, None])),
    ("the bias is added twice: F.conv2d adds it", but(bias=lambda y, b: y + 2 * b[:, None, None])),
    ("the bias runs along the width: give it to F.conv2d", but(bias=lambda y, b: y + b)),
    (f"the weight is divided by its number of values: {_AS_IT_IS}", but(weight=lambda w: w / w[0].numel())),
    (f"the weight is divided by 9: {_AS_IT_IS}", but(weight=lambda w: w / 9)),
    (f"the kernel is averaged: {_AS_IT_IS}", but(weight=lambda w: w.mean((2, 3), True).expand_as(w))),
    ("channels are not mixed (groups)", but(weight=lambda w: w[:, :1] * torch.eye(len(w))[..., None, None])),
]
_HALVINGS = [
    ("padded on all four sides (padding=1): zeros go on the right and at the bottom", but(sides=(1, 1, 1, 1))),
    (f"padded on the left and at the top: {_ONE_EACH}", but(sides=(1, 0, 1, 0))),
    (
        "even sides get no padding: last row and column have no window, the map is too small",
        but(sides=(0, 0, 0, 0)),
    ),
    (f"padded with ones: {_ZEROS}", but(value=1.0)),
    (f"padded by repeating the border: {_ZEROS}", but(mode="replicate")),
    (f"padded by reflection: {_ZEROS}", but(mode="reflect")),
    ("the stride is missing: the map keeps its size", but(stride=1)),
    *_OF_BOTH,
]
DOWNSAMPLE_MISTAKES = Mistakes(
    [
        *((message, _down(**stages)) for message, stages in (*_HALVINGS, *_RARE_OF_BOTH)),
        *(
            (f"padded {where}: {_ONE_EACH}", _down(sides=sides))
            for where, sides in (
                ("on the right and at the top", (0, 1, 1, 0)),
                ("on the left and at the bottom", (1, 0, 0, 1)),
                ("on the right only", (0, 1, 0, 0)),
                ("at the bottom only", (0, 0, 0, 1)),
                ("on the left and on the right only", (1, 1, 0, 0)),
                ("at the top and at the bottom only", (0, 0, 1, 1)),
                ("with two columns and two rows", (0, 2, 0, 2)),
                ("twice, by F.pad and by the convolution", (1, 2, 1, 2)),
            )
        ),
        ("the stride is missing, and all four sides are padded", _down(sides=(1, 1, 1, 1), stride=1)),
        ("only the height is halved: stride=2 is for both axes", _down(stride=(2, 1))),
        ("only the width is halved: stride=2 is for both axes", _down(stride=(1, 2))),
        ("dilation=2 stands in the place of stride=2", _down(stride=1, dilation=2)),
        ("padded after the convolution: pad first", _down(sides=(0, 0, 0, 0), after=lambda y: F.pad(y, (0, 1, 0, 1)))),
        ("the stride is 3: half the size takes stride=2", _down(stride=3)),
        ("the stride is 4: half the size takes stride=2", _down(stride=4)),
        (f"padded from the opposite side (circular): {_ZEROS}", _down(mode="circular")),
        *(
            (f"every other pixel is dropped before the convolution: {_STEPS}", _down(resize, (1, 1, 1, 1), 1))
            for resize in (lambda x: x[..., ::2, ::2], lambda x: x[..., 1::2, 1::2])
        ),
        *(
            (f"the map is {how} before the convolution: {_STEPS}", _down(small, (1, 1, 1, 1), 1))
            for how, small in (
                ("averaged by fours", lambda x: F.avg_pool2d(x, 2)),
                ("reduced to the largest of four", lambda x: F.max_pool2d(x, 2)),
                ("interpolated", lambda x: F.interpolate(x, scale_factor=0.5)),
                ("interpolated", lambda x: F.interpolate(x, scale_factor=0.5, mode="bicubic")),
            )
        ),
        *(
            (f"the map is {how} after the convolution: {_STEPS}", _down(sides=(1, 1, 1, 1), stride=1, after=small))
            for how, small in (
                ("averaged by fours", lambda y: F.avg_pool2d(y, 2)),
                ("reduced to the largest of four", lambda y: F.max_pool2d(y, 2)),
            )
        ),
        *(
            (f"every other window is taken, from the wrong one on: {_STEPS}", _down(stride=1, after=after))
            for after in (lambda y: y[..., 1::2, 1::2], lambda y: y[..., 1::2, ::2], lambda y: y[..., ::2, 1::2])
        ),
        ("this is average pooling: weight and bias are not used", lambda x, w, b: F.avg_pool2d(x, 2)),
        ("this is max pooling: weight and bias are not used", lambda x, w, b: F.max_pool2d(x, 2)),
        # by their exceptions
        ("padding='same' is not for a stride: F.pad the map", lambda x, w, b: F.conv2d(x, w, b, 2, "same")),
        (f"the channels are padded: {_ONE_EACH}", _down(sides=(0, 1, 0, 1, 0, 1))),
        (f"the channels are padded: {_ONE_EACH}", _down(sides=(0, 0, 0, 1, 0, 1))),
        ("pixel_unshuffle makes channels of pixels: there are C", _padded(lambda x: F.pixel_unshuffle(x, 2))),
    ]
)


@DOWNSAMPLE_MISTAKES("the last row and column are overwritten by zeros: zeros are added behind them")
def downsample_of_an_emptied_border(x, weight, bias):
    emptied = F.pad(x[..., :-1, :-1], (0, 1, 0, 1))
    return F.conv2d(emptied, weight, bias, stride=2, padding=1)


# 04.2


def _doubled(x):
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def _up(resize=_doubled, sides=(1, 1, 1, 1), stride=1, **stages):
    return _down(resize, sides, stride, **stages)


def _smooth(mode, **options):
    return lambda x: F.interpolate(x, scale_factor=2, mode=mode, **options)


def _spread(x):
    """Zeros between the pixels: (B, C, H, W) -> (B, C, 2H, 2W)."""
    spread = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    spread[..., ::2, ::2] = x
    return spread


_REPEAT = "nearest neighbour repeats each pixel, with no values in between"
_BESIDE = "repeat each pixel beside itself (repeat_interleave)"
_FLATTENED = "repeat_interleave without dim makes one long row of all numbers: repeat along dim=2, then along dim=3"
_CHANNELS = "the channels are repeated: height and width are dimensions 2 and 3"
_OVERLAP = "this is a transposed convolution, whose kernels overlap unevenly: repeat the pixels, then convolve"
_PADDING = "the convolution pads one row and column of zeros on every side, padding=1"
_DOUBLINGS = [
    (f"interpolated (bilinear): {_REPEAT}", but(resize=_smooth("bilinear"))),
    (f"interpolated (bicubic): {_REPEAT}", but(resize=_smooth("bicubic"))),
    (f"the whole map is repeated, like a tile: {_BESIDE}", but(resize=lambda x: x.repeat(1, 1, 2, 2))),
    ("there are zeros between the pixels: repeat the pixels instead", but(resize=_spread)),
    (f"the padding is missing, and the map comes out too small: {_PADDING}", but(sides=(0, 0, 0, 0))),
    (f"padded on the right and at the bottom only: {_PADDING}", but(sides=(0, 2, 0, 2))),
    (f"padded by repeating or reflecting the border: {_PADDING}", but(mode="replicate")),  # the same in a doubled map
    *_OF_BOTH,
]
UPSAMPLE_MISTAKES = Mistakes(
    [
        *((message, _up(**stages)) for message, stages in (*_DOUBLINGS, *_RARE_OF_BOTH)),
        (f"interpolated (bilinear): {_REPEAT}", _up(_smooth("bilinear", align_corners=True))),
        (f"interpolated (bicubic): {_REPEAT}", _up(_smooth("bicubic", align_corners=True))),
        (f"the rows are tiled: {_BESIDE}", _up(lambda x: x.repeat(1, 1, 2, 1).repeat_interleave(2, 3))),
        (f"the columns are tiled: {_BESIDE}", _up(lambda x: x.repeat(1, 1, 1, 2).repeat_interleave(2, 2))),
        (f"reshape misplaces the copies: {_BESIDE}", _up(lambda x: x.repeat_interleave(4).reshape(_doubled(x).shape))),
        ("only the height is doubled: repeat along dimension 3 as well", _up(lambda x: x.repeat_interleave(2, 2))),
        ("only the width is doubled: repeat along dimension 2 as well", _up(lambda x: x.repeat_interleave(2, 3))),
        ("only the height is doubled, and like a tile: both axes are", _up(lambda x: x.repeat(1, 1, 2, 1))),
        ("only the width is doubled, and like a tile: both axes are", _up(lambda x: x.repeat(1, 1, 1, 2))),
        (
            "the repeated map is added: nothing comes after the convolution",
            lambda x, w, b: _doubled(x) + upsample(x, w, b),
        ),
        ("the pixels are not repeated: the map keeps its size", _up(lambda x: x)),
        ("repeated four times along each axis: twice is enough", _up(lambda x: _doubled(_doubled(x)))),
        ("repeated three times: twice is enough", _up(lambda x: x.repeat_interleave(3, 2).repeat_interleave(3, 3))),
        *(
            ("the size is fixed: it is twice that of x", _up(lambda x, size=size: F.interpolate(x, size)))
            for size in (8, 16, 32, 64)
        ),
        ("the height is taken for the width: maps are not all square", _up(lambda x: F.interpolate(x, 2 * x.shape[2]))),
        ("the width is taken for the height: maps are not all square", _up(lambda x: F.interpolate(x, 2 * x.shape[3]))),
        ("the pixels are divided: each copy has its pixel's value", _up(lambda x: _doubled(x) / 2)),
        ("the pixels are divided: each copy has its pixel's value", _up(lambda x: _doubled(x) / 4)),
        ("the pixels are multiplied: each copy has its pixel's value", _up(lambda x: 4 * _doubled(x))),
        (f"padded on the left and at the top only: {_PADDING}", _up(sides=(2, 0, 2, 0))),
        (f"padded from the opposite side (circular): {_PADDING}", _up(mode="circular")),
        (
            "the convolution comes before the doubling, or is dilated: repeat, convolve",
            _up(lambda x: x, after=_doubled),
        ),
        ("the convolution is missing: weight and bias are not used", lambda x, w, b: _doubled(x)),
        (f"padded on the right and at the bottom only: {_PADDING}", _up(sides=(0, 1, 0, 1))),
        (f"padded by two, and the map comes out too large: {_PADDING}", _up(sides=(2, 2, 2, 2))),
        ("the convolution has a stride of 2, which halves the map again: leave it at 1", _up(stride=2)),
        *(
            (_OVERLAP, lambda x, w, b, axes=axes, pads=pads: F.conv_transpose2d(x, w.transpose(*axes), b, 2, *pads))
            for axes in ((0, 0), (0, 1))
            for pads in ((0, 0), (0, 1), (1, 0), (1, 1))
        ),
        # by their exceptions
        (_FLATTENED, _up(lambda x: x.repeat_interleave(2))),
        (_FLATTENED, _padded(lambda x: x.repeat_interleave(2))),
        (_FLATTENED, _padded(lambda x: x.repeat_interleave(4))),
        (_CHANNELS, _padded(lambda x: x.repeat_interleave(2, 1).repeat_interleave(2, 2))),
        (_CHANNELS, _padded(lambda x: x.repeat_interleave(2, 1).repeat_interleave(2, 3))),
        ("pixel_shuffle makes pixels of channels: there are C", _padded(lambda x: F.pixel_shuffle(x, 2))),
    ]
)

# 04.3


def _counted(
    term=lambda kernel, stride, jump: (kernel - 1) * jump,
    step=lambda jump, kernel, stride: jump * stride,
    start=1,
    jump=1,
    early=False,
    put=operator.add,
    walk=lambda layers: layers,
    end=lambda field, jump: field,
):
    """The loop with some of its stages made otherwise; `early`: the stride comes before the kernel."""

    def count(layers):
        field, distance = start, jump
        for kernel, stride in walk(layers):
            after = step(distance, kernel, stride)
            field = put(field, term(kernel, stride, after if early else distance))
            distance = after
        return end(field, distance)

    return count


_STRIDES = "the strides of all layers before a layer multiply to the distance between its input pixels"
_FURTHER = "a kernel of k reaches k - 1 further"
_TIMES = "the field is multiplied by the strides: a stride counts for the kernels after it only"
_ONE_SIDE = "the field is asked for from its first to its last pixel"
_COUNTS = [
    (f"each layer adds its whole kernel: {_FURTHER}", but(term=lambda k, s, jump: k * jump)),
    ("the pixel itself is missing: without any layer the field is 1", but(start=0)),
    ("a layer's own stride counts for its kernel: it counts only for the layers after it", but(early=True)),
    (f"the strides are ignored: {_STRIDES}", but(step=lambda jump, k, s: 1)),
    (f"the strides are added: {_STRIDES}", but(step=lambda jump, k, s: jump + s)),
    (f"only the last stride counts: {_STRIDES}", but(step=lambda jump, k, s: s)),
    (
        "the layers are walked in the wrong direction: a jump that grows begins at the input, "
        "(field - 1) * stride + kernel at the output",
        but(walk=lambda layers: layers[::-1]),
    ),
]
FIELD_MISTAKES = Mistakes(
    [
        *((message, _counted(**stages)) for message, stages in _COUNTS),
        (f"each layer adds its whole kernel, from 0 on: {_FURTHER}", _counted(lambda k, s, jump: k * jump, start=0)),
        (f"each layer is multiplied by its own stride alone: {_STRIDES}", _counted(lambda k, s, jump: (k - 1) * s)),
        ("every layer doubles the distance: its stride multiplies it", _counted(step=lambda jump, k, s: 2 * jump)),
        ("the distance is never above 2: the strides multiply", _counted(step=lambda jump, k, s: 2 if s > 1 else jump)),
        (f"the strides are added: {_STRIDES}", _counted(step=lambda jump, k, s: jump + s - 1)),
        (f"the strides are added: {_STRIDES}", _counted(step=lambda jump, k, s: jump + s, jump=0)),
        (f"the strides are squared: {_STRIDES}", _counted(step=lambda jump, k, s: jump * s * s)),
        ("the kernels are ignored: each reaches k - 1 further", _counted(lambda k, s, jump: jump)),
        ("one pixel too many: without any layer the field is 1", _counted(start=2)),
        (f"the strides divide: {_STRIDES}", _counted(step=lambda jump, k, s: jump / s)),
        ("the jump begins at 0, which leaves nothing of any layer: pixels are 1 apart", _counted(jump=0)),
        ("each layer adds twice too much: pixels are 1 apart", _counted(jump=2)),
        ("k * jump - 1 multiplies k alone: (k - 1) * jump", _counted(lambda k, s, jump: k * jump - 1)),
        (f"the stride is subtracted from the kernel: {_FURTHER}", _counted(lambda k, s, jump: (k - s) * jump)),
        (f"the kernels reach one pixel less: {_FURTHER}", _counted(lambda k, s, jump: (k - 2) * jump)),
        (f"each kernel reaches k + 1 further: {_FURTHER}", _counted(lambda k, s, jump: (k + 1) * jump)),
        (f"every kernel is taken for 3: {_FURTHER}", _counted(lambda k, s, jump: 2 * jump)),
        (f"one side only: {_ONE_SIDE}", _counted(lambda k, s, jump: k // 2 * jump)),
        (f"one side only: {_ONE_SIDE}", _counted(lambda k, s, jump: (k - 1) / 2 * jump)),
        (f"one side only: {_ONE_SIDE}", _counted(lambda k, s, jump: k / 2 * jump)),
        (f"one side only: {_ONE_SIDE}", _counted(lambda k, s, jump: (k - 1) // 2 * jump)),
        (f"one side only: {_ONE_SIDE}", lambda layers: (receptive_field(layers) - 1) // 2),
        (f"even kernels are halved to whole pixels: {_FURTHER}", _counted(lambda k, s, jump: (k - 1) // 2 * 2 * jump)),
        (f"even kernels are halved to whole pixels: {_FURTHER}", _counted(lambda k, s, jump: k // 2 * 2 * jump)),
        ("1×1 layers and their strides are left out", _counted(walk=lambda layers: [it for it in layers if it[0] > 1])),
        ("kernel and stride are exchanged in the pairs", _counted(walk=lambda layers: [(s, k) for k, s in layers])),
        ("only the first layer is counted: is return in the loop?", _counted(walk=lambda layers: layers[:1])),
        ("the last layer is left out", _counted(walk=lambda layers: layers[:-1])),
        ("the first layer is left out", _counted(walk=lambda layers: layers[1:])),
        ("this is the area: the pixels in a row are asked for", _counted(end=lambda field, jump: field**2)),
        ("the field is divided by the strides", _counted(end=lambda field, jump: field // jump)),
        ("this is the product of the strides: the kernels count, too", _counted(end=lambda field, jump: jump)),
        ("the field begins anew with each layer: add to it, with +=", _counted(put=lambda field, more: 1 + more)),
        ("what a layer adds takes the place of the field: add it, with +=", _counted(put=lambda field, more: more)),
        ("the field is multiplied: add what a layer reaches", _counted(lambda k, s, jump: k * jump, put=operator.mul)),
        (f"the kernels are multiplied: {_FURTHER}", lambda layers: math.prod(k for k, _ in layers)),
        (f"the kernels are summed: {_FURTHER}, times the distance", lambda layers: sum(k for k, _ in layers)),
        (_TIMES, _counted(end=lambda field, jump: field * jump)),
        (_TIMES, lambda layers: math.prod(s for _, s in layers) * (1 + sum(k - 1 for k, _ in layers))),
        (_TIMES, lambda layers: math.prod(s for _, s in layers) * sum(k - 1 for k, _ in layers) + 1),
    ]
)

for _direction, _less in ((1, 0), (1, 1), (-1, 0), (-1, 1)):

    @FIELD_MISTAKES("field * stride + kernel is too long: (field - 1) * stride + kernel, from output to input")
    def field_by_whole_strides(layers, direction=_direction, less=_less):
        field = 1
        for kernel, stride in layers[::direction]:
            field = field * stride + kernel - less
        return field


@FIELD_MISTAKES(_TIMES)
def field_times_strides(layers):
    field = 1
    for kernel, stride in layers:
        field = (field + kernel - 1) * stride
    return field


_FIELD_PROBES = [
    ([(3, 1), (5, 1)],),
    ([(3, 2), (5, 3), (3, 1)],),
    ([(7, 2), (1, 2), (4, 2), (3, 1), (5, 3), (3, 1)],),
]


# 04.4


def _attending(
    scores=lambda q, k: q @ k.mT,
    scale=lambda q: q.shape[-1] ** -0.5,
    weigh=lambda scores: scores.softmax(-1),
    average=torch.matmul,
):
    """Attention with some of its stages made otherwise."""
    return lambda q, k, v: average(weigh(scores(q, k) * scale(q)), v)


def _cosines(q, k):
    return F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT


def _in_heads(heads):
    def attend(q, k, v):
        query, key, value = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

    return attend


def _of_all_images(q, k, v):
    together = (x.flatten(0, 1)[None] for x in (q, k, v))
    return attention(*together).view_as(q)


_KEYS = "a query's weights over all keys must sum to 1, which is softmax over the last axis, dim=-1"
_SCALE = "the scores are divided by √C, with C the length of a query, q.shape[-1]"
_CHANNELWISE = "channels are compared with channels: compare tokens"
_ONE = "the weights of a query must sum to 1"
_WEIGHINGS = [
    (f"softmax over the queries: {_KEYS}", but(weigh=lambda s: s.softmax(1))),
    (f"softmax over the batch, which F.softmax without dim takes, too: {_KEYS}", but(weigh=lambda s: s.softmax(0))),
    (f"softmax over all N² scores: {_KEYS}", but(weigh=lambda s: s.flatten(1).softmax(1).view_as(s))),
    (f"the softmax is missing: {_ONE}", but(weigh=lambda s: s)),
    (f"a sigmoid weighs each key by itself: {_ONE}", but(weigh=torch.sigmoid)),
    (f"the scale is missing: {_SCALE}", but(scale=lambda q: 1.0)),
    (f"divided by C, by √C twice or without the root: {_SCALE}", but(scale=lambda q: 1 / q.shape[-1])),
    (f"multiplied by √C: {_SCALE}", but(scale=lambda q: q.shape[-1] ** 0.5)),
    (f"divided by √N, the number of tokens: {_SCALE}", but(scale=lambda q: q.shape[1] ** -0.5)),
    (f"divided by √B, the number of images: {_SCALE}", but(scale=lambda q: q.shape[0] ** -0.5)),
    ("reshape tears the keys apart: k.transpose(1, 2)", but(scores=lambda q, k: q @ k.reshape(k.mT.shape))),
]
# of scores and weights, in the block as well
_WEIGHT_MISTAKES = [
    *((message, _attending(**stages)) for message, stages in _WEIGHINGS),
    *(
        (f"divided by √{length}, whatever C is: {_SCALE}", _attending(scale=lambda q, n=length: n**-0.5))
        for length in (512, 64)
    ),
    (f"multiplied by C: {_SCALE}", _attending(scale=lambda q: q.shape[-1])),
    (f"divided by √(C / 8), as for one of 8 heads: {_SCALE}", _attending(scale=lambda q: (q.shape[-1] / 8) ** -0.5)),
    (f"divided by N, the number of tokens: {_SCALE}", _attending(scale=lambda q: 1 / q.shape[1])),
    (f"divided by 2 · √C: {_SCALE}", _attending(scale=lambda q: q.shape[-1] ** -0.5 / 2)),
    (f"divided by the fourth root of C: {_SCALE}", _attending(scale=lambda q: q.shape[-1] ** -0.25)),
    (f"softmax over all scores of the batch: {_KEYS}", _attending(weigh=lambda s: s.exp() / s.exp().sum())),
    (f"divided by the number of keys, without softmax: {_ONE}", _attending(weigh=lambda s: s / s.shape[-1])),
    (f"exp without the division by its sum: {_ONE}", _attending(weigh=torch.exp)),
    ("the scores are divided by their sum: take exp of them first", _attending(weigh=lambda s: s / s.sum(-1, True))),
    ("log_softmax gives the logarithms of the weights: take softmax", _attending(weigh=lambda s: s.log_softmax(-1))),
    (f"ReLU stands where exp belongs: {_ONE}", _attending(weigh=lambda s: s.relu() / s.relu().sum(-1, True))),
    ("softmin prefers the smallest score: take softmax", _attending(weigh=lambda s: (-s).softmax(-1))),
    ("only the largest score counts (arg max)", _attending(weigh=lambda s: (s == s.amax(-1, True)).to(s))),
    (f"ReLU stands where softmax belongs: {_ONE}", _attending(weigh=torch.relu)),
    (f"tanh stands where softmax belongs: {_ONE}", _attending(weigh=torch.tanh)),
    ("the weights are transposed: row i belongs to query i", _attending(weigh=lambda s: s.softmax(-1).mT)),
    (
        "the scale comes after the softmax: divide the scores",
        _attending(scale=lambda q: 1.0, average=lambda w, v: w @ v * v.shape[-1] ** -0.5),
    ),
    *(
        ("these are cosines: the products of queries and keys are not normalised", _attending(_cosines, scale))
        for scale in (lambda q: 1.0, lambda q: q.shape[-1] ** -0.5)
    ),
    ("these are distances: the scores are products", _attending(lambda q, k: -torch.cdist(q, k))),
    *((f"{heads} heads: there is one, as wide as a query is long", _in_heads(heads)) for heads in (2, 4, 8)),
    ("a token sees only those before it (a causal mask)", partial(F.scaled_dot_product_attention, is_causal=True)),
    ("the scores of all images are summed", _attending(lambda q, k: torch.einsum("bic,ajc->ij", q, k))),
    ("tokens of different images are compared: dimension 0 is the batch", _of_all_images),
    (_CHANNELWISE, lambda q, k, v: attention(q.mT, k.mT, v.mT).mT),
    (_CHANNELWISE, lambda q, k, v: v @ (q.mT @ k * q.shape[-1] ** -0.5).softmax(-1)),
    (_CHANNELWISE, lambda q, k, v: v @ (q.mT @ k * q.shape[-1] ** -0.5).softmax(-1).mT),
    ("every key has the same weight: compare it with the query", lambda q, k, v: v.mean(1, keepdim=True).expand_as(v)),
]
_ALONE = "here nothing is added, the block will do that"
_UNFIT = "two factors do not fit: the scores are q @ k.transpose(1, 2), the result is weights @ v, in this order"
_PRODUCT = "q * k compares a query with the key at the same place only: q @ k.transpose(1, 2) takes each with every key"
_TURNED = "exchange the last two axes of k only, q @ k.transpose(1, 2)"
ATTENTION_MISTAKES = Mistakes(
    [
        *_WEIGHT_MISTAKES,
        ("queries and keys are exchanged: q @ k.transpose(1, 2)", lambda q, k, v: attention(k, q, v)),
        ("the keys are averaged: the weights are for the values", lambda q, k, v: attention(q, k, k)),
        ("the queries are averaged: the weights are for the values", lambda q, k, v: attention(q, k, q)),
        ("keys and values are exchanged: queries are compared with keys", lambda q, k, v: attention(q, v, k)),
        ("queries are compared with queries: compare them with keys", lambda q, k, v: attention(q, q, v)),
        ("keys are compared with keys: compare them with queries", lambda q, k, v: attention(k, k, v)),
        ("the queries are averaged away: each has a result of its own", lambda q, k, v: attention(q, k, v).mean(1)),
        ("the result is transposed: (B, N, C) is asked for", lambda q, k, v: attention(q, k, v).mT),
        ("these are the weights: average the values with them, weights @ v", _attending(average=lambda w, v: w)),
        ("these are the scores: softmax and weights @ v follow", _attending(weigh=lambda s: s, average=lambda w, v: w)),
        ("the values come back as they are: average them over the keys, weights @ v", lambda q, k, v: v),
        (f"the values are added: {_ALONE}", lambda q, k, v: v + attention(q, k, v)),
        (f"the queries are added: {_ALONE}", lambda q, k, v: q + attention(q, k, v)),
        ("only the first image is used: the batch has more", lambda q, k, v: attention(q[:1], k[:1], v[:1])),
        ("only the first image is used: the batch has more", lambda q, k, v: attention(q[:1], k[:1], v[:1])[0]),
        (_PRODUCT, lambda q, k, v: torch.softmax(q * k / q.shape[-1] ** 0.5, dim=-1) * v),
        (_PRODUCT, lambda q, k, v: torch.softmax(q * k, dim=-1) * v),
        (_PRODUCT, lambda q, k, v: torch.softmax((q * k).sum(-1, True), dim=1) * v),
        (_PRODUCT, lambda q, k, v: torch.softmax((q * k).sum(-1, True) / q.shape[-1] ** 0.5, dim=1) * v),
        # by their exceptions
        (f"k.T turns the batch around, too: {_TURNED}", lambda q, k, v: q @ k.T),
        (f"transpose(0, 1) exchanges the batch and the tokens: {_TURNED}", lambda q, k, v: q @ k.transpose(0, 1)),
        (_UNFIT, lambda q, k, v: q @ k),
        (_UNFIT, lambda q, k, v: q.mT @ k @ v),
        (_UNFIT, _attending(average=lambda w, v: v @ w)),
        (_UNFIT, _attending(average=lambda w, v: w @ v.mT)),
        (_UNFIT, _attending(average=lambda w, v: w * v)),
        ("the sum has lost a dimension: sum(-1, keepdim=True)", _attending(weigh=lambda s: s.exp() / s.exp().sum(-1))),
    ]
)

# 04.5


def _block(
    norm=lambda s, x: s.group_norm(x),
    tokens=lambda x: x.flatten(2).mT,
    attend=attention,
    out=lambda s, g: s.to_out[0](g),
    image=lambda g, x: g.mT.reshape(x.shape),
    end=lambda s, x, g: x + g,
):
    """The right layers, with some stages of forward made otherwise."""

    class Mistaken(AttentionBlock):
        def forward(self, x):
            t = tokens(norm(self, x))
            g = out(self, attend(self.to_q(t), self.to_k(t), self.to_v(t)))
            return end(self, x, image(g, x))

    return Mistaken


def _made(norm=None, linear=None, out=None):
    """Some layers made in another way: by functions of channels and groups, of in and out, and of channels."""

    class Mistaken(AttentionBlock):
        def __init__(self, channels, groups):
            super().__init__(channels, groups)
            if norm:
                self.group_norm = norm(channels, groups)
            if linear:
                self.to_q, self.to_k, self.to_v = (linear(channels, channels) for _ in range(3))
            if out:
                self.to_out = out(channels)

    return Mistaken


def _to_out(s, image):
    return s.to_out[0](image.flatten(2).mT).mT.reshape(image.shape)


_convolution, _unbiased = partial(nn.Conv2d, kernel_size=1), partial(nn.Linear, bias=False)
_CUT = "flatten(2), then transpose(1, 2), since a pixel's channels lie far apart in memory"
_FIRST = "normalise before to_q, to_k, to_v"
_THREE = "to_q, to_k and to_v are three, each with its own weights"
_AFTER = "apply it to the attention's result alone, then add the input"
_LINEAR = "1×1 convolutions, as in CompVis' code: diffusers' names come with Linear layers, with weights (C, C)"
_STAGES = [
    ("group_norm is not used: normalise before to_q, to_k and to_v", but(norm=lambda s, x: x)),
    ("an activation after the norm: there is none in this block", but(norm=lambda s, x: F.silu(s.group_norm(x)))),
    (f"the map is cut into tokens by a reshape alone: {_CUT}", but(tokens=lambda x: x.reshape(len(x), -1, x.shape[1]))),
    ("a reshape alone makes a map of the tokens: transpose(1, 2) first", but(image=lambda g, x: g.reshape(x.shape))),
    ("to_out is not used: it comes after the attention", but(out=lambda s, g: g)),
    ("the input is not added to the result", but(end=lambda s, x, g: g)),
    ("the normalised input is added: add the input itself", but(end=lambda s, x, g: s.group_norm(x) + g)),
    ("the sum is divided by √2: it is taken as it is", but(end=lambda s, x, g: (x + g) / 2**0.5)),
    ("to_q and to_k are exchanged", but(attend=lambda q, k, v: attention(k, q, v))),
    ("to_k and to_v are exchanged", but(attend=lambda q, k, v: attention(q, v, k))),
    *((message, but(attend=_attending(**stages))) for message, stages in _WEIGHINGS),
]
BLOCK_MISTAKES = Mistakes(
    [
        # by their layers
        (_LINEAR, _made(linear=_convolution)),
        (_LINEAR, _made(linear=_convolution, out=lambda c: nn.ModuleList([_convolution(c, c)]))),
        ("to_out is a Linear itself: put it into an nn.ModuleList, for its key", _made(out=lambda c: nn.Linear(c, c))),
        ("this is batch norm: take nn.GroupNorm(groups, channels, …)", _made(lambda c, g: nn.BatchNorm2d(c))),
        ("group_norm lacks weight and bias: affine=True", _made(lambda c, g: nn.GroupNorm(g, c, affine=False))),
        ("groups is taken for the channels in a group", _made(lambda c, g: nn.GroupNorm(c // g, c))),
        ("to_q, to_k and to_v have no bias: each has one", _made(linear=_unbiased)),
        ("no layer has a bias: each has one", _made(linear=_unbiased, out=lambda c: nn.ModuleList([_unbiased(c, c)]))),
        # by their results
        *((message, _block(**stages)) for message, stages in _STAGES),
        *((message, _block(attend=attend)) for message, attend in _WEIGHT_MISTAKES[len(_WEIGHINGS) :]),
        (f"the norm comes after the sum: {_FIRST}", _block(lambda s, x: x, end=lambda s, x, g: s.group_norm(x + g))),
        (f"the norm follows the attention: {_FIRST}", _block(lambda s, x: x, end=lambda s, x, g: x + s.group_norm(g))),
        (
            "every token is normalised by itself: group_norm takes the map (B, C, H, W), before it is cut",
            _block(
                norm=lambda s, x: (
                    s.group_norm(x.flatten(2).mT.flatten(0, 1)).unflatten(0, (len(x), -1)).mT.reshape(x.shape)
                )
            ),
        ),
        *(
            ("height and width are exchanged between cutting the map into tokens and putting it together", code)
            for code in (
                _block(tokens=lambda x: x.mT.flatten(2).mT),
                _block(image=lambda g, x: g.mT.reshape(x.mT.shape).mT),
            )
        ),
        (
            "a pixel sees its own row only: cut the whole map into H·W tokens",
            _block(
                tokens=lambda x: x.movedim(1, -1),
                attend=F.scaled_dot_product_attention,
                image=lambda g, x: g.movedim(-1, 1),
            ),
        ),
        (
            "the tokens are (H·W, B, C), which compares images: the batch comes first",
            _block(tokens=lambda x: x.flatten(2).permute(2, 0, 1), image=lambda g, x: g.permute(1, 2, 0).view(x.shape)),
        ),
        (
            "the result is still cut into tokens: make a map of it again",
            _block(image=lambda g, x: g, end=lambda s, x, g: x.flatten(2).mT + g),
        ),
        *(
            (f"something is added before to_out: {_AFTER}", _block(out=lambda s, g: g, end=end))
            for end in (
                lambda s, x, g: _to_out(s, x + g),
                lambda s, x, g: _to_out(s, s.group_norm(x) + g),
                lambda s, x, g: x + _to_out(s, x + g),
                lambda s, x, g: x + _to_out(s, s.group_norm(x) + g),
            )
        ),
        ("group_norm is used twice", _block(lambda s, x: s.group_norm(s.group_norm(x)))),
        ("to_out is used twice", _block(out=lambda s, g: s.to_out[0](s.to_out[0](g)))),
        ("the normalised input is added, too", _block(end=lambda s, x, g: x + s.group_norm(x) + g)),
        ("an activation after to_out: there is none", _block(out=lambda s, g: F.silu(s.to_out[0](g)))),
        ("the sum is divided by 2: it is taken as it is", _block(end=lambda s, x, g: (x + g) / 2)),
        ("the input is added twice", _block(end=lambda s, x, g: 2 * x + g)),
        ("the result is subtracted: it is added", _block(end=lambda s, x, g: x - g)),
        ("the result multiplies the input: it is added", _block(end=lambda s, x, g: x * g)),
        ("an activation at the end: nothing comes after the sum", _block(end=lambda s, x, g: F.silu(x + g))),
        ("to_q makes the keys, too: they are made by to_k", _block(attend=lambda q, k, v: attention(q, q, v))),
        ("to_k makes the values, too: they are made by to_v", _block(attend=lambda q, k, v: attention(q, k, k))),
        ("to_q makes the values, too: they are made by to_v", _block(attend=lambda q, k, v: attention(q, k, q))),
        ("to_k makes the queries, too: they are made by to_q", _block(attend=lambda q, k, v: attention(k, k, v))),
        (f"one layer makes queries, keys and values: {_THREE}", _block(attend=lambda q, k, v: attention(q, q, q))),
        (f"one layer makes queries, keys and values: {_THREE}", _block(attend=lambda q, k, v: attention(k, k, k))),
        (f"one layer makes queries, keys and values: {_THREE}", _block(attend=lambda q, k, v: attention(v, v, v))),
        # by their exceptions
        ("to_out is a list, which is no function: self.to_out[0](…)", _block(out=lambda s, g: s.to_out(g))),
        (
            "nn.ModuleList takes a list: put brackets round nn.Linear",
            _made(out=lambda c: nn.ModuleList(nn.Linear(c, c))),  # type: ignore[arg-type]
        ),
        ("nn.GroupNorm(groups, channels, eps=1e-6): groups stands first", _made(lambda c, g: nn.GroupNorm(c, g))),
        ("nn.GroupNorm(groups, channels, eps=1e-6): groups stands first", _made(lambda c, g: nn.GroupNorm(c, c // 4))),
        ("this is layer norm: take nn.GroupNorm(groups, channels, …)", _made(lambda c, g: nn.LayerNorm(c))),
        ("32 groups are fixed: use the argument", _made(lambda c, g: nn.GroupNorm(32, c))),
        (
            "group_norm takes the tokens' pixels for channels: normalise the map, then cut it",
            _block(norm=lambda s, x: s.group_norm(x.flatten(2).mT), tokens=lambda x: x),
        ),
        (f"the tokens are (B, C, H·W): {_CUT}", _block(tokens=lambda x: x.flatten(2))),
        (
            "the map is taken for a square: reshape to the shape of x",
            _block(image=lambda g, x: g.mT.reshape(*x.shape[:2], *[int(g.shape[1] ** 0.5)] * 2)),
        ),
        ("the tokens are added to the map: make a map of them first", _block(image=lambda g, x: g)),
    ]
)


_NORMALISED = "only some of queries, keys and values are normalised: one norm serves all three"
_USED = "only some of to_q, to_k and to_v are used: each makes its own"
for _message, _raw, _unused in (
    *((_NORMALISED, raw, "") for raw in ("q", "k", "v", "qk", "qv", "kv")),
    *((_USED, "", unused) for unused in ("q", "k", "v", "qk", "qkv")),
):

    @BLOCK_MISTAKES(_message)
    class SomeOfThree(AttentionBlock):
        def forward(self, x, raw=_raw, unused=_unused):
            def made(name):
                tokens = (x if name in raw else self.group_norm(x)).flatten(2).mT
                return tokens if name in unused else getattr(self, f"to_{name}")(tokens)

            gathered = attention(made("q"), made("k"), made("v"))
            return x + self.to_out[0](gathered).mT.reshape(x.shape)


@BLOCK_MISTAKES("one Linear has all four names: to_q, to_k, to_v and to_out[0] have weights of their own")
class OneLinear(AttentionBlock):
    def __init__(self, channels, groups):
        super().__init__(channels, groups)
        self.to_q = self.to_k = self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([self.to_q])


_MAPS = ((2, 4, 6, 8), (3, 2, 7, 5), (1, 1, 4, 9))  # even, odd, and mixed
_CONVOLUTIONS = [probe((b, c, h, w), (c, c, 3, 3), (c,)) for b, c, h, w in _MAPS]
_TOKENS = [probe(*[shape] * 3) for shape in ((3, 7, 16), (2, 4, 8), (1, 5, 3))]
EXERCISES = (
    Exercise(
        id="04.1",
        title="Half the size",
        notebook=NOTEBOOK,
        minutes=5,
        difficulty=1,
        reference=downsample,
        in_package=(Downsample2D,),
        hints=(
            "Two steps: put zeros where the last windows need them, then convolve in steps of two.",
            "F.pad counts from the last axis: (left, right, top, bottom). Which two of the four are 1?",
            "F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, stride=2)",
        ),
        judge=judge_function(
            downsample,
            _CONVOLUTIONS,
            [*DOWNSAMPLE_MISTAKES, *several_at_once(_down, _HALVINGS, most=4)],
            inputs=("x", "weight", "bias"),
            gradients=("x", "weight", "bias"),
        ),
        mistakes=DOWNSAMPLE_MISTAKES,
    ),
    Exercise(
        id="04.2",
        title="Twice the size",
        notebook=NOTEBOOK,
        minutes=5,
        difficulty=1,
        reference=upsample,
        in_package=(Upsample2D,),
        hints=(
            "On paper, in a row: [1, 2] becomes [1, 1, 2, 2], not [1, 2, 1, 2]. Then comes the convolution.",
            "repeat_interleave(2, dim=…) repeats along one axis. Which padding keeps the size?",
            "F.conv2d(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), weight, bias, padding=1)",
        ),
        judge=judge_function(
            upsample,
            _CONVOLUTIONS,
            [*UPSAMPLE_MISTAKES, *several_at_once(_up, _DOUBLINGS, most=3)],
            inputs=("x", "weight", "bias"),
            gradients=("x", "weight", "bias"),
        ),
        mistakes=UPSAMPLE_MISTAKES,
    ),
    Exercise(
        id="04.3",
        title="The receptive field",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=receptive_field,
        in_package=(Encoder,),  # whose field it computes
        hints=(
            "Keep two numbers on the way: how far the field reaches, and how far apart two neighbouring pixels are.",
            "A kernel of k adds k - 1 pixels, each as far apart as the layers before have made them.",
            "Begin with field, jump = 1, 1. For each layer: field += (kernel - 1) * jump, then jump *= stride.",
        ),
        judge=judge_numbers(
            receptive_field,
            _FIELD_PROBES,
            [*FIELD_MISTAKES, *several_at_once(_counted, _COUNTS)],
            given=lambda probe: f"the layers {probe[0]}",
        ),
        mistakes=FIELD_MISTAKES,
    ),
    Exercise(
        id="04.4",
        title="Attention",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=attention,
        in_package=(eager_attention,),
        hints=(
            "Every query against every key: which product of (B, N, C) and (B, C, N) gives (B, N, N)?",
            "Divide the scores by √C, with C = q.shape[-1]. The weights of one query, a row, must sum to 1.",
            "torch.softmax(q @ k.transpose(1, 2) / C**0.5, dim=-1) @ v",
        ),
        judge=judge_function(
            attention,
            _TOKENS,
            [*ATTENTION_MISTAKES, *several_at_once(_attending, _WEIGHINGS, most=3)],
            inputs=("q", "k", "v"),
            gradients=("q", "k", "v"),
        ),
        mistakes=ATTENTION_MISTAKES,
    ),
    Exercise(
        id="04.5",
        title="The attention block",
        notebook=NOTEBOOK,
        minutes=20,
        difficulty=3,
        reference=AttentionBlock,
        in_package=(Attention,),
        hints=(
            "The order: normalise, cut the map into H·W tokens, attend, to_out, put the map together, add the input.",
            "(B, C, H, W) becomes (B, H·W, C) by flatten(2).transpose(1, 2), and returns by transpose(1, 2).reshape.",
            "GroupNorm(groups, channels, eps=1e-6); four nn.Linear(channels, channels), the last one in a list, "
            "nn.ModuleList([…]), and used as self.to_out[0](…).",
        ),
        judge=judge_module(
            AttentionBlock,
            builds=[(24, 2), (16, 4)],
            inputs=[probe((2, 24, 3, 5)), probe((1, 16, 4, 3))],
            mistakes=[*BLOCK_MISTAKES, *several_at_once(_block, _STAGES)],
            parts=("group_norm", "to_q", "to_k", "to_v", "to_out"),
        ),
        mistakes=BLOCK_MISTAKES,
    ),
)
