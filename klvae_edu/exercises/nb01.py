"""The exercises of notebook 01, the diagonal Gaussian."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal
from torch.nn import functional as F

from klvae_edu.exercises.attempt import Attempt, Recipe, call, explain, recipe, type_name
from klvae_edu.exercises.exercise import Exercise, Judge, Mistakes
from klvae_edu.exercises.judges.functions import Probe, judge_function, judge_parts, probe, same, through_recipe
from klvae_edu.exercises.solutions.nb01 import DiagonalGaussian, nll, reparameterize, split_parameters
from klvae_edu.gaussian import DiagonalGaussianDistribution

NOTEBOOK = "01_diagonal_gaussian"


# 01.1


def _split(
    logvar: Callable[..., Tensor] = lambda half: half.clamp(-30, 20),
    mean: Callable[[Tensor], Tensor] = torch.positive,
    dim: int = 1,
) -> Callable[..., Any]:
    """Make the split with other results of the two halves, or along another dimension."""

    def split(parameters):
        first, second = parameters.chunk(2, dim=dim)
        return mean(first), logvar(second)

    return split


_LIMITS = "the log-variance is clamped, but not to [-30, 20]: look at the limits"
_SQUASHED = "a smooth limit changes every value: clamp(-30, 20) leaves those between the limits as they are"
_AXIS = "it is split along the wrong axis: the channels are dim=1 (of B, 2C, H, W)"
_PIECES = "it unpacks more than two pieces: chunk(2, dim=1) makes two halves, split(2, dim=1) pieces of two channels"
SPLIT_MISTAKES = Mistakes(
    {
        "no clamp: the log-variance must stay in [-30, 20], or exp overflows": _split(torch.positive),
        "the clamp is on the mean: only the log-variance needs it": _split(torch.positive, lambda m: m.clamp(-30, 20)),
        "the mean is clamped too: only the log-variance needs it": _split(mean=lambda m: m.clamp(-30, 20)),
        "values beyond the limits become 0, not the limit": _split(lambda v: v.where((v >= -30) & (v <= 20), 0)),
        "the second result is the variance: return the log-variance itself": _split(lambda v: v.clamp(-30, 20).exp()),
        "the second result is the variance, and not clamped: return the log-variance, in [-30, 20]": _split(torch.exp),
        "the second result is std: return the log-variance itself": _split(lambda v: (v.clamp(-30, 20) / 2).exp()),
        "the clamp is on exp(logvar): clamp the log-variance itself": _split(lambda v: v.exp().clamp(-30, 20)),
        "the second half is the log-variance already: no logarithm": _split(lambda v: v.log().clamp(-30, 20)),
        "the order of the results is swapped: return the mean first": lambda p: split_parameters(p)[::-1],
        "both results are the first half": lambda p: split_parameters(torch.cat([p.chunk(2, dim=1)[0]] * 2, dim=1)),
        "[0] and [1] are images of the batch: split the channels": lambda p: (p[0], p[1].clamp(-30, 20)),
        "the channels are taken alternately, not in halves": lambda p: (p[:, ::2], p[:, 1::2].clamp(-30, 20)),
    }.items()
)
SPLIT_MISTAKES += [(_AXIS, _split(dim=dim)) for dim in (-1, -2, 0, 2)]
SPLIT_MISTAKES += [
    (_LIMITS, _split(lambda v, limits=limits: v.clamp(*limits)))
    for limits in ((-20, 30), (20, -30), (-30, None), (None, 20), (-10, 10), (0, 20), (0, 1))
]
SPLIT_MISTAKES += [
    (_SQUASHED, _split(smooth))
    for smooth in (torch.tanh, torch.sigmoid, F.softplus, lambda v: 20 * v.tanh(), lambda v: 50 * v.sigmoid() - 30)
]


@SPLIT_MISTAKES("the halves are swapped: the mean is the first half of the channels, the log-variance the second")
def split_with_swapped_halves(parameters):
    logvar, mean = parameters.chunk(2, dim=1)
    return mean, logvar.clamp(-30, 20)


@SPLIT_MISTAKES("4 channels are fixed, Stable Diffusion's number: half of them is parameters.shape[1] // 2")
def split_after_four_channels(parameters):
    return parameters[:, :4], parameters[:, 4:].clamp(-30, 20)


@SPLIT_MISTAKES(_PIECES)
def split_into_pieces_of_two(parameters):
    mean, logvar = torch.split(parameters, 2, dim=1)
    return mean, logvar.clamp(-30, 20)


@SPLIT_MISTAKES(_PIECES)
def split_the_batch_into_images(parameters):
    mean, logvar = parameters
    return mean, logvar.clamp(-30, 20)


# The last one is so wide that exp overflows.
_WIDE = (probe((4, 6, 2, 8), scale=25.0), probe((6, 4), scale=25.0), probe((5, 8), scale=100.0))
_judge_halves = judge_function(
    split_parameters,
    _WIDE,
    SPLIT_MISTAKES,
    inputs=("parameters",),
    outputs=("mean", "logvar"),
    gradients=("parameters",),
)


def _judge_split(attempt: Attempt) -> str | None:
    """Name other pieces and other limits by what they are: they are too many for a table."""
    complaint = _judge_halves(attempt)
    if complaint is None or not complaint.startswith(("mean: ", "logvar: ")):
        return complaint
    mean, logvar = attempt.run(call, *_WIDE[0])
    (right_mean, unclamped), channels = _WIDE[0][0].chunk(2, dim=1), _WIDE[0][0].shape[1]
    if not isinstance(mean, Tensor) or not isinstance(logvar, Tensor) or not mean.ndim == logvar.ndim == 4:
        return complaint
    for name, half in (("mean", mean), ("log-variance", logvar)):
        if half.shape[1] == channels:
            return _AXIS
        if 2 * half.shape[1] != channels:
            return f"the {name} has {half.shape[1]} of {channels} channels: it has half, parameters.shape[1] // 2"
    limited = unclamped.clamp(float(logvar.min()), float(logvar.max()))
    return _LIMITS if same(mean, right_mean) and same(logvar, limited) else complaint


# 01.2

SMALL = (1e-12, 1e-10, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)  # numbers that are added for stability


def narrow(names: Sequence[str], *shapes: tuple[int, ...]) -> Probe:
    """Make a probe of Gaussians so narrow that a small number shows which is added to their variance."""
    change = {"logvar": lambda x: x.clamp(-1, 1) - 28, "noise": torch.positive}
    kinds = [name.removeprefix("other_") for name in names]
    return tuple(change.get(kind, lambda x: 1e-5 * x)(x) for kind, x in zip(kinds, probe(*shapes), strict=True))


def gaussian_probes(names: Sequence[str]) -> list[Probe]:
    """Make probes of Gaussians: ordinary ones, wide ones, one with positive numbers only, and narrow ones."""
    ordinary, wide, one, few = ([shape] * len(names) for shape in ((3, 4, 5, 2), (5, 7), (1, 1), (2, 3)))
    positive = tuple(x.abs() for x in probe(*one))  # a logarithm of logvar gives no NaN here
    return [probe(*ordinary), probe(*wide, scale=6.0), positive, narrow(names, *few)]


def one_value(*numbers: float) -> Probe:
    """Make a probe of one image with one value."""
    return tuple(torch.full((1, 1, 1, 1), float(number)) for number in numbers)


def with_cases(
    judge: Judge, reference: Callable[..., Any], cases: Mapping[str, Probe], several: str = "", through: Recipe = call
) -> Judge:
    """Make a judge that explains other wrong values by the first simple case, of one value, that is wrong.

    `cases` says what holds in each, and has its probe; `several` says where to look if all are right.
    """

    def explained(attempt: Attempt) -> str | None:
        complaint = judge(attempt)
        if complaint is None or not complaint.startswith("the shape is right, the values are not"):
            return complaint
        for words, given in cases.items():
            right = reference(*given)
            try:
                found = attempt.run(through, *copy.deepcopy(given))
            except Exception:
                return complaint
            number = isinstance(found, Tensor) and found.numel() == 1
            if number and not math.isclose(found, right, rel_tol=1e-4, abs_tol=1e-6):
                return f"{words}: {float(right):.4g} is expected, and yours is {float(found):.4g}"
        return f"for one value it is right, for several it is not: {several}" if several else complaint

    return explained


def _scaled(sigma: Callable[..., Any]) -> Callable[..., Tensor]:
    """Make the sample with another standard deviation, a function of the log-variance."""
    return lambda mean, logvar, noise: mean + sigma(logvar) * noise


_ONE_SIGMA = "one deviation for many values: every value has its own, exp(logvar / 2), without a mean or a sum"
_SOFTPLUS = "softplus makes another deviation: logvar is a logarithm, so take exp(logvar / 2)"
_EPS = "a small number is added, which changes small variances: exp is never 0, so leave it out"
SAMPLE_MISTAKES = Mistakes(
    {
        "the noise is multiplied by the variance: take the standard deviation, exp(logvar / 2)": _scaled(torch.exp),
        "the noise is multiplied by logvar itself: the deviation is exp(logvar / 2)": _scaled(torch.positive),
        "exp is missing: the deviation is exp(logvar / 2)": _scaled(lambda v: v / 2),
        "the root is taken twice: exp(logvar / 2) is the deviation already": _scaled(lambda v: (v / 4).exp()),
        "the sign in the exponent, or a division: the deviation is exp(+logvar / 2)": _scaled(lambda v: (-v / 2).exp()),
        "the sign in the exponent, and no ½: the deviation is exp(+logvar / 2)": _scaled(lambda v: (-v).exp()),
        "the ½ stands outside of exp: the deviation is exp(logvar / 2)": _scaled(lambda v: v.exp() / 2),
        "sqrt of logvar: the root is of the variance, exp(logvar)": _scaled(torch.sqrt),
        "logarithm of logvar: it is a logarithm already, and the deviation is exp(logvar / 2)": _scaled(torch.log),
        "logvar is doubled in the exponent: the root halves it, exp(logvar / 2)": _scaled(lambda v: (2 * v).exp()),
        "2 is the base of the power: the deviation is exp(logvar / 2)": _scaled(lambda v: 2 ** (v / 2)),
        "exp is taken of ½ only: logvar belongs into it, exp(logvar / 2)": _scaled(lambda v: math.exp(0.5) * v),
        "math.exp takes one number only: torch.exp takes a tensor": _scaled(lambda v: math.exp(0.5 * v)),
        "@ is a matrix product: every value has its own deviation, *": lambda m, v, n: m + (v / 2).exp() @ n,
        "the mean is missing: the noise must be moved to it": lambda m, v, n: (v / 2).exp() * n,
        "the mean is subtracted: the noise is moved to it, so add it": lambda m, v, n: (v / 2).exp() * n - m,
        "the noise is missing: this is the mean": lambda m, v, n: m,
        "the noise is missing: the deviation multiplies it before the mean is added": lambda m, v, n: m + (v / 2).exp(),
        "the deviation alone: multiply the noise by it, and add the mean": lambda m, v, n: (v / 2).exp(),
        "the noise multiplies the mean: it multiplies the deviation": lambda m, v, n: (v / 2).exp() + m * n,
        "mean and noise are exchanged: the deviation multiplies the noise": lambda m, v, n: reparameterize(n, v, m),
        "mean and logvar are exchanged: the deviation is exp(logvar / 2)": lambda m, v, n: reparameterize(v, m, n),
        "the deviation is added: it multiplies the noise": lambda m, v, n: m + (v / 2).exp() + n,
        "the noise is not scaled: multiply it by the standard deviation": lambda m, v, n: m + n,
        "the deviation multiplies the mean as well: look at the brackets": lambda m, v, n: (m + n) * (v / 2).exp(),
        "the noise stands inside of exp: exp(logvar / 2) multiplies it": lambda m, v, n: m + (v / 2 * n).exp(),
        "the sign of the noise: it is added to the mean": lambda m, v, n: reparameterize(m, v, -n),
        "the noise is standardised: take it as it comes": lambda m, v, n: m + (v / 2).exp() * (n - n.mean()) / n.std(),
        "one noise for the whole batch: every value has its own": lambda m, v, n: reparameterize(m, v, n[:1]),
        "summed over dimension 1: the sample has the shape of the mean": lambda m, v, n: reparameterize(m, v, n).sum(1),
    }.items()
)
SAMPLE_MISTAKES += [
    (_ONE_SIGMA, _scaled(sigma))
    for sigma in (
        lambda v: (v / 2).exp().mean(),
        lambda v: (v.mean() / 2).exp(),
        lambda v: (v / 2).exp().mean(tuple(range(1, v.ndim)), keepdim=True),
        lambda v: (v / 2).exp().mean(tuple(range(2, v.ndim)), keepdim=True),
    )
]
SAMPLE_MISTAKES += [(_SOFTPLUS, _scaled(sigma)) for sigma in (F.softplus, lambda v: F.softplus(v / 2))]
SAMPLE_MISTAKES += [(_EPS, _scaled(lambda v, eps=eps: (v.exp() + eps).sqrt())) for eps in SMALL]
SAMPLE_MISTAKES += [(_EPS, _scaled(lambda v, eps=eps: (v / 2).exp() + eps)) for eps in SMALL[2:]]
_SAMPLE_INPUTS = ("mean", "logvar", "noise")
_judge_value = with_cases(
    judge_function(
        reparameterize,
        [*gaussian_probes(_SAMPLE_INPUTS), probe((6,), (6,), (6,))],
        SAMPLE_MISTAKES,
        inputs=_SAMPLE_INPUTS,
        gradients=("mean", "logvar"),
    ),
    reparameterize,
    {
        "with noise 0 the sample is the mean, here -20, whatever logvar is": one_value(-20, 1, 0),
        "with mean 0 and logvar 0, which is σ = 1, the sample is the noise, here -3": one_value(0, 0, -3),
        "with logvar 0 mean and noise, here -2 and 3, are added": one_value(-2, 0, 3),
        **{
            f"with mean 0 and logvar {v} the noise, here -1, is multiplied by exp({v} / 2)": one_value(0, v, -1)
            for v in (2, -2, 12, -25)
        },
    },
    "each has its own mean, deviation and noise",
)


# 01.3

_NLL_INPUTS = ("mean", "logvar", "sample")
EACH_IMAGE = "one number for each image is asked for, (B,)"


def wrong_sums(
    each: Callable[..., Tensor], every: str = "sum over every dimension but the batch, flatten(1).sum(1)"
) -> Mistakes:
    """Make the mistakes in a sum over all but the batch. `each` computes the summands, (B, C, …)."""
    sums: dict[str, Callable[[Tensor], Tensor]] = {
        "a mean over the values of an image: sum over independent values": lambda x: x.flatten(1).mean(1),
        f"summed over the batch as well: {EACH_IMAGE}": torch.sum,
        f"averaged over the batch as well: {EACH_IMAGE}": lambda x: x.flatten(1).sum(1).mean(),
        f"averaged over everything: {EACH_IMAGE}, summed over its values": torch.mean,
        f"not summed: {EACH_IMAGE}": torch.positive,
        "divided by the number of images: each image has a sum of its own": lambda x: x.flatten(1).sum(1) / len(x),
        "in bits, by a division by log 2: nats are asked for": lambda x: x.flatten(1).sum(1) / math.log(2),
        f"the dimensions are fixed, which fails for inputs (B, C): {every}": lambda x: x.sum((1, 2, 3)),
        f"summed over the channels only: {every}": lambda x: x.sum(1),
        f"summed over the last dimension only: {every}": lambda x: x.sum(-1),
        f"summed over height and width only, not over the channels: {every}": lambda x: x.sum((2, 3)),
        f"summed over the last two dimensions only: {every}": lambda x: x.sum((-1, -2)),
        f"averaged over height and width: {every}": lambda x: x.sum(1).mean((1, 2)),
        f"averaged over the channels: {every}": lambda x: x.mean(1).flatten(1).sum(1),
        f"summed over the batch, and over it only: {every}": lambda x: x.sum(0),
        f"flattened, but summed over the batch: {every}": lambda x: x.flatten(1).sum(0),
        f"averaged over the batch only: {every}": lambda x: x.mean(0),
        f"summed over the channels only, and averaged over the batch: {every}": lambda x: x.sum(1).mean(0),
        f"summed over the channels only, and averaged over all others: {every}": lambda x: x.sum(1).mean(),
        f"keepdim, or a slice, leaves the shape (B, 1): {EACH_IMAGE}": lambda x: x.flatten(1).sum(1, keepdim=True),
        f"keepdim leaves dimensions of size 1: {EACH_IMAGE}": lambda x: x.sum(tuple(range(1, x.ndim)), keepdim=True),
        "squeeze takes the batch away, too, if it is one image: leave it out": lambda x: x.flatten(1).sum(1).squeeze(),
    }
    return Mistakes((message, lambda *inputs, total=total: total(each(*inputs))) for message, total in sums.items())


_LOG_2PI = math.log(2 * math.pi)


def _nll(
    constant: float = _LOG_2PI,
    log: Callable[[Tensor], Tensor] = torch.positive,
    square: Callable[[Tensor], Tensor] = torch.square,
    var: Callable[..., Tensor] = torch.exp,
) -> Callable[..., Tensor]:
    """Make ½ · Σ (log 2π + logvar + (sample - mean)² / var) with another constant or other functions."""
    return lambda mean, logvar, sample: (
        0.5 * (constant + log(logvar) + square(sample - mean) / var(logvar)).flatten(1).sum(1)
    )


def _weighted(constant: float, log: float, square: float) -> Callable[..., Tensor]:
    """Make the sum of the three terms, each with a factor of its own."""
    return _nll(2 * constant * _LOG_2PI, lambda logvar: 2 * log * logvar, lambda d: 2 * square * d**2)


def _terms(mean: Tensor, logvar: Tensor, sample: Tensor) -> Tensor:
    return _LOG_2PI + logvar + (sample - mean) ** 2 / logvar.exp()


def _density(mean: Tensor, logvar: Tensor, sample: Tensor) -> Tensor:
    return torch.exp(-0.5 * _terms(mean, logvar, sample)).flatten(1)


_LEAST = "a small number is added, or a limit set, as F.gaussian_nll_loss does unasked: that changes small variances"
_BRACKET = "it belongs to all three terms, so put a bracket around them"
_NOT_SQUARED = "the square of (sample - mean) is forgotten"
_ABSOLUTE = "the absolute value of (sample - mean): it is squared"
NLL_MISTAKES = Mistakes(
    {
        "the factor ½ is missing": _weighted(1, 1, 1),
        f"the factor ½ is on the square only: {_BRACKET}": _weighted(1, 1, 0.5),
        f"the factor ½ is on logvar only: {_BRACKET}": _weighted(1, 0.5, 1),
        f"the factor ½ is on log 2π only: {_BRACKET}": _weighted(0.5, 1, 1),
        f"the factor ½ is missing on the square: {_BRACKET}": _weighted(0.5, 0.5, 1),
        f"the factor ½ is missing on logvar: {_BRACKET}": _weighted(0.5, 1, 0.5),
        f"the factor ½ is missing on log 2π: {_BRACKET}": _weighted(1, 0.5, 0.5),
        "the square is halved twice: one ½ in front of the bracket is enough": _weighted(0.5, 0.5, 0.25),
        "logvar is halved twice: one ½ in front of the bracket is enough": _weighted(0.5, 0.25, 0.5),
        "log 2π is halved twice: one ½ in front of the bracket is enough": _weighted(0.25, 0.5, 0.5),
        "log π stands where log 2π belongs": _nll(math.log(math.pi)),
        "2π stands where log 2π belongs": _nll(2 * math.pi),
        "log 2 · π stands where log 2π belongs: the product is inside of the logarithm": _nll(math.log(2) * math.pi),
        "2 · log π stands where log 2π belongs: the product is inside of the logarithm": _nll(2 * math.log(math.pi)),
        "log10 stands where the natural logarithm belongs, math.log": _nll(math.log10(2 * math.pi)),
        "log 2π is missing, the constant of each value": _nll(0),
        "log 2π is counted once for an image: every value has its own": lambda *g: _nll(0)(*g) + _LOG_2PI / 2,
        "log 2π is counted for 4 · 32 · 32 values, not for each": lambda *g: _nll(0)(*g) + 2048 * _LOG_2PI,
        "the term logvar is missing": _nll(log=torch.zeros_like),
        "the sign of logvar: a wide Gaussian is less dense, so that it adds to the -log": _nll(log=torch.neg),
        "exp(logvar) stands where logvar belongs": _nll(log=torch.exp),
        "exp(logvar / 2) stands where logvar belongs": _nll(log=lambda v: (v / 2).exp()),
        "the logarithm of logvar is taken: it is a logarithm already, log σ²": _nll(log=torch.log),
        "the square is divided by the standard deviation: divide by exp(logvar)": _nll(var=lambda v: (v / 2).exp()),
        "the square is divided by var²: square (sample - mean) only": _nll(var=lambda v: (2 * v).exp()),
        "the square is multiplied by the variance: divide by it": _nll(var=lambda v: (-v).exp()),
        "the square is divided by logvar: the variance is exp(logvar)": _nll(var=torch.positive),
        "the square is not divided by the variance, exp(logvar)": _nll(var=torch.ones_like),
        _NOT_SQUARED: _nll(square=torch.positive),
        _ABSOLUTE: _nll(square=torch.abs),
        "the sign of the square: it adds to the -log": _nll(square=lambda d: -(d**2)),
        "the square is missing: only a part without the sample is left": _nll(square=torch.zeros_like),
        "only the square: log 2π and logvar belong to the density, too": _nll(0, torch.zeros_like),
        "the log-variance is ignored, as if it were 0": lambda mean, logvar, sample: nll(mean, 0 * logvar, sample),
        "the squared distance alone: variance and log 2π are missing": _nll(0, torch.zeros_like, var=torch.ones_like),
        "this is the entropy, which knows no sample": _nll(_LOG_2PI + 1, square=torch.zeros_like),
        "the mean is not subtracted from the sample": lambda mean, logvar, sample: nll(0 * mean, logvar, sample),
        "the mean is added: the square is of the difference": lambda mean, logvar, sample: nll(-mean, logvar, sample),
        "exp(logvar) is taken for the deviation: that is exp(logvar / 2)": lambda m, v, s: nll(m, 2 * v, s),
        "logvar is taken for the variance: that is exp(logvar)": lambda m, v, s: nll(m, v.log(), s),
        "the sign: this is the log-likelihood, the negative one is asked for": lambda *gaussian: -nll(*gaussian),
        "the logarithm of a product, 0 for a whole latent: sum logarithms": lambda *g: -_density(*g).prod(1).log(),
        "the logarithm of a sum of densities: sum their logarithms": lambda *g: -_density(*g).sum(1).log(),
    }.items()
)
NLL_MISTAKES += [
    (_NOT_SQUARED, _nll(square=torch.positive, var=lambda v: (v / 2).exp())),
    (_ABSOLUTE, _nll(square=torch.abs, var=lambda v: (v / 2).exp())),
    *((_LEAST, lambda m, v, s, eps=eps: nll(m, v.clamp(min=math.log(eps)), s)) for eps in SMALL),
    *((_LEAST, _nll(var=lambda v, eps=eps: v.exp() + eps)) for eps in SMALL),
    *((_LEAST, lambda mean, logvar, sample, eps=eps: nll(mean, (logvar.exp() + eps).log(), sample)) for eps in SMALL),
]
NLL_MISTAKES += wrong_sums(lambda *gaussian: _terms(*gaussian) / 2)
NLL_MISTAKES += [
    ("the density itself: sum the values' logarithms instead", lambda *g, total=total: total(_density(*g)))
    for total in (lambda x: x.sum(1), lambda x: -x.sum(1), lambda x: x.prod(1), lambda x: x.mean(1))
]


@NLL_MISTAKES("the squares are subtracted, mean² from sample²: the square is of the difference, (sample - mean)²")
def nll_of_the_difference_of_squares(mean, logvar, sample):
    return 0.5 * (_LOG_2PI + logvar + (sample**2 - mean**2) / logvar.exp()).flatten(1).sum(1)


@NLL_MISTAKES("summed before it is squared: square every value's own difference")
def nll_of_summed_differences(mean, logvar, sample):
    scaled = ((sample - mean) / torch.exp(logvar / 2)).flatten(1)
    return 0.5 * (scaled.sum(1) ** 2 + (_LOG_2PI + logvar).flatten(1).sum(1))


@NLL_MISTAKES("this is the KL to N(0, I), which knows no sample: take the density at the sample")
def nll_as_kl(mean, logvar, sample):
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).flatten(1).sum(1)


@NLL_MISTAKES("F.gaussian_nll_loss averages over everything, and leaves log 2π out, unless you tell it otherwise")
def nll_by_the_library(mean, logvar, sample):
    return F.gaussian_nll_loss(mean, sample, logvar.exp())


@NLL_MISTAKES("Normal takes the standard deviation, exp(logvar / 2), and not logvar")
def nll_of_normal_with_logvar(mean, logvar, sample):
    return -Normal(mean, logvar).log_prob(sample).flatten(1).sum(1)


_LATENT = (1, 4, 32, 32)  # so large that a product of densities is 0
_judge_nll = with_cases(
    judge_function(
        nll, [*gaussian_probes(_NLL_INPUTS), probe(_LATENT, _LATENT, _LATENT)], NLL_MISTAKES, inputs=_NLL_INPUTS
    ),
    nll,
    {
        "at the mean of N(0, 1) ½ · log 2π is left": one_value(0, 0, 0),
        "at the mean, here 2, of a Gaussian with logvar 0 ½ · log 2π is left": one_value(2, 0, 2),
        "at 20, for N(0, 1): ½ · (log 2π + 20²)": one_value(0, 0, 20),
        "at 3, for mean 1 and logvar 0: ½ · (log 2π + (3 - 1)²)": one_value(1, 0, 3),
        "at 3, for mean 0 and logvar 2: ½ · (log 2π + 2 + 3² / exp(2))": one_value(0, 2, 3),
        "at -3, for mean 1 and logvar -1: ½ · (log 2π - 1 + (-3 - 1)² / exp(-1))": one_value(1, -1, -3),
        **{
            f"at the mean, with logvar {v}, ½ · (log 2π + logvar) is left": one_value(0, v, 0) for v in (2, 12, -6, -25)
        },
    },
    "each has its own terms, and all of an image are summed",
)


# 01.4


def _holding(**attributes: Callable[..., Any]) -> type:
    """Make the class with other attributes, functions of the two halves of its parameters."""

    class Gaussian(DiagonalGaussian):
        def __init__(self, parameters, deterministic=False):
            super().__init__(parameters, deterministic)
            for name, value in attributes.items():
                setattr(self, name, value(*parameters.chunk(2, dim=1)))

    return Gaussian


def _doing(**methods: Any) -> type:
    """Make the class with other methods."""
    return type("Gaussian", (DiagonalGaussian,), methods)


def _drawing(sample: Callable[[Any, Any], Any]) -> type:
    """Make the class with another sample, a function of the object and of the generator."""
    return _doing(sample=lambda self, generator=None: sample(self, generator))


def _normal(posterior, generator):
    mean = posterior.mean
    return torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)


def _using(sample: Callable[[Any, Tensor], Any]) -> type:
    """Make the class with another sample, a function of the object and of normal noise."""
    return _drawing(lambda self, generator: sample(self, _normal(self, generator)))


def _with_noise(noise: Callable[[Any, Any], Any]) -> type:
    """Make the class with another noise, a function of the object and of the generator."""
    return _drawing(lambda self, generator: self.mean + self.std * noise(self, generator))


def _deterministic_nll(zeros: Callable[[Any, Tensor], Any]) -> type:
    """Make the class with another result of nll where it is deterministic."""

    class Gaussian(DiagonalGaussian):
        def nll(self, sample, dims=(1, 2, 3)):
            return zeros(self, sample) if self.deterministic else super().nll(sample, dims)

    return Gaussian


_CLAMP = "the log-variance is not clamped to [-30, 20] before it is used"
_IGNORED = "deterministic is ignored: the standard deviation and the variance must be zero"
_IN_PLACE = "work on a copy, without operations in place such as add_ or +="
_NO_GRADIENT = "no gradient reaches the parameters: look for detach, no_grad, .data or a new torch.tensor"
_NORMAL = "the values are right, but no gradient reaches mean and log-variance, as behind torch.normal"
_ZEROS = "nll() with deterministic=True: expected zeros of shape (B,), one number for each image; got"
CLASS_MISTAKES = Mistakes(
    {
        "mean: it is the second half of the channels, not the first": _holding(mean=lambda m, v: v),
        "mean: tanh limits it: it is the first half as it is": _holding(mean=lambda m, v: m.tanh()),
        "mean of large values: it is clamped: only logvar needs that": _holding(mean=lambda m, v: m.clamp(-30, 20)),
        "logvar: it is the first half of the channels, not the second": _holding(logvar=lambda m, v: m),
        "logvar: this is the variance: does exp_ overwrite the log-variance?": _holding(logvar=lambda m, v: v.exp()),
        "logvar: this is half of it, log σ: log σ² is asked for": _holding(logvar=lambda m, v: v / 2),
        "logvar: the second half is the log-variance already: no logarithm": _holding(logvar=lambda m, v: v.log()),
        f"logvar of large values: {_CLAMP}": _holding(logvar=lambda m, v: v),
        "std: this is the variance: the deviation is exp(logvar / 2)": _holding(std=lambda m, v: v.exp()),
        "std: this is logvar: the deviation is exp(logvar / 2)": _holding(std=lambda m, v: v),
        "std: this is logvar / 2: the deviation is exp(logvar / 2)": _holding(std=lambda m, v: v / 2),
        "std: this is the root of logvar: the deviation is exp(logvar / 2)": _holding(std=lambda m, v: v.sqrt()),
        "std: the root is taken twice: the deviation is exp(logvar / 2)": _holding(std=lambda m, v: (v / 4).exp()),
        "std: the sign in the exponent: exp(+logvar / 2)": _holding(std=lambda m, v: (-v / 2).exp()),
        "std: the ½ stands outside of exp": _holding(std=lambda m, v: v.exp() / 2),
        f"std of large values: {_CLAMP}": _holding(std=lambda m, v: (v / 2).exp()),
        "var: this is the standard deviation: the variance is exp(logvar)": _holding(var=lambda m, v: (v / 2).exp()),
        "var: this is logvar: the variance is exp(logvar)": _holding(var=lambda m, v: v),
        "var: this is the squared variance: the variance is exp(logvar)": _holding(var=lambda m, v: (2 * v).exp()),
        "var: this is the fourth root of it: the variance is exp(logvar)": _holding(var=lambda m, v: (v / 4).exp()),
        f"var of large values: {_CLAMP}": _holding(var=lambda m, v: v.exp()),
        f"var with deterministic=True: {_IGNORED}": _holding(var=lambda m, v: v.clamp(-30, 20).exp()),
        "mode(): torch.mode looks for the most frequent value: take the mean": _doing(
            mode=lambda d: d.mean.mode().values
        ),
        "mode(): that is of a log-normal distribution: take the mean": _doing(mode=lambda d: (d.mean - d.var).exp()),
        "mode(): one number for all: every value has its own, self.mean": _doing(mode=lambda d: d.mean.mean()),
        "mode(): it is a property: write a method, without @property": _doing(mode=property(lambda d: d.mean)),
        "mode(): this is logvar: the most likely value is the mean": _doing(mode=lambda d: d.logvar),
        "mode(): this is std: the most likely value is the mean": _doing(mode=lambda d: d.std),
        "mode(): this is 0: the most likely value is the mean": _doing(mode=lambda d: torch.zeros_like(d.mean)),
        "nll() with other dims: dims is ignored: sum over the dimensions it names": _doing(
            nll=lambda d, sample, dims=(1, 2, 3): DiagonalGaussian.nll(d, sample, [*range(1, sample.ndim)])
        ),
        "sample(): it returns the mean: no noise is added": _using(lambda d, noise: d.mean),
        "sample(): the mean is not added": _using(lambda d, noise: d.std * noise),
        "sample(): the noise is multiplied by var: take std": _using(lambda d, noise: d.mean + d.var * noise),
        "sample(): the noise is multiplied by logvar: take std": _using(lambda d, noise: d.mean + d.logvar * noise),
        "sample(): the noise is not multiplied by std": _using(lambda d, noise: d.mean + noise),
        "sample(): the noise alone: multiply it by std, and add the mean": _using(lambda d, noise: noise),
        "sample(): the same noise is used several times": _using(lambda d, noise: d.mean + d.std * noise[:1]),
        f"sample(): it changes self.mean: {_IN_PLACE}": _using(lambda d, noise: d.mean.add_(d.std * noise)),
        f"sample(): it changes self.std: {_IN_PLACE}": _using(lambda d, noise: d.mean + d.std.mul_(noise)),
        f"sample(): {_NO_GRADIENT}": _using(lambda d, noise: (d.mean + d.std * noise).detach()),
        f"sample(): {_NORMAL}": _drawing(lambda d, generator: torch.normal(d.mean, d.std, generator=generator)),
        "sample(): no gradient reaches the log-variance: is std detached?": _using(
            lambda d, noise: d.mean + d.std.detach() * noise
        ),
        "sample() with deterministic=True: it must be the mean: multiply the noise by self.std, then 0": _using(
            lambda d, noise: d.mean + torch.exp(d.logvar / 2) * noise
        ),
        "sample(): without a generator it returns the mean": _with_noise(lambda d, g: _normal(d, g) if g else 0),
        "sample(): the generator is ignored: hand it to torch.randn": _with_noise(
            lambda d, g: torch.randn_like(d.mean)
        ),
        "sample(): the noise is always the same: it must depend on the generator": _with_noise(
            lambda d, generator: _normal(d, torch.Generator().manual_seed(0))
        ),
        "sample(): without a generator, two samples are equal: draw new noise each time": _with_noise(
            lambda d, generator: _normal(d, generator or torch.Generator().manual_seed(0))
        ),
        "sample(): torch.manual_seed sets the seed of all cells below: draw from the generator": _with_noise(
            lambda d, generator: _normal(d, generator or torch.manual_seed(0))
        ),
        "sample(): the noise has limits, 0.0 and 1.0, as torch.rand: draw it from N(0, I), torch.randn": _with_noise(
            lambda d, generator: torch.rand(d.mean.shape, generator=generator)
        ),
        "sample(): for parameters in bfloat16 it is torch.float32: draw the noise with the dtype of the mean": (
            _with_noise(lambda d, generator: torch.randn(d.mean.shape, generator=generator))
        ),
        "sample(): it fails for parameters on another device: draw the noise on the device of the mean": _with_noise(
            lambda d, generator: torch.randn(d.mean.shape, generator=generator, dtype=d.mean.dtype)
        ),
        f"{_ZEROS} infinity or NaN": _deterministic_nll(lambda self, sample: (sample / self.var).sum((1, 2, 3))),
        f"{_ZEROS} zeros of shape (1,)": _deterministic_nll(lambda self, sample: torch.zeros(1)),
        f"{_ZEROS} zeros of shape (3, 4, 5, 2)": _deterministic_nll(lambda self, sample: torch.zeros_like(sample)),
        f"{_ZEROS} whole numbers of shape (3,)": _deterministic_nll(lambda d, sample: torch.zeros(len(sample)).long()),
        f"{_ZEROS} 0": _deterministic_nll(lambda self, sample: 0),
        f"{_ZEROS} other values": _deterministic_nll(lambda self, sample: nll(self.mean, self.logvar, sample)),
    }.items()
)
CLASS_MISTAKES += [
    (f"{name}: {_EPS}", _holding(**{name: lambda m, v, eps=eps, power=power: (v.exp() + eps) ** power}))
    for eps in SMALL
    for name, power in (("std", 0.5), ("var", 1))
]


@CLASS_MISTAKES(f"std with deterministic=True: {_IGNORED}")
class NeverDeterministic(DiagonalGaussian):
    def __init__(self, parameters, deterministic=False):
        super().__init__(parameters)


@CLASS_MISTAKES("std: it is 0 where deterministic is False; zeros are for deterministic=True")
class DeterministicByDefault(DiagonalGaussian):
    def __init__(self, parameters, deterministic=True):
        super().__init__(parameters, deterministic)


@CLASS_MISTAKES("std with deterministic=True: it is 1, as for logvar 0: it must be 0")
class OfVarianceOne(DiagonalGaussian):
    def __init__(self, parameters, deterministic=False):
        super().__init__(parameters)
        if deterministic:
            self.std = self.var = torch.ones_like(self.mean)


@CLASS_MISTAKES("__init__: it draws random numbers: draw the noise in sample(), anew for every sample")
class NoiseDrawnOnce(DiagonalGaussian):
    def __init__(self, parameters, deterministic=False):
        super().__init__(parameters, deterministic)
        self.noise = torch.randn_like(self.mean)

    def sample(self, generator=None):
        return self.mean + self.std * self.noise


_MODERATE = (probe((3, 8, 5, 2)), probe((5, 6)))
_LARGE = (probe((4, 6, 2, 8), scale=25.0),)
_NARROW = narrow(_NLL_INPUTS, *[(2, 3, 4, 2)] * 3)
_NARROW_PARAMETERS = torch.cat(_NARROW[:2], dim=1)


@recipe
def attribute_of(cls: Any, parameters: Tensor, name: str, deterministic: bool = False) -> Any:
    """Return an attribute of the posterior."""
    posterior = call(cls, parameters, True) if deterministic else call(cls, parameters)
    return call(getattr, posterior, name)


@recipe
def method_of(cls: Any, parameters: Tensor, *arguments: Any, name: str, deterministic: bool = False) -> Any:
    """Return what a method of the posterior returns for these arguments."""
    return call(attribute_of(cls, parameters, name, deterministic), *arguments)


def _judge_values(part: str, probes: Sequence[Probe], look: Recipe) -> Judge:
    """Make a judge of classes by one part of them. It knows the mistakes whose messages begin with the part's name."""
    start = f"{part}: "
    named = [(message.removeprefix(start), cls) for message, cls in CLASS_MISTAKES if message.startswith(start)]
    if part == "nll()":
        nlls = [
            _doing(nll=lambda d, s, dims=(1, 2, 3), code=code: code(d.mean, d.logvar, s)) for _, code in NLL_MISTAKES
        ]
        named += zip([message for message, _ in NLL_MISTAKES], nlls, strict=True)
    return judge_function(
        partial(look, DiagonalGaussian),
        probes,
        through_recipe(look, named),
        inputs=("parameters", "sample", "dims"),
        gradients=() if "deterministic" in part else ("parameters",),  # a root of 0 has none
        through=look,
    )


@recipe
def draws_random_numbers(cls: Any, parameters: Tensor) -> bool:
    """Build the posterior, and tell whether this changes the random state."""
    before = torch.get_rng_state()
    call(cls, parameters.clone())
    return not torch.equal(before, torch.get_rng_state())


def _judge_init(attempt: Attempt) -> str | None:
    if attempt.run(draws_random_numbers, _MODERATE[0][0]):
        return "it draws random numbers: draw the noise in sample(), anew for every sample"
    return None


@recipe
def drawn(cls: Any, parameters: Tensor, seeds: Sequence[int | None], global_seed: int = 0) -> dict[str, Any]:
    """Draw samples, each from a generator of its own with this seed or from none; then look at the posterior."""
    torch.manual_seed(global_seed)
    posterior = call(cls, parameters.clone())
    given = [() if seed is None else (torch.Generator().manual_seed(seed),) for seed in seeds]
    return {
        "samples": [call(posterior.sample, *it) for it in given],
        "attributes": {name: getattr(posterior, name) for name in ("mean", "logvar", "std", "var")},
        "seeded": torch.initial_seed() != global_seed,
    }


def _judge_sample(attempt: Attempt) -> str | None:
    """By statistics, so that any way to draw the noise is fine."""
    parameters = probe((4, 6, 40, 40))[0]
    truth = DiagonalGaussianDistribution(parameters)
    found = attempt.run(drawn, parameters, [1, 2, None, None], 7)
    sample, other, *free = found["samples"]
    if not isinstance(sample, Tensor) or sample.shape != truth.mean.shape:
        got = tuple(sample.shape) if isinstance(sample, Tensor) else type_name(sample)
        return f"expected a Tensor of shape {tuple(truth.mean.shape)}, got {got}"
    if same(sample, truth.mean):
        return "it returns the mean: no noise is added"
    for name, value in found["attributes"].items():
        if not same(value, getattr(truth, name)):
            return f"it changes self.{name}: {_IN_PLACE}"
    if found["seeded"]:
        return "torch.manual_seed sets the seed of all cells below: draw from the generator"
    if not torch.equal(sample, attempt.run(drawn, parameters, [1], 8)["samples"][0]):
        return "the generator is ignored: hand it to torch.randn"
    if torch.equal(sample, other):
        return "the noise is always the same: it must depend on the generator"
    if same(free[0], truth.mean):
        return "without a generator it returns the mean"
    if torch.equal(*free):
        return "without a generator, two samples are equal: draw new noise each time"
    row, expected = attempt.run(drawn, *_MODERATE[1], [1])["samples"][0], (5, 3)
    if not isinstance(row, Tensor) or row.shape != expected:
        return f"it has another shape than the mean if that is {expected}: draw the noise with the shape of the mean"
    return _judge_noise(sample, truth) or _judge_sample_gradient(attempt) or _judge_sample_dtype_and_device(attempt)


def _judge_noise(sample: Tensor, truth: DiagonalGaussianDistribution) -> str | None:
    offset = sample - truth.mean
    noise = offset / truth.std
    if any(same(noise.select(dim, 0), noise.select(dim, 1)) for dim in range(4)):
        return "the same noise is used several times"
    centred = (noise - noise.mean()) / noise.std()
    if centred.abs().max() < 3:  # of 19,200 normal numbers 50 are beyond
        limits = f"{noise.min():.1f} and {noise.max():.1f}"
        return f"the noise has limits, {limits}, as torch.rand: draw it from N(0, I), torch.randn"
    explained = {
        "the noise is multiplied by var: take std": offset / truth.var,
        "the noise is multiplied by logvar: take std": offset / truth.logvar,
        "the noise is not multiplied by std": offset,
        "the mean is not added": sample / truth.std,
        "the noise alone: multiply it by std, and add the mean": sample,
    }
    for message, values in explained.items():
        if not _is_standard(noise) and _is_standard(values):
            return message
    if not _is_standard(noise):
        return (
            f"(sample - mean) / std has mean {noise.mean():.2f} and standard deviation {noise.std():.2f}; "
            "expected 0 and 1: draw from N(0, I) with torch.randn, multiply by std, add the mean"
        )
    return None


def _is_standard(noise: Tensor) -> bool:
    """Tell whether the values have mean 0 and standard deviation 1."""
    return bool(noise.mean().abs() < 0.05 and (noise.std() - 1).abs() < 0.05)


@recipe
def sample_and_gradient(cls: Any, parameters: Tensor) -> tuple[Tensor, Tensor | None]:
    """Draw a sample, and return it with the gradient of its sum to the parameters; None if there is none."""
    leaf = parameters.clone().requires_grad_()
    sample = cls(leaf * 1.0).sample(torch.Generator().manual_seed(0))
    if not sample.requires_grad:
        return sample, None
    return sample, torch.autograd.grad(sample.sum(), leaf, allow_unused=True, materialize_grads=True)[0]


def _judge_sample_gradient(attempt: Attempt) -> str | None:
    parameters = probe((2, 6, 3, 5))[0]
    sample, gradient = attempt.run(sample_and_gradient, parameters)
    if gradient is None:
        return _NO_GRADIENT
    mean = parameters.chunk(2, dim=1)[0]
    to_mean, to_logvar = gradient.chunk(2, dim=1)
    right_mean = same(to_mean, torch.ones_like(mean))
    if right_mean and same(to_logvar, (sample - mean) / 2):  # d(std · ε)/d logvar = std · ε / 2
        return None
    if right_mean and not to_logvar.any():
        return "no gradient reaches the log-variance: is std detached?"
    if not gradient.any():
        return _NORMAL
    return "the values are right, but the gradient is cut on its way to the mean or the log-variance"


@recipe
def sample_on(cls: Any, device: str, dtype: torch.dtype) -> torch.dtype:
    """Draw a sample on this device, and return its data type."""
    sample: Tensor = cls(torch.zeros(2, 4, 2, 2, device=device, dtype=dtype)).sample()
    return sample.dtype


def _judge_sample_dtype_and_device(attempt: Attempt) -> str | None:
    dtype = attempt.run(sample_on, "cpu", torch.bfloat16)
    if dtype != torch.bfloat16:
        return f"for parameters in bfloat16 it is {dtype}: draw the noise with the dtype of the mean"
    try:  # the meta device stands in for a GPU: it holds no values, but it minds where tensors are
        attempt.run(sample_on, "meta", torch.float32)
    except Exception as error:
        if " device " in explain(error):
            return "it fails for parameters on another device: draw the noise on the device of the mean"
    return None


def _judge_deterministic_sample(attempt: Attempt) -> str | None:
    parameters = _MODERATE[0][0]
    sample = attempt.run(partial(method_of, name="sample", deterministic=True), parameters.clone())
    if same(sample, parameters.chunk(2, dim=1)[0]):
        return None
    return "it must be the mean: multiply the noise by self.std, then 0"


def _judge_deterministic_nll(attempt: Attempt) -> str | None:
    parameters, sample = *probe((3, 8, 5, 2)), *probe((3, 4, 5, 2))
    result = attempt.run(partial(method_of, name="nll", deterministic=True), parameters, sample)
    if same(result, torch.zeros(3)):
        return None
    if not isinstance(result, Tensor):
        got = f"{result!r:.20}" if isinstance(result, (int, float)) else type_name(result)
    elif result.any():
        got = "other values" if result.isfinite().all() else "infinity or NaN"
    else:
        got = f"{'zeros' if result.is_floating_point() else 'whole numbers'} of shape {tuple(result.shape)}"
    return f"expected zeros of shape (B,), one number for each image; got {got}"


_NLL_PROBES = [
    (*probe((3, 8, 5, 2)), *probe((3, 4, 5, 2))),
    (*probe((1, 8, 32, 32)), *probe(_LATENT)),
    (_NARROW_PARAMETERS, _NARROW[2]),
]
_OTHER_DIMS = [(*probe((3, 8, 5, 2)), *probe((3, 4, 5, 2)), (2, 3)), (*probe((5, 6)), *probe((5, 3)), (1,))]
_VALUES: dict[str, tuple[Sequence[Probe], Recipe]] = {
    "mean": (_MODERATE, partial(attribute_of, name="mean")),
    "mean of large values": (_LARGE, partial(attribute_of, name="mean")),
    "logvar": (_MODERATE, partial(attribute_of, name="logvar")),
    "logvar of large values": (_LARGE, partial(attribute_of, name="logvar")),
    "std": ((*_MODERATE, (_NARROW_PARAMETERS,)), partial(attribute_of, name="std")),
    "std of large values": (_LARGE, partial(attribute_of, name="std")),
    "var": ((*_MODERATE, (_NARROW_PARAMETERS,)), partial(attribute_of, name="var")),
    "var of large values": (_LARGE, partial(attribute_of, name="var")),
    "mode()": (_MODERATE, partial(method_of, name="mode")),
    "nll()": (_NLL_PROBES, partial(method_of, name="nll")),
    "nll() with other dims": (_OTHER_DIMS, partial(method_of, name="nll")),
    "std with deterministic=True": (_MODERATE, partial(attribute_of, name="std", deterministic=True)),
    "var with deterministic=True": (_MODERATE, partial(attribute_of, name="var", deterministic=True)),
}
_PARTS: dict[str, Judge] = {
    "__init__": _judge_init,
    **{part: _judge_values(part, *given) for part, given in _VALUES.items()},
    "sample()": _judge_sample,
    "sample() with deterministic=True": _judge_deterministic_sample,
    "nll() with deterministic=True": _judge_deterministic_nll,
}
_WRITTEN = ("__init__", "mean", "mean of large values", "logvar", "logvar of large values")  # in the skeleton

EXERCISES = (
    Exercise(
        id="01.1",
        title="Split the encoder's output",
        notebook=NOTEBOOK,
        minutes=5,
        difficulty=1,
        reference=split_parameters,
        in_package=(DiagonalGaussianDistribution.__init__,),
        hints=(
            "The channels are dimension 1 in every rank: (B, 2C) as well as (B, 2C, H, W).",
            "Tensor.chunk(2, dim=1) gives two halves; Tensor.clamp(low, high) keeps values between two limits.",
            "Only the second half, the log-variance, is clamped: to [-30, 20].",
        ),
        judge=_judge_split,
        mistakes=SPLIT_MISTAKES,
    ),
    Exercise(
        id="01.2",
        title="The reparameterised sample",
        notebook=NOTEBOOK,
        minutes=5,
        difficulty=2,
        reference=reparameterize,
        in_package=(DiagonalGaussianDistribution.sample,),
        hints=(
            "Start from noise ~ N(0, I): what makes its standard deviation σ, and what then makes its mean μ?",
            "logvar = log σ². So what is σ in terms of logvar? Mind the square.",
            "σ = exp(logvar / 2), and the sample is mean + σ · noise.",
        ),
        judge=_judge_value,
        mistakes=SAMPLE_MISTAKES,
    ),
    Exercise(
        id="01.3",
        title="Negative log-likelihood",
        notebook=NOTEBOOK,
        minutes=10,
        difficulty=2,
        reference=nll,
        in_package=(DiagonalGaussianDistribution.nll,),
        hints=(
            "Write down the density of one Gaussian value and take -log: three terms, all with the same factor.",
            "The variance is exp(logvar). Independent values: their -log densities are added up.",
            "½ · (log 2π + logvar + (sample - mean)² / var), then flatten(1).sum(1).",
        ),
        judge=_judge_nll,
        mistakes=NLL_MISTAKES,
    ),
    Exercise(
        id="01.4",
        title="The whole class",
        notebook=NOTEBOOK,
        minutes=15,
        difficulty=3,
        reference=DiagonalGaussian,
        in_package=(DiagonalGaussianDistribution,),
        hints=(
            "Compute mean, logvar, std and var once, in __init__, from the clamped log-variance; the methods use them.",
            "torch.randn takes generator=, device= and dtype=: the noise must be like the mean in all three.",
            "deterministic=True: std and var are zeros, so that sample() is the mean; nll() returns zeros, (B,).",
        ),
        judge=judge_parts(_PARTS, given=_WRITTEN),
        mistakes=CLASS_MISTAKES,
    ),
)
