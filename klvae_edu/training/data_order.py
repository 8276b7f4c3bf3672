"""The images of a run, and their order: a function of the seed and the place, so that a run can begin anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler

from klvae_edu.data import image_dataset
from klvae_edu.data.sources import Split
from klvae_edu.training.config import TrainingConfig

PASS = 2**20  # crops that are shuffled among each other


class ShuffledFrom(Sampler[int]):
    """The indices 0 … length - 1 from place `position` on, each pass of 2²⁰ shuffled by itself.

    The order does not depend on how long the run is to be: one that is resumed with more steps goes on with its own.
    """

    def __init__(self, position: int, length: int, seed: int) -> None:
        self.position, self.length, self.seed = position, length, seed

    def __len__(self) -> int:
        return self.length - self.position

    def __iter__(self) -> Iterator[int]:
        for first in range(self.position // PASS * PASS, self.length, PASS):
            generator = torch.Generator().manual_seed(self.seed + first)
            order = torch.randperm(min(PASS, self.length - first), generator=generator)
            for place in order[max(0, self.position - first) :].tolist():
                yield first + place


def images_of(config: TrainingConfig, length: int | None, split: Split = "train", size: int | None = None) -> Any:
    """`length` images of the configuration's data, as `image_dataset` makes them; `size`: other than it says."""
    return image_dataset(
        config.data,
        size or config.size,
        split=split,
        seed=config.seed,
        length=length,
        streaming=config.streaming,
        recolour=config.recolour,
    )
