"""What the autoencoder is trained on: how far the reconstruction is from the image, and the posterior from N(0, I).

Two reductions are in use in the field, and a weight means something else under each. CompVis sums over an image's
values and averages over the batch ("sum"). Here "mean" divides that whole total by C·H·W: the same minimum and the same
`kl_weight`, with a loss per pixel value that can be compared between image sizes.

Source: CompVis latent-diffusion, `ldm/modules/losses/contperceptual.py`.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from klvae_edu.gaussian import DiagonalGaussianDistribution

Reduction = Literal["sum", "mean"]
PixelLoss = Literal["l1", "l2"]


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


def _reduce(per_image: Tensor, target: Tensor, reduction: Reduction) -> Tensor:
    """The mean over the batch of per-image sums (B,), divided by C·H·W for "mean"."""
    if reduction == "sum":
        return per_image.mean()
    if reduction == "mean":
        return per_image.mean() / target[0].numel()
    raise ValueError(f"reduction: expected 'sum' or 'mean', got {reduction!r}")
