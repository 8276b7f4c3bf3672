"""Exercises of notebook 01: right answers in many styles, and wrong ones that the catalogue of mistakes cannot hold."""

from __future__ import annotations

import math

import pytest
import torch

from klvae_edu.exercises import EXERCISES
from tests.exercises.answers import all_verdicts, assert_passes, assert_rejected

LOG_2PI = math.log(2 * math.pi)


# 01.1


def split_by_slices(parameters):
    channels = parameters.shape[1] // 2
    return parameters[:, :channels], torch.clip(parameters[:, channels:], min=-30.0, max=20.0)


def split_in_place(parameters):
    mean, logvar = torch.chunk(parameters, 2, dim=1)
    logvar = logvar.clone()
    logvar.clamp_(-30, 20)
    return [mean, logvar]


def split_by_minimum_and_maximum(parameters):
    mean, logvar = parameters.unflatten(1, (2, -1)).unbind(1)
    return mean, logvar.maximum(torch.tensor(-30.0)).minimum(torch.tensor(20.0))


def split_in_double(parameters):
    mean, logvar = parameters.double().tensor_split(2, 1)
    return mean, torch.nn.functional.hardtanh(logvar, -30, 20)


def split_by_a_loop(parameters):
    channels = parameters.shape[1] // 2
    mean = torch.stack([parameters[:, c] for c in range(channels)], dim=1)
    logvar = torch.stack([parameters[:, channels + c].clamp(-30, 20) for c in range(channels)], dim=1)
    return mean, logvar


# 01.2


def sample_in_place_on_its_own(mean, logvar, noise):
    z = torch.exp(logvar.mul(0.5))
    z = z * noise
    z += mean
    return z


def sample_by_addcmul(mean, logvar, noise):
    return torch.addcmul(mean, logvar.exp().sqrt(), noise)


def sample_by_einsum(mean, logvar, noise):
    return mean + torch.einsum("...,...->...", torch.exp(logvar / 2), noise)


def sample_in_double(mean, logvar, noise):
    return mean.double() + math.e ** (logvar.double() / 2) * noise.double()


def sample_by_a_loop(mean, logvar, noise):
    return torch.stack([m + torch.exp(v / 2) * n for m, v, n in zip(mean, logvar, noise, strict=True)])


def sample_by_distributions(mean, logvar, noise):
    return torch.distributions.AffineTransform(mean, torch.exp(logvar / 2))(noise)


# 01.3


def nll_in_place(mean, logvar, sample):
    each = (sample - mean).square_().div_(logvar.exp()).add_(logvar)
    each += LOG_2PI
    return each.mul_(0.5).flatten(1).sum(1)


def nll_by_einsum(mean, logvar, sample):
    scaled = (sample - mean).flatten(1) * torch.exp(-logvar / 2).flatten(1)
    return 0.5 * (torch.einsum("bi,bi->b", scaled, scaled) + logvar.flatten(1).sum(1) + mean[0].numel() * LOG_2PI)


def nll_by_distributions(mean, logvar, sample):
    normal = torch.distributions.Normal(mean, torch.exp(0.5 * logvar))
    return -torch.distributions.Independent(normal, mean.ndim - 1).log_prob(sample)


def nll_by_a_loop(mean, logvar, sample):
    totals = []
    for m, v, s in zip(mean.flatten(1), logvar.flatten(1), sample.flatten(1), strict=True):
        total = 0.0
        for i in range(len(m)):
            total += 0.5 * (math.log(2 * math.pi) + float(v[i]) + float(s[i] - m[i]) ** 2 / math.exp(v[i]))
        totals.append(total)
    return torch.tensor(totals, dtype=mean.dtype)


def nll_in_double(mean, logvar, sample):
    mean, logvar, sample = mean.double(), logvar.double(), sample.double()
    each = torch.nn.functional.gaussian_nll_loss(mean, sample, logvar.exp(), full=True, eps=1e-20, reduction="none")
    return each.sum(dim=tuple(range(1, mean.ndim)))


# 01.4


class Right:
    def __init__(self, parameters, deterministic=False):
        self.mean, logvar = torch.chunk(parameters, 2, dim=1)
        self.logvar = torch.clamp(logvar, -30.0, 20.0)
        self.deterministic = deterministic
        self.std = torch.exp(0.5 * self.logvar)
        self.var = torch.exp(self.logvar)
        if deterministic:
            self.std = self.var = torch.zeros_like(self.mean)

    def sample(self, generator=None):
        mean = self.mean
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + self.std * noise

    def mode(self):
        return self.mean

    def nll(self, sample, dims=(1, 2, 3)):
        if self.deterministic:
            return torch.zeros(len(self.mean))
        return 0.5 * torch.sum(LOG_2PI + self.logvar + (sample - self.mean) ** 2 / self.var, dim=dims)


class WithProperties:
    def __init__(self, parameters, deterministic=False):
        self.parameters, self.deterministic = parameters, deterministic

    @property
    def mean(self):
        return self.parameters[:, : self.parameters.shape[1] // 2]

    @property
    def logvar(self):
        return self.parameters[:, self.parameters.shape[1] // 2 :].clamp(min=-30, max=20)

    @property
    def var(self):
        return self.logvar.exp() * (not self.deterministic)

    @property
    def std(self):
        return self.var.sqrt()

    def sample(self, generator=None):
        return self.mode() + self.std * torch.empty_like(self.mean).normal_(generator=generator)

    def mode(self):
        return self.mean

    def nll(self, sample, dims=(1, 2, 3)):
        if self.deterministic:
            return sample.new_zeros(sample.shape[0])
        return (0.5 * (math.log(2 * math.pi) + self.logvar + (sample - self.mean) ** 2 / self.var)).sum(dims)


class WithDistributions(Right):
    def nll(self, sample, dims=(1, 2, 3)):
        if self.deterministic:
            return torch.zeros(sample.shape[0])
        return -torch.distributions.Normal(self.mean, self.std).log_prob(sample).sum(dims)


class WithFlatNoise(Right):
    def sample(self, generator=None):
        noise = torch.randn(self.mean.numel(), generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean - self.std * noise.view_as(self.mean)


class InDouble(Right):
    def nll(self, sample, dims=(1, 2, 3)):
        if self.deterministic:
            return torch.zeros(len(self.mean), dtype=torch.float64)
        each = LOG_2PI + self.logvar.double() + (sample.double() - self.mean.double()) ** 2 / self.var.double()
        return each.sum(dim=dims) / 2


class AsModule(torch.nn.Module):
    def __init__(self, parameters, deterministic=False):
        super().__init__()
        self.inner = Right(parameters, deterministic)
        self.mean, self.logvar, self.std, self.var = (getattr(self.inner, n) for n in ("mean", "logvar", "std", "var"))

    def sample(self, generator=None):
        return self.inner.sample(generator)

    def mode(self):
        return self.inner.mean.clone()

    def nll(self, sample, dims=(1, 2, 3)):
        return self.inner.nll(sample, dims)


@all_verdicts(
    {
        "01.1": (split_by_slices, split_in_place, split_by_minimum_and_maximum, split_in_double, split_by_a_loop),
        "01.2": (
            sample_in_place_on_its_own,
            sample_by_addcmul,
            sample_by_einsum,
            sample_in_double,
            sample_by_a_loop,
            sample_by_distributions,
        ),
        "01.3": (nll_in_place, nll_by_einsum, nll_by_distributions, nll_by_a_loop, nll_in_double),
        "01.4": (Right, WithProperties, WithDistributions, WithFlatNoise, InDouble, AsModule),
    }
)
def test_right_answers_in_other_styles_pass(id, answer):
    assert_passes(id, answer)


@pytest.mark.parametrize("id", ["01.1", "01.2"])
def test_the_gradient_is_asked_for(id):
    assert_rejected(id, torch.no_grad()(EXERCISES[id].reference), "no gradient reaches")
