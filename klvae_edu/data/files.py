"""Read, check, resize and write image files. Every format in `formats.FORMATS` becomes float32 in [-1, 1].

A file that cannot be read raises `UnreadableImage` with the file's name and the reason. An image that is read, but not
whole or perhaps not as it was meant, brings `remarks`. `validation.check_images` validates tensors from other sources.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from torch import Tensor

from klvae_edu.data.formats import (
    PILLOW_BANDS,
    as_brightness,
    is_signed_byte,
    is_tiff,
    open_image,
    pillow_misreads,
    read_tiff,
    tiff_header,
    tiff_layout,
    why_unidentified,
    write_tiff,
)
from klvae_edu.data.remarks import Remarks, frames, on_alpha, on_bands, on_dark_values, on_frames, on_pages
from klvae_edu.validation import check_images

_ORIENTATION = 274  # EXIF tag
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, as in Pillow's mode L (ITU-R 601)


class UnreadableImage(ValueError):
    """Error for a file that is not an image, is damaged, or has values without a defined brightness."""


def load_image(
    file: str | os.PathLike[str] | BinaryIO, name: str | None = None, channels: int = 3, reduce_to: int | None = None
) -> Tensor:
    """Read an image as (channels, H, W), float32 in [-1, 1]; `from_pil` describes the conversion.

    HEIC needs the package pillow-heif. TIFFs that Pillow does not read (several bands, several bands in floating point)
    need tifffile. A warning says what is not read or may not be meant: further pages, bands that are no alpha, values
    of fewer than 16 bits.

    Args:
        file: a path or an open binary file.
        name: name of the file in error messages; None: its path.
        channels: 1 (grey), 3 (RGB), or the number of bands of the file.
        reduce_to: average squares of pixels early, which takes less memory, while the shorter side keeps `reduce_to`
            pixels or more; None: read all pixels.

    Raises:
        UnreadableImage: the file is missing, truncated, damaged or in none of the formats, has another number of bands,
            or is so large that it may be a decompression bomb (`formats.pixel_limit`). The message names the file and
            the reason.
    """
    image, remarks = read_image(file, name, channels, reduce_to)
    for kind, detail in remarks.items():
        warnings.warn(f"{_name(file, name)}: {kind} ({detail})", stacklevel=2)
    return image


def read_image(
    file: str | os.PathLike[str] | BinaryIO, name: str | None = None, channels: int = 3, reduce_to: int | None = None
) -> tuple[Tensor, Remarks]:
    """Read an image like `load_image`, and return the remarks on it instead of warning."""
    name = _name(file, name)
    try:
        with open(file, "rb") if isinstance(file, (str, os.PathLike)) else nullcontext(file) as opened:
            return _read(opened, channels, reduce_to)
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"{name}: {error}") from error
    except OSError as error:
        raise UnreadableImage(f"{name}: cannot be read: {error.strerror or error}") from error
    except MemoryError:  # not the fault of the image
        raise
    except Exception as error:  # decoders raise many types of exceptions on damaged files
        raise UnreadableImage(f"{name}: cannot be read: {error}") from error


def from_pil(image: Image.Image, channels: int = 3, reduce_to: int | None = None) -> Tensor:
    """Convert a Pillow image to (channels, H, W), float32 in [-1, 1], rotated upright according to its EXIF data.

    Grey becomes three equal channels, RGB becomes grey by its luma (Pillow's mode L). Transparent pixels are composited
    over white. 16-bit grey is divided by 65535, so no value is clipped. Floating-point grey must lie in [0, 1]. With
    other `channels` than 1 and 3 the image's bands are taken as they are, such as the four of RGBA. Colour profiles are
    ignored, as is common in training. An animation gives its first frame. `load_image` describes `reduce_to`.

    Raises:
        UnreadableImage: another number of bands, CMYK with other `channels` than 1 and 3, floating-point values outside
            [0, 1], or integers of more than 16 bits: their white level is unknown.
    """
    tags = _tiff_tags(image)  # a copy that is turned has none
    image = _upright(image)
    if _is_deep(image):
        return to_channels(_unit_range(_deep_values(image, tags), reduce_to)[None] * 2 - 1, channels)
    transparent = image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if (factor := _factor(image.size, reduce_to)) > 1:
        if image.mode in ("1", "P", "PA") or "transparency" in image.info:  # values that have no average
            image = image.convert("RGBA" if transparent else "RGB")
        image = image.reduce(factor)
    if channels in (1, 3):
        flat = (_over_white(image) if transparent else image).convert("L" if channels == 1 else "RGB")
    else:
        if image.mode == "CMYK":
            raise UnreadableImage(f"expected {channels} channels, got CMYK, which is read as RGB only")
        flat = image.convert("RGBA" if transparent else "RGB") if image.mode in ("P", "PA") else image
    pixels = torch.from_numpy(np.array(flat))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()
    return to_channels(pixels.float().div_(127.5).sub_(1), channels)


def to_channels(image: Tensor, channels: int) -> Tensor:
    """Convert an image (C, H, W) to (channels, H, W): grey to RGB by repetition, RGB to grey by its luma.

    Raises:
        UnreadableImage: C is another number.
    """
    if len(image) == channels:
        return image
    if (len(image), channels) == (1, 3):
        return image.repeat(3, 1, 1)
    if (len(image), channels) == (3, 1):
        return torch.einsum("c,chw->hw", torch.tensor(LUMA).to(image), image)[None].clamp_(-1, 1)
    raise UnreadableImage(f"expected {channels} channel{'s' * (channels > 1)}, got {len(image)}")


def save_image(image: Tensor, path: str | os.PathLike[str]) -> None:
    """Write `image`, clamped to [-1, 1], with 8 bits in the format of the path's suffix (.png, .jpg, ...).

    An image (3, H, W) is RGB and (1, H, W) is grey. Other numbers of channels need .tif and the package tifffile.

    Raises:
        ValueError: another shape, NaN or infinite values, or a suffix that is not written.
    """
    suffix = os.path.splitext(path)[1].lower()
    colours = image.dim() == 3 and image.shape[0] in (1, 3)
    if not (colours or (image.dim() == 3 and suffix in (".tif", ".tiff") and len(image))):
        expected = "an image of shape (3, H, W) or (1, H, W), or .tif for other numbers of channels"
        raise ValueError(f"{path}: expected {expected}, got {tuple(image.shape)}")
    check_images(image.detach().clamp(-1, 1)[None], f"image for {path}")
    if Image.registered_extensions().get(suffix) not in Image.SAVE:
        raise ValueError(f"{path}: expected a file name that ends in .png, .jpg or the like, got {suffix!r}")
    pixels = ((image.detach().clamp(-1, 1).float().cpu() + 1) * 127.5).round().byte().numpy()
    if colours:
        Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(path, quality=95)
    else:
        write_tiff(pixels, path)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resize `image` (C, H, W) to (C, height, width), bicubic with antialiasing, and clamp it to [-1, 1]."""
    resized = F.interpolate(image[None], (height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized[0].clamp(-1, 1)


def center_square(image: Tensor, size: int) -> Tensor:
    """Crop the largest centred square of `image` (C, H, W) in [-1, 1] and resize it to (C, size, size).

    Raises:
        ValueError: another shape.
    """
    if image.ndim != 3:
        raise ValueError(f"expected an image (3, H, W), got shape {tuple(image.shape)}")
    height, width = image.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return resize(image[:, top : top + side, left : left + side], size, size)


def printable(name: str) -> str:
    """Replace what is no text in a file name, so that it can be printed and stored: gr\\udcfc.png."""
    return name.encode(errors="backslashreplace").decode()


def _name(file: str | os.PathLike[str] | BinaryIO, name: str | None) -> str:
    return printable(name or str(file if isinstance(file, (str, os.PathLike)) else getattr(file, "name", file)))


def _read(file: BinaryIO, channels: int, reduce_to: int | None) -> tuple[Tensor, Remarks]:
    if is_tiff(file) and tiff_header(file)[0] > PILLOW_BANDS:
        return _from_tiff(file, channels, reduce_to)
    file.seek(0)
    try:
        image = open_image(file)
    except UnidentifiedImageError as error:
        if not is_tiff(file):
            raise UnidentifiedImageError(why_unidentified(file)) from error
        return _from_tiff(file, channels, reduce_to)
    with image:
        if reduce_to:
            image.draft(None, (reduce_to, reduce_to))  # a JPEG is decoded at 1/2, 1/4 or 1/8 of its size
        tags = _tiff_tags(image)
        if tags and is_signed_byte(tags):
            raise UnreadableImage("signed 8-bit values, whose white level is unknown: store them as uint8")
        bands, bits = tiff_layout(tags)[:2] if tags else (len(image.getbands()), 8)
        stored = len(image.getbands())  # Pillow leaves out bands whose meaning a TIFF does not give
        has_more = channels not in (1, 3) and bands == channels and (bands > stored or bits > 8)
        if has_more or pillow_misreads(tags):
            return _from_tiff(file, channels, reduce_to)
        if channels not in (1, 3) and stored == 1 and image.format == "TIFF" and frames(image) == channels:
            return torch.cat([from_pil(page, 1, reduce_to) for page in ImageSequence.Iterator(image)]), {}
        keeps_8_of_16_bits = not _is_deep(image) and (bits > 8 or ";16" in str(vars(image).get("tile")))
        tensor = from_pil(image, channels, reduce_to)
        remarks = on_bands(bands, stored) | on_frames(image)
        if channels in (1, 3):
            remarks |= on_alpha(image)
        if keeps_8_of_16_bits:
            remarks |= on_dark_values(np.array(image.convert("RGB").getextrema(), np.uint16) * 257)
        elif _is_deep(image) and image.mode != "F":
            remarks |= on_dark_values(_deep_values(image, tags))
        return tensor, remarks


def _tiff_tags(image: Image.Image) -> Any:
    """Return the tags of a TIFF's page; other images and copies have none."""
    return vars(image).get("tag_v2", {}) if image.format == "TIFF" else {}


def _deep_values(image: Image.Image, tags: Any) -> NDArray[Any]:
    """Return the values (H, W) of grey of more than 8 bits as brightness; a colour declared transparent is white."""
    values = as_brightness(np.asarray(image), tags)
    transparent = image.info.get("transparency")
    return values if transparent is None else np.where(values == transparent, values.dtype.type(65535), values)


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")  # grey of more than 8 bits


def _from_tiff(file: BinaryIO, channels: int, reduce_to: int | None) -> tuple[Tensor, Remarks]:
    values, pages = read_tiff(file, channels)
    remarks = on_pages(pages) | (on_dark_values(values) if values.dtype == np.uint16 else {})
    return to_channels(_unit_range(values, reduce_to) * 2 - 1, channels), remarks


def _upright(image: Image.Image) -> Image.Image:
    """Rotate the image according to its EXIF orientation; damaged EXIF data are ignored."""
    image.load()
    try:
        return ImageOps.exif_transpose(image) if _ORIENTATION in image.getexif() else image
    except Exception:
        return image


def _over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _factor(sides: Sequence[int], reduce_to: int | None) -> int:
    """Return the largest whole factor by which the shorter side can be reduced; None: 1."""
    return max(1, min(sides) // reduce_to) if reduce_to else 1


def _unit_range(values: NDArray[Any], reduce_to: int | None) -> Tensor:
    """Scale pixels (..., H, W) to [0, 1], float32: 8 bits by 255, other integers by 65535; reduce them if asked."""
    if values.dtype == np.int8:
        raise UnreadableImage("signed 8-bit values, whose white level is unknown: store them as uint8")
    white = {"f": 1, "b": 1}.get(values.dtype.kind, 255 if values.dtype == np.uint8 else 65535)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= white):  # in this form NaN fails, too
        raise UnreadableImage(f"expected values from 0 to {white} ({values.dtype}), got {low} to {high}")
    if (factor := _factor(values.shape[-2:], reduce_to)) > 1:
        height, width = (side // factor for side in values.shape[-2:])
        squares = values[..., : height * factor, : width * factor].reshape(-1, height, factor, width, factor)
        values = squares.mean((2, 4), np.float32).reshape(*values.shape[:-2], height, width)
    return torch.from_numpy((values / white).astype(np.float32))
