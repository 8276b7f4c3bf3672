"""Remarks on images that are read, but not whole or perhaps not as they were meant: what is said, and how often.

`load_image` warns about each remark. A data set counts them: one warning for each kind instead of one for each image.
"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Remarks = dict[str, str]  # kind of the remark: its detail for this image

_DARK = 2**14  # 16-bit images whose values all stay below this may have fewer bits, and look nearly black
_WHOLE_IN_FIRST_FRAME = ("MPO", "PSD")  # their further frames are a gain map, another view, or layers


_said: set[str] = set()


def warn_once(message: str, stacklevel: int = 2) -> None:
    """Warn, but of each text once in a process; Python repeats a text after warnings were caught in between."""
    if message not in _said:
        _said.add(message)
        warnings.warn(message, stacklevel=stacklevel + 1)


class RemarkCount:
    """Images of a data set with remarks, by kind.

    The first image of a kind brings a warning, in each process that reads.

    Attributes:
        images: number of images by kind of the remark.
    """

    def __init__(self) -> None:
        self.images: Counter[str] = Counter()

    def add(self, name: str, remarks: Remarks) -> None:
        """Count the remarks on image `name`."""
        for kind, detail in remarks.items():
            if kind not in self.images:
                warnings.warn(f"{name}: {kind} ({detail}). Further images of this kind are not named", stacklevel=4)
            self.images[kind] += 1

    def summary(self) -> str | None:
        """Summarise in one line: each kind with its number of images. None: there are none."""
        return "; ".join(f"{count} × {kind}" for kind, count in self.images.items()) or None


def on_bands(bands: int, read: int) -> Remarks:
    """Remark that a TIFF of `bands` bands has more than the `read` ones."""
    return {"bands without a meaning are left out": f"{bands - read} of {bands}"} if bands > read else {}


def on_pages(pages: int) -> Remarks:
    """Remark that there are more pages or frames than the first."""
    return {"only the first page or frame is read": f"1 of {pages}"} if pages > 1 else {}


def on_frames(image: Image.Image) -> Remarks:
    """Remark that an image has more pages or frames than the first."""
    return {} if image.format in _WHOLE_IN_FIRST_FRAME else on_pages(frames(image))


def frames(image: Image.Image) -> int:
    """Count the pages or frames of an image; those behind a damage are not counted."""
    try:
        return getattr(image, "n_frames", 1) if getattr(image, "is_animated", False) else 1
    except Exception:  # decoders raise many types of exceptions on damaged files
        return 1


def on_dark_values(values: NDArray[Any]) -> Remarks:
    """Remark that 16-bit values are small, and probably of fewer bits."""
    high = int(values.max())
    if not 0 < high < _DARK:
        return {}
    bits = high.bit_length()
    detail = f"values up to {high} of 65535; if these are {bits}-bit values, multiply them by {2 ** (16 - bits)}"
    return {"16-bit values of less than a quarter of the range, which look nearly black": detail}


def on_enlarged(image: Tensor, size: int) -> Remarks:
    """Remark that the shorter side of an image (C, H, W) has less than `size` pixels."""
    height, width = image.shape[-2:]
    return {f"images smaller than {size} pixels are enlarged": f"{width}x{height}"} if min(height, width) < size else {}


def on_alpha(image: Image.Image) -> Remarks:
    """Remark that the fourth band of a TIFF is marked as alpha, but less than half of it is opaque or transparent."""
    if image.format != "TIFF" or image.mode != "RGBA":
        return {}
    counts = image.getchannel(3).histogram()
    if 2 * (counts[0] + counts[255]) >= sum(counts):
        return {}
    kind = "the fourth band is marked as alpha, so the picture is laid over white by it"
    return {kind: "most of its values are neither 0 nor 255: if it is near infrared, remove it or read 4 channels"}
