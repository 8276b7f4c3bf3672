"""Diagrams of the parts of the autoencoder and of its training, in one style that is readable in grey.

Rounded boxes are tensors, boxes with corners are operations, dashed lines carry no gradient or only guide the eye.
Shapes are those of Stable Diffusion's autoencoder for an image of 256 × 256 pixels; a
test compares them with the model.
"""

from __future__ import annotations

from klvae_edu.diagrams import model, training  # noqa: F401  (they register their diagrams, in this order)
from klvae_edu.diagrams.sketch import DIAGRAMS
from klvae_edu.plots import show

__all__ = ["DIAGRAMS", "show_diagram"]


def show_diagram(name: str) -> None:
    """Display the diagram `name`, such as "pipeline", with its caption.

    Raises:
        ValueError: no such diagram; the message lists them.
    """
    if name not in DIAGRAMS:
        raise ValueError(f"there is no diagram {name!r}; there are {', '.join(DIAGRAMS)}")
    draw, caption = DIAGRAMS[name]
    show(draw(), alt=caption)
