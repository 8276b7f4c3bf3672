"""Dead leaves: procedural images with statistics similar to natural images.

A dead-leaves image consists of shapes that occlude each other. Their sizes follow a scale-free distribution. Such an
image has edges, and its power spectrum falls about as 1/f², as in photographs. Textures, shading, blur and a palette
for each image are added.

Source: Lee, Mumford & Huang, "Occlusion models for natural images: a statistical study of a scale-invariant dead leaves
model", IJCV 2001. Training on such images: Baradad et al., "Learning to See by Looking at Noise", NeurIPS 2021.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.floating]

MIN_RADIUS = 1.5  # pixels
MAX_RADIUS = 0.9  # times the image's side
MAX_LEAVES = 400  # limits the time for a large image
TEXTURES = 3  # 1/f textures in an image, shared by its leaves

# Rows: lightness, orange against blue, magenta against green. In natural scenes the coordinates along these axes are
# nearly independent. Lightness varies most, magenta against green least (Ruderman, Cronin & Chiao, "Statistics of cone
# responses to natural images", 1998).
OPPONENT_TO_RGB = np.array([[1, 1, 1], [1, 0, -1], [0.5, -1, 0.5]], dtype=np.float32)


def dead_leaves(index: int, size: int, seed: int = 0) -> Tensor:
    """Draw image `index` of the endless sequence of this seed: (3, size, size), float32 in [-1, 1].

    The image is a pure function of the arguments: it is the same in any process and in any order.

    Raises:
        ValueError: an index or seed below 0, or a size below 8 pixels.
    """
    if index < 0 or seed < 0 or size < 8:
        raise ValueError(f"expected index ≥ 0, seed ≥ 0 and size ≥ 8 pixels, got {index=}, {seed=}, {size=}")
    rng = np.random.default_rng((seed, index))
    palette = Palette(rng)
    textures = [np.tile(power_law_noise(rng, size, rng.uniform(0.8, 1.8)), (2, 2)) for _ in range(TEXTURES)]

    base, variation = palette.colours(rng)
    canvas = base + variation * textures[0][:size, :size]
    smallest = MIN_RADIUS * (size / 6 / MIN_RADIUS) ** (rng.random() ** 2)
    largest = MAX_RADIUS * size
    layers = 0.5 * 8 ** rng.random()  # total area of the leaves / area of the image
    count = layers * size**2 / (smallest**2 * 4 * math.log(largest / smallest))  # area / approximate mean leaf area
    blur = float(rng.choice([0.7, 0.7, 1.5, 4]))  # width of an edge in pixels; above 1 the image is out of focus
    for radius in leaf_radii(rng, 1 + min(int(count), MAX_LEAVES), smallest, largest).tolist():
        _lay_leaf(canvas, rng, radius, blur * rng.uniform(1, 2), palette, textures)
    if rng.random() < 0.3:
        canvas += rng.uniform(0.01, 0.05) * rng.standard_normal(canvas.shape, dtype=np.float32)  # sensor noise
    return torch.from_numpy(canvas.clip(-1, 1))


def leaf_radii(rng: np.random.Generator, count: int, smallest: float, largest: float) -> NDArray[np.float64]:
    """Draw `count` radii in pixels with density ∝ r⁻³ from `smallest` to `largest`.

    The distribution is scale-free: each octave of radii covers the same area, so magnified images have the same
    statistics.
    """
    u = rng.random(count)
    return (smallest**-2 * (1 - u) + largest**-2 * u) ** -0.5  # inverse of the cumulative distribution function


def power_law_noise(rng: np.random.Generator, size: int, alpha: float) -> Array:
    """Draw periodic Gaussian noise (size, size) with amplitudes ∝ 1/f^alpha, mean 0 and standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    frequency[0, 0] = np.inf  # removes the mean
    phases = rng.standard_normal((2, *frequency.shape))
    noise = np.fft.irfft2((phases[0] + 1j * phases[1]) * frequency**-alpha, s=(size, size))
    return (noise / noise.std()).astype(np.float32)


class Palette:
    """Colours of one image: a wide range of lightness, a narrow range of hue and saturation around a random centre."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.centre = np.array([rng.uniform(-0.6, 0.3), rng.normal(0.05, 0.15), rng.normal(0, 0.07)])
        self.spread = np.array([rng.uniform(0.2, 0.6), *rng.exponential((0.12, 0.06))])

    def colours(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Draw a colour, about in [-1, 1], and its change by one standard deviation of a texture; each (3, 1, 1)."""
        draws = rng.standard_normal((2, 3))
        base = self.centre + self.spread * draws[0]
        contrast = 0.03 * 10 ** rng.random()
        variation = contrast * np.array([1, *(0.3 * draws[1, 1:])])
        rgb = (np.stack([base, variation]) @ OPPONENT_TO_RGB).astype(np.float32)
        return rgb[0][:, None, None], rgb[1][:, None, None]


def _lay_leaf(
    canvas: Array, rng: np.random.Generator, radius: float, blur: float, palette: Palette, textures: list[Array]
) -> None:
    """Draw one leaf (an ellipse, a box or a triangle) onto `canvas` (3, size, size), in place."""
    size = canvas.shape[-1]
    x, y = rng.random(2) * size
    reach = 1.42 * radius + blur  # half diagonal of a box: √2 × half side
    left, top = max(0, int(x - reach)), max(0, int(y - reach))
    right, bottom = min(size, int(x + reach) + 1), min(size, int(y + reach) + 1)
    dx = np.arange(left, right, dtype=np.float32) - np.float32(x)
    dy = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(y)

    angle, thickness = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 1)
    cos, sin = math.cos(angle) / radius, math.sin(angle) / radius
    u, v = cos * dx + sin * dy, (cos * dy - sin * dx) / thickness  # about -1 to 1 inside the leaf
    cover = (0.5 - _distance(int(rng.integers(3)), u, v, thickness) * (radius / blur)).clip(0, 1)

    base, variation = palette.colours(rng)
    leaf = base + _pattern(rng, u, radius, textures) * variation + rng.normal(0, 0.1) * v
    region = canvas[:, top:bottom, left:right]
    region += cover * (leaf - region)


def _distance(shape: int, u: Array, v: Array, thickness: float) -> Array:
    """Compute the approximate signed distance from the shape's edge, negative inside, in units of its radius."""
    if shape == 0:  # ellipse
        return (np.sqrt(u * u + v * v) - 1) * thickness
    if shape == 1:  # box
        return np.maximum(np.abs(u) - 1, (np.abs(v) - 1) * thickness)
    sides = (2 * np.abs(u) + v - 1) / math.hypot(2, 1 / thickness)
    return np.maximum(sides, (-1 - v) * thickness)  # triangle


def _pattern(rng: np.random.Generator, u: Array, radius: float, textures: list[Array]) -> Array | float:
    """Draw a leaf's pattern in units of its contrast: none, a 1/f texture, or a sine grating along u."""
    kind = rng.random()
    if kind < 0.3:
        return 0.0
    if kind < 0.8:
        texture = textures[rng.integers(len(textures))]
        row, column = rng.integers(len(texture) // 2, size=2)
        return texture[row : row + u.shape[0], column : column + u.shape[1]]
    shortest = 3 / radius  # period of three pixels
    period = shortest * max(1 / shortest, 1) ** rng.random()
    return np.sin((u / period + rng.random()) * np.float32(2 * np.pi))
