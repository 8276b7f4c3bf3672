"""Figures: image grids that are scaled by whole factors only, charts in one style, and display with a caption.

The figures are made without pyplot. So no figure stays open, no backend is selected, and the user's matplotlib settings
are not changed. `show` also accepts a figure from `plt.subplots()`.
"""

from klvae_edu.plots.charts import bars, lines, maps
from klvae_edu.plots.figures import PALETTE, Pixels, figure, figure_to_image, render, show
from klvae_edu.plots.grids import image_grid, side_by_side, to_image

__all__ = [
    "PALETTE",
    "Pixels",
    "bars",
    "figure",
    "figure_to_image",
    "image_grid",
    "lines",
    "maps",
    "render",
    "show",
    "side_by_side",
    "to_image",
]
