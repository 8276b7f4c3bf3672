"""Formats of image files: which are read, up to how many pixels, and what reads those that Pillow alone does not read.

The content of a file decides, not its name. HEIC needs the package pillow-heif, and TIFFs of several bands need
tifffile. Both are optional. They are imported when a file needs them.
"""

from __future__ import annotations

import functools
import math
import os
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, features

# Names in Pillow. Its other formats are not opened: for EPS, Pillow runs Ghostscript.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "HEIF", "JPEG2000", "PPM", "ICO", "PSD", "TGA")
MAX_PIXELS = "KLVAE_EDU_MAX_PIXELS"  # environment variable: the largest number of pixels of an image that is read
_TO_READ_IT = f"Shrink it; or if you trust it, set the environment variable {MAX_PIXELS} to its number of pixels"
PILLOW_BANDS = 6  # most bands of a TIFF; of files with more, Pillow writes an error to the log
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _MEANING, _ORIENTATION = 256, 257, 258, 259, 262, 274  # tags of a TIFF
_BANDS, _PLANES, _SAMPLE_KIND = 277, 284, 339
_WHITE_IS_ZERO, _CMYK = 0, 5  # meanings of the bands of a TIFF
_SAMPLE_KINDS = {1: "uint", 2: "int", 3: "float"}
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def image_suffixes() -> set[str]:
    """List the file name suffixes, such as ".png", of the image formats that can be read here."""
    register_heif()
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}


@functools.cache
def register_heif() -> bool:
    """Let Pillow read HEIC, if pillow-heif is installed; tell whether it is."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def open_image(file: BinaryIO) -> Image.Image:
    """Open an image with Pillow, whatever its name, if it is in one of `FORMATS`.

    Raises:
        UnidentifiedImageError: it is in none of them.
        DecompressionBombError: it has more pixels than `pixel_limit`.
    """
    pixel_limit()  # Pillow checks it
    Image.init()
    if _brand(file) in _HEIC_BRANDS:
        register_heif()
    file.seek(0)
    try:
        return Image.open(file, formats=[kind for kind in FORMATS if kind in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise Image.DecompressionBombError(f"{error} {_TO_READ_IT}") from error


def pixel_limit() -> float:
    """Return the largest number of pixels of an image that is read: `MAX_PIXELS`, or without it twice Pillow's limit.

    Pillow warns of an image above its limit, `MAX_IMAGE_PIXELS`, and refuses it above twice the limit.

    Raises:
        ValueError: `MAX_PIXELS` is no whole number.
    """
    if given := os.environ.get(MAX_PIXELS):
        if not given.isdecimal():
            raise ValueError(f"{MAX_PIXELS}: expected a whole number, got {given!r}")
        Image.MAX_IMAGE_PIXELS = math.ceil(int(given) / 2)
    return math.inf if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


def why_unidentified(file: BinaryIO) -> str:
    """Say why this file is in none of `FORMATS`, and what reads it."""
    brand = _brand(file)
    if brand in _HEIC_BRANDS and not register_heif():
        return "a HEIC image, which Pillow reads with another package: pip install pillow-heif"
    if brand == b"avif" and not features.check("avif"):
        return "an AVIF image, which Pillow reads from version 11.3 on: pip install --upgrade pillow"
    return f"not in any image format that is read ({', '.join(FORMATS)})"


def is_tiff(file: BinaryIO) -> bool:
    """Tell whether a file begins like a TIFF or a BigTIFF."""
    file.seek(0)
    return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def tiff_header(file: BinaryIO) -> tuple[int, int, str]:
    """Read the `tiff_layout` of a TIFF's first page from its header.

    Raises:
        DecompressionBombError: it has more pixels than `pixel_limit`.
    """
    file.seek(0)
    head = file.read(8)
    tags = TiffImagePlugin.ImageFileDirectory_v2(head + (file.read(8) if 43 in head[2:4] else b""))
    file.seek(tags.next)
    tags.load(file)
    pixels, limit = int(tags.get(_WIDTH, 0)) * int(tags.get(_HEIGHT, 0)), pixel_limit()
    if pixels > limit:  # tifffile does not check it
        raise Image.DecompressionBombError(
            f"Image size ({pixels} pixels) exceeds limit of {limit} pixels. {_TO_READ_IT}"
        )
    return tiff_layout(tags)


def tiff_layout(tags: Any) -> tuple[int, int, str]:
    """Return the number of bands, the bits of a value, and both in words: 5 bands of uint8."""
    bands, bits = int(tags.get(_BANDS, 1)), _largest(tags, _BITS)
    kind = _SAMPLE_KINDS.get(_largest(tags, _SAMPLE_KIND), "unknown type ")
    return bands, bits, f"{bands} band{'s' * (bands > 1)} of {kind}{bits}"


def _largest(tags: Any, tag: int) -> int:
    values = tags.get(tag, 1)  # one for each band, or one for all
    return int(values if isinstance(values, int) else max(values))


def as_brightness(values: NDArray[Any], tags: Any) -> NDArray[Any]:
    """Return the values of a TIFF; those that are darkness, with zero for white, are subtracted from the highest."""
    if tags.get(_MEANING) != _WHITE_IS_ZERO:
        return values
    if values.dtype.kind == "b":
        return ~values
    highest = 1 if values.dtype.kind == "f" else 2 ** tiff_layout(tags)[1] - 1
    return (highest - values).astype(values.dtype)


def is_signed_byte(tags: Any) -> bool:
    """Tell whether a TIFF has integers from -128 to 127, which Pillow takes for 0 to 255."""
    return _largest(tags, _BITS) <= 8 and _SAMPLE_KINDS.get(_largest(tags, _SAMPLE_KIND)) == "int"


def upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn and mirror an image (C, H, W) according to its EXIF orientation, 1 to 8; others change nothing."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(1, 2)
    if orientation in (3, 4, 7, 8):
        values = values[:, ::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, :, ::-1]
    return values


def pillow_misreads(tags: Any) -> bool:
    """Tell whether a TIFF is uncompressed planes of more than 8 bits: Pillow 13 takes each byte for a pixel."""
    bands, bits, _ = tiff_layout(tags)
    return bands > 1 and bits > 8 and tags.get(_PLANES) == 2 and tags.get(_COMPRESSION, 1) == 1


def read_tiff(file: BinaryIO, channels: int) -> tuple[NDArray[Any], int]:
    """Read the first page of a TIFF as it is stored, (C, H, W), and return it with the number of pages.

    Raises:
        ValueError: the page has a number of bands that cannot become `channels`, or tifffile is not installed.
    """
    bands, _, layout = tiff_header(file)
    if bands != channels and {bands, channels} != {1, 3}:
        raise ValueError(f"expected {channels} channel{'s' * (channels > 1)}, got {layout}")
    try:
        import tifffile
    except ImportError as error:
        raise ValueError(f"a TIFF of {layout}, which Pillow does not read: pip install tifffile") from error
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        page: Any = tiff.pages[0]
        values = np.asarray(page.asarray())
        if page.axes not in ("YX", "YXS", "SYX"):
            raise ValueError(f"expected a page with the axes YX, YXS or SYX, got {page.axes}")
        tags = {tag.code: tag.value for tag in page.tags}
        if tags.get(_MEANING) == _CMYK:
            raise ValueError(f"expected {channels} channels, got CMYK, which is read as RGB only")
        bands_first = values if page.axes == "SYX" else values.reshape(*values.shape[:2], -1).transpose(2, 0, 1)
        bands_first = as_brightness(bands_first, tags)
        return np.ascontiguousarray(upright(bands_first, tags.get(_ORIENTATION, 1))), len(tiff.pages)


def write_tiff(pixels: NDArray[np.uint8], path: str | os.PathLike[str]) -> None:
    """Write 8-bit pixels (C, H, W) as a TIFF of C bands. Raises `ValueError` without tifffile."""
    try:
        import tifffile
    except ImportError as error:
        raise ValueError(f"{path}: {len(pixels)} channels need another package: pip install tifffile") from error
    tifffile.imwrite(path, pixels.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig")


def _brand(file: BinaryIO) -> bytes:
    """Return the brand of an ISO media file, such as b"heic", or nothing."""
    file.seek(0)
    head = file.read(12)
    return head[8:12] if head[4:8] == b"ftyp" else b""
