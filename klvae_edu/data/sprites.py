"""Procedural images that are easy to judge: one sprite each, a plain shape in a known colour, place, size and turn.

What is in a picture can be written down in six values, drawn from them, and read back from a picture that somebody else
made: a generative model trained on sprites can be judged by eye at a glance, and by `read_sprite` in numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

SHAPES = {"disc": 0, "triangle": 3, "square": 4}  # by their number of corners
COLOURS = {  # red, green and blue in [-1, 1]: far apart, also to colour-blind eyes, and from the background
    "blue": (-1.0, -0.1, 0.4),
    "orange": (0.7, -0.3, -1.0),
    "green": (-0.9, 0.2, 0.0),
    "yellow": (0.9, 0.8, -0.5),
    "pink": (0.6, -0.1, 0.3),
    "white": (1.0, 1.0, 1.0),
}
BACKGROUND = (-0.7, -0.7, -0.7)

RADII = (0.15, 0.22)  # from and to, in sides of the picture
PLACES = (0.36, 0.64)  # likewise; a triangle reaches 1.56 radii far, so that every sprite is wholly inside
TURN_STEP = 7.5  # degrees between the turns that are tried in reading


@dataclass(frozen=True)
class Sprite:
    """What is in a picture.

    Attributes:
        shape: one of `SHAPES`.
        colour: one of `COLOURS`.
        x, y: the centre, in sides of the picture from its left and its upper edge.
        radius: of the disc of the same area, in sides of the picture.
        turn: degrees, clockwise, from a flat lower edge. A triangle looks the same every 120°, a square every 90°, a
            disc always.
    """

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    turn: float


def sprite_label(index: int, seed: int = 0) -> Sprite:
    """What is in picture `index` of the endless sequence that `seed` names; every value is drawn evenly.

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
    """Picture `index` of the sequence: (3, size, size), float32 in [-1, 1], a pure function of its arguments.

    Raises:
        ValueError: an index or seed below 0, or a size below 8 pixels.
    """
    return draw_sprite(sprite_label(index, seed), size)


def draw_sprite(what: Sprite, size: int) -> Tensor:
    """The picture of a sprite: (3, size, size), float32 in [-1, 1]; its edge is one pixel wide.

    Raises:
        ValueError: an unknown shape or colour, or a size below 8 pixels.
    """
    if what.colour not in COLOURS:
        raise ValueError(f"colour: expected one of {', '.join(COLOURS)}, got {what.colour!r}")
    background, colour = torch.tensor([BACKGROUND, COLOURS[what.colour]])[..., None, None]
    return torch.lerp(background, colour, cover(what, size))


def cover(what: Sprite, size: int) -> Tensor:
    """How much of each pixel the sprite covers, 0 to 1: (size, size).

    Raises:
        ValueError: an unknown shape, or a size below 8 pixels.
    """
    if what.shape not in SHAPES or size < 8:
        shapes = ", ".join(SHAPES)
        raise ValueError(f"expected a shape ({shapes}) and size ≥ 8 pixels, got {what.shape!r}, {size=}")
    places = torch.arange(size) + 0.5
    dx, dy = places - what.x * size, (places - what.y * size)[:, None]
    corners, radius = SHAPES[what.shape], what.radius * size
    if not corners:
        outside = (dx.square() + dy.square()).sqrt() - radius
    else:  # the inside of `corners` straight edges, all at one distance from the centre
        apothem = radius * math.sqrt(math.pi / (corners * math.tan(math.pi / corners)))
        angles = [math.radians(what.turn + 90) + 2 * math.pi * edge / corners for edge in range(corners)]  # 90: below
        outside = torch.stack([math.cos(a) * dx + math.sin(a) * dy for a in angles]).amax(0) - apothem
    return (0.5 - outside).clamp(0, 1)


def symmetry(shape: str) -> float:
    """Degrees after which a turned shape looks the same; 0 for a disc, which has no turn."""
    return 360 / SHAPES[shape] if SHAPES[shape] else 0.0


def read_sprite(picture: Tensor) -> tuple[Sprite, float] | None:
    """The sprite that a picture (3, size, size) in [-1, 1] resembles most, and how much of the picture it explains.

    Pixels that are nearer to a colour of `COLOURS` than to the background give the colour (that of the most), the place
    (their centre) and the size (their number); the shape and its turn are those whose drawing is nearest.

    Returns:
        The sprite, and 1 - ‖picture - drawing‖² / ‖drawing - background‖²: 1 for a clean sprite, 0 or less where an
        empty picture would be as near. A second sprite, a smear, a mixed colour, all lower it. None where there is
        nothing but background.

    Raises:
        ValueError: not a square picture.
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
