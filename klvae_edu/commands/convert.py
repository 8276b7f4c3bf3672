"""Convert weights between file layouts and naming schemes: `klvae convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from klvae_edu.commands.models import ModelFields, announce_hub
from klvae_edu.config import AutoencoderKLConfig
from klvae_edu.weights.programs import Layout, Program, layout_for


@dataclass(frozen=True)
class ConvertOptions(ModelFields):
    """Convert an autoencoder's weights to another file layout or naming scheme.

    Either --names or --for is needed.
    """

    # source: a file (.safetensors, .ckpt, …), a folder or a pipeline in diffusers' layout, or a Hub id
    source: Positional[str]
    target: Positional[Path]  # target: a file name that ends in .safetensors, or a folder name without a suffix
    # naming scheme of the target; a folder always has diffusers' names
    names: Literal["compvis", "diffusers"] | None = None
    # the program that will read the target: chooses names and layout, or says that it cannot hold the model
    program: Annotated[Program | None, arg(name="for")] = None
    dtype: Literal["float32", "float16", "bfloat16"] | None = None  # data type of the target; None: same as the source
    ema: bool = False  # averaged weights, of a file that holds trained and averaged ones


def run_convert(options: ConvertOptions) -> int:
    """Run `klvae convert`. An existing file or folder is never overwritten."""
    import torch

    from klvae_edu.autoencoder import AutoencoderKL
    from klvae_edu.weights.any_model import read_model
    from klvae_edu.weights.single_file import warn

    target = options.target
    if (options.names is None) == (options.program is None):
        raise ValueError("expected one of --names and --for")
    if target.suffix.lower() not in ("", ".safetensors"):
        raise ValueError(f"{target}: expected a file name that ends in .safetensors, or a folder name without a suffix")
    if not target.suffix and options.names == "compvis":
        raise ValueError(f"{target}: a folder has diffusers' names; for CompVis' names write {target}.safetensors")
    if target.exists():
        raise ValueError(f"{target}: it already exists and was not changed; name another target, or move it away")
    announce_hub(options.source)
    stored = read_model(options.source, ema=options.ema, **options.given())
    layout = _layout(options, stored.config)
    dtype = getattr(torch, options.dtype) if options.dtype else None
    vae = AutoencoderKL.from_weights(stored.config, stored.weights, stored.path, dtype)
    for note in stored.notes:
        warn(f"{stored.path}: {note}")
    was, config = stored.layout, stored.config
    del stored  # otherwise the tensors are in memory twice while the target is written
    if layout.folder:
        vae.save_pretrained(target)
        written = f"{target}, a folder in diffusers' layout"
    else:
        vae.to_single_file(target, layout.names)
        written = f"{target}, {'CompVis' if layout.names == 'compvis' else 'diffusers'}' names"
    size = f"f = {config.downsample_factor}, {config.latent_channels} latent channels"
    print(f"{options.source}: {was}, {size}, {vae.num_parameters():,} parameters -> {written}")
    return 0


def _layout(options: ConvertOptions, config: AutoencoderKLConfig) -> Layout:
    """Choose the layout of the target. Raises `ValueError` if its name is that of the other kind."""
    if options.program is None:
        return Layout(folder=not options.target.suffix, names=options.names or "diffusers")
    layout = layout_for(options.program, config, options.target.name)
    if layout.folder == bool(options.target.suffix):
        expected = "a folder name without a suffix" if layout.folder else "a file name that ends in .safetensors"
        raise ValueError(f"{options.target}: for {options.program} expected {expected}")
    return layout
