"""The network of the autoencoder: an encoder, a decoder, and a 1x1 convolution on each side of the latent.

`Autoencoder` contains the layers only. `klvae_edu.autoencoder.AutoencoderKL` adds the checks and padding of inputs,
tiles, float16 and files. Names and state-dict keys are diffusers'.

Shapes below are for images (B, 3, H, W) and downsample factor f; KL-f8 has f = 8 and 4 latent channels.

Source: CompVis latent-diffusion, `ldm/models/autoencoder.py` and `ldm/modules/diffusionmodules/model.py`.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from klvae_edu import blocks
from klvae_edu.blocks import NORM_EPS, UNetMidBlock2D
from klvae_edu.config import AutoencoderKLConfig


class Autoencoder(nn.Module):
    """The bare network: image -> moments of the posterior, latent -> image.

    Built in notebook 05, section 4.
    """

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        self.config = config
        latent = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        # 1x1 convolutions, which mix the channels of each latent pixel. SD3 and Flux do not have them.
        # moments: (B, 2 · latent, h, w)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1) if config.use_quant_conv else nn.Identity()
        # latent: (B, latent, h, w)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if config.use_post_quant_conv else nn.Identity()
        if config.patch_size is not None:  # FLUX.2: holds the mean and variance of patches of latents, and never runs
            channels = latent * math.prod(config.patch_size)
            self.bn = nn.BatchNorm2d(channels, eps=config.batch_norm_eps, affine=False)
        for layer in self.modules():
            # The padding of downsampling, on one side, stays zero: published models with reflection are of this kind.
            if isinstance(layer, nn.Conv2d) and layer.padding != (0, 0):
                layer.padding_mode = config.padding_mode

    def encode(self, x: Tensor) -> Tensor:
        """Encode images (B, in, H, W) into moments: mean and log-variance, stacked, (B, 2 · latent, H/f, W/f)."""
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """Decode latents (B, latent, h, w) into images (B, out, f·h, f·w)."""
        return self.decoder(self.post_quant_conv(z))


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
        # The block types are never None here: the configuration has filled them in; `or ()` is for the type checker.
        for level, (block_type, out) in enumerate(zip(config.down_block_types or (), widths, strict=True)):
            last = level == len(widths) - 1  # the last level keeps its size: n levels halve the sides n - 1 times
            block = getattr(blocks, block_type)
            self.down_blocks.append(block(width, out, config.layers_per_block, groups, act_fn, add_downsample=not last))
            width = out
        self.mid_block = UNetMidBlock2D(width, groups, act_fn, config.mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(groups, width, eps=NORM_EPS)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(width, 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # Sizes in comments: KL-f8 on 256x256 pixels.
        x = self.conv_in(x)  # (B, 128, 256, 256)
        for down in self.down_blocks:
            x = down(x)  # (B, 128, 128, 128), (B, 256, 64, 64), (B, 512, 32, 32), (B, 512, 32, 32)
        x = self.mid_block(x)  # (B, 512, 32, 32)
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))  # (B, 8, 32, 32)


class Decoder(nn.Module):
    """Latent (B, latent, h, w) -> image (B, out, f·h, f·w). Levels run from the smallest feature map to the largest.

    Built in notebook 05, section 3.
    """

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        widths, groups, act_fn = config.decoder_widths[::-1], config.norm_num_groups, config.act_fn
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.up_blocks = nn.ModuleList()  # registered before the mid block, as in diffusers: the parameters' order
        self.mid_block = UNetMidBlock2D(widths[0], groups, act_fn, config.mid_block_add_attention)
        width = widths[0]
        # The block types are never None here: the configuration has filled them in; `or ()` is for the type checker.
        for level, (block_type, out) in enumerate(zip(config.up_block_types or (), widths, strict=True)):
            last = level == len(widths) - 1
            block, layers = getattr(blocks, block_type), config.layers_per_block + 1  # one more than in the encoder
            self.up_blocks.append(block(width, out, layers, groups, act_fn, add_upsample=not last))
            width = out
        self.conv_norm_out = nn.GroupNorm(groups, width, eps=NORM_EPS)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(width, config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        # Sizes in comments: KL-f8 on a latent of 32x32.
        x = self.conv_in(z)  # (B, 512, 32, 32)
        x = self.mid_block(x)  # (B, 512, 32, 32)
        for up in self.up_blocks:
            x = up(x)  # (B, 512, 64, 64), (B, 512, 128, 128), (B, 256, 256, 256), (B, 128, 256, 256)
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))  # (B, 3, 256, 256)
