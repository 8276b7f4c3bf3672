"""The exercises of notebook 06, reconstruction losses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from klvae_edu import losses
from klvae_edu.baselines import PatchPCA
from klvae_edu.exercises.attempt import Attempt, call, recipe
from klvae_edu.exercises.exercise import Exercise, Mistakes
from klvae_edu.exercises.judges.functions import Probe, gradients_of, judge_function, probe, same, through_recipe
from klvae_edu.exercises.judges.numbers import judge_numbers, numbers_of
from klvae_edu.exercises.solutions.nb06 import (
    own_mean_weights,
    perceptual_distance,
    reconstruction_loss,
    through_pca,
    unit_length,
)
from klvae_edu.perceptual import LPIPS

NOTEBOOK = "06_reconstruction_losses"

# 06.1


def _axes(centred: Tensor, power: float = 0.0) -> Tensor:
    """All principal directions, one in each row, the strongest first; multiplied by a power of their strengths."""
    _, strengths, rows = torch.linalg.svd(centred, full_matrices=False)
    return rows * strengths[:, None] ** power


def _coded(
    keep: Callable[..., Any] = lambda rows, k: rows[:k], axes: Callable[..., Any] = lambda t, p: _axes(t - t.mean(0))
) -> Callable[..., Any]:
    """The solution with another choice of directions, or with others."""

    def pca(train, patches, components):
        basis, mean = keep(axes(train, patches), components), train.mean(0)
        return (patches - mean) @ basis.T @ basis + mean

    return pca


def _centred(centre: Callable[..., Any], wrong: Sequence[bool]) -> Callable[..., Any]:
    """The solution with another centre at one or more of its three places."""

    def pca(train, patches, components):
        before_svd, before_code, at_end = (
            centre(train, patches, own) if is_wrong else train.mean(0)
            for is_wrong, own in zip(wrong, (train, patches, patches), strict=True)
        )
        basis = _axes(train - before_svd)[:components]
        return (patches - before_code) @ basis.T @ basis + at_end

    return pca


_TO_BE_CODED = "of the patches to be coded: the receiver knows only what was fitted to `train`"
_ROWS_OF_U = "the directions have a number for each patch, not D: take the last result of the SVD of train - mean, Vh"
_COLUMNS = (
    "the wrong axis of the directions: Vh of torch.linalg.svd has them in rows, V of the older torch.svd in columns"
)
_ROWS_OF_EIGH = "rows of the eigenvectors are taken: torch.linalg.eigh has them in columns, the strongest last"
_STANDARDISED = "the values are divided by their standard deviation: only the mean is subtracted before the SVD"
_APPROXIMATE = (
    "it draws random numbers, as torch.pca_lowrank does, and its directions are approximate: take torch.linalg.svd of "
    "train - mean"
)
PCA_MISTAKES = Mistakes()
for name, centre in {
    "no mean": lambda t, p, own: 0,
    "the mean of `patches`": lambda t, p, own: p.mean(0),
    "the mean of both sets": lambda t, p, own: torch.cat([t, p]).mean(0),
    "one mean of all values": lambda t, p, own: t.mean(),
    "a mean for each patch": lambda t, p, own: own.mean(1, keepdim=True),
    "the median": lambda t, p, own: t.median(0).values,
}.items():
    for wrong in itertools.product((False, True), repeat=3):
        places = [*itertools.compress(("before the SVD", "for the code", "at the end"), wrong)]
        where = " and ".join([*([", ".join(places[:-1])] if places[:-1] else []), *places[-1:]])
        if any(wrong):
            PCA_MISTAKES(f"take train.mean(0) {where}: your code has {name} there")(_centred(centre, wrong))
for message, keep in {
    "all directions are kept: take the first `components`": lambda rows, k: rows,
    "the weakest directions are kept: take those of the largest singular values": lambda rows, k: rows[-k:],
    "the directions after the first `components` are kept: take those before": lambda rows, k: rows[k:],
    "one direction too many: take the first `components`": lambda rows, k: rows[: k + 1],
    "one direction is missing: take the first `components`": lambda rows, k: rows[: k - 1],
    "the first direction is left out: the mean is not among them": lambda rows, k: rows[1 : k + 1],
    "the direction number `components` alone is taken, not all before it": lambda rows, k: rows[k - 1 : k],
    "one direction alone is taken: directions[:components] are the first `components`": lambda rows, k: rows[k],
    _COLUMNS: lambda rows, k: rows[:, :k].T,
    "the directions are without their signs: abs is for printing only": lambda rows, k: rows[:k].abs(),
}.items():
    PCA_MISTAKES(message)(_coded(keep))
for number in (1, 2, 3, 4):
    PCA_MISTAKES("the number of directions is fixed in the code: take the first `components`")(
        _coded(lambda rows, k, number=number: rows[:number])
    )
for message, axes in (
    (f"the directions are those {_TO_BE_CODED}", lambda t, p: _axes(p - p.mean(0))),
    (f"the directions are those {_TO_BE_CODED}", lambda t, p: _axes(p - t.mean(0))),
    (_ROWS_OF_U, lambda t, p: torch.linalg.svd(t - t.mean(0), full_matrices=False)[0]),
    (_ROWS_OF_U, lambda t, p: torch.linalg.svd(t - t.mean(0))[0]),
    (_COLUMNS, lambda t, p: torch.linalg.svd((t - t.mean(0)).T)[0]),
    (_ROWS_OF_EIGH, lambda t, p: torch.linalg.eigh(torch.cov(t.T))[1]),
    (_ROWS_OF_EIGH, lambda t, p: torch.linalg.eigh(torch.cov(t.T))[1].flip(0)),
    (_ROWS_OF_EIGH, lambda t, p: torch.linalg.eigh(torch.cov(t.T))[1].flip(1)),
    (_APPROXIMATE, lambda t, p: torch.pca_lowrank(t, q=2)[2].T),
    (_STANDARDISED, lambda t, p: _axes((t - t.mean(0)) / t.std(0))),
    ("the code is multiplied by the singular values: only project", lambda t, p: _axes(t - t.mean(0), 0.5)),
    ("the directions are multiplied by the singular values: only project", lambda t, p: _axes(t - t.mean(0), 1.0)),
    ("the code is divided by the singular values: only project", lambda t, p: _axes(t - t.mean(0), -0.5)),
    ("the directions are divided by the singular values: only project", lambda t, p: _axes(t - t.mean(0), -1.0)),
):
    PCA_MISTAKES(message)(_coded(axes=axes))
for message, code in (
    (f"mean and directions are those {_TO_BE_CODED}", lambda t, p, k: through_pca(p, p, k)),
    ("mean and directions are those of both sets", lambda t, p, k: through_pca(torch.cat([t, p]), p, k)),
    ("`train` is coded: code and decode `patches`, (M, D)", lambda t, p, k: through_pca(t, t, k)),
    (_STANDARDISED, lambda t, p, k: through_pca(t / t.std(0), p / t.std(0), k) * t.std(0)),
    (_STANDARDISED, lambda t, p, k: through_pca(t / t.std(0), p / t.std(0), k) + t.mean(0) - (t / t.std(0)).mean(0)),
    ("every patch becomes the mean: code @ basis is missing", lambda t, p, k: t.mean(0).expand_as(p)),
    ("the mean is subtracted at the end: add it", lambda t, p, k: through_pca(t, p, k) - 2 * t.mean(0)),
    ("this is what the code leaves out: return code @ basis + mean", lambda t, p, k: p - through_pca(t, p, k)),
    ("the result is clamped: return it as it is", lambda t, p, k: through_pca(t, p, k).clamp(-1, 1)),
    ("this is the code: return code @ basis + mean", lambda t, p, k: (p - t.mean(0)) @ _axes(t - t.mean(0))[:k].T),
    # by their exceptions
    (
        "the shapes do not fit: basis has `components` rows, (patches - mean) @ basis.T",
        lambda t, p, k: p @ _axes(t)[:k],
    ),
    (
        "the basis is transposed twice, or never: in the first product only",
        lambda t, p, k: p @ _axes(t).T[:, :k] @ _axes(t).T[:, :k],
    ),
    (
        "the singular values are no directions: take the SVD's last result",
        lambda t, p, k: p @ torch.linalg.svdvals(t)[:k].T,
    ),
    ("the mean is added to the code: multiply by the basis first", lambda t, p, k: p @ _axes(t)[:k].T + t.mean(0)),
    ("the mean is that of each patch of `train`: take train.mean(0)", lambda t, p, k: p - t.mean(1, keepdim=True)),
    ("the mean is over dimension 1: average over the patches, dimension 0", lambda t, p, k: t - t.mean(1)),
):
    PCA_MISTAKES(message)(code)


@PCA_MISTAKES("torch.pca_lowrank computes six directions unless q says how many: use torch.linalg.svd")
def six_directions_at_most(train, patches, components):
    mean = train.mean(0)
    basis = torch.pca_lowrank(train, niter=20)[2][:, :components]
    return (patches - mean) @ basis @ basis.T + mean


def _stretched(count: int, new: int, values: int) -> tuple[Tensor, Tensor]:
    """Patches whose values differ in spread, so that the order of the directions leaves no doubt."""
    train, patches = probe((count, values), (new, values))
    return tuple(x * torch.arange(1.0, values + 1) + 1.0 for x in (train, patches))


_judge_code = judge_function(
    through_pca,
    [(*_stretched(12, 5, 6), 2), (*_stretched(9, 14, 4), 1), (*_stretched(20, 6, 9), 8)],
    PCA_MISTAKES,
    inputs=("train", "patches", "components"),
)


def _judge_pca(attempt: Attempt) -> str | None:
    complaint = _judge_code(attempt)
    return _APPROXIMATE if complaint and complaint.startswith("the same input gave two") else complaint


# 06.2


def _divided(square: Callable[..., Any]) -> tuple[Callable[..., Any], ...]:
    """Division by the root of a square: with eps inside of the root, outside of it, as a lower limit, and without."""
    return (
        lambda f, eps=1e-8: f / (square(f) + eps).sqrt(),
        lambda f, eps=1e-8: f / (square(f).sqrt() + eps),
        lambda f, eps=1e-8: f / square(f).sqrt().clamp(min=eps),
        lambda f, eps=1e-8: f / square(f).sqrt().clamp(min=1e-12),
        lambda f, eps=1e-8: f / square(f).sqrt(),
    )


def _squared(features: Tensor) -> Tensor:
    return features.pow(2).sum(1, keepdim=True)


_INSIDE = "add it to the squared norm, inside the root"
_PIXELS = "it is over the channels of each pixel, dimension 1"
_SUM = "the norm is the root of the sum of squares"
LENGTH_MISTAKES = Mistakes()
for message, divide in {
    f"eps is not used, and 0/0 is left: {_INSIDE}": lambda f, eps: f / _squared(f).sqrt(),
    f"eps outside of the root leaves an infinite slope at 0: {_INSIDE}": lambda f, eps: f / (_squared(f).sqrt() + eps),
    f"the root of eps is added to the norm: {_INSIDE}": lambda f, eps: f / (_squared(f).sqrt() + eps**0.5),
    f"eps is a lower limit of the norm, as in F.normalize: {_INSIDE}": lambda f, eps: F.normalize(f, eps=eps),
    f"eps is not used, only 0/0 is avoided, as by F.normalize or nan_to_num: {_INSIDE}": lambda f, eps: F.normalize(f),
    f"eps is a lower limit of the squared norm: {_INSIDE}": lambda f, eps: f / _squared(f).clamp(min=eps).sqrt(),
    f"eps is squared: {_INSIDE}, as it is": lambda f, eps: unit_length(f, eps**2),
    f"the root of eps is added: {_INSIDE}, as it is": lambda f, eps: unit_length(f, eps**0.5),
    f"eps is subtracted: {_INSIDE}": lambda f, eps: unit_length(f, -eps),
    f"eps is added to each channel's square: {_INSIDE}, once": lambda f, eps: unit_length(f, f.shape[1] * eps),
    f"eps is added to the features before they are squared: {_INSIDE}": lambda f, eps: f / _squared(f + eps).sqrt(),
    f"eps is added to the features that are divided: {_INSIDE}": lambda f, eps: (f + eps) / (_squared(f) + eps).sqrt(),
    f"eps is added to all features: {_INSIDE}": lambda f, eps: (f + eps) / _squared(f + eps).sqrt(),
    f"eps is added after the division: {_INSIDE}, with a bracket": lambda f, eps: f / _squared(f).sqrt() + eps,
    f"eps is added after the division by F.normalize: {_INSIDE}": lambda f, eps: F.normalize(f) + eps,
    "multiplied by the norm: divide by it": lambda f, eps: f * (_squared(f) + eps).sqrt(),
    "this is the norm: divide the features by it": lambda f, eps: (_squared(f) + eps).sqrt(),
    "this is 1 / norm: multiply the features by it": lambda f, eps: (_squared(f) + eps).rsqrt(),
    "the features are squared: divide the features themselves": lambda f, eps: f**2 / (_squared(f) + eps),
    f"the mean is subtracted, as by F.layer_norm or F.group_norm: {_SUM}": lambda f, eps: F.group_norm(f, 1, eps=eps),
    f"the mean is subtracted, as by F.instance_norm: {_SUM}": lambda f, eps: F.instance_norm(f, eps=eps),
    "roots of squares are summed: sum the squares first": lambda f, eps: f / (f**2 + eps).sqrt().sum(1, keepdim=True),
    f"softmax makes the channels' sum 1: {_SUM}": lambda f, eps: f.softmax(1),
    "the largest norm of the batch is 1, not that of each pixel": lambda f, eps: f / (_squared(f) + eps).sqrt().max(),
    # by their exceptions
    "keepdim=True is missing: the norm must be (B, 1, h, w) to divide (B, C, h, w)": lambda f, eps: f / f.sum(1),
    "math.sqrt takes a single number: use torch.sqrt": lambda f, eps: f / math.sqrt(_squared(f)),
    "the norm's new dimension is elsewhere: it is (B, 1, h, w)": lambda f, eps: f / f.sum(1)[..., None],
}.items():
    LENGTH_MISTAKES(message)(lambda features, eps=1e-8, divide=divide: divide(features, eps))
LENGTH_MISTAKES("another default for eps: leave the line with `def` as it is")(
    lambda features, eps=1e-6: unit_length(features, eps)
)
for fixed in (1e-12, 1e-10, 1e-8, 1e-6):
    LENGTH_MISTAKES("eps is a fixed number in the code: use the argument")(
        lambda features, eps=1e-8, fixed=fixed: unit_length(features, fixed)
    )
for message, square in {
    f"the norm is taken over space: {_PIXELS}": lambda f: f.pow(2).sum((2, 3), keepdim=True),
    f"the norm is taken over one row: {_PIXELS}": lambda f: f.pow(2).sum(3, keepdim=True),
    f"the norm is taken over one column: {_PIXELS}": lambda f: f.pow(2).sum(2, keepdim=True),
    f"the norm is taken over the batch: {_PIXELS}": lambda f: f.pow(2).sum(0, keepdim=True),
    f"the norm is taken over channels and batch: {_PIXELS}": lambda f: f.pow(2).sum((0, 1), keepdim=True),
    f"the norm is taken over space and batch: {_PIXELS}": lambda f: f.pow(2).sum((0, 2, 3), keepdim=True),
    f"the norm is taken over channels and space: {_PIXELS}": lambda f: f.pow(2).sum((1, 2, 3), keepdim=True),
    f"the norm is taken over everything: {_PIXELS}": lambda f: f.pow(2).sum(),
    "each feature is divided by itself: sum the squares over the channels": lambda f: f.pow(2),
    "the root is missing: divide by the norm, not by its square": lambda f: _squared(f).pow(2),
    "a second root: divide by the norm itself": lambda f: _squared(f).sqrt(),
    f"the root of the mean square: {_SUM}": lambda f: f.pow(2).mean(1, keepdim=True),
    f"the mean square: {_SUM}": lambda f: f.pow(2).mean(1, keepdim=True).pow(2),
    f"the sum of the absolute values (L1): {_SUM}": lambda f: f.abs().sum(1, keepdim=True).pow(2),
    f"the mean of the absolute values: {_SUM}": lambda f: f.abs().mean(1, keepdim=True).pow(2),
    f"the largest value: {_SUM}": lambda f: f.abs().amax(1, keepdim=True).pow(2),
    f"the standard deviation of the channels: {_SUM}": lambda f: f.var(1, keepdim=True),
    f"the squares are missing: {_SUM}": lambda f: f.sum(1, keepdim=True),
    "the sum is squared: square each feature, then sum": lambda f: f.sum(1, keepdim=True).pow(2),
}.items():
    LENGTH_MISTAKES += [(message, code) for code in _divided(square)]
for square in (_squared, lambda f: f.var(1, keepdim=True), lambda f: f.var(1, keepdim=True, correction=0)):
    for code in _divided(square):
        LENGTH_MISTAKES("the mean over the channels is subtracted: divide the features as they are")(
            lambda features, eps=1e-8, code=code: code(features - features.mean(1, keepdim=True), eps)
        )


def _with_pixels_without_features() -> Tensor:
    """One of them with exactly none, the other with next to none."""
    (features,) = probe((2, 5, 3, 4))
    features[1, :, 2, 1] = 0
    features[0, :, 1, 3] *= 1e-5
    return features


# 06.3


def _tapped(
    reduce: Callable[..., Any] = lambda weighted: weighted.sum(1).mean((1, 2)),
    difference: Callable[..., Any] = lambda a, b, head: head * (a - b) ** 2,
    join: Callable[..., Any] = sum,
) -> Callable[..., Any]:
    """The solution with another reduction of a tap, another difference, or another sum of the taps."""

    def distance(features, others, heads):
        taps = [reduce(difference(*tap)) for tap in zip(features, others, heads, strict=True)]
        return join(taps, features[0].new_zeros(len(features[0])))

    return distance


_ALL_TAPS = "sum over all of them"
_EACH = "one number for each image is asked for, (B,)"
DISTANCE_MISTAKES = Mistakes()
for message, difference in {
    "the squares are missing: differences of different sign cancel": lambda a, b, w: w * (a - b),
    "the absolute difference is taken: square it": lambda a, b, w: w * (a - b).abs(),
    "the heads are not used: multiply each channel's squared difference by its weight": lambda a, b, w: (a - b) ** 2,
    "the head is squared, too: it multiplies the squared difference": lambda a, b, w: (w * (a - b)) ** 2,
    "a root of the head: its weights are used as they are": lambda a, b, w: w.sqrt() * (a - b) ** 2,
    "the head multiplies one image's features: it multiplies the squared difference": lambda a, b, w: (w * a - b) ** 2,
    "heads and others are exchanged: look at the order of zip": lambda a, b, w: b * (a - w) ** 2,
    "softmax of the head: its weights are used as they are": lambda a, b, w: w.softmax(1) * (a - b) ** 2,
    "a head's weights are made to sum to 1: use them as they are": lambda a, b, w: w / w.sum() * (a - b) ** 2,
    "a head's mean for all channels: each has a weight of its own": lambda a, b, w: w.mean() * (a - b) ** 2,
    "a head's sum for all channels: each has a weight of its own": lambda a, b, w: w.sum() * (a - b) ** 2,
    "the squares are subtracted: subtract, then square": lambda a, b, w: w * (a**2 - b**2),
    "the features are added: subtract, then square": lambda a, b, w: w * (a + b) ** 2,
    "divided by the heads: multiply by them": lambda a, b, w: (a - b) ** 2 / w,
    "the head is added: it multiplies the squared difference": lambda a, b, w: w + (a - b) ** 2,
    "averaged first: subtract and square at every pixel": lambda a, b, w: w * (a - b).mean((2, 3), True) ** 2,
    "the head keeps its shape, (1, C, 1, 1), without flatten": lambda a, b, w: w.flatten() * (a - b) ** 2,
    "this is 1 - cosine: take the squared difference": lambda a, b, w: 1 / a.shape[1] - a * b,
    "this is 1 - weighted cosine: take the squared difference": lambda a, b, w: 1 / a.shape[1] - w * a * b,
    "this is a similarity, a product of the features: take the squared difference": lambda a, b, w: w * a * b,
}.items():
    DISTANCE_MISTAKES(message)(_tapped(difference=difference))
for message, reduce in {
    "a root is taken at each pixel: the squared distance is asked for": lambda x: x.sum(1).sqrt().mean((1, 2)),
    "a root is taken at each tap: the squared distance is asked for": lambda x: x.sum(1).mean((1, 2)).sqrt(),
    "a sum over space: average over the pixels, or a large image is further off": lambda x: x.sum((1, 2, 3)),
    "a mean over the channels: the heads are their weights, so sum them": lambda x: x.mean((1, 2, 3)),
    "channels averaged and space summed: it is the other way round": lambda x: x.mean(1).sum((1, 2)),
    "averaged over the width only: average over all pixels": lambda x: x.mean(3).sum((1, 2)),
    "averaged over the height only: average over all pixels": lambda x: x.mean(2).sum((1, 2)),
    "divided by the height squared: there are h · w pixels": lambda x: x.sum((1, 2, 3)) / x.shape[2] ** 2,
    "divided by the width squared: there are h · w pixels": lambda x: x.sum((1, 2, 3)) / x.shape[3] ** 2,
    "divided by all values of the batch: average over an image's pixels": lambda x: x.sum((1, 2, 3)) / x.numel(),
    "divided by the number of images: average over the pixels only": lambda x: x.sum(1).mean((1, 2)) / len(x),
    "the largest pixel: average over the pixels": lambda x: x.sum(1).amax((1, 2)),
    "the largest channel: sum over the channels": lambda x: x.amax(1).mean((1, 2)),
    "the median pixel: average over the pixels": lambda x: x.sum(1).flatten(1).median(1).values,
    # by its exception
    "after the sum over the channels, the pixels are dimensions 1 and 2": lambda x: x.sum(1).mean((2, 3)),
}.items():
    DISTANCE_MISTAKES(message)(_tapped(reduce))
for message, join in {
    "a root is taken at the end: the squared distance is asked for": lambda taps, _: torch.stack(taps).sum(0).sqrt(),
    "a mean over the taps: sum them": lambda taps, _: sum(taps) / len(taps),
    "divided by five taps: sum them, without a mean": lambda taps, _: sum(taps) / 5,
    f"the first tap alone counts: {_ALL_TAPS} (is the return inside of the loop?)": lambda taps, _: taps[0],
    f"the last tap alone counts: {_ALL_TAPS} (is the total overwritten?)": lambda taps, _: taps[-1],
    f"the last tap is left out: {_ALL_TAPS}": lambda taps, _: sum(taps[:-1]),
    f"the first tap is left out: {_ALL_TAPS}": lambda taps, _: sum(taps[1:]),
    "the taps are multiplied: sum them": lambda taps, _: math.prod(taps),
    f"the largest tap alone counts: {_ALL_TAPS}": lambda taps, _: torch.stack(taps).amax(0),
    "the sign: a distance is never negative": lambda taps, _: -sum(taps),
    "squeeze drops the batch, too, if it is one image: write squeeze(1)": lambda taps, _: sum(
        x.squeeze() for x in taps
    ),
    f"not summed over the taps: {_EACH}": lambda taps, _: torch.stack(taps),
    f"not summed over the taps, the last dimension: {_EACH}": lambda taps, _: torch.stack(taps, 1),
    # by their exceptions
    "there are fewer taps than the code takes: go through the lists with zip": lambda taps, _: taps[len(taps)],
    "the total is one number: begin with one zero for each image": lambda taps, _: torch.zeros(()).add_(taps[0]),
}.items():
    DISTANCE_MISTAKES(message)(_tapped(join=join))
for message, reduce in {
    "the taps differ in size: reduce each to (B,) before they are summed": lambda x: x,
    "the pixels are not averaged: the mean over them leaves (B,) of each tap": lambda x: x.sum(1),
    "the pixels are averaged over the height only: take both sides of the map": lambda x: x.sum(1).mean(1),
    "the pixels are averaged over the width only: take both sides of the map": lambda x: x.sum(1).mean(2),
    "the channels are not summed: the sum over them leaves (B,) of each tap": lambda x: x.mean((2, 3)),
    "keepdim leaves (B, 1) of each tap: (B,) is asked for": lambda x: x.sum(1, keepdim=True).mean((2, 3)),
    "keepdim leaves (B, 1, 1, 1) of each tap: (B,) is asked for": lambda x: x.mean((2, 3), True).sum(1, True),
    f"summed over the batch, dimension 0: {_EACH}": lambda x: x.sum(0).mean((1, 2)),
    f"averaged over the batch: {_EACH}": lambda x: x.sum(1).mean(),
    f"averaged over channels, pixels and batch, as by F.mse_loss: {_EACH}": lambda x: x.mean(),
    f"summed over the batch: {_EACH}": lambda x: x.sum(1).mean((1, 2)).sum(),
    f"summed over everything: {_EACH}, averaged over the pixels": lambda x: x.sum(),
}.items():
    for join in (sum, lambda taps, _: sum(taps), lambda taps, _: torch.stack(taps)):
        DISTANCE_MISTAKES(message)(_tapped(reduce, join=join))
        if "F.mse_loss" in message:
            DISTANCE_MISTAKES(message)(_tapped(reduce, lambda a, b, w: (a - b) ** 2, join))
            DISTANCE_MISTAKES(message)(_tapped(reduce, lambda a, b, w: (w * (a - b)) ** 2, join))


DISTANCE_MISTAKES("every tap is divided by the pixels of the first: the maps become smaller")(
    lambda f, o, h: _tapped(lambda x: x.sum((1, 2, 3)) / f[0][0, 0].numel())(f, o, h)
)


_LISTS = "the values are right, but it changes the caller's lists: go through them without pop, reverse or the like"


@DISTANCE_MISTAKES(_LISTS)
def distance_emptying_the_lists(features, others, heads):
    total = 0
    while features:
        total = total + (heads.pop() * (features.pop() - others.pop()) ** 2).sum(1).mean((1, 2))
    return total


def _lists(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The features of every tap, those of the others, the heads."""
    taps = len(tensors) // 3
    return [list(tensors[start : start + taps]) for start in (0, taps, 2 * taps)]


@recipe
def on_taps(answer: Any, *tensors: Tensor) -> Any:
    """Call the answer with the lists that these tensors make up."""
    return call(answer, *_lists(tensors))


@recipe
def lists_after(answer: Any, *tensors: Tensor) -> list[list[Tensor]]:
    """Call the answer with lists, and return what is in them afterwards."""
    given = _lists(tensors)
    call(answer, *given)
    return given


def _taps(batch: int, *maps: tuple[int, int, int]) -> tuple[Tensor, ...]:
    """Features of unit norm for two batches of images, and heads, for taps of (C, h, w)."""
    features, others = (
        tuple(unit_length(x) for x in probe(*((batch + offset, *shape) for shape in maps))) for offset in (0, 1)
    )
    heads = (x.abs() for x in probe(*((1, shape[0], 1, 1) for shape in maps)))
    return *features, *(x[:batch] for x in others), *heads


_NAMES = [f"{name}[{tap}]" for name in ("features", "others", "heads") for tap in range(3)]
_TAP_PROBES = [_taps(2, (3, 6, 8), (5, 3, 4), (7, 2, 1)), _taps(1, (4, 4, 4), (2, 2, 2), (6, 1, 5))]
_judge_of_tensors = judge_function(
    partial(on_taps, perceptual_distance),
    _TAP_PROBES,
    through_recipe(on_taps, DISTANCE_MISTAKES),
    inputs=_NAMES,
    gradients=_NAMES[:6],
    through=on_taps,
)


def _judge_distance(attempt: Attempt) -> str | None:
    complaint = _judge_of_tensors(attempt)
    if complaint:
        return complaint
    after = attempt.run(lists_after, *_TAP_PROBES[0])
    return None if same(after, _lists(_TAP_PROBES[0])) else _LISTS


# 06.4


def _l1(reconstruction: Tensor, target: Tensor) -> Tensor:
    return (reconstruction - target).abs().flatten(1).sum(1)  # (B,)


def _summed(
    pixels: Callable[..., Any] = _l1, count: Callable[..., Any] = lambda target: target[0].numel()
) -> Callable[..., Any]:
    """The solution with another pixel term, or another number of times that the distance counts."""

    def loss(reconstruction, target, distance, perceptual_weight=1.0):
        return (pixels(reconstruction, target) + count(target) * perceptual_weight * distance).mean()

    return loss


_ONCE = "CompVis adds it to every pixel value, so that in the sum it counts C·H·W times"
_L1 = "the L1 distance |reconstruction - target| is asked for"
_AVERAGE = "average over the images, mean() at the end"
_OWN = "each image has its own, distance.view(-1, 1, 1, 1)"
TOTAL_MISTAKES = Mistakes()
for message, count in {
    f"the distance counts once for an image: {_ONCE}": lambda t: 1,
    f"the distance counts once for a pixel, H·W times: {_ONCE}": lambda t: t[0, 0].numel(),
    f"the distance counts once for a channel, C times: {_ONCE}": lambda t: t.shape[1],
    f"the distance counts B·C·H·W times, or is summed over the batch: {_ONCE}": lambda t: t.numel(),
    f"the distance is divided by C·H·W: {_ONCE}": lambda t: 1 / t[0].numel(),
    "three channels are written into the code: count C of the images": lambda t: 3 * t[0, 0].numel(),
    "3 · 256 · 256 is written into the code: take the size of the images": lambda t: 3 * 256 * 256,
}.items():
    TOTAL_MISTAKES(message)(_summed(count=count))
for message, pixels in {
    "the pixels are averaged over an image's values: sum them": lambda r, t: _l1(r, t) / t[0].numel(),
    "the pixels are averaged over H and W: sum them": lambda r, t: _l1(r, t) / t[0, 0].numel(),
    "the pixels are averaged over the channels: sum them": lambda r, t: _l1(r, t) / t.shape[1],
    f"the pixels are summed over the batch: {_AVERAGE}": lambda r, t: _l1(r, t).sum(),
}.items():
    TOTAL_MISTAKES(message)(_summed(pixels))
for message, pixels in {
    f"the pixel term is squared (L2): {_L1}": lambda r, t: (r - t).pow(2).flatten(1).sum(1),
    f"the pixel term is a mean of squares (L2): {_L1}, summed": F.mse_loss,
    f"the pixel term is a root of squares (L2): {_L1}": lambda r, t: (r - t).flatten(1).norm(dim=1),
    f"a smooth L1 is squared below 1: {_L1}": lambda r, t: F.smooth_l1_loss(r, t, reduction="none").flatten(1).sum(1),
    "the absolute value is missing: errors of different sign cancel": lambda r, t: (r - t).flatten(1).sum(1),
    "the absolute value is taken of the sum: take it of every difference": lambda r, t: (r - t).flatten(1).sum(1).abs(),
}.items():
    TOTAL_MISTAKES(message)(_summed(pixels))
    TOTAL_MISTAKES(f"{message}, and the distance counts once for an image")(_summed(pixels, lambda t: 1))
for message, reduce in {
    "both terms are averaged over C, H, W: sum them, average over the batch only": lambda each: each.mean(),
    "both terms are averaged over the channels: sum over C, H, W": lambda each: each.mean(1).sum((1, 2)).mean(),
    "both terms are averaged over H and W: sum over C, H, W": lambda each: each.sum(1).mean(),
    "both terms are averaged over the width: sum over C, H, W": lambda each: each.mean(3).sum((1, 2)).mean(),
    "both terms are averaged over C and H: sum over C, H, W": lambda each: each.sum(3).mean(),
    f"summed over the batch: {_AVERAGE}": lambda each: each.sum(),
    "summed over the batch, averaged over C, H, W: it is the other way round": lambda each: each.mean((1, 2, 3)).sum(),
    "divided by the number of channels, not of images": lambda each: each.sum() / each.shape[1],
    f"one number for each image: {_AVERAGE}": lambda each: each.sum((1, 2, 3)),
    "one number for each pixel value: sum over C, H, W, then average over the batch": lambda each: each,
}.items():
    TOTAL_MISTAKES(message)(lambda r, t, d, w=1.0, reduce=reduce: reduce((r - t).abs() + w * d.view(-1, 1, 1, 1)))
for message, change in {  # of the arguments
    "the weight is on the pixels: it belongs to the distance": lambda r, t, d, w: (w * r, w * t, d),
    "the weight is on both terms: it belongs to the distance": lambda r, t, d, w: (w * r, w * t, d, w),
    "1 - perceptual_weight is on the pixels: they have no weight": lambda r, t, d, w: ((1 - w) * r, (1 - w) * t, d, w),
    "the weight is used twice: it multiplies the distance once": lambda r, t, d, w: (r, t, d, w**2),
    "divided by perceptual_weight: multiply by it": lambda r, t, d, w: (r, t, d, 1 / w),
    "perceptual_weight is added: it multiplies the distance": lambda r, t, d, w: (r, t, d + w),
    "perceptual_weight is not used": lambda r, t, d, w: (r, t, d),
    "the distance is missing": lambda r, t, d, w: (r, t, 0 * d),
    "the distance is squared: it is added as it is": lambda r, t, d, w: (r, t, d**2, w),
    "the sign of the distance: it is a cost, and added": lambda r, t, d, w: (r, t, -d, w),
    f"the first image's distance for all: {_OWN}": lambda r, t, d, w: (r, t, d[:1], w),
    f"the largest distance for all: {_OWN}": lambda r, t, d, w: (r, t, d.max(), w),
    "`distance` is not used: it is the LPIPS": lambda r, t, d, w: (r, t, (r - t).pow(2).mean((1, 2, 3)), w),
    "the pixels are missing: add |reconstruction - target|": lambda r, t, d, w: (t, t, d, w),
    f"the target is missing: {_L1}": lambda r, t, d, w: (r, 0 * t, d, w),
    f"the images are added: {_L1}": lambda r, t, d, w: (r, -t, d, w),
}.items():
    TOTAL_MISTAKES(message)(lambda r, t, d, w=1.0, change=change: reconstruction_loss(*change(r, t, d, w)))
TOTAL_MISTAKES("another default for perceptual_weight: leave the line with `def` as it is")(
    lambda r, t, d, w=0.1: reconstruction_loss(r, t, d, w)
)
for message, loss in {
    f"summed over the batch, and the distance counts once: {_ONCE}": lambda r, t, d, w: (_l1(r, t) + w * d).sum(),
    "the distance multiplies the pixels: it is added to them": lambda r, t, d, w: (_l1(r, t) * w * d).mean(),
    "the distance is inside of the absolute value: add it afterwards": lambda r, t, d, w: _l1(
        r + w * d.view(-1, 1, 1, 1), t
    ).mean(),
}.items():
    TOTAL_MISTAKES(message)(lambda r, t, d, w=1.0, loss=loss: loss(r, t, d, w))
for shape in ((-1,), (-1, 1), (-1, 1, 1), (1, -1, 1, 1)):  # by their exceptions
    TOTAL_MISTAKES("the distance is (B,): to be added to each pixel value it must be (B, 1, 1, 1)")(
        lambda r, t, d, w=1.0, shape=shape: r + d.view(shape)
    )
_ROOT = "the gradient is nan where a value is exactly right, as by the root of a square: use abs()"


@TOTAL_MISTAKES(_ROOT)
def total_of_roots_of_squares(reconstruction, target, distance, perceptual_weight=1.0):
    each = ((reconstruction - target) ** 2).sqrt() + perceptual_weight * distance.view(-1, 1, 1, 1)
    return each.flatten(1).sum(1).mean()


_TOTAL_PROBES = [
    (*probe((3, 2, 4, 5), (3, 2, 4, 5), (3,)), 0.7),
    (*probe((4, 3, 5, 2), (4, 3, 5, 2), (4,)), 0.2),
    probe((2, 1, 3, 4), (2, 1, 3, 4), (2,)),
]
_judge_sum = judge_function(
    reconstruction_loss,
    _TOTAL_PROBES,
    TOTAL_MISTAKES,
    inputs=("reconstruction", "target", "distance", "perceptual_weight"),
    gradients=("reconstruction", "distance"),
)


@TOTAL_MISTAKES("the distance counts for every value of an image, also where the two images are equal")
def distance_where_they_differ(reconstruction, target, distance, perceptual_weight=1.0):
    each = (reconstruction - target).abs()
    return (each + (each > 0) * perceptual_weight * distance.view(-1, 1, 1, 1)).sum((1, 2, 3)).mean()


def _equal_in_half_of_the_pixels() -> Probe:
    x, distance = probe((2, 3, 4, 4), (2,))
    return x, x * (x > 0), distance, 0.7


_judge_equal_pixels = judge_function(  # without gradients: at 0 the absolute value has several that are right
    reconstruction_loss,
    [_equal_in_half_of_the_pixels()],
    TOTAL_MISTAKES,
    inputs=("reconstruction", "target", "distance", "perceptual_weight"),
)


def _judge_total(attempt: Attempt) -> str | None:
    complaint = _judge_sum(attempt) or _judge_equal_pixels(attempt)
    if complaint:
        return complaint
    _, target, *others = _TOTAL_PROBES[0]
    (gradient,) = attempt.run(gradients_of, call, (target, target, *others), [0])
    return None if gradient.isfinite().all() else _ROOT


# 06.5


def _weighing(
    kl: Callable[..., float] = lambda image, latent: math.prod(latent) / math.prod(image),
    perceptual: Callable[..., float] = lambda image, latent: 1.0,
) -> Callable[..., tuple[float, float]]:
    """Both weights times a factor of their own."""
    return lambda image, latent, w, v: (perceptual(image, latent) * w, kl(image, latent) * v)


_PER_IMAGE = "the distance counts C·H·W times in the sum, so dividing by C·H·W leaves its weight as it was"
_BOTH = "count C·H·W and c·h·w"
WEIGHT_MISTAKES = Mistakes()
for message, kl in {
    "the KL's factor is upside down: a latent has fewer values than an image": lambda i, z: math.prod(i) / math.prod(z),
    "the KL's weight is divided by C·H·W only: the KL is c·h·w times its mean": lambda i, z: 1 / math.prod(i),
    "the KL's weight is multiplied by c·h·w only: the whole loss is divided by C·H·W": lambda i, z: math.prod(z),
    "the KL's weight is as before, or len is taken for the number of values": lambda i, z: 1,
    "the KL's weight is divided by c·h·w: divide by C·H·W, multiply by c·h·w": lambda i, z: 1 / math.prod(z),
    "the KL's weight is multiplied by C·H·W: divide by it": lambda i, z: math.prod(i) * math.prod(z),
    "the KL's weight is multiplied by C·H·W, and c·h·w is missing: divide by it": lambda i, z: math.prod(i),
    "both numbers of values divide the KL's weight: c·h·w multiplies it": lambda i, z: 1 / math.prod(i) / math.prod(z),
    "the KL's factor is squared: take c·h·w / (C·H·W) once": lambda i, z: (math.prod(z) / math.prod(i)) ** 2,
    "a root of the KL's factor: take c·h·w / (C·H·W) itself": lambda i, z: (math.prod(z) / math.prod(i)) ** 0.5,
    "divided by the values of image and latent: image only": lambda i, z: math.prod(z) / (math.prod(i) + math.prod(z)),
    "mean and log-variance are counted: they share one KL, c·h·w": lambda i, z: 2 * math.prod(z) / math.prod(i),
    f"the channels are forgotten: {_BOTH}": lambda i, z: z[1] * z[2] / (i[1] * i[2]),
    "the channels of the image are forgotten: count C·H·W": lambda i, z: math.prod(z) / (i[1] * i[2]),
    "the channels of the latent are forgotten: count c·h·w": lambda i, z: z[1] * z[2] / math.prod(i),
    f"the channels alone are counted: {_BOTH}": lambda i, z: z[0] / i[0],
    f"the width is forgotten: {_BOTH}": lambda i, z: z[0] * z[1] / (i[0] * i[1]),
    f"the height is forgotten: {_BOTH}": lambda i, z: z[0] * z[2] / (i[0] * i[2]),
    f"the height alone is counted: {_BOTH}": lambda i, z: z[1] / i[1],
    f"the width alone is counted: {_BOTH}": lambda i, z: z[2] / i[2],
    f"the height is taken for the width, too: {_BOTH}": lambda i, z: z[0] * z[1] ** 2 / (i[0] * i[1] ** 2),
    f"the width is taken for the height, too: {_BOTH}": lambda i, z: z[0] * z[2] ** 2 / (i[0] * i[2] ** 2),
    f"the height is squared, without width and channels: {_BOTH}": lambda i, z: (z[1] / i[1]) ** 2,
    f"the width is squared, without height and channels: {_BOTH}": lambda i, z: (z[2] / i[2]) ** 2,
    "the sides are added: the number of values is the product of C, H and W": lambda i, z: sum(z) / sum(i),
    "the ratio is rounded by //: divide by /": lambda i, z: 1 / (math.prod(i) // math.prod(z)),
    "the KL's weight is 0, as by //: divide by /": lambda i, z: 0,
}.items():
    WEIGHT_MISTAKES(message)(_weighing(kl))
for message, perceptual in {
    f"the perceptual weight is divided by C·H·W: {_PER_IMAGE}": lambda i, z: 1 / math.prod(i),
    f"the perceptual weight is multiplied by C·H·W: {_PER_IMAGE}": lambda i, z: math.prod(i),
    f"the perceptual weight is divided by H·W: {_PER_IMAGE}": lambda i, z: 1 / (i[1] * i[2]),
    f"the perceptual weight gets the KL's factor, too: {_PER_IMAGE}": lambda i, z: math.prod(z) / math.prod(i),
}.items():
    WEIGHT_MISTAKES(message)(_weighing(perceptual=perceptual))
WEIGHT_MISTAKES(f"both weights are divided by C·H·W only: {_PER_IMAGE}, and the KL is c·h·w times its mean")(
    _weighing(lambda i, z: 1 / math.prod(i), lambda i, z: 1 / math.prod(i))
)
WEIGHT_MISTAKES("the results are exchanged: the perceptual weight comes first")(
    lambda i, z, w, v: own_mean_weights(i, z, w, v)[::-1]
)
for digits in range(3, 13):
    WEIGHT_MISTAKES("the weights are rounded: return them as they are")(
        lambda i, z, w, v, digits=digits: (w, round(v * math.prod(z) / math.prod(i), digits))
    )
_WEIGHT_PROBES = (((3, 256, 256), (4, 32, 32), 1.0, 1e-6), ((1, 21, 40), (5, 6, 10), 0.3, 0.02))
_SOURCES = {"the perceptual weight": ["perceptual_weight"], "the KL's weight": ["image", "latent", "kl_weight"]}
_judge_weights = judge_numbers(
    own_mean_weights,
    _WEIGHT_PROBES,
    WEIGHT_MISTAKES,
    given=lambda probe: f"{probe[0]}, {probe[1]} and weights {probe[2]:g} and {probe[3]:g},",
    asked="two numbers, the perceptual weight and the KL's",
)


def _judge_own_weights(attempt: Attempt) -> str | None:
    complaint = _judge_weights(attempt)
    return _judge_dependence(attempt) or complaint if complaint and complaint.startswith("for ") else complaint


def _judge_dependence(attempt: Attempt) -> str | None:
    """Exchange one argument after the other, and look which of the two weights changes."""
    probe, other = _WEIGHT_PROBES
    before = attempt.run(numbers_of, probe, True)["numbers"]
    for position, name in reversed([*enumerate(("image", "latent", "perceptual_weight", "kl_weight"))]):
        changed = (*probe[:position], other[position], *probe[position + 1 :])
        after = attempt.run(numbers_of, changed, True)["numbers"]
        for (weight, names), old, new in zip(_SOURCES.items(), before, after, strict=True):
            if name in names and old == new:
                return f"{weight} does not depend on `{name}`: it is computed from {' and '.join(names)}"
            if name not in names and old != new:
                return f"{weight} depends on `{name}`: it is computed from {' and '.join(names)} only"
    return None


EXERCISES = (
    Exercise(
        id="06.1",
        title="Patch-PCA",
        notebook=NOTEBOOK,
        minutes=15,
        difficulty=3,
        reference=through_pca,
        in_package=(PatchPCA,),
        hints=(
            "What is known of a patch before it is coded? The mean of all: subtract it first, and add it at the end.",
            "torch.linalg.svd gives (U, S, Vh); the rows of Vh are the directions, the strongest first.",
            "With basis (components, D) the code is (patches - mean) @ basis.T, and code @ basis leads back.",
        ),
        judge=_judge_pca,
        mistakes=PCA_MISTAKES,
    ),
    Exercise(
        id="06.2",
        title="Features of norm 1",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=unit_length,
        in_package=(LPIPS.features,),
        hints=(
            "Each pixel has a vector of C features. Over which dimension do you sum its squares?",
            "The sum is to divide (B, C, h, w): keepdim=True makes it (B, 1, h, w).",
            "eps keeps the root away from 0, so it belongs inside: torch.sqrt(squared + eps).",
        ),
        judge=judge_function(
            unit_length,
            [
                (_with_pixels_without_features(), 1e-8),
                (*probe((3, 4, 2, 6)), 1e-3),
                (0.2 * probe((2, 3, 5, 4))[0], 0.5),
                (1e-3 * probe((2, 3, 4, 2))[0],),
            ],
            LENGTH_MISTAKES,
            inputs=("features", "eps"),
            gradients=("features",),
        ),
        mistakes=LENGTH_MISTAKES,
    ),
    Exercise(
        id="06.3",
        title="The distance of two images' features",
        notebook=NOTEBOOK,
        minutes=15,
        difficulty=3,
        reference=perceptual_distance,
        in_package=(LPIPS.forward,),
        hints=(
            "Take one tap: (B, C, h, w) has to become (B,). Which dimensions are summed, which are averaged?",
            "Channels are summed with their weights, pixels are averaged, taps are summed.",
            "One tap: (head * (a - b) ** 2).sum(1).mean((1, 2))",
        ),
        judge=_judge_distance,
        mistakes=DISTANCE_MISTAKES,
    ),
    Exercise(
        id="06.4",
        title="L1 and LPIPS with CompVis' reduction",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=reconstruction_loss,
        in_package=(losses.reconstruction_loss,),
        hints=(
            "Every value of an image has its own |difference|, and its image's distance beside it.",
            "distance.view(-1, 1, 1, 1) can be added to (B, C, H, W). Then sum over each image.",
            "each.flatten(1).sum(1).mean(), with each = |difference| + perceptual_weight · distance",
        ),
        judge=_judge_total,
        mistakes=TOTAL_MISTAKES,
    ),
    Exercise(
        id="06.5",
        title="From weights of sums to weights of means",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=own_mean_weights,
        in_package=(losses.own_mean_weights,),
        hints=(
            "Divide the whole sum by C·H·W. What becomes of each of its three terms?",
            "The KL is c·h·w times its mean over the latent: that number is part of the new weight.",
            "perceptual_weight stays; kl_weight · c·h·w / (C·H·W), where math.prod(image) is C·H·W",
        ),
        judge=_judge_own_weights,
        mistakes=WEIGHT_MISTAKES,
    ),
)
