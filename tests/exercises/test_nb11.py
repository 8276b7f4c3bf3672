"""Typical answers to the exercises of notebook 11: blank, unfinished, wrong, and right in many styles."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from klvae_edu import flow, latents
from klvae_edu.exercises import nb11
from tests.exercises.answers import assert_blank, assert_passes, assert_rejected

# 11.1


def factors_raises(z):
    raise NotImplementedError


def factors_gaps(z):
    of_all = ...  # noqa: F841
    of_channels = ...  # noqa: F841
    return ..., ...


def factors_half(z):
    return 1 / z.std(), ...


def factors_in_numpy(z):
    channels = [np.std(z[:, channel].numpy()) for channel in range(z.shape[1])]
    return torch.tensor(1 / np.std(z.numpy())), torch.tensor(1 / np.mean(channels))


def factors_by_statistics(z):
    found = latents.statistics([z])
    return torch.tensor(found.scaling_factor), 1 / found.std.mean()


def factors_by_reshaping(z):
    values = z.permute(1, 0, 2, 3).reshape(z.shape[1], -1).double()
    return [values.std() ** -1, values.std(dim=1, correction=0).mean() ** -1]


def factors_as_floats(z):
    return 1 / z.std().item(), 1 / z.std((0, 2, 3)).mean().item()


def factors_in_one_tensor(z):
    return 1 / torch.stack([z.std(), z.std((0, 2, 3)).mean()])


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


def integrate_in_place(velocity, x0, steps):
    x, dt = x0, 1 / steps
    for step in range(steps):
        t = torch.full((len(x),), step * dt)
        v = velocity(x, t)
        x += dt * (v + velocity(x + dt * v, t + dt)) / 2
    return x


def heun(velocity, x, t, dt):
    v = velocity(x, t)
    return x + dt * (v + velocity(x + dt * v, t + dt)) / 2


def integrate_with_numbers(velocity, x0, steps):
    for step in range(steps):
        x0 = heun(velocity, x0, step / steps, 1 / steps)
    return x0


def integrate_with_a_scalar(velocity, x0, steps):
    for t in torch.arange(steps) / steps:
        x0 = heun(velocity, x0, t, 1 / steps)
    return x0


def integrate_with_one_time(velocity, x0, steps):
    for t in torch.arange(steps) / steps:
        x0 = heun(velocity, x0, t[None], 1 / steps)
    return x0


def integrate_with_times_of_numpy(velocity, x0, steps):
    for time in np.linspace(0, 1, steps, endpoint=False):
        x0 = heun(velocity, x0, torch.from_numpy(np.full(len(x0), time)), 1 / steps)
    return x0


def integrate_between_times(velocity, x0, steps):
    times = torch.linspace(0, 1, steps + 1)
    for now, after in itertools.pairwise(times):
        v = velocity(x0, now.expand(len(x0)))
        v_end = velocity(x0 + (after - now) * v, after.expand(len(x0)))
        x0 = x0 + (after - now) * (v + v_end) / 2
    return x0


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
WRONG = (
    ("11.2", "draws random numbers", spread_drawn),
    ("11.3", "changes its input x0", path_in_place),
    ("11.4", "changes its input x0", integrate_in_place),
    ("11.4", "a time for each of the batch", integrate_with_numbers),
    ("11.4", "a time for each of the batch", integrate_with_a_scalar),
    ("11.4", "a time for each of the batch", integrate_with_one_time),
    ("11.4", "float64", integrate_with_times_of_numpy),
)
RIGHT = {
    "11.1": (factors_in_numpy, factors_by_statistics, factors_by_reshaping, factors_as_floats, factors_in_one_tensor),
    "11.2": (spread_by_second_moments, spread_by_a_loop),
    "11.3": (path_by_lerp, path_by_einsum, path_by_a_loop, flow.straight_path),
    "11.4": (integrate_by_the_package, integrate_on_a_copy, integrate_by_recursion, integrate_between_times),
}


@pytest.mark.parametrize(("id", "answer"), [(id, answer) for id, answers in BLANK.items() for answer in answers])
def test_a_blank_skeleton_is_not_attempted(id, answer):
    assert_blank(id, answer)


@pytest.mark.parametrize(("id", "answer"), HALF.items())
def test_a_half_filled_skeleton_is_told_of_its_gap(id, answer):
    assert_rejected(id, answer, "gap `...` is still open")


@pytest.mark.parametrize(("id", "keyword", "answer"), WRONG)
def test_wrong_answers_are_named(id, keyword, answer):
    assert_rejected(id, answer, keyword)


@pytest.mark.parametrize(("id", "answer"), [(id, answer) for id, answers in RIGHT.items() for answer in answers])
def test_right_answers_pass_in_any_style(id, answer):
    assert_passes(id, answer)


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
