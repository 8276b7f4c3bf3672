"""Exercises of notebook 12: right answers in many styles, and solutions that agree with the package."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from klvae_edu.exercises import EXERCISES
from klvae_edu.performance.tiling import GlobalStatistics, placements
from tests.exercises.answers import all_verdicts, assert_passes, assert_rejected

# Right answers


def ramp_in_numpy(length, before, after):
    weights = np.ones(length)
    weights[:before] = (np.arange(before) + 0.5) / before if before else 1
    if after:
        weights[-after:] = ((np.arange(after) + 0.5) / after)[::-1]
    return torch.from_numpy(weights)


def ramp_by_minimum(length, before, after):
    place = torch.arange(length, dtype=torch.float64) + 0.5
    rising, falling = place / max(before, 0.5), (length - place) / max(after, 0.5)
    return torch.minimum(rising, falling).clamp(max=1)


def ramp_by_parts(length, before, after):
    parts = [(torch.arange(before) + 0.5) / max(1, before), torch.ones(length - before - after)]
    return torch.cat([*parts, ((torch.arange(after) + 0.5) / max(1, after)).flip(0)])


def pooled_by_moments(means, variances, counts):
    weights = counts.double() / counts.double().sum()
    mean = weights @ means.double()
    return mean, weights @ (variances + means**2).double() - mean**2


def pooled_by_a_loop(means, variances, counts):
    mean = sum(count * one for count, one in zip(counts, means, strict=True)) / counts.sum()
    total = torch.zeros_like(mean)
    for count, one, variance in zip(counts, means, variances, strict=True):
        total += count * (variance + (one - mean) ** 2)
    return [mean, total / counts.sum()]


def pooled_by_einsum(means, variances, counts):
    share = counts / counts.sum()
    mean = torch.einsum("t,tg->g", share, means)
    return mean, torch.einsum("t,tg->g", share, variances + (means - mean).square())


def norm_by_layer_norm(x, groups, eps=1e-6):
    g = x.float().reshape(len(x), groups, -1)
    return F.layer_norm(g, g.shape[2:], eps=eps).reshape(x.shape).to(x.dtype)


def norm_in_the_maps_own_type(x, groups, eps=1e-6):
    return F.group_norm(x, groups, eps=eps)  # on a CPU it computes in float32


def norm_by_function(x, groups, eps=1e-6):
    return F.group_norm(x.float(), groups, eps=eps).to(x.dtype)


def norm_by_module(x, groups, eps=1e-6):
    return nn.GroupNorm(groups, x.shape[1], eps, affine=False)(x.to(torch.float32)).type_as(x)


def norm_in_double(x, groups, eps=1e-6):
    g = x.double().unflatten(1, (groups, -1))
    mean, std = g.mean((2, 3, 4), keepdim=True), g.std((2, 3, 4), keepdim=True, correction=0)
    return ((g - mean) / (std**2 + eps).sqrt()).flatten(1, 2).to(x.dtype)


def rows_as_a_list(count, seed, epoch, reader, readers, done):
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
    return [row for place, row in enumerate(order) if place % readers == reader][done:]


def rows_as_a_tuple(count, seed, epoch, reader, readers, done):
    return tuple(rows_as_a_list(count, seed, epoch, reader, readers, done))


def rows_by_one_slice(count, seed, epoch, reader, readers, done):
    generator = torch.Generator()
    generator.manual_seed(epoch + seed)
    return torch.randperm(count, generator=generator)[reader + done * readers :: readers]


def rows_in_an_array(count, seed, epoch, reader, readers, done):
    return rows_by_one_slice(count, seed, epoch, reader, readers, done).numpy()


def rows_by_a_forked_generator(count, seed, epoch, reader, readers, done):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + epoch)
        return torch.randperm(count)[reader::readers][done:]


def cost_in_seconds(crops, crops_per_second, machines=1, efficiency=1.0, price=1.0):
    seconds = crops / (machines * crops_per_second * efficiency)
    return [seconds / 86400, seconds / 3600 * machines * price]


def cost_of_the_work(crops, crops_per_second, machines=1, efficiency=1.0, price=1.0):
    machine_hours = crops / crops_per_second / efficiency / 60 / 60
    return machine_hours / machines / 24, torch.tensor(machine_hours * price)


def cost_in_one_tensor(crops, crops_per_second, machines=1, efficiency=1.0, price=1.0):
    hours = crops / (crops_per_second * machines * efficiency) / 3600
    return torch.tensor([hours / 24, hours * machines * price])


def cost_in_an_array(crops, crops_per_second, machines=1, efficiency=1.0, price=1.0):
    return cost_in_one_tensor(crops, crops_per_second, machines, efficiency, price).numpy()


@all_verdicts(
    {
        "12.1": (ramp_in_numpy, ramp_by_minimum, ramp_by_parts),
        "12.2": (pooled_by_moments, pooled_by_a_loop, pooled_by_einsum),
        "12.3": (norm_in_the_maps_own_type, norm_by_function, norm_by_module, norm_in_double, norm_by_layer_norm),
        "12.4": (rows_as_a_list, rows_by_one_slice, rows_as_a_tuple, rows_in_an_array, rows_by_a_forked_generator),
        "12.5": (cost_in_seconds, cost_of_the_work, cost_in_one_tensor, cost_in_an_array),
    }
)
def test_right_answers_in_other_styles_pass(id, answer):
    assert_passes(id, answer)


def test_rows_from_the_shared_generator_are_named_even_without_a_seed():
    def rows(count, seed, epoch, reader, readers, done):
        return torch.randperm(count)[reader::readers][done:]

    assert_rejected("12.4", rows, "the generator that all of PyTorch shares")


# The solutions agree with the package


def test_the_weights_are_those_of_the_package():
    (_, first), (_, middle), (_, last) = placements(32, 16, 8)
    ramp = EXERCISES["12.1"].reference
    for expected, found in ((first, ramp(16, 0, 8)), (middle, ramp(16, 8, 8)), (last, ramp(16, 8, 0))):
        torch.testing.assert_close(found.double(), expected)


def test_the_statistics_are_those_of_the_package():
    norm, statistics, x = nn.GroupNorm(2, 4), GlobalStatistics(), torch.randn(1, 4, 6, 5) + 1
    for tile in x.split(2, dim=2):
        statistics.hook(norm, (tile,), norm(tile))
    groups = torch.stack([tile.reshape(2, -1) for tile in x.split(2, dim=2)])
    variances, means = torch.var_mean(groups, dim=2, correction=0)
    mean, variance = EXERCISES["12.2"].reference(means, variances, torch.tensor([20.0, 20.0, 20.0]))
    for found, expected in zip((mean, variance), statistics.pooled(norm), strict=True):
        torch.testing.assert_close(found[None], expected)
    torch.testing.assert_close(variance, x.reshape(2, -1).var(1, correction=0))
