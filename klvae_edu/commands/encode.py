"""`klvae encode`: images to latents, once and for all."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class EncodeOptions:
    """Encode every image of a source, and keep the latents as a data set in Parquet files.

    A run that was interrupted goes on where it was when the same command is given again.
    """

    data: Positional[str]  # images: a folder, photos, sprites, dead-leaves, or a Hugging Face data set
    out: Positional[Path]  # folder for the latents: a new one, or one that an interrupted run has begun
    model: str = "kl-f8-mini"  # a bundled model, a folder such as run/model, a file, or a Hub id
    size: int = 256  # side of the images in pixels: the largest centred square of each is scaled to it
    count: int | None = None  # number of images; None: all there are (sprites and dead-leaves have no end)
    device: Literal["cuda", "mps", "cpu"] | None = None  # what to compute on; None: the best there is


def run_encode(options: EncodeOptions) -> int:
    """`klvae encode`: 1 when some of the images could not be read; the others are encoded."""
    from klvae_edu.commands.models import load_model
    from klvae_edu.data.all_images import AllImages
    from klvae_edu.data.latent_writer import encode_images
    from klvae_edu.data.sources import source_folders

    images = AllImages(options.data, options.size, options.count)
    for folder in source_folders(options.data):
        if options.out.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{options.out}: expected a folder outside of the images in {folder}")
    vae = load_model(options.model, options.device)
    found = encode_images(vae, images, options.out, {"model": options.model, "source": options.data})
    shape = "x".join(map(str, found["latent_shape"]))
    print(f"{found['encoded']:,} latents of {shape} values -> {options.out}")
    print(f"scaling factor of these latents: {found['statistics']['scaling_factor']:.3g}")
    if found["left_out"]:
        lines = [f"{len(found['left_out'])} images could not be read and are left out:", *found["left_out"]]
        print("klvae: " + "\n  ".join(lines), file=sys.stderr)
    return 1 if found["left_out"] else 0
