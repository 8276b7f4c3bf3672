"""`AutoencoderKL`: the autoencoder of Stable Diffusion, equal to diffusers' class on the same weights.

An image (B, 3, H, W) in [-1, 1] becomes the posterior of a latent (B, 4, H/8, W/8), and a latent becomes an image.

Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models" (the LDM paper), section
3.1; CompVis latent-diffusion, `ldm/models/autoencoder.py`. Names and state-dict keys are those of diffusers.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from klvae_edu.config import AutoencoderKLConfig, check_field_names
from klvae_edu.encoder_decoder import Decoder, Encoder
from klvae_edu.gaussian import DiagonalGaussianDistribution
from klvae_edu.inputs import check_tensor, pad_to_multiple
from klvae_edu.model_mixin import ModelMixin
from klvae_edu.precision import in_float32, in_half
from klvae_edu.tiling import Tiling, sliced, tiled


class AutoencoderKLOutput(NamedTuple):
    """What `encode` returns: the posterior over latents."""

    latent_dist: DiagonalGaussianDistribution


class DecoderOutput(NamedTuple):
    """What `decode` and `forward` return: images (B, 3, H, W), about [-1, 1] but not clamped."""

    sample: Tensor


class AutoencoderKL(ModelMixin):
    """The autoencoder with a KL-regularised latent space.

    Args:
        config: what to build; without it, Stable Diffusion v1's (83,653,863 parameters).
        **fields: single fields of the configuration by name, as in diffusers: `AutoencoderKL(latent_channels=16)`.

    Raises:
        ValueError: a configuration that cannot be built, or an unknown field (the nearest name is offered).

    Built in notebook 05, section 4.

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
        self.use_slicing = False
        self.use_tiling = False
        self.tiling = Tiling()
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

    @property
    def downsample_factor(self) -> int:
        """f, the image side over the latent side (8 for Stable Diffusion)."""
        return self.config.downsample_factor

    # ---- Images to latents and back ----------------------------------------------------------------------------------

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
        return self._encode(x, self.use_tiling)

    def decode(self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None) -> DecoderOutput:
        """Latent (B, latent_channels, h, w) -> image (B, 3, f·h, f·w).

        `return_dict` and `generator` are accepted because diffusers' pipelines pass them: the output is a named tuple,
        and decoding draws nothing.

        Raises:
            ValueError: not a (B, latent_channels, h, w) tensor of floating-point numbers.
        """
        return self._decode(z, self.use_tiling)

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

    def tiled_encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput:
        """`encode` in tiles (see `klvae_edu.tiling`), whether `enable_tiling` was called or not."""
        return self._encode(x, tiling=True)

    def tiled_decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput:
        """`decode` in tiles, whether `enable_tiling` was called or not."""
        return self._decode(z, tiling=True)

    def _encode(self, x: Tensor, tiling: bool) -> AutoencoderKLOutput:
        factor = self.downsample_factor
        check_tensor("an image", x, self.config.in_channels, self.dtype, at_least=factor)
        padded = pad_to_multiple(x, factor)
        if padded.shape != x.shape and not self._told_of_padding and not torch.compiler.is_compiling():
            self._told_of_padding = True
            sizes = " to ".join(f"{height}x{width}" for height, width in (x.shape[-2:], padded.shape[-2:]))
            warnings.warn(f"images are padded by reflection to multiples of {factor}, here {sizes}", stacklevel=3)
        moments = self._run((self.encoder, self.quant_conv), padded, tiling, units=(factor, 1))
        return AutoencoderKLOutput(DiagonalGaussianDistribution(moments))

    def _decode(self, z: Tensor, tiling: bool) -> DecoderOutput:
        check_tensor("a latent", z, self.config.latent_channels, self.dtype, at_least=1)
        units = (1, self.downsample_factor)
        return DecoderOutput(self._run((self.post_quant_conv, self.decoder), z, tiling, units))

    def _run(self, stages: tuple[nn.Module, nn.Module], x: Tensor, tiling: bool, units: tuple[int, int]) -> Tensor:
        """`x` through both stages: in slices, in tiles and in float32, as is set."""
        if (hook := getattr(self, "_hf_hook", None)) is not None:
            hook.pre_forward(self)  # a diffusers pipeline that offloads its models has the weights fetched by this

        def whole(x: Tensor) -> Tensor:
            if self.config.force_upcast and in_half(x, self.dtype):
                return in_float32(stages, x).to(self.dtype)
            return stages[1](stages[0](x))

        def in_tiles(x: Tensor) -> Tensor:
            self.tiling.check(self.downsample_factor)
            tile, overlap = (pixels // self.downsample_factor for pixels in (self.tiling.size, self.tiling.overlap))
            return tiled(whole, x, tile, overlap, units, norms=self if self.tiling.global_norm else None)

        function = in_tiles if tiling else whole
        return sliced(function, x) if self.use_slicing and len(x) > 1 else function(x)

    # ---- Latents for diffusion ---------------------------------------------------------------------------------------

    def encode_for_diffusion(self, x: Tensor, sample: bool = True, generator: torch.Generator | None = None) -> Tensor:
        """Image -> the latent a diffusion model works on: a sample of the posterior, or its mode, scaled."""
        posterior = self.encode(x).latent_dist
        return self.scale_latents(posterior.sample(generator) if sample else posterior.mode())

    def decode_from_diffusion(self, z: Tensor) -> Tensor:
        """What a diffusion model made, (B, latent_channels, h, w) -> image (B, 3, f·h, f·w)."""
        return self.decode(self.unscale_latents(z)).sample

    def scale_latents(self, z: Tensor) -> Tensor:
        """(z - shift) · scale, with spread about 1; with a mean and a standard deviation, (z - mean) · scale / std.

        Raises:
            ValueError: the configuration has no scaling factor.
        """
        shift, scale = self._shift_and_scale(z)
        return (z - shift) * scale

    def unscale_latents(self, z: Tensor) -> Tensor:
        """The inverse of `scale_latents`."""
        shift, scale = self._shift_and_scale(z)
        return z / scale + shift

    def _shift_and_scale(self, z: Tensor) -> tuple[Tensor | float, Tensor | float]:
        config = self.config
        if config.scaling_factor is None:
            raise ValueError(
                "this model has no scaling factor. It is 1 / the standard deviation of its latents: compute "
                "`s = 1 / vae.encode(images).latent_dist.sample().std().item()` on a batch of your images, then set "
                "`vae.config = dataclasses.replace(vae.config, scaling_factor=s)`"
            )
        if config.latents_mean is None or config.latents_std is None:
            return config.shift_factor or 0.0, config.scaling_factor
        mean, std = (z.new_tensor(values)[:, None, None] for values in (config.latents_mean, config.latents_std))
        return mean, config.scaling_factor / std

    # ---- Settings: how it is computed, not what ----------------------------------------------------------------------

    def enable_slicing(self) -> None:
        """Encode and decode a batch one image at a time: less memory, and the same numbers up to rounding."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Encode and decode a batch at once."""
        self.use_slicing = False

    def enable_tiling(
        self, use_tiling: bool = True, size: int | None = None, overlap: int | None = None, global_norm: bool = False
    ) -> None:
        """Encode and decode in overlapping tiles: memory that does not grow with the image, slightly other numbers.

        Args:
            use_tiling: False turns it off.
            size, overlap: in pixels, multiples of f; None: 288 and 64, and of tiles below 256 a quarter overlaps.
            global_norm: measure GroupNorm's statistics over all tiles first: nearer to the whole, in twice the time.

        Raises:
            ValueError: sizes that are no multiples of f, or an overlap as large as the tile.
        """
        factor, size = self.downsample_factor, Tiling.size if size is None else size
        if overlap is None:  # a quarter of small tiles
            overlap = min(Tiling.overlap, int(size) // 4 // factor * factor)
        tiling = Tiling(size, overlap, global_norm)
        tiling.check(factor)
        self.tiling, self.use_tiling = tiling, use_tiling

    def disable_tiling(self) -> None:
        """Encode and decode images whole."""
        self.use_tiling = False
