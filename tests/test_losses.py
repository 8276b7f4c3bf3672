"""Losses: compare with values computed by hand, and the reductions with each other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from klvae_edu import DiagonalGaussianDistribution
from klvae_edu.losses import (
    ADAPTIVE_LIMIT,
    adaptive_weight,
    adversarial_loss,
    discriminator_loss,
    generator_loss,
    kl_loss,
    last_layer_gradients,
    own_mean_weights,
    pixel_loss,
    reconstruction_loss,
    sum_weights,
    vae_loss,
)


def case() -> tuple[torch.Tensor, torch.Tensor, DiagonalGaussianDistribution]:
    """Return two images of 3x2x2 = 12 values with errors 1 and 3, and two latents of one value with KL ½ and 2 nats."""
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


def test_the_distance_of_an_image_counts_once_for_each_of_its_values() -> None:
    reconstruction, target, _ = case()
    distance = torch.tensor([0.25, 0.75])
    terms = reconstruction_loss(reconstruction, target, distance, perceptual_weight=2.0)
    assert list(terms) == ["nll", "pixel", "perceptual"]
    assert terms["pixel"].item() == 24.0
    assert terms["perceptual"].item() == 12 * (0.25 + 0.75) / 2
    assert terms["nll"].item() == 24.0 + 2.0 * 6.0


def test_under_mean_the_mean_distance_is_added_to_the_mean_pixel_error_with_the_same_weight() -> None:
    reconstruction, target, _ = case()
    distance = torch.tensor([0.25, 0.75])
    terms = reconstruction_loss(reconstruction, target, distance, pixel="l2", perceptual_weight=2.0, reduction="mean")
    assert terms["pixel"].item() == (1 + 9) / 2
    assert terms["perceptual"].item() == 0.5
    assert terms["nll"].item() == 5.0 + 2.0 * 0.5


def test_the_usual_perceptual_weight_is_compvis() -> None:
    reconstruction, target, _ = case()
    assert reconstruction_loss(reconstruction, target, torch.tensor([0.25, 0.75]))["nll"].item() == 24.0 + 6.0


def test_without_a_distance_the_pixel_loss_is_all() -> None:
    reconstruction, target, _ = case()
    terms = reconstruction_loss(reconstruction, target, perceptual_weight=2.0)
    assert list(terms) == ["nll", "pixel"]
    assert terms["nll"].item() == terms["pixel"].item() == 24.0


def test_the_gradient_of_the_distance_is_the_weight_over_the_batch_for_each_value() -> None:
    reconstruction, target, _ = case()
    distance = torch.tensor([0.25, 0.75], requires_grad=True)
    reconstruction_loss(reconstruction, target, distance, perceptual_weight=2.0)["nll"].backward()
    assert distance.grad is not None and distance.grad.tolist() == [12.0, 12.0]  # 2 · 12 values / 2 images


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1), (2, 1, 1, 1)])
def test_one_distance_per_image_is_expected_and_none_is_broadcast(shape: tuple[int, ...]) -> None:
    reconstruction, target, _ = case()
    with pytest.raises(ValueError, match=r"a distance for each of 2 images, got \("):
        reconstruction_loss(reconstruction, target, torch.zeros(shape))


def test_the_perceptual_term_checks_its_names_and_shapes_too() -> None:
    reconstruction, target, _ = case()
    with pytest.raises(ValueError, match="'l1' or 'l2', got 'huber'"):
        reconstruction_loss(reconstruction, target, pixel="huber")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'sum' or 'mean', got 'batchmean'"):
        reconstruction_loss(reconstruction, target, torch.zeros(2), reduction="batchmean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"one shape, got \(1, 3, 2, 2\) and \(2, 3, 2, 2\)"):
        reconstruction_loss(reconstruction[:1], target, torch.zeros(2))


def test_the_adversarial_loss_is_minus_the_mean_logit() -> None:
    logits = torch.tensor([1.0, -2.0, 3.0, 0.5]).view(1, 1, 2, 2).requires_grad_()
    loss = adversarial_loss(logits)
    assert loss.item() == -0.625
    loss.backward()
    assert logits.grad is not None and logits.grad.flatten().tolist() == [-0.25] * 4  # whatever the logit


def test_the_hinge_loss_counts_margins_below_one_on_either_side() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0, 2.0])
    terms = discriminator_loss(real, fake, "hinge")
    assert list(terms) == ["disc_loss", "logits_real", "logits_fake"]
    assert terms["disc_loss"].item() == pytest.approx(((0 + 0.5 + 2) / 3 + (0 + 1 + 2 + 3) / 4) / 2)
    assert terms["logits_real"].item() == 0.5
    assert terms["logits_fake"].item() == 0.0


def test_the_hinge_has_no_gradient_for_logits_beyond_the_margin() -> None:
    real, fake = torch.tensor([2.0, 0.0], requires_grad=True), torch.tensor([-3.0, 0.0], requires_grad=True)
    discriminator_loss(real, fake)["disc_loss"].backward()
    assert real.grad is not None and real.grad.tolist() == [0.0, -0.25]
    assert fake.grad is not None and fake.grad.tolist() == [0.0, 0.25]


def test_the_vanilla_loss_is_the_cross_entropy_of_the_logits() -> None:
    """A logit of log 3 is a probability of ¾."""
    real, fake = torch.tensor([math.log(3)]), torch.tensor([0.0, math.log(3)])
    loss = discriminator_loss(real, fake, "vanilla")["disc_loss"].item()
    assert loss == pytest.approx((math.log(4 / 3) + (math.log(2) + math.log(4)) / 2) / 2)
    expected = F.binary_cross_entropy_with_logits(real, torch.ones(1))
    expected = (expected + F.binary_cross_entropy_with_logits(fake, torch.zeros(2))) / 2
    assert loss == pytest.approx(expected.item())


def test_undecided_is_one_for_the_hinge_and_log_two_for_the_cross_entropy() -> None:
    zeros = torch.zeros(2, 1, 3, 3)
    assert discriminator_loss(zeros, zeros)["disc_loss"].item() == 1.0
    assert discriminator_loss(zeros, zeros, "vanilla")["disc_loss"].item() == pytest.approx(math.log(2))


def test_an_unknown_discriminator_loss_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'hinge' or 'vanilla', got 'wgan'"):
        discriminator_loss(torch.zeros(1), torch.zeros(1), "wgan")  # type: ignore[arg-type]


def test_a_gradient_at_the_output_becomes_one_at_the_last_weight() -> None:
    """x̂ = w·a for a = (1, 2, 3): the gradient g at x̂ is Σ g·a at w."""
    weight = torch.tensor([[[[0.5]]]], requires_grad=True)
    reconstruction = F.conv2d(torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 1, 3), weight)
    first, second = torch.tensor([1.0, 1.0, 1.0]).view(1, 1, 1, 3), torch.tensor([0.0, -1.0, 2.0]).view(1, 1, 1, 3)
    found = last_layer_gradients(reconstruction, weight, [first, second])
    assert [gradient.item() for gradient in found] == [6.0, 4.0]
    assert weight.grad is None  # returned, not accumulated
    reconstruction.sum().backward()  # the graph is still there
    assert weight.grad is not None and weight.grad.item() == 6.0


def test_the_adaptive_weight_is_the_ratio_of_the_gradients_norms() -> None:
    nll, adversarial = torch.tensor([3.0, 4.0], dtype=torch.float64), torch.tensor([[0.6], [0.8]], dtype=torch.float64)
    assert adaptive_weight(nll, adversarial).item() == pytest.approx(5 / 1.0001, rel=1e-14)


def test_the_adaptive_weight_is_clamped_to_ten_thousand_by_default() -> None:
    assert ADAPTIVE_LIMIT == 1e4
    long, short = torch.tensor([2e4]), torch.tensor([1.0])
    assert adaptive_weight(long, short).item() == 1e4
    assert adaptive_weight(0.4 * long, short).item() == pytest.approx(8e3 / 1.0001)
    assert adaptive_weight(long, short, 7.0).item() == 7.0


@pytest.mark.parametrize(("nll", "adversarial", "weight"), [(0.0, 0.0, 0.0), (5.0, 0.0, 1e4), (0.0, 5.0, 0.0)])
def test_gradients_of_zero_give_a_finite_weight(nll: float, adversarial: float, weight: float) -> None:
    assert adaptive_weight(torch.full((4,), nll), torch.full((4,), adversarial)).item() == weight


def test_the_adaptive_weight_has_no_gradient() -> None:
    gradient = torch.tensor([3.0, 4.0], requires_grad=True)
    assert not adaptive_weight(gradient, gradient).requires_grad


def test_under_the_mean_the_adaptive_weight_and_its_limit_are_smaller_by_the_values_of_an_image() -> None:
    adversarial = torch.tensor([0.6, 0.8], dtype=torch.float64)
    for nll in (torch.tensor([3.0, 4.0], dtype=torch.float64), torch.tensor([3e6, 0.0], dtype=torch.float64)):
        of_mean = adaptive_weight(nll / 12, adversarial, ADAPTIVE_LIMIT / 12).item()
        assert of_mean == pytest.approx(adaptive_weight(nll, adversarial).item() / 12, rel=1e-14)


def test_the_total_is_the_sum_of_the_weighted_terms() -> None:
    terms = {"nll": torch.tensor(3.0), "kl": torch.tensor(5.0), "adversarial": torch.tensor(-2.0)}
    total = generator_loss(terms, kl_weight=0.1, adversarial_weight=0.25)
    assert list(total) == ["loss", "nll", "kl", "adversarial"]
    assert total["loss"].item() == pytest.approx(3.0 + 0.5 - 0.5)
    assert generator_loss(terms, kl_weight=0.1, adversarial_weight=torch.tensor(2.0))["loss"].item() == pytest.approx(
        3.0 + 0.5 - 4.0
    )
    assert {name: total[name].item() for name in terms} == {"nll": 3.0, "kl": 5.0, "adversarial": -2.0}


def test_without_a_discriminator_the_total_is_that_of_the_variational_autoencoder() -> None:
    terms = {"nll": torch.tensor(3.0), "kl": torch.tensor(5.0)}
    assert generator_loss(terms, kl_weight=0.1, adversarial_weight=0.25)["loss"].item() == pytest.approx(3.5)
    adversarial = {**terms, "adversarial": torch.tensor(-2.0)}
    assert generator_loss(adversarial, kl_weight=0.1)["loss"].item() == pytest.approx(3.5)  # its weight is 0
    million = {"nll": torch.tensor(0.0), "kl": torch.tensor(1e6)}
    assert generator_loss(million)["loss"].item() == pytest.approx(1.0)  # CompVis' 1e-6


def test_weights_of_means_are_compvis_times_the_ratio_of_the_number_of_values() -> None:
    weights = own_mean_weights((3, 256, 256), (4, 32, 32), kl_weight=1e-6, adversarial_weight=0.5)
    assert list(weights) == ["kl_weight", "adversarial_weight"]
    assert weights["kl_weight"] == pytest.approx(1e-6 / 48)
    assert f"{weights['kl_weight']:.1e}" == "2.1e-08"
    assert weights["adversarial_weight"] == pytest.approx(0.5 / 196608)


def test_the_two_conversions_of_weights_are_inverse() -> None:
    shapes: Any = ((3, 48, 40), (4, 6, 5))
    weights = {"kl_weight": 3e-5, "adversarial_weight": 0.7}
    assert sum_weights(*shapes, **own_mean_weights(*shapes, **weights)) == pytest.approx(weights)
    assert own_mean_weights(*shapes, **sum_weights(*shapes, **weights)) == pytest.approx(weights)
    assert sum_weights(*shapes, kl_weight=1.0) == {"kl_weight": 5760 / 120, "adversarial_weight": 0.0}


Terms = dict[str, torch.Tensor]


def networks() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Draw two images, and leaf tensors for reconstruction, posterior and logits."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    leaves = {"reconstruction": draw(2, 3, 4, 4), "moments": draw(2, 8, 2, 2), "logits": draw(3, 5)}
    return draw(2, 3, 4, 4), {name: leaf.requires_grad_() for name, leaf in leaves.items()}


def made_of(leaves: Terms) -> tuple[torch.Tensor, torch.Tensor, DiagonalGaussianDistribution, torch.Tensor]:
    """Compute the inputs of a loss; distance and logits depend on the reconstruction too."""
    reconstruction = leaves["reconstruction"]
    distance = reconstruction.sin().flatten(1).mean(1)
    return reconstruction, distance, DiagonalGaussianDistribution(leaves["moments"]), leaves["logits"] * distance.sum()


def gradients(total: torch.Tensor, leaves: Terms) -> torch.Tensor:
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in found])


ALL_AND_EACH = [(1.0, 0.3, 0.7), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.3, 0.0), (0.0, 0.0, 0.7)]


@pytest.mark.parametrize("pixel", ["l1", "l2"])
@pytest.mark.parametrize(("perceptual", "kl", "adversarial"), ALL_AND_EACH)
def test_all_three_conventions_have_gradients_of_one_direction(
    pixel: Any, perceptual: float, kl: float, adversarial: float
) -> None:
    """The sum is C·H·W times the mean, and C·H·W times the means of the terms by themselves with converted weights."""
    images, leaves = networks()
    totals: dict[str, torch.Tensor] = {}
    for reduction, values in (("sum", 1), ("mean", 48)):
        reconstruction, distance, posterior, logits = made_of(leaves)
        options: Any = {"pixel": pixel, "perceptual_weight": perceptual, "reduction": reduction}
        terms = reconstruction_loss(reconstruction, images, distance, **options)
        terms |= {"kl": kl_loss(posterior, images, reduction), "adversarial": adversarial_loss(logits)}
        totals[reduction] = generator_loss(terms, kl_weight=kl, adversarial_weight=adversarial / values)["loss"]

    reconstruction, distance, posterior, logits = made_of(leaves)
    weights = own_mean_weights((3, 4, 4), (4, 2, 2), kl_weight=kl, adversarial_weight=adversarial)
    error = F.l1_loss(reconstruction, images) if pixel == "l1" else F.mse_loss(reconstruction, images)
    totals["own means"] = (
        error
        + perceptual * distance.mean()
        + weights["kl_weight"] * (posterior.kl() / 16).mean()
        + weights["adversarial_weight"] * adversarial_loss(logits)
    )

    whole = gradients(totals["sum"], leaves)
    assert whole.norm() > 0
    for name in ("mean", "own means"):
        assert totals[name].item() * 48 == pytest.approx(totals["sum"].item(), rel=1e-12)
        torch.testing.assert_close(48 * gradients(totals[name], leaves), whole, rtol=1e-12, atol=1e-12)


def test_converted_the_other_way_own_means_become_the_sum() -> None:
    images, leaves = networks()
    reconstruction, distance, posterior, logits = made_of(leaves)
    own = F.l1_loss(reconstruction, images) + distance.mean() + 0.2 * (posterior.kl() / 16).mean()
    own = own + 0.1 * adversarial_loss(logits)

    reconstruction, distance, posterior, logits = made_of(leaves)
    weights = sum_weights((3, 4, 4), (4, 2, 2), kl_weight=0.2, adversarial_weight=0.1)
    terms = reconstruction_loss(reconstruction, images, distance)
    terms |= {"kl": kl_loss(posterior, images), "adversarial": adversarial_loss(logits)}
    total = generator_loss(terms, **weights)["loss"]
    torch.testing.assert_close(48 * gradients(own, leaves), gradients(total, leaves), rtol=1e-12, atol=1e-12)
