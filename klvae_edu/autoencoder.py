"""`AutoencoderKL`: the autoencoder of Stable Diffusion, equal to diffusers' class on the same weights.

An image (B, in_channels, H, W) in [-1, 1] becomes the posterior of a latent (B, 4, H/8, W/8), and a latent becomes an
image (B, out_channels, H, W). Both in_channels and out_channels are 3 for RGB. The network is
`klvae_edu.network.Autoencoder`. This class checks and pads inputs and scales latents. Slices, tiles and upcast are in
`klvae_edu.performance.settings`, files in `klvae_edu.weights.mixin`.

Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models" (the LDM paper), section
3.1; CompVis latent-diffusion, `ldm/models/autoencoder.py`. Names and state-dict keys are the same as in diffusers.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from klvae_edu.config import AutoencoderKLConfig, check_field_names
from klvae_edu.gaussian import DiagonalGaussianDistribution, Generators
from klvae_edu.network import Autoencoder
from klvae_edu.performance.settings import PerformanceMixin
from klvae_edu.validation import check_group_sizes, check_tensor, pad_to_multiple


class AutoencoderKLOutput(NamedTuple):
    """The result of `encode`: the posterior over latents."""

    latent_dist: DiagonalGaussianDistribution


class DecoderOutput(NamedTuple):
    """The result of `decode` and `forward`: images (B, out_channels, H, W), about [-1, 1] but not clamped."""

    sample: Tensor


class AutoencoderKL(PerformanceMixin, Autoencoder):
    """The autoencoder with a KL-regularised latent space.

    Args:
        config: the configuration; without it, Stable Diffusion v1's (83,653,863 parameters).
        **fields: single fields of the configuration by name, as in diffusers: `AutoencoderKL(latent_channels=16)`.

    Raises:
        ValueError: an invalid configuration, or an unknown field (the message offers the most similar name).

    Built in notebook 05, section 4.

    Example:
        >>> vae = AutoencoderKL.from_preset("tiny", seed=0)
        >>> posterior = vae.encode(torch.zeros(1, 3, 32, 32)).latent_dist
        >>> vae.decode(posterior.mode()).sample.shape
        torch.Size([1, 3, 32, 32])
    """

    def __init__(self, config: AutoencoderKLConfig | None = None, **fields: Any) -> None:
        if config is not None and fields:
            raise ValueError(f"expected a config or single fields, got a config and {sorted(fields)}")
        if config is not None and not isinstance(config, AutoencoderKLConfig):
            raise ValueError(
                f"expected an AutoencoderKLConfig, got {config!r}; for a preset there is from_preset(name)"
            )
        check_field_names(fields)
        super().__init__(config or AutoencoderKLConfig(**fields))
        self._warned_of_padding = False

    @classmethod
    def from_preset(cls, name: str, seed: int | None = None, **changes: Any) -> Self:
        """Build an untrained model of a named configuration (see `klvae_edu.config.PRESETS`).

        Keywords change single fields of the configuration. With a `seed` the weights are the same every time, and
        PyTorch's global random state is left unchanged.

        Raises:
            ValueError: unknown preset (the message lists the presets), or unknown field.
        """
        config = AutoencoderKLConfig.from_preset(name, **changes)
        if seed is None:
            return cls(config)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed a GPU as well
            return cls(config)

    @property
    def downsample_factor(self) -> int:
        """f = image side / latent side (8 for Stable Diffusion)."""
        return self.config.downsample_factor

    # ---- Images to latents and back ----------------------------------------------------------------------------------
    # encode and decode have the interface of diffusers, not of the bare network. Hence `type: ignore[override]`.

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput:  # type: ignore[override]
        """Encode images into the posterior over latents.

        Args:
            x: (B, in_channels, H, W), values in [-1, 1]. Sides that are not multiples of f are padded by reflection on
                the right and at the bottom, with a warning the first time.
            return_dict: accepted because diffusers' pipelines pass it; the output is a named tuple in both cases.

        Returns:
            `.latent_dist`, of shape (B, latent_channels, ⌈H/f⌉, ⌈W/f⌉).

        Raises:
            ValueError: not a (B, in_channels, H, W) tensor in the model's dtype, or smaller than one latent pixel. If
                a GroupNorm has as many groups as channels, one latent pixel is too small, too.
        """
        x = self._checked_and_padded(x)
        # (B, 2 · latent, ⌈H/f⌉, ⌈W/f⌉)
        moments = self.run_bounded(super().encode, x, self.use_tiling, units=(self.downsample_factor, 1))
        return AutoencoderKLOutput(DiagonalGaussianDistribution(moments))

    def decode(  # type: ignore[override]
        self, z: Tensor, return_dict: bool = True, generator: Generators = None
    ) -> DecoderOutput:
        """Decode latents (B, latent_channels, h, w) into images (B, out_channels, f·h, f·w).

        `return_dict` and `generator` are accepted because diffusers' pipelines pass them: the output is a named tuple,
        and decoding draws no random numbers.

        Raises:
            ValueError: not a (B, latent_channels, h, w) tensor in the model's dtype, or too small, as in `encode`.
        """
        self._check_latent(z)
        return DecoderOutput(self.run_bounded(super().decode, z, self.use_tiling, units=(1, self.downsample_factor)))

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: Generators = None,
    ) -> DecoderOutput:
        """Reconstruct images (B, in_channels, H, W) from the posterior's mode or a sample: (B, out_channels, H, W).

        Raises:
            ValueError: as `encode`.
        """
        posterior = self.encode(sample).latent_dist
        z = posterior.sample(generator) if sample_posterior else posterior.mode()  # (B, latent, ⌈H/f⌉, ⌈W/f⌉)
        height, width = sample.shape[-2:]
        # Crop what encode padded: (B, out, H, W).
        return DecoderOutput(self.decode(z).sample[..., :height, :width])

    def tiled_encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput:
        """Encode in tiles (see `klvae_edu.performance.tiling`), whether or not `enable_tiling` was called."""
        x = self._checked_and_padded(x)
        moments = self.run_bounded(super().encode, x, tiling=True, units=(self.downsample_factor, 1))
        return AutoencoderKLOutput(DiagonalGaussianDistribution(moments))

    def tiled_decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput:
        """Decode in tiles, whether or not `enable_tiling` was called."""
        self._check_latent(z)
        return DecoderOutput(self.run_bounded(super().decode, z, tiling=True, units=(1, self.downsample_factor)))

    def _checked_and_padded(self, x: Tensor) -> Tensor:
        """Check images (B, in_channels, H, W) and pad them to multiples of f, with a warning the first time."""
        factor = self.downsample_factor
        check_tensor("an image", x, self.config.in_channels, self.dtype, at_least=factor)
        padded = pad_to_multiple(x, factor)
        height, width = (side // factor for side in padded.shape[-2:])
        check_group_sizes(self.config.norm_num_groups, self.config.block_out_channels[-2:], height, width)
        if padded.shape != x.shape and not self._warned_of_padding and not torch.compiler.is_compiling():
            self._warned_of_padding = True
            sizes = " to ".join(f"{height}x{width}" for height, width in (x.shape[-2:], padded.shape[-2:]))
            warnings.warn(f"images are padded by reflection to multiples of {factor}, here {sizes}", stacklevel=3)
        return padded

    def _check_latent(self, z: Tensor) -> None:
        check_tensor("a latent", z, self.config.latent_channels, self.dtype, at_least=1)
        check_group_sizes(self.config.norm_num_groups, self.config.decoder_widths[-1:], *z.shape[-2:])

    # ---- Latents for diffusion ---------------------------------------------------------------------------------------

    def encode_for_diffusion(self, x: Tensor, sample: bool = True, generator: Generators = None) -> Tensor:
        """Encode images into scaled latents for a diffusion model: a sample of the posterior, or its mode.

        Args:
            x: (B, in_channels, H, W), values in [-1, 1].
            sample: draw a sample; False takes the mode.

        Returns:
            (B, latent_channels, ⌈H/f⌉, ⌈W/f⌉), with a standard deviation of about 1 over many images. FLUX.2:
            (B, 4 · latent_channels, H/(2f), W/(2f)), as its transformer takes them.

        Raises:
            ValueError: as `encode` and `scale_latents`.
        """
        posterior = self.encode(x).latent_dist
        return self.scale_latents(posterior.sample(generator) if sample else posterior.mode())

    def decode_from_diffusion(self, z: Tensor) -> Tensor:
        """Decode scaled latents, as a diffusion model produces them.

        Args:
            z: (B, latent_channels, h, w), or as `encode_for_diffusion` returns them.

        Returns:
            (B, out_channels, f·h, f·w).

        Raises:
            ValueError: as `decode` and `unscale_latents`.
        """
        return self.decode(self.unscale_latents(z)).sample

    def scale_latents(self, z: Tensor) -> Tensor:
        """Scale latents to a standard deviation of about 1: (z - shift) · scale, of the same shape.

        If the configuration has a mean and a standard deviation of each channel: (z - mean) · scale / std. FLUX.2 has
        them of each position in patches of 2x2: (B, C, h, w) becomes (B, 4 · C, h/2, w/2), the positions of a channel
        next to each other, row by row.

        Raises:
            ValueError: the configuration has no scaling factor, or the sides are not multiples of the patches'.
        """
        shift, scale = self._shift_and_scale(z)
        return (self.in_patches(z) - shift) * scale

    def unscale_latents(self, z: Tensor) -> Tensor:
        """Invert `scale_latents`.

        Raises:
            ValueError: the configuration has no scaling factor, or another number of channels than those of patches.
        """
        shift, scale = self._shift_and_scale(z)
        if self.config.patch_size is None:
            return z / scale + shift
        check_tensor("a scaled latent", z, self.bn.num_features, z.dtype, at_least=1)
        return F.pixel_shuffle(z / scale + shift, self.config.patch_size[0])

    def in_patches(self, z: Tensor) -> Tensor:
        """Move patches to channels, (B, C, h, w) -> (B, C · p², h/p, w/p), if the configuration has a patch size p."""
        if self.config.patch_size is None:
            return z
        patch, sides = self.config.patch_size[0], tuple(z.shape[-2:])
        if any(side % patch for side in sides):
            raise ValueError(
                f"expected latents whose sides are multiples of {patch}, got {sides}: of images whose sides are "
                f"multiples of {patch * self.downsample_factor}"
            )
        return F.pixel_unshuffle(z, patch)

    def _shift_and_scale(self, z: Tensor) -> tuple[Tensor | float, Tensor | float]:
        config = self.config
        if config.patch_size is not None:  # FLUX.2's, (C · p², 1, 1) each
            mean, var = (self.bn.get_buffer(name).to(z)[:, None, None] for name in ("running_mean", "running_var"))
            return mean, (var + config.batch_norm_eps).rsqrt()
        if config.scaling_factor is None:
            raise ValueError(
                "this model has no scaling factor. It is 1 / the standard deviation of its latents: compute "
                "`s = 1 / vae.encode(images).latent_dist.sample().std().item()` on a batch of your images, then set "
                "`vae.config = dataclasses.replace(vae.config, scaling_factor=s)`"
            )
        if config.latents_mean is None or config.latents_std is None:
            return config.shift_factor or 0.0, config.scaling_factor
        # (C, 1, 1) each: one value per latent channel
        mean, std = (z.new_tensor(values)[:, None, None] for values in (config.latents_mean, config.latents_std))
        return mean, config.scaling_factor / std
