"""The exercises of notebook 02, the KL loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from klvae_edu.exercises.attempt import Attempt, Local, call, recipe
from klvae_edu.exercises.exercise import Exercise, Mistakes
from klvae_edu.exercises.judges.functions import judge_function, probe, same, through_recipe
from klvae_edu.exercises.nb01 import SMALL, gaussian_probes, narrow, one_value, with_cases, wrong_sums
from klvae_edu.exercises.solutions.nb02 import kl_between, kl_to_standard_normal, kl_vae_loss, monte_carlo_kl
from klvae_edu.gaussian import DiagonalGaussianDistribution
from klvae_edu.losses import vae_loss

NOTEBOOK = "02_kl_loss"
_GAUSSIAN = ("mean", "logvar")
_GAUSSIANS = (*_GAUSSIAN, "other_mean", "other_logvar")
_SAMPLES = (*_GAUSSIAN, "noise")


# 02.1


def _kl(
    square: Callable[..., Tensor] = torch.square,
    var: Callable[..., Tensor] = torch.exp,
    log: Callable[..., Tensor] = torch.positive,
    one: float = 1,
) -> Callable[..., Tensor]:
    """Make ½ · Σ (mean² + var - 1 - logvar) with other functions of the mean and of the log-variance."""
    return lambda mean, logvar: 0.5 * (square(mean) + var(logvar) - one - log(logvar)).flatten(1).sum(1)


_SEVERAL = "each has its own terms, and all of an image are summed"
_BRACKET = "it belongs to all terms, so put a bracket around them"
_FORM = "in -½ · (1 + logvar - mean² - exp(logvar)) both mean² and exp are subtracted"
_EPS = "a small number is added to the variance below, which changes small ones: exp is never 0, so leave it out"
_LOG_EPS = "a small number is added inside of the logarithm, which changes small variances: take logvar itself"
KL_MISTAKES = Mistakes(
    {
        "the factor ½ is missing": lambda m, v: 2 * kl_to_standard_normal(m, v),
        "the factor ½ is there twice: the textbook form has it": lambda m, v: kl_to_standard_normal(m, v) / 2,
        "the sign: a KL divergence is never negative": lambda m, v: -kl_to_standard_normal(m, v),
        "the sign of logvar: it is subtracted": _kl(log=torch.neg),
        "logvar is missing": _kl(log=torch.zeros_like),
        "log σ stands where log σ² belongs, logvar: it is halved twice": _kl(log=lambda v: v / 2),
        "log σ⁴ stands where log σ² belongs, or the ½ is not on logvar: put a bracket": _kl(log=lambda v: 2 * v),
        "the logarithm of logvar is taken: it is a logarithm already": _kl(log=torch.log),
        "exp(logvar / 2) stands where logvar belongs": _kl(log=lambda v: (v / 2).exp()),
        "the standard deviation stands where the variance belongs: exp(logvar)": _kl(var=lambda v: (v / 2).exp()),
        "the variance, exp(logvar), is missing": _kl(var=torch.zeros_like),
        "the variance is squared: exp(logvar) is σ² already": _kl(var=lambda v: (2 * v).exp()),
        "exp is missing: the variance is exp(logvar), not logvar": _kl(var=torch.positive),
        "logvar is squared: the variance is exp(logvar)": _kl(var=torch.square),
        "the sign in the exponent: the variance is exp(+logvar)": _kl(var=lambda v: (-v).exp()),
        f"the sign of the variance: {_FORM}": _kl(var=lambda v: -v.exp()),
        "the -1 is missing: at mean 0, variance 1 the KL must be 0": _kl(one=0),
        "the sign of the 1: it is subtracted": _kl(one=-1),
        "the textbook form ends in -½, which the factor ½ makes of -1: here it is halved twice": _kl(one=0.5),
        "the 1 is not halved: the textbook form, log(1/σ) + (σ² + mean²) / 2 - ½, ends in -½": _kl(one=2),
        "the 1 is subtracted once for an image: every value has its own": lambda *given: _kl(one=0)(*given) - 0.5,
        "the mean is not squared": _kl(torch.positive),
        "the mean is doubled: it is squared": _kl(lambda m: 2 * m),
        "the absolute value of the mean: it is squared": _kl(torch.abs),
        "the mean is missing": _kl(torch.zeros_like),
        f"the sign of mean²: {_FORM}": _kl(lambda m: -(m**2)),
        "exp(logvar) is taken for σ: it is σ², and σ is exp(logvar / 2)": lambda m, v: kl_to_standard_normal(m, 2 * v),
        "logvar is taken for the variance: that is exp(logvar)": (lambda m, v: kl_to_standard_normal(m, v.log())),
        "logvar is taken for σ: σ² is exp(logvar)": lambda m, v: kl_to_standard_normal(m, (v**2).log()),
        "mean and logvar are exchanged": lambda m, v: kl_to_standard_normal(v, m),
        f"the factor ½ is on the mean only: {_BRACKET}": (lambda m, v: (m**2 / 2 + v.exp() - 1 - v).flatten(1).sum(1)),
        f"the factor ½ is missing on the mean: {_BRACKET}": _kl(lambda m: 2 * m**2),
        f"the factor ½ is on the variance only: {_BRACKET}": (
            lambda m, v: (m**2 + v.exp() / 2 - 1 - v).flatten(1).sum(1)
        ),
        f"the factor ½ is on logvar only: {_BRACKET}": (lambda m, v: (m**2 + v.exp() - 1 - v / 2).flatten(1).sum(1)),
        "the direction is reversed: this is KL(N(0, I) ‖ q); KL(q ‖ N(0, I)) is asked for": (
            lambda m, v: 0.5 * ((1 + m**2) / v.exp() - 1 + v).flatten(1).sum(1)
        ),
        "multiplied by kl_weight: the weight belongs to the loss": lambda *given: 1e-6 * kl_to_standard_normal(*given),
        "every value costs at least a little (free bits): sum them as they are": (
            lambda m, v: (0.5 * (m**2 + v.exp() - 1 - v)).clamp(min=0.25).flatten(1).sum(1)
        ),
    }.items()
)
KL_MISTAKES += wrong_sums(lambda mean, logvar: 0.5 * (mean**2 + logvar.exp() - 1 - logvar))
KL_MISTAKES += [(_LOG_EPS, _kl(log=lambda v, eps=eps: (v.exp() + eps).log())) for eps in SMALL]
KL_MISTAKES += [
    ("F.kl_div compares tables of probabilities: write the formula", partial(F.kl_div, reduction=reduction))
    for reduction in ("batchmean", "sum", "mean", "none")
]


@KL_MISTAKES("Normal takes the standard deviation, exp(logvar / 2), and not logvar")
def kl_of_normal_with_logvar(mean, logvar):
    return kl_divergence(Normal(mean, logvar), Normal(0.0, 1.0)).flatten(1).sum(1)


_judge_kl = judge_function(
    kl_to_standard_normal,
    gaussian_probes(_GAUSSIAN),
    KL_MISTAKES,
    inputs=_GAUSSIAN,
    gradients=_GAUSSIAN,
)
_KL_CASES = {
    "of N(0, 1) it is 0, with mean 0 and logvar 0": one_value(0, 0),
    "with mean 20 and logvar 0: ½ · 20²": one_value(20, 0),
    "with mean -3 and logvar 0: ½ · (-3)²": one_value(-3, 0),
    **{f"with mean 0 and logvar {v}: ½ · (exp({v}) - 1 - ({v}))": one_value(0, v) for v in (2, -2, 12, -25)},
    "with mean 3 and logvar 2: ½ · (3² + exp(2) - 1 - 2)": one_value(3, 2),
}


# 02.2


def _between(
    ratio: Callable[..., Tensor] = lambda square, var, other: (square + var) / other,
    square: Callable[..., Tensor] = lambda mean, other: (mean - other) ** 2,
    log: Callable[..., Tensor] = lambda logvar, other: other - logvar,
    one: float = 1,
    var: Callable[..., Tensor] = torch.exp,
) -> Callable[..., Tensor]:
    """Make ½ · Σ ((mean - other_mean)² + var) / other_var - 1 + log(other_var / var) with another part."""

    def between(mean, logvar, other_mean, other_logvar):
        first = ratio(square(mean, other_mean), var(logvar), var(other_logvar))
        return 0.5 * (first - one + log(logvar, other_logvar)).flatten(1).sum(1)

    return between


def _each(mean: Tensor, logvar: Tensor, other_mean: Tensor, other_logvar: Tensor) -> Tensor:
    return 0.5 * (((mean - other_mean) ** 2 + logvar.exp()) / other_logvar.exp() - 1 - logvar + other_logvar)


BETWEEN_MISTAKES = Mistakes(
    {
        "the factor ½ is missing": lambda *gaussians: 2 * kl_between(*gaussians),
        "the factor ½ is there twice: the textbook form has it": lambda *given: kl_between(*given) / 2,
        "the sign: a KL divergence is never negative": lambda *gaussians: -kl_between(*gaussians),
        "the direction is reversed: this is KL(p ‖ q), with q the first Gaussian; KL(q ‖ p) is asked for": (
            lambda m, v, om, ov: kl_between(om, ov, m, v)
        ),
        "the logarithm of the ratio is upside down: it is other_logvar - logvar": _between(log=torch.sub),
        "the two logarithms are added: logvar is subtracted": _between(log=torch.add),
        "both logarithms are subtracted: other_logvar is added": _between(log=lambda v, other: -v - other),
        "the logarithm of the ratio of the variances is missing": _between(log=lambda v, other: 0 * v),
        "logvar is missing": _between(log=lambda v, other: other),
        "other_logvar is missing": _between(log=lambda v, other: -v),
        "log σ stands where log σ² belongs: the log-variances are halved twice": _between(log=lambda v, o: (o - v) / 2),
        "the variances stand where their logarithms belong": _between(log=lambda v, other: other.exp() - v.exp()),
        "a logarithm of the ratio of the log-variances: take the difference": _between(log=lambda v, o: (o / v).log()),
        "the log-variances are divided: take their difference": _between(log=lambda v, other: other / v),
        "the square is divided by the own variance: divide by the other's": _between(
            lambda d2, var, other: d2 / var + var / other
        ),
        "the ratio of the variances is upside down": _between(lambda d2, var, other: d2 / other + other / var),
        "the fraction is upside down: divide by the other's": _between(lambda d2, var, other: (d2 + other) / var),
        "divided by the own variance: divide by the other's": _between(lambda d2, var, other: (d2 + var) / var),
        "the own variance is not divided: put a bracket": _between(lambda d2, var, other: d2 / other + var),
        "the squared difference is not divided: put a bracket": _between(lambda d2, var, other: d2 + var / other),
        "the square is divided by the squared variance: square the difference only": _between(
            lambda d2, var, other: d2 / other**2 + var / other
        ),
        "nothing is divided by the other's variance": _between(lambda d2, var, other: d2 + var),
        "multiplied by the other's variance: divide by it": _between(lambda d2, var, other: (d2 + var) * other),
        "divided by the sum of the variances, not by the other's": _between(
            lambda d2, var, other: (d2 + var) / (var + other)
        ),
        "the own variance is missing above": _between(lambda d2, var, other: d2 / other),
        "standard deviations stand where variances belong: exp(logvar)": _between(var=lambda v: (v / 2).exp()),
        "divided by the other's σ: divide by its variance": _between(lambda d2, var, other: (d2 + var) / other.sqrt()),
        "the own σ stands where the own variance belongs": _between(lambda d2, var, other: (d2 + var.sqrt()) / other),
        "the variances are squared: exp(logvar) is σ² already": _between(var=lambda v: (2 * v).exp()),
        "exp is missing: the variances are exp(logvar) and exp(other_logvar)": _between(var=torch.positive),
        "divided by other_logvar: divide by exp(other_logvar)": _between(
            lambda d2, var, other: (d2 + var) / other.log()
        ),
        "the exps of the log-variances are taken for σ: they are σ²": (
            lambda m, v, om, ov: kl_between(m, 2 * v, om, 2 * ov)
        ),
        "the difference of the means is not squared": _between(square=torch.sub),
        "the absolute difference of the means: it is squared": _between(square=lambda m, other: (m - other).abs()),
        "the means are added: their difference is squared": _between(square=lambda m, other: (m + other) ** 2),
        "the squares are subtracted: square the difference of the means": _between(square=lambda m, o: m**2 - o**2),
        "the other's mean is ignored: square the difference of the means": _between(square=lambda m, other: m**2),
        "only the variances are compared: the squared difference is missing": _between(square=lambda m, other: 0 * m),
        "other_logvar is ignored: only the means are compared": (lambda m, v, om, ov: kl_to_standard_normal(m - om, v)),
        "the other Gaussian is ignored: this is the KL to N(0, I)": (lambda m, v, om, ov: kl_to_standard_normal(m, v)),
        "the -1 is missing: for two equal Gaussians the KL must be 0": _between(one=0),
        "the sign of the 1: it is subtracted": _between(one=-1),
        "the textbook form ends in -½, which the factor ½ makes of -1: here it is halved twice": _between(one=0.5),
        "the 1 is subtracted once for an image: every value has its own": lambda *given: _between(one=0)(*given) - 0.5,
        "this is the cross entropy: q's own entropy is not subtracted": _between(log=lambda v, other: other, one=0),
        "the 1 is not halved: log(σ_p/σ_q) + (σ_q² + Δmean²) / (2 · σ_p²) - ½ ends in -½": _between(one=2),
        "the logarithms are not halved: log σ is logvar / 2": _between(log=lambda v, other: 2 * (other - v)),
        "the 2 below is missing: the textbook divides by 2 · σ_p²": _between(
            lambda d2, var, other: 2 * (d2 + var) / other
        ),
        f"the factor ½ is on the fraction only: {_BRACKET}": _between(log=lambda v, other: 2 * (other - v), one=2),
        "symmetrised: only KL(q ‖ p) is asked for": (
            lambda m, v, om, ov: kl_between(m, v, om, ov) + kl_between(om, ov, m, v)
        ),
        "symmetrised, the average of KL(q ‖ p) and KL(p ‖ q): only the first is asked for": (
            lambda m, v, om, ov: (kl_between(m, v, om, ov) + kl_between(om, ov, m, v)) / 2
        ),
        "the difference of the two KLs to N(0, I): the KL between the two is another number": (
            lambda m, v, om, ov: kl_to_standard_normal(m, v) - kl_to_standard_normal(om, ov)
        ),
    }.items()
)
BETWEEN_MISTAKES += wrong_sums(_each)
BETWEEN_MISTAKES += [
    (_EPS, _between(lambda square, var, other, eps=eps: (square + var) / (other + eps))) for eps in SMALL[2:]
]


_judge_between = judge_function(
    kl_between,
    gaussian_probes(_GAUSSIANS),
    BETWEEN_MISTAKES,
    inputs=_GAUSSIANS,
    gradients=_GAUSSIANS,
)
_BETWEEN_CASES = {
    "of two equal Gaussians it is 0, here with mean 1 and logvar 1": one_value(1, 1, 1, 1),
    "with mean 20, other_mean 0, and both log-variances 0: ½ · 20²": one_value(20, 0, 0, 0),
    "with mean 3, other_mean 1, and both log-variances 0: ½ · (3 - 1)²": one_value(3, 0, 1, 0),
    **{
        f"with means 0, logvar {v} and other_logvar 0: ½ · (exp({v}) - 1 - ({v}))": one_value(0, v, 0, 0)
        for v in (2, 12, -25)
    },
    **{
        f"with means 0, logvar 0 and other_logvar {v}: ½ · (exp(-({v})) - 1 + ({v}))": one_value(0, 0, 0, v)
        for v in (2, 12, -10)
    },
    "with means 3 and 0, and both log-variances 2: ½ · 3² / exp(2)": one_value(3, 2, 0, 2),
    "with means 3 and 0, logvar 1 and other_logvar 2: ½ · ((3² + exp(1)) / exp(2) - 1 - 1 + 2)": one_value(3, 1, 0, 2),
}


# 02.3


def _log_q(
    log: Callable[..., Tensor] = torch.positive,
    square: Callable[..., Tensor] = torch.square,
    var: Callable[..., Tensor] = torch.exp,
) -> Callable[..., Tensor]:
    """Make log q, -½ · (logvar + (z - mean)² / var), with other functions."""
    return lambda z, mean, logvar: -0.5 * (log(logvar) + square(z - mean) / var(logvar))


_LOG_Q = _log_q()


def _log_p(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * z**2


def _at_the_noise(log_density: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Take a density at the noise from which z was made."""
    return lambda z, mean, logvar: log_density((z - mean) / (logvar / 2).exp(), mean, logvar)


def _sampled(
    log_q: Callable[..., Tensor] = _LOG_Q,
    log_p: Callable[..., Tensor] = _log_p,
    z: Callable[..., Tensor] = lambda mean, logvar, noise: mean + (logvar / 2).exp() * noise,
    each: Callable[..., Tensor] = torch.sub,
    average: Callable[..., Tensor] = lambda of_images: of_images.mean(0),
) -> Callable[..., Tensor]:
    """Make the average of log q(z) - log p(z) with another part; `average` is given the sums, (S, B)."""

    def estimate(mean, logvar, noise):
        samples = z(mean, logvar, noise)
        differences = each(log_q(samples, mean, logvar), log_p(samples, mean, logvar))
        return average(differences.flatten(2).sum(2))

    return estimate


def _density(log_density: Tensor) -> Tensor:
    return torch.exp(log_density - math.log(2 * math.pi) / 2)


def _each_sample(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    z = mean + torch.exp(logvar / 2) * noise
    return 0.5 * (z**2 - logvar - noise**2)


_VALUES = "sum over all dimensions but samples and batch, flatten(2).sum(2), then average over dimension 0"
_ONE_CONSTANT = "the constant log 2π is in one of the two densities only: it cancels when it is in both"
_Z = "z = mean + exp(logvar / 2) · noise"
_HALF = "-½ stands before both terms"
MONTE_CARLO_MISTAKES = Mistakes(
    {
        "the sign: this is log p - log q; log q - log p is asked for": lambda *given: -monte_carlo_kl(*given),
        "the samples are those of the prior: z = mean + std · noise comes from q": _sampled(z=lambda m, v, n: n),
        f"the samples have the wrong spread: {_Z}, not exp(logvar)": _sampled(z=lambda m, v, n: m + v.exp() * n),
        f"the samples have the wrong spread: {_Z}, exp is missing": _sampled(z=lambda m, v, n: m + v / 2 * n),
        f"the samples have the wrong spread: {_Z}, not logvar": _sampled(z=lambda m, v, n: m + v * n),
        f"the noise is not scaled: {_Z}": _sampled(z=lambda m, v, n: m + n),
        f"the samples do not have the wanted mean: {_Z}": _sampled(z=lambda m, v, n: (v / 2).exp() * n),
        f"the sign of the noise: {_Z}": _sampled(z=lambda m, v, n: m - (v / 2).exp() * n),
        "the noise is ignored: this is log q - log p at the mean": _sampled(z=lambda m, v, n: m + 0 * n),
        "this is the closed form: average log q - log p instead": (lambda m, v, n: kl_to_standard_normal(m, v)),
        "only the first sample is used: average over all of them": lambda m, v, n: monte_carlo_kl(m, v, n[:1]),
        "only the last sample is used: average over all of them": lambda m, v, n: monte_carlo_kl(m, v, n[-1:]),
        "the first sample is left out": lambda m, v, n: monte_carlo_kl(m, v, n) - monte_carlo_kl(m, v, n[:1]) / len(n),
        "the noise is averaged first: average log q - log p": (
            lambda m, v, n: monte_carlo_kl(m, v, n.mean(0, keepdim=True))
        ),
        "as many samples as images are used: average over all": (lambda m, v, n: monte_carlo_kl(m, v, n[: len(m)])),
        "the noise is taken for (B, S, …): it is (S, B, …), as z is": (
            lambda m, v, n: monte_carlo_kl(m, v, n.transpose(0, 1))
        ),
        "log q is missing": _sampled(lambda z, m, v: 0 * z),
        "log p is missing": _sampled(log_p=lambda z, m, v: 0 * z),
        "the sign of log q: it is -½ · (…)": _sampled(lambda z, m, v: -_LOG_Q(z, m, v)),
        "the factor ½ is missing in both densities": lambda *given: 2 * monte_carlo_kl(*given),
        "the factor ½ is missing in log q": _sampled(lambda z, m, v: 2 * _LOG_Q(z, m, v)),
        "the factor ½ is missing in log p": _sampled(log_p=lambda z, m, v: -(z**2)),
        "log q lacks the term logvar": _sampled(_log_q(torch.zeros_like)),
        "the sign of logvar in log q: a wide Gaussian is less dense": _sampled(_log_q(torch.neg)),
        f"log q halves logvar twice: {_HALF}": _sampled(_log_q(lambda v: v / 2)),
        f"the factor ½ is missing on logvar in log q: {_HALF}": _sampled(_log_q(lambda v: 2 * v)),
        "log q has exp(logvar) where logvar belongs": _sampled(_log_q(torch.exp)),
        "log q has exp(logvar / 2) where logvar belongs": _sampled(_log_q(lambda v: (v / 2).exp())),
        f"the factor ½ is missing on the square in log q: {_HALF}": _sampled(_log_q(square=lambda d: 2 * d**2)),
        f"the bracket in log q is missing: {_HALF}": _sampled(_log_q(square=lambda d: -2 * d**2)),
        "the sign of the square in log q: it is subtracted": _sampled(_log_q(square=lambda d: -(d**2))),
        "log q lacks the square, (z - mean)² / var": _sampled(_log_q(square=torch.zeros_like)),
        "log q lacks the square of (z - mean)": _sampled(_log_q(square=torch.positive)),
        "log q divides by the squared variance: square (z - mean) only": _sampled(_log_q(var=lambda v: (2 * v).exp())),
        "log q does not divide the square by the variance, exp(logvar)": _sampled(_log_q(var=torch.ones_like)),
        "log q multiplies the square by the variance: divide by it": _sampled(_log_q(var=lambda v: (-v).exp())),
        "log q divides by logvar: the variance is exp(logvar)": _sampled(_log_q(var=torch.positive)),
        "log q divides by the standard deviation: divide by exp(logvar)": _sampled(_log_q(var=lambda v: (v / 2).exp())),
        "log q forgets the mean: the square is of z - mean": _sampled(lambda z, m, v: -(v + z**2 / v.exp()) / 2),
        f"log q is taken at the noise: both densities are taken at {_Z}": _sampled(_at_the_noise(_LOG_Q)),
        f"log p is taken at the noise: both densities are taken at {_Z}": _sampled(log_p=_at_the_noise(_log_p)),
        "the sign of log p: it is -½ · z², and subtracted": _sampled(log_p=lambda z, m, v: z**2 / 2),
        "log p lacks the square: it is -½ · z²": _sampled(log_p=lambda z, m, v: -z / 2),
        "log p is around the mean, or z lacks it: log p of N(0, I) is -½ · z², with the z of q": _sampled(
            log_p=lambda z, m, v: -((z - m) ** 2) / 2
        ),
        "log p has q's variance: that of N(0, I) is -½ · z²": _sampled(log_p=lambda z, m, v: -(v + z**2 / v.exp()) / 2),
        "summed over the samples: average over them, dimension 0": _sampled(average=lambda x: x.sum(0)),
        "divided by the number of samples less one": _sampled(average=lambda x: x.sum(0) / (len(x) - 1)),
        "averaged over the batch, not over the samples, dimension 0": _sampled(average=lambda x: x.mean(1)),
        "not averaged over the samples, dimension 0": _sampled(average=torch.positive),
        "the median of the samples: average over them": _sampled(average=lambda x: x.median(0).values),
        "the least of the samples: average over them": _sampled(average=lambda x: x.amin(0)),
        "everything is summed: the samples are averaged, (B,)": _sampled(average=torch.sum),
        "flattened from the batch on: samples and images stay, flatten(2)": _sampled(average=lambda x: x.sum(1)),
        "negative estimates are set to 0: leave them": _sampled(average=lambda x: x.clamp(min=0).mean(0)),
        "negative averages are set to 0: leave them": _sampled(average=lambda x: x.mean(0).clamp(min=0)),
        "the average is made positive: an estimate may be negative": _sampled(average=lambda x: x.mean(0).abs()),
        "the differences are squared: average log q - log p itself": _sampled(average=lambda x: (x**2 / 2).mean(0)),
        "the logarithm of the average ratio: average log q - log p": _sampled(average=lambda x: x.exp().mean(0).log()),
        "the ratio of the densities: take its logarithm, log q - log p": _sampled(each=lambda q, p: (q - p).exp()),
        "negative differences are set to 0: sum them as they are": _sampled(each=lambda q, p: (q - p).clamp(min=0)),
        "absolute differences: sum them with their sign": _sampled(each=lambda q, p: (q - p).abs()),
        "each sample is multiplied by its density: average them as they come": (
            _sampled(each=lambda q, p: _density(q) * (q - p))
        ),
    }.items()
)
MONTE_CARLO_MISTAKES += [
    ("the densities themselves are subtracted: subtract their logarithms", _sampled(each=each))
    for each in (lambda q, p: _density(q) - _density(p), lambda q, p: q.exp() - p.exp())
]
MONTE_CARLO_MISTAKES += [
    (_ONE_CONSTANT, _sampled(each=lambda q, p, constant=constant: q - p + constant))
    for constant in (math.log(2 * math.pi) / 2, -math.log(2 * math.pi) / 2)
]
MONTE_CARLO_MISTAKES += wrong_sums(lambda *given: _each_sample(*given).mean(0), _VALUES)
_MEAN, _LOGVAR, _NOISE = probe((4, 3), (4, 3), (2, 4, 3))
_NEAR_THE_PRIOR = (0.1 * _MEAN, 0.1 * _LOGVAR, _NOISE)  # so near that some estimates are negative


_judge_monte_carlo = judge_function(
    monte_carlo_kl,
    [
        probe((3, 4, 5, 2), (3, 4, 5, 2), (6, 3, 4, 5, 2)),
        probe((5, 7), (5, 7), (6, 5, 7)),
        probe((1, 1), (1, 1), (1, 1, 1)),
        _NEAR_THE_PRIOR,
        narrow(_SAMPLES, (2, 3), (2, 3), (4, 2, 3)),
    ],
    MONTE_CARLO_MISTAKES,
    inputs=_SAMPLES,
)
_MONTE_CARLO_CASES = {
    words: (mean, logvar, noise[None])
    for words, (mean, logvar, noise) in {
        "if q is N(0, I), log q - log p is 0, here at 2": one_value(0, 0, 2),
        "with mean 3, logvar 0 and noise 0, at z = 3: log p is -½ · 3²": one_value(3, 0, 0),
        "with mean 0, logvar 2 and noise 0, at z = 0: log q is -½ · 2": one_value(0, 2, 0),
        "with mean 0, logvar 2 and noise 1, at z = exp(1): ½ · (exp(2) - 2 - 1)": one_value(0, 2, 1),
        "with mean 3, logvar 2 and noise -1, at z = 3 - exp(1): ½ · (z² - 2 - 1)": one_value(3, 2, -1),
    }.items()
}


# 02.4


def _pixel(difference: Tensor) -> Tensor:
    return difference.abs().flatten(1).sum(1).mean()


def _average_kl(posterior: Any) -> Any:
    return posterior.kl().mean()


def _loss(
    pixel: Callable[..., Tensor] = _pixel,
    kl: Callable[..., Tensor] = _average_kl,
    total: Callable[..., Any] = lambda pixel, kl, weight, values: pixel + weight * kl,
) -> Callable[..., Any]:
    """Make the loss with another term of the difference or of the posterior, or with another sum of the two."""
    return lambda reconstruction, target, posterior, kl_weight=1e-6: total(
        pixel(reconstruction - target), kl(posterior), kl_weight, target[0].numel()
    )


_UNITS = "the two terms must be reduced alike"
_ONE_NORM = "one norm for the whole batch: sum |reconstruction - target| over C, H, W, then average over the batch"
_SMOOTH = "smooth L1 (Huber) is squared for small differences: take |reconstruction - target|"
_L1 = "the L1 distance, |reconstruction - target| summed over C, H, W, is asked for"
_SUMS = "sum over an image's values, and average over the batch only"
LOSS_MISTAKES = Mistakes(
    {
        f"the pixel term is a mean over C, H, W, the KL a sum: {_UNITS}, else the KL is C·H·W times too strong": _loss(
            lambda d: d.abs().mean()
        ),
        f"the KL is averaged over its values, the pixel term summed: {_UNITS}; posterior.kl() is the sum": _loss(
            kl=lambda q: _average_kl(q) / q.mean[0].numel()
        ),
        f"both terms are means over their values: {_SUMS}": _loss(
            lambda d: d.abs().mean(), lambda q: _average_kl(q) / q.mean[0].numel()
        ),
        f"the whole is divided by C·H·W: {_SUMS}": _loss(total=lambda p, k, w, values: (p + w * k) / values),
        f"the KL is divided by C·H·W, the pixel term is not: {_UNITS}": _loss(total=lambda p, k, w, n: p + w * k / n),
        f"the KL is multiplied by C·H·W, as for a mean: {_UNITS}": _loss(total=lambda p, k, w, n: p + w * k * n),
        "the KL is multiplied by 196,608: sums are asked for": _loss(total=lambda p, k, w, values: p + 196_608 * w * k),
        "summed over the batch: divide by the number of images": _loss(lambda d: d.abs().sum(), lambda q: q.kl().sum()),
        f"the pixel term is a mean over everything, the KL a sum over everything: {_SUMS}": _loss(
            lambda d: d.abs().mean(), lambda q: q.kl().sum()
        ),
        "the pixel term is summed over the batch: divide it by the number of images": _loss(lambda d: d.abs().sum()),
        "the KL is summed over the batch: average it, as the pixel term is": _loss(kl=lambda q: q.kl().sum()),
        "the KL is averaged over the batch twice": _loss(kl=lambda q: _average_kl(q) / len(q.mean)),
        "the pixel term is averaged over the batch twice": _loss(lambda d: _pixel(d) / len(d)),
        "the whole is averaged over the batch twice": _loss(
            lambda d: _pixel(d) / len(d), lambda q: _average_kl(q) / len(q.mean)
        ),
        "divided by the number of channels, not by that of the images": _loss(lambda d: d.abs().sum() / d.shape[1]),
        "the KL of the first image only: average posterior.kl() over the batch": _loss(kl=lambda q: q.kl()[0]),
        "the largest KL of the batch: average posterior.kl()": _loss(kl=lambda q: q.kl().max()),
        "the KL is halved: posterior.kl() has its ½ already": _loss(kl=lambda q: _average_kl(q) / 2),
        "kl is a method: call it, posterior.kl()": _loss(kl=lambda q: q.kl.mean()),
        f"the pixel term is squared (L2): {_L1}": _loss(lambda d: d.square().flatten(1).sum(1).mean()),
        f"the pixel term is half the square: {_L1}": _loss(lambda d: 0.5 * d.square().flatten(1).sum(1).mean()),
        f"the pixel term is a squared mean (F.mse_loss): {_L1}": _loss(lambda d: d.square().mean()),
        f"the pixel term is a Euclidean norm: {_L1}": _loss(lambda d: d.flatten(1).norm(dim=1).mean()),
        "the pixel term is halved: the L1 distance has no ½": _loss(lambda d: _pixel(d) / 2),
        "the absolute value of a sum: take it of every difference": _loss(lambda d: d.flatten(1).sum(1).abs().mean()),
        "the absolute value is missing: errors of different sign cancel": _loss(lambda d: d.flatten(1).sum(1).mean()),
        f"averaged over height and width: {_SUMS}": _loss(lambda d: d.abs().sum(1).mean()),
        f"averaged over the channels: {_SUMS}": _loss(lambda d: d.abs().sum((2, 3)).mean()),
        f"summed over the last dimension only: {_SUMS}": _loss(lambda d: d.abs().sum(-1).mean()),
        _SMOOTH: _loss(lambda d: F.smooth_l1_loss(d, torch.zeros_like(d), reduction="sum") / len(d)),
        f"{_SMOOTH}, and sum it over C, H, W": _loss(lambda d: F.smooth_l1_loss(d, torch.zeros_like(d))),
        "kl_weight is on the pixel term: it belongs to the KL": _loss(total=lambda p, k, w, values: w * p + k),
        "kl_weight is on both terms: it belongs to the KL": _loss(total=lambda p, k, w, values: w * (p + k)),
        "kl_weight is forgotten": _loss(total=lambda p, k, w, values: p + k),
        "kl_weight is ignored: 1e-6 is only its default": _loss(total=lambda p, k, w, values: p + 1e-6 * k),
        "kl_weight is ignored, and no KL is added": _loss(total=lambda p, k, w, values: p),
        "kl_weight divides the KL: it multiplies it": _loss(total=lambda p, k, w, values: p + k / w),
        "kl_weight is added: it multiplies the KL": _loss(total=lambda p, k, w, values: p + k + w),
        "the pixel term has the weight 1 - kl_weight: it has none": _loss(total=lambda p, k, w, n: (1 - w) * p + w * k),
        "the pixel term is missing": _loss(total=lambda p, k, w, values: w * k),
        "the sign of the KL: it is a cost, and added": _loss(total=lambda p, k, w, values: p - w * k),
        "the terms are multiplied: add them": _loss(total=lambda p, k, w, values: p * w * k),
        "two numbers: add the terms": _loss(total=lambda p, k, w, values: torch.stack([p, w * k])),
        "posterior.kl() has one number for each image: average it over the batch": _loss(kl=lambda q: q.kl()),
        "one number for each image: average over the batch": _loss(
            lambda d: d.abs().flatten(1).sum(1), lambda q: q.kl()
        ),
        "for one image only: average both terms over the batch": _loss(
            lambda d: d.abs().sum(), lambda q: q.kl().squeeze()
        ),
        "the reconstruction is limited to [-1, 1] first: compare it as it is": (
            lambda reconstruction, target, posterior, kl_weight=1e-6: kl_vae_loss(
                reconstruction.clamp(-1, 1), target, posterior, kl_weight
            )
        ),
    }.items()
)
LOSS_MISTAKES += [(_ONE_NORM, _loss(norm)) for norm in (torch.norm, lambda d: torch.norm(d) / len(d))]
LOSS_MISTAKES += [
    ("kl_weight has another default: 1e-6 is asked for", lambda r, t, q, w=weight: kl_vae_loss(r, t, q, w))
    for weight in (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 0.0)
]


@recipe
def loss_of(loss: Any, reconstruction: Tensor, target: Tensor, parameters: Tensor, *kl_weight: float) -> Any:
    """Return the loss for the posterior with these parameters."""
    return call(loss, reconstruction, target, DiagonalGaussianDistribution(parameters), *kl_weight)


@recipe
def posterior_after(loss: Any, reconstruction: Tensor, target: Tensor, parameters: Tensor) -> list[Tensor]:
    """Return what the posterior is after the loss is computed."""
    posterior = DiagonalGaussianDistribution(parameters)
    call(loss, reconstruction, target, posterior)
    return [posterior.mean, posterior.logvar, posterior.std, posterior.var]


_LOSS_INPUTS = ("reconstruction", "target", "the posterior", "kl_weight")
_LOSS_PROBES = [
    (*probe((3, 2, 4, 5), (3, 2, 4, 5), (3, 8, 2, 3)), 0.7),
    (*probe((4, 3, 5, 2), (4, 3, 5, 2), (4, 4, 2, 1)), 0.2),
    (*probe((4, 3, 2, 2), (4, 3, 2, 2)), torch.cat([1000 * _MEAN, _LOGVAR], dim=1)[..., None, None]),  # a KL near 1e6
]
_judge_value = judge_function(
    partial(loss_of, kl_vae_loss),
    _LOSS_PROBES,
    through_recipe(loss_of, LOSS_MISTAKES),
    inputs=_LOSS_INPUTS,
    gradients=("reconstruction", "the posterior"),
    through=loss_of,
)


_IMAGE, _PRIOR = torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 1, 1)
_TWO = torch.cat([_IMAGE, _IMAGE])


def _posterior(mean: list[list[float]], logvar: float = 0.0) -> Tensor:
    """Make the parameters of posteriors with these means, one row for each image, and this log-variance."""
    means = torch.tensor(mean)[:, None, None]
    return torch.cat([means, torch.full_like(means, logvar)], dim=1)


_PERFECT = "with a perfect reconstruction kl_weight · KL is left, here"
_PIXEL = "with a posterior N(0, I), whose KL is 0, the pixel term is left, here"
_LOSS_CASES = {
    f"{_PERFECT} 0.5 · 2": (_IMAGE, _IMAGE, _posterior([[2.0]]), 0.5),
    f"{_PERFECT} with mean 0 and logvar 2": (_IMAGE, _IMAGE, _posterior([[0.0]], 2.0), 0.5),
    f"{_PERFECT} of two latent values, 0.5 · (2 + 2)": (_IMAGE, _IMAGE, _posterior([[2.0, 2.0]]), 0.5),
    f"{_PERFECT} of two images with KLs 0 and 2, averaged": (_TWO, _TWO, _posterior([[0.0], [2.0]]), 0.5),
    f"{_PIXEL} |3 - 1| for each of 12 values": (_IMAGE + 3, _IMAGE + 1, _PRIOR, 0.5),
    f"{_PIXEL} |-3 - 1| for each of 12 values": (_IMAGE - 3, _IMAGE + 1, _PRIOR, 0.5),
    f"{_PIXEL} of two images with pixel terms 0 and 12, averaged": (
        torch.cat([_IMAGE, _IMAGE + 1]),
        _TWO,
        _posterior([[0.0], [0.0]]),
        0.5,
    ),
}


def _judge_loss(attempt: Attempt) -> str | None:
    complaint = with_cases(_judge_value, partial(loss_of, kl_vae_loss), _LOSS_CASES, through=loss_of)(attempt)
    if complaint is None:
        given = _LOSS_PROBES[-1]
        before, after = (it.run(posterior_after, *copy.deepcopy(given)) for it in (Local(kl_vae_loss), attempt))
        if not same(before, after):
            return "the value is right, but it changes the posterior: work on copies of its mean, logvar, std and var"
    return complaint


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
        judge=with_cases(_judge_kl, kl_to_standard_normal, _KL_CASES, _SEVERAL),
        mistakes=KL_MISTAKES,
    ),
    Exercise(
        id="02.2",
        title="KL between two Gaussians",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=kl_between,
        in_package=(DiagonalGaussianDistribution.kl,),
        hints=(
            "Two checks on paper: for equal Gaussians it is 0, and with p = N(0, I) it becomes exercise 02.1.",
            "KL(q ‖ p) measures distance and spread of q in units of p's variance: p's variance stands below.",
            "Each value costs ½ · ((mean - other_mean)² / other_var + var / other_var - 1 - logvar + other_logvar).",
        ),
        judge=with_cases(_judge_between, kl_between, _BETWEEN_CASES, _SEVERAL),
        mistakes=BETWEEN_MISTAKES,
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
        judge=with_cases(
            _judge_monte_carlo, monte_carlo_kl, _MONTE_CARLO_CASES, f"{_SEVERAL}, and the samples averaged"
        ),
        mistakes=MONTE_CARLO_MISTAKES,
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
        judge=_judge_loss,
        mistakes=LOSS_MISTAKES,
    ),
)
