"""Encode images into a data set of latents on disk, shard by shard; `klvae encode` calls it.

A shard is written atomically, and its content depends only on its images and the weights. A run that was killed can
therefore be resumed and ends with the same files. Memory does not grow with the number of images.

Source: Rombach et al. 2022, section 3, which trains diffusion on such latents; storing them is common practice. Built
in notebook 11, section 3.
"""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from klvae_edu.autoencoder import AutoencoderKL
from klvae_edu.data.all_images import AllImages
from klvae_edu.data.files import UnreadableImage
from klvae_edu.data.latent_dataset import (
    CHECKSUMS,
    DESCRIPTION,
    FORMAT,
    check_shard,
    pyarrow_and_parquet,
    read_description,
    shard_names,
)
from klvae_edu.environment import progress
from klvae_edu.latents import LatentStatistics
from klvae_edu.weights.checksum import file_crc32
from klvae_edu.weights.files import atomic_write, weights_sha256

IMAGES_PER_SHARD = 1024  # upper limit; an interruption loses at most one shard
VALUES_PER_SHARD = 2**24  # upper limit: means, and as many log-variances; together 128 MiB, in memory while writing
PIXELS_PER_BATCH = 2**18  # of the encoder: 4 images of 256x256
VERSIONS = "versions_sha256"  # entry of latents.json; without it the versions of the images are unchecked
METADATA_KEY = b"klvae_edu"  # of the notes in the metadata of a shard's file


def encode_images(vae: AutoencoderKL, images: AllImages, out: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Encode `images` into the folder `out`, or resume an interrupted run there.

    Args:
        vae: the autoencoder.
        images: images with the model's channels, whose side is a multiple of its downsampling factor.
        out: folder for the latents.
        about: further entries for `latents.json`, such as the names of the model and of the source.

    Returns:
        The final contents of `latents.json`. Images that cannot be read, or whose latents are not finite, have no row;
        they are listed under "left_out".

    Raises:
        ValueError: `out` is a file, `images` do not fit the model, none of them can be read and encoded, or a shard
            there is damaged.
        FileExistsError: `out` has other files, or latents of other images or another model. Nothing is changed.
        OSError: a shard cannot be written, for example because the disk is full.
    """
    factor = vae.downsample_factor
    if images.size % factor:
        raise ValueError(f"size: expected a multiple of {factor}, the model's factor, got {images.size}")
    if images.channels != vae.config.in_channels:
        raise ValueError(f"expected images with the model's {vae.config.in_channels} channels, got {images.channels}")
    settings = _settings(vae, images, about)
    is_new = not out.exists()
    settings = _open(out, settings)
    settings[CHECKSUMS] = read_description(out).get(CHECKSUMS, {})
    try:
        finished = _write(vae, images, out, settings)
    except Exception:
        _remove_if_empty(out, is_new)
        raise
    for left in out.rglob(".*.part"):  # temporary files of a killed run
        left.unlink(missing_ok=True)
    return finished


def _write(vae: AutoencoderKL, images: AllImages, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Write the missing shards and the final description, and return the latter."""
    (out / "data").mkdir(exist_ok=True)
    per_shard = settings["images_per_shard"]
    shards = [out / "data" / name for name in shard_names(len(images), per_shard)]
    for number, shard in enumerate(progress(shards, desc="shards of latents")):
        if shard.exists():
            check_shard(shard, settings[CHECKSUMS])
        else:
            numbers = range(number * per_shard, min((number + 1) * per_shard, len(images)))
            try:
                with atomic_write(shard) as temporary:
                    _write_shard(vae, images, numbers, temporary)
                    settings[CHECKSUMS][shard.name] = file_crc32(temporary)
                    _describe(out, settings)  # first: a shard with its name has its checksum
            except OSError as error:
                reason = error.strerror or str(error)
                raise OSError(
                    f"{shard}: could not be written ({reason}); the {number} shards before it are complete, and the "
                    "same command resumes after them"
                ) from error
    finished = settings | _summary([_notes(shard) for shard in shards])
    _describe(out, finished)
    return finished


def _remove_if_empty(out: Path, is_new: bool) -> None:
    """Remove what a failed run has made, if no shard has a latent: it would stand in the way of another command."""
    shards = [*out.glob("data/train-*.parquet")]
    if any(_notes(shard)["images"] for shard in shards):
        return
    for path in [*shards, *out.rglob(".*.part"), out / DESCRIPTION]:
        path.unlink(missing_ok=True)
    with suppress(OSError):  # somebody else's files
        for folder in (out / "data", out)[: 1 + is_new]:
            folder.rmdir()


def _settings(vae: AutoencoderKL, images: AllImages, about: dict[str, Any]) -> dict[str, Any]:
    side, config = images.size // vae.downsample_factor, vae.config
    shape = [config.latent_channels, side, side]
    return {
        "format": FORMAT,
        **about,
        "weights_sha256": weights_sha256(vae.state_dict()),
        "names_sha256": hashlib.sha256("\n".join(images.names).encode()).hexdigest(),
        VERSIONS: images.versions_sha256(),
        "size": images.size,
        "images": len(images),
        "images_per_shard": max(1, min(IMAGES_PER_SHARD, VALUES_PER_SHARD // math.prod(shape))),
        "latent_shape": shape,
        "scaling_factor": config.scaling_factor,
        "shift_factor": config.shift_factor,
        "latents_mean": config.latents_mean and list(config.latents_mean),
        "latents_std": config.latents_std and list(config.latents_std),
    }


def _open(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Create the folder with its description, or check that the description there is the same, and return it."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: expected a folder for the latents, got a file")
    if (out / DESCRIPTION).is_file():
        found = read_description(out)
        has_shards = any(out.glob("data/train-*.parquet"))
        if has_shards and VERSIONS not in found:  # written by an older version, which did not check them
            settings = {name: value for name, value in settings.items() if name != VERSIONS}
        elif has_shards and found[VERSIONS] is None:  # of files that an older version did not list
            settings[VERSIONS] = None
        differing = [name for name in settings if found.get(name) != settings[name]]
        if has_shards and differing == [VERSIONS]:
            raise FileExistsError(
                f"{out}: holds latents of these images, some of which were changed or replaced since (by the sizes or "
                "times of their files); choose another folder, or delete this one"
            )
        if has_shards and differing:
            listed = "; ".join(f"{name}: {found.get(name)} there, {settings[name]} now" for name in differing)
            raise FileExistsError(
                f"{out}: holds other latents, which were not changed; choose another folder. Differences: {listed}"
            )
        if differing:  # another run was stopped before its first shard
            _describe(out, settings)
        return settings
    if out.is_dir() and any(not path.match(".*.part") for path in out.iterdir()):
        raise FileExistsError(f"{out}: expected a new or an empty folder, or one of this command; it is in use")
    out.mkdir(parents=True, exist_ok=True)
    _describe(out, settings)
    return settings


def _describe(out: Path, description: dict[str, Any]) -> None:
    with atomic_write(out / DESCRIPTION) as path:
        text = json.dumps(description, indent=1, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8", errors="backslashreplace")  # of a path that is no text: JSON's escapes


def _not_finite(dtype: torch.dtype) -> str:
    advice = "the weights or the image are damaged" if dtype == torch.float32 else "encode with float32"
    return f"its latents are NaN or infinite, computed in {dtype}: {advice}"


@torch.no_grad()
def _write_shard(vae: AutoencoderKL, images: AllImages, numbers: range, shard: Path) -> None:
    kept, left_out, moments, waiting = [], [], [], {}
    for number in numbers:
        try:
            waiting[number] = images.load(number)
        except UnreadableImage as error:
            left_out.append(str(error))
        if waiting and (number == numbers[-1] or len(waiting) * images.size**2 >= PIXELS_PER_BATCH):
            posterior = vae.encode(torch.stack([*waiting.values()]).to(vae.device, vae.dtype)).latent_dist
            found = torch.stack([posterior.mean, posterior.logvar]).float().cpu()
            finite = found.isfinite().all(0).flatten(1).all(1)  # (images in the batch,)
            moments.append(found[:, finite])
            for encoded, is_finite in zip(waiting, finite.tolist(), strict=True):
                if is_finite:
                    kept.append(encoded)
                else:
                    left_out.append(f"{images.names[encoded]}: {_not_finite(vae.dtype)}")
            waiting = {}
    side = images.size // vae.downsample_factor
    mean, logvar = torch.cat(moments or [torch.zeros(2, 0, vae.config.latent_channels, side, side)], dim=1)
    values, variances = (x.double().transpose(0, 1).flatten(1) for x in (mean, logvar.exp()))  # (C, n·h·w)
    middle = values.mean(1)
    spread = (values - middle[:, None]).square().mean(1) + variances.mean(1)  # of samples: Var z = Var μ + E σ²
    notes = {
        "images": len(mean),
        "mean": middle.nan_to_num().tolist(),  # NaN if there are no images
        "variance": spread.nan_to_num().tolist(),
        "left_out": left_out,
    }
    names = [images.names[number] for number in kept]
    _write_parquet(shard, {"index": kept, "image": names, "mean": mean.numpy(), "logvar": logvar.numpy()}, notes)


def _write_parquet(shard: Path, columns: dict[str, Any], notes: dict[str, Any]) -> None:
    pa, parquet = pyarrow_and_parquet()
    arrays = {"index": pa.array(columns["index"], pa.int64()), "image": pa.array(columns["image"], pa.string())}
    for name in ("mean", "logvar"):
        arrays[name] = pa.array(columns[name].reshape(-1))
        for length in reversed(columns[name].shape[1:]):  # nested lists, (C, h, w) in each row
            ends = np.arange(0, len(arrays[name]) + 1, length, dtype=np.int32)
            arrays[name] = pa.ListArray.from_arrays(ends, arrays[name])
    table = pa.table(arrays).replace_schema_metadata({METADATA_KEY: json.dumps(notes).encode()})
    parquet.write_table(table, shard, use_dictionary=False, compression="none")


def _notes(shard: Path) -> dict[str, Any]:
    _, parquet = pyarrow_and_parquet()
    try:
        notes: dict[str, Any] = json.loads(parquet.read_schema(shard).metadata[METADATA_KEY])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{shard}: damaged, or not written by this command ({error}); delete it and run the command again"
        ) from error
    return notes


def _summary(shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute the statistics of posterior samples over all latents from the notes of the shards."""
    left_out = [name for notes in shards for name in notes["left_out"]]
    counts = torch.tensor([notes["images"] for notes in shards], dtype=torch.float64)
    if not counts.any():
        raise ValueError(f"none of the images can be read and encoded. {left_out[0]}")
    weights = counts / counts.sum()
    means = torch.tensor([notes["mean"] for notes in shards], dtype=torch.float64)  # (shards, C)
    mean = weights @ means
    within = torch.tensor([notes["variance"] for notes in shards], dtype=torch.float64)
    variance = weights @ (within + (means - mean).square())
    overall = variance.mean() + mean.var(correction=0)
    found = LatentStatistics(mean, variance.sqrt(), mean.mean().item(), overall.sqrt().item())
    statistics = {
        "mean": found.mean.tolist(),
        "std": found.std.tolist(),
        "overall_mean": found.overall_mean,
        "overall_std": found.overall_std,
        "scaling_factor": found.scaling_factor,
    }
    return {"encoded": int(counts.sum()), "left_out": left_out, "statistics": statistics}
