"""One step of both networks, for tests that need no loop."""

from torch import Tensor

from klvae_edu.training.setup import Training
from klvae_edu.training.steps import discriminator_step, generator_step
from klvae_edu.training.trainer import reconstruct


def whole_step(training: Training, images: Tensor) -> dict[str, float]:
    """Make the next step on images (B, 3, H, W) as the loop in `trainer.train` does; return its scalars."""
    training.begin_step()
    scalars: dict[str, float] = {}
    if training.config.trains_autoencoder(training.step):
        scalars, reconstructions = generator_step(training, images)
    else:
        reconstructions = reconstruct(training, images)
    if training.config.trains_discriminator(training.step):
        scalars |= discriminator_step(training, images, reconstructions)
    return scalars
