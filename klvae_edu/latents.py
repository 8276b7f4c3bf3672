"""Measure, display, edit and interpolate latents: pure functions of tensors.

A latent z is (B, C, h, w), with the values of the encoder: it is not multiplied by the scaling factor. No function
modifies its arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from klvae_edu.gaussian import DiagonalGaussianDistribution

# below this sine of the angle `slerp` is `lerp`: parallel vectors differ by 1e-7, for opposite ones no arc is defined
LERP_THRESHOLD = 1e-3

# ---- Statistics ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and standard deviation of latents.

    Attributes:
        mean, std: (C,) float64, one value for each channel.
        overall_mean, overall_std: of all values together. Different means of the channels increase `overall_std`.
    """

    mean: Tensor
    std: Tensor
    overall_mean: float
    overall_std: float

    @property
    def scaling_factor(self) -> float:
        """Compute 1 / `overall_std` (Rombach et al. 2022, appendix G).

        Raises:
            ValueError: all values are the same.
        """
        if self.overall_std == 0:
            raise ValueError("scaling_factor: all latent values are equal: there is no spread to divide by")
        return 1 / self.overall_std


def statistics(batches: Iterable[Tensor]) -> LatentStatistics:
    """Compute mean and standard deviation of all latents in `batches`, each (B, C, h, w), in one pass.

    No batch is stored. For two groups of n and m values, with a difference δ of their means, the sum of squared
    deviations of all values is the sum of both plus δ²·nm / (n + m). A plain sum of z² would be simpler, but it loses
    precision when the mean is large. Variances are divided by n - 1.

    Source: Chan, Golub & LeVeque 1983, "Algorithms for Computing the Sample Variance". Built in notebook 10, section 1.

    Raises:
        ValueError: a batch that is not (B, C, h, w), another number of channels, or fewer than two values a channel.
    """
    # For each channel: number of values, mean, sum of squared deviations from the mean.
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
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
    # Combine the channels by the same formula: all have `count` values.
    overall_mean = mean.mean()
    overall_squares = squares.sum() + count * (mean - overall_mean).square().sum()
    overall_std = (overall_squares / (len(mean) * count - 1)).sqrt()
    return LatentStatistics(mean, (squares / (count - 1)).sqrt(), overall_mean.item(), overall_std.item())


# ---- Display ---------------------------------------------------------------------------------------------------------


def channel_pictures(z: Tensor, like: Tensor | None = None) -> Tensor:
    """Turn each channel into a grey image: (B, C, h, w) -> (B, C, 1, h, w) in [-1, 1].

    The spatial mean of the channel becomes middle grey. Three standard deviations above it are white, and three below
    it are black. With `like` (B, C, h, w), mean and standard deviation are those of `like`: use it to compare edited
    latents with the original.

    Used in notebook 10, section 1.
    """
    like = z if like is None else like
    _check_latents("channel_pictures", z, like)
    mean, std = like.mean((2, 3), keepdim=True), like.std((2, 3), keepdim=True, correction=0)
    # The standard deviation of a constant channel is 0: its mean is middle grey, any other value is black or white.
    return ((z - mean) / (3 * std).clamp_min(1e-12)).clamp(-1, 1).unsqueeze(2)


def fit_preview(latents: Tensor, colours: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a linear map from latent pixels to colours by least squares: weight (C, 3) and bias (3,).

    Args:
        latents: (B, C, h, w).
        colours: (B, 3, h, w) in [-1, 1]: the images, averaged over the f×f pixels of each latent pixel.

    Raises:
        ValueError: shapes that do not match.

    Built in notebook 10, section 2.
    """
    shape = (len(latents), 3, *latents.shape[2:])
    if latents.ndim != 4 or colours.shape != shape:
        shapes = f"{tuple(latents.shape)} and {tuple(colours.shape)}"
        raise ValueError(f"fit_preview: expected latents (B, C, h, w) and colours (B, 3, h, w), got {shapes}")
    # (B·h·w, C) and (B·h·w, 3)
    values, targets = (x.detach().cpu().double().movedim(1, -1).flatten(0, 2) for x in (latents, colours))
    with_one = torch.cat([values, torch.ones(len(values), 1, dtype=values.dtype)], dim=1)
    solution = torch.linalg.lstsq(with_one, targets).solution.to(latents.device, latents.dtype)
    return solution[:-1], solution[-1]


def preview(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute a small image without the decoder, by the map of `fit_preview`: (B, 3, h, w), clamped to [-1, 1].

    Args:
        z: (B, C, h, w).
        weight, bias: (C, 3) and (3,), from `fit_preview`.
    """
    return (torch.einsum("bchw,cd->bdhw", z, weight) + bias[:, None, None]).clamp(-1, 1)


# ---- Editing ---------------------------------------------------------------------------------------------------------


def edit_channel(z: Tensor, channel: int, shift: float = 0.0, scale: float = 1.0, mute: bool = False) -> Tensor:
    """Copy `z` with one channel scaled about its mean, then shifted. `mute` is the same as scale 0.

    The mean is the spatial mean of the channel, for each latent of the batch separately. So `scale` changes the
    contrast of the channel, but not its mean.

    Raises:
        ValueError: `z` is not (B, C, h, w), or has no such channel.

    Built in notebook 10, section 2.
    """
    _check_latents("edit_channel", z)
    _check_index("channel", channel, z.shape[1])
    edited = z.clone()
    mean = z[:, channel].mean((1, 2), keepdim=True)
    edited[:, channel] = mean + (0.0 if mute else scale) * (z[:, channel] - mean) + shift
    return edited


def with_temperature(posterior: DiagonalGaussianDistribution, temperature: float, noise: Tensor) -> Tensor:
    """Compute mean + temperature · std · noise: (B, C, h, w).

    Temperature 0 gives the mode. Temperature 1 gives a sample of the posterior, if the noise is from N(0, I).

    Raises:
        ValueError: noise of another shape (broadcasting would hide it).

    Built in notebook 10, section 3.
    """
    if noise.shape != posterior.mean.shape:
        shapes = f"{tuple(posterior.mean.shape)}, got {tuple(noise.shape)}"
        raise ValueError(f"with_temperature: expected noise of the mean's shape {shapes}")
    return posterior.mean + temperature * posterior.std * noise


def poke(z: Tensor, row: int, column: int, amount: float, channel: int) -> Tensor:
    """Copy `z` and add `amount` to one value: the latent pixel (row, column) of one channel.

    Raises:
        ValueError: `z` is not (B, C, h, w), or an index is out of range.

    Used in notebook 10, section 4.
    """
    _check_latents("poke", z)
    for name, index, size in zip(("channel", "row", "column"), (channel, row, column), z.shape[1:], strict=True):
        _check_index(name, index, size)
    poked = z.clone()
    poked[:, channel, row, column] += amount
    return poked


def quantise(z: Tensor, bits: int, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Round each value of `z` to the nearest of 2**bits levels, evenly spaced from `low` to `high`.

    Both ends are levels, so the step is (high - low) / (2**bits - 1). Values outside the range are clamped to it.

    Args:
        bits: 1 or more.
        low, high: numbers, or tensors that broadcast with z, such as (C, 1, 1).

    Raises:
        ValueError: `bits` is not a whole number or less than 1, or `low` is not less than `high`.

    Built in notebook 10, section 6.
    """
    low, high = (torch.as_tensor(end, dtype=z.dtype, device=z.device) for end in (low, high))
    if bits < 1 or int(bits) != bits or not (low < high).all():
        raise ValueError(f"quantise: expected a whole number of bits, 1 or more, and low < high; got {bits=}")
    step = (high - low) / (2**bits - 1)
    return low + step * ((z.clamp(low, high) - low) / step).round()


# ---- Interpolation and sampling --------------------------------------------------------------------------------------


def lerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Interpolate linearly, (1 - t)·a + t·b: `a` at t = 0, `b` at t = 1.

    Raises:
        ValueError: `a` and `b` differ in shape (broadcasting would hide it).
    """
    _check_pair("lerp", a, b)
    return torch.lerp(a, b, t)


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Interpolate along an arc: sin((1 - t)Ω) / sin Ω · a + sin(tΩ) / sin Ω · b, where Ω is the angle between a and b.

    Each pair of the batch is one pair of vectors with its own Ω. If both have the same norm, all values of t give this
    norm. For nearly parallel or opposite vectors the quotient is 0 / 0; they are interpolated linearly.

    Raises:
        ValueError: `a` and `b` differ in shape, or have only the batch dimension.

    Source: Shoemake 1985, "Animating Rotation with Quaternion Curves". Built in notebook 10, section 5.
    """
    _check_pair("slerp", a, b)
    if a.ndim < 2:
        raise ValueError(f"slerp: expected (B, …), for an angle of each pair in a batch; got shape {tuple(a.shape)}")
    u, v = F.normalize(a.flatten(1)), F.normalize(b.flatten(1))  # (B, values), unit vectors
    # Kahan's formula. For small angles arccos(u·v) would lose half of the digits.
    angle = 2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1))
    angle = angle.view(-1, *(1,) * (a.ndim - 1))  # (B, 1, …)
    arc = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / angle.sin()
    return torch.where(angle.sin() < LERP_THRESHOLD, lerp(a, b, t), arc)


def prior_sample(shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
    """Draw a latent of `shape` from N(0, I), the prior of the KL term: float32, not multiplied by the scaling factor.

    The result is on the generator's device, so that a seed on the CPU gives the same sample on every machine. Used in
    notebook 10, section 7.
    """
    device = "cpu" if generator is None else generator.device
    return torch.randn(tuple(shape), generator=generator, device=device)


# ---- Checks ----------------------------------------------------------------------------------------------------------


def _check_latents(function: str, *latents: Tensor) -> None:
    """Raise a `ValueError` unless all `latents` have one shape (B, C, h, w)."""
    shapes = [tuple(z.shape) for z in latents]
    if len({*shapes}) > 1 or len(shapes[0]) != 4:
        got = " and ".join(map(str, shapes))
        raise ValueError(f"{function}: expected latents of one shape (B, C, h, w), got {got}")


def _check_pair(function: str, a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{function}: expected two latents of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")


def _check_index(name: str, index: int, size: int) -> None:
    if not 0 <= index < size:
        raise ValueError(f"{name}: expected 0 to {size - 1}, got {index}")
