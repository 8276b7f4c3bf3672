"""Baselines for an autoencoder: three ways to compress images without training a network.

`PatchPCA` projects patches linearly; with four numbers per 8×8 patch it stores as many as the latent of KL-f8.
`bicubic` stores a smaller image. `jpeg` stores a file of limited size, such as one byte for each latent value.
"""

from __future__ import annotations

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from klvae_edu.validation import pad_to_multiple


class PatchPCA:
    """Principal component analysis of patches: `components` numbers per patch, the best linear code of this size.

    "Best" means the least squared error on the patches it was fitted to. 4 components per 8×8 patch are as many values
    as in the latent of KL-f8 (4 channels, an eighth of the side). 4 per 4×4 patch are as many as in the latent of the
    preset `tiny`.

    Args:
        patch_size: side of a patch in pixels.
        components: numbers stored per patch, for all channels together.
    """

    def __init__(self, patch_size: int, components: int) -> None:
        self.patch_size = patch_size
        self.components = components
        self.mean: Tensor | None = None  # (C·p·p,) float64
        self.basis: Tensor | None = None  # (components, C·p·p) float64, orthonormal rows, largest variance first

    def fit(self, images: Tensor) -> PatchPCA:
        """Compute mean and principal directions of the patches of `images` (B, C, H, W), in float64.

        Raises:
            ValueError: not (B, C, H, W), smaller than a patch, or fewer patches or values per patch than components.
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
        """Project every patch of `images` (B, C, H, W) and reassemble the images, in the dtype of `images`.

        Sides that are not multiples of the patch size are padded by reflection and cropped back. Values may leave the
        range of `images`.

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
        projected = (patches - mean) @ basis.T @ basis + mean  # (patches, C·p·p)
        height, width = images.shape[-2:]
        columns = projected.view(len(images), -1, len(self.mean)).transpose(1, 2)  # (B, C·p·p, patches of one image)
        padded = height + -height % self.patch_size, width + -width % self.patch_size
        padded_images = F.fold(columns, padded, kernel_size=self.patch_size, stride=self.patch_size)
        return padded_images[..., :height, :width].to(images.dtype)

    def _patches(self, images: Tensor) -> Tensor:
        """Cut images (B, C, H, W) into patches: (patches of all images, C·p·p)."""
        padded = pad_to_multiple(images, self.patch_size)
        columns = F.unfold(padded, kernel_size=self.patch_size, stride=self.patch_size)  # (B, C·p·p, of one image)
        return columns.transpose(1, 2).flatten(0, 1)


def bicubic(images: Tensor, factor: int) -> Tensor:
    """Downsample `images` (B, C, H, W) by `factor` (mean over areas), then upsample them bicubically to their size.

    The small image has C numbers per factor×factor pixels, 3 for RGB; a latent with 4 channels has 4. Sides that are
    not multiples of the factor are padded by reflection and cropped back. Values may leave [-1, 1] a little.

    Raises:
        ValueError: not (B, C, H, W), or smaller than `factor`.
    """
    height, width = images.shape[-2:]
    small = F.avg_pool2d(pad_to_multiple(images, factor), factor)  # (B, C, h, w)
    large = F.interpolate(small, scale_factor=factor, mode="bicubic", align_corners=False)
    return large[..., :height, :width]


def jpeg(images: Tensor, bytes_each: int) -> tuple[Tensor, Tensor]:
    """Compress and decompress `images` (B, 3, H, W) in [-1, 1] with JPEG, in at most `bytes_each` bytes per image.

    The quality is the highest from 1 to 95 whose file, including its header, has at most `bytes_each` bytes. If no file
    is that small, the quality is 1 and the file is larger than `bytes_each`. The encoder is Pillow's, with optimised
    Huffman tables and chroma subsampling 4:2:0.

    Returns:
        The decompressed images, (B, 3, H, W), and the size of each file in bytes, (B,) int64.

    Raises:
        ValueError: not (B, 3, H, W), or a number of bytes below 1.
    """
    if images.dim() != 4 or images.shape[1] != 3 or bytes_each < 1:
        raise ValueError(f"jpeg: expected (B, 3, H, W) and 1 byte or more, got {tuple(images.shape)}, {bytes_each}")
    # (B, H, W, 3) uint8
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    files = [_encode_within(Image.fromarray(image), bytes_each) for image in pixels]
    decoded = np.stack([np.array(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    back = torch.from_numpy(decoded).permute(0, 3, 1, 2).to(images) / 127.5 - 1
    return back, torch.tensor([len(file) for file in files])


class JpegWithin:
    """Compress images with `jpeg`, in at most `bytes_each` bytes per image, and count the bytes of all images."""

    def __init__(self, bytes_each: int) -> None:
        self.bytes_each = bytes_each
        self.count = self.total = self.too_large = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Compress and decompress images (B, 3, H, W) in [-1, 1]: (B, 3, H, W)."""
        back, used = jpeg(images, self.bytes_each)
        self.count += len(used)
        self.total += int(used.sum())
        self.too_large += int((used > self.bytes_each).sum())
        return back

    def report(self) -> str:
        """Describe the average number of bytes per image, and how many images did not fit into `bytes_each`."""
        mean = f"{self.total / max(1, self.count):.0f} bytes on average, including headers"
        return f"{mean}; {self.too_large} of {self.count} did not fit" if self.too_large else mean


def _encode_within(image: Image.Image, limit: int) -> bytes:
    """Encode with the highest quality that needs at most `limit` bytes, by bisection.

    The file size grows with the quality, up to deviations of a few bytes.
    """
    low, high = 1, 95  # above 95 files grow, but images hardly improve
    best = _encode_jpeg(image, low)
    while low < high:
        quality = (low + high + 1) // 2
        file = _encode_jpeg(image, quality)
        if len(file) <= limit:
            low, best = quality, file
        else:
            high = quality - 1
    return best


def _encode_jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=True, subsampling="4:2:0")
    return file.getvalue()
