"""Weights of a small autoencoder for the tests of loading."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from klvae_edu import AutoencoderKL, AutoencoderKLConfig
from klvae_edu.weights.keys import to_compvis

SMALL = AutoencoderKLConfig(block_out_channels=(32, 64), layers_per_block=1, scaling_factor=None)


@pytest.fixture
def vae() -> AutoencoderKL:
    return AutoencoderKL(SMALL)


@pytest.fixture
def compvis(vae: AutoencoderKL) -> dict[str, Tensor]:
    """The weights of `vae` under CompVis' names."""
    return {name: tensor.contiguous() for name, tensor in to_compvis(vae.state_dict()).items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vae.safetensors"
