"""Power spectra of images, of errors and of latents; and CIELAB."""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 127.5  # steps of an 8-bit picture in a unit of [-1, 1]


def radii(n: int) -> Tensor:
    """Return the frequency of each place of an n×n `fft2`, in cycles per pixel: (n, n)."""
    frequencies = torch.fft.fftfreq(n)
    return torch.hypot(frequencies[:, None], frequencies)


def circular_power(images: Tensor) -> Tensor:
    """Sum the power (B, C, n, n) over the batch, average it over circles of 1, 2, … cycles: (n/2 - 1,)."""
    n = images.shape[-1]
    window = torch.hann_window(n)
    centred = images - images.mean((2, 3), keepdim=True)
    power = torch.fft.fft2(centred * window * window[:, None]).abs().square().mean(1).sum(0)
    circle = (radii(n) * n).round().long().flatten()
    return (torch.bincount(circle, power.flatten()) / torch.bincount(circle))[1 : n // 2]


def high_and_all(means: Tensor) -> Tensor:
    """Sum the power of latents (B, C, h, w) above a quarter of a cycle per latent pixel, and all: (2,)."""
    power = torch.fft.fft2(means - means.mean((2, 3), keepdim=True)).abs().square().sum((0, 1)).double().cpu()
    return torch.stack([power[radii(len(power)) > 0.25].sum(), power.sum()])


def peak_at(power: Tensor, row: int, column: int) -> tuple[float, float]:
    """Measure the peak of a power spectrum (n, n) above its neighbours: amplitude in levels, and power over theirs."""
    n = len(power)
    offsets = [(i, j) for i in range(-4, 5) for j in range(-4, 5) if (i, j) != (0, 0)]
    if 0 in (row, column):  # the cross through frequency 0 is brighter than what is beside it
        offsets = [(i, j) for i, j in offsets if (j if column == 0 else i) == 0 and abs(i + j) > 1]
    noise = torch.stack([power[(row + i) % n, (column + j) % n] for i, j in offsets]).median().clamp_min(1e-12)
    peak = power[row, column]
    return float((peak - noise).clamp_min(0).sqrt() / n**2 * LEVELS), float(peak / noise)


def repetition_of(steps: Tensor) -> Tensor:
    """Transform the mean size of steps at n - 1 places, (2, n - 1) down and across: strengths (n/2 + 1,)."""
    steps = torch.cat([steps.mean(1, keepdim=True), steps], dim=1)
    return (2 * torch.fft.rfft(steps).abs() / steps.sum(1, keepdim=True).clamp_min(1e-12)).mean(0)


def cielab(images: Tensor) -> Tensor:
    """Convert sRGB images (B, 3, H, W), or grey ones (B, 1, H, W), in [-1, 1] to CIELAB: L, a, b, (B, 3, H, W).

    Reference white is D65. Source: IEC 61966-2-1 (sRGB) and CIE 15 (CIELAB).
    """
    values = (images.clamp(-1, 1) + 1) / 2
    linear = torch.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4).expand(-1, 3, -1, -1)
    to_xyz = images.new_tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = torch.einsum("ij,bjhw->bihw", to_xyz / to_xyz.sum(1, keepdim=True), linear)
    x, y, z = torch.where(xyz > (6 / 29) ** 3, xyz ** (1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29).unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)
