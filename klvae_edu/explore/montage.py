"""Combine pictures into one array of pixels. This is faster than a matplotlib figure, which panels need."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from klvae_edu.plots import Pixels, to_image

_ORANGE = (213, 94, 0)  # the second of `plots.PALETTE`
_FRAME = 2  # thickness in pixels
_GAP, _SMALL_GAP = 8, 2 * _FRAME  # pixels between pictures side by side, and in a montage (room for a frame)


def side_by_side(*pictures: Tensor | Pixels) -> Pixels:
    """Place pictures, each (3, H, W) in [-1, 1] or (H, W, 3) uint8, in a row on white: (H, W, 3) uint8."""
    pixels = [to_image(picture) if isinstance(picture, Tensor) else picture for picture in pictures]
    row = _white(
        max(picture.shape[0] for picture in pixels),
        sum(picture.shape[1] for picture in pixels) + _GAP * (len(pixels) - 1),
    )
    left = 0
    for picture in pixels:
        row[: picture.shape[0], left : left + picture.shape[1]] = picture
        left += picture.shape[1] + _GAP
    return row


def montage(pictures: Sequence[Pixels], columns: int, magnified: int = 1, marked: int | None = None) -> Pixels:
    """Arrange pictures of the same size in rows on white.

    Args:
        pictures: each (H, W, 3) uint8.
        columns: number of pictures in a row.
        magnified: integer factor by which pixels are enlarged.
        marked: number of the picture that gets a frame; None: no frame.
    """
    height, width = (magnified * side for side in pictures[0].shape[:2])
    rows = math.ceil(len(pictures) / columns)
    canvas = _white(rows * (height + _SMALL_GAP), columns * (width + _SMALL_GAP))
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        top, left = row * (height + _SMALL_GAP) + _FRAME, column * (width + _SMALL_GAP) + _FRAME
        large = picture.repeat(magnified, axis=0).repeat(magnified, axis=1)
        canvas[top : top + height, left : left + width] = large
        if number == marked:
            frame(canvas, top, left, height, width)
    return canvas


def frame(picture: Pixels, top: int, left: int, height: int, width: int) -> None:
    """Draw an orange frame around a rectangle of `picture`, in place; the inside of the rectangle is not changed."""
    rectangle = picture[top : top + height, left : left + width]
    inside = rectangle.copy()
    bottom, right = top + height + _FRAME, left + width + _FRAME
    picture[max(top - _FRAME, 0) : bottom, max(left - _FRAME, 0) : right] = _ORANGE
    rectangle[:] = inside


def _white(height: int, width: int) -> Pixels:
    return np.full((height, width, 3), 255, np.uint8)
