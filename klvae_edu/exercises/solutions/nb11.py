"""Solutions of notebook 11. Written by tools.solutions from notebooks/source/11_latents_for_diffusion.py; edit that."""

import torch


def scaling_factors(z):
    """Latents (B, C, h, w) -> 1 / deviation of all values, and 1 / the average of the channels' deviations."""
    of_all = z.std()
    of_channels = z.std(dim=(0, 2, 3))
    return 1 / of_all, 1 / of_channels.mean()


def deviation_of_samples(mean, logvar):
    """Posteriors (B, C, h, w) -> the deviation (C,) that their samples would have, without drawing any."""
    of_means = mean.var(dim=(0, 2, 3))
    of_noise = logvar.exp().mean(dim=(0, 2, 3))
    return (of_means + of_noise).sqrt()


def straight_path(x0, x1, t):
    """Noise x0, data x1 (B, C, h, w), times t (B,) -> the place x_t between them, and the velocity, (B, C, h, w)."""
    t = t[:, None, None, None]
    x_t = (1 - t) * x0 + t * x1
    return x_t, x1 - x0


def integrate(velocity, x0, steps):
    """Follow velocity(x, t), t (B,), from x0 (B, …) at t = 0 to t = 1, by Heun's method."""
    x, dt = x0, 1 / steps
    for step in range(steps):
        t = torch.full((len(x),), step * dt)
        v = velocity(x, t)
        v_end = velocity(x + dt * v, t + dt)
        x = x + dt * (v + v_end) / 2
    return x
