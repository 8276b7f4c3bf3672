"""Panels: explorers in which sliders edit the latent of a photograph. Each applies a function of `latents`.

The photograph is encoded once; moving a slider only decodes. The whole latent is decoded even after a small change:
the decoder's attention and its GroupNorms use the whole feature map, so every pixel may change. A panel shows a
function of its sliders and the photograph, independent of earlier settings.

A photograph is an image (3, H, W) or (1, 3, H, W) in [-1, 1], or a `Photograph`. When a `Photograph` is replaced, its
panels are redrawn.
Used in notebook 10.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from klvae_edu import latents, plots
from klvae_edu.autoencoder import AutoencoderKL
from klvae_edu.explore.controls import Choice, Slider
from klvae_edu.explore.explorer import Explorer
from klvae_edu.explore.montage import frame, montage, side_by_side
from klvae_edu.explore.photograph import SIDE, Encoded, Photograph, encode
from klvae_edu.metrics import psnr

MUTE_NONE, MUTE_THIS, MUTE_OTHERS = "none", "this channel", "the other channels"
LINE, ARC = "straight line", "arc"
CHANGE_SHOWN = 4  # factor by which the change of a picture is amplified for display

_THUMBNAIL = 144  # longest side in pixels on a contact sheet; small, because a notebook stores one sheet per panel


def channels(vae: AutoencoderKL, image: Tensor | Photograph) -> Explorer:
    """Shift, scale or mute one channel, or mute all others. Left: the decoded picture; right: all channels."""
    subject, count = _subject(vae, image), vae.config.latent_channels

    def draw(channel: int, shift: float, scale: float, mute: str) -> plots.Pixels:
        z = edited = subject().z
        for other in range(count) if mute == MUTE_OTHERS else ():
            edited = latents.edit_channel(edited, other, mute=other != channel)
        std = z[:, channel].std().item()
        edited = latents.edit_channel(edited, channel, shift * std, scale, mute=mute == MUTE_THIS)
        return side_by_side(_decode(vae, edited), _channel_sheet(edited, like=z, marked=channel))

    def caption(channel: int, shift: float, scale: float, mute: str) -> str:
        return (
            f"Left: the decoded picture. Right: channels 0 to {count - 1}, row by row, {channel} framed. "
            f"It is scaled by {scale:.2g} and shifted by {shift:.2g} of its standard deviations. Muted: {mute}."
        )

    controls: dict[str, Slider | Choice] = {
        "channel": Choice("Channel", range(count)),
        "shift": Slider("Shift in std", -3, 3, 0.1, 1.5),  # not 0: each channel shows an effect at once
        "scale": Slider("Scale", -1, 3, 0.1, 1),
        "mute": Choice("Mute", [MUTE_NONE, MUTE_THIS, MUTE_OTHERS]),
    }
    return _panel("Channels of the latent", draw, controls, caption, vae, image)


def temperature(vae: AutoencoderKL, image: Tensor | Photograph) -> Explorer:
    """Multiply the noise of a posterior sample by a temperature. Left: the decoded sample; right: the decoded mode."""
    subject = _subject(vae, image)

    def draw(temperature: float, seed: float) -> tuple[plots.Pixels, str]:
        photograph = subject()
        posterior = photograph.posterior
        noise = latents.prior_sample(posterior.mean.shape, _generator(seed)).to(photograph.z)
        decoded = _decode(vae, latents.with_temperature(posterior, temperature, noise))
        measured = f"The noise has {temperature * _relative_noise(photograph):.2g} times the latent's spread"
        pictures = side_by_side(decoded, photograph.decoded[0])
        return pictures, f"{measured}; {_psnr(decoded, photograph.decoded)} against the mode."

    def caption(temperature: float, seed: float) -> str:
        return f"Left: decoded at temperature {temperature:g}, noise {seed:g}. Right: the mode, which is temperature 0."

    # The range ends where the noise has twice the latent's standard deviation. With a small KL weight the posterior is
    # so narrow that even temperature 100 changes nothing.
    strongest = 2 / _relative_noise(subject())
    temperatures = [0.0, 0.5, 1.0, 2.0]
    while temperatures[-1] < strongest and len(temperatures) < 20:
        temperatures.append(temperatures[-3] * 10)
    controls: dict[str, Slider | Choice] = {
        "temperature": Choice("Temperature", temperatures, 1.0, "{:g}".format),
        "seed": Slider("Noise number", 0, 9, 1, 0),
    }
    return _panel("Temperature of the posterior", draw, controls, caption, vae, image)


def interpolation(vae: AutoencoderKL, first: Tensor | Photograph, second: Tensor | Photograph) -> Explorer:
    """Interpolate between two photographs of the same size. Left: mixed latents, decoded; right: mixed pixels."""
    start, end = _subject(vae, first), _subject(vae, second)

    def draw(t: float, way: str) -> tuple[plots.Pixels, str]:
        a, b = start(), end()
        z = (latents.slerp if way == ARC else latents.lerp)(a.z, b.z, t)
        norms = ", ".join(f"{latent.norm().item():.3g}" for latent in (a.z, z, b.z))
        pictures = side_by_side(_decode(vae, z), latents.lerp(a.decoded, b.decoded, t)[0])
        return pictures, f"Norms of the first latent, the mixed and the second: {norms}."

    def caption(t: float, way: str) -> str:
        return f"Left: latents mixed at t = {t:.2f} along the {way} and decoded. Right: the two decoded, pixels mixed."

    controls: dict[str, Slider | Choice] = {"t": Slider("t", 0, 1, 0.05, 0.5), "way": Choice("Way", [LINE, ARC])}
    return _panel("Between two photographs", draw, controls, caption, vae, first, second)


def pixel(vae: AutoencoderKL, image: Tensor | Photograph) -> Explorer:
    """Change one latent value. Left: the decoded picture, the square of the latent pixel framed; right: the change."""
    subject, factor = _subject(vae, image), vae.downsample_factor
    height, width = subject().z.shape[2:]

    def draw(row: float, column: float, amount: float, channel: int) -> tuple[plots.Pixels, str]:
        photograph = subject()
        top, left = int(row), int(column)
        by = amount * photograph.z[:, channel].std().item()
        decoded = _decode(vae, latents.poke(photograph.z, top, left, by, channel))
        change = decoded - photograph.decoded[0]
        near = change[:, factor * max(top - 1, 0) : factor * (top + 2), factor * max(left - 1, 0) : factor * (left + 2)]
        share = near.square().sum() / change.square().sum().clamp_min(1e-12)
        measured = f"{share.item():.0%} of the squared change lies within {factor} pixels of the frame."
        pictures = [plots.to_image(picture) for picture in (decoded, CHANGE_SHOWN * change)]
        for picture in pictures:
            frame(picture, factor * top, factor * left, factor, factor)
        return side_by_side(*pictures), measured

    def caption(row: float, column: float, amount: float, channel: int) -> str:
        return (
            f"Left: decoded after the value of channel {channel} at row {row:g}, column {column:g} moved by {amount:g} "
            f"standard deviations. Right: what changed, {CHANGE_SHOWN} times as strong; grey is no change."
        )

    controls: dict[str, Slider | Choice] = {
        "row": Slider("Row", 0, height - 1, 1, height // 2),
        "column": Slider("Column", 0, width - 1, 1, width // 2),
        "amount": Slider("Amount in std", -20, 20, 1, 10),
        "channel": Choice("Channel", range(vae.config.latent_channels)),
    }
    return _panel("One latent pixel", draw, controls, caption, vae, image)


def bits(vae: AutoencoderKL, image: Tensor | Photograph) -> Explorer:
    """Quantise each channel to n bits between its minimum and maximum. Left: quantised; right: exact values."""
    subject = _subject(vae, image)

    def draw(bits: float) -> tuple[plots.Pixels, str]:
        photograph = subject()
        z = photograph.z
        rounded = latents.quantise(z, int(bits), z.amin((2, 3), keepdim=True), z.amax((2, 3), keepdim=True))
        decoded = _decode(vae, rounded)
        size = math.ceil(z.numel() * bits / 8)
        exact = _psnr(photograph.decoded[0], photograph.image)
        measured = f"{size} bytes, {_psnr(decoded, photograph.image)}; exact: {exact}, both against the photograph."
        return side_by_side(decoded, photograph.decoded[0]), measured

    def caption(bits: float) -> str:
        return f"Left: decoded from {bits:g} bits a value, {2 ** int(bits)} levels a channel. Right: from exact values."

    return _panel("Bits per value", draw, {"bits": Slider("Bits", 1, 8, 1, 3)}, caption, vae, image)


def prior(vae: AutoencoderKL) -> Explorer:
    """Decode noise with an adjustable standard deviation. Left: the decoded picture; right: the noise's channels.

    Raises:
        ValueError: the model has no scaling factor, so the standard deviation of its latents is unknown.
    """
    side = SIDE // vae.downsample_factor
    one = vae.in_patches(torch.ones(1, vae.config.latent_channels, side, side, device=vae.device, dtype=vae.dtype))
    real = (vae.unscale_latents(one) - vae.unscale_latents(0 * one)).mean().item()

    def draw(seed: float, spread: float) -> plots.Pixels:
        noise = latents.prior_sample((1, vae.config.latent_channels, side, side), _generator(seed))
        unit = vae.in_patches(noise.to(vae.device, vae.dtype))
        z = vae.unscale_latents(spread * unit)
        return side_by_side(_decode(vae, z), _channel_sheet(z, like=vae.unscale_latents(unit)))

    def caption(seed: float, spread: float) -> str:
        return (
            f"Left: draw {seed:g} from the prior, decoded. Right: its channels. Each value has a standard deviation of "
            f"{spread * real:.2g}; over latents of photographs it is {real:.2g}, in N(0, I) it is 1."
        )

    controls: dict[str, Slider | Choice] = {
        "seed": Slider("Draw number", 0, 19, 1, 0),
        "spread": Slider("Spread / real spread", 0, 2, 0.05, 1),
    }
    return _panel("Draws from the prior", draw, controls, caption, vae)


# ---- Shared functions -----------------------------------------------------------------------------------------------


def _subject(vae: AutoencoderKL, image: Tensor | Photograph) -> Callable[[], Encoded]:
    """Return a function that returns the current photograph, encoded."""
    if isinstance(image, Photograph):
        return lambda: image.encoded(vae)
    encoded = encode(vae, image)
    return lambda: encoded


def _panel(
    title: str,
    draw: Callable[..., Any],
    controls: Mapping[str, Slider | Choice],
    caption: Callable[..., str],
    vae: AutoencoderKL,
    *images: Tensor | Photograph,
) -> Explorer:
    explorer = Explorer(torch.inference_mode()(draw), controls, alt=caption, title=title, thumbnail=_THUMBNAIL)
    for image in images:
        if isinstance(image, Photograph):
            image.follow((title, vae.config), explorer.refresh)
    return explorer


def _relative_noise(photograph: Encoded) -> float:
    """Divide the posterior's standard deviation (root mean square) by the standard deviation of the latent's values."""
    return (photograph.posterior.std.square().mean().sqrt() / photograph.z.std()).item()


def _decode(vae: AutoencoderKL, z: Tensor) -> Tensor:
    """Decode a latent: (1, C, h, w) -> (3, H, W)."""
    return vae.decode(z).sample[0]


def _generator(seed: float) -> torch.Generator:
    return torch.Generator().manual_seed(int(seed))


def _psnr(decoded: Tensor, target: Tensor) -> str:
    """Format the PSNR of (3, H, W) against (1, 3, H, W). The target is clamped: a decoded one may exceed [-1, 1]."""
    return f"PSNR {psnr(decoded[None], target.clamp(-1, 1)).item():.1f} dB"


def _channel_sheet(z: Tensor, like: Tensor, marked: int | None = None) -> plots.Pixels:
    """Draw the channels of `z` (1, C, h, w) in grey, on the grey scale of `like` (see `latents.channel_pictures`)."""
    pictures = latents.channel_pictures(z, like)[0]
    columns = math.ceil(math.sqrt(len(pictures)))
    magnified = max(1, round(SIDE / (columns * z.shape[-1])))
    return montage([plots.to_image(picture) for picture in pictures], columns, magnified, marked)
