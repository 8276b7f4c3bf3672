"""Read, check, resize and write image files. Every format that Pillow reads becomes RGB in [-1, 1].

Images are validated here. A file that cannot be read raises `UnreadableImage` with the file's name and the reason;
`check_image_range` validates tensors from other sources.
"""

from __future__ import annotations

import os
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

MAX_ABSOLUTE_VALUE = 1.5  # resampling and reconstructions exceed 1 slightly; images in a wrong scale exceed it by far


class UnreadableImage(ValueError):
    """Error for a file that is not an image, is damaged, or has values without a defined brightness."""


def load_image(file: str | os.PathLike[str] | BinaryIO, name: str | None = None) -> Tensor:
    """Read an image as (3, H, W), float32 in [-1, 1]; `from_pil` describes the conversion.

    Args:
        file: a path or an open binary file.
        name: name of the file in error messages; None: its path.

    Raises:
        UnreadableImage: the file is missing, truncated, damaged or not an image, or so large that it may be a
            decompression bomb (Pillow's limit). The message names the file and the reason.
    """
    name = name or str(file if isinstance(file, (str, os.PathLike)) else getattr(file, "name", file))
    try:
        with Image.open(file) as image:
            return from_pil(image)
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"{name}: not in any image format that Pillow knows") from error
    except OSError as error:
        raise UnreadableImage(f"{name}: cannot be read: {error.strerror or error}") from error
    except MemoryError:  # not the fault of the image
        raise
    except Exception as error:  # decoders raise many types of exceptions on damaged files
        raise UnreadableImage(f"{name}: cannot be read: {error}") from error


def from_pil(image: Image.Image) -> Tensor:
    """Convert a Pillow image to (3, H, W), float32 in [-1, 1], rotated upright according to its EXIF data.

    Grey becomes three equal channels. Transparent pixels are composited over white. 16-bit grey is divided by 65535,
    so no value is clipped. Floating-point grey must lie in [0, 1]. Colour profiles are ignored, as is common in
    training. An animation gives its first frame.

    Raises:
        UnreadableImage: floating-point values outside [0, 1], or integers of more than 16 bits: their white level is
            unknown.
    """
    image = _upright(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return torch.from_numpy(_deep_grey(image) * 2 - 1).repeat(3, 1, 1)
    has_transparency = image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info
    rgb = _over_white(image) if has_transparency else image.convert("RGB")
    pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()
    return pixels.float().div_(127.5).sub_(1)


def save_image(image: Tensor, path: str | os.PathLike[str]) -> None:
    """Write `image` (3, H, W), clamped to [-1, 1], in the format of the path's suffix (.png, .jpg, ...).

    Raises:
        ValueError: another shape than (3, H, W), NaN or infinite values, or a suffix that Pillow cannot write.
    """
    from klvae_edu.plots import to_image  # imports matplotlib, which reading images does not need

    if image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"{path}: expected an image of shape (3, H, W), got {tuple(image.shape)}")
    check_image_range(image.detach().clamp(-1, 1), f"image for {path}")
    suffix = os.path.splitext(path)[1].lower()
    if Image.registered_extensions().get(suffix) not in Image.SAVE:
        raise ValueError(f"{path}: expected a file name that ends in .png, .jpg or the like, got {suffix!r}")
    Image.fromarray(to_image(image)).save(path, quality=95)


def check_image_range(images: Tensor, where: str = "images") -> None:
    """Check that `images` holds floating-point values in about [-1, 1].

    Values up to ±1.5 are allowed, because resampling overshoots at edges. Images in [0, 1] pass: they cannot be
    distinguished from bright images in [-1, 1].

    Raises:
        ValueError: another dtype, NaN, infinity, or a value beyond ±1.5. The message begins with `where`.
    """
    if not images.is_floating_point():
        raise ValueError(f"{where}: expected floating-point values in [-1, 1], got {images.dtype}")
    if not images.isfinite().all():
        raise ValueError(f"{where}: expected values in [-1, 1], got NaN or infinity")
    if images.numel() and images.abs().max() > MAX_ABSOLUTE_VALUE:
        low, high = images.min().item(), images.max().item()
        raise ValueError(f"{where}: expected values in [-1, 1], got [{low:.4g}, {high:.4g}]")


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resize `image` (3, H, W) to (3, height, width), bicubic with antialiasing, and clamp it to [-1, 1]."""
    resized = F.interpolate(image[None], (height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized[0].clamp(-1, 1)


def center_square(image: Tensor, size: int) -> Tensor:
    """Crop the largest centred square of `image` (3, H, W) in [-1, 1] and resize it to (3, size, size).

    Raises:
        ValueError: another shape.
    """
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"expected an image (3, H, W), got shape {tuple(image.shape)}")
    height, width = image.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return resize(image[:, top : top + side, left : left + side], size, size)


def _upright(image: Image.Image) -> Image.Image:
    """Rotate the image according to its EXIF orientation; damaged EXIF data are ignored."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _deep_grey(image: Image.Image) -> NDArray[np.float32]:
    """Convert grey of more than 8 bits (modes I;16…, I and F) to (H, W) in [0, 1]."""
    values = np.asarray(image)
    white = 1 if image.mode == "F" else 65535
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= white):  # in this form NaN fails, too
        raise UnreadableImage(f"expected grey values from 0 to {white} (mode {image.mode}), got {low} to {high}")
    return (values / white).astype(np.float32)
