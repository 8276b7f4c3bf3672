"""A trained flow model in a folder: `flow.safetensors`, the weights of its network, and `config.json`.

The package comes with one, `assets/flow-sprites`. `tools/train_flow.py` trained it. Used in notebook 11, section 7.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from klvae_edu.flow import VelocityNet
from klvae_edu.weights.checks import checked_copies
from klvae_edu.weights.files import SafetensorsFile, atomic_write, weights_sha256, write_safetensors
from klvae_edu.weights.pretrained import CONFIG_NAME

FLOW_SPRITES = Path(__file__).parent / "assets" / "flow-sprites"
WEIGHTS_NAME = "flow.safetensors"


@dataclass(frozen=True)
class FlowConfig:
    """Network of a flow model, scaling of its latents, and length of its training.

    Attributes:
        channels, width, depth: arguments of its `VelocityNet`.
        latents_mean, latents_std: mean and standard deviation of each channel of the autoencoder's latents. The network
            works on (z - mean) / std, as `AutoencoderKL.scale_latents` with these two settings.
        encoder_sha256: checksum of the encoder that made the latents, as `encoder_sha256` computes it.
        images: number of different images in the training data.
        steps, batch_size: number of training steps, and of latents in each step.
        minutes: processor time of the training, on one core.
    """

    channels: int
    width: int
    depth: int
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]
    encoder_sha256: str
    images: int
    steps: int
    batch_size: int
    minutes: float


def encoder_sha256(vae: nn.Module) -> str:
    """Compute the checksum of the weights that latents depend on: of the encoder and of `quant_conv`.

    Another decoder does not change it.
    """
    return weights_sha256(
        {name: tensor for name, tensor in vae.state_dict().items() if name.startswith(("encoder.", "quant_conv."))}
    )


def load_flow(folder: str | os.PathLike[str] = FLOW_SPRITES) -> tuple[VelocityNet, FlowConfig]:
    """Load a flow model in float32. Default: the one for sprites that comes with the package.

    Raises:
        FileNotFoundError: the folder has no flow model.
        ValueError: a file is damaged, or the weights do not fit the configuration.
    """
    folder = Path(folder)
    path = folder / CONFIG_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        scaling = {name: tuple(values[name]) for name in ("latents_mean", "latents_std")}
        config = FlowConfig(**(values | scaling))
        net = VelocityNet(config.channels, config.width, config.depth)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected the configuration of a flow model ({error})") from error
    weights = SafetensorsFile(folder / WEIGHTS_NAME)
    net.load_state_dict(checked_copies(net.state_dict(), weights, folder, torch.float32))
    return net.eval(), config


def save_flow(net: nn.Module, config: FlowConfig, folder: str | os.PathLike[str]) -> None:
    """Write a flow model into `folder`, which is created if it is missing. The weights are rounded to float16.

    Raises:
        OSError: the disk is full or not available.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.half() for name, tensor in net.state_dict().items()}
    write_safetensors(weights, folder / WEIGHTS_NAME, {"format": "pt"})
    with atomic_write(folder / CONFIG_NAME) as path:
        path.write_text(json.dumps(asdict(config), indent=1) + "\n", encoding="utf-8")
