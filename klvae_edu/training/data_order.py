"""The order in which crops are trained on: a function of the seed and the place, so that a run can begin anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

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
