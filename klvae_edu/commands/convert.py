"""Convert weights between file layouts and naming schemes: `klvae convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from klvae_edu.commands.models import announce_hub, is_single_file


@dataclass(frozen=True)
class ConvertOptions:
    """Convert an autoencoder's weights to another file layout or naming scheme."""

    source: Positional[str]  # source: a file (.safetensors, .ckpt, …), a folder in diffusers' layout, or a Hub id
    target: Positional[Path]  # target: a file name that ends in .safetensors, or a folder name without a suffix
    names: Literal["compvis", "diffusers"]  # naming scheme of the target; a folder always has diffusers' names
    scaling_factor: float | None = None  # scaling factor, if a single file does not contain it: 0.13025 for SDXL
    norm_num_groups: int | None = None  # groups of every GroupNorm in a single file, if not 32
    dtype: Literal["float32", "float16", "bfloat16"] | None = None  # data type of the target; None: same as the source
    ema: bool = False  # averaged weights of a checkpoint of CompVis' training


def run_convert(options: ConvertOptions) -> int:
    """Run `klvae convert`. An existing file or folder is never overwritten."""
    import torch

    from klvae_edu.autoencoder import AutoencoderKL
    from klvae_edu.weights.single_file import read_single_file

    source, target = Path(options.source), options.target
    if target.suffix.lower() not in ("", ".safetensors"):
        raise ValueError(f"{target}: expected a file name that ends in .safetensors, or a folder name without a suffix")
    if not target.suffix and options.names == "compvis":
        raise ValueError(f"{target}: a folder has diffusers' names; for CompVis' names write {target}.safetensors")
    if target.exists():
        raise ValueError(f"{target}: it already exists and was not changed; name another target, or move it away")
    extra: dict[str, Any] = {"scaling_factor": options.scaling_factor, "norm_num_groups": options.norm_num_groups}
    extra = {name: value for name, value in extra.items() if value is not None} | ({"ema": True} if options.ema else {})
    dtype = getattr(torch, options.dtype) if options.dtype else None
    if is_single_file(options.source):
        config, weights, layout = read_single_file(source, **extra)
        vae = AutoencoderKL.from_weights(config, weights, source, dtype)
        del weights  # otherwise the tensors are in memory twice while the target is written
    else:
        if extra:
            raise ValueError(
                f"{' and '.join(extra)}: for a single file only; a folder has a config.json and no averaged weights"
            )
        announce_hub(options.source)
        vae, layout = AutoencoderKL.from_pretrained(options.source, dtype=dtype), "a folder in diffusers' layout"
    if target.suffix:
        vae.to_single_file(target, options.names)
        written = f"{target}, {'CompVis' if options.names == 'compvis' else 'diffusers'}' names"
    else:
        vae.save_pretrained(target)
        written = f"{target}, a folder in diffusers' layout"
    size = f"f = {vae.downsample_factor}, {vae.config.latent_channels} latent channels"
    print(f"{source}: {layout}, {size}, {vae.num_parameters():,} parameters -> {written}")
    return 0
