"""One step of each network. Neither touches the other's gradients: what was None before stays None.

The autoencoder's losses are not added up and sent back together. Their gradients with respect to the reconstruction are
taken first, each once; from them the adaptive weight costs two weight gradients of one convolution, and their sum goes
back through the autoencoder in a single pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

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
from klvae_edu.metrics import psnr
from klvae_edu.training.setup import Training


def generator_step(training: Training, images: Tensor) -> tuple[dict[str, float], Tensor]:
    """One step of the autoencoder on `images` (B, 3, H, W) in [-1, 1].

    Returns:
        Scalars of this step, before the update, averaged over processes: "loss" and its terms "nll" ("pixel" and
        "perceptual"), "kl", "adversarial" (those that the configuration has), "adversarial_weight" and whether it was
        "clamped", the gradient's length before clipping "grad_norm", "lr", and the "psnr" of the reconstructions in dB.
        The reconstructions, without a graph: the discriminator's step needs them too.

    Raises:
        FloatingPointError: a term or the gradient is not finite. The weights are left as they were.

    Built in notebook 08, section 2.
    """
    optimizer, model = training.optimizer, training.model
    optimizer.zero_grad()  # whatever lies there is not of this step
    terms, reconstructions = [], []
    for (part,) in training.parts(model, images):
        found, reconstruction = generator_backward(training, part)
        terms.append(found)
        reconstructions.append(reconstruction)
    scalars = finish(training, optimizer, model, terms)
    if training.ema is not None:
        training.ema.update_parameters(training.vae)
    return scalars, torch.cat(reconstructions)


def generator_backward(training: Training, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Add the gradient of the autoencoder's loss on `images` to its weights' `.grad`; return terms and reconstructions.

    Built in notebook 08, section 2.
    """
    config = training.config
    reconstruction, posterior = training.model(images)
    leaf = reconstruction.detach().requires_grad_()  # the losses' graphs end here
    distance = None if training.perceptual is None else training.perceptual(leaf, images)
    terms = reconstruction_loss(
        leaf,
        images,
        distance,
        pixel=config.pixel,
        perceptual_weight=config.perceptual_weight,
        reduction=config.reduction,
    )
    terms["kl"] = kl_loss(posterior, images, config.reduction)
    (gradient,) = torch.autograd.grad(terms["nll"], leaf)
    weight = torch.zeros(())
    if config.adversarial(training.step):
        with frozen(training.patchgan), training.accelerator.autocast():
            terms["adversarial"] = adversarial_loss(training.patchgan(leaf).to(leaf.dtype))
        (adversarial_gradient,) = torch.autograd.grad(terms["adversarial"], leaf)
        weight, clamped = adversarial_weight(training, reconstruction, gradient, adversarial_gradient)
        gradient = gradient + weight * adversarial_gradient
        terms |= {"adversarial_weight": weight, "clamped": clamped}
    total = generator_loss(terms, kl_weight=config.kl_weight, adversarial_weight=weight)
    # Linear in the reconstruction, with the gradient there that all terms together have.
    surrogate = (reconstruction * gradient).sum() + config.kl_weight * terms["kl"]
    training.accelerator.backward(surrogate / config.accumulate)
    total["psnr"] = psnr(leaf.detach(), images).mean()
    return total, leaf.detach()


def adversarial_weight(
    training: Training, reconstruction: Tensor, gradient: Tensor, adversarial_gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """The weight of the adversarial term, and whether the clamp acted (1 or 0): two scalars.

    Both gradients at the last layer are averaged over the processes before their lengths are taken, so that the weight
    is that of the whole batch, and every process has the same.
    """
    config = training.config
    values = 1 if config.reduction == "sum" else reconstruction[0].numel()
    if not config.adaptive:
        return gradient.new_tensor(config.disc_weight / values), gradient.new_zeros(())
    last_layer = training.vae.decoder.conv_out.weight
    at_last_layer = last_layer_gradients(reconstruction, last_layer, [gradient, adversarial_gradient])
    nll_gradient, other = training.accelerator.reduce(torch.stack(at_last_layer), "mean")
    limit = ADAPTIVE_LIMIT / values
    weight = adaptive_weight(nll_gradient, other, limit)
    return config.disc_weight * weight, (weight >= limit).to(weight.dtype)


def discriminator_step(training: Training, images: Tensor, reconstructions: Tensor) -> dict[str, float]:
    """One step of the discriminator on `images` and their `reconstructions` (B, 3, H, W).

    Returns:
        Scalars of this step, before the update: "disc_loss", the mean logits "logits_real" and "logits_fake",
        "disc_grad_norm" and "disc_lr".

    Raises:
        FloatingPointError: the loss or the gradient is not finite. The weights are left as they were.
        ValueError: the run has no discriminator.

    Built in notebook 08, section 3.
    """
    optimizer, discriminator = training.disc_optimizer, training.discriminator
    if optimizer is None or discriminator is None:
        raise ValueError(f"expected a run with a discriminator, got disc_weight={training.config.disc_weight}")
    optimizer.zero_grad()  # whatever lies there is not of this step
    terms = []
    for real, fake in training.parts(discriminator, images, reconstructions.detach()):  # not through the autoencoder
        logits_real, logits_fake = discriminator(real, fake)
        losses = discriminator_loss(logits_real, logits_fake, training.config.disc_loss)
        training.accelerator.backward(losses["disc_loss"] / training.config.accumulate)
        terms.append(losses)
    return finish(training, optimizer, discriminator, terms, "disc_")


def finish(
    training: Training,
    optimizer: torch.optim.Optimizer,
    network: nn.Module,
    terms: Sequence[dict[str, Tensor]],
    prefix: str = "",
) -> dict[str, float]:
    """Clip the gradient and update the weights, unless something is not finite; return the means of the terms."""
    accelerator = training.accelerator
    grad_norm = accelerator.clip_grad_norm_(network.parameters(), training.config.grad_clip)
    terms = [{**of_part, prefix + "grad_norm": grad_norm} for of_part in terms]
    table = torch.stack([torch.stack([term.detach().to(grad_norm) for term in of_part.values()]) for of_part in terms])
    scalars = dict(zip(terms[0], accelerator.reduce(table.mean(0), "mean").tolist(), strict=True))
    wrong = [name for name, value in scalars.items() if not math.isfinite(value) and name != "psnr"]
    if wrong:
        names = {prefix + "grad_norm": "the gradient's length"}
        raise FloatingPointError(" and ".join(f"{names.get(name, name)} is {scalars[name]}" for name in wrong[:3]))
    optimizer.step()
    return scalars | {prefix + "lr": float(optimizer.param_groups[0]["lr"])}


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Within it no weight of `network` asks for a gradient; its inputs still may."""
    asked = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)
