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


def statistics_of_batches_averaged(batches):
    means, stds, all_stds = [], [], []
    for z in batches:
        means.append(z.mean(dim=(0, 2, 3)))
        stds.append(z.std(dim=(0, 2, 3)))
        all_stds.append(z.std())
    return torch.stack(means).mean(0), torch.stack(stds).mean(0), 1 / torch.stack(all_stds).mean()


def statistics_with_averaged_channels(batches):
    count, total, squares = 0, 0, 0
    for z in batches:
        values = z.double().permute(1, 0, 2, 3).reshape(z.shape[1], -1)
        count, total, squares = count + values.shape[1], total + values.sum(1), squares + (values * values).sum(1)
    mean = total / count
    std = (squares / count - mean**2).sqrt()
    return mean, std, 1 / std.mean()


def statistics_with_a_factor_for_each_channel(batches):
    mean, std, _ = nb10.latent_statistics(batches)
    return mean, std, 1 / std


def statistics_upside_down(batches):
    mean, std, scale = nb10.latent_statistics(batches)
    return mean, std, 1 / scale


def statistics_without_the_root(batches):
    mean, std, scale = nb10.latent_statistics(batches)
    return mean, std**2, scale**2


def statistics_without_the_square_of_the_mean(batches):
    count, total, squares = 0, 0, 0
    for z in batches:
        count += z[:, 0].numel()
        total = total + z.double().sum((0, 2, 3))
        squares = squares + z.double().square().sum((0, 2, 3))
    return total / count, torch.sqrt(squares / count), 1 / torch.sqrt(squares.mean() / count)


def statistics_by_images(batches):
    count, total, squares = 0, 0, 0
    for z in batches:
        count += len(z)
        total = total + z.double().sum((0, 2, 3))
        squares = squares + z.double().square().sum((0, 2, 3))
    mean = total / count
    return mean, (squares / count - mean**2).sqrt(), 1 / (squares.mean() / count - mean.mean() ** 2).sqrt()


def statistics_reshaped(batches):
    count, total, squares = 0, 0, 0
    for z in batches:
        values = z.double().reshape(z.shape[1], -1)
        count, total, squares = count + values.shape[1], total + values.sum(1), squares + values.square().sum(1)
    mean = total / count
    return mean, (squares / count - mean**2).sqrt(), 1 / (squares.mean() / count - mean.mean() ** 2).sqrt()


def statistics_of_everything_kept(batches):
    z = torch.cat([batch for batch in batches])  # noqa: C416
    return z.mean((0, 2, 3)), z.std((0, 2, 3)), 1 / z.std()


def statistics_of_copies(batches):
    channels = []
    for z in batches:
        channels.append(z.double().transpose(0, 1).flatten(1))
    values = torch.cat(channels, dim=1)
    return values.mean(1), values.std(1), 1 / values.std()


def statistics_of_clones(batches):
    kept = [z.clone().permute(1, 0, 2, 3).reshape(z.shape[1], -1) for z in batches]
    values = torch.hstack(kept)
    return values.mean(1), values.std(1), values.std() ** -1


def statistics_of_each_image(batches):
    means, squares = [], []
    for z in batches:
        for image in z.double():
            means.append(image.mean((1, 2)))
            squares.append((image**2).mean((1, 2)))
    mean, square = torch.stack(means).mean(0), torch.stack(squares).mean(0)
    return mean, (square - mean**2).sqrt(), 1 / (square.mean() - mean.mean() ** 2).sqrt()


def statistics_of_each_batch(batches):
    mean, square, n = 0, 0, 0
    for z in batches:
        mean, square, n = mean + z.double().mean((0, 2, 3)), square + (z.double() ** 2).mean((0, 2, 3)), n + 1
    mean, square = mean / n, square / n
    return mean, (square - mean**2).sqrt(), 1 / (square.mean() - mean.mean() ** 2).sqrt()


def statistics_for_four_channels(batches):
    count, total, squares = 0, torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for z in batches:
        count += z[:, 0].numel()
        for channel in range(4):
            total[channel] += z[:, channel].double().sum()
            squares[channel] += z[:, channel].double().pow(2).sum()
    mean = total / count
    return mean, (squares / count - mean**2).sqrt(), 1 / (squares.mean() / count - mean.mean() ** 2).sqrt()


def statistics_viewed_as_four_channels(batches):
    count, total, squares = 0, 0, 0
    for z in batches:
        values = z.double().transpose(0, 1).reshape(4, -1)
        count, total, squares = count + values.shape[1], total + values.sum(1), squares + values.square().sum(1)
    mean = total / count
    return mean, (squares / count - mean**2).sqrt(), 1 / (squares.mean() / count - mean.mean() ** 2).sqrt()


def statistics_of_rows_of_pixels(batches):
    count, total, squares = 0, 0, 0
    for z in batches:
        values = z.double().reshape(-1, z.shape[1])
        count, total, squares = count + len(values), total + values.sum(0), squares + values.square().sum(0)
    mean = total / count
    return mean, (squares / count - mean**2).sqrt(), 1 / (squares.mean() / count - mean.mean() ** 2).sqrt()


def statistics_of_a_list(batches):
    kept = list(batches)
    whole = torch.cat(kept).double()
    return whole.mean((0, 2, 3)), whole.std((0, 2, 3)), 1 / whole.std()


def statistics_in_two_passes(batches):
    count, total = 0, 0
    for z in batches:
        count += z[:, 0].numel()
        total = total + z.double().sum((0, 2, 3))
    mean = total / count
    squares = sum(((z - mean.view(-1, 1, 1)) ** 2).sum((0, 2, 3)) for z in batches)
    return mean, (squares / count).sqrt(), 1 / (squares.mean() / count).sqrt()


def statistics_of_cat(batches):
    z = torch.cat(batches)
    return z.mean((0, 2, 3)), z.std((0, 2, 3)), 1 / z.std()


def statistics_by_length(batches):
    total = sum(z.mean((0, 2, 3)) for z in batches)
    return total / len(batches), total, total


def statistics_of_the_first(batches):
    for z in batches:
        mean, std, scale = z.mean((0, 2, 3)), z.std((0, 2, 3)), 1 / z.std()
        break
    return mean, std, scale


def statistics_in_place(batches):
    count, total, squares = 0, 0, 0
    for z in batches:
        count += z[:, 0].numel()
        total = total + z.sum((0, 2, 3))
        squares = squares + z.square_().sum((0, 2, 3))
    mean = total / count
    return mean, (squares / count - mean**2).sqrt(), 1 / (squares.mean() / count - mean.mean() ** 2).sqrt()


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
        ("own deviations are averaged", statistics_of_batches_averaged),
        ("channels' average deviation", statistics_with_averaged_channels),
        ("one scaling factor for each channel", statistics_with_a_factor_for_each_channel),
        ("upside down", statistics_upside_down),
        ("take the root", statistics_without_the_root),
        ("square of the mean is not subtracted", statistics_without_the_square_of_the_mean),
        ("divided by the number of images", statistics_by_images),
        ("channels and batch are mixed up", statistics_reshaped),
        ("held at once", statistics_of_everything_kept),
        ("held at once", statistics_of_a_list),
        ("held at once", statistics_of_copies),
        ("held at once", statistics_of_clones),
        ("images count alike", statistics_of_each_image),
        ("batches count alike", statistics_of_each_batch),
        ("fixed at 4", statistics_for_four_channels),
        ("fixed at 4", statistics_viewed_as_four_channels),
        ("channels and batch are mixed up", statistics_of_rows_of_pixels),
        ("twice", statistics_in_two_passes),
        ("not one tensor", statistics_of_cat),
        ("has no length", statistics_by_length),
        ("first batch alone", statistics_of_the_first),
        ("changed in place", statistics_in_place),
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


def preview_without_a_bias(latents, colours):
    weight = torch.linalg.lstsq(rows(latents), rows(colours)).solution
    return weight, torch.zeros(3)


def preview_with_the_mean_for_a_bias(latents, colours):
    weight = torch.linalg.lstsq(rows(latents), rows(colours)).solution
    return weight, colours.mean((0, 2, 3))


def preview_centred_and_not_put_back(latents, colours):
    z, rgb = rows(latents), rows(colours)
    weight = torch.linalg.lstsq(z - z.mean(0), rgb - rgb.mean(0)).solution
    return weight, rgb.mean(0)


def preview_reshaped(latents, colours):
    fitted = torch.linalg.lstsq(with_ones(latents.reshape(-1, latents.shape[1])), colours.reshape(-1, 3)).solution
    return fitted[:-1], fitted[-1]


def preview_with_reshaped_latents(latents, colours):
    fitted = torch.linalg.lstsq(with_ones(latents.reshape(-1, latents.shape[1])), rows(colours)).solution
    return fitted[:-1], fitted[-1]


def preview_of_the_first_image(latents, colours):
    z, rgb = latents[0].flatten(1).T, colours[0].flatten(1).T
    fitted = torch.linalg.lstsq(with_ones(z), rgb).solution
    return fitted[:-1], fitted[-1]


def preview_transposed(latents, colours):
    fitted = torch.linalg.lstsq(with_ones(rows(latents)), rows(colours)).solution
    return fitted[:-1].T, fitted[-1]


def preview_in_one_piece(latents, colours):
    return torch.linalg.lstsq(with_ones(rows(latents)), rows(colours)).solution


def preview_with_the_ones_first(latents, colours):
    z = rows(latents)
    fitted = torch.linalg.lstsq(torch.cat([torch.ones(len(z), 1), z], dim=1), rows(colours)).solution
    return fitted[:-1], fitted[-1]


def preview_from_colours_to_latents(latents, colours):
    fitted = torch.linalg.lstsq(with_ones(rows(colours)), rows(latents)).solution
    return fitted[:-1], fitted[-1]


def preview_without_the_solution(latents, colours):
    weight, bias = torch.linalg.lstsq(with_ones(rows(latents)), rows(colours))
    return weight, bias


def preview_of_the_whole_answer(latents, colours):
    fitted = torch.linalg.lstsq(with_ones(rows(latents)), rows(colours))
    return fitted[:-1], fitted[-1]


def preview_that_returns_the_answer(latents, colours):
    return torch.linalg.lstsq(with_ones(rows(latents)), rows(colours))


def preview_of_maps(latents, colours):
    fitted = torch.linalg.lstsq(latents, colours).solution
    return fitted[:-1], fitted[-1]


def preview_of_columns(latents, colours):
    fitted = torch.linalg.lstsq(latents.flatten(2), colours.flatten(2)).solution
    return fitted[:-1], fitted[-1]


def preview_by_correlation(latents, colours):
    z, rgb = rows(latents), rows(colours)
    return z.T @ rgb / len(z), rgb.mean(0)


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
        ("no bias is fitted", preview_without_a_bias),
        ("fitted without a bias", preview_with_the_mean_for_a_bias),
        ("bias is the colours' mean", preview_centred_and_not_put_back),
        ("channels and pixels are mixed up", preview_reshaped),
        ("of the latents are mixed up", preview_with_reshaped_latents),
        ("only the first image", preview_of_the_first_image),
        ("weight is transposed", preview_transposed),
        ("in one matrix", preview_in_one_piece),
        ("ones come first", preview_with_the_ones_first),
        ("arguments of lstsq are exchanged", preview_from_colours_to_latents),
        ("take its `.solution`", preview_without_the_solution),
        ("take its `.solution`", preview_of_the_whole_answer),
        ("take its `.solution`", preview_that_returns_the_answer),
        ("a row for each pixel", preview_of_maps),
        ("one for each pixel", preview_of_columns),
        ("not the fit", preview_by_correlation),
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


def temperature_of_everything(posterior, temperature, noise):
    return temperature * (posterior.mean + posterior.std * noise)


def temperature_of_the_variance(posterior, temperature, noise):
    return posterior.mean + temperature * posterior.var * noise


def temperature_of_the_log_variance(posterior, temperature, noise):
    return posterior.mean + temperature * posterior.logvar * noise


def temperature_under_the_root(posterior, temperature, noise):
    return posterior.mean + (temperature * posterior.var).sqrt() * noise


def temperature_in_the_exponent(posterior, temperature, noise):
    return posterior.mean + torch.exp(0.5 * temperature * posterior.logvar) * noise


def temperature_of_plain_noise(posterior, temperature, noise):
    return posterior.mean + temperature * noise


def temperature_without_the_mean(posterior, temperature, noise):
    return temperature * posterior.std * noise


def temperature_ignored(posterior, temperature, noise):
    return posterior.mean + posterior.std * noise


def temperature_as_a_divisor(posterior, temperature, noise):
    return posterior.mean + posterior.std * noise / temperature


def temperature_drawn_anew(posterior, temperature, noise):
    return posterior.mean + temperature * (posterior.sample() - posterior.mean)


def temperature_detached(posterior, temperature, noise):
    return posterior.mean + temperature * posterior.std.detach() * noise


def temperature_in_place(posterior, temperature, noise):
    return noise.mul_(posterior.std * temperature).add_(posterior.mean)


def temperature_by_the_package(posterior, temperature, noise):
    return latents.with_temperature(posterior, temperature, noise)


def temperature_by_addcmul(posterior, temperature, noise):
    return torch.addcmul(posterior.mode(), posterior.std, noise, value=temperature)


def temperature_by_the_log_variance(posterior, temperature, noise):
    return posterior.mean + torch.exp(posterior.logvar / 2 + math.log(temperature)) * noise


def temperature_by_a_distribution(posterior, temperature, noise):
    hot = DiagonalGaussianDistribution(torch.cat([posterior.mean, posterior.logvar + 2 * math.log(temperature)], dim=1))
    return hot.mean + hot.std * noise


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
        ("multiplies the mean, too", temperature_of_everything),
        ("multiplied by the variance", temperature_of_the_variance),
        ("by the log-variance: take", temperature_of_the_log_variance),
        ("not the deviation, is multiplied", temperature_under_the_root),
        ("log-variance is multiplied by the temperature", temperature_in_the_exponent),
        ("deviation is missing", temperature_of_plain_noise),
        ("mean is missing", temperature_without_the_mean),
        ("temperature is not used", temperature_ignored),
        ("divided by the temperature", temperature_as_a_divisor),
        ("use the argument `noise`", temperature_drawn_anew),
        ("gradient to posterior is cut", temperature_detached),
        ("changes its input noise", temperature_in_place),
    ],
)
def test_a_wrong_temperature_is_named(keyword, answer):
    assert_rejected("10.3", answer, keyword)


@verdicts(
    "10.3",
    [
        temperature_by_the_package,
        temperature_by_addcmul,
        temperature_by_the_log_variance,
        temperature_by_a_distribution,
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


def slerp_straight(a, b, t):
    return torch.lerp(a, b, t)


def slerp_backwards(a, b, t):
    x, y = a.flatten(1), b.flatten(1)
    angle = F.cosine_similarity(x, y).clamp(-1, 1).acos()[:, None]
    return arc(angle, y, x, t).view_as(a)


def slerp_unnormalised(a, b, t):
    x, y = a.flatten(1), b.flatten(1)
    angle = torch.acos((x * y).sum(1, keepdim=True))
    return arc(angle, x, y, t).view_as(a)


def slerp_of_the_batch(a, b, t):
    angle = torch.acos(((a * b).sum() / (a.norm() * b.norm())).clamp(-1, 1))
    return arc(angle, a, b, t)


def slerp_of_each_pixel(a, b, t):
    angle = torch.acos(F.cosine_similarity(a, b, dim=1).clamp(-1, 1)).unsqueeze(1)
    return arc(angle, a, b, t)


def slerp_of_each_channel(a, b, t):
    angle = torch.acos(F.cosine_similarity(a.flatten(2), b.flatten(2), dim=2).clamp(-1, 1))[..., None, None]
    return arc(angle, a, b, t)


def slerp_without_acos(a, b, t):
    x, y = a.flatten(1), b.flatten(1)
    angle = F.cosine_similarity(x, y)[:, None]
    return arc(angle, x, y, t).view_as(a)


def slerp_in_degrees(a, b, t):
    x, y = a.flatten(1), b.flatten(1)
    angle = torch.rad2deg(torch.acos(F.cosine_similarity(x, y).clamp(-1, 1)))[:, None]
    return arc(angle, x, y, t).view_as(a)


def slerp_not_divided(a, b, t):
    x, y = a.flatten(1), b.flatten(1)
    angle = torch.acos(F.cosine_similarity(x, y).clamp(-1, 1))[:, None]
    return (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y).view_as(a)


def slerp_of_directions(a, b, t):
    x, y = F.normalize(a.flatten(1)), F.normalize(b.flatten(1))
    angle = torch.acos((x * y).sum(1, keepdim=True).clamp(-1, 1))
    return arc(angle, x, y, t).view_as(a)


def slerp_brought_to_unit_length(a, b, t):
    x, y = a.flatten(1), b.flatten(1)
    angle = torch.acos(F.cosine_similarity(x, y).clamp(-1, 1))[:, None]
    between = arc(angle, x, y, t)
    return (between / between.norm(dim=1, keepdim=True)).view_as(a)


def slerp_of_directions_without_care(a, b, t):
    x, y = F.normalize(a.flatten(1)), F.normalize(b.flatten(1))
    angle = torch.acos((x * y).sum(1, keepdim=True).clamp(-1, 1))
    return ((torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)).view_as(a)


def slerp_that_straightens_the_batch(a, b, t):
    x, y = a.flatten(1), b.flatten(1)
    angle = torch.acos(F.cosine_similarity(x, y).clamp(-1, 1))[:, None]
    if angle.min() < 1e-3:
        return torch.lerp(a, b, t)
    return ((torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)).view_as(a)


def slerp_without_care(a, b, t):
    x, y = a.flatten(1), b.flatten(1)
    angle = torch.acos(F.cosine_similarity(x, y).clamp(-1, 1))[:, None]
    return ((torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)).view_as(a)


def slerp_not_clamped(a, b, t):
    x, y = a.flatten(1), b.flatten(1)
    angle = torch.acos(F.cosine_similarity(x, y))[:, None]
    return arc(angle, x, y, t).view_as(a)


def slerp_flat(a, b, t):
    x, y = a.flatten(1), b.flatten(1)
    angle = torch.acos(F.cosine_similarity(x, y).clamp(-1, 1))[:, None]
    return arc(angle, x, y, t)


def slerp_without_keepdim(a, b, t):
    angle = torch.acos(F.cosine_similarity(a.flatten(1), b.flatten(1)).clamp(-1, 1))
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def slerp_by_a_quarter_turn(a, b, t):
    return math.cos(t * math.pi / 2) * a + math.sin(t * math.pi / 2) * b


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
        ("this is the straight line", slerp_straight),
        ("a and b are exchanged", slerp_backwards),
        ("arc cosine of the plain product", slerp_unnormalised),
        ("one angle for the whole batch", slerp_of_the_batch),
        ("an angle for every pixel", slerp_of_each_pixel),
        ("an angle for every channel", slerp_of_each_channel),
        ("(torch.acos) is missing", slerp_without_acos),
        ("in degrees", slerp_in_degrees),
        ("not divided by sin(angle)", slerp_not_divided),
        ("lengths are lost", slerp_of_directions),
        ("lengths are lost", slerp_of_directions_without_care),
        ("result has length 1", slerp_brought_to_unit_length),
        ("decide for each", slerp_that_straightens_the_batch),
        ("take the straight line there", slerp_without_care),
        ("clamp it to [-1, 1]", slerp_not_clamped),
        ("result is flat", slerp_flat),
        ("must be (B, 1)", slerp_without_keepdim),
        ("quarter turn", slerp_by_a_quarter_turn),
    ],
)
def test_a_wrong_slerp_is_named(keyword, answer):
    assert_rejected("10.4", answer, keyword)


@verdicts(
    "10.4",
    [
        slerp_by_the_package,
        slerp_by_a_loop,
        slerp_with_another_threshold,
        slerp_in_double,
        slerp_by_modules,
        slerp_by_turning,
    ],
)
def test_a_right_slerp_passes_in_any_style(answer):
    assert_passes("10.4", answer)


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


def bits_with_one_level_too_many(z, bits, low, high):
    step = (high - low) / 2**bits
    return low + ((z - low) / step).round().clamp(0, 2**bits) * step


def bits_without_the_upper_end(z, bits, low, high):
    step = (high - low) / 2**bits
    return low + ((z - low) / step).round().clamp(0, 2**bits - 1) * step


def bits_rounded_down(z, bits, low, high):
    step = (high - low) / (2**bits - 1)
    return low + ((z - low) / step).floor().clamp(0, 2**bits - 1) * step


def bits_by_integers(z, bits, low, high):
    step = (high - low) / (2**bits - 1)
    return low + ((z - low) / step).int().clamp(0, 2**bits - 1) * step


def bits_in_the_middle(z, bits, low, high):
    step = (high - low) / 2**bits
    return low + (((z - low) / step).floor().clamp(0, 2**bits - 1) + 0.5) * step


def bits_not_clamped(z, bits, low, high):
    step = (high - low) / (2**bits - 1)
    return low + ((z - low) / step).round() * step


def bits_clamped_above_only(z, bits, low, high):
    step = (high - low) / (2**bits - 1)
    return low + ((z - low) / step).round().clamp(max=2**bits - 1) * step


def bits_without_low(z, bits, low, high):
    step = (high - low) / (2**bits - 1)
    return ((z - low) / step).round().clamp(0, 2**bits - 1) * step


def bits_clamped_one_too_high(z, bits, low, high):
    step = (high - low) / (2**bits - 1)
    return low + ((z - low) / step).round().clamp(0, 2**bits) * step


def bits_that_forget_low(z, bits, low, high):
    step = (high - low) / (2**bits - 1)
    index = torch.clamp(torch.round(z / step), 0, 2**bits - 1)
    return index * step


def bits_index(z, bits, low, high):
    step = (high - low) / (2**bits - 1)
    return ((z - low) / step).round().clamp(0, 2**bits - 1)


def bits_as_levels(z, bits, low, high):
    step = (high - low) / (bits - 1)
    return low + ((z - low) / step).round().clamp(0, bits - 1) * step


def bits_squared(z, bits, low, high):
    step = (high - low) / (bits**2 - 1)
    return low + ((z - low) / step).round().clamp(0, bits**2 - 1) * step


def bits_by_xor(z, bits, low, high):
    levels = 2 ^ bits
    step = (high - low) / (levels - 1)
    return low + ((z - low) / step).round().clamp(0, levels - 1) * step


def bits_of_the_values_range(z, bits, low, high):
    low, high = z.min(), z.max()
    step = (high - low) / (2**bits - 1)
    return low + ((z - low) / step).round() * step


def bits_in_multiples_of_the_step(z, bits, low, high):
    step = (high - low) / (2**bits - 1)
    return (z.clamp(low, high) / step).round() * step


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
        ("one level too many", bits_with_one_level_too_many),
        ("`high` is no level", bits_without_the_upper_end),
        ("rounded down", bits_rounded_down),
        ("rounded down", bits_by_integers),
        ("the middle of each", bits_in_the_middle),
        ("[low, high] are not clamped", bits_not_clamped),
        ("below `low` are not clamped", bits_clamped_above_only),
        ("low is not added", bits_without_low),
        ("low is forgotten", bits_that_forget_low),
        ("not 2**bits: counted from 0", bits_clamped_one_too_high),
        ("this is the index", bits_index),
        ("as many levels as bits", bits_as_levels),
        ("bits**2 levels", bits_squared),
        ("is no power in Python", bits_by_xor),
        ("range is that of the values", bits_of_the_values_range),
        ("multiples of the step", bits_in_multiples_of_the_step),
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
