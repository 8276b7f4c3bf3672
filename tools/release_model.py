"""Make the bundled model out of a finished run: weights in float16, the scaling factor, a card with measured figures.

    klvae train mini-release --out RUN
    python -m tools.release_model RUN [--step 11000] [--way 1.33] [--outside FOLDER --whence TEXT]

The folder holds photographs that have nothing to do with the project's own; they are measured on, and stay where they
are.
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
SIDE = 256  # pixels of the images that are measured on
HELD_OUT = 64  # crops of the photographs that are held out
CROPS = 8  # of each photograph from outside
MEASURED = 256  # training crops behind the scaling factor
PCA_CROPS = 2048  # training crops behind patch-PCA
TOLD = (
    "start",
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
)  # settings that the card tells
BEFORE, AFTER, PCA = "before the discriminator", "kl-f8-mini", "patch-PCA"
AVERAGE = "average.module."  # of a checkpoint's names: the averaged weights

CARD = """\
# kl-f8-mini

An autoencoder of the kind of Stable Diffusion's (`AutoencoderKL`, f = 8, 4 latent channels) that is small enough for a
laptop and for this package: {parameters:,} parameters, {megabytes:.1f} MB in float16. It makes 4 × 32 × 32 numbers of a
photograph of 256 × 256 pixels, 48 times fewer, and a photograph of these.

    from klvae_edu import AutoencoderKL
    vae = AutoencoderKL.from_bundled("kl-f8-mini")  # in float32

diffusers reads the folder as well, with `AutoencoderKL.from_pretrained`.

## How it was made

    {command}
    python -m tools.release_model {out} --step {step} --way {way:g}

{step:,} steps with {batch_size} crops of {size} × {size} pixels each, in turns of procedural images (dead leaves) and
of the seven photographs inside scikit-image that the project trains on (LICENSES/sample-photographs.md). Nothing else
was shown to it, and nothing was downloaded. The settings and their reasons are in
`klvae_edu/training/recipes/mini-release.yaml`.

* {stages}
* **No perceptual loss**: LPIPS needs the weights of VGG16, which were not at hand where it was trained. It is therefore
  blurrier, and paints texture less well, than a model of this size could.
* The weights are averages of the trained ones (decay {ema:g}).{mixed}
* {hours:.1f} hours of training steps on one CPU core, beside other work, in float32.

## How good it is

{figures}
{reading}

## Its latents

Over {measured} training crops of 256 × 256 pixels the latents, sampled from the posterior, have a standard deviation of
{std:.3f} (channels: {channel_std}); the scaling factor in `config.json` is its inverse, {scaling_factor}. The
posterior's own standard deviation, the noise, is {noise:.3f} on average.

## What it is not good at

* Faces, text and fine regular patterns: what it has not seen in seven photographs and in dead leaves, it paints as
  texture.
* {colours}
* It is no replacement for Stable Diffusion's autoencoder, which has forty times as many parameters and was trained on
  millions of photographs, and it does not understand that one's latents.
"""

ONE_STAGE = (
    """Squared error + {kl_weight:g} · KL (both summed over an image) alone. It has not met a discriminator yet."""
)
TWO_STAGES = """First {disc_start:,} steps on squared error + {kl_weight:g} · KL (both summed over an image), then
  {rest:,} more with a PatchGAN of {disc_layers} layers and the adaptive weight as well."""
MIXED = """
* On the line from the weights before the discriminator (0) to the last ones (1) they lie at {way:g}: network
  interpolation, Wang et al. 2018, "ESRGAN", section 3.4. Further on, pictures are sharper and less exact."""
ONE_READING = """This is what squared error asks for: a high PSNR, and soft."""
TWO_READINGS = """The first stage is what squared error asks for: a higher PSNR, and soft. The discriminator trades some
of it for texture."""
FEW_COLOURS = """Green and yellow: the seven photographs have next to none, so meadows come out brown and yellow flowers
  orange. The recipe has since been given `recolour`; weights trained with it are to follow."""
RARE_COLOURS = """Colours that are rare in natural scenes."""


def main() -> None:
    """Read the arguments, and write the model's folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a finished `klvae train mini-release`")
    parser.add_argument("--outside", type=Path, help="a folder of photographs from elsewhere, to measure on as well")
    parser.add_argument("--whence", help="where these are from, for the card")
    parser.add_argument("--step", type=int, help="take the checkpoint after this step; without it, the last")
    parser.add_argument(
        "--way", type=float, default=1.0, help="from the weights before the discriminator (0) to these (1)"
    )
    parser.add_argument("--to", type=Path, default=MODEL, help="where to write the model")
    options = parser.parse_args()
    release(options.run, options.to, options.outside, step=options.step, whence=options.whence, way=options.way)


def release(
    run: Path,
    to: Path,
    outside: Path | None = None,
    held_out: int = HELD_OUT,
    step: int | None = None,
    whence: str | None = None,
    way: float = 1.0,
) -> None:
    """Write the model of a run after `step` (None: the last), its card and its evaluation into the folder `to`.

    With a `way` other than 1 the weights are those at this place on the line from before the discriminator to the end.
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
    after = AutoencoderKL.from_pretrained(to, dtype=torch.float32).eval()  # as everybody will have it
    models = {AFTER: after}
    if step > config.disc_start:
        models = {BEFORE: averaged_at(run, config.disc_start, after)} | models
    data: dict[str, EvaluationData] = {"held out": evaluation_data("photos", SIDE, count=held_out)}
    if outside is not None:
        data["from outside"] = OutsideCrops(outside, whence)
    results = {name: measured(config, models, images) for name, images in data.items()}
    values: dict[str, Any] = {name: result.to_dict() for name, result in results.items()}
    values["latents"] = {"std": found.overall_std, "channels": found.std.tolist(), "noise": noise, "crops": MEASURED}
    values["trained"] = {name: config.to_dict()[name] for name in TOLD} | {
        "step": step,
        "way": way,
        "hours": hours(run, config, step),
        "command": config.command(out=Path("run"), resume=None, device=None),
    }
    (to / "evaluation.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    (to / "README.md").write_text(card(after, values), encoding="utf-8")


def averaged_at(run: Path, step: int, like: AutoencoderKL) -> AutoencoderKL:
    """The averaged weights that a run had after `step`, out of its checkpoint."""
    weights = SafetensorsFile(run / "checkpoints" / f"step_{step:07d}" / WEIGHTS)
    vae = AutoencoderKL(like.config).eval()
    vae.load_state_dict({name.removeprefix(AVERAGE): weights[name] for name in weights if name.startswith(AVERAGE)})
    return vae


@torch.inference_mode()
def latent_statistics(vae: AutoencoderKL, config: TrainingConfig) -> tuple[Any, float]:
    """Statistics of the latents of training crops, and the mean deviation of their posteriors."""
    data = images_of(config, MEASURED, size=SIDE)
    generator, deviations = torch.Generator().manual_seed(config.seed), []

    def samples() -> Iterator[Tensor]:
        for image in data:
            posterior = vae.encode(image[None]).latent_dist
            deviations.append(posterior.std.mean().item())
            yield posterior.sample(generator)

    return statistics(samples()), float(np.mean(deviations))


def measured(config: TrainingConfig, models: dict[str, AutoencoderKL], data: EvaluationData) -> Evaluation:
    """The models beside patch-PCA, fitted on the images that they were trained on, and bicubic."""
    crops = torch.stack([*images_of(config, PCA_CROPS)])
    pca = PatchPCA(8, 4).fit(crops)
    return evaluate({**models, PCA: pca.reconstruct, "bicubic": lambda images: bicubic(images, 8)}, data)


class OutsideCrops:
    """Squares of every photograph in a folder, of 0.4 to 1 of its shorter side, scaled to `SIDE` pixels."""

    def __init__(self, folder: Path, whence: str | None = None) -> None:
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in image_suffixes())
        self.what = f"{CROPS} crops each, of 0.4 to 1 of the shorter side, scaled to {SIDE}x{SIDE} pixels"
        self.what += f"; {whence}" if whence else ""

    @property
    def photographs(self) -> int:
        return len(self.paths)

    def __len__(self) -> int:
        return CROPS * len(self.paths)

    def __iter__(self) -> Iterator[tuple[Key, Tensor]]:
        for number, path in enumerate(self.paths):
            image, rng = load_image(path), np.random.default_rng(number)
            shorter = min(image.shape[-2:])
            for _ in range(CROPS):
                side = max(SIDE, round(rng.uniform(0.4, 1) * shorter))
                top, left = (rng.integers(length - side + 1) for length in image.shape[-2:])
                yield (number,), resize(image[:, top : top + side, left : left + side], SIDE, SIDE)

    def report(self) -> str | None:
        return None


def hours(run: Path, config: TrainingConfig, step: int) -> float:
    """How long the steps up to `step` took, from the run's log."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return sum(config.batch_size / record["images_per_second"] for record in records[:step]) / 3600


def card(vae: AutoencoderKL, values: dict[str, Any]) -> str:
    """The model's card; `values` is what `evaluation.json` holds."""
    figures = "\n".join(_table(values[name]) for name in ("held out", "from outside") if name in values)
    latents = values["latents"]
    trained = values["trained"]
    last, start = trained["step"], trained["disc_start"]
    return CARD.format(
        **trained,
        out="run",
        stages=(ONE_STAGE if last <= start else TWO_STAGES).format(**trained, rest=last - start),
        colours=RARE_COLOURS if trained["recolour"] else FEW_COLOURS,
        mixed="" if trained["way"] == 1 else MIXED.format(**trained),
        reading=ONE_READING if last <= start else TWO_READINGS,
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
    """One evaluation as a table in Markdown."""

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
