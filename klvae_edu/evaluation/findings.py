"""Findings about a model: which measures of `xray` pass a threshold, and a sentence for each that says what to try.

Unless a comment says otherwise, a threshold is about the geometric mean of two measured values. One is the worst of the
two bundled models on crops of the held-out photographs and of dead leaves: 24 and the first 8 of 128×128 pixels, 12 of
256×256. The other is the mildest case that must be named: patch-PCA with 4 and 16 components per 8×8 pixels on the same
crops, or artefacts added to the models' reconstructions (values in [-1, 1]).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from klvae_edu.evaluation.xray import SPOT_ERROR, Artefacts

LEAST_DETAIL = 0.195  # bundled models keep 0.21 or more, patch-PCA at most 0.18: both blur, and the margin is small
GRID = 0.021  # bundled models at most 0.012, patch-PCA at least 0.037
GRID_TO_NOISE = 4.0  # bundled models at most 2.9, patch-PCA at least 5.9
CHECKERBOARD = 0.6  # levels of 255; bundled models at most 0.15, an added one of ±0.02 has 2.5
CHECKERBOARD_TO_NOISE = 100.0  # bundled models at most 31; an added one of ±0.02 13,000 or more
OVER_OVERTONE = (
    2.0  # times: an added grid of lines of one pixel has as much at 2 pixels as at f, a factor of 0.9 to 1.0
)
COLOUR = (
    2.3  # ΔE just noticed (Mahy et al. 1994, "Evaluation of Uniform Color Differences"); bundled models at most 0.8
)
BORDER = 4.0  # times; bundled models at most 2.4, added noise of 0.2 in 8 pixels has 7.4
SPOTS = 0.01  # share of the images, a choice: bundled models and patch-PCA have none; see also `xray.SPOT_ERROR`
PRIOR_WIDTH = 0.5  # a choice: a posterior that is wider has collapsed onto the prior, whose width is 1
SCALE = 1.5  # times, a choice: data differ from those of the training by less


@dataclass(frozen=True)
class Latents:
    """Measures of the posteriors of many images.

    Attributes:
        mean, std: (C,) of samples, for each channel.
        width: (C,) root mean square of the posterior's standard deviation.
        signal: (C,) share of the variance that differs from place to place and image to image.
        unused: the numbers of the channels with almost no signal, counted from 0.
        scaling_factor: 1 / standard deviation of all samples; None: they are all equal.
        scaled_std: standard deviation of samples scaled for diffusion; None: the model has no scaling factor.
        spectral_share: share of high frequencies in the power.
    """

    mean: Tensor
    std: Tensor
    width: Tensor
    signal: Tensor
    unused: list[int]
    scaling_factor: float | None
    scaled_std: float | None
    spectral_share: float


@dataclass(frozen=True)
class Finding:
    """Name of a finding, and a sentence with what was measured and what to try."""

    name: str
    text: str


def find(seen: Artefacts, latents: Latents, factor: int) -> list[Finding]:
    """List what is not healthy in a model with the downsample factor `factor`; an empty list: nothing."""
    return [Finding(name, text) for name, text in (*_in_images(seen, factor), *_in_latents(latents))]


def _in_images(seen: Artefacts, factor: int) -> Iterator[tuple[str, str]]:
    if seen.detail < LEAST_DETAIL:
        yield (
            "blur",
            f"Of the originals' finest detail {seen.detail:.0%} is left: train longer, with a perceptual and an "
            "adversarial loss (--perceptual-weight, --disc-weight), or take more latent channels.",
        )
    if seen.grid > GRID and seen.grid_to_noise > GRID_TO_NOISE:
        yield (
            "grid",
            f"The error repeats every {factor} pixels ({seen.grid_to_noise:.0f} times what other periods have): let "
            "the decoder see neighbouring latent pixels (3x3 convolutions after each upsampling), and decode without "
            "tiles, or with more overlap.",
        )
    if (
        seen.checkerboard > max(CHECKERBOARD, OVER_OVERTONE * seen.overtone)
        and seen.checkerboard_to_noise > CHECKERBOARD_TO_NOISE
    ):
        yield (
            "checkerboard",
            f"A pattern of 2 pixels has an amplitude of {seen.checkerboard:.1f} levels of 255: upsample by "
            "nearest neighbour before a convolution, not by a transposed one, or lower --disc-weight.",
        )
    if seen.colour > COLOUR:
        yield (
            "colour shift",
            f"The mean colour of an image is off by ΔE {seen.colour:.1f} (2.3 is just noticed): compare the range and "
            "the order of the channels with those in training, and raise the share of the pixel loss, or --recolour "
            "if the data have few colours.",
        )
    if seen.border > BORDER:
        yield (
            "border",
            f"Near the border the squared error is {seen.border:.1f} times that inside: train with larger crops "
            '(--size), or with padding_mode "reflect" in the configuration.',
        )
    if seen.spots > SPOTS:
        yield (
            "spots",
            f"{seen.spots:.0%} of the images have a spot that is off by {SPOT_ERROR / 2:.0%} of the range or more "
            f"({seen.saturated:.0%} a saturated one): compute in float32 (float16 overflows), and start the "
            "discriminator later or lower --disc-weight.",
        )


def _in_latents(latents: Latents) -> Iterator[tuple[str, str]]:
    collapsed = [number for number in latents.unused if latents.width[number] > PRIOR_WIDTH]
    dead = [number for number in latents.unused if number not in collapsed]
    if collapsed:
        yield (
            "collapsed channels",
            f"{_listed(collapsed)} noise from the prior, whatever the image: train with a "
            "smaller --kl-weight, or with fewer channels.",
        )
    if dead:
        yield (
            "dead channels",
            f"{_listed(dead)} constant, whatever the image: train with another --seed or a lower "
            "--lr, or with fewer channels.",
        )
    if latents.scaled_std is not None and not 1 / SCALE <= latents.scaled_std <= SCALE:
        yield (
            "scale",
            f"Latents scaled for diffusion have a standard deviation of {latents.scaled_std:.2f} instead of 1: "
            f"set a scaling factor of {latents.scaling_factor or 1:.4f}, if these images are like the training data.",
        )


def _listed(channels: list[int]) -> str:
    numbers = ", ".join(map(str, channels))
    return f"Latent channels {numbers} are" if len(channels) > 1 else f"Latent channel {numbers} is"
