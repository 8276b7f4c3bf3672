"""Our training step against the same step written as in CompVis' code. Run: python -m benchmarks.train_step

On every batch, both ways make one step of the autoencoder (L1, LPIPS, KL, adversarial loss with the adaptive weight,
summed over an image) and one step of the discriminator, from the same weights. First it is asserted that both compute
the same: the adaptive weight and the gradients of both networks agree. Time is measured in one process, in which the
ways take turns. A ratio is the median over the rounds. Memory is measured in a new process for each way: the peak of
two steps, less the memory of networks and data before them. This leaves gradients, AdamW's averages and activations.
VGG16 is untrained, which changes neither time nor memory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import diffusers
import lpips
import torch
from torch import Tensor, nn

from benchmarks.common import begin_peak, machine, measured_elsewhere, memory, ratios, times, write
from klvae_edu import AutoencoderKL, AutoencoderKLConfig
from klvae_edu.discriminator import NLayerDiscriminator
from klvae_edu.environment import restart_with_process_settings
from klvae_edu.training import steps
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.setup import Training, set_up, start_accelerator
from klvae_edu.training.steps import discriminator_step, generator_step

OURS, CONSTANT, PEER = "ours", "ours, constant weight", "as CompVis"
AGREEMENT = 1e-6  # relative, in float64; the two LPIPS avoid a division by 0 differently, which makes about 1e-8
DISC_WEIGHT, KL_WEIGHT = 0.5, 1e-6


@dataclass(frozen=True)
class Setting:
    """A network and its batches of square images."""

    network: AutoencoderKLConfig
    batch: int
    side: int  # pixels

    def config(self, weights: str | None = None) -> TrainingConfig:
        """Make the options of a training run that starts with the model in the folder `weights`."""
        return TrainingConfig(
            init=weights,
            size=self.side,
            batch_size=self.batch,
            lr=1e-5,
            schedule="constant",
            warmup=0.0,
            betas=(0.5, 0.9),
            weight_decay=0.0,
            grad_clip=float("inf"),
            reduction="sum",
            pixel="l1",
            kl_weight=KL_WEIGHT,
            perceptual_weight=1.0,
            lpips="untrained",
            disc_weight=DISC_WEIGHT,
            device="cpu",
        )

    def images(self) -> Tensor:
        """Make uniform noise (B, 3, H, W) in [-1, 1]. Time and memory do not depend on the contents of images."""
        return torch.rand(self.batch, 3, self.side, self.side, generator=torch.Generator().manual_seed(1)) * 2 - 1


SETTINGS = {
    "small": Setting(AutoencoderKLConfig(block_out_channels=(32, 64, 128, 128)), 16, 64),
    "sd-v1": Setting(AutoencoderKLConfig.from_preset("sd-v1"), 2, 64),
    "tiny": Setting(AutoencoderKLConfig.from_preset("tiny"), 2, 32),
}


class Ours:
    """The training step of this package."""

    def __init__(self, setting: Setting) -> None:
        with tempfile.TemporaryDirectory() as weights:
            torch.manual_seed(0)
            AutoencoderKL(setting.network).save_pretrained(weights)
            config = setting.config(weights)
            self.training: Training = set_up(config, start_accelerator(config))

    def step(self, images: Tensor) -> None:
        self.training.begin_step()
        _, reconstructions = generator_step(self.training, images)
        discriminator_step(self.training, images, reconstructions)


class Peer:
    """CompVis' step with diffusers' autoencoder and `lpips`: a forward pass of the autoencoder for each optimiser.

    Lightning calls `training_step` twice on a batch, and the autoencoder runs both times. The second time it has
    updated weights, another posterior sample, and no graph, because it is frozen. Parts that would only slow this down
    are left out: the log-variance, which stays at 0, the logging, and gradients that are kept during the forward pass.

    Source: CompVis latent-diffusion, `ldm/models/autoencoder.py` and `ldm/modules/losses/contperceptual.py`.
    """

    def __init__(self, setting: Setting) -> None:
        config = setting.config()
        self.vae = diffusers.AutoencoderKL(**setting.network.to_dict())
        self.discriminator = NLayerDiscriminator()
        with warnings.catch_warnings(action="ignore"):  # it calls torchvision with deprecated arguments
            self.lpips = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).requires_grad_(False)
        self.optimizer, self.disc_optimizer = (
            torch.optim.AdamW(network.parameters(), config.lr, config.betas, weight_decay=config.weight_decay)
            for network in (self.vae, self.discriminator)
        )

    def load(self, training: Training) -> None:
        """Copy all weights from our networks."""
        self.vae.load_state_dict(training.vae.state_dict())
        self.discriminator.load_state_dict(training.patchgan.state_dict())
        # `lpips` splits the trunk into five slices; their layers keep torchvision's numbers.
        ours = {name.removeprefix("trunk."): value for name, value in training.perceptual.state_dict().items()}
        for name, value in self.lpips.net.state_dict().items():
            value.copy_(ours[name.split(".", 1)[1]])

    def step(self, images: Tensor) -> None:
        self.generator_step(images)
        with torch.no_grad():
            reconstructions, _ = self.forward(images)
        self.discriminator_step(images, reconstructions)

    def forward(self, images: Tensor) -> tuple[Tensor, Any]:
        posterior = self.vae.encode(images).latent_dist
        return self.vae.decode(posterior.sample()).sample, posterior

    def generator_step(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Train the autoencoder. Returns the adaptive weight and the reconstructions (B, 3, H, W)."""
        self.optimizer.zero_grad()
        self.discriminator.requires_grad_(False)
        reconstructions, posterior = self.forward(images)
        pixel = (images - reconstructions).abs()
        nll = (pixel + self.lpips(images, reconstructions)).sum() / len(images)
        kl = posterior.kl().sum() / len(images)
        adversarial = -self.discriminator(reconstructions).mean()
        weight = self.adaptive_weight(nll, adversarial)
        loss = nll + KL_WEIGHT * kl + DISC_WEIGHT * weight * adversarial
        loss.backward()
        self.optimizer.step()
        self.discriminator.requires_grad_(True)
        return weight, reconstructions.detach()

    def adaptive_weight(self, nll: Tensor, adversarial: Tensor) -> Tensor:
        last_layer = self.vae.decoder.conv_out.weight
        nll_gradient, adversarial_gradient = (
            torch.autograd.grad(loss, last_layer, retain_graph=True)[0] for loss in (nll, adversarial)
        )
        return (nll_gradient.norm() / (adversarial_gradient.norm() + 1e-4)).clamp(0, 1e4).detach()

    def discriminator_step(self, images: Tensor, reconstructions: Tensor) -> None:
        self.disc_optimizer.zero_grad()
        real, fake = self.discriminator(images), self.discriminator(reconstructions)
        loss = 0.5 * ((1 - real).relu().mean() + (1 + fake).relu().mean())
        loss.backward()
        self.disc_optimizer.step()


def check_agreement(ours: Ours, peer: Peer, images: Tensor) -> dict[str, float]:
    """Make one step of each way from the same weights, and return the relative differences. Weights stay as they are.

    This is done in float64. In float32 the reconstructions differ by rounding; where rounding changes the sign of one
    pixel's error, the gradient of L1 changes by half a percent.

    Raises:
        AssertionError: a difference is `AGREEMENT` or more, or the adaptive weight is clamped, which hides differences.
    """
    training, images = ours.training, images.double()
    peer.load(training)
    networks = (training.vae, training.patchgan, training.perceptual, peer.vae, peer.discriminator, peer.lpips)
    optimizers = (training.optimizer, training.disc_optimizer, peer.optimizer, peer.disc_optimizer)
    with ExitStack() as stack:
        for optimizer in optimizers:
            stack.enter_context(patch.object(optimizer, "step"))
        for network in networks:
            network.double()
            stack.callback(lambda network=network: network.float().zero_grad())
        training.begin_step()
        torch.manual_seed(0)
        scalars, reconstructions = generator_step(training, images)
        discriminator_step(training, images, reconstructions)
        torch.manual_seed(0)
        weight, reconstructions = peer.generator_step(images)
        peer.discriminator_step(images, reconstructions)
        assert not scalars["clamped"], "the adaptive weight is clamped, so its agreement proves nothing"
        found = {
            "adaptive weight": abs(DISC_WEIGHT * weight.item() / scalars["adversarial_weight"] - 1),
            "gradient": difference(training.vae, peer.vae),
            "discriminator's gradient": difference(training.patchgan, peer.discriminator),
        }
    for name, value in found.items():
        assert value < AGREEMENT, f"{name}: the two ways differ by {value:.2g}, relatively"
    return {name: float(f"{value:.1e}") for name, value in found.items()}


def difference(network: nn.Module, other: nn.Module) -> float:
    """Return ‖∇ - ∇'‖ / ‖∇'‖ over all weights, matched by name.

    Single weights are not compared: the gradient of a bias before a norm with one channel per group is only rounding.
    """
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    others = {name: parameter.grad for name, parameter in other.named_parameters()}
    assert gradients.keys() == others.keys()
    apart = sum((gradients[name] - others[name]).square().sum() for name in others)
    return (apart / sum(gradient.square().sum() for gradient in others.values())).sqrt().item()


def parts(ours: Ours, images: Tensor, rounds: int) -> dict[str, float]:
    """Measure the seconds of each part of our step: the median over the rounds."""
    training, seconds, mark = ours.training, {}, 0.0

    def lap(name: str) -> None:
        """Count the time since the last lap as `name`."""
        nonlocal mark
        now = time.perf_counter()
        seconds.setdefault(name, []).append(now - mark)
        mark = now

    @contextmanager
    def discriminator_begins(network: nn.Module) -> Iterator[None]:
        lap("LPIPS and L1, forward and backward")
        with frozen(network):
            yield

    def timed_weight(*arguments: Any) -> Any:
        lap("discriminator on the autoencoder's side, forward and backward")
        found = weight(*arguments)
        lap("adaptive weight")
        return found

    def timed_backward(loss: Tensor) -> None:
        backward(loss)
        lap("autoencoder, backward")

    frozen, weight, backward = steps.frozen, steps.adversarial_weight, training.accelerator.backward
    hook = training.model.register_forward_hook(lambda *_: lap("autoencoder, forward"))
    for _ in range(rounds):
        mark = time.perf_counter()
        training.begin_step()
        with (
            patch.object(steps, "frozen", discriminator_begins),
            patch.object(steps, "adversarial_weight", timed_weight),
            patch.object(training.accelerator, "backward", timed_backward),
        ):
            _, reconstructions = generator_step(training, images)
        lap("optimiser, gradient norm, scalars")
        discriminator_step(training, images, reconstructions)
        lap("discriminator's step")
    hook.remove()
    return {name: median(values) for name, values in seconds.items()}


def peak_memory(way: str, setting: Setting) -> int:
    """Measure the peak memory of two steps, less the memory before them, in bytes."""
    images = setting.images()
    stepper = {OURS: Ours, PEER: Peer}[way](setting)
    before = begin_peak()
    for _ in range(2):
        stepper.step(images)
    return memory("VmHWM") - before


def measure(name: str, rounds: int) -> dict[str, Any]:
    setting = SETTINGS[name]
    sizes = {
        way: measured_elsewhere("benchmarks.train_step", "--memory-of", way, "--settings", name) / 2**20
        for way in (OURS, PEER)
    }
    images, ours, peer = setting.images(), Ours(setting), Peer(setting)
    agreement = check_agreement(ours, peer, images)
    constant = Ours.__new__(Ours)  # the same networks and optimisers
    constant.training = replace(ours.training, config=replace(ours.training.config, adaptive=False))
    steps_of = {OURS: ours.step, CONSTANT: constant.step, PEER: peer.step}
    seconds = times({way: partial(step, images) for way, step in steps_of.items()}, rounds)
    of_parts = parts(ours, images, rounds)
    return {
        "network": f"{name}, batch {setting.batch}, {setting.side} pixels, float32",
        "relative differences": agreement,
        "seconds": {way: round(median(values), 3) for way, values in seconds.items()},
        "time over ours": ratios(seconds, OURS),
        "time over a constant weight": {OURS: ratios(seconds, CONSTANT)[OURS]},
        "peak MiB over networks and data": {way: round(size) for way, size in sizes.items()},
        "share of our step in %": {
            part: round(100 * value / sum(of_parts.values()), 1) for part, value in of_parts.items()
        },
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["small", "sd-v1"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--memory-of", choices=[OURS, PEER], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args(arguments)
    if options.memory_of:
        print(peak_memory(options.memory_of, SETTINGS[options.settings[0]]))
        return
    report = {"machine": machine(), "rounds": options.rounds}
    write(report | {name: measure(name, options.rounds) for name in options.settings}, options.out)


if __name__ == "__main__":
    if "--memory-of" not in sys.argv:
        restart_with_process_settings()
    main()
