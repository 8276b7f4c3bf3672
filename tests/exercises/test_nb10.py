"""Right answers to the exercises of notebook 10 in many styles, what only its judges look at, and the solutions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from klvae_edu import latents
from klvae_edu.exercises import nb10
from tests.exercises.answers import all_verdicts, assert_passes, assert_rejected

# 10.1


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


def test_the_finished_preview_does_what_the_package_does_and_finds_a_map_that_is_there():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 4, 5, 6, generator=generator, dtype=torch.float64)
    weight, bias = torch.randn(4, 3, generator=generator).double(), torch.tensor([1.0, -2.0, 0.5]).double()
    colours = torch.einsum("bchw,cd->bdhw", z, weight) + bias[:, None, None]
    for fitted in (nb10.fit_preview(z, colours), latents.fit_preview(z, colours)):
        torch.testing.assert_close(fitted[0], weight)
        torch.testing.assert_close(fitted[1], bias)


# 10.3


def temperature_by_addcmul(posterior, temperature, noise):
    return torch.addcmul(posterior.mode(), posterior.std, noise, value=temperature)


def temperature_in_double(posterior, temperature, noise):
    result = posterior.std.double() * noise.double()
    result *= temperature
    result += posterior.mean
    return result


def test_a_cut_gradient_of_the_deviation_is_named():
    def detached(posterior, temperature, noise):
        return posterior.mean + temperature * posterior.std.detach() * noise

    assert_rejected("10.3", detached, "a part of the gradient to posterior is cut")


def test_another_number_in_the_place_of_the_temperature_is_named():
    def whole(posterior, temperature, noise):
        return posterior.mean + int(temperature) * posterior.std * noise

    assert_rejected("10.3", whole, "at temperature 2.5 the noise is 2 times as strong")


# 10.4


def arc(angle, x, y, t):
    between = (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)
    return torch.where(angle < 1e-3, (1 - t) * x + t * y, between)


def slerp_of_a_clamped_cosine(a, b, t):
    x, y = a.flatten(1), b.flatten(1)
    angle = torch.acos(F.cosine_similarity(x, y).clamp(-1 + 1e-6, 1 - 1e-6))[:, None]
    return ((torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)).view_as(a)


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


COSINES = (
    lambda x, y: F.cosine_similarity(x, y)[:, None],
    lambda x, y: (x * y).sum(1, keepdim=True) / x.norm(dim=1, keepdim=True) / y.norm(dim=1, keepdim=True),
    lambda x, y: (F.normalize(x) * F.normalize(y)).sum(1, keepdim=True),
)


@pytest.mark.parametrize("cosine", COSINES)
def test_pairs_that_point_the_same_way_are_looked_at_whatever_the_rounding(cosine):
    def slerp(sine):
        def answer(a, b, t):
            x, y = a.flatten(1), b.flatten(1)
            w = cosine(x, y).clamp(-1, 1).acos()
            return ((torch.sin((1 - t) * w) * x + torch.sin(t * w) * y) / sine(w)).view_as(a)

        return answer

    def unclamped(a, b, t):
        x, y = a.flatten(1), b.flatten(1)
        return arc(cosine(x, y).acos(), x, y, t).view_as(a)

    assert_rejected("10.4", slerp(torch.sin), "NaN for two that point the same way: there sin(angle) is 0")
    assert_rejected("10.4", slerp(torch.ones_like), "not divided by sin(angle)")
    assert_rejected("10.4", unclamped, "clamp it to [-1, 1] before acos")
    for eps in (1e-12, 1e-8, 1e-6):
        assert_rejected("10.4", slerp(lambda w, eps=eps: w.sin() + eps), "it gives 0")
        assert_rejected("10.4", slerp(lambda w, eps=eps: w.sin().clamp(min=eps)), "it gives 0")


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_the_finished_slerp_does_what_the_package_does(t):
    a, b = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    b[1] = 2 * a[1]
    torch.testing.assert_close(nb10.slerp(a, b, t), latents.slerp(a, b, t))


# 10.5


def bits_clamped_first(z, bits, low, high):
    scale = (2**bits - 1) / (high - low)
    return torch.round((z.clamp(low, high) - low) * scale) / scale + low


def bits_by_nearest_level(z, bits, low, high):
    levels = torch.linspace(low, high, 2**bits, dtype=z.dtype)
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
    return torch.tensor(flat, dtype=z.dtype).view_as(z)


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_the_finished_bits_do_what_the_package_does(bits):
    z = 2 * torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = nb10.quantise(z, bits, -1.5, 2.0)
    torch.testing.assert_close(ours, latents.quantise(z, bits, -1.5, 2.0))
    assert len(ours.unique()) == 2**bits and (ours.min(), ours.max()) == (-1.5, 2.0)


@all_verdicts(
    {
        "10.1": (
            statistics_by_welford,
            statistics_in_single_precision,
            statistics_by_the_package,
            statistics_with_a_number_of_numpy,
            statistics_by_einsum,
            statistics_by_variance_and_means,
        ),
        "10.2": (
            preview_by_pinv,
            preview_by_normal_equations,
            preview_by_centring,
            preview_by_numpy,
            preview_by_einsum,
        ),
        "10.3": (latents.with_temperature, temperature_by_addcmul, temperature_in_double),
        "10.4": (
            latents.slerp,
            slerp_of_a_clamped_cosine,
            slerp_by_a_loop,
            slerp_with_another_threshold,
            slerp_in_double,
            slerp_by_modules,
            slerp_by_turning,
        ),
        "10.5": (
            latents.quantise,
            bits_clamped_first,
            bits_by_nearest_level,
            bits_by_numpy,
            bits_by_bucketize,
            bits_by_a_loop,
        ),
    }
)
def test_a_right_answer_passes_in_any_style(id, answer):
    assert_passes(id, answer)
