"""Networks that a run loads: the autoencoder to train and the network of the perceptual loss, with their digests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from klvae_edu.autoencoder import AutoencoderKL
from klvae_edu.discriminator import smallest_side
from klvae_edu.efficientnet import EfficientNetDistance
from klvae_edu.perceptual import LPIPS, SMALLEST_SIDE
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.initialise import initialise_as_averages
from klvae_edu.weights.pretrained import config_json


class Networks(NamedTuple):
    """The autoencoder before its first step, and the network of the perceptual loss, if the run has that loss."""

    vae: AutoencoderKL
    perceptual: LPIPS | EfficientNetDistance | None

    def vae_weights(self) -> str:
        """Compute the digest of the autoencoder's configuration and weights."""
        return digest([config_json(self.vae.config).encode(), *self.vae.state_dict().values()])

    def perceptual_weights(self) -> str:
        """Name the weights of the perceptual loss by their digest: "LPIPS 0123456789ab", "untrained VGG16", "none"."""
        network = self.perceptual
        if network is None:
            return "none"
        if isinstance(network, LPIPS) and not network.trained:
            return network.source
        return f"{type(network).__name__} {digest(network.state_dict().values())}"


def load_networks(config: TrainingConfig) -> Networks:
    """Load the networks of `config`.

    Raises:
        ValueError: the model and the configuration do not fit together, or weights are missing or damaged.
    """
    return Networks(starting_model(config), perceptual_loss(config) if config.perceptual_weight else None)


def digest(parts: Iterable[Tensor | bytes]) -> str:
    """Compute a digest of the bytes of `parts`: 12 hexadecimal digits."""
    found = hashlib.blake2b(digest_size=6)
    for part in parts:
        found.update(part if isinstance(part, bytes) else part.cpu().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def starting_model(config: TrainingConfig) -> AutoencoderKL:
    """Build or load the model to train, in float32: in 16 bits small updates would be rounded away.

    Raises:
        ValueError: the model and the configuration do not fit together.
    """
    if config.init is None:
        vae = AutoencoderKL.from_preset(config.preset, config.seed, padding_mode=config.padding_mode)
        if config.initialisation == "averages":
            initialise_as_averages(vae)
    else:
        given = {} if config.scaling_factor is None else {"scaling_factor": config.scaling_factor}
        vae = AutoencoderKL.from_any(config.init, dtype=torch.float32, **given)
    factor, channels = vae.downsample_factor, (vae.config.in_channels, vae.config.out_channels)
    if channels[0] != channels[1]:
        raise ValueError(f"init: expected as many channels in as out, got {channels[0]} in and {channels[1]} out")
    if config.perceptual_weight and channels[0] not in (1, 3):
        raise ValueError(f"perceptual_weight: its network takes images of 1 or 3 channels, the model has {channels[0]}")
    if config.perceptual_weight and config.size < SMALLEST_SIDE:
        raise ValueError(f"size: expected at least {SMALLEST_SIDE} pixels for a perceptual loss, got {config.size}")
    if config.size % factor:
        raise ValueError(f"size: expected a multiple of {factor}, the model's downsample factor, got {config.size}")
    if config.disc_weight and config.size < smallest_side(config.disc_layers):
        needed = (
            f"at least {smallest_side(config.disc_layers)} pixels for a discriminator of {config.disc_layers} layers"
        )
        raise ValueError(f"size: expected {needed}, got {config.size}")
    return vae


def perceptual_loss(config: TrainingConfig) -> LPIPS | EfficientNetDistance:
    """Load the network of the perceptual loss.

    Raises:
        ValueError: its package or file is missing or damaged.
    """
    if config.perceptual == "lpips":
        return LPIPS(config.lpips)
    try:
        return EfficientNetDistance(config.perceptual)
    except ImportError as error:
        raise ValueError(f"perceptual: {error}") from error
