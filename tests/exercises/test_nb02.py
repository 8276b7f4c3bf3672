"""Typical answers to the exercises of notebook 02: blank, unfinished, wrong, and right in many styles."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Independent, Normal, kl_divergence

from tests.exercises.answers import assert_blank, assert_passes, assert_rejected, mistakes, verdicts


def raises(*args):
    raise NotImplementedError


def gaps(*args):
    each = ...  # noqa: F841
    return ...


def gaps_in_four_lines(mean, logvar, noise):
    z = ...  # noqa: F841
    log_q = ...  # noqa: F841
    log_p = ...  # noqa: F841
    return ...


@pytest.mark.parametrize(
    ("id", "answer"),
    [*((id, raises) for id in ("02.1", "02.2", "02.3", "02.4")), *((id, gaps) for id in ("02.1", "02.2", "02.4"))],
)
def test_a_blank_is_not_attempted(id, answer):
    assert_blank(id, answer)


def test_four_gaps_are_not_attempted():
    assert_blank("02.3", gaps_in_four_lines)


# 02.1


def kl_half(mean, logvar):
    each = mean**2 + logvar.exp() - ...
    return 0.5 * each.flatten(1).sum(1)


def kl_squeezed(mean, logvar):
    return kl_by_einsum(mean, logvar).squeeze()


def kl_in_place_on_the_mean(mean, logvar):
    return mean.square_().add_(logvar.exp()).sub_(1).sub_(logvar).mul_(0.5).flatten(1).sum(1)


def kl_in_place(mean, logvar):
    return mean.square().add_(logvar.exp()).sub_(1).sub_(logvar).mul_(0.5).flatten(1).sum(1)


def kl_by_einsum(mean, logvar):
    mean, logvar = mean.flatten(1), logvar.flatten(1)
    return 0.5 * (torch.einsum("bi,bi->b", mean, mean) + (logvar.expm1() - logvar).sum(1))


def kl_by_distributions(mean, logvar):
    return kl_divergence(Normal(mean, torch.exp(logvar / 2)), Normal(0.0, 1.0)).flatten(1).sum(1)


def kl_by_a_loop(mean, logvar):
    totals = []
    for m, v in zip(mean.flatten(1), logvar.flatten(1), strict=True):
        totals.append(sum(0.5 * (m[i] ** 2 + v[i].exp() - 1 - v[i]) for i in range(len(m))))
    return torch.stack(totals)


@torch.no_grad()
def kl_without_gradient(mean, logvar):
    return kl_in_place(mean, logvar)


def kl_of_numbers(mean, logvar):
    result = torch.zeros(len(mean))
    for image in range(len(mean)):
        for m, v in zip(mean[image].flatten().tolist(), logvar[image].flatten().tolist(), strict=True):
            result[image] += 0.5 * (m * m + math.exp(v) - 1 - v)
    return result


def kl_with_detached_variance(mean, logvar):
    return 0.5 * (mean**2 + logvar.exp().detach() - 1 - logvar).flatten(1).sum(1)


def kl_of_data(mean, logvar):
    return kl_in_place(mean.data, logvar)


def kl_in_double(mean, logvar):
    mean, logvar = mean.double(), logvar.double()
    return -0.5 * (1 + logvar - mean**2 - logvar.exp()).sum(tuple(range(1, mean.ndim)))


@mistakes(
    "02.1",
    [
        ("gap `...` is still open", kl_half),
        ("inputs of shape (1, 1)", kl_squeezed),
        ("changes its input mean", kl_in_place_on_the_mean),
        ("no gradient reaches mean and logvar", kl_without_gradient),
        ("no gradient reaches mean and logvar", kl_of_numbers),
        ("no gradient reaches mean", kl_of_data),
        ("not the gradient with respect to logvar", kl_with_detached_variance),
    ],
)
def test_a_wrong_kl_is_named(keyword, answer):
    assert_rejected("02.1", answer, keyword)


@verdicts("02.1", [kl_in_place, kl_by_einsum, kl_by_distributions, kl_by_a_loop, kl_in_double])
def test_a_right_kl_passes_in_any_style(answer):
    assert_passes("02.1", answer)


# 02.2


def between_half(mean, logvar, other_mean, other_logvar):
    difference = ...
    return 0.5 * (difference**2 + logvar.exp()).flatten(1).sum(1)


def between_by_distributions(mean, logvar, other_mean, other_logvar):
    q, p = Normal(mean, (logvar / 2).exp()), Normal(other_mean, (other_logvar / 2).exp())
    dims = mean.ndim - 1
    return kl_divergence(Independent(q, dims), Independent(p, dims))


def between_in_place_on_the_mean(mean, logvar, other_mean, other_logvar):
    each = mean.sub_(other_mean).square_().add_(logvar.exp()).div_(other_logvar.exp())
    return (each - 1 + other_logvar - logvar).flatten(1).sum(1) / 2


def between_detached(mean, logvar, other_mean, other_logvar):
    return between_in_place(mean, logvar, other_mean, other_logvar).detach()


def between_with_detached_variances(mean, logvar, other_mean, other_logvar):
    return between_by_whitening(mean, logvar, other_mean, other_logvar.detach())


def between_in_place(mean, logvar, other_mean, other_logvar):
    each = mean.sub(other_mean).square_().add_(logvar.exp()).div_(other_logvar.exp())
    each -= 1
    each += other_logvar - logvar
    return each.flatten(1).sum(1).div_(2)


def between_by_whitening(mean, logvar, other_mean, other_logvar):
    mean, logvar = (mean - other_mean) / (other_logvar / 2).exp(), logvar - other_logvar
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def between_in_double(*tensors):
    mean, logvar, other_mean, other_logvar = (tensor.double() for tensor in tensors)
    squared = torch.einsum("b...,b...->b...", mean - other_mean, mean - other_mean)
    each = (squared + logvar.exp()) * (-other_logvar).exp() - 1 + other_logvar - logvar
    return each.reshape(len(each), -1).sum(-1) / 2


def between_by_a_loop(mean, logvar, other_mean, other_logvar):
    totals = []
    for m, v, om, ov in zip(mean, logvar, other_mean, other_logvar, strict=True):
        totals.append(torch.sum((m - om) ** 2 / ov.exp() + (v - ov).exp() - 1 - (v - ov)) / 2)
    return torch.stack(totals)


@mistakes(
    "02.2",
    [
        ("gap `...` is still open", between_half),
        ("changes its input mean", between_in_place_on_the_mean),
        ("no gradient reaches mean and logvar", between_detached),
        ("no gradient reaches other_logvar", between_with_detached_variances),
    ],
)
def test_a_wrong_kl_between_two_is_named(keyword, answer):
    assert_rejected("02.2", answer, keyword)


@verdicts(
    "02.2", [between_by_distributions, between_in_place, between_by_whitening, between_in_double, between_by_a_loop]
)
def test_a_right_kl_between_two_passes_in_any_style(answer):
    assert_passes("02.2", answer)


# 02.3


def sampled_half(mean, logvar, noise):
    z = mean + torch.exp(logvar / 2) * noise
    log_q = ...
    return (log_q - -0.5 * z**2).flatten(2).sum(2).mean(0)


def sampled_by_distributions(mean, logvar, noise):
    q = Normal(mean, torch.exp(logvar / 2))
    p = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    z = q.mean + q.stddev * noise
    return (q.log_prob(z) - p.log_prob(z)).sum(dim=tuple(range(2, z.ndim))).mean(dim=0)


def sampled_by_a_loop(mean, logvar, noise):
    total = torch.zeros(len(mean))
    for eps in noise:
        z = mean + torch.exp(0.5 * logvar) * eps
        log_ratio = 0.5 * z**2 - 0.5 * (logvar + (z - mean) ** 2 / logvar.exp())
        total += log_ratio.flatten(1).sum(1)
    return total / len(noise)


def sampled_squeezed(mean, logvar, noise):
    return sampled_by_einsum(mean, logvar, noise).squeeze()


def sampled_in_place_on_the_noise(mean, logvar, noise):
    log_q = -0.5 * (logvar + noise**2)
    z = noise.mul_(torch.exp(logvar / 2)).add_(mean)
    return (log_q + 0.5 * z**2).flatten(2).sum(2).mean(0)


def sampled_with_own_noise(mean, logvar, noise):
    z = mean + torch.exp(logvar / 2) * torch.randn_like(noise)
    return (0.5 * z**2 - 0.5 * (logvar + (z - mean) ** 2 / logvar.exp())).flatten(2).sum(2).mean(0)


def sampled_in_place(mean, logvar, noise):
    log_q = -0.5 * (logvar + noise**2)  # (z - mean) / std is the noise itself
    z = noise.mul(torch.exp(logvar / 2)).add_(mean)
    return log_q.add_(z.square_().mul_(0.5)).flatten(2).sum(2).mean(0)


def sampled_by_einsum(mean, logvar, noise):
    samples, batch = noise.shape[:2]
    z = (mean + torch.exp(logvar / 2) * noise).reshape(samples, batch, -1)
    eps, logvar = noise.reshape(samples, batch, -1), logvar.reshape(batch, -1)
    return 0.5 * (torch.einsum("sbi,sbi->b", z, z) - torch.einsum("sbi,sbi->b", eps, eps)) / samples - logvar.sum(1) / 2


def sampled_in_double(mean, logvar, noise):
    return sampled_by_distributions(mean.double(), logvar.double(), noise.double())


@mistakes(
    "02.3",
    [
        ("gap `...` is still open", sampled_half),
        ("inputs of shape (1, 1), (1, 1, 1)", sampled_squeezed),
        ("changes its input noise", sampled_in_place_on_the_noise),
        ("use the argument `noise`", sampled_with_own_noise),
    ],
)
def test_a_wrong_sampled_kl_is_named(keyword, answer):
    assert_rejected("02.3", answer, keyword)


@verdicts("02.3", [sampled_by_distributions, sampled_by_a_loop, sampled_in_place, sampled_by_einsum, sampled_in_double])
def test_a_right_sampled_kl_passes_in_any_style(answer):
    assert_passes("02.3", answer)


# 02.4


def loss_half(reconstruction, target, posterior, kl_weight):
    pixel = ...
    return pixel + kl_weight * posterior.kl().mean()


def loss_in_place_on_the_reconstruction(reconstruction, target, posterior, kl_weight):
    reconstruction -= target
    return reconstruction.abs().flatten(1).sum(1).mean() + kl_weight * posterior.kl().mean()


def loss_in_place_on_the_posterior(reconstruction, target, posterior, kl_weight):
    kl = 0.5 * (posterior.mean.square_() + posterior.var - 1 - posterior.logvar).flatten(1).sum(1)
    return (reconstruction - target).abs().flatten(1).sum(1).mean() + kl_weight * kl.mean()


def loss_as_a_number(reconstruction, target, posterior, kl_weight):
    pixel = (reconstruction - target).abs().flatten(1).sum(1).mean()
    return pixel + kl_weight * posterior.kl().mean().item()


def loss_without_gradient(reconstruction, target, posterior, kl_weight):
    with torch.no_grad():
        return (reconstruction - target).abs().flatten(1).sum(1).mean() + kl_weight * posterior.kl().mean()


def loss_as_a_dictionary(reconstruction, target, posterior, kl_weight):
    return {"loss": (reconstruction - target).abs().flatten(1).sum(1).mean() + kl_weight * posterior.kl().mean()}


def loss_by_functional(reconstruction, target, posterior, kl_weight):
    pixel = F.l1_loss(reconstruction, target, reduction="sum") / reconstruction.size(0)
    return pixel + kl_weight * posterior.kl().sum() / reconstruction.size(0)


def loss_by_hand(reconstruction, target, posterior, kl_weight):
    mean, logvar = posterior.mean, posterior.logvar
    kl = -0.5 * torch.sum(1 + logvar - mean**2 - logvar.exp(), dim=[1, 2, 3])
    return torch.mean(torch.abs(target - reconstruction).sum(dim=[1, 2, 3]) + kl_weight * kl)


def loss_in_place(reconstruction, target, posterior, kl_weight):
    total = (reconstruction - target).abs_().flatten(1).sum(1)
    total += kl_weight * posterior.kl()
    return total.mean()


def loss_by_a_loop(reconstruction, target, posterior, kl_weight):
    total = 0.0
    for x_hat, x, kl in zip(reconstruction, target, posterior.kl(), strict=True):
        total = total + (x_hat - x).norm(p=1) + kl_weight * kl
    return total / len(target)


def loss_in_double(reconstruction, target, posterior, kl_weight):
    pixel = torch.einsum("bchw->b", (reconstruction.double() - target.double()).abs())
    return (pixel + kl_weight * posterior.kl().double()).mean()


@mistakes(
    "02.4",
    [
        ("gap `...` is still open", loss_half),
        ("no gradient reaches the posterior", loss_as_a_number),
        ("no gradient reaches reconstruction and the posterior", loss_without_gradient),
        ("expected a Tensor, got dict", loss_as_a_dictionary),
        ("changes its input reconstruction", loss_in_place_on_the_reconstruction),
        ("changes its input the posterior", loss_in_place_on_the_posterior),
    ],
)
def test_a_wrong_loss_is_named(keyword, answer):
    assert_rejected("02.4", answer, keyword)


@verdicts("02.4", [loss_by_functional, loss_by_hand, loss_in_place, loss_by_a_loop, loss_in_double])
def test_a_right_loss_passes_in_any_style(answer):
    assert_passes("02.4", answer)
