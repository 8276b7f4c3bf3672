"""Solutions of notebook 05. Written by tools.solutions from notebooks/source/05_kl_f8_architecture.py; edit that."""

from itertools import pairwise
from klvae_edu import DiagonalGaussianDistribution
from klvae_edu.blocks import DownEncoderBlock2D, UNetMidBlock2D, UpDecoderBlock2D
from torch import nn


def shape_walk(block_out_channels, latent_channels, side):
    """(128, 256, 512, 512), 4, 256 -> [(128, 256), (128, 128), …, (8, 32)], the encoder's maps."""
    walk = [(block_out_channels[0], side)]
    for width in block_out_channels[:-1]:
        side //= 2
        walk.append((width, side))
    return [*walk, (block_out_channels[-1], side), (2 * latent_channels, side)]


class Encoder(nn.Module):
    """Image (B, 3, H, W) -> mean and log-variance of the latent, stacked: (B, 2 · latent_channels, H/f, W/f)."""

    def __init__(self, config):
        super().__init__()
        widths, layers, groups = config.block_out_channels, config.layers_per_block, config.norm_num_groups
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, (before, after) in enumerate(pairwise((widths[0], *widths))):
            last = level == len(widths) - 1
            self.down_blocks.append(DownEncoderBlock2D(before, after, layers, groups, "silu", add_downsample=not last))
        self.mid_block = UNetMidBlock2D(widths[-1], groups, "silu")
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        x = self.mid_block(x)
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """Latent (B, latent_channels, h, w) -> image (B, 3, f·h, f·w)."""

    def __init__(self, config):
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        layers = config.layers_per_block + 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = UNetMidBlock2D(widths[0], groups, "silu")
        self.up_blocks = nn.ModuleList()
        for level, (before, after) in enumerate(pairwise((widths[0], *widths))):
            last = level == len(widths) - 1
            self.up_blocks.append(UpDecoderBlock2D(before, after, layers, groups, "silu", add_upsample=not last))
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z):
        z = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            z = level(z)
        return self.conv_out(self.conv_act(self.conv_norm_out(z)))


class Autoencoder(nn.Module):
    """Images to posteriors, latents to images."""

    def __init__(self, config):
        super().__init__()
        latent = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)

    def encode(self, x):
        """(B, 3, H, W) -> DiagonalGaussianDistribution of latents (B, latent_channels, H/f, W/f)."""
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(x)))

    def decode(self, z):
        """(B, latent_channels, h, w) -> (B, 3, f·h, f·w)."""
        return self.decoder(self.post_quant_conv(z))

    def forward(self, x):
        """An image and back, through the posterior's mode."""
        return self.decode(self.encode(x).mode())


def diffusers_name(name, levels):
    """An older name -> the current one: decoder.up.3.block.0.conv1.bias -> decoder.up_blocks.0.resnets.0.conv1.bias."""
    new = {
        "down": "down_blocks",
        "up": "up_blocks",
        "mid": "mid_block",
        "block": "resnets",
        "block_1": "resnets.0",
        "block_2": "resnets.1",
        "attn_1": "attentions.0",
        "nin_shortcut": "conv_shortcut",
        "downsample": "downsamplers.0",
        "upsample": "upsamplers.0",
        "norm_out": "conv_norm_out",
        "norm": "group_norm",
        "proj_out": "to_out.0",
        "proj_attn": "to_out.0",
        "q": "to_q",
        "k": "to_k",
        "v": "to_v",
        "query": "to_q",
        "key": "to_k",
        "value": "to_v",
    }
    parts = name.split(".")
    if parts[:2] == ["decoder", "up"]:
        parts[2] = str(levels - 1 - int(parts[2]))
    return ".".join(new.get(part, part) for part in parts)
