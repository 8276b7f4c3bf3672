"""Train the small autoencoder that notebook 08 starts from, and write it into klvae_edu/assets/narrow-start/.

It is trained on the L2 and KL losses, without a discriminator, so its images are blurred.

    python -m tools.pretrain_start
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from klvae_edu import AutoencoderKL, AutoencoderKLConfig
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.trainer import train
from klvae_edu.training.validation import Validation
from tools.course import COURSE

MODEL = COURSE.root / "klvae_edu" / "assets" / "narrow-start"
ARCHITECTURE = AutoencoderKLConfig(
    block_out_channels=(16, 32, 32),
    layers_per_block=1,
    norm_num_groups=8,
    sample_size=32,
    scaling_factor=None,
)
CONFIG = TrainingConfig(steps=6000, held_out=64, sample_every=6000, save_every=6000, device="cpu")
README = """\
# A small autoencoder, trained on L2 and KL only

The weights that notebook 08 starts from: {parameters:,} parameters in float16, f = 4, 4 latent channels, for crops of
32×32 pixels. They were trained without a discriminator, so reconstructions are blurred. They are a starting point for
training, not a model for use.

    import torch
    from klvae_edu import AutoencoderKL
    vae = AutoencoderKL.from_pretrained("klvae_edu/assets/narrow-start", dtype=torch.float32)

Made by `python -m tools.pretrain_start`: {steps:,} steps of {batch_size} crops of the seven training photographs inside
scikit-image (LICENSES/sample-photographs.md), AdamW with a cosine schedule from {lr:g}, loss L2 + {kl_weight:g} · KL
as `klvae_edu.losses.vae_loss` defines it, no perceptual term, seed {seed}.

On {held_out} validation crops, of photographs that it was not trained on:

| | PSNR in dB |
| --- | --- |
| this model | {model:.1f} |
| patch-PCA, as many numbers | {pca:.1f} |
| bicubic | {bicubic:.1f} |

Its gradient energy, the mean squared difference of neighbouring pixels, is {sharpness:.0f} % of the crops' own.
"""


def sharpness(images: Tensor, of: Tensor) -> float:
    """Return the gradient energy of `images` (B, C, H, W) divided by the gradient energy of the images `of`."""

    def energy(x: Tensor) -> float:
        return float(x.diff(dim=2).square().mean() + x.diff(dim=3).square().mean())

    return energy(images) / energy(of)


@torch.no_grad()
def readme(vae: AutoencoderKL, config: TrainingConfig) -> str:
    """Return the text of the folder's README, with figures measured on validation crops."""
    held_out = Validation(config, vae)
    psnr = held_out.measure(vae)
    return README.format(
        **config.to_dict() | {"model": psnr["model"], "pca": psnr["patch-PCA"], "bicubic": psnr["bicubic"]},
        parameters=vae.num_parameters(),
        sharpness=100 * sharpness(vae(held_out.images).sample, held_out.images),
    )


def pretrain(config: TrainingConfig, folder: Path) -> None:
    """Train a model of `ARCHITECTURE` with `config`; write it in float16, with its README, into `folder`."""
    with tempfile.TemporaryDirectory() as temporary:
        untrained, run = Path(temporary, "untrained"), Path(temporary, "run")
        torch.manual_seed(config.seed)
        AutoencoderKL(ARCHITECTURE).save_pretrained(untrained)
        train(TrainingConfig(**vars(config) | {"init": str(untrained), "out": run}))
        AutoencoderKL.from_pretrained(run / "model", dtype=torch.float16).save_pretrained(folder)
    vae = AutoencoderKL.from_pretrained(folder, dtype=torch.float32)
    (folder / "README.md").write_text(readme(vae, config), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)  # the same weights on every run of one machine
    pretrain(CONFIG, MODEL)
