"""Solutions of notebook 10. Written by tools.solutions from notebooks/source/10_latent_space_explorer.py; edit that."""

import torch
from torch.nn import functional as F


def latent_statistics(batches):
    """One pass over latents (B, C, h, w) -> mean (C,), standard deviation (C,), and the scaling factor."""
    count, total, squares = 0, torch.zeros(1), torch.zeros(1)
    for z in batches:
        values = z.double().transpose(0, 1).flatten(1)
        count += values.shape[1]
        total = total + values.sum(1)
        squares = squares + values.pow(2).sum(1)
    mean = total / count
    std = (squares / count - mean**2).sqrt()
    overall = (squares.mean() / count - mean.mean() ** 2).sqrt()
    return mean, std, 1 / overall


def fit_preview(z, colours):
    """Latents z (B, C, h, w), colours (B, 3, h, w) -> weight (C, 3), bias (3,): the best under squared error."""
    rows = z.permute(0, 2, 3, 1).flatten(0, 2)
    rgb = colours.permute(0, 2, 3, 1).flatten(0, 2)
    rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
    fitted = torch.linalg.lstsq(rows, rgb).solution
    return fitted[:-1], fitted[-1]


def with_temperature(posterior, temperature, noise):
    """The posterior's sample with its noise `temperature` times as strong: (B, C, h, w)."""
    return posterior.mean + temperature * posterior.std * noise


def slerp(a, b, t):
    """From a (t = 0) to b (t = 1), both (B, C, h, w): each a turned by t times the angle to its b."""
    x, y = a.flatten(1), b.flatten(1)
    cosine = F.cosine_similarity(x, y, dim=1)
    angle = torch.acos(cosine.clamp(-1, 1))[:, None]
    between = (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)
    straight = (1 - t) * x + t * y
    return torch.where(angle < 1e-3, straight, between).view_as(a)


def quantise(z, bits, low, high):
    """Each value to the nearest of 2**bits evenly spaced levels; the first is `low`, the last `high`."""
    step = (high - low) / (2**bits - 1)
    index = ((z - low) / step).round().clamp(0, 2**bits - 1)
    return low + index * step
