"""Typical answers to the exercises of notebook 10: blank, unfinished, wrong, and right in many styles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from klvae_edu import latents
from klvae_edu.exercises import EXERCISES, nb10
from klvae_edu.gaussian import DiagonalGaussianDistribution
from tests.exercises.answers import assert_blank, assert_passes, assert_rejected, mistakes, verdicts

# 10.1


def statistics_raises(batches):
    raise NotImplementedError


def statistics_gaps(batches):
    count, total, squares = 0, 0, 0  # noqa: F841
    for _ in batches:
        values = ...  # noqa: F841
        ...  # noqa: PIE790
    mean, std = ..., ...
    return mean, std, ...


def statistics_half(batches):
    count, total, squares = 0, 0, 0
    for z in batches:
        values = z.transpose(0, 1).flatten(1).double()
        count += values.shape[1]
        total += values.sum(1)
        squares += (values**2).sum(1)
    mean, std = total / count, (squares / count - (total / count) ** 2).sqrt()
    return mean, std, ...


def statistics_by_welford(batches):
    count, mean, m2 = 0, 0.0, 0.0
    for z in batches:
        values = z.double().movedim(1, 0).flatten(1)
        new, new_mean = values.shape[1], values.mean(1)
        delta = new_mean - mean
        m2 = m2 + ((values - new_mean[:, None]) ** 2).sum(1) + delta**2 * count * new / (count + new)
        mean, count = mean + delta * new / (count + new), count + new
    between = ((mean - mean.mean()) ** 2).sum() * count
    return mean, (m2 / (count - 1)).sqrt(), 1 / ((m2.sum() + between) / (count * len(mean) - 1)).sqrt()


def statistics_in_single_precision(batches):
    count, total, squares = 0, 0.0, 0.0
    for z in batches:
        count += z.size(0) * z.size(2) * z.size(3)
        total = total + z.sum(dim=(0, 2, 3))
        squares = squares + z.pow(2).sum(dim=(0, 2, 3))
    mean = total / count
    std = torch.sqrt(squares / count - mean * mean)
    return mean, std, (squares.mean() / count - mean.mean() ** 2) ** -0.5


def statistics_by_the_package(batches):
    found = latents.statistics(batches)
    return found.mean, found.std, found.scaling_factor


def statistics_with_a_number_of_numpy(batches):
    mean, std, scale = nb10.latent_statistics(batches)
    return mean, std, np.float32(scale)


def statistics_by_einsum(batches):
    sums = [
        (z[:, 0].numel(), z.double().sum((0, 2, 3)), torch.einsum("bchw,bchw->c", z.double(), z.double()))
        for z in batches
    ]
    count = sum(n for n, _, _ in sums)
    mean, square = (sum(row[i] for row in sums) / count for i in (1, 2))
    return [mean, (square - mean**2).sqrt(), (square.mean() - mean.mean() ** 2).rsqrt()]


def statistics_by_variance_and_means(batches):
    counts, means, variances = [], [], []
    for z in batches:
        counts.append(z[:, 0].numel())
        means.append(z.mean((0, 2, 3)))
        variances.append(z.var((0, 2, 3), correction=0))
    share = (torch.tensor(counts) / sum(counts))[:, None]
    mean = (share * torch.stack(means)).sum(0)
    var = (share * (torch.stack(variances) + (torch.stack(means) - mean) ** 2)).sum(0)
    return mean, var.sqrt(), 1 / (var.mean() + mean.var(correction=0)).sqrt()


@verdicts("10.1", [statistics_raises, statistics_gaps])
def test_blank_statistics_are_not_attempted(answer):
    assert_blank("10.1", answer)


@mistakes(
    "10.1",
    [
        ("gap `...` is still open", statistics_half),
    ],
)
def test_wrong_statistics_are_named(keyword, answer):
    assert_rejected("10.1", answer, keyword)


@verdicts(
    "10.1",
    [
        statistics_by_welford,
        statistics_in_single_precision,
        statistics_by_the_package,
        statistics_with_a_number_of_numpy,
        statistics_by_einsum,
        statistics_by_variance_and_means,
    ],
)
def test_right_statistics_pass_in_any_style(answer):
    assert_passes("10.1", answer)


def test_the_finished_statistics_are_those_of_all_latents_at_once():
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, 4, 40, 50, generator=generator) * n + n for n in (5, 2, 3)]
    mean, std, scale = nb10.latent_statistics(iter(batches))
    whole = torch.cat(batches).double()
    torch.testing.assert_close(mean, whole.mean((0, 2, 3)))
    torch.testing.assert_close(std, whole.std((0, 2, 3)), rtol=1e-4, atol=0)
    torch.testing.assert_close(1 / scale, whole.std(), rtol=1e-4, atol=0)
    theirs = latents.statistics(batches)
    torch.testing.assert_close(std, theirs.std, rtol=1e-4, atol=0)
    assert math.isclose(scale, theirs.scaling_factor, rel_tol=1e-4)


# 10.2


def preview_raises(latents, colours):
    raise NotImplementedError


def preview_gaps(latents, colours):
    z = ...  # noqa: F841
    rgb = ...  # noqa: F841
    fitted = ...  # noqa: F841
    return ..., ...


def preview_half(latents, colours):
    z = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    rgb = ...
    fitted = torch.linalg.lstsq(z, rgb).solution
    return fitted[:-1], fitted[-1]


def rows(x):
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def with_ones(x):
    return torch.cat([x, torch.ones(len(x), 1)], dim=1)


def preview_by_pinv(latents, colours):
    fitted = torch.linalg.pinv(with_ones(rows(latents))) @ rows(colours)
    return fitted[: latents.shape[1]], fitted[latents.shape[1]]


def preview_by_normal_equations(latents, colours):
    z, rgb = with_ones(rows(latents.double())), rows(colours.double())
    fitted = torch.linalg.solve(z.T @ z, z.T @ rgb)
    return fitted[:-1], fitted[-1]


def preview_by_centring(latents, colours):
    z, rgb = rows(latents), rows(colours)
    weight = torch.linalg.lstsq(z - z.mean(0), rgb - rgb.mean(0)).solution
    return weight, rgb.mean(0) - z.mean(0) @ weight


def preview_by_numpy(latents, colours):
    fitted = np.linalg.lstsq(with_ones(rows(latents)).double().numpy(), rows(colours).double().numpy(), rcond=None)[0]
    return [torch.from_numpy(fitted[:-1]), torch.from_numpy(fitted[-1])]


def preview_by_einsum(latents, colours):
    z = torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1)
    gram, mixed = torch.einsum("bchw,bdhw->cd", z, z), torch.einsum("bchw,bdhw->cd", z, colours)
    *weight, bias = torch.linalg.inv(gram.double()) @ mixed.double()
    return torch.stack(weight), bias


@verdicts("10.2", [preview_raises, preview_gaps])
def test_a_blank_preview_is_not_attempted(answer):
    assert_blank("10.2", answer)


@mistakes(
    "10.2",
    [
        ("gap `...` is still open", preview_half),
    ],
)
def test_a_wrong_preview_is_named(keyword, answer):
    assert_rejected("10.2", answer, keyword)


@verdicts(
    "10.2",
    [preview_by_pinv, preview_by_normal_equations, preview_by_centring, preview_by_numpy, preview_by_einsum],
)
def test_a_right_preview_passes_in_any_style(answer):
    assert_passes("10.2", answer)


def test_the_finished_preview_does_what_the_package_does_and_finds_a_map_that_is_there():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 4, 5, 6, generator=generator, dtype=torch.float64)
    weight, bias = torch.randn(4, 3, generator=generator).double(), torch.tensor([1.0, -2.0, 0.5]).double()
    colours = torch.einsum("bchw,cd->bdhw", z, weight) + bias[:, None, None]
    for fitted in (nb10.fit_preview(z, colours), latents.fit_preview(z, colours)):
        torch.testing.assert_close(fitted[0], weight)
        torch.testing.assert_close(fitted[1], bias)


# 10.3


def temperature_raises(posterior, temperature, noise):
    raise NotImplementedError


def temperature_gaps(posterior, temperature, noise):
    return ...


def temperature_half(posterior, temperature, noise):
    std = ...
    return posterior.mean + temperature * std * noise


def temperature_drawn_anew(posterior, temperature, noise):
    return posterior.mean + temperature * (posterior.sample() - posterior.mean)


def temperature_detached(posterior, temperature, noise):
    return posterior.mean + temperature * posterior.std.detach() * noise


def temperature_in_place(posterior, temperature, noise):
    return noise.mul_(posterior.std * temperature).add_(posterior.mean)


def temperature_kept_in_place(posterior, temperature, noise):
    posterior.std *= temperature
    return posterior.mean + posterior.std * noise


def temperature_by_a_hotter_posterior(posterior, temperature, noise):
    hot = DiagonalGaussianDistribution(torch.cat([posterior.mean, posterior.logvar + 2 * math.log(temperature)], dim=1))
    return hot.mean + hot.std * noise


def temperature_by_the_package(posterior, temperature, noise):
    return latents.with_temperature(posterior, temperature, noise)


def temperature_by_addcmul(posterior, temperature, noise):
    return torch.addcmul(posterior.mode(), posterior.std, noise, value=temperature)


def temperature_in_double(posterior, temperature, noise):
    result = posterior.std.double() * noise.double()
    result *= temperature
    result += posterior.mean
    return result


@verdicts("10.3", [temperature_raises, temperature_gaps])
def test_a_blank_temperature_is_not_attempted(answer):
    assert_blank("10.3", answer)


@mistakes(
    "10.3",
    [
        ("gap `...` is still open", temperature_half),
        ("use the argument `noise`", temperature_drawn_anew),
        ("gradient to posterior is cut", temperature_detached),
        ("changes its input noise", temperature_in_place),
        ("changes the posterior", temperature_kept_in_place),
        ("logarithm of 0", temperature_by_a_hotter_posterior),
    ],
)
def test_a_wrong_temperature_is_named(keyword, answer):
    assert_rejected("10.3", answer, keyword)


@verdicts(
    "10.3",
    [
        temperature_by_the_package,
        temperature_by_addcmul,
        temperature_in_double,
    ],
)
def test_a_right_temperature_passes_in_any_style(answer):
    assert_passes("10.3", answer)


# 10.4


def slerp_raises(a, b, t):
    raise NotImplementedError


def slerp_gaps(a, b, t):
    x, y = a.flatten(1), b.flatten(1)  # noqa: F841
    angle = ...  # noqa: F841
    between = ...  # noqa: F841
    return ...


def slerp_half(a, b, t):
    x, y = a.flatten(1), b.flatten(1)
    angle = ...
    between = (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)
    return between.view_as(a)


def arc(angle, x, y, t):
    between = (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)
    return torch.where(angle < 1e-3, (1 - t) * x + t * y, between)


def slerp_straight_up_to(limit):
    def slerp(a, b, t):
        x, y = a.flatten(1), b.flatten(1)
        angle = torch.acos(F.cosine_similarity(x, y).clamp(-1, 1))[:, None]
        between = (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)
        return torch.where(angle < limit, (1 - t) * x + t * y, between).view_as(a)

    return slerp


def slerp_divided_by(sine, cosine=F.cosine_similarity):
    def slerp(a, b, t):
        x, y = a.flatten(1), b.flatten(1)
        angle = torch.acos(cosine(x, y).clamp(-1, 1))[:, None]
        return ((torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / sine(angle)).view_as(a)

    return slerp


def slerp_of_a_clamped_cosine(a, b, t):
    x, y = a.flatten(1), b.flatten(1)
    angle = torch.acos(F.cosine_similarity(x, y).clamp(-1 + 1e-6, 1 - 1e-6))[:, None]
    return ((torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)).view_as(a)


def slerp_by_the_package(a, b, t):
    return latents.slerp(a, b, t)


def slerp_by_a_loop(a, b, t):
    pairs = []
    for x, y in zip(a, b, strict=True):
        cosine = float(torch.dot(x.flatten(), y.flatten()) / (x.norm() * y.norm()))
        angle = math.acos(max(-1.0, min(1.0, cosine)))
        if angle < 1e-3:
            pairs.append((1 - t) * x + t * y)
        else:
            pairs.append((math.sin((1 - t) * angle) * x + math.sin(t * angle) * y) / math.sin(angle))
    return torch.stack(pairs)


def slerp_with_another_threshold(a, b, t):
    cosine = F.cosine_similarity(a.flatten(1), b.flatten(1)).view(-1, 1, 1, 1)
    angle = cosine.clamp(-1, 1).acos()
    weights = torch.sin((1 - t) * angle) / angle.sin(), torch.sin(t * angle) / angle.sin()
    close = cosine > 0.9995
    return torch.where(close, 1 - t, weights[0]) * a + torch.where(close, t, weights[1]) * b


def slerp_in_double(a, b, t):
    x, y = a.double(), b.double()
    cosine = torch.einsum("bchw,bchw->b", x, y) / (x.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1))
    angle = cosine.clamp(-1, 1).acos()[:, None, None, None]
    return arc(angle, x, y, t)


def slerp_by_modules(a, b, t):
    x, y = nn.Flatten()(a), nn.Flatten()(b)
    angle = torch.acos(nn.CosineSimilarity(dim=1)(x, y).clamp(-1, 1)).unsqueeze(1)
    return nn.Unflatten(1, a.shape[1:])(arc(angle, x, y, t))


def slerp_by_turning(a, b, t):
    """Rotates the direction of a towards the part of b that is orthogonal to it, and scales it to the right norm."""
    x, y = a.flatten(1).double(), b.flatten(1).double()
    u = F.normalize(x)
    v = y - (y * u).sum(1, keepdim=True) * u
    angle = torch.atan2(v.norm(dim=1, keepdim=True), (y * u).sum(1, keepdim=True))
    return arc(angle, x, y, t).view_as(a)


@verdicts("10.4", [slerp_raises, slerp_gaps])
def test_a_blank_slerp_is_not_attempted(answer):
    assert_blank("10.4", answer)


@mistakes(
    "10.4",
    [
        ("gap `...` is still open", slerp_half),
    ],
)
def test_a_wrong_slerp_is_named(keyword, answer):
    assert_rejected("10.4", answer, keyword)


@verdicts(
    "10.4",
    [
        slerp_by_the_package,
        slerp_of_a_clamped_cosine,
        slerp_straight_up_to(0.01),
        slerp_by_a_loop,
        slerp_with_another_threshold,
        slerp_in_double,
        slerp_by_modules,
        slerp_by_turning,
    ],
)
def test_a_right_slerp_passes_in_any_style(answer):
    assert_passes("10.4", answer)


@pytest.mark.parametrize("limit", [0.05, 0.1, 0.5, 1.0])
def test_a_straight_line_up_to_any_wide_angle_is_named(limit):
    assert_rejected("10.4", slerp_straight_up_to(limit), "too wide an angle")


@pytest.mark.parametrize("eps", [1e-12, 1e-8, 1e-6])
@pytest.mark.parametrize(
    "cosine", [F.cosine_similarity, lambda x, y: torch.einsum("bi,bi->b", x, y) / x.norm(dim=1) / y.norm(dim=1)]
)
def test_a_division_saved_by_any_small_number_is_named(eps, cosine):
    for sine in (lambda angle: angle.sin() + eps, lambda angle: angle.sin().clamp(min=eps)):
        assert_rejected("10.4", slerp_divided_by(sine, cosine), "it gives 0")


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_the_finished_slerp_does_what_the_package_does(t):
    a, b = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    b[1] = 2 * a[1]
    torch.testing.assert_close(nb10.slerp(a, b, t), latents.slerp(a, b, t))


# 10.5


def bits_raises(z, bits, low, high):
    raise NotImplementedError


def bits_gaps(z, bits, low, high):
    step = ...  # noqa: F841
    index = ...  # noqa: F841
    return ...


def bits_half(z, bits, low, high):
    step = (high - low) / (2**bits - 1)
    index = ...
    return low + index * step


def bits_in_place(z, bits, low, high):
    step = (high - low) / (2**bits - 1)
    return z.sub_(low).div_(step).round_().clamp_(0, 2**bits - 1).mul_(step).add_(low)


def bits_by_the_package(z, bits, low, high):
    return latents.quantise(z, bits, low, high)


def bits_clamped_first(z, bits, low, high):
    scale = (2**bits - 1) / (high - low)
    return torch.round((z.clamp(low, high) - low) * scale) / scale + low


def bits_by_nearest_level(z, bits, low, high):
    levels = torch.linspace(low, high, 2**bits)
    return levels[(z[..., None] - levels).abs().argmin(-1)]


def bits_by_numpy(z, bits, low, high):
    step = (high - low) / (2**bits - 1)
    index = np.clip(np.rint((z.numpy() - low) / step), 0, 2**bits - 1)
    return torch.from_numpy(low + index * step)


def bits_by_bucketize(z, bits, low, high):
    levels = torch.linspace(low, high, 1 << bits, dtype=torch.float64)
    return levels[torch.bucketize(z.double(), (levels[1:] + levels[:-1]) / 2)]


def bits_by_a_loop(z, bits, low, high):
    step = (high - low) / (2**bits - 1)
    flat = []
    for value in z.flatten().tolist():
        flat.append(low + min(max(round((value - low) / step), 0), 2**bits - 1) * step)
    return torch.tensor(flat).view_as(z)


@verdicts("10.5", [bits_raises, bits_gaps])
def test_blank_bits_are_not_attempted(answer):
    assert_blank("10.5", answer)


@mistakes(
    "10.5",
    [
        ("gap `...` is still open", bits_half),
        ("changes its input z", bits_in_place),
    ],
)
def test_wrong_bits_are_named(keyword, answer):
    assert_rejected("10.5", answer, keyword)


@verdicts(
    "10.5",
    [
        bits_by_the_package,
        bits_clamped_first,
        bits_by_nearest_level,
        bits_by_numpy,
        bits_by_bucketize,
        bits_by_a_loop,
    ],
)
def test_right_bits_pass_in_any_style(answer):
    assert_passes("10.5", answer)


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_the_finished_bits_do_what_the_package_does(bits):
    z = 2 * torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = nb10.quantise(z, bits, -1.5, 2.0)
    torch.testing.assert_close(ours, latents.quantise(z, bits, -1.5, 2.0))
    assert len(ours.unique()) == 2**bits and (ours.min(), ours.max()) == (-1.5, 2.0)


@pytest.mark.parametrize("id", ["10.1", "10.2", "10.3", "10.4", "10.5"])
def test_the_result_instead_of_the_function_is_named(id):
    verdict = EXERCISES[id].run(torch.zeros(2))
    assert not verdict.passed and "expected the function itself" in verdict.message
