"""Figures in one style, shown with a caption, and rendered to the same bytes every time."""

from __future__ import annotations

import html
import io
import sys
from typing import Any, Literal

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

# Okabe & Ito 2008: eight colours that colour-blind readers can distinguish. Yellow is last: it is pale on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")

DPI = 100
STYLE: Any = {
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


def figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.0, 3.5)) -> tuple[Figure, Any]:
    """Create an empty figure with axes, in the style of the course.

    Args:
        rows, columns: numbers of rows and columns of axes.
        size: width and height in inches, at 100 dots per inch.

    Returns:
        The figure and its axes: one `Axes`, or an array of them, as from `plt.subplots`.
    """
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=size, layout="constrained")
        return fig, fig.subplots(rows, columns)


def show(fig: Figure, alt: str, format: Literal["png", "jpeg"] = "png") -> None:
    """Display `fig` with a caption below it, and close it.

    The same figure always gives the same bytes. Outside IPython the figure is closed without being displayed.

    Args:
        fig: any matplotlib figure.
        alt: the caption: sentences that describe the picture, also for readers who cannot see it. It is an output of
            its own, because JupyterLab and nbconvert ignore the alt text of a picture, which is stored as well.
        format: "jpeg" makes image grids several times smaller; text and lines are sharper in "png".

    Raises:
        ValueError: `alt` is empty, or `format` is unknown.
    """
    if not alt.strip():
        raise ValueError("alt: expected a sentence that describes the picture, got an empty text")
    if format not in ("png", "jpeg"):
        raise ValueError(f"format: expected 'png' or 'jpeg', got {format!r}")
    if _in_ipython():
        from IPython.display import display

        mime = f"image/{format}"
        caption = {"text/html": f"<p><small>{html.escape(alt)}</small></p>", "text/plain": alt}
        display({mime: render(fig, format)}, raw=True, metadata={mime: {"alt": alt}})  # type: ignore[no-untyped-call]
        display(caption, raw=True)  # type: ignore[no-untyped-call]
    if "matplotlib.pyplot" in sys.modules:  # only then the figure can be one of pyplot's
        sys.modules["matplotlib.pyplot"].close(fig)


def render(fig: Figure, format: Literal["png", "jpeg"] = "png") -> bytes:
    """Encode `fig` as PNG or JPEG. The same figure always gives the same bytes: no date or software is stored."""
    options: dict[str, Any] = {"metadata": {"Software": None}}
    if format == "jpeg":
        options = {"pil_kwargs": {"quality": _JPEG_QUALITY}}
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        fig.savefig(buffer, format=format, **options)
    return buffer.getvalue()


def figure_to_image(fig: Figure) -> Pixels:
    """Render `fig` to pixels, (H, W, 3) uint8, such as a frame for an `Explorer`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with matplotlib.rc_context(STYLE):
        canvas = FigureCanvasAgg(fig)
        canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def _in_ipython() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None
