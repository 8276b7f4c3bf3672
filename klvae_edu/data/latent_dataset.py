"""A data set of latents on disk, as `klvae encode` writes it: what is in it, and how it is read.

A folder with `latents.json`, which says what it is of, and `data/train-….parquet`, which `datasets` reads as well. A
row has the image's number and name and its posterior, mean and log-variance, as lists (C, h, w). The posterior is kept
and not a sample of it, so that every epoch can draw its own. Built in notebook 11, section 3.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from klvae_edu.gaussian import DiagonalGaussianDistribution
from klvae_edu.latents import LatentStatistics

DESCRIPTION = "latents.json"
FORMAT = 1


def shard_names(images: int, per_shard: int) -> list[str]:
    """The shards' file names, of a form that `datasets` takes for one split called "train"."""
    shards = math.ceil(images / per_shard)
    return [f"train-{number:05}-of-{shards:05}.parquet" for number in range(shards)]


def read_description(folder: Path) -> dict[str, Any]:
    """What `latents.json` says.

    Raises:
        ValueError: it is not there, or not what `encode_images` writes.
    """
    path = folder / DESCRIPTION
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: expected a folder of latents with a {DESCRIPTION} ({error})") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{path}: expected what klvae encode writes, in format {FORMAT}")
    return found


class LatentDataset:
    """The latents in a folder that `klvae encode` has finished.

    Attributes:
        description: what `latents.json` says: the model, the source, the size.
        statistics: of all latents, as samples, in their own units.

    Raises:
        ValueError: no such folder, or one that is not finished.

    Built in notebook 11, section 3.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.description = read_description(self.folder)
        names = shard_names(self.description["images"], self.description["images_per_shard"])
        self.shards = [self.folder / "data" / name for name in names]
        missing = [shard.name for shard in self.shards if not shard.is_file()]
        if "statistics" not in self.description or missing:
            done = len(self.shards) - len(missing)
            raise ValueError(
                f"{folder}: not finished, {done} of {len(self.shards)} shards are there; start klvae encode once more"
            )
        found = self.description["statistics"]
        mean, std = (torch.tensor(found[name], dtype=torch.float64) for name in ("mean", "std"))
        self.statistics = LatentStatistics(mean, std, found["overall_mean"], found["overall_std"])

    def __len__(self) -> int:
        return int(self.description["encoded"])

    def posterior(self, shard: int) -> DiagonalGaussianDistribution:
        """The posteriors of one shard's images: (n, C, h, w)."""
        _, parquet = pyarrow_and_parquet()
        table = parquet.read_table(self.shards[shard], columns=["mean", "logvar"])
        shape = (len(table), *self.description["latent_shape"])
        moments = []
        for column in table.columns:
            values = column.combine_chunks()
            for _ in shape[1:]:
                values = values.flatten()
            moments.append(torch.tensor(values.to_numpy()).view(shape))
        return DiagonalGaussianDistribution(torch.cat(moments, dim=1))

    def batches(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        scale: Callable[[Tensor], Tensor] | None = None,
    ) -> Iterator[Tensor]:
        """One epoch: latents (batch_size, C, h, w), drawn from their posteriors and scaled, each image once.

        Shards come in a random order, and the images of each are shuffled among themselves: one shard is in memory.
        What is left of a shard goes to the next one; the last batch may be smaller.

        Args:
            scale: what latents are put through, such as a model's `scale_latents`; None: they are multiplied by the
                scaling factor of these latents, 1 / the deviation of all values.
        """
        factor = self.statistics.scaling_factor
        rest = torch.empty(0)
        for shard in torch.randperm(len(self.shards), generator=generator).tolist():
            z = self.posterior(shard).sample(generator)
            z = z * factor if scale is None else scale(z)
            z = z[torch.randperm(len(z), generator=generator)]
            z = torch.cat([rest.view(-1, *z.shape[1:]), z])
            whole = len(z) // batch_size * batch_size
            for start in range(0, whole, batch_size):
                yield z[start : start + batch_size]
            rest = z[whole:]
        if len(rest):
            yield rest


def pyarrow_and_parquet() -> tuple[Any, Any]:
    """The modules, which come with `datasets`."""
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise ValueError("latents are kept in Parquet files, which need pyarrow: pip install pyarrow") from error
    return pyarrow, pyarrow.parquet
