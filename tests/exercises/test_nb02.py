"""Exercises of notebook 02: right answers in many styles, and wrong ones that the catalogue of mistakes cannot hold."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Independent, Normal, kl_divergence

from klvae_edu.exercises import EXERCISES
from tests.exercises.answers import all_verdicts, assert_passes, assert_rejected

# 02.1


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


def kl_in_double(mean, logvar):
    mean, logvar = mean.double(), logvar.double()
    return -0.5 * (1 + logvar - mean**2 - logvar.exp()).sum(tuple(range(1, mean.ndim)))


# 02.2


def between_by_distributions(mean, logvar, other_mean, other_logvar):
    q, p = Normal(mean, (logvar / 2).exp()), Normal(other_mean, (other_logvar / 2).exp())
    dims = mean.ndim - 1
    return kl_divergence(Independent(q, dims), Independent(p, dims))


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


# 02.3


def sampled_by_distributions(mean, logvar, noise):
    q = Normal(mean, torch.exp(logvar / 2))
    p = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    z = q.mean + q.stddev * noise
    return (q.log_prob(z) - p.log_prob(z)).sum(dim=tuple(range(2, z.ndim))).mean(dim=0)


def sampled_by_a_loop(mean, logvar, noise):
    total = torch.zeros(len(mean), dtype=mean.dtype)
    for eps in noise:
        z = mean + torch.exp(0.5 * logvar) * eps
        log_ratio = 0.5 * z**2 - 0.5 * (logvar + (z - mean) ** 2 / logvar.exp())
        total += log_ratio.flatten(1).sum(1)
    return total / len(noise)


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


# 02.4


def loss_by_functional(reconstruction, target, posterior, kl_weight=1e-6):
    pixel = F.l1_loss(reconstruction, target, reduction="sum") / reconstruction.size(0)
    return pixel + kl_weight * posterior.kl().sum() / reconstruction.size(0)


def loss_by_hand(reconstruction, target, posterior, kl_weight=1e-6):
    mean, logvar = posterior.mean, posterior.logvar
    kl = -0.5 * torch.sum(1 + logvar - mean**2 - logvar.exp(), dim=[1, 2, 3])
    return torch.mean(torch.abs(target - reconstruction).sum(dim=[1, 2, 3]) + kl_weight * kl)


def loss_in_place(reconstruction, target, posterior, kl_weight=1e-6):
    total = (reconstruction - target).abs_().flatten(1).sum(1)
    total += kl_weight * posterior.kl()
    return total.mean()


def loss_by_a_loop(reconstruction, target, posterior, kl_weight=1e-6):
    total = 0.0
    for x_hat, x, kl in zip(reconstruction, target, posterior.kl(), strict=True):
        total = total + (x_hat - x).norm(p=1) + kl_weight * kl
    return total / len(target)


def loss_in_double(reconstruction, target, posterior, kl_weight=1e-6):
    pixel = torch.einsum("bchw->b", (reconstruction.double() - target.double()).abs())
    return (pixel + kl_weight * posterior.kl().double()).mean()


@all_verdicts(
    {
        "02.1": (kl_in_place, kl_by_einsum, kl_by_distributions, kl_by_a_loop, kl_in_double),
        "02.2": (
            between_by_distributions,
            between_in_place,
            between_by_whitening,
            between_in_double,
            between_by_a_loop,
        ),
        "02.3": (sampled_by_distributions, sampled_by_a_loop, sampled_in_place, sampled_by_einsum, sampled_in_double),
        "02.4": (loss_by_functional, loss_by_hand, loss_in_place, loss_by_a_loop, loss_in_double),
    }
)
def test_right_answers_in_other_styles_pass(id, answer):
    assert_passes(id, answer)


@pytest.mark.parametrize("id", ["02.1", "02.2", "02.4"])
def test_the_gradient_is_asked_for(id):
    assert_rejected(id, torch.no_grad()(EXERCISES[id].reference), "no gradient reaches")
