"""The exercises of notebook 04, resampling and attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from klvae_edu.blocks import Attention, Downsample2D, Upsample2D, eager_attention
from klvae_edu.exercises.exercise import Exercise, Mistakes
from klvae_edu.exercises.judges.functions import judge_function, probe
from klvae_edu.exercises.judges.modules import judge_module
from klvae_edu.exercises.judges.numbers import judge_numbers
from klvae_edu.network import Encoder

NOTEBOOK = "04_resampling_and_attention"

Layers = Sequence[tuple[int, int]]


# The finished versions, in the form in which the exercises ask for them. The tests hold them to the package's blocks.
# Annotated with torch.Tensor, which a notebook knows, because `solution` shows them and readers paste them.


def downsample(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, C, H // 2, W // 2) by a 3×3 convolution: weight (C, C, 3, 3), bias (C,)."""
    left, right, top, bottom = 0, 1, 0, 1
    padded = F.pad(x, (left, right, top, bottom))
    return F.conv2d(padded, weight, bias, stride=2)


def upsample(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W): nearest neighbour, then a 3×3 convolution: weight (C, C, 3, 3), bias (C,)."""
    doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return F.conv2d(doubled, weight, bias, padding=1)


def receptive_field(layers: list[tuple[int, int]]) -> int:
    """Count the input pixels in a row that one output pixel sees, for (kernel, stride) pairs from input to output."""
    field, jump = 1, 1
    for kernel, stride in layers:
        field += (kernel - 1) * jump
        jump *= stride
    return field


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """q, k, v (B, N, C) -> (B, N, C): for each query the average of the values, weighted over the keys."""
    scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    weights = torch.softmax(scores, dim=-1)
    return weights @ v


class AttentionBlock(nn.Module):
    """(B, C, H, W) -> the same shape: to every pixel is added what it gathers from all pixels."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        out = attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        out = self.to_out[0](out)
        return x + out.transpose(1, 2).reshape(x.shape)


# 04.1

_Layer = Callable[[Tensor, Tensor, Tensor], Tensor]


def _padded(*sides: int, mode: str = "constant", stride: int = 2, padding: int = 0) -> _Layer:
    return lambda x, w, b: F.conv2d(F.pad(x, sides, mode), w, b, stride=stride, padding=padding)


_CONSTANT = "the padding is zeros, on the right and at the bottom"
_ONE_EACH = "pad one column on the right and one row at the bottom; F.pad counts (left, right, top, bottom)"
DOWNSAMPLE_MISTAKES = Mistakes(
    [
        (
            "padded on all four sides (padding=1), which sees other pixels: zeros go on the right and at the bottom",
            _padded(1, 1, 1, 1),
        ),
        (f"padded on the left and at the top: {_ONE_EACH}", _padded(1, 0, 1, 0)),
        (f"padded on the right and at the top: {_ONE_EACH}", _padded(0, 1, 1, 0)),
        (f"padded on the left and at the bottom: {_ONE_EACH}", _padded(1, 0, 0, 1)),
        (f"padded on the right only: {_ONE_EACH}", _padded(0, 1, 0, 0)),
        (f"padded at the bottom only: {_ONE_EACH}", _padded(0, 0, 0, 1)),
        (f"padded on the left and on the right only: {_ONE_EACH}", _padded(1, 1, 0, 0)),
        (f"padded at the top and at the bottom only: {_ONE_EACH}", _padded(0, 0, 1, 1)),
        ("no padding: the last row and column have no window, and the map comes out too small", _padded(0, 0, 0, 0)),
        ("two columns and rows of zeros are padded: one of each is enough", _padded(0, 2, 0, 2)),
        ("padded twice: after F.pad the convolution takes padding=0", _padded(0, 1, 0, 1, padding=1)),
        ("the stride is missing: the map keeps its size", _padded(0, 1, 0, 1, stride=1)),
        ("the stride is missing: the map keeps its size", _padded(1, 1, 1, 1, stride=1)),
        (f"padded by reflection: {_CONSTANT}", _padded(0, 1, 0, 1, mode="reflect")),
        (f"padded by repeating the border: {_CONSTANT}", _padded(0, 1, 0, 1, mode="replicate")),
        (f"padded from the opposite side (circular): {_CONSTANT}", _padded(0, 1, 0, 1, mode="circular")),
        (
            "every other pixel is dropped before the convolution: let the convolution take the steps, stride=2",
            lambda x, w, b: F.conv2d(x[..., ::2, ::2], w, b, padding=1),
        ),
        (
            "the map is pooled before the convolution: there is no pooling, the convolution takes steps of two",
            lambda x, w, b: F.conv2d(F.avg_pool2d(x, 2), w, b, padding=1),
        ),
        (
            "the map is pooled after the convolution: there is no pooling, the convolution takes steps of two",
            lambda x, w, b: F.avg_pool2d(F.conv2d(x, w, b, padding=1), 2),
        ),
        (
            "the largest of four is taken after the convolution: there is no pooling, it takes steps of two",
            lambda x, w, b: F.max_pool2d(F.conv2d(x, w, b, padding=1), 2),
        ),
        (
            "this is average pooling: weight and bias are not used",
            lambda x, w, b: F.avg_pool2d(x, 2),
        ),
        ("the bias is missing", lambda x, w, b: downsample(x, w, 0 * b)),
        (
            "the weight is transposed: it is (out, in, 3, 3), as F.conv2d takes it",
            lambda x, w, b: downsample(x, w.transpose(0, 1), b),
        ),
        (
            "the kernel is turned by 180°: F.conv2d takes the weight as it is",
            lambda x, w, b: downsample(x, w.flip(2, 3), b),
        ),
    ]
)


@DOWNSAMPLE_MISTAKES(f"padded with ones: {_CONSTANT}")
def downsample_with_ones(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (0, 1, 0, 1), value=1.0), weight, bias, stride=2)


@DOWNSAMPLE_MISTAKES("the map is interpolated before the convolution: let the convolution take the steps, stride=2")
def downsample_after_interpolation(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=0.5), weight, bias, padding=1)


@DOWNSAMPLE_MISTAKES("this is max pooling: weight and bias are not used")
def downsample_by_max_pooling(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.max_pool2d(x, 2)


@DOWNSAMPLE_MISTAKES("the largest of four is taken before the convolution: there is no pooling, it takes steps of two")
def downsample_after_max_pooling(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(F.max_pool2d(x, 2), weight, bias, padding=1)


# 04.2


def _doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def _spread(x: Tensor) -> Tensor:
    """Zeros between the pixels: (B, C, H, W) -> (B, C, 2H, 2W)."""
    spread = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    spread[..., ::2, ::2] = x
    return spread


def _convolved(resize: Callable[[Tensor], Tensor], *sides: int, mode: str = "constant", stride: int = 1) -> _Layer:
    """The convolution of a map that was resized in this way, padded by one on all sides unless `sides` says more."""
    return lambda x, w, b: F.conv2d(F.pad(resize(x), sides or (1, 1, 1, 1), mode), w, b, stride=stride)


def _smooth(mode: str, align_corners: bool) -> _Layer:
    return _convolved(lambda x: F.interpolate(x, scale_factor=2.0, mode=mode, align_corners=align_corners))


def _transposed(padding: int, output_padding: int, swap: bool) -> _Layer:
    return lambda x, w, b: F.conv_transpose2d(
        x, w.transpose(0, 1) if swap else w, b, stride=2, padding=padding, output_padding=output_padding
    )


_REPEAT = "nearest neighbour repeats each pixel, with no values in between"
_BESIDE = "each pixel is to be repeated beside itself, as repeat_interleave does"
_FLATTENED = "repeat_interleave without dim makes one long row of all numbers: repeat along dim=2, then along dim=3"
_PADDING = "the convolution pads one row and column of zeros on every side, padding=1"
UPSAMPLE_MISTAKES = Mistakes(
    [
        *((f"interpolated (bilinear): {_REPEAT}", _smooth("bilinear", align)) for align in (False, True)),
        *((f"interpolated (bicubic): {_REPEAT}", _smooth("bicubic", align)) for align in (False, True)),
        (f"the whole map is repeated, like a tile: {_BESIDE}", _convolved(lambda x: x.repeat(1, 1, 2, 2))),
        (
            f"the rows are repeated like a tile: {_BESIDE}",
            _convolved(lambda x: x.repeat(1, 1, 2, 1).repeat_interleave(2, dim=3)),
        ),
        (
            f"the columns are repeated like a tile: {_BESIDE}",
            _convolved(lambda x: x.repeat(1, 1, 1, 2).repeat_interleave(2, dim=2)),
        ),
        (
            "only the height is doubled: repeat along dimension 3 as well",
            _convolved(lambda x: x.repeat_interleave(2, 2)),
        ),
        (
            "only the width is doubled: repeat along dimension 2 as well",
            _convolved(lambda x: x.repeat_interleave(2, 3)),
        ),
        (
            "the convolution comes before the doubling: repeat the pixels, then convolve",
            lambda x, w, b: _doubled(F.conv2d(x, w, b, padding=1)),
        ),
        ("the pixels are not repeated: the map keeps its size", lambda x, w, b: F.conv2d(x, w, b, padding=1)),
        ("repeated four times along each axis: twice is enough", _convolved(lambda x: _doubled(_doubled(x)))),
        ("the convolution is missing: weight and bias are not used", lambda x, w, b: _doubled(x)),
        (f"the padding is missing, and the map comes out too small: {_PADDING}", _convolved(_doubled, 0, 0, 0, 0)),
        *(
            (f"padded on the right and at the bottom only, as for the downsampling: here {_PADDING}", code)
            for code in (_convolved(_doubled, 0, 1, 0, 1), _convolved(_doubled, 0, 2, 0, 2))
        ),
        (  # in a doubled map, the border's mirror image is the border
            f"padded by repeating or reflecting the border: {_PADDING}",
            _convolved(_doubled, mode="replicate"),
        ),
        (
            "the convolution has a stride of 2, which halves the map again: leave it at 1",
            _convolved(_doubled, stride=2),
        ),
        *(
            (
                "this is a transposed convolution, whose kernels overlap unevenly: repeat the pixels, then convolve",
                _transposed(padding, output_padding, swap),
            )
            for padding in (0, 1)
            for output_padding in (0, 1)
            for swap in (False, True)
        ),
        (
            "there are zeros between the pixels, as in a transposed convolution: repeat the pixels instead",
            _convolved(_spread),
        ),
        ("the bias is missing", lambda x, w, b: upsample(x, w, 0 * b)),
        (
            "the weight is transposed: it is (out, in, 3, 3), as F.conv2d takes it",
            lambda x, w, b: upsample(x, w.transpose(0, 1), b),
        ),
        (
            "the kernel is turned by 180°: F.conv2d takes the weight as it is",
            lambda x, w, b: upsample(x, w.flip(2, 3), b),
        ),
        # by their exceptions
        (_FLATTENED, _convolved(lambda x: x.repeat_interleave(2))),
        (_FLATTENED, lambda x, w, b: F.conv2d(x.repeat_interleave(2), w, b, padding=1)),
        (_FLATTENED, lambda x, w, b: F.conv2d(x.repeat_interleave(2).repeat_interleave(2), w, b, padding=1)),
        (_FLATTENED, lambda x, w, b: F.conv2d(x.repeat_interleave(4), w, b, padding=1)),
    ]
)

# 04.3

_Count = Callable[[Layers], float]


def _counted(
    term: Callable[[int, float], float] = lambda kernel, jump: (kernel - 1) * jump,
    step: Callable[[float, int], float] = lambda jump, stride: jump * stride,
    start: int = 1,
    early: bool = False,
) -> _Count:
    """The loop of the finished version with one part of it exchanged; `early`: the stride comes before the kernel."""

    def count(layers: Layers) -> float:
        field, jump = float(start), 1.0
        for kernel, stride in layers:
            before, jump = jump, step(jump, stride)
            field += term(kernel, jump if early else before)
        return field

    return count


def _by_whole_strides(layers: Layers) -> float:
    field = 1
    for kernel, stride in layers:
        field = field * stride + kernel - 1
    return field


_STRIDES = "the strides of all layers before a layer multiply to the distance between its input pixels"
FIELD_MISTAKES = Mistakes(
    [
        (
            "each layer adds its whole kernel: one of its pixels is there already, so it reaches k - 1 further",
            _counted(lambda kernel, jump: kernel * jump),
        ),
        (
            "each layer adds its whole kernel: begin with 1 pixel, and a kernel of k reaches k - 1 further",
            _counted(lambda kernel, jump: kernel * jump, start=0),
        ),
        ("the pixel itself is missing: without any layer the field is 1", _counted(start=0)),
        (
            "a layer's own stride is counted for its own kernel: it counts only for the layers after it",
            _counted(early=True),
        ),
        (
            f"each layer is multiplied by its own stride alone: {_STRIDES}",
            lambda layers: 1 + sum((kernel - 1) * stride for kernel, stride in layers),
        ),
        (
            "the distance is doubled by every layer: it grows by the layer's stride, whatever that is",
            _counted(step=lambda jump, stride: 2 * jump),
        ),
        (
            "only the first layer is counted: does the return stand inside the loop?",
            lambda layers: receptive_field(list(layers[:1])),
        ),
        (f"the strides are ignored: {_STRIDES}", _counted(lambda kernel, jump: kernel - 1)),
        (f"the strides are added: {_STRIDES}", _counted(step=lambda jump, stride: jump + stride)),
        (f"the strides are added: {_STRIDES}", _counted(step=lambda jump, stride: jump + stride - 1)),
        (f"only the last stride counts: {_STRIDES}", _counted(step=lambda jump, stride: stride)),
        (f"the strides divide: {_STRIDES}", _counted(step=lambda jump, stride: jump / stride)),
        (
            "the layers are walked in the wrong direction: with a jump that grows, begin at the input; with "
            "field = (field - 1) * stride + kernel, begin at the output",
            lambda layers: receptive_field(list(layers[::-1])),
        ),
        (
            "the kernels reach one pixel less: a kernel of k reaches k - 1 further",
            _counted(lambda kernel, jump: (kernel - 2) * jump),
        ),
        (
            "one side only: a kernel of k reaches (k - 1) / 2 further to either side",
            _counted(lambda kernel, jump: kernel // 2 * jump),
        ),
        (
            "one side only: the field is asked for, from its first to its last pixel",
            lambda layers: (receptive_field(list(layers)) - 1) // 2,
        ),
        ("this is the area: the pixels in a row are asked for", lambda layers: receptive_field(list(layers)) ** 2),
        ("this is the product of the strides: the kernels count, too", lambda layers: math.prod(s for _, s in layers)),
        ("the kernels are multiplied: each layer adds (k - 1) steps", lambda layers: math.prod(k for k, _ in layers)),
        (
            "the kernels are summed: each adds only k - 1, in steps as large as its map's",
            lambda layers: sum(k for k, _ in layers),
        ),
        (
            "what a layer adds takes the place of the field: add it to the field, with +=",
            lambda layers: receptive_field(list(layers)) - receptive_field(list(layers[:-1])),
        ),
        *(
            (
                "field * stride + kernel - 1 is too long: n pixels are n - 1 strides apart, so that it is "
                "(field - 1) * stride + kernel, from output to input",
                code,
            )
            for code in (_by_whole_strides, lambda layers: _by_whole_strides(layers[::-1]))
        ),
        ("the last layer is left out", lambda layers: receptive_field(list(layers[:-1]))),
        ("the first layer is left out", lambda layers: receptive_field(list(layers[1:]))),
    ]
)


@FIELD_MISTAKES("kernel and stride are exchanged: each layer is a pair (kernel, stride)")
def field_of_exchanged_pairs(layers: Layers) -> int:
    field, jump = 1, 1
    for stride, kernel in layers:
        field += (kernel - 1) * jump
        jump *= stride
    return field


@FIELD_MISTAKES("the field begins anew with each layer: add what a layer reaches to the field, with +=")
def field_of_the_last_layer(layers: Layers) -> int:
    field, jump = 1, 1
    for kernel, stride in layers:
        field = 1 + (kernel - 1) * jump
        jump *= stride
    return field


@FIELD_MISTAKES("the jump begins at 0, which leaves nothing of any layer: pixels of the input are 1 apart")
def field_with_a_jump_of_zero(layers: Layers) -> int:
    return 1


@FIELD_MISTAKES("the field is multiplied by the strides: a stride counts for the kernels after it only")
def field_times_strides(layers: Layers) -> int:
    field = 1
    for kernel, stride in layers:
        field = (field + kernel - 1) * stride
    return field


@FIELD_MISTAKES("the field is multiplied by the strides: a stride counts for the kernels after it only")
def field_times_strides_at_the_end(layers: Layers) -> int:
    return math.prod(stride for _, stride in layers) * (1 + sum(kernel - 1 for kernel, _ in layers))


_FIELD_PROBES: tuple[Layers, ...] = (
    [(3, 1), (5, 1)],
    [(3, 2), (5, 3), (3, 1)],
    [(7, 2), (1, 1), (4, 2), (3, 1), (5, 3), (3, 1)],
)


# 04.4

_Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def _root(channels: int) -> float:
    return channels**-0.5


def _one(channels: int) -> float:
    return 1.0


def _attending(
    weigh: Callable[[Tensor], Tensor] = lambda scores: scores.softmax(-1), scale: Callable[[int], float] = _root
) -> _Attend:
    """The finished version with another way from scores to weights, or another scale."""
    return lambda q, k, v: weigh(q @ k.mT * scale(q.shape[-1])) @ v


def _over(dim: int) -> Callable[[Tensor], Tensor]:
    return lambda scores: scores.softmax(dim)


def _in_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    query, key, value = (x.view(*x.shape[:2], 8, -1).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _of_all_images(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    together = (x.flatten(0, 1)[None] for x in (q, k, v))
    return attention(*together).view_as(q)


def _attention_weights(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)


_KEYS = "a query's weights over all keys must sum to 1, which is softmax over the last axis, dim=-1"
_SCALE = "the scores are divided by √C, with C the length of a query"
_ALONE = "here nothing is added, the block will do that"
_UNFIT = "two factors do not fit: the scores are q @ k.transpose(1, 2), the result is weights @ v, in this order"
_QUERIES = f"softmax over the queries: {_KEYS}"
_BATCH = f"softmax over the batch, which F.softmax without dim takes, too: {_KEYS}"
# of scores and weights, in the block as well
_WEIGHT_MISTAKES: tuple[tuple[str, _Attend], ...] = (
    *((_QUERIES, _attending(_over(1), scale)) for scale in (_root, _one)),
    *((_BATCH, _attending(_over(0), scale)) for scale in (_root, _one)),
    (f"softmax over all N² scores: {_KEYS}", _attending(lambda s: s.flatten(1).softmax(1).view_as(s))),
    (f"the scale is missing: {_SCALE}", _attending(scale=_one)),
    (f"divided by C, without the root: {_SCALE}", _attending(scale=lambda channels: 1 / channels)),
    (f"multiplied by √C: {_SCALE}", _attending(scale=lambda channels: channels**0.5)),
    (f"multiplied by C: {_SCALE}", _attending(scale=lambda channels: channels)),
    (
        f"divided by √N, the number of tokens: {_SCALE}",
        lambda q, k, v: (q @ k.mT * q.shape[1] ** -0.5).softmax(-1) @ v,
    ),
    (
        f"divided by √(C / 8), as for one of 8 heads: there is one head, and {_SCALE}",
        _attending(scale=lambda channels: (channels / 8) ** -0.5),
    ),
    (
        f"divided by √512, whatever the length of a query: {_SCALE}, q.shape[-1]",
        _attending(scale=lambda channels: 512**-0.5),
    ),
    (
        "the scale comes after the softmax: divide the scores, before the exponential",
        lambda q, k, v: _attending(scale=_one)(q, k, v) * q.shape[-1] ** -0.5,
    ),
    *(
        ("the softmax is missing: the weights of a query must sum to 1", _attending(lambda s: s, scale))
        for scale in (_root, _one)
    ),
    ("exp without the division by its sum: the weights of a query must sum to 1", _attending(torch.exp)),
    (
        "the scores are divided by their sum: take exp of them first, as softmax does",
        _attending(lambda s: s / s.sum(-1, keepdim=True)),
    ),
    ("a sigmoid weighs each key by itself: softmax weighs them against each other", _attending(torch.sigmoid)),
    ("log_softmax gives the logarithms of the weights: take softmax", _attending(lambda s: s.log_softmax(-1))),
    (
        f"divided by √64, whatever the length of a query: {_SCALE}, q.shape[-1]",
        _attending(scale=lambda channels: 64**-0.5),
    ),
    (
        f"divided by √B, the number of images: {_SCALE}, q.shape[-1]",
        lambda q, k, v: (q @ k.mT * q.shape[0] ** -0.5).softmax(-1) @ v,
    ),
    (f"divided by 2 · √C: {_SCALE}", _attending(scale=lambda channels: channels**-0.5 / 2)),
    ("softmin gives the largest weight to the smallest score: take softmax", _attending(lambda s: (-s).softmax(-1))),
    (
        "only the key of the largest score counts (arg max): softmax weighs all keys",
        _attending(lambda s: F.one_hot(s.argmax(-1), s.shape[-1]).to(s.dtype)),
    ),
    ("ReLU stands where softmax belongs: the weights of a query must sum to 1", _attending(torch.relu)),
    ("tanh stands where softmax belongs: the weights of a query must sum to 1", _attending(torch.tanh)),
)
ATTENTION_MISTAKES = Mistakes(
    [
        *_WEIGHT_MISTAKES,
        ("8 heads: there is one, as wide as a query is long", _in_heads),
        (
            "queries and keys are exchanged: row i of the scores is query i against all keys, q @ k.transpose(1, 2)",
            lambda q, k, v: attention(k, q, v),
        ),
        ("the weights are transposed: row i belongs to query i", _attending(lambda s: s.softmax(-1).mT)),
        ("the keys are averaged: the weights are for the values", lambda q, k, v: attention(q, k, k)),
        ("the queries are averaged: the weights are for the values", lambda q, k, v: attention(q, k, q)),
        (
            "keys and values are exchanged: queries are compared with keys, and the values averaged",
            lambda q, k, v: attention(q, v, k),
        ),
        (
            "these are the weights: with them, average the values, weights @ v",
            lambda q, k, v: _attention_weights(q, k),
        ),
        (
            "every key has the same weight: compare it with the query",
            lambda q, k, v: v.mean(1, keepdim=True).expand_as(v),
        ),
        (f"the values are added: {_ALONE}", lambda q, k, v: v + attention(q, k, v)),
        (f"the queries are added: {_ALONE}", lambda q, k, v: q + attention(q, k, v)),
        (
            "a token sees only those before it (a causal mask): every token sees every other",
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        ),
        ("tokens of different images are compared: each image by itself, dimension 0 is the batch", _of_all_images),
        (
            "channels are compared with channels: compare tokens, which are dimension 1",
            lambda q, k, v: attention(q.mT, k.mT, v.mT).mT,
        ),
        # by their exceptions
        (
            "k.T turns the batch around, too: exchange the last two axes only, q @ k.transpose(1, 2)",
            lambda q, k, v: q @ k.T,
        ),
        (_UNFIT, lambda q, k, v: q @ k),
        (_UNFIT, lambda q, k, v: v @ _attention_weights(q, k)),
    ]
)

_PRODUCT = (
    "q * k multiplies a query with the key at the same place only: q @ k.transpose(1, 2) takes each with every key"
)


@ATTENTION_MISTAKES(_PRODUCT)
def attention_by_channels(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q * k / q.shape[-1] ** 0.5, dim=-1) * v


@ATTENTION_MISTAKES(_PRODUCT)
def attention_by_channels_without_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q * k, dim=-1) * v


@ATTENTION_MISTAKES(_PRODUCT)
def attention_to_the_own_key(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax((q * k).sum(-1, keepdim=True) / q.shape[-1] ** 0.5, dim=1) * v


@ATTENTION_MISTAKES("these are the scores: softmax makes weights of them, and weights @ v the averages")
def scores_alone(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q @ k.mT * q.shape[-1] ** -0.5


@ATTENTION_MISTAKES("the values come back as they are: average them over the keys, weights @ v")
def values_alone(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return v


# 04.5


def _block(
    norm: Callable[[Any, Tensor], Tensor] = lambda block, x: block.group_norm(x),
    tokens: Callable[[Tensor], Tensor] = lambda x: x.flatten(2).mT,
    attend: _Attend = attention,
    out: Callable[[Any, Tensor], Tensor] = lambda block, gathered: block.to_out[0](gathered),
    image: Callable[[Tensor, Tensor], Tensor] = lambda gathered, x: gathered.mT.reshape(x.shape),
    total: Callable[[Any, Tensor, Tensor], Tensor] = lambda block, x, gathered: x + gathered,
) -> type[AttentionBlock]:
    """The finished class with one stage of its forward pass exchanged."""

    class Mistaken(AttentionBlock):
        def forward(self, x: Tensor) -> Tensor:
            t = tokens(norm(self, x))
            gathered = out(self, attend(self.to_q(t), self.to_k(t), self.to_v(t)))
            return total(self, x, image(gathered, x))

    return Mistaken


def _with_layers(**layers: Callable[[int], nn.Module]) -> type[AttentionBlock]:
    """The finished class with some of its layers made in another way."""

    class Mistaken(AttentionBlock):
        def __init__(self, channels: int, groups: int) -> None:
            super().__init__(channels, groups)
            for name, make in layers.items():
                setattr(self, name, make(channels))

    return Mistaken


def _convolution(channels: int) -> nn.Module:
    return nn.Conv2d(channels, channels, 1)


def _listed(channels: int) -> nn.Module:
    return nn.ModuleList([_convolution(channels)])


class _ValuesWithoutNorm(AttentionBlock):
    def forward(self, x: Tensor) -> Tensor:
        tokens, plain = self.group_norm(x).flatten(2).mT, x.flatten(2).mT
        out = self.to_out[0](attention(self.to_q(tokens), self.to_k(tokens), self.to_v(plain)))
        return x + out.mT.reshape(x.shape)


def _as_it_is(block: Any, x: Tensor) -> Tensor:
    return x


def _to_out(block: Any, image: Tensor) -> Tensor:
    tokens: Tensor = block.to_out[0](image.flatten(2).mT)
    return tokens.mT.reshape(image.shape)


def _wrongly_cut(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1, x.shape[1])


_CONVOLUTION = "diffusers' names come with Linear layers, whose weights are (C, C)"
_TRANSPOSE = "a pixel's channels lie far apart in memory, so that flatten(2) must be followed by transpose(1, 2)"
BLOCK_MISTAKES = Mistakes(
    [
        *(
            (f"1×1 convolutions, as in CompVis' code: {_CONVOLUTION}", _with_layers(**layers))
            for layers in (
                {"to_q": _convolution, "to_k": _convolution, "to_v": _convolution},
                {"to_q": _convolution, "to_k": _convolution, "to_v": _convolution, "to_out": _listed},
            )
        ),
        (
            "to_out is a Linear itself: put it into an nn.ModuleList, so that its key becomes to_out.0",
            _with_layers(to_out=lambda channels: nn.Linear(channels, channels)),
        ),
        ("the input is not added to the result", _block(total=lambda block, x, gathered: gathered)),
        (
            "the normalised input is added: add the input itself, so that it passes unchanged",
            _block(total=lambda block, x, gathered: block.group_norm(x) + gathered),
        ),
        ("group_norm is not used: normalise before to_q, to_k and to_v", _block(norm=_as_it_is)),
        (
            "the norm comes after the sum: normalise before to_q, to_k and to_v, and add at the end",
            _block(norm=_as_it_is, total=lambda block, x, gathered: block.group_norm(x + gathered)),
        ),
        (
            "the norm comes after the attention: normalise before to_q, to_k and to_v",
            _block(norm=_as_it_is, total=lambda block, x, gathered: x + block.group_norm(gathered)),
        ),
        (
            "an activation after the norm: there is none in this block",
            _block(norm=lambda block, x: F.silu(block.group_norm(x))),
        ),
        ("the values are made of the input without its norm: one norm serves all three", _ValuesWithoutNorm),
        (f"the map is cut into tokens by a reshape alone: {_TRANSPOSE}", _block(tokens=_wrongly_cut)),
        (
            f"the map is cut into tokens, and put together, by a reshape alone: {_TRANSPOSE}",
            _block(tokens=_wrongly_cut, image=lambda gathered, x: gathered.reshape(x.shape)),
        ),
        (
            "the tokens are put together by a reshape alone: transpose(1, 2) comes first, channels stand before space",
            _block(image=lambda gathered, x: gathered.reshape(x.shape)),
        ),
        *(
            ("height and width are exchanged between cutting the map into tokens and putting it together", code)
            for code in (
                _block(tokens=lambda x: x.mT.flatten(2).mT),
                _block(image=lambda gathered, x: gathered.mT.reshape(x.mT.shape).mT),
            )
        ),
        ("to_out is not used: it comes after the attention", _block(out=_as_it_is)),
        (
            "to_out is applied to the sum with the input: apply it to the attention's result alone",
            _block(out=_as_it_is, total=lambda block, x, gathered: _to_out(block, x + gathered)),
        ),
        *(
            (
                "the tokens are added before to_out: apply it to the attention's result alone, then add the input",
                _block(out=_as_it_is, total=total),
            )
            for total in (
                lambda block, x, gathered: x + _to_out(block, block.group_norm(x) + gathered),
                lambda block, x, gathered: _to_out(block, block.group_norm(x) + gathered),
                lambda block, x, gathered: x + _to_out(block, x + gathered),
            )
        ),
        (
            "the sum is divided by √2: it is taken as it is",
            _block(total=lambda block, x, gathered: (x + gathered) / 2**0.5),
        ),
        *((message, _block(attend=attend)) for message, attend in _WEIGHT_MISTAKES),
        ("8 heads: there is one, as wide as the map is deep", _block(attend=_in_heads)),
        ("to_q and to_k are exchanged", _block(attend=lambda q, k, v: attention(k, q, v))),
        ("to_q makes the keys, too: they are made by to_k", _block(attend=lambda q, k, v: attention(q, q, v))),
        ("to_k makes the values, too: they are made by to_v", _block(attend=lambda q, k, v: attention(q, k, k))),
        ("to_q makes the values, too: they are made by to_v", _block(attend=lambda q, k, v: attention(q, k, q))),
        ("to_k makes the queries, too: they are made by to_q", _block(attend=lambda q, k, v: attention(k, k, v))),
        *(
            ("one layer makes queries, keys and values: to_q, to_k and to_v are three, each with its own weights", code)
            for code in (
                _block(attend=lambda q, k, v: attention(q, q, q)),
                _block(attend=lambda q, k, v: attention(k, k, k)),
                _block(
                    attend=lambda q, k, v: attention(v, v, v)
                ),  # also one Linear by three names, which is loaded last
            )
        ),
        ("to_k and to_v are exchanged", _block(attend=lambda q, k, v: attention(q, v, k))),
        ("pixels of different images are compared: each image by itself", _block(attend=_of_all_images)),
        # by their exceptions
        (
            "to_out is a list, which cannot be called: its layer is self.to_out[0]",
            _block(out=lambda block, x: block.to_out(x)),
        ),
        (
            "nn.ModuleList takes a list of layers: write brackets, nn.ModuleList([nn.Linear(…)])",
            _with_layers(to_out=lambda channels: nn.ModuleList(nn.Linear(channels, channels))),  # type: ignore[arg-type]
        ),
        *(
            (
                "nn.GroupNorm(groups, channels, eps=1e-6): the argument groups stands first",
                _with_layers(group_norm=norm),
            )
            for norm in (
                lambda channels: nn.GroupNorm(channels, channels // 4, eps=1e-6),
                lambda channels: nn.GroupNorm(32, channels, eps=1e-6),
            )
        ),
        (
            "group_norm is applied to the tokens, where it takes pixels for channels: normalise the map, then cut it",
            _block(norm=lambda block, x: block.group_norm(x.flatten(2).mT), tokens=lambda x: x),
        ),
        (
            "the tokens are (B, C, H·W): flatten(2) must be followed by transpose(1, 2), so that each has C values",
            _block(tokens=lambda x: x.flatten(2)),
        ),
    ]
)

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
            DOWNSAMPLE_MISTAKES,
            inputs=("x", "weight", "bias"),
            gradients=("x", "weight", "bias"),
        ),
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
            UPSAMPLE_MISTAKES,
            inputs=("x", "weight", "bias"),
            gradients=("x", "weight", "bias"),
        ),
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
            lambda layers: receptive_field(list(layers)),
            [(list(layers),) for layers in _FIELD_PROBES],
            FIELD_MISTAKES,
            given=lambda probe: f"the layers {probe[0]}",
        ),
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
            ATTENTION_MISTAKES,
            inputs=("q", "k", "v"),
            gradients=("q", "k", "v"),
        ),
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
            mistakes=BLOCK_MISTAKES,
            parts=("group_norm", "to_q", "to_k", "to_v", "to_out"),
        ),
    ),
)
