"""The exercises of notebook 11, latents for diffusion."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klvae_edu import flow
from klvae_edu.data import latent_dataset, latent_writer
from klvae_edu.exercises.exercise import Exercise, Mistakes
from klvae_edu.exercises.judges.functions import adapted, judge_function, probe
from klvae_edu.latents import statistics

NOTEBOOK = "11_latents_for_diffusion"


# The finished versions, in the form in which the exercises ask for them. The tests hold them to the package.
# Annotated with torch.Tensor, which a notebook knows, because `solution` shows them and readers paste them.


def scaling_factors(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (B, C, h, w) -> 1 / deviation of all values, and 1 / the average of the channels' deviations."""
    of_all = z.std()
    of_channels = z.std(dim=(0, 2, 3))  # (C,)
    return 1 / of_all, 1 / of_channels.mean()


def deviation_of_samples(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """Posteriors (B, C, h, w) -> the deviation (C,) that their samples would have, without drawing any."""
    of_means = mean.var(dim=(0, 2, 3))
    of_noise = logvar.exp().mean(dim=(0, 2, 3))
    return (of_means + of_noise).sqrt()


def straight_path(x0: torch.Tensor, x1: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise x0, data x1 (B, C, h, w), times t (B,) -> the place x_t between them, and the velocity, (B, C, h, w)."""
    t = t[:, None, None, None]
    x_t = (1 - t) * x0 + t * x1
    return x_t, x1 - x0


def integrate(
    velocity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], x0: torch.Tensor, steps: int
) -> torch.Tensor:
    """Follow velocity(x, t), t (B,), from x0 (B, …) at t = 0 to t = 1, by Heun's method."""
    x, dt = x0, 1 / steps
    for step in range(steps):
        t = torch.full((len(x),), step * dt)
        v = velocity(x, t)
        v_end = velocity(x + dt * v, t + dt)
        x = x + dt * (v + v_end) / 2
    return x


# 11.1

_CHANNELS = (0, 2, 3)


def _factors(change: Callable[[Tensor, Tensor, Tensor], Any]) -> Callable[[Tensor], Any]:
    return lambda z: change(z, z.std(), z.std(dim=_CHANNELS))


_AVERAGE = "the second is 1 / the average of the channels' deviations"
FACTOR_MISTAKES = Mistakes(
    [
        ("the two are the wrong way round", _factors(lambda z, a, c: (1 / c.mean(), 1 / a))),
        ("both are upside down: the factor is 1 / deviation", _factors(lambda z, a, c: (a, c.mean()))),
        ("the first is upside down: the factor is 1 / deviation", _factors(lambda z, a, c: (a, 1 / c.mean()))),
        ("the second is upside down: the factor is 1 / deviation", _factors(lambda z, a, c: (1 / a, c.mean()))),
        (
            "these are 1 / variance: the deviation is its root",
            lambda z: (1 / z.var(), 1 / z.var(dim=_CHANNELS).mean()),
        ),
        (
            f"{_AVERAGE}; yours averages the channels' factors: take the average first",
            _factors(lambda z, a, c: (1 / a, (1 / c).mean())),
        ),
        (
            f"{_AVERAGE}; yours averages their variances and takes the root",
            lambda z: (1 / z.std(), 1 / z.var(dim=_CHANNELS).mean().sqrt()),
        ),
        (
            f"{_AVERAGE}; yours averages over the images: a channel's deviation is over all but dimension 1",
            lambda z: (1 / z.std(), 1 / z.std(dim=(1, 2, 3)).mean()),
        ),
        (
            f"{_AVERAGE}; yours is of each image's channels: a channel's deviation is over the whole batch",
            lambda z: (1 / z.std(), 1 / z.std(dim=(2, 3)).mean()),
        ),
        (
            f"{_AVERAGE}; yours is across the channels: a channel's deviation is over all but dimension 1",
            lambda z: (1 / z.std(), 1 / z.std(dim=1).mean()),
        ),
        (
            f"{_AVERAGE}; yours mixes the channels: a channel's deviation is over all but dimension 1",
            lambda z: (1 / z.std(), 1 / z.std(dim=(0, 1)).mean()),
        ),
        (
            "the first measures from 0 and not from the mean of all values: a deviation is about the mean",
            lambda z: (1 / z.square().mean().sqrt(), 1 / z.std(dim=_CHANNELS).mean()),
        ),
        (
            "one factor for each channel: the second is a single number, of their average",
            _factors(lambda z, a, c: (1 / a, 1 / c)),
        ),
        (
            "both are of the channels: the first takes all values as one heap",
            _factors(lambda z, a, c: (1 / c.mean(),) * 2),
        ),
        (
            "both are of all values: the second takes each channel by itself first",
            _factors(lambda z, a, c: (1 / a,) * 2),
        ),
    ]
)


_FIXED = "the number of channels is fixed at {}: take z.shape[1], or name dimensions, dim=(0, 2, 3)"


@FACTOR_MISTAKES(_FIXED.format(3))
def factors_of_three_channels(z: Tensor) -> Any:
    return 1 / z.std(), 1 / torch.stack([z[:, channel].std() for channel in range(3)]).mean()


@FACTOR_MISTAKES(_FIXED.format(4))
def factors_of_four_channels(z: Tensor) -> Any:
    return 1 / z.std(), 1 / torch.stack([z[:, channel].std() for channel in range(4)]).mean()


@FACTOR_MISTAKES("the channels' deviations are added up: take their mean")
def factors_of_summed_deviations(z: Tensor) -> Any:
    return 1 / z.std(), 1 / z.std(dim=_CHANNELS).sum()


@FACTOR_MISTAKES("the second is the channels' deviations themselves: it is 1 / their average, a single number")
def factors_with_the_deviations(z: Tensor) -> Any:
    return 1 / z.std(), z.std(dim=_CHANNELS)


@FACTOR_MISTAKES(f"{_AVERAGE}; yours is how far the channels' means lie apart")
def factors_of_the_means(z: Tensor) -> Any:
    return 1 / z.std(), 1 / z.mean(dim=_CHANNELS).std()


@FACTOR_MISTAKES("these are 1 / mean: the deviation is .std")
def factors_of_means(z: Tensor) -> Any:
    return 1 / z.mean(), 1 / z.mean(dim=_CHANNELS).mean()


@FACTOR_MISTAKES("a root is taken of the deviation: .std is already the root of the variance")
def factors_of_roots(z: Tensor) -> Any:
    return 1 / z.std().sqrt(), 1 / z.std(dim=_CHANNELS).mean().sqrt()


@FACTOR_MISTAKES("the channels' deviations are measured from 0: each is about its channel's own mean")
def factors_of_channels_about_zero(z: Tensor) -> Any:
    return 1 / z.std(), 1 / z.square().mean(dim=_CHANNELS).sqrt().mean()


@FACTOR_MISTAKES("both measure from 0 and not from the mean: a deviation is about the mean")
def factors_both_about_zero(z: Tensor) -> Any:
    return 1 / z.square().mean().sqrt(), 1 / z.square().mean(dim=_CHANNELS).sqrt().mean()


@FACTOR_MISTAKES(
    f"{_AVERAGE}; yours is over the images at each place: a channel's deviation is over all but dimension 1"
)
def factors_at_each_place(z: Tensor) -> Any:
    return 1 / z.std(), 1 / z.std(dim=0).mean()


@FACTOR_MISTAKES(
    f"{_AVERAGE}; reshape alone mixes channels and images: bring the channels to the front first, transpose(0, 1)"
)
def factors_reshaped(z: Tensor) -> Any:
    return 1 / z.std(), 1 / z.reshape(z.shape[1], -1).std(dim=1).mean()


def _as_tensors(factors: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """Make numbers, or one tensor of two values, a pair of tensors."""

    def of(z: Tensor) -> Any:
        found = factors(z)
        if isinstance(found, Tensor) and found.shape == (2,):
            return tuple(found)
        if not isinstance(found, (tuple, list)):
            return found
        return tuple(torch.tensor(float(v)) if isinstance(v, (float, np.floating)) else v for v in found)

    return of


def _latents(shift: float, channels: int = 3) -> Tensor:
    """(20, C, 32, 32), the channels apart and of other spreads; many, so that n and n - 1 both pass."""
    (z,) = probe((20, channels, 32, 32))
    scales, shifts = torch.tensor([[1.0, 2.0, 0.5, 0.8, 1.5], [-1.0, 0.5, 2.0, 1.0, 0.0]])[:, :channels, None, None]
    return z * scales + shift * shifts


# 11.2


def _spread(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """With a change to how the two parts, variances of a channel, become the result."""
    return lambda mean, logvar: change(mean.var(dim=_CHANNELS), logvar.exp().mean(dim=_CHANNELS))


_PLACES = "each place's spread over the images, averaged: places lie apart, too, so take all of them at once"
_SHIFTED = "this shifts each mean by its noise's width, as if the noise were known: add the two variances"
SPREAD_MISTAKES = Mistakes(
    [
        (
            "the posteriors' own noise is left out: samples spread further than the means",
            _spread(lambda b, w: b.sqrt()),
        ),
        (
            "only the noise of the posteriors is counted, not how far their means lie apart",
            _spread(lambda b, w: w.sqrt()),
        ),
        (
            "the two deviations are added: variances add up, deviations do not",
            _spread(lambda b, w: b.sqrt() + w.sqrt()),
        ),
        (
            "the two deviations are added: variances add up, deviations do not",
            lambda mean, logvar: mean.std(dim=_CHANNELS) + (0.5 * logvar).exp().mean(dim=_CHANNELS),
        ),
        (
            "the root of two deviations added: variances add up, deviations do not",
            lambda mean, logvar: (mean.std(dim=_CHANNELS) + (0.5 * logvar).exp().mean(dim=_CHANNELS)).sqrt(),
        ),
        (
            "a deviation is added to a variance: the means' part is their variance, `var`",
            lambda mean, logvar: (mean.std(dim=_CHANNELS) + logvar.exp().mean(dim=_CHANNELS)).sqrt(),
        ),
        (
            "a deviation is added to a variance: add two variances, then take the root",
            lambda mean, logvar: mean.std(dim=_CHANNELS) + logvar.exp().mean(dim=_CHANNELS),
        ),
        (
            "the means' spread is taken within each image and averaged: images lie apart, too, so take all at once",
            lambda mean, logvar: (mean.var(dim=(2, 3)).mean(dim=0) + logvar.exp().mean(dim=_CHANNELS)).sqrt(),
        ),
        ("this is the variance: take its root", _spread(lambda b, w: b + w)),
        (
            "log-variances are used as variances: exp is missing",
            lambda mean, logvar: (mean.var(dim=_CHANNELS) + logvar.mean(dim=_CHANNELS)).sqrt(),
        ),
        (
            "the exponential of the mean log-variance: take exp of each value first, then the mean",
            lambda mean, logvar: (mean.var(dim=_CHANNELS) + logvar.mean(dim=_CHANNELS).exp()).sqrt(),
        ),
        (
            "the posteriors' deviations are averaged and squared: average their variances, exp(logvar)",
            lambda mean, logvar: (mean.var(dim=_CHANNELS) + (0.5 * logvar).exp().mean(dim=_CHANNELS).square()).sqrt(),
        ),
        (
            "deviations are added to variances: exp(logvar) is the variance, without the half",
            lambda mean, logvar: (mean.var(dim=_CHANNELS) + (0.5 * logvar).exp().mean(dim=_CHANNELS)).sqrt(),
        ),
        (
            "one number for all channels: each channel has its own, over all but dimension 1",
            lambda mean, logvar: (mean.var() + logvar.exp().mean()).sqrt(),
        ),
        (
            "one number for each image: over all but the channels, dimension 1",
            lambda mean, logvar: (mean.var(dim=(1, 2, 3)) + logvar.exp().mean(dim=(1, 2, 3))).sqrt(),
        ),
        (
            "the squares of the means are taken about 0: their variance is about their own mean",
            lambda mean, logvar: (mean.square() + logvar.exp()).mean(dim=_CHANNELS).sqrt(),
        ),
    ]
)


@SPREAD_MISTAKES("exp(2 · logvar) is the square of the variance: exp(logvar) is the variance")
def deviation_of_doubled_logarithms(mean: Tensor, logvar: Tensor) -> Tensor:
    return (mean.var(dim=_CHANNELS) + (2 * logvar).exp().mean(dim=_CHANNELS)).sqrt()


@SPREAD_MISTAKES("each image's deviation, averaged: images lie apart, too, so take all of them at once")
def deviation_averaged_over_images(mean: Tensor, logvar: Tensor) -> Tensor:
    return (mean.var(dim=(2, 3)) + logvar.exp().mean(dim=(2, 3))).sqrt().mean(0)


@SPREAD_MISTAKES(_PLACES)
def deviation_averaged_over_places(mean: Tensor, logvar: Tensor) -> Tensor:
    return (mean.var(dim=0) + logvar.exp().mean(dim=0)).sqrt().mean((1, 2))


@SPREAD_MISTAKES(_PLACES)
def deviation_of_variances_averaged_over_places(mean: Tensor, logvar: Tensor) -> Tensor:
    return (mean.var(dim=0) + logvar.exp().mean(dim=0)).mean((1, 2)).sqrt()


@SPREAD_MISTAKES("of the posteriors' variances the variance is taken: the noise's part is their mean")
def deviation_of_varying_variances(mean: Tensor, logvar: Tensor) -> Tensor:
    return (mean.var(dim=_CHANNELS) + logvar.exp().var(dim=_CHANNELS)).sqrt()


@SPREAD_MISTAKES("the means' part is the square of their average: it is their variance, mean.var")
def deviation_of_the_average_mean(mean: Tensor, logvar: Tensor) -> Tensor:
    return (mean.mean(dim=_CHANNELS) ** 2 + logvar.exp().mean(dim=_CHANNELS)).sqrt()


@SPREAD_MISTAKES("the posteriors' variances are added up: take their mean")
def deviation_of_summed_variances(mean: Tensor, logvar: Tensor) -> Tensor:
    return (mean.var(dim=_CHANNELS) + logvar.exp().sum(dim=_CHANNELS)).sqrt()


@SPREAD_MISTAKES("the two variances are averaged: independent parts add up")
def deviation_of_averaged_parts(mean: Tensor, logvar: Tensor) -> Tensor:
    return ((mean.var(dim=_CHANNELS) + logvar.exp().mean(dim=_CHANNELS)) / 2).sqrt()


@SPREAD_MISTAKES("the two variances are multiplied: independent parts add up")
def deviation_of_multiplied_parts(mean: Tensor, logvar: Tensor) -> Tensor:
    return (mean.var(dim=_CHANNELS) * logvar.exp().mean(dim=_CHANNELS)).sqrt()


@SPREAD_MISTAKES(_SHIFTED)
def deviation_of_means_and_variances(mean: Tensor, logvar: Tensor) -> Tensor:
    return (mean + logvar.exp()).std(dim=_CHANNELS)


@SPREAD_MISTAKES(_SHIFTED)
def deviation_of_means_and_deviations(mean: Tensor, logvar: Tensor) -> Tensor:
    return (mean + (0.5 * logvar).exp()).std(dim=_CHANNELS)


@SPREAD_MISTAKES("the root is taken at every place and then averaged: average the variances first, the root comes last")
def deviation_averaged_after_the_root(mean: Tensor, logvar: Tensor) -> Tensor:
    return (mean.var(dim=_CHANNELS, keepdim=True) + logvar.exp()).sqrt().mean(dim=_CHANNELS)


@SPREAD_MISTAKES("samples are drawn: the deviation follows from means and log-variances alone")
def deviation_of_drawn_samples(mean: Tensor, logvar: Tensor) -> Tensor:
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    return (mean + (0.5 * logvar).exp() * noise).std(dim=_CHANNELS)


@SPREAD_MISTAKES("the noise's part is averaged over all channels: each channel has its own")
def deviation_with_one_noise(mean: Tensor, logvar: Tensor) -> Tensor:
    return (mean.var(dim=_CHANNELS) + logvar.exp().mean()).sqrt()


@SPREAD_MISTAKES("the means' part is taken over all channels: each channel has its own")
def deviation_with_one_spread(mean: Tensor, logvar: Tensor) -> Tensor:
    return (mean.var() + logvar.exp().mean(dim=_CHANNELS)).sqrt()


@SPREAD_MISTAKES("the result is of columns or rows: leave dimension 1, the channels, and go over 0, 2 and 3")
def deviation_of_columns(mean: Tensor, logvar: Tensor) -> Tensor:
    return (mean.var(dim=(0, 1, 2)) + logvar.exp().mean(dim=(0, 1, 2))).sqrt()


@SPREAD_MISTAKES(_FIXED.format(3).replace("z.shape", "mean.shape"))
def deviation_of_three_channels(mean: Tensor, logvar: Tensor) -> Tensor:
    return torch.stack([(mean[:, i].var() + logvar[:, i].exp().mean()).sqrt() for i in range(3)])


@SPREAD_MISTAKES(_FIXED.format(4).replace("z.shape", "mean.shape"))
def deviation_of_four_channels(mean: Tensor, logvar: Tensor) -> Tensor:
    return torch.stack([(mean[:, i].var() + logvar[:, i].exp().mean()).sqrt() for i in range(4)])


def _posteriors(channels: int) -> tuple[Tensor, Tensor]:
    mean, logvar = probe((20, channels, 32, 32), (20, channels, 32, 32))
    scale = torch.tensor([1.0, 2.0, 0.5, 0.8])[:channels, None, None]
    mean = mean + torch.linspace(-2, 2, 20)[:, None, None, None]  # images lie apart
    return mean * scale + scale, logvar.abs() * scale.flip(0) + 0.1  # log-variances above 0, for roots of any of them


# 11.3


def _path(place: Callable[..., Tensor], velocity: Callable[..., Tensor]) -> Callable[..., Any]:
    def code(x0: Tensor, x1: Tensor, t: Tensor) -> Any:
        t = t[:, None, None, None]
        x_t = place(x0, x1, t)
        return x_t, velocity(x0, x1, t, x_t)

    return code


def _right_place(x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    return (1 - t) * x0 + t * x1


def _right_velocity(x0: Tensor, x1: Tensor, t: Tensor, x_t: Tensor) -> Tensor:
    return x1 - x0


def _backwards(x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    return t * x0 + (1 - t) * x1


PATH_MISTAKES = Mistakes(
    [
        (
            "time runs backwards in both: at t = 0 the noise x0 is meant, at t = 1 the data x1",
            _path(_backwards, lambda x0, x1, t, x_t: x0 - x1),
        ),
        (
            "time runs backwards in x_t: at t = 0 the noise x0 is meant, at t = 1 the data x1",
            _path(_backwards, _right_velocity),
        ),
        ("the velocity points from data to noise: turn its sign", _path(_right_place, lambda x0, x1, t, x_t: x0 - x1)),
        (
            "the velocity is what is left of the way, x1 - x_t: the whole way is travelled in one unit of time",
            _path(_right_place, lambda x0, x1, t, x_t: x1 - x_t),
        ),
        (
            "the velocity is the way travelled so far, x_t - x0: the whole way is travelled in one unit of time",
            _path(_right_place, lambda x0, x1, t, x_t: x_t - x0),
        ),
        (
            "this is the path of a diffusion model, whose squared weights sum to 1: here the weights themselves do",
            _path(lambda x0, x1, t: (1 - t * t).sqrt() * x0 + t * x1, _right_velocity),
        ),
        (
            "this is an arc of sine and cosine: here the weights are 1 - t and t",
            _path(lambda x0, x1, t: torch.cos(t * math.pi / 2) * x0 + torch.sin(t * math.pi / 2) * x1, _right_velocity),
        ),
        (
            "the noise keeps its full strength: its weight is 1 - t",
            _path(lambda x0, x1, t: x0 + t * x1, _right_velocity),
        ),
        (
            "the velocity is the data alone: what moves away from the noise also loses it, x1 - x0",
            _path(_right_place, lambda x0, x1, t, x_t: x1),
        ),
        (
            "t (B,) was spread along the width: give it three more dimensions, one time for each image",
            lambda x0, x1, t: ((1 - t) * x0 + t * x1, x1 - x0),
        ),
        (
            "t (B,) was spread along the rows or channels: give it three more dimensions, one time for each image",
            lambda x0, x1, t: ((1 - t[:, None]) * x0 + t[:, None] * x1, x1 - x0),
        ),
        (
            "t (B,) was spread along the rows or channels: give it three more dimensions, one time for each image",
            lambda x0, x1, t: ((1 - t[:, None, None]) * x0 + t[:, None, None] * x1, x1 - x0),
        ),
        (
            "one time for the whole batch: each image has its own",
            lambda x0, x1, t: (_right_place(x0, x1, t[0]), x1 - x0),
        ),
        (
            "the times are averaged into one: each image has its own",
            lambda x0, x1, t: (_right_place(x0, x1, t.mean()), x1 - x0),
        ),
    ]
)


@PATH_MISTAKES("the number of images is fixed at 4: -1 or None takes any, t[:, None, None, None]")
def path_of_four(x0: Tensor, x1: Tensor, t: Tensor) -> Any:
    return _right_place(x0, x1, t.view(4, 1, 1, 1)), x1 - x0


@PATH_MISTAKES("the velocity is divided by t, which is 0 at the start: that gives NaN; it is x1 - x0, without t")
def path_over_the_time(x0: Tensor, x1: Tensor, t: Tensor) -> Any:
    t = t[:, None, None, None]
    x_t = (1 - t) * x0 + t * x1
    return x_t, (x_t - x0) / t


@PATH_MISTAKES("the velocity is divided by 1 - t, which is 0 at the end: that gives NaN; it is x1 - x0, without t")
def path_over_the_rest_of_the_time(x0: Tensor, x1: Tensor, t: Tensor) -> Any:
    t = t[:, None, None, None]
    x_t = (1 - t) * x0 + t * x1
    return x_t, (x1 - x_t) / (1 - t)


@PATH_MISTAKES("the velocity is the sum of both: it leads from noise to data, x1 - x0")
def path_with_a_sum(x0: Tensor, x1: Tensor, t: Tensor) -> Any:
    return _right_place(x0, x1, t[:, None, None, None]), x0 + x1


@PATH_MISTAKES("the velocity is the noise alone, as a diffusion model predicts it: here it is x1 - x0")
def path_with_the_noise(x0: Tensor, x1: Tensor, t: Tensor) -> Any:
    return _right_place(x0, x1, t[:, None, None, None]), x0.clone()


@PATH_MISTAKES("the velocity has lost the data: the derivative of t · x1 is x1, so that it is x1 - x0")
def path_away_from_the_noise(x0: Tensor, x1: Tensor, t: Tensor) -> Any:
    return _right_place(x0, x1, t[:, None, None, None]), -x0


@PATH_MISTAKES("roots of 1 - t and t are a diffusion model's weights: here they are 1 - t and t themselves")
def path_of_roots(x0: Tensor, x1: Tensor, t: Tensor) -> Any:
    t = t[:, None, None, None]
    return (1 - t).sqrt() * x0 + t.sqrt() * x1, x1 - x0


@PATH_MISTAKES("x_t subtracts the data: both parts are added, (1 - t) · x0 + t · x1")
def path_subtracted(x0: Tensor, x1: Tensor, t: Tensor) -> Any:
    t = t[:, None, None, None]
    return (1 - t) * x0 - t * x1, x1 - x0


@PATH_MISTAKES("x_t moves away from the data: it is x0 + t · (x1 - x0)")
def path_away_from_the_data(x0: Tensor, x1: Tensor, t: Tensor) -> Any:
    return x0 + t[:, None, None, None] * (x0 - x1), x1 - x0


@PATH_MISTAKES("brackets are missing in x_t: (1 - t) as a whole multiplies x0")
def path_without_brackets(x0: Tensor, x1: Tensor, t: Tensor) -> Any:
    t = t[:, None, None, None]
    return 1 - t * x0 + t * x1, x1 - x0


@PATH_MISTAKES("the results are exchanged: the place x_t comes first, then the velocity")
def path_exchanged(x0: Tensor, x1: Tensor, t: Tensor) -> Any:
    return x1 - x0, _right_place(x0, x1, t[:, None, None, None])


@PATH_MISTAKES("x_t is halfway, whatever t is: its weights are 1 - t and t")
def path_halfway(x0: Tensor, x1: Tensor, t: Tensor) -> Any:
    return (x0 + x1) / 2, x1 - x0


@PATH_MISTAKES("x_t is where the data are, x1: at time t it is between noise and data, (1 - t) · x0 + t · x1")
def path_at_the_end(x0: Tensor, x1: Tensor, t: Tensor) -> Any:
    return x1.clone(), x1 - x0


@PATH_MISTAKES("dimensions of size 1 are squeezed away: both results have the shape of x0")
def path_squeezed(x0: Tensor, x1: Tensor, t: Tensor) -> Any:
    return _right_place(x0, x1, t[:, None, None, None]).squeeze(), (x1 - x0).squeeze()


def _noise_data(*shape: int) -> tuple[Tensor, Tensor]:
    x0, x1 = probe(shape, shape)
    return x0, x1.flip(0) * 1.5 - 0.4


_PLACES_AND_TIMES = [
    (*_noise_data(4, 4, 4, 4), torch.tensor([0.1, 0.35, 0.6, 0.9])),  # of one side each, so that all broadcasts
    (*_noise_data(3, 1, 3, 5), torch.tensor([0.0, 0.3, 1.0])),
    (*_noise_data(1, 3, 5, 2), torch.tensor([0.7])),
]


# 11.4

_Velocity = Callable[[Tensor, Tensor], Tensor]


def _column(x: Any, t: Any) -> Tensor:
    """Return the times (B,) in a shape that broadcasts with x (B, …), as a network would take them.

    Raises:
        ValueError: these are no times (B,), or of another precision than x.
    """
    if not isinstance(t, Tensor) or t.shape != x.shape[:1]:
        raise ValueError("velocity: expected times (B,)")
    if t.is_floating_point() and t.dtype != x.dtype:
        raise ValueError("velocity: expected times of the dtype of x")
    return t.view(-1, *(1,) * (x.ndim - 1))


def _swirl(x: Tensor, t: Tensor) -> Tensor:
    """Compute a velocity that is not linear in place or time, and of every time by itself."""
    return torch.sin(2 * x) + (1 + 3 * _column(x, t)) ** 2 * x.flip(1)


def _settling(x: Tensor, t: Tensor) -> Tensor:
    return (_column(x, t).exp() - x) * 0.7


def _steps(step: Callable[..., Tensor], times: Callable[[int], list[float]] | None = None) -> Callable[..., Tensor]:
    """With another step(velocity, x, t, dt), or at other times."""

    def code(velocity: Callable[..., Tensor], x0: Tensor, steps: int) -> Tensor:
        x = x0
        for time in times(steps) if times else [number / steps for number in range(steps)]:
            x = step(velocity, x, torch.full((len(x),), time), 1 / steps)
        return x

    return code


def _heun(velocity: Callable[..., Tensor], x: Tensor, t: Tensor, dt: float) -> Tensor:
    v = velocity(x, t)
    return x + dt * (v + velocity(x + dt * v, t + dt)) / 2


_ONE_TIME = "velocity wants a time for each of the batch: a tensor (B,), as from torch.full((len(x),), time)"
INTEGRATE_MISTAKES = Mistakes(
    [
        (
            "this is Euler's method: Heun's averages the velocity at the start with the one at the end of the step",
            _steps(lambda velocity, x, t, dt: x + dt * velocity(x, t)),
        ),
        (
            "only the velocity at the end is used: average it with the one at the start",
            _steps(lambda velocity, x, t, dt: x + dt * velocity(x + dt * velocity(x, t), t + dt)),
        ),
        (
            "the end's velocity is asked at the start's time: it belongs to t + dt",
            _steps(lambda velocity, x, t, dt: x + dt * (velocity(x, t) + velocity(x + dt * velocity(x, t), t)) / 2),
        ),
        (
            "the end's velocity is asked at the start's place: go there first, x + dt · v",
            _steps(lambda velocity, x, t, dt: x + dt * (velocity(x, t) + velocity(x, t + dt)) / 2),
        ),
        (
            "the end is looked for a whole velocity away: after a step of dt one is at x + dt · v",
            _steps(lambda velocity, x, t, dt: x + dt * (velocity(x, t) + velocity(x + velocity(x, t), t + dt)) / 2),
        ),
        (
            "the two velocities are added, which goes twice as far: take their average",
            _steps(lambda velocity, x, t, dt: x + dt * (velocity(x, t) + velocity(x + dt * velocity(x, t), t + dt))),
        ),
        (
            "this is the midpoint method: Heun's asks at the start and at the end of a step",
            _steps(lambda velocity, x, t, dt: x + dt * velocity(x + dt / 2 * velocity(x, t), t + dt / 2)),
        ),
        (
            "dt is missing: each step goes 1 / steps of the way",
            _steps(lambda velocity, x, t, dt: x + (velocity(x, t) + velocity(x + velocity(x, t), t + dt)) / 2),
        ),
        (
            "dt is missing in the step: the average velocity is travelled for a time dt",
            _steps(lambda velocity, x, t, dt: x + (velocity(x, t) + velocity(x + dt * velocity(x, t), t + dt)) / 2),
        ),
        (
            "it ends one step too early: there are as many steps as `steps` says",
            _steps(_heun, lambda n: [k / n for k in range(n - 1)]),
        ),
        (
            "the times are those of linspace(0, 1, steps), whose distance is not 1 / steps: step k begins at k / steps",
            _steps(_heun, lambda n: torch.linspace(0, 1, n).tolist()),
        ),
        (
            "a step begins at the time at which it should end: step k begins at k / steps",
            _steps(_heun, lambda n: [(k + 1) / n for k in range(n)]),
        ),
        (
            "it goes from t = 1 to 0: noise is at t = 0",
            _steps(lambda velocity, x, t, dt: _heun(velocity, x, t, -dt), lambda n: [1 - k / n for k in range(n)]),
        ),
        (
            "the number of the step is taken for the time: step k begins at k / steps",
            _steps(_heun, lambda n: [float(k) for k in range(n)]),
        ),
        (
            "a place is averaged with a velocity: ask `velocity` again, at that place and time",
            _steps(lambda velocity, x, t, dt: x + dt * (velocity(x, t) + x + dt * velocity(x, t)) / 2),
        ),
        (
            "every step is taken at t = 0: the time moves on with each",
            _steps(_heun, lambda n: [0.0] * n),
        ),
    ]
)


@INTEGRATE_MISTAKES(_ONE_TIME)  # by its exception
def integrate_with_a_column_of_times(velocity: _Velocity, x0: Tensor, steps: int) -> Tensor:
    x = x0
    for step in range(steps):
        x = _heun(velocity, x, torch.full((len(x), 1), step / steps), 1 / steps)
    return x


@INTEGRATE_MISTAKES(
    "the times are of another shape where x has more dimensions: (B,), as from torch.full((len(x),), time)"
)
def integrate_with_times_of_a_slice(velocity: _Velocity, x0: Tensor, steps: int) -> Tensor:
    x = x0
    for step in range(steps):
        x = _heun(velocity, x, torch.full_like(x[:, 0], step / steps), 1 / steps)
    return x


@INTEGRATE_MISTAKES("the times are in float64, which a network in float32 refuses: give them the dtype of x")
def integrate_with_times_in_double(velocity: _Velocity, x0: Tensor, steps: int) -> Tensor:
    x = x0
    for step in range(steps):
        x = _heun(velocity, x, torch.full((len(x),), step / steps, dtype=torch.float64), 1 / steps)
    return x


@INTEGRATE_MISTAKES("it stops after the first step: `return` stands in the loop; put it behind")
def integrate_returning_in_the_loop(velocity: _Velocity, x0: Tensor, steps: int) -> Tensor:
    x = x0
    for step in range(steps):
        x = _heun(velocity, x, torch.full((len(x),), step / steps), 1 / steps)
        return x
    return x


@INTEGRATE_MISTAKES("every step sets out from x0: go on from the x that the last step reached")
def integrate_always_from_the_start(velocity: _Velocity, x0: Tensor, steps: int) -> Tensor:
    x, dt = x0, 1 / steps
    for step in range(steps):
        t = torch.full((len(x),), step * dt)
        v = velocity(x, t)
        x = x0 + dt * (v + velocity(x + dt * v, t + dt)) / 2
    return x


@INTEGRATE_MISTAKES("the velocities are asked at x0 in every step: ask at the x that the last step reached")
def integrate_asking_at_the_start(velocity: _Velocity, x0: Tensor, steps: int) -> Tensor:
    x, dt = x0, 1 / steps
    for step in range(steps):
        t = torch.full((len(x),), step * dt)
        v = velocity(x0, t)
        x = x + dt * (v + velocity(x0 + dt * v, t + dt)) / 2
    return x


@INTEGRATE_MISTAKES("x is not carried on: every step begins at x0 again, and only the last one counts")
def integrate_without_carrying_on(velocity: _Velocity, x0: Tensor, steps: int) -> Tensor:
    x, end, dt = x0, x0, 1 / steps
    for step in range(steps):
        end = _heun(velocity, x, torch.full((len(x),), step * dt), dt)
    return end


@INTEGRATE_MISTAKES("the place is lost: the step is added to x, x + dt · (v + v_end) / 2")
def integrate_without_the_place(velocity: _Velocity, x0: Tensor, steps: int) -> Tensor:
    x, dt = x0, 1 / steps
    for step in range(steps):
        x = _heun(velocity, x, torch.full((len(x),), step * dt), dt) - x
    return x


@INTEGRATE_MISTAKES(
    "this is Euler's method with the times in the middle of the steps: Heun's asks at the start and at the end"
)
def integrate_by_euler_in_the_middle(velocity: _Velocity, x0: Tensor, steps: int) -> Tensor:
    x = x0
    for step in range(steps):
        x = x + velocity(x, torch.full((len(x),), (step + 0.5) / steps)) / steps
    return x


@INTEGRATE_MISTAKES("one single step, whatever `steps` is: repeat it in a loop, each over 1 / steps of the time")
def integrate_in_one_step(velocity: _Velocity, x0: Tensor, steps: int) -> Tensor:
    return _heun(velocity, x0, torch.zeros(len(x0)), 1.0)


@INTEGRATE_MISTAKES("it goes one step too far: there are as many steps as `steps` says")
def integrate_one_step_more(velocity: _Velocity, x0: Tensor, steps: int) -> Tensor:
    x = x0
    for step in range(steps + 1):
        x = _heun(velocity, x, torch.full((len(x),), step / steps), 1 / steps)
    return x


@INTEGRATE_MISTAKES("only the second velocity is halved: put brackets around the sum of both, (v + v_end) / 2")
def integrate_halving_one(velocity: _Velocity, x0: Tensor, steps: int) -> Tensor:
    x, dt = x0, 1 / steps
    for step in range(steps):
        t = torch.full((len(x),), step * dt)
        v = velocity(x, t)
        x = x + dt * (v + velocity(x + dt * v, t + dt) / 2)
    return x


@INTEGRATE_MISTAKES("dt multiplies the first velocity only: put brackets around the sum of both, dt · (v + v_end) / 2")
def integrate_without_brackets(velocity: _Velocity, x0: Tensor, steps: int) -> Tensor:
    x, dt = x0, 1 / steps
    for step in range(steps):
        t = torch.full((len(x),), step * dt)
        v = velocity(x, t)
        x = x + dt * v + velocity(x + dt * v, t + dt) / 2
    return x


@INTEGRATE_MISTAKES("it goes against the velocity: the step is added")
def integrate_backwards(velocity: _Velocity, x0: Tensor, steps: int) -> Tensor:
    x, dt = x0, 1 / steps
    for step in range(steps):
        t = torch.full((len(x),), step * dt)
        v = velocity(x, t)
        x = x - dt * (v + velocity(x + dt * v, t + dt)) / 2
    return x


@INTEGRATE_MISTAKES("the trial step goes backwards: the end of the step is at x + dt · v")
def integrate_trying_backwards(velocity: _Velocity, x0: Tensor, steps: int) -> Tensor:
    x, dt = x0, 1 / steps
    for step in range(steps):
        t = torch.full((len(x),), step * dt)
        v = velocity(x, t)
        x = x + dt * (v + velocity(x - dt * v, t + dt)) / 2
    return x


@INTEGRATE_MISTAKES("the second velocity is asked at t = 1: the step ends at t + dt")
def integrate_asking_at_the_very_end(velocity: _Velocity, x0: Tensor, steps: int) -> Tensor:
    x, dt = x0, 1 / steps
    for step in range(steps):
        v = velocity(x, torch.full((len(x),), step * dt))
        x = x + dt * (v + velocity(x + dt * v, torch.ones(len(x)))) / 2
    return x


@INTEGRATE_MISTAKES("the second velocity is asked at t + 1: the step ends at t + dt")
def integrate_asking_one_later(velocity: _Velocity, x0: Tensor, steps: int) -> Tensor:
    x, dt = x0, 1 / steps
    for step in range(steps):
        t = torch.full((len(x),), step * dt)
        v = velocity(x, t)
        x = x + dt * (v + velocity(x + dt * v, t + 1)) / 2
    return x


@INTEGRATE_MISTAKES("this is the method of Runge and Kutta: Heun's asks twice a step, and takes the average")
def integrate_by_runge_kutta(velocity: _Velocity, x0: Tensor, steps: int) -> Tensor:
    x, dt = x0, 1 / steps
    for step in range(steps):
        t = torch.full((len(x),), step * dt)
        a = velocity(x, t)
        b = velocity(x + dt / 2 * a, t + dt / 2)
        c = velocity(x + dt / 2 * b, t + dt / 2)
        x = x + dt * (a + 2 * b + 2 * c + velocity(x + dt * c, t + dt)) / 6
    return x


@INTEGRATE_MISTAKES("the times run from 1 down, though the steps go forwards: step k begins at k / steps")
def integrate_with_falling_times(velocity: _Velocity, x0: Tensor, steps: int) -> Tensor:
    x = x0
    for step in range(steps, 0, -1):
        x = _heun(velocity, x, torch.full((len(x),), step / steps), 1 / steps)
    return x


@INTEGRATE_MISTAKES("all places on the way are returned: the last one is asked for")
def integrate_stacking_the_way(velocity: _Velocity, x0: Tensor, steps: int) -> Tensor:
    way = [x0]
    for step in range(steps):
        way.append(_heun(velocity, way[-1], torch.full((len(x0),), step / steps), 1 / steps))
    return torch.stack(way)


@INTEGRATE_MISTAKES("the number of steps is fixed: use `steps`")
def integrate_in_four_steps(velocity: _Velocity, x0: Tensor, steps: int) -> Tensor:
    return integrate(velocity, x0, 4)


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
        judge=adapted(
            judge_function(
                scaling_factors,
                [(_latents(0.0),), (_latents(1.0, 5),), (_latents(-3.0, 2),)],
                FACTOR_MISTAKES,
                inputs=("z",),
                outputs=("the factor of all values", "the factor of the channels"),
            ),
            _as_tensors,
        ),
    ),
    Exercise(
        id="11.2",
        title="The spread of samples nobody drew",
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
            deviation_of_samples,
            [_posteriors(3), _posteriors(2)],
            SPREAD_MISTAKES,
            inputs=("mean", "logvar"),
            outputs=("the deviation",),
        ),
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
        judge=judge_function(
            integrate,
            [(_swirl, *probe((3, 4)), 4), (_settling, *probe((2, 3, 4, 5)), 3), (_settling, *probe((1, 2)), 1)],
            INTEGRATE_MISTAKES,
            inputs=("velocity", "x0", "steps"),
        ),
    ),
)
