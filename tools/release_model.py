"""Make a bundled model from a finished run of its recipe: weights in float16, and a model card with measurements.

    python -m tools.photographs FOLDER
    klvae train kl-f8-mini --data FOLDER/train --out RUN
    python -m tools.release_model kl-f8-mini RUN FOLDER

FOLDER/held-out holds the photographs that the model is evaluated on. No photograph is copied. If RUN holds only the
later stages, which began with the weights of the bundled model, what is known of the earlier ones is kept.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klvae_edu import AutoencoderKL
from klvae_edu.baselines import PatchPCA, bicubic
from klvae_edu.data.files import load_image, resize
from klvae_edu.data.folders import image_names
from klvae_edu.data.sources import image_dataset
from klvae_edu.efficientnet import EfficientNetDistance
from klvae_edu.evaluation.compare import Evaluation, evaluate
from klvae_edu.evaluation.images import EvaluationData, Key, evaluation_data
from klvae_edu.training.config import TrainingConfig
from klvae_edu.training.latent_report import CROPS as LATENT_CROPS
from klvae_edu.training.latent_report import UNUSED
from klvae_edu.training.recipes import load_recipe
from klvae_edu.weights.pretrained import bundled_folder
from tools.photographs import manifest

SIDE = 256  # pixels of the images in the evaluation
OWN_CROPS = 48  # crops of the two held-out photographs inside scikit-image
CROPS = 8  # crops of each held-out photograph
PCA_CROPS = 2048  # training crops on which patch-PCA is fitted
CURVE_POINTS = 6  # validations of each stage that the card shows
PCA = "patch-PCA"
METRICS = {"PSNR": 2, "SSIM": 3, "gradient energy": 2, "EfficientNet-Lite1 distance": 3, "class kept": 2}

CARD = """\
# {name}

A small autoencoder of the same type as {model}'s (`AutoencoderKL`, f = 8, {channels} latent channels):
{parameters:,} parameters, {megabytes:.1f} MB in float16. It encodes a photograph of 256 × 256 pixels as {channels} × 32
× 32 numbers, {fewer} times fewer, and decodes these numbers to a photograph.

    from klvae_edu import AutoencoderKL
    vae = AutoencoderKL.from_bundled("{name}")  # in float32

diffusers reads the folder as well, with `AutoencoderKL.from_pretrained`.

## How it was made

    python -m tools.photographs FOLDER
    klvae train {name} --data FOLDER/train --out run
    python -m tools.release_model {name} run FOLDER

The recipe, `klvae_edu/training/recipes/{name}.yaml`, gives the settings and their reasons. Its stages:

{stages}

The perceptual loss is the feature distance of EfficientNet-Lite0, which was trained on ImageNet; LPIPS was not used.
The weights are an exponential moving average of the trained ones.

PSNR in dB on the validation crops of each stage, from photographs that are not trained on:

{curve}

## Training photographs

{photographs} photographs from Debian packages, each with a stated free licence: {licences}.
`tools/photographs.csv` names the package, version, author and licence of each. They are in no commit and no wheel.

## How good it is

No photograph below was trained on. The weights of the losses in the later stages were chosen among up to five tries,
by such figures on crops of these 20 photographs; the two photographs of scikit-image took no part.
EfficientNet-Lite1 (the distance, the class and the Fréchet distance) was not trained on. *Class kept* is the share of
the images whose class is among the first five of the reconstruction.

{figures}

## Its latents

Latents of {crops} training crops, sampled from the posterior, have means {mean} and standard deviations {std} in the
channels. The scaling factor in `config.json`, {scaling_factor}, is the inverse of the standard deviation of all values.
{unused}

## What it is not good at

{limits}
* It does not replace {model}'s autoencoder, which has forty times as many parameters and was trained on millions of
  photographs. It cannot decode that model's latents.
"""

MODELS = {4: "Stable Diffusion", 16: "Stable Diffusion 3"}
LIMITS = {
    4: """\
* Small faces, lettering and fine regular patterns: four numbers for 8 × 8 pixels do not hold them, and they come out as
  texture. Thin lines such as masts come out soft.
* Edges and texture: see its gradient energy above, where 1 is that of the originals.""",
    16: """\
* Small lettering: that on the motorcycle of `tools.reconstructions` cannot be read.
* Generation: a diffusion model has four times as many latent values to learn as with 4 channels.""",
}


def main() -> None:
    """Read the arguments, and write the folder of the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="the model: kl-f8-mini or kl-f8-mini-16")
    parser.add_argument("run", type=Path, help="the folder of a finished `klvae train NAME`")
    parser.add_argument("photographs", type=Path, help="the folder that `tools.photographs` wrote")
    parser.add_argument("--to", type=Path, help="where to write the model; default: among the assets of the package")
    options = parser.parse_args()
    release(options.name, options.run, options.photographs, options.to or bundled_folder(options.name))


def release(name: str, run: Path, photographs: Path, to: Path) -> None:
    """Write the model of the last stage of `run`, its model card and its evaluation into the folder `to`."""
    folders = {int(folder.name.removeprefix("stage-")): folder for folder in run.glob("stage-*")}
    first, last = min(folders), max(folders)
    known = json.loads((bundled_folder(name) / "evaluation.json").read_text(encoding="utf-8")) if first > 1 else {}
    stages = [*known.get("stages", []), *(stage(folders[number]) for number in range(first, last + 1))]
    if len(stages) != last:
        raise ValueError(
            f"{run}: expected the stages from 1 or {len(stages) - len(folders) + 1} on, got {first} to {last}"
        )
    earlier = {  # the bundled model is the one of the last stage before
        f"after stage {number}": AutoencoderKL.from_pretrained(
            folders[number] / "model" if number in folders else bundled_folder(name), dtype=torch.float32
        ).eval()
        for number in range(max(1, first - 1), last)
    }
    AutoencoderKL.from_pretrained(folders[last] / "model").half().save_pretrained(to)
    vae = AutoencoderKL.from_pretrained(to, dtype=torch.float32).eval()  # rounded to float16, as users get it
    train = str(photographs / "train")
    data: dict[str, EvaluationData] = {
        "held out": HeldOutCrops(photographs / "held-out"),
        "photos": evaluation_data("photos", SIDE, count=OWN_CROPS),
    }
    results = {where: measured(vae, {**earlier, name: vae}, images, train) for where, images in data.items()}
    values: dict[str, Any] = {where: result.to_dict() for where, result in results.items()}
    for where in data:
        of_earlier = {model: row for model, row in known.get(where, {}).get("models", {}).items() if "stage" in model}
        values[where]["models"] = of_earlier | values[where]["models"]
    values |= {"name": name, "stages": stages, "photographs": len(image_names(photographs / "train"))}
    (to / "evaluation.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    (to / "README.md").write_text(card(vae, values), encoding="utf-8")


def stage(folder: Path) -> dict[str, Any]:
    """Describe a finished stage: its configuration, hours, validations and latents, from its run folder."""
    config = load_recipe(folder / "training.json")
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    if records[-1]["step"] != config.steps:
        raise ValueError(f"{folder}: expected {config.steps} steps, got {records[-1]['step']}")
    differing = {name: value for name, value in config.to_dict().items() if value != TrainingConfig().to_dict()[name]}
    return {
        "config": {name: value for name, value in differing.items() if name not in ("data", "out", "init", "resume")},
        "hours": sum(config.batch_size / record["images_per_second"] for record in records) / 3600,
        "curve": {record["step"]: record["held_out_psnr"] for record in records if "held_out_psnr" in record},
        "latents": {name: value for name, value in records[-1].items() if name.startswith("latent_")},
    }


def measured(vae: AutoencoderKL, models: dict[str, AutoencoderKL], data: EvaluationData, train: str) -> Evaluation:
    """Evaluate the models, patch-PCA with as many numbers (fitted on the training photographs), and bicubic."""
    crops = torch.stack([*image_dataset(train, 64, length=PCA_CROPS)])
    pca = PatchPCA(vae.downsample_factor, vae.config.latent_channels).fit(crops)
    judge = EfficientNetDistance("efficientnet-lite1")
    return evaluate(
        {**models, PCA: pca.reconstruct, "bicubic": lambda images: bicubic(images, vae.downsample_factor)},
        data,
        distances={"EfficientNet-Lite1 distance": judge},
        classifier=judge,
        frechet="efficientnet-lite1",
    )


class HeldOutCrops:
    """Square crops of every photograph in a folder, of 0.4 to 1 of its shorter side, scaled to `SIDE` pixels."""

    def __init__(self, folder: Path) -> None:
        self.paths = [folder / name for name in image_names(folder)]
        self.what = f"held out; {CROPS} crops each, of 0.4 to 1 of the shorter side, scaled to {SIDE}x{SIDE} pixels"

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
                side = min(shorter, max(SIDE, round(rng.uniform(0.4, 1) * shorter)))
                top, left = (rng.integers(length - side + 1) for length in image.shape[-2:])
                yield (number,), resize(image[:, top : top + side, left : left + side], SIDE, SIDE)

    def report(self) -> str | None:
        return None


def card(vae: AutoencoderKL, values: dict[str, Any]) -> str:
    """Return the text of the model card; `values` are the contents of `evaluation.json`."""
    channels, latents = vae.config.latent_channels, values["stages"][0]["latents"]
    unused = [number for number, share in enumerate(latents["latent_signal"]) if share < UNUSED]
    licences = Counter(row.licence for row in manifest() if row.split == "train")
    return CARD.format(
        name=values["name"],
        model=MODELS[channels],
        channels=channels,
        fewer=192 // channels,
        parameters=vae.num_parameters(),
        megabytes=2 * vae.num_parameters() / 1e6,
        stages="\n".join(_stage_lines(values["stages"])),
        curve=_curve(values["stages"]),
        photographs=values["photographs"],
        licences=", ".join(f"{licence} {count}" for licence, count in licences.most_common()),
        figures="\n".join(_table(values[where]) for where in ("held out", "photos")),
        crops=LATENT_CROPS,
        mean=", ".join(f"{value:.2f}" for value in latents["latent_mean"]),
        std=", ".join(f"{value:.2f}" for value in latents["latent_std"]),
        scaling_factor=vae.config.scaling_factor,
        unused=f"Unused channels: {unused}." if unused else "Every channel carries information.",
        limits=LIMITS[channels],
    )


def _stage_lines(stages: list[dict[str, Any]]) -> Iterator[str]:
    """Format the stages as a Markdown table."""
    heads = ("stage", "steps", "crops", "trained", "perceptual weight", "adversarial weight", "learning rate", "hours")
    yield f"| {' | '.join(heads)} |"
    yield f"|{' --- |' * len(heads)}"
    for number, one in enumerate(stages, 1):
        config = TrainingConfig.from_dict(one["config"])
        adversarial = f"{config.disc_weight:g}, at most {config.disc_max_weight}" if config.disc_weight else "none"
        crops = f"{config.batch_size} of {config.size}×{config.size}"
        yield (
            f"| {number} | {config.steps:,} | {crops} | {config.trained_part} | {config.perceptual_weight:g} | "
            f"{adversarial} | {config.lr:g} | {one['hours']:.1f} |"
        )


def _curve(stages: list[dict[str, Any]]) -> str:
    """Format some validations of each stage as a Markdown list."""
    lines = []
    for number, one in enumerate(stages, 1):
        points = [*one["curve"].items()]
        chosen = [points[round(k)] for k in np.linspace(0, len(points) - 1, min(CURVE_POINTS, len(points)))]
        lines.append(f"* stage {number}: " + ", ".join(f"{value:.2f} (step {int(step):,})" for step, value in chosen))
    return "\n".join(lines)


def _table(found: dict[str, Any]) -> str:
    """Format one evaluation as a Markdown table."""
    (frechet,) = (name for name in next(iter(found["models"].values())) if name.startswith("Fréchet"))

    def cell(model: str, metric: str, digits: int) -> str:
        one = found["models"][model][metric]
        interval = "" if one.get("low") is None else f" [{one['low']:.{digits}f}, {one['high']:.{digits}f}]"
        return f"{one['value']:.{digits}f}{interval}"

    data, drawn = found["data"], (found["intervals"] or {}).get("drawn")
    columns = {**METRICS, frechet: 1}
    rows = [
        f"| {model} | {' | '.join(cell(model, metric, digits) for metric, digits in columns.items())} |"
        for model in found["models"]
    ]
    what = f"{data['images']} images from {data['photographs']} photographs ({data['what']})"
    return "\n".join(
        [
            f"{what}, with 95 % intervals over {drawn}:",
            "",
            f"| | {' | '.join(columns)} |",
            f"|{' --- |' * (1 + len(columns))}",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
