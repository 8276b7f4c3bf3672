"""Compare trained autoencoders with each other and with baselines: `klvae evaluate`."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from klvae_edu.commands.arguments import HomePath, ModelName, memory_for
from klvae_edu.commands.models import ModelFields, load_model

if TYPE_CHECKING:
    import torch
    from torch import nn

    from klvae_edu.autoencoder import AutoencoderKL
    from klvae_edu.baselines import PatchPCA
    from klvae_edu.efficientnet import EfficientNetDistance
    from klvae_edu.evaluation.compare import Evaluation, Method

MIN_SIZE = 16  # side in pixels; SSIM's window needs 11, the networks of the distances 16
RGB = 3  # channels


@dataclass(frozen=True)
class EvaluateOptions(ModelFields):
    """Compare trained autoencoders with each other and with baselines, on images that they were not trained on.

    The images have as many channels as the models take.
    """

    models: Positional[tuple[ModelName, ...]]  # bundled models (kl-f8-mini), folders (run/model), files, or Hub ids
    data: str = "photos"  # images to evaluate on: photos, dead-leaves, sprites, a folder, or a Hugging Face data set
    split: Literal["held-out", "all"] = "held-out"  # held-out images, or all images of a folder not trained on
    size: int = 256  # side of the images in pixels
    crops: int | None = None  # number of images; None: 256 with --split held-out, every image with --split all
    fit: str = "photos"  # data set for patch-PCA, which is fitted to its training crops: as --data
    out: HomePath | None = None  # new JSON file for the results
    # device to compute on; None: the first available of cuda, mps and cpu
    device: Literal["cuda", "mps", "cpu"] | None = None


def run_evaluate(options: EvaluateOptions) -> int:
    """Run `klvae evaluate` and return the exit code: 1 when some images could not be read. The others are used."""
    from klvae_edu.baselines import JpegWithin
    from klvae_edu.evaluation.compare import evaluate, image_channels
    from klvae_edu.evaluation.images import WholeImages, evaluation_data

    _check(options)
    vaes = {name: load_model(name, options.device, options.given()) for name in options.models}
    for name, vae in vaes.items():
        if options.size % vae.downsample_factor:
            factor = vae.downsample_factor
            raise ValueError(f"size: expected a multiple of {factor}, the factor of {name}, got {options.size}")
    channels = image_channels(vaes)
    data = evaluation_data(options.data, options.size, options.split, options.crops, channels=channels)
    distances, judge, left_out = trained_networks(next(iter(vaes.values())).device)
    baselines = _baselines(vaes, options.size, options.fit)
    with memory_for(options.size):
        result = evaluate({**vaes, **baselines}, data, distances=distances, classifier=judge)
    result.notes += left_out
    if _has_channels(options.fit, channels):
        fitted = f"is fitted to training crops of {options.fit}"
        result.notes += [f"patch-PCA has as many numbers as the latent, and {fitted}."]
    else:
        result.notes += [f"patch-PCA is left out: {options.fit} has no images of {channels} channels for --fit."]
    if channels != RGB:
        result.notes += ["JPEG is left out: it is a baseline for images of 3 channels."]
    jpegs = {name: method for name, method in baselines.items() if isinstance(method, JpegWithin)}
    result.notes += [f"{name}, one for each number of the latent: {jpeg.report()}." for name, jpeg in jpegs.items()]
    differences = [(a, b) for a, b in _differences(vaes) if b in result.quotients]
    print(result.table() + "\n")
    for a, b in differences:
        print(f"{a} minus {b}: PSNR {result.difference(a, b, 'PSNR'):+.2f} dB")
    if options.out is not None:
        with options.out.open("x", encoding="utf-8") as file:
            json.dump(_as_json(result, vaes, differences), file, indent=1, ensure_ascii=False)
            file.write("\n")
        print(f"\nwritten: {options.out}")
    remarks = data.remarks.summary() if isinstance(data, WholeImages) else None
    if remarks:
        print(f"klvae: {remarks}", file=sys.stderr)
    unreadable = data.report()
    if unreadable:
        print(f"klvae: {unreadable}", file=sys.stderr)
    return 1 if unreadable else 0


def trained_networks(device: torch.device) -> tuple[dict[str, nn.Module], EfficientNetDistance | None, list[str]]:
    """Load the networks of `evaluate` whose trained weights are here: distances by name, and the classifier.

    The third result are notes on those that are left out. An untrained LPIPS measures no quality.
    """
    from klvae_edu.efficientnet import EfficientNetDistance
    from klvae_edu.perceptual import LPIPS

    distances: dict[str, nn.Module] = {}
    judge, left_out = None, []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the note below the table says it
            lpips = LPIPS()
        if lpips.trained:
            distances["LPIPS"] = lpips.to(device)
        else:
            left_out.append("LPIPS is left out: the trained weights of its network, VGG16, are not available.")
    except ImportError as error:
        left_out.append(f"LPIPS is left out: {error}.")
    try:
        judge = distances["EfficientNet-Lite1 distance"] = EfficientNetDistance("efficientnet-lite1").to(device)
    except ImportError as error:
        left_out.append(f"EfficientNet-Lite1 is left out: {error}.")
    return distances, judge, left_out


def _check(options: EvaluateOptions) -> None:
    """Raise a `ValueError` for wrong options before any model is loaded."""
    if not options.models:
        raise ValueError("expected at least one model: klvae evaluate MODEL... --data SOURCE")
    if len({*options.models}) < len(options.models):
        raise ValueError(f"expected different models, got {' '.join(options.models)}")
    if options.size < MIN_SIZE:
        raise ValueError(f"size: expected {MIN_SIZE} pixels or more, got {options.size}")
    if options.out is not None and options.out.exists():
        raise ValueError(f"{options.out}: it already exists and was not changed; name another file with --out")
    if options.out is not None and not options.out.parent.is_dir():
        raise ValueError(f"{options.out}: expected a file in an existing folder, but {options.out.parent} is none")


def fitted_pca(vae: AutoencoderKL, source: str = "photos") -> PatchPCA | None:
    """Fit the patch-PCA that has as many numbers as the latent of `vae` to training crops of `source`.

    Returns:
        None if `source` is built in and has no images with the channels of `vae`: it has colour and grey ones.

    Raises:
        ValueError: `source` is not a data set.
    """
    import torch

    from klvae_edu.baselines import PatchPCA
    from klvae_edu.data import image_dataset
    from klvae_edu.training.validation import PCA_CROPS

    factor, channels = vae.downsample_factor, vae.config.in_channels
    if not _has_channels(source, channels):
        return None
    side = max(factor, min(16 * factor, 128))  # large patches need no more memory than 8x8 pixels
    data = image_dataset(source, side, length=PCA_CROPS, channels=channels)
    crops = torch.stack([*data])
    if unreadable := data.report():
        warnings.warn(f"patch-PCA, which is fitted to {source}: {unreadable}", stacklevel=2)
    return PatchPCA(factor, vae.config.latent_channels).fit(crops)


def _has_channels(source: str, channels: int) -> bool:
    """Tell whether a data set may have images of this number of channels; the built-in ones have colour and grey."""
    from klvae_edu.data.sources import BUILT_IN
    from klvae_edu.evaluation.compare import FEATURE_CHANNELS

    return channels in FEATURE_CHANNELS or source not in BUILT_IN


def _baselines(vaes: Mapping[str, AutoencoderKL], size: int, fit: str) -> dict[str, Method]:
    """Build the baselines by name: patch-PCA, bicubic and JPEG for each latent shape of the models."""
    from klvae_edu.baselines import JpegWithin, bicubic

    methods: dict[str, Method] = {}
    for vae in sorted(vaes.values(), key=pca_name):
        if pca_name(vae) in methods:
            continue
        factor, channels = vae.downsample_factor, vae.config.in_channels
        pca = fitted_pca(vae, fit)
        if pca is not None:
            methods[pca_name(vae)] = pca.reconstruct
        methods[f"bicubic, {channels} per {factor}x{factor}"] = partial(bicubic, factor=factor)
        if channels == RGB:
            count = vae.config.latent_channels * (size // factor) ** 2
            methods[f"JPEG, {count} bytes"] = JpegWithin(count)
    return methods


def pca_name(vae: AutoencoderKL) -> str:
    """Name the patch-PCA that has as many numbers as the latent of `vae`."""
    return f"patch-PCA, {vae.config.latent_channels} per {vae.downsample_factor}x{vae.downsample_factor}"


def _differences(vaes: Mapping[str, AutoencoderKL]) -> list[tuple[str, str]]:
    """List the pairs to compare: each model with its patch-PCA, and with the first model."""
    first = next(iter(vaes))
    return [(name, pca_name(vae)) for name, vae in vaes.items()] + [(name, first) for name in vaes if name != first]


def _as_json(
    result: Evaluation, vaes: Mapping[str, AutoencoderKL], differences: list[tuple[str, str]]
) -> dict[str, Any]:
    """Collect the results, the networks' sizes and the differences for the JSON file."""
    networks = {
        name: {"downsample_factor": vae.downsample_factor, "latent_channels": vae.config.latent_channels}
        | {"parameters": vae.num_parameters()}
        for name, vae in vaes.items()
    }
    pairs = [
        {"model": a, "minus": b} | {metric: result.difference(a, b, metric).to_dict() for metric in result.metrics}
        for a, b in differences
    ]
    return {**result.to_dict(), "networks": networks, "differences": pairs}
