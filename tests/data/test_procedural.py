"""Dead leaves: a pure function of (index, size, seed), with the statistics of natural images."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from klvae_edu.data.procedural import dead_leaves, leaf_radii, power_law_noise


def spectral_slope(images: np.ndarray) -> float:
    """Fit the exponent of the radially averaged power spectrum of grey images (B, N, N) over its middle range."""
    size = images.shape[-1]
    window = np.hanning(size) * np.hanning(size)[:, None]
    centred = images - images.mean((1, 2), keepdims=True)
    power = (np.abs(np.fft.fft2(centred * window)) ** 2).mean(0)
    rings = np.round(size * np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size))).astype(int)
    radii = np.arange(2, size // 2)
    mean_power = [power[rings == radius].mean() for radius in radii]
    return np.polyfit(np.log(radii), np.log(mean_power), 1)[0]


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.stack([dead_leaves(index, 64) for index in range(150)])


def test_a_picture_is_rgb_in_minus_one_to_one(pictures: torch.Tensor) -> None:
    assert pictures.shape == (150, 3, 64, 64)
    assert pictures.dtype == torch.float32
    assert pictures.min() >= -1
    assert pictures.max() <= 1
    assert pictures.isfinite().all()


def test_the_same_arguments_give_the_same_picture_in_any_order() -> None:
    forward = [dead_leaves(index, 32, seed=5) for index in range(8)]
    backward = [dead_leaves(index, 32, seed=5) for index in reversed(range(8))]
    assert all(torch.equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))


def test_global_random_states_have_no_part_in_it() -> None:
    np.random.seed(1)
    torch.manual_seed(1)
    first = dead_leaves(3, 32)
    np.random.seed(2)
    torch.manual_seed(2)
    assert torch.equal(first, dead_leaves(3, 32))


def test_another_process_gives_the_same_picture() -> None:
    code = "from klvae_edu.data import dead_leaves; print(dead_leaves(7, 32, seed=3).double().sum().item().hex())"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float.fromhex(output.strip()) == dead_leaves(7, 32, seed=3).double().sum().item()


def test_other_indices_and_other_seeds_give_other_pictures(pictures: torch.Tensor) -> None:
    assert len({picture.numpy().tobytes() for picture in pictures}) == 150
    assert not torch.equal(dead_leaves(0, 32, seed=0), dead_leaves(0, 32, seed=1))
    assert not torch.equal(dead_leaves(0, 32, seed=1), dead_leaves(1, 32, seed=0))


def test_pictures_vary_in_brightness_contrast_and_colour(pictures: torch.Tensor) -> None:
    assert pictures.mean((1, 2, 3)).std() > 0.15
    contrast = pictures.mean(1).flatten(1).std(1)
    assert contrast.quantile(0.9) > 2 * contrast.quantile(0.1)
    assert (pictures[:, 0] - pictures[:, 2]).mean((1, 2)).std() > 0.15  # red against blue


def test_no_picture_is_blank(pictures: torch.Tensor) -> None:
    assert pictures.flatten(1).std(1).min() > 0.02


def test_radii_follow_the_inverse_cube_law_between_their_limits() -> None:
    radii = leaf_radii(np.random.default_rng(0), 200_000, 2.0, 50.0)
    assert radii.min() >= 2
    assert radii.max() <= 50
    for threshold in (3.0, 5.0, 10.0, 25.0):  # share above the threshold, integrated by hand
        share = (threshold**-2 - 50**-2) / (2**-2 - 50**-2)
        assert (radii > threshold).mean() == pytest.approx(share, abs=4 * math.sqrt(share / 200_000))


def test_each_octave_of_radii_covers_the_same_area() -> None:
    radii = leaf_radii(np.random.default_rng(0), 400_000, 1.0, 16.0)
    areas, _ = np.histogram(radii, bins=[1, 2, 4, 8, 16], weights=radii**2)
    assert areas == pytest.approx(areas.mean(), rel=0.1)


@pytest.mark.parametrize("alpha", [0.8, 1.3, 1.8])
def test_textures_have_the_spectrum_they_are_asked_for(alpha: float) -> None:
    rng = np.random.default_rng(0)
    textures = np.stack([power_law_noise(rng, 64, alpha) for _ in range(60)])
    assert textures.std((1, 2)) == pytest.approx(1, abs=1e-3)
    assert textures.mean((1, 2)) == pytest.approx(0, abs=1e-3)
    power = (np.abs(np.fft.fft2(textures)) ** 2).mean(0)
    assert np.log(power[0, 4] / power[0, 16]) / np.log(16 / 4) == pytest.approx(2 * alpha, abs=0.5)


def test_the_power_spectrum_falls_as_that_of_photographs(pictures: torch.Tensor) -> None:
    """Sharp scenes have about 1/f² (Field 1987); out-of-focus images and the window make the fit steeper."""
    assert -3.3 < spectral_slope(pictures.mean(1).numpy()) < -2.0


def test_differences_of_neighbours_are_heavy_tailed_as_edges_make_them(pictures: torch.Tensor) -> None:
    differences = pictures.mean(1).diff(dim=-1).flatten()
    assert (differences**4).mean() / (differences**2).mean() ** 2 > 8  # 3 for Gaussian noise of any spectrum


@pytest.mark.parametrize("arguments", [(-1, 32, 0), (0, 32, -1), (0, 7, 0)])
def test_impossible_arguments_are_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected index ≥ 0, seed ≥ 0 and size ≥ 8"):
        dead_leaves(*arguments)


@pytest.mark.parametrize("size", [8, 33, 200])
def test_any_size_can_be_drawn(size: int) -> None:
    assert dead_leaves(0, size).shape == (3, size, size)
