"""Other colours for training images: for sources with few of them, which a model would learn to be blind to.

Seven photographs have no meadow among them. A model that is trained on these alone makes green brown.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from klvae_edu.data.crops import NAMES_IN_REPORT, IndexedImages

PALEST, STRONGEST = 0.5, 4.0  # times the saturation, uniform in its logarithm: flowers are far from a studio's colours


class Recoloured(IndexedImages):
    """`images`, a `share` of them with another hue and saturation; which and how is a function of (seed, index)."""

    def __init__(self, images: IndexedImages, share: float, *, seed: int) -> None:
        super().__init__(images.size, seed=seed, length=len(images))
        self.images, self.share = images, share

    def make(self, index: int) -> Tensor:
        image = self.images[index]
        rng = np.random.default_rng((self.seed, index, 1))  # not the crop's own
        if rng.random() >= self.share:
            return image
        return recolour(image, rng.uniform(0, 2 * math.pi), PALEST * (STRONGEST / PALEST) ** rng.random())

    def report(self, limit: int | None = NAMES_IN_REPORT) -> str | None:
        return self.images.report(limit)


def recolour(image: Tensor, angle: float, strength: float) -> Tensor:
    """`image` (3, H, W) in [-1, 1] with its colours turned about the grey axis, and that many times as strong, clamped.

    Every pixel keeps the mean of its three values, as far as these stay within the range: grey stays what it is.

    Args:
        angle: in radians; a third of a turn makes red blue, blue green and green red.
        strength: factor of the saturation.
    """
    third = 2 * math.pi / 3
    column = torch.tensor([math.cos(angle), math.cos(angle + third), math.cos(angle - third)])
    rotation = torch.stack([column.roll(shift) for shift in range(3)], dim=1) * (2 / 3)  # of what is left without grey
    grey = image.mean(0, keepdim=True)
    colour = torch.einsum("ij,jhw->ihw", rotation.to(image), image - grey)
    return (grey + strength * colour).clamp(-1, 1)
