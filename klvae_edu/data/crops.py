"""From whole images to training images: random crops that are a pure function of (seed, index).

No state is carried from one crop to the next, so a data set gives the same crops in any order, process or worker.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from klvae_edu.data.files import UnreadableImage, resize

HELD_OUT_SHARE = 0.05
LARGEST_PIECE = 0.5  # of an image's shorter side
NAMES_IN_REPORT = 20


def pyramid(image: Tensor, smallest: int) -> list[Tensor]:
    """`image` (3, H, W), then its halves by area averaging as long as the shorter side keeps `smallest` pixels."""
    levels = [image]
    while min(levels[-1].shape[-2:]) // 2 >= smallest:
        levels.append(F.avg_pool2d(levels[-1], 2))
    return levels


def random_crop(levels: Sequence[Tensor], size: int, rng: np.random.Generator) -> Tensor:
    """A square piece of an image, scaled to `size` pixels and mirrored half of the time: (3, size, size).

    The side of the piece lies between `size` pixels and half of the image's shorter side, uniform in its logarithm:
    natural images look alike at all scales, but a whole scene squeezed into a small crop is nothing that a model is
    used on. Images too small for that give pieces of `size` pixels; still smaller ones are scaled up.

    Args:
        levels: the image (3, H, W) in [-1, 1], alone or followed by halved copies (`pyramid`), which save time.
    """
    shorter = min(levels[0].shape[-2:])
    side = min(size * max(LARGEST_PIECE * shorter / size, 1) ** rng.random(), shorter)
    depth = min(int(math.log2(max(side / size, 1))), len(levels) - 1)
    image = levels[depth]
    height, width = image.shape[-2:]
    side = min(round(side / 2**depth), height, width)
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    crop = image[:, top : top + side, left : left + side]
    if rng.random() < 0.5:
        crop = crop.flip(-1)
    return crop.clone() if side == size else resize(crop, size, size)


def hold_out(keys: Sequence[str]) -> tuple[list[int], list[int]]:
    """Split the images with these names: (positions to train on, positions held out), each in the order of the hashes.

    Held out are the 5 % whose names have the smallest hashes, at least one: the split depends on nothing else, and an
    image that is added later moves hardly any other. A single image is on both sides.
    """
    if len(keys) == 1:
        return [0], [0]
    by_hash = sorted(range(len(keys)), key=lambda position: stable_hash(keys[position].encode()))
    count = max(1, round(HELD_OUT_SHARE * len(keys)))
    return by_hash[count:], by_hash[:count]  # not by name: neighbours there are often of one kind


def stable_hash(content: bytes) -> int:
    """64 bits that are the same in every process, unlike `hash`."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())


def shared_zeros(*shape: int, dtype: torch.dtype) -> Tensor:
    """Zeros in memory that DataLoader workers share with the process that starts them."""
    zeros: Tensor = torch.zeros(shape, dtype=dtype).share_memory_()  # type: ignore[no-untyped-call]
    return zeros


class Images(Protocol):
    """Whole images by number."""

    def __len__(self) -> int: ...

    def load(self, number: int) -> Sequence[Tensor]:
        """The image's levels, as `random_crop` takes them. Raises `UnreadableImage`."""


class IndexedImages(Dataset[Tensor]):
    """`length` images (3, size, size) in [-1, 1], each a pure function of (seed, index): `make(index)`."""

    def __init__(self, size: int, *, seed: int, length: int) -> None:
        self.size, self.seed, self.length = size, seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self.length:
            raise IndexError(f"expected an index from 0 to {self.length - 1}, got {index}")
        return self.make(index)

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.make, range(self.length))

    def make(self, index: int) -> Tensor:
        raise NotImplementedError

    def report(self, limit: int | None = NAMES_IN_REPORT) -> str | None:
        """Which files could not be read, `limit` of them by name; here none is read."""
        return None


class ImageCrops(IndexedImages):
    """`length` random crops (3, size, size) in [-1, 1] of `images`, which take turns: crop i is of image i mod n.

    In place of an unreadable image comes the next one that can be read. Which ones those were is kept in memory that
    DataLoader workers share, and `report` tells it at the end.
    """

    def __init__(self, images: Images, size: int, *, seed: int, length: int) -> None:
        super().__init__(size, seed=seed, length=length)
        self.images = images
        self.unreadable = shared_zeros(len(images), dtype=torch.bool)

    def make(self, index: int) -> Tensor:
        """Crop `index`.

        Raises:
            ValueError: not one of the images can be read.
        """
        for step in range(len(self.images)):
            number = (index + step) % len(self.images)
            if self.unreadable[number]:
                continue
            try:
                levels = self.images.load(number)
            except UnreadableImage:
                self.unreadable[number] = True
                continue
            return random_crop(levels, self.size, np.random.default_rng((self.seed, index)))
        raise ValueError(f"none of the images can be read. {self.report()}")

    def report(self, limit: int | None = NAMES_IN_REPORT) -> str | None:
        """How many images turned out unreadable, which and why; None if all that were asked for could be read.

        `limit` of them are named (None: all), each is read once more for its reason.
        """
        numbers = self.unreadable.nonzero().flatten().tolist()
        if not numbers:
            return None
        lines = [f"{len(numbers)} of {len(self.images)} images could not be read, others took their place:"]
        named = numbers[:limit]
        lines += [f"  {self._reason(number)}" for number in named]
        if len(numbers) > len(named):
            lines.append(f"  and {len(numbers) - len(named)} more")
        return "\n".join(lines)

    def _reason(self, number: int) -> str:
        """The error that image `number` raises: workers share only which image failed, so it is read once more."""
        try:
            self.images.load(number)
        except UnreadableImage as error:
            return str(error)
        return f"image {number}: could not be read during the run, but can be read now"
