"""`DiagonalGaussianDistribution` against torch.distributions, sampling statistics and the limits of its clamp."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution as ReferenceGaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from klvae_edu import DiagonalGaussianDistribution


def parameters(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def as_torch(posterior: DiagonalGaussianDistribution) -> Independent:
    return Independent(Normal(posterior.mean, posterior.std), posterior.mean.ndim - 1)


@pytest.mark.parametrize("shape", [(3, 4), (3, 8, 5), (3, 8, 5, 7), (2, 8, 2, 3, 4)])
def test_kl_is_torchs_kl_divergence_at_every_rank(shape: tuple[int, ...]) -> None:
    posterior, other = (DiagonalGaussianDistribution(parameters(*shape, seed=seed)) for seed in (0, 1))
    standard = Independent(Normal(torch.zeros_like(posterior.mean), torch.ones_like(posterior.mean)), len(shape) - 1)
    torch.testing.assert_close(posterior.kl(), kl_divergence(as_torch(posterior), standard))
    torch.testing.assert_close(posterior.kl(other), kl_divergence(as_torch(posterior), as_torch(other)))
    assert posterior.kl().shape == (shape[0],)


def test_kl_is_summed_over_all_but_the_batch_not_averaged() -> None:
    ones = torch.zeros(2, 8, 4, 4, dtype=torch.float64)
    ones[:, :4] = 1.0  # every mean is 1, every variance 1: ½ nat each, 64 of them
    torch.testing.assert_close(DiagonalGaussianDistribution(ones).kl(), torch.full((2,), 32.0, dtype=torch.float64))


def test_kl_agrees_with_a_monte_carlo_estimate() -> None:
    posterior, other = (DiagonalGaussianDistribution(parameters(1, 6, seed=seed)) for seed in (0, 1))
    many = DiagonalGaussianDistribution(posterior.parameters.expand(200_000, 6))
    z = many.sample(torch.Generator().manual_seed(0))
    estimate = other.nll(z, dims=(1,)) - many.nll(z, dims=(1,))
    error = estimate.std() / math.sqrt(len(z))
    assert abs(estimate.mean() - posterior.kl(other)[0]) < 4 * error


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.floats(-1e4, 1e4, allow_nan=False), min_size=4, max_size=4), st.integers(0, 100))
def test_kl_is_never_negative_and_zero_only_against_itself(values: list[float], seed: int) -> None:
    posterior = DiagonalGaussianDistribution(torch.tensor([values], dtype=torch.float64))
    other = DiagonalGaussianDistribution(parameters(1, 4, seed=seed))
    rounding = 1e-12  # rounding error of the four terms, which cancel at the prior
    assert posterior.kl().item() >= -rounding
    assert posterior.kl(other).item() >= -rounding
    assert posterior.kl(posterior).item() == pytest.approx(0.0, abs=1e-9)


def test_nll_is_minus_torchs_log_prob() -> None:
    posterior = DiagonalGaussianDistribution(parameters(3, 8, 5, 7))
    z = parameters(3, 4, 5, 7, seed=2)
    torch.testing.assert_close(posterior.nll(z), -as_torch(posterior).log_prob(z))
    per_position = posterior.nll(z, dims=(1,))
    assert per_position.shape == (3, 5, 7)
    torch.testing.assert_close(per_position.sum((1, 2)), posterior.nll(z))


def test_the_log_variance_is_clamped_at_both_ends_and_the_mean_is_not() -> None:
    values = torch.tensor([[1e6, -1e6, -1000.0, 1000.0]])
    posterior = DiagonalGaussianDistribution(values)
    assert posterior.logvar.tolist() == [[-30.0, 20.0]]
    assert posterior.mean.tolist() == [[1e6, -1e6]]
    assert posterior.std.isfinite().all() and (posterior.std > 0).all()
    assert posterior.kl().isfinite().all()


def test_samples_have_the_mean_and_the_standard_deviation() -> None:
    posterior = DiagonalGaussianDistribution(parameters(1, 4, 1, 1).expand(100_000, 4, 1, 1))
    z = posterior.sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(z.mean(0), posterior.mean[0], atol=0.02, rtol=0)
    torch.testing.assert_close(z.std(0), posterior.std[0], rtol=0.02, atol=0)


def test_a_generator_decides_the_sample_and_the_global_state_is_left_alone() -> None:
    posterior = DiagonalGaussianDistribution(parameters(2, 8, 3, 3))
    state = torch.get_rng_state()
    first, second = (posterior.sample(torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, posterior.sample(torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_samples_keep_the_data_type(dtype: torch.dtype) -> None:
    assert DiagonalGaussianDistribution(parameters(1, 8, 2, 2, dtype=dtype)).sample().dtype == dtype


def test_gradients_reach_mean_and_log_variance_through_the_sample() -> None:
    """dz/dμ = 1 and dz/dlogσ² = ½ σ ε."""
    values = parameters(1, 4).requires_grad_()
    posterior = DiagonalGaussianDistribution(values)
    z = posterior.sample(torch.Generator().manual_seed(0))
    z.sum().backward()
    noise = (z - posterior.mean) / posterior.std
    torch.testing.assert_close(values.grad, torch.cat([torch.ones(1, 2), 0.5 * posterior.std * noise], dim=1).detach())


def test_a_generator_for_each_image_makes_its_draw_independent_of_the_rest_of_the_batch() -> None:
    values = parameters(3, 8, 3, 5)
    together = DiagonalGaussianDistribution(values).sample([torch.Generator().manual_seed(seed) for seed in (4, 5, 6)])
    for n, seed in enumerate((4, 5, 6)):
        alone = DiagonalGaussianDistribution(values[n : n + 1]).sample(torch.Generator().manual_seed(seed))
        assert torch.equal(together[n : n + 1], alone)
    assert torch.equal(together, as_diffusers_draws(values, (4, 5, 6)))


def test_a_list_of_one_generator_draws_for_the_whole_batch() -> None:
    values = parameters(3, 8, 3, 5)
    posterior = DiagonalGaussianDistribution(values)
    whole = posterior.sample([torch.Generator().manual_seed(4)])
    assert torch.equal(whole, posterior.sample(torch.Generator().manual_seed(4)))
    assert torch.equal(whole, as_diffusers_draws(values, (4,)))


def as_diffusers_draws(values: Tensor, seeds: tuple[int, ...]) -> Tensor:
    return ReferenceGaussian(values).sample([torch.Generator().manual_seed(seed) for seed in seeds])


@pytest.mark.parametrize("count", [0, 2, 4])
def test_another_number_of_generators_is_an_error_with_both_numbers(count: int) -> None:
    with pytest.raises(ValueError, match=f"one generator, or one for each of the 3 images, got {count}"):
        DiagonalGaussianDistribution(parameters(3, 8, 2, 2)).sample([torch.Generator()] * count)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kl_and_nll_of_16_bit_parameters_are_those_in_float32(dtype: torch.dtype) -> None:
    """A latent of 1024² pixels: the sum is beyond 65,504, float16's largest number. So are a square and a variance."""
    values = 1.5 * parameters(2, 8, 128, 128, dtype=dtype)
    values[0, :, 0, 0] = torch.tensor([300.0] * 4 + [15.0] * 4)
    posterior, other = DiagonalGaussianDistribution(values), DiagonalGaussianDistribution(values.flip(2))
    wide, wide_other = (
        DiagonalGaussianDistribution(values.float()),
        DiagonalGaussianDistribution(values.flip(2).float()),
    )
    z = posterior.mode() + 1
    for found, wanted in (
        (posterior.kl(), wide.kl()),
        (posterior.kl(other), wide.kl(wide_other)),
        (posterior.nll(z), wide.nll(z)),
    ):
        assert found.dtype == torch.float32 and found.isfinite().all()
        assert torch.equal(found, wanted)
    assert posterior.kl().min() > torch.finfo(torch.float16).max
    assert posterior.sample().dtype == dtype


def test_a_deterministic_posterior_of_16_bits_has_zeros_of_the_same_type() -> None:
    posterior = DiagonalGaussianDistribution(parameters(2, 8, 3, 3, dtype=torch.float16), deterministic=True)
    for zeros in (posterior.kl(), posterior.nll(posterior.mean)):
        assert zeros.dtype == torch.float32 and zeros.tolist() == [0.0, 0.0]


def test_a_deterministic_posterior_is_its_mean() -> None:
    posterior = DiagonalGaussianDistribution(parameters(2, 8, 3, 3), deterministic=True)
    assert torch.equal(posterior.sample(), posterior.mean)
    assert posterior.std.abs().max() == 0 and posterior.var.abs().max() == 0
    assert posterior.kl().tolist() == [0.0, 0.0]
    assert posterior.nll(posterior.mean).tolist() == [0.0, 0.0]


def test_a_kl_between_different_shapes_is_an_error_and_is_not_broadcast() -> None:
    posterior = DiagonalGaussianDistribution(parameters(2, 8, 3, 3))
    one = DiagonalGaussianDistribution(parameters(1, 8, 3, 3))
    with pytest.raises(ValueError, match=r"\(2, 4, 3, 3\), got \(1, 4, 3, 3\)"):
        posterior.kl(one)


def test_the_mode_is_the_mean() -> None:
    posterior = DiagonalGaussianDistribution(parameters(2, 8, 3, 3))
    assert torch.equal(posterior.mode(), posterior.mean)


@pytest.mark.parametrize("shape", [(), (8,), (2, 7), (2, 3, 4, 4)])
def test_rank_one_and_odd_channels_are_errors_that_print_the_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as error:
        DiagonalGaussianDistribution(torch.zeros(shape))
    assert str(shape) in str(error.value)
    assert "2C" in str(error.value)
