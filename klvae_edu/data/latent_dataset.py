"""Read a data set of latents, a folder that `klvae encode` has written.

The folder contains `latents.json`, the description of the data set with the checksums of its shards, and the shards
`data/train-….parquet`, which `datasets` can read, too. A row holds the number and the name of an image, and the mean
and the log-variance of its posterior as lists (C, h, w). The posterior is stored instead of a sample, so that every
epoch can draw new samples.
Used in notebook 11, section 3.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from klvae_edu.gaussian import DiagonalGaussianDistribution
from klvae_edu.latents import LatentStatistics
from klvae_edu.weights.checksum import file_crc32

DESCRIPTION = "latents.json"
FORMAT = 1  # version of the files' format
CHECKSUMS = "checksums"  # entry of latents.json: of the shards, by file name; older folders have none


def shard_names(images: int, per_shard: int) -> list[str]:
    """Return the file names of the shards. `datasets` recognises the pattern as one split called "train"."""
    shards = math.ceil(images / per_shard)
    return [f"train-{number:05}-of-{shards:05}.parquet" for number in range(shards)]


def read_description(folder: Path) -> dict[str, Any]:
    """Read `latents.json` of a folder.

    Raises:
        ValueError: the file is missing, or `encode_images` has not written it.
    """
    path = folder / DESCRIPTION
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: expected a folder of latents with a {DESCRIPTION} ({error})") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a file written by klvae encode, in format {FORMAT}")
    return found


def check_shard(shard: Path, checksums: Mapping[str, str]) -> None:
    """Compare a shard with its checksum, if there is one.

    Raises:
        ValueError: the shard has changed since it was written.
    """
    expected = checksums.get(shard.name)
    if expected is not None and (found := file_crc32(shard)) != expected:
        raise ValueError(
            f"{shard}: damaged: its contents have changed since they were written ({found}, expected {expected}); "
            "delete it and run klvae encode again"
        )


class LatentDataset:
    """Latents in a folder that `klvae encode` has completed. A shard is verified when it is first read.

    Attributes:
        description: contents of `latents.json`: the model, the source, the size.
        statistics: mean and standard deviation of posterior samples over all images, before scaling.

    Raises:
        ValueError: the folder has no latents, or is not complete.

    Used in notebook 11, section 3.
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
                f"{folder}: not finished, {done} of {len(self.shards)} shards are there; run klvae encode again"
            )
        found = self.description["statistics"]
        mean, std = (torch.tensor(found[name], dtype=torch.float64) for name in ("mean", "std"))
        self.statistics = LatentStatistics(mean, std, found["overall_mean"], found["overall_std"])
        self._unverified = {*self.shards}

    def __len__(self) -> int:
        return int(self.description["encoded"])

    def posterior(self, shard: int) -> DiagonalGaussianDistribution:
        """Read the posteriors of the n images of one shard: (n, C, h, w).

        Raises:
            ValueError: the shard is damaged.
        """
        _, parquet = pyarrow_and_parquet()
        if self.shards[shard] in self._unverified:
            check_shard(self.shards[shard], self.description.get(CHECKSUMS, {}))
            self._unverified.remove(self.shards[shard])
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
        """Yield one epoch of scaled posterior samples (batch_size, C, h, w), one sample per image.

        Shards come in a random order, and images are shuffled inside their shard, so only one shard is in memory. The
        rest of a shard is prepended to the next shard. The last batch may be smaller.

        Args:
            batch_size: number of latents in a batch.
            generator: source of the order and of the samples.
            scale: scaling of the latents, such as a model's `scale_latents`. None: multiply by the scaling factor of
                these latents, 1 / standard deviation of all values.
        """
        factor = self.statistics.scaling_factor
        rest = torch.empty(0)
        for shard in torch.randperm(len(self.shards), generator=generator).tolist():
            z = self.posterior(shard).sample(generator)
            z = z * factor if scale is None else scale(z)
            z = z[torch.randperm(len(z), generator=generator)]
            z = torch.cat([rest.view(-1, *z.shape[1:]), z])
            full = len(z) // batch_size * batch_size
            for start in range(0, full, batch_size):
                yield z[start : start + batch_size]
            rest = z[full:]
        if len(rest):
            yield rest


def pyarrow_and_parquet() -> tuple[Any, Any]:
    """Import pyarrow and pyarrow.parquet, which are installed with `datasets`."""
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise ValueError("latents are stored in Parquet files, which need pyarrow: pip install pyarrow") from error
    return pyarrow, pyarrow.parquet
