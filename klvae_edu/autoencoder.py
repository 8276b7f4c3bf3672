"""`AutoencoderKL`: the autoencoder of Stable Diffusion, equal to diffusers' class on the same weights.

An image (B, 3, H, W) in [-1, 1] becomes the posterior of a latent (B, 4, H/8, W/8), and a latent becomes an image.

Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models" (the LDM paper), section
3.1; CompVis latent-diffusion, `ldm/models/autoencoder.py`. Names and state-dict keys are those of diffusers.
"""

from __future__ import annotations

import os
import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from klvae_edu.blocks import DOWN_BLOCKS, NORM_EPS, UP_BLOCKS, UNetMidBlock2D
from klvae_edu.config import AutoencoderKLConfig, check_field_names
from klvae_edu.gaussian import DiagonalGaussianDistribution


class AutoencoderKLOutput(NamedTuple):
    """What `encode` returns: the posterior over latents."""

    latent_dist: DiagonalGaussianDistribution


class DecoderOutput(NamedTuple):
    """What `decode` and `forward` return: images (B, 3, H, W), about [-1, 1] but not clamped."""

    sample: Tensor


class Encoder(nn.Module):
    """Image (B, in, H, W) -> mean and log-variance of the latent, stacked: (B, 2 · latent, H/f, W/f)."""

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
    """Latent (B, latent, h, w) -> image (B, out, f·h, f·w). The levels run from the smallest map to the largest."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        widths, groups, act_fn = config.block_out_channels[::-1], config.norm_num_groups, config.act_fn
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = UNetMidBlock2D(widths[0], groups, act_fn, config.mid_block_add_attention)
        self.up_blocks = nn.ModuleList()
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


class AutoencoderKL(nn.Module):
    """The autoencoder with a KL-regularised latent space.

    Args:
        config: what to build; without it, Stable Diffusion v1's (83,653,863 parameters).
        **fields: single fields of the configuration by name, as in diffusers: `AutoencoderKL(latent_channels=16)`.

    Raises:
        ValueError: a configuration that cannot be built, or an unknown field (the nearest name is offered).

    Example:
        >>> vae = AutoencoderKL.from_preset("tiny", seed=0)
        >>> posterior = vae.encode(torch.zeros(1, 3, 32, 32)).latent_dist
        >>> vae.decode(posterior.mode()).sample.shape
        torch.Size([1, 3, 32, 32])
    """

    def __init__(self, config: AutoencoderKLConfig | None = None, **fields: Any) -> None:
        super().__init__()
        if config is not None and fields:
            raise ValueError(f"expected a config or single fields, got a config and {sorted(fields)}")
        if config is not None and not isinstance(config, AutoencoderKLConfig):
            raise ValueError(
                f"expected an AutoencoderKLConfig, got {config!r}; for a preset there is from_preset(name)"
            )
        check_field_names(fields)
        self.config = config or AutoencoderKLConfig(**fields)
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        latent = self.config.latent_channels
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1) if self.config.use_quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if self.config.use_post_quant_conv else nn.Identity()
        self._told_of_padding = False

    @classmethod
    def from_preset(cls, name: str, seed: int | None = None) -> AutoencoderKL:
        """An untrained model of a named configuration (see `klvae_edu.config.PRESETS`).

        With a `seed` the weights are the same every time, and PyTorch's global random state is left as it was.
        """
        config = AutoencoderKLConfig.from_preset(name)
        if seed is None:
            return cls(config)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach a GPU's state as well
            return cls(config)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike[str],
        subfolder: str = "",
        revision: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> AutoencoderKL:
        """Load a model in diffusers' layout from a folder or the Hub; see `checkpoints.load_pretrained`."""
        from klvae_edu.checkpoints import load_pretrained

        return load_pretrained(folder_or_hub_id, subfolder, revision, dtype)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the model in diffusers' layout; see `checkpoints.save_pretrained`."""
        from klvae_edu.checkpoints import save_pretrained

        save_pretrained(self, folder)

    @property
    def downsample_factor(self) -> int:
        """f, the image side over the latent side (8 for Stable Diffusion)."""
        return self.config.downsample_factor

    @property
    def dtype(self) -> torch.dtype:
        """The data type of the weights."""
        return self.encoder.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.encoder.conv_in.weight.device

    def num_parameters(self) -> int:
        """How many numbers are learned."""
        return sum(parameter.numel() for parameter in self.parameters())

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput:
        """Image -> posterior over latents.

        Args:
            x: (B, 3, H, W), values in [-1, 1]. Sides that f does not divide are padded on the right and at the bottom
                by reflection, which is said once.
            return_dict: accepted because diffusers' pipelines pass it; the output is a named tuple and serves both.

        Returns:
            `.latent_dist`, of shape (B, latent_channels, ⌈H/f⌉, ⌈W/f⌉).

        Raises:
            ValueError: not a (B, 3, H, W) tensor of floating-point numbers, or smaller than one latent pixel.
        """
        self._check("an image", x, self.config.in_channels, at_least=self.downsample_factor)
        posterior = DiagonalGaussianDistribution(self.quant_conv(self.encoder(self._pad(x))))
        return AutoencoderKLOutput(posterior)

    def decode(self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None) -> DecoderOutput:
        """Latent (B, latent_channels, h, w) -> image (B, 3, f·h, f·w).

        `return_dict` and `generator` are accepted because diffusers' pipelines pass them: the output is a named tuple,
        and decoding draws nothing.

        Raises:
            ValueError: not a (B, latent_channels, h, w) tensor of floating-point numbers.
        """
        self._check("a latent", z, self.config.latent_channels, at_least=1)
        return DecoderOutput(self.decoder(self.post_quant_conv(z)))

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput:
        """Image -> reconstruction of the same shape, through the posterior's mode or, on request, a sample of it."""
        posterior = self.encode(sample).latent_dist
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        height, width = sample.shape[-2:]
        return DecoderOutput(self.decode(z).sample[..., :height, :width])

    def _check(self, what: str, x: Tensor, channels: int, at_least: int) -> None:
        expected = f"expected {what} of shape (B, {channels}, H, W) in {self.dtype}, H and W at least {at_least}"
        if not isinstance(x, Tensor):
            raise ValueError(f"{expected}; got {type(x).__name__}")
        got = f"got shape {tuple(x.shape)} in {x.dtype}"
        if x.ndim != 4 or x.shape[1] != channels or min(x.shape[-2:]) < at_least:
            raise ValueError(f"{expected}; {got}")
        converted = {torch.float32, torch.float16, torch.bfloat16}  # by autocast, where it is on
        if x.dtype != self.dtype and not (x.dtype in converted and torch.is_autocast_enabled(x.device.type)):
            raise ValueError(f"{expected}; {got}")

    def _pad(self, x: Tensor) -> Tensor:
        factor = self.downsample_factor
        height, width = x.shape[-2:]
        bottom, right = -height % factor, -width % factor
        if not (bottom or right):
            return x
        if not self._told_of_padding and not torch.compiler.is_compiling():
            self._told_of_padding = True
            size = f"{height}x{width} to {height + bottom}x{width + right}"
            warnings.warn(f"images are padded by reflection to multiples of {factor}, here {size}", stacklevel=3)
        return F.pad(x, (0, right, 0, bottom), mode="reflect")
