"""Procedural images with the statistics of natural ones: dead leaves.

Shapes that occlude each other, of sizes that follow a scale-free law, already have the edges of photographs and their
power spectrum, which falls about as 1/f². Textures, shading, blur and a palette for each picture do the rest.

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

SMALLEST_RADIUS = 1.5  # pixels
LARGEST_RADIUS = 0.9  # times the picture's side
MOST_LEAVES = 400  # bounds the time that a large picture takes
TEXTURES = 3  # 1/f textures in a picture, shared by its leaves

# Rows: lightness, orange against blue, magenta against green. Along such axes the colours of natural scenes vary nearly
# independently, much in lightness and little in the last (Ruderman, Cronin & Chiao, "Statistics of cone responses to
# natural images", 1998).
OPPONENT_TO_RGB = np.array([[1, 1, 1], [1, 0, -1], [0.5, -1, 0.5]], dtype=np.float32)


def dead_leaves(index: int, size: int, seed: int = 0) -> Tensor:
    """Picture `index` of the endless sequence that `seed` names: (3, size, size), float32 in [-1, 1].

    A pure function of its arguments: the same picture in any process and in any order.

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
    smallest = SMALLEST_RADIUS * (size / 6 / SMALLEST_RADIUS) ** (rng.random() ** 2)
    largest = LARGEST_RADIUS * size
    layers = 0.5 * 8 ** rng.random()  # how often the leaves would cover the picture, laid side by side
    count = layers * size**2 / (smallest**2 * 4 * math.log(largest / smallest))  # over the mean area of a leaf, about
    blur = float(
        rng.choice([0.7, 0.7, 1.5, 4])
    )  # pixels over which an edge fades; beyond 1 the picture is out of focus
    for radius in leaf_radii(rng, 1 + min(int(count), MOST_LEAVES), smallest, largest).tolist():
        _lay_leaf(canvas, rng, radius, blur * rng.uniform(1, 2), palette, textures)
    if rng.random() < 0.3:
        canvas += rng.uniform(0.01, 0.05) * rng.standard_normal(canvas.shape, dtype=np.float32)  # a sensor's noise
    return torch.from_numpy(canvas.clip(-1, 1))


def leaf_radii(rng: np.random.Generator, count: int, smallest: float, largest: float) -> NDArray[np.float64]:
    """`count` radii in pixels with density ∝ r⁻³ from `smallest` to `largest`.

    The law is scale-free: magnified pictures have the same statistics, since each octave of radii covers the same area.
    """
    u = rng.random(count)
    return (smallest**-2 * (1 - u) + largest**-2 * u) ** -0.5  # the inverse of the cumulative distribution


def power_law_noise(rng: np.random.Generator, size: int, alpha: float) -> Array:
    """Gaussian noise (size, size) with amplitudes ∝ 1/f^alpha, mean 0 and standard deviation 1; it tiles the plane."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    frequency[0, 0] = np.inf  # no constant part
    phases = rng.standard_normal((2, *frequency.shape))
    noise = np.fft.irfft2((phases[0] + 1j * phases[1]) * frequency**-alpha, s=(size, size))
    return (noise / noise.std()).astype(np.float32)


class Palette:
    """The colours of one picture: lightness varies broadly, hue and saturation little around the picture's own."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.centre = np.array([rng.uniform(-0.6, 0.3), rng.normal(0.05, 0.15), rng.normal(0, 0.07)])
        self.spread = np.array([rng.uniform(0.2, 0.6), *rng.exponential((0.12, 0.06))])

    def colours(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """A colour in [-1, 1] or little beyond, and what one standard deviation of a texture adds to it: (3, 1, 1)."""
        draws = rng.standard_normal((2, 3))
        base = self.centre + self.spread * draws[0]
        contrast = 0.03 * 10 ** rng.random()
        variation = contrast * np.array([1, *(0.3 * draws[1, 1:])])
        rgb = (np.stack([base, variation]) @ OPPONENT_TO_RGB).astype(np.float32)
        return rgb[0][:, None, None], rgb[1][:, None, None]


def _lay_leaf(
    canvas: Array, rng: np.random.Generator, radius: float, blur: float, palette: Palette, textures: list[Array]
) -> None:
    """Draw one leaf over `canvas` (3, size, size), in place: an ellipse, a box or a triangle."""
    size = canvas.shape[-1]
    x, y = rng.random(2) * size
    reach = 1.42 * radius + blur  # a box reaches √2 times its half side
    left, top = max(0, int(x - reach)), max(0, int(y - reach))
    right, bottom = min(size, int(x + reach) + 1), min(size, int(y + reach) + 1)
    dx = np.arange(left, right, dtype=np.float32) - np.float32(x)
    dy = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(y)

    angle, thickness = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 1)
    cos, sin = math.cos(angle) / radius, math.sin(angle) / radius
    u, v = cos * dx + sin * dy, (cos * dy - sin * dx) / thickness  # within the leaf about -1 to 1
    cover = (0.5 - _distance(int(rng.integers(3)), u, v, thickness) * (radius / blur)).clip(0, 1)

    base, variation = palette.colours(rng)
    leaf = base + _pattern(rng, u, radius, textures) * variation + rng.normal(0, 0.1) * v
    region = canvas[:, top:bottom, left:right]
    region += cover * (leaf - region)


def _distance(shape: int, u: Array, v: Array, thickness: float) -> Array:
    """About the distance outside the shape's edge (negative inside), in units of its radius."""
    if shape == 0:  # ellipse
        return (np.sqrt(u * u + v * v) - 1) * thickness
    if shape == 1:  # box
        return np.maximum(np.abs(u) - 1, (np.abs(v) - 1) * thickness)
    sides = (2 * np.abs(u) + v - 1) / math.hypot(2, 1 / thickness)
    return np.maximum(sides, (-1 - v) * thickness)  # triangle


def _pattern(rng: np.random.Generator, u: Array, radius: float, textures: list[Array]) -> Array | float:
    """What a leaf is covered with, in units of its contrast: nothing, a 1/f texture, or a sine grating along u."""
    kind = rng.random()
    if kind < 0.3:
        return 0.0
    if kind < 0.8:
        texture = textures[rng.integers(len(textures))]
        row, column = rng.integers(len(texture) // 2, size=2)
        return texture[row : row + u.shape[0], column : column + u.shape[1]]
    shortest = 3 / radius  # a period of three pixels
    period = shortest * max(1 / shortest, 1) ** rng.random()
    return np.sin((u / period + rng.random()) * np.float32(2 * np.pi))
