"""The exercises of notebook 09, measuring quality."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from klvae_edu import baselines, metrics
from klvae_edu.exercises.attempt import Attempt, call, recipe
from klvae_edu.exercises.exercise import Exercise, Judge, Mistakes
from klvae_edu.exercises.given import local_mean
from klvae_edu.exercises.judges.functions import judge_function, probe, through_recipe
from klvae_edu.exercises.judges.linalg import FiniteLinalg
from klvae_edu.exercises.judges.numbers import judge_numbers
from klvae_edu.exercises.solutions.nb09 import compression, frechet_distance, mean_psnr, ssim

NOTEBOOK = "09_measuring_quality"


@recipe
def in_float64(answer: Any, *arguments: Any) -> Any:
    """Return the result in float64, as the text asks for no precision."""
    result = call(answer, *arguments)
    return result.double() if isinstance(result, Tensor) and result.is_floating_point() else result


# 09.1


def _error(low=-1, high=1, dims=(1, 2, 3)):
    return lambda r, t: (r.clamp(low, high) - t).pow(2).mean(dims)


def _decibels(error=_error(), peak=2, scale=lambda x: 10 * x.log10(), join=torch.mean):  # noqa: B008
    """The solution with one of its parts exchanged."""
    return lambda r, t: join(scale(peak**2 / error(r, t)))


def _decibels_over(peak):
    """The solution with a peak that is taken from the target."""
    return lambda r, t: (10 * (peak(t) ** 2 / _error()(r, t)).log10()).mean()


_FREE, _ALL = math.inf, (0, 1, 2, 3)
_CLAMPS = {
    "the reconstruction is not clamped": _error(-_FREE, _FREE),
    "the reconstruction is clamped to [0, 1]": _error(0, 1),
    "only values above 1 are clamped, not those below -1": _error(-_FREE, 1),
    "only values below -1 are clamped, not those above 1": _error(-1, _FREE),
    "both images are clamped to [0, 1]": lambda r, t: _error(0, 1)(r, t.clamp(0, 1)),
    "the reconstruction goes through tanh": lambda r, t: _error()(r.tanh(), t),
    "the difference is clamped": lambda r, t: (r - t).clamp(-1, 1).pow(2).mean((1, 2, 3)),
}
_MEANS = {
    "one PSNR for each channel": _error(dims=(2, 3)),
    "one PSNR for each pixel": _error(dims=1),
    "one PSNR for each value": lambda r, t: (r.clamp(-1, 1) - t).pow(2),
    "one PSNR for each column": _error(dims=(1, 2)),
    "one PSNR for each row": _error(dims=(1, 3)),
    "the error is averaged over the batch": _error(dims=0),
    "the squared error is summed over the image": lambda r, t: r[0].numel() * _error()(r, t),
    "the squared error is divided by the channels only": lambda r, t: r[0, 0].numel() * _error()(r, t),
    "the squared error is summed over the channels": lambda r, t: r.shape[1] * _error()(r, t),
    "the size 64 × 64 is written into the code": lambda r, t: r[0].numel() * _error()(r, t) / (3 * 64 * 64),
}
_SQUARES = {
    "it is the variance of the differences": lambda r, t: (r.clamp(-1, 1) - t).var((1, 2, 3)),
    "its root is taken": lambda r, t: _error()(r, t).sqrt(),
    "it is made of absolute differences": lambda r, t: (r.clamp(-1, 1) - t).abs().mean((1, 2, 3)),
    "the differences are averaged before they are squared": lambda r, t: (r.clamp(-1, 1) - t).mean((1, 2, 3)) ** 2,
    "a number such as 0.01 is added": lambda r, t: _error()(r, t) + 1e-2,
    "a number such as 0.001 is added": lambda r, t: _error()(r, t) + 1e-3,
}
_PEAKS = {
    "it is the brightest value in the image": lambda t: t.amax((1, 2, 3)),
    "it is the range of the image": lambda t: t.amax((1, 2, 3)) - t.amin((1, 2, 3)),
}
_SCALES = {
    "20 · log₁₀ belongs to a ratio of amplitudes: that of squares takes 10": lambda x: 20 * x.log10(),
    "the factor 10 is missing: these are bels": torch.log10,
    "the natural logarithm: decibels use base 10": lambda x: 10 * x.log(),
    "the logarithm to base 2: decibels use base 10": lambda x: 10 * x.log2(),
    "the ratio is upside down: the peak is over the error": lambda x: -10 * x.log10(),
}
_JOINED = {
    "one number for each image: average them at the end": lambda decibels: decibels,
    "summed over the images: average them": torch.sum,
    "the ratios are averaged, then their logarithm is taken: average the dB": lambda x: (
        10 * (10 ** (x / 10)).mean().log10()
    ),
    "the median of the images' dB: their mean is asked for": torch.median,
    "the worst image's dB: the mean over all is asked for": torch.min,
    "the best image's dB: the mean over all is asked for": torch.max,
}
_SQUARED = "take the width of the range, 2, and square it"
PSNR_MISTAKES = Mistakes(
    [
        (
            "this is the dB of the mean error, which the worst image dominates: average the dB of the images",
            _decibels(_error(dims=_ALL)),
        ),
        (
            "the dB of the mean error, and without the clamp: average the dB of the images, clamped to [-1, 1]",
            _decibels(_error(-_FREE, _FREE, _ALL)),
        ),
        *((f"{fault}: clamp the reconstruction to [-1, 1] first", _decibels(it)) for fault, it in _CLAMPS.items()),
        *(
            (f"{fault}: average the squared error over C, H and W, before the logarithm", _decibels(error))
            for fault, error in _MEANS.items()
        ),
        *(
            (f"the error: {fault}; take the mean of the squares, as it is", _decibels(it))
            for fault, it in _SQUARES.items()
        ),
        *((f"the peak: {fault}; {_SQUARED}", _decibels_over(peak)) for fault, peak in _PEAKS.items()),
        (f"the peak is 1, as for images from 0 to 1, or missing: {_SQUARED}", _decibels(peak=1)),
        (f"the peak is 255, as for bytes: {_SQUARED}", _decibels(peak=255)),
        (f"the peak is not squared: {_SQUARED}", _decibels(peak=2**0.5)),
        (f"the peak is twice the range, as if the images were shifted to [0, 1]: {_SQUARED}", _decibels(peak=4)),
        ("not clamped, and the peak is 1: take the range, 2, and clamp to it", _decibels(_error(-_FREE, _FREE), 1)),
        ("not clamped, and the peak is 255: take the range, 2, and clamp to it", _decibels(_error(-_FREE, _FREE), 255)),
        (
            "20 · log₁₀ is for 2 over the root of the error, a ratio of amplitudes; here it is over the squared error",
            _decibels(peak=2**0.5, scale=lambda x: 20 * x.log10()),
        ),
        *((message, _decibels(scale=scale)) for message, scale in _SCALES.items()),
        *((message, _decibels(join=join)) for message, join in _JOINED.items()),
    ]
)

# 09.2


class _Moments(NamedTuple):
    """Parts that SSIM is made of, around every pixel, and its two constants."""

    ma: Tensor
    mb: Tensor
    va: Tensor
    vb: Tensor
    cov: Tensor
    c1: float = 0.01**2
    c2: float = 0.03**2


def _luminance(m, two=2):
    return (two * m.ma * m.mb + m.c1) / (m.ma**2 + m.mb**2 + m.c1)


def _structure(m, two=2):
    return (two * m.cov + m.c2) / (m.va + m.vb + m.c2)


def _product(m):
    return _luminance(m) * _structure(m)


def _deviations(m):
    return m.va.clamp(min=0).sqrt(), m.vb.clamp(min=0).sqrt()


def _similarity(
    terms=_product,
    a=lambda r: (r + 1) / 2,
    b=lambda t: (t + 1) / 2,
    mean=local_mean,
    join=lambda found: found.mean((1, 2, 3)),
):
    """The solution with one part exchanged: terms, range, window or average."""

    def similarity(reconstruction, target, window):
        x, y = a(reconstruction), b(target)
        ma, mb = mean(x, window), mean(y, window)
        xx, yy, xy = mean(x * x, window), mean(y * y, window), mean(x * y, window)
        return join(terms(_Moments(ma, mb, xx - ma * ma, yy - mb * mb, xy - ma * mb)))

    return similarity


def _with(moments):
    """The solution with other moments or constants."""
    return _similarity(lambda m: _product(m._replace(**moments(m))))


def _over(below):
    """The solution with the covariance over something else."""
    return _similarity(lambda m: _luminance(m) * (2 * m.cov + m.c2) / (below(m) + m.c2))


def _zero_padded(images, window):
    return F.conv2d(images.flatten(0, 1)[:, None], window[None, None], padding=len(window) // 2).view(images.shape)


def _inside(images, window):
    margin = len(window) // 2
    return local_mean(images, window)[..., margin:-margin, margin:-margin]


def _window(size: int, sigma: float) -> Tensor:
    row = torch.exp(-(torch.arange(size) - size // 2).pow(2) / (2 * sigma**2))
    return torch.outer(row, row) / row.sum() ** 2


_RANGES = {
    "computed from -1 to 1": lambda x: x,
    "computed from 0 to 2, with the constants of a range 1 wide": lambda x: x + 1,
    "a bracket is missing in x + 1 / 2": lambda x: x + 1 / 2,
    "clamped to [0, 1], but not shifted": lambda x: x.clamp(0, 1),
    "the images are inverted": lambda x: (1 - x) / 2,
}
_CONSTANTS = {
    "the constants are those of a range 2 wide": (0.02**2, 0.06**2),
    "the constants are those of bytes": (2.55**2, 7.65**2),
    "the constants are not squared": (0.01, 0.03),
    "the constants are exchanged": (0.03**2, 0.01**2),
    "both constants are 0.01²": (0.01**2, 0.01**2),
    "both constants are 0.03²": (0.03**2, 0.03**2),
    "the constants are missing, or tiny beside the values": (1e-8, 1e-8),
    "the first constant is missing": (0, 0.03**2),
    "the second constant is missing": (0.01**2, 0),
}
_MOMENTS = {
    "the means are not subtracted, and these are no variances yet": lambda m: (
        {"va": m.va + m.ma**2, "vb": m.vb + m.mb**2, "cov": m.cov + m.ma * m.mb}
    ),
    "the product of the means is not subtracted from the covariance": lambda m: {"cov": m.cov + m.ma * m.mb},
    "the means are not subtracted in the variances": lambda m: {"va": m.va + m.ma**2, "vb": m.vb + m.mb**2},
    "the means themselves are subtracted in the variances": lambda m: (
        {"va": m.va + m.ma**2 - m.ma, "vb": m.vb + m.mb**2 - m.mb}
    ),
    "the signs of the variances are wrong": lambda m: {"va": -m.va, "vb": -m.vb},
    "the sign of the covariance is wrong": lambda m: {"cov": -m.cov},
    "the signs of all three are wrong": lambda m: {"va": -m.va, "vb": -m.vb, "cov": -m.cov},
    "the variance of the difference stands for the covariance": lambda m: {"cov": m.va + m.vb - 2 * m.cov},
    "the reconstruction's variance stands for both": lambda m: {"vb": m.va},
    "the target's variance stands for both": lambda m: {"va": m.vb},
}
_TERMS = {
    "the 2 is missing before the product of the means, and equal images would not have 1": lambda m: (
        _luminance(m, 1) * _structure(m)
    ),
    "the 2 is missing before the covariance, and equal images would not have 1": lambda m: (
        _luminance(m) * _structure(m, 1)
    ),
    "the 2 is missing in both terms, and equal images would not have 1": lambda m: _luminance(m, 1) * _structure(m, 1),
    "this is the term of the means alone": _luminance,
    "this is the term of the covariance alone": _structure,
    "this is the term of contrast, of the standard deviations": lambda m: _product(
        m._replace(cov=math.prod(_deviations(m)))
    ),
    "the two terms are added": lambda m: _luminance(m) + _structure(m),
    "the two terms are averaged": lambda m: (_luminance(m) + _structure(m)) / 2,
    "this is the correlation, which is blind for contrast": lambda m: (
        _luminance(m) * (m.cov + m.c2) / (math.prod(_deviations(m)) + m.c2)
    ),
    "the constants are missing in the numerators, and equal images would not have 1": lambda m: (
        4 * m.ma * m.mb * m.cov / ((m.ma**2 + m.mb**2 + m.c1) * (m.va + m.vb + m.c2))
    ),
}
_BELOW = {
    "the variances are squared once more": lambda m: m.va**2 + m.vb**2,
    "the variances are multiplied": lambda m: m.va * m.vb,
    "the standard deviations are added": lambda m: sum(_deviations(m)),
    "the standard deviations are multiplied": lambda m: math.prod(_deviations(m)),
    "twice the product of the standard deviations makes a correlation": lambda m: 2 * math.prod(_deviations(m)),
}
_AVERAGES = {
    "one number for the batch: (B,) is asked for": torch.mean,
    "this is the map: average over C, H and W": lambda found: found,
    "one number for each channel: average over C, H and W": lambda found: found.mean((2, 3)),
    "averaged over the channels only: average over C, H and W": lambda found: found.mean(1),
    "averaged over the batch: average over C, H and W": lambda found: found.mean(0),
    "summed over the image: average over C, H and W": lambda found: found.sum((1, 2, 3)),
    "1 - SSIM is a loss: the similarity is asked for": lambda found: 1 - found.mean((1, 2, 3)),
    "(1 - SSIM) / 2 is a loss: the similarity is asked for": lambda found: (1 - found.mean((1, 2, 3))) / 2,
    "values below 0 are cut off: leave them": lambda found: found.clamp(min=0).mean((1, 2, 3)),
}
_LOCAL = {
    "a window of equal weights": lambda x, window: local_mean(x, torch.full_like(window, 1 / window.numel())),
    "a window of 11 × 11 is written into the code": lambda x, window: local_mean(x, _window(11, 1.5)),
    "the moments are those of the whole image": lambda x, window: x.mean((2, 3), keepdim=True),
    "the border is padded with zeros, which darkens it": _zero_padded,
    "the border is left out": _inside,
}
_FROM_BLACK = "SSIM compares means, and expects black to be 0: use (x + 1) / 2"
_CENTRED = "each is local_mean(x * y) - local_mean(x) * local_mean(y)"
SSIM_MISTAKES = Mistakes(
    [
        *((f"{fault}: {_FROM_BLACK}", _similarity(a=change, b=change)) for fault, change in _RANGES.items()),
        (
            f"not shifted, though constants and width fit each other: {_FROM_BLACK}",
            _similarity(a=lambda r: r / 2, b=lambda t: t / 2),
        ),
        ("only the reconstruction is shifted to [0, 1]: shift both images", _similarity(b=lambda t: t)),
        ("only the target is shifted to [0, 1]: shift both images", _similarity(a=lambda r: r)),
        *(
            (
                f"{fault}: they are 0.01², with the means, and 0.03², with the variances, from 0 to 1",
                _with(lambda m, c1=c1, c2=c2: {"c1": c1, "c2": c2}),
            )
            for fault, (c1, c2) in _CONSTANTS.items()
        ),
        *((f"{fault}: {_CENTRED}", _with(moments)) for fault, moments in _MOMENTS.items()),
        *((f"{fault}: it is the product of the two fractions", _similarity(terms)) for fault, terms in _TERMS.items()),
        *(
            (f"the denominator below the covariance: {fault}; it is var_a + var_b", _over(below))
            for fault, below in _BELOW.items()
        ),
        *((message, _similarity(join=join)) for message, join in _AVERAGES.items()),
        *((f"{fault}: use local_mean with the given window", _similarity(mean=it)) for fault, it in _LOCAL.items()),
    ]
)


@SSIM_MISTAKES("the window is not used: metrics.ssim has one of its own")
def similarity_by_the_package(reconstruction, target, window):
    return metrics.ssim(reconstruction, target)


@SSIM_MISTAKES("the channels are averaged before the comparison: average at the end, over C, H and W")
def similarity_of_grey_images(reconstruction, target, window):
    return ssim(reconstruction.mean(1, keepdim=True), target.mean(1, keepdim=True), window)


@SSIM_MISTAKES("each term is averaged over the image, then they are multiplied: multiply at each pixel, then average")
def similarity_of_averages(reconstruction, target, window):
    luminance, structure = _similarity(_luminance), _similarity(_structure)
    return luminance(reconstruction, target, window) * structure(reconstruction, target, window)


@SSIM_MISTAKES("each pixel is measured from the mean around itself: local_mean(a * a, window) - mean_a**2 around one")
def similarity_about_moving_means(reconstruction, target, window):
    a, b = (reconstruction + 1) / 2, (target + 1) / 2
    ma, mb = local_mean(a, window), local_mean(b, window)
    va, vb = local_mean((a - ma) ** 2, window), local_mean((b - mb) ** 2, window)
    return _product(_Moments(ma, mb, va, vb, local_mean((a - ma) * (b - mb), window))).mean((1, 2, 3))


def _images(batch: int, channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Two that are alike, the first reaching beyond [-1, 1] a little, each of another quality."""
    target, noise = probe((batch, channels, height, width), (batch, channels, height, width), scale=0.4)
    target = 0.9 * target.tanh()
    return target + noise * torch.linspace(0.2, 1.5, batch).view(-1, 1, 1, 1), target


def _shown(*shape: int, contrast: float = 1.0) -> list[Tensor]:
    """The same within [-1, 1], where it does not matter whether an answer clamps; dark ones with little contrast."""
    return [contrast * (image.clamp(-1, 1) + 1) - 1 for image in _images(*shape)]


# 09.3


def _squared_distance(x, y):
    return (x.mean(0) - y.mean(0)).pow(2).sum()


def _roots(product):
    return torch.linalg.eigvals(product).real.clamp(min=0).sqrt()


def _root(matrix):
    """The root of a symmetric matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _sum(a, b, r, m):
    return m + a.trace() + b.trace() - 2 * r


def _distance(
    overlap=lambda a, b: _roots(a @ b).sum(),
    means=_squared_distance,
    covariance=lambda x: torch.cov(x.T),
    join=_sum,
):
    """The solution with one of its parts exchanged."""

    def distance(x, y):
        a, b = covariance(x), covariance(y)
        return join(a, b, overlap(a, b), means(x, y))

    return distance


_OVERLAPS = {
    "a root is taken of each entry of the product": lambda a, b: (a @ b).sqrt().trace(),
    "this is the trace of the product, without a root": lambda a, b: (a @ b).trace(),
    "the root is of the trace": lambda a, b: (a @ b).trace().sqrt(),
    "the product of two roots is the root of the product only if a and b commute": lambda a, b: (
        _root(a) @ _root(b)
    ).trace(),
    "the eigenvalues of two factors are not those of the product": lambda a, b: (
        (torch.linalg.eigvalsh(a) * torch.linalg.eigvalsh(b)).sqrt().sum()
    ),
    "two sums of roots are multiplied": lambda a, b: _roots(a).sum() * _roots(b).sum(),
    "the product is taken entry by entry": lambda a, b: _roots(a * b).sum(),
    "the product is of one covariance with itself": lambda a, b: a.trace(),
    "eigvalsh is for symmetric matrices": lambda a, b: torch.linalg.eigvalsh(a @ b).clamp(min=0).sqrt().sum(),
    "these are singular values": lambda a, b: torch.linalg.svdvals(a @ b).sqrt().sum(),
    "the roots of the eigenvalues are not summed": lambda a, b: _roots(a @ b),
    "the roots of the eigenvalues are averaged": lambda a, b: _roots(a @ b).mean(),
    "the result is complex, as .real is missing": lambda a, b: torch.linalg.eigvals(a @ b).sqrt().sum(),
}
_MEAN_TERMS = {
    "they are missing": lambda difference: 0 * difference.sum(),
    "one number is asked for, their sum": torch.square,
    "the distance is not squared": torch.norm,
    "absolute differences are added": lambda difference: difference.abs().sum(),
    "the differences are added first, then squared": lambda difference: difference.sum() ** 2,
    "the squares are averaged": lambda difference: difference.pow(2).mean(),
    "one mean is taken over all features": lambda difference: difference.mean() ** 2,
}
_COVARIANCES = {
    "the mean is not subtracted": lambda x: x.T @ x / (len(x) - 1),
    "the mean is not subtracted first": lambda x: x.T @ x / len(x),
    "it is not divided by the number of images": lambda x: torch.cov(x.T) * (len(x) - 1),
    "this is a correlation, which has lost the spread": lambda x: torch.corrcoef(x.T),
    "there are variances only, but features that go together count, too": lambda x: torch.diag(x.var(0)),
    "torch.cov has a feature in each row": torch.cov,
}
_SUMS = {  # of the covariances a and b, the sum r of the roots, and the means' part m
    "the 2 before the root is missing": lambda a, b, r, m: m + (a + b).trace() - r,
    "the sign of the covariances' part is wrong": lambda a, b, r, m: m - (a + b).trace() + 2 * r,
    "the root is added": lambda a, b, r, m: m + (a + b).trace() + 2 * r,
    "the root of the product is missing": lambda a, b, r, m: m + (a + b).trace(),
    "the 2 is under the root": lambda a, b, r, m: m + (a + b).trace() - math.sqrt(2) * r,
    "all entries of the covariances are summed, not the diagonal": lambda a, b, r, m: m + (a + b).sum() - 2 * r,
    "the trace of the second covariance is missing": lambda a, b, r, m: m + a.trace() - 2 * r,
    "the trace of the first covariance is missing": lambda a, b, r, m: m + b.trace() - 2 * r,
    "the traces are subtracted from each other": lambda a, b, r, m: m + (a - b).trace() - 2 * r,
    "this is the means' part alone, as if a covariance were missing, or both were of one set": lambda a, b, r, m: m,
    "the covariances are compared entry by entry": lambda a, b, r, m: m + (a - b).pow(2).sum(),
    "a root is taken at the end, but the squared distance is asked for": lambda a, b, r, m: _sum(a, b, r, m).sqrt(),
}
_FEW = {
    "an eigenvalue that rounding has put below 0 has the root nan: clamp(min=0) before it": lambda a, b: (
        torch.linalg.eigvals(a @ b).real.sqrt().sum()
    ),
    "cholesky fails where an eigenvalue is 0, as with no more images than features": lambda a, b: _roots(
        torch.linalg.cholesky(a).T @ b @ torch.linalg.cholesky(a)
    ).sum(),
}
_OF_FEW = [(message, _distance(overlap)) for message, overlap in _FEW.items()]
FRECHET_MISTAKES = Mistakes(
    [
        *(
            (f"{fault}: take the sum of the roots of the eigenvalues of a @ b, by eigvals", _distance(it))
            for fault, it in _OVERLAPS.items()
        ),
        *(
            (
                f"the means: {fault}; take the sum of the squared differences of mean(0)",
                _distance(means=lambda x, y, of=of: of(x.mean(0) - y.mean(0))),
            )
            for fault, of in _MEAN_TERMS.items()
        ),
        *(
            (f"the covariance: {fault}; torch.cov(features.T) gives (D, D)", _distance(covariance=covariance))
            for fault, covariance in _COVARIANCES.items()
        ),
        *((f"{fault}: it is means + tr a + tr b - 2 · roots", _distance(join=join)) for fault, join in _SUMS.items()),
        *_OF_FEW,
    ]
)


@FRECHET_MISTAKES("both covariances are divided by the number of one set: each has its own")
def distance_by_one_number(features, others):
    x, y = features - features.mean(0), others - others.mean(0)
    a, b = x.T @ x / (len(x) - 1), y.T @ y / (len(x) - 1)
    return _sum(a, b, _roots(a @ b).sum(), _squared_distance(features, others))


@FRECHET_MISTAKES("the covariance: torch.cov has a feature in each row; torch.cov(features.T) gives (D, D)")
def distance_of_images(features, others):
    x, y = features - features.mean(0), others - others.mean(0)
    return _roots((x @ x.T) @ (y @ y.T))


@FRECHET_MISTAKES("images are subtracted from images, of sets that differ in number: take mean(0) of each set first")
def distance_of_pairs(features, others):
    return (features - others).pow(2).sum(1).mean()


@recipe
def guarded(answer: Any, features: Tensor, others: Tensor) -> Any:
    """Return the result, and refuse values that are not finite on their way to torch.linalg, and complex ones."""
    with FiniteLinalg():
        result = in_float64(answer, features, others)
    if isinstance(result, Tensor) and result.is_complex():
        raise TypeError("the result is complex")
    return result


def _features(images: int, others: int, features: int) -> tuple[Tensor, Tensor]:
    """Float64, and far from commuting covariances."""
    x, y, mix = (found.double() for found in probe((images, features), (others, features), (features, features)))
    return x @ mix, y * torch.linspace(0.5, 2, features).double() + 0.4


# Fewer images than features: many eigenvalues are 0, and some of them come out below it. The means are far apart, so
# that what single precision makes of the rest does not count.
_few, _others = _features(6, 7, 20)
_judge_distance, _judge_few, _judge_biased = (
    judge_function(
        partial(guarded, reference),
        probes,
        through_recipe(guarded, mistakes),
        inputs=("features", "others"),
        through=guarded,
    )
    for reference, probes, mistakes in (
        (frechet_distance, [_features(30, 25, 4), _features(12, 40, 3)], FRECHET_MISTAKES),
        (frechet_distance, [(_few, _others + 6)], _OF_FEW),
        (_distance(covariance=lambda x: torch.cov(x.T, correction=0)), [_features(30, 25, 4), (_few, _others + 6)], []),
    )
)


def _judge_frechet(attempt: Attempt) -> str | None:
    """Judge few images last: an attempt without the clamp may have another mistake, to be named first.

    The text asks for covariances, and leaves open whether they are divided by N - 1 or by N.
    """
    complaint = _judge_distance(attempt) or _judge_few(attempt)
    return None if complaint and _judge_biased(attempt) is None else complaint


# 09.4


def _ratios(
    image=lambda side, bits: 3 * side**2 * 8,
    kl=lambda channels, bits: channels * bits,
    vq=lambda channels, bits, codes: math.log2(codes),
    positions=lambda side, factor: (side // factor) ** 2,
):
    """The solution with one of its parts exchanged."""

    def ratios(side, factor, channels, bits, codes):
        whole, count = image(side, bits), positions(side, factor)
        return whole / (count * kl(channels, bits)), whole / (count * vq(channels, bits, codes))

    return ratios


_OF_VQ = {
    "the index is counted once for each channel": lambda channels, bits, codes: channels * math.log2(codes),
    "the number of codes is taken for bits": lambda channels, bits, codes: codes,
    "the natural logarithm is taken": lambda channels, bits, codes: math.log(codes),
    "the logarithm to base 10 is taken": lambda channels, bits, codes: math.log10(codes),
    "the index has one bit too many": lambda channels, bits, codes: math.log2(codes) + 1,
    "the index is counted as a value of `bits` bits": lambda channels, bits, codes: bits,
    "the index is counted as a single bit": lambda channels, bits, codes: 1,
    "the vector is counted, not its index": lambda channels, bits, codes: channels * bits,
    "the index is counted in bytes": lambda channels, bits, codes: 8 * math.log2(codes),
    "the index is multiplied by `channels · bits`": lambda channels, bits, codes: channels * bits * math.log2(codes),
    "the index is multiplied by `bits`": lambda channels, bits, codes: bits * math.log2(codes),
}
_OF_KL = {
    "the bits of the values are forgotten": lambda channels, bits: channels,
    "the channels are forgotten": lambda channels, bits: bits,
    "a logarithm is taken of the bits": lambda channels, bits: channels * math.log2(bits),
    "mean and variance are counted both": lambda channels, bits: 2 * channels * bits,
    "a value is counted with 8 bits": lambda channels, bits: channels * 8,
}
_OF_IMAGE = {
    "its three channels are forgotten": lambda side, bits: side**2 * 8,
    "it has three channels, not four": lambda side, bits: side**2 * 4 * 8,
    "its 8 bits are forgotten": lambda side, bits: side**2 * 3,
    "one side is counted, not the area": lambda side, bits: side * 3 * 8,
    "its values have 8 bits, not `bits`": lambda side, bits: side**2 * 3 * bits,
    "its values have 8 bits, not 256": lambda side, bits: side**2 * 3 * 256,
    "it is in bits, and the latent in bytes": lambda side, bits: side**2 * 3 * 64,
}
_OF_PLACES = {
    "the factor counts once, not squared": lambda side, factor: side * (side // factor),
    "a single row is counted": lambda side, factor: side // factor,
    "there are as many as in the image": lambda side, factor: side**2,
    "the side is divided by 2 to the power of the factor": lambda side, factor: (side / 2**factor) ** 2,
}
_OF_RESULTS = {
    "the results are exchanged: KL comes first": lambda kl, vq: (vq, kl),
    "the ratios are upside down: the image's bits over the latent's": lambda kl, vq: (1 / kl, 1 / vq),
    "the ratios are rounded: leave them as they are": lambda kl, vq: (round(kl), round(vq)),
    "the ratios are rounded down, as by //: divide by /": lambda kl, vq: (kl // 1, vq // 1),
    "these are shares that are saved: how many times smaller is asked for": lambda kl, vq: (1 - 1 / kl, 1 - 1 / vq),
}
_ONE_INDEX = "VQ stores one index for a whole vector, log₂(codes) bits at each position"
COMPRESSION_MISTAKES = Mistakes(
    [
        *((f"{fault}: {_ONE_INDEX}", _ratios(vq=vq)) for fault, vq in _OF_VQ.items()),
        *(
            (f"KL: {fault}; a position holds `channels` values of `bits` bits", _ratios(kl=kl))
            for fault, kl in _OF_KL.items()
        ),
        *((f"the image: {fault}; it has 3 · side² · 8 bits", _ratios(image)) for fault, image in _OF_IMAGE.items()),
        *(
            (f"the positions: {fault}; divide both sides by the factor", _ratios(positions=it))
            for fault, it in _OF_PLACES.items()
        ),
        *((message, lambda *a, change=change: change(*compression(*a))) for message, change in _OF_RESULTS.items()),
    ]
)


@COMPRESSION_MISTAKES("values are divided by values: both ratios are of bits")
def ratios_of_values(side, factor, channels, bits, codes):
    image, positions = 3 * side**2, (side // factor) ** 2
    return image / (positions * channels), image / positions


@COMPRESSION_MISTAKES("these are the latents' bits: how many times more bits does the image have?")
def bits_of_the_latents(side, factor, channels, bits, codes):
    positions = (side // factor) ** 2
    return positions * channels * bits, positions * math.log2(codes)


@COMPRESSION_MISTAKES("the codebook is counted along: only the latent's indices are asked for")
def ratios_with_the_codebook(side, factor, channels, bits, codes):
    image, positions = 24 * side**2, (side // factor) ** 2
    return image / (positions * channels * bits), image / (positions * math.log2(codes) + codes * channels * bits)


@COMPRESSION_MISTAKES(f"the logarithm is of all positions' codes at once: {_ONE_INDEX}")
def ratios_of_one_logarithm(side, factor, channels, bits, codes):
    image, positions = 24 * side**2, (side // factor) ** 2
    return image / (positions * channels * bits), image / math.log2(positions * codes)


_TEXT = {"side": 256, "factor": 8, "channels": 4, "bits": 16, "codes": 16384}
_OTHER = {"side": 96, "factor": 4, "channels": 3, "bits": 9, "codes": 256}


def _judge_of(*probes: Mapping[str, int]) -> Judge:
    return judge_numbers(
        compression,
        [tuple(probe.values()) for probe in probes],
        COMPRESSION_MISTAKES,
        given=lambda probe: "side {}, factor {}, {} channels of {} bits and {} codes".format(*probe),
        asked="two numbers, KL's ratio and VQ's",
    )


_judge_ratios = _judge_of(_TEXT, _OTHER, {"side": 512, "factor": 16, "channels": 10, "bits": 32, "codes": 1024})
_judge_of_the_text = _judge_of(_TEXT)
_judge_with_another = {name: _judge_of(_TEXT | {name: value}) for name, value in _OTHER.items()}


def _judge_compression(attempt: Attempt) -> str | None:
    complaint = _judge_ratios(attempt)
    if complaint and complaint not in dict(COMPRESSION_MISTAKES) and _judge_of_the_text(attempt) is None:
        unused = " or ".join(name for name, judge in _judge_with_another.items() if judge(attempt))
        return f"right for the text's numbers, not with another {unused}: look at how the ratio depends on it"
    return complaint


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        id="09.1",
        title="The mean PSNR",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=mean_psnr,
        in_package=(metrics.psnr,),
        hints=(
            "Which comes first, the logarithm or the mean over the images?",
            "Each image has one squared error, a mean over C, H and W: (B,). The peak is 2, the width of the range.",
            "With error = (reconstruction.clamp(-1, 1) - target).pow(2).mean((1, 2, 3)) it is (10 * torch.log10(4 / "
            "error)).mean().",
        ),
        judge=judge_function(
            partial(in_float64, mean_psnr),
            [_images(3, 3, 5, 6), _images(4, 2, 4, 4), _images(1, 3, 4, 5)],
            through_recipe(in_float64, PSNR_MISTAKES),
            inputs=("reconstruction", "target"),
            through=in_float64,
        ),
        mistakes=PSNR_MISTAKES,
    ),
    Exercise(
        id="09.2",
        title="Structural similarity",
        notebook=NOTEBOOK,
        minutes=20,
        difficulty=4,
        reference=ssim,
        in_package=(metrics.ssim,),
        hints=(
            "A variance is the mean of the squares minus the square of the mean. What is a covariance, likewise?",
            "local_mean(a * b, window) - mean_a * mean_b is the covariance around each pixel; with a twice, var_a.",
            "(2 · mean_a · mean_b + c1) / (mean_a² + mean_b² + c1) times (2 · cov + c2) / (var_a + var_b + c2), then "
            ".mean((1, 2, 3)); c1 = 0.01², c2 = 0.03².",
        ),
        judge=judge_function(
            ssim,
            [(*_shown(2, 3, 16, 12), _window(11, 1.5)), (*_shown(3, 1, 9, 10, contrast=0.1), _window(7, 1.0))],
            SSIM_MISTAKES,
            inputs=("reconstruction", "target", "window"),
        ),
        mistakes=SSIM_MISTAKES,
    ),
    Exercise(
        id="09.3",
        title="The Fréchet distance",
        notebook=NOTEBOOK,
        minutes=15,
        difficulty=3,
        reference=frechet_distance,
        in_package=(metrics.FrechetDistance,),
        hints=(
            "Two vectors of means, two matrices of covariance. torch.cov wants one feature in each row.",
            "A trace is the sum of the eigenvalues (torch.linalg.eigvals), and those of the root are their roots.",
            "torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum() is the trace of the root of a @ b.",
        ),
        judge=_judge_frechet,
        mistakes=FRECHET_MISTAKES,
    ),
    Exercise(
        id="09.4",
        title="How many times smaller",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=compression,
        in_package=(baselines.jpeg,),
        hints=(
            "How many positions does the latent have? And how many bits does each of them take: with KL, with VQ?",
            "KL: `channels` values of `bits` bits at each position. VQ: one number from 0 to codes - 1.",
            "image = 3 · side² · 8 bits; (side // factor)² positions; channels · bits, and math.log2(codes).",
        ),
        judge=_judge_compression,
        mistakes=COMPRESSION_MISTAKES,
    ),
)
