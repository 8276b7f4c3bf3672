"""Typical answers to the exercises of notebook 11: blank, unfinished, wrong, and right in many styles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from klvae_edu import flow, latents
from klvae_edu.exercises import nb11
from tests.exercises.answers import assert_blank, assert_passes, assert_rejected, mistakes, verdicts

# 11.1


def factors_raises(z):
    raise NotImplementedError


def factors_gaps(z):
    of_all = ...  # noqa: F841
    of_channels = ...  # noqa: F841
    return ..., ...


def factors_half(z):
    return 1 / z.std(), ...


def factors_swapped(z):
    return 1 / z.std(dim=(0, 2, 3)).mean(), 1 / z.std()


def factors_upside_down(z):
    return z.std(), z.transpose(0, 1).flatten(1).std(1).mean()


def factors_first_upside_down(z):
    return z.std(), 1 / z.std(dim=(0, 2, 3)).mean()


def factors_across_the_channels(z):
    return 1 / z.std(), 1 / z.std(1).mean()


def factors_of_variances(z):
    return 1 / z.var(), 1 / z.var(dim=(0, 2, 3)).mean()


def factors_averaged(z):
    each = [1 / z[:, channel].std() for channel in range(z.shape[1])]
    return 1 / z.std(), sum(each) / len(each)


def factors_of_averaged_variances(z):
    variances = torch.stack([z[:, channel].var() for channel in range(z.shape[1])])
    return 1 / z.std(), variances.mean() ** -0.5


def factors_over_images(z):
    return 1 / z.std(), 1 / z.flatten(1).std(dim=1).mean()


def factors_of_each_image(z):
    return 1 / torch.std(z), 1 / torch.std(z, (2, 3)).mean()


def factors_about_zero(z):
    return (z**2).mean().rsqrt(), 1 / z.std(dim=(0, 2, 3)).mean()


def factors_of_each_channel(z):
    return 1 / z.std(), 1 / z.std(dim=(0, 2, 3))


def factors_both_of_all(z):
    factor = 1 / z.std()
    return factor, factor


def factors_in_numpy(z):
    channels = [np.std(z[:, channel].numpy()) for channel in range(z.shape[1])]
    return torch.tensor(1 / np.std(z.numpy())), torch.tensor(1 / np.mean(channels))


def factors_by_statistics(z):
    found = latents.statistics([z])
    return torch.tensor(found.scaling_factor), 1 / found.std.mean()


def factors_by_reshaping(z):
    values = z.permute(1, 0, 2, 3).reshape(z.shape[1], -1).double()
    return [values.std() ** -1, values.std(dim=1, correction=0).mean() ** -1]


# 11.2


def spread_raises(mean, logvar):
    raise NotImplementedError


def spread_gaps(mean, logvar):
    of_means = ...  # noqa: F841
    of_noise = ...  # noqa: F841
    return ...


def spread_half(mean, logvar):
    of_means = mean.var(dim=(0, 2, 3))
    of_noise = ...
    return (of_means + of_noise).sqrt()


def spread_of_means(mean, logvar):
    return mean.std(dim=(0, 2, 3))


def spread_of_noise(mean, logvar):
    return torch.sqrt(torch.exp(logvar).mean((0, 2, 3)))


def spread_added(mean, logvar):
    return mean.std((0, 2, 3)) + logvar.exp().mean((0, 2, 3)).sqrt()


def spread_of_added_deviations(mean, logvar):
    return mean.std((0, 2, 3)) + torch.exp(0.5 * logvar).mean((0, 2, 3))


def spread_of_a_deviation_and_a_variance(mean, logvar):
    return torch.sqrt(mean.std((0, 2, 3)) + torch.exp(logvar).mean((0, 2, 3)))


def spread_within_images(mean, logvar):
    return torch.sqrt(mean.flatten(2).var(2).mean(0) + torch.exp(logvar).mean((0, 2, 3)))


def spread_without_the_root(mean, logvar):
    return mean.var((0, 2, 3)) + logvar.exp().mean((0, 2, 3))


def spread_without_exp(mean, logvar):
    return (mean.var((0, 2, 3)) + logvar.mean((0, 2, 3))) ** 0.5


def spread_of_the_mean_logvar(mean, logvar):
    return (mean.var((0, 2, 3)) + logvar.mean((0, 2, 3)).exp()) ** 0.5


def spread_of_averaged_deviations(mean, logvar):
    std = torch.exp(0.5 * logvar).mean((0, 2, 3))
    return (mean.var((0, 2, 3)) + std**2) ** 0.5


def spread_with_the_half(mean, logvar):
    return (mean.var((0, 2, 3)) + torch.exp(logvar / 2).mean((0, 2, 3))) ** 0.5


def spread_of_all_channels(mean, logvar):
    return torch.sqrt(mean.var() + logvar.exp().mean())


def spread_about_zero(mean, logvar):
    return torch.sqrt((mean**2 + logvar.exp()).mean((0, 2, 3)))


def spread_drawn(mean, logvar):
    return (mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)).std((0, 2, 3))


def spread_by_second_moments(mean, logvar):
    mean, logvar = mean.double(), logvar.double()
    second = (mean.square() + logvar.exp()).mean((0, 2, 3))
    return (second - mean.mean((0, 2, 3)) ** 2).sqrt()


def spread_by_a_loop(mean, logvar):
    found = []
    for channel in range(mean.shape[1]):
        found.append(math.sqrt(mean[:, channel].var().item() + logvar[:, channel].exp().mean().item()))
    return torch.tensor(found)


# 11.3


def path_raises(x0, x1, t):
    raise NotImplementedError


def path_gaps(x0, x1, t):
    t = ...  # noqa: F841
    x_t = ...
    return x_t, ...


def path_half(x0, x1, t):
    t = t.view(-1, 1, 1, 1)
    return (1 - t) * x0 + t * x1, ...


def path_backwards(x0, x1, t):
    t = t.view(-1, 1, 1, 1)
    return t * x0 + (1 - t) * x1, x0 - x1


def path_backwards_in_place(x0, x1, t):
    t = t.view(-1, 1, 1, 1)
    return torch.lerp(x1, x0, t), x1 - x0


def path_with_a_wrong_sign(x0, x1, t):
    t = t.view(-1, 1, 1, 1)
    return x0 + t * (x1 - x0), x0 - x1


def path_what_is_left(x0, x1, t):
    t = t.view(-1, 1, 1, 1)
    x_t = x0 + t * (x1 - x0)
    return x_t, x1 - x_t


def path_so_far(x0, x1, t):
    t = t.view(-1, 1, 1, 1)
    x_t = x0 + t * (x1 - x0)
    return x_t, x_t - x0


def path_of_diffusion(x0, x1, t):
    t = t.view(-1, 1, 1, 1)
    return torch.sqrt(1 - t**2) * x0 + t * x1, x1 - x0


def path_with_full_noise(x0, x1, t):
    return x0 + t.view(-1, 1, 1, 1) * x1, x1 - x0


def path_to_the_data_alone(x0, x1, t):
    t = t.view(-1, 1, 1, 1)
    return (1 - t) * x0 + t * x1, x1


def path_along_the_width(x0, x1, t):
    return (1 - t) * x0 + t * x1, x1 - x0


def path_along_the_rows(x0, x1, t):
    t = t.unsqueeze(-1)
    return (1 - t) * x0 + t * x1, x1 - x0


def path_along_the_channels(x0, x1, t):
    t = t.view(-1, 1, 1)
    return (1 - t) * x0 + t * x1, x1 - x0


def path_at_one_time(x0, x1, t):
    return torch.lerp(x0, x1, t[0].item()), x1 - x0


def path_at_the_average_time(x0, x1, t):
    return torch.lerp(x0, x1, t.mean().item()), x1 - x0


def path_in_place(x0, x1, t):
    velocity = x1 - x0
    x0 += t.view(-1, 1, 1, 1) * velocity
    return x0, velocity


def path_by_lerp(x0, x1, t):
    return torch.lerp(x0, x1, t.view(-1, 1, 1, 1)), x1 - x0


def path_by_einsum(x0, x1, t):
    v = torch.sub(x1, x0).double()
    return x0.double() + torch.einsum("b,bchw->bchw", t.double(), v), v


def path_by_a_loop(x0, x1, t):
    return torch.stack([(1 - s) * a + s * b for a, b, s in zip(x0, x1, t, strict=True)]), x1 - x0


# 11.4


def integrate_raises(velocity, x0, steps):
    raise NotImplementedError


def integrate_gaps(velocity, x0, steps):
    x, dt = x0, 1 / steps  # noqa: F841
    for _ in range(steps):
        t = ...  # noqa: F841
        v = ...  # noqa: F841
        v_end = ...  # noqa: F841
        x = ...
    return x


def integrate_half(velocity, x0, steps):
    x, dt = x0, 1 / steps
    for step in range(steps):
        t = torch.full((len(x),), step * dt)
        v = velocity(x, t)
        v_end = ...
        x = x + dt * (v + v_end) / 2
    return x


def integrate_with_numbers(velocity, x0, steps):
    x = x0
    for step in range(steps):
        v = velocity(x, step / steps)
        x = x + (v + velocity(x + v / steps, (step + 1) / steps)) / (2 * steps)
    return x


def integrate_with_a_scalar(velocity, x0, steps):
    x, dt = x0, 1 / steps
    for t in torch.arange(steps) / steps:
        v = velocity(x, t)
        x = x + dt * (v + velocity(x + dt * v, t + dt)) / 2
    return x


def integrate_with_one_time(velocity, x0, steps):
    x, dt = x0, 1 / steps
    for step in range(steps):
        t = torch.tensor([step * dt])
        v = velocity(x, t)
        x = x + dt * (v + velocity(x + dt * v, t + dt)) / 2
    return x


def integrate_by_step_numbers(velocity, x0, steps):
    x, dt = x0, 1 / steps
    for step in range(steps):
        t = torch.full((len(x),), float(step))
        v = velocity(x, t)
        x = x + dt * (v + velocity(x + dt * v, t + dt)) / 2
    return x


def integrate_with_a_place_for_a_velocity(velocity, x0, steps):
    x, dt = x0, 1 / steps
    for step in range(steps):
        v = velocity(x, torch.full((len(x),), step * dt))
        v_end = x + dt * v
        x = x + dt * (v + v_end) / 2
    return x


def integrate_by_euler(velocity, x0, steps):
    x = x0
    for step in range(steps):
        x = x + velocity(x, torch.full((x.shape[0],), step / steps)) / steps
    return x


def heun_like(velocity, x0, steps, place, time, step_of):
    x, dt = x0, 1 / steps
    for step in range(steps):
        t = torch.full((len(x),), step * dt)
        v = velocity(x, t)
        x = x + step_of(v, velocity(place(x, v, dt), time(t, dt)), dt)
    return x


def integrate_only_the_end(velocity, x0, steps):
    return heun_like(velocity, x0, steps, lambda x, v, dt: x + dt * v, lambda t, dt: t + dt, lambda v, w, dt: dt * w)


def integrate_at_the_same_time(velocity, x0, steps):
    return heun_like(
        velocity, x0, steps, lambda x, v, dt: x + dt * v, lambda t, dt: t, lambda v, w, dt: dt * (v + w) / 2
    )


def integrate_at_the_same_place(velocity, x0, steps):
    return heun_like(velocity, x0, steps, lambda x, v, dt: x, lambda t, dt: t + dt, lambda v, w, dt: dt * (v + w) / 2)


def integrate_added(velocity, x0, steps):
    return heun_like(
        velocity, x0, steps, lambda x, v, dt: x + dt * v, lambda t, dt: t + dt, lambda v, w, dt: dt * (v + w)
    )


def integrate_without_dt(velocity, x0, steps):
    return heun_like(
        velocity, x0, steps, lambda x, v, dt: x + dt * v, lambda t, dt: t + dt, lambda v, w, dt: (v + w) / 2
    )


def integrate_by_linspace(velocity, x0, steps):
    x, dt = x0, 1 / steps
    for time in torch.linspace(0, 1, steps):
        t = time.repeat(len(x))
        v = velocity(x, t)
        x = x + dt * (v + velocity(x + dt * v, t + dt)) / 2
    return x


def integrate_one_short(velocity, x0, steps):
    x, dt = x0, 1 / steps
    for step in range(steps - 1):
        t = torch.full((len(x),), step * dt)
        v = velocity(x, t)
        x = x + dt * (v + velocity(x + dt * v, t + dt)) / 2
    return x


def integrate_in_place(velocity, x0, steps):
    x, dt = x0, 1 / steps
    for step in range(steps):
        t = torch.full((len(x),), step * dt)
        v = velocity(x, t)
        x += dt * (v + velocity(x + dt * v, t + dt)) / 2
    return x


def integrate_by_the_package(velocity, x0, steps):
    return flow.integrate(velocity, x0, steps)


def integrate_on_a_copy(velocity, x0, steps):
    x, t, dt = x0.clone(), torch.zeros(len(x0)), 1.0 / steps
    for _ in range(steps):
        first = velocity(x, t)
        t = t + dt
        second = velocity(x + dt * first, t)
        x += 0.5 * dt * first
        x += 0.5 * dt * second
    return x


def integrate_by_recursion(velocity, x0, steps, done=0):
    if done == steps:
        return x0
    now, after = (torch.full((len(x0),), (done + k) / steps) for k in (0, 1))
    v = velocity(x0, now)
    return integrate_by_recursion(velocity, x0 + (v + velocity(x0 + v / steps, after)) / (2 * steps), steps, done + 1)


BLANK = {
    "11.1": (factors_raises, factors_gaps),
    "11.2": (spread_raises, spread_gaps),
    "11.3": (path_raises, path_gaps),
    "11.4": (integrate_raises, integrate_gaps),
}
HALF = {"11.1": factors_half, "11.2": spread_half, "11.3": path_half, "11.4": integrate_half}
WRONG = {
    "11.1": [
        ("the wrong way round", factors_swapped),
        ("upside down", factors_upside_down),
        ("the first is upside down", factors_first_upside_down),
        ("across the channels", factors_across_the_channels),
        ("1 / variance", factors_of_variances),
        ("averages the channels' factors", factors_averaged),
        ("averages their variances", factors_of_averaged_variances),
        ("averages over the images", factors_over_images),
        ("of each image's channels", factors_of_each_image),
        ("from 0 and not from the mean", factors_about_zero),
        ("one factor for each channel", factors_of_each_channel),
        ("both are of all values", factors_both_of_all),
    ],
    "11.2": [
        ("own noise is left out", spread_of_means),
        ("only the noise", spread_of_noise),
        ("deviations do not", spread_added),
        ("deviations do not", spread_of_added_deviations),
        ("a deviation is added to a variance", spread_of_a_deviation_and_a_variance),
        ("images lie apart", spread_within_images),
        ("take its root", spread_without_the_root),
        ("exp is missing", spread_without_exp),
        ("take exp of each value first", spread_of_the_mean_logvar),
        ("averaged and squared", spread_of_averaged_deviations),
        ("without the half", spread_with_the_half),
        ("one number for all channels", spread_of_all_channels),
        ("about their own mean", spread_about_zero),
        ("draws random numbers", spread_drawn),
    ],
    "11.3": [
        ("time runs backwards in both", path_backwards),
        ("time runs backwards in x_t", path_backwards_in_place),
        ("turn its sign", path_with_a_wrong_sign),
        ("what is left of the way", path_what_is_left),
        ("travelled so far", path_so_far),
        ("path of a diffusion model", path_of_diffusion),
        ("its weight is 1 - t", path_with_full_noise),
        ("the data alone", path_to_the_data_alone),
        ("along the width", path_along_the_width),
        ("along the rows", path_along_the_rows),
        ("along the rows or channels", path_along_the_channels),
        ("one time for the whole batch", path_at_one_time),
        ("times are averaged", path_at_the_average_time),
        ("changes its input x0", path_in_place),
    ],
    "11.4": [
        ("a time for each of the batch", integrate_with_numbers),
        ("a time for each of the batch", integrate_with_a_scalar),
        ("a time for each of the batch", integrate_with_one_time),
        ("number of the step is taken for the time", integrate_by_step_numbers),
        ("a place is averaged with a velocity", integrate_with_a_place_for_a_velocity),
        ("Euler's method", integrate_by_euler),
        ("only the velocity at the end", integrate_only_the_end),
        ("asked at the start's time", integrate_at_the_same_time),
        ("asked at the start's place", integrate_at_the_same_place),
        ("take their average", integrate_added),
        ("dt is missing in the step", integrate_without_dt),
        ("linspace", integrate_by_linspace),
        ("one step too early", integrate_one_short),
        ("changes its input x0", integrate_in_place),
    ],
}
RIGHT = {
    "11.1": [factors_in_numpy, factors_by_statistics, factors_by_reshaping],
    "11.2": [spread_by_second_moments, spread_by_a_loop],
    "11.3": [path_by_lerp, path_by_einsum, path_by_a_loop, flow.straight_path],
    "11.4": [integrate_by_the_package, integrate_on_a_copy, integrate_by_recursion],
}


@pytest.mark.parametrize(("id", "answer"), [(id, answer) for id, answers in BLANK.items() for answer in answers])
def test_a_blank_skeleton_is_not_attempted(id, answer):
    assert_blank(id, answer)


@pytest.mark.parametrize("id", HALF)
def test_a_half_filled_skeleton_is_told_of_its_gap(id):
    assert_rejected(id, HALF[id], "gap `...` is still open")


@mistakes("11.1", WRONG["11.1"])
def test_a_wrong_factor_is_named(keyword, answer):
    assert_rejected("11.1", answer, keyword)


@mistakes("11.2", WRONG["11.2"])
def test_a_wrong_spread_is_named(keyword, answer):
    assert_rejected("11.2", answer, keyword)


@mistakes("11.3", WRONG["11.3"])
def test_a_wrong_path_is_named(keyword, answer):
    assert_rejected("11.3", answer, keyword)


@mistakes("11.4", WRONG["11.4"])
def test_a_wrong_integration_is_named(keyword, answer):
    assert_rejected("11.4", answer, keyword)


@verdicts("11.1", RIGHT["11.1"])
def test_right_factors_pass_in_any_style(answer):
    assert_passes("11.1", answer)


@verdicts("11.2", RIGHT["11.2"])
def test_a_right_spread_passes_in_any_style(answer):
    assert_passes("11.2", answer)


@verdicts("11.3", RIGHT["11.3"])
def test_a_right_path_passes_in_any_style(answer):
    assert_passes("11.3", answer)


@verdicts("11.4", RIGHT["11.4"])
def test_a_right_integration_passes_in_any_style(answer):
    assert_passes("11.4", answer)


# ---- The finished versions are the package's -------------------------------------------------------------------------


def test_the_finished_path_and_integration_are_the_packages():
    torch.manual_seed(0)
    x0, x1, t = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.rand(3)
    for ours, theirs in zip(nb11.straight_path(x0, x1, t), flow.straight_path(x0, x1, t), strict=True):
        assert torch.equal(ours, theirs)

    def velocity(x, t):
        return x.sin() + t[:, None, None, None]

    assert torch.equal(nb11.integrate(velocity, x0, 5), flow.integrate(velocity, x0, 5))


def test_the_finished_factor_is_the_packages():
    z = torch.randn(4, 3, 8, 8, dtype=torch.float64) + torch.arange(3.0)[:, None, None]
    assert nb11.scaling_factors(z)[0].item() == pytest.approx(latents.statistics([z]).scaling_factor, rel=1e-12)


def test_the_finished_spread_is_that_of_samples():
    torch.manual_seed(0)
    mean, logvar = (
        torch.randn(200, 3, 16, 16) * torch.tensor([1.0, 2.0, 0.5])[:, None, None],
        torch.randn(200, 3, 16, 16),
    )
    drawn = (mean + (0.5 * logvar).exp() * torch.randn_like(mean)).std((0, 2, 3))
    torch.testing.assert_close(nb11.deviation_of_samples(mean, logvar), drawn, rtol=0.02, atol=0)
