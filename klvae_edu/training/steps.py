"""One training step of each network: forward, losses, backward, step.

Neither step changes the other network's gradients: what was None before stays None.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from klvae_edu.gaussian import DiagonalGaussianDistribution
from klvae_edu.losses import (
    ADAPTIVE_LIMIT,
    adaptive_weight,
    adversarial_loss,
    discriminator_loss,
    generator_loss,
    kl_loss,
    last_layer_gradients,
    reconstruction_loss,
)
from klvae_edu.metrics import unchecked_psnr
from klvae_edu.training.setup import Training

# ---- The autoencoder -------------------------------------------------------------------------------------------------


def generator_step(training: Training, images: Tensor) -> tuple[dict[str, float], Tensor]:
    """Train the autoencoder on one batch.

    Args:
        images: (B, C, H, W) in [-1, 1]; `accumulate` divides B.

    Returns:
        Scalars of this step, of the weights before the update, averaged over processes: "loss" and its terms "nll"
        ("pixel" and "perceptual"), "kl", "adversarial" (those that the configuration has), "adversarial_weight", the
        share of micro-batches in which it was "clamped", "grad_norm" before clipping, "lr", and the "psnr" of the
        reconstructions in dB.
        The reconstructions (B, C, H, W), without a graph, for the discriminator's step.

    Raises:
        FloatingPointError: a term or the gradient is not finite. The weights are left unchanged.
        ValueError: `accumulate` does not divide B.

    Built in notebook 08, section 2.
    """
    optimizer, model = training.optimizer, training.model
    terms, reconstructions = [], []
    optimizer.zero_grad()  # gradients left here by other code are not of this step
    for (part,) in training.micro_batches(model, images):  # part: (b, 3, H, W), b = B / accumulate
        # Forward: through a sample of the posterior.
        reconstruction, posterior = model(part)  # reconstruction: (b, 3, H, W)
        # Losses: the logged terms, and the scalar to differentiate.
        part_terms, surrogate = generator_losses(training, part, reconstruction, posterior)
        # Backward: one pass through the autoencoder for all terms.
        training.accelerator.backward(surrogate / training.config.accumulate)
        terms.append(part_terms)
        reconstructions.append(reconstruction.detach())
    # Step: clip, check, update; then the moving average of the weights.
    scalars = optimizer_step(training, optimizer, model, terms)
    if training.ema is not None:
        training.ema.update_parameters(training.vae)
    return scalars, torch.cat(reconstructions)


def generator_losses(
    training: Training, images: Tensor, reconstruction: Tensor, posterior: DiagonalGaussianDistribution
) -> tuple[dict[str, Tensor], Tensor]:
    """Compute the autoencoder's loss on a micro-batch: its terms by name, and the scalar whose gradient trains it.

    The plain way is `terms["loss"].backward()`. But the adaptive weight needs the gradients of two losses at the last
    layer first, and so LPIPS and the discriminator would be differentiated twice. Here each loss is differentiated
    once, with respect to the reconstruction x̂: g = ∂(nll + w · adversarial)/∂x̂, a constant from then on. The scalar is
    sum(x̂ · g) + kl_weight · KL. By the chain rule its gradient is that of the loss: ∂sum(x̂ · g)/∂θ = (∂x̂/∂θ)ᵀ g.

    Args:
        images, reconstruction: (b, 3, H, W) in [-1, 1]; the reconstruction with the autoencoder's graph.
        posterior: the posterior of `images`.

    Returns:
        Scalars by name, as `generator_loss`, with "psnr" in dB; and the scalar to differentiate.

    Built in notebook 08, section 2.
    """
    config, kl_weight = training.config, training.config.kl_weight_at(training.step)
    leaf = reconstruction.detach().requires_grad_()  # the graphs of these losses end here
    distance = None if training.perceptual is None else training.perceptual(leaf, images)  # (b,)
    terms = reconstruction_loss(
        leaf,
        images,
        distance,
        pixel=config.pixel,
        perceptual_weight=config.perceptual_weight,
        reduction=config.reduction,
    )
    terms["kl"] = kl_loss(posterior, images, config.reduction)
    (gradient,) = torch.autograd.grad(terms["nll"], leaf)  # (b, 3, H, W)
    weight = torch.zeros(())  # until the discriminator is used
    if config.adversarial(training.step):
        with frozen(training.patchgan), training.accelerator.autocast():
            terms["adversarial"] = adversarial_loss(training.patchgan(leaf).to(leaf.dtype))
        (adversarial_gradient,) = torch.autograd.grad(terms["adversarial"], leaf)  # (b, 3, H, W)
        weight, clamped = adversarial_weight(training, reconstruction, gradient, adversarial_gradient)
        gradient = gradient + weight * adversarial_gradient
        terms |= {"adversarial_weight": weight, "clamped": clamped}
    terms = generator_loss(terms, kl_weight=kl_weight, adversarial_weight=weight)
    terms["psnr"] = unchecked_psnr(leaf.detach(), images).mean()
    surrogate = (reconstruction * gradient).sum() + kl_weight * terms["kl"]  # see above: the gradient of "loss"
    return terms, surrogate


def adversarial_weight(
    training: Training, reconstruction: Tensor, nll_gradient: Tensor, adversarial_gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the weight of the adversarial term, and whether it was clamped (1 or 0): two scalars.

    It is clamped where CompVis' limit or the configuration's `disc_max_weight` acts.

    Both gradients at the last layer are averaged over the processes before their norms are taken, so that the weight
    belongs to the whole batch and is the same in every process.

    Args:
        reconstruction: (b, 3, H, W), with its graph.
        nll_gradient, adversarial_gradient: of both losses with respect to it, (b, 3, H, W).
    """
    config = training.config
    divisor = 1 if config.reduction == "sum" else reconstruction[0].numel()  # C·H·W
    disc_weight = config.disc_weight_at(training.step)
    if not config.adaptive:
        weight, clamped = nll_gradient.new_tensor(disc_weight / divisor), nll_gradient.new_zeros(())
        return _limited(weight, clamped, config.disc_max_weight)
    last_layer = training.vae.decoder.conv_out.weight  # (3, C, 3, 3)
    at_last_layer = last_layer_gradients(reconstruction, last_layer, [nll_gradient, adversarial_gradient])
    of_nll, of_adversarial = training.accelerator.reduce(torch.stack(at_last_layer), "mean")  # (3, C, 3, 3) each
    limit = ADAPTIVE_LIMIT / divisor
    weight = adaptive_weight(of_nll, of_adversarial, limit)
    return _limited(disc_weight * weight, (weight >= limit).to(weight.dtype), config.disc_max_weight)


def _limited(weight: Tensor, clamped: Tensor, limit: float | None) -> tuple[Tensor, Tensor]:
    """Clamp the weight to `limit`, and mark it as clamped if that changes it."""
    if limit is None or weight <= limit:
        return weight, clamped
    return torch.full_like(weight, limit), torch.ones_like(clamped)


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Switch off the gradients of `network`'s weights within this context; those of its inputs stay."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


# ---- The discriminator -----------------------------------------------------------------------------------------------


def discriminator_step(training: Training, images: Tensor, reconstructions: Tensor) -> dict[str, float]:
    """Train the discriminator on one batch.

    Args:
        images, reconstructions: (B, C, H, W) in [-1, 1]; `accumulate` divides B.

    Returns:
        Scalars of this step, of the weights before the update, averaged over processes: "disc_loss", the mean logits
        "logits_real" and "logits_fake", "disc_grad_norm" before clipping, and "disc_lr".

    Raises:
        FloatingPointError: the loss or the gradient is not finite. The weights are left unchanged.
        ValueError: the run has no discriminator, or `accumulate` does not divide B.

    Built in notebook 07, section 6; used in notebook 08, section 3.
    """
    optimizer, discriminator = training.disc_optimizer, training.discriminator
    if optimizer is None or discriminator is None:
        raise ValueError(f"expected a run with a discriminator, got disc_weight={training.config.disc_weight}")
    terms = []
    optimizer.zero_grad()  # gradients left here by other code are not of this step
    for real, fake in training.micro_batches(discriminator, images, reconstructions.detach()):
        # Forward: (b, 3, H, W) -> (b, 1, h, w). Detached reconstructions: no gradient for the autoencoder.
        logits_real, logits_fake = discriminator(real, fake)
        # Loss: hinge or cross-entropy of the logits, a scalar.
        losses = discriminator_loss(logits_real, logits_fake, training.config.disc_loss)
        # Backward: through the discriminator alone.
        training.accelerator.backward(losses["disc_loss"] / training.config.accumulate)
        terms.append(losses)
    # Step: clip, check, update.
    return optimizer_step(training, optimizer, discriminator, terms, "disc_")


# ---- Both ------------------------------------------------------------------------------------------------------------


def optimizer_step(
    training: Training,
    optimizer: torch.optim.Optimizer,
    network: nn.Module,
    terms: Sequence[Mapping[str, Tensor]],
    prefix: str = "",
) -> dict[str, float]:
    """Clip the gradient of `network` and update its weights, unless something is not finite.

    Args:
        terms: scalars by name, of each micro-batch.
        prefix: of the names "grad_norm" and "lr" in the result.

    Returns:
        The means of `terms`, the gradient's norm before clipping, and the learning rate.

    Raises:
        FloatingPointError: a term or the norm is not finite, in any process. The weights are left unchanged.
    """
    grad_norm = training.accelerator.clip_grad_norm_(network.parameters(), training.config.grad_clip)
    scalars = mean_scalars(
        training, [{**part_terms, prefix + "grad_norm": grad_norm} for part_terms in terms], grad_norm
    )
    check_finite(scalars)
    optimizer.step()
    return scalars | {prefix + "lr": float(optimizer.param_groups[0]["lr"])}


def mean_scalars(training: Training, terms: Sequence[Mapping[str, Tensor]], like: Tensor) -> dict[str, float]:
    """Average scalars by name over micro-batches and processes, in one tensor of the type and device of `like`."""
    table = torch.stack([torch.stack([term.detach().to(like) for term in part_terms.values()]) for part_terms in terms])
    return dict(zip(terms[0], training.accelerator.reduce(table.mean(0), "mean").tolist(), strict=True))


def check_finite(scalars: Mapping[str, float]) -> None:
    """Raise a `FloatingPointError` that names the first scalars that are NaN or infinite; PSNR may be infinite."""
    wrong = [name for name, value in scalars.items() if not math.isfinite(value) and name != "psnr"]
    if wrong:
        words = dict.fromkeys(("grad_norm", "disc_grad_norm"), "the gradient's norm")
        raise FloatingPointError(" and ".join(f"{words.get(name, name)} is {scalars[name]}" for name in wrong[:3]))
