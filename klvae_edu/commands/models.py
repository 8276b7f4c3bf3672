"""Load the model that a command names, and fit the patch-PCA to compare it with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from klvae_edu.autoencoder import AutoencoderKL
    from klvae_edu.baselines import PatchPCA


def load_model(name: str, device: str | None = None) -> AutoencoderKL:
    """Load the model `name` in float32 on `device`, in evaluation mode.

    Args:
        name: a bundled model, a file (.safetensors, .ckpt, …), a folder in diffusers' layout, or a Hub id, tried in
            this order.
        device: device to compute on; None: the first available of cuda, mps and cpu.

    Raises:
        FileNotFoundError: no such file or folder, and not available on the Hub.
        ValueError: the file or folder contains no autoencoder, or the device is not available.
    """
    import torch

    from klvae_edu.autoencoder import AutoencoderKL
    from klvae_edu.environment import pick_device
    from klvae_edu.weights.pretrained import BUNDLED

    target = pick_device(device)
    if name in BUNDLED:
        vae = AutoencoderKL.from_bundled(name)
    elif is_single_file(name):
        vae = AutoencoderKL.from_single_file(name, dtype=torch.float32)
    else:
        announce_hub(name)
        vae = AutoencoderKL.from_pretrained(name, dtype=torch.float32)
    return vae.to(target).eval()


def is_single_file(name: str) -> bool:
    """Tell whether `name` is one weight file, not a folder or a Hub id.

    Raises:
        FileNotFoundError: a missing weight file.
    """
    from klvae_edu.weights.single_file import SUFFIXES

    path = Path(name)
    if path.is_file():
        return True
    if path.suffix.lower() in SUFFIXES and not path.is_dir():
        raise FileNotFoundError(f"{name}: file not found")
    return False


def announce_hub(model: str) -> None:
    """Print a message if `model` is not a folder: without a network, the Hub request fails after half a minute."""
    if not Path(model).exists():
        print(f"klvae: there is no folder {model}; looking for it on the Hugging Face Hub", file=sys.stderr)


def fitted_pca(factor: int, values: int, source: str = "photos") -> PatchPCA:
    """Fit a patch-PCA with `values` numbers per factor×factor pixels to training crops of `source`.

    Raises:
        ValueError: `source` is not a data set.
    """
    from klvae_edu.baselines import PatchPCA
    from klvae_edu.training.config import TrainingConfig
    from klvae_edu.training.validation import PCA_CROPS, load_crops

    side = max(factor, min(16 * factor, 128))  # large patches need no more memory than 8x8 pixels
    crops, _ = load_crops(TrainingConfig(data=source, size=side), "train", PCA_CROPS)
    return PatchPCA(factor, values).fit(crops)
