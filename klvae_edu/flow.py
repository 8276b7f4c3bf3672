"""Flow matching: a small network that learns a velocity field from noise to data, and its numerical integration.

Straight lines x_t = (1 - t)·x₀ + t·x₁ join noise x₀ ~ N(0, I) and data x₁. Their velocity is constant, x₁ - x₀. A
network is trained to predict this velocity from x_t and t. It learns the mean velocity of all lines through x_t.
Integrating this mean velocity from t = 0 to t = 1 turns noise into data.

Source: Lipman et al. 2023, "Flow Matching for Generative Modeling", section 4.1 (the optimal-transport paths, with
σ_min = 0); Liu et al. 2023, "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
equation 1. The method is built in notebook 11, sections 4 and 5; network and training are used in section 6.
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

NORM_GROUPS = 8  # of every GroupNorm
AVERAGED_STEPS = 100  # time constant of the moving average of the weights, in training steps

# ---- The method ------------------------------------------------------------------------------------------------------


def straight_path(x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the point x_t at time t (B,) on the line from noise x0 to data x1 (B, …), and its velocity x1 - x0.

    Returns:
        x_t and x1 - x0, both (B, …).

    Raises:
        ValueError: x0 and x1 differ in shape, or t is not one number for each of them (broadcasting would hide it).
    """
    if x0.shape != x1.shape or t.shape != x0.shape[:1]:
        shapes = f"{tuple(x0.shape)}, {tuple(x1.shape)} and {tuple(t.shape)}"
        raise ValueError(f"straight_path: expected x0 and x1 of one shape (B, …), and t (B,), got {shapes}")
    t = t.view(-1, *(1,) * (x0.ndim - 1))
    return (1 - t) * x0 + t * x1, x1 - x0


def flow_matching_loss(velocity: Velocity, x1: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Compute the mean squared error of `velocity` for data x1 (B, …): a scalar.

    Each sample of the batch gets its own noise, from N(0, I), and its own time, uniform in [0, 1).
    """
    x0 = torch.randn(x1.shape, generator=generator, device=x1.device, dtype=x1.dtype)
    t = torch.rand(len(x1), generator=generator, device=x1.device, dtype=x1.dtype)
    x_t, target = straight_path(x0, x1, t)
    return F.mse_loss(velocity(x_t, t), target)


@torch.no_grad()
def integrate(velocity: Velocity, x0: Tensor, steps: int, method: Literal["euler", "heun"] = "heun") -> Tensor:
    """Integrate `velocity` from x0 (B, …) at t = 0 to t = 1, in equal steps: (B, …).

    Euler's method uses the velocity at the start of each step. Heun's method uses the mean of the velocities at the
    start and at the end. It needs twice the evaluations, and is exact for velocities that are linear in time.

    Raises:
        ValueError: `steps` is below 1, or `method` is unknown.
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
    """Compute the optimal velocity for data from N(mean, std²): E[x1 - x0 | x_t = x], for x (B, …) and t (B,).

    x_t and x1 - x0 are jointly Gaussian, so this conditional expectation is linear in x. The line goes through the two
    means, and its slope is Cov / Var, where Cov = t·std² - (1 - t) and Var x_t = (1 - t)² + t²·std².
    """
    t = t.view(-1, *(1,) * (x.ndim - 1))
    slope = (t * std**2 - (1 - t)) / ((1 - t) ** 2 + (t * std) ** 2)
    return mean + slope * (x - t * mean)


# ---- The network -----------------------------------------------------------------------------------------------------


def time_features(t: Tensor, count: int) -> Tensor:
    """Encode times t (B,) in [0, 1] as sines and cosines of `count` / 2 frequencies, 1 to 1000 radians: (B, count).

    The low frequencies give similar features to similar times. The high frequencies separate them.
    """
    frequencies = torch.exp(torch.linspace(0, math.log(1000), count // 2, device=t.device, dtype=t.dtype))
    angles = t[:, None] * frequencies  # (B, count / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class TimedResnetBlock(nn.Module):
    """The residual block of notebook 03 with the time as a second input: (B, C, h, w) and (B, C_time) -> (B, C, h, w).

    The time adds the same value to all pixels of a channel.
    """

    def __init__(self, channels: int, time_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(NORM_GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_channels, channels)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)  # the residual branch starts at 0: the block is the identity
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        # Residual branch, with the time projected to (B, C, 1, 1).
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(time)[:, :, None, None]
        return x + self.conv2(F.silu(self.norm2(h)))


class VelocityNet(nn.Module):
    """A U-Net with one level of downsampling: x (B, C, h, w) and t (B,) -> velocity (B, C, h, w), for even h and w.

    There is one block at full resolution, then `depth` blocks with attention at half resolution, then one block at full
    resolution. A skip connection adds the output of the first block to the input of the last one. The same network
    works for latents and for images, with other `channels`.

    Args:
        channels: channels of x, 4 for latents and 3 for images.
        width: channels of the feature maps at full resolution; twice as many at half resolution. A multiple of 8, and
            at least 16: with one channel per group, GroupNorm would subtract the value that the time adds.
        depth: number of blocks at half resolution.

    Raises:
        ValueError: `width` is below 16 or no multiple of 8.

    Used in notebook 11, section 6.
    """

    def __init__(self, channels: int = 4, width: int = 48, depth: int = 2) -> None:
        super().__init__()
        if width < 2 * NORM_GROUPS or width % NORM_GROUPS:
            raise ValueError(f"width: expected a multiple of {NORM_GROUPS} and at least {2 * NORM_GROUPS}, got {width}")
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU())
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.first = TimedResnetBlock(width, width)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(TimedResnetBlock(2 * width, width) for _ in range(depth))
        self.attentions = nn.ModuleList(Attention(2 * width, NORM_GROUPS) for _ in range(depth))
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.last = TimedResnetBlock(width, width)
        self.norm_out = nn.GroupNorm(NORM_GROUPS, width)
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)  # the velocity is 0 before training
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Compute the velocity (B, C, h, w) at x (B, C, h, w) and t (B,).

        Raises:
            ValueError: x is not (B, C, h, w) with even h and w, or t is not (B,).
        """
        if x.ndim != 4 or x.shape[2] % 2 or x.shape[3] % 2 or t.shape != x.shape[:1]:
            raise ValueError(
                f"expected x (B, C, h, w) with even sides and t (B,), got {tuple(x.shape)} and {tuple(t.shape)}"
            )
        time = self.time(time_features(t, 64))  # (B, width)
        fine = self.first(self.conv_in(x), time)  # (B, width, h, w)
        coarse = self.down(fine)  # (B, 2 · width, h/2, w/2)
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            coarse = attention(block(coarse, time))  # (B, 2 · width, h/2, w/2)
        fine = fine + self.up(F.interpolate(coarse, scale_factor=2.0))  # (B, width, h, w), nearest-neighbour upsampling
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.last(fine, time))))  # (B, C, h, w)
        return out


def train_flow(
    net: nn.Module,
    batches: Iterable[Tensor],
    steps: int,
    lr: float = 3e-3,
    generator: torch.Generator | None = None,
) -> tuple[nn.Module, list[float]]:
    """Train `net` in place on the first `steps` of the `batches` (B, …).

    The optimiser is AdamW with a warm-up of at most 30 steps and a cosine schedule to zero. The gradient is clipped to
    norm 1.

    Returns:
        A copy of `net` with averaged weights, to draw samples with, and the loss at each step. The moving average
        covers about the last 100 steps.

    Raises:
        ValueError: there are fewer batches than steps.
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
