"""Training losses of the autoencoder and its discriminator: pure functions of tensors.

Three conventions for the reduction are in use:

* "sum", the convention of CompVis: sum over the values of an image, then average over the batch.
* "mean": the same total divided by C·H·W. Minimum, `kl_weight` and `perceptual_weight` stay the same. The loss is per
  pixel value, so it can be compared between image sizes.
* Each term is averaged over its own values. This needs other weights: `own_mean_weights` and `sum_weights` convert
  between this convention and "sum".

Source: CompVis latent-diffusion, `ldm/modules/losses/contperceptual.py`. Its log-variance of the pixels is left out. No
optimiser updates it there, so it stays at its initial value 0, where it changes nothing.
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

ADAPTIVE_LIMIT = 1e4  # upper clamp of the adaptive weight under "sum", as in CompVis

# ---- Reconstruction and KL -------------------------------------------------------------------------------------------


def pixel_loss(reconstruction: Tensor, target: Tensor, kind: PixelLoss = "l1", reduction: Reduction = "sum") -> Tensor:
    """Compute |x̂ - x| ("l1") or (x̂ - x)² ("l2") for images (B, C, H, W): a scalar.

    Raises:
        ValueError: the shapes differ (broadcasting would hide it), or `kind` or `reduction` is unknown.
    """
    if reconstruction.shape != target.shape:
        raise ValueError(
            f"expected two images of one shape, got {tuple(reconstruction.shape)} and {tuple(target.shape)}"
        )
    difference = reconstruction - target
    if kind == "l1":
        error = difference.abs()  # (B, C, H, W)
    elif kind == "l2":
        error = difference.pow(2)  # (B, C, H, W)
    else:
        raise ValueError(f"kind: expected 'l1' or 'l2', got {kind!r}")
    return _reduce(error.flatten(1).sum(1), target, reduction)  # (B,) -> scalar


def kl_loss(posterior: DiagonalGaussianDistribution, target: Tensor, reduction: Reduction = "sum") -> Tensor:
    """Compute KL(posterior ‖ N(0, I)) in nats, for the posterior of the images `target` (B, C, H, W): a scalar.

    "mean" divides by the number of values of an *image*, not of a latent, as for the pixel term.

    Raises:
        ValueError: the two batches differ in size, or `reduction` is unknown.
    """
    if len(posterior.mean) != len(target):
        raise ValueError(f"expected the posterior of {len(target)} images, got one of {len(posterior.mean)}")
    return _reduce(posterior.kl(), target, reduction)  # (B,) -> scalar


def vae_loss(
    reconstruction: Tensor,
    target: Tensor,
    posterior: DiagonalGaussianDistribution,
    *,
    pixel: PixelLoss = "l1",
    kl_weight: float = 1e-6,
    reduction: Reduction = "sum",
) -> dict[str, Tensor]:
    """Compute the autoencoder's training loss without the perceptual and adversarial terms.

    Args:
        reconstruction, target: (B, C, H, W) in [-1, 1].
        posterior: of `target`.
        kl_weight: weight of the KL term; 1e-6 in the LDM paper's KL-f8. It means the same under both reductions.

    Returns:
        Scalars by name: "loss" = "pixel" + kl_weight · "kl".

    Raises:
        ValueError: shapes that do not fit, or an unknown `pixel` or `reduction`.

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
    """Compute the pixel loss plus the weighted perceptual loss.

    CompVis adds the perceptual distance of an image to each of its pixel values. In the sum it counts C·H·W times.

    Args:
        reconstruction, target: (B, C, H, W) in [-1, 1].
        distance: (B,), the perceptual distance of each pair, as from `perceptual.LPIPS`. None leaves the term out.

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
    terms["perceptual"] = _reduce(distance * target[0].numel(), target, reduction)  # (B,) -> scalar
    return {"nll": terms["pixel"] + perceptual_weight * terms["perceptual"], **terms}


# ---- Adversarial training --------------------------------------------------------------------------------------------


def adversarial_loss(logits_fake: Tensor) -> Tensor:
    """Compute the generator's loss -mean D(x̂), the same for both kinds of discriminator loss: a scalar.

    Args:
        logits_fake: the discriminator's logits D(x̂) of the reconstructions, (B, 1, h, w).

    Used in notebook 07, section 3.
    """
    return -logits_fake.mean()


def discriminator_loss(
    logits_real: Tensor, logits_fake: Tensor, kind: DiscriminatorLoss = "hinge"
) -> dict[str, Tensor]:
    """Compute the discriminator's loss from its logits of images, D(x), and of reconstructions, D(x̂).

    "hinge": ½ (mean max(0, 1 - D(x)) + mean max(0, 1 + D(x̂))).
    "vanilla": the cross-entropy of the logits, ½ (mean softplus(-D(x)) + mean softplus(D(x̂))).
    If all logits are 0, the hinge loss is 1 and the vanilla loss is log 2.

    Args:
        logits_real, logits_fake: (B, 1, h, w).
        kind: "hinge" or "vanilla".

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
    """Turn gradients of losses at `reconstruction` into gradients of the same losses at `weight` of the last layer.

    The last layer is a convolution, which is linear in its weight. One backward pass through this layer is enough for
    each loss: LPIPS and the discriminator are not differentiated again. The graph of `reconstruction` is kept for the
    backward pass of the training step.

    Args:
        reconstruction: (B, C, H, W), the output of the last layer.
        weight: the weight of that layer, (C, in, k, k).
        gradients: one for each loss, each (B, C, H, W).

    Returns:
        One gradient for each loss, each with the shape of `weight`.

    Built in notebook 07, in an optional section.
    """
    # (C, in, k, k) each
    return [torch.autograd.grad(reconstruction, weight, gradient, retain_graph=True)[0] for gradient in gradients]


def adaptive_weight(nll_gradient: Tensor, adversarial_gradient: Tensor, limit: float = ADAPTIVE_LIMIT) -> Tensor:
    """Compute min(‖∇nll‖ / (‖∇adversarial‖ + 1e-4), limit): a scalar without gradient.

    Both gradients are with respect to the weight of the decoder's last layer. Unless the clamp acts, the weighted
    adversarial gradient has the norm of the nll gradient there. The default limit is for a loss under "sum"; under
    "mean" the same clamp is `limit / (C·H·W)`.

    Source: Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis", eq. 7; the clamp is CompVis'.
    Built in notebook 07, section 5.
    """
    return (nll_gradient.norm() / (adversarial_gradient.norm() + 1e-4)).clamp(0, limit).detach()


def generator_loss(
    terms: Mapping[str, Tensor], *, kl_weight: float = 1e-6, adversarial_weight: float | Tensor = 0.0
) -> dict[str, Tensor]:
    """Compute the autoencoder's total loss: "loss" = "nll" + kl_weight · "kl" + adversarial_weight · "adversarial".

    Args:
        terms: "nll" of `reconstruction_loss` and "kl" of `kl_loss`, both under the same reduction, and optionally
            "adversarial" of `adversarial_loss`.
        adversarial_weight: in CompVis 0.5 · `adaptive_weight`, and 0 before the discriminator starts. Under "mean" a
            fixed weight has to be divided by C·H·W; `adaptive_weight` comes out smaller by this factor.

    Returns:
        Scalars by name: "loss" and all `terms`.

    Built in notebook 08, section 2.
    """
    loss = terms["nll"] + kl_weight * terms["kl"]
    if "adversarial" in terms:
        loss = loss + adversarial_weight * terms["adversarial"]
    return {"loss": loss, **terms}


# ---- Conversion of weights -------------------------------------------------------------------------------------------


def own_mean_weights(
    image: Sequence[int], latent: Sequence[int], *, kl_weight: float, adversarial_weight: float = 0.0
) -> dict[str, float]:
    """Convert weights for "sum", as CompVis has them, into weights for means of each term over its own values.

    With the converted weights, mean |x̂ - x| + perceptual_weight · LPIPS + kl_weight' · (KL per latent value)
    + adversarial_weight' · (-mean D(x̂)) equals CompVis' total divided by C·H·W, term by term. The perceptual weight is
    the same in both.

    Args:
        image, latent: their shapes (C, H, W) and (c, h, w).

    Returns:
        "kl_weight": times c·h·w / (C·H·W); 1e-6 becomes 2.1e-8 for KL-f8. "adversarial_weight": divided by C·H·W.

    Built in notebook 06, section 5.
    """
    values = math.prod(image)
    return {"kl_weight": kl_weight * math.prod(latent) / values, "adversarial_weight": adversarial_weight / values}


def sum_weights(
    image: Sequence[int], latent: Sequence[int], *, kl_weight: float, adversarial_weight: float = 0.0
) -> dict[str, float]:
    """Invert `own_mean_weights`: convert weights for means over each term's own values into weights for "sum"."""
    values = math.prod(image)
    return {"kl_weight": kl_weight * values / math.prod(latent), "adversarial_weight": adversarial_weight * values}


def _reduce(per_image: Tensor, target: Tensor, reduction: Reduction) -> Tensor:
    """Average per-image sums (B,) over the batch; for "mean" also divide by C·H·W of `target`."""
    if reduction == "sum":
        return per_image.mean()
    if reduction == "mean":
        return per_image.mean() / target[0].numel()
    raise ValueError(f"reduction: expected 'sum' or 'mean', got {reduction!r}")
