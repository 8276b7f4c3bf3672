"""Set up a run: its networks and optimisers, wrapped for one process or many."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel

from klvae_edu.autoencoder import AutoencoderKL
from klvae_edu.data.listing import Listing
from klvae_edu.data.shards import StreamPosition
from klvae_edu.discriminator import NLayerDiscriminator
from klvae_edu.efficientnet import EfficientNetDistance
from klvae_edu.environment import pick_device
from klvae_edu.gaussian import DiagonalGaussianDistribution
from klvae_edu.perceptual import LPIPS
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.networks import Networks, load_networks

if TYPE_CHECKING:
    from accelerate import Accelerator


class TrainableAutoencoder(nn.Module):
    """The autoencoder for training: images in, reconstruction and posterior out, in one forward call.

    Accelerate wraps this module (`DistributedDataParallel`, autocast). The wrapper averages gradients over processes
    only for its own forward call: calling `encode` and `decode` of the module inside would give every process different
    weights, without any error.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """Reconstruct images (B, C, H, W) in [-1, 1] from a posterior sample; return reconstruction and posterior."""
        trained = any(parameter.requires_grad for parameter in self.vae.encoder.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):  # a frozen encoder needs no graph
            moments = self.vae.encode(images).latent_dist.parameters
        if moments.dtype in (torch.float16, torch.bfloat16):  # under autocast
            moments = moments.float()
        posterior = DiagonalGaussianDistribution(moments)
        return self.vae.decode(posterior.sample()).sample, posterior


class TrainableDiscriminator(nn.Module):
    """The discriminator for training: images and reconstructions in one forward call, for its wrapper's sake."""

    def __init__(self, discriminator: NLayerDiscriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, images: Tensor, reconstructions: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits (B, 1, h, w) of images and of reconstructions, both (B, C, H, W).

        They are two calls, so that BatchNorm never mixes the statistics of the two.
        """
        return self.discriminator(images), self.discriminator(reconstructions)


@dataclass
class Training:
    """The state of a run between two steps, and the parts that do not change.

    `model` is a `TrainableAutoencoder` and `discriminator` a `TrainableDiscriminator`; both and their optimisers are
    wrapped by Accelerate. A part that the run does not use is None.
    """

    config: TrainingConfig
    accelerator: Accelerator
    model: nn.Module
    optimizer: Optimizer
    discriminator: nn.Module | None = None
    disc_optimizer: Optimizer | None = None
    perceptual: LPIPS | EfficientNetDistance | None = None
    perceptual_weights: str = "none"  # as `Networks.perceptual_weights` names them
    ema: AveragedModel | None = None
    step: int = 0  # number of the current step, counted from 1, or of the last finished one
    stream: StreamPosition | None = None  # position of this process in streamed data
    files: Listing | None = None  # of the data, at the start of the run

    @property
    def vae(self) -> AutoencoderKL:
        """The autoencoder that is trained, without its wrapper."""
        return self.accelerator.unwrap_model(self.model).vae

    @property
    def patchgan(self) -> NLayerDiscriminator:
        """The discriminator, without its wrapper.

        Raises:
            ValueError: the run has no discriminator.
        """
        if self.discriminator is None:
            raise ValueError(f"expected a run with a discriminator, got disc_weight={self.config.disc_weight}")
        return self.accelerator.unwrap_model(self.discriminator).discriminator

    @property
    def averaged(self) -> AutoencoderKL:
        """The autoencoder to save: with averaged weights where the run averages them, else `vae`."""
        return self.vae if self.ema is None else cast(AutoencoderKL, self.ema.module)

    def begin_step(self) -> None:
        """Begin the next step: count it, and set its learning rates."""
        self.step += 1
        config, factor = self.config, self.config.lr_factor(self.step)
        if config.scale_lr:
            factor *= config.batch_size * config.accumulate * self.accelerator.num_processes
        for optimizer, peak in ((self.optimizer, config.lr), (self.disc_optimizer, config.disc_lr or config.lr)):
            for group in optimizer.param_groups if optimizer else ():
                group["lr"] = peak * factor

    def micro_batches(self, network: nn.Module, *batches: Tensor) -> Iterator[Sequence[Tensor]]:
        """Split batches (B, …) of one step into `accumulate` equal parts, and yield them together.

        Gradients of `network` are averaged over processes in the last part only.

        Raises:
            ValueError: `accumulate` does not divide B.
        """
        count = self.config.accumulate
        if any(len(batch) % count for batch in batches):
            raise ValueError(f"expected a batch that {count} divides (accumulate), got {len(batches[0])} images")
        *first, last = zip(*(batch.chunk(count) for batch in batches), strict=True)
        for part in first:
            with self.accelerator.no_sync(network):
                yield part
        yield last


def set_up(config: TrainingConfig, accelerator: Accelerator, networks: Networks | None = None) -> Training:
    """Build the optimisers and the discriminator of `config` in their state before the first step, and wrap all.

    Args:
        networks: the networks of `config`; None: they are loaded here.

    Raises:
        ValueError: the model and the configuration do not fit together.
    """
    vae, perceptual = networks = networks or load_networks(config)
    if config.trained_part == "decoder":
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    model, optimizer = accelerator.prepare(TrainableAutoencoder(vae), _adamw(vae, config))
    training = Training(config, accelerator, model, optimizer)
    if config.disc_weight:
        torch.manual_seed(config.seed)
        patchgan = NLayerDiscriminator(vae.config.out_channels, config.disc_channels, config.disc_layers)
        training.discriminator, training.disc_optimizer = accelerator.prepare(
            TrainableDiscriminator(patchgan), _adamw(patchgan, config)
        )
    if perceptual is not None:
        training.perceptual_weights = networks.perceptual_weights()
        training.perceptual = perceptual.to(accelerator.device)
    if config.ema:
        training.ema = AveragedModel(training.vae, multi_avg_fn=ema_update(config.ema))
    torch.manual_seed(config.seed + accelerator.process_index)  # for the posterior samples
    return training


def ema_update(decay: float) -> Callable[[Any, Any, Tensor | int], None]:
    """Make the update rule for `AveragedModel`: average ← d · average + (1 - d) · weights.

    The decay of update n is d = min(decay, (1 + n) / (10 + n)): early averages forget the untrained weights faster.
    Update 0, done by `AveragedModel` itself, copies the weights.
    Source: CompVis, `ldm/modules/ema.py`.
    Built in notebook 08, section 6.
    """

    @torch.no_grad()
    def update(averages: list[Tensor], weights: list[Tensor], updates: Tensor | int) -> None:
        n = int(updates)
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + n) / (10 + n)))

    return update


def start_accelerator(config: TrainingConfig) -> Accelerator:
    """Create the `Accelerator` for this run's device and precision."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # Accelerate keeps its settings as long as the process lives, but the next run in a notebook may need others. A
    # group of several processes stays.
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    AcceleratorState._reset_state(reset_partial_state=alone)
    return Accelerator(
        cpu=pick_device(config.device).type == "cpu",
        mixed_precision=config.mixed_precision,
        log_with="tensorboard" if config.tensorboard else None,
        project_dir=config.out / "tensorboard" if config.tensorboard else None,
    )


def _adamw(network: nn.Module, config: TrainingConfig) -> AdamW:
    """Make AdamW for the trained parameters. Each step sets its learning rate."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    # fused: one kernel for all tensors. On a CPU the default, a loop, takes up to five times as long.
    return AdamW(trained, config.lr, config.betas, weight_decay=config.weight_decay, fused=True)
