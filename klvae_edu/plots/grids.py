"""Grids of images, scaled by whole factors only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from klvae_edu.plots.figures import DPI, STYLE, Pixels

_MIN_CELL_SIDE = 128  # pixels: smaller images are magnified up to about this side
_GAP, _LINE_HEIGHT, _CHARACTER_WIDTH = 8, 18, 8  # pixels: between images, of a line of text, of a character


def to_image(tensor: Tensor) -> Pixels:
    """Convert an image (3, H, W) or (1, H, W) in [-1, 1] to (H, W, 3) uint8.

    Values outside the range are clamped. NaN becomes black.

    Raises:
        ValueError: another shape, or not floating-point.
    """
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3) or not tensor.is_floating_point():
        raise ValueError(
            "expected an image of shape (3, H, W) or (1, H, W), floating-point values in [-1, 1]; "
            f"got shape {tuple(tensor.shape)} in {tensor.dtype}"
        )
    values = tensor.detach().to("cpu", torch.float32).nan_to_num(nan=-1.0).clamp(-1.0, 1.0)
    pixels = ((values + 1.0) * 127.5).round().to(torch.uint8)
    return pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()


def image_grid(
    rows: Sequence[Sequence[Tensor | Pixels]] | Sequence[Tensor],
    *,
    row_labels: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
) -> Figure:
    """Draw rows of images. Each pixel becomes a square of k×k screen pixels, k a whole number: no image is resampled.

    Args:
        rows: each row is a sequence of images or a batch (B, 3, H, W). An image is (3, H, W) or (1, H, W) in [-1, 1],
            or (H, W, 3) uint8. Sizes may differ: each image is magnified by the largest k that fits into its cell.
            A row of images with another number of channels (C, H, W) becomes C rows of grey images, which are called
            "band 1" to "band C".
        row_labels: one for each row, on its left.
        column_titles: one for each column, above it.
        captions: one row of short texts for each row of images; each text is drawn below its image (the last band).

    Raises:
        ValueError: no images, an image of another kind, or a wrong number of labels.
    """
    rows = [[*row] for row in rows]
    if not rows or not all(rows):
        raise ValueError("expected at least one row of at least one image, got an empty one")
    columns = max(len(row) for row in rows)
    _check_count("row_labels", row_labels, len(rows))
    _check_count("column_titles", column_titles, columns)
    _check_count("captions", captions, len(rows))
    rows, row_labels, captions = _in_bands(rows, row_labels, captions)
    pixels = [[_to_pixels(image) for image in row] for row in rows]

    # The layout, in pixels: every cell has the size of the largest image, magnified.
    magnified = max(1, _MIN_CELL_SIDE // max(max(image.shape[:2]) for row in pixels for image in row))
    height = magnified * max(image.shape[0] for row in pixels for image in row)
    width = magnified * max(image.shape[1] for row in pixels for image in row)
    longest = max(map(len, [*column_titles, *(text for row in captions for text in row)]), default=0)
    pitch = max(width, _CHARACTER_WIDTH * longest) + _GAP
    left = _CHARACTER_WIDTH * max(map(len, row_labels), default=0)
    above, below = (_LINE_HEIGHT if texts else 0 for texts in (column_titles, captions))
    full_width = left + columns * pitch + _GAP
    full_height = above + len(pixels) * (height + below + _GAP) + _GAP

    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(full_width / DPI, full_height / DPI))

        def text(x: float, y: float, words: str, **alignment: Any) -> None:
            fig.text(x / full_width, 1 - y / full_height, words, fontsize=9, **alignment)

        for i, row in enumerate(pixels):
            top = above + _GAP + i * (height + below + _GAP)
            if row_labels:
                text(left, top + height / 2, row_labels[i], ha="right", va="center")
            for j, image in enumerate(row):
                middle = left + _GAP + j * pitch + (pitch - _GAP) / 2
                if i == 0 and column_titles:
                    text(middle, above + _GAP / 2, column_titles[j], ha="center", va="bottom")
                if captions and j < len(captions[i]):
                    text(middle, top + height + 2, captions[i][j], ha="center", va="top")
                _place(fig, image, middle, top + height / 2, min(height // image.shape[0], width // image.shape[1]))
    return fig


def side_by_side(images: Mapping[str, Tensor | Pixels]) -> Figure:
    """Draw one row of images, each with its name above it."""
    return image_grid([list(images.values())], column_titles=list(images))


def _place(fig: Figure, image: Pixels, x: float, y: float, scale: int) -> None:
    """Draw `image`, magnified by `scale`, with its centre near (x, y): pixels from the top left."""
    image = image.repeat(scale, axis=0).repeat(scale, axis=1)
    full_height = round(fig.get_figheight() * DPI)
    left, top = round(x - image.shape[1] / 2), round(y - image.shape[0] / 2)
    fig.figimage(image, left, full_height - top - image.shape[0], origin="upper")


def _in_bands(
    rows: list[list[Tensor | Pixels]], labels: Sequence[str], captions: Sequence[Sequence[str]]
) -> tuple[list[list[Tensor | Pixels]], list[str], list[Sequence[str]]]:
    """Replace each row of images with other than 1 or 3 channels by a row of grey images for each channel."""
    split, names, texts = [], [], []
    for row, label, below in zip(rows, labels or [""] * len(rows), captions or [()] * len(rows), strict=True):
        counts = {len(image) for image in row if isinstance(image, Tensor) and image.ndim == 3} - {1, 3}
        if not counts:
            split.append(row)
            names.append(label)
            texts.append(below)
            continue
        (bands, *others) = counts
        if others or not all(isinstance(image, Tensor) and len(image) == bands for image in row):
            raise ValueError(f"expected images of one number of channels in a row, got {sorted(map(len, row))}")
        split += [[image[band : band + 1] for image in row] for band in range(bands)]
        names += [f"{label} band {band + 1}".strip() for band in range(bands)]
        texts += [*[()] * (bands - 1), below]
    return split, names if any(names) else [], texts if any(texts) else []


def _to_pixels(image: Tensor | Pixels) -> Pixels:
    """Convert one of the accepted kinds of image to (H, W, 3) uint8, or raise a `ValueError`."""
    if isinstance(image, Tensor):
        return to_image(image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.shape} in {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"expected a Tensor (3, H, W) or an array (H, W, 3) of uint8, got {got}")
    return image


def _check_count(name: str, texts: Sequence[Any], expected: int) -> None:
    """Raise a `ValueError` unless there are no `texts` or `expected` ones."""
    if texts and len(texts) != expected:
        raise ValueError(f"{name}: expected {expected}, got {len(texts)}")
