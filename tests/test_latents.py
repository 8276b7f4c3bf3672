"""Latents: statistics in one pass, edits of single channels and values, linear and spherical interpolation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from klvae_edu import DiagonalGaussianDistribution, latents
from klvae_edu.latents import (
    channel_pictures,
    edit_channel,
    fit_preview,
    lerp,
    poke,
    preview,
    prior_sample,
    quantise,
    slerp,
    statistics,
    with_temperature,
)


def latent(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape or (2, 4, 6, 5), generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---- statistics ------------------------------------------------------------------------------------------------------


def test_statistics_of_batches_are_those_of_all_latents_at_once() -> None:
    z = (
        latent(7, 3, 4, 5) * torch.tensor([1.0, 2.0, 0.5])[:, None, None]
        + torch.tensor([0.0, 3.0, -1.0])[:, None, None]
    )
    found = statistics(z.split([1, 4, 2]))
    torch.testing.assert_close(found.mean, z.mean((0, 2, 3)), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(found.std, z.std((0, 2, 3)), rtol=1e-14, atol=1e-14)
    assert found.overall_mean == pytest.approx(z.mean().item(), rel=1e-14)
    assert found.overall_std == pytest.approx(z.std().item(), rel=1e-14)


def test_statistics_of_four_numbers_by_hand() -> None:
    # Channel 0 holds 1 and 3, channel 1 holds 10 and 20; their standard deviations with n - 1 = 1 are √2 and √50.
    z = torch.tensor([[[[1.0, 3.0]], [[10.0, 20.0]]]])
    found = statistics([z])
    assert found.mean.tolist() == [2.0, 15.0]
    assert found.std.tolist() == pytest.approx([math.sqrt(2), math.sqrt(50)])
    # All four: mean 8.5, squared deviations 7.5² + 5.5² + 1.5² + 11.5² = 221, over n - 1 = 3.
    assert found.overall_mean == 8.5 and found.overall_std == pytest.approx(math.sqrt(221 / 3))
    assert found.scaling_factor == pytest.approx(math.sqrt(3 / 221))


def test_the_scaling_factor_includes_the_spread_of_the_channels_means() -> None:
    z = latent(2, 2, 50, 50) + torch.tensor([-3.0, 3.0])[:, None, None]
    found = statistics([z])
    assert found.scaling_factor == pytest.approx(1 / z.std().item())
    # The mean of the channels' standard deviations would give another factor.
    assert found.scaling_factor < 0.5 < 1 / found.std.mean()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 10**6))
def test_statistics_depend_neither_on_the_cut_into_batches_nor_on_a_large_mean(sizes: list[int], mean: int) -> None:
    z = latent(sum(sizes), 2, 2, 3) + mean
    found = statistics(z.split(sizes))
    torch.testing.assert_close(found.std, z.std((0, 2, 3)), rtol=1e-7, atol=0)


def test_float32_batches_are_summed_in_float64() -> None:
    z = 1000 + latent(4, 2, 16, 16, dtype=torch.float32)
    torch.testing.assert_close(statistics(z.split(1)).std, z.double().std((0, 2, 3)), rtol=1e-12, atol=0)


def test_batches_may_be_a_generator_of_latents_of_several_sizes_and_empty_ones() -> None:
    sizes = [(1, 2, 3, 3), (0, 2, 3, 3), (2, 2, 5, 4)]
    found = statistics(latent(*size, seed=seed) for seed, size in enumerate(sizes))
    first = torch.cat([latent(*size, seed=seed)[:, 0].flatten() for seed, size in enumerate(sizes)])
    assert found.mean[0].item() == pytest.approx(first.mean().item())
    assert found.std[0].item() == pytest.approx(first.std().item())


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([torch.zeros(4, 8, 8)], r"expected batches \(B, C, h, w\), got \(4, 8, 8\)"),
        ([torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 8, 8)], r"expected batches \(B, 4, h, w\), got \(1, 3, 8, 8\)"),
        ([], "two values a channel or more, got 0"),
        ([torch.zeros(1, 4, 1, 1)], "two values a channel or more, got 1"),
    ],
)
def test_statistics_of_too_little_or_of_other_shapes_are_a_value_error(batches: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        statistics(batches)


def test_equal_values_have_no_scaling_factor() -> None:
    with pytest.raises(ValueError, match="no spread"):
        _ = statistics([torch.ones(1, 2, 2, 2)]).scaling_factor


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_a_channels_picture_is_grey_at_its_mean_and_white_three_deviations_above() -> None:
    z = torch.tensor([[[[3.0, 5.0, 7.0, 5.0]], [[0.0, 0.0, 0.0, 0.0]]]])  # mean 5, std √2; a constant
    pictures = channel_pictures(z)
    assert pictures.shape == (1, 2, 1, 1, 4)
    expected = 2 / (3 * math.sqrt(2))
    torch.testing.assert_close(pictures[0, 0, 0], torch.tensor([[-expected, 0, expected, 0]]))
    assert (pictures[0, 1] == 0).all()


def test_pictures_of_an_edit_are_measured_by_the_latent_before_it() -> None:
    z = latent()
    deviation = z[:, 1].std((1, 2), keepdim=True, correction=0)
    brighter = channel_pictures(edit_channel(z, 1, scale=0.1) + 0.6 * deviation[:, None], like=z)
    torch.testing.assert_close(brighter[:, 1].mean((2, 3)), torch.full((2, 1), 0.2, dtype=torch.float64))
    assert channel_pictures(100 + z, like=z).min() == 1  # clamped


def test_a_preview_finds_a_linear_map_exactly_and_clamps() -> None:
    z, weight, bias = latent(2, 4, 6, 6), latent(4, 3, seed=1) / 20, latent(3, seed=2) / 20
    colours = torch.einsum("bchw,cd->bdhw", z, weight) + bias[:, None, None]
    found_weight, found_bias = fit_preview(z, colours)
    torch.testing.assert_close(found_weight, weight)
    torch.testing.assert_close(found_bias, bias)
    torch.testing.assert_close(preview(z, found_weight, found_bias), colours)
    assert preview(100 * z, found_weight, found_bias).abs().max() == 1


def test_a_preview_has_the_least_squared_error() -> None:
    z, colours = latent(1, 2, 8, 8), latent(1, 3, 8, 8, seed=1) / 10
    weight, bias = fit_preview(z, colours)

    def error(weight: Tensor, bias: Tensor) -> float:
        return (preview(z, weight, bias) - colours).square().sum().item()

    best = error(weight, bias)
    for step in (-1e-3, 1e-3):
        assert error(weight + step, bias) > best and error(weight, bias + step) > best


def test_a_preview_comes_in_the_dtype_of_the_latents_and_needs_colours_of_their_size() -> None:
    z = latent(2, 4, 4, 4, dtype=torch.float32)
    assert fit_preview(z, torch.zeros(2, 3, 4, 4))[0].dtype == torch.float32
    with pytest.raises(ValueError, match=r"got \(2, 4, 4, 4\) and \(2, 3, 32, 32\)"):
        fit_preview(z, torch.zeros(2, 3, 32, 32))


# ---- edits -----------------------------------------------------------------------------------------------------------


def test_a_channel_is_scaled_about_its_own_mean_and_then_shifted() -> None:
    z = torch.tensor([[[[1.0, 3.0]], [[5.0, 5.0]]], [[[10.0, 14.0]], [[6.0, 6.0]]]])
    edited = edit_channel(z, 0, shift=100, scale=2)
    assert edited[:, 0].tolist() == [[[100.0, 104.0]], [[108.0, 116.0]]]  # about 2 and about 12: each image by itself
    assert torch.equal(edited[:, 1], z[:, 1])


def test_scaling_keeps_the_channels_mean() -> None:
    z = latent()
    torch.testing.assert_close(edit_channel(z, 2, scale=-3)[:, 2].mean((1, 2)), z[:, 2].mean((1, 2)))


def test_a_muted_channel_is_its_mean_everywhere_whatever_the_scale() -> None:
    z = latent()
    muted = edit_channel(z, 3, scale=5, mute=True)
    torch.testing.assert_close(muted[:, 3], z[:, 3].mean((1, 2), keepdim=True).expand(2, 6, 5))
    assert torch.equal(muted, edit_channel(z, 3, scale=0))


def test_without_a_setting_nothing_changes() -> None:
    z = latent()
    torch.testing.assert_close(edit_channel(z, 0), z, rtol=0, atol=1e-15)


def test_temperature_zero_is_the_mode_one_a_sample_and_ten_ten_times_as_far_from_it() -> None:
    posterior = DiagonalGaussianDistribution(latent(2, 8, 3, 3))
    noise = latent(2, 4, 3, 3, seed=1)
    assert torch.equal(with_temperature(posterior, 0, noise), posterior.mode())
    sampled = posterior.sample(torch.Generator().manual_seed(1))
    torch.testing.assert_close(with_temperature(posterior, 1, noise), sampled)
    torch.testing.assert_close(with_temperature(posterior, 10, noise) - posterior.mean, 10 * (sampled - posterior.mean))


def test_noise_of_another_shape_is_a_value_error() -> None:
    posterior = DiagonalGaussianDistribution(latent(2, 8, 3, 3))
    with pytest.raises(ValueError, match=r"shape \(2, 4, 3, 3\), got \(1, 4, 3, 3\)"):
        with_temperature(posterior, 1.0, latent(1, 4, 3, 3))


def test_a_poke_adds_to_one_value_of_each_latent() -> None:
    z = latent()
    difference = poke(z, row=5, column=4, amount=2.5, channel=3) - z
    assert difference.count_nonzero() == 2
    torch.testing.assert_close(difference[:, 3, 5, 4], torch.full((2,), 2.5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"row": 6}, "row: expected 0 to 5, got 6"),
        ({"column": 5}, "column: expected 0 to 4, got 5"),
        ({"channel": 4}, "channel: expected 0 to 3, got 4"),
        ({"row": -1}, "row: expected 0 to 5, got -1"),
    ],
)
def test_a_poke_outside_the_latent_is_a_value_error(setting: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        poke(latent(), **{"row": 0, "column": 0, "amount": 1.0, "channel": 0, **setting})


def test_a_channel_that_is_not_there_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="channel: expected 0 to 3, got -1"):
        edit_channel(latent(), -1)


def test_two_bits_are_four_levels_with_both_ends_and_the_nearest_is_taken() -> None:
    z = torch.tensor([-9.0, 0.0, 0.49, 0.51, 1.4, 1.6, 2.6, 3.0, 9.0])
    assert quantise(z, 2, 0.0, 3.0).tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 3]


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_all_levels_are_used_and_no_more_and_half_a_step_is_the_largest_error(bits: int) -> None:
    z = torch.linspace(-1, 2, 10_001, dtype=torch.float64)
    rounded = quantise(z, bits, -1.0, 2.0)
    assert len(rounded.unique()) == 2**bits
    assert (rounded - z).abs().max().item() == pytest.approx(1.5 / (2**bits - 1), rel=0.02)
    assert torch.equal(quantise(rounded, bits, -1.0, 2.0), rounded)


def test_each_channel_may_have_its_own_range() -> None:
    z = torch.tensor([[[[0.4, 5.0]], [[4.0, 6.0]]]])
    low, high = torch.tensor([0.0, 0.0])[:, None, None], torch.tensor([1.0, 10.0])[:, None, None]
    assert quantise(z, 1, low, high).tolist() == [[[[0, 1]], [[0, 10]]]]


@pytest.mark.parametrize(("bits", "low", "high"), [(0, 0.0, 1.0), (1.5, 0.0, 1.0), (2, 1.0, 1.0), (2, 1.0, 0.0)])
def test_no_bits_and_no_range_are_a_value_error(bits: int, low: float, high: float) -> None:
    with pytest.raises(ValueError, match="whole number of bits, 1 or more, and low < high"):
        quantise(latent(), bits, low, high)


# ---- between two -----------------------------------------------------------------------------------------------------


def test_a_line_and_an_arc_end_where_they_should() -> None:
    a, b = latent(), 3 * latent(seed=1)
    for between in (lerp, slerp):
        torch.testing.assert_close(between(a, b, 0.0), a)
        torch.testing.assert_close(between(a, b, 1.0), b)


def test_the_line_by_hand() -> None:
    assert lerp(torch.tensor([[0.0, 4.0]]), torch.tensor([[8.0, 0.0]]), 0.25).tolist() == [[2, 3]]


def test_an_arc_of_ninety_degrees_by_hand() -> None:
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    torch.testing.assert_close(slerp(a, b, 1 / 3), torch.tensor([[math.cos(math.pi / 6), math.sin(math.pi / 6)]]))


def test_the_angle_does_not_depend_on_the_norms() -> None:
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 10.0]])  # at right angles, with different norms
    torch.testing.assert_close(slerp(a, b, 0.5), math.sqrt(0.5) * (a + b))
    torch.testing.assert_close(slerp(3 * a, 3 * b, 0.3), 3 * slerp(a, b, 0.3))


def test_between_equal_norms_an_arc_keeps_the_norm_and_a_line_does_not() -> None:
    a, b = latent(3, 4, 8, 8), latent(3, 4, 8, 8, seed=1)
    b = b * (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1))[:, None, None, None]
    for t in (0.2, 0.5, 0.9):
        torch.testing.assert_close(slerp(a, b, t).flatten(1).norm(dim=1), a.flatten(1).norm(dim=1))
    assert (lerp(a, b, 0.5).flatten(1).norm(dim=1) < 0.8 * a.flatten(1).norm(dim=1)).all()


def test_each_pair_of_a_batch_has_its_own_angle() -> None:
    a, b = latent(3, 4, 5, 5), latent(3, 4, 5, 5, seed=1)
    b[0] = a[0] + 0.1 * b[0]
    alone = torch.cat([slerp(one[None], other[None], 0.3) for one, other in zip(a, b, strict=True)])
    torch.testing.assert_close(slerp(a, b, 0.3), alone)


@pytest.mark.parametrize("factor", [1.0, 2.0, 1.0 + 1e-7, -1.0])
def test_parallel_and_opposite_pairs_go_along_the_line(factor: float) -> None:
    a = latent(1, 4, 5, 5)
    torch.testing.assert_close(slerp(a, factor * a, 0.3), lerp(a, factor * a, 0.3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_the_threshold_arc_and_line_agree(dtype: torch.dtype) -> None:
    for angle in (0.9 * latents.LERP_THRESHOLD, 1.1 * latents.LERP_THRESHOLD):
        a = torch.tensor([[1.0, 0.0]], dtype=dtype)
        b = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=dtype)
        expected = torch.tensor([[math.cos(0.3 * angle), math.sin(0.3 * angle)]], dtype=dtype)
        torch.testing.assert_close(slerp(a, b, 0.3), expected, rtol=0, atol=3e-7)


def test_two_shapes_and_a_lone_vector_are_value_errors() -> None:
    for between in (lerp, slerp):
        with pytest.raises(ValueError, match=r"got \(2, 4\) and \(1, 4\)"):
            between(latent(2, 4), latent(1, 4), 0.5)
    with pytest.raises(ValueError, match=r"got shape \(4,\)"):
        slerp(latent(4), latent(4), 0.5)


def test_a_prior_sample_is_standard_normal_and_follows_its_generator() -> None:
    z = prior_sample((1, 4, 64, 64), torch.Generator().manual_seed(0))
    assert torch.equal(z, prior_sample([1, 4, 64, 64], torch.Generator().manual_seed(0)))
    assert z.dtype == torch.float32 and abs(z.mean()) < 0.03 and abs(z.std() - 1) < 0.03


# ---- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda z, other: edit_channel(z, 1, shift=1.0, scale=2.0),
        lambda z, other: edit_channel(z, 1, mute=True),
        lambda z, other: poke(z, 1, 1, 5.0, 1),
        lambda z, other: quantise(z, 2, -1.0, 1.0),
        lambda z, other: lerp(z, other, 0.5),
        lambda z, other: slerp(z, other, 0.5),
        lambda z, other: channel_pictures(z, like=other),
        lambda z, other: fit_preview(z, other[:, :3]),
        lambda z, other: statistics([z, other]),
        lambda z, other: with_temperature(DiagonalGaussianDistribution(z), 0.5, other[:, :2]),
    ],
)
def test_the_callers_tensors_stay_as_they_are(function: object) -> None:
    z, other = latent(), latent(seed=1)
    before = z.clone(), other.clone()
    function(z, other)  # type: ignore[operator]
    assert torch.equal(z, before[0]) and torch.equal(other, before[1])
