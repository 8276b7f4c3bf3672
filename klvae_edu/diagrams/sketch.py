"""A sheet on which boxes, arrows and grids are drawn in one style, and the register of the diagrams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

TENSOR, OPERATION, LOSS, LINE = "white", "#cfe3f1", "#f6d9b8", "#222222"
HATCHED = "///"  # the look of cells that are padding
DIAGRAMS: dict[str, tuple[Callable[[], Figure], str]] = {}  # the drawing of each diagram, and its caption


def diagram(caption: str) -> Callable[[Callable[[], Figure]], Callable[[], Figure]]:
    """Register a drawing under its function's name, with its caption."""

    def register(draw: Callable[[], Figure]) -> Callable[[], Figure]:
        DIAGRAMS[draw.__name__] = (draw, caption)
        return draw

    return register


class Sketch:
    """A sheet of `width` × `height` units on which boxes and arrows are placed by their centres; a unit is 0.1 inch."""

    def __init__(self, width: float, height: float) -> None:
        with matplotlib.rc_context({"figure.dpi": 100}):
            self.figure = Figure(figsize=(width / 10, height / 10), facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
        self.axes.set_axis_off()

    def write(self, x: float, y: float, words: str, size: float = 9, **style: Any) -> None:
        self.axes.text(x, y, words, **{"ha": "center", "va": "center", "fontsize": size, "color": LINE, **style})

    def box(self, x: float, y: float, words: str, w: float = 11, h: float = 5, fill: str = OPERATION) -> None:
        """Draw an operation, or with `fill=TENSOR` a tensor."""
        style = "round,pad=0,rounding_size=1.2" if fill == TENSOR else "square,pad=0"
        self.axes.add_patch(
            FancyBboxPatch((x - w / 2, y - h / 2), w, h, style, facecolor=fill, edgecolor=LINE, linewidth=1)
        )
        self.write(x, y, words)

    def arrow(self, *points: tuple[float, float], dashed: bool = False, head: bool = True) -> None:
        """Draw a line through `points`, with a head at the last one."""
        style: Any = {"color": LINE, "linewidth": 1.2, "linestyle": (0, (4, 2)) if dashed else "-"}
        self.axes.plot(*zip(*points, strict=True), **style, solid_capstyle="butt")
        if head:
            arrow = {"arrowstyle": "-|>", "color": LINE, "shrinkA": 0, "shrinkB": 0, "linewidth": 0.1}
            (x, y), (x1, y1) = points[-1], points[-2]
            length = max(abs(x1 - x), abs(y1 - y)) or 1
            self.axes.annotate("", (x, y), (x + (x1 - x) / length, y + (y1 - y) / length), arrowprops=arrow)

    def chain(self, y: float, items: Sequence[tuple[float, str, float, str]], h: float = 5) -> None:
        """Draw boxes (x, words, width, fill) from left to right, joined by arrows."""
        for x, words, w, fill in items:
            self.box(x, y, words, w, h, fill)
        for (x, _, w, _), (following, _, next_w, _) in pairwise(items):
            self.arrow((x + w / 2, y), (following - next_w / 2, y))

    def grid(self, x: float, y: float, n: int, cell: float, shaded: Callable[[int, int], str]) -> None:
        """Draw n × n cells from the upper left corner (x, y); `shaded` gives a cell's colour or HATCHED."""
        for row in range(n):
            for column in range(n):
                look = shaded(row, column)
                style: Any = {"hatch": look} if look == HATCHED else {"facecolor": look}
                place = (x + column * cell, y - (row + 1) * cell)
                frame = {"facecolor": TENSOR, "edgecolor": LINE, "linewidth": 0.8}
                self.axes.add_patch(Rectangle(place, cell, cell, **frame | style))
