from ._version import __version__ as __version__
from .autoencoder import AutoencoderKL as AutoencoderKL
from .autoencoder import AutoencoderKLOutput as AutoencoderKLOutput
from .autoencoder import DecoderOutput as DecoderOutput
from .config import AutoencoderKLConfig as AutoencoderKLConfig
from .discriminator import NLayerDiscriminator as NLayerDiscriminator
from .gaussian import DiagonalGaussianDistribution as DiagonalGaussianDistribution
