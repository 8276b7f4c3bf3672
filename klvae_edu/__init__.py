"""klvae_edu: the autoencoder of Stable Diffusion, built step by step in the course's notebooks.

>>> from klvae_edu import AutoencoderKL
>>> vae = AutoencoderKL.from_preset("tiny", seed=0)

The names below are imported when they are first used: `klvae --help` need not wait for PyTorch, and `klvae doctor` can
speak when PyTorch is missing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from klvae_edu._version import __version__

if TYPE_CHECKING:
    from klvae_edu.autoencoder import AutoencoderKL, AutoencoderKLOutput, DecoderOutput
    from klvae_edu.config import AutoencoderKLConfig
    from klvae_edu.discriminator import NLayerDiscriminator
    from klvae_edu.gaussian import DiagonalGaussianDistribution

__all__ = [
    "AutoencoderKL",
    "AutoencoderKLConfig",
    "AutoencoderKLOutput",
    "DecoderOutput",
    "DiagonalGaussianDistribution",
    "NLayerDiscriminator",
    "__version__",
]

_MODULES = {
    "AutoencoderKL": "autoencoder",
    "AutoencoderKLOutput": "autoencoder",
    "DecoderOutput": "autoencoder",
    "AutoencoderKLConfig": "config",
    "DiagonalGaussianDistribution": "gaussian",
    "NLayerDiscriminator": "discriminator",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'klvae_edu' has no attribute {name!r}")
    value = getattr(import_module(f"klvae_edu.{_MODULES[name]}"), name)
    globals()[name] = value  # found at once the next time
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
