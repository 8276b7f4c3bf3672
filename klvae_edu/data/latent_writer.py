"""From images to a data set of latents on disk, shard by shard: the work of `klvae encode`.

A shard gets its name once it is whole, and is a function of its images and the weights alone. So a run that was killed
and started again ends with the same files, and memory does not grow with the number of images.

Source: Rombach et al. 2022, section 3, which trains diffusion on such latents; keeping them is custom. Built in
notebook 11, section 3.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from klvae_edu.autoencoder import AutoencoderKL
from klvae_edu.data.all_images import AllImages
from klvae_edu.data.files import UnreadableImage
from klvae_edu.data.latent_dataset import DESCRIPTION, FORMAT, pyarrow_and_parquet, read_description, shard_names
from klvae_edu.environment import progress
from klvae_edu.latents import LatentStatistics
from klvae_edu.weights.files import atomic_write

PER_SHARD = 1024  # images, the most that an interruption costs; fewer where latents are large:
VALUES_PER_SHARD = 2**24  # means, and as many log-variances: 128 MiB in all, which are in memory while it is written
PIXELS_AT_ONCE = 2**18  # in a batch of the encoder: 4 images of 256x256
KEY = b"klvae_edu"  # of the notes that a shard carries in its file


def encode_images(vae: AutoencoderKL, images: AllImages, out: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Encode `images` into the folder `out`, or go on with what is there; gives what `latents.json` says in the end.

    Args:
        about: what else to note, such as the names of the model and of the source.

    Raises:
        ValueError: `out` is no folder, or `images` do not fit the model.
        FileExistsError: something else is in `out`, or latents of other images or another model; they are left alone.
        OSError: the disk is full, or gone.
    """
    factor = vae.downsample_factor
    if images.size % factor:
        raise ValueError(f"size: expected a multiple of {factor}, the model's factor, got {images.size}")
    settings = _settings(vae, images, about)
    _open(out, settings)
    (out / "data").mkdir(exist_ok=True)
    per_shard = settings["images_per_shard"]
    shards = [out / "data" / name for name in shard_names(len(images), per_shard)]
    for number, shard in enumerate(progress(shards, desc="shards of latents")):
        if not shard.exists():
            numbers = range(number * per_shard, min((number + 1) * per_shard, len(images)))
            try:
                _write_shard(vae, images, numbers, shard)
            except OSError as error:
                reason = error.strerror or str(error)
                raise OSError(
                    f"{shard}: could not be written ({reason}); the {number} shards before it are whole, and the same "
                    "command goes on after them"
                ) from error
    finished = settings | _summary([_notes(shard) for shard in shards])
    _describe(out, finished)
    for left in out.rglob(".*.part"):  # of a run that was killed
        left.unlink(missing_ok=True)
    return finished


def _settings(vae: AutoencoderKL, images: AllImages, about: dict[str, Any]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    side, config = images.size // vae.downsample_factor, vae.config
    shape = [config.latent_channels, side, side]
    return {
        "format": FORMAT,
        **about,
        "weights_sha256": digest.hexdigest(),
        "names_sha256": hashlib.sha256("\n".join(images.names).encode()).hexdigest(),
        "size": images.size,
        "images": len(images),
        "images_per_shard": max(1, min(PER_SHARD, VALUES_PER_SHARD // math.prod(shape))),
        "latent_shape": shape,
        "scaling_factor": config.scaling_factor,
        "shift_factor": config.shift_factor,
        "latents_mean": config.latents_mean and list(config.latents_mean),
        "latents_std": config.latents_std and list(config.latents_std),
    }


def _open(out: Path, settings: dict[str, Any]) -> None:
    """Make the folder and write what it will be of, or find that it is of the same."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: expected a folder for the latents, got a file")
    if (out / DESCRIPTION).is_file():
        found = read_description(out)
        differing = [name for name in settings if found.get(name) != settings[name]]
        if differing:
            listed = "; ".join(f"{name}: {found.get(name)} there, {settings[name]} now" for name in differing)
            raise FileExistsError(
                f"{out}: other latents are there, and were left alone; name another folder. What differs: {listed}"
            )
        return
    if out.is_dir() and any(not path.match(".*.part") for path in out.iterdir()):
        raise FileExistsError(f"{out}: expected a new or an empty folder, or one of this command's; it is in use")
    out.mkdir(parents=True, exist_ok=True)
    _describe(out, settings)


def _describe(out: Path, description: dict[str, Any]) -> None:
    with atomic_write(out / DESCRIPTION) as path:
        path.write_text(json.dumps(description, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@torch.no_grad()
def _write_shard(vae: AutoencoderKL, images: AllImages, numbers: range, shard: Path) -> None:
    kept, left_out, moments, waiting = [], [], [], []
    for number in numbers:
        try:
            waiting.append(images.load(number))
            kept.append(number)
        except UnreadableImage as error:
            left_out.append(str(error))
        if waiting and (number == numbers[-1] or len(waiting) * images.size**2 >= PIXELS_AT_ONCE):
            posterior = vae.encode(torch.stack(waiting).to(vae.device, vae.dtype)).latent_dist
            moments.append(torch.stack([posterior.mean, posterior.logvar]).float().cpu())
            waiting = []
    side = images.size // vae.downsample_factor
    mean, logvar = torch.cat(moments or [torch.zeros(2, 0, vae.config.latent_channels, side, side)], dim=1)
    values, variances = (x.double().transpose(0, 1).flatten(1) for x in (mean, logvar.exp()))  # (C, n·h·w)
    middle = values.mean(1)
    spread = (values - middle[:, None]).square().mean(1) + variances.mean(1)  # of samples: Var z = Var μ + E σ²
    notes = {
        "images": len(mean),
        "mean": middle.nan_to_num().tolist(),  # of no images there is none
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
        for length in reversed(columns[name].shape[1:]):  # lists of lists of lists, (C, h, w) in each row
            ends = np.arange(0, len(arrays[name]) + 1, length, dtype=np.int32)
            arrays[name] = pa.ListArray.from_arrays(ends, arrays[name])
    table = pa.table(arrays).replace_schema_metadata({KEY: json.dumps(notes).encode()})
    with atomic_write(shard) as aside:
        parquet.write_table(table, aside, use_dictionary=False, compression="none")


def _notes(shard: Path) -> dict[str, Any]:
    _, parquet = pyarrow_and_parquet()
    try:
        notes: dict[str, Any] = json.loads(parquet.read_schema(shard).metadata[KEY])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{shard}: damaged, or not of this command ({error}); delete it and start once more"
        ) from error
    return notes


def _summary(shards: list[dict[str, Any]]) -> dict[str, Any]:
    """The statistics of all latents as samples of their posteriors, from the shards' notes."""
    left_out = [name for notes in shards for name in notes["left_out"]]
    counts = torch.tensor([notes["images"] for notes in shards], dtype=torch.float64)
    if not counts.any():
        raise ValueError(f"none of the images can be read. {left_out[0]}")
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
