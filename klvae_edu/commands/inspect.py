"""Say what a weight file, a folder or a model on the Hub is, and measure it on images: `klvae inspect`."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from klvae_edu.commands.arguments import HomePath, memory_for
from klvae_edu.commands.models import ModelFields, announce_hub

if TYPE_CHECKING:
    from klvae_edu.autoencoder import AutoencoderKL
    from klvae_edu.evaluation.findings import Latents
    from klvae_edu.evaluation.images import EvaluationData
    from klvae_edu.evaluation.xray import Artefacts, Xray
    from klvae_edu.training.latent_report import LatentReport
    from klvae_edu.weights.single_file import StoredModel

BATCH = 4  # images


@dataclass(frozen=True)
class InspectOptions(ModelFields):
    """Say in ten lines what a file, a folder or a Hub id holds: names, network, parameters, scale, and what is left.

    With --data the model is measured on images: its latents, the artefacts of its reconstructions, and for each finding
    a sentence that says what to try.
    """

    model: Positional[str]  # a weight file, a folder or a pipeline in diffusers' layout, a Hub id, or a bundled model
    ema: bool = False  # averaged weights, of a file that holds trained and averaged ones
    # images to measure the model on: photos, dead-leaves, sprites, a folder, or a Hugging Face data set; None: none
    data: str | None = None
    split: Literal["held-out", "all"] = "held-out"  # held-out images, or all images of a folder not trained on
    size: int = 256  # side of the images in pixels
    crops: int | None = None  # number of images; None: 256 with --split held-out, every image with --split all
    out: HomePath | None = None  # new PNG file for a picture: the worst images, errors and spectra
    json: HomePath | None = None  # new JSON file for the measures and findings
    # device to compute on; None: the first available of cuda, mps and cpu
    device: Literal["cuda", "mps", "cpu"] | None = None


def run_inspect(options: InspectOptions) -> int:
    """Run `klvae inspect`, and return the exit code: 1 when weights do not fit, or some images could not be read."""
    from klvae_edu.weights.any_model import read_model

    _check(options)
    announce_hub(options.model)
    stored = read_model(options.model, ema=options.ema, **options.given())
    problem = _describe(stored)
    if problem is not None or options.data is None:
        return 1 if problem else 0
    return _measure(options, options.data, stored)


def _check(options: InspectOptions) -> None:
    """Raise a `ValueError` for wrong options before any file is read."""
    for name, path in (("out", options.out), ("json", options.json)):
        if path is None:
            continue
        if options.data is None:
            raise ValueError(f"{name}: expected with --data, the images to measure the model on")
        if path.exists():
            raise ValueError(f"{path}: it already exists and was not changed; name another file with --{name}")
        if not path.parent.is_dir():
            raise ValueError(f"{path}: expected a file in an existing folder, but {path.parent} is none")
    if options.out is not None and options.out.suffix.lower() != ".png":
        raise ValueError(f"out: expected the name of a PNG file, got {options.out}")


def _describe(stored: StoredModel) -> str | None:
    """Print what was stored, and return why the weights do not fit their configuration; None: they do."""
    import torch

    from klvae_edu.autoencoder import AutoencoderKL
    from klvae_edu.weights.checks import check_fit
    from klvae_edu.weights.places import count_by_kind
    from klvae_edu.weights.programs import family_of, read_by_diffusers

    config, weights = stored.config, stored.weights
    problem = None
    with torch.device("meta"):
        network = AutoencoderKL(config)
    try:
        check_fit(network.state_dict(), weights, stored.path)
    except ValueError as error:
        problem = str(error)
    types = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in weights.values())
    present = [name for name in ("quant_conv", "post_quant_conv") if getattr(config, f"use_{name}")]
    means = ", mean and std of each channel" if config.latents_mean else ""
    scale = f"scaling factor {config.scaling_factor}, shift {config.shift_factor}{means}"
    if config.patch_size is not None:
        scale = f"mean and variance of each position in patches of {' x '.join(map(str, config.patch_size))}"
    own = config.decoder_block_out_channels
    widths = ", ".join(map(str, config.block_out_channels)) + (f" (decoder {', '.join(map(str, own))})" if own else "")
    left = f"{len(stored.left_out)}: {count_by_kind(stored.left_out)}" if stored.left_out else "none"
    rows = {
        "file": f"{stored.path}, {stored.path.stat().st_size / 1e6:,.1f} MB",
        "names": stored.layout,
        "network": f"f = {config.downsample_factor}, {config.in_channels} image and {config.latent_channels} latent "
        f"channels; widths {widths}; "
        f"blocks per level: {config.layers_per_block}",
        "parts": f"{', '.join(present) or 'no convolutions'} around the latent; "
        f"{'attention' if config.mid_block_add_attention else 'no attention'} in the mid block; "
        f"{config.norm_num_groups} groups in each norm",
        "family": family_of(config) or "none of the published ones",
        "parameters": f"{sum(tensor.numel() for tensor in weights.values()):,} in {len(weights)} tensors",
        "types": ", ".join(f"{kind} ({count})" for kind, count in types.most_common()),
        "latents": scale,
        "left out": f"{left}; {stored.others} tensors of other models in the file",
        "diffusers": read_by_diffusers(config, stored.path, stored.style, stored.prefix),
    }
    for name, value in rows.items():
        print(f"{name:<11}{value}")
    for note in [*stored.notes, *([problem] if problem else [])]:
        print(f"{'note':<11}{note}")
    return problem


def _measure(options: InspectOptions, source: str, stored: StoredModel) -> int:
    """Measure the model on images of `source`, print table and findings, and write the files that are asked for."""
    import torch

    from klvae_edu.autoencoder import AutoencoderKL
    from klvae_edu.environment import pick_device
    from klvae_edu.evaluation.compare import image_channels
    from klvae_edu.evaluation.findings import find
    from klvae_edu.evaluation.images import WholeImages, evaluation_data
    from klvae_edu.evaluation.xray_picture import save_picture
    from klvae_edu.evaluation.xray_table import tables

    vae = AutoencoderKL.from_weights(stored.config, stored.weights, stored.path, torch.float32)
    vae = vae.to(pick_device(options.device)).eval()
    channels = image_channels({options.model: vae})
    data = evaluation_data(source, options.size, options.split, options.crops, channels=channels)
    with memory_for(options.size):
        xray, latents = _pass(vae, data)
    seen = xray.artefacts()
    findings = find(seen, latents, vae.downsample_factor)
    print(f"\n{seen.images} images: {data.what}\n")
    print("\n".join(tables(seen, latents, vae.downsample_factor)) + "\n")
    for finding in findings:
        print(f"{finding.name}: {finding.text}")
    if not findings:
        print("Nothing is out of the ordinary.")
    if options.out is not None:
        title = f"{options.model}: {', '.join(finding.name for finding in findings) or 'no finding'}"
        save_picture(options.out, seen, xray.worst, vae.downsample_factor, title)
        print(f"written: {options.out}")
    if options.json is not None:
        about = {"model": options.model, "data": data.what, "unreadable": data.report()}
        found = [asdict(finding) for finding in findings]
        measures = {"artefacts": _plain(seen), "latents": _plain(latents)}
        with options.json.open("x", encoding="utf-8") as file:
            json.dump({**about, **measures, "findings": found}, file, indent=1, ensure_ascii=False)
            file.write("\n")
        print(f"written: {options.json}")
    remarks = data.remarks.summary() if isinstance(data, WholeImages) else None
    unreadable = data.report()
    for remark in filter(None, (remarks, unreadable)):
        print(f"klvae: {remark}", file=sys.stderr)
    return 1 if unreadable else 0


def _pass(vae: AutoencoderKL, data: EvaluationData) -> tuple[Xray, Latents]:
    """Encode and decode each image once, and measure both."""
    from klvae_edu.environment import progress
    from klvae_edu.evaluation.findings import Latents
    from klvae_edu.evaluation.images import batches
    from klvae_edu.evaluation.xray import Xray
    from klvae_edu.training.latent_report import posterior_report

    xray = Xray(vae.downsample_factor)
    images = (images for _, images in batches(data, BATCH))
    posteriors = xray.posteriors(vae, images)
    report = posterior_report(vae, progress(posteriors, desc="measuring", total=-(-len(data) // BATCH)))
    samples = report.samples
    return xray, Latents(
        mean=samples.mean,
        std=samples.std,
        width=samples.std * (1 - report.signal).clamp_min(0).sqrt(),
        signal=report.signal,
        unused=report.unused,
        scaling_factor=1 / samples.overall_std if samples.overall_std else None,
        scaled_std=_scaled_std(vae, report),
        spectral_share=xray.spectral_share,
    )


def _scaled_std(vae: AutoencoderKL, report: LatentReport) -> float | None:
    """Compute the standard deviation of all scaled latents; None: the model has no scaling factor."""
    from torch.nn.functional import pixel_shuffle

    config, of = vae.config, report.patches
    if config.scaling_factor is None and config.patch_size is None:
        return None
    patch = config.patch_size[0] if config.patch_size else 1
    points = [pixel_shuffle(value.view(1, -1, 1, 1), patch) for value in (of.mean, of.mean + of.std)]
    mean, above = map(vae.scale_latents, points)  # scaling is affine: the two points tell all
    return float(((above - mean).square().mean() + mean.var(correction=0)).sqrt())


def _plain(measures: Artefacts | Latents) -> dict[str, Any]:
    """Turn tensors into lists, and nan into None."""
    lists = {n: v.tolist() if hasattr(v, "tolist") else v for n, v in vars(measures).items() if n != "error_spectrum"}
    return {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in lists.items()}
