"""`klvae convert`: weights from one layout and style of names to another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class ConvertOptions:
    """Write an autoencoder's weights as another program expects them."""

    source: Positional[str]  # what to read: a file (.safetensors, .ckpt, …), a folder in diffusers' layout, or a Hub id
    target: Positional[Path]  # what to write: a file name that ends in .safetensors, or without a suffix a folder
    names: Literal["compvis", "diffusers"]  # how to name the weights; a folder has diffusers' names
    scaling_factor: float | None = None  # of a single file that does not tell: 0.13025 for SDXL's network
    norm_num_groups: int | None = None  # likewise, where it is not 32
    dtype: Literal["float32", "float16", "bfloat16"] | None = None  # of the weights; None: as they lie in the source
    ema: bool = False  # take the averaged weights out of a checkpoint of CompVis' training


def run_convert(options: ConvertOptions) -> int:
    """`klvae convert`: never writes over what is there."""
    import torch

    from klvae_edu.autoencoder import AutoencoderKL
    from klvae_edu.commands.models import announce_hub
    from klvae_edu.weights.single_file import SUFFIXES, read_single_file

    source, target = Path(options.source), options.target
    if target.suffix.lower() not in ("", ".safetensors"):
        raise ValueError(f"{target}: expected a file name that ends in .safetensors, or a folder's without a suffix")
    if not target.suffix and options.names == "compvis":
        raise ValueError(f"{target}: a folder has diffusers' names; for CompVis' names write {target}.safetensors")
    if target.exists():
        raise ValueError(f"{target}: in use, and nothing in it was changed; name another target, or move it away")
    told: dict[str, Any] = {"scaling_factor": options.scaling_factor, "norm_num_groups": options.norm_num_groups}
    told = {name: value for name, value in told.items() if value is not None} | ({"ema": True} if options.ema else {})
    dtype = getattr(torch, options.dtype) if options.dtype else None
    if source.is_file():
        config, weights, found = read_single_file(source, **told)
        vae = AutoencoderKL.from_weights(config, weights, source, dtype)
    elif source.suffix.lower() in SUFFIXES and not source.is_dir():
        raise FileNotFoundError(f"{source}: there is no such file")
    else:
        if told:
            raise ValueError(
                f"{' and '.join(told)}: for a single file only; a folder has its config.json, and no averages"
            )
        announce_hub(options.source)
        vae, found = AutoencoderKL.from_pretrained(options.source, dtype=dtype), "a folder in diffusers' layout"
    if target.suffix:
        vae.to_single_file(target, options.names)
        written = f"{target}, {'CompVis' if options.names == 'compvis' else 'diffusers'}' names"
    else:
        vae.save_pretrained(target)
        written = f"{target}, a folder in diffusers' layout"
    size = f"f = {vae.downsample_factor}, {vae.config.latent_channels} latent channels"
    print(f"{source}: {found}, {size}, {vae.num_parameters():,} parameters -> {written}")
    return 0
