"""Validation: measure the model on images that it is not trained on, beside two baselines without a network."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from klvae_edu.autoencoder import AutoencoderKL
from klvae_edu.baselines import PatchPCA, bicubic
from klvae_edu.metrics import unchecked_psnr
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.loader import images_of

if TYPE_CHECKING:
    from klvae_edu.plots import Pixels

PCA_CROPS = 512  # training crops that patch-PCA is fitted to
PICTURE_CROPS = 8  # validation crops in the picture


@torch.no_grad()
def reconstructions(vae: AutoencoderKL, pca: PatchPCA, images: Tensor) -> dict[str, Tensor]:
    """Reconstruct images (B, C, H, W) in [-1, 1] by the model, by patch-PCA and by bicubic interpolation: by name.

    The model reconstructs from the mode of the posterior. patch-PCA, fitted with `latent_channels` components for f×f
    patches, keeps as many numbers as the model's latent; bicubic interpolation keeps 3 numbers per f×f pixels.
    """
    return {
        "model": vae(images.to(vae.device)).sample.cpu(),
        "patch-PCA": pca.reconstruct(images),
        "bicubic": bicubic(images, vae.downsample_factor),
    }


class Validation:
    """Validation crops, of images that are never trained on, and a patch-PCA fitted to training crops.

    Attributes:
        images: (config.held_out, C, size, size) in [-1, 1], with the channels of the model.
        unreadable: the report on files that could not be read; None if there are none.

    Raises:
        ValueError: `config.data` makes no data set.
    """

    def __init__(self, config: TrainingConfig, vae: AutoencoderKL) -> None:
        self.batch_size = config.batch_size
        channels = vae.config.in_channels
        self.images, self.unreadable = load_crops(config, "held-out", config.held_out, channels)
        training_crops, _ = load_crops(config, "train", PCA_CROPS, channels)
        self.pca = PatchPCA(vae.downsample_factor, vae.config.latent_channels).fit(training_crops)

    def measure(self, vae: AutoencoderKL) -> dict[str, float]:
        """Measure the mean PSNR in dB of "model", "patch-PCA" and "bicubic", by name."""
        values: dict[str, list[Tensor]] = {}
        for images in torch.split(self.images, self.batch_size):
            for name, reconstruction in reconstructions(vae, self.pca, images).items():
                values.setdefault(name, []).append(unchecked_psnr(reconstruction, images))
        return {name: torch.cat(of_batches).mean().item() for name, of_batches in values.items()}

    def picture(self, vae: AutoencoderKL) -> Pixels:
        """Draw the first crops above their reconstructions by the model and patch-PCA: (H, W, 3) uint8."""
        from klvae_edu.plots import figure_to_image, image_grid

        images = self.images[:PICTURE_CROPS]
        found = reconstructions(vae, self.pca, images)
        rows = {"held-out": images, "model": found["model"], "patch-PCA": found["patch-PCA"]}
        return figure_to_image(image_grid([*rows.values()], row_labels=[*rows]))


def load_crops(
    config: TrainingConfig, split: Literal["train", "held-out"], count: int, channels: int = 3
) -> tuple[Tensor, str | None]:
    """Load crops (count, channels, size, size) in [-1, 1], and the report on files that could not be read."""
    data = images_of(config, count, split, channels=channels)
    return torch.stack([*islice(DataLoader(data, batch_size=None), count)]), data.report()
