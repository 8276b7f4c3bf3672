"""Pictures of photographs beside their reconstructions by the bundled models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from klvae_edu import AutoencoderKL
from klvae_edu.plots import to_image
from tools import reconstructions
from tools.photographs import manifest
from tools.reconstructions import MODELS, README_PICTURE, SIDE, SQUARES, main, photographs


def test_the_photographs_are_squares_of_six_that_no_model_was_trained_on() -> None:
    images = photographs()
    assert images.shape == (6, 3, SIDE, SIDE)
    assert not {Path(file).stem for file in SQUARES} & {Path(row.name).stem for row in manifest()}


def test_one_command_draws_six_photographs_with_both_reconstructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["reconstructions", str(tmp_path / "six.png")])
    main()
    pixels = np.asarray(Image.open(tmp_path / "six.png"))
    assert pixels.shape == (6 * 2 * SIDE, 3 * 2 * SIDE, 3)
    image = photographs()[1:2]
    with torch.no_grad():
        rebuilt = AutoencoderKL.from_bundled(MODELS[1])(image).sample
    second_row = pixels[2 * SIDE : 4 * SIDE : 2, ::2]
    assert np.array_equal(second_row[:, :SIDE], to_image(image[0]))
    difference = second_row[:, 2 * SIDE :].astype(int) - to_image(rebuilt[0])
    assert np.abs(difference).max() <= 1  # convolutions of a batch of six and of one round differently


def test_the_readmes_picture_is_that_of_the_bundled_models() -> None:
    """JPEG and words differ a little from machine to machine; weights 1 % off change the middle row of pixels more."""
    drawn = reconstructions.readme_picture(photographs()[:2]).astype(float)
    stored = np.asarray(Image.open(README_PICTURE)).astype(float)
    assert drawn.shape == stored.shape
    assert np.median(np.abs(drawn - stored).mean((1, 2))) < 2
