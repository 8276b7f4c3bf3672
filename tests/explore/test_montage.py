"""montage: pictures combined into one array of pixels."""

from __future__ import annotations

import numpy as np
import torch

from klvae_edu.explore.montage import frame, montage, side_by_side


def grey(level, height=2, width=3):
    return np.full((height, width, 3), level, np.uint8)


def test_tensors_and_pixels_are_placed_side_by_side_on_white():
    row = side_by_side(torch.full((3, 4, 2), -1.0), grey(90))
    assert row.shape == (4, 2 + 8 + 3, 3)
    assert (row[:, :2] == 0).all() and (row[:, 2:10] == 255).all()
    assert (row[:2, 10:] == 90).all() and (row[2:, 10:] == 255).all()


def test_a_montage_is_filled_row_by_row_in_whole_pixels():
    whole = montage([grey(10), grey(20), grey(30)], columns=2, magnified=2)
    assert whole.shape == (2 * (4 + 4), 2 * (6 + 4), 3)
    assert (whole[2:6, 2:8] == 10).all() and (whole[2:6, 12:18] == 20).all() and (whole[10:14, 2:8] == 30).all()
    assert (whole == 255).all(axis=2).sum() == 16 * 20 - 3 * 4 * 6


def test_the_frame_of_the_marked_picture_leaves_its_pixels_and_the_others_alone():
    plain, marked = (montage([grey(level) for level in (10, 20, 30, 40)], 2, marked=mark) for mark in (None, 3))
    changed = (plain != marked).any(axis=2)
    assert changed.sum() == (2 + 4) * (3 + 4) - 2 * 3
    assert (plain[changed] == 255).all() and changed[6:, 7:].sum() == changed.sum()


def test_a_frame_is_around_the_rectangle_also_at_the_border():
    picture = grey(7, 6, 6)
    frame(picture, 0, 1, 2, 2)
    framed = (picture == (213, 94, 0)).all(axis=2)
    expected = np.zeros((6, 6), bool)
    expected[:4, :5] = True
    expected[:2, 1:3] = False
    assert (framed == expected).all() and (picture[~framed] == 7).all()
