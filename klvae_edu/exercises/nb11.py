"""The exercises of notebook 11, latents for diffusion."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from klvae_edu import flow
from klvae_edu.data import latent_dataset, latent_writer
from klvae_edu.exercises.exercise import Exercise
from klvae_edu.exercises.judges.functions import judge_function, probe
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
FACTOR_MISTAKES = (
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
    ("both are of the channels: the first takes all values as one heap", _factors(lambda z, a, c: (1 / c.mean(),) * 2)),
    ("both are of all values: the second takes each channel by itself first", _factors(lambda z, a, c: (1 / a,) * 2)),
)


def _latents(shift: float) -> Tensor:
    """(20, 3, 32, 32), the channels apart and of other spreads; many, so that n and n - 1 both pass."""
    (z,) = probe((20, 3, 32, 32))
    return z * torch.tensor([1.0, 2.0, 0.5])[:, None, None] + shift * torch.tensor([-1.0, 0.5, 2.0])[:, None, None]


# 11.2


def _spread(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """With a change to how the two parts, variances of a channel, become the result."""
    return lambda mean, logvar: change(mean.var(dim=_CHANNELS), logvar.exp().mean(dim=_CHANNELS))


SPREAD_MISTAKES = (
    ("the posteriors' own noise is left out: samples spread further than the means", _spread(lambda b, w: b.sqrt())),
    ("only the noise of the posteriors is counted, not how far their means lie apart", _spread(lambda b, w: w.sqrt())),
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
)


def _posteriors() -> tuple[Tensor, Tensor]:
    mean, logvar = probe((20, 3, 32, 32), (20, 3, 32, 32))
    scale = torch.tensor([1.0, 2.0, 0.5])[:, None, None]
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


PATH_MISTAKES = (
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
)


def _noise_data_times() -> tuple[Tensor, Tensor, Tensor]:
    x0, x1 = probe((4, 4, 4, 4), (4, 4, 4, 4))
    return x0, x1.flip(0) * 1.5 - 0.4, torch.tensor([0.1, 0.35, 0.6, 0.9])  # of one side each, so that all broadcasts


# 11.4


def _swirl(x: Tensor, t: Tensor) -> Tensor:
    """Not linear in place or time, and of every time by itself."""
    return torch.sin(2 * x) + (1 + 3 * t.view(len(x), 1)) ** 2 * x.flip(1)  # view: one time for all is refused


def _settling(x: Tensor, t: Tensor) -> Tensor:
    return (t.view(len(x), 1).exp() - x) * 0.7


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


def _with_a_number(velocity: Callable[..., Tensor], x0: Tensor, steps: int) -> Tensor:
    return velocity(x0, 0.0)


def _with_a_scalar(velocity: Callable[..., Tensor], x0: Tensor, steps: int) -> Tensor:
    return velocity(x0, torch.tensor(0.0))


def _with_one_time(velocity: Callable[..., Tensor], x0: Tensor, steps: int) -> Tensor:
    return velocity(x0, torch.zeros(1))


_ONE_TIME = "velocity wants a time for each of the batch: a tensor (B,), as from torch.full((len(x),), time)"
INTEGRATE_MISTAKES = (
    (_ONE_TIME, _with_a_number),  # by their exceptions
    (_ONE_TIME, _with_a_scalar),
    (_ONE_TIME, _with_one_time),
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
        _steps(_heun, lambda n: [k / (n - 1) for k in range(n)]),
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
)


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
            [(_latents(0.0),), (_latents(1.0),), (_latents(-3.0),)],
            FACTOR_MISTAKES,
            inputs=("z",),
            outputs=("the factor of all values", "the factor of the channels"),
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
            [_posteriors()],
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
            [_noise_data_times()],
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
            [(_swirl, *probe((3, 4)), 4), (_settling, *probe((2, 5)), 3)],
            INTEGRATE_MISTAKES,
            inputs=("velocity", "x0", "steps"),
        ),
    ),
)
