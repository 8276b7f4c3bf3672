"""Exercises of notebook 11: right answers in many styles, and solutions that agree with the package."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from klvae_edu import flow, latents
from klvae_edu.exercises import EXERCISES
from tests.exercises.answers import all_verdicts, assert_passes

# Right answers


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


def spread_by_second_moments(mean, logvar):
    mean, logvar = mean.double(), logvar.double()
    second = (mean.square() + logvar.exp()).mean((0, 2, 3))
    return (second - mean.mean((0, 2, 3)) ** 2).sqrt()


def spread_by_a_loop(mean, logvar):
    channels = range(mean.shape[1])
    return torch.tensor([math.sqrt(mean[:, c].var().item() + logvar[:, c].exp().mean().item()) for c in channels])


def path_by_lerp(x0, x1, t):
    return torch.lerp(x0, x1, t.view(-1, 1, 1, 1)), x1 - x0


def path_by_einsum(x0, x1, t):
    v = torch.sub(x1, x0).double()
    return x0.double() + torch.einsum("b,bchw->bchw", t.double(), v), v


def path_by_a_loop(x0, x1, t):
    return torch.stack([(1 - s) * a + s * b for a, b, s in zip(x0, x1, t, strict=True)]), x1 - x0


def integrate_by_the_package(velocity, x0, steps):
    return flow.integrate(velocity, x0, steps)


def integrate_between_times(velocity, x0, steps):
    times = torch.linspace(0, 1, steps + 1)
    for now, after in itertools.pairwise(times):
        v = velocity(x0, now.expand(len(x0)))
        v_end = velocity(x0 + (after - now) * v, after.expand(len(x0)))
        x0 = x0 + (after - now) * (v + v_end) / 2
    return x0


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


@all_verdicts(
    {
        "11.1": (
            factors_in_numpy,
            factors_by_statistics,
            factors_by_reshaping,
            factors_as_floats,
            factors_in_one_tensor,
        ),
        "11.2": (spread_by_second_moments, spread_by_a_loop),
        "11.3": (path_by_lerp, path_by_einsum, path_by_a_loop, flow.straight_path),
        "11.4": (integrate_by_the_package, integrate_on_a_copy, integrate_by_recursion, integrate_between_times),
    }
)
def test_right_answers_pass_in_any_style(id, answer):
    assert_passes(id, answer)


# The solutions agree with the package


def test_the_path_and_the_integration_are_the_packages():
    torch.manual_seed(0)
    x0, x1, t = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.rand(3)
    for ours, theirs in zip(EXERCISES["11.3"].reference(x0, x1, t), flow.straight_path(x0, x1, t), strict=True):
        assert torch.equal(ours, theirs)

    def velocity(x, t):
        return x.sin() + t[:, None, None, None]

    assert torch.equal(EXERCISES["11.4"].reference(velocity, x0, 5), flow.integrate(velocity, x0, 5))


def test_the_factor_is_the_packages():
    z = torch.randn(4, 3, 8, 8, dtype=torch.float64) + torch.arange(3.0)[:, None, None]
    expected = latents.statistics([z]).scaling_factor
    assert EXERCISES["11.1"].reference(z)[0].item() == pytest.approx(expected, rel=1e-12)


def test_the_spread_is_that_of_samples():
    torch.manual_seed(0)
    mean = torch.randn(200, 3, 16, 16) * torch.tensor([1.0, 2.0, 0.5])[:, None, None]
    logvar = torch.randn(200, 3, 16, 16)
    drawn = (mean + (0.5 * logvar).exp() * torch.randn_like(mean)).std((0, 2, 3))
    torch.testing.assert_close(EXERCISES["11.2"].reference(mean, logvar), drawn, rtol=0.02, atol=0)
