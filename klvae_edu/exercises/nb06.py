"""The exercises of notebook 06, reconstruction losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from klvae_edu import losses
from klvae_edu.baselines import PatchPCA
from klvae_edu.exercises.exercise import Exercise, Mistakes, call
from klvae_edu.exercises.judges.functions import judge_function, probe, same, weighted_sum
from klvae_edu.exercises.judges.numbers import judge_numbers
from klvae_edu.perceptual import LPIPS

NOTEBOOK = "06_reconstruction_losses"


# The finished versions, in the form in which the exercises ask for them. The tests hold them to the package.
# Annotated with torch.Tensor, which a notebook knows, because `solution` shows them and readers paste them.


def through_pca(train: torch.Tensor, patches: torch.Tensor, components: int) -> torch.Tensor:
    """train (N, D), patches (M, D) -> (M, D): each patch from `components` numbers, by the directions of `train`."""
    mean = train.mean(0)
    _, _, directions = torch.linalg.svd(train - mean, full_matrices=False)  # one in each row, the strongest first
    basis = directions[:components]
    code = (patches - mean) @ basis.T
    return code @ basis + mean


def unit_length(features: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """features (B, C, h, w) -> the same directions, of length 1 at each pixel, or 0 where there are no features."""
    squared = features.pow(2).sum(1, keepdim=True)
    return features / torch.sqrt(squared + eps)


def perceptual_distance(
    features: list[torch.Tensor], others: list[torch.Tensor], heads: list[torch.Tensor]
) -> torch.Tensor:
    """Lists over the taps: features and others (B, C, h, w) of unit length, heads (1, C, 1, 1) -> (B,)."""
    total = features[0].new_zeros(len(features[0]))
    for a, b, head in zip(features, others, heads, strict=True):
        weighted = head * (a - b) ** 2
        total = total + weighted.sum(1).mean((1, 2))
    return total


def reconstruction_loss(
    reconstruction: torch.Tensor, target: torch.Tensor, distance: torch.Tensor, perceptual_weight: float = 1.0
) -> torch.Tensor:
    """L1 and LPIPS with CompVis' reduction. Images (B, C, H, W), distance (B,) -> a scalar."""
    each = (reconstruction - target).abs() + perceptual_weight * distance.view(-1, 1, 1, 1)
    return each.flatten(1).sum(1).mean()


def own_mean_weights(
    image: tuple[int, int, int], latent: tuple[int, int, int], perceptual_weight: float, kl_weight: float
) -> tuple[float, float]:
    """CompVis' weights -> those of the same loss made of means. image is (C, H, W), latent (c, h, w)."""
    image_values, latent_values = math.prod(image), math.prod(latent)
    return perceptual_weight, kl_weight * latent_values / image_values


# 06.1

_Code = Callable[[Tensor, Tensor, int], Tensor]


def _axes(train: Tensor, centre: Tensor | float | None = None) -> Tensor:
    """All principal directions, one in each row."""
    rows: Tensor = torch.linalg.svd(train - (train.mean(0) if centre is None else centre), full_matrices=False)[2]
    return rows


def _coded(
    axes: Callable[[Tensor, Tensor, int], Tensor] = lambda train, patches, k: _axes(train)[:k],
    centre: Callable[[Tensor, Tensor], Tensor | float] = lambda train, patches: train.mean(0),
    back: Callable[[Tensor, Tensor], Tensor | float] = lambda train, patches: train.mean(0),
) -> _Code:
    """The finished version with one part of it exchanged: directions, what is subtracted, what is added at the end."""

    def code(train: Tensor, patches: Tensor, components: int) -> Tensor:
        basis = axes(train, patches, components)
        return (patches - centre(train, patches)) @ basis.T @ basis + back(train, patches)

    return code


def _scaled(power: int) -> _Code:
    """The code multiplied by the singular values, or divided by them."""

    def code(train: Tensor, patches: Tensor, components: int) -> Tensor:
        _, values, rows = torch.linalg.svd(train - train.mean(0), full_matrices=False)
        basis = rows[:components]
        return ((patches - train.mean(0)) @ basis.T * values[:components] ** power) @ basis + train.mean(0)

    return code


def _by_u(train: Tensor, patches: Tensor, components: int) -> Tensor:
    return torch.linalg.svd(train - train.mean(0), full_matrices=False)[0][:, :components].T


_MEAN_OF_PATCHES = "the mean is over the wrong axis: average over the patches, dimension 0, for a mean of D values"
_OTHERS = "of the patches to be coded: the receiver knows only what was fitted to `train`"
PCA_MISTAKES = (
    (
        "the mean is not added at the end: the code describes what is left after subtracting it",
        _coded(back=lambda t, p: 0),
    ),
    ("the mean is not subtracted before the patches are coded", _coded(centre=lambda t, p: 0)),
    (
        "nothing is centred: subtract the mean, or the first direction is spent on it",
        _coded(lambda t, p, k: _axes(t, 0.0)[:k], lambda t, p: 0, lambda t, p: 0),
    ),
    (
        "the directions are those of patches that are not centred: take the SVD of train - mean",
        _coded(lambda t, p, k: _axes(t, 0.0)[:k]),
    ),
    (
        f"the mean is that {_OTHERS}",
        _coded(centre=lambda t, p: p.mean(0), back=lambda t, p: p.mean(0)),
    ),
    (
        f"the mean is that {_OTHERS}",
        _coded(lambda t, p, k: _axes(t, p.mean(0))[:k], lambda t, p: p.mean(0), lambda t, p: p.mean(0)),
    ),
    (f"mean and directions are those {_OTHERS}", lambda t, p, k: through_pca(p, p, k)),
    (f"the directions are those {_OTHERS}", _coded(lambda t, p, k: _axes(p)[:k])),
    ("all directions are kept: take the first `components`", lambda t, p, k: p.clone()),
    ("the last directions are kept: the SVD has the strongest ones first", _coded(lambda t, p, k: _axes(t)[-k:])),
    ("one direction too many", _coded(lambda t, p, k: _axes(t)[: k + 1])),
    ("one direction is missing, or the first is left out", _coded(lambda t, p, k: _axes(t)[: k - 1])),
    ("the first direction is left out: the mean is not among them", _coded(lambda t, p, k: _axes(t)[1 : k + 1])),
    (
        "columns of the SVD's last result are taken: the directions are its rows, directions[:components]",
        _coded(lambda t, p, k: _axes(t)[:, :k].T),
    ),
    ("the code is multiplied by the singular values: the projections themselves are the code", _scaled(1)),
    ("the code is divided by the singular values: the projections themselves are the code", _scaled(-1)),
    (
        "this is the code, (M, components): multiply it by the basis, and add the mean",
        lambda t, p, k: (p - t.mean(0)) @ _axes(t)[:k].T,
    ),
    (
        "one mean for all D values: each of them has its own, train.mean(0)",
        _coded(lambda t, p, k: _axes(t, t.mean())[:k], lambda t, p: t.mean(), lambda t, p: t.mean()),
    ),
    (
        _MEAN_OF_PATCHES,
        _coded(
            lambda t, p, k: _axes(t, t.mean(1, keepdim=True))[:k],
            lambda t, p: p.mean(1, keepdim=True),
            lambda t, p: p.mean(1, keepdim=True),
        ),
    ),
    # by their exceptions
    (_MEAN_OF_PATCHES, lambda t, p, k: _axes(t, t.mean(1))),
    (_MEAN_OF_PATCHES, lambda t, p, k: p - t.mean(1, keepdim=True)),
    *(
        (
            "the SVD's first result is taken, one row per patch: take the last, whose rows are the directions",
            code,
        )
        for code in (
            _coded(_by_u),
            lambda t, p, k: (p - t.mean(0)) @ _by_u(t, p, k),
            lambda t, p, k: (p - t.mean(0)) @ torch.linalg.svd(t - t.mean(0), full_matrices=False)[0][:k].T,
            lambda t, p, k: (p - t.mean(0)) @ torch.linalg.svd(t - t.mean(0))[0][:k].T,
        )
    ),
    (
        "the shapes do not fit: basis is directions[:components], rows, and the code is (patches - mean) @ basis.T",
        lambda t, p, k: (p - t.mean(0)) @ _axes(t)[:k],
    ),
    (
        "the singular values are taken for the directions: torch.linalg.svd gives (U, S, Vh), take the rows of Vh",
        lambda t, p, k: (p - t.mean(0)) @ torch.linalg.svd(t - t.mean(0), full_matrices=False)[1][:k].T,
    ),
    (
        "the basis is transposed twice: code @ basis leads from (M, components) back to (M, D)",
        lambda t, p, k: (p - t.mean(0)) @ _axes(t)[:k].T @ _axes(t)[:k].T,
    ),
)

# 06.2

_Lengths = Callable[[Tensor, float], Tensor]


def _over(*dims: int) -> _Lengths:
    return lambda f, eps: f / (f.pow(2).sum(dims, keepdim=True) + eps).sqrt()


_INSIDE = "add it to the squared length, inside the root"
LENGTH_MISTAKES = Mistakes(
    [
        (
            f"eps is not used: where all features are 0, this is 0/0, and the root's gradient is infinite; {_INSIDE}",
            lambda f, eps: f / f.pow(2).sum(1, keepdim=True).sqrt(),
        ),
        (
            f"eps is added to the length, outside of the root: at 0 the root's gradient is still infinite; {_INSIDE}",
            lambda f, eps: f / (f.pow(2).sum(1, keepdim=True).sqrt() + eps),
        ),
        (
            f"eps is a lower limit of the length, as in F.normalize: {_INSIDE}",
            lambda f, eps: F.normalize(f, dim=1, eps=eps),
        ),
        (
            f"eps is not used, only 0/0 is avoided, as by F.normalize, torch.where or nan_to_num: {_INSIDE}",
            lambda f, eps: F.normalize(f, dim=1),
        ),
        (
            f"eps is a lower limit of the squared length: {_INSIDE}",
            lambda f, eps: f / f.pow(2).sum(1, keepdim=True).clamp(min=eps).sqrt(),
        ),
        *(
            ("eps is a fixed number in the code: use the argument", lambda f, eps, fixed=fixed: unit_length(f, fixed))
            for fixed in (1e-12, 1e-10, 1e-8, 1e-6)
        ),
        (f"eps is squared: {_INSIDE}, as it is", lambda f, eps: unit_length(f, eps**2)),
        (
            f"eps is added to every feature before the sum: {_INSIDE}, once",
            lambda f, eps: unit_length(f, f.shape[1] * eps),
        ),
        (
            "eps is added to the features: add it to the squared length only",
            lambda f, eps: f / (f + eps).pow(2).sum(1, keepdim=True).sqrt(),
        ),
        (
            "the length is taken over space: it is over the channels of each pixel, dimension 1",
            _over(2, 3),
        ),
        ("the length is taken over one row: it is over the channels of each pixel, dimension 1", _over(3)),
        ("the length is taken over one column: it is over the channels of each pixel, dimension 1", _over(2)),
        (
            "the length is taken over channels and space: every pixel has its own, sum over dimension 1 only",
            _over(1, 2, 3),
        ),
        ("the length is taken over the batch: it is over the channels of each pixel, dimension 1", _over(0)),
        ("one length for everything: it is over the channels of each pixel, dimension 1", _over(0, 1, 2, 3)),
        (
            "the root is missing: divide by the length, not by its square",
            lambda f, eps: f / (f.pow(2).sum(1, keepdim=True) + eps),
        ),
        (
            "multiplied by the length: divide by it",
            lambda f, eps: f * (f.pow(2).sum(1, keepdim=True) + eps).sqrt(),
        ),
        (
            "the root of the mean square: the length is the root of the sum of squares",
            lambda f, eps: f / (f.pow(2).mean(1, keepdim=True) + eps).sqrt(),
        ),
        (
            "the sum of the absolute values (L1): the length is the root of the sum of squares",
            lambda f, eps: f / (f.abs().sum(1, keepdim=True) + eps),
        ),
        (
            "the largest value: the length is the root of the sum of squares",
            lambda f, eps: f / (f.abs().amax(1, keepdim=True) + eps),
        ),
        (
            "the standard deviation of the channels: the length is the root of the sum of squares",
            lambda f, eps: f / (f.std(1, keepdim=True) + eps),
        ),
        (
            "the squares are missing: the length is the root of the sum of squares",
            lambda f, eps: f / (f.sum(1, keepdim=True) + eps).sqrt(),
        ),
        (
            "the sum is squared: square each feature, then sum",
            lambda f, eps: f / (f.sum(1, keepdim=True).pow(2) + eps).sqrt(),
        ),
        (
            "this is the length: divide the features by it",
            lambda f, eps: (f.pow(2).sum(1, keepdim=True) + eps).sqrt(),
        ),
        (
            "the features are squared: divide the features themselves",
            lambda f, eps: f.pow(2) / (f.pow(2).sum(1, keepdim=True) + eps),
        ),
        # by its exception
        (
            "keepdim=True is missing: the length must be (B, 1, h, w) to divide (B, C, h, w)",
            lambda f, eps: f / f.sum(1),
        ),
    ]
)

_CONSTANT = (
    "the gradient is that of a constant length: square the features themselves, without detach, .data or no_grad"
)


@LENGTH_MISTAKES(_CONSTANT)
def length_of_detached_features(features: Tensor, eps: float) -> Tensor:
    return features / torch.sqrt(features.detach().pow(2).sum(1, keepdim=True) + eps)


@LENGTH_MISTAKES("the mean over the channels is subtracted: divide the features as they are")
def length_of_centred_features(features: Tensor, eps: float) -> Tensor:
    centred = features - features.mean(1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).sum(1, keepdim=True) + eps)


def _with_pixels_without_features() -> Tensor:
    """One of them with exactly none, the other with next to none."""
    (features,) = probe((2, 5, 3, 4))
    features[1, :, 2, 1] = 0
    features[0, :, 1, 3] *= 1e-5
    return features


_LENGTH_PROBES = (
    (_with_pixels_without_features(), 1e-8),
    (*probe((3, 4, 2, 6)), 1e-3),
    (0.2 * probe((2, 3, 5, 4))[0], 0.5),
)
_judge_values = judge_function(
    unit_length, _LENGTH_PROBES, LENGTH_MISTAKES, inputs=("features", "eps"), gradients=("features",)
)


def _gradient(attempt: Callable[..., Any]) -> Tensor:
    features, eps = _LENGTH_PROBES[1]
    leaf = features.clone().requires_grad_()
    return torch.autograd.grad(weighted_sum(call(attempt, leaf, eps)), leaf)[0]


def _judge_length(attempt: Any) -> str | None:
    complaint = _judge_values(attempt)
    if (
        complaint
        and "not the gradient" in complaint
        and same(_gradient(attempt), _gradient(length_of_detached_features))
    ):
        return _CONSTANT
    return complaint


# 06.3

_Taps = Sequence[Tensor]
_Distance = Callable[[_Taps, _Taps, _Taps], Tensor]


def _tapped(
    difference: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda a, b, w: w * (a - b) ** 2,
    reduce: Callable[[Tensor], Tensor] = lambda weighted: weighted.sum(1).mean((1, 2)),
    join: Callable[[Tensor], Tensor] = lambda taps: taps.sum(0),
) -> _Distance:
    """The finished version with one part of it exchanged: a tap's differences, their reduction, the taps' sum."""
    return lambda features, others, heads: join(
        torch.stack([reduce(difference(*tap)) for tap in zip(features, others, heads, strict=True)])
    )


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _added(reduce: Callable[[Tensor], Tensor]) -> _Distance:
    """The taps in a running sum, not stacked: what cannot be added raises another exception."""

    def distance(features: _Taps, others: _Taps, heads: _Taps) -> Tensor:
        total = torch.zeros(())
        for a, b, head in zip(features, others, heads, strict=True):
            total = total + reduce(head * (a - b) ** 2)
        return total

    return distance


_IN_HEAD = "the head multiplies the squared difference"
_ALL_TAPS = "sum over all of them"
_SIZES = "the taps differ in size: reduce each to (B,) before they are summed"
DISTANCE_MISTAKES = Mistakes(
    [
        ("the squares are missing: differences of different sign cancel", _tapped(lambda a, b, w: w * (a - b))),
        ("the absolute difference is taken: square it", _tapped(lambda a, b, w: w * (a - b).abs())),
        (
            "the heads are not used: each channel's squared difference is multiplied by its weight",
            _tapped(lambda a, b, w: (a - b) ** 2),
        ),
        (f"the head is squared, too: {_IN_HEAD}", _tapped(lambda a, b, w: (w * (a - b)) ** 2)),
        (f"the head multiplies the features of one image only: {_IN_HEAD}", _tapped(lambda a, b, w: (w * a - b) ** 2)),
        ("the squares are subtracted: subtract, then square", _tapped(lambda a, b, w: w * (a**2 - b**2))),
        ("divided by the heads: multiply by them", _tapped(lambda a, b, w: (a - b) ** 2 / w)),
        (
            "a root is taken at the end: the squared distance is asked for",
            _tapped(join=lambda taps: taps.sum(0).sqrt()),
        ),
        (
            "a root is taken at each pixel: the squared distance is asked for",
            _tapped(reduce=lambda x: x.sum(1).sqrt().mean((1, 2))),
        ),
        (
            "a root is taken at each tap: the squared distance is asked for",
            _tapped(reduce=lambda x: x.sum(1).mean((1, 2)).sqrt()),
        ),
        (
            "a sum over space: average over the pixels, or a large image is further off than a small one",
            _tapped(reduce=lambda x: x.sum((1, 2, 3))),
        ),
        (
            "a mean over the channels: the heads are their weights, so sum them",
            _tapped(reduce=lambda x: x.mean((1, 2, 3))),
        ),
        (
            "channels averaged and space summed: it is the other way round",
            _tapped(reduce=lambda x: x.mean(1).sum((1, 2))),
        ),
        ("a mean over the taps: sum them", _tapped(join=lambda taps: taps.mean(0))),
        (
            f"the first tap alone counts: {_ALL_TAPS} (is the return inside of the loop?)",
            _tapped(join=lambda taps: taps[0]),
        ),
        (f"the last tap alone counts: {_ALL_TAPS} (is the total overwritten?)", _tapped(join=lambda taps: taps[-1])),
        (
            "averaged over the batch: one number for each image is asked for, (B,)",
            _tapped(join=lambda taps: taps.sum(0).mean()),
        ),
        ("summed over the batch: one number for each image is asked for, (B,)", _tapped(join=lambda taps: taps.sum())),
        *(
            (
                "a mean over channels, pixels and batch, as F.mse_loss takes it: weight and sum the channels, one "
                "number for each image, (B,)",
                _tapped(difference, reduce, join),
            )
            for difference in (
                lambda a, b, w: w * (a - b) ** 2,
                lambda a, b, w: (a - b) ** 2,
                lambda a, b, w: (w * (a - b)) ** 2,
                lambda a, b, w: w.sum() * (a - b) ** 2,
                lambda a, b, w: w.mean() * (a - b) ** 2,
            )
            for reduce, join in (
                (lambda x: x.mean(), lambda taps: taps.sum()),
                (lambda x: x.mean(), lambda taps: taps.mean()),
                (lambda x: x.mean().expand(len(x)), lambda taps: taps.sum(0)),
            )
        ),
        ("not summed over the taps: one number for each image is asked for, (B,)", _tapped(join=lambda taps: taps)),
        ("not summed over the taps: one number for each image is asked for, (B,)", _tapped(join=lambda taps: taps.T)),
        ("the sign: a distance is never negative", _tapped(join=lambda taps: -taps.sum(0))),
        (
            "this is a similarity, the weighted product of the features: take the squared difference",
            _tapped(lambda a, b, w: w * a * b),
        ),
        # by its exception: nothing is left to sum over the taps
        *(
            (_SIZES, _tapped(reduce=reduce, join=join))
            for reduce in (_as_it_is, lambda x: x.sum(1))
            for join in (_as_it_is, lambda taps: taps.sum(0))
        ),
        *((_SIZES, _added(reduce)) for reduce in (_as_it_is, lambda x: x.sum(1))),
    ]
)


@DISTANCE_MISTAKES(
    "squeeze removes the batch's dimension, too, where there is one image: name the dimension, squeeze(1)"
)
def distance_squeezed(features: _Taps, others: _Taps, heads: _Taps) -> Tensor:
    taps = zip(features, others, heads, strict=True)
    return torch.stack([F.conv2d((a - b) ** 2, head).mean((2, 3)).squeeze() for a, b, head in taps]).sum(0)


def _lists(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The features of every tap, those of the others, the heads."""
    taps = len(tensors) // 3
    return [list(tensors[start : start + taps]) for start in (0, taps, 2 * taps)]


def _on_taps(distance: Callable[..., Any]) -> Callable[..., Any]:
    """The distance as a function of tensors alone."""
    return lambda *tensors: distance(*_lists(tensors))


def _taps(batch: int, *maps: tuple[int, int, int]) -> tuple[Tensor, ...]:
    """Features of unit length for two batches of images, and heads, for taps of (C, h, w)."""
    features, others = (
        tuple(unit_length(x) for x in probe(*((batch + offset, *shape) for shape in maps))) for offset in (0, 1)
    )
    heads = (x.abs() for x in probe(*((1, shape[0], 1, 1) for shape in maps)))
    return *features, *(x[:batch] for x in others), *heads


_NAMES = [f"{name}[{tap}]" for name in ("features", "others", "heads") for tap in range(3)]
_TAP_PROBES = [_taps(2, (3, 6, 8), (5, 3, 4), (7, 2, 1)), _taps(1, (4, 4, 4), (2, 2, 2), (6, 1, 5))]
_judge_of_tensors = judge_function(
    _on_taps(perceptual_distance),
    _TAP_PROBES,
    [(message, _on_taps(code)) for message, code in DISTANCE_MISTAKES],
    inputs=_NAMES,
    gradients=_NAMES[:6],
)


def _judge_distance(attempt: Any) -> str | None:
    complaint = _judge_of_tensors(_on_taps(attempt) if callable(attempt) else attempt)
    if complaint:
        return complaint
    given, before = _lists(_TAP_PROBES[0]), _lists(_TAP_PROBES[0])
    attempt(*given)
    if [[*map(id, taps)] for taps in given] != [[*map(id, taps)] for taps in before]:
        return (
            "the values are right, but it changes the caller's lists: go through them without pop, reverse or the like"
        )
    return None


# 06.4


def _l1(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Summed for each image: (B,)."""
    return (reconstruction - target).abs().flatten(1).sum(1)


_ONCE = "CompVis adds it to every pixel value, so that in the sum it counts C·H·W times"
TOTAL_MISTAKES = Mistakes(
    [
        (f"the distance counts once for an image: {_ONCE}", lambda r, t, d, w: (_l1(r, t) + w * d).mean()),
        (
            f"the distance counts once for a pixel, H·W times: {_ONCE}",
            lambda r, t, d, w: (_l1(r, t) + w * d * t[0, 0].numel()).mean(),
        ),
        (
            f"the distance counts B·C·H·W times, or is summed over the batch: {_ONCE}",
            lambda r, t, d, w: (_l1(r, t) + w * d * t.numel()).mean(),
        ),
        (
            "both terms are means over an image's values: CompVis sums over them, and averages over the batch only",
            lambda r, t, d, w: (_l1(r, t) / t[0].numel() + w * d).mean(),
        ),
        (
            "the pixels are averaged over C, H, W, the distance is not: sum the pixels, or neither counts C·H·W times",
            lambda r, t, d, w: (_l1(r, t) / t[0].numel() + w * d * t[0].numel()).mean(),
        ),
        (
            "summed over the batch: divide by the number of images",
            lambda r, t, d, w: (_l1(r, t) + w * d * t[0].numel()).sum(),
        ),
        (
            f"summed over the batch, and the distance counts once for an image: {_ONCE}; average over the images",
            lambda r, t, d, w: (_l1(r, t) + w * d).sum(),
        ),
        (
            "the pixels are summed over the batch: average over the images",
            lambda r, t, d, w: _l1(r, t).sum() + w * d.mean() * t[0].numel(),
        ),
        (
            "one number for each image: average over the batch at the end",
            lambda r, t, d, w: _l1(r, t) + w * d * t[0].numel(),
        ),
        (
            "one number for each pixel value: sum over C, H, W, then average over the batch",
            lambda r, t, d, w: (r - t).abs() + w * d.view(-1, 1, 1, 1),
        ),
        (
            "the weight is on the pixels: it belongs to the distance",
            lambda r, t, d, w: (w * _l1(r, t) + d * t[0].numel()).mean(),
        ),
        (
            "the weight is on both terms: it belongs to the distance",
            lambda r, t, d, w: w * (_l1(r, t) + d * t[0].numel()).mean(),
        ),
        ("perceptual_weight is not used", lambda r, t, d, w: (_l1(r, t) + d * t[0].numel()).mean()),
        ("the distance is missing", lambda r, t, d, w: _l1(r, t).mean()),
        ("the pixels are missing", lambda r, t, d, w: w * d.mean() * t[0].numel()),
        (
            "the pixel term is squared (L2): the L1 distance |reconstruction - target| is asked for",
            lambda r, t, d, w: ((r - t).pow(2).flatten(1).sum(1) + w * d * t[0].numel()).mean(),
        ),
        (
            "the absolute value is missing: errors of different sign cancel",
            lambda r, t, d, w: ((r - t).flatten(1).sum(1) + w * d * t[0].numel()).mean(),
        ),
        (
            "the absolute value is taken of the sum: take it of every difference, before errors cancel",
            lambda r, t, d, w: ((r - t).flatten(1).sum(1).abs() + w * d * t[0].numel()).mean(),
        ),
        (
            "the sign of the distance: it is a cost, and added",
            lambda r, t, d, w: (_l1(r, t) - w * d * t[0].numel()).mean(),
        ),
        ("the distance multiplies the pixels: it is added to them", lambda r, t, d, w: (_l1(r, t) * w * d).mean()),
        # by its exception
        ("the distance is (B,): to be added to each pixel value it must be (B, 1, 1, 1)", lambda r, t, d, w: r + d),
    ]
)

_ROOT = "the gradient is nan where a value is exactly right, as by the root of a square: use abs()"


@TOTAL_MISTAKES(_ROOT)
def total_of_roots_of_squares(
    reconstruction: Tensor, target: Tensor, distance: Tensor, perceptual_weight: float
) -> Tensor:
    each = ((reconstruction - target) ** 2).sqrt() + perceptual_weight * distance.view(-1, 1, 1, 1)
    return each.flatten(1).sum(1).mean()


_TOTAL_PROBES = [
    (*probe((3, 2, 4, 5), (3, 2, 4, 5), (3,)), 0.7),
    (*probe((4, 3, 5, 2), (4, 3, 5, 2), (4,)), 0.2),
]
_judge_sum = judge_function(
    reconstruction_loss,
    _TOTAL_PROBES,
    TOTAL_MISTAKES,
    inputs=("reconstruction", "target", "distance", "perceptual_weight"),
    gradients=("reconstruction", "distance"),
)


def _judge_total(attempt: Any) -> str | None:
    complaint = _judge_sum(attempt)
    if complaint:
        return complaint
    _, target, *others = _TOTAL_PROBES[0]
    exact = target.clone().requires_grad_()
    return None if torch.autograd.grad(attempt(exact, target, *others), exact)[0].isfinite().all() else _ROOT


# 06.5

_Shape = tuple[int, int, int]
_Weights = Callable[[_Shape, _Shape, float, float], tuple[float, float]]


def _weighing(
    kl: Callable[[_Shape, _Shape], float] = lambda image, latent: math.prod(latent) / math.prod(image),
    perceptual: Callable[[_Shape, _Shape], float] = lambda image, latent: 1.0,
) -> _Weights:
    """Both weights times a factor of their own."""
    return lambda image, latent, w, v: (perceptual(image, latent) * w, kl(image, latent) * v)


_PER_IMAGE = "the distance counts C·H·W times in the sum, so dividing by C·H·W leaves its weight as it was"
WEIGHT_MISTAKES = (
    (
        "the factor of the KL is upside down: its weight becomes smaller, since an image has more values than a latent",
        _weighing(lambda image, latent: math.prod(image) / math.prod(latent)),
    ),
    (
        "the KL's weight is divided by C·H·W only: its mean is the sum over c·h·w, so this must come back as a factor",
        _weighing(lambda image, latent: 1 / math.prod(image)),
    ),
    (
        "the KL's weight is multiplied by c·h·w only: the whole loss is divided by the C·H·W of an image as well",
        _weighing(lambda image, latent: math.prod(latent)),
    ),
    (
        "the KL's weight is as before: a mean over the latent against a mean over the image is another balance",
        _weighing(lambda image, latent: 1.0),
    ),
    (
        "the KL's weight is divided by c·h·w: divide by C·H·W, multiply by c·h·w",
        _weighing(lambda i, z: 1 / math.prod(z)),
    ),
    ("the KL's weight is multiplied by C·H·W: divide by it", _weighing(lambda i, z: math.prod(i) * math.prod(z))),
    (
        "the KL's weight is multiplied by C·H·W, and c·h·w is missing: divide by it",
        _weighing(lambda i, z: math.prod(i)),
    ),
    (
        "both numbers of values divide the KL's weight: c·h·w multiplies it",
        _weighing(lambda i, z: 1 / math.prod(i) / math.prod(z)),
    ),
    ("the channels are forgotten: count C·H·W and c·h·w", _weighing(lambda i, z: z[1] * z[2] / (i[1] * i[2]))),
    ("the channels of the image are forgotten: count C·H·W", _weighing(lambda i, z: math.prod(z) / (i[1] * i[2]))),
    ("the channels of the latent are forgotten: count c·h·w", _weighing(lambda i, z: z[1] * z[2] / math.prod(i))),
    (
        "the ratio of both numbers of values is rounded by //: divide by /",
        _weighing(lambda i, z: 1 / (math.prod(i) // math.prod(z))),
    ),
    ("the sides are added: the number of values is the product of C, H and W", _weighing(lambda i, z: sum(z) / sum(i))),
    (
        f"the perceptual weight is divided by C·H·W: {_PER_IMAGE}",
        _weighing(perceptual=lambda image, latent: 1 / math.prod(image)),
    ),
    (
        f"the perceptual weight is multiplied by C·H·W: {_PER_IMAGE}",
        _weighing(perceptual=lambda image, latent: math.prod(image)),
    ),
    (
        f"the perceptual weight gets the KL's factor, too: {_PER_IMAGE}",
        _weighing(perceptual=lambda image, latent: math.prod(latent) / math.prod(image)),
    ),
    (
        f"both weights are divided by C·H·W: {_PER_IMAGE}, and the KL's is multiplied by c·h·w",
        _weighing(lambda image, latent: 1 / math.prod(image), lambda image, latent: 1 / math.prod(image)),
    ),
    (
        "the results are exchanged: the perceptual weight comes first",
        lambda image, latent, w, v: own_mean_weights(image, latent, w, v)[::-1],
    ),
)
_WEIGHT_PROBES: tuple[tuple[_Shape, _Shape, float, float], ...] = (
    ((3, 256, 256), (4, 32, 32), 1.0, 1e-6),
    ((1, 24, 40), (5, 6, 10), 0.3, 0.02),
)
_judge_weights, _judge_of_the_text = (
    judge_numbers(
        own_mean_weights,
        probes,
        WEIGHT_MISTAKES,
        given=lambda probe: f"{probe[0]}, {probe[1]} and weights {probe[2]:g} and {probe[3]:g},",
        asked="two numbers, the perceptual weight and the KL's",
    )
    for probes in (_WEIGHT_PROBES, _WEIGHT_PROBES[:1])
)


def _judge_own_weights(attempt: Any) -> str | None:
    complaint = _judge_weights(attempt)
    if complaint and complaint not in dict(WEIGHT_MISTAKES) and _judge_of_the_text(attempt) is None:
        return "right for KL-f8's numbers only: is 48, 1.0 or 1e-6 written into the code? Compute from the arguments"
    return complaint


def _stretched(count: int, new: int, values: int) -> tuple[Tensor, Tensor]:
    """Patches whose values differ in spread, so that the order of the directions leaves no doubt."""
    train, patches = probe((count, values), (new, values))
    return tuple(x * torch.arange(1.0, values + 1) + 1.0 for x in (train, patches))


EXERCISES: tuple[Exercise, ...] = (
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
        judge=judge_function(
            through_pca,
            [(*_stretched(12, 5, 6), 2), (*_stretched(9, 14, 4), 1)],
            PCA_MISTAKES,
            inputs=("train", "patches", "components"),
        ),
    ),
    Exercise(
        id="06.2",
        title="Features of length 1",
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
        judge=_judge_length,
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
    ),
)
