"""Make the bundled model from a finished run: weights in float16, scaling factor, and a model card with measurements.

    klvae train mini-release --out RUN
    python -m tools.release_model RUN [--step 11000] [--way 1.33] [--outside FOLDER --origin TEXT]

FOLDER holds photographs from outside the project. The model is evaluated on them; they are not copied.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klvae_edu import AutoencoderKL
from klvae_edu.baselines import PatchPCA, bicubic
from klvae_edu.data.files import load_image, resize
from klvae_edu.data.sources import image_suffixes
from klvae_edu.evaluation.compare import Evaluation, evaluate
from klvae_edu.evaluation.images import EvaluationData, Key, evaluation_data
from klvae_edu.latents import statistics
from klvae_edu.training.checkpoint import WEIGHTS
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.loader import images_of
from klvae_edu.training.recipes import load_recipe
from klvae_edu.weights.files import SafetensorsFile
from tools.course import COURSE

MODEL = COURSE.root / "klvae_edu" / "assets" / "kl-f8-mini"
SIDE = 256  # pixels of the images in the evaluation
VALIDATION_CROPS = 64  # crops of the held-out photographs
OUTSIDE_CROPS = 8  # crops of each photograph from outside
LATENT_CROPS = 256  # training crops from which the scaling factor is measured
PCA_CROPS = 2048  # training crops on which patch-PCA is fitted
CARD_SETTINGS = (
    "initialisation",
    "steps",
    "batch_size",
    "size",
    "lr",
    "betas",
    "disc_start",
    "disc_layers",
    "kl_weight",
    "ema",
    "recolour",
)  # settings of the run that `evaluation.json` holds for the card
BEFORE, AFTER, PCA = "before the discriminator", "kl-f8-mini", "patch-PCA"
AVERAGE_PREFIX = "average.module."  # of the averaged weights in a checkpoint

CARD = """\
# kl-f8-mini

A small autoencoder of the same type as Stable Diffusion's (`AutoencoderKL`, f = 8, 4 latent channels):
{parameters:,} parameters, {megabytes:.1f} MB in float16. It encodes a photograph of 256 × 256 pixels as 4 × 32 × 32
numbers, 48 times fewer, and decodes these numbers to a photograph.

    from klvae_edu import AutoencoderKL
    vae = AutoencoderKL.from_bundled("kl-f8-mini")  # in float32

diffusers reads the folder as well, with `AutoencoderKL.from_pretrained`.

## How it was made

    {command}
    python -m tools.release_model {out} --step {step} --way {way:g}

{step:,} steps with {batch_size} crops of {size} × {size} pixels each. The crops are taken in turns from procedural
images (dead leaves) and from the seven training photographs of the project, which are part of scikit-image
(LICENSES/sample-photographs.md). No other data was used, and nothing was downloaded. The settings and their reasons are
in `klvae_edu/training/recipes/mini-release.yaml`.

* {stages}
* **No perceptual loss**: LPIPS needs the weights of VGG16, which were not available on the training machine. The model
  is therefore blurrier, and reconstructs texture less well, than a model of this size could.
* The weights are an exponential moving average of the trained ones (decay {ema:g}).{mixed}
* {hours:.1f} hours of training steps in float32 on one CPU core of a machine with other work.

## How good it is

{figures}
{reading}

## Its latents

Latents of {measured} training crops of 256 × 256 pixels, sampled from the posterior, have a standard deviation of
{std:.3f} (channels: {channel_std}). The scaling factor in `config.json` is its inverse, {scaling_factor}.
The mean of the posterior's standard deviation, the noise, is {noise:.3f}.

## What it is not good at

* Faces, text and fine regular patterns: content that is in neither the seven photographs nor the dead leaves comes out
  as texture.
* {colours}
* It does not replace Stable Diffusion's autoencoder, which has forty times as many parameters and was trained on
  millions of photographs. It cannot decode that model's latents.
"""

ONE_STAGE = """Squared error + {kl_weight:g} · KL (both summed over an image) only, without a discriminator."""
TWO_STAGES = """First {disc_start:,} steps on squared error + {kl_weight:g} · KL (both summed over an image), then
  {rest:,} more with the adversarial loss of a PatchGAN of {disc_layers} layers and the adaptive weight, too."""
INTERPOLATED = """
* They are interpolated between the weights before the discriminator (0) and those after {step:,} steps (1), at {way:g}:
  network interpolation, Wang et al. 2018, "ESRGAN", section 3.4. Larger values make pictures sharper and less exact."""
ONE_STAGE_FIGURES = """Squared error leads to a high PSNR and soft images."""
TWO_STAGES_FIGURES = """The first stage, trained on squared error, has a higher PSNR and softer images. The
discriminator adds texture and costs PSNR."""
NOT_RECOLOURED = """Green and yellow: the seven photographs have almost none, so meadows come out brown and yellow
  flowers orange. The recipe has `recolour` since; weights trained with it will follow."""
RECOLOURED = """Colours that are rare in natural scenes."""


def main() -> None:
    """Read the arguments, and write the folder of the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a finished `klvae train mini-release`")
    parser.add_argument("--outside", type=Path, help="a folder of other photographs, for a second evaluation")
    parser.add_argument("--origin", help="where these photographs come from, for the model card")
    parser.add_argument("--step", type=int, help="use the checkpoint of this step; default: the last")
    parser.add_argument(
        "--way", type=float, default=1.0, help="interpolate from the weights before the discriminator (0) to these (1)"
    )
    parser.add_argument("--to", type=Path, default=MODEL, help="where to write the model")
    options = parser.parse_args()
    release(options.run, options.to, options.outside, step=options.step, origin=options.origin, way=options.way)


def release(
    run: Path,
    to: Path,
    outside: Path | None = None,
    held_out: int = VALIDATION_CROPS,
    step: int | None = None,
    origin: str | None = None,
    way: float = 1.0,
) -> None:
    """Write the model of a run after `step` (None: the last), its model card and its evaluation into the folder `to`.

    `way` interpolates the weights: 0 gives those before the discriminator, 1 those after `step`, 1.33 extrapolates.
    """
    config = load_recipe(run / "training.json")
    step = step or config.steps
    trained = averaged_at(run, step, AutoencoderKL.from_pretrained(run / "model"))
    if way != 1:
        start = averaged_at(run, config.disc_start, trained).get_parameters()
        trained.set_parameters(start + way * (trained.get_parameters() - start))
    found, noise = latent_statistics(trained, config)
    scaled = AutoencoderKL(replace(trained.config, scaling_factor=round(found.scaling_factor, 4))).half()
    scaled.load_state_dict(trained.state_dict())
    scaled.save_pretrained(to)
    after = AutoencoderKL.from_pretrained(to, dtype=torch.float32).eval()  # rounded to float16, as users get it
    models = {AFTER: after}
    if step > config.disc_start:
        models = {BEFORE: averaged_at(run, config.disc_start, after)} | models
    data: dict[str, EvaluationData] = {"held out": evaluation_data("photos", SIDE, count=held_out)}
    if outside is not None:
        data["from outside"] = OutsideCrops(outside, origin)
    results = {name: measured(config, models, images) for name, images in data.items()}
    values: dict[str, Any] = {name: result.to_dict() for name, result in results.items()}
    values["latents"] = {
        "std": found.overall_std,
        "channels": found.std.tolist(),
        "noise": noise,
        "crops": LATENT_CROPS,
    }
    values["trained"] = {name: config.to_dict()[name] for name in CARD_SETTINGS} | {
        "step": step,
        "way": way,
        "hours": hours(run, config, step),
        "command": config.command(out=Path("run"), resume=None, device=None),
    }
    (to / "evaluation.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    (to / "README.md").write_text(card(after, values), encoding="utf-8")


def averaged_at(run: Path, step: int, like: AutoencoderKL) -> AutoencoderKL:
    """Load the averaged weights of a run from its checkpoint after `step`, into a model configured as `like`."""
    weights = SafetensorsFile(run / "checkpoints" / f"step_{step:07d}" / WEIGHTS)
    vae = AutoencoderKL(like.config).eval()
    vae.load_state_dict(
        {name.removeprefix(AVERAGE_PREFIX): weights[name] for name in weights if name.startswith(AVERAGE_PREFIX)}
    )
    return vae


@torch.inference_mode()
def latent_statistics(vae: AutoencoderKL, config: TrainingConfig) -> tuple[Any, float]:
    """Measure the latents of training crops: their statistics, and the mean standard deviation of the posteriors."""
    data = images_of(config, LATENT_CROPS, size=SIDE)
    generator, deviations = torch.Generator().manual_seed(config.seed), []

    def samples() -> Iterator[Tensor]:
        for image in data:
            posterior = vae.encode(image[None]).latent_dist
            deviations.append(posterior.std.mean().item())
            yield posterior.sample(generator)

    return statistics(samples()), float(np.mean(deviations))


def measured(config: TrainingConfig, models: dict[str, AutoencoderKL], data: EvaluationData) -> Evaluation:
    """Evaluate the models, patch-PCA (fitted on the training images of the run), and bicubic."""
    crops = torch.stack([*images_of(config, PCA_CROPS)])
    pca = PatchPCA(8, 4).fit(crops)
    return evaluate({**models, PCA: pca.reconstruct, "bicubic": lambda images: bicubic(images, 8)}, data)


class OutsideCrops:
    """Square crops of every photograph in a folder, of 0.4 to 1 of its shorter side, scaled to `SIDE` pixels."""

    def __init__(self, folder: Path, origin: str | None = None) -> None:
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in image_suffixes())
        self.what = f"{OUTSIDE_CROPS} crops each, of 0.4 to 1 of the shorter side, scaled to {SIDE}x{SIDE} pixels"
        self.what += f"; {origin}" if origin else ""

    @property
    def photographs(self) -> int:
        return len(self.paths)

    def __len__(self) -> int:
        return OUTSIDE_CROPS * len(self.paths)

    def __iter__(self) -> Iterator[tuple[Key, Tensor]]:
        for number, path in enumerate(self.paths):
            image, rng = load_image(path), np.random.default_rng(number)
            shorter = min(image.shape[-2:])
            for _ in range(OUTSIDE_CROPS):
                side = max(SIDE, round(rng.uniform(0.4, 1) * shorter))
                top, left = (rng.integers(length - side + 1) for length in image.shape[-2:])
                yield (number,), resize(image[:, top : top + side, left : left + side], SIDE, SIDE)

    def report(self) -> str | None:
        return None


def hours(run: Path, config: TrainingConfig, step: int) -> float:
    """Return the hours that the steps up to `step` took, from the log of the run."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return sum(config.batch_size / record["images_per_second"] for record in records[:step]) / 3600


def card(vae: AutoencoderKL, values: dict[str, Any]) -> str:
    """Return the text of the model card; `values` are the contents of `evaluation.json`."""
    figures = "\n".join(_table(values[name]) for name in ("held out", "from outside") if name in values)
    latents = values["latents"]
    trained = values["trained"]
    last, start = trained["step"], trained["disc_start"]
    return CARD.format(
        **trained,
        out="run",
        stages=(ONE_STAGE if last <= start else TWO_STAGES).format(**trained, rest=last - start),
        colours=RECOLOURED if trained["recolour"] else NOT_RECOLOURED,
        mixed="" if trained["way"] == 1 else INTERPOLATED.format(**trained),
        reading=ONE_STAGE_FIGURES if last <= start else TWO_STAGES_FIGURES,
        parameters=vae.num_parameters(),
        megabytes=2 * vae.num_parameters() / 1e6,
        figures=figures,
        measured=values["latents"]["crops"],
        std=latents["std"],
        channel_std=", ".join(f"{value:.2f}" for value in latents["channels"]),
        noise=latents["noise"],
        scaling_factor=vae.config.scaling_factor,
    )


def _table(found: dict[str, Any]) -> str:
    """Format one evaluation as a Markdown table."""

    def cell(model: str, metric: str, digits: int) -> str:
        one = found["models"][model][metric]
        interval = "" if one["low"] is None else f" [{one['low']:.{digits}f}, {one['high']:.{digits}f}]"
        return f"{one['value']:.{digits}f}{interval}"

    data, drawn = found["data"], (found["intervals"] or {}).get("drawn")
    rows = [
        f"| {model} | {cell(model, 'PSNR', 2)} | {cell(model, 'SSIM', 3)} | {cell(model, 'gradient energy', 2)} |"
        for model in found["models"]
    ]
    what = f"{data['images']} images from {data['photographs']} photographs ({data['what']})"
    return "\n".join(
        [
            f"{what}, with 95 % intervals over {drawn}:",
            "",
            "| | PSNR in dB | SSIM | gradient energy |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
