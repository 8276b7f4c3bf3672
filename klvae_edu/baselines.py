"""What a network has to beat: three ways to store an image in as many numbers, or bytes, that need no training.

Four numbers per 8×8 patch can be had by a linear projection fitted to patches (`PatchPCA`), nearly so by shrinking the
image and enlarging it again (`bicubic`); and for one byte a number there is `jpeg`. A trained autoencoder is shown
beside them.
"""

from __future__ import annotations

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


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


def jpeg(images: Tensor, bytes_each: int) -> tuple[Tensor, Tensor]:
    """`images` (B, 3, H, W) in [-1, 1] as JPEG gives them back, and the bytes that each took: (B, 3, H, W), (B,) int64.

    Of the qualities 1 to 95 it takes the highest whose file, header and all, has `bytes_each` bytes or fewer, and 1
    where none has: the bytes tell. Pillow's encoder, with Huffman tables made for each image and colour at half the
    resolution. (The size grows with the quality but for a few bytes, so that halving the range finds it.)

    Raises:
        ValueError: not (B, 3, H, W), or a number of bytes below 1.
    """
    if images.dim() != 4 or images.shape[1] != 3 or bytes_each < 1:
        raise ValueError(f"jpeg: expected (B, 3, H, W) and 1 byte or more, got {tuple(images.shape)}, {bytes_each}")
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    files = [_largest_jpeg(Image.fromarray(image), bytes_each) for image in pixels]
    decoded = np.stack([np.array(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    back = torch.from_numpy(decoded).permute(0, 3, 1, 2).to(images) / 127.5 - 1
    return back, torch.tensor([len(file) for file in files])


class JpegWithin:
    """Images as `jpeg` gives them back, within `bytes_each`; it counts the bytes of all that it is given."""

    def __init__(self, bytes_each: int) -> None:
        self.bytes_each = bytes_each
        self.count = self.total = self.too_large = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> the same as JPEG."""
        back, used = jpeg(images, self.bytes_each)
        self.count += len(used)
        self.total += int(used.sum())
        self.too_large += int((used > self.bytes_each).sum())
        return back

    def report(self) -> str:
        """The bytes that were used, in words."""
        mean = f"{self.total / max(1, self.count):.0f} bytes on average, headers and all"
        return f"{mean}; {self.too_large} of {self.count} did not fit" if self.too_large else mean


def _largest_jpeg(image: Image.Image, limit: int) -> bytes:
    low, high = 1, 95  # above 95 files grow and pictures hardly gain
    best = _as_jpeg(image, low)
    while low < high:
        quality = (low + high + 1) // 2
        file = _as_jpeg(image, quality)
        if len(file) <= limit:
            low, best = quality, file
        else:
            high = quality - 1
    return best


def _as_jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=True, subsampling="4:2:0")
    return file.getvalue()


def _pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Reflect `images` (B, C, H, W) at the right and bottom edges until both sides are multiples of `multiple`."""
    if images.dim() != 4 or min(images.shape[-2:]) < multiple:
        expected = f"(B, C, H, W) with H and W of {multiple} pixels or more"
        raise ValueError(f"expected images {expected}, got {tuple(images.shape)}")
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % multiple, 0, -height % multiple), mode="reflect")
