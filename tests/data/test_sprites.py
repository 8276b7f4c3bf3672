"""Sprites: images are drawn from labels, and labels are read from images."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from klvae_edu.data import image_dataset
from klvae_edu.data.sprites import (
    BACKGROUND,
    COLOURS,
    PLACES,
    RADII,
    SHAPES,
    Sprite,
    cover,
    draw_sprite,
    read_sprite,
    sprite,
    sprite_label,
    symmetry,
)

SQUARE = Sprite("square", "orange", 0.5, 0.5, 0.2, 0.0)


def corners_of(picture: Tensor) -> Tensor:
    return picture[:, [0, 0, -1, -1], [0, -1, 0, -1]]


def test_a_picture_is_rgb_in_minus_one_to_one_on_the_background_and_wholly_inside() -> None:
    for index in range(40):
        picture = sprite(index, 32)
        assert picture.shape == (3, 32, 32) and picture.dtype == torch.float32
        assert picture.min() >= -1 and picture.max() <= 1
        rim = torch.cat([picture[:, 0], picture[:, -1], picture[:, :, 0], picture[:, :, -1]], dim=1)
        torch.testing.assert_close(rim, torch.tensor(BACKGROUND)[:, None].expand_as(rim))


def test_picture_and_label_are_pure_functions_of_their_arguments() -> None:
    forward = [sprite(index, 16, seed=5) for index in range(8)]
    np.random.seed(1)
    torch.manual_seed(1)
    backward = [sprite(index, 16, seed=5) for index in reversed(range(8))]
    assert all(torch.equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    assert sprite_label(3, 5) == sprite_label(3, 5) != sprite_label(3, 6)
    assert torch.equal(sprite(3, 16, 5), draw_sprite(sprite_label(3, 5), 16))


def test_labels_are_drawn_evenly_from_what_is_said() -> None:
    labels = [sprite_label(index) for index in range(900)]
    for values, names in (([it.shape for it in labels], SHAPES), ([it.colour for it in labels], COLOURS)):
        counts = Counter(values)
        assert set(counts) == set(names)
        assert min(counts.values()) > 0.7 * len(labels) / len(names)
    for values, (low, high) in (
        ([it.x for it in labels], PLACES),
        ([it.y for it in labels], PLACES),
        ([it.radius for it in labels], RADII),
        ([it.turn / symmetry(it.shape) for it in labels if symmetry(it.shape)], (0, 1)),
    ):
        assert low <= min(values) and max(values) <= high
        assert np.mean(values) == pytest.approx((low + high) / 2, abs=0.05 * (high - low))
    assert all(it.turn == 0 for it in labels if it.shape == "disc")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("turn", [0.0, 20.0])
def test_every_shape_covers_the_area_of_the_disc_of_its_radius(shape: str, turn: float) -> None:
    covered = cover(replace(SQUARE, shape=shape, turn=turn), 200)
    assert covered.sum().item() == pytest.approx(np.pi * 40**2, rel=0.005)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_centre_of_the_sprite_is_where_the_label_says(shape: str) -> None:
    covered = cover(Sprite(shape, "blue", 0.4, 0.6, 0.2, 33.0), 200)
    places = (torch.arange(200) + 0.5) / 200
    assert (covered.sum(0) @ places / covered.sum()).item() == pytest.approx(0.4, abs=2e-3)
    assert (covered.sum(1) @ places / covered.sum()).item() == pytest.approx(0.6, abs=2e-3)


def test_an_unturned_square_is_upright_and_a_triangle_points_upwards_and_turns_clockwise() -> None:
    covered = cover(replace(SQUARE, radius=0.2), 100)
    side = round(0.2 * np.sqrt(np.pi) * 100)
    assert (covered > 0.5).any(1).sum() == pytest.approx(side, abs=1)
    assert (covered[50] > 0.5).sum() == (covered[40] > 0.5).sum() == pytest.approx(side, abs=1)
    triangle = replace(SQUARE, shape="triangle")
    widths = (cover(triangle, 100) > 0.5).sum(1)
    inside = widths[widths > 0]
    assert (inside.diff() >= 0).all() and inside[0] < inside[-1]  # it widens downwards
    turned = cover(replace(triangle, turn=90.0), 100)
    torch.testing.assert_close(turned, cover(triangle, 100).rot90(-1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_looks_the_same_after_its_symmetry_and_not_before(shape: str) -> None:
    first = cover(replace(SQUARE, shape=shape), 64)
    again = cover(replace(SQUARE, shape=shape, turn=symmetry(shape)), 64)
    torch.testing.assert_close(first, again, atol=1e-4, rtol=0)
    half = cover(replace(SQUARE, shape=shape, turn=symmetry(shape) / 2), 64)
    assert ((half - first).abs().max() > 0.9) == (shape != "disc")


@pytest.mark.parametrize("size", [32, 64])
def test_what_is_read_is_what_was_drawn(size: int) -> None:
    for index in range(60):
        found, explained = read_sprite(sprite(index, size)) or pytest.fail("nothing found")
        label = sprite_label(index)
        assert (found.shape, found.colour) == (label.shape, label.colour)
        assert abs(found.x - label.x) < 0.02 and abs(found.y - label.y) < 0.02
        assert found.radius == pytest.approx(label.radius, rel=0.06)
        if period := symmetry(label.shape):
            assert min(abs(found.turn - label.turn + k * period) for k in (-1, 0, 1)) < 8
        assert explained > 0.9


def test_what_is_not_one_clean_sprite_is_explained_less() -> None:
    one, other = draw_sprite(replace(SQUARE, x=0.3, radius=0.15), 64), draw_sprite(replace(SQUARE, x=0.75), 64)
    both = torch.where((one - one[:, :1, :1]).abs().sum(0) > 0, one, other)
    two_colours = torch.where(torch.arange(64) < 32, one.roll(13, 2), draw_sprite(replace(SQUARE, colour="blue"), 64))
    smear = torch.nn.functional.avg_pool2d(one[None], 21, 1, 10)[0]
    torch.manual_seed(0)
    noise = torch.rand(3, 64, 64) * 2 - 1
    for picture in (both, two_colours, smear, noise):
        assert (read_sprite(picture) or (None, 0.0))[1] < 0.75
    assert read_sprite(draw_sprite(replace(SQUARE, radius=0.0), 64)) is None


def test_wrong_arguments_are_value_errors_that_say_what_was_expected() -> None:
    for call, message in (
        (lambda: sprite(-1, 32), "index ≥ 0"),
        (lambda: sprite(0, 4), "size ≥ 8"),
        (lambda: draw_sprite(replace(SQUARE, shape="star"), 32), "disc, triangle, square"),
        (lambda: draw_sprite(replace(SQUARE, colour="mauve"), 32), "'mauve'"),
        (lambda: read_sprite(torch.zeros(3, 8, 9)), "(3, 8, 9)"),
    ):
        with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
            call()


def test_sprites_are_an_image_source() -> None:
    data = image_dataset("sprites", 16, seed=3, length=5)
    assert len(data) == 5
    assert torch.equal(data[4], sprite(4, 16, seed=3))
    held_out = {image.numpy().tobytes() for image in image_dataset("sprites", 16, split="held-out", length=20)}
    assert held_out.isdisjoint(image.numpy().tobytes() for image in data)
    mixed = image_dataset("sprites+dead-leaves", 16, length=4)
    assert torch.equal(mixed[2], sprite(1, 16))
