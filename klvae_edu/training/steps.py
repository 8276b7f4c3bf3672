"""One step of training, and the module it runs through."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from klvae_edu.autoencoder import AutoencoderKL
from klvae_edu.gaussian import DiagonalGaussianDistribution
from klvae_edu.losses import vae_loss
from klvae_edu.metrics import psnr
from klvae_edu.training.config import TrainingConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


class TrainableAutoencoder(nn.Module):
    """The autoencoder as training calls it: images in, reconstruction and posterior out, in one forward.

    This module is what Accelerate wraps (`DistributedDataParallel`, autocast). Gradients are averaged over the
    processes only for what runs through the wrapper's own forward: calling `encode` and `decode` behind its back would
    leave every process with weights of its own, without any error.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """Images (B, 3, H, W) in [-1, 1] -> reconstruction of a posterior sample, likewise, and the posterior."""
        moments = self.vae.encode(images).latent_dist.parameters
        posterior = DiagonalGaussianDistribution(moments.float())  # under autocast they arrive in bfloat16
        return self.vae.decode(posterior.sample()).sample, posterior


def generator_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    accelerator: Accelerator,
    images: Tensor,
    config: TrainingConfig,
) -> dict[str, float]:
    """One step of the autoencoder on `images` (B, 3, H, W) in [-1, 1].

    The loss is per pixel value (`reduction="mean"`), so that `lr` and `grad_clip` mean the same at every image size.

    Args:
        model: a `TrainableAutoencoder`, wrapped by `accelerator.prepare`, as is the optimizer.

    Returns:
        "loss", "pixel", "kl", the gradient's length before clipping "grad_norm", the "lr" of this step,
        and the "psnr" of the reconstructions in dB.

    Raises:
        FloatingPointError: the loss or its gradient is not finite. The weights are left as they were.
    """
    optimizer.zero_grad()
    reconstruction, posterior = model(images)
    terms = vae_loss(
        reconstruction, images, posterior, pixel=config.pixel, kl_weight=config.kl_weight, reduction="mean"
    )
    accelerator.backward(terms["loss"])
    grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.grad_clip)
    scalars = {name: term.item() for name, term in terms.items()}
    scalars["grad_norm"] = grad_norm.item()
    scalars["lr"] = float(scheduler.get_last_lr()[0])
    scalars["psnr"] = psnr(reconstruction.detach(), images).mean().item()
    if not (math.isfinite(scalars["loss"]) and math.isfinite(scalars["grad_norm"])):
        raise FloatingPointError(f"the loss is {scalars['loss']}, its gradient's length {scalars['grad_norm']}")
    optimizer.step()
    scheduler.step()
    return scalars
