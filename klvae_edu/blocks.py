"""The blocks of which encoder and decoder are made. Names and state-dict keys are diffusers'.

All maps are (B, C, H, W). Every GroupNorm has eps = 1e-6, not PyTorch's 1e-5; every convolution and linear layer has a
bias.

Source: CompVis latent-diffusion, `ldm/modules/diffusionmodules/model.py`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from klvae_edu.attention import BACKENDS

NORM_EPS = 1e-6

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
}


def run(block: nn.Module, x: Tensor) -> Tensor:
    """`block(x)`. With gradient checkpointing only x is kept; the backward pass computes what lies between again."""
    if getattr(block, "gradient_checkpointing", False) and torch.is_grad_enabled():
        return checkpoint(block, x, use_reentrant=False)
    return block(x)


class ResnetBlock2D(nn.Module):
    """Two times norm, activation, 3x3 convolution; then the input is added: (B, in, H, W) -> (B, out, H, W).

    Where the number of channels changes, a 1x1 convolution (`conv_shortcut`) fits the input to the sum.

    Built in notebook 03, section 6.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int, act_fn: str = "silu") -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=NORM_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nonlinearity = _ACTIVATIONS[act_fn]()
        self.conv_shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(self.nonlinearity(self.norm1(x)))
        hidden = self.conv2(self.nonlinearity(self.norm2(hidden)))
        return self.conv_shortcut(x) + hidden


class Downsample2D(nn.Module):
    """Half the size by a 3x3 convolution of stride 2: (B, C, H, W) -> (B, C, H // 2, W // 2).

    The zeros go on the right and at the bottom only. Padding on all sides would give the same shape and other numbers.

    Built in notebook 04, section 1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        left, right, top, bottom = 0, 1, 0, 1
        return self.conv(F.pad(x, (left, right, top, bottom)))


class Upsample2D(nn.Module):
    """Twice the size: every pixel is repeated 2x2, then a 3x3 convolution: (B, C, H, W) -> (B, C, 2H, 2W).

    Built in notebook 04, section 2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Attention(nn.Module):
    """Self-attention over all pixels of the map, one head as wide as the map is deep: (B, C, H, W) -> the same shape.

    Its memory can grow with the square of H·W, which is why it stands only where the map is smallest.

    Attributes:
        backend: "sdpa", "eager" or "chunked", see `klvae_edu.attention`: equal up to rounding, at another cost.

    Built in notebook 04, section 5.
    """

    backend = "sdpa"

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])  # a list, for the key `to_out.0`
        self.scale = channels**-0.5

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, H·W, C)
        out = BACKENDS[self.backend](self.to_q(tokens), self.to_k(tokens), self.to_v(tokens), self.scale)
        out = self.to_out[0](out).transpose(1, 2).reshape(batch, channels, height, width)
        return x + out


class DownEncoderBlock2D(nn.Module):
    """One level of the encoder: ResNet blocks, then, except in the last level, half the size."""

    attention = False

    def __init__(
        self, in_channels: int, out_channels: int, num_layers: int, groups: int, act_fn: str, add_downsample: bool
    ) -> None:
        super().__init__()
        resnets = _resnets(in_channels, out_channels, num_layers, groups, act_fn)
        self.attentions = nn.ModuleList(
            Attention(out_channels, groups) if self.attention else nn.Identity() for _ in resnets
        )
        self.resnets = resnets  # after the attentions, for diffusers' order of the parameters
        self.downsamplers = nn.ModuleList([Downsample2D(out_channels)] if add_downsample else [])

    def forward(self, x: Tensor) -> Tensor:
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = run(attention, run(resnet, x))
        for downsample in self.downsamplers:
            x = run(downsample, x)
        return x


class AttnDownEncoderBlock2D(DownEncoderBlock2D):
    """A level of the encoder with attention after every ResNet block (in the LDM paper's KL-f16 and KL-f32)."""

    attention = True


class UNetMidBlock2D(nn.Module):
    """The bottom of each half: ResNet block, attention (unless left out), ResNet block; the shape stays."""

    def __init__(self, channels: int, groups: int, act_fn: str, add_attention: bool = True) -> None:
        super().__init__()
        resnets = _resnets(channels, channels, 2, groups, act_fn)
        self.attentions = nn.ModuleList([Attention(channels, groups) if add_attention else nn.Identity()])
        self.resnets = resnets

    def forward(self, x: Tensor) -> Tensor:
        x = run(self.resnets[0], x)
        x = run(self.attentions[0], x)
        x = run(self.resnets[1], x)
        return x


class UpDecoderBlock2D(nn.Module):
    """One level of the decoder: ResNet blocks, then, except in the last level, twice the size."""

    attention = False

    def __init__(
        self, in_channels: int, out_channels: int, num_layers: int, groups: int, act_fn: str, add_upsample: bool
    ) -> None:
        super().__init__()
        resnets = _resnets(in_channels, out_channels, num_layers, groups, act_fn)
        self.attentions = nn.ModuleList(
            Attention(out_channels, groups) if self.attention else nn.Identity() for _ in resnets
        )
        self.resnets = resnets  # after the attentions, for diffusers' order of the parameters
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels)] if add_upsample else [])

    def forward(self, x: Tensor) -> Tensor:
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = run(attention, run(resnet, x))
        for upsample in self.upsamplers:
            x = run(upsample, x)
        return x


class AttnUpDecoderBlock2D(UpDecoderBlock2D):
    """A level of the decoder with attention after every ResNet block."""

    attention = True


def _resnets(in_channels: int, out_channels: int, num_layers: int, groups: int, act_fn: str) -> nn.ModuleList:
    """`num_layers` ResNet blocks in a row; the first one changes the number of channels."""
    widths = [in_channels] + [out_channels] * num_layers
    return nn.ModuleList(ResnetBlock2D(before, after, groups, act_fn) for before, after in pairwise(widths))


DOWN_BLOCKS = {block.__name__: block for block in (DownEncoderBlock2D, AttnDownEncoderBlock2D)}
UP_BLOCKS = {block.__name__: block for block in (UpDecoderBlock2D, AttnUpDecoderBlock2D)}

# What gradient checkpointing goes by: small enough that recomputing one of them needs little memory.
CHECKPOINTED = (ResnetBlock2D, Attention, Downsample2D, Upsample2D)
