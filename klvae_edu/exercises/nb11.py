"""The exercises of notebook 11, latents for diffusion."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klvae_edu import flow
from klvae_edu.data import latent_dataset, latent_writer
from klvae_edu.exercises.attempt import Attempt, call, recipe
from klvae_edu.exercises.exercise import Exercise, Mistakes
from klvae_edu.exercises.judges.functions import judge_function, probe, through_recipe
from klvae_edu.exercises.solutions.nb11 import deviation_of_samples, integrate, scaling_factors, straight_path
from klvae_edu.latents import statistics

NOTEBOOK = "11_latents_for_diffusion"
_C = (0, 2, 3)  # the dimensions of one channel's values
_RESHAPED = "bring the channels to the front before reshape, transpose(0, 1)"
_FIXED = "the number of channels is fixed at {}: take {}.shape[1], or name dimensions, dim=(0, 2, 3)"


# 11.1


_Deviation = Callable[[Tensor], Tensor]


def _first(deviation: _Deviation) -> Callable[[Tensor], Any]:
    """1 / another deviation, and the second factor."""
    return lambda z: (1 / deviation(z), 1 / z.std(_C).mean())


def _second(deviation: _Deviation) -> Callable[[Tensor], Any]:
    return lambda z: (1 / z.std(), 1 / deviation(z))


def _of_channels(count: int) -> _Deviation:
    return lambda z: torch.stack([z[:, channel].std() for channel in range(count)]).mean()


def _averaged_over(dims: tuple[int, ...]) -> _Deviation:
    return lambda z: z.std(dims).mean()


_ALL = "the first is 1 / the deviation of all values; yours"
_NOT_OF_ALL: dict[str, _Deviation] = {
    "is of the first image alone": lambda z: z[0].std(),
    "is of the first channel alone": lambda z: z[:, 0].std(),
    "is of the first half of the channels alone": lambda z: z.chunk(2, dim=1)[0].std(),
    "is from image to image at each place, averaged": lambda z: z.std(0).mean(),
    "is across the channels at each place, averaged": lambda z: z.std(1).mean(),
    "averages the images' deviations, and forgets how far they lie apart": lambda z: z.std((1, 2, 3)).mean(),
    "averages the deviations of each image's channels": lambda z: z.std((2, 3)).mean(),
    "averages the channels' variances, and forgets how far they lie apart": lambda z: z.var(_C).mean().sqrt(),
    "is of the channels: take all values as one heap": lambda z: z.std(_C).mean(),
    "adds up the channels' deviations": lambda z: z.std(_C).sum(),
    "is how far the channels' means lie apart": lambda z: z.mean(_C).std(),
    "is the variance: take its root": lambda z: z.var(),
    "has a root too many: .std is the root already": lambda z: z.std().sqrt(),
    "measures from 0 and not from their mean": lambda z: z.square().mean().sqrt(),
    "is 1 / the mean": lambda z: z.mean(),
    "is 1 / the mean absolute value": lambda z: z.abs().mean(),
    "is the mean absolute deviation, without squares": lambda z: (z - z.mean()).abs().mean(),
    "is the range, from the smallest value to the largest": lambda z: z.max() - z.min(),
    "is half the range, from the smallest value to the largest": lambda z: (z.max() - z.min()) / 2,
    "is 1 / the largest value": lambda z: z.max(),
    "is the norm, not divided by the root of the number of values": lambda z: z.norm(),
    "is a number fixed beforehand, and not of these latents": lambda z: torch.tensor(1 / 0.18215),
}
_AVERAGE = "the second is 1 / the average of the channels' deviations; yours"
_NO_AVERAGES: dict[str, _Deviation] = {
    "averages the channels' factors: take the average first": lambda z: 1 / (1 / z.std(_C)).mean(),
    "averages their variances and takes the root": lambda z: z.var(_C).mean().sqrt(),
    "is 1 / the average of their variances: average their roots": lambda z: z.var(_C).mean(),
    "has a root too many: .std is the root already": lambda z: z.std(_C).mean().sqrt(),
    "is of all values: take each channel by itself first": lambda z: z.std(),
    "adds them up: take their mean": lambda z: z.std(_C).sum(),
    "is their median": lambda z: z.std(_C).median(),
    "is the largest of them": lambda z: z.std(_C).max(),
    "is the smallest of them": lambda z: z.std(_C).min(),
    "is their deviation from each other": lambda z: z.std(_C).std(),
    "is of the first channel alone": lambda z: z[:, 0].std(),
    "is of the last channel alone": lambda z: z[:, -1].std(),
    "is of the second half of the channels alone": lambda z: z.chunk(2, dim=1)[1].std(),
    "is of the first image alone": lambda z: z[0].std((1, 2)).mean(),
    "is how far the channels' means lie apart": lambda z: z.mean(_C).std(),
    "is the average of the channels' means": lambda z: z.mean(_C).mean(),
    "measures from the mean of all values": lambda z: (z - z.mean()).square().mean(_C).sqrt().mean(),
    "measures from 0, and not from each channel's own mean": lambda z: z.square().mean(_C).sqrt().mean(),
    "averages absolute deviations, without squares": lambda z: (z - z.mean(_C, keepdim=True)).abs().mean(),
    "averages the channels' ranges": lambda z: (z.amax(_C) - z.amin(_C)).mean(),
    "averages over the images: a channel is all but dimension 1": lambda z: z.std((1, 2, 3)).mean(),
    "is of each image's channels: a channel goes over the whole batch": lambda z: z.std((2, 3)).mean(),
    "is across the channels: a channel is all but dimension 1": lambda z: z.std(1).mean(),
    "is over the images at each place: a channel is all but dimension 1": lambda z: z.std(0).mean(),
    f"is of mixed channels and images: {_RESHAPED}": lambda z: z.reshape(z.shape[1], -1).std(1).mean(),
    **{
        f"is over dimensions {dims}: a channel is (0, 2, 3), all but dimension 1": _averaged_over(dims)
        for dims in ((0, 1), (0, 1, 2), (0, 1, 3), (0, 2), (0, 3), (1, 2), (1, 3), (2,), (3,))
    },
    "is one factor for each channel: a single number is asked for": lambda z: z.std(_C),
    "is one factor for each image: a single number is asked for": lambda z: z.std((1, 2, 3)),
    "is one factor for each image and channel: a single number is asked for": lambda z: z.std((2, 3)),
    "is those deviations themselves: a single number is asked for": lambda z: 1 / z.std(_C),
}
FACTOR_MISTAKES = Mistakes(
    {
        "the two are the wrong way round": lambda z: scaling_factors(z)[::-1],
        "both are upside down: the factor is 1 / deviation": lambda z: (z.std(), z.std(_C).mean()),
        "the first is upside down: the factor is 1 / deviation": lambda z: (z.std(), 1 / z.std(_C).mean()),
        "the second is upside down: the factor is 1 / deviation": lambda z: (1 / z.std(), z.std(_C).mean()),
        **{_FIXED.format(count, "z"): _second(_of_channels(count)) for count in (3, 4)},
        **{f"{_ALL} {what}": _first(deviation) for what, deviation in _NOT_OF_ALL.items()},
        **{f"{_AVERAGE} {what}": _second(deviation) for what, deviation in _NO_AVERAGES.items()},
    }.items()
)


@recipe
def as_a_pair(answer: Any, z: Tensor) -> Any:
    """Return the factors in float64, whether they are numbers, tensors, arrays or one tensor of two values."""
    found = call(answer, z)
    if isinstance(found, Tensor) and found.shape == (2,):
        found = tuple(found)
    if not isinstance(found, (tuple, list)):
        return found
    return tuple(torch.as_tensor(v).double() if isinstance(v, (float, np.floating, Tensor)) else v for v in found)


def _latents(shift: float, channels: int = 3) -> Tensor:
    """(20, C, 32, 32), where all lie apart and spread otherwise; many values, so that n and n - 1 both pass."""
    (z,) = probe((20, channels, 32, 32))
    scales, shifts = torch.tensor([[1.5, 0.5, 2.0, 0.8, 1.0], [-1.0, 0.5, 2.0, 1.0, 0.0]])[:, :channels, None, None]
    images, rows, columns = torch.linspace(0.5, 1.5, 20), torch.linspace(-0.5, 0.5, 32), torch.linspace(0.8, 1.2, 32)
    return z * scales * images[:, None, None, None] * columns + shift * shifts + rows[:, None]


# 11.2

_Part = Callable[[Tensor], Tensor]  # of the means, or of the log-variances: a channel's variance


def _of_means(mean: Tensor) -> Tensor:
    return mean.var(_C)


def _of_noise(logvar: Tensor) -> Tensor:
    return logvar.exp().mean(_C)


def _spread(of_means: _Part = _of_means, of_noise: _Part = _of_noise) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda mean, logvar: (of_means(mean) + of_noise(logvar)).sqrt()


def _over(*dims: int) -> Callable[[Tensor, Tensor], Tensor]:
    return _spread(lambda mean: mean.var(dims), lambda logvar: logvar.exp().mean(dims))


def _first_channels(count: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda mean, logvar: torch.stack(
        [(mean[:, i].var() + logvar[:, i].exp().mean()).sqrt() for i in range(count)]
    )


def _summed(end: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Another use of the two parts, which are variances."""
    return lambda mean, logvar: end(_of_means(mean), _of_noise(logvar))


def _drawn(seed: int) -> Callable[[Tensor, Tensor], Tensor]:
    def drawn(mean, logvar):
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed))
        return (mean + (logvar / 2).exp() * noise).std(_C)

    return drawn


# m: the means; v: the log-variances
_OTHER_MEANS: dict[str, _Part] = {
    "deviation of the means: it is their variance, `var`": lambda m: m.std(_C),
    "variance squared: `var` is a square already": lambda m: m.var(_C) ** 2,
    "variance of all channels together: each channel has its own": lambda m: m.var(),
    "variance within each image, averaged: images lie apart, too": lambda m: m.var((2, 3)).mean(0),
    "variance of the images' averages: places within an image lie apart, too": lambda m: m.mean((2, 3)).var(0),
    "variance of the places' averages: images lie apart, too": lambda m: m.mean(0).var((1, 2)),
    "variance in the first image alone: take all images at once": lambda m: m[0].var((1, 2)),
    "mean square, about 0: a variance is about the mean": lambda m: m.square().mean(_C),
    "sum of squares: a variance is an average, about the mean": lambda m: m.square().sum(_C),
    "squared average: it is their variance, mean.var": lambda m: m.mean(_C) ** 2,
    "average: it is their variance, mean.var": lambda m: m.mean(_C),
    "mean absolute value: it is their variance, mean.var": lambda m: m.abs().mean(_C),
}
_OTHER_NOISE: dict[str, _Part] = {
    "average deviation: exp(logvar) is the variance, without the half": lambda v: (v / 2).exp().mean(_C),
    "average deviation squared: average the variances, exp(logvar)": lambda v: (v / 2).exp().mean(_C).square(),
    "variance squared, exp(2 · logvar): exp(logvar) is the variance": lambda v: (2 * v).exp().mean(_C),
    "1 / variance, exp(-logvar): look at the sign": lambda v: (-v).exp().mean(_C),
    "average log-variance: exp is missing": lambda v: v.mean(_C),
    "average square of the log-variances: exp(logvar) is the variance": lambda v: v.square().mean(_C),
    "average power of 10: the logarithm is natural, exp(logvar)": lambda v: (10**v).mean(_C),
    "average power of 2: the logarithm is natural, exp(logvar)": lambda v: (2**v).mean(_C),
    "average softplus: the variance is exp(logvar)": lambda v: v.exp().log1p().mean(_C),
    "exponential of the average log-variance: exp of each value first, then the mean": lambda v: v.mean(_C).exp(),
    "variance of the variances: take their mean": lambda v: v.exp().var(_C),
    "deviation of the variances: take their mean": lambda v: v.exp().std(_C),
    "variance of the log-variances: take the mean of exp(logvar)": lambda v: v.var(_C),
    "average variance squared: it is a square already": lambda v: v.exp().mean(_C) ** 2,
    "variance of the deviations: take the mean of exp(logvar)": lambda v: (v / 2).exp().var(_C),
    "exponential of half the average log-variance: exp of each value first": lambda v: (v.mean(_C) / 2).exp(),
    "sum of the variances: take their mean": lambda v: v.exp().sum(_C),
    "largest variance: take their mean": lambda v: v.exp().amax(_C),
    "smallest variance: take their mean": lambda v: v.exp().amin(_C),
    "median variance: take their mean": lambda v: v.exp().transpose(0, 1).flatten(1).median(1).values,
    "average over all channels: each channel has its own": lambda v: v.exp().mean(),
    "average over the first image alone: take all images": lambda v: v[0].exp().mean((1, 2)),
    "half of the average variance: it counts as a whole": lambda v: v.exp().mean(_C) / 2,
    "prior's variance, 1: the posteriors' are exp(logvar)": lambda v: torch.ones(v.shape[1]),
}
# b: the variance between the means; w: the posteriors' average variance
_OTHER_SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "the posteriors' own noise is left out: samples spread further than the means": lambda b, w: b.sqrt(),
    "only the noise of the posteriors is counted, not how far their means lie apart": lambda b, w: w.sqrt(),
    "the two deviations are added: variances add up, deviations do not": lambda b, w: b.sqrt() + w.sqrt(),
    "a deviation is added to a variance: add two variances, then take the root": lambda b, w: b.sqrt() + w,
    "a variance is added to a deviation: add two variances, then take the root": lambda b, w: b + w.sqrt(),
    "this is the variance: take its root": lambda b, w: b + w,
    "the two variances are averaged: independent parts add up": lambda b, w: ((b + w) / 2).sqrt(),
    "the two deviations are averaged: add the variances": lambda b, w: (b.sqrt() + w.sqrt()) / 2,
    "the two variances are multiplied: independent parts add up": lambda b, w: (b * w).sqrt(),
    "the noise is subtracted: independent parts add up": lambda b, w: (b - w).abs().sqrt(),
    "the noise is subtracted, down to 0: independent parts add up": lambda b, w: (b - w).clamp(min=0).sqrt(),
    "two variances are multiplied: independent parts add up": lambda b, w: b * w,
    "this is the square of the variance: take a root in place of it": lambda b, w: (b + w) ** 2,
    "one variance is subtracted from the other: independent parts add up": lambda b, w: (b - w).sqrt(),
    "the larger of the two parts alone: independent parts add up": lambda b, w: b.maximum(w).sqrt(),
}
_PER = {
    "image": (1, 2, 3),
    "image and channel": (2, 3),
    "place of each image, across the channels": (1,),
    "place of each channel": (0,),
    "place": (0, 1),
    "column": (0, 1, 2),
    "row": (0, 1, 3),
}
SPREAD_MISTAKES = Mistakes(
    {
        **{f"the means' part is the {what}": _spread(part) for what, part in _OTHER_MEANS.items()},
        **{f"the noise's part is the {what}": _spread(of_noise=part) for what, part in _OTHER_NOISE.items()},
        **{what: _summed(end) for what, end in _OTHER_SUMS.items()},
        **{f"one number for each {what}: over all but the channels, (0, 2, 3)": _over(*_PER[what]) for what in _PER},
        **{_FIXED.format(count, "mean"): _first_channels(count) for count in (3, 4)},
        **{f"samples are drawn, by seed {seed}: both parts follow without any": _drawn(seed) for seed in (0, 1, 42)},
        "one number for all channels: each channel has its own, over all but dimension 1": _over(0, 1, 2, 3),
        f"channels and images are mixed: {_RESHAPED}": lambda mean, logvar: _over(0, 2, 3)(
            *(values.reshape(1, values.shape[1], -1, 1) for values in (mean, logvar))
        ),
        "the first image alone: take all of them at once": lambda mean, logvar: _over(0, 2, 3)(mean[:1], logvar[:1]),
        "each image's deviation, averaged: images lie apart, too": lambda mean, logvar: _over(2, 3)(mean, logvar).mean(
            0
        ),
        "each place's deviation, averaged: places lie apart, too": lambda mean, logvar: _over(0)(mean, logvar).mean(
            (1, 2)
        ),
        "the root is taken at every place, then averaged: the root comes last": lambda mean, logvar: (
            (mean.var(_C, keepdim=True) + logvar.exp()).sqrt().mean(_C)
        ),
        "each mean is shifted by its noise's variance: add the two variances": lambda mean, logvar: (
            mean + logvar.exp()
        ).std(_C),
        "each mean is shifted by its noise's deviation: add the two variances": lambda mean, logvar: (
            mean + (logvar / 2).exp()
        ).std(_C),
        "two averaged deviations are added: variances add up, deviations do not": lambda mean, logvar: (
            mean.std(_C) + (logvar / 2).exp().mean(_C)
        ),
        "two averaged deviations are multiplied: variances add up": lambda mean, logvar: (
            mean.std(_C) * (logvar / 2).exp().mean(_C)
        ),
        "the root of two deviations added: variances add up, deviations do not": _spread(
            lambda m: m.std(_C), lambda v: (v / 2).exp().mean(_C)
        ),
    }.items()
)


@recipe
def spread_in_double(answer: Any, mean: Tensor, logvar: Tensor) -> Any:
    """Return the deviation in float64, whatever its type is."""
    found = call(answer, mean, logvar)
    return found.double() if isinstance(found, Tensor) and found.is_floating_point() else found


def _posteriors(channels: int) -> tuple[Tensor, Tensor]:
    mean, logvar = probe((20, channels, 32, 32), (20, channels, 32, 32))
    scale = torch.tensor([1.0, 2.0, 0.5, 0.8])[:channels, None, None]
    mean = mean + torch.linspace(-2, 2, 20)[:, None, None, None]  # images lie apart
    return mean * scale + scale, logvar.abs() * scale.flip(0) + 0.1  # log-variances above 0, for roots of any of them


# 11.3

_OfBoth = Callable[[Tensor, Tensor, Tensor], Tensor]  # of noise and data, (B, C, h, w), and of times, (B, 1, 1, 1)


def _path(
    place: _OfBoth = lambda x0, x1, t: x0 + t * (x1 - x0),
    velocity: _OfBoth = lambda x0, x1, t: x1 - x0,
    stretch: Callable[[Tensor], Tensor] = lambda t: t[:, None, None, None],
) -> Callable[[Tensor, Tensor, Tensor], Any]:
    return lambda x0, x1, t: (place(x0, x1, stretch(t)), velocity(x0, x1, stretch(t)))


def _with_noise_left(sigma: float) -> _OfBoth:
    return lambda x0, x1, t: (1 - (1 - sigma) * t) * x0 + t * x1


_OTHER_PLACES: dict[str, _OfBoth] = {
    "time runs backwards in x_t: x0 belongs to t = 0, x1 to t = 1": lambda x0, x1, t: x1 + t * (x0 - x1),
    "weights of a diffusion model: here they sum to 1 themselves": lambda x0, x1, t: (1 - t * t).sqrt() * x0 + t * x1,
    "an arc of sine and cosine: here the weights are 1 - t and t": lambda x0, x1, t: (
        torch.cos(t * math.pi / 2) * x0 + torch.sin(t * math.pi / 2) * x1
    ),
    "squares of sine and cosine: here the weights are 1 - t and t": lambda x0, x1, t: (
        x0 + torch.sin(t * math.pi / 2) ** 2 * (x1 - x0)
    ),
    "roots of 1 - t and t are the weights: no roots here": lambda x0, x1, t: (1 - t).sqrt() * x0 + t.sqrt() * x1,
    "the time is squared: the weights are 1 - t and t": lambda x0, x1, t: x0 + t**2 * (x1 - x0),
    "a root is taken of the time: the weights are 1 - t and t": lambda x0, x1, t: x0 + t.sqrt() * (x1 - x0),
    "both weights are squared: they are 1 - t and t": lambda x0, x1, t: (1 - t) ** 2 * x0 + t**2 * x1,
    "the time is smoothed: the weights are 1 - t and t": lambda x0, x1, t: x0 + (3 * t**2 - 2 * t**3) * (x1 - x0),
    "the time is rounded to a whole number: the weights are 1 - t and t": lambda x0, x1, t: x0 + t.round() * (x1 - x0),
    "the time is cut to a whole number: the weights are 1 - t and t": lambda x0, x1, t: x0 + t.floor() * (x1 - x0),
    "the time is divided by 1000: here it is between 0 and 1 already": lambda x0, x1, t: x0 + t / 1000 * (x1 - x0),
    "the times are sorted, and belong to other images": lambda x0, x1, t: x0 + t.sort(0).values * (x1 - x0),
    "the times are in reverse, and belong to other images": lambda x0, x1, t: x0 + t.flip(0) * (x1 - x0),
    "the noise keeps its full strength: its weight is 1 - t": lambda x0, x1, t: x0 + t * x1,
    "the data keep their full strength: their weight is t": lambda x0, x1, t: (1 - t) * x0 + x1,
    "the noise is missing in x_t: its weight is 1 - t": lambda x0, x1, t: t * x1,
    "the data are missing in x_t: their weight is t": lambda x0, x1, t: (1 - t) * x0,
    "both weights are t: the noise's is 1 - t": lambda x0, x1, t: t * x0 + t * x1,
    "both weights are 1 - t: the data's is t": lambda x0, x1, t: (1 - t) * (x0 + x1),
    "the noise's weight is 1 + t: it is 1 - t": lambda x0, x1, t: (1 + t) * x0 + t * x1,
    "x_t subtracts the data: both parts are added": lambda x0, x1, t: (1 - t) * x0 - t * x1,
    "x_t subtracts the noise: both parts are added": lambda x0, x1, t: t * x1 - (1 - t) * x0,
    "x_t moves away from the data: it is x0 + t · (x1 - x0)": lambda x0, x1, t: x0 + t * (x0 - x1),
    "x_t sets out from the data: it is x0 + t · (x1 - x0)": lambda x0, x1, t: x1 + t * (x1 - x0),
    "x_t is the way travelled so far: it sets out from the noise": lambda x0, x1, t: t * (x1 - x0),
    "brackets are missing in x_t: (1 - t) as a whole multiplies x0": lambda x0, x1, t: 1 - t * x0 + t * x1,
    "x_t is halfway, whatever t is: its weights are 1 - t and t": lambda x0, x1, t: (x0 + x1) / 2,
    "x_t is where the noise is, x0: at time t it is between noise and data": lambda x0, x1, t: x0,
    "x_t is where the data are, x1: at time t it is between noise and data": lambda x0, x1, t: x1,
    "all images share the first one's noise: each has its own": lambda x0, x1, t: (1 - t) * x0[:1] + t * x1,
    "all images share the first one's data: each has its own": lambda x0, x1, t: (1 - t) * x0 + t * x1[:1],
    "the first image is left out: it stays where the noise is": lambda x0, x1, t: torch.cat(
        [x0[:1], (x0 + t * (x1 - x0))[1:]]
    ),
    "the last image is left out: it stays where the noise is": lambda x0, x1, t: torch.cat(
        [(x0 + t * (x1 - x0))[:-1], x0[-1:]]
    ),
    **{
        f"noise is left at the end, sigma_min = {sigma}, as in the paper: here it is 0": _with_noise_left(sigma)
        for sigma in (0.1, 0.01, 1e-3, 1e-4, 1e-5)
    },
}
_OTHER_VELOCITIES: dict[str, _OfBoth] = {
    "the velocity points from data to noise: turn its sign": lambda x0, x1, t: x0 - x1,
    "the velocity is what is left of the way, x1 - x_t: it is the whole way": lambda x0, x1, t: (1 - t) * (x1 - x0),
    "the velocity is the way travelled so far, x_t - x0: it is the whole way": lambda x0, x1, t: t * (x1 - x0),
    "the velocity is the data alone: what moves away from the noise also loses it": lambda x0, x1, t: x1,
    "the velocity is the noise alone, as a diffusion model predicts it: it is x1 - x0": lambda x0, x1, t: x0,
    "the velocity has lost the data: the derivative of t · x1 is x1": lambda x0, x1, t: -x0,
    "the velocity is the sum of both: it leads from noise to data, x1 - x0": lambda x0, x1, t: x0 + x1,
    "the velocity is the place x_t: it is its derivative, x1 - x0": lambda x0, x1, t: x0 + t * (x1 - x0),
    "the velocity leads back from the data, x_t - x1: it is x1 - x0": lambda x0, x1, t: (1 - t) * (x0 - x1),
    "the velocity is divided by t, which is 0 at the start: it is x1 - x0": lambda x0, x1, t: (x1 - x0) / t,
    "the velocity is divided by 1 - t, which is 0 at the end: it is x1 - x0": lambda x0, x1, t: (x1 - x0) / (1 - t),
    "NaN where t = 0: x_t - x0 over t is x1 - x0": lambda x0, x1, t: t * (x1 - x0) / t,
    "NaN where t = 1: x1 - x_t over 1 - t is x1 - x0": lambda x0, x1, t: (1 - t) * (x1 - x0) / (1 - t),
    "the velocity has weights of t, as a diffusion model's: it is x1 - x0": lambda x0, x1, t: (1 - t) * x1 - t * x0,
    "the velocity is scaled to norm 1: it is the whole way, x1 - x0": lambda x0, x1, t: (
        (x1 - x0) / (x1 - x0).flatten(1).norm(dim=1)[:, None, None, None]
    ),
    "the velocity is a speed, one number for each image": lambda x0, x1, t: (x1 - x0).flatten(1).norm(dim=1),
    "only the signs of the velocity are left: it is x1 - x0": lambda x0, x1, t: (x1 - x0).sign(),
    "the velocity has lost its signs: it is x1 - x0, without abs": lambda x0, x1, t: (x1 - x0).abs(),
    "the velocity is averaged over the batch: each image has its own": lambda x0, x1, t: (
        (x1 - x0).mean(0, keepdim=True).expand_as(x0)
    ),
    "the velocity is 0: it is x1 - x0": lambda x0, x1, t: torch.zeros_like(x0),
}
_SPREAD = "t (B,) was spread along the {}: give it three more dimensions, one time for each image"
_OTHER_TIMES: dict[str, Callable[[Tensor], Tensor]] = {
    _SPREAD.format("width"): lambda t: t,
    _SPREAD.format("rows"): lambda t: t[:, None],
    _SPREAD.format("channels"): lambda t: t[:, None, None],
    "one time for the whole batch: each image has its own": lambda t: t[0],
    "the last time for the whole batch: each image has its own": lambda t: t[-1],
    "the times are averaged into one: each image has its own": lambda t: t.mean(),
    "the number of images is fixed at 4: -1 or None takes any, t[:, None, None, None]": lambda t: t.view(4, 1, 1, 1),
}
PATH_MISTAKES = Mistakes(
    {
        "time runs backwards in both: at t = 0 the noise x0 is meant, at t = 1 the data x1": lambda x0, x1, t: (
            straight_path(x1, x0, t)
        ),
        **{what: _path(place) for what, place in _OTHER_PLACES.items()},
        **{what: _path(velocity=velocity) for what, velocity in _OTHER_VELOCITIES.items()},
        **{what: _path(stretch=stretch) for what, stretch in _OTHER_TIMES.items()},
        "the results are exchanged: the place x_t comes first, then the velocity": lambda x0, x1, t: straight_path(
            x0, x1, t
        )[::-1],
        "dimensions of size 1 are squeezed away: both results have the shape of x0": lambda x0, x1, t: tuple(
            result.squeeze() for result in straight_path(x0, x1, t)
        ),
    }.items()
)


def _noise_data(*shape: int) -> tuple[Tensor, Tensor]:
    x0, x1 = probe(shape, shape)
    return x0, x1.flip(0) * 1.5 - 0.4


_PLACES_AND_TIMES = [
    (*_noise_data(4, 4, 4, 4), torch.tensor([0.6, 0.1, 0.9, 0.347])),  # of one side each, so that all broadcasts
    (*_noise_data(3, 1, 3, 5), torch.tensor([0.3, 0.0, 1.0])),
    (*_noise_data(1, 3, 5, 2), torch.tensor([0.7])),
    (100 * probe((1, 2, 3, 4))[0], probe((1, 2, 4, 3))[0].mT, torch.tensor([1.0])),  # no noise may be left at the end
]


# 11.4


def _column(x: Any, t: Any) -> Tensor:
    """Return the times (B,) in a shape that broadcasts with x (B, …), as a network would take them.

    Raises:
        ValueError: these are no times (B,), or of another precision than x.
    """
    if isinstance(t, Tensor) and isinstance(x, Tensor) and t.ndim > x.ndim == 1:
        raise ValueError("velocity: expected places, then times")
    if not isinstance(t, Tensor) or t.shape != x.shape[:1]:
        raise ValueError("velocity: expected times (B,)")
    if t.is_floating_point() and t.dtype != x.dtype:
        raise ValueError("velocity: expected times of the dtype of x")
    return t.view(-1, *(1,) * (x.ndim - 1))


@recipe
def swirl(x: Tensor, t: Tensor) -> Tensor:
    """Compute a velocity that is not linear in place or time, and of every time by itself."""
    return torch.sin(2 * x) + (1 + 3 * _column(x, t)) ** 2 * x.flip(1)


@recipe
def settling(x: Tensor, t: Tensor) -> Tensor:
    """Compute a velocity that leads towards a place that moves with time."""
    return (_column(x, t).exp() - x) * 0.7


def _heun(f: Callable[..., Tensor], x: Tensor, t: Any, dt: float) -> Tensor:
    v = f(x, t)
    return x + dt * (v + f(x + dt * v, t + dt)) / 2


def _runge_kutta(f: Callable[..., Tensor], x: Tensor, t: Any, dt: float) -> Tensor:
    a = f(x, t)
    b = f(x + dt / 2 * a, t + dt / 2)
    c = f(x + dt / 2 * b, t + dt / 2)
    return x + dt * (a + 2 * b + 2 * c + f(x + dt * c, t + dt)) / 6


def _starts(steps: int) -> list[float]:
    return [step / steps for step in range(steps)]


def _inverse(steps: int) -> float:
    return 1 / steps


def _steps(
    step: Callable[..., Tensor] = _heun,
    times: Callable[[int], list[float]] = _starts,
    size: Callable[[int], float] = _inverse,
) -> Callable[..., Tensor]:
    """The loop with another step(velocity, x, t, dt), at other times, or with another dt."""

    def integrated(velocity, x0, steps):
        x, dt = x0, size(steps)
        for time in times(steps):
            x = step(velocity, x, torch.full((len(x),), time), dt)
        return x

    return integrated


def _asking(second: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """With another second velocity, second(velocity, x, v, t, dt)."""

    def step(f, x, t, dt):
        v = f(x, t)
        return x + dt * (v + second(f, x, v, t, dt)) / 2

    return _steps(step)


def _going(end: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """With another use of both velocities, end(x, dt, v, w)."""

    def step(f, x, t, dt):
        v = f(x, t)
        return end(x, dt, v, f(x + dt * v, t + dt))

    return _steps(step)


def _from_the_start(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """With another step(velocity, x0, x, t, dt)."""
    return lambda velocity, x0, steps: _steps(lambda f, x, t, dt: step(f, x0, x, t, dt))(velocity, x0, steps)


def _in_steps(count: int) -> Callable[..., Tensor]:
    return lambda velocity, x0, steps: integrate(velocity, x0, count)


_OTHER_SECONDS: dict[str, Callable[..., Tensor]] = {
    "at the start's time: it belongs to t + dt": lambda f, x, v, t, dt: f(x + dt * v, t),
    "at the start's place: go there first, x + dt · v": lambda f, x, v, t, dt: f(x, t + dt),
    "a whole velocity away: after a step of dt one is at x + dt · v": lambda f, x, v, t, dt: f(x + v, t + dt),
    "half of the way: the step ends at x + dt · v": lambda f, x, v, t, dt: f(x + dt / 2 * v, t + dt),
    "twice as far: the step ends at x + dt · v": lambda f, x, v, t, dt: f(x + 2 * dt * v, t + dt),
    "backwards: the step ends at x + dt · v": lambda f, x, v, t, dt: f(x - dt * v, t + dt),
    "at dt · v, without the place: the step ends at x + dt · v": lambda f, x, v, t, dt: f(dt * v, t + dt),
    "at v, as if it were a place: the step ends at x + dt · v": lambda f, x, v, t, dt: f(v, t + dt),
    "in the middle of the step: it belongs to the end": lambda f, x, v, t, dt: f(x + dt / 2 * v, t + dt / 2),
    "half a step later: the step ends at t + dt": lambda f, x, v, t, dt: f(x + dt * v, t + dt / 2),
    "two steps later: the step ends at t + dt": lambda f, x, v, t, dt: f(x + dt * v, t + 2 * dt),
    "one step earlier: the step ends at t + dt": lambda f, x, v, t, dt: f(x + dt * v, t - dt),
    "at t = 1: the step ends at t + dt": lambda f, x, v, t, dt: f(x + dt * v, torch.ones_like(t)),
    "at the time dt: the step ends at t + dt": lambda f, x, v, t, dt: f(x + dt * v, torch.full_like(t, dt)),
    "at t + 1: the step ends at t + dt": lambda f, x, v, t, dt: f(x + dt * v, t + 1),
    "not at all, a place stands for it: ask `velocity` at that place and time": lambda f, x, v, t, dt: x + dt * v,
}
_AVERAGED = "their average is (v + v_end) / 2"
_OTHER_ENDS: dict[str, Callable[..., Tensor]] = {
    "this is Euler's method: Heun's averages the velocities of start and end": lambda x, dt, v, w: x + dt * v,
    "only the velocity at the end is used: average it with the one at the start": lambda x, dt, v, w: x + dt * w,
    f"the two velocities are added: {_AVERAGED}": lambda x, dt, v, w: x + dt * (v + w),
    f"the two velocities are halved twice: {_AVERAGED}": lambda x, dt, v, w: x + dt * (v + w) / 4,
    f"the first velocity is subtracted: {_AVERAGED}": lambda x, dt, v, w: x + dt * (w - v) / 2,
    f"the second velocity is subtracted: {_AVERAGED}": lambda x, dt, v, w: x + dt * (v - w) / 2,
    f"the velocities are multiplied: {_AVERAGED}": lambda x, dt, v, w: x + dt * v * w,
    f"the velocities are weighed 1 : 2: {_AVERAGED}": lambda x, dt, v, w: x + dt * (v + 2 * w) / 3,
    f"the velocities are weighed 1 : 3: {_AVERAGED}": lambda x, dt, v, w: x + dt * (v + 3 * w) / 4,
    f"only the second velocity is halved, brackets are missing: {_AVERAGED}": lambda x, dt, v, w: x + dt * (v + w / 2),
    f"only the first velocity is halved, brackets are missing: {_AVERAGED}": lambda x, dt, v, w: x + dt * (v / 2 + w),
    "dt multiplies the first velocity only: it is dt · (v + v_end) / 2": lambda x, dt, v, w: x + dt * v + w / 2,
    "the place is halved, too: only the sum of the velocities is": lambda x, dt, v, w: (x + dt * (v + w)) / 2,
    "dt is missing in the step: the average velocity is travelled for a time dt": lambda x, dt, v, w: x + (v + w) / 2,
    "dt is squared: the average velocity is travelled for a time dt": lambda x, dt, v, w: x + dt**2 * (v + w) / 2,
    "the velocities are divided by dt: multiply by it": lambda x, dt, v, w: x + (v + w) / 2 / dt,
    "it goes against the velocity: the step is added": lambda x, dt, v, w: x - dt * (v + w) / 2,
    "the place is lost: the step is added to x, x + dt · (v + v_end) / 2": lambda x, dt, v, w: dt * (v + w) / 2,
    "the trial is kept, and the real step added to it: go on from x": lambda x, dt, v, w: x + dt * (3 * v + w) / 2,
    "places are averaged, start and trial: average the velocities": lambda x, dt, v, w: x + dt * v / 2,
}
_TOO_OFTEN = "right, but it asks for the velocity more than twice a step: keep v, and use it again"
_OTHER_STEPS: dict[str, Callable[..., Tensor]] = {
    "this is Euler's method, at t + dt / 2: Heun's asks at both ends": lambda f, x, t, dt: x + dt * f(x, t + dt / 2),
    "this is Euler's method, asking at the end: Heun's asks at both ends": lambda f, x, t, dt: x + dt * f(x, t + dt),
    "this is the midpoint method: Heun's asks at the start and at the end of a step": lambda f, x, t, dt: (
        x + dt * f(x + dt / 2 * f(x, t), t + dt / 2)
    ),
    "this is Ralston's method: Heun's asks at the end of the step, and weighs both alike": lambda f, x, t, dt: (
        x + dt * (f(x, t) + 3 * f(x + dt * 2 / 3 * f(x, t), t + dt * 2 / 3)) / 4
    ),
    "this is the method of Runge and Kutta: Heun's asks twice a step, and takes the average": _runge_kutta,
    _TOO_OFTEN: lambda f, x, t, dt: x + dt * (f(x, t) + f(x + dt * f(x, t), t + dt)) / 2,
    "dt is missing: each step goes 1 / steps of the way": lambda f, x, t, dt: (
        x + (f(x, t) + f(x + f(x, t), t + dt)) / 2
    ),
    "it goes from t = 1 to 0: noise is at t = 0": lambda f, x, t, dt: _heun(f, x, 1 - t, -dt),
    "the times run from 1 down, though the steps go forwards": lambda f, x, t, dt: _heun(f, x, 1 - t, dt),
    "velocity's arguments are exchanged: places first, then times": lambda f, x, t, dt: _heun(
        lambda x, t: f(t, x), x, t, dt
    ),
    "velocity wants a time for each of the batch: a tensor (B,), as from torch.full((len(x),), time)": (
        lambda f, x, t, dt: _heun(f, x, float(t[0]), dt)
    ),
    "the times are of another shape where x has more dimensions: (B,), as from torch.full((len(x),), time)": (
        lambda f, x, t, dt: _heun(f, x, torch.full_like(x[:, 0], float(t[0])), dt)
    ),
    "the times are in float64, which a network in float32 refuses: give them the dtype of x": lambda f, x, t, dt: _heun(
        f, x, t.double(), dt
    ),
}
_OTHER_ORIGINS: dict[str, Callable[..., Tensor]] = {
    "every step sets out from x0: go on from x": lambda f, x0, x, t, dt: x0 + _heun(f, x, t, dt) - x,
    "the velocities are asked at x0 in every step: ask at x": lambda f, x0, x, t, dt: x + _heun(f, x0, t, dt) - x0,
    "x is not carried on: every step begins at x0, and only the last one counts": lambda f, x0, x, t, dt: _heun(
        f, x0, t, dt
    ),
    "the trial step sets out from x0 each time: it sets out from x": lambda f, x0, x, t, dt: (
        x + dt * (f(x, t) + f(x0 + dt * f(x, t), t + dt)) / 2
    ),
}
_OTHER_STARTS: dict[str, Callable[[int], list[float]]] = {
    "it ends one step too early: there are as many steps as `steps` says": lambda n: _starts(n)[:-1],
    "it begins one step too late: there are as many steps as `steps` says": lambda n: _starts(n)[1:],
    "it goes one step too far: there are as many steps as `steps` says": lambda n: [*_starts(n), 1.0],
    "it stops after the first step: `return` stands in the loop; put it behind": lambda n: [0.0],
    "linspace(0, 1, steps) has distances of 1 / (steps - 1): step k begins at k / steps": lambda n: torch.linspace(
        0, 1, n
    ).tolist(),
    "a step begins at the time at which it should end: step k begins at k / steps": lambda n: [*_starts(n)[1:], 1.0],
    "a step begins in its middle: step k begins at k / steps": lambda n: [(k + 0.5) / n for k in range(n)],
    "the number of the step is taken for the time: step k begins at k / steps": lambda n: [*map(float, range(n))],
    "the number of the step is divided by dt: step k begins at k · dt": lambda n: [float(k * n) for k in range(n)],
    "every step is taken at t = 0: the time moves on with each": lambda n: [0.0] * n,
    "every step is taken at t = 1: step k begins at k / steps": lambda n: [1.0] * n,
}
INTEGRATE_MISTAKES = Mistakes(
    {
        **{f"the end's velocity is asked {where}": _asking(second) for where, second in _OTHER_SECONDS.items()},
        **{what: _going(end) for what, end in _OTHER_ENDS.items()},
        **{what: _steps(step) for what, step in _OTHER_STEPS.items()},
        **{what: _from_the_start(step) for what, step in _OTHER_ORIGINS.items()},
        **{what: _steps(times=times) for what, times in _OTHER_STARTS.items()},
        **{
            f"the number of steps is fixed at {n}: use `steps`": _in_steps(n)
            for n in (1, 2, 4, 5, 8, 10, 16, 20, 50, 100)
        },
        "dt is 1 / (steps + 1), and the way ends before t = 1: it is 1 / steps": _steps(
            times=lambda n: [k / (n + 1) for k in range(n)], size=lambda n: 1 / (n + 1)
        ),
        "dt is 1 / (steps - 1), and the way ends behind t = 1: it is 1 / steps": _steps(
            times=lambda n: [k / max(n - 1, 1) for k in range(n)], size=lambda n: 1 / max(n - 1, 1)
        ),
        "// rounds dt down to 0, so that nothing moves: divide with /": _steps(
            times=lambda n: [float(k * (1 // n)) for k in range(n)], size=lambda n: 1 // n
        ),
        "dt is 1: it is 1 / steps": _steps(times=lambda n: [*map(float, range(n))], size=lambda n: 1),
        "half of the steps, because each asks twice: there are as many as `steps` says": (
            lambda velocity, x0, steps: integrate(velocity, x0, max(steps // 2, 1))
        ),
        "twice as many steps: there are as many as `steps` says": (
            lambda velocity, x0, steps: integrate(velocity, x0, 2 * steps)
        ),
        "one step more, all of them shorter: there are as many as `steps` says": (
            lambda velocity, x0, steps: integrate(velocity, x0, steps + 1)
        ),
        "it stays at x0: each step moves x": lambda velocity, x0, steps: x0.clone(),
    }.items()
)


@INTEGRATE_MISTAKES("the last step is Euler's, as in samplers that end at noise 0: every step asks twice")
def integrate_ending_with_euler(velocity, x0, steps):
    x, dt = x0, 1 / steps
    for step in range(steps):
        t = torch.full((len(x),), step * dt)
        x = _heun(velocity, x, t, dt) if step < steps - 1 else x + dt * velocity(x, t)
    return x


@INTEGRATE_MISTAKES("the trial's velocity is kept for the next step, which begins elsewhere: ask anew at x")
def integrate_keeping_the_velocity(velocity, x0, steps):
    x, dt, t = x0, 1 / steps, torch.zeros(len(x0))
    v = velocity(x, t)
    for _ in range(steps):
        t = t + dt
        v_end = velocity(x + dt * v, t)
        x, v = x + dt * (v + v_end) / 2, v_end
    return x


@INTEGRATE_MISTAKES("the velocity of the step before is averaged with this one's: ask at the end of the step instead")
def integrate_looking_back(velocity, x0, steps):
    x, dt, before = x0, 1 / steps, None
    for step in range(steps):
        v = velocity(x, torch.full((len(x),), step * dt))
        x, before = x + dt * (v + (v if before is None else before)) / 2, v
    return x


@INTEGRATE_MISTAKES("`while t < 1` takes a step too many, because 0.1 added ten times is less than 1: count the steps")
def integrate_while_there_is_time(velocity, x0, steps):
    x, t, dt = x0, 0.0, 1 / steps
    while t < 1:
        x = _heun(velocity, x, torch.full((len(x),), t), dt)
        t += dt
    return x


@INTEGRATE_MISTAKES("all places on the way are returned: the last one is asked for")
def integrate_stacking_the_way(velocity, x0, steps):
    way = [x0]
    for step in range(steps):
        way.append(_heun(velocity, way[-1], torch.full((len(x0),), step / steps), 1 / steps))
    return torch.stack(way)


@recipe
def questions(answer: Any, velocity: Callable[..., Tensor], x0: Tensor, steps: int) -> int:
    """Return how often the answer asks for the velocity."""
    count = 0

    def asked(x: Tensor, t: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return velocity(x, t)

    call(answer, asked, x0, steps)
    return count


_WAYS = [(swirl, *probe((3, 4)), 4), (settling, *probe((2, 3, 4, 5)), 10), (settling, *probe((1, 2)), 1)]
_judge_ends = judge_function(integrate, _WAYS, INTEGRATE_MISTAKES, inputs=("velocity", "x0", "steps"))


def _judge_integration(attempt: Attempt) -> str | None:
    """By the ends, and by the number of questions."""
    return _judge_ends(attempt) or (_TOO_OFTEN if attempt.run(questions, *_WAYS[0]) > 2 * _WAYS[0][2] else None)


EXERCISES = (
    Exercise(
        id="11.1",
        title="Two scaling factors",
        notebook=NOTEBOOK,
        minutes=5,
        difficulty=1,
        reference=scaling_factors,
        in_package=(statistics,),
        hints=(
            "`z.std()` takes all values together, `z.std(dim=…)` those of the dimensions that you name.",
            "A channel's deviation is over images, rows and columns: dimensions 0, 2 and 3.",
            "First the average of the channels' deviations, then 1 divided by it.",
        ),
        judge=judge_function(
            scaling_factors,
            [(_latents(0.0),), (_latents(1.0, 5),), (_latents(-3.0, 2),)],
            through_recipe(as_a_pair, FACTOR_MISTAKES),
            inputs=("z",),
            outputs=("the factor of all values", "the factor of the channels"),
            through=as_a_pair,
        ),
        mistakes=FACTOR_MISTAKES,
    ),
    Exercise(
        id="11.2",
        title="The standard deviation of samples",
        notebook=NOTEBOOK,
        minutes=8,
        difficulty=2,
        reference=deviation_of_samples,
        in_package=(latent_writer.encode_images, latent_dataset.LatentDataset),
        hints=(
            "A sample is its posterior's mean plus noise of its own: two independent parts, whose variances add up.",
            "The noise of posterior i has the variance exp(logvar_i); over all of them, take the average.",
            "`mean.var(dim=(0, 2, 3)) + …`, and the root of the sum.",
        ),
        judge=judge_function(
            partial(spread_in_double, deviation_of_samples),
            [_posteriors(3), _posteriors(2)],
            through_recipe(spread_in_double, SPREAD_MISTAKES),
            inputs=("mean", "logvar"),
            outputs=("the deviation",),
            through=spread_in_double,
        ),
        mistakes=SPREAD_MISTAKES,
    ),
    Exercise(
        id="11.3",
        title="The straight path",
        notebook=NOTEBOOK,
        minutes=8,
        difficulty=2,
        reference=straight_path,
        in_package=(flow.straight_path, flow.flow_matching_loss),
        hints=(
            "t has shape (B,), the images (B, C, h, w): `t[:, None, None, None]` stretches over an image.",
            "At t = 0 the noise alone, at t = 1 the data alone, in between both with weights that sum to 1.",
            "The velocity is the derivative of x_t with respect to t. Does t occur in it?",
        ),
        judge=judge_function(
            straight_path,
            _PLACES_AND_TIMES,
            PATH_MISTAKES,
            inputs=("x0", "x1", "t"),
            outputs=("x_t", "the velocity"),
        ),
        mistakes=PATH_MISTAKES,
    ),
    Exercise(
        id="11.4",
        title="Following a velocity",
        notebook=NOTEBOOK,
        minutes=15,
        difficulty=3,
        reference=integrate,
        in_package=(flow.integrate,),
        hints=(
            "The time of step k is k / steps, for every image the same: `torch.full((len(x),), step * dt)`.",
            "Take the velocity here, and the one at the place to which it would lead within dt, at the time t + dt.",
            "x + dt · (v + v_end) / 2.",
        ),
        judge=_judge_integration,
        mistakes=INTEGRATE_MISTAKES,
    ),
)
