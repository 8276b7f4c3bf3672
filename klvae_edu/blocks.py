"""Blocks of the encoder and the decoder: ResNet, attention, down- and upsampling, levels, mid block.

All feature maps are (B, C, H, W). Every GroupNorm has eps = 1e-6, not PyTorch's 1e-5; every convolution and linear
layer has a bias. Names and state-dict keys are diffusers'.

Source: CompVis latent-diffusion, `ldm/modules/diffusionmodules/model.py`; for attention Vaswani et al. 2017, "Attention
Is All You Need", section 3.2.1.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from klvae_edu.config import ACTIVATIONS

NORM_EPS = 1e-6
QUERY_CHUNK = 1024  # queries at a time in chunked attention: their weights take QUERY_CHUNK · N numbers instead of N²


class CheckpointedBlock(nn.Module):
    """Block that gradient checkpointing recomputes in the backward pass: only its input is kept.

    Only small blocks are recomputed, so that recomputing one of them needs little memory.

    Attributes:
        gradient_checkpointing: set by `AutoencoderKL.enable_gradient_checkpointing`.
    """

    gradient_checkpointing = False


def run(block: nn.Module, x: Tensor) -> Tensor:
    """Compute `block(x)`, with gradient checkpointing if it is enabled for the block."""
    # getattr, for a block that `torch.compile` has wrapped: it passes the attribute on, but is no CheckpointedBlock.
    if getattr(block, "gradient_checkpointing", False) and torch.is_grad_enabled():
        return checkpoint(block, x, use_reentrant=False)
    return block(x)


def checkpointed_blocks(module: nn.Module) -> list[CheckpointedBlock]:
    """List the blocks inside `module` for which gradient checkpointing is enabled."""
    return [m for m in module.modules() if isinstance(m, CheckpointedBlock) and m.gradient_checkpointing]


# ---- ResNet block, down- and upsampling ------------------------------------------------------------------------------


class ResnetBlock2D(CheckpointedBlock):
    """Residual block, two times norm, activation, 3x3 convolution: (B, in, H, W) -> (B, out, H, W).

    Built in notebook 03, section 6.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int, act_fn: str = "silu") -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=NORM_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nonlinearity: nn.Module = getattr(nn, ACTIVATIONS[act_fn])()
        # A 1x1 convolution in the shortcut if the number of channels changes.
        self.conv_shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        # Residual branch.
        hidden = self.conv1(self.nonlinearity(self.norm1(x)))  # (B, in, H, W) -> (B, out, H, W)
        hidden = self.conv2(self.nonlinearity(self.norm2(hidden)))  # (B, out, H, W)
        # Shortcut, (B, in, H, W) -> (B, out, H, W), and sum. The sum is not divided by √2.
        return self.conv_shortcut(x) + hidden


class Downsample2D(CheckpointedBlock):
    """Halve the sides with a 3x3 convolution of stride 2: (B, C, H, W) -> (B, C, H // 2, W // 2).

    Zeros are padded on the right and at the bottom only. Padding on all sides gives the same shape, but other numbers.

    Built in notebook 04, section 1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        left, right, top, bottom = 0, 1, 0, 1
        x = F.pad(x, (left, right, top, bottom))  # (B, C, H + 1, W + 1)
        return self.conv(x)  # (B, C, H // 2, W // 2)


class Upsample2D(CheckpointedBlock):
    """Double the sides: nearest-neighbour upsampling, then a 3x3 convolution: (B, C, H, W) -> (B, C, 2H, 2W).

    Built in notebook 04, section 2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")  # (B, C, 2H, 2W): every pixel repeated 2x2
        return self.conv(x)  # (B, C, 2H, 2W)


# ---- Attention -------------------------------------------------------------------------------------------------------
# Three ways to compute one head. They are equal up to rounding, but differ in time and memory. Queries, keys and values
# are (B, N, C) for N = H·W tokens. The result is (B, N, C): for every query the average of the values, weighted by
# softmax(scale · query · key) over the keys. Built in notebook 04, section 4.


def sdpa_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Compute attention with PyTorch's fused kernels, which do not store the (N, N) weights: (B, N, C)."""
    query, key, value = (tensor.unsqueeze(1) for tensor in (query, key, value))  # (B, 1, N, C): one head
    return F.scaled_dot_product_attention(query, key, value, scale=scale).squeeze(1)  # (B, N, C)


def eager_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Compute attention by its definition, with all weights (B, N, N) in memory: (B, N, C)."""
    weights = torch.softmax(scale * query @ key.transpose(1, 2), dim=-1)  # (B, N, N), every row sums to 1
    return weights @ value  # (B, N, C)


def chunked_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Compute attention by its definition, QUERY_CHUNK queries at a time: (B, N, C). Exact: queries are independent."""
    parts = torch.split(query, QUERY_CHUNK, dim=1)  # (B, QUERY_CHUNK or less, C) each
    return torch.cat([eager_attention(part, key, value, scale) for part in parts], dim=1)


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "sdpa": sdpa_attention,
    "eager": eager_attention,
    "chunked": chunked_attention,
}


class Attention(CheckpointedBlock):
    """Self-attention over all pixels of a feature map, with one head of C channels: (B, C, H, W) -> (B, C, H, W).

    Its cost grows with (H·W)², so it is used only on the smallest feature maps.

    Attributes:
        backend: "sdpa", "eager" or "chunked", a key of `BACKENDS`.

    Built in notebook 04, section 5.
    """

    backend = "sdpa"

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])  # a list, for diffusers' key `to_out.0`
        self.scale = channels**-0.5

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # From feature map to tokens: one token for each pixel.
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, H·W, C)
        query, key, value = self.project(tokens)  # (B, H·W, C) each
        out = self.to_out[0](BACKENDS[self.backend](query, key, value, self.scale))  # (B, H·W, C)
        # Back to a feature map, and the residual sum.
        return x + out.transpose(1, 2).reshape(batch, channels, height, width)  # (B, C, H, W)

    def project(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Compute queries, keys and values, (B, N, C) each, of tokens (B, N, C)."""
        return self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)


# ---- Levels of the encoder and the decoder ---------------------------------------------------------------------------


class ResnetLevel(nn.Module):
    """Sequence of ResNet blocks, in some subclasses each followed by attention: (B, in, H, W) -> (B, out, H, W).

    The first block changes the number of channels.
    """

    attention = False

    def __init__(self, in_channels: int, out_channels: int, num_layers: int, groups: int, act_fn: str) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * num_layers
        resnets = nn.ModuleList(ResnetBlock2D(before, after, groups, act_fn) for before, after in pairwise(widths))
        self.attentions = nn.ModuleList(
            Attention(out_channels, groups) if self.attention else nn.Identity() for _ in resnets
        )
        self.resnets = resnets  # registered after the attentions, as in diffusers: the order of the parameters

    def forward(self, x: Tensor) -> Tensor:
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = run(attention, run(resnet, x))  # (B, out, H, W)
        return x


class DownEncoderBlock2D(ResnetLevel):
    """One level of the encoder: ResNet blocks, then downsampling by 2 (except in the last level).

    (B, in, H, W) -> (B, out, H / 2, W / 2), or (B, out, H, W) without downsampling. Used in notebook 05, section 2.
    """

    def __init__(
        self, in_channels: int, out_channels: int, num_layers: int, groups: int, act_fn: str, add_downsample: bool
    ) -> None:
        super().__init__(in_channels, out_channels, num_layers, groups, act_fn)
        self.downsamplers = nn.ModuleList([Downsample2D(out_channels)] if add_downsample else [])

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)  # (B, out, H, W)
        for downsample in self.downsamplers:
            x = run(downsample, x)  # (B, out, H / 2, W / 2)
        return x


class AttnDownEncoderBlock2D(DownEncoderBlock2D):
    """A level of the encoder with attention after every ResNet block (in the LDM paper's KL-f16 and KL-f32)."""

    attention = True


class UpDecoderBlock2D(ResnetLevel):
    """One level of the decoder: ResNet blocks, then upsampling by 2 (except in the last level).

    (B, in, H, W) -> (B, out, 2H, 2W), or (B, out, H, W) without upsampling. Used in notebook 05, section 3.
    """

    def __init__(
        self, in_channels: int, out_channels: int, num_layers: int, groups: int, act_fn: str, add_upsample: bool
    ) -> None:
        super().__init__(in_channels, out_channels, num_layers, groups, act_fn)
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels)] if add_upsample else [])

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)  # (B, out, H, W)
        for upsample in self.upsamplers:
            x = run(upsample, x)  # (B, out, 2H, 2W)
        return x


class AttnUpDecoderBlock2D(UpDecoderBlock2D):
    """A level of the decoder with attention after every ResNet block."""

    attention = True


class UNetMidBlock2D(nn.Module):
    """ResNet block, attention (unless left out), ResNet block at the smallest feature map: (B, C, h, w) -> the same.

    Used in notebook 05, section 2.
    """

    def __init__(self, channels: int, groups: int, act_fn: str, add_attention: bool = True) -> None:
        super().__init__()
        resnets = nn.ModuleList(ResnetBlock2D(channels, channels, groups, act_fn) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(channels, groups) if add_attention else nn.Identity()])
        self.resnets = resnets  # registered after the attention, as in diffusers

    def forward(self, x: Tensor) -> Tensor:
        x = run(self.resnets[0], x)  # (B, C, h, w), the same after every block
        x = run(self.attentions[0], x)
        x = run(self.resnets[1], x)
        return x
