"""Draw what `xray` measured: the worst images with their errors, spectra, and the error at the border."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from klvae_edu.evaluation.xray import Artefacts, Example
from klvae_edu.plots import Pixels, figure, figure_to_image, image_grid

ERROR_GAIN = 4  # errors are drawn as many times larger, around middle grey
DECADES = 2  # of power, from the median to black or white


def save_picture(path: Path, seen: Artefacts, worst: Sequence[Example], factor: int, title: str) -> None:
    """Write a PNG file to `path`: curves of all images, and below them the `worst` images, two in a row."""
    with_bands = worst[0].original.shape[0] not in (1, 3)
    bands = slice(0, 1) if with_bands else slice(None)  # of other channels than grey or colour the first is shown
    rows, captions = [], []
    for example in worst:
        original, error = example.original[bands], (example.reconstruction - example.original)[bands]
        rows.append([original, example.reconstruction[bands], (error * ERROR_GAIN).clamp(-1, 1), _spectrum(error)])
        captions.append(["", f"{example.psnr:.1f} dB", "", ""])
    titles = ["original (worst first)", "reconstruction", f"error, {ERROR_GAIN} times", "spectrum of the error"]
    titles *= min(2, len(rows))
    pictures = figure_to_image(image_grid(_in_pairs(rows), column_titles=titles, captions=_in_pairs(captions)))
    curves = figure_to_image(_curves(seen, factor, title))
    width = max(pictures.shape[1], curves.shape[1])
    Image.fromarray(np.concatenate([_widened(curves, width), _widened(pictures, width)])).save(path, "PNG")


def _in_pairs(rows: list[list[Any]]) -> list[list[Any]]:
    """Join every second row to the one before; the last of an odd number is left out, unless it is the only one."""
    return [left + right for left, right in zip(rows[::2], rows[1::2], strict=False)] or rows


def _curves(seen: Artefacts, factor: int, title: str) -> Figure:
    fig, (spectra, average, repetition, border) = figure(1, 4, size=(14.7, 3.3))
    n = len(seen.error_spectrum)
    cycles = torch.arange(1, seen.spectra.shape[1] + 1) / n
    for power, name in zip(seen.spectra, ("originals", "reconstructions"), strict=True):
        spectra.loglog(cycles, power / n**2, label=name)
    spectra.set(title="power spectrum", xlabel="cycles per pixel")
    spectra.legend()
    average.imshow(_grey(seen.error_spectrum), extent=(-0.5, 0.5, -0.5, 0.5))
    average.set(title="mean spectrum of the error", xlabel="cycles per pixel")
    average.set_xticks([-0.5, -1 / factor, 0, 1 / factor, 0.5], ["-1/2", f"-1/{factor}", "0", f"1/{factor}", "1/2"])
    average.grid(False)
    repetition.plot(torch.arange(1, n // 2 + 1) / n, seen.repetition[1:])
    repetition.set(title="repetition of steps in the error", xlabel="cycles per pixel", ylim=(0, None))
    border.plot(seen.border_profile)
    border.axhline(1, color="black", linewidth=0.8)
    border.set(title="squared error, inside = 1", xlabel="pixels from the border", ylim=(0, None))
    fig.suptitle(title)
    return fig


def _spectrum(error: Tensor) -> Tensor:
    """Compute the logarithm of the power of an error (C, H, W), frequency 0 in the middle: (1, H, W) in [-1, 1]."""
    power = torch.fft.fftshift(torch.fft.fft2(error).abs().square().mean(0))
    return (_decades(power) * 2 - 1).float()[None]


def _decades(power: Tensor) -> Tensor:
    """Map the logarithm of `power` to [0, 1]; the median becomes 1/2."""
    logarithm = power.clamp_min(1e-12).log10()
    return ((logarithm - logarithm.median()) / (2 * DECADES) + 0.5).clamp(0, 1)


def _grey(power: Tensor) -> Pixels:
    grey = (_decades(power) * 255).to(torch.uint8)
    return grey[..., None].expand(-1, -1, 3).numpy()


def _widened(picture: Pixels, width: int) -> Pixels:
    return np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=255)
