"""Solutions of notebook 08. Written by tools.solutions from notebooks/source/08_training_loop.py; edit that."""

import copy
import torch
from klvae_edu.losses import adaptive_weight, adversarial_loss, kl_loss, pixel_loss


def generator_step(vae, discriminator, optimizer, images, disc_weight=0.5, kl_weight=1e-6):
    """One step of the autoencoder on images (B, 3, H, W). Returns their reconstruction, without a graph."""
    posterior = vae.encode(images).latent_dist
    reconstruction = vae.decode(posterior.sample()).sample
    nll, kl = pixel_loss(reconstruction, images, "l2"), kl_loss(posterior, images)
    discriminator.requires_grad_(False)
    adversarial = adversarial_loss(discriminator(reconstruction))
    discriminator.requires_grad_(True)
    last_layer = vae.decoder.conv_out.weight
    (nll_gradient,) = torch.autograd.grad(nll, last_layer, retain_graph=True)
    (adversarial_gradient,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    weight = disc_weight * adaptive_weight(nll_gradient, adversarial_gradient)
    optimizer.zero_grad()
    (nll + kl_weight * kl + weight * adversarial).backward()
    optimizer.step()
    return reconstruction.detach()


def surrogate(reconstruction, losses, weights):
    """A scalar, linear in the reconstruction, whose gradient is that of the losses' weighted sum."""
    leaf = reconstruction.detach().requires_grad_()
    gradient = torch.zeros_like(leaf)
    for loss, weight in zip(losses, weights, strict=True):
        gradient += weight * torch.autograd.grad(loss(leaf), leaf)[0]
    return (reconstruction * gradient).sum()


def training_step(step, images, generator_step, discriminator_step, disc_start, disc_warmup):
    """Step 1, 2, … on one batch. Returns the reconstructions that generator_step(images, adversarial) gives."""
    adversarial, trains_discriminator = step > disc_start, step > disc_start - disc_warmup
    reconstructions = generator_step(images, adversarial)
    if trains_discriminator:
        discriminator_step(images, reconstructions)
    return reconstructions


def ema_update(averages, weights, n, decay=0.9999):
    """Update n = 1, 2, …: move each average, in place, towards its weight. Returns the averages."""
    d = min(decay, (1 + n) / (10 + n))
    with torch.no_grad():
        for average, weight in zip(averages, weights, strict=True):
            average.mul_(d).add_(weight, alpha=1 - d)
    return averages


def snapshot(run):
    """All that `restore` needs, under the keys "model", "optimizer", "average", "step" and "random"."""
    return {
        "model": copy.deepcopy(run.model.state_dict()),
        "optimizer": copy.deepcopy(run.optimizer.state_dict()),
        "average": copy.deepcopy(run.average.state_dict()),
        "step": run.step,
        "random": torch.get_rng_state(),
    }
