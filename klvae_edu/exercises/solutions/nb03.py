"""Solutions of notebook 03. Written by tools.solutions from notebooks/source/03_resnet_blocks.py; edit that."""

import torch
from torch import nn


def group_norm(x, groups, weight, bias, eps=1e-6):
    """x (B, C, H, W); weight and bias (C,). Returns (B, C, H, W)."""
    values = x.reshape(x.shape[0], groups, -1)
    mean = values.mean(2, keepdim=True)
    var = values.var(2, unbiased=False, keepdim=True)
    normalised = ((values - mean) / torch.sqrt(var + eps)).reshape(x.shape)
    return normalised * weight[:, None, None] + bias[:, None, None]


def silu(x):
    """x of any shape -> x · σ(x)."""
    return x * torch.sigmoid(x)


def pointwise(x, weight, bias):
    """x (B, in, H, W), weight (out, in), bias (out,) -> (B, out, H, W)."""
    mixed = torch.einsum("oi,bihw->bohw", weight, x)
    return mixed + bias[:, None, None]


class ResnetBlock(nn.Module):
    """norm, SiLU, 3×3 convolution, twice; then the input is added: (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, in_channels, out_channels, groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x):
        hidden = self.conv1(silu(self.norm1(x)))
        hidden = self.conv2(silu(self.norm2(hidden)))
        return self.conv_shortcut(x) + hidden
