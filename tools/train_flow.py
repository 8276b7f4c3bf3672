"""Train the flow model for sprites that comes with the package, and write it into klvae_edu/assets/flow-sprites/.

It is the network of notebook 11 with a longer training, on latents of the bundled autoencoder's encoder.

    python -m tools.train_flow [--model MODEL] [--steps N] [--card-only]

`--card-only` trains nothing: it measures the samples again, after the decoder has changed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from klvae_edu import AutoencoderKL
from klvae_edu.commands.models import load_model
from klvae_edu.data.all_images import AllImages
from klvae_edu.data.latent_dataset import LatentDataset
from klvae_edu.data.latent_writer import encode_images
from klvae_edu.data.sprites import read_sprite, sprite
from klvae_edu.flow import VelocityNet, integrate, train_flow
from klvae_edu.pretrained_flow import FLOW_SPRITES, FlowConfig, encoder_sha256, load_flow, save_flow

SIDE = 64  # pixels of a sprite
SAMPLES = 256  # drawn to measure a network
HEUN_STEPS = 15  # for each sample
CLEAN = 0.7  # of the median of rebuilt sprites: bar for a clean picture, as in notebook 11, section 1
REBUILT = 48  # sprites encoded and decoded for that median
EVALUATION_NAME = "evaluation.json"
SEED = 0


@dataclass(frozen=True)
class Training:
    """Length of a training and size of the network, as in `FlowConfig`."""

    images: int
    steps: int
    batch_size: int
    width: int = 48
    depth: int = 2


STORED = Training(images=16384, steps=18000, batch_size=32)
CLASSROOM = Training(images=3072, steps=600, batch_size=32)  # of notebook 11, section 6

CARD = """\
# flow-sprites

A flow model that turns noise into latents of sprites: {parameters:,} parameters, {megabytes:.1f} MB in float16. The
decoder of `kl-f8-mini` turns these latents, 4 × 8 × 8 numbers, into pictures of 64 × 64 pixels. Notebook 11 shows some.

    import torch
    from klvae_edu import AutoencoderKL
    from klvae_edu.flow import integrate
    from klvae_edu.pretrained_flow import load_flow
    net, config = load_flow()  # in float32
    x = integrate(net, torch.randn(8, 4, 8, 8), steps=15)
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.latents_mean, config.latents_std))
    pictures = AutoencoderKL.from_bundled("kl-f8-mini").decode(x * std + mean).sample

## How it was made

    python -m tools.train_flow --steps {steps}

* Data: {images:,} sprites, drawn by the project's own code (`klvae_edu/data/sprites.py`). No other data was used, and
  nothing was downloaded.
* Latents: samples of the posteriors that the encoder of `kl-f8-mini` gives, each channel standardised. The network
  belongs to this encoder, whose checksum is in `config.json`.
* Training: {steps:,} steps of {batch_size} latents by `klvae_edu.flow.train_flow`, in float32, seed {seed}. The stored
  weights are a moving average.
* Cost: {minutes:.0f} minutes of processor time on one CPU core.
* Licence: MIT, as the project.

## How good it is

{samples} samples of each network, from the same noise, in {heun_steps} steps of Heun's method. A picture is clean if a
single sprite explains at least {clean} times as much of it as of a sprite that was only encoded and decoded, in the
median (notebook 11, section 1).

| | clean | explained, median |
| --- | --- | --- |
{figures}
"""


def standardised(vae: AutoencoderKL, mean: tuple[float, ...], std: tuple[float, ...]) -> AutoencoderKL:
    """Copy the model with these settings for its `scale_latents` and `decode_from_diffusion`."""
    copy = vae.clone()
    copy.config = replace(vae.config, scaling_factor=1.0, shift_factor=None, latents_mean=mean, latents_std=std)
    return copy


def trained(vae: AutoencoderKL, training: Training) -> tuple[nn.Module, FlowConfig]:
    """Train a network on latents of sprites. Return the one with averaged weights, and its configuration."""
    started = time.process_time()
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    net = VelocityNet(vae.config.latent_channels, training.width, training.depth)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "latents")
        encode_images(vae, AllImages("sprites", SIDE, training.images), folder, {})
        data = LatentDataset(folder)
        mean, std = (tuple(values.tolist()) for values in (data.statistics.mean, data.statistics.std))
        scale = standardised(vae, mean, std).scale_latents
        epochs = (data.batches(training.batch_size, generator, scale) for _ in itertools.count())
        average, _ = train_flow(net, itertools.chain.from_iterable(epochs), training.steps, generator=generator)
    config = FlowConfig(
        channels=vae.config.latent_channels,
        width=training.width,
        depth=training.depth,
        latents_mean=mean,
        latents_std=std,
        encoder_sha256=encoder_sha256(vae),
        images=training.images,
        steps=training.steps,
        batch_size=training.batch_size,
        minutes=round((time.process_time() - started) / 60, 1),
    )
    return average, config


@torch.no_grad()
def samples(vae: AutoencoderKL, net: nn.Module, config: FlowConfig, count: int) -> Tensor:
    """Draw `count` pictures, always from the same noise: (count, 3, 64, 64)."""
    side = SIDE // vae.downsample_factor
    noise = torch.randn(count, config.channels, side, side, generator=torch.Generator().manual_seed(SEED + 1))
    decoder = standardised(vae, config.latents_mean, config.latents_std)
    return decoder.decode_from_diffusion(integrate(net, noise, HEUN_STEPS)).clamp(-1, 1)


def explained(pictures: Tensor) -> Tensor:
    """Measure how much of each picture (B, 3, H, W) a single sprite explains: (B,)."""
    return torch.tensor([(read_sprite(picture) or (None, 0.0))[1] for picture in pictures])


@torch.no_grad()
def evaluated(vae: AutoencoderKL, nets: dict[str, tuple[nn.Module, FlowConfig]], count: int) -> dict[str, Any]:
    """Measure `count` samples of each network, and sprites that were only encoded and decoded.

    Returns:
        "samples": `count`; "figures": for each name, "clean", the share of clean pictures, and "explained", the median.
    """
    rebuilt = vae(torch.stack([sprite(index, SIDE) for index in range(REBUILT)])).sample.clamp(-1, 1)
    pictures = {name: samples(vae, net, config, count) for name, (net, config) in nets.items()}
    values = {name: explained(images) for name, images in (pictures | {"encoded and decoded": rebuilt}).items()}
    bar = CLEAN * values["encoded and decoded"].median()
    figures = {
        name: {"clean": (found > bar).float().mean().item(), "explained": found.median().item()}
        for name, found in values.items()
    }
    return {"samples": count, "figures": figures}


def card(config: FlowConfig, evaluation: dict[str, Any]) -> str:
    """Return the text of the folder's README; `evaluation` is the content of `evaluation.json`."""
    parameters = sum(p.numel() for p in VelocityNet(config.channels, config.width, config.depth).parameters())
    return CARD.format(
        **asdict(config),
        parameters=parameters,
        megabytes=2 * parameters / 1e6,
        seed=SEED,
        samples=evaluation["samples"],
        heun_steps=HEUN_STEPS,
        clean=CLEAN,
        figures="\n".join(
            f"| {name} | {100 * found['clean']:.0f} % | {found['explained']:.2f} |"
            for name, found in evaluation["figures"].items()
        ),
    )


def describe(vae: AutoencoderKL, folder: Path, classroom: Training = CLASSROOM, count: int = SAMPLES) -> None:
    """Measure the model in `folder` beside the notebook's, which is trained for it, and write evaluation and README."""
    stored = load_flow(folder)
    name = f"as notebook 11 trains it: {classroom.steps:,} steps of {classroom.batch_size} latents"
    evaluation = evaluated(vae, {"flow-sprites": stored, name: trained(vae, classroom)}, count)
    (folder / EVALUATION_NAME).write_text(json.dumps(evaluation, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(stored[1], evaluation), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="kl-f8-mini", help="autoencoder: a bundled model or a folder")
    parser.add_argument("--steps", type=int, default=STORED.steps, help="training steps")
    parser.add_argument("--card-only", action="store_true", help="measure the stored model again, without training")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the same weights on every run of one machine
    vae = load_model(options.model, "cpu").half().float()  # rounded to float16, as bundled weights are
    if not options.card_only:
        save_flow(*trained(vae, replace(STORED, steps=options.steps)), FLOW_SPRITES)
    describe(vae, FLOW_SPRITES)


if __name__ == "__main__":
    main()
