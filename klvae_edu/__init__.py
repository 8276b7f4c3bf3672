"""klvae_edu: the autoencoder of Stable Diffusion, built step by step in the course's notebooks.

>>> from klvae_edu import AutoencoderKL
>>> vae = AutoencoderKL.from_preset("tiny", seed=0)
"""

from klvae_edu._version import __version__
from klvae_edu.autoencoder import AutoencoderKL, AutoencoderKLOutput, DecoderOutput
from klvae_edu.config import AutoencoderKLConfig
from klvae_edu.gaussian import DiagonalGaussianDistribution

__all__ = [
    "AutoencoderKL",
    "AutoencoderKLConfig",
    "AutoencoderKLOutput",
    "DecoderOutput",
    "DiagonalGaussianDistribution",
    "__version__",
]
