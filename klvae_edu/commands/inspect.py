"""Say what a weight file, a folder or a model on the Hub is: `klvae inspect`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tyro.conf import Positional

from klvae_edu.commands.models import ModelFields, announce_hub


@dataclass(frozen=True)
class InspectOptions(ModelFields):
    """Say in ten lines what a file, a folder or a Hub id holds: names, network, parameters, scale, and what is left.

    The weights are read, but no model is built.
    """

    model: Positional[str]  # a weight file, a folder or a pipeline in diffusers' layout, a Hub id, or a bundled model
    ema: bool = False  # averaged weights, of a file that holds trained and averaged ones


def run_inspect(options: InspectOptions) -> int:
    """Run `klvae inspect`, and return the exit code: 1 when the weights do not fit their configuration."""
    import torch

    from klvae_edu.autoencoder import AutoencoderKL
    from klvae_edu.weights.any_model import read_model
    from klvae_edu.weights.checks import check_fit
    from klvae_edu.weights.places import count_by_kind
    from klvae_edu.weights.programs import family_of, read_by_diffusers

    announce_hub(options.model)
    stored = read_model(options.model, ema=options.ema, **options.given())
    config, weights = stored.config, stored.weights
    problem = None
    with torch.device("meta"):
        network = AutoencoderKL(config)
    try:
        check_fit(network.state_dict(), weights, stored.path)
    except ValueError as error:
        problem = str(error)
    types = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in weights.values())
    present = [name for name in ("quant_conv", "post_quant_conv") if getattr(config, f"use_{name}")]
    means = ", mean and std of each channel" if config.latents_mean else ""
    scale = f"scaling factor {config.scaling_factor}, shift {config.shift_factor}{means}"
    if config.patch_size is not None:
        scale = f"mean and variance of each position in patches of {' x '.join(map(str, config.patch_size))}"
    own = config.decoder_block_out_channels
    widths = ", ".join(map(str, config.block_out_channels)) + (f" (decoder {', '.join(map(str, own))})" if own else "")
    left = f"{len(stored.left_out)}: {count_by_kind(stored.left_out)}" if stored.left_out else "none"
    rows = {
        "file": f"{stored.path}, {stored.path.stat().st_size / 1e6:,.1f} MB",
        "names": stored.layout,
        "network": f"f = {config.downsample_factor}, {config.in_channels} image and {config.latent_channels} latent "
        f"channels; widths {widths}; "
        f"blocks per level: {config.layers_per_block}",
        "parts": f"{', '.join(present) or 'no convolutions'} around the latent; "
        f"{'attention' if config.mid_block_add_attention else 'no attention'} in the mid block; "
        f"{config.norm_num_groups} groups in each norm",
        "family": family_of(config) or "none of the published ones",
        "parameters": f"{sum(tensor.numel() for tensor in weights.values()):,} in {len(weights)} tensors",
        "types": ", ".join(f"{kind} ({count})" for kind, count in types.most_common()),
        "latents": scale,
        "left out": f"{left}; {stored.others} tensors of other models in the file",
        "diffusers": read_by_diffusers(config, stored.path, stored.style, stored.prefix),
    }
    for name, value in rows.items():
        print(f"{name:<11}{value}")
    for note in [*stored.notes, *([problem] if problem else [])]:
        print(f"{'note':<11}{note}")
    return 1 if problem else 0
