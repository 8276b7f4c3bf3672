"""The exercises of notebook 12, scaling up."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klvae_edu.data.shards import ShardReader
from klvae_edu.exercises.attempt import Attempt, Blank, OpenGap, call, recipe
from klvae_edu.exercises.exercise import Exercise, Mistakes
from klvae_edu.exercises.judges.functions import Probe, judge_function, probe, same, through_recipe
from klvae_edu.exercises.solutions.nb12 import cost, pooled, ramp, rows_left, safe_group_norm
from klvae_edu.performance import tiling
from klvae_edu.performance.upcast import in_float32
from klvae_edu.training.recipes import load_recipe

NOTEBOOK = "12_scaling_up"


# 12.1

_Ramp = Callable[[int], Tensor]  # of so many cells, rising


def _middles(count: int) -> Tensor:
    return (torch.arange(count) + 0.5) / max(count, 1)


def _sigmoid(limit: float, count: int) -> Tensor:
    return torch.linspace(-limit, limit, count).sigmoid()


def _ramps(rising: _Ramp = _middles, falling: _Ramp = _middles) -> Callable[..., Tensor]:
    """The weights with other ramps; `falling` is given as it rises, read backwards."""

    def weights(length, before, after):
        found = torch.ones(length)
        found[:before] = rising(before)
        found[length - after :] = falling(after).flip(0)
        return found

    return weights


def _overlaps(change: Callable[[int, int], tuple[int, int]]) -> Callable[..., Tensor]:
    """With other overlaps, made of (before, after)."""
    return lambda length, before, after: ramp(length, *change(before, after))


_EVENLY = "here the weight rises evenly"
_OTHER_RAMPS: dict[str, _Ramp] = {
    "the ramp begins at 0 and ends at 1: take the middles of the cells (+ 0.5)": lambda n: torch.linspace(0, 1, n),
    "the ramp has steps of 1 / (n + 1): take steps of 1 / n, from 0.5 / n on": lambda n: (
        (torch.arange(n) + 1) / (n + 1)
    ),
    "the ramp begins at 0: take the middles of the cells (+ 0.5)": lambda n: torch.arange(n) / max(n, 1),
    "the ramp ends at 1: take the middles of the cells (+ 0.5)": lambda n: (torch.arange(n) + 1) / max(n, 1),
    "1.5 is added to the number of the cell: its middle is at + 0.5": lambda n: (torch.arange(n) + 1.5) / max(n, 1),
    "0.5 is added after the division: first + 0.5, then / n": lambda n: torch.arange(n) / max(n, 1) + 0.5,
    "only 0.5 is divided: put brackets around i + 0.5": lambda n: torch.arange(n) + 0.5 / max(n, 1),
    f"the ramp is a wave of a cosine: {_EVENLY}": lambda n: 0.5 - 0.5 * torch.cos(torch.pi * _middles(n)),
    f"the ramp is a wave of a sine: {_EVENLY}": lambda n: torch.sin(torch.pi / 2 * _middles(n)),
    f"the ramp is smoothed, 3m² - 2m³: {_EVENLY}": lambda n: 3 * _middles(n) ** 2 - 2 * _middles(n) ** 3,
    **{f"the ramp is a sigmoid from -{k} to {k}: {_EVENLY}": partial(_sigmoid, k) for k in (3, 4, 5, 6, 8, 10)},
    "the ramp is squared: the weights, and not their roots, must add up to one": lambda n: _middles(n) ** 2,
    "the ramp is under a root: the weights, and not their squares, must add up to one": lambda n: _middles(n).sqrt(),
    "the ramp is divided by n + 1: divide by n": lambda n: (torch.arange(n) + 0.5) / (n + 1),
    "the ramp is not divided by its number of cells: weights are between 0 and 1": lambda n: torch.arange(n) + 0.5,
    "the ramp reaches one half only: it rises to one": lambda n: _middles(n) / 2,
    "the ramp begins at one half: it rises from 0": lambda n: 0.5 + _middles(n) / 2,
    "the ramp is twice as steep: it rises over all n cells": lambda n: (2 * _middles(n)).clamp(max=1),
    "one half everywhere in the overlap leaves a seam at both ends: let the weight rise": lambda n: (
        0 * _middles(n) + 0.5
    ),
    "the ramp is 0: a whole division, or no ramp at all": torch.zeros,
    "the ramp runs the wrong way: the first cells rise from 0, the last ones fall to 0": lambda n: _middles(n).flip(0),
    "there is no ramp, the weights stay at one: the neighbour's change there": torch.ones,
}
_OTHER_OVERLAPS: dict[str, Callable[[int, int], tuple[int, int]]] = {
    "`before` and `after` are exchanged: the first `before` cells rise": lambda before, after: (after, before),
    "the falling ramp is as long as the rising one: it has `after` cells": lambda before, after: (before, before),
    "the rising ramp is as long as the falling one: it has `before` cells": lambda before, after: (after, after),
    "both ramps have the larger overlap: each has its own": lambda before, after: (max(before, after),) * 2,
    "both ramps have the smaller overlap: each has its own": lambda before, after: (min(before, after),) * 2,
    "both ramps have 4 cells, whatever `before` and `after` are": lambda before, after: (4, 4),
    "a tile at the border has no ramp at all: the side that it shares has one": lambda before, after: (
        (before, after) if before and after else (0, 0)
    ),
    "the first tile has no falling ramp: with before = 0 only the rising one is left out": lambda before, after: (
        (before, after if before else 0)
    ),
    "the last tile has no rising ramp: with after = 0 only the falling one is left out": lambda before, after: (
        (before if after else 0, after)
    ),
}
RAMP_MISTAKES = Mistakes(
    {
        **{what: _ramps(ramp_of, ramp_of) for what, ramp_of in _OTHER_RAMPS.items()},
        **{f"where it rises, {what}": _ramps(rising=ramp_of) for what, ramp_of in _OTHER_RAMPS.items()},
        **{
            f"where it falls, read backwards, {what}": _ramps(_middles, ramp_of)
            for what, ramp_of in _OTHER_RAMPS.items()
        },
        **{what: _overlaps(change) for what, change in _OTHER_OVERLAPS.items()},
        "the ramp begins at 0 where it rises, and at 1 where it falls: take the middles of the cells (+ 0.5)": _ramps(
            lambda n: torch.arange(n) / max(n, 1), lambda n: (torch.arange(n) + 1) / max(n, 1)
        ),
        "the ramp ends at 1 where it rises, and at 0 where it falls: take the middles of the cells (+ 0.5)": _ramps(
            lambda n: (torch.arange(n) + 1) / max(n, 1), lambda n: torch.arange(n) / max(n, 1)
        ),
        "the weights are divided by their sum: neighbours' add up to one, not those of one tile": (
            lambda length, before, after: ramp(length, before, after) / ramp(length, before, after).sum()
        ),
        "the weights are those of two dimensions: those along one axis are asked for, (length,)": (
            lambda length, before, after: ramp(length, before, after)[:, None] * ramp(length, before, after)
        ),
        "a triangle over the whole tile: it rises over `before` cells only, and falls over `after`": (
            lambda length, before, after: 2 * torch.minimum(_middles(length), _middles(length).flip(0))
        ),
        "the ramps go on, above one: the weights in the middle are one": (
            lambda length, before, after: torch.minimum(
                (torch.arange(length) + 0.5) / before, (length - 0.5 - torch.arange(length)) / after
            )
        ),
        "the ramps are put around the tile: they are its own first and last cells, `length` in all": (
            lambda length, before, after: torch.cat([_middles(before), torch.ones(length), _middles(after).flip(0)])
        ),
        "the falling ramp is put behind the tile: it is its own last cells, `length` in all": (
            lambda length, before, after: torch.cat([ramp(length, before, 0), _middles(after).flip(0)])
        ),
        "the cells between the ramps are left out: they stay at one, `length` cells in all": (
            lambda length, before, after: torch.cat([_middles(before), _middles(after).flip(0)])
        ),
        "the cells between the ramps are 0: begin with torch.ones": lambda length, before, after: torch.cat(
            [_middles(before), torch.zeros(length - before - after), _middles(after).flip(0)]
        ),
    }.items()
)


@RAMP_MISTAKES("divided by the whole length: a ramp over `before` cells has steps of 1 / before")
def ramp_over_the_length(length, before, after):
    weights = torch.ones(length)
    weights[:before] = (torch.arange(before) + 0.5) / length
    weights[length - after :] = 1 - (torch.arange(after) + 0.5) / length
    return weights


@RAMP_MISTAKES("the falling ramp is cut from the rising one, 1 - rising: it has its own slope")
def ramp_falling_as_it_rises(length, before, after):
    weights = torch.ones(length)
    weights[:before] = _middles(before)
    weights[length - after :] = (1 - _middles(before))[:after]
    return weights


@RAMP_MISTAKES("weights[-0] is the first cell: the last one is weights[-1]")
def ramp_counted_from_minus_zero(length, before, after):
    weights = ramp(length, before, 0)
    for i in range(after):
        weights[-i] = (i + 0.5) / after
    return weights


@RAMP_MISTAKES("the falling ramp begins one cell too early: it takes the cells from length - after on")
def ramp_falling_too_early(length, before, after):
    weights = torch.ones(length)
    weights[:before] = _middles(before)
    weights[length - after - 1 : length - 1] = _middles(after).flip(0)
    return weights


@RAMP_MISTAKES("with after = 0 the last cells are lost: weights[-0:] is everything, write weights[length - after:]")
def ramp_multiplied_from_minus_zero(length, before, after):
    weights = torch.ones(length)
    weights[:before] *= _middles(before)
    weights[-after:] *= _middles(after).flip(0) if after else 0
    return weights


@RAMP_MISTAKES("with after = 0 the slice weights[-0:] is the whole tile: write weights[length - after:]")
def ramp_assigned_from_minus_zero(length, before, after):
    weights = torch.ones(length)
    weights[:before] = _middles(before)
    weights[-after:] = _middles(after).flip(0)
    return weights


# 12.2


def _share(counts: Tensor) -> Tensor:
    return (counts / counts.sum())[:, None]


def _mean(means: Tensor, share: Tensor) -> Tensor:
    return (share * means).sum(0)


def _variance(means: Tensor, variances: Tensor, distances: Tensor, share: Tensor) -> Tensor:
    return (share * (variances + distances**2)).sum(0)


def _pooling(
    variance: Callable[..., Tensor] = _variance,
    mean: Callable[[Tensor, Tensor], Tensor] = _mean,
    share: Callable[[Tensor], Tensor] = _share,
) -> Callable[..., Any]:
    """The statistics with another variance(means, variances, distances, share), another mean, or other shares."""

    def statistics(means, variances, counts):
        shares = share(counts)
        mean_of_all = mean(means, shares)
        return mean_of_all, variance(means, variances, means - mean_of_all, shares)

    return statistics


def _weighing(summand: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    """With another summand of the variance, made of (variances, distances)."""
    return _pooling(lambda m, v, d, p: (p * summand(v, d)).sum(0))


# Of the tiles: means m, variances v, distances d of their means from the mean of all, shares p, numbers of cells n
_OTHER_SUMMANDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "the variances within the tiles alone: their means' distances, each one squared, do not come in": lambda v, d: v,
    "only the spread between the means: the variances within the tiles are missing": lambda v, d: d**2,
    "the distance of the means is not squared": lambda v, d: v + d.abs(),
    "the spread between the tiles is subtracted: it is added": lambda v, d: v - d**2,
    "the spread between the tiles is counted twice": lambda v, d: v + 2 * d**2,
    "the spread between the tiles is halved": lambda v, d: v + d**2 / 2,
    "variance and squared distance are multiplied: they are added": lambda v, d: v * d**2,
    "the variances are squared: they are squares already": lambda v, d: v**2 + d**2,
    "roots of the tiles' variances are taken: variances are added, not deviations": lambda v, d: v.sqrt() + d**2,
    "deviations are added and squared: variances are added": lambda v, d: (v.sqrt() + d.abs()) ** 2,
}
_OTHER_VARIANCES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "the spread between the means is not weighed by the shares": lambda m, v, d, p: (p * v).sum(0) + (d**2).mean(0),
    "the spread between the means has n - 1, and no shares": lambda m, v, d, p: (p * v).sum(0) + m.var(0),
    "the spread between the means is about their plain mean": lambda m, v, d, p: (
        p * v + m.var(0, correction=0) * p
    ).sum(0),
    "the tiles' variances are not weighed by the shares": lambda m, v, d, p: v.mean(0) + (p * d**2).sum(0),
    "neither part of the variance is weighed by the shares": lambda m, v, d, p: (v + d**2).mean(0),
    "the tiles' variances are added up: weigh them by the shares": lambda m, v, d, p: (v + p * d**2).sum(0),
    "nothing is weighed in the variance: multiply both parts by the shares": lambda m, v, d, p: (v + d**2).sum(0),
    "brackets are missing: the share multiplies the sum of both": lambda m, v, d, p: (p * v + d**2).sum(0),
    "the means' squares are added: (means - mean) ** 2 is meant": lambda m, v, d, p: _variance(m, v, m, p),
    "the means are not squared: the mean of squares is variances + means ** 2": lambda m, v, d, p: (
        (p * (v + m)).sum(0) - (m - d)[0] ** 2
    ),
    "the distances are from the plain mean of the tiles": lambda m, v, d, p: _variance(m, v, m - m.mean(0), p),
    "the distances are from the first tile: take the mean of all": lambda m, v, d, p: _variance(m, v, m - m[0], p),
    "the mean of all is added to the means: means - mean": lambda m, v, d, p: _variance(m, v, 2 * m - d, p),
    "deviations are averaged and squared: variances are averaged": lambda m, v, d, p: (p * v.sqrt()).sum(0) ** 2,
    "the shares are squared in the variance: weigh each tile once": lambda m, v, d, p: _variance(m, v, d, p**2),
    "the shares are squared at the variances: weigh each tile once": lambda m, v, d, p: (p**2 * v + p * d**2).sum(0),
    "the shares are squared at the distances: weigh each tile once": lambda m, v, d, p: (p * v + (p * d) ** 2).sum(0),
    "the square is of the whole bracket: only the distance is squared": lambda m, v, d, p: (p * (v + d) ** 2).sum(0),
    "the mean of all squared is added: (means - mean) ** 2 is meant": lambda m, v, d, p: (
        (p * v).sum(0) + (m - d)[0] ** 2
    ),
    "the variance is divided by the tiles less 1": lambda m, v, d, p: _variance(m, v, d, p) / max(len(m) - 1, 1),
    "the tiles' variances are added up, and nothing else": lambda m, v, d, p: v.sum(0),
    "this is the standard deviation: the variance is asked for": lambda m, v, d, p: _variance(m, v, d, p).sqrt(),
    "this is 1 / the standard deviation: the variance is asked for": lambda m, v, d, p: _variance(m, v, d, p).rsqrt(),
    "this is the largest of the tiles' variances": lambda m, v, d, p: v.amax(0),
}
_OTHER_MEANS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "the mean is not weighed by the number of cells: (share * means).sum(0)": lambda m, p: m.mean(0),
    "the means are added up: weigh them by their shares, (share * means).sum(0)": lambda m, p: m.sum(0),
    "the mean is the median of the tiles' means: weigh them by their shares": lambda m, p: m.median(0).values,
    "the mean is the first tile's: weigh all of them by their shares": lambda m, p: m[0],
    "the mean is the last tile's: weigh all of them by their shares": lambda m, p: m[-1],
    "the mean is the largest tile's: weigh all of them by their shares": lambda m, p: m[int(p.argmax())],
    "the mean is averaged once more: shares add up to one, so sum(0)": lambda m, p: (p * m).mean(0),
    "the mean is (1, groups), by keepdim or a slice: (groups,) is asked for": lambda m, p: (p * m).sum(0, keepdim=True),
}
_SHARES = "take counts / counts.sum()"
_OTHER_SHARES: dict[str, Callable[[Tensor], Tensor]] = {
    "every tile counts the same: weigh it by its number of cells": lambda n: torch.full((len(n), 1), 1 / len(n)),
    f"the shares are the counts: {_SHARES}": lambda n: n[:, None],
    "// rounds every share down to 0: divide with /": lambda n: (n // n.sum())[:, None],
    f"the shares are divided by the number of tiles: {_SHARES}": lambda n: n[:, None] / len(n),
    f"the shares are divided by the largest: {_SHARES}": lambda n: n[:, None] / n.max(),
    f"the shares are divided by their norm: {_SHARES}": lambda n: n[:, None] / n.float().norm(),
    f"the shares are divided by their mean: {_SHARES}": lambda n: n[:, None] / n.float().mean(),
    f"the shares are made of counts - 1: {_SHARES}": lambda n: (n - 1)[:, None] / (n - 1).sum(),
    f"the shares are divided by the sum less 1: {_SHARES}": lambda n: n[:, None] / (n.sum() - 1),
    f"the shares are the softmax of the counts: {_SHARES}": lambda n: n.float().softmax(0)[:, None],
    f"the shares are made of roots of the counts: {_SHARES}": lambda n: (n.sqrt() / n.sqrt().sum())[:, None],
    f"the shares are made of the counts' squares: {_SHARES}": lambda n: (n**2 / (n**2).sum())[:, None],
    f"the shares are made of 1 / counts: {_SHARES}": lambda n: (1 / n / (1 / n).sum())[:, None],
    f"the shares are upside down: {_SHARES}": lambda n: n.sum() / n[:, None],
    "the largest tile alone counts: weigh all by their shares": lambda n: (n == n.max()).float()[:, None],
    "the first tile alone counts: weigh all by their shares": lambda n: (n.cumsum(0) == n).float()[:, None],
    "the shares (tiles,) were spread along the groups: make a column of them, [:, None]": lambda n: n / n.sum(),
    "the shares are in the wrong order: each tile has its own": lambda n: (n / n.sum()).flip(0)[:, None],
}
POOL_MISTAKES = Mistakes(
    {
        **{what: _weighing(summand) for what, summand in _OTHER_SUMMANDS.items()},
        **{what: _pooling(variance) for what, variance in _OTHER_VARIANCES.items()},
        **{what: _pooling(mean=mean) for what, mean in _OTHER_MEANS.items()},
        **{what: _pooling(share=share) for what, share in _OTHER_SHARES.items()},
        "neither is weighed by the number of cells, nor is the spread between the tiles in the variance": (
            lambda means, variances, counts: (means.mean(0), variances.mean(0))
        ),
        "only the first two tiles count: weigh all of them": (
            lambda means, variances, counts: pooled(means[:2], variances[:2], counts[:2])
        ),
        "the number of tiles is fixed at 3: sum over dimension 0": (
            lambda means, variances, counts: pooled(means[[0, 1, 2]], variances[[0, 1, 2]], counts[[0, 1, 2]])
        ),
        "the sum goes over the groups: sum over the tiles, dimension 0, so that each group has its own": (
            lambda means, variances, counts: ((_share(counts) * means).sum(1), (_share(counts) * variances).sum(1))
        ),
        "one number for all groups: sum over the tiles alone, dimension 0": _pooling(
            lambda *given: _variance(*given).sum(), lambda m, p: (p * m).sum()
        ),
        "one mean, or one variance, of all groups: each group has its own, so sum over dimension 0": _pooling(
            lambda *given: _variance(*given).mean(), lambda m, p: (p * m).sum() / m.shape[1]
        ),
        "what is weighed by shares is averaged once more: shares add up to one, so sum(0)": _pooling(
            lambda m, v, d, p: (p * (v + d**2)).mean(0), lambda m, p: (p * m).mean(0)
        ),
        "(variance, mean): the mean comes first": (
            lambda means, variances, counts: pooled(means, variances, counts)[::-1]
        ),
        "computed in float16, with 11 bits: leave the numbers in their type": (
            lambda means, variances, counts: pooled(means.half(), variances.half(), counts.half())
        ),
    }.items()
)


@POOL_MISTAKES("counts are whole numbers, which @ and einsum refuse beside floats: make shares of them first")
def pooled_by_matrix_product(means, variances, counts):
    mean = counts @ means / counts.sum()
    return mean, counts @ (variances + (means - mean) ** 2) / counts.sum()


@POOL_MISTAKES("corrected to n - 1: norms divide by n, and so do these variances")
def pooled_over_n_minus_one(means, variances, counts):
    mean, variance = pooled(means, variances, counts)
    return mean, variance * counts.sum() / (counts.sum() - 1)


@POOL_MISTAKES("this is the pooled variance of a t-test, which leaves the means out: add (means - mean) ** 2")
def pooled_as_in_a_t_test(means, variances, counts):
    mean, _ = pooled(means, variances, counts)
    return mean, ((counts - 1)[:, None] * variances).sum(0) / (counts.sum() - len(counts))


@POOL_MISTAKES("weighed by 1 / variance, as measurements are: weigh each tile by its number of cells")
def pooled_as_measurements(means, variances, counts):
    share = 1 / variances / (1 / variances).sum(0)
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean) ** 2)).sum(0)


@POOL_MISTAKES("merging one tile after the other, the counts are not added up: n = n + count")
def pooled_forgetting_counts(means, variances, counts):
    mean, variance = means[0], variances[0]
    for i in range(1, len(counts)):
        share = counts[i] / (counts[i] + counts[i - 1])
        variance = (1 - share) * variance + share * variances[i] + share * (1 - share) * (means[i] - mean) ** 2
        mean = mean + share * (means[i] - mean)
    return mean, variance


@recipe
def pooled_beside(answer: Any, means: Tensor, variances: Tensor, counts: Tensor) -> Any:
    """Call it; beside float64 with counts of that type, because whole numbers divided are float32."""
    return call(answer, means, variances, counts if means.dtype == torch.float32 else counts.to(means.dtype))


_POOL_PROBES: list[Probe] = [
    (probe((3, 4))[0], probe((3, 4), scale=0.5)[0].abs() + 0.1, torch.tensor([6.0, 10.0, 1.0])),
    (probe((2, 1))[0], probe((2, 1), scale=0.5)[0].abs() + 0.1, torch.tensor([5, 2])),  # as in the notebook
]


# 12.3


def _grouped(x: Tensor, groups: int) -> Tensor:
    return x.float().reshape(len(x), groups, -1)


def _statistics(grouped: Tensor) -> Any:
    return torch.var_mean(grouped, dim=2, correction=0, keepdim=True)


def _normalised(grouped: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    return (grouped - mean) * (variance + eps).rsqrt()


def _norm(
    grouped: Callable[[Tensor, int], Tensor] = _grouped,
    statistics: Callable[[Tensor], Any] = _statistics,
    normalised: Callable[..., Tensor] = _normalised,
) -> Callable[..., Tensor]:
    """The norm with other groups, other statistics, or another use of them."""

    def norm(x, groups, eps=1e-6):
        values = grouped(x, groups)
        variance, mean = statistics(values)
        return normalised(values, mean, variance, eps).view_as(x).to(x.dtype)

    return norm


def _computed_in(dtype: torch.dtype, x: Tensor, groups: int) -> Tensor:
    return x.to(dtype).reshape(len(x), groups, -1)


def _given_back_in(dtype: torch.dtype) -> Callable[..., Tensor]:
    return lambda x, groups, eps=1e-6: safe_group_norm(x, groups, eps).to(dtype)


def _with_eps(own: float) -> Callable[..., Tensor]:
    return lambda x, groups, eps=1e-6: safe_group_norm(x, groups, own)


_OUTGROWN = "the squares outgrow float16: convert x to float32 first, and keep mean and variance in it"
_OUTGROWN_AND_CORRECTED = (
    "the squares outgrow float16, so convert x to float32 first; and the variance is divided by n - 1: GroupNorm "
    "divides by n (correction=0)"
)
_PARTLY = (
    "right for small float32 maps, not for large float16 ones: convert x once, at the start, and neither round nor "
    "clamp it"
)
_BFLOAT_LEFT = "a bfloat16 map is normalised in bfloat16, with 8 bits: convert it to float32, too"
_IN_ONE_TYPE = {
    torch.float32: "it comes back in float32: give back the type of x",
    torch.float16: "it comes back in float16 whatever came: give back the type of x, x.dtype",
    torch.bfloat16: "it comes back in bfloat16 whatever came: give back the type of x, x.dtype",
    torch.float64: "it comes back in float64 whatever came: give back the type of x, x.dtype",
}
_ROUNDED = {  # bfloat16 first: its 8 bits are among float16's 11
    torch.bfloat16: "bfloat16 has the range, not the precision: take the statistics in float32",
    torch.float16: "a float32 map is computed in float16, with 11 bits: take the statistics in float32",
}
_FAR_FROM_ZERO = (
    "far from zero the mean square less the squared mean is rounding, no variance: subtract the mean before you square"
)
_WHOLE = "the statistics are those of a whole group"
_OTHER_GROUPS: dict[str, Callable[[Tensor, int], Tensor]] = {
    _OUTGROWN: lambda x, groups: x.reshape(len(x), groups, -1),
    _BFLOAT_LEFT: lambda x, groups: (x.float() if x.dtype == torch.float16 else x).reshape(len(x), groups, -1),
    **{message: partial(_computed_in, dtype) for dtype, message in _ROUNDED.items()},
    "x is rounded to bfloat16 first, with 8 bits: convert it to float32": lambda x, groups: _grouped(
        x.bfloat16(), groups
    ),
    "x is rounded to float16 first, with 11 bits: convert it to float32": lambda x, groups: _grouped(x.half(), groups),
    f"every channel is normalised for itself: {_WHOLE}": lambda x, groups: x.float().flatten(2),
    f"every row is normalised for itself: {_WHOLE}": lambda x, groups: x.float().flatten(0, 1),
    f"every pixel is normalised for itself: {_WHOLE}": lambda x, groups: x.float().unflatten(1, (groups, -1)),
    f"every pixel is normalised over all channels: {_WHOLE}": lambda x, groups: x.float()[:, None],
    "the statistics go over all channels: each group has its own": lambda x, groups: x.float().reshape(len(x), 1, -1),
    "the images are mixed up: reshape(len(x), groups, -1)": lambda x, groups: x.float().reshape(1, groups, -1),
    "`groups` is taken for the size of a group: it is their number": lambda x, groups: (
        x.float().unflatten(1, (-1, groups)).flatten(2)
    ),
    "the number of groups is fixed at 2: use `groups`": lambda x, groups: x.float().reshape(len(x), 2, -1),
    "the map is clamped, so that its squares fit into float16: convert it to float32 instead": lambda x, groups: (
        x.clamp(-255, 255).float().reshape(len(x), groups, -1)
    ),
    "the map is divided by its largest value: convert it to float32 instead": lambda x, groups: (
        x.float() / x.float().abs().max()
    ).reshape(len(x), groups, -1),
}
_OTHER_STATISTICS: dict[str, Callable[[Tensor], Any]] = {
    _FAR_FROM_ZERO: lambda g: (g.square().mean(2, True) - g.mean(2, True).square(), g.mean(2, True)),
    "the statistics go over the batch: each image has its own": lambda g: torch.var_mean(
        g, dim=(0, 2), correction=0, keepdim=True
    ),
    "the statistics are the first image's: each image has its own": lambda g: _statistics(g[:1]),
    "the variance is divided by n - 1: GroupNorm divides by n (correction=0)": lambda g: torch.var_mean(
        g, dim=2, keepdim=True
    ),
    "mean and variance are exchanged: torch.var_mean gives the variance first": lambda g: _statistics(g)[::-1],
    "the statistics have lost a dimension: keepdim=True, so that they broadcast": lambda g: torch.var_mean(
        g, dim=2, correction=0
    ),
    "the variance is the mean square: it is about the mean": lambda g: (g.square().mean(2, True), g.mean(2, True)),
    "the squares are added up, and not averaged": lambda g: (_statistics(g)[0] * g.shape[2], g.mean(2, True)),
    "the median is subtracted, and not the mean": lambda g: (_statistics(g)[0], g.median(2, True).values),
    "the mean goes over all groups: each group has its own": lambda g: (_statistics(g)[0], g.mean((1, 2), True)),
    "the variance goes over all groups: each group has its own": lambda g: (
        g.var((1, 2), correction=0, keepdim=True),
        g.mean(2, True),
    ),
}
_OTHER_SCALES: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {  # of group, mean, variance, eps
    "the mean is not subtracted": lambda g, m, v, eps: g * (v + eps).rsqrt(),
    "this is an RMS norm: the mean is subtracted, from x and in the variance": lambda g, m, v, eps: (
        g * (v + m**2 + eps).rsqrt()
    ),
    "only the mean is subtracted: divide by the root of the variance, too": lambda g, m, v, eps: g - m,
    "the mean is added: it is subtracted": lambda g, m, v, eps: (g + m) * (v + eps).rsqrt(),
    "the mean is subtracted after the division: brackets around x - mean": lambda g, m, v, eps: (
        g * (v + eps).rsqrt() - m
    ),
    "it is divided by the variance: its root is missing": lambda g, m, v, eps: (g - m) / (v + eps),
    "the root is taken twice: divide by the root of the variance": lambda g, m, v, eps: (g - m) / (v + eps) ** 0.25,
    "it is multiplied by the deviation: divide by it, or take rsqrt": lambda g, m, v, eps: (g - m) * (v + eps).sqrt(),
    "a constant map becomes NaN: add eps to the variance, under the root": lambda g, m, v, eps: (g - m) * v.rsqrt(),
    "eps is added to the deviation: it belongs to the variance": lambda g, m, v, eps: (g - m) / (v.sqrt() + eps),
    "eps is a lower limit of the variance: it is added to it": lambda g, m, v, eps: (g - m) * v.clamp(min=eps).rsqrt(),
    "eps is subtracted: it is added to the variance": lambda g, m, v, eps: (g - m) * (v - eps).abs().rsqrt(),
    "the mean absolute deviation is no root of the variance: average the squares": lambda g, m, v, eps: (
        (g - m) / ((g - m).abs().mean(2, True) + eps)
    ),
}
NORM_MISTAKES = Mistakes(
    {
        **{message: _given_back_in(dtype) for dtype, message in _IN_ONE_TYPE.items()},
        **{what: _norm(grouped) for what, grouped in _OTHER_GROUPS.items()},
        **{what: _norm(statistics=statistics) for what, statistics in _OTHER_STATISTICS.items()},
        **{what: _norm(normalised=normalised) for what, normalised in _OTHER_SCALES.items()},
        **{f"eps is always {own}: use the one that came": _with_eps(own) for own in (1e-5, 1e-6, 1e-8)},
        _OUTGROWN_AND_CORRECTED: _norm(
            lambda x, groups: x.reshape(len(x), groups, -1), lambda g: torch.var_mean(g, dim=2, keepdim=True)
        ),
        "the channels of a group lie apart: a group is neighbouring channels, reshape(len(x), groups, -1)": _norm(
            lambda x, groups: x.float().unflatten(1, (-1, groups)),
            lambda g: torch.var_mean(g, dim=(1, 3, 4), correction=0, keepdim=True),
        ),
        "neighbouring pixels are dealt to different groups: the groups come first, reshape(len(x), groups, -1)": _norm(
            lambda x, groups: x.float().reshape(len(x), -1, groups),
            lambda g: torch.var_mean(g, dim=1, correction=0, keepdim=True),
        ),
        "this is a batch norm, each channel over all images: each group of each image has its own": _norm(
            lambda x, groups: x.float().flatten(2),
            lambda g: torch.var_mean(g, dim=(0, 2), correction=0, keepdim=True),
        ),
        "eps is squared: it is added to the variance as it is": (
            lambda x, groups, eps=1e-6: safe_group_norm(x, groups, eps**2)
        ),
        "eps has another default, 1e-5: it is 1e-6": lambda x, groups, eps=1e-5: safe_group_norm(x, groups, eps),
        "the result is still grouped: give it the shape of x again, view_as(x)": (
            lambda x, groups, eps=1e-6: safe_group_norm(x, groups, eps).reshape(len(x), groups, -1)
        ),
    }.items()
)


@NORM_MISTAKES(_PARTLY)
def norm_with_statistics_converted_back(x, groups, eps=1e-6):
    variance, mean = _statistics(_grouped(x, groups))
    grouped = x.reshape(len(x), groups, -1)
    return ((grouped - mean.to(x.dtype)) * (variance + eps).rsqrt().to(x.dtype)).view_as(x)


@NORM_MISTAKES(_PARTLY)
def norm_of_differences_in_half(x, groups, eps=1e-6):
    grouped = x.reshape(len(x), groups, -1)
    difference = (grouped - grouped.mean(2, keepdim=True)).float()
    variance = difference.square().mean(2, keepdim=True)
    return (difference * (variance + eps).rsqrt()).view_as(x).to(x.dtype)


@recipe
def norm_in_double(answer: Any, x: Tensor, groups: int, *eps: float) -> Any:
    """Return the result in float64, to be compared whatever its type is."""
    result = call(answer, x, groups, *eps)
    return result.double() if isinstance(result, Tensor) else result


def _norm_probes() -> list[Probe]:
    """Squares too large for float16; an eps that counts; a group without any spread; and spreads no larger than eps."""
    large, level, small = (probe(shape)[0] for shape in ((1, 6, 2, 3), (2, 6, 3, 2), (1, 4, 4, 2)))
    level[:, :3] = 2.0
    # 480 * large + 500: no result is near the middle of two float16 numbers, where right answers round differently.
    return [((480 * large + 500).half(), 3), (_MAP, 2, 0.5), (level, 2), (1e-3 * (small - 0.3), 2)]


_MAP = probe((2, 4, 3, 2))[0]
_FAR = 10_000 + probe((2, 4, 4, 4), scale=2.0)[0].round()
_FAR_IN_BFLOAT16 = (100 + probe((2, 4, 4, 4), scale=2.0)[0]).bfloat16()
_judge_values = judge_function(
    partial(norm_in_double, safe_group_norm),
    _norm_probes(),
    through_recipe(norm_in_double, NORM_MISTAKES),
    inputs=("x", "groups", "eps"),
    through=norm_in_double,
)


_judge_gradient = judge_function(safe_group_norm, [(_MAP, 2, 0.5)], [], inputs=("x", "groups", "eps"), gradients=("x",))


def _judge_norm(attempt: Attempt) -> str | None:
    """First the type, then the values, then single maps far from zero, and the gradient."""
    complaint = _judge_type(attempt) or _judge_values(attempt)
    if complaint in dict(NORM_MISTAKES):
        return complaint
    if complaint:
        return _name_by_half(attempt) or complaint
    for x, message in ((_FAR, _FAR_FROM_ZERO), (_FAR_IN_BFLOAT16, _BFLOAT_LEFT)):  # right answers round differently
        found = attempt.run(norm_in_double, x.clone(), 2, 1e-6)
        if not (found - safe_group_norm(x, 2)).abs().max() < 0.03:
            return message
    return _judge_gradient(attempt)


def _name_by_half(attempt: Attempt) -> str | None:
    """Name what is right for float32 maps, or right but for n - 1, and wrong for float16: 0, or rounded."""
    probes = _norm_probes()
    try:
        results = [attempt.run(norm_in_double, *copy.deepcopy(arguments)) for arguments in probes]
    except Exception:
        return None

    def right(reference: Callable[..., Tensor]) -> list[bool]:
        return [
            same(result, norm_in_double(reference, *arguments))
            for result, arguments in zip(results, probes, strict=True)
        ]

    zeros = isinstance(results[0], Tensor) and bool((results[0] == 0).any())
    if zeros and all(right(_norm(statistics=partial(torch.var_mean, dim=2, keepdim=True)))[1:]):
        return _OUTGROWN_AND_CORRECTED
    half, *others = right(safe_group_norm)
    if half or not all(others):
        return None
    return _OUTGROWN if zeros else _PARTLY


def _judge_type(attempt: Attempt) -> str | None:
    try:
        results = [attempt.run(call, _MAP.to(dtype, copy=True), 2) for dtype in (torch.float32, *_ROUNDED)]
    except (Blank, OpenGap):
        raise
    except Exception:  # told with the values
        return None
    if not all(isinstance(result, Tensor) for result in results):
        return None
    types = {result.dtype for result in results}
    if len(types) == 1:
        return _IN_ONE_TYPE.get(types.pop())
    if not same(results[0], safe_group_norm(_MAP, 2)):
        for dtype, message in _ROUNDED.items():
            if torch.equal(results[0], results[0].to(dtype).to(results[0].dtype)):
                return message
    return None


# 12.4


def _seeded_by(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _shuffled(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=_seeded_by(seed))


def _shuffled_by_python(count: int, seed: int) -> list[int]:
    order = [*range(count)]
    random.Random(seed).shuffle(order)
    return order


def _seeded(change: Callable[[int, int, int], int]) -> Callable[..., Tensor]:
    """Another seed, made of (seed, epoch, reader)."""
    return lambda count, seed, epoch, reader, readers, done: rows_left(
        count, change(seed, epoch, reader), 0, reader, readers, done
    )


def _ordered(order: Callable[[int, int], Any]) -> Callable[..., Any]:
    """Another order, made of (count, seed + epoch)."""
    return lambda count, seed, epoch, reader, readers, done: order(count, seed + epoch)[reader::readers][done:]


def _deal(share: Callable[[Tensor, int, int, int], Any]) -> Callable[..., Any]:
    """Another share(order, reader, readers, done) of the order."""
    return lambda count, seed, epoch, reader, readers, done: share(
        _shuffled(count, seed + epoch), reader, readers, done
    )


def _left(change: Callable[[Tensor, int], Any]) -> Callable[..., Any]:
    """Another end: change(this reader's rows, done)."""
    return _deal(lambda order, reader, readers, done: change(order[reader::readers], done))


_OTHER_SEEDS: dict[str, Callable[[int, int, int], int]] = {
    "seed + epoch + reader, so that rows come twice or never": lambda s, e, r: s + e + r,
    "seed + reader, so that rows come twice or never": lambda s, e, r: s + r,
    "seed, the same in every pass": lambda s, e, r: s,
    "epoch": lambda s, e, r: e,
    "seed · epoch": lambda s, e, r: s * e,
    "seed - epoch": lambda s, e, r: s - e,
    "seed + epoch + 1": lambda s, e, r: s + e + 1,
    "seed · 1000 + epoch": lambda s, e, r: s * 1000 + e,
    "the digits of both": lambda s, e, r: int(f"{s}{e}"),
    "a hash of both": lambda s, e, r: hash((s, e)),
    "seed ** epoch": lambda s, e, r: s**e,
    "seed ^ epoch": lambda s, e, r: s ^ e,
    "0": lambda s, e, r: 0,
}
_OTHER = "torch.randperm gives another order for the same seed"
_OTHER_ORDERS: dict[str, Callable[[int, int], Any]] = {  # of the number of rows, and the seed
    "nothing is shuffled, or these are places in the order: return the rows that stand there": lambda n, s: (
        torch.arange(n)
    ),
    "the generator is not seeded: torch.Generator().manual_seed(seed + epoch)": lambda n, s: torch.randperm(
        n, generator=torch.Generator()
    ),
    f"the order is NumPy's: {_OTHER}": lambda n, s: np.random.default_rng(s).permutation(n),
    f"the order is NumPy's old one: {_OTHER}": lambda n, s: np.random.RandomState(s).permutation(n),
    f"the order is that of Python's random: {_OTHER}": _shuffled_by_python,
    f"the order is that of random.sample: {_OTHER}": lambda n, s: random.Random(s).sample(range(n), n),
    f"random numbers are sorted: {_OTHER}": lambda n, s: torch.rand(n, generator=_seeded_by(s)).argsort(),
    "randint draws some rows twice and others never: torch.randperm has each once": lambda n, s: torch.randint(
        n, (n,), generator=_seeded_by(s)
    ),
    "the order is inverted by argsort: take it as randperm gives it": lambda n, s: _shuffled(n, s).argsort(),
    "the order is read backwards": lambda n, s: _shuffled(n, s).flip(0),
    "rows are counted from 1: they are 0 … count - 1": lambda n, s: 1 + _shuffled(n, s),
    "the last row is left out: the order is of all `count` rows": lambda n, s: _shuffled(n - 1, s),
    "the order has one row too many: it is of `count` rows": lambda n, s: _shuffled(n + 1, s),
}
_TURNS = "take turns, order[reader::readers]"
_OWN = "it is counted in this reader's own rows"
_OTHER_SHARES_OF_ROWS: dict[str, Callable[[Tensor, int, int, int], Any]] = {  # of the order, reader, readers, done
    f"`done` is passed over in the order of all readers: {_OWN}": lambda order, r, n, done: order[done:][r::n],
    f"`done` is divided by the readers: {_OWN}": lambda order, r, n, done: order[r::n][done // n :],
    f"`done` is multiplied by the readers: {_OWN}": lambda order, r, n, done: order[r::n][done * n :],
    f"chunks of equal size lose the last rows: {_TURNS}": lambda order, r, n, done: order.split(len(order) // n)[r][
        done:
    ],
    f"torch.chunk leaves less to the last readers, or nothing: {_TURNS}": lambda order, r, n, done: order.chunk(n)[r][
        done:
    ],
    f"chunks are dealt out: {_TURNS}": lambda order, r, n, done: order.tensor_split(n)[r][done:],
    "rows that do not come out even are dropped: some readers have one more": lambda order, r, n, done: order[
        : len(order) // n * n
    ][r::n][done:],
    "rows are repeated until they come out even: some readers have one less": lambda order, r, n, done: torch.cat(
        [order, order[: -len(order) % n]]
    )[r::n][done:],
    f"every reader gets all rows: {_TURNS}": lambda order, r, n, done: order[done:],
    f"every reader gets the same rows: {_TURNS}": lambda order, r, n, done: order[::n][done:],
    f"the reader gets all rows from its first on: {_TURNS}": lambda order, r, n, done: order[r:][done:],
    f"dealt by the rows' numbers: {_TURNS}": lambda order, r, n, done: order[order % n == r][done:],
    f"start and step are exchanged: {_TURNS}": lambda order, r, n, done: order[n :: max(r, 1)][done:],
    f"`done` and `reader` are exchanged: {_TURNS}, then [done:]": lambda order, r, n, done: order[done::n][r:],
    "readers are counted from 0: the first row is number `reader`, not + 1": lambda order, r, n, done: order[
        r + 1 :: n
    ][done:],
    "readers are counted from 0: the first row is number `reader`, not - 1": lambda order, r, n, done: order[
        r - 1 :: n
    ][done:],
    f"`reader` is multiplied by `done`: {_TURNS}, then [done:]": lambda order, r, n, done: order[r * done :: n],
    f"`done` is the end of the slice: {_TURNS}, then [done:]": lambda order, r, n, done: order[r:done:n],
    "the steps are one too wide: they are `readers`": lambda order, r, n, done: order[r :: n + 1][done:],
}
_OTHER_RESTS: dict[str, Callable[[Tensor, int], Any]] = {
    "what it has had comes again: leave out its first `done` rows": lambda mine, done: mine,
    "these are the rows that it has had: the others are left": lambda mine, done: mine[:done],
    "one row too many is passed over: the first `done`, [done:]": lambda mine, done: mine[done + 1 :],
    "the last row that it has had comes again: [done:]": lambda mine, done: mine[max(done - 1, 0) :],
    "the last `done` rows are left out: leave out the first, [done:]": lambda mine, done: mine[: len(mine) - done],
    "the last `done` rows are left out, and with done = 0 all: [done:]": lambda mine, done: mine[:-done],
    "these are the last `done` rows: leave out the first `done`, [done:]": lambda mine, done: mine[-done:],
    "row numbers are compared with `done`: it counts rows, mine[done:]": lambda mine, done: mine[mine >= done],
    "row numbers are compared with `done`, which counts rows: mine[done:]": lambda mine, done: mine[mine > done],
    "only the next row: all that are left are asked for": lambda mine, done: mine[done : done + 1],
    "the last row is lost: [done:] goes up to the end": lambda mine, done: mine[done:-1],
    "sorted, the rows lose their order: leave them as they were shuffled": lambda mine, done: mine[done:].sort().values,
    "sorted before the first `done` are passed over": lambda mine, done: mine.sort().values[done:],
    "read backwards: leave the rows in the order of the shuffle": lambda mine, done: mine[done:].flip(0),
    "this is how many rows are left: the rows themselves are asked for": lambda mine, done: len(mine[done:]),
    "row numbers are whole numbers: leave them as randperm gives them": lambda mine, done: mine[done:].float(),
}
ROWS_MISTAKES = Mistakes(
    {
        **{f"the seed is {what}: take seed + epoch": _seeded(other) for what, other in _OTHER_SEEDS.items()},
        **{what: _ordered(order) for what, order in _OTHER_ORDERS.items()},
        **{what: _deal(share) for what, share in _OTHER_SHARES_OF_ROWS.items()},
        **{what: _left(rest) for what, rest in _OTHER_RESTS.items()},
    }.items()
)


@ROWS_MISTAKES("one generator draws the orders of all passes in turn: pass `epoch` has a seed of its own, seed + epoch")
def rows_drawn_in_turn(count, seed, epoch, reader, readers, done):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epoch + 1):
        order = torch.randperm(count, generator=generator)
    return order[reader::readers][done:]


@ROWS_MISTAKES("the rows are split before they are shuffled: a reader would see the same ones in every pass")
def rows_split_first(count, seed, epoch, reader, readers, done):
    mine = torch.arange(count)[reader::readers]
    return mine[_shuffled(len(mine), seed + epoch)][done:]


@ROWS_MISTAKES(
    "it draws from the generator that all of PyTorch shares, and so changes what everything else draws: give randperm "
    "one of its own, generator=torch.Generator().manual_seed(…)"
)
def rows_by_the_shared_generator(count, seed, epoch, reader, readers, done):
    torch.manual_seed(seed + epoch)
    return torch.randperm(count)[reader::readers][done:]


_GENERATOR = torch.Generator()


@ROWS_MISTAKES("a second call gives other rows: make a generator anew in each call, seeded with seed + epoch")
def rows_by_a_lasting_generator(count, seed, epoch, reader, readers, done):
    if _GENERATOR.initial_seed() != seed + epoch:
        _GENERATOR.manual_seed(seed + epoch)
    return torch.randperm(count, generator=_GENERATOR)[reader::readers][done:]


@ROWS_MISTAKES("randperm takes its generator by name: generator=…")
def rows_with_a_generator_without_a_name(count, seed, epoch, reader, readers, done):
    order = torch.randperm(count, torch.Generator().manual_seed(seed + epoch))  # type: ignore[call-overload]
    return order[reader::readers][done:]


@recipe
def row_numbers(answer: Any, *arguments: int) -> Any:
    """Return row numbers, in a tensor, an array, a list or a tuple, as floating-point values, which judges compare.

    Raises:
        ValueError: the shared random state of PyTorch has changed, or a second call gives other rows.
        TypeError: the row numbers are no whole numbers.
    """
    before = torch.get_rng_state()
    found, again = (_in_tensor(call(answer, *arguments)) for _ in range(2))
    if not torch.equal(torch.get_rng_state(), before):
        raise ValueError("PyTorch's shared random state is changed")
    if not isinstance(found, Tensor):
        return found
    if not torch.equal(found, again):
        raise ValueError("a second call gives other rows")
    if found.is_floating_point() and found.ndim:
        raise TypeError("row numbers are whole numbers")
    return found.double()


def _in_tensor(rows: Any) -> Any:
    if isinstance(rows, (list, tuple, range, np.ndarray)) and all(np.ndim(row) == 0 for row in rows):
        return torch.as_tensor([*rows], dtype=torch.long)
    return torch.tensor(rows) if isinstance(rows, int) else rows


# 12.5


def _hours(crops: float, rate: float, machines: int, efficiency: float) -> float:
    return crops / (rate * machines * efficiency) / 3600


def _costs(
    hours: Callable[[float, float, int, float], float] = _hours,
    days: Callable[[float, int, float, float], float] = lambda h, n, e, p: h / 24,
    money: Callable[[float, int, float, float], float] = lambda h, n, e, p: h * n * p,
) -> Callable[..., Any]:
    """Other hours, or other days or money made of them."""

    def costs(crops, crops_per_second, machines=1, efficiency=1.0, price=1.0):
        given = hours(crops, crops_per_second, machines, efficiency), machines, efficiency, price
        return days(*given), money(*given)

    return costs


# Of crops, crops per second (rate), machines (n) and their efficiency (e)
_OTHER_HOURS: dict[str, Callable[[float, float, int, float], float]] = {
    "multiplied by the efficiency: waiting takes longer, so divide by it": lambda crops, rate, n, e: (
        crops / rate / n * e / 3600
    ),
    "the lost part, 1 - efficiency, is added: divide by the efficiency": lambda crops, rate, n, e: (
        crops / (rate * n) * (2 - e) / 3600
    ),
    "the efficiency is missing: machines that wait do less": lambda crops, rate, n, e: crops / (rate * n) / 3600,
    "divided by 1 - efficiency: divide by the efficiency": lambda crops, rate, n, e: (
        crops / (rate * n * (1 - e)) / 3600
    ),
    "efficiency ** machines: it is that of all together": lambda crops, rate, n, e: crops / (rate * n * e**n) / 3600,
    "machines ** efficiency: multiply them by it": lambda crops, rate, n, e: crops / (rate * n**e) / 3600,
    "the efficiency counts for the other machines only: it is that of all": lambda crops, rate, n, e: (
        crops / (rate * (1 + (n - 1) * e)) / 3600
    ),
    "the efficiency is added to the machines: multiply them by it": lambda crops, rate, n, e: (
        crops / (rate * (n + e)) / 3600
    ),
    "1 + efficiency: divide by the efficiency": lambda crops, rate, n, e: crops / (rate * n) * (1 + e) / 3600,
    "the efficiency is squared": lambda crops, rate, n, e: crops / (rate * n * e**2) / 3600,
    "the root of the efficiency is taken": lambda crops, rate, n, e: crops / (rate * n * e**0.5) / 3600,
    "the time is that of one machine: they share the work": lambda crops, rate, n, e: crops / (rate * e) / 3600,
    "the time is that of one machine, without waiting": lambda crops, rate, n, e: crops / rate / 3600,
    "the time is multiplied by the machines: they share the work": lambda crops, rate, n, e: (
        crops * n / rate / e / 3600
    ),
    "one machine too few shares the work": lambda crops, rate, n, e: crops / (rate * max(n - 1, 1) * e) / 3600,
    "the seconds are divided by 60 once: an hour has 3600": lambda crops, rate, n, e: crops / (rate * n * e) / 60,
    "360 seconds are taken for an hour: it has 3600": lambda crops, rate, n, e: crops / (rate * n * e) / 360,
    "seconds are taken for hours: divide by 3600": lambda crops, rate, n, e: crops / (rate * n * e),
    "the seconds are multiplied by 3600: divide by it": lambda crops, rate, n, e: crops / (rate * n * e) * 3600,
    "brackets are missing: crops / (… * machines * efficiency)": lambda crops, rate, n, e: crops / rate * n * e / 3600,
    "the crops are multiplied by the rate: divide by it": lambda crops, rate, n, e: crops * rate / (n * e) / 3600,
    "the quotient is upside down: crops over crops per second": lambda crops, rate, n, e: rate * n * e / crops / 3600,
    "the crops are fixed at 246,803 · 24: use `crops`": lambda crops, rate, n, e: 246_803 * 24 / (rate * n * e) / 3600,
    "the efficiency is taken for percent: it is a part of 1": lambda crops, rate, n, e: (
        crops / (rate * n * e / 100) / 3600
    ),
    "the hours are rounded up: leave them as they are": lambda *given: math.ceil(_hours(*given)),
    "the hours are cut to whole ones, by int or //: leave them as they are": lambda *given: math.floor(_hours(*given)),
    "the hours are rounded: leave them as they are": lambda *given: round(_hours(*given)),
}
# Of hours (h), machines (n), efficiency (e) and price (p)
_OTHER_DAYS: dict[str, Callable[[float, int, float, float], float]] = {
    "the days are those of one machine: they share the work": lambda h, n, e, p: h * n / 24,
    "the days are divided by the machines once more: the hours know them already": lambda h, n, e, p: h / n / 24,
    "the days are divided by the efficiency once more: the hours know it already": lambda h, n, e, p: h / e / 24,
    "the days are those of an efficiency of 1, or multiplied by it: the hours know it already": lambda h, n, e, p: (
        h * e / 24
    ),
    "these are hours: a day has 24": lambda h, n, e, p: h,
    "multiplied by 24: 24 hours are one day": lambda h, n, e, p: h * 24,
    "a day has 24 hours, not 8: machines work at night": lambda h, n, e, p: h / 8,
    "a day has 24 hours, not 12": lambda h, n, e, p: h / 12,
    "the days are multiplied by the price, which belongs to the money": lambda h, n, e, p: h / 24 * p,
    "the days are rounded up: leave them as they are": lambda h, n, e, p: math.ceil(h / 24),
    "the days are cut to whole ones, by int, // or .days: leave them as they are": lambda h, n, e, p: h // 24,
    "the days are rounded: leave them as they are": lambda h, n, e, p: round(h / 24),
}
_OTHER_MONEY: dict[str, Callable[[float, int, float, float], float]] = {
    "the money is that of one machine: each of them costs": lambda h, n, e, p: h * p,
    "the money is divided by the machines: each of them costs": lambda h, n, e, p: h * p / n,
    "the money counts the machines twice: each of them costs once": lambda h, n, e, p: h * n**2 * p,
    "one machine is free in the money: each of them costs": lambda h, n, e, p: h * (n - 1) * p,
    "only the days know the efficiency: machines cost while they wait, too": lambda h, n, e, p: h * e * n * p,
    "the money is divided by the efficiency once more: the hours know it already": lambda h, n, e, p: h * n * p / e,
    "the price is taken for a day: it is that of an hour": lambda h, n, e, p: h / 24 * n * p,
    "the price is taken for a day, and for all machines: it is that of an hour of one": lambda h, n, e, p: h / 24 * p,
    "the price is taken for a minute: it is that of an hour": lambda h, n, e, p: h * 60 * n * p,
    "the price is taken for a second: it is that of an hour": lambda h, n, e, p: h * 3600 * n * p,
    "the money is 24 times too much: the price is that of an hour": lambda h, n, e, p: h * 24 * n * p,
    "the price is missing": lambda h, n, e, p: h * n,
    "price and machines are missing in the money": lambda h, n, e, p: h,
    "the hours are missing in the money": lambda h, n, e, p: n * p,
    "divided by the price: each hour of a machine costs it": lambda h, n, e, p: h * n / p,
    "the price is added: each hour of a machine costs it": lambda h, n, e, p: h * n + p,
    "begun hours are paid in full: pay the hours as they are": lambda h, n, e, p: math.ceil(h) * n * p,
    "begun days are paid in full: pay the hours as they are": lambda h, n, e, p: math.ceil(h / 24) * 24 * n * p,
    "only whole hours are paid: pay the hours as they are": lambda h, n, e, p: math.floor(h) * n * p,
    "the money is rounded: leave it as it is": lambda h, n, e, p: round(h * n * p),
}
COST_MISTAKES = Mistakes(
    {
        **{what: _costs(hours) for what, hours in _OTHER_HOURS.items()},
        **{what: _costs(days=days) for what, days in _OTHER_DAYS.items()},
        **{what: _costs(money=money) for what, money in _OTHER_MONEY.items()},
        "these are seconds: an hour has 3600, and a day 24 hours": _costs(
            days=lambda h, n, e, p: h * 3600, money=lambda h, n, e, p: h * 3600 * n * p
        ),
        "the days are rounded up, and whole days paid: leave them as they are": _costs(
            days=lambda h, n, e, p: math.ceil(h / 24), money=lambda h, n, e, p: math.ceil(h / 24) * 24 * n * p
        ),
        "the money comes first: days, then money": lambda *given: cost(*given)[::-1],
        "text is returned: return the numbers themselves": lambda *given: [f"{number:.1f}" for number in cost(*given)],
    }.items()
)


@COST_MISTAKES("the price has another default, 2.0: it is 1.0")
def cost_of_a_dearer_machine(crops, crops_per_second, machines=1, efficiency=1.0, price=2.0):
    return cost(crops, crops_per_second, machines, efficiency, price)


@COST_MISTAKES("the efficiency has another default, 0.9: it is 1.0")
def cost_of_a_waiting_machine(crops, crops_per_second, machines=1, efficiency=0.9, price=1.0):
    return cost(crops, crops_per_second, machines, efficiency, price)


@COST_MISTAKES("the efficiency is taken for percent: it is a part of 1, and 1.0 by default")
def cost_by_percent(crops, crops_per_second, machines=1, efficiency=100.0, price=1.0):
    return cost(crops, crops_per_second, machines, efficiency / 100, price)


@recipe
def days_and_money(answer: Any, *arguments: float) -> Any:
    """Return tensors, whether days and money are numbers, tensors, or a tensor or array of two.

    Raises:
        TypeError: they are text.
    """
    found = call(answer, *arguments)
    if isinstance(found, (Tensor, np.ndarray)) and found.shape == (2,):
        found = tuple(found)
    if not isinstance(found, (tuple, list)):
        return found
    if any(isinstance(value, str) for value in found):
        raise TypeError("days and money are numbers, not text")
    return tuple(torch.tensor(float(v)) if isinstance(v, (int, float, np.number)) else v for v in found)


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
        judge=judge_function(
            ramp,
            [(12, 4, 3), (10, 0, 5), (9, 4, 0), (6, 0, 0), (8, 4, 4)],
            RAMP_MISTAKES,
            inputs=("length", "before", "after"),
        ),
        mistakes=RAMP_MISTAKES,
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
            pooled,
            _POOL_PROBES,
            POOL_MISTAKES,
            inputs=("means", "variances", "counts"),
            outputs=("mean", "variance"),
            through=pooled_beside,
        ),
        mistakes=POOL_MISTAKES,
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
        mistakes=NORM_MISTAKES,
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
        judge=judge_function(
            partial(row_numbers, rows_left),
            [(23, 7, 2, 1, 3, 4), (10, 0, 1, 2, 4, 1), (8, 3, 0, 0, 1, 5), (9, 1, 4, 3, 5, 0), (6, 0, 0, 0, 2, 3)],
            through_recipe(row_numbers, ROWS_MISTAKES),
            inputs=("count", "seed", "epoch", "reader", "readers", "done"),
            through=row_numbers,
        ),
        mistakes=ROWS_MISTAKES,
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
        judge=judge_function(
            partial(days_and_money, cost),
            [(5.9e6, 17.0, 8, 0.8, 2.5), (1e6, 40.0, 1, 1.0, 0.3), (2e5, 3.0, 2, 0.5, 1.5), (7e6, 11.0)],
            through_recipe(days_and_money, COST_MISTAKES),
            inputs=("crops", "crops_per_second", "machines", "efficiency", "price"),
            outputs=("the days", "the money"),
            through=days_and_money,
        ),
        mistakes=COST_MISTAKES,
    ),
)
