"""The exercises of notebook 09, measuring quality."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from klvae_edu import baselines, latents, metrics
from klvae_edu.exercises.exercise import Exercise, Mistakes, call
from klvae_edu.exercises.judges.functions import judge_function, probe
from klvae_edu.exercises.judges.linalg import FiniteLinalg
from klvae_edu.exercises.judges.numbers import judge_numbers

NOTEBOOK = "09_measuring_quality"


# The finished versions, in the form in which the exercises ask for them. The tests hold them to the package.
# Annotated with torch.Tensor, which a notebook knows, because `solution` shows them and readers paste them.


def mean_psnr(reconstruction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W) in [-1, 1] -> a scalar: each image's PSNR in dB, averaged over the batch."""
    error = (reconstruction.clamp(-1, 1) - target).pow(2).mean((1, 2, 3))
    return (10 * torch.log10(2**2 / error)).mean()


def local_mean(images: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W), window (k, k) that sums to 1 -> at each pixel the weighted mean around it (B, C, H, W)."""
    margin = len(window) // 2
    padded = F.pad(images, (margin, margin, margin, margin), mode="reflect")
    return F.conv2d(padded.flatten(0, 1).unsqueeze(1), window[None, None]).view(images.shape)


def ssim(reconstruction: torch.Tensor, target: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W) in [-1, 1], window (k, k) that sums to 1 -> their structural similarity (B,)."""
    a, b = (reconstruction + 1) / 2, (target + 1) / 2
    mean_a, mean_b = local_mean(a, window), local_mean(b, window)
    var_a = local_mean(a * a, window) - mean_a**2
    var_b = local_mean(b * b, window) - mean_b**2
    cov = local_mean(a * b, window) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
    structure = (2 * cov + 0.03**2) / (var_a + var_b + 0.03**2)
    return (luminance * structure).mean((1, 2, 3))


def frechet_distance(features: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Features (N, D) and (M, D) -> a scalar: the squared distance of Gaussians with their moments."""
    means = (features.mean(0) - others.mean(0)).pow(2).sum()
    a, b = torch.cov(features.T), torch.cov(others.T)
    roots = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt()  # below 0 and complex only by rounding
    return means + a.trace() + b.trace() - 2 * roots.sum()


def compression(side: int, factor: int, channels: int, bits: int, codes: int) -> tuple[float, float]:
    """Bits of an RGB image, side x side, 8 bits a value, over those of its latent: with KL, and with VQ."""
    image, places = 3 * side**2 * 8, (side // factor) ** 2
    return image / (places * channels * bits), image / (places * math.log2(codes))


def quantise(z: torch.Tensor, codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """z (B, C, h, w), codebook (K, C) -> the nearest codebook vectors (B, C, h, w), codebook loss, commitment loss."""
    vectors = z.permute(0, 2, 3, 1).flatten(0, 2)  # (B·h·w, C)
    nearest = codebook[torch.cdist(vectors, codebook).argmin(1)]
    nearest = nearest.view(len(z), *z.shape[2:], -1).permute(0, 3, 1, 2)
    codebook_loss = F.mse_loss(nearest, z.detach())
    commitment_loss = F.mse_loss(z, nearest.detach())
    return z + (nearest - z).detach(), codebook_loss, commitment_loss


# 09.1

_Metric = Callable[[Tensor, Tensor], Tensor]


def _decibels(
    error: _Metric = lambda r, t: (r.clamp(-1, 1) - t).pow(2).mean((1, 2, 3)),
    peak: float = 4.0,
    scale: Callable[[Tensor], Tensor] = lambda ratio: 10 * ratio.log10(),
    join: Callable[[Tensor], Tensor] = lambda decibels: decibels.mean(),
) -> _Metric:
    """The finished version with one part of it exchanged."""
    return lambda r, t: join(scale(peak / error(r, t)))


_SQUARED = "the peak is the width of the range, 2, and it is squared: 4"
PSNR_MISTAKES = Mistakes(
    [
        (
            "this is the dB of the mean error, which the worst image rules: average the dB of the images",
            _decibels(lambda r, t: (r.clamp(-1, 1) - t).pow(2).mean()),
        ),
        (
            "the dB of the mean error, and without the clamp: average the dB of the images, clamped to [-1, 1]",
            _decibels(lambda r, t: (r - t).pow(2).mean()),
        ),
        (
            "the reconstruction is not clamped: a value that no screen can show counts as the nearest one that it can",
            _decibels(lambda r, t: (r - t).pow(2).mean((1, 2, 3))),
        ),
        (
            "the difference is clamped: clamp the reconstruction, then subtract",
            _decibels(lambda r, t: (r - t).clamp(-1, 1).pow(2).mean((1, 2, 3))),
        ),
        (
            "the reconstruction is clamped to [0, 1]: images here are from -1 to 1",
            _decibels(lambda r, t: (r.clamp(0, 1) - t).pow(2).mean((1, 2, 3))),
        ),
        (f"the peak is 1, as for images from 0 to 1: {_SQUARED}", _decibels(peak=1.0)),
        (f"the peak is 255, as for bytes: {_SQUARED}", _decibels(peak=255.0**2)),
        (f"the peak is not squared: {_SQUARED}", _decibels(peak=2.0)),
        (
            f"the peak is the brightest value in the image, so that it depends on the picture: {_SQUARED}",
            lambda r, t: (10 * (t.amax((1, 2, 3)).pow(2) / (r.clamp(-1, 1) - t).pow(2).mean((1, 2, 3))).log10()).mean(),
        ),
        (
            "20 · log₁₀ belongs to a ratio of lengths: that of squares takes 10",
            _decibels(scale=lambda ratio: 20 * ratio.log10()),
        ),
        ("the factor 10 is missing: these are bels", _decibels(scale=lambda ratio: ratio.log10())),
        ("the natural logarithm: decibels use base 10", _decibels(scale=lambda ratio: 10 * ratio.log())),
        ("the logarithm to base 2: decibels use base 10", _decibels(scale=lambda ratio: 10 * ratio.log2())),
        ("the ratio is upside down: the peak is over the error", _decibels(scale=lambda ratio: -10 * ratio.log10())),
        (
            "the root of the mean squared error is taken, but the peak is squared: use the squares of both",
            _decibels(lambda r, t: (r.clamp(-1, 1) - t).pow(2).mean((1, 2, 3)).sqrt()),
        ),
        (
            "the absolute error is taken: PSNR is made of the squared one",
            _decibels(lambda r, t: (r.clamp(-1, 1) - t).abs().mean((1, 2, 3))),
        ),
        (
            "the squared error is summed over the image: take its mean, or large pictures look worse than small ones",
            _decibels(lambda r, t: (r.clamp(-1, 1) - t).pow(2).sum((1, 2, 3))),
        ),
        (
            "one PSNR for each channel: the squared error is averaged over C, H and W before the logarithm",
            _decibels(lambda r, t: (r.clamp(-1, 1) - t).pow(2).mean((2, 3))),
        ),
        (
            "one PSNR for each pixel: the squared error is averaged over C, H and W before the logarithm",
            _decibels(lambda r, t: (r.clamp(-1, 1) - t).pow(2).mean(1)),
        ),
        (
            "the error is averaged over the batch instead of the image: average over dimensions 1, 2 and 3",
            _decibels(lambda r, t: (r.clamp(-1, 1) - t).pow(2).mean(0)),
        ),
        ("one number for each image: average them at the end", _decibels(join=lambda decibels: decibels)),
        ("summed over the images: average them", _decibels(join=lambda decibels: decibels.sum())),
    ]
)


@PSNR_MISTAKES(
    "20 · log₁₀ is for a ratio of lengths, 2 over the root of the error: here it is of 2 over the squared error"
)
def decibels_of_a_length_over_a_square(reconstruction: Tensor, target: Tensor) -> Tensor:
    error = (reconstruction.clamp(-1, 1) - target).pow(2).mean((1, 2, 3))
    return (20 * torch.log10(2 / error)).mean()


@PSNR_MISTAKES("only values above 1 are clamped, not those below -1: clamp(-1, 1)")
def decibels_clamped_from_above(reconstruction: Tensor, target: Tensor) -> Tensor:
    error = (reconstruction.clamp(max=1) - target).pow(2).mean((1, 2, 3))
    return (10 * torch.log10(4 / error)).mean()


@PSNR_MISTAKES("only values below -1 are clamped, not those above 1: clamp(-1, 1)")
def decibels_clamped_from_below(reconstruction: Tensor, target: Tensor) -> Tensor:
    error = (reconstruction.clamp(min=-1) - target).pow(2).mean((1, 2, 3))
    return (10 * torch.log10(4 / error)).mean()


@PSNR_MISTAKES("the images are shifted to [0, 1], where the range is 1 wide, but the peak is 2: shift nothing")
def decibels_from_zero_to_one(reconstruction: Tensor, target: Tensor) -> Tensor:
    a, b = (reconstruction.clamp(-1, 1) + 1) / 2, (target + 1) / 2
    return (10 * torch.log10(4 / (a - b).pow(2).mean((1, 2, 3)))).mean()


# 09.2

_Terms = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float, float], Tensor]


def _product(ma: Tensor, mb: Tensor, va: Tensor, vb: Tensor, cov: Tensor, c1: float, c2: float) -> Tensor:
    return _luminance(ma, mb, c1) * _structure(va, vb, cov, c2)


def _luminance(ma: Tensor, mb: Tensor, c1: float, two: float = 2) -> Tensor:
    return (two * ma * mb + c1) / (ma**2 + mb**2 + c1)


def _structure(va: Tensor, vb: Tensor, cov: Tensor, c2: float, two: float = 2) -> Tensor:
    return (two * cov + c2) / (va + vb + c2)


def _similarity(
    terms: _Terms = _product,
    shift: float = 1.0,
    width: float = 2.0,
    constants: tuple[float, float] = (0.01**2, 0.03**2),
    mean: Callable[[Tensor, Tensor], Tensor] = local_mean,
    centred: bool = True,
    join: Callable[[Tensor], Tensor] = lambda found: found.mean((1, 2, 3)),
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The finished version with one part of it exchanged: terms, range, constants, window, moments or average."""

    def similarity(reconstruction: Tensor, target: Tensor, window: Tensor) -> Tensor:
        a, b = (reconstruction + shift) / width, (target + shift) / width
        ma, mb = mean(a, window), mean(b, window)
        pairs = ((a, a), (b, b), (a, b))
        va, vb, cov = (mean(x * y, window) - centred * mean(x, window) * mean(y, window) for x, y in pairs)
        return join(terms(ma, mb, va, vb, cov, *constants))

    return similarity


_FROM_BLACK = "SSIM compares means, and expects black to be 0: use (x + 1) / 2"
_CONSTANTS = "they are 0.01² and 0.03² where the range is 1 wide"
SSIM_MISTAKES = Mistakes(
    [
        (f"computed from -1 to 1: {_FROM_BLACK}", _similarity(shift=0, width=1)),
        (
            f"not shifted, though constants and width fit each other: {_FROM_BLACK}",
            _similarity(shift=0, width=1, constants=(0.02**2, 0.06**2)),
        ),
        (f"from 0 to 2, with the constants of a range 1 wide: {_CONSTANTS}", _similarity(width=1)),
        (f"the constants are those of a range 2 wide: {_CONSTANTS}", _similarity(constants=(0.02**2, 0.06**2))),
        (f"the constants are those of bytes: {_CONSTANTS}", _similarity(constants=(2.55**2, 7.65**2))),
        (f"the constants are not squared: {_CONSTANTS}", _similarity(constants=(0.01, 0.03))),
        (
            "the constants are exchanged: 0.01² goes with the means, 0.03² with the variances",
            _similarity(constants=(0.03**2, 0.01**2)),
        ),
        *(
            (
                "the constants are missing: an even patch would be 0/0; 0.01² goes with means, 0.03² with variances",
                _similarity(constants=constants),
            )
            for constants in ((0.0, 0.0), (1e-8, 1e-8), (1e-12, 1e-12))
        ),
        (
            "the means are not subtracted from the means of squares and products: these are no variances yet",
            _similarity(centred=False),
        ),
        (
            "the 2 is missing in the product of the means: equal images would not have 1",
            _similarity(lambda ma, mb, va, vb, cov, c1, c2: _luminance(ma, mb, c1, 1) * _structure(va, vb, cov, c2)),
        ),
        (
            "the 2 is missing before the covariance: equal images would not have 1",
            _similarity(lambda ma, mb, va, vb, cov, c1, c2: _luminance(ma, mb, c1) * _structure(va, vb, cov, c2, 1)),
        ),
        (
            "the 2 is missing in both terms: equal images would not have 1",
            _similarity(lambda ma, mb, va, vb, cov, c1, c2: _luminance(ma, mb, c1, 1) * _structure(va, vb, cov, c2, 1)),
        ),
        (
            "this is the term of the means alone: multiply it by that of the covariance",
            _similarity(lambda ma, mb, va, vb, cov, c1, c2: _luminance(ma, mb, c1)),
        ),
        (
            "this is the term of the covariance alone: multiply it by that of the means",
            _similarity(lambda ma, mb, va, vb, cov, c1, c2: _structure(va, vb, cov, c2)),
        ),
        (
            "this is the term of contrast, of the standard deviations: the covariance tells whether they go together",
            _similarity(
                lambda ma, mb, va, vb, cov, c1, c2: (
                    _luminance(ma, mb, c1) * _structure(va, vb, (va.clamp(min=0) * vb.clamp(min=0)).sqrt(), c2)
                )
            ),
        ),
        (
            "the two terms are added: multiply them, at each pixel",
            _similarity(lambda ma, mb, va, vb, cov, c1, c2: _luminance(ma, mb, c1) + _structure(va, vb, cov, c2)),
        ),
        (
            "the two terms are averaged: multiply them, at each pixel",
            _similarity(lambda ma, mb, va, vb, cov, c1, c2: (_luminance(ma, mb, c1) + _structure(va, vb, cov, c2)) / 2),
        ),
        (
            "each term is averaged over the image, then they are multiplied: multiply at each pixel, then average",
            _similarity(
                lambda ma, mb, va, vb, cov, c1, c2: torch.stack((_luminance(ma, mb, c1), _structure(va, vb, cov, c2))),
                join=lambda found: found.mean((2, 3, 4)).prod(0),
            ),
        ),
        (
            "the variances are multiplied in the denominator: they are added",
            _similarity(
                lambda ma, mb, va, vb, cov, c1, c2: _luminance(ma, mb, c1) * (2 * cov + c2) / (va * vb + c2),
            ),
        ),
        (
            "a window of equal weights: use the one that is given",
            _similarity(mean=lambda x, window: local_mean(x, torch.full_like(window, 1 / window.numel()))),
        ),
        (
            "the moments are those of the whole image: local_mean takes them around each pixel",
            _similarity(mean=lambda x, window: x.mean((2, 3), keepdim=True)),
        ),
        ("one number for the batch: (B,) is asked for", _similarity(join=lambda found: found.mean())),
        ("this is the map: average over C, H and W", _similarity(join=lambda found: found)),
        ("one number for each channel: average over C, H and W", _similarity(join=lambda found: found.mean((2, 3)))),
        ("summed over the image: average over C, H and W", _similarity(join=lambda found: found.sum((1, 2, 3)))),
        ("1 - SSIM is a loss: the similarity is asked for", _similarity(join=lambda found: 1 - found.mean((1, 2, 3)))),
    ]
)


def _zero_padded(images: Tensor, window: Tensor) -> Tensor:
    return F.conv2d(images.flatten(0, 1)[:, None], window[None, None], padding=len(window) // 2).view(images.shape)


def _inside(images: Tensor, window: Tensor) -> Tensor:
    margin = len(window) // 2
    return local_mean(images, window)[..., margin:-margin, margin:-margin]


def _over_deviations(below: Callable[[Tensor, Tensor], Tensor]) -> _Terms:
    """The term of the covariance over something made of the standard deviations."""

    def terms(ma: Tensor, mb: Tensor, va: Tensor, vb: Tensor, cov: Tensor, c1: float, c2: float) -> Tensor:
        deviations = (variance.clamp(min=0).sqrt() for variance in (va, vb))
        return _luminance(ma, mb, c1) * (2 * cov + c2) / (below(*deviations) + c2)

    return terms


_CENTRED = "local_mean(x * y) - local_mean(x) * local_mean(y)"
SSIM_MISTAKES += (
    ("a bracket is missing: (x + 1) / 2 is from 0 to 1, and x + 1 / 2 is not", _similarity(shift=0.5, width=1)),
    ("the border is padded with zeros, which darkens it: take the means by local_mean", _similarity(mean=_zero_padded)),
    ("the border is left out: local_mean gives a mean at each pixel", _similarity(mean=_inside)),
    *(
        (
            "there are standard deviations in the denominator: var_a and var_b themselves are added",
            _similarity(_over_deviations(below)),
        )
        for below in (lambda a, b: a + b, lambda a, b: a * b, lambda a, b: 2 * a * b)
    ),
)


@SSIM_MISTAKES("only the reconstruction is shifted to [0, 1]: shift both images")
def similarity_with_one_shifted(reconstruction: Tensor, target: Tensor, window: Tensor) -> Tensor:
    return ssim(reconstruction, 2 * target - 1, window)


@SSIM_MISTAKES("only the target is shifted to [0, 1]: shift both images")
def similarity_with_the_target_shifted(reconstruction: Tensor, target: Tensor, window: Tensor) -> Tensor:
    return ssim(2 * reconstruction - 1, target, window)


@SSIM_MISTAKES(f"the product of the means is not subtracted from the covariance: {_CENTRED}")
def similarity_of_products(reconstruction: Tensor, target: Tensor, window: Tensor) -> Tensor:
    a, b = (reconstruction + 1) / 2, (target + 1) / 2
    ma, mb, cov = local_mean(a, window), local_mean(b, window), local_mean(a * b, window)
    va, vb = local_mean(a * a, window) - ma**2, local_mean(b * b, window) - mb**2
    return _product(ma, mb, va, vb, cov, 0.01**2, 0.03**2).mean((1, 2, 3))


@SSIM_MISTAKES(f"the squares of the means are not subtracted from the variances: {_CENTRED}")
def similarity_of_squares(reconstruction: Tensor, target: Tensor, window: Tensor) -> Tensor:
    a, b = (reconstruction + 1) / 2, (target + 1) / 2
    ma, mb = local_mean(a, window), local_mean(b, window)
    va, vb, cov = local_mean(a * a, window), local_mean(b * b, window), local_mean(a * b, window) - ma * mb
    return _product(ma, mb, va, vb, cov, 0.01**2, 0.03**2).mean((1, 2, 3))


# 09.3


def _squared_distance(x: Tensor, y: Tensor) -> Tensor:
    return (x.mean(0) - y.mean(0)).pow(2).sum()


def _roots(product: Tensor) -> Tensor:
    return torch.linalg.eigvals(product).real.clamp(min=0).sqrt()


def _root(matrix: Tensor) -> Tensor:
    """Of a symmetric matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _between(
    overlap: Callable[[Tensor, Tensor], Tensor] = lambda a, b: _roots(a @ b).sum(),
    means: Callable[[Tensor, Tensor], Tensor | float] = _squared_distance,
    covariance: Callable[[Tensor], Tensor] = lambda x: torch.cov(x.T),
    two: float = 2,
    join: Callable[[Tensor], Tensor] = lambda distance: distance,
    trace: Callable[[Tensor], Tensor] = torch.trace,
) -> Callable[[Tensor, Tensor], Tensor]:
    """The finished version with one part of it exchanged."""

    def distance(x: Tensor, y: Tensor) -> Tensor:
        a, b = covariance(x), covariance(y)
        return join(means(x, y) + trace(a) + trace(b) - two * overlap(a, b))

    return distance


_EIGENVALUES = "take the sum of the roots of the eigenvalues of a @ b"
_UNCLAMPED = (
    "the root of an eigenvalue that rounding has put below 0 is nan, as with no more images than features: "
    "clamp(min=0) before the root",
    _between(lambda a, b: torch.linalg.eigvals(a @ b).real.sqrt().sum()),
)
FRECHET_MISTAKES = (
    ("the 2 before the root is missing: a set would be far from itself", _between(two=1)),
    ("the root is added: it is subtracted, or a set would be far from itself", _between(two=-2)),
    ("the root of the product is missing: only the traces are added", _between(two=0)),
    (
        f"the root is taken of each entry of the product: a matrix's root is another one; {_EIGENVALUES}",
        _between(lambda a, b: (a @ b).sqrt().trace()),
    ),
    (f"the trace of the product, without a root: {_EIGENVALUES}", _between(lambda a, b: (a @ b).trace())),
    (f"the root of the trace: {_EIGENVALUES}", _between(lambda a, b: (a @ b).trace().sqrt())),
    *(
        (
            f"the product of two roots is the root of the product only where the matrices commute: {_EIGENVALUES}",
            _between(overlap),
        )
        for overlap in (
            lambda a, b: (_root(a) @ _root(b)).trace(),
            lambda a, b: (torch.linalg.eigvalsh(a).clamp(min=0) * torch.linalg.eigvalsh(b).clamp(min=0)).sqrt().sum(),
        )
    ),
    (
        f"the product is taken entry by entry: a @ b is the product of matrices; {_EIGENVALUES}",
        _between(lambda a, b: _roots(a * b).sum()),
    ),
    (
        "eigvalsh is for symmetric matrices, and a @ b is not symmetric: use eigvals, and .real",
        _between(lambda a, b: torch.linalg.eigvalsh(a @ b).clamp(min=0).sqrt().sum()),
    ),
    (
        "only the variances are compared: two features that go together in one set and not in the other count, too",
        lambda x, y: _squared_distance(x, y) + (x.std(0) - y.std(0)).pow(2).sum(),
    ),
    ("the roots of the eigenvalues are not summed: a trace is their sum", _between(lambda a, b: _roots(a @ b))),
    ("the roots of the eigenvalues are averaged: a trace is their sum", _between(lambda a, b: _roots(a @ b).mean())),
    (
        "the squared differences of the means are not summed: one number is asked for",
        _between(means=lambda x, y: (x.mean(0) - y.mean(0)).pow(2)),
    ),
    (
        "all entries of the covariances are summed: a trace is the sum along the diagonal",
        _between(trace=torch.sum),
    ),
    ("the means are missing", _between(means=lambda x, y: 0.0)),
    ("the covariances are missing: this is the distance of the means", lambda x, y: _squared_distance(x, y)),
    (
        "the distance of the means is not squared",
        _between(means=lambda x, y: (x.mean(0) - y.mean(0)).norm()),
    ),
    (
        "the absolute differences of the means are added: square them",
        _between(means=lambda x, y: (x.mean(0) - y.mean(0)).abs().sum()),
    ),
    (
        "the squared differences of the means are averaged: sum over the D features",
        _between(means=lambda x, y: (x.mean(0) - y.mean(0)).pow(2).mean()),
    ),
    (
        "divided by N: an unbiased covariance, as torch.cov has it, divides by N - 1",
        _between(covariance=lambda x: torch.cov(x.T, correction=0)),
    ),
    (
        "the mean is not subtracted before the covariance is taken",
        _between(covariance=lambda x: x.T @ x / (len(x) - 1)),
    ),
    (
        "the mean is not subtracted before the covariance is taken, and it is divided by N: use torch.cov",
        _between(covariance=lambda x: x.T @ x / len(x)),
    ),
    (
        "the covariance is not divided by the number of images: N - 1, as in torch.cov",
        _between(covariance=lambda x: torch.cov(x.T) * (len(x) - 1)),
    ),
    (
        "a correlation is taken: it has lost how far the features spread; use the covariance",
        _between(covariance=lambda x: torch.corrcoef(x.T)),
    ),
    ("a root is taken at the end: the squared distance is asked for", _between(join=lambda distance: distance.sqrt())),
    # by their exceptions: covariances of the images, (N, N) and (M, M)
    *(
        ("torch.cov has a feature in each row: it takes features.T, and gives (D, D)", code)
        for code in (
            _between(covariance=torch.cov),
            lambda x, y: torch.cov(x) @ torch.cov(y),
            lambda x, y: (x - x.mean(0)) @ (x - x.mean(0)).T @ ((y - y.mean(0)) @ (y - y.mean(0)).T),
        )
    ),
    _UNCLAMPED,
)

# 09.4


def _ratios(
    image: Callable[[int], float] = lambda side: 3 * side**2 * 8,
    kl: Callable[[int, int, int], float] = lambda channels, bits, codes: channels * bits,
    vq: Callable[[int, int, int], float] = lambda channels, bits, codes: math.log2(codes),
    places: Callable[[int, int], float] = lambda side, factor: (side // factor) ** 2,
) -> Callable[..., tuple[float, float]]:
    def ratios(side: int, factor: int, channels: int, bits: int, codes: int) -> tuple[float, float]:
        whole, count = image(side), places(side, factor)
        return whole / (count * kl(channels, bits, codes)), whole / (count * vq(channels, bits, codes))

    return ratios


_ONE_INDEX = "VQ stores one index for a whole vector, log₂(codes) bits at each place"
COMPRESSION_MISTAKES = (
    (
        f"the index is counted once for each channel: {_ONE_INDEX}",
        _ratios(vq=lambda channels, bits, codes: channels * math.log2(codes)),
    ),
    (
        f"the number of codes is taken for bits: {_ONE_INDEX}",
        _ratios(vq=lambda channels, bits, codes: codes),
    ),
    (
        "the natural logarithm: bits are counted to base 2",
        _ratios(vq=lambda channels, bits, codes: math.log(codes)),
    ),
    (
        f"the index is counted as a value of `bits` bits: {_ONE_INDEX}",
        _ratios(vq=lambda channels, bits, codes: bits),
    ),
    (
        f"the vector is counted, not its index: {_ONE_INDEX}",
        _ratios(vq=lambda channels, bits, codes: channels * bits),
    ),
    (
        f"the index is multiplied by `bits`: {_ONE_INDEX}",
        _ratios(vq=lambda channels, bits, codes: bits * math.log2(codes)),
    ),
    (
        "the bits of a KL latent's values are forgotten: values are not bits",
        _ratios(kl=lambda channels, bits, codes: channels),
    ),
    (
        "the channels of the KL latent are forgotten: each place holds `channels` values",
        _ratios(kl=lambda channels, bits, codes: bits),
    ),
    (
        "the KL latent's channels are counted as codes are: a value of `bits` bits needs no logarithm",
        _ratios(kl=lambda channels, bits, codes: channels * math.log2(bits)),
    ),
    ("the image's three channels are forgotten", _ratios(image=lambda side: side**2 * 8)),
    ("the 8 bits of an image's value are forgotten: values are not bits", _ratios(image=lambda side: 3 * side**2)),
    (
        "values are divided by values: both ratios are of bits",
        _ratios(
            image=lambda side: 3 * side**2,
            kl=lambda channels, bits, codes: channels,
            vq=lambda channels, bits, codes: 1,
        ),
    ),
    (
        "the factor divides one side only: a latent is smaller in both directions",
        _ratios(places=lambda side, factor: side * (side // factor)),
    ),
    (
        "a row of the latent is counted: it has as many rows as columns",
        _ratios(places=lambda side, factor: side // factor),
    ),
    ("a latent as large as the image: divide both sides by the factor", _ratios(places=lambda side, factor: side**2)),
    (
        "the ratios are upside down: the image's bits over the latent's",
        lambda *a: tuple(1 / r for r in compression(*a)),
    ),
    ("the results are exchanged: KL comes first", lambda *arguments: compression(*arguments)[::-1]),
)
_COMPRESSION_PROBES = [(256, 8, 4, 16, 16384), (96, 4, 3, 9, 256), (512, 16, 10, 32, 1024)]
_judge_ratios, _judge_of_the_text = (
    judge_numbers(
        compression,
        probes,
        COMPRESSION_MISTAKES,
        given=lambda probe: "side {}, factor {}, {} channels of {} bits and {} codes".format(*probe),
        asked="two numbers, KL's ratio and VQ's",
    )
    for probes in (_COMPRESSION_PROBES, _COMPRESSION_PROBES[:1])
)


def _judge_compression(attempt: Any) -> str | None:
    complaint = _judge_ratios(attempt)
    if complaint and complaint not in dict(COMPRESSION_MISTAKES) and _judge_of_the_text(attempt) is None:
        return "right for the text's numbers only: is 256, 8, 4, 16 or 14 written into the code? Use the arguments"
    return complaint


# 09.5

_Quantised = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def _nearest(
    z: Tensor,
    codebook: Tensor,
    choose: Callable[[Tensor, Tensor], Tensor] = lambda vectors, codebook: torch.cdist(vectors, codebook).argmin(1),
) -> Tensor:
    vectors = z.permute(0, 2, 3, 1).flatten(0, 2)
    return codebook[choose(vectors, codebook)].view(len(z), *z.shape[2:], -1).permute(0, 3, 1, 2)


def _losses(
    through: _Metric = lambda z, e: z + (e - z).detach(),
    codebook_loss: _Metric = lambda z, e: F.mse_loss(e, z.detach()),
    commitment_loss: _Metric = lambda z, e: F.mse_loss(z, e.detach()),
    nearest: Callable[[Tensor, Tensor], Tensor] = _nearest,
) -> _Quantised:
    """The finished version with one part of it exchanged."""

    def code(z: Tensor, codebook: Tensor) -> tuple[Tensor, ...]:
        e = nearest(z, codebook)
        return through(z, e), codebook_loss(z, e), commitment_loss(z, e)

    return code


def _not_permuted(z: Tensor, codebook: Tensor) -> Tensor:
    vectors = z.reshape(-1, z.shape[1])
    return codebook[torch.cdist(vectors, codebook).argmin(1)].view_as(z)


def _not_permuted_back(z: Tensor, codebook: Tensor) -> Tensor:
    return _nearest(z, codebook).permute(0, 2, 3, 1).reshape(z.shape)


def _each_channel(z: Tensor, codebook: Tensor) -> Tensor:
    """The nearest value of every channel by itself."""
    found = [codebook[(z[:, c, ..., None] - codebook[:, c]).abs().argmin(-1), c] for c in range(z.shape[1])]
    return torch.stack(found, 1)


def _softly(z: Tensor, codebook: Tensor) -> Tensor:
    weights = (-torch.cdist(z.permute(0, 2, 3, 1).flatten(0, 2), codebook)).softmax(1)
    return (weights @ codebook).view(len(z), *z.shape[2:], -1).permute(0, 3, 1, 2)


def _summed(a: Tensor, b: Tensor) -> Tensor:
    return F.mse_loss(a, b, reduction="sum")


_VALUES = (
    (
        "the farthest vector is taken: argmin of the distances",
        _losses(nearest=partial(_nearest, choose=lambda v, c: torch.cdist(v, c).argmax(1))),
    ),
    (
        "the vector with the largest product is taken, which favours long ones: take the nearest, by torch.cdist",
        _losses(nearest=partial(_nearest, choose=lambda v, c: (v @ c.T).argmax(1))),
    ),
    (
        "the vector of the most similar direction is taken: take the nearest, by torch.cdist",
        _losses(nearest=partial(_nearest, choose=lambda v, c: (F.normalize(v) @ F.normalize(c).T).argmax(1))),
    ),
    (
        "the vectors are cut across the channels: permute to (B, h, w, C) before flattening, and back at the end",
        _losses(nearest=_not_permuted),
    ),
    (
        "the result is (B, h, w, C) under another shape: permute it back, a view only renames the values",
        _losses(nearest=_not_permuted_back),
    ),
    (
        "each channel is quantised by itself: the whole vector at a place is replaced by one of the codebook's",
        _losses(nearest=_each_channel),
    ),
    ("a mixture of codebook vectors is taken: take the nearest one alone", _losses(nearest=_softly)),
    (
        "the first result is z itself: it must have the values of the codebook's vectors",
        _losses(lambda z, e: z),
    ),
    (
        "the losses are summed: both are means over all values",
        _losses(codebook_loss=lambda z, e: _summed(e, z.detach()), commitment_loss=lambda z, e: _summed(z, e.detach())),
    ),
    (
        "the losses are absolute errors: both are mean squared ones",
        _losses(
            codebook_loss=lambda z, e: F.l1_loss(e, z.detach()), commitment_loss=lambda z, e: F.l1_loss(z, e.detach())
        ),
    ),
    (
        "the losses are roots: both are mean squared errors",
        _losses(
            codebook_loss=lambda z, e: F.mse_loss(e, z.detach()).sqrt(),
            commitment_loss=lambda z, e: F.mse_loss(z, e.detach()).sqrt(),
        ),
    ),
    (
        "the squared errors are summed over the channels: both losses are means over all values",
        _losses(
            codebook_loss=lambda z, e: (e - z.detach()).pow(2).sum(1).mean(),
            commitment_loss=lambda z, e: (z - e.detach()).pow(2).sum(1).mean(),
        ),
    ),
    *(
        (
            "the commitment loss is weighted: both losses are asked for as they are",
            _losses(commitment_loss=weighted),
        )
        for weighted in (
            lambda z, e: 0.1 * F.mse_loss(z, e.detach()),
            lambda z, e: 0.25 * F.mse_loss(z, e.detach()),
            lambda z, e: 0.5 * F.mse_loss(z, e.detach()),
        )
    ),
    # by its exception
    (
        "torch.cdist needs the vectors in rows: permute z to (B, h, w, C), then flatten to (B·h·w, C)",
        lambda z, codebook: torch.cdist(z, codebook),
    ),
)
_EXCHANGED = _losses(
    codebook_loss=lambda z, e: F.mse_loss(e.detach(), z), commitment_loss=lambda z, e: F.mse_loss(z.detach(), e)
)
_OWN_LOSS = "detach the other in each loss"
_GRADIENTS = (
    (
        "no gradient reaches z: argmin has none, and in z + (nearest - z) z cancels: return z + (nearest - z).detach()",
        _losses(lambda z, e: e),
    ),
    (
        "no gradient comes through the result at all: return z + (nearest - z).detach()",
        _losses(lambda z, e: e.detach()),
    ),
    *(
        (
            "the gradient goes straight to z, and to the codebook as well: detach the whole difference",
            _losses(through),
        )
        for through in (lambda z, e: e + z - z.detach(), lambda z, e: z - z.detach() + e)
    ),
    ("codebook loss and commitment loss are exchanged: the codebook loss moves the codebook", _EXCHANGED),
    (
        f"nothing is detached in the losses, so that each moves both: {_OWN_LOSS}",
        _losses(codebook_loss=lambda z, e: F.mse_loss(e, z), commitment_loss=lambda z, e: F.mse_loss(z, e)),
    ),
    (f"the codebook loss moves z, too: {_OWN_LOSS}", _losses(codebook_loss=lambda z, e: F.mse_loss(e, z))),
    (
        f"the commitment loss moves the codebook, too: {_OWN_LOSS}",
        _losses(commitment_loss=lambda z, e: F.mse_loss(z, e)),
    ),
    (
        "both losses move the codebook alone: in the commitment loss detach the nearest vectors",
        _losses(commitment_loss=lambda z, e: F.mse_loss(e, z.detach())),
    ),
    (
        "both losses move z alone: in the codebook loss detach z",
        _losses(codebook_loss=lambda z, e: F.mse_loss(z, e.detach())),
    ),
    (
        "the codebook loss is taken of the straight-through result, whose gradient is z's: take the nearest vectors",
        _losses(codebook_loss=lambda z, e: F.mse_loss(z + (e - z).detach(), z.detach())),
    ),
    *(
        (
            "a loss has no gradient, as everything in it is detached: the codebook loss moves the codebook, the "
            "commitment loss z",
            _losses(codebook_loss=codebook_loss, commitment_loss=commitment_loss),
        )
        for codebook_loss, commitment_loss in (
            (lambda z, e: F.mse_loss(e, z).detach(), lambda z, e: F.mse_loss(z, e).detach()),
            (lambda z, e: F.mse_loss(e, z.detach()), lambda z, e: F.mse_loss(z, e).detach()),
            (lambda z, e: F.mse_loss(e, z).detach(), lambda z, e: F.mse_loss(z, e.detach())),
        )
    ),
)
VQ_MISTAKES = (*_VALUES, *_GRADIENTS)

_RESULTS = ("the quantised latent", "the codebook loss", "the commitment loss")


def _gradients_of(attempt: Callable[..., Any]) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    """A function whose results are the gradients of each result with respect to z and to the codebook."""

    def gradients(z: Tensor, codebook: Tensor) -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_() for x in (z, codebook)]
        copies = [leaf.clone() for leaf in leaves]  # autograd allows no in-place operation on a leaf itself
        found: list[Tensor] = []
        for result in call(attempt, *copies):
            total = (result * torch.linspace(1, 2, result.numel()).view(result.shape)).sum()
            if not total.requires_grad:
                total = total + 0 * leaves[0].sum()
            found += torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
        return tuple(gradient.detach() for gradient in found)  # PyTorch 2.8 fills in zeros that require a gradient

    return gradients


_PROBES = [probe((2, 3, 4, 5), (6, 3), scale=2.0), probe((3, 2, 3, 3), (5, 2), scale=2.0)]
_judge_values = judge_function(quantise, _PROBES, _VALUES, inputs=("z", "codebook"), outputs=_RESULTS)
_judge_gradients = judge_function(
    _gradients_of(quantise),
    _PROBES,
    [(message, _gradients_of(code)) for message, code in _GRADIENTS],
    inputs=("z", "codebook"),
    outputs=[f"the gradient of {result} with respect to {leaf}" for result in _RESULTS for leaf in ("z", "codebook")],
)


def _judge_quantise(attempt: Any) -> str | None:
    complaint = _judge_values(attempt)
    return complaint or _judge_gradients(_gradients_of(attempt))


def _images(batch: int, channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Two that are alike, the first reaching beyond [-1, 1] a little, each of another quality."""
    target, noise = probe((batch, channels, height, width), (batch, channels, height, width), scale=0.4)
    target = 0.9 * target.tanh()
    return target + noise * torch.linspace(0.2, 1.5, batch).view(-1, 1, 1, 1), target


def _shown(*shape: int) -> tuple[Tensor, Tensor]:
    """The same within [-1, 1], where it does not matter whether an answer clamps."""
    reconstruction, target = _images(*shape)
    return reconstruction.clamp(-1, 1), target


def _window(size: int, sigma: float) -> Tensor:
    row = torch.exp(-(torch.arange(size) - size // 2).pow(2) / (2 * sigma**2))
    return torch.outer(row, row) / row.sum() ** 2


def _features(images: int, others: int, features: int) -> tuple[Tensor, Tensor]:
    """Float64, and far from commuting covariances."""
    x, y, mix = (
        found.double() for found in probe((images, features), (others, features), (features, features), scale=1.0)
    )
    return x @ mix, y * torch.linspace(0.5, 2, features).double() + 0.4


_judge_distance = judge_function(
    frechet_distance, [_features(30, 25, 4), _features(12, 40, 3)], FRECHET_MISTAKES, inputs=("features", "others")
)
# Fewer images than features: many eigenvalues are 0, and some of them come out below it. The means are far apart, so
# that what single precision makes of the rest does not count.
_few, _others = _features(6, 7, 20)
_judge_few = judge_function(frechet_distance, [(_few, _others + 6)], [_UNCLAMPED], inputs=("features", "others"))


def _judge_frechet(attempt: Any) -> str | None:
    """Judge few images last: an attempt without the clamp may have another mistake, to be named first."""
    with FiniteLinalg():  # type: ignore[no-untyped-call]
        return _judge_distance(attempt) or _judge_few(attempt)


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
            mean_psnr, [_images(3, 3, 5, 6), _images(4, 2, 4, 4)], PSNR_MISTAKES, inputs=("reconstruction", "target")
        ),
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
            "A variance is the mean of the squares less the square of the mean. What is a covariance, likewise?",
            "local_mean(a * b, window) - mean_a * mean_b is the covariance around each pixel; with a twice, var_a.",
            "(2 · mean_a · mean_b + c1) / (mean_a² + mean_b² + c1) times (2 · cov + c2) / (var_a + var_b + c2), then "
            ".mean((1, 2, 3)); c1 = 0.01², c2 = 0.03².",
        ),
        judge=judge_function(
            ssim,
            [(*_shown(2, 3, 16, 12), _window(11, 1.5)), (*_shown(3, 1, 9, 10), _window(7, 1.0))],
            SSIM_MISTAKES,
            inputs=("reconstruction", "target", "window"),
        ),
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
            "How many places has the latent? And how many bits does each of them take: with KL, with VQ?",
            "KL: `channels` values of `bits` bits at each place. VQ: one number from 0 to codes - 1.",
            "image = 3 · side² · 8 bits; (side // factor)² places; channels · bits, and math.log2(codes).",
        ),
        judge=_judge_compression,
    ),
    Exercise(
        id="09.5",
        title="The nearest vector of a codebook",
        notebook=NOTEBOOK,
        minutes=20,
        difficulty=4,
        reference=quantise,
        in_package=(latents.quantise,),  # which rounds every value by itself, without a codebook
        hints=(
            "At each place z has a vector of C values. How do you get one vector per row, and back again?",
            "codebook[torch.cdist(vectors, codebook).argmin(1)]. In z + (…).detach() the gradient goes to z alone.",
            "F.mse_loss(nearest, z.detach()) moves the codebook, F.mse_loss(z, nearest.detach()) moves z.",
        ),
        judge=_judge_quantise,
    ),
)
