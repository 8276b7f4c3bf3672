"""Sprites: procedural images of one plain shape with known shape, colour, position, radius and rotation.

Six values describe an image. `draw_sprite` draws an image from them, and `read_sprite` estimates them from any image.
The samples of a generative model trained on sprites can therefore be judged by eye, and measured by `read_sprite`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

SHAPES = {"disc": 0, "triangle": 3, "square": 4}  # name: number of corners
COLOURS = {  # RGB in [-1, 1]; far apart, also for colour-blind readers, and far from the background
    "blue": (-1.0, -0.1, 0.4),
    "orange": (0.7, -0.3, -1.0),
    "green": (-0.9, 0.2, 0.0),
    "yellow": (0.9, 0.8, -0.5),
    "pink": (0.6, -0.1, 0.3),
    "white": (1.0, 1.0, 1.0),
}
BACKGROUND = (-0.7, -0.7, -0.7)

RADII = (0.15, 0.22)  # minimum and maximum, as shares of the image's side
PLACES = (0.36, 0.64)  # likewise; a triangle extends 1.56 radii from its centre, so every sprite is inside the image
TURN_STEP = 7.5  # degrees between the rotations that `read_sprite` tries


@dataclass(frozen=True)
class Sprite:
    """Label of an image: the six values that describe its sprite. Lengths are in units of the image's side.

    Attributes:
        shape: one of `SHAPES`.
        colour: one of `COLOURS`.
        x, y: distance of the centre from the left edge and from the upper edge.
        radius: radius of a disc with the same area.
        turn: clockwise rotation in degrees; 0 is a horizontal lower edge. A triangle repeats after 120°, a square
            after 90°; a disc has no rotation.
    """

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    turn: float


def sprite_label(index: int, seed: int = 0) -> Sprite:
    """Draw the label of image `index` of the endless sequence of this seed; every value is drawn uniformly.

    Raises:
        ValueError: an index or seed below 0.
    """
    if index < 0 or seed < 0:
        raise ValueError(f"expected index ≥ 0 and seed ≥ 0, got {index=}, {seed=}")
    rng = np.random.default_rng((seed, index))
    shape, colour = [*SHAPES][rng.integers(len(SHAPES))], [*COLOURS][rng.integers(len(COLOURS))]
    x, y = rng.uniform(*PLACES, size=2).tolist()
    return Sprite(shape, colour, x, y, rng.uniform(*RADII), rng.random() * symmetry(shape))


def sprite(index: int, size: int, seed: int = 0) -> Tensor:
    """Draw image `index` of the sequence: (3, size, size), float32 in [-1, 1], a pure function of the arguments.

    Raises:
        ValueError: an index or seed below 0, or a size below 8 pixels.
    """
    return draw_sprite(sprite_label(index, seed), size)


def draw_sprite(label: Sprite, size: int) -> Tensor:
    """Draw a sprite with an edge of one pixel: (3, size, size), float32 in [-1, 1].

    Raises:
        ValueError: an unknown shape or colour, or a size below 8 pixels.
    """
    if label.colour not in COLOURS:
        raise ValueError(f"colour: expected one of {', '.join(COLOURS)}, got {label.colour!r}")
    background, colour = torch.tensor([BACKGROUND, COLOURS[label.colour]])[..., None, None]
    return torch.lerp(background, colour, cover(label, size))


def cover(label: Sprite, size: int) -> Tensor:
    """Compute the share of each pixel that the sprite covers, from 0 to 1: (size, size).

    Raises:
        ValueError: an unknown shape, or a size below 8 pixels.
    """
    if label.shape not in SHAPES or size < 8:
        shapes = ", ".join(SHAPES)
        raise ValueError(f"expected a shape ({shapes}) and size ≥ 8 pixels, got {label.shape!r}, {size=}")
    places = torch.arange(size) + 0.5
    dx, dy = places - label.x * size, (places - label.y * size)[:, None]
    corners, radius = SHAPES[label.shape], label.radius * size
    if not corners:
        outside = (dx.square() + dy.square()).sqrt() - radius
    else:  # a regular polygon: all edges have the same distance from the centre
        apothem = radius * math.sqrt(math.pi / (corners * math.tan(math.pi / corners)))
        angles = [
            math.radians(label.turn + 90) + 2 * math.pi * edge / corners for edge in range(corners)
        ]  # first: lower edge
        outside = torch.stack([math.cos(a) * dx + math.sin(a) * dy for a in angles]).amax(0) - apothem
    return (0.5 - outside).clamp(0, 1)


def symmetry(shape: str) -> float:
    """Return the smallest rotation in degrees that leaves a shape unchanged; 0 for a disc, which has no rotation."""
    return 360 / SHAPES[shape] if SHAPES[shape] else 0.0


def read_sprite(picture: Tensor) -> tuple[Sprite, float] | None:
    """Find the sprite that an image (3, size, size) in [-1, 1] resembles most, and how much of the image it explains.

    Foreground pixels are those nearer to a colour of `COLOURS` than to the background. Their most frequent colour is
    the colour, their mean position the centre, and their number gives the radius. The shape and its rotation are those
    whose drawing has the smallest squared error.

    Returns:
        The sprite, and its explained share 1 - ‖picture - drawing‖² / ‖drawing - background‖². The share is 1 for a
        clean sprite, and 0 or less if an empty image would be at least as near. A second sprite, blur or a mixed colour
        lowers it. None: the image has no foreground pixel.

    Raises:
        ValueError: the image is not of shape (3, size, size).
    """
    if picture.ndim != 3 or picture.shape[0] != 3 or picture.shape[1] != picture.shape[2]:
        raise ValueError(f"expected a picture (3, size, size), got {tuple(picture.shape)}")
    picture, size = picture.detach().float().cpu().clamp(-1, 1), picture.shape[-1]
    known = torch.tensor([BACKGROUND, *COLOURS.values()])[..., None, None]
    nearest = (picture - known).square().sum(1).argmin(0)
    rows, columns = nearest.nonzero(as_tuple=True)
    if not len(rows):
        return None
    colour = [*COLOURS][nearest[rows, columns].bincount(minlength=len(known))[1:].argmax()]
    x, y = ((places.float().mean().item() + 0.5) / size for places in (columns, rows))
    found = Sprite("disc", colour, x, y, math.sqrt(len(rows) / math.pi) / size, 0.0)
    tries = [
        replace(found, shape=shape, turn=turn)
        for shape in SHAPES
        for turn in np.arange(0, symmetry(shape) or TURN_STEP, TURN_STEP).tolist()
    ]
    drawings = torch.stack([draw_sprite(it, size) for it in tries])
    errors = (drawings - picture).square().sum((1, 2, 3))
    best = int(errors.argmin())
    return tries[best], 1 - (errors[best] / (drawings[best] - known[0]).square().sum()).item()
