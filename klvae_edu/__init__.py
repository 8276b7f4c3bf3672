"""klvae_edu: the autoencoder of Stable Diffusion, built step by step in the course's notebooks.

>>> from klvae_edu import AutoencoderKL
>>> vae = AutoencoderKL.from_preset("tiny", seed=0)

The names in `__init__.pyi` are imported when they are first used, so that `klvae --help` does not wait for PyTorch and
`klvae doctor` runs without it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
