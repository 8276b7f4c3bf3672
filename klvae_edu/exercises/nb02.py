"""The exercises of notebook 02, the KL loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from klvae_edu.exercises.exercise import Exercise, Mistakes
from klvae_edu.exercises.judges.functions import judge_function, probe
from klvae_edu.exercises.nb01 import wrong_sums
from klvae_edu.gaussian import DiagonalGaussianDistribution
from klvae_edu.losses import pixel_loss, vae_loss

NOTEBOOK = "02_kl_loss"


# The finished versions, in the form in which the exercises ask for them. The tests hold them to the package.
# Annotated with torch.Tensor, which a notebook knows, because `solution` shows them and readers paste them.


def kl_to_standard_normal(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, exp(logvar)) ‖ N(0, I)) in nats, summed over all but the batch: (B,)."""
    each = mean**2 + torch.exp(logvar) - 1 - logvar
    return 0.5 * each.flatten(1).sum(1)


def kl_between(
    mean: torch.Tensor, logvar: torch.Tensor, other_mean: torch.Tensor, other_logvar: torch.Tensor
) -> torch.Tensor:
    """KL(q ‖ p) in nats for q = N(mean, …) and p = N(other_mean, …), summed over all but the batch: (B,)."""
    each = ((mean - other_mean) ** 2 + torch.exp(logvar)) / torch.exp(other_logvar) - 1 - logvar + other_logvar
    return 0.5 * each.flatten(1).sum(1)


def monte_carlo_kl(mean: torch.Tensor, logvar: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """KL(q ‖ N(0, I)) as the average of log q(z) - log p(z) over samples, one for each noise[s]: (B,)."""
    z = mean + torch.exp(0.5 * logvar) * noise
    log_q = -0.5 * (logvar + (z - mean) ** 2 / torch.exp(logvar))  # both without -½ log 2π, which cancels
    log_p = -0.5 * z**2
    return (log_q - log_p).flatten(2).sum(2).mean(0)


def kl_vae_loss(
    reconstruction: torch.Tensor, target: torch.Tensor, posterior: DiagonalGaussianDistribution, kl_weight: float = 1e-6
) -> torch.Tensor:
    """The autoencoder's training loss with CompVis' reduction: a scalar."""
    pixel = (reconstruction - target).abs().flatten(1).sum(1).mean()
    return pixel + kl_weight * posterior.kl().mean()


# 02.1


def _terms(mean: Tensor, logvar: Tensor) -> Tensor:
    return (mean**2 + logvar.exp() - 1 - logvar).flatten(1)


_EACH_IMAGE = "one number for each image is asked for, (B,)"
_FIXED = "dims 1, 2, 3 are fixed, which fails for inputs (B, C): sum over all but the batch, flatten(1).sum(1)"
KL_MISTAKES = Mistakes(
    [
        ("the factor ½ is missing", lambda m, v: _terms(m, v).sum(1)),
        ("a mean over the values: the KL of independent values is summed", lambda m, v: _terms(m, v).mean(1) / 2),
        (f"summed over the batch as well: {_EACH_IMAGE}", lambda m, v: _terms(m, v).sum() / 2),
        (f"averaged over the batch as well: {_EACH_IMAGE}", lambda m, v: _terms(m, v).sum(1).mean() / 2),
        (f"averaged over everything: {_EACH_IMAGE}, summed over its values", lambda m, v: _terms(m, v).mean() / 2),
        (f"not summed: {_EACH_IMAGE}", lambda m, v: _terms(m, v).view_as(m) / 2),
        ("the sign: a KL divergence is never negative", lambda m, v: -_terms(m, v).sum(1) / 2),
        ("the sign of logvar: it is subtracted", lambda m, v: (_terms(m, v) + 2 * v.flatten(1)).sum(1) / 2),
        ("logvar is missing", lambda m, v: (_terms(m, v) + v.flatten(1)).sum(1) / 2),
        (
            "the standard deviation stands where the variance belongs: exp(logvar)",
            lambda m, v: (m**2 + (v / 2).exp() - 1 - v).flatten(1).sum(1) / 2,
        ),
        (
            "log σ stands where log σ² belongs: logvar is already the logarithm of the square",
            lambda m, v: (m**2 + v.exp() - 1 - v / 2).flatten(1).sum(1) / 2,
        ),
        (
            "log σ⁴ stands where log σ² belongs: logvar is already the logarithm of the square",
            lambda m, v: (m**2 + v.exp() - 1 - 2 * v).flatten(1).sum(1) / 2,
        ),
        ("the -1 is missing: at mean 0, variance 1 the KL must be 0", lambda m, v: (_terms(m, v) + 1).sum(1) / 2),
        (
            "the 1 is subtracted once for an image: every value has its own -1",
            lambda m, v: ((_terms(m, v) + 1).sum(1) - 1) / 2,
        ),
        ("the sign of the 1: it is subtracted", lambda m, v: (_terms(m, v) + 2).sum(1) / 2),
        ("the mean is not squared", lambda m, v: (m + v.exp() - 1 - v).flatten(1).sum(1) / 2),
        ("the mean is missing", lambda m, v: (v.exp() - 1 - v).flatten(1).sum(1) / 2),
        ("the variance, exp(logvar), is missing", lambda m, v: (m**2 - 1 - v).flatten(1).sum(1) / 2),
        (
            "the variance is squared: exp(logvar) is σ² already",
            lambda m, v: (m**2 + (2 * v).exp() - 1 - v).flatten(1).sum(1) / 2,
        ),
        (
            "logvar is taken for log σ: it is log σ², the variance is exp(logvar)",
            lambda m, v: (m**2 + (2 * v).exp() - 1 - 2 * v).flatten(1).sum(1) / 2,
        ),
        (
            "logvar is taken for the variance itself: the variance is exp(logvar)",
            lambda m, v: (m**2 + v - 1 - v.log()).flatten(1).sum(1) / 2,
        ),
        (
            "the factor ½ is on the mean only: it belongs to all terms, so put a bracket around them",
            lambda m, v: (m**2 / 2 + v.exp() - 1 - v).flatten(1).sum(1),
        ),
        (
            "the factor ½ is missing on the mean: it belongs to all terms, so put a bracket around them",
            lambda m, v: (m**2 + (v.exp() - 1 - v) / 2).flatten(1).sum(1),
        ),
        (_FIXED, lambda m, v: _terms(m, v).view_as(m).sum((1, 2, 3)) / 2),
    ]
)
KL_MISTAKES += wrong_sums(lambda m, v: _terms(m, v).view_as(m) / 2)


@KL_MISTAKES("the direction is reversed: this is KL(N(0, I) ‖ q); KL(q ‖ N(0, I)) is asked for")
def kl_reversed(mean: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * ((1 + mean**2) / torch.exp(logvar) - 1 + logvar).flatten(1).sum(1)


@KL_MISTAKES("logvar is taken for σ itself: σ² is exp(logvar)")
def kl_with_logvar_as_deviation(mean: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * (mean**2 + logvar**2 - 1 - torch.log(logvar**2)).flatten(1).sum(1)


@KL_MISTAKES("logvar is squared: the variance is exp(logvar)")
def kl_with_squared_logvar(mean: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * (mean**2 + logvar**2 - 1 - logvar).flatten(1).sum(1)


@KL_MISTAKES("the sign of the variance: in -½ · (1 + logvar - mean² - exp(logvar)) both mean² and exp are subtracted")
def kl_with_the_variance_subtracted(mean: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * (1 + logvar - mean**2 + torch.exp(logvar)).flatten(1).sum(1)


@KL_MISTAKES("the sign of mean²: in -½ · (1 + logvar - mean² - exp(logvar)) both mean² and exp are subtracted")
def kl_with_the_square_subtracted(mean: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * (1 + logvar + mean**2 - torch.exp(logvar)).flatten(1).sum(1)


@KL_MISTAKES("the absolute value of the mean: it is squared")
def kl_with_absolute_mean(mean: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * (mean.abs() + torch.exp(logvar) - 1 - logvar).flatten(1).sum(1)


@KL_MISTAKES("the factor ½ is on logvar only: it belongs to all terms, so put a bracket around them")
def kl_with_half_on_logvar(mean: Tensor, logvar: Tensor) -> Tensor:
    return (mean**2 + torch.exp(logvar) - 1 - 0.5 * logvar).flatten(1).sum(1)


@KL_MISTAKES("the textbook form ends in -½, which the factor ½ makes of -1: here it is halved twice")
def kl_with_half_subtracted(mean: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * (mean**2 + torch.exp(logvar) - 0.5 - logvar).flatten(1).sum(1)


@KL_MISTAKES("the textbook form, log(1/σ) + (σ² + mean²) / 2 - ½, ends in -½, not in -1")
def kl_with_one_subtracted(mean: Tensor, logvar: Tensor) -> Tensor:
    return (0.5 * (mean**2 + torch.exp(logvar)) - 1 - 0.5 * logvar).flatten(1).sum(1)


# 02.2


def _between(m: Tensor, v: Tensor, om: Tensor, ov: Tensor) -> Tensor:
    return (((m - om) ** 2 + v.exp()) / ov.exp() - 1 - v + ov).flatten(1)


BETWEEN_MISTAKES = Mistakes(
    [
        (
            "the direction is reversed: this is KL(p ‖ q), with q the first Gaussian; KL(q ‖ p) is asked for",
            lambda m, v, om, ov: _between(om, ov, m, v).sum(1) / 2,
        ),
        (
            "the logarithm of the ratio is upside down: it is log(other variance) - log(variance)",
            lambda m, v, om, ov: (_between(m, v, om, ov) + 2 * (v - ov).flatten(1)).sum(1) / 2,
        ),
        (
            "the logarithm of the ratio of the variances is missing",
            lambda m, v, om, ov: (_between(m, v, om, ov) + (v - ov).flatten(1)).sum(1) / 2,
        ),
        (
            "the squared difference is divided by the own variance: it is measured in units of the other's",
            lambda m, v, om, ov: ((m - om) ** 2 / v.exp() + (v - ov).exp() - 1 - v + ov).flatten(1).sum(1) / 2,
        ),
        (
            "the ratio of the variances is upside down: divide by the other's",
            lambda m, v, om, ov: ((m - om) ** 2 / ov.exp() + (ov - v).exp() - 1 - v + ov).flatten(1).sum(1) / 2,
        ),
        (
            "divided by the own variance: both fractions have the other's below",
            lambda m, v, om, ov: (((m - om) ** 2 + ov.exp()) / v.exp() - 1 - v + ov).flatten(1).sum(1) / 2,
        ),
        (
            "standard deviations stand where variances belong: exp(logvar)",
            lambda m, v, om, ov: (((m - om) ** 2 + (v / 2).exp()) / (ov / 2).exp() - 1 - v + ov).flatten(1).sum(1) / 2,
        ),
        (
            "the -1 is missing: for two equal Gaussians the KL must be 0",
            lambda m, v, om, ov: (_between(m, v, om, ov) + 1).sum(1) / 2,
        ),
        (
            "the difference of the means is not squared",
            lambda m, v, om, ov: (((m - om) + v.exp()) / ov.exp() - 1 - v + ov).flatten(1).sum(1) / 2,
        ),
        (
            "the means are added: their difference is squared",
            lambda m, v, om, ov: _between(m, v, -om, ov).sum(1) / 2,
        ),
        (
            "the variance is not divided by the other's: put a bracket around the numerator",
            lambda m, v, om, ov: ((m - om) ** 2 / ov.exp() + v.exp() - 1 - v + ov).flatten(1).sum(1) / 2,
        ),
        (
            "only the variance is divided by the other's: the squared difference of the means is divided by it, too",
            lambda m, v, om, ov: ((m - om) ** 2 + (v - ov).exp() - 1 - v + ov).flatten(1).sum(1) / 2,
        ),
        (
            "the squared difference is divided by the squared variance: square the difference only",
            lambda m, v, om, ov: (((m - om) / ov.exp()) ** 2 + (v - ov).exp() - 1 - v + ov).flatten(1).sum(1) / 2,
        ),
        (
            "nothing is divided by the other's variance, exp(other_logvar)",
            lambda m, v, om, ov: ((m - om) ** 2 + v.exp() - 1 - v + ov).flatten(1).sum(1) / 2,
        ),
        ("logvar is missing", lambda m, v, om, ov: (_between(m, v, om, ov) + v.flatten(1)).sum(1) / 2),
        ("other_logvar is missing", lambda m, v, om, ov: (_between(m, v, om, ov) - ov.flatten(1)).sum(1) / 2),
        (
            "log σ stands where log σ² belongs: the log-variances are logarithms of the squares already",
            lambda m, v, om, ov: (_between(m, v, om, ov) + (v - ov).flatten(1) / 2).sum(1) / 2,
        ),
        (
            "the factor ½ is on the fraction only: it belongs to all terms, so put a bracket around them",
            lambda m, v, om, ov: (_between(m, v, om, ov) + (ov - v - 1).flatten(1)).sum(1) / 2,
        ),
        (
            "the 1 is subtracted once for an image: every value has its own -1",
            lambda m, v, om, ov: ((_between(m, v, om, ov) + 1).sum(1) - 1) / 2,
        ),
        ("the other Gaussian is ignored: this is the KL to N(0, I)", lambda m, v, om, ov: _terms(m, v).sum(1) / 2),
        ("the factor ½ is missing", lambda *gaussians: _between(*gaussians).sum(1)),
        (
            "a mean over the values: the KL of independent values is summed",
            lambda *gaussians: _between(*gaussians).mean(1) / 2,
        ),
        (f"summed over the batch as well: {_EACH_IMAGE}", lambda *gaussians: _between(*gaussians).sum() / 2),
        (f"averaged over the batch as well: {_EACH_IMAGE}", lambda *gaussians: _between(*gaussians).sum(1).mean() / 2),
        (f"not summed: {_EACH_IMAGE}", lambda *gaussians: _between(*gaussians).view_as(gaussians[0]) / 2),
        ("the sign: a KL divergence is never negative", lambda *gaussians: -_between(*gaussians).sum(1) / 2),
        (_FIXED, lambda *gaussians: _between(*gaussians).view_as(gaussians[0]).sum((1, 2, 3)) / 2),
    ]
)
BETWEEN_MISTAKES += wrong_sums(lambda m, v, om, ov: _between(m, v, om, ov).view_as(m) / 2)


@BETWEEN_MISTAKES("the textbook form, log(σ_p/σ_q) + (σ_q² + (Δmean)²) / (2 · σ_p²) - ½, ends in -½, not in -1")
def between_with_one_subtracted(mean: Tensor, logvar: Tensor, other_mean: Tensor, other_logvar: Tensor) -> Tensor:
    fraction = (logvar.exp() + (mean - other_mean) ** 2) / (2 * other_logvar.exp())
    return ((other_logvar - logvar) / 2 + fraction - 1).flatten(1).sum(1)


@BETWEEN_MISTAKES("in the textbook form the logarithm is of σ_p/σ_q, half the difference of the log-variances")
def between_with_log_of_variances(mean: Tensor, logvar: Tensor, other_mean: Tensor, other_logvar: Tensor) -> Tensor:
    fraction = (logvar.exp() + (mean - other_mean) ** 2) / (2 * other_logvar.exp())
    return (other_logvar - logvar + fraction - 0.5).flatten(1).sum(1)


@BETWEEN_MISTAKES("the 2 below is missing: in the textbook form the fraction is divided by 2 · σ_p²")
def between_without_the_two(mean: Tensor, logvar: Tensor, other_mean: Tensor, other_logvar: Tensor) -> Tensor:
    fraction = (logvar.exp() + (mean - other_mean) ** 2) / other_logvar.exp()
    return ((other_logvar - logvar) / 2 + fraction - 0.5).flatten(1).sum(1)


@BETWEEN_MISTAKES("divided by the other's standard deviation: divide by its variance, exp(other_logvar)")
def between_divided_by_the_deviation(mean: Tensor, logvar: Tensor, other_mean: Tensor, other_logvar: Tensor) -> Tensor:
    other_std = torch.exp(other_logvar / 2)
    return 0.5 * (((mean - other_mean) ** 2 + logvar.exp()) / other_std - 1 - logvar + other_logvar).flatten(1).sum(1)


@BETWEEN_MISTAKES("the own standard deviation stands where the own variance belongs: exp(logvar)")
def between_of_the_deviation(mean: Tensor, logvar: Tensor, other_mean: Tensor, other_logvar: Tensor) -> Tensor:
    std, other_var = torch.exp(logvar / 2), torch.exp(other_logvar)
    return 0.5 * (((mean - other_mean) ** 2 + std) / other_var - 1 - logvar + other_logvar).flatten(1).sum(1)


@BETWEEN_MISTAKES("symmetrised, KL(q ‖ p) + KL(p ‖ q): only the first is asked for")
def between_in_both_directions(mean: Tensor, logvar: Tensor, other_mean: Tensor, other_logvar: Tensor) -> Tensor:
    there = kl_between(mean, logvar, other_mean, other_logvar)
    return there + kl_between(other_mean, other_logvar, mean, logvar)


@BETWEEN_MISTAKES("symmetrised, the average of KL(q ‖ p) and KL(p ‖ q): only the first is asked for")
def between_on_average(mean: Tensor, logvar: Tensor, other_mean: Tensor, other_logvar: Tensor) -> Tensor:
    return between_in_both_directions(mean, logvar, other_mean, other_logvar) / 2


@BETWEEN_MISTAKES("the difference of the two KLs to N(0, I): the KL between the two is another number")
def between_by_difference(mean: Tensor, logvar: Tensor, other_mean: Tensor, other_logvar: Tensor) -> Tensor:
    return kl_to_standard_normal(mean, logvar) - kl_to_standard_normal(other_mean, other_logvar)


@BETWEEN_MISTAKES("only the means are compared: the other's variance, exp(other_logvar), is ignored")
def between_of_the_means(mean: Tensor, logvar: Tensor, other_mean: Tensor, other_logvar: Tensor) -> Tensor:
    return kl_to_standard_normal(mean - other_mean, logvar)


@BETWEEN_MISTAKES("only the variances are compared: the squared difference of the means is missing")
def between_of_the_variances(mean: Tensor, logvar: Tensor, other_mean: Tensor, other_logvar: Tensor) -> Tensor:
    return 0.5 * (logvar.exp() / other_logvar.exp() - 1 - logvar + other_logvar).flatten(1).sum(1)


@BETWEEN_MISTAKES("the squares are subtracted: the square is of the difference of the means")
def between_with_a_difference_of_squares(
    mean: Tensor, logvar: Tensor, other_mean: Tensor, other_logvar: Tensor
) -> Tensor:
    fraction = (mean**2 - other_mean**2 + logvar.exp()) / other_logvar.exp()
    return 0.5 * (fraction - 1 - logvar + other_logvar).flatten(1).sum(1)


@BETWEEN_MISTAKES("multiplied by the other's variance: divide by it")
def between_multiplied(mean: Tensor, logvar: Tensor, other_mean: Tensor, other_logvar: Tensor) -> Tensor:
    product = ((mean - other_mean) ** 2 + logvar.exp()) * other_logvar.exp()
    return 0.5 * (product - 1 - logvar + other_logvar).flatten(1).sum(1)


@BETWEEN_MISTAKES("averaged over everything: one number for each image is asked for, (B,), summed over its values")
def between_averaged_over_everything(mean: Tensor, logvar: Tensor, other_mean: Tensor, other_logvar: Tensor) -> Tensor:
    return 0.5 * _between(mean, logvar, other_mean, other_logvar).mean()


# 02.3


def _log_q(mean: Tensor, logvar: Tensor, z: Tensor) -> Tensor:
    return -(logvar + (z - mean) ** 2 / logvar.exp()) / 2


def _log_p(z: Tensor) -> Tensor:
    return -(z**2) / 2


def _sampled(integrand: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The average over the samples of an integrand of (mean, logvar, z), summed over the values."""
    return lambda m, v, n: integrand(m, v, m + (v / 2).exp() * n).flatten(2).sum(2).mean(0)


def _ratio(mean: Tensor, logvar: Tensor, z: Tensor) -> Tensor:
    return _log_q(mean, logvar, z) - _log_p(z)


_ONE_CONSTANT = "the constant log 2π is in one of the two densities only: it cancels when it is in both"
MONTE_CARLO_MISTAKES = Mistakes(
    [
        (
            "the sign: this is the average of log p - log q; asked for is log q - log p",
            _sampled(lambda m, v, z: -_ratio(m, v, z)),
        ),
        (
            "the samples are those of the prior: z = mean + std · noise comes from q",
            lambda m, v, n: _ratio(m, v, n).flatten(2).sum(2).mean(0),
        ),
        (
            "the samples have the wrong spread: z = mean + exp(logvar / 2) · noise, not exp(logvar)",
            lambda m, v, n: _ratio(m, v, m + v.exp() * n).flatten(2).sum(2).mean(0),
        ),
        *(
            (
                "the samples have the wrong spread: z = mean + exp(logvar / 2) · noise, exp is missing",
                lambda m, v, n, factor=factor: _ratio(m, v, m + factor * v * n).flatten(2).sum(2).mean(0),
            )
            for factor in (1, 0.5)
        ),
        (
            "the samples do not have the wanted mean: z = mean + exp(logvar / 2) · noise",
            lambda m, v, n: _ratio(m, v, (v / 2).exp() * n).flatten(2).sum(2).mean(0),
        ),
        (
            "summed over the samples: average over them, dimension 0",
            lambda m, v, n: _sampled(_ratio)(m, v, n) * n.shape[0],
        ),
        (
            "a mean over the values of an image: their log densities are summed, only the samples are averaged",
            lambda m, v, n: _sampled(_ratio)(m, v, n) / m[0].numel(),
        ),
        (
            "averaged over the batch, not over the samples: the samples are dimension 0 of the noise",
            lambda m, v, n: _ratio(m, v, m + (v / 2).exp() * n).flatten(2).sum(2).mean(1),
        ),
        (f"averaged over the batch as well: {_EACH_IMAGE}", lambda m, v, n: _sampled(_ratio)(m, v, n).mean()),
        (f"summed over the batch as well: {_EACH_IMAGE}", lambda m, v, n: _sampled(_ratio)(m, v, n).sum()),
        (
            "not averaged over the samples, dimension 0",
            lambda m, v, n: _ratio(m, v, m + (v / 2).exp() * n).flatten(2).sum(2),
        ),
        (
            f"not summed over the values of an image: {_EACH_IMAGE}",
            lambda m, v, n: _ratio(m, v, m + (v / 2).exp() * n).mean(0),
        ),
        (
            "this is the closed form: average log q(z) - log p(z) over the samples instead",
            lambda m, v, n: kl_to_standard_normal(m, v),
        ),
        ("log q lacks the term logvar", _sampled(lambda m, v, z: _ratio(m, v, z) + v / 2)),
        ("the sign of logvar in log q: a wide Gaussian is less dense", _sampled(lambda m, v, z: _ratio(m, v, z) + v)),
        ("the factor ½ is missing in both densities", _sampled(lambda m, v, z: 2 * _ratio(m, v, z))),
        ("the factor ½ is missing in log q", _sampled(lambda m, v, z: 2 * _log_q(m, v, z) - _log_p(z))),
        ("the factor ½ is missing in log p", _sampled(lambda m, v, z: _log_q(m, v, z) - 2 * _log_p(z))),
        ("log p is missing", _sampled(_log_q)),
        ("log q is missing", _sampled(lambda m, v, z: -_log_p(z).expand_as(z))),
        (
            "the factor ½ is missing on the square in log q: -½ stands before both terms",
            _sampled(lambda m, v, z: -v / 2 - (z - m) ** 2 / v.exp() - _log_p(z)),
        ),
        (
            "the factor ½ is missing on logvar in log q: -½ stands before both terms",
            _sampled(lambda m, v, z: _ratio(m, v, z) - v / 2),
        ),
        (
            "the bracket in log q is missing: -½ stands before both terms",
            _sampled(lambda m, v, z: -v / 2 + (z - m) ** 2 / v.exp() - _log_p(z)),
        ),
        (
            "the sign of log q: it is -½ · (…)",
            _sampled(lambda m, v, z: -_log_q(m, v, z) - _log_p(z)),
        ),
        ("the sign of log p: it is -½ · z²", _sampled(lambda m, v, z: _log_q(m, v, z) + _log_p(z))),
        (
            "log q divides by the squared variance: square (z - mean) only",
            _sampled(lambda m, v, z: -(v + ((z - m) / v.exp()) ** 2) / 2 - _log_p(z)),
        ),
        (
            "log q does not divide the square by the variance, exp(logvar)",
            _sampled(lambda m, v, z: -(v + (z - m) ** 2) / 2 - _log_p(z)),
        ),
        ("log q lacks the square of (z - mean)", _sampled(lambda m, v, z: -(v + (z - m) / v.exp()) / 2 - _log_p(z))),
        (
            "log q divides by the standard deviation: the square is divided by the variance, exp(logvar)",
            _sampled(lambda m, v, z: -(v + (z - m) ** 2 / (v / 2).exp()) / 2 - _log_p(z)),
        ),
        (_ONE_CONSTANT, _sampled(lambda m, v, z: _ratio(m, v, z) - math.log(2 * math.pi) / 2)),
        (_ONE_CONSTANT, _sampled(lambda m, v, z: _ratio(m, v, z) + math.log(2 * math.pi) / 2)),
        (
            "dims 2, 3, 4 are fixed, which fails for inputs (B, C): sum over all but samples and batch, flatten(2)",
            lambda m, v, n: _ratio(m, v, m + (v / 2).exp() * n).sum((2, 3, 4)).mean(0),
        ),
    ]
)
_VALUES = "sum over all dimensions but samples and batch, flatten(2).sum(2), then average over dimension 0"
MONTE_CARLO_MISTAKES += [
    (
        f"summed over the channels only: {_VALUES}",
        lambda m, v, n: _ratio(m, v, m + (v / 2).exp() * n).sum(2).mean(0),
    ),
    (
        f"summed over the last dimension only: {_VALUES}",
        lambda m, v, n: _ratio(m, v, m + (v / 2).exp() * n).sum(-1).mean(0),
    ),
    (
        f"summed over dimension 1, the batch: {_VALUES}",
        lambda m, v, n: _ratio(m, v, m + (v / 2).exp() * n).sum(1).mean(0),
    ),
    (
        f"summed over height and width only, not over the channels: {_VALUES}",
        lambda m, v, n: _ratio(m, v, m + (v / 2).exp() * n).sum((3, 4)).mean(0),
    ),
    (
        "everything is averaged: sum the log densities of an image's values, average only over the samples, (B,)",
        lambda m, v, n: _ratio(m, v, m + (v / 2).exp() * n).mean(),
    ),
    (
        "everything is summed: only the values of an image are, and the samples are averaged, (B,)",
        lambda m, v, n: _ratio(m, v, m + (v / 2).exp() * n).sum(),
    ),
]


@MONTE_CARLO_MISTAKES("log p is taken at the noise: both densities are taken at z = mean + std · noise")
def sampled_with_log_p_of_the_noise(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    z = mean + torch.exp(logvar / 2) * noise
    return (_log_q(mean, logvar, z) - _log_p(noise)).flatten(2).sum(2).mean(0)


@MONTE_CARLO_MISTAKES("log q is taken at the noise: both densities are taken at z = mean + std · noise")
def sampled_with_log_q_of_the_noise(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    z = mean + torch.exp(logvar / 2) * noise
    return (_log_q(mean, logvar, noise) - _log_p(z)).flatten(2).sum(2).mean(0)


@MONTE_CARLO_MISTAKES("log q forgets the mean: it is -½ · (logvar + (z - mean)² / var)")
def sampled_with_log_q_around_zero(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    z = mean + torch.exp(logvar / 2) * noise
    return (-0.5 * (logvar + z**2 / logvar.exp()) - _log_p(z)).flatten(2).sum(2).mean(0)


@MONTE_CARLO_MISTAKES("log p is that of a Gaussian around the mean: p is N(0, I), log p is -½ · z²")
def sampled_with_log_p_around_the_mean(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    z = mean + torch.exp(logvar / 2) * noise
    return (_log_q(mean, logvar, z) - _log_p(z - mean)).flatten(2).sum(2).mean(0)


@MONTE_CARLO_MISTAKES("only the first sample is used: average over all of them, dimension 0 of the noise")
def sampled_once(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    return monte_carlo_kl(mean, logvar, noise[:1])


@MONTE_CARLO_MISTAKES("the noise is averaged first: average log q(z) - log p(z) over the samples")
def sampled_at_the_mean_noise(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    return monte_carlo_kl(mean, logvar, noise.mean(0, keepdim=True))


def _density(log_density: Tensor) -> Tensor:
    return torch.exp(log_density - math.log(2 * math.pi) / 2)


@MONTE_CARLO_MISTAKES("the densities themselves are subtracted: subtract their logarithms")
def sampled_densities(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    z = mean + torch.exp(logvar / 2) * noise
    return (_density(_log_q(mean, logvar, z)) - _density(_log_p(z))).flatten(2).sum(2).mean(0)


@MONTE_CARLO_MISTAKES("the densities themselves are subtracted: subtract their logarithms")
def sampled_densities_without_constant(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    z = mean + torch.exp(logvar / 2) * noise
    return (_log_q(mean, logvar, z).exp() - _log_p(z).exp()).flatten(2).sum(2).mean(0)


@MONTE_CARLO_MISTAKES(
    "each sample is multiplied by its density: samples of q come as often as q says already, average them"
)
def sampled_and_weighted(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    z = mean + torch.exp(logvar / 2) * noise
    log_q, log_p = _log_q(mean, logvar, z), _log_p(z)
    return (_density(log_q) * (log_q - log_p)).flatten(2).sum(2).mean(0)


@MONTE_CARLO_MISTAKES("the ratio of the densities: take its logarithm, log q - log p")
def sampled_ratio(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    z = mean + torch.exp(logvar / 2) * noise
    return (_log_q(mean, logvar, z) - _log_p(z)).exp().flatten(2).sum(2).mean(0)


# 02.4


def _on_parameters(loss: Callable[..., Any]) -> Callable[..., Any]:
    """The loss as a function of tensors alone, so that a gradient to the posterior's parameters can be asked for."""
    return lambda reconstruction, target, parameters, kl_weight: loss(
        reconstruction, target, DiagonalGaussianDistribution(parameters), kl_weight
    )


def _pixel(reconstruction: Tensor, target: Tensor) -> Tensor:
    return pixel_loss(reconstruction, target)


def _kl(posterior: DiagonalGaussianDistribution) -> Tensor:
    return posterior.kl().mean()


_UNITS = "the two terms must be reduced alike"
LOSS_MISTAKES = Mistakes(
    [
        (
            f"the pixel term is a mean over C, H, W, the KL a sum: {_UNITS}, else the KL is C·H·W times too strong",
            lambda r, t, q, w: (r - t).abs().mean() + w * _kl(q),
        ),
        (
            f"the KL is averaged over its values, the pixel term summed: {_UNITS}; posterior.kl() is the sum",
            lambda r, t, q, w: _pixel(r, t) + w * _kl(q) / q.mean[0].numel(),
        ),
        (
            "both terms are means over their values: CompVis sums over an image's values, and averages over the batch",
            lambda r, t, q, w: (r - t).abs().mean() + w * _kl(q) / q.mean[0].numel(),
        ),
        (
            "the whole is divided by C·H·W: CompVis sums over an image's values, and averages over the batch only",
            lambda r, t, q, w: (_pixel(r, t) + w * _kl(q)) / t[0].numel(),
        ),
        (
            "summed over the batch: divide both terms by the number of images",
            lambda r, t, q, w: (_pixel(r, t) + w * _kl(q)) * len(t),
        ),
        (
            "the pixel term is a mean over everything, the KL a sum over everything: for both, sum over an image's "
            "values and average over the batch",
            lambda r, t, q, w: (r - t).abs().mean() + w * _kl(q) * len(t),
        ),
        (
            f"the KL is divided by C·H·W, the pixel term is not: {_UNITS}",
            lambda r, t, q, w: _pixel(r, t) + w * _kl(q) / t[0].numel(),
        ),
        (
            "the pixel term is summed over the batch: divide it by the number of images",
            lambda r, t, q, w: _pixel(r, t) * len(t) + w * _kl(q),
        ),
        (
            "the KL is summed over the batch: average it, as the pixel term is",
            lambda r, t, q, w: _pixel(r, t) + w * _kl(q) * len(t),
        ),
        (
            "the pixel term is squared (L2): the L1 distance |reconstruction - target| is asked for",
            lambda r, t, q, w: (r - t).pow(2).flatten(1).sum(1).mean() + w * _kl(q),
        ),
        (
            "the pixel term is a squared mean (F.mse_loss): the L1 distance, summed over C, H, W, is asked for",
            lambda r, t, q, w: (r - t).pow(2).mean() + w * _kl(q),
        ),
        (
            "the pixel term is a Euclidean norm: the L1 distance, summed over C, H, W, is asked for",
            lambda r, t, q, w: (r - t).flatten(1).norm(dim=1).mean() + w * _kl(q),
        ),
        (
            "the absolute value is taken of the sum: take it of every difference, before errors cancel",
            lambda r, t, q, w: (r - t).flatten(1).sum(1).abs().mean() + w * _kl(q),
        ),
        (
            "the absolute value is missing: errors of different sign cancel",
            lambda r, t, q, w: (r - t).flatten(1).sum(1).mean() + w * _kl(q),
        ),
        ("kl_weight is on the pixel term: it belongs to the KL", lambda r, t, q, w: w * _pixel(r, t) + _kl(q)),
        ("kl_weight is on both terms: it belongs to the KL", lambda r, t, q, w: w * (_pixel(r, t) + _kl(q))),
        ("kl_weight is forgotten", lambda r, t, q, w: _pixel(r, t) + _kl(q)),
        ("the KL is missing, or kl_weight is not used", lambda r, t, q, w: _pixel(r, t)),
        ("the pixel term is missing", lambda r, t, q, w: w * _kl(q)),
        ("the sign of the KL: it is a cost, and added", lambda r, t, q, w: _pixel(r, t) - w * _kl(q)),
        (
            "posterior.kl() has one number for each image: average it over the batch",
            lambda r, t, q, w: _pixel(r, t) + w * q.kl(),
        ),
        (
            "one number for each image: average over the batch at the end",
            lambda r, t, q, w: (r - t).abs().flatten(1).sum(1) + w * q.kl(),
        ),
    ]
)


@LOSS_MISTAKES("summed over the channels, but averaged over height and width: sum over C, H and W")
def loss_with_a_mean_over_the_map(
    reconstruction: Tensor, target: Tensor, posterior: DiagonalGaussianDistribution, kl_weight: float
) -> Tensor:
    return (reconstruction - target).abs().sum(1).mean() + kl_weight * posterior.kl().mean()


@LOSS_MISTAKES("one norm for the whole batch: sum |reconstruction - target| over C, H, W, then average over the batch")
def loss_with_one_norm(
    reconstruction: Tensor, target: Tensor, posterior: DiagonalGaussianDistribution, kl_weight: float
) -> Tensor:
    return torch.norm(reconstruction - target) + kl_weight * posterior.kl().mean()


@LOSS_MISTAKES("one norm for the whole batch: sum |reconstruction - target| over C, H, W, then average over the batch")
def loss_with_one_norm_of_the_batch(
    reconstruction: Tensor, target: Tensor, posterior: DiagonalGaussianDistribution, kl_weight: float
) -> Tensor:
    return torch.norm(reconstruction - target) / len(target) + kl_weight * posterior.kl().mean()


_SMOOTH = "smooth L1 (Huber) is squared for small differences: take |reconstruction - target|"


@LOSS_MISTAKES(_SMOOTH)
def loss_with_smooth_l1(
    reconstruction: Tensor, target: Tensor, posterior: DiagonalGaussianDistribution, kl_weight: float
) -> Tensor:
    pixel = F.smooth_l1_loss(reconstruction, target, reduction="sum") / len(target)
    return pixel + kl_weight * posterior.kl().mean()


@LOSS_MISTAKES(f"{_SMOOTH}, and sum it over C, H, W")
def loss_with_mean_smooth_l1(
    reconstruction: Tensor, target: Tensor, posterior: DiagonalGaussianDistribution, kl_weight: float
) -> Tensor:
    return F.smooth_l1_loss(reconstruction, target) + kl_weight * posterior.kl().mean()


@LOSS_MISTAKES(
    "the pixel term is half the square, as of a Gaussian: the L1 distance |reconstruction - target| is asked for"
)
def loss_with_half_the_square(
    reconstruction: Tensor, target: Tensor, posterior: DiagonalGaussianDistribution, kl_weight: float
) -> Tensor:
    return 0.5 * (reconstruction - target).pow(2).flatten(1).sum(1).mean() + kl_weight * posterior.kl().mean()


_judge_loss = judge_function(
    _on_parameters(kl_vae_loss),
    [
        (*probe((3, 2, 4, 5), (3, 2, 4, 5), (3, 8, 2, 3)), 0.7),
        (*probe((4, 3, 5, 2), (4, 3, 5, 2), (4, 4, 2, 1)), 0.2),
    ],
    [(message, _on_parameters(code)) for message, code in LOSS_MISTAKES],
    inputs=("reconstruction", "target", "the posterior", "kl_weight"),
    gradients=("reconstruction", "the posterior"),
)

_SHAPES = ((3, 4, 5, 2), (5, 7), (1, 1))
EXERCISES = (
    Exercise(
        id="02.1",
        title="KL to the standard normal",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=kl_to_standard_normal,
        in_package=(DiagonalGaussianDistribution.kl,),
        hints=(
            "Test yourself: for mean 0 and logvar 0 each value's KL is 0. Which terms must cancel there?",
            "Each value costs ½ · (mean² + var - 1 - logvar), with var = exp(logvar).",
            "Independent values add up: sum over all but the batch, for example with flatten(1).sum(1).",
        ),
        judge=judge_function(
            kl_to_standard_normal,
            [probe(*[shape] * 2) for shape in _SHAPES],
            KL_MISTAKES,
            inputs=("mean", "logvar"),
            gradients=("mean", "logvar"),
        ),
    ),
    Exercise(
        id="02.2",
        title="KL between two Gaussians",
        notebook=NOTEBOOK,
        minutes=15,
        difficulty=3,
        reference=kl_between,
        in_package=(DiagonalGaussianDistribution.kl,),
        hints=(
            "Two checks on paper: for equal Gaussians it is 0, and with p = N(0, I) it becomes exercise 02.1.",
            "KL(q ‖ p) measures distance and spread of q in units of p's variance: p's variance stands below.",
            "Each value costs ½ · ((mean - other_mean)² / other_var + var / other_var - 1 - logvar + other_logvar).",
        ),
        judge=judge_function(
            kl_between,
            [probe(*[shape] * 4) for shape in _SHAPES],
            BETWEEN_MISTAKES,
            inputs=("mean", "logvar", "other_mean", "other_logvar"),
            gradients=("mean", "logvar", "other_mean", "other_logvar"),
        ),
    ),
    Exercise(
        id="02.3",
        title="KL by sampling",
        notebook=NOTEBOOK,
        minutes=15,
        difficulty=3,
        reference=monte_carlo_kl,
        in_package=(DiagonalGaussianDistribution.nll,),  # -log q, and -log p
        hints=(
            "KL(q ‖ p) is the mean of log q(z) - log p(z) over z drawn from q. Which z does the noise give?",
            "z = mean + std · noise broadcasts to (S, B, …). The constant log 2π is in both densities, and cancels.",
            "log q(z) = -½ · (logvar + (z - mean)² / var) + const, log p(z) = -½ · z² + const; "
            "sum over flatten(2), then average over dimension 0.",
        ),
        judge=judge_function(
            monte_carlo_kl,
            [probe(shape, shape, (samples, *shape)) for samples, shape in zip((6, 6, 1), _SHAPES, strict=True)],
            MONTE_CARLO_MISTAKES,
            inputs=("mean", "logvar", "noise"),
        ),
    ),
    Exercise(
        id="02.4",
        title="The training loss with CompVis' reduction",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=kl_vae_loss,
        in_package=(vae_loss,),
        hints=(
            "Both terms are sums over one image's values, averaged over the images of the batch.",
            "posterior.kl() is already summed: (B,). What is left to do with it?",
            "(reconstruction - target).abs().flatten(1).sum(1).mean() + kl_weight · posterior.kl().mean()",
        ),
        judge=lambda attempt: _judge_loss(_on_parameters(attempt) if callable(attempt) else attempt),
    ),
)
