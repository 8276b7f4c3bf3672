"""The exercises of notebook 12, scaling up."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klvae_edu.data.shards import ShardReader
from klvae_edu.exercises.exercise import Blank, Exercise, Mistakes, OpenGap, call
from klvae_edu.exercises.judges.functions import Probe, adapted, judge_function, probe, same
from klvae_edu.performance import tiling
from klvae_edu.performance.upcast import in_float32
from klvae_edu.training.recipes import load_recipe

NOTEBOOK = "12_scaling_up"


# The finished versions, in the form in which the exercises ask for them. The tests hold them to the package.
# Annotated with torch.Tensor, which a notebook knows, because `solution` shows them and readers paste them.


def ramp(length: int, before: int, after: int) -> torch.Tensor:
    """The weights (length,) of a tile that shares `before` cells with the last one and `after` with the next."""
    weights = torch.ones(length)
    weights[:before] = (torch.arange(before) + 0.5) / before if before else 1.0
    weights[length - after :] = 1 - (torch.arange(after) + 0.5) / after if after else 1.0
    return weights


def pooled(means: torch.Tensor, variances: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Statistics of tiles, (tiles, groups), and their cells, (tiles,) -> mean and variance of all, (groups,) each."""
    share = (counts / counts.sum())[:, None]
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean) ** 2)).sum(0)


def safe_group_norm(x: torch.Tensor, groups: int, eps: float = 1e-6) -> torch.Tensor:
    """x (B, C, H, W) of any floating-point type -> normalised over each group of channels, in the same type."""
    grouped = x.float().reshape(len(x), groups, -1)
    variance, mean = torch.var_mean(grouped, dim=2, correction=0, keepdim=True)
    return ((grouped - mean) * (variance + eps).rsqrt()).view_as(x).to(x.dtype)


def rows_left(count: int, seed: int, epoch: int, reader: int, readers: int, done: int) -> torch.Tensor:
    """Of rows 0 … count - 1, those that this reader still has to read in this pass, in its order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch))
    return order[reader::readers][done:]


def cost(
    crops: float, crops_per_second: float, machines: int = 1, efficiency: float = 1.0, price: float = 1.0
) -> tuple[float, float]:
    """Days, and what they cost."""
    hours = crops / (crops_per_second * machines * efficiency) / 3600
    return hours / 24, hours * machines * price


# 12.1


def _ramped(rising: Callable[[int], Tensor], falling: Callable[[int], Tensor] | None = None) -> Callable[..., Tensor]:
    """The finished weights with other ramps."""

    def weights(length: int, before: int, after: int) -> Tensor:
        found = torch.ones(length)
        found[:before] = rising(before)
        if after:
            found[length - after :] = falling(after) if falling else rising(after).flip(0)
        return found

    return weights


def _middles(count: int) -> Tensor:
    return (torch.arange(count) + 0.5) / max(count, 1)


def _sliced_from_minus_zero(length: int, before: int, after: int) -> Tensor:
    weights = torch.ones(length)
    weights[:before] *= _middles(before)
    weights[-after:] *= 0.0 if after == 0 else _middles(after).flip(0)
    return weights


RAMP_MISTAKES = Mistakes(
    [
        (
            "the ramp begins at 0 and ends at 1: the cell at its end would count nothing; take the middles of the "
            "cells, from 0.5 / before on",
            _ramped(lambda count: torch.linspace(0, 1, count)),
        ),
        (
            "without its ends linspace still adds up to one, but its steps are 1 / (before + 1): take the middles of "
            "the cells, from 0.5 / before on in steps of 1 / before",
            _ramped(lambda count: torch.linspace(0, 1, count + 2)[1:-1]),
        ),
        (
            "the ramp begins at 0: both ramps add up to less than 1; take the middles of the cells (+ 0.5)",
            _ramped(lambda count: torch.arange(count) / max(count, 1)),
        ),
        (
            "the ramp ends at 1: both ramps add up to more than 1; take the middles of the cells (+ 0.5)",
            _ramped(lambda count: (torch.arange(count) + 1.0) / max(count, 1)),
        ),
        (
            "both ends rise: the last cells must fall, from 1 down to 0",
            _ramped(_middles, _middles),
        ),
        (
            "the first cells fall and the last ones rise: it is the other way round",
            _ramped(lambda count: _middles(count).flip(0)),
        ),
        (
            "one half everywhere in the overlap: there the seam is again, at both ends of it; let the weight rise",
            _ramped(lambda count: torch.full((count,), 0.5)),
        ),
        (
            "with after = 0 the last cells are lost: weights[-0:] is everything, write weights[length - after:]",
            _sliced_from_minus_zero,
        ),
        (
            "the last cells do not fall: the neighbour's ramp rises there",
            _ramped(_middles, lambda count: torch.ones(count)),
        ),
        (
            "the first cells do not rise: the neighbour's ramp falls there",
            _ramped(lambda count: torch.ones(count), lambda count: _middles(count).flip(0)),
        ),
        (
            "`before` and `after` are exchanged: the first `before` cells rise",
            lambda length, before, after: ramp(length, after, before),
        ),
    ]
)


@RAMP_MISTAKES("the falling ramp is not the rising one read backwards: take 1 - (torch.arange(after) + 0.5) / after")
def ramp_falling_from_one(length: int, before: int, after: int) -> Tensor:
    weights = torch.ones(length)
    weights[:before] = _middles(before)
    weights[length - after :] = 1 - torch.arange(after) / max(after, 1)
    return weights


@RAMP_MISTAKES("the ramp begins at 0 where it rises, and at 1 where it falls: take the middles of the cells (+ 0.5)")
def ramp_from_the_edges(length: int, before: int, after: int) -> Tensor:
    weights = torch.ones(length)
    weights[:before] = torch.arange(before) / max(before, 1)
    weights[length - after :] = 1 - torch.arange(after) / max(after, 1)
    return weights


@RAMP_MISTAKES("the ramp ends at 1 where it rises, and at 0 where it falls: take the middles of the cells (+ 0.5)")
def ramp_to_the_edges(length: int, before: int, after: int) -> Tensor:
    weights = torch.ones(length)
    weights[:before] = (torch.arange(before) + 1) / max(before, 1)
    weights[length - after :] = 1 - (torch.arange(after) + 1) / max(after, 1)
    return weights


@RAMP_MISTAKES(
    "these are waves of a cosine, which add up to one, too: here the weight rises evenly, by 1 / before a cell"
)
def ramp_of_cosines(length: int, before: int, after: int) -> Tensor:
    weights = torch.ones(length)
    weights[:before] = 0.5 - 0.5 * torch.cos(torch.pi * _middles(before))
    weights[length - after :] = 0.5 + 0.5 * torch.cos(torch.pi * _middles(after))
    return weights


@RAMP_MISTAKES("divided by before + 1 and after + 1: `before` cells have steps of 1 / before")
def ramp_over_one_more(length: int, before: int, after: int) -> Tensor:
    weights = torch.ones(length)
    weights[:before] = (torch.arange(before) + 0.5) / (before + 1)
    weights[length - after :] = ((torch.arange(after) + 0.5) / (after + 1)).flip(0)
    return weights


@RAMP_MISTAKES("divided by the whole length: a ramp over `before` cells has steps of 1 / before")
def ramp_over_the_length(length: int, before: int, after: int) -> Tensor:
    weights = torch.ones(length)
    weights[:before] = (torch.arange(before) + 0.5) / length
    weights[length - after :] = 1 - (torch.arange(after) + 0.5) / length
    return weights


@RAMP_MISTAKES("the ramps are not divided by their number of cells: weights are between 0 and 1")
def ramp_undivided(length: int, before: int, after: int) -> Tensor:
    weights = torch.ones(length)
    weights[:before] = torch.arange(before) + 0.5
    weights[length - after :] = (torch.arange(after) + 0.5).flip(0)
    return weights


@RAMP_MISTAKES("the cells between the ramps are 0: begin with torch.ones")
def ramp_from_zeros(length: int, before: int, after: int) -> Tensor:
    weights = torch.zeros(length)
    weights[:before] = _middles(before)
    weights[length - after :] = _middles(after).flip(0)
    return weights


@RAMP_MISTAKES(
    "the ramps are put in front of the tile and behind it: they are its first and last cells, `length` in all"
)
def ramp_outside(length: int, before: int, after: int) -> Tensor:
    return torch.cat([_middles(before), torch.ones(length), _middles(after).flip(0)])


@RAMP_MISTAKES("with after = 0 the slice weights[-0:] is the whole tile: write weights[length - after:]")
def ramp_assigned_from_minus_zero(length: int, before: int, after: int) -> Tensor:
    weights = torch.ones(length)
    weights[:before] = _middles(before)
    weights[-after:] = _middles(after).flip(0)
    return weights


@RAMP_MISTAKES("the falling ramp begins one cell too early: it takes the cells from length - after on")
def ramp_falling_too_early(length: int, before: int, after: int) -> Tensor:
    weights = torch.ones(length)
    weights[:before] = _middles(before)
    weights[length - after - 1 : length - 1] = _middles(after).flip(0)
    return weights


@RAMP_MISTAKES("the falling ramp is as long as the rising one: it goes over the last `after` cells")
def ramp_of_before_alone(length: int, before: int, after: int) -> Tensor:
    return ramp(length, before, before)


@RAMP_MISTAKES("the weights are squared: they, and not their roots, must add up to one")
def ramp_squared(length: int, before: int, after: int) -> Tensor:
    return ramp(length, before, after) ** 2


@RAMP_MISTAKES("roots of the weights: they themselves, and not their squares, must add up to one")
def ramp_of_roots(length: int, before: int, after: int) -> Tensor:
    return ramp(length, before, after).sqrt()


# 12.2

_Statistics = tuple[Tensor, Tensor]


def _pooling(variance: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], weigh: bool = True) -> Callable[..., Any]:
    """Pooled statistics, with the variance made otherwise from means, variances, their mean and the shares."""

    def statistics(means: Tensor, variances: Tensor, counts: Tensor) -> _Statistics:
        share = (counts / counts.sum() if weigh else torch.ones_like(counts) / len(counts))[:, None]
        mean = (share * means).sum(0)
        return mean, variance(means, variances, mean, share)

    return statistics


def _right(means: Tensor, variances: Tensor, mean: Tensor, share: Tensor) -> Tensor:
    return (share * (variances + (means - mean) ** 2)).sum(0)


def _counts_for_shares(means: Tensor, variances: Tensor, counts: Tensor) -> _Statistics:
    share = counts[:, None]
    mean = (share * means).sum(0)
    return mean, _right(means, variances, mean, share)


_NO_SHARES = "the counts are not made into shares: divide by their sum"

POOL_MISTAKES = Mistakes(
    [
        (
            "the variances within the tiles alone: the squared distances of their means are missing, or not squared",
            _pooling(lambda means, variances, mean, share: (share * variances).sum(0)),
        ),
        (
            "every tile counts the same: weigh it by its number of cells",
            _pooling(_right, weigh=False),
        ),
        (
            "neither is weighed by the number of cells, nor is the spread between the tiles in the variance",
            _pooling(lambda means, variances, mean, share: variances.mean(0), weigh=False),
        ),
        (
            "the spread between the means is not weighed by the tiles' shares",
            _pooling(lambda means, variances, mean, share: (share * variances).sum(0) + ((means - mean) ** 2).mean(0)),
        ),
        (
            "the spread between the means is a variance with n - 1, and not weighed: weigh the squares by the shares",
            _pooling(lambda means, variances, mean, share: (share * variances).sum(0) + means.var(0)),
        ),
        (
            "only the spread between the means: the variances within the tiles are missing",
            _pooling(lambda means, variances, mean, share: (share * (means - mean) ** 2).sum(0)),
        ),
        (
            "the distance of the means is not squared",
            _pooling(lambda means, variances, mean, share: (share * (variances + (means - mean).abs())).sum(0)),
        ),
        (
            "this is the standard deviation: the variance is asked for",
            _pooling(lambda means, variances, mean, share: _right(means, variances, mean, share).sqrt()),
        ),
        (
            "the shares are squared in the variance: weigh each tile once",
            _pooling(lambda means, variances, mean, share: (share**2 * (variances + (means - mean) ** 2)).sum(0)),
        ),
        (
            "(variance, mean): the mean comes first",
            lambda means, variances, counts: pooled(means, variances, counts)[::-1],
        ),
        (_NO_SHARES, _counts_for_shares),
        (
            _NO_SHARES,
            lambda means, variances, counts: ((counts[:, None] * means).sum(0), (counts[:, None] * variances).sum(0)),
        ),
    ]
)


@POOL_MISTAKES("counts are whole numbers, which @ and einsum refuse beside floats: make shares of them first")
def pooled_by_matrix_product(means: Tensor, variances: Tensor, counts: Tensor) -> _Statistics:
    mean = counts @ means / counts.sum()
    return mean, counts @ (variances + (means - mean) ** 2) / counts.sum()


@POOL_MISTAKES("// rounds every share down to 0: divide with /")
def pooled_with_whole_shares(means: Tensor, variances: Tensor, counts: Tensor) -> _Statistics:
    share = (counts // counts.sum())[:, None]
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean) ** 2)).sum(0)


@POOL_MISTAKES("the squares of the means are added, not of their distances from the mean of all: (means - mean) ** 2")
def pooled_about_zero(means: Tensor, variances: Tensor, counts: Tensor) -> _Statistics:
    share = (counts / counts.sum())[:, None]
    return (share * means).sum(0), (share * (variances + means**2)).sum(0)


@POOL_MISTAKES("the spread between the tiles is subtracted: it is added")
def pooled_with_a_wrong_sign(means: Tensor, variances: Tensor, counts: Tensor) -> _Statistics:
    share = (counts / counts.sum())[:, None]
    mean = (share * means).sum(0)
    return mean, (share * (variances - (means - mean) ** 2)).sum(0)


@POOL_MISTAKES("the shares are (tiles,), and were spread along the groups: make a column of them, [:, None]")
def pooled_without_a_column(means: Tensor, variances: Tensor, counts: Tensor) -> _Statistics:
    share = counts / counts.sum()
    return (share * means).sum(0), (share * variances).sum(0)


@POOL_MISTAKES("the sum goes over the groups: sum over the tiles, dimension 0, so that each group has its own")
def pooled_over_groups(means: Tensor, variances: Tensor, counts: Tensor) -> _Statistics:
    share = (counts / counts.sum())[:, None]
    return (share * means).sum(1), (share * variances).sum(1)


@POOL_MISTAKES("one number for all groups: sum over the tiles alone, dimension 0")
def pooled_over_everything(means: Tensor, variances: Tensor, counts: Tensor) -> _Statistics:
    share = (counts / counts.sum())[:, None]
    mean = (share * means).sum()
    return mean, (share * (variances + (means - mean) ** 2)).sum()


@POOL_MISTAKES("what is weighed by shares is averaged once more: shares add up to one, so sum(0)")
def pooled_and_averaged(means: Tensor, variances: Tensor, counts: Tensor) -> _Statistics:
    share = (counts / counts.sum())[:, None]
    mean = (share * means).mean(0)
    return mean, (share * (variances + (means - mean) ** 2)).mean(0)


@POOL_MISTAKES("the distances are those from the plain mean of the tiles: take them from the mean of all cells")
def pooled_about_the_plain_mean(means: Tensor, variances: Tensor, counts: Tensor) -> _Statistics:
    share = (counts / counts.sum())[:, None]
    return (share * means).sum(0), (share * (variances + (means - means.mean(0)) ** 2)).sum(0)


@POOL_MISTAKES("the mean is not weighed by the number of cells: (share * means).sum(0)")
def pooled_to_the_plain_mean(means: Tensor, variances: Tensor, counts: Tensor) -> _Statistics:
    share = (counts / counts.sum())[:, None]
    mean = means.mean(0)
    return mean, (share * (variances + (means - mean) ** 2)).sum(0)


@POOL_MISTAKES("brackets are missing: the share multiplies the sum of variance and squared distance")
def pooled_without_brackets(means: Tensor, variances: Tensor, counts: Tensor) -> _Statistics:
    share = (counts / counts.sum())[:, None]
    mean = (share * means).sum(0)
    return mean, (share * variances + (means - mean) ** 2).sum(0)


@POOL_MISTAKES("the tiles' variances are not weighed by their shares")
def pooled_with_plain_variances(means: Tensor, variances: Tensor, counts: Tensor) -> _Statistics:
    share = (counts / counts.sum())[:, None]
    mean = (share * means).sum(0)
    return mean, variances.mean(0) + (share * (means - mean) ** 2).sum(0)


@POOL_MISTAKES("the share is inside of the square: it multiplies the squared distance, once")
def pooled_with_squared_shares(means: Tensor, variances: Tensor, counts: Tensor) -> _Statistics:
    share = (counts / counts.sum())[:, None]
    mean = (share * means).sum(0)
    return mean, (share * variances + (share * (means - mean)) ** 2).sum(0)


@POOL_MISTAKES("corrected to n - 1: norms divide by n, and so do these variances")
def pooled_over_n_minus_one(means: Tensor, variances: Tensor, counts: Tensor) -> _Statistics:
    mean, variance = pooled(means, variances, counts)
    return mean, variance * counts.sum() / (counts.sum() - 1)


@POOL_MISTAKES(
    "this is the pooled variance of a t-test, which leaves the means out: add (means - mean) ** 2, weigh by shares"
)
def pooled_as_in_a_t_test(means: Tensor, variances: Tensor, counts: Tensor) -> _Statistics:
    mean, _ = pooled(means, variances, counts)
    return mean, ((counts - 1)[:, None] * variances).sum(0) / (counts.sum() - len(counts))


@POOL_MISTAKES("the number of tiles is fixed at 3: sum over dimension 0")
def pooled_of_three(means: Tensor, variances: Tensor, counts: Tensor) -> _Statistics:
    share = counts / counts.sum()
    mean = torch.stack([share[tile] * means[tile] for tile in range(3)]).sum(0)
    return mean, torch.stack([share[i] * (variances[i] + (means[i] - mean) ** 2) for i in range(3)]).sum(0)


@POOL_MISTAKES("counts are divided by the number of tiles: shares are counts / counts.sum()")
def pooled_over_the_number_of_tiles(means: Tensor, variances: Tensor, counts: Tensor) -> _Statistics:
    return _counts_for_shares(means, variances, counts / len(counts))


@POOL_MISTAKES("counts are divided by the largest: shares are counts / counts.sum(), and add up to one")
def pooled_over_the_largest(means: Tensor, variances: Tensor, counts: Tensor) -> _Statistics:
    return _counts_for_shares(means, variances, counts / counts.max())


@POOL_MISTAKES("keepdim leaves a row (1, groups): (groups,) is asked for")
def pooled_with_rows(means: Tensor, variances: Tensor, counts: Tensor) -> _Statistics:
    mean, variance = pooled(means, variances, counts)
    return mean[None], variance[None]


# 12.3


_Scale = Callable[[Tensor, float], Tensor]  # of the variance and eps: what the map is multiplied by


def _grouped(x: Tensor, groups: int) -> Tensor:
    """(B, C, H, W) -> (B, groups, C / groups, H, W)."""
    return x.reshape(len(x), groups, -1, *x.shape[2:])


def _normed(
    x: Tensor,
    groups: int,
    eps: float,
    dtype: torch.dtype,
    axes: tuple[int, ...] = (2, 3, 4),
    scale: _Scale | None = None,
) -> Tensor:
    """The finished norm in another type, over other axes of (B, groups, channels, H, W), or scaled otherwise."""
    grouped = _grouped(x.to(dtype), groups)
    mean = grouped.mean(axes, keepdim=True)
    variance = (grouped - mean).square().mean(axes, keepdim=True)
    return ((grouped - mean) * (scale(variance, eps) if scale else (variance + eps).rsqrt())).view_as(x)


def _norm(**different: Any) -> Callable[..., Tensor]:
    """The finished norm, but for one thing."""
    return lambda x, groups, eps=1e-6: _normed(x, groups, eps, torch.float32, **different).to(x.dtype)


def _in(dtype: torch.dtype) -> Callable[..., Tensor]:
    """It computes in one 16-bit type and gives back the type of x."""
    return lambda x, groups, eps=1e-6: _normed(x, groups, eps, dtype).to(x.dtype)


def _given_back_in(dtype: torch.dtype) -> Callable[..., Tensor]:
    return lambda x, groups, eps=1e-6: _normed(x, groups, eps, torch.float32).to(dtype)


def _mean_not_subtracted(x: Tensor, groups: int, eps: float = 1e-6) -> Tensor:
    grouped = _grouped(x.float(), groups)
    variance = grouped.var((2, 3, 4), correction=0, keepdim=True)
    return (grouped * (variance + eps).rsqrt()).view_as(x).to(x.dtype)


def _unbiased(x: Tensor, groups: int, eps: float = 1e-6) -> Tensor:
    n = x[0].numel() // groups
    return _norm(scale=lambda variance, eps: (variance * n / (n - 1) + eps).rsqrt())(x, groups, eps)


def _difference_of_squares(x: Tensor, groups: int, eps: float = 1e-6) -> Tensor:
    grouped = _grouped(x.float(), groups)
    mean, square = (one.mean((2, 3, 4), keepdim=True) for one in (grouped, grouped.square()))
    return ((grouped - mean) * (square - mean.square() + eps).rsqrt()).view_as(x).to(x.dtype)


_OUTGROWN = "the squares outgrow float16: convert x to float32 first, and keep mean and variance in it"
_PARTLY = (
    "right for float32, not for float16: a part is computed in the 16 bits of the map; convert x once, at the start"
)
_BFLOAT_LEFT = "a bfloat16 map is normalised in bfloat16, with 8 bits: convert it to float32, too"
_VIEW = "it fails for a map whose memory has another order, as channels_last: use reshape, not view"
_IN_FLOAT32 = "it comes back in float32: give back the type of x"
_IN_ONE_TYPE = "it comes back in {} whatever came: give back the type of x, x.dtype"
_ROUNDED = {  # bfloat16 first: its 8 bits are among float16's 11
    torch.bfloat16: "bfloat16 has the range, not the precision: take the statistics in float32",
    torch.float16: "a float32 map is computed in float16, with 11 bits: take the statistics in float32",
}
_PER_PIXEL = "the statistics are taken at each pixel: they go over rows and columns, too, the whole map of a group"
_FAR_FROM_ZERO = (
    "far from zero the mean square less the squared mean is rounding, no variance: subtract the mean before you square"
)

NORM_MISTAKES = Mistakes(
    [
        (
            _OUTGROWN,
            lambda x, groups, eps=1e-6: _normed(x, groups, eps, x.dtype),
        ),
        (_IN_FLOAT32, _given_back_in(torch.float32)),
        (_IN_ONE_TYPE.format("float16"), _given_back_in(torch.float16)),
        (_IN_ONE_TYPE.format("bfloat16"), _given_back_in(torch.bfloat16)),
        (_ROUNDED[torch.bfloat16], _in(torch.bfloat16)),
        (_ROUNDED[torch.float16], _in(torch.float16)),
        (_FAR_FROM_ZERO, _difference_of_squares),
        (
            "every channel is normalised for itself: the statistics are those of a whole group",
            _norm(axes=(3, 4)),
        ),
        (
            "the statistics go over all channels: each group has its own",
            _norm(axes=(1, 2, 3, 4)),
        ),
        (_PER_PIXEL, _norm(axes=(1, 2))),
        (_PER_PIXEL, _norm(axes=(2,))),
        ("the mean is not subtracted", _mean_not_subtracted),
        ("the variance is divided by n - 1: GroupNorm divides by n (correction=0)", _unbiased),
        (
            "it is divided by the variance: its root is missing",
            _norm(scale=lambda variance, eps: 1 / (variance + eps)),
        ),
        (
            "a constant map becomes NaN: add eps to the variance, under the root",
            _norm(scale=lambda variance, eps: variance.rsqrt()),
        ),
        (
            "eps is added to the deviation: it belongs to the variance, under the root",
            _norm(scale=lambda variance, eps: 1 / (variance.sqrt() + eps)),
        ),
        (
            "eps is 1e-5, as PyTorch has it by default: pass on the one that came",
            lambda x, groups, eps=1e-6: _norm()(x, groups, 1e-5),
        ),
        (
            "eps is always 1e-6: use the one that came",
            lambda x, groups, eps=1e-6: _norm()(x, groups, 1e-6),
        ),
    ]
)


@NORM_MISTAKES(_OUTGROWN)
def norm_of_the_given_type(x: Tensor, groups: int, eps: float = 1e-6) -> Tensor:
    grouped = x.reshape(len(x), groups, -1)
    variance, mean = torch.var_mean(grouped, dim=2, correction=0, keepdim=True)
    return ((grouped - mean) * (variance + eps).rsqrt()).view_as(x)


@NORM_MISTAKES(_PARTLY)
def norm_converted_too_early(x: Tensor, groups: int, eps: float = 1e-6) -> Tensor:
    variance, mean = torch.var_mean(_grouped(x.float(), groups), dim=(2, 3, 4), correction=0, keepdim=True)
    return ((_grouped(x, groups) - mean.to(x.dtype)) * (variance + eps).rsqrt().to(x.dtype)).view_as(x)


@NORM_MISTAKES(_BFLOAT_LEFT)
def norm_of_float16_alone(x: Tensor, groups: int, eps: float = 1e-6) -> Tensor:
    return norm_of_the_given_type(x.float() if x.dtype == torch.float16 else x, groups, eps).to(x.dtype)


@NORM_MISTAKES(_VIEW)
def norm_by_view(x: Tensor, groups: int, eps: float = 1e-6) -> Tensor:
    grouped = x.float().view(len(x), groups, -1)
    variance, mean = torch.var_mean(grouped, dim=2, correction=0, keepdim=True)
    return ((grouped - mean) * (variance + eps).rsqrt()).view_as(x).to(x.dtype)


@NORM_MISTAKES("mean and variance are exchanged: torch.var_mean gives the variance first")
def norm_with_exchanged_statistics(x: Tensor, groups: int, eps: float = 1e-6) -> Tensor:
    grouped = x.float().reshape(len(x), groups, -1)
    mean, variance = torch.var_mean(grouped, dim=2, correction=0, keepdim=True)
    return ((grouped - mean) * (variance + eps).rsqrt()).view_as(x).to(x.dtype)


@NORM_MISTAKES("it is multiplied by the deviation: divide by it, or take rsqrt, which is 1 / root")
def norm_multiplied(x: Tensor, groups: int, eps: float = 1e-6) -> Tensor:
    return _norm(scale=lambda variance, eps: (variance + eps).sqrt())(x, groups, eps)


@NORM_MISTAKES("the channels of a group lie apart: a group is neighbouring channels, reshape(len(x), groups, -1)")
def norm_of_scattered_groups(x: Tensor, groups: int, eps: float = 1e-6) -> Tensor:
    grouped = x.float().reshape(len(x), -1, groups, *x.shape[2:])
    variance, mean = torch.var_mean(grouped, dim=(1, 3, 4), correction=0, keepdim=True)
    return ((grouped - mean) * (variance + eps).rsqrt()).view_as(x).to(x.dtype)


@NORM_MISTAKES("`groups` is taken for the size of a group: it is their number")
def norm_with_the_size_of_a_group(x: Tensor, groups: int, eps: float = 1e-6) -> Tensor:
    return safe_group_norm(x, x.shape[1] // groups, eps)


@NORM_MISTAKES("the statistics go over the batch: each image has its own")
def norm_over_the_batch(x: Tensor, groups: int, eps: float = 1e-6) -> Tensor:
    return _norm(axes=(0, 2, 3, 4))(x, groups, eps)


@NORM_MISTAKES("the statistics have lost a dimension, (B, groups): keepdim=True, so that they broadcast")
def norm_without_keepdim(x: Tensor, groups: int, eps: float = 1e-6) -> Tensor:
    grouped = x.float().reshape(len(x), groups, -1)
    variance, mean = torch.var_mean(grouped, dim=2, correction=0)
    return ((grouped - mean) * (variance + eps).rsqrt()).view_as(x).to(x.dtype)


@NORM_MISTAKES("the result is still grouped: give it the shape of x again, view_as(x)")
def norm_left_grouped(x: Tensor, groups: int, eps: float = 1e-6) -> Tensor:
    return safe_group_norm(x, groups, eps).reshape(len(x), groups, -1)


@NORM_MISTAKES("eps is squared: it is added to the variance as it is")
def norm_with_eps_squared(x: Tensor, groups: int, eps: float = 1e-6) -> Tensor:
    return safe_group_norm(x, groups, eps**2)


@NORM_MISTAKES("eps is a lower limit of the variance: it is added to it")
def norm_with_a_limit(x: Tensor, groups: int, eps: float = 1e-6) -> Tensor:
    return _norm(scale=lambda variance, eps: variance.clamp(min=eps).rsqrt())(x, groups, eps)


def _in_double(norm: Callable[..., Any]) -> Callable[..., Any]:
    """The norm's result in a form that does not depend on its type."""

    def of(x: Tensor, groups: int, *eps: float) -> Any:
        result = norm(x, groups, *eps)
        return result.double() if isinstance(result, Tensor) else result

    return of


def _judge_norm(attempt: Any) -> str | None:
    """First the type, then the values, then single maps: of 16 bits, in another order of memory, and far from zero."""
    complaint = _judge_type(attempt) if callable(attempt) else None
    complaint = complaint or _judge_values(_in_double(attempt) if callable(attempt) else attempt)
    if complaint in dict(NORM_MISTAKES):
        return complaint
    if complaint:
        return _name_by_half(attempt) or complaint
    try:
        other_order = attempt(_MAP.to(memory_format=torch.channels_last), 2)
    except RuntimeError:
        return _VIEW
    if not same(other_order, safe_group_norm(_MAP, 2)):
        return _VIEW
    for x, message in ((_FAR, _FAR_FROM_ZERO), (_FAR_IN_BFLOAT16, _BFLOAT_LEFT)):  # right answers round differently
        expected, found = (norm(x, 2, 1e-6).float() for norm in (safe_group_norm, attempt))
        if not (found - expected).abs().max() < 0.03:
            return message
    return None


def _name_by_half(attempt: Any) -> str | None:
    """Name what is right for float32 maps and wrong for float16: 0, or rounded."""
    try:
        half, *others = (same(attempt(*copy.deepcopy(x)), safe_group_norm(*x)) for x in _norm_probes())
        zeros = bool((attempt(*_norm_probes()[0]) == 0).any())
    except Exception:
        return None
    if half or not all(others):
        return None
    return _OUTGROWN if zeros else _PARTLY


def _judge_type(attempt: Callable[..., Any]) -> str | None:
    results = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        try:
            results.append(call(attempt, _MAP.to(dtype, copy=True), 2))
        except (Blank, OpenGap):
            raise
        except Exception:  # told with the values
            return None
    if not all(isinstance(result, Tensor) for result in results):
        return None
    types = {result.dtype for result in results}
    if len(types) == 1:
        (only,) = types
        return _IN_FLOAT32 if only == torch.float32 else _IN_ONE_TYPE.format(str(only).removeprefix("torch."))
    if not same(results[0], safe_group_norm(_MAP, 2)):
        for dtype, message in _ROUNDED.items():
            if torch.equal(results[0], results[0].to(dtype).to(results[0].dtype)):
                return message
    return None


# 12.4


def _rows(
    order: Callable[[int, int, int, int], Tensor] | None = None,
    share: Callable[[Tensor, int, int, int], Tensor] | None = None,
) -> Callable[..., Tensor]:
    """The finished answer with another order, from (count, seed, epoch, reader), or another share of it."""

    def rows(count: int, seed: int, epoch: int, reader: int, readers: int, done: int) -> Tensor:
        found = (order or _shuffled)(count, seed, epoch, reader)
        return share(found, reader, readers, done) if share else found[reader::readers][done:]

    return rows


def _by(seed: int, count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _shuffled(count: int, seed: int, epoch: int, reader: int) -> Tensor:
    return _by(seed + epoch, count)


def _chunk(order: Tensor, reader: int, readers: int, done: int) -> Tensor:
    size = len(order) // readers
    return order[reader * size : (reader + 1) * size][done:]


_SHARED_GENERATOR = (
    "it draws from the generator that all of PyTorch shares, and so changes what everything else draws: give randperm "
    "one of its own, generator=torch.Generator().manual_seed(…)"
)
ROWS_MISTAKES = Mistakes(
    [
        (
            "every reader shuffles in its own way, so that rows come twice or never: the seed must not know the reader",
            _rows(lambda count, seed, epoch, reader: _by(seed + epoch + reader, count)),
        ),
        (
            "every pass has the same order: the seed is seed + epoch",
            _rows(lambda count, seed, epoch, reader: _by(seed, count)),
        ),
        (
            "the seed is the pass alone: it is seed + epoch",
            _rows(lambda count, seed, epoch, reader: _by(epoch, count)),
        ),
        (
            "nothing is shuffled: the order is a torch.randperm",
            _rows(lambda count, seed, epoch, reader: torch.arange(count)),
        ),
        (
            "the first `done` rows of the whole order are passed over: they are counted in this reader's own rows",
            _rows(share=lambda order, reader, readers, done: order[done:][reader::readers]),
        ),
        (
            "`done` is counted over all readers: it is this reader's own count",
            _rows(share=lambda order, reader, readers, done: order[reader::readers][done // readers :]),
        ),
        (
            "what it has had comes again: leave out its first `done` rows",
            _rows(share=lambda order, reader, readers, done: order[reader::readers]),
        ),
        (
            "these are the rows that it has had: the others are left",
            _rows(share=lambda order, reader, readers, done: order[reader::readers][:done]),
        ),
        (
            "chunks of equal size lose the last rows, where the readers do not divide them: take every readers-th row",
            _rows(share=_chunk),
        ),
        (
            "torch.chunk deals out rows in a run, and leaves less to the last readers, or nothing: take turns, every "
            "readers-th row from number `reader` on",
            _rows(share=lambda order, reader, readers, done: order.chunk(readers)[reader][done:]),
        ),
        (
            "chunks are dealt out: take turns, every readers-th row from number `reader` on",
            _rows(share=lambda order, reader, readers, done: order.tensor_split(readers)[reader][done:]),
        ),
        (
            "every reader gets all rows: take every readers-th from number `reader` on",
            _rows(share=lambda order, reader, readers, done: order[done:]),
        ),
        (
            "the rows are split before they are shuffled: a reader would see the same ones in every pass",
            lambda count, seed, epoch, reader, readers, done: torch.arange(count)[reader::readers][
                _by(seed + epoch, len(range(reader, count, readers)))
            ][done:],
        ),
    ]
)


@ROWS_MISTAKES(_SHARED_GENERATOR)
def rows_by_the_shared_generator(count: int, seed: int, epoch: int, reader: int, readers: int, done: int) -> Tensor:
    torch.manual_seed(seed + epoch)
    return torch.randperm(count)[reader::readers][done:]


@ROWS_MISTAKES("row numbers are whole numbers, with which one can index: leave them as randperm gives them")
def rows_in_floats(count: int, seed: int, epoch: int, reader: int, readers: int, done: int) -> Tensor:
    return rows_left(count, seed, epoch, reader, readers, done).float()


@ROWS_MISTAKES("the generator is not seeded: torch.Generator().manual_seed(seed + epoch)")
def rows_unseeded(count: int, seed: int, epoch: int, reader: int, readers: int, done: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator())[reader::readers][done:]


@ROWS_MISTAKES("the seed is seed · epoch: it is seed + epoch")
def rows_by_a_product(count: int, seed: int, epoch: int, reader: int, readers: int, done: int) -> Tensor:
    return _by(seed * epoch, count)[reader::readers][done:]


@ROWS_MISTAKES("one generator draws the orders of all passes in turn: pass `epoch` has a seed of its own, seed + epoch")
def rows_drawn_in_turn(count: int, seed: int, epoch: int, reader: int, readers: int, done: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(count, generator=generator) for _ in range(epoch + 1)]
    return orders[epoch][reader::readers][done:]


@ROWS_MISTAKES("the order is NumPy's: torch.randperm gives another one for the same seed")
def rows_by_numpy(count: int, seed: int, epoch: int, reader: int, readers: int, done: int) -> Any:
    return np.random.default_rng(seed + epoch).permutation(count)[reader::readers][done:]


@ROWS_MISTAKES("the order is that of Python's random: torch.randperm gives another one for the same seed")
def rows_by_pythons_random(count: int, seed: int, epoch: int, reader: int, readers: int, done: int) -> Any:
    order = [*range(count)]
    random.Random(seed + epoch).shuffle(order)
    return order[reader::readers][done:]


@ROWS_MISTAKES("randperm takes its generator by name: generator=…")
def rows_with_a_generator_without_a_name(
    count: int, seed: int, epoch: int, reader: int, readers: int, done: int
) -> Tensor:
    randperm: Any = torch.randperm
    return randperm(count, torch.Generator().manual_seed(seed + epoch))[reader::readers][done:]


@ROWS_MISTAKES("start and step are exchanged: order[reader::readers], from number `reader` in steps of `readers`")
def rows_with_exchanged_start_and_step(
    count: int, seed: int, epoch: int, reader: int, readers: int, done: int
) -> Tensor:
    return _by(seed + epoch, count)[readers :: max(reader, 1)][done:]


@ROWS_MISTAKES("`done` stands in the place of `reader`: first this reader's rows, [reader::readers], then [done:]")
def rows_with_done_for_reader(count: int, seed: int, epoch: int, reader: int, readers: int, done: int) -> Tensor:
    return _by(seed + epoch, count)[done::readers][reader:]


@ROWS_MISTAKES("one row too many is passed over: the first `done` are those before [done:]")
def rows_after_one_more(count: int, seed: int, epoch: int, reader: int, readers: int, done: int) -> Tensor:
    return rows_left(count, seed, epoch, reader, readers, done + 1)


@ROWS_MISTAKES("the last row that it has had comes again: the first `done` are passed over, [done:]")
def rows_with_the_last_again(count: int, seed: int, epoch: int, reader: int, readers: int, done: int) -> Tensor:
    return rows_left(count, seed, epoch, reader, readers, max(done - 1, 0))


@ROWS_MISTAKES("the last `done` rows are left out: leave out the first, [done:]")
def rows_without_the_last(count: int, seed: int, epoch: int, reader: int, readers: int, done: int) -> Tensor:
    mine = _by(seed + epoch, count)[reader::readers]
    return mine[: len(mine) - done]


@ROWS_MISTAKES("the last `done` rows are left out: leave out the first, [done:]")
def rows_up_to_minus_done(count: int, seed: int, epoch: int, reader: int, readers: int, done: int) -> Tensor:
    return _by(seed + epoch, count)[reader::readers][:-done]


@ROWS_MISTAKES("these are the last `done` rows: leave out the first `done`, [done:]")
def rows_counted_from_the_end(count: int, seed: int, epoch: int, reader: int, readers: int, done: int) -> Tensor:
    return _by(seed + epoch, count)[reader::readers][-done:]


@ROWS_MISTAKES("readers are counted from 0: reader 0 begins with the first row of the order")
def rows_of_readers_from_one(count: int, seed: int, epoch: int, reader: int, readers: int, done: int) -> Tensor:
    return _by(seed + epoch, count)[reader + 1 :: readers][done:]


@ROWS_MISTAKES(
    "dealt by the rows' numbers, always the same to the same reader: take turns in the order, [reader::readers]"
)
def rows_by_their_numbers(count: int, seed: int, epoch: int, reader: int, readers: int, done: int) -> Tensor:
    order = _by(seed + epoch, count)
    return order[order % readers == reader][done:]


@ROWS_MISTAKES("sorted, the rows lose their order: leave them as they were shuffled")
def rows_sorted(count: int, seed: int, epoch: int, reader: int, readers: int, done: int) -> Tensor:
    return rows_left(count, seed, epoch, reader, readers, done).sort().values


@ROWS_MISTAKES("this is how many rows are left: the rows themselves are asked for")
def rows_counted(count: int, seed: int, epoch: int, reader: int, readers: int, done: int) -> Any:
    return torch.tensor(float(len(rows_left(count, seed, epoch, reader, readers, done))))


def _as_floats(rows: Callable[..., Any]) -> Callable[..., Any]:
    """Make row numbers, in a tensor, an array, a list or a tuple, floating-point values, which judges compare.

    Raises:
        ValueError: the shared random state of PyTorch has changed.
        TypeError: the row numbers are no whole numbers.
    """

    def of(*arguments: int) -> Any:
        before = torch.get_rng_state()
        found = rows(*arguments)
        if not torch.equal(torch.get_rng_state(), before):
            raise ValueError("PyTorch's shared random state is changed")
        if isinstance(found, (list, tuple, range, np.ndarray)) and not any(row is ... for row in found):
            found = torch.tensor([*found], dtype=torch.long)
        if isinstance(found, Tensor) and found.is_floating_point() and found.ndim:
            raise TypeError("row numbers are whole numbers")
        return found.double() if isinstance(found, Tensor) else found

    return of


# 12.5


def _costing(days: Callable[..., float], money: Callable[..., float]) -> Callable[..., Any]:
    """Days and money as functions of the hours, of the machines and of the price."""

    def costs(
        crops: float, crops_per_second: float, machines: int = 1, efficiency: float = 1.0, price: float = 1.0
    ) -> tuple[float, float]:
        hours = crops / (crops_per_second * machines * efficiency) / 3600
        return days(hours, machines, efficiency), money(hours, machines, efficiency, price)

    return costs


def _days(hours: float, machines: int, efficiency: float) -> float:
    return hours / 24


def _money(hours: float, machines: int, efficiency: float, price: float) -> float:
    return hours * machines * price


COST_MISTAKES = Mistakes(
    [
        (
            "the money is that of one machine: each of them costs",
            _costing(_days, lambda hours, machines, efficiency, price: hours * price),
        ),
        (
            "the time is multiplied by the efficiency: with more waiting it takes longer, so divide by it",
            _costing(
                lambda hours, machines, efficiency: hours * efficiency**2 / 24,
                lambda hours, machines, efficiency, price: hours * efficiency**2 * machines * price,
            ),
        ),
        (
            "the efficiency is missing: machines that wait for each other do less",
            _costing(
                lambda hours, machines, efficiency: hours * efficiency / 24,
                lambda hours, machines, efficiency, price: hours * efficiency * machines * price,
            ),
        ),
        (
            "only the days know the efficiency: machines cost while they wait, too",
            _costing(_days, lambda hours, machines, efficiency, price: hours * efficiency * machines * price),
        ),
        (
            "the time is that of one machine: they share the work",
            _costing(
                lambda hours, machines, efficiency: hours * machines / 24,
                lambda hours, machines, efficiency, price: hours * machines**2 * price,
            ),
        ),
        (
            "the days are those of one machine: they share the work",
            _costing(lambda hours, machines, efficiency: hours * machines / 24, _money),
        ),
        (
            "these are hours: a day has 24",
            _costing(lambda hours, machines, efficiency: hours, _money),
        ),
        (
            "the price is taken for a day: it is that of an hour",
            _costing(_days, lambda hours, machines, efficiency, price: hours / 24 * machines * price),
        ),
        (
            "the price is taken for a second: it is that of an hour",
            _costing(_days, lambda hours, machines, efficiency, price: 3600 * hours * machines * price),
        ),
        (
            "the price is missing",
            _costing(_days, lambda hours, machines, efficiency, price: hours * machines),
        ),
        (
            "the seconds are divided by 60 once: an hour has 3600",
            _costing(
                lambda hours, machines, efficiency: 60 * hours / 24,
                lambda hours, machines, efficiency, price: 60 * hours * machines * price,
            ),
        ),
        (
            "the money comes first: days, then money",
            lambda *arguments, **more: cost(*arguments, **more)[::-1],
        ),
        (
            "the days are rounded up: leave them as they are",
            _costing(lambda hours, machines, efficiency: math.ceil(hours / 24), _money),
        ),
        (
            "the days are rounded up, and whole days paid: leave them as they are",
            _costing(
                lambda hours, machines, efficiency: math.ceil(hours / 24),
                lambda hours, machines, efficiency, price: math.ceil(hours / 24) * 24 * machines * price,
            ),
        ),
        (
            "the hours are rounded up: leave them as they are",
            _costing(
                lambda hours, machines, efficiency: math.ceil(hours) / 24,
                lambda hours, machines, efficiency, price: math.ceil(hours) * machines * price,
            ),
        ),
        (
            "the results are rounded: leave them as they are",
            _costing(
                lambda hours, machines, efficiency: round(hours / 24),
                lambda hours, machines, efficiency, price: round(hours * machines * price),
            ),
        ),
        (
            "the results are rounded: leave them as they are",
            _costing(
                lambda hours, machines, efficiency: round(hours / 24, 2),
                lambda hours, machines, efficiency, price: round(hours * machines * price, 2),
            ),
        ),
        (
            "multiplied by 24: 24 hours are one day",
            _costing(lambda hours, machines, efficiency: hours * 24, _money),
        ),
        (
            "divided by the price: each hour of a machine costs it",
            _costing(_days, lambda hours, machines, efficiency, price: hours * machines / price),
        ),
        (
            "the money is divided by the machines: each of them costs",
            _costing(_days, lambda hours, machines, efficiency, price: hours * price / machines),
        ),
        (
            "the money is 24 times too much: the price is that of an hour, so multiply the hours by it",
            _costing(_days, lambda hours, machines, efficiency, price: hours * 24 * machines * price),
        ),
        (
            "the money is divided by the efficiency once more: the hours know it already",
            _costing(_days, lambda hours, machines, efficiency, price: hours * machines * price / efficiency),
        ),
    ]
)


@COST_MISTAKES("these are seconds: an hour has 3600, and a day 24 hours")
def cost_in_seconds(
    crops: float, crops_per_second: float, machines: int = 1, efficiency: float = 1.0, price: float = 1.0
) -> Any:
    seconds = crops / (crops_per_second * machines * efficiency)
    return seconds, seconds * machines * price


@COST_MISTAKES("seconds are taken for hours: divide by 3600")
def cost_of_seconds_as_hours(
    crops: float, crops_per_second: float, machines: int = 1, efficiency: float = 1.0, price: float = 1.0
) -> Any:
    hours = crops / (crops_per_second * machines * efficiency)
    return hours / 24, hours * machines * price


@COST_MISTAKES("brackets are missing: crops / (crops_per_second * machines * efficiency)")
def cost_without_brackets(
    crops: float, crops_per_second: float, machines: int = 1, efficiency: float = 1.0, price: float = 1.0
) -> Any:
    hours = crops / crops_per_second * machines * efficiency / 3600
    return hours / 24, hours * machines * price


@COST_MISTAKES("the crops are multiplied by the crops per second: divide by them")
def cost_multiplied(
    crops: float, crops_per_second: float, machines: int = 1, efficiency: float = 1.0, price: float = 1.0
) -> Any:
    hours = crops * crops_per_second / (machines * efficiency) / 3600
    return hours / 24, hours * machines * price


@COST_MISTAKES("the quotient is upside down: crops divided by crops per second are seconds")
def cost_upside_down(
    crops: float, crops_per_second: float, machines: int = 1, efficiency: float = 1.0, price: float = 1.0
) -> Any:
    hours = crops_per_second * machines * efficiency / crops / 3600
    return hours / 24, hours * machines * price


def _as_tensors(costs: Callable[..., Any]) -> Callable[..., Any]:
    """Make days and money tensors. They may come as numbers, or as a tensor or array of two."""

    def of(*arguments: float) -> Any:
        found = costs(*arguments)
        if isinstance(found, (Tensor, np.ndarray)) and found.shape == (2,):
            found = tuple(found)
        if not isinstance(found, (tuple, list)):
            return torch.tensor(float(found)) if isinstance(found, (int, float)) else found
        return tuple(torch.tensor(float(v)) if isinstance(v, (int, float, np.floating)) else v for v in found)

    return of


def _norm_probes() -> list[Probe]:
    """Squares too large for float16; an eps that counts; a group without any spread; and spreads no larger than eps."""
    large, level, small = (probe(shape)[0] for shape in ((1, 6, 2, 3), (2, 4, 3, 2), (1, 4, 4, 2)))
    level[:, :2] = 2.0
    # 480 * large + 500: no result is near the middle of two float16 numbers, where right answers round differently.
    return [((480 * large + 500).half(), 3), (_MAP, 2, 0.5), (level, 2), (1e-3 * (small - 0.3), 2)]


_MAP = probe((2, 4, 3, 2))[0]
_FAR = 10_000 + probe((2, 4, 4, 4), scale=2.0)[0].round()
_FAR_IN_BFLOAT16 = (100 + probe((2, 4, 4, 4), scale=2.0)[0]).bfloat16()
_judge_values = judge_function(
    _in_double(safe_group_norm),
    _norm_probes(),
    [(message, _in_double(code)) for message, code in NORM_MISTAKES],
    inputs=("x", "groups", "eps"),
)


_TILE_PROBES: list[Probe] = [(12, 4, 3), (10, 0, 5), (9, 4, 0), (6, 0, 0), (8, 4, 4)]
_POOL_PROBES: list[Probe] = [
    (probe((3, 4))[0], probe((3, 4), scale=0.5)[0].abs() + 0.1, torch.tensor([6.0, 10.0, 1.0])),
    (
        probe((2, 1))[0],
        probe((2, 1), scale=0.5)[0].abs() + 0.1,
        torch.tensor([5, 2]),
    ),  # whole numbers, as in the notebook
]
_ROW_PROBES: list[Probe] = [(23, 7, 2, 1, 3, 4), (10, 0, 1, 2, 4, 1), (8, 3, 0, 0, 1, 5), (9, 1, 4, 3, 5, 0)]
_COST_PROBES: list[Probe] = [(5.9e6, 17.0, 8, 0.8, 2.5), (1e6, 40.0, 1, 1.0, 0.3), (2e5, 3.0, 2, 0.5, 1.5)]


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        id="12.1",
        title="The weights of a tile",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=ramp,
        in_package=(tiling.placements,),
        hints=(
            "Four cells: 0.125, 0.375, 0.625, 0.875. Read the other way round they are the neighbour's.",
            "(torch.arange(before) + 0.5) / before rises; one minus the same, or flip(0), falls.",
            "With after = 0, weights[-after:] is the whole tile: count from the front, weights[length - after:].",
        ),
        judge=judge_function(ramp, _TILE_PROBES, RAMP_MISTAKES, inputs=("length", "before", "after")),
    ),
    Exercise(
        id="12.2",
        title="The statistics of all tiles",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=pooled,
        in_package=(tiling.GlobalStatistics.pooled,),
        hints=(
            "counts / counts.sum() are the shares; as a column, [:, None], they multiply (tiles, groups).",
            "The mean is (share * means).sum(0).",
            "Each tile's variance, plus the square of its mean's distance from the mean of all; then weigh and sum.",
        ),
        judge=judge_function(
            pooled, _POOL_PROBES, POOL_MISTAKES, inputs=("means", "variances", "counts"), outputs=("mean", "variance")
        ),
    ),
    Exercise(
        id="12.3",
        title="GroupNorm in 16 bits",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=3,
        reference=safe_group_norm,
        in_package=(in_float32,),
        hints=(
            "x.float() before anything is squared, .to(x.dtype) on the result.",
            "x.float().reshape(len(x), groups, -1): the statistics go over the last axis, with correction=0.",
            "grouped minus its mean, times (variance + eps).rsqrt(), .view_as(x).to(x.dtype).",
        ),
        judge=_judge_norm,
    ),
    Exercise(
        id="12.4",
        title="What a reader has left",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=rows_left,
        in_package=(ShardReader,),
        hints=(
            "The order must come out alike in every reader: one generator, seeded with seed + epoch.",
            "order[reader::readers] takes every readers-th from number `reader` on.",
            "Leave out the first `done` of *these*: [done:] comes last.",
        ),
        judge=adapted(
            judge_function(
                _as_floats(rows_left),
                _ROW_PROBES,
                [(message, _as_floats(code)) for message, code in ROWS_MISTAKES],
                inputs=("count", "seed", "epoch", "reader", "readers", "done"),
            ),
            _as_floats,
        ),
    ),
    Exercise(
        id="12.5",
        title="Days and money",
        notebook=NOTEBOOK,
        minutes=5,
        difficulty=1,
        reference=cost,
        in_package=(load_recipe,),
        hints=(
            "All machines together do crops_per_second * machines * efficiency.",
            "Seconds divided by 3600 are hours; the price is for an hour of one machine.",
        ),
        judge=adapted(
            judge_function(
                _as_tensors(cost),
                _COST_PROBES,
                [(message, _as_tensors(code)) for message, code in COST_MISTAKES],
                inputs=("crops", "crops_per_second", "machines", "efficiency", "price"),
                outputs=("the days", "the money"),
            ),
            _as_tensors,
        ),
    ),
)
