"""Measure the artefacts of reconstructions and the latents of a model over many images, in constant memory.

Artefacts, each a number that is compared with a threshold in `findings`: blur, grid, checkerboard, colour shift, error
at the border, spots. All but the border are measured inside of it: one artefact does not raise another's number.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from klvae_edu.autoencoder import AutoencoderKL
from klvae_edu.evaluation.spectra import cielab, circular_power, high_and_all, peak_at, repetition_of
from klvae_edu.gaussian import DiagonalGaussianDistribution
from klvae_edu.metrics import psnr

MIN_LATENT_SIDE = 12  # latent pixels, of which the border takes 2 on each side: the rest must show a repetition
MARGIN = 2  # latent pixels that count as border
MIN_MARGIN = 8  # pixels
WORST = 4  # images that are kept for the picture
SPOT = 8  # pixels: side of the windows in which a spot must be off on average
SPOT_ERROR = (
    0.6  # of the range of 2, on average over a window: healthy models reach 0.38, white droplets have 1 or more
)
SPOT_OUTLIER = 5  # times the image's root mean squared error: where everything is wrong, nothing is a spot


@dataclass(frozen=True)
class Artefacts:
    """Measures of the artefacts in the reconstructions of `images` images.

    Attributes:
        psnr: dB, average of the images.
        detail: of the originals' finest detail, the share that is left; 1: all. It is the mean squared second
            difference of neighbouring pixels, at the median place within a latent pixel: seams do not count.
        grid: relative strength, from 0 to 1, with which steps in the error repeat every f pixels.
        grid_to_noise: the same divided by what other periods have.
        checkerboard: amplitude of the pattern with a period of 2 pixels, in levels of 255.
        checkerboard_to_noise: its power divided by that of neighbouring frequencies.
        overtone: amplitude at the periods f, f/2, f/3, … above 2 pixels; a grid of thin lines has the same at 2 pixels.
        colour: ΔE in CIELAB between the mean colours of an image and its reconstruction, average; nan: no colours.
        border: error at the worst distance from the border (less than f pixels), divided by that inside (squared).
        spots: share of the images with a window that is off by more than `SPOT_ERROR`.
        saturated: share of the images with such a window that is black or white in a channel.
        border_profile: (f·2,) mean squared error at 0, 1, … pixels from the border, divided by that inside.
        repetition: (n/2 + 1,) relative strength of 0, 1, … repetitions of steps in the error over the inside.
        error_spectrum: (n, n) mean power of the error, frequency 0 in the middle.
        spectra: (2, n/2) mean power of originals and reconstructions at 1, 2, … cycles over the inside.
    """

    images: int
    psnr: float
    detail: float
    grid: float
    grid_to_noise: float
    checkerboard: float
    checkerboard_to_noise: float
    overtone: float
    colour: float
    border: float
    spots: float
    saturated: float
    border_profile: Tensor
    repetition: Tensor
    error_spectrum: Tensor
    spectra: Tensor


@dataclass(frozen=True)
class Example:
    """An image with its reconstruction, both (C, H, W), and its PSNR in dB."""

    psnr: float
    original: Tensor
    reconstruction: Tensor


class Xray:
    """Sums over batches of images and their reconstructions, of one size.

    Args:
        factor: f, the side of a latent pixel in pixels.

    Attributes:
        spectral_power: (2,) of the posteriors' means, above a quarter of a cycle per latent pixel, and all.
    """

    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.margin = max(MARGIN * factor, MIN_MARGIN)
        self.count = 0
        self.sums: dict[str, Tensor] = {}
        self.spectral_power = torch.zeros(2, dtype=torch.float64)
        self._worst: list[tuple[float, int, Example]] = []

    @torch.no_grad()
    def posteriors(self, vae: AutoencoderKL, batches: Iterable[Tensor]) -> Iterator[DiagonalGaussianDistribution]:
        """Encode and decode batches (B, C, H, W) in [-1, 1], add them, and yield their posteriors.

        Raises:
            ValueError: as `add`.
        """
        for images in batches:
            posterior = vae.encode(images.to(vae.device)).latent_dist
            self.add(images, vae.decode(posterior.mode()).sample.float().cpu())
            self.spectral_power += high_and_all(posterior.mean.float())
            yield posterior

    @property
    def spectral_share(self) -> float:
        """Share of high frequencies in the power of the latents; white noise has 0.80. nan: latents without any."""
        high, total = self.spectral_power.tolist()
        return high / total if total else math.nan

    @property
    def worst(self) -> list[Example]:
        """The images with the lowest PSNR, the worst first."""
        return [example for *_, example in sorted(self._worst, reverse=True)]

    def add(self, originals: Tensor, reconstructions: Tensor) -> None:
        """Add images and their reconstructions, both (B, C, H, W) in [-1, 1]; the latter are clamped.

        Raises:
            ValueError: not square, smaller than 12 latent pixels, or images that `psnr` refuses.
        """
        height, width = originals.shape[-2:]
        least = max(MIN_LATENT_SIDE * self.factor, 4 * MIN_MARGIN)
        if height != width or height < least or height % self.factor:
            raise ValueError(
                f"expected square images of {least} pixels or more, in multiples of {self.factor}; got {width}x{height}"
            )
        of_images = psnr(reconstructions, originals)
        originals, shown = originals.float(), reconstructions.float().clamp(-1, 1)
        for number, decibels in enumerate(of_images.tolist(), start=self.count):
            example = Example(decibels, originals[number - self.count], shown[number - self.count])
            add = heapq.heappush if len(self._worst) < WORST else heapq.heappushpop
            add(self._worst, (-decibels, number, example))
        self.count += len(originals)
        error = shown - originals
        new = {"psnr": of_images.double().sum(), "squares": error.square().mean(1).sum(0)}
        inside = slice(self.margin, -self.margin)
        originals, shown, error = (x[..., inside, inside] for x in (originals, shown, error))
        new["error"] = torch.fft.fft2(error).abs().square().mean(1).sum(0)
        new["spectra"] = torch.stack([circular_power(x) for x in (originals, shown)])
        new["detail"] = torch.stack([self._by_place(x) for x in (originals, shown)])
        steps = [error.diff(dim=dim).abs().sqrt().mean((1, 5 - dim)).sum(0) for dim in (2, 3)]  # (n - 1,) each
        new["steps"] = torch.stack(steps)
        if originals.shape[1] in (1, 3):
            new["colour"] = (cielab(shown) - cielab(originals)).mean((2, 3)).norm(dim=1).sum()
        new["spots"] = _spots(error, shown).sum(1)
        for name, value in new.items():
            self.sums[name] = self.sums.get(name, torch.zeros(())) + value.double()

    def artefacts(self) -> Artefacts:
        """Compute the measures of all images added so far.

        Raises:
            ValueError: there are none.
        """
        if not self.count:
            raise ValueError("expected one image or more, got none")
        sums, f = {name: value / self.count for name, value in self.sums.items()}, self.factor
        profile, border = self._border(sums["squares"])
        repetition = repetition_of(sums["steps"])
        grid, grid_to_noise = self._grid(repetition)
        power = sums["error"]
        n = len(power)
        at_two = [peak_at(power, *place) for place in ((n // 2, n // 2), (n // 2, 0), (0, n // 2))]
        at_f = [peak_at(power, *place) for k in range(1, (f + 1) // 2) for place in ((n // f * k, 0), (0, n // f * k))]
        checkerboard, to_noise = max(at_two)
        before, after = sums["detail"]
        spots, saturated = sums["spots"].tolist()
        return Artefacts(
            images=self.count,
            psnr=float(sums["psnr"]),
            detail=float((after / before.clamp_min(1e-12)).median()),
            grid=grid,
            grid_to_noise=grid_to_noise,
            checkerboard=checkerboard,
            checkerboard_to_noise=to_noise,
            overtone=max(at_f)[0] if at_f else 0.0,
            colour=float(sums.get("colour", torch.tensor(math.nan))),
            border=border,
            spots=spots,
            saturated=saturated,
            border_profile=profile,
            repetition=repetition,
            error_spectrum=torch.fft.fftshift(power),
            spectra=sums["spectra"],
        )

    def _by_place(self, images: Tensor) -> Tensor:
        """Sum squared second differences over both directions, at each place within a latent pixel: (f,)."""
        found = torch.zeros(self.factor)
        for dim in (2, 3):
            squares = images.diff(n=2, dim=dim).square().mean((1, 5 - dim)).sum(0)  # (n - 2,)
            whole = len(squares) // self.factor * self.factor
            found += squares[:whole].view(-1, self.factor).mean(0)
        return found

    def _border(self, squares: Tensor) -> tuple[Tensor, float]:
        """Divide the error (H, W) at each distance from the border by that inside: the profile, and the worst."""
        side = torch.arange(len(squares))
        distance = torch.minimum(side, side.flip(0))
        distance = torch.minimum(distance[:, None], distance)
        inside = squares[distance >= self.margin].mean().clamp_min(1e-12)
        profile = torch.stack([squares[distance == d].mean() for d in range(self.margin)]) / inside
        return profile, float(profile[: self.margin // MARGIN].max())

    def _grid(self, repetition: Tensor) -> tuple[float, float]:
        """Sum the strength at the periods f, f/2, f/3, … above 2 pixels: the root of squares, and that over noise."""
        f, n = self.factor, 2 * len(repetition) - 2
        if f < 3:  # a period of 2 pixels is a checkerboard
            return 0.0, 0.0
        at = torch.arange(1, (f + 1) // 2) * (n // f)
        others = torch.ones(len(repetition), dtype=torch.bool)
        others[at] = others[: max(1, n // f // 2)] = False
        found, noise = repetition[at].norm(), repetition[others].median() * len(at) ** 0.5
        return float(found), float(found / noise.clamp_min(1e-12))


def _spots(error: Tensor, shown: Tensor) -> Tensor:
    """Tell which images have a window that is off by more than `SPOT_ERROR`, and a saturated one of these: (2, B)."""
    limit = (SPOT_OUTLIER * error.square().mean((1, 2, 3), keepdim=True).sqrt()).clamp_min(SPOT_ERROR)
    off = F.avg_pool2d(error - error.mean((2, 3), keepdim=True), SPOT, SPOT // 2).abs() > limit
    full = F.avg_pool2d((shown.abs() >= 1).float(), SPOT, SPOT // 2) > 0.5
    return torch.stack([off.flatten(1).any(1), (off & full).flatten(1).any(1)])
