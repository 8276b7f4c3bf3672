"""The settings that a run and the checkpoint that it resumes must share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from klvae_edu.config import AutoencoderKLConfig
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.setup import Training
from klvae_edu.weights.pretrained import FREE_FIELDS


def architecture_difference(training: Training, saved: Mapping[str, Any]) -> str:
    """Describe the first part in which a run differs from the `architecture` in a checkpoint. Empty: in none.

    A checkpoint of an earlier version may lack settings. They had their defaults.
    """
    defaults = _defaults()
    for name, mine in architecture(training).items():
        if difference := _difference(mine, saved.get(name, mine and {}), defaults[name]):
            return f"{name}, {difference}"
    return ""


def architecture(training: Training) -> dict[str, Any]:
    """Return the settings that a run and its checkpoint must share."""
    config = training.config
    return {
        "autoencoder": _network(training.vae.config),
        "discriminator": _patchgan(config) if config.disc_weight else None,
        "training": {"trained_part": config.trained_part, "averaged": training.ema is not None},
    }


def _defaults() -> dict[str, dict[str, Any]]:
    """Return the defaults of these settings: their values in checkpoints of versions that did not have them yet."""
    config = TrainingConfig()
    return {
        "autoencoder": _network(AutoencoderKLConfig()),
        "discriminator": _patchgan(config),
        "training": {"trained_part": config.trained_part, "averaged": config.ema > 0},
    }


def _network(config: AutoencoderKLConfig) -> dict[str, Any]:
    return {name: value for name, value in json.loads(json.dumps(asdict(config))).items() if name not in FREE_FIELDS}


def _patchgan(config: TrainingConfig) -> dict[str, Any]:
    return {"disc_channels": config.disc_channels, "disc_layers": config.disc_layers}


def _difference(mine: Any, saved: Any, defaults: Mapping[str, Any]) -> str:
    """Describe how the settings of a run differ from those in a checkpoint; empty: they do not."""
    if not (isinstance(mine, dict) and isinstance(saved, dict)):
        owner = "this run has and the checkpoint has not" if mine else "this run has not and the checkpoint has"
        return "" if mine == saved else f"which {owner}"
    was = {name: saved.get(name, defaults[name]) for name in mine}
    return "; ".join(
        f"{name}: expected {mine[name]}, got {was[name]}"
        + ("" if name in saved else ", the default of before this setting was there")
        for name in mine
        if mine[name] != was[name]
    )
