"""CompVis' loss for KL autoencoders, written without `klvae_edu.losses`: sums over an image.

Every gradient is computed by `torch.autograd.grad` from the loss itself, through the whole network, without shortcuts.

Source: CompVis latent-diffusion, `ldm/modules/losses/contperceptual.py` (LPIPSWithDiscriminator). Its log-variance of
the pixels stays at the initial 0. It has no squared difference; that is from the fine-tuned sd-vae-ft-mse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from klvae_edu import AutoencoderKL

LOGVAR = 0.0


@dataclass
class LPIPSWithDiscriminator:
    """CompVis' loss; its weights have CompVis' names and defaults, and multiply sums over an image."""

    discriminator: nn.Module | None = None
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
    kl_weight: float = 1e-6
    perceptual_weight: float = 1.0
    disc_weight: float = 0.5
    disc_factor: float = 1.0
    hinge: bool = True
    squared: bool = False

    def generator(self, vae: AutoencoderKL, images: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return scalars by name, and the gradient of the loss for each parameter of `vae`; images (B, 3, H, W)."""
        batch = images.shape[0]
        posterior = vae.encode(images).latent_dist
        reconstruction = vae.decode(posterior.sample()).sample
        log: dict[str, Tensor] = {}

        error = (images - reconstruction) ** 2 if self.squared else torch.abs(images - reconstruction)
        log["pixel"] = torch.sum(error) / batch
        rec_loss = error
        if self.perceptual is not None:
            p_loss = self.perceptual(images, reconstruction).reshape(batch, 1, 1, 1)
            rec_loss = rec_loss + self.perceptual_weight * p_loss
            log["perceptual"] = torch.sum(p_loss + torch.zeros_like(error)) / batch
        nll_loss = rec_loss / torch.exp(torch.tensor(LOGVAR)) + LOGVAR
        log["nll"] = nll_loss = torch.sum(nll_loss) / batch

        mean, logvar = posterior.mean, posterior.logvar
        log["kl"] = kl_loss = torch.sum(0.5 * (mean**2 + torch.exp(logvar) - 1.0 - logvar)) / batch
        loss = nll_loss + self.kl_weight * kl_loss

        if self.discriminator is not None:
            log["adversarial"] = g_loss = -torch.mean(self.discriminator(reconstruction))
            last_layer = vae.decoder.conv_out.weight
            nll_grads = torch.autograd.grad(nll_loss, last_layer, retain_graph=True)[0]
            g_grads = torch.autograd.grad(g_loss, last_layer, retain_graph=True)[0]
            d_weight = torch.norm(nll_grads) / (torch.norm(g_grads) + 1e-4)
            d_weight = torch.clamp(d_weight, 0.0, 1e4).detach()
            log["adversarial_weight"] = d_weight = d_weight * self.disc_weight * self.disc_factor
            loss = loss + d_weight * g_loss

        log["loss"] = loss
        gradients = torch.autograd.grad(loss, list(vae.parameters()))
        return {name: value.detach() for name, value in log.items()}, list(gradients)

    def discriminator_step(self, images: Tensor, reconstructions: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the loss and its gradient for each weight; images and reconstructions (B, 3, H, W)."""
        assert self.discriminator is not None
        real, fake = self.discriminator(images.detach()), self.discriminator(reconstructions.detach())
        if self.hinge:
            d_loss = 0.5 * (torch.clamp(1.0 - real, min=0.0).mean() + torch.clamp(1.0 + fake, min=0.0).mean())
        else:
            d_loss = 0.5 * (-torch.sigmoid(real).log().mean() - (1 - torch.sigmoid(fake)).log().mean())
        d_loss = self.disc_factor * d_loss
        return d_loss.detach(), list(torch.autograd.grad(d_loss, list(self.discriminator.parameters())))
