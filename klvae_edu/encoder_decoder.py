"""The two halves of the autoencoder: images to posterior parameters, latents to images. Names are diffusers'.

They are no mirror images: the decoder has one ResNet block more in each level.

Source: CompVis latent-diffusion, `ldm/modules/diffusionmodules/model.py`.
"""

from __future__ import annotations

from torch import Tensor, nn

from klvae_edu.blocks import DOWN_BLOCKS, NORM_EPS, UP_BLOCKS, UNetMidBlock2D
from klvae_edu.config import AutoencoderKLConfig


class Encoder(nn.Module):
    """Image (B, in, H, W) -> mean and log-variance of the latent, stacked: (B, 2 · latent, H/f, W/f).

    Built in notebook 05, section 2.
    """

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        widths, groups, act_fn = config.block_out_channels, config.norm_num_groups, config.act_fn
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        width = widths[0]
        for level, (block_type, out) in enumerate(zip(config.down_block_types or (), widths, strict=True)):
            last = level == len(widths) - 1
            block = DOWN_BLOCKS[block_type]
            self.down_blocks.append(block(width, out, config.layers_per_block, groups, act_fn, add_downsample=not last))
            width = out
        self.mid_block = UNetMidBlock2D(width, groups, act_fn, config.mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(groups, width, eps=NORM_EPS)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(width, 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for down in self.down_blocks:
            x = down(x)
        x = self.mid_block(x)
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return x


class Decoder(nn.Module):
    """Latent (B, latent, h, w) -> image (B, out, f·h, f·w). The levels run from the smallest map to the largest.

    Built in notebook 05, section 3.
    """

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        widths, groups, act_fn = config.block_out_channels[::-1], config.norm_num_groups, config.act_fn
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.up_blocks = nn.ModuleList()  # before the mid block, for diffusers' order of the parameters
        self.mid_block = UNetMidBlock2D(widths[0], groups, act_fn, config.mid_block_add_attention)
        width = widths[0]
        for level, (block_type, out) in enumerate(zip(config.up_block_types or (), widths, strict=True)):
            last = level == len(widths) - 1
            layers = config.layers_per_block + 1  # one more than the encoder has: the two halves are no mirror images
            self.up_blocks.append(UP_BLOCKS[block_type](width, out, layers, groups, act_fn, add_upsample=not last))
            width = out
        self.conv_norm_out = nn.GroupNorm(groups, width, eps=NORM_EPS)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(width, config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        z = self.conv_in(z)
        z = self.mid_block(z)
        for up in self.up_blocks:
            z = up(z)
        z = self.conv_out(self.conv_act(self.conv_norm_out(z)))
        return z
