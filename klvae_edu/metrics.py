"""How good a reconstruction is: PSNR, and the two baselines that a network has to beat.

Four numbers per 8×8 patch can be had without any network: by a linear projection fitted to the patches (`PatchPCA`), or
nearly so by shrinking the image and enlarging it again (`bicubic`). A trained autoencoder is shown beside them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def psnr(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB for images (B, C, H, W) in [-1, 1]: (B,); infinity where they are equal.

    10·log10(2² / MSE), the peak being the width of the range. The reconstruction is clamped to [-1, 1] first, as it is
    when it is displayed. A mean over images is a mean of dB, as in the literature, not the dB of a mean error.

    Raises:
        ValueError: the shapes differ (broadcasting would hide it), or are not (B, C, H, W).
    """
    if reconstruction.shape != target.shape or target.dim() != 4:
        shapes = f"{tuple(reconstruction.shape)} and {tuple(target.shape)}"
        raise ValueError(f"psnr: expected two batches of one shape (B, C, H, W), got {shapes}")
    error = (reconstruction.float().clamp(-1, 1) - target.float()).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error)


class PatchPCA:
    """Images from `components` numbers per patch: the best linear code of that size for the patches it was fitted to.

    With 4 components per 8×8 patch it stores as many values as the latent of KL-f8 (4 channels at an eighth of the
    side), with 4 per 4×4 patch as many as that of the preset `tiny`.

    Args:
        patch_size: the side of a patch in pixels.
        components: numbers kept per patch, all channels together.
    """

    def __init__(self, patch_size: int, components: int) -> None:
        self.patch_size = patch_size
        self.components = components
        self.mean: Tensor | None = None  # (C·p·p,) float64
        self.basis: Tensor | None = None  # (components, C·p·p) float64, orthonormal rows, largest variance first

    def fit(self, images: Tensor) -> PatchPCA:
        """Find mean and principal directions of the patches of `images` (B, C, H, W), in float64.

        Raises:
            ValueError: not (B, C, H, W), smaller than a patch, or fewer patches or values in one than components.
        """
        patches = self._patches(images.double())
        if min(patches.shape) < self.components:
            count, values = patches.shape
            raise ValueError(f"PatchPCA: expected {self.components} patches or more, got {count} of {values} values")
        self.mean = patches.mean(0)
        centred = patches - self.mean
        _, directions = torch.linalg.eigh(centred.T @ centred)  # columns, smallest variance first
        self.basis = directions.T.flip(0)[: self.components].contiguous()
        return self

    def reconstruct(self, images: Tensor) -> Tensor:
        """Project every patch of `images` (B, C, H, W) and put the images together again, in their own dtype.

        Sides that are not multiples of the patch are padded by reflection and cropped back. Values may overshoot.

        Raises:
            ValueError: not fitted yet, another number of channels, or smaller than a patch.
        """
        if self.mean is None or self.basis is None:
            raise ValueError("PatchPCA: call fit(images) before reconstruct(images)")
        patches = self._patches(images.double())
        if patches.shape[1] != len(self.mean):
            channels = len(self.mean) // self.patch_size**2
            raise ValueError(f"PatchPCA: fitted to images with {channels} channels, got {tuple(images.shape)}")
        mean, basis = self.mean.to(images.device), self.basis.to(images.device)
        projected = (patches - mean) @ basis.T @ basis + mean
        height, width = images.shape[-2:]
        columns = projected.view(len(images), -1, len(self.mean)).transpose(1, 2)
        padded = height + -height % self.patch_size, width + -width % self.patch_size
        whole = F.fold(columns, padded, kernel_size=self.patch_size, stride=self.patch_size)
        return whole[..., :height, :width].to(images.dtype)

    def _patches(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (patches of all images, C·p·p)."""
        padded = _pad_to_multiple(images, self.patch_size)
        columns = F.unfold(padded, kernel_size=self.patch_size, stride=self.patch_size)
        return columns.transpose(1, 2).flatten(0, 1)


def bicubic(images: Tensor, factor: int) -> Tensor:
    """Shrink `images` (B, C, H, W) by `factor`, averaging areas, and enlarge them again, bicubically.

    It keeps C numbers per factor×factor pixels, 3 for RGB, where a latent with 4 channels keeps 4. Sides that are not
    multiples of the factor are padded by reflection and cropped back. Values may overshoot [-1, 1] a little.

    Raises:
        ValueError: not (B, C, H, W), or smaller than `factor`.
    """
    height, width = images.shape[-2:]
    small = F.avg_pool2d(_pad_to_multiple(images, factor), factor)
    large = F.interpolate(small, scale_factor=factor, mode="bicubic", align_corners=False)
    return large[..., :height, :width]


def _pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Reflect `images` (B, C, H, W) at the right and bottom edges until both sides are multiples of `multiple`."""
    if images.dim() != 4 or min(images.shape[-2:]) < multiple:
        expected = f"(B, C, H, W) with H and W of {multiple} pixels or more"
        raise ValueError(f"expected images {expected}, got {tuple(images.shape)}")
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % multiple, 0, -height % multiple), mode="reflect")
