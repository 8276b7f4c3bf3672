"""The losses against values worked out by hand, and what the two reductions have in common."""

from __future__ import annotations

import pytest
import torch

from klvae_edu import DiagonalGaussianDistribution
from klvae_edu.losses import kl_loss, pixel_loss, vae_loss


def case() -> tuple[torch.Tensor, torch.Tensor, DiagonalGaussianDistribution]:
    """Two images of 3x2x2 = 12 values, off by 1 and by 3; two latents of one value, KL ½ and 2 nats."""
    target = torch.zeros(2, 3, 2, 2)
    reconstruction = torch.stack([torch.full((3, 2, 2), 1.0), torch.full((3, 2, 2), -3.0)])
    parameters = torch.tensor([[1.0, 0.0], [2.0, 0.0]]).view(2, 2, 1, 1)  # KL = ½ μ²
    return reconstruction, target, DiagonalGaussianDistribution(parameters)


def test_the_sum_is_over_an_images_values_and_the_mean_over_the_batch() -> None:
    reconstruction, target, posterior = case()
    assert pixel_loss(reconstruction, target, "l1").item() == (12 * 1 + 12 * 3) / 2
    assert pixel_loss(reconstruction, target, "l2").item() == (12 * 1 + 12 * 9) / 2
    assert kl_loss(posterior, target).item() == (0.5 + 2.0) / 2


def test_the_total_is_the_pixel_term_plus_the_weighted_kl() -> None:
    terms = vae_loss(*case(), kl_weight=0.1)
    assert terms["pixel"].item() == 24.0
    assert terms["kl"].item() == 1.25
    assert terms["loss"].item() == pytest.approx(24.125)


def test_the_mean_reduction_is_the_whole_sum_over_the_values_of_an_image() -> None:
    """Not the mean of each term by itself: that would make the KL C·H·W times stronger under the same weight."""
    total, mean = (vae_loss(*case(), kl_weight=0.1, reduction=reduction) for reduction in ("sum", "mean"))
    for name in ("loss", "pixel", "kl"):
        assert mean[name].item() == pytest.approx(total[name].item() / 12)


def test_the_usual_weight_is_compvis() -> None:
    terms = vae_loss(*case())
    assert terms["loss"].item() == pytest.approx(24.0 + 1e-6 * 1.25)


def test_gradients_reach_reconstruction_and_posterior() -> None:
    reconstruction, target, posterior = case()
    reconstruction.requires_grad_()
    posterior.parameters.requires_grad_()
    posterior = DiagonalGaussianDistribution(posterior.parameters)
    vae_loss(reconstruction, target, posterior, kl_weight=1.0)["loss"].backward()
    assert reconstruction.grad is not None and reconstruction.grad[0, 0, 0, 0].item() == 0.5  # d|x̂|/dx̂ over batch 2
    assert posterior.parameters.grad is not None
    assert posterior.parameters.grad[:, 0].flatten().tolist() == [0.5, 1.0]  # dKL/dμ = μ, over batch 2


def test_images_of_different_shapes_are_an_error_and_are_not_broadcast() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\).*\(2, 1, 4, 4\)"):
        pixel_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4))


def test_a_posterior_of_other_images_is_an_error() -> None:
    _, target, posterior = case()
    with pytest.raises(ValueError, match="of 3 images, got one of 2"):
        kl_loss(posterior, torch.cat([target, target[:1]]))


def test_unknown_names_are_errors_that_list_the_known_ones() -> None:
    reconstruction, target, posterior = case()
    with pytest.raises(ValueError, match="'l1' or 'l2', got 'mse'"):
        pixel_loss(reconstruction, target, "mse")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'sum' or 'mean', got 'none'"):
        kl_loss(posterior, target, "none")  # type: ignore[arg-type]
