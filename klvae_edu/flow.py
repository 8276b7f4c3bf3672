"""Flow matching: a small network that learns the velocity from noise to data, and the integration that follows it.

Noise x₀ ~ N(0, I) and data x₁ are joined by straight lines, x_t = (1 - t)·x₀ + t·x₁, travelled at the constant velocity
x₁ - x₀. A network that is trained to guess this velocity from x_t and t learns its average over all lines through x_t,
and following that average from t = 0 to 1 turns noise into data.

Source: Lipman et al. 2023, "Flow Matching for Generative Modeling", section 4.1 (the optimal-transport paths, with
σ_min = 0); Liu et al. 2023, "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
equation 1. Built in notebook 11, sections 4 to 6.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from klvae_edu.blocks import Attention
from klvae_edu.environment import progress

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x (B, …), t (B,)) -> (B, …)

GROUPS = 8
AVERAGED_STEPS = 100  # over about so many steps weights are averaged

# ---- The method ------------------------------------------------------------------------------------------------------


def straight_path(x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Where a line from noise x0 to data x1 (B, …) is at time t (B,), and its velocity: x_t and x1 - x0, (B, …).

    Raises:
        ValueError: x0 and x1 differ in shape, or t is not one number for each of them (broadcasting would hide it).
    """
    if x0.shape != x1.shape or t.shape != x0.shape[:1]:
        shapes = f"{tuple(x0.shape)}, {tuple(x1.shape)} and {tuple(t.shape)}"
        raise ValueError(f"straight_path: expected x0 and x1 of one shape (B, …), and t (B,), got {shapes}")
    t = t.view(-1, *(1,) * (x0.ndim - 1))
    return (1 - t) * x0 + t * x1, x1 - x0


def flow_matching_loss(velocity: Velocity, x1: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The mean squared error of `velocity` on data x1 (B, …), each at its own time, with noise of its own."""
    x0 = torch.randn(x1.shape, generator=generator, device=x1.device, dtype=x1.dtype)
    t = torch.rand(len(x1), generator=generator, device=x1.device, dtype=x1.dtype)
    x_t, target = straight_path(x0, x1, t)
    return F.mse_loss(velocity(x_t, t), target)


@torch.no_grad()
def integrate(velocity: Velocity, x0: Tensor, steps: int, method: Literal["euler", "heun"] = "heun") -> Tensor:
    """Follow `velocity` from x0 (B, …) at t = 0 to t = 1, in equal steps: (B, …).

    Euler's method takes the velocity at the start of a step; Heun's averages it with the one at the end, which is twice
    the work and exact for velocities that are linear in time.

    Raises:
        ValueError: less than one step, or an unknown method.
    """
    if steps < 1 or method not in ("euler", "heun"):
        raise ValueError(f"integrate: expected steps ≥ 1 and method 'euler' or 'heun', got {steps=}, {method=}")
    x, dt = x0, 1 / steps
    for step in range(steps):
        t = torch.full((len(x),), step * dt, device=x.device, dtype=x.dtype)
        v = velocity(x, t)
        if method == "heun":
            v = (v + velocity(x + dt * v, t + dt)) / 2
        x = x + dt * v
    return x


def gaussian_velocity(x: Tensor, t: Tensor, mean: float, std: float) -> Tensor:
    """What a perfect network would answer if all data were N(mean, std²): E[x1 - x0 | x_t = x], for x (B, …), t (B,).

    x_t and x1 - x0 are Gaussian together, and the expectation of one given the other is a line: that through the means,
    with the slope Cov / Var, where Cov = t·std² - (1 - t) and Var x_t = (1 - t)² + t²·std².
    """
    t = t.view(-1, *(1,) * (x.ndim - 1))
    slope = (t * std**2 - (1 - t)) / ((1 - t) ** 2 + (t * std) ** 2)
    return mean + slope * (x - t * mean)


# ---- The network -----------------------------------------------------------------------------------------------------


def time_features(t: Tensor, count: int) -> Tensor:
    """Times t (B,) from 0 to 1 as sines and cosines of `count` / 2 frequencies, from 1 to 1000 radians: (B, count).

    Near times have near features, and yet the fast waves tell them apart.
    """
    frequencies = torch.exp(torch.linspace(0, math.log(1000), count // 2, device=t.device, dtype=t.dtype))
    angles = t[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class TimedResnetBlock(nn.Module):
    """The residual block of notebook 03, which is told the time: (B, C, h, w) and (B, C_time) -> (B, C, h, w)."""

    def __init__(self, channels: int, time_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_channels, channels)
        self.norm2 = nn.GroupNorm(GROUPS, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)  # in the beginning the block changes nothing
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(time)[:, :, None, None]
        return x + self.conv2(F.silu(self.norm2(h)))


class VelocityNet(nn.Module):
    """A U-Net of one floor: x (B, C, h, w) and t (B,) -> velocity (B, C, h, w), with h and w even.

    A block at the full resolution, `depth` blocks with attention at half of it, and one more at the full, which gets
    the first one's output as well. Of 4x8x8 latents or of images, it is the same network, up to `channels`.

    Args:
        channels: of x, 4 for latents and 3 for images.
        width: channels inside, a multiple of 8 and 16 at least (a norm over one channel would take out what the time
            adds to it); twice as many at half resolution.
        depth: blocks at half resolution.

    Raises:
        ValueError: another width.

    Built in notebook 11, section 5.
    """

    def __init__(self, channels: int = 4, width: int = 48, depth: int = 2) -> None:
        super().__init__()
        if width < 2 * GROUPS or width % GROUPS:
            raise ValueError(f"width: expected a multiple of {GROUPS} and at least {2 * GROUPS}, got {width}")
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU())
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.first = TimedResnetBlock(width, width)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(TimedResnetBlock(2 * width, width) for _ in range(depth))
        self.attentions = nn.ModuleList(Attention(2 * width, GROUPS) for _ in range(depth))
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.last = TimedResnetBlock(width, width)
        self.norm_out = nn.GroupNorm(GROUPS, width)
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity at x (B, C, h, w) and t (B,).

        Raises:
            ValueError: an odd side, or t that is not one number for each x.
        """
        if x.ndim != 4 or x.shape[2] % 2 or x.shape[3] % 2 or t.shape != x.shape[:1]:
            raise ValueError(
                f"expected x (B, C, h, w) with even sides and t (B,), got {tuple(x.shape)} and {tuple(t.shape)}"
            )
        time = self.time(time_features(t, 64))
        fine = self.first(self.conv_in(x), time)
        coarse = self.down(fine)
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            coarse = attention(block(coarse, time))
        fine = fine + self.up(F.interpolate(coarse, scale_factor=2.0))
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.last(fine, time))))
        return out


def train_flow(
    net: nn.Module,
    batches: Iterable[Tensor],
    steps: int,
    lr: float = 3e-3,
    generator: torch.Generator | None = None,
) -> tuple[nn.Module, list[float]]:
    """Train `net`, in place, for `steps` of the `batches` (B, …); its weights' average, and the loss at each step.

    AdamW with a short warm-up and a cosine to zero. Samples are drawn with the average over the last 100 steps or so.

    Raises:
        ValueError: fewer batches than steps.
    """
    optimizer = torch.optim.AdamW(net.parameters(), lr, betas=(0.9, 0.95), fused=True)
    warm_up = min(30, steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / warm_up) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    average = AveragedModel(net, avg_fn=lambda mean, new, seen: mean + (new - mean) / min(seen + 1, AVERAGED_STEPS))
    losses = []
    for x1 in progress(itertools.islice(batches, steps), desc="flow matching", total=steps):
        loss = flow_matching_loss(net, x1, generator)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(net)
        losses.append(loss.item())
    if len(losses) < steps:
        raise ValueError(f"train_flow: expected {steps} batches, got {len(losses)}")
    return average.module, losses
