"""Show photographs next to their reconstructions: `klvae reconstruct`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from klvae_edu.commands.arguments import HomePath, ModelName, memory_for
from klvae_edu.commands.evaluate import fitted_pca
from klvae_edu.commands.models import ModelFields, load_model

if TYPE_CHECKING:
    from torch import Tensor

    from klvae_edu.autoencoder import AutoencoderKL
    from klvae_edu.baselines import PatchPCA


@dataclass(frozen=True)
class ReconstructOptions(ModelFields):
    """Reconstruct photographs with a trained autoencoder, and save each photograph next to its reconstructions.

    A photograph is read with as many channels as the model takes. Other than 3 are drawn as grey pictures, one a band.
    """

    photos: Positional[tuple[HomePath, ...]]  # image files of any format that Pillow reads
    model: ModelName = "kl-f8-mini"  # a bundled model, a folder such as run/model, a file, or a Hub id
    out: HomePath = Path("reconstructions")  # folder for the pictures, one PNG file per photograph
    size: int = 512  # maximum side in pixels; larger photographs are reduced, which limits time and memory
    # device to compute on; None: the first available of cuda, mps and cpu
    device: Literal["cuda", "mps", "cpu"] | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size: expected a whole number of at least 1, got {self.size}")


def run_reconstruct(options: ReconstructOptions) -> int:
    """Run `klvae reconstruct` and return the exit code: 1 when some photographs failed. The others are written."""
    from klvae_edu.data import UnreadableImage, load_image
    from klvae_edu.evaluation.compare import image_channels
    from klvae_edu.training.run_folder import unused

    if not options.photos:
        raise ValueError("expected at least one photograph: klvae reconstruct PHOTO...")
    vae = load_model(options.model, options.device, options.given())
    channels = image_channels({options.model: vae})
    pca = fitted_pca(vae)
    if pca is None:
        print(f"patch-PCA is left out: the photographs that it is fitted to do not have {channels} channels")
    options.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for photo in options.photos:
        try:
            path = unused(options.out / f"{photo.stem}_reconstruction.png")
            image = load_image(photo, name=str(photo), channels=channels)
            with memory_for(options.size):
                values = reconstruct(options.model, vae, pca, image, options.size, path)
            print(f"{photo}: {values} -> {path}")
        except ValueError as error:
            failed += 1
            source = "" if isinstance(error, UnreadableImage) else f"{photo}: "  # UnreadableImage names the file itself
            print(f"klvae: {source}{error}", file=sys.stderr)
    return 1 if failed else 0


def reconstruct(name: str, vae: AutoencoderKL, pca: PatchPCA | None, photo: Tensor, size: int, path: Path) -> str:
    """Save `photo` (C, H, W) next to the reconstructions by the model and patch-PCA; return their PSNR in words.

    Args:
        name: name of the model in error messages.

    Raises:
        ValueError: the photograph is smaller than a latent pixel, or its reconstruction is not finite or beyond ±16.
    """
    import torch
    from PIL import Image

    from klvae_edu.baselines import bicubic
    from klvae_edu.data.files import resize
    from klvae_edu.metrics import psnr
    from klvae_edu.plots import figure_to_image, image_grid
    from klvae_edu.validation import MAX_RECONSTRUCTION_VALUE, image_fault

    height, width = photo.shape[-2:]
    scale = size / max(height, width)
    if scale < 1:
        photo = resize(photo, max(1, round(height * scale)), max(1, round(width * scale)))
    if min(photo.shape[-2:]) < vae.downsample_factor:
        reduced = f", reduced from {width}x{height} by --size {size}" if scale < 1 else ""
        got = f"{photo.shape[-1]}x{photo.shape[-2]}{reduced}"
        raise ValueError(f"expected at least {vae.downsample_factor} pixels on each side, got {got}")
    original = photo[None]  # (1, C, H, W)
    with torch.no_grad():
        images = {"model": vae(original.to(vae.device)).sample.cpu()}
    fault = image_fault(images["model"], MAX_RECONSTRUCTION_VALUE)
    if fault is not None:
        raise ValueError(f"expected a reconstruction in about [-1, 1], but model {name} gave {fault[1]}")
    if pca is not None:
        images["patch-PCA"] = pca.reconstruct(original)
    shown = [*images]
    images["bicubic"] = bicubic(original, vae.downsample_factor)
    values = {method: f"{psnr(image, original).item():.2f} dB" for method, image in images.items()}
    titles = ["original", *(f"{method}, {values[method]}" for method in shown)]
    picture = image_grid([[photo, *(images[method][0] for method in shown)]], column_titles=titles)
    Image.fromarray(figure_to_image(picture)).save(path)
    return ", ".join(f"{method} {value}" for method, value in values.items())
