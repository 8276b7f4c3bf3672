"""Typical answers to the exercises of notebook 12: blank, unfinished, wrong, and right in many styles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from klvae_edu.exercises import EXERCISES
from klvae_edu.performance.tiling import GlobalStatistics, placements
from tests.exercises.answers import assert_blank, assert_passes, assert_rejected

# 12.1


def ramp_raises(length, before, after):
    raise NotImplementedError


def ramp_gaps(length, before, after):
    weights = ...  # noqa: F841
    return ...


def ramp_half(length, before, after):
    weights = torch.ones(length)
    weights[:before] = weights[:before] * ...
    return weights


def ramp_from_zero_to_one(length, before, after):
    weights = torch.ones(length)
    if before:
        weights[:before] = torch.linspace(0, 1, before)
    if after:
        weights[length - after :] = torch.linspace(1, 0, after)
    return weights


def ramp_without_ends(length, before, after):
    weights = torch.ones(length)
    if before:
        weights[:before] = torch.linspace(0, 1, before + 2)[1:-1]
    if after:
        weights[-after:] = torch.linspace(1, 0, after + 2)[1:-1]
    return weights


def ramp_by_steps(length, before, after):
    weights = torch.ones(length)
    for i in range(before):
        weights[i] = i / before
    for i in range(after):
        weights[length - 1 - i] = i / after
    return weights


def ramp_up_to_one(length, before, after):
    weights = torch.ones(length)
    for i in range(before):
        weights[i] = (i + 1) / before
    for i in range(after):
        weights[length - 1 - i] = (i + 1) / after
    return weights


def ramp_that_only_rises(length, before, after):
    weights = torch.ones(length)
    if before:
        weights[:before] = (torch.arange(before) + 0.5) / before
    return weights


def ramp_of_halves(length, before, after):
    weights = torch.ones(length)
    weights[:before] = 0.5
    weights[length - after :] = 0.5
    return weights


def ramp_of_the_other_end(length, before, after):
    return torch.from_numpy(ramp_in_numpy(length, before, after).numpy()[::-1].copy())


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


# 12.2


def pooled_raises(means, variances, counts):
    raise NotImplementedError


def pooled_gaps(means, variances, counts):
    mean, variance = ...
    return mean, variance


def pooled_half(means, variances, counts):
    share = (counts / counts.sum())[:, None]
    return (share * means).sum(0), ...


def pooled_by_averaging(means, variances, counts):
    weights = counts / counts.sum()
    return weights @ means, weights @ variances


def pooled_without_weights(means, variances, counts):
    mean = means.mean(0)
    return mean, (variances + (means - mean).pow(2)).mean(0)


def pooled_by_plain_means(means, variances, counts):
    return means.mean(0), variances.mean(0)


def pooled_with_var_of_means(means, variances, counts):
    weights = counts / counts.sum()
    return weights @ means, weights @ variances + torch.var(means, dim=0)


def pooled_by_counts(means, variances, counts):
    share = counts.unsqueeze(1)
    mean = (share * means).sum(dim=0)
    variance = (share * (variances + (means - mean) ** 2)).sum(dim=0)
    return mean, variance


def pooled_as_deviation(means, variances, counts):
    mean, variance = pooled_by_moments(means, variances, counts)
    return mean, variance**0.5


def pooled_without_square(means, variances, counts):
    weights = counts / counts.sum()
    mean = weights @ means
    return mean, weights @ (variances + torch.abs(means - mean))


def pooled_the_other_way_round(means, variances, counts):
    mean, variance = pooled_by_moments(means, variances, counts)
    return variance, mean


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


# 12.3


def norm_raises(x, groups, eps=1e-6):
    raise NotImplementedError


def norm_gaps(x, groups, eps=1e-6):
    variance, mean = ...  # noqa: RUF059
    return ...


def norm_half(x, groups, eps=1e-6):
    grouped = x.float().reshape(len(x), groups, -1)
    return grouped - ...


def norm_in_half(x, groups, eps=1e-6):
    grouped = x.reshape(len(x), groups, -1)
    mean = grouped.mean(-1, keepdim=True)
    variance = ((grouped - mean) ** 2).mean(-1, keepdim=True)
    return ((grouped - mean) / torch.sqrt(variance + eps)).reshape(x.shape)


def norm_left_in_float32(x, groups, eps=1e-6):
    return F.group_norm(x.float(), groups, eps=eps)


def norm_by_channel(x, groups, eps=1e-6):
    return F.instance_norm(x.float(), eps=eps).to(x.dtype)


def norm_over_all(x, groups, eps=1e-6):
    return F.layer_norm(x.float(), x.shape[1:], eps=eps).to(x.dtype)


def norm_unbiased(x, groups, eps=1e-6):
    g = x.float().reshape(len(x), groups, -1)
    return ((g - g.mean(2, keepdim=True)) / (g.var(2, keepdim=True) + eps).sqrt()).reshape(x.shape).to(x.dtype)


def norm_without_root(x, groups, eps=1e-6):
    g = x.float().reshape(len(x), groups, -1)
    variance = g.var(2, keepdim=True, correction=0)
    return ((g - g.mean(2, keepdim=True)) / (variance + eps)).reshape(x.shape).to(x.dtype)


def norm_without_eps(x, groups, eps=1e-6):
    g = x.float().reshape(len(x), groups, -1)
    return ((g - g.mean(2, keepdim=True)) / g.std(2, keepdim=True, correction=0)).reshape(x.shape).to(x.dtype)


def norm_with_eps_outside(x, groups, eps=1e-6):
    g = x.float().reshape(len(x), groups, -1)
    std = g.std(2, keepdim=True, correction=0)
    return ((g - g.mean(2, keepdim=True)) / (std + eps)).reshape(x.shape).to(x.dtype)


def norm_with_pytorchs_eps(x, groups, eps=1e-6):
    return F.group_norm(x.float(), groups).to(x.dtype)


def norm_with_its_own_eps(x, groups, eps=1e-6):
    return F.group_norm(x.float(), groups, eps=1e-6).to(x.dtype)


def norm_by_difference_of_squares(x, groups, eps=1e-6):
    g = x.float().reshape(len(x), groups, -1)
    mean = g.mean(2, keepdim=True)
    variance = (g**2).mean(2, keepdim=True) - mean**2
    return ((g - mean) / (variance + eps).sqrt()).reshape(x.shape).to(x.dtype)


def norm_at_each_pixel(x, groups, eps=1e-6):
    y = x.float()
    return ((y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, correction=0) + eps).sqrt()).to(x.dtype)


def norm_at_each_pixel_of_a_group(x, groups, eps=1e-6):
    g = x.float().reshape(len(x), groups, -1, *x.shape[2:])
    variance, mean = torch.var_mean(g, dim=2, correction=0, keepdim=True)
    return ((g - mean) / torch.sqrt(variance + eps)).reshape(x.shape).to(x.dtype)


def norm_in_bfloat16(x, groups, eps=1e-6):
    g = x.bfloat16().reshape(len(x), groups, -1)
    mean = g.mean(2, keepdim=True)
    variance = ((g - mean) ** 2).mean(2, keepdim=True)
    return ((g - mean) / (variance + eps).sqrt()).reshape(x.shape).to(x.dtype)


def norm_in_float16(x, groups, eps=1e-6):
    g = x.half().reshape(len(x), groups, -1)
    return ((g - g.mean(2, keepdim=True)) / (g.var(2, keepdim=True) + eps).sqrt()).reshape(x.shape).to(x.dtype)


def norm_always_half(x, groups, eps=1e-6):
    return F.group_norm(x.float(), groups, eps=eps).half()


def norm_always_bfloat16(x, groups, eps=1e-6):
    return F.group_norm(x.float(), groups, eps=eps).bfloat16()


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


# 12.4


def rows_raises(count, seed, epoch, reader, readers, done):
    raise NotImplementedError


def rows_gaps(count, seed, epoch, reader, readers, done):
    order = ...  # noqa: F841
    mine = ...  # noqa: F841
    return ...


def rows_half(count, seed, epoch, reader, readers, done):
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch))
    return order[reader::readers] + ...


def shuffled(count, seed):
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def rows_by_own_seed(count, seed, epoch, reader, readers, done):
    return shuffled(count, seed + epoch + reader)[reader::readers][done:]


def rows_the_same_in_each_pass(count, seed, epoch, reader, readers, done):
    return shuffled(count, seed)[reader::readers][done:]


def rows_done_from_all(count, seed, epoch, reader, readers, done):
    return shuffled(count, seed + epoch)[done:][reader::readers]


def rows_from_the_beginning(count, seed, epoch, reader, readers, done):
    return shuffled(count, seed + epoch)[reader::readers]


def rows_it_has_had(count, seed, epoch, reader, readers, done):
    return shuffled(count, seed + epoch)[reader::readers][:done]


def rows_in_chunks(count, seed, epoch, reader, readers, done):
    size = count // readers
    return shuffled(count, seed + epoch)[size * reader : size * reader + size][done:]


def rows_by_chunk(count, seed, epoch, reader, readers, done):
    return torch.chunk(shuffled(count, seed + epoch), readers)[reader][done:]


def rows_by_tensor_split(count, seed, epoch, reader, readers, done):
    return torch.tensor_split(shuffled(count, seed + epoch), readers)[reader][done:]


def rows_unshuffled(count, seed, epoch, reader, readers, done):
    return list(range(count))[reader::readers][done:]


def rows_of_everyone(count, seed, epoch, reader, readers, done):
    return shuffled(count, seed + epoch)[done:]


def rows_as_a_list(count, seed, epoch, reader, readers, done):
    order = shuffled(count, seed + epoch).tolist()
    return [row for place, row in enumerate(order) if place % readers == reader][done:]


def rows_by_one_slice(count, seed, epoch, reader, readers, done):
    generator = torch.Generator()
    generator.manual_seed(epoch + seed)
    return torch.randperm(count, generator=generator)[reader + done * readers :: readers]


# 12.5


def cost_raises(crops, crops_per_second, machines=1, efficiency=1.0, price=1.0):
    raise NotImplementedError


def cost_gaps(crops, crops_per_second, machines=1, efficiency=1.0, price=1.0):
    hours = ...  # noqa: F841
    days, money = ...
    return days, money


def cost_half(crops, crops_per_second, machines=1, efficiency=1.0, price=1.0):
    hours = crops / (crops_per_second * machines * efficiency) / 3600
    return hours / 24, ...


def cost_of_one(crops, crops_per_second, machines=1, efficiency=1.0, price=1.0):
    hours = crops / crops_per_second / machines / efficiency / 3600
    return hours / 24, price * hours


def cost_in_hours(crops, crops_per_second, machines=1, efficiency=1.0, price=1.0):
    hours = crops / crops_per_second / machines / efficiency / 3600
    return hours, price * machines * hours


def cost_times_efficiency(crops, crops_per_second, machines=1, efficiency=1.0, price=1.0):
    hours = crops / crops_per_second / machines * efficiency / 3600
    return hours / 24, price * machines * hours


def cost_without_efficiency(crops, crops_per_second, machines=1, efficiency=1.0, price=1.0):
    hours = crops / crops_per_second / machines / 3600
    return hours / 24, price * machines * hours


def cost_by_sixty(crops, crops_per_second, machines=1, efficiency=1.0, price=1.0):
    hours = crops / (crops_per_second * machines * efficiency) / 60
    return hours / 24, hours * machines * price


def cost_of_a_day(crops, crops_per_second, machines=1, efficiency=1.0, price=1.0):
    days = crops / crops_per_second / machines / efficiency / 86400
    return days, price * machines * days


def cost_without_price(crops, crops_per_second, machines=1, efficiency=1.0, price=1.0):
    hours = crops / crops_per_second / machines / efficiency / 3600
    return hours / 24, machines * hours


def cost_in_seconds(crops, crops_per_second, machines=1, efficiency=1.0, price=1.0):
    seconds = crops / (machines * crops_per_second * efficiency)
    return [seconds / 86400, seconds / 3600 * machines * price]


def cost_of_the_work(crops, crops_per_second, machines=1, efficiency=1.0, price=1.0):
    machine_hours = crops / crops_per_second / efficiency / 60 / 60
    return machine_hours / machines / 24, torch.tensor(machine_hours * price)


BLANK = {
    "12.1": (ramp_raises, ramp_gaps),
    "12.2": (pooled_raises, pooled_gaps),
    "12.3": (norm_raises, norm_gaps),
    "12.4": (rows_raises, rows_gaps),
    "12.5": (cost_raises, cost_gaps),
}
HALF = {"12.1": ramp_half, "12.2": pooled_half, "12.3": norm_half, "12.4": rows_half, "12.5": cost_half}
WRONG = {
    "12.1": (
        ("ends at 1", ramp_from_zero_to_one),
        ("without its ends linspace", ramp_without_ends),
        ("begins at 0: both ramps", ramp_by_steps),
        ("more than 1", ramp_up_to_one),
        ("the last cells do not fall", ramp_that_only_rises),
        ("one half everywhere", ramp_of_halves),
        ("exchanged", ramp_of_the_other_end),
    ),
    "12.2": (
        ("between their means is missing", pooled_by_averaging),
        ("every tile counts the same", pooled_without_weights),
        ("neither is weighed", pooled_by_plain_means),
        ("n - 1", pooled_with_var_of_means),
        ("not made into shares", pooled_by_counts),
        ("standard deviation", pooled_as_deviation),
        ("not squared", pooled_without_square),
        ("the mean comes first", pooled_the_other_way_round),
    ),
    "12.3": (
        ("outgrow float16", norm_in_half),
        ("back in float32", norm_left_in_float32),
        ("for itself", norm_by_channel),
        ("over all channels", norm_over_all),
        ("n - 1", norm_unbiased),
        ("root is missing", norm_without_root),
        ("a constant map becomes NaN", norm_without_eps),
        ("added to the deviation", norm_with_eps_outside),
        ("eps is 1e-5", norm_with_pytorchs_eps),
        ("eps is always 1e-6", norm_with_its_own_eps),
        ("mean square less the squared mean", norm_by_difference_of_squares),
        ("at each pixel", norm_at_each_pixel),
        ("at each pixel", norm_at_each_pixel_of_a_group),
        ("range, not the precision", norm_in_bfloat16),
        ("computed in float16", norm_in_float16),
        ("back in float16 whatever came", norm_always_half),
        ("back in bfloat16 whatever came", norm_always_bfloat16),
    ),
    "12.4": (
        ("must not know the reader", rows_by_own_seed),
        ("every pass has the same order", rows_the_same_in_each_pass),
        ("this reader's own rows", rows_done_from_all),
        ("comes again", rows_from_the_beginning),
        ("the others are left", rows_it_has_had),
        ("lose the last rows", rows_in_chunks),
        ("torch.chunk", rows_by_chunk),
        ("chunks are dealt out", rows_by_tensor_split),
        ("nothing is shuffled", rows_unshuffled),
        ("every reader gets all rows", rows_of_everyone),
    ),
    "12.5": (
        ("money is that of one machine", cost_of_one),
        ("a day has 24", cost_in_hours),
        ("multiplied by the efficiency", cost_times_efficiency),
        ("efficiency is missing", cost_without_efficiency),
        ("divided by 60 once", cost_by_sixty),
        ("taken for a day", cost_of_a_day),
        ("price is missing", cost_without_price),
    ),
}
RIGHT = {
    "12.1": (ramp_in_numpy, ramp_by_minimum, ramp_by_parts),
    "12.2": (pooled_by_moments, pooled_by_a_loop, pooled_by_einsum),
    "12.3": (norm_in_the_maps_own_type, norm_by_function, norm_by_module, norm_in_double),
    "12.4": (rows_as_a_list, rows_by_one_slice),
    "12.5": (cost_in_seconds, cost_of_the_work),
}


@pytest.mark.parametrize(("id", "answer"), [(id, answer) for id, answers in BLANK.items() for answer in answers])
def test_a_blank_skeleton_is_not_attempted(id, answer):
    assert_blank(id, answer)


@pytest.mark.parametrize(("id", "answer"), HALF.items())
def test_a_half_filled_one_has_an_open_gap(id, answer):
    assert_rejected(id, answer, "a gap `...` is still open")


@pytest.mark.parametrize(
    ("id", "keyword", "answer"), [(id, *answer) for id, answers in WRONG.items() for answer in answers]
)
def test_wrong_answers_are_named(id, keyword, answer):
    assert_rejected(id, answer, keyword)


@pytest.mark.parametrize(("id", "answer"), [(id, answer) for id, answers in RIGHT.items() for answer in answers])
def test_right_answers_in_other_styles_pass(id, answer):
    assert_passes(id, answer)


def test_the_finished_weights_are_those_of_the_package():
    (_, first), (_, middle), (_, last) = placements(32, 16, 8)
    ramp = EXERCISES["12.1"].reference
    for expected, found in ((first, ramp(16, 0, 8)), (middle, ramp(16, 8, 8)), (last, ramp(16, 8, 0))):
        torch.testing.assert_close(found.double(), expected)


def test_the_finished_statistics_are_those_of_the_package():
    norm, statistics, x = nn.GroupNorm(2, 4), GlobalStatistics(), torch.randn(1, 4, 6, 5) + 1
    for tile in x.split(2, dim=2):
        statistics.hook(norm, (tile,), norm(tile))
    groups = [tile.reshape(2, -1) for tile in x.split(2, dim=2)]
    means, variances = (
        torch.stack([getattr(g, n)(dim=1, **k) for g in groups]) for n, k in (("mean", {}), ("var", {"correction": 0}))
    )
    mean, variance = EXERCISES["12.2"].reference(means, variances, torch.tensor([20.0, 20.0, 20.0]))
    for found, expected in zip((mean, variance), statistics.pooled(norm), strict=True):
        torch.testing.assert_close(found[None], expected)
    torch.testing.assert_close(variance, x.reshape(2, -1).var(1, correction=0))
