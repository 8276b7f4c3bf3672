"""Encode images into a data set of latents: `klvae encode`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from klvae_edu.commands.arguments import HomePath, ModelName, memory_for
from klvae_edu.commands.models import ModelFields, load_model


@dataclass(frozen=True)
class EncodeOptions(ModelFields):
    """Encode every image of a data source, and save the latents as a data set in Parquet files.

    An interrupted run is resumed when the same command is run again.
    """

    data: Positional[str]  # images: a folder, photos, sprites, dead-leaves, or hf:NAME[:CONFIG][#COLUMN]
    out: Positional[HomePath]  # folder for the latents: a new one, or the folder of an interrupted run
    model: ModelName = "kl-f8-mini"  # a bundled model, a folder such as run/model, a file, or a Hub id
    size: int = 256  # side of the images in pixels; the largest centred square of each is resized to it
    count: int | None = None  # number of images; None: all (sprites and dead-leaves are endless and need a number)
    # device to compute on; None: the first available of cuda, mps and cpu
    device: Literal["cuda", "mps", "cpu"] | None = None


def run_encode(options: EncodeOptions) -> int:
    """Run `klvae encode` and return the exit code: 1 when some images were left out. The others are encoded."""
    from klvae_edu.data.all_images import AllImages
    from klvae_edu.data.crops import NAMES_IN_REPORT, unreadable_report
    from klvae_edu.data.files import printable
    from klvae_edu.data.latent_writer import encode_images
    from klvae_edu.data.sources import check_outside

    check_outside(options.out, options.data)
    vae = load_model(options.model, options.device, options.given())
    images = AllImages(options.data, options.size, options.count, vae.config.in_channels)
    with memory_for(options.size):
        result = encode_images(vae, images, options.out, {"model": options.model, "source": options.data})
    shape = "x".join(map(str, result["latent_shape"]))
    print(f"{result['encoded']:,} latents of {shape} values -> {printable(str(options.out))}")
    print(f"scaling factor of these latents: {result['statistics']['scaling_factor']:.3g}")
    if images.remarks.images:
        print(f"klvae: {images.remarks.summary()}", file=sys.stderr)
    left_out = result["left_out"]
    if left_out:
        print(
            f"klvae: {unreadable_report(left_out[:NAMES_IN_REPORT], len(left_out), ' or encoded, and are left out')}",
            file=sys.stderr,
        )
    return 1 if left_out else 0
