"""Colour augmentation: random hue and saturation, for sources that lack some colours.

A model reconstructs colours badly that are rare in its training data. The six built-in training photographs, for
example, contain no meadow; a model trained on them alone turns green into brown.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from klvae_edu.data.crops import NAMES_IN_REPORT, IndexedImages

MIN_SATURATION, MAX_SATURATION = 0.5, 4.0  # factors of the saturation; the logarithm of the factor is uniform


class Recoloured(IndexedImages):
    """`images` with another hue and saturation in a random `share` of them; a pure function of (seed, index)."""

    def __init__(self, images: IndexedImages, share: float, *, seed: int) -> None:
        super().__init__(images.size, seed=seed, length=len(images))
        self.images, self.share = images, share

    def make(self, index: int) -> Tensor:
        image = self.images[index]
        rng = np.random.default_rng((self.seed, index, 1))  # independent of the crop's generator
        if rng.random() >= self.share:
            return image
        angle = rng.uniform(0, 2 * math.pi)
        return recolour(image, angle, MIN_SATURATION * (MAX_SATURATION / MIN_SATURATION) ** rng.random())

    def report(self, limit: int | None = NAMES_IN_REPORT) -> str | None:
        return self.images.report(limit)


def recolour(image: Tensor, angle: float, strength: float) -> Tensor:
    """Rotate the colours of `image` (3, H, W) in [-1, 1] about the grey axis, scale their saturation, and clamp.

    The mean of the three channels of a pixel does not change, unless clamping changes it. Grey stays grey.

    Args:
        angle: rotation of the hue in radians. A third of a turn maps red to blue, blue to green and green to red.
        strength: factor of the saturation.
    """
    third = 2 * math.pi / 3
    column = torch.tensor([math.cos(angle), math.cos(angle + third), math.cos(angle - third)])
    rotation = torch.stack([column.roll(shift) for shift in range(3)], dim=1) * (2 / 3)  # of colour minus grey
    grey = image.mean(0, keepdim=True)
    colour = torch.einsum("ij,jhw->ihw", rotation.to(image), image - grey)
    return (grey + strength * colour).clamp(-1, 1)
