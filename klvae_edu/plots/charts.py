"""Charts of numbers: curves, bars, and fields as colours."""

from __future__ import annotations

from collections.abc import Container, Mapping
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from klvae_edu.plots.figures import PALETTE, figure


def lines(
    curves: Mapping[str, Any],
    x: Any = None,
    *,
    xlabel: str = "",
    ylabel: str = "",
    log: bool = False,
    dashed: Container[str] = (),
    size: tuple[float, float] = (6.0, 3.5),
) -> Figure:
    """Plot curves over a common axis, with a legend where there are several.

    Args:
        curves: values of each curve, by its label.
        x: positions of the values; None: 0, 1, 2, …
        log: use a logarithmic vertical axis.
        dashed: labels of the curves that are dashed, such as references. The others have styles of their own, so that
            they can be told apart without colours.
    """
    fig, axes = figure(size=size)
    styles = cycle(("-", (0, (6, 1)), (0, (3, 1, 1, 1)), (0, (1, 1))))
    for label, values in curves.items():
        values = np.asarray(values)
        style: Any = "--" if label in dashed else next(styles)
        axes.plot(np.arange(len(values)) if x is None else x, values, linestyle=style, label=label)
    axes.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
    if len(curves) > 1:
        axes.legend()
    return fig


def bars(
    values: Mapping[str, float], *, xlabel: str = "", log: bool = False, size: tuple[float, float] | None = None
) -> Figure:
    """Plot one horizontal bar for each label, from the top in the order of `values`."""
    fig, axes = figure(size=size or (6.0, 0.9 + 0.3 * len(values)))
    axes.barh([*values], [float(value) for value in values.values()], color=PALETTE[0])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(xlabel=xlabel, xscale="log" if log else "linear")
    return fig


def maps(
    fields: Mapping[str, Any],
    *,
    label: str = "",
    shared: bool = True,
    cmap: str = "viridis",
    size: tuple[float, float] | None = None,
) -> Figure:
    """Plot fields of numbers (H, W) side by side as colours, each below its title.

    Args:
        fields: by title.
        label: label of the colour bar.
        shared: use one range of colours and one colour bar for all; else each field has its own.
    """
    values = {title: np.asarray(field) for title, field in fields.items()}
    fig, axes = figure(1, len(values), size=size or (2.4 * len(values) + 0.8, 2.6))
    limits = (min(map(np.nanmin, values.values())), max(map(np.nanmax, values.values()))) if shared else ()
    for ax, (title, field) in zip(np.atleast_1d(axes), values.items(), strict=True):
        drawn = ax.imshow(field, cmap, **dict(zip(("vmin", "vmax"), limits, strict=False)))
        ax.set(title=title, xticks=[], yticks=[])
        ax.grid(visible=False)
        if not shared:
            fig.colorbar(drawn, ax=ax, label=label)
    if shared:
        fig.colorbar(drawn, ax=axes, label=label)
    return fig
