"""A trained model by whatever name a command is given for it, and the patch-PCA that is shown beside it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from klvae_edu.autoencoder import AutoencoderKL
    from klvae_edu.baselines import PatchPCA


def load_model(name: str, device: str | None = None) -> AutoencoderKL:
    """The model that `name` stands for, in float32, on `device` (None: the best there is).

    `name` is that of a bundled model, a file (.safetensors, .ckpt, …), a folder in diffusers' layout, or a Hub id, and
    is tried in this order.

    Raises:
        FileNotFoundError: neither here nor to be had from the Hub.
        ValueError: there is something of that name, but no autoencoder in it; or the device is not there.
    """
    import torch

    from klvae_edu.autoencoder import AutoencoderKL
    from klvae_edu.environment import pick_device
    from klvae_edu.weights.pretrained import BUNDLED
    from klvae_edu.weights.single_file import SUFFIXES

    target, path = pick_device(device), Path(name)
    if name in BUNDLED:
        vae = AutoencoderKL.from_bundled(name)
    elif path.is_file():
        vae = AutoencoderKL.from_single_file(path, dtype=torch.float32)
    elif path.suffix.lower() in SUFFIXES and not path.is_dir():
        raise FileNotFoundError(f"{name}: there is no such file")
    else:
        announce_hub(name)
        vae = AutoencoderKL.from_pretrained(name, dtype=torch.float32)
    return vae.to(target).eval()


def announce_hub(model: str) -> None:
    """Say so when `model` is no folder: without a network the Hub is asked in vain for half a minute."""
    if not Path(model).exists():
        print(f"klvae: there is no folder {model}; asking the Hugging Face Hub for it", file=sys.stderr)


def fitted_pca(factor: int, values: int, source: str = "photos") -> PatchPCA:
    """patch-PCA with `values` numbers per factor×factor pixels, fitted to training crops of `source`.

    Raises:
        ValueError: `source` makes no data set.
    """
    from klvae_edu.baselines import PatchPCA
    from klvae_edu.training.config import TrainingConfig
    from klvae_edu.training.validation import PCA_CROPS, some_crops

    side = max(factor, min(16 * factor, 128))  # large patches need no more memory than those of 8x8 pixels
    crops, _ = some_crops(TrainingConfig(data=source, size=side), "train", PCA_CROPS)
    return PatchPCA(factor, values).fit(crops)
