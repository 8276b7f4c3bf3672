"""`klvae evaluate`: trained autoencoders side by side, and beside what needs no network."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

if TYPE_CHECKING:
    import torch

    from klvae_edu.autoencoder import AutoencoderKL
    from klvae_edu.evaluation.compare import Evaluation, Method
    from klvae_edu.perceptual import LPIPS

SMALLEST = 16  # pixels a side; SSIM's window takes 11, LPIPS' network 16


@dataclass(frozen=True)
class EvaluateOptions:
    """Measure trained autoencoders side by side, on images that they were not trained on."""

    models: Positional[tuple[str, ...]]  # bundled ones (kl-f8-mini), folders such as run/model, files or Hub ids
    data: str = "photos"  # images to evaluate on: photos, dead-leaves, sprites, a folder, or a Hugging Face data set
    split: Literal["held-out", "all"] = "held-out"  # all: each image of a folder of which nothing was trained on, once
    size: int = 256  # side of the images in pixels
    crops: int | None = None  # number of images; None: 256 held-out crops, or all of the folder
    fit: str = "photos"  # what patch-PCA is fitted to: training crops of these images
    out: Path | None = None  # file for the values as JSON; it must not be there yet
    device: Literal["cuda", "mps", "cpu"] | None = None  # what to compute on; None: the best there is


def run_evaluate(options: EvaluateOptions) -> int:
    """`klvae evaluate`: 1 when some of the images could not be read; the others are evaluated on."""
    from klvae_edu.baselines import JpegWithin
    from klvae_edu.commands.models import load_model
    from klvae_edu.evaluation.compare import evaluate
    from klvae_edu.evaluation.images import evaluation_data

    _check(options)
    data = evaluation_data(options.data, options.size, options.split, options.crops)
    vaes = {name: load_model(name, options.device) for name in options.models}
    for name, vae in vaes.items():
        if options.size % vae.downsample_factor:
            factor = vae.downsample_factor
            raise ValueError(f"size: expected a multiple of {factor}, the factor of {name}, got {options.size}")
    lpips, without = trained_lpips(next(iter(vaes.values())).device)
    baselines = _baselines(vaes, options.size, options.fit)
    found = evaluate({**vaes, **baselines}, data, lpips=lpips)
    found.notes += [without] if without else []
    found.notes += [f"patch-PCA keeps as many numbers as the latent, and is fitted to training crops of {options.fit}."]
    jpegs = {name: method for name, method in baselines.items() if isinstance(method, JpegWithin)}
    found.notes += [f"{name}, one for each number of the latent: {jpeg.report()}." for name, jpeg in jpegs.items()]
    differences = _differences(vaes)
    print(found.table())
    print("\n" + "\n".join(f"{a} minus {b}: PSNR {found.difference(a, b, 'PSNR'):+.2f} dB" for a, b in differences))
    if options.out is not None:
        with options.out.open("x", encoding="utf-8") as file:
            json.dump(_as_json(found, vaes, differences), file, indent=1, ensure_ascii=False)
            file.write("\n")
        print(f"\nwritten: {options.out}")
    unreadable = data.report()
    if unreadable:
        print(f"klvae: {unreadable}", file=sys.stderr)
    return 1 if unreadable else 0


def trained_lpips(device: torch.device) -> tuple[LPIPS | None, str]:
    """LPIPS with the trained weights of VGG16, or None and the reason: untrained, it measures no quality."""
    from klvae_edu.perceptual import LPIPS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table says it
        try:
            lpips = LPIPS()
        except ImportError as error:
            return None, f"LPIPS is left out: {error}."
    if not lpips.trained:
        return None, "LPIPS is left out: the trained weights of its network, VGG16, cannot be had here."
    return lpips.to(device), ""


def _check(options: EvaluateOptions) -> None:
    """What can be said before anything is loaded."""
    if not options.models:
        raise ValueError("expected at least one model: klvae evaluate MODEL... --data SOURCE")
    if len({*options.models}) < len(options.models):
        raise ValueError(f"expected different models, got {' '.join(options.models)}")
    if options.size < SMALLEST:
        raise ValueError(f"size: expected {SMALLEST} pixels or more, got {options.size}")
    if options.out is not None and options.out.exists():
        raise ValueError(f"{options.out}: in use, and nothing in it was changed; name another file with --out")
    if options.out is not None and not options.out.parent.is_dir():
        raise ValueError(f"{options.out}: expected a folder that is there, got {options.out.parent}")


def _baselines(vaes: Mapping[str, AutoencoderKL], size: int, fit: str) -> dict[str, Method]:
    """For each shape of latent that the models have: patch-PCA, bicubic and JPEG, by name."""
    from klvae_edu.baselines import JpegWithin, bicubic
    from klvae_edu.commands.models import fitted_pca

    found: dict[str, Method] = {}
    for vae in sorted(vaes.values(), key=pca_name):
        factor, channels = vae.downsample_factor, vae.config.latent_channels
        if pca_name(vae) not in found:
            found[pca_name(vae)] = fitted_pca(factor, channels, fit).reconstruct
            found[f"bicubic, 3 per {factor}x{factor}"] = partial(bicubic, factor=factor)
            count = channels * (size // factor) ** 2
            found[f"JPEG, {count} bytes"] = JpegWithin(count)
    return found


def pca_name(vae: AutoencoderKL) -> str:
    """The name of the patch-PCA that keeps as many numbers as the model."""
    return f"patch-PCA, {vae.config.latent_channels} per {vae.downsample_factor}x{vae.downsample_factor}"


def _differences(vaes: Mapping[str, AutoencoderKL]) -> list[tuple[str, str]]:
    """Each model beside its patch-PCA, and beside the first model."""
    first = next(iter(vaes))
    return [(name, pca_name(vae)) for name, vae in vaes.items()] + [(name, first) for name in vaes if name != first]


def _as_json(
    found: Evaluation, vaes: Mapping[str, AutoencoderKL], differences: list[tuple[str, str]]
) -> dict[str, Any]:
    shapes = {
        name: {"downsample_factor": vae.downsample_factor, "latent_channels": vae.config.latent_channels}
        | {"parameters": vae.num_parameters()}
        for name, vae in vaes.items()
    }
    pairs = [
        {"model": a, "minus": b} | {metric: found.difference(a, b, metric).to_dict() for metric in found.metrics}
        for a, b in differences
    ]
    return {**found.to_dict(), "networks": shapes, "differences": pairs}
