"""Comparison with diffusers: same weights, same input, largest difference divided by the largest value."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL as ReferenceAutoencoderKL
from torch import Tensor

from klvae_edu import AutoencoderKL, AutoencoderKLConfig

SMALL = AutoencoderKLConfig(block_out_channels=(32, 64, 64), layers_per_block=1, norm_num_groups=8, sample_size=32)

FLUX2: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "latent_channels": 8,
    "norm_num_groups": 8,
    "scaling_factor": None,
    "patch_size": (2, 2),
}

CONFIGS: dict[str, AutoencoderKLConfig] = {
    "tiny": SMALL,
    "two blocks per level": AutoencoderKLConfig(block_out_channels=(32, 64), layers_per_block=2, norm_num_groups=8),
    "three blocks per level": AutoencoderKLConfig(block_out_channels=(32, 64), layers_per_block=3, norm_num_groups=8),
    "16 channels without quant convs": AutoencoderKLConfig(
        block_out_channels=(32, 64),
        latent_channels=16,
        norm_num_groups=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ),
    "no mid attention": AutoencoderKLConfig(
        block_out_channels=(32, 64), norm_num_groups=8, mid_block_add_attention=False
    ),
    "attention in the levels": AutoencoderKLConfig(
        block_out_channels=(32, 64),
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    ),
    "widths that fall and rise": AutoencoderKLConfig(
        block_out_channels=(64, 32, 48), norm_num_groups=16, act_fn="gelu"
    ),
    "FLUX.2": AutoencoderKLConfig(**FLUX2, batch_norm_eps=1e-2),
    "FLUX.2 with a decoder of its own widths": AutoencoderKLConfig(**FLUX2, decoder_block_out_channels=(24, 48)),
}


def narrow(preset: str) -> AutoencoderKLConfig:
    """Return a preset with an eighth of its widths and 8 groups: the same structure, small enough for a test."""
    config = AutoencoderKLConfig.from_preset(preset)
    widths, decoder = (
        tuple(max(16, width // 8) for width in widths)
        for widths in (config.block_out_channels, config.decoder_block_out_channels or ())
    )
    return AutoencoderKLConfig.from_preset(
        preset, block_out_channels=widths, decoder_block_out_channels=decoder or None, norm_num_groups=8
    )


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Set every parameter to random values: with default norms (weight 1, bias 0) swapped norms would be hidden."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 1
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            value = noise / fan_in**0.5 if parameter.ndim > 1 else 1.0 + 0.3 * noise
            parameter.copy_(value)
        for name, buffer in model.named_buffers():  # FLUX.2's statistics
            value = torch.rand(buffer.shape, generator=generator, dtype=torch.float64) + 0.1
            buffer.copy_(100 * value if name.endswith("num_batches_tracked") else value)


def built_by_diffusers(config: AutoencoderKLConfig) -> ReferenceAutoencoderKL:
    """Build diffusers' model with its own parameters; a version that does not know all fields skips the test."""
    their_class = getattr(diffusers, config.diffusers_class)
    if unknown := config.to_dict().keys() - inspect.signature(their_class).parameters:
        pytest.skip(f"{config.diffusers_class} of diffusers {diffusers.__version__} has no {', '.join(unknown)}")
    return their_class(**config.to_dict())


def reference_of(config: AutoencoderKLConfig, dtype: torch.dtype, seed: int = 0) -> ReferenceAutoencoderKL:
    """Build diffusers' model, of FLUX.2's class for its configurations, with random parameters and buffers."""
    reference = built_by_diffusers(config).to(dtype)
    randomise(reference, seed)
    return reference


def pair_of(config: AutoencoderKLConfig, dtype: torch.dtype) -> tuple[AutoencoderKL, ReferenceAutoencoderKL]:
    """Build our model and diffusers' with the same weights: theirs load into ours without renaming, `strict=True`."""
    reference = reference_of(config, dtype)
    ours = AutoencoderKL(config).to(dtype)
    ours.load_state_dict(reference.state_dict(), strict=True)
    return ours, reference


@dataclass
class Difference:
    """Largest differences relative to the reference's largest value; of the gradient, the ratio of norms."""

    moments: float
    reconstruction: float
    gradient: float


def image(size: tuple[int, int], dtype: torch.dtype, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return 2.0 * torch.rand(batch, 3, *size, generator=generator, dtype=torch.float64).to(dtype) - 1.0


def compare(ours: AutoencoderKL, reference: ReferenceAutoencoderKL, x: Tensor) -> Difference:
    """Encode, decode and differentiate with both models. The loss depends on all parameters."""
    moments, reconstruction, gradients = [], [], []
    for model in (ours, reference):
        model.zero_grad()
        posterior = model.encode(x).latent_dist
        sample = posterior.sample(torch.Generator().manual_seed(3))
        output = model.decode(sample).sample
        (output.pow(2).mean() + 1e-3 * posterior.kl().mean()).backward()
        moments.append(posterior.parameters.detach())
        reconstruction.append(output.detach())
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    names = sorted(gradients[1])
    ours_flat, reference_flat = (torch.cat([grad[name].flatten() for name in names]) for grad in gradients)
    return Difference(
        moments=relative(*moments),
        reconstruction=relative(*reconstruction),
        gradient=float((ours_flat - reference_flat).norm() / reference_flat.norm()),
    )


def relative(ours: Tensor, reference: Tensor) -> float:
    """Return the largest difference divided by the reference's largest value."""
    return float((ours - reference).detach().abs().max() / reference.detach().abs().max())
