"""Load the model that a command names."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from klvae_edu.autoencoder import AutoencoderKL


@dataclass(frozen=True, kw_only=True)
class ModelFields:
    """Options about a model that its file may lack; every command with a model has them."""

    scaling_factor: float | None = None  # scaling factor of the latents, such as 0.13025 for SDXL; None: the file's
    norm_num_groups: int | None = None  # groups of every GroupNorm; None: the file's, or 32

    def given(self) -> dict[str, Any]:
        """Return the fields that are not None, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(ModelFields)}
        return {name: value for name, value in values.items() if value is not None}


def load_model(name: str, device: str | None = None, given: Mapping[str, Any] | None = None) -> AutoencoderKL:
    """Load the model `name` in float32 on `device`, in evaluation mode.

    Args:
        name: whatever `read_model` reads: a bundled model, a file, a folder, or a Hub id.
        device: device to compute on; None: the first available of cuda, mps and cpu.
        given: fields of the configuration by name, such as the scaling factor.

    Raises:
        FileNotFoundError: no such file or folder, and not available on the Hub.
        ValueError: the file or folder contains no autoencoder, or the device is not available.
    """
    import torch

    from klvae_edu.autoencoder import AutoencoderKL
    from klvae_edu.environment import pick_device

    target = pick_device(device)
    announce_hub(name)
    return AutoencoderKL.from_any(name, dtype=torch.float32, **(given or {})).to(target).eval()


def announce_hub(model: str) -> None:
    """Print a message if `model` is looked for on the Hub: without a network, that fails after half a minute."""
    from klvae_edu.weights.any_model import is_missing_file, parse_source

    if parse_source(model).on_hub and not is_missing_file(model):
        print(f"klvae: there is no folder {model}; looking for it on the Hugging Face Hub", file=sys.stderr)
