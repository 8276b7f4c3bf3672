"""The exercises of notebook 01, the diagonal Gaussian."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from klvae_edu.exercises.exercise import Exercise, Judge, Mistakes, call
from klvae_edu.exercises.judges.functions import Mistake, Probe, judge_function, judge_parts, probe, same
from klvae_edu.gaussian import DiagonalGaussianDistribution

NOTEBOOK = "01_diagonal_gaussian"


# The finished versions, in the form in which the exercises ask for them. The tests hold them to the class.
# Annotated with torch.Tensor, which a notebook knows, because `solution` shows them and readers paste them.


def split_parameters(parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 2C, …) -> mean and log-variance, (B, C, …) each, the latter within [-30, 20]."""
    mean, logvar = parameters.chunk(2, dim=1)
    return mean, logvar.clamp(-30.0, 20.0)


def reparameterize(mean: torch.Tensor, logvar: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The sample that `noise` ~ N(0, I) turns into. All of one shape."""
    std = torch.exp(0.5 * logvar)
    return mean + std * noise


def nll(mean: torch.Tensor, logvar: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """-log N(sample; mean, exp(logvar)) in nats, summed over all but the batch: (B,)."""
    each = math.log(2.0 * math.pi) + logvar + (sample - mean) ** 2 / torch.exp(logvar)
    return 0.5 * each.flatten(1).sum(1)


class DiagonalGaussian:
    """A Gaussian for every latent value: parameters (B, 2C, …), the mean in the first half of the channels."""

    def __init__(self, parameters: torch.Tensor, deterministic: bool = False) -> None:
        self.deterministic = deterministic
        self.mean, self.logvar = split_parameters(parameters)
        self.std = torch.zeros_like(self.mean) if deterministic else torch.exp(0.5 * self.logvar)
        self.var = self.std**2

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """A sample of the mean's shape, device and data type."""
        mean = self.mean
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + self.std * noise

    def mode(self) -> torch.Tensor:
        """The likeliest value."""
        return self.mean

    def nll(self, sample: torch.Tensor, dims: tuple[int, ...] = (1, 2, 3)) -> torch.Tensor:
        """-log q(sample), summed over `dims`; 0 if deterministic."""
        if self.deterministic:
            return torch.zeros(self.mean.shape[0], dtype=self.mean.dtype, device=self.mean.device)
        each = math.log(2.0 * math.pi) + self.logvar + (sample - self.mean) ** 2 / self.var
        return 0.5 * each.sum(dim=dims)


# 01.1


def _split(
    dim: int = 1, low: float = -30.0, high: float = 20.0, swap: bool = False
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def split(parameters: Tensor) -> tuple[Tensor, Tensor]:
        first, second = parameters.chunk(2, dim=dim)
        return (second, first.clamp(low, high)) if swap else (first, second.clamp(low, high))

    return split


_FREE = math.inf
_OTHER_LIMITS = (
    *((-20, 30), (-30, 30), (-20, 20), (20, -30), (-30, _FREE), (-_FREE, 20)),
    *((-10, 10), (-20, 10), (-10, 20), (-30, 10), (-20, 2), (-5, 5), (-5, 2), (-4, 4), (-1, 1), (0, 20), (0, 1)),
)
_LIMITS = "the log-variance is clamped, but not to [-30, 20]: look at the limits"
_ORDER = "the halves are swapped: the mean is the first half of the channels, the log-variance the second"
_AXIS = "it is split along the wrong axis: the channels are dim=1 (of B, 2C, H, W)"
SPLIT_MISTAKES = Mistakes(
    [
        ("no clamp: the log-variance must stay in [-30, 20], or exp overflows", _split(low=-_FREE, high=_FREE)),
        (
            "the clamp is on the mean: only the log-variance needs it",
            lambda p: (p.chunk(2, dim=1)[0].clamp(-30, 20), p.chunk(2, dim=1)[1]),
        ),
        (_ORDER, _split(swap=True)),
        (_ORDER, _split(swap=True, low=-_FREE, high=_FREE)),
        ("the order of the results is swapped: return the mean first", lambda p: _split()(p)[::-1]),
        *((_AXIS, _split(dim=dim)) for dim in (-1, -2, 0, 2)),
        *((_AXIS, _split(dim=dim, low=-_FREE, high=_FREE)) for dim in (-1, -2, 0, 2)),
        (
            "the channels are taken alternately (interleaved): the mean is the first half in one piece",
            lambda p: (p[:, ::2], p[:, 1::2].clamp(-30, 20)),
        ),
        ("the mean is clamped too: only the log-variance needs it", lambda p: _split()(p.clamp(-30, 20))),
        *((_LIMITS, _split(low=low, high=high)) for low, high in _OTHER_LIMITS),
        (
            "the second result is the variance, exp(logvar): return the log-variance itself",
            lambda p: (_split()(p)[0], _split()(p)[1].exp()),
        ),
        (
            "the second result is the standard deviation, exp(logvar / 2): return the log-variance itself",
            lambda p: (_split()(p)[0], (_split()(p)[1] / 2).exp()),
        ),
        (
            "the clamp is on exp(logvar): clamp the log-variance, and leave exp for later",
            lambda p: (_split()(p)[0], p.chunk(2, dim=1)[1].exp().clamp(-30, 20)),
        ),
    ]
)

_FOUR = (
    "4 channels are fixed, Stable Diffusion's number: half of them, whatever their number, is parameters.shape[1] // 2"
)
_PIECES = "it unpacks more than two pieces: chunk(2, dim=1) makes two halves, split(2, dim=1) pieces of two channels"


@SPLIT_MISTAKES(_FOUR)
def split_after_four_channels(parameters: Tensor) -> tuple[Tensor, Tensor]:
    return parameters[:, :4], parameters[:, 4:].clamp(-30, 20)


@SPLIT_MISTAKES(_FOUR)
def split_after_four_channels_unclamped(parameters: Tensor) -> tuple[Tensor, Tensor]:
    return parameters[:, :4], parameters[:, 4:]


@SPLIT_MISTAKES(_FOUR)
def split_two_times_four_channels(parameters: Tensor) -> tuple[Tensor, Tensor]:
    return parameters[:, :4], parameters[:, 4:8].clamp(-30, 20)


@SPLIT_MISTAKES(_PIECES)
def split_into_pieces_of_two(parameters: Tensor) -> tuple[Tensor, Tensor]:
    mean, logvar = torch.split(parameters, 2, dim=1)
    return mean, logvar.clamp(-30, 20)


@SPLIT_MISTAKES(_PIECES)
def split_the_batch_into_images(parameters: Tensor) -> tuple[Tensor, Tensor]:
    mean, logvar = parameters
    return mean, logvar.clamp(-30, 20)


# 01.2

SAMPLE_MISTAKES = Mistakes(
    [
        (
            "the noise is multiplied by the variance: take the standard deviation, exp(logvar / 2)",
            lambda m, v, n: m + v.exp() * n,
        ),
        ("the noise is multiplied by logvar itself: the deviation is exp(logvar / 2)", lambda m, v, n: m + v * n),
        (
            "exp is missing: logvar / 2 is the logarithm of the deviation, the deviation is exp(logvar / 2)",
            lambda m, v, n: m + v / 2 * n,
        ),
        (
            "the root is taken twice: exp(logvar / 2) is the deviation, its root is no more",
            lambda m, v, n: m + (v / 4).exp() * n,
        ),
        (
            "the sign in the exponent, or a division by the deviation: the noise is multiplied by exp(+logvar / 2)",
            lambda m, v, n: m + (-v / 2).exp() * n,
        ),
        ("the ½ stands outside of exp: the deviation is exp(logvar / 2)", lambda m, v, n: m + v.exp() / 2 * n),
        ("sqrt of logvar: the root is of the variance, exp(logvar)", lambda m, v, n: m + v.sqrt() * n),
        ("the mean is missing: the noise must be moved to it", lambda m, v, n: (v / 2).exp() * n),
        ("the noise is missing: this is the mean", lambda m, v, n: m),
        (
            "mean and standard deviation are swapped: the noise multiplies the deviation",
            lambda m, v, n: (v / 2).exp() + m * n,
        ),
        (
            "mean and noise are exchanged: the deviation multiplies the noise, and the mean is added",
            lambda m, v, n: n + (v / 2).exp() * m,
        ),
        ("the deviation is added: it multiplies the noise", lambda m, v, n: m + (v / 2).exp() + n),
        (
            "the noise is not scaled: multiply it by the standard deviation before the mean is added",
            lambda m, v, n: m + n,
        ),
        ("the deviation multiplies the mean as well: look at the brackets", lambda m, v, n: (m + n) * (v / 2).exp()),
        ("the sign of the noise: it is added to the mean", lambda m, v, n: m - (v / 2).exp() * n),
    ]
)

_ONE_SIGMA = "one deviation for many values: every value has its own, exp(logvar / 2), without a mean or a sum"


@SAMPLE_MISTAKES(_ONE_SIGMA)
def sample_with_the_mean_deviation(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    return mean + torch.exp(logvar / 2).mean() * noise


@SAMPLE_MISTAKES(_ONE_SIGMA)
def sample_with_the_mean_logvar(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    return mean + torch.exp(logvar.mean() / 2) * noise


@SAMPLE_MISTAKES(_ONE_SIGMA)
def sample_with_a_deviation_for_each_image(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    return mean + torch.exp(logvar / 2).mean(dim=tuple(range(1, logvar.ndim)), keepdim=True) * noise


@SAMPLE_MISTAKES(_ONE_SIGMA)
def sample_with_a_deviation_for_each_channel(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    return mean + torch.exp(logvar / 2).mean(dim=tuple(range(2, logvar.ndim)), keepdim=True) * noise


@SAMPLE_MISTAKES("softplus makes another deviation: logvar is a logarithm, so take exp(logvar / 2)")
def sample_with_softplus(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    return mean + F.softplus(logvar) * noise


@SAMPLE_MISTAKES("softplus makes another deviation: logvar is a logarithm, so take exp(logvar / 2)")
def sample_with_softplus_of_half(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    return mean + F.softplus(logvar / 2) * noise


@SAMPLE_MISTAKES("2 is the base of the power: logvar is a natural logarithm, so take exp(logvar / 2)")
def sample_with_powers_of_two(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    return mean + 2 ** (logvar / 2) * noise


@SAMPLE_MISTAKES("logvar is doubled in the exponent: the root halves it, exp(logvar / 2)")
def sample_with_squared_variance(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    return mean + torch.exp(2 * logvar) * noise


@SAMPLE_MISTAKES("the sign in the exponent, and the ½ is missing: the noise is multiplied by exp(+logvar / 2)")
def sample_with_inverse_variance(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    return mean + torch.exp(-logvar) * noise


@SAMPLE_MISTAKES("exp is taken of ½ only: logvar belongs into it, exp(logvar / 2)")
def sample_with_exp_of_a_half(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    return mean + math.exp(0.5) * logvar * noise


@SAMPLE_MISTAKES("the noise is missing: the deviation multiplies it before the mean is added")
def sample_without_noise(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    return mean + torch.exp(logvar / 2)


@SAMPLE_MISTAKES("the deviation alone: multiply the noise by it, and add the mean")
def sample_of_the_deviation(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    return torch.exp(logvar / 2)


@SAMPLE_MISTAKES(
    "the variance is taken of logvar's values: logvar is the logarithm of σ² already, σ is exp(logvar / 2)"
)
def sample_with_the_spread_of_logvar(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    return mean + logvar.std() * noise


# 01.3


def wrong_sums(each: Callable[..., Tensor]) -> list[Mistake]:
    """Sums over other dimensions than all but the batch. `each` computes the summands, (B, C, …)."""
    every = "sum over every dimension but the batch, flatten(1).sum(1)"
    return [
        (f"summed over dimension 1 only, the channels: {every}", lambda *inputs: each(*inputs).sum(1)),
        (f"summed over the last dimension only: {every}", lambda *inputs: each(*inputs).sum(-1)),
        (
            f"summed over height and width only, not over the channels: {every}",
            lambda *inputs: each(*inputs).sum((2, 3)),
        ),
        (f"summed over the batch, and over it only: {every}", lambda *inputs: each(*inputs).sum(0)),
        (f"averaged over the batch only: {every}", lambda *inputs: each(*inputs).mean(0)),
        (
            f"summed over dimension 1 only, and averaged over the batch: {every}, which gives (B,)",
            lambda *inputs: each(*inputs).sum(1).mean(0),
        ),
        (
            f"summed over dimension 1 only, and averaged over all others: {every}, which gives (B,)",
            lambda *inputs: each(*inputs).sum(1).mean(),
        ),
        (
            "keepdim, or a slice, leaves the shape (B, 1): one number for each image is asked for, (B,)",
            lambda *inputs: each(*inputs).flatten(1).sum(1, keepdim=True),
        ),
    ]


def _terms(mean: Tensor, logvar: Tensor, sample: Tensor) -> Tensor:
    return (math.log(2 * math.pi) + logvar + (sample - mean) ** 2 / logvar.exp()).flatten(1)


def _weighted(constant: float, log: float, square: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The three terms, each with a factor of its own."""
    return lambda m, v, s: (
        (constant * math.log(2 * math.pi) + log * v + square * (s - m) ** 2 / v.exp()).flatten(1).sum(1)
    )


_BRACKET = "it belongs to all three terms, so put a bracket around them"
NLL_MISTAKES = Mistakes(
    [
        ("the factor ½ is missing", lambda m, v, s: _terms(m, v, s).sum(1)),
        (f"the factor ½ is on the square only: {_BRACKET}", _weighted(1, 1, 0.5)),
        (f"the factor ½ is on logvar only: {_BRACKET}", _weighted(1, 0.5, 1)),
        (f"the factor ½ is on log 2π only: {_BRACKET}", _weighted(0.5, 1, 1)),
        (f"the factor ½ is missing on the square: {_BRACKET}", _weighted(0.5, 0.5, 1)),
        (f"the factor ½ is missing on logvar: {_BRACKET}", _weighted(0.5, 1, 0.5)),
        (f"the factor ½ is missing on log 2π: {_BRACKET}", _weighted(1, 0.5, 0.5)),
        ("the square is halved twice: one ½ in front of the bracket is enough", _weighted(0.5, 0.5, 0.25)),
        ("logvar is halved twice: one ½ in front of the bracket is enough", _weighted(0.5, 0.25, 0.5)),
        ("log 2π is halved twice: one ½ in front of the bracket is enough", _weighted(0.25, 0.5, 0.5)),
        (
            "log π stands where log 2π belongs",
            lambda m, v, s: (_terms(m, v, s) - math.log(2)).sum(1) / 2,
        ),
        (
            "2π stands where log 2π belongs",
            lambda m, v, s: (_terms(m, v, s) - math.log(2 * math.pi) + 2 * math.pi).sum(1) / 2,
        ),
        (
            "log 2π is missing, the constant of each value",
            lambda m, v, s: (_terms(m, v, s) - math.log(2 * math.pi)).sum(1) / 2,
        ),
        (
            "log 2π is counted once for an image: every value has its own",
            lambda m, v, s: (math.log(2 * math.pi) + (_terms(m, v, s) - math.log(2 * math.pi)).sum(1)) / 2,
        ),
        ("the term logvar is missing", lambda m, v, s: (_terms(m, v, s) - v.flatten(1)).sum(1) / 2),
        (
            "the sign of logvar: a wide Gaussian is less dense, so that it adds to the -log",
            lambda m, v, s: (_terms(m, v, s) - 2 * v.flatten(1)).sum(1) / 2,
        ),
        (
            "the square is divided by the standard deviation: divide by the variance, exp(logvar)",
            lambda m, v, s: (math.log(2 * math.pi) + v + (s - m) ** 2 / (v / 2).exp()).flatten(1).sum(1) / 2,
        ),
        (
            "the square is divided by the squared variance: square (sample - mean) only, or divide by std first",
            lambda m, v, s: (math.log(2 * math.pi) + v + ((s - m) / v.exp()) ** 2).flatten(1).sum(1) / 2,
        ),
        (
            "the square is multiplied by the variance: divide by it",
            lambda m, v, s: (math.log(2 * math.pi) + v + (s - m) ** 2 * v.exp()).flatten(1).sum(1) / 2,
        ),
        (
            "the square is divided by logvar: the variance is exp(logvar)",
            lambda m, v, s: (math.log(2 * math.pi) + v + (s - m) ** 2 / v).flatten(1).sum(1) / 2,
        ),
        *(
            (
                "the square of (sample - mean) is forgotten",
                lambda m, v, s, root=root: (
                    (math.log(2 * math.pi) + v + (s - m) / (v / root).exp()).flatten(1).sum(1) / 2
                ),
            )
            for root in (1, 2)
        ),
        (
            "the square is not divided by the variance, exp(logvar)",
            lambda m, v, s: (math.log(2 * math.pi) + v + (s - m) ** 2).flatten(1).sum(1) / 2,
        ),
        (
            "a mean over the values: independent values' -log densities are summed",
            lambda m, v, s: _terms(m, v, s).mean(1) / 2,
        ),
        (
            "summed over the batch as well: one number for each image is asked for, (B,)",
            lambda m, v, s: _terms(m, v, s).sum() / 2,
        ),
        (
            "averaged over the batch as well: one number for each image is asked for, (B,)",
            lambda m, v, s: _terms(m, v, s).sum(1).mean() / 2,
        ),
        ("not summed: one number for each image is asked for, (B,)", lambda m, v, s: _terms(m, v, s).view_as(m) / 2),
        (
            "the sign: this is the log-likelihood, the negative one is asked for",
            lambda m, v, s: -_terms(m, v, s).sum(1) / 2,
        ),
        (
            "dims 1, 2, 3 are fixed, which fails for inputs (B, C): sum over all but the batch, flatten(1).sum(1)",
            lambda m, v, s: _terms(m, v, s).view_as(m).sum((1, 2, 3)) / 2,
        ),
    ]
)

NLL_MISTAKES += wrong_sums(lambda m, v, s: _terms(m, v, s).view_as(m) / 2)
_LOGARITHMS = "the density itself: take its logarithm, value by value, before the sum"


@NLL_MISTAKES("averaged over everything: one number for each image is asked for, (B,), summed over its values")
def nll_averaged_over_everything(mean: Tensor, logvar: Tensor, sample: Tensor) -> Tensor:
    return 0.5 * torch.mean(math.log(2 * math.pi) + logvar + (sample - mean) ** 2 / logvar.exp())


@NLL_MISTAKES("the mean is not subtracted from the sample")
def nll_around_zero(mean: Tensor, logvar: Tensor, sample: Tensor) -> Tensor:
    return 0.5 * (math.log(2 * math.pi) + logvar + sample**2 / logvar.exp()).flatten(1).sum(1)


@NLL_MISTAKES("the mean is added to the sample: the square is of the difference, sample - mean")
def nll_of_the_sum(mean: Tensor, logvar: Tensor, sample: Tensor) -> Tensor:
    return 0.5 * (math.log(2 * math.pi) + logvar + (sample + mean) ** 2 / logvar.exp()).flatten(1).sum(1)


@NLL_MISTAKES("the squares are subtracted, mean² from sample²: the square is of the difference, (sample - mean)²")
def nll_of_the_difference_of_squares(mean: Tensor, logvar: Tensor, sample: Tensor) -> Tensor:
    return 0.5 * (math.log(2 * math.pi) + logvar + (sample**2 - mean**2) / logvar.exp()).flatten(1).sum(1)


@NLL_MISTAKES("exp(logvar) stands where logvar belongs: the logarithm of the variance is added")
def nll_with_the_variance_added(mean: Tensor, logvar: Tensor, sample: Tensor) -> Tensor:
    var = torch.exp(logvar)
    return 0.5 * (math.log(2 * math.pi) + var + (sample - mean) ** 2 / var).flatten(1).sum(1)


@NLL_MISTAKES("exp(logvar / 2) stands where logvar belongs: the logarithm of the variance is added")
def nll_with_the_deviation_added(mean: Tensor, logvar: Tensor, sample: Tensor) -> Tensor:
    std = torch.exp(logvar / 2)
    return 0.5 * (math.log(2 * math.pi) + std + (sample - mean) ** 2 / std**2).flatten(1).sum(1)


@NLL_MISTAKES("log10 stands where the natural logarithm belongs, math.log")
def nll_with_log10(mean: Tensor, logvar: Tensor, sample: Tensor) -> Tensor:
    return 0.5 * (math.log10(2 * math.pi) + logvar + (sample - mean) ** 2 / logvar.exp()).flatten(1).sum(1)


@NLL_MISTAKES("exp(logvar) is taken for the standard deviation: that is exp(logvar / 2)")
def nll_with_the_variance_as_deviation(mean: Tensor, logvar: Tensor, sample: Tensor) -> Tensor:
    std = torch.exp(logvar)
    return (math.log(2 * math.pi) / 2 + std.log() + ((sample - mean) / std) ** 2 / 2).flatten(1).sum(1)


@NLL_MISTAKES("logvar is taken for the variance itself: the variance is exp(logvar)")
def nll_with_logvar_as_variance(mean: Tensor, logvar: Tensor, sample: Tensor) -> Tensor:
    return 0.5 * (math.log(2 * math.pi) + torch.log(logvar) + (sample - mean) ** 2 / logvar).flatten(1).sum(1)


@NLL_MISTAKES("the sign of the square: far from the mean the density is small, so that the square adds to the -log")
def nll_with_the_square_subtracted(mean: Tensor, logvar: Tensor, sample: Tensor) -> Tensor:
    return 0.5 * (math.log(2 * math.pi) + logvar - (sample - mean) ** 2 / logvar.exp()).flatten(1).sum(1)


@NLL_MISTAKES("the square is missing: this is only the part that does not depend on the sample")
def nll_without_square(mean: Tensor, logvar: Tensor, sample: Tensor) -> Tensor:
    return 0.5 * (math.log(2 * math.pi) + logvar).flatten(1).sum(1)


@NLL_MISTAKES("only the square: log 2π and logvar belong to the density, too")
def nll_of_the_square_alone(mean: Tensor, logvar: Tensor, sample: Tensor) -> Tensor:
    return 0.5 * ((sample - mean) ** 2 / logvar.exp()).flatten(1).sum(1)


def _density(mean: Tensor, logvar: Tensor, sample: Tensor) -> Tensor:
    return torch.exp(-0.5 * _terms(mean, logvar, sample))


@NLL_MISTAKES(
    "the logarithm of a product, which is 0 in floating point for a whole latent: sum the logarithms of the densities"
)
def nll_of_the_product(mean: Tensor, logvar: Tensor, sample: Tensor) -> Tensor:
    return -torch.log(_density(mean, logvar, sample).prod(1))


@NLL_MISTAKES("the logarithm of the summed densities: sum their logarithms instead")
def nll_of_the_sum_of_densities(mean: Tensor, logvar: Tensor, sample: Tensor) -> Tensor:
    return -torch.log(_density(mean, logvar, sample).sum(1))


@NLL_MISTAKES(_LOGARITHMS)
def nll_without_logarithm(mean: Tensor, logvar: Tensor, sample: Tensor) -> Tensor:
    return _density(mean, logvar, sample).sum(1)


@NLL_MISTAKES(_LOGARITHMS)
def nll_of_negative_densities(mean: Tensor, logvar: Tensor, sample: Tensor) -> Tensor:
    return -_density(mean, logvar, sample).sum(1)


@NLL_MISTAKES(_LOGARITHMS)
def nll_of_the_product_of_densities(mean: Tensor, logvar: Tensor, sample: Tensor) -> Tensor:
    return _density(mean, logvar, sample).prod(1)


_LATENT = (1, 4, 32, 32)  # so large that a product of densities is 0

# 01.4

_MODERATE = (probe((3, 8, 5, 2)), probe((5, 6)))
_LARGE = (probe((4, 6, 2, 8), scale=25.0),)


def _read(cls: Any, look: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Apply `look` to the object that the class makes from some parameters."""
    return lambda parameters, *rest: look(cls(parameters, **options), *rest)


def _part(
    look: Callable[..., Any],
    probes: Sequence[Probe],
    mistakes: Sequence[Mistake] = (),
    **options: Any,
) -> Judge:
    """A judge of classes by one part of them. Code that makes a mistake is given (mean, logvar, …)."""
    judge = judge_function(
        _read(DiagonalGaussianDistribution, look, **options),
        probes,
        [(message, lambda p, *rest, code=code: code(*p.chunk(2, dim=1), *rest)) for message, code in mistakes],
        inputs=("parameters", "sample", "dims"),
    )
    return lambda cls: judge(_read(cls, look, **options))


def _judge_sample(cls: Any) -> str | None:
    """By statistics, so that any way to draw the noise is fine."""
    parameters = probe((4, 6, 40, 40))[0]
    truth = DiagonalGaussianDistribution(parameters)
    posterior = call(cls, parameters.clone())

    def draw(seed: int, global_seed: int = 0) -> Any:
        torch.manual_seed(global_seed)
        return call(posterior.sample, torch.Generator().manual_seed(seed))

    sample = draw(1)
    if not isinstance(sample, Tensor) or sample.shape != truth.mean.shape:
        got = tuple(sample.shape) if isinstance(sample, Tensor) else type(sample).__name__
        return f"expected a Tensor of shape {tuple(truth.mean.shape)}, got {got}"
    if same(sample, truth.mean):
        return "it returns the mean: no noise is added"
    for name in ("mean", "std"):
        if not same(getattr(posterior, name), getattr(truth, name)):
            return f"it changes self.{name}: work on a copy, without operations in place such as add_ or +="
    if not torch.equal(sample, draw(1, global_seed=1)):
        return "the generator is ignored: hand it to the function that draws the noise"
    if torch.equal(sample, draw(2)):
        return "the noise is always the same: it must depend on the generator"
    if torch.equal(posterior.sample(), posterior.sample()):
        return "without a generator, two samples are equal: draw new noise each time"
    offset = (sample - truth.mean).detach()
    noise = offset / truth.std
    if any(same(noise.select(dim, 0), noise.select(dim, 1)) for dim in range(4)):
        return "the same noise is used several times: every value needs its own"
    if abs(noise.std() - 1) > 0.05 and abs((offset / truth.var).std() - 1) < 0.05:
        return "the noise is multiplied by the variance: take the standard deviation"
    if abs(noise.mean()) > 0.05 or abs(noise.std() - 1) > 0.05:
        return (
            f"(sample - mean) / std has mean {noise.mean():.2f} and standard deviation {noise.std():.2f}; "
            "expected 0 and 1: draw from N(0, I) with torch.randn, multiply by std, add the mean"
        )
    return _judge_sample_gradient(cls) or _judge_sample_dtype_and_device(cls)


def _judge_deterministic_sample(cls: Any) -> str | None:
    parameters = _MODERATE[0][0]
    sample = call(_read(cls, lambda d: d.sample(), deterministic=True), parameters.clone())
    if same(sample, parameters.chunk(2, dim=1)[0]):
        return None
    return "the sample must be the mean: multiply the noise by self.std, which is then 0"


def _judge_deterministic_nll(cls: Any) -> str | None:
    parameters, sample = *probe((3, 8, 5, 2)), *probe((3, 4, 5, 2))
    result = call(_read(cls, lambda d, sample: d.nll(sample), deterministic=True), parameters, sample)
    if same(result, torch.zeros(3)):
        return None
    if not isinstance(result, Tensor):
        got = f"{result!r:.20}"
    elif result.any():
        got = "other values" if result.isfinite().all() else "infinity or NaN"
    else:
        got = f"{'zeros' if result.is_floating_point() else 'whole numbers'} of shape {tuple(result.shape)}"
    return f"expected zeros of shape (B,), one number for each image; got {got}"


def _judge_sample_gradient(cls: Any) -> str | None:
    leaf = probe((2, 6, 3, 5))[0].requires_grad_()
    sample = cls(leaf * 1.0).sample(torch.Generator().manual_seed(0))
    if not sample.requires_grad:
        return "no gradient reaches the parameters: look for detach, no_grad, .data or a new torch.tensor"
    (gradient,) = torch.autograd.grad(sample.sum(), leaf)
    mean = leaf.chunk(2, dim=1)[0]
    expected = torch.cat([torch.ones_like(mean), (sample - mean) / 2], dim=1)  # d(std · ε)/d logvar = std · ε / 2
    if same(gradient, expected):
        return None
    return "the values are right, but the gradient is cut on its way to the mean or the log-variance"


def _judge_sample_dtype_and_device(cls: Any) -> str | None:
    sample = cls(torch.zeros(2, 4, 2, 2, dtype=torch.bfloat16)).sample()
    if sample.dtype != torch.bfloat16:
        return f"for parameters in bfloat16 it is {sample.dtype}: draw the noise with the dtype of the mean"
    try:  # the meta device stands in for a GPU: it holds no values, but it minds where tensors are
        cls(torch.zeros(2, 4, 2, 2, device="meta")).sample()
    except Exception as error:
        if " device " in str(error):
            return "it fails for parameters on another device: draw the noise on the device of the mean"
    return None


_NOT_CLAMPED = "the log-variance is not clamped to [-30, 20] before it is used"
_ZERO = "deterministic is ignored: the standard deviation and the variance must be zero"
_CLASS = {
    "mean": _part(
        lambda d: d.mean, _MODERATE, [("it is the second half of the channels, not the first", lambda m, v: v)]
    ),
    "mean of large values": _part(
        lambda d: d.mean, _LARGE, [("it is clamped: only the log-variance needs that", lambda m, v: m.clamp(-30, 20))]
    ),
    "logvar": _part(
        lambda d: d.logvar, _MODERATE, [("it is the first half of the channels, not the second", lambda m, v: m)]
    ),
    "logvar of large values": _part(lambda d: d.logvar, _LARGE, [(_NOT_CLAMPED, lambda m, v: v)]),
    "std": _part(
        lambda d: d.std,
        _MODERATE,
        [
            ("this is the variance: the deviation is exp(logvar / 2)", lambda m, v: v.exp()),
            ("this is logvar: the deviation is exp(logvar / 2)", lambda m, v: v),
            ("the sign in the exponent: exp(+logvar / 2)", lambda m, v: (-v / 2).exp()),
            ("the ½ stands outside of exp", lambda m, v: v.exp() / 2),
        ],
    ),
    "std of large values": _part(lambda d: d.std, _LARGE, [(_NOT_CLAMPED, lambda m, v: (v / 2).exp())]),
    "var": _part(
        lambda d: d.var,
        _MODERATE,
        [
            ("this is the standard deviation: the variance is exp(logvar)", lambda m, v: (v / 2).exp()),
            ("this is logvar: the variance is exp(logvar)", lambda m, v: v),
        ],
    ),
    "var of large values": _part(lambda d: d.var, _LARGE, [(_NOT_CLAMPED, lambda m, v: v.exp())]),
    "mode(), the mean": _part(lambda d: d.mode(), _MODERATE),
    "sample()": _judge_sample,
    "nll()": _part(
        lambda d, sample: d.nll(sample),
        [(*probe((3, 8, 5, 2)), *probe((3, 4, 5, 2))), (*probe((1, 8, 32, 32)), *probe(_LATENT))],
        NLL_MISTAKES,
    ),
    "nll() with other dims": _part(
        lambda d, sample, dims: d.nll(sample, dims=dims),
        [(*probe((3, 8, 5, 2)), *probe((3, 4, 5, 2)), (2, 3)), (*probe((5, 6)), *probe((5, 3)), (1,))],
        [("dims is ignored: sum over the dimensions it names", lambda m, v, s, dims: _terms(m, v, s).sum(1) / 2)],
    ),
    "std with deterministic=True": _part(
        lambda d: d.std, _MODERATE, [(_ZERO, lambda m, v: (v / 2).exp())], deterministic=True
    ),
    "var with deterministic=True": _part(
        lambda d: d.var, _MODERATE, [(_ZERO, lambda m, v: v.exp())], deterministic=True
    ),
    "sample() with deterministic=True": _judge_deterministic_sample,
    "nll() with deterministic=True": _judge_deterministic_nll,
}

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
        judge=judge_function(
            split_parameters,
            [probe((4, 6, 2, 8), scale=25.0), probe((6, 4), scale=25.0)],
            SPLIT_MISTAKES,
            inputs=("parameters",),
            outputs=("mean", "logvar"),
            gradients=("parameters",),
        ),
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
        judge=judge_function(
            reparameterize,
            [probe(*[shape] * 3) for shape in ((3, 4, 5, 2), (5, 7), (6,))],
            SAMPLE_MISTAKES,
            inputs=("mean", "logvar", "noise"),
            gradients=("mean", "logvar"),
        ),
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
        judge=judge_function(
            nll,
            [probe(*[shape] * 3) for shape in ((3, 4, 5, 2), (5, 7), (1, 1), _LATENT)],
            NLL_MISTAKES,
            inputs=("mean", "logvar", "sample"),
        ),
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
        judge=judge_parts(_CLASS, given=("mean", "mean of large values", "logvar", "logvar of large values")),
    ),
)
