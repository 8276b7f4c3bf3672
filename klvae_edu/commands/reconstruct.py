"""Show photographs next to their reconstructions: `klvae reconstruct`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from klvae_edu.commands.models import fitted_pca, load_model

if TYPE_CHECKING:
    from torch import Tensor

    from klvae_edu.autoencoder import AutoencoderKL
    from klvae_edu.baselines import PatchPCA


@dataclass(frozen=True)
class ReconstructOptions:
    """Reconstruct photographs with a trained autoencoder, and save each photograph next to its reconstructions."""

    photos: Positional[tuple[Path, ...]]  # image files of any format that Pillow reads
    model: str = "kl-f8-mini"  # a bundled model, a folder such as run/model, a file, or a Hub id
    out: Path = Path("reconstructions")  # folder for the pictures, one PNG file per photograph
    size: int = 512  # maximum side in pixels; larger photographs are reduced, which limits time and memory
    # device to compute on; None: the first available of cuda, mps and cpu
    device: Literal["cuda", "mps", "cpu"] | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size: expected a whole number of at least 1, got {self.size}")


def run_reconstruct(options: ReconstructOptions) -> int:
    """Run `klvae reconstruct` and return the exit code: 1 when some photographs failed. The others are written."""
    from klvae_edu.data import UnreadableImage, load_image
    from klvae_edu.training.run_folder import unused

    if not options.photos:
        raise ValueError("expected at least one photograph: klvae reconstruct PHOTO...")
    vae = load_model(options.model, options.device)
    pca = fitted_pca(vae.downsample_factor, vae.config.latent_channels)
    options.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for photo in options.photos:
        try:
            path = unused(options.out / f"{photo.stem}_reconstruction.png")
            values = reconstruct(vae, pca, load_image(photo, name=str(photo)), options.size, path)
            print(f"{photo}: {values} -> {path}")
        except ValueError as error:
            failed += 1
            source = "" if isinstance(error, UnreadableImage) else f"{photo}: "  # UnreadableImage names the file itself
            print(f"klvae: {source}{error}", file=sys.stderr)
    return 1 if failed else 0


def reconstruct(vae: AutoencoderKL, pca: PatchPCA, photo: Tensor, size: int, path: Path) -> str:
    """Save `photo` (3, H, W) next to the reconstructions by the model and patch-PCA; return their PSNR in words."""
    from PIL import Image

    from klvae_edu.data.files import resize
    from klvae_edu.metrics import psnr
    from klvae_edu.plots import figure_to_image, image_grid
    from klvae_edu.training.validation import reconstructions

    height, width = photo.shape[-2:]
    scale = size / max(height, width)
    if scale < 1:
        photo = resize(photo, max(1, round(height * scale)), max(1, round(width * scale)))
    images = reconstructions(vae, pca, photo[None])
    values = {name: f"{psnr(image, photo[None]).item():.2f} dB" for name, image in images.items()}
    titles = ["original", *(f"{name}, {values[name]}" for name in ("model", "patch-PCA"))]
    picture = image_grid([[photo, images["model"][0], images["patch-PCA"][0]]], column_titles=titles)
    Image.fromarray(figure_to_image(picture)).save(path)
    return ", ".join(f"{name} {value}" for name, value in values.items())
