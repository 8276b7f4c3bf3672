"""Image files: anything Pillow reads becomes RGB in [-1, 1], and comes back as a file.

This is a door where images come in, so this is where they are checked: what cannot be read raises `UnreadableImage`
with the file's name and the reason, and `check_image_range` looks at tensors from elsewhere.
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

FAR_OUTSIDE = 1.5  # in absolute value; resampling and reconstructions overshoot 1 a little, wrong scales by far


class UnreadableImage(ValueError):
    """A file that is no image, is damaged, or whose values have no agreed meaning as brightness."""


def load_image(file: str | os.PathLike[str] | BinaryIO, name: str | None = None) -> Tensor:
    """The image in `file`, a path or an open binary file: (3, H, W), float32 in [-1, 1]; see `from_pil`.

    `name` stands for the file in error messages; without it they use the path.

    Raises:
        UnreadableImage: missing, truncated or damaged, not an image, or so large that it may be a decompression bomb
            (Pillow's limit). The message names the file and the reason.
    """
    name = name or str(file if isinstance(file, (str, os.PathLike)) else getattr(file, "name", file))
    try:
        with Image.open(file) as image:
            return from_pil(image)
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"{name}: not in any image format that Pillow knows") from error
    except OSError as error:
        raise UnreadableImage(f"{name}: cannot be read: {error.strerror or error}") from error
    except MemoryError:  # that is no fault of the image's
        raise
    except Exception as error:  # on damaged files decoders raise whatever they stumble over
        raise UnreadableImage(f"{name}: cannot be read: {error}") from error


def from_pil(image: Image.Image) -> Tensor:
    """A Pillow image as (3, H, W), float32 in [-1, 1], turned upright as its EXIF data say.

    Grey becomes three equal channels. Transparent pixels are laid over white. 16-bit grey is scaled by 65535, so that
    nothing is clipped; floating-point grey is expected in [0, 1]. Colour profiles are ignored, as is common in
    training. Of an animation it is the first frame.

    Raises:
        UnreadableImage: floating-point values outside [0, 1], or integers beyond 16 bits: their white is unknown.
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
        ValueError: not (3, H, W), NaN or infinite values, or a suffix Pillow cannot write.
    """
    from klvae_edu.plots import to_image  # brings matplotlib, which reading images does without

    if image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"{path}: expected an image of shape (3, H, W), got {tuple(image.shape)}")
    check_image_range(image.detach().clamp(-1, 1), f"image for {path}")
    suffix = os.path.splitext(path)[1].lower()
    if Image.registered_extensions().get(suffix) not in Image.SAVE:
        raise ValueError(f"{path}: expected a file name that ends in .png, .jpg or the like, got {suffix!r}")
    Image.fromarray(to_image(image)).save(path, quality=95)


def check_image_range(images: Tensor, where: str = "images") -> None:
    """Raise a `ValueError` that begins with `where` unless `images` holds floats in about [-1, 1].

    A little outside is allowed (up to ±1.5): resampling overshoots at edges. Images in [0, 1] cannot be told from dark
    or bright ones and pass.
    """
    if not images.is_floating_point():
        raise ValueError(f"{where}: expected floating-point values in [-1, 1], got {images.dtype}")
    if not images.isfinite().all():
        raise ValueError(f"{where}: expected values in [-1, 1], got NaN or infinity")
    if images.numel() and images.abs().max() > FAR_OUTSIDE:
        low, high = images.min().item(), images.max().item()
        raise ValueError(f"{where}: expected values in [-1, 1], got [{low:.4g}, {high:.4g}]")


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """`image` (3, H, W) in [-1, 1] as (3, height, width): bicubic, antialiased where it shrinks, clamped."""
    resized = F.interpolate(image[None], (height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized[0].clamp(-1, 1)


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; damaged EXIF data are no reason to lose the picture."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _deep_grey(image: Image.Image) -> NDArray[np.float32]:
    """Grey of more than 8 bits (modes I;16…, I and F) as (H, W) in [0, 1]."""
    values = np.asarray(image)
    white = 1 if image.mode == "F" else 65535
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= white):  # written so that NaN fails too
        raise UnreadableImage(f"expected grey values from 0 to {white} (mode {image.mode}), got {low} to {high}")
    return (values / white).astype(np.float32)
