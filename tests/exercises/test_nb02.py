"""Typical answers to the exercises of notebook 02: blank, unfinished, wrong, and right in many styles."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Independent, Normal, kl_divergence

from klvae_edu.exercises import EXERCISES, Verdict
from tests.exercises.answers import assert_passes, assert_rejected, mistakes, verdicts


def raises(*args):
    raise NotImplementedError


def gaps(*args):
    each = ...  # noqa: F841
    return ...


@pytest.mark.parametrize("id", ["02.1", "02.2", "02.3", "02.4"])
@pytest.mark.parametrize("answer", [raises, gaps])
def test_a_blank_is_not_attempted(id, answer):
    assert EXERCISES[id].run(answer) == Verdict(passed=False, attempted=False)


# 02.1


def kl_half(mean, logvar):
    each = mean**2 + logvar.exp() - ...
    return 0.5 * each.flatten(1).sum(1)


def kl_without_half(mean, logvar):
    return (mean.pow(2) + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def kl_averaged(mean, logvar):
    return 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).flatten(1).mean(1)


def kl_mean_of_everything(mean, logvar):
    return -0.5 * torch.mean(1 + logvar - mean.pow(2) - logvar.exp())


def kl_sum_of_everything(mean, logvar):
    return -0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp())


def kl_averaged_over_the_batch(mean, logvar):
    return torch.mean(-0.5 * (1 + logvar - mean**2 - logvar.exp()).flatten(1).sum(1), dim=0)


def kl_with_wrong_sign_of_logvar(mean, logvar):
    return 0.5 * (mean.pow(2) + logvar.exp() - 1 + logvar).flatten(1).sum(1)


def kl_negative(mean, logvar):
    return 0.5 * (1 + logvar - mean.pow(2) - logvar.exp()).flatten(1).sum(1)


def kl_with_std(mean, logvar):
    std = torch.exp(0.5 * logvar)
    return 0.5 * (mean.pow(2) + std - 1 - logvar).flatten(1).sum(1)


def kl_without_one(mean, logvar):
    return 0.5 * (mean.pow(2) + logvar.exp() - logvar).flatten(1).sum(1)


def kl_with_one_for_all(mean, logvar):
    return 0.5 * ((mean.pow(2) + logvar.exp() - logvar).flatten(1).sum(1) - 1)


def kl_without_square(mean, logvar):
    return 0.5 * (mean + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def kl_with_log_of_std(mean, logvar):
    return 0.5 * (mean**2 + logvar.exp() - 1 - 0.5 * logvar).flatten(1).sum(1)


def kl_for_images_only(mean, logvar):
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(dim=[1, 2, 3])


def kl_squeezed(mean, logvar):
    return kl_by_einsum(mean, logvar).squeeze()


def kl_without_variance(mean, logvar):
    return 0.5 * (mean**2 - 1 - logvar).flatten(1).sum(1)


def kl_with_squared_variance(mean, logvar):
    var = torch.exp(logvar)
    return 0.5 * (mean**2 + var**2 - 1 - logvar).flatten(1).sum(1)


def kl_with_logvar_as_log_std(mean, logvar):
    std = torch.exp(logvar)
    return 0.5 * (mean**2 + std**2 - 1 - torch.log(std**2)).flatten(1).sum(1)


def kl_with_logvar_as_variance(mean, logvar):
    return 0.5 * (mean**2 + logvar - 1 - torch.log(logvar)).flatten(1).sum(1)


def kl_without_brackets(mean, logvar):
    return (0.5 * mean**2 + torch.exp(logvar) - 1 - logvar).flatten(1).sum(1)


def kl_with_half_after_the_mean(mean, logvar):
    return (mean**2 + 0.5 * (torch.exp(logvar) - 1 - logvar)).flatten(1).sum(1)


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
    result = torch.zeros(len(mean))
    for image in range(len(mean)):
        for m, v in zip(mean[image].flatten().tolist(), logvar[image].flatten().tolist(), strict=True):
            result[image] += 0.5 * (m * m + math.exp(v) - 1 - v)
    return result


def kl_in_double(mean, logvar):
    mean, logvar = mean.double(), logvar.double()
    return -0.5 * (1 + logvar - mean**2 - logvar.exp()).sum(tuple(range(1, mean.ndim)))


@mistakes(
    "02.1",
    [
        ("gap `...` is still open", kl_half),
        ("½ is missing", kl_without_half),
        ("a mean over the values", kl_averaged),
        ("averaged over everything", kl_mean_of_everything),
        ("summed over the batch", kl_sum_of_everything),
        ("averaged over the batch", kl_averaged_over_the_batch),
        ("sign of logvar", kl_with_wrong_sign_of_logvar),
        ("never negative", kl_negative),
        ("standard deviation", kl_with_std),
        ("-1 is missing", kl_without_one),
        ("once for an image", kl_with_one_for_all),
        ("not squared", kl_without_square),
        ("log σ stands", kl_with_log_of_std),
        ("dims 1, 2, 3 are fixed", kl_for_images_only),
        ("inputs of shape (1, 1)", kl_squeezed),
        ("variance, exp(logvar), is missing", kl_without_variance),
        ("variance is squared", kl_with_squared_variance),
        ("logvar is taken for log σ", kl_with_logvar_as_log_std),
        ("logvar is taken for the variance itself", kl_with_logvar_as_variance),
        ("½ is on the mean only", kl_without_brackets),
        ("½ is missing on the mean", kl_with_half_after_the_mean),
        ("changes its input mean", kl_in_place_on_the_mean),
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


def between_reversed(mean, logvar, other_mean, other_logvar):
    p, q = Normal(other_mean, (other_logvar / 2).exp()), Normal(mean, (logvar / 2).exp())
    return kl_divergence(p, q).flatten(1).sum(1)


def between_with_ratio_upside_down(mean, logvar, other_mean, other_logvar):
    var, other_var = logvar.exp(), other_logvar.exp()
    each = (mean - other_mean) ** 2 / other_var + var / other_var - 1 + logvar - other_logvar
    return 0.5 * each.flatten(1).sum(1)


def between_divided_by_own_variance(mean, logvar, other_mean, other_logvar):
    var, other_var = logvar.exp(), other_logvar.exp()
    each = (mean - other_mean) ** 2 / var + var / other_var - 1 - logvar + other_logvar
    return 0.5 * each.flatten(1).sum(1)


def between_all_divided_by_own_variance(mean, logvar, other_mean, other_logvar):
    var, other_var = logvar.exp(), other_logvar.exp()
    return 0.5 * ((mean - other_mean) ** 2 / var + other_var / var - 1 - logvar + other_logvar).flatten(1).sum(1)


def between_without_one(mean, logvar, other_mean, other_logvar):
    var, other_var = logvar.exp(), other_logvar.exp()
    return 0.5 * (((mean - other_mean) ** 2 + var) / other_var - logvar + other_logvar).flatten(1).sum(1)


def between_without_square(mean, logvar, other_mean, other_logvar):
    var, other_var = logvar.exp(), other_logvar.exp()
    return 0.5 * ((mean - other_mean + var) / other_var - 1 - logvar + other_logvar).flatten(1).sum(1)


def between_without_half(mean, logvar, other_mean, other_logvar):
    var, other_var = logvar.exp(), other_logvar.exp()
    return (((mean - other_mean) ** 2 + var) / other_var - 1 - logvar + other_logvar).flatten(1).sum(1)


def between_averaged(mean, logvar, other_mean, other_logvar):
    q, p = Normal(mean, (logvar / 2).exp()), Normal(other_mean, (other_logvar / 2).exp())
    return kl_divergence(q, p).flatten(1).mean(1)


def between_summed_over_all(mean, logvar, other_mean, other_logvar):
    q, p = Normal(mean, (logvar / 2).exp()), Normal(other_mean, (other_logvar / 2).exp())
    return kl_divergence(q, p).sum()


def between_of_the_first_only(mean, logvar, other_mean, other_logvar):
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def between_with_stds(mean, logvar, other_mean, other_logvar):
    std, other_std = (logvar / 2).exp(), (other_logvar / 2).exp()
    return 0.5 * (((mean - other_mean) ** 2 + std) / other_std - 1 - logvar + other_logvar).flatten(1).sum(1)


def between_by_distributions(mean, logvar, other_mean, other_logvar):
    q, p = Normal(mean, (logvar / 2).exp()), Normal(other_mean, (other_logvar / 2).exp())
    dims = mean.ndim - 1
    return kl_divergence(Independent(q, dims), Independent(p, dims))


def between_images_only(mean, logvar, other_mean, other_logvar):
    each = ((mean - other_mean) ** 2 + logvar.exp()) / other_logvar.exp() - 1 - logvar + other_logvar
    return 0.5 * each.sum(dim=(1, 2, 3))


def between_without_numerator_bracket(mean, logvar, other_mean, other_logvar):
    each = (mean - other_mean) ** 2 + logvar.exp() / other_logvar.exp() - 1 - logvar + other_logvar
    return 0.5 * each.flatten(1).sum(1)


def between_with_undivided_variance(mean, logvar, other_mean, other_logvar):
    each = (mean - other_mean) ** 2 / other_logvar.exp() + logvar.exp() - 1 - logvar + other_logvar
    return 0.5 * each.flatten(1).sum(1)


def between_with_squared_variance(mean, logvar, other_mean, other_logvar):
    var, other_var = logvar.exp(), other_logvar.exp()
    each = ((mean - other_mean) / other_var) ** 2 + var / other_var - 1 - logvar + other_logvar
    return 0.5 * each.flatten(1).sum(1)


def between_with_added_means(mean, logvar, other_mean, other_logvar):
    each = ((mean + other_mean) ** 2 + logvar.exp()) / other_logvar.exp() - 1 - logvar + other_logvar
    return 0.5 * each.flatten(1).sum(1)


def between_without_own_logvar(mean, logvar, other_mean, other_logvar):
    each = ((mean - other_mean) ** 2 + logvar.exp()) / other_logvar.exp() - 1 + other_logvar
    return 0.5 * each.flatten(1).sum(1)


def between_without_other_logvar(mean, logvar, other_mean, other_logvar):
    each = ((mean - other_mean) ** 2 + logvar.exp()) / other_logvar.exp() - 1 - logvar
    return 0.5 * each.flatten(1).sum(1)


def between_with_log_of_stds(mean, logvar, other_mean, other_logvar):
    log_ratio = 0.5 * other_logvar - 0.5 * logvar
    each = ((mean - other_mean) ** 2 + logvar.exp()) / other_logvar.exp() - 1 + log_ratio
    return 0.5 * each.flatten(1).sum(1)


def between_with_half_on_the_fraction(mean, logvar, other_mean, other_logvar):
    fraction = ((mean - other_mean) ** 2 + logvar.exp()) / other_logvar.exp()
    return (0.5 * fraction - 1 - logvar + other_logvar).flatten(1).sum(1)


def between_with_one_for_all(mean, logvar, other_mean, other_logvar):
    each = ((mean - other_mean) ** 2 + logvar.exp()) / other_logvar.exp() - logvar + other_logvar
    return 0.5 * (each.flatten(1).sum(1) - 1)


def between_not_summed(mean, logvar, other_mean, other_logvar):
    return 0.5 * (((mean - other_mean) ** 2 + logvar.exp()) / other_logvar.exp() - 1 - logvar + other_logvar)


def between_in_place_on_the_mean(mean, logvar, other_mean, other_logvar):
    each = mean.sub_(other_mean).square_().add_(logvar.exp()).div_(other_logvar.exp())
    return (each - 1 + other_logvar - logvar).flatten(1).sum(1) / 2


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
        ("direction is reversed", between_reversed),
        ("upside down", between_with_ratio_upside_down),
        ("own variance", between_divided_by_own_variance),
        ("own variance", between_all_divided_by_own_variance),
        ("-1 is missing", between_without_one),
        ("not squared", between_without_square),
        ("½ is missing", between_without_half),
        ("a mean over the values", between_averaged),
        ("summed over the batch", between_summed_over_all),
        ("other Gaussian is ignored", between_of_the_first_only),
        ("standard deviations", between_with_stds),
        ("dims 1, 2, 3 are fixed", between_images_only),
        ("only the variance is divided", between_without_numerator_bracket),
        ("variance is not divided", between_with_undivided_variance),
        ("divided by the squared variance", between_with_squared_variance),
        ("means are added", between_with_added_means),
        ("logvar is missing", between_without_own_logvar),
        ("other_logvar is missing", between_without_other_logvar),
        ("log σ stands", between_with_log_of_stds),
        ("½ is on the fraction only", between_with_half_on_the_fraction),
        ("once for an image", between_with_one_for_all),
        ("not summed", between_not_summed),
        ("changes its input mean", between_in_place_on_the_mean),
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


def log_density(z, mean, std):
    return Normal(mean, std).log_prob(z).flatten(2).sum(2)


def sampled_half(mean, logvar, noise):
    z = mean + torch.exp(logvar / 2) * noise
    log_q = ...
    return (log_q - -0.5 * z**2).flatten(2).sum(2).mean(0)


def sampled_negative(mean, logvar, noise):
    std = torch.exp(logvar / 2)
    z = mean + std * noise
    return (log_density(z, torch.tensor(0.0), torch.tensor(1.0)) - log_density(z, mean, std)).mean(0)


def sampled_from_the_prior(mean, logvar, noise):
    std = torch.exp(logvar / 2)
    return (log_density(noise, mean, std) - log_density(noise, torch.tensor(0.0), torch.tensor(1.0))).mean(0)


def sampled_summed(mean, logvar, noise):
    std = torch.exp(logvar / 2)
    z = mean + std * noise
    return (log_density(z, mean, std) - log_density(z, torch.tensor(0.0), torch.tensor(1.0))).sum(0)


def sampled_mean_of_values(mean, logvar, noise):
    std = torch.exp(logvar / 2)
    z = mean + std * noise
    each = Normal(mean, std).log_prob(z) - Normal(0.0, 1.0).log_prob(z)
    return each.flatten(2).mean(2).mean(0)


def sampled_without_logvar(mean, logvar, noise):
    z = mean + torch.exp(logvar / 2) * noise
    each = -0.5 * (z - mean) ** 2 / logvar.exp() + 0.5 * z**2
    return each.flatten(2).sum(2).mean(0)


def sampled_without_half(mean, logvar, noise):
    z = mean + torch.exp(logvar / 2) * noise
    each = -logvar - (z - mean) ** 2 / logvar.exp() + z**2
    return each.flatten(2).sum(2).mean(0)


def sampled_without_half_in_q(mean, logvar, noise):
    z = mean + torch.exp(logvar / 2) * noise
    each = -logvar - (z - mean) ** 2 / logvar.exp() + 0.5 * z**2
    return each.flatten(2).sum(2).mean(0)


def sampled_with_variance(mean, logvar, noise):
    z = mean + torch.exp(logvar) * noise
    std = torch.exp(logvar / 2)
    return (log_density(z, mean, std) - log_density(z, torch.tensor(0.0), torch.tensor(1.0))).mean(0)


def sampled_with_one_constant(mean, logvar, noise):
    z = mean + torch.exp(logvar / 2) * noise
    log_q = -0.5 * (math.log(2 * math.pi) + logvar + (z - mean) ** 2 / logvar.exp())
    return (log_q + 0.5 * z**2).flatten(2).sum(2).mean(0)


def sampled_averaged_over_the_batch(mean, logvar, noise):
    std = torch.exp(logvar / 2)
    z = mean + std * noise
    return (log_density(z, mean, std) - log_density(z, torch.tensor(0.0), torch.tensor(1.0))).mean()


def sampled_not_averaged(mean, logvar, noise):
    std = torch.exp(logvar / 2)
    z = mean + std * noise
    return log_density(z, mean, std) - log_density(z, torch.tensor(0.0), torch.tensor(1.0))


def sampled_closed_form(mean, logvar, noise):
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).flatten(1).sum(1)


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


def sampled_of_images_only(mean, logvar, noise):
    z = mean + torch.exp(logvar / 2) * noise
    return (0.5 * z**2 - 0.5 * (logvar + noise**2)).sum(dim=(2, 3, 4)).mean(0)


def sampled_squeezed(mean, logvar, noise):
    return sampled_by_einsum(mean, logvar, noise).squeeze()


def sampled_with_half_logvar(mean, logvar, noise):
    z = mean + 0.5 * logvar * noise
    return (0.5 * z**2 - 0.5 * (logvar + (z - mean) ** 2 / logvar.exp())).flatten(2).sum(2).mean(0)


def sampled_around_zero(mean, logvar, noise):
    z = torch.exp(logvar / 2) * noise
    return (0.5 * z**2 - 0.5 * (logvar + (z - mean) ** 2 / logvar.exp())).flatten(2).sum(2).mean(0)


def sampled_without_bracket(mean, logvar, noise):
    z = mean + torch.exp(logvar / 2) * noise
    log_q = -0.5 * logvar + (z - mean) ** 2 / logvar.exp()
    return (log_q + 0.5 * z**2).flatten(2).sum(2).mean(0)


def sampled_without_half_on_the_square(mean, logvar, noise):
    z = mean + torch.exp(logvar / 2) * noise
    log_q = -0.5 * logvar - (z - mean) ** 2 / logvar.exp()
    return (log_q + 0.5 * z**2).flatten(2).sum(2).mean(0)


def sampled_without_half_on_logvar(mean, logvar, noise):
    z = mean + torch.exp(logvar / 2) * noise
    log_q = -logvar - 0.5 * (z - mean) ** 2 / logvar.exp()
    return (log_q + 0.5 * z**2).flatten(2).sum(2).mean(0)


def sampled_with_squared_variance(mean, logvar, noise):
    z = mean + torch.exp(logvar / 2) * noise
    log_q = -0.5 * (logvar + ((z - mean) / logvar.exp()) ** 2)
    return (log_q + 0.5 * z**2).flatten(2).sum(2).mean(0)


def sampled_without_square(mean, logvar, noise):
    z = mean + torch.exp(logvar / 2) * noise
    log_q = -0.5 * (logvar + (z - mean) / logvar.exp())
    return (log_q + 0.5 * z**2).flatten(2).sum(2).mean(0)


def sampled_with_positive_log_p(mean, logvar, noise):
    z = mean + torch.exp(logvar / 2) * noise
    log_q, log_p = -0.5 * (logvar + noise**2), 0.5 * z**2
    return (log_q - log_p).flatten(2).sum(2).mean(0)


def sampled_with_positive_log_q(mean, logvar, noise):
    z = mean + torch.exp(logvar / 2) * noise
    log_q, log_p = 0.5 * (logvar + noise**2), -0.5 * z**2
    return (log_q - log_p).flatten(2).sum(2).mean(0)


def sampled_not_summed(mean, logvar, noise):
    z = mean + torch.exp(logvar / 2) * noise
    return (0.5 * z**2 - 0.5 * (logvar + noise**2)).mean(0)


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
        ("log p - log q", sampled_negative),
        ("samples are those of the prior", sampled_from_the_prior),
        ("average over them", sampled_summed),
        ("a mean over the values", sampled_mean_of_values),
        ("lacks the term logvar", sampled_without_logvar),
        ("½ is missing in both", sampled_without_half),
        ("½ is missing in log q", sampled_without_half_in_q),
        ("wrong spread", sampled_with_variance),
        ("log 2π is in one", sampled_with_one_constant),
        ("averaged over the batch", sampled_averaged_over_the_batch),
        ("not averaged over the samples", sampled_not_averaged),
        ("closed form", sampled_closed_form),
        ("dims 2, 3, 4 are fixed", sampled_of_images_only),
        ("inputs of shape (1, 1), (1, 1, 1)", sampled_squeezed),
        ("exp is missing", sampled_with_half_logvar),
        ("do not have the wanted mean", sampled_around_zero),
        ("bracket in log q", sampled_without_bracket),
        ("½ is missing on the square in log q", sampled_without_half_on_the_square),
        ("½ is missing on logvar in log q", sampled_without_half_on_logvar),
        ("squared variance", sampled_with_squared_variance),
        ("lacks the square", sampled_without_square),
        ("sign of log p", sampled_with_positive_log_p),
        ("sign of log q", sampled_with_positive_log_q),
        ("not summed", sampled_not_summed),
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


def loss_with_pixel_mean(reconstruction, target, posterior, kl_weight):
    return F.l1_loss(reconstruction, target) + kl_weight * posterior.kl().mean()


def loss_with_kl_mean(reconstruction, target, posterior, kl_weight):
    pixel = F.l1_loss(reconstruction, target, reduction="sum") / len(target)
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    return pixel + kl_weight * kl


def loss_of_means(reconstruction, target, posterior, kl_weight):
    kl = -0.5 * torch.mean(1 + posterior.logvar - posterior.mean**2 - posterior.var)
    return F.l1_loss(reconstruction, target) + kl_weight * kl


def loss_summed_over_the_batch(reconstruction, target, posterior, kl_weight):
    return F.l1_loss(reconstruction, target, reduction="sum") + kl_weight * posterior.kl().sum()


def loss_with_pixels_of_the_whole_batch(reconstruction, target, posterior, kl_weight):
    return F.l1_loss(reconstruction, target, reduction="sum") + kl_weight * posterior.kl().mean()


def loss_with_kl_of_the_whole_batch(reconstruction, target, posterior, kl_weight):
    return (reconstruction - target).abs().sum() / target.shape[0] + kl_weight * posterior.kl().sum()


def loss_l2(reconstruction, target, posterior, kl_weight):
    return F.mse_loss(reconstruction, target, reduction="sum") / len(target) + kl_weight * posterior.kl().mean()


def loss_mse(reconstruction, target, posterior, kl_weight):
    return F.mse_loss(reconstruction, target) + kl_weight * posterior.kl().mean()


def loss_with_the_weight_on_the_pixels(reconstruction, target, posterior, kl_weight):
    return kl_weight * (reconstruction - target).abs().flatten(1).sum(1).mean() + posterior.kl().mean()


def loss_without_weight(reconstruction, target, posterior, kl_weight):
    return (reconstruction - target).abs().flatten(1).sum(1).mean() + posterior.kl().mean()


def loss_with_vector_kl(reconstruction, target, posterior, kl_weight):
    return (reconstruction - target).abs().flatten(1).sum(1).mean() + kl_weight * posterior.kl()


def loss_for_each_image(reconstruction, target, posterior, kl_weight):
    return (reconstruction - target).abs().flatten(1).sum(1) + kl_weight * posterior.kl()


def loss_with_norm(reconstruction, target, posterior, kl_weight):
    return torch.linalg.vector_norm(reconstruction - target, dim=(1, 2, 3)).mean() + kl_weight * posterior.kl().mean()


def loss_with_absolute_sum(reconstruction, target, posterior, kl_weight):
    return (reconstruction - target).sum(dim=(1, 2, 3)).abs().mean() + kl_weight * posterior.kl().mean()


def loss_with_pixel_mean_and_kl_sum(reconstruction, target, posterior, kl_weight):
    return F.l1_loss(reconstruction, target) + kl_weight * posterior.kl().sum()


def loss_with_kl_per_pixel(reconstruction, target, posterior, kl_weight):
    kl = posterior.kl().mean() / target[0].numel()
    return (reconstruction - target).abs().flatten(1).sum(1).mean() + kl_weight * kl


def loss_in_place_on_the_reconstruction(reconstruction, target, posterior, kl_weight):
    reconstruction -= target
    return reconstruction.abs().flatten(1).sum(1).mean() + kl_weight * posterior.kl().mean()


def loss_in_place_on_the_posterior(reconstruction, target, posterior, kl_weight):
    kl = 0.5 * (posterior.mean.square_() + posterior.var - 1 - posterior.logvar).flatten(1).sum(1)
    return (reconstruction - target).abs().flatten(1).sum(1).mean() + kl_weight * kl.mean()


def loss_without_absolute_value(reconstruction, target, posterior, kl_weight):
    return (reconstruction - target).flatten(1).sum(1).mean() + kl_weight * posterior.kl().mean()


def loss_with_subtracted_kl(reconstruction, target, posterior, kl_weight):
    return (reconstruction - target).abs().flatten(1).sum(1).mean() - kl_weight * posterior.kl().mean()


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
        ("KL is C·H·W times too strong", loss_with_pixel_mean),
        ("KL is averaged over its values", loss_with_kl_mean),
        ("both terms are means", loss_of_means),
        ("summed over the batch", loss_summed_over_the_batch),
        ("pixel term is summed over the batch", loss_with_pixels_of_the_whole_batch),
        ("KL is summed over the batch", loss_with_kl_of_the_whole_batch),
        ("L1 distance", loss_l2),
        ("mse_loss", loss_mse),
        ("kl_weight is on the pixel term", loss_with_the_weight_on_the_pixels),
        ("kl_weight is forgotten", loss_without_weight),
        ("one number for each image", loss_with_vector_kl),
        ("one number for each image", loss_for_each_image),
        ("absolute value", loss_without_absolute_value),
        ("sign of the KL", loss_with_subtracted_kl),
        ("no gradient reaches the posterior", loss_as_a_number),
        ("no gradient reaches reconstruction and the posterior", loss_without_gradient),
        ("expected a Tensor, got dict", loss_as_a_dictionary),
        ("Euclidean norm", loss_with_norm),
        ("taken of the sum", loss_with_absolute_sum),
        ("a mean over everything, the KL a sum over everything", loss_with_pixel_mean_and_kl_sum),
        ("KL is divided by C·H·W", loss_with_kl_per_pixel),
        ("changes its input reconstruction", loss_in_place_on_the_reconstruction),
        ("changes its input the posterior", loss_in_place_on_the_posterior),
    ],
)
def test_a_wrong_loss_is_named(keyword, answer):
    assert_rejected("02.4", answer, keyword)


@verdicts("02.4", [loss_by_functional, loss_by_hand, loss_in_place, loss_by_a_loop, loss_in_double])
def test_a_right_loss_passes_in_any_style(answer):
    assert_passes("02.4", answer)
