"""Pictures: image grids with honest pixels, plain axes, and `show`, which gives every figure its alt text.

The figures here are made without pyplot, so that nothing stays open, no backend is chosen, and the reader's own
matplotlib settings are left alone. A figure from `plt.subplots()` can be shown with `show` as well.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
import torch
from cycler import cycler
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8]

# Okabe & Ito 2008: eight colours that stay apart for colour-blind readers. The yellow is last: it is faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")

DPI = 100
_STYLE: Any = {
    "figure.dpi": DPI,
    "figure.facecolor": "white",
    "savefig.dpi": "figure",
    "savefig.facecolor": "auto",
    "savefig.bbox": None,
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "font.size": 10,
    "axes.titlesize": 11,
}
_JPEG_QUALITY = 85
_SMALLEST_CELL = 128  # pixels: smaller images are magnified up to about this side
_GAP, _LINE, _CHARACTER = 8, 18, 8  # pixels: between images, a line of text, a character's width


def figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.0, 3.5)) -> tuple[Figure, Any]:
    """An empty figure and its axes, in the course's style.

    Args:
        rows, columns: of axes.
        size: width and height in inches, at 100 dots per inch.

    Returns:
        (figure, axes): one `Axes`, or an array of them, as from `plt.subplots`.
    """
    with matplotlib.rc_context(_STYLE):
        fig = Figure(figsize=size, layout="constrained")
        return fig, fig.subplots(rows, columns)


def show(fig: Figure, alt: str, format: Literal["png", "jpeg"] = "png") -> None:
    """Display `fig` as one image output with alt text, and close it.

    The same figure gives the same bytes each time. Outside IPython there is nowhere to display it: it is only closed.

    Args:
        fig: any matplotlib figure.
        alt: what the picture shows, in a sentence, for readers who do not see it. It goes into the output's metadata.
        format: "jpeg" makes image grids several times smaller; text and lines are sharper in "png".

    Raises:
        ValueError: no alt text, or an unknown format.
    """
    if not alt.strip():
        raise ValueError("alt: expected a sentence that says what the picture shows, got an empty text")
    if format not in ("png", "jpeg"):
        raise ValueError(f"format: expected 'png' or 'jpeg', got {format!r}")
    if _in_ipython():
        from IPython.display import display

        mime = f"image/{format}"
        display({mime: render(fig, format)}, raw=True, metadata={mime: {"alt": alt}})  # type: ignore[no-untyped-call]
    if "matplotlib.pyplot" in sys.modules:  # otherwise no figure is pyplot's, and there is nothing to close
        sys.modules["matplotlib.pyplot"].close(fig)


def render(fig: Figure, format: Literal["png", "jpeg"] = "png") -> bytes:
    """The picture's bytes: the same each time, without the notes on date and software that would change them."""
    options: dict[str, Any] = {"metadata": {"Software": None}}
    if format == "jpeg":
        options = {"pil_kwargs": {"quality": _JPEG_QUALITY}}
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        fig.savefig(buffer, format=format, **options)
    return buffer.getvalue()


def to_image(tensor: Tensor) -> Pixels:
    """(3, H, W) or (1, H, W) in [-1, 1] -> (H, W, 3) uint8. Values outside are clipped, NaN is black.

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


def figure_to_image(fig: Figure) -> Pixels:
    """Render `fig` into pixels, (H, W, 3) uint8: a frame for an `Explorer`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with matplotlib.rc_context(_STYLE):
        canvas = FigureCanvasAgg(fig)
        canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def image_grid(
    rows: Sequence[Sequence[Tensor | Pixels]] | Sequence[Tensor],
    *,
    row_labels: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
) -> Figure:
    """Rows of images, each pixel a square of k×k screen pixels (k a whole number): nothing is smoothed or shrunk.

    Args:
        rows: each a sequence of images or a batch (B, 3, H, W). An image is (3, H, W) or (1, H, W) in [-1, 1], or
            (H, W, 3) uint8. Sizes may differ: a smaller image is magnified as far as it fits its cell.
        row_labels: one for each row, at its left.
        column_titles: one for each column, above it.
        captions: rows of texts, one for each image, below it; keep them short.

    Raises:
        ValueError: no images, or labels whose number does not match.
    """
    pixels = [[_pixels(image) for image in row] for row in rows]
    if not pixels or not all(pixels):
        raise ValueError("expected at least one row of at least one image, got an empty one")
    columns = max(len(row) for row in pixels)
    _check_count("row_labels", row_labels, len(pixels))
    _check_count("column_titles", column_titles, columns)
    _check_count("captions", captions, len(pixels))

    magnified = max(1, _SMALLEST_CELL // max(max(image.shape[:2]) for row in pixels for image in row))
    height = magnified * max(image.shape[0] for row in pixels for image in row)
    width = magnified * max(image.shape[1] for row in pixels for image in row)
    longest = max(map(len, [*column_titles, *(text for row in captions for text in row)]), default=0)
    pitch = max(width, _CHARACTER * longest) + _GAP
    left = _CHARACTER * max(map(len, row_labels), default=0)
    above, below = (_LINE if texts else 0 for texts in (column_titles, captions))
    full_width = left + columns * pitch + _GAP
    full_height = above + len(pixels) * (height + below + _GAP) + _GAP

    with matplotlib.rc_context(_STYLE):
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
    """One row of images, each with its name above it."""
    return image_grid([list(images.values())], column_titles=list(images))


def _place(fig: Figure, image: Pixels, x: float, y: float, scale: int) -> None:
    """Draw `image` with its centre near (x, y), in pixels from the top left, each of its pixels scale×scale."""
    image = image.repeat(scale, axis=0).repeat(scale, axis=1)
    full_height = round(fig.get_figheight() * DPI)
    left, top = round(x - image.shape[1] / 2), round(y - image.shape[0] / 2)
    fig.figimage(image, left, full_height - top - image.shape[0], origin="upper")


def _pixels(image: Tensor | Pixels) -> Pixels:
    if isinstance(image, Tensor):
        return to_image(image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.shape} in {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"expected a Tensor (3, H, W) or an array (H, W, 3) of uint8, got {got}")
    return image


def _check_count(name: str, texts: Sequence[Any], expected: int) -> None:
    if texts and len(texts) != expected:
        raise ValueError(f"{name}: expected {expected}, got {len(texts)}")


def _in_ipython() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None
