"""What the autoencoder and its discriminator are trained on: pure functions of tensors, scalars by name.

Two reductions are in use in the field, and a weight means something else under each. CompVis sums over an image's
values and averages over the batch ("sum"). Here "mean" divides that whole total by C·H·W: the same minimum and the same
weights, with a loss per pixel value that can be compared between image sizes. A third habit averages each term over its
own values; `own_mean_weights` and `sum_weights` turn weights of the one kind into the other.

Source: CompVis latent-diffusion, `ldm/modules/losses/contperceptual.py`. Its log-variance of the pixels is left out: no
optimiser was ever given it, so it stayed at 0, where it changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from klvae_edu.gaussian import DiagonalGaussianDistribution

Reduction = Literal["sum", "mean"]
PixelLoss = Literal["l1", "l2"]
DiscriminatorLoss = Literal["hinge", "vanilla"]

ADAPTIVE_LIMIT = 1e4  # CompVis' clamp, in a loss summed over the image


def pixel_loss(reconstruction: Tensor, target: Tensor, kind: PixelLoss = "l1", reduction: Reduction = "sum") -> Tensor:
    """|x̂ - x| ("l1") or (x̂ - x)² ("l2"), for images (B, C, H, W): a scalar.

    Raises:
        ValueError: the shapes differ (broadcasting would hide it), or `kind` or `reduction` is unknown.
    """
    if reconstruction.shape != target.shape:
        raise ValueError(
            f"expected two images of one shape, got {tuple(reconstruction.shape)} and {tuple(target.shape)}"
        )
    difference = reconstruction - target
    if kind == "l1":
        each = difference.abs()
    elif kind == "l2":
        each = difference.pow(2)
    else:
        raise ValueError(f"kind: expected 'l1' or 'l2', got {kind!r}")
    return _reduce(each.flatten(1).sum(1), target, reduction)


def kl_loss(posterior: DiagonalGaussianDistribution, target: Tensor, reduction: Reduction = "sum") -> Tensor:
    """KL(posterior ‖ N(0, I)) in nats, for the posterior of the images `target` (B, C, H, W): a scalar.

    "mean" divides by the values of an *image*, not of a latent, as it does for the pixel term.

    Raises:
        ValueError: the two batches differ in size, or `reduction` is unknown.
    """
    if len(posterior.mean) != len(target):
        raise ValueError(f"expected the posterior of {len(target)} images, got one of {len(posterior.mean)}")
    return _reduce(posterior.kl(), target, reduction)


def vae_loss(
    reconstruction: Tensor,
    target: Tensor,
    posterior: DiagonalGaussianDistribution,
    *,
    pixel: PixelLoss = "l1",
    kl_weight: float = 1e-6,
    reduction: Reduction = "sum",
) -> dict[str, Tensor]:
    """The training loss of the autoencoder, without the perceptual and adversarial terms.

    Args:
        reconstruction, target: (B, C, H, W) in [-1, 1].
        posterior: of `target`.
        kl_weight: of the KL term; 1e-6 in the LDM paper's KL-f8. It means the same under both reductions.

    Returns:
        Scalars by name: "loss" = "pixel" + kl_weight · "kl".

    Built in notebook 02, section 4.
    """
    terms = {
        "pixel": pixel_loss(reconstruction, target, pixel, reduction),
        "kl": kl_loss(posterior, target, reduction),
    }
    return {"loss": terms["pixel"] + kl_weight * terms["kl"], **terms}


def reconstruction_loss(
    reconstruction: Tensor,
    target: Tensor,
    distance: Tensor | None = None,
    *,
    pixel: PixelLoss = "l1",
    perceptual_weight: float = 1.0,
    reduction: Reduction = "sum",
) -> dict[str, Tensor]:
    """The pixel loss and the perceptual one.

    CompVis adds an image's perceptual distance to each of its pixel values; summed, it counts C·H·W times.

    Args:
        reconstruction, target: (B, C, H, W) in [-1, 1].
        distance: of each pair, (B,), as `perceptual.LPIPS` gives it; None leaves the term out.

    Returns:
        Scalars by name: "nll" = "pixel" + perceptual_weight · "perceptual", all under `reduction`.

    Raises:
        ValueError: shapes that do not fit, or an unknown `pixel` or `reduction`.

    Built in notebook 06, section 5.
    """
    terms = {"pixel": pixel_loss(reconstruction, target, pixel, reduction)}
    if distance is None:
        return {"nll": terms["pixel"], **terms}
    if distance.shape != target.shape[:1]:
        raise ValueError(f"expected a distance for each of {len(target)} images, got {tuple(distance.shape)}")
    terms["perceptual"] = _reduce(distance * target[0].numel(), target, reduction)
    return {"nll": terms["pixel"] + perceptual_weight * terms["perceptual"], **terms}


def adversarial_loss(logits_fake: Tensor) -> Tensor:
    """What the generator is trained on, -mean D(x̂), for both kinds of discriminator: a scalar.

    Built in notebook 07, section 3.
    """
    return -logits_fake.mean()


def discriminator_loss(
    logits_real: Tensor, logits_fake: Tensor, kind: DiscriminatorLoss = "hinge"
) -> dict[str, Tensor]:
    """How badly the discriminator tells images from reconstructions.

    "hinge": ½ (mean max(0, 1 - D(x)) + mean max(0, 1 + D(x̂))); "vanilla": the cross-entropy of the logits,
    ½ (mean softplus(-D(x)) + mean softplus(D(x̂))). Undecided (all logits 0) these are 1 and log 2.

    Returns:
        Scalars by name: "disc_loss", and the mean logits "logits_real", "logits_fake".

    Raises:
        ValueError: an unknown `kind`.

    Built in notebook 07, section 3.
    """
    if kind == "hinge":
        loss = (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean()) / 2
    elif kind == "vanilla":
        loss = (F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean()) / 2
    else:
        raise ValueError(f"kind: expected 'hinge' or 'vanilla', got {kind!r}")
    return {"disc_loss": loss, "logits_real": logits_real.mean(), "logits_fake": logits_fake.mean()}


def last_layer_gradients(reconstruction: Tensor, weight: Tensor, gradients: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of losses at `reconstruction` -> gradients of the same losses at `weight` of the layer it comes from.

    That layer is a convolution, linear in its weight: one weight gradient for each loss, and no second pass through
    what the losses are made of. The graph of `reconstruction` stays for the backward pass to come.

    Built in notebook 07, section 5.
    """
    return [torch.autograd.grad(reconstruction, weight, gradient, retain_graph=True)[0] for gradient in gradients]


def adaptive_weight(nll_gradient: Tensor, adversarial_gradient: Tensor, limit: float = ADAPTIVE_LIMIT) -> Tensor:
    """min(‖∇nll‖ / (‖∇adversarial‖ + 1e-4), limit): with it both losses pull equally hard at the last layer. A scalar.

    Both gradients are with respect to the weight of the decoder's last layer. The limit is for a loss under "sum";
    under "mean" the same clamp is `limit / (C·H·W)`.

    Source: Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis", eq. 7; the clamp is CompVis'.
    Built in notebook 07, section 5.
    """
    return (nll_gradient.norm() / (adversarial_gradient.norm() + 1e-4)).clamp(0, limit).detach()


def generator_loss(
    terms: Mapping[str, Tensor], *, kl_weight: float = 1e-6, adversarial_weight: float | Tensor = 0.0
) -> dict[str, Tensor]:
    """The autoencoder's total: "loss" = "nll" + kl_weight · "kl" + adversarial_weight · "adversarial".

    Args:
        terms: "nll" of `reconstruction_loss` and "kl" of `kl_loss` under one reduction; "adversarial" may be missing.
        adversarial_weight: CompVis' is 0.5 · `adaptive_weight`, and 0 before the discriminator's start.

    Built in notebook 08, section 2.
    """
    loss = terms["nll"] + kl_weight * terms["kl"]
    if "adversarial" in terms:
        loss = loss + adversarial_weight * terms["adversarial"]
    return {"loss": loss, **terms}


def own_mean_weights(
    image: Sequence[int], latent: Sequence[int], *, kl_weight: float, adversarial_weight: float = 0.0
) -> dict[str, float]:
    """CompVis' weights, for a loss in which every term is the mean over its own values instead of a sum.

    mean |x̂ - x| + perceptual_weight · LPIPS + kl_weight' · (KL per latent value) + adversarial_weight' · (-mean D(x̂))
    is then CompVis' total over C·H·W, term by term; the perceptual weight is the same in both.

    Args:
        image, latent: their shapes (C, H, W) and (c, h, w).

    Returns:
        "kl_weight": times c·h·w / (C·H·W); 1e-6 becomes 2.1e-8 for KL-f8. "adversarial_weight": over C·H·W.

    Built in notebook 06, section 5.
    """
    values = math.prod(image)
    return {"kl_weight": kl_weight * math.prod(latent) / values, "adversarial_weight": adversarial_weight / values}


def sum_weights(
    image: Sequence[int], latent: Sequence[int], *, kl_weight: float, adversarial_weight: float = 0.0
) -> dict[str, float]:
    """The way back: weights of means over each term's own values -> the weights that the functions here take.

    Built in notebook 06, section 5.
    """
    values = math.prod(image)
    return {"kl_weight": kl_weight * values / math.prod(latent), "adversarial_weight": adversarial_weight * values}


def _reduce(per_image: Tensor, target: Tensor, reduction: Reduction) -> Tensor:
    """The mean over the batch of per-image sums (B,), divided by C·H·W for "mean"."""
    if reduction == "sum":
        return per_image.mean()
    if reduction == "mean":
        return per_image.mean() / target[0].numel()
    raise ValueError(f"reduction: expected 'sum' or 'mean', got {reduction!r}")
