"""What can be done to latents: measure them, show them, edit them, mix them. Pure functions of tensors.

A latent z is (B, C, h, w) and in its own units, as the encoder gives it: not multiplied by the scaling factor. No
function changes the tensor that it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from klvae_edu.gaussian import DiagonalGaussianDistribution

STRAIGHT = 1e-3  # sine of an angle below which an arc and its chord agree to 1e-7

# ---- Measured --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and standard deviation of latents; the deviations are those of a sample, with n - 1.

    Attributes:
        mean, std: (C,), float64, of each channel.
        overall_mean, overall_std: of all values together: the spread of the channels' means is a part of it.
    """

    mean: Tensor
    std: Tensor
    overall_mean: float
    overall_std: float

    @property
    def scaling_factor(self) -> float:
        """1 / standard deviation of all values (Rombach et al. 2022, appendix G). ValueError where all are the same."""
        if self.overall_std == 0:
            raise ValueError("scaling_factor: all latent values are the same, so there is no spread to divide by")
        return 1 / self.overall_std


def statistics(batches: Iterable[Tensor]) -> LatentStatistics:
    """Mean and standard deviation of all latents in `batches`, each (B, C, h, w), seen once and not kept.

    Two groups of n and m values whose means lie δ apart make one, whose sum of squared deviations is the sum of theirs
    plus δ²·nm / (n + m). Sums of z² would need no such formula, and lose their digits when the mean is large.

    Source: Chan, Golub & LeVeque 1983, "Algorithms for Computing the Sample Variance". Built in notebook 10, section 1.

    Raises:
        ValueError: a batch that is not (B, C, h, w), another number of channels, or fewer than two values a channel.
    """
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())  # of each channel: squared deviations from its mean
    for batch in batches:
        if batch.ndim != 4 or (count and batch.shape[1] != len(mean)):
            channels = len(mean) if count else "C"
            raise ValueError(f"statistics: expected batches (B, {channels}, h, w), got {tuple(batch.shape)}")
        values = batch.detach().cpu().double().transpose(0, 1).flatten(1)  # (C, n)
        new = values.shape[1]
        if new == 0:
            continue
        new_mean = values.mean(1)
        distance, total = new_mean - mean, count + new
        squares = squares + (values - new_mean[:, None]).square().sum(1) + distance.square() * count * new / total
        mean, count = mean + distance * new / total, total
    if count < 2:
        raise ValueError(f"statistics: expected two values a channel or more, got {count}")
    overall_mean = mean.mean()
    overall_squares = squares.sum() + count * (mean - overall_mean).square().sum()
    overall_std = (overall_squares / (len(mean) * count - 1)).sqrt()
    return LatentStatistics(mean, (squares / (count - 1)).sqrt(), overall_mean.item(), overall_std.item())


# ---- Shown -----------------------------------------------------------------------------------------------------------


def channel_pictures(z: Tensor, like: Tensor | None = None) -> Tensor:
    """Each channel as a grey picture: (B, C, h, w) -> (B, C, 1, h, w) in [-1, 1].

    The channel's mean over its picture is middle grey; three standard deviations above it are white, below it black.
    With `like` (B, C, h, w) it is that latent's mean and deviation, so that pictures of its edits can be compared.

    Built in notebook 10, section 1.
    """
    like = z if like is None else like
    _check_latents("channel_pictures", z, like)
    mean, std = like.mean((2, 3), keepdim=True), like.std((2, 3), keepdim=True, correction=0)
    # A constant channel has no deviation: it is middle grey, and what differs from it is black or white.
    return ((z - mean) / (3 * std).clamp_min(1e-12)).clamp(-1, 1).unsqueeze(2)


def fit_preview(latents: Tensor, colours: Tensor) -> tuple[Tensor, Tensor]:
    """The linear map from a latent pixel to a colour with the least squared error: weight (C, 3) and bias (3,).

    Args:
        latents: (B, C, h, w).
        colours: (B, 3, h, w) in [-1, 1]: the images, averaged over the f×f pixels of each latent pixel.

    Raises:
        ValueError: shapes that do not belong together.

    Built in notebook 10, section 2.
    """
    shape = (len(latents), 3, *latents.shape[2:])
    if latents.ndim != 4 or colours.shape != shape:
        shapes = f"{tuple(latents.shape)} and {tuple(colours.shape)}"
        raise ValueError(f"fit_preview: expected latents (B, C, h, w) and colours (B, 3, h, w), got {shapes}")
    values, targets = (x.detach().cpu().double().movedim(1, -1).flatten(0, 2) for x in (latents, colours))
    with_one = torch.cat([values, torch.ones(len(values), 1, dtype=values.dtype)], dim=1)
    solution = torch.linalg.lstsq(with_one, targets).solution.to(latents.device, latents.dtype)
    return solution[:-1], solution[-1]


def preview(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A small picture without the decoder, by the map of `fit_preview`: (B, C, h, w) -> (B, 3, h, w), clamped."""
    return (torch.einsum("bchw,cd->bdhw", z, weight) + bias[:, None, None]).clamp(-1, 1)


# ---- Edited ----------------------------------------------------------------------------------------------------------


def edit_channel(z: Tensor, channel: int, shift: float = 0.0, scale: float = 1.0, mute: bool = False) -> Tensor:
    """`z` with one channel scaled about its mean, then shifted; muted, it is that mean everywhere (scale 0).

    The mean is the one over the channel's picture, for each latent of the batch by itself: a scale changes the contrast
    of the channel and leaves its level alone.

    Raises:
        ValueError: no such channel.

    Built in notebook 10, section 2.
    """
    _check_latents("edit_channel", z)
    _check_index("channel", channel, z.shape[1])
    edited = z.clone()
    mean = z[:, channel].mean((1, 2), keepdim=True)
    edited[:, channel] = mean + (0.0 if mute else scale) * (z[:, channel] - mean) + shift
    return edited


def with_temperature(posterior: DiagonalGaussianDistribution, temperature: float, noise: Tensor) -> Tensor:
    """mean + temperature · std · noise: at 0 the mode, at 1 a sample of the posterior if the noise is from N(0, I).

    Raises:
        ValueError: noise of another shape (broadcasting would hide it).

    Built in notebook 10, section 3.
    """
    if noise.shape != posterior.mean.shape:
        shapes = f"{tuple(posterior.mean.shape)}, got {tuple(noise.shape)}"
        raise ValueError(f"with_temperature: expected noise of the mean's shape {shapes}")
    return posterior.mean + temperature * posterior.std * noise


def poke(z: Tensor, row: int, column: int, amount: float, channel: int) -> Tensor:
    """`z` with `amount` added to one value: the latent pixel (row, column) of one channel.

    Raises:
        ValueError: there is no such value.

    Built in notebook 10, section 4.
    """
    _check_latents("poke", z)
    for name, index, size in zip(("channel", "row", "column"), (channel, row, column), z.shape[1:], strict=True):
        _check_index(name, index, size)
    poked = z.clone()
    poked[:, channel, row, column] += amount
    return poked


def quantise(z: Tensor, bits: int, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Each value of `z` moved to the nearest of 2**bits levels, which are evenly spaced from `low` to `high`.

    Both ends are levels: the step is (high - low) / (2**bits - 1). Values outside are moved to the ends.

    Args:
        bits: 1 or more.
        low, high: numbers, or tensors that broadcast with z, such as (C, 1, 1).

    Raises:
        ValueError: less than one bit, or a range without width.

    Built in notebook 10, section 6.
    """
    low, high = (torch.as_tensor(end, dtype=z.dtype, device=z.device) for end in (low, high))
    if bits < 1 or int(bits) != bits or not (low < high).all():
        raise ValueError(f"quantise: expected a whole number of bits, 1 or more, and low < high; got {bits=}")
    step = (high - low) / (2**bits - 1)
    return low + step * ((z.clamp(low, high) - low) / step).round()


# ---- Mixed and drawn -------------------------------------------------------------------------------------------------


def lerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """(1 - t)·a + t·b, along the straight line: a at t = 0, b at t = 1.

    Raises:
        ValueError: `a` and `b` differ in shape (broadcasting would hide it).
    """
    _check_pair("lerp", a, b)
    return torch.lerp(a, b, t)


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """From `a` to `b` along an arc: sin((1 - t)Ω) / sin Ω · a + sin(tΩ) / sin Ω · b, with Ω the angle between them.

    Each pair of the batch has its own Ω, over all its values. Where both are equally long, so is everything between
    them. Nearly parallel (or opposite) pairs, for which the quotient is 0 / 0, go along the straight line.

    Raises:
        ValueError: `a` and `b` differ in shape, or have no dimension beside the batch.

    Source: Shoemake 1985, "Animating Rotation with Quaternion Curves". Built in notebook 10, section 5.
    """
    _check_pair("slerp", a, b)
    if a.ndim < 2:
        raise ValueError(f"slerp: expected (B, …), for an angle of each pair in a batch; got shape {tuple(a.shape)}")
    u, v = F.normalize(a.flatten(1)), F.normalize(b.flatten(1))
    # Kahan's formula: arccos(u·v) would lose half of the digits of a small angle.
    angle = 2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1))
    angle = angle.view(-1, *(1,) * (a.ndim - 1))
    arc = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / angle.sin()
    return torch.where(angle.sin() < STRAIGHT, lerp(a, b, t), arc)


def prior_sample(shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
    """A draw from N(0, I), the prior of the KL term, in the latent's own units: a tensor of `shape`, float32.

    It lies on the generator's device, so that a CPU seed gives one draw everywhere. Built in notebook 10, section 7.
    """
    device = "cpu" if generator is None else generator.device
    return torch.randn(tuple(shape), generator=generator, device=device)


# ---- Doors -----------------------------------------------------------------------------------------------------------


def _check_latents(function: str, *latents: Tensor) -> None:
    shapes = [tuple(z.shape) for z in latents]
    if len({*shapes}) > 1 or len(shapes[0]) != 4:
        got = " and ".join(map(str, shapes))
        raise ValueError(f"{function}: expected latents of one shape (B, C, h, w), got {got}")


def _check_pair(function: str, a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{function}: expected two of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")


def _check_index(name: str, index: int, size: int) -> None:
    if not 0 <= index < size:
        raise ValueError(f"{name}: expected 0 to {size - 1}, got {index}")
